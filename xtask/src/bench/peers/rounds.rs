//! The same work with nobody and with each tracer, in turns: on the host and in the guest.

use std::{
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    super::{
        Figure, Row, median, quantile,
        work::{self, again},
    },
    tracer::{Running, Tracer},
};

/// What is told of, always on an unassigned port.
pub(super) enum Work {
    /// socket, bind, close
    Bind,
    /// connect, accept, close both
    Accept(TcpListener),
}

pub(super) const PORT: u16 = 976;

const HERE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, PORT);

impl Work {
    pub(super) fn accept() -> Result<Self> {
        Ok(Self::Accept(TcpListener::bind(HERE)?))
    }

    /// The sockets that it makes; the server's is closed first, so that no client's port stays in
    /// TIME_WAIT.
    pub(super) fn take(&self) -> std::io::Result<[Option<OwnedFd>; 2]> {
        match self {
            Self::Bind => Ok([Some(again(|| UdpSocket::bind(HERE))?.into()), None]),
            Self::Accept(listener) => {
                let client = TcpStream::connect(HERE)?;
                let (server, _) = listener.accept()?;
                Ok([Some(server.into()), Some(client.into())])
            }
        }
    }
}

/// How much of it.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) rounds: usize,
    /// At the full rate of one core, each round.
    pub(super) operations: u32,
    /// One after the other, each round.
    pub(super) samples: u32,
    /// For as long, once, what lives for 50 ms.
    pub(super) short: Duration,
}

/// What became of one tracer.
#[derive(Default)]
struct Figures {
    times: Vec<f64>,
    ratios: Vec<f64>,
    delays: Vec<f64>,
    memory: u64,
    made: i64,
    told: i64,
    made_short: i64,
    told_short: i64,
}

/// All that was measured.
pub(super) struct Outcome {
    nobody: Vec<f64>,
    tracers: Vec<(&'static str, Result<Figures>)>,
}

pub(super) fn measure(work: &Work, tracers: Vec<Tracer>, plan: Plan) -> Result<Outcome> {
    let tracers: Vec<Arc<Tracer>> = tracers.into_iter().map(Arc::new).collect();
    let mut nobody = Vec::new();
    let mut all: Vec<Result<Figures>> = tracers.iter().map(|_| Ok(Figures::default())).collect();
    full_rate(work, plan.operations / 4)?;
    for round in 1..=plan.rounds {
        let without = full_rate(work, plan.operations)?;
        nobody.push(without);
        for (tracer, outcome) in tracers.iter().zip(&mut all) {
            if let Ok(figures) = outcome {
                let is_last = round == plan.rounds;
                if let Err(error) = turn(figures, tracer, work, plan, without, is_last) {
                    *outcome = Err(error);
                }
            }
        }
    }
    let names = tracers.iter().map(|tracer| tracer.name);
    Ok(Outcome {
        nobody,
        tracers: names.zip(all).collect(),
    })
}

/// Nanoseconds for each, as fast as it goes.
fn full_rate(work: &Work, operations: u32) -> Result<f64> {
    work::time(operations, || work.take().map(drop))
}

/// One round of one tracer, from its start to its end.
fn turn(
    figures: &mut Figures,
    tracer: &Arc<Tracer>,
    work: &Work,
    plan: Plan,
    without: f64,
    is_last: bool,
) -> Result<()> {
    let running = Running::start(tracer, work)?;
    let with = full_rate(work, plan.operations)?;
    figures.times.push(with);
    figures.ratios.push(with / without);
    figures.made += i64::from(plan.operations);
    figures.told += running.drain();

    // Who polls takes a second for each.
    let end = Instant::now() + Duration::from_secs(2);
    for _ in 0..plan.samples {
        let began = Instant::now();
        let held = work.take()?;
        let mut pause = Duration::from_millis(2);
        if let Some(read) = running.next(Duration::from_secs(5)) {
            let delay = read.saturating_duration_since(began);
            // Who polls is not to be asked right after a poll each time.
            let share = (figures.delays.len() as f64 * 0.618).fract();
            pause += delay.mul_f64(share);
            figures.delays.push(delay.as_nanos() as f64 / 1e3);
        }
        drop(held);
        thread::sleep(pause);
        if Instant::now() > end {
            break;
        }
    }
    running.drain();
    figures.memory = running.memory()?;
    if !is_last {
        return Ok(());
    }
    let end = Instant::now() + plan.short;
    while Instant::now() < end {
        let held = work.take()?;
        thread::sleep(Duration::from_millis(50));
        drop(held);
        figures.made_short += 1;
        // No part of a second, so that a poll does not come at the same moment each time.
        thread::sleep(Duration::from_millis(187));
    }
    figures.told_short = running.drain();
    Ok(())
}

/// The figures of the host.
pub(super) const FIGURES: [&str; 8] = [
    "bind+close, ns",
    "ratio",
    "p50, us",
    "p99, us",
    "samples",
    "RSS, kB",
    "lost at full rate",
    "lost of 50 ms each",
];

/// The figures of an emulated machine, where only what stands beside them means anything.
pub(super) const RATIOS: [&str; 7] = [
    "ratio",
    "p50 to portwatch's",
    "p99 to portwatch's",
    "samples",
    "RSS, kB",
    "lost at full rate",
    "lost of 50 ms each",
];

impl Outcome {
    pub(super) fn figures(mut self) -> Vec<Row> {
        let first = [median(&mut self.nobody, 0), Figure::Number(1.0, 2)];
        let mut rows = vec![Row::of("nobody", &FIGURES, first)];
        for (name, outcome) in self.tracers {
            rows.push(match outcome {
                Ok(mut figures) => {
                    let before = [
                        median(&mut figures.times, 0),
                        median(&mut figures.ratios, 2),
                    ];
                    let delay = [0.5, 0.99].map(|share| quantile(&mut figures.delays, share));
                    let delay = delay.map(|delay| Figure::Number(delay, 0));
                    let values = before.into_iter().chain(delay).chain(figures.rest());
                    Row::of(name, &FIGURES, values)
                }
                Err(error) => Row::of(format!("{name}: {error:#}"), &FIGURES, []),
            });
        }
        rows
    }

    /// The first tracer is what the others' delays are compared with.
    pub(super) fn ratios(self, what: &str) -> Vec<Row> {
        let name = |name: &str| format!("{what}: {name}");
        let mut rows = vec![Row::of(name("nobody"), &RATIOS, [Figure::Number(1.0, 2)])];
        let mut ours = None;
        for (tracer, outcome) in self.tracers {
            rows.push(match outcome {
                Ok(mut figures) => {
                    let delay = [0.5, 0.99].map(|share| quantile(&mut figures.delays, share));
                    let [p50, p99] = *ours.get_or_insert(delay);
                    let before = [
                        quantile(&mut figures.ratios, 0.5),
                        delay[0] / p50,
                        delay[1] / p99,
                    ];
                    let before = before.map(|ratio| Figure::Number(ratio, 2));
                    let values = before.into_iter().chain(figures.rest());
                    Row::of(name(tracer), &RATIOS, values)
                }
                Err(error) => Row::of(name(&format!("{tracer}: {error:#}")), &RATIOS, []),
            });
        }
        rows
    }
}

impl Figures {
    fn rest(&self) -> [Figure; 4] {
        [
            Figure::count(self.delays.len()),
            Figure::count(self.memory),
            Figure::Share(self.made - self.told, self.made),
            Figure::Share(self.made_short - self.told_short, self.made_short),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_has_dashes_and_a_reason() {
        let outcome = Outcome {
            nobody: vec![1000.0],
            tracers: vec![("peer", Err(anyhow::anyhow!("refused: no kprobes")))],
        };
        let rows = outcome.figures();
        assert_eq!(rows[1].what, "peer: refused: no kprobes");
        assert!(
            rows[1]
                .figures
                .iter()
                .all(|(_, figure)| *figure == Figure::None)
        );
    }

    #[test]
    fn delays_are_compared_with_the_first_tracers() {
        let tracer = |delay| Figures {
            ratios: vec![2.0],
            delays: vec![delay],
            made: 10,
            told: 7,
            ..Figures::default()
        };
        let outcome = Outcome {
            nobody: vec![1000.0],
            tracers: vec![("ours", Ok(tracer(40.0))), ("peer", Ok(tracer(60.0)))],
        };
        let rows = outcome.ratios("work");
        let values: Vec<String> = rows[2]
            .figures
            .iter()
            .map(|(_, figure)| figure.to_string())
            .collect();
        assert_eq!(
            values,
            ["2.00", "1.50", "1.50", "1", "0", "3 of 10", "0 of 0"]
        );
    }
}
