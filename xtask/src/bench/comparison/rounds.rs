//! The same work without a tracer and with each tracer, in turns, on the host and in the guest.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::{
    super::{Figure, Row, median, quantile, work},
    traced::Work,
    tracer::{Running, Tracer},
};

/// How much work is done.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) rounds: usize,
    /// Operations per round at the full rate of one core.
    pub(super) operations: u32,
    /// Operations per round, one after the other.
    pub(super) samples: u32,
    /// How long sockets that live for 50 ms are opened, in the last round.
    pub(super) short: Duration,
}

/// The measurements of one tracer.
#[derive(Default)]
struct Figures {
    times: Vec<f64>,
    ratios: Vec<f64>,
    delays: Vec<f64>,
    memory: u64,
    made: i64,
    reported: i64,
    made_short: i64,
    reported_short: i64,
}

/// All measurements.
pub(super) struct Outcome {
    baseline: Vec<f64>,
    tracers: Vec<(&'static str, Result<Figures>)>,
}

pub(super) fn measure(work: &Work, tracers: Vec<Tracer>, plan: Plan) -> Result<Outcome> {
    let tracers: Vec<Arc<Tracer>> = tracers.into_iter().map(Arc::new).collect();
    let mut baseline = Vec::new();
    let mut all: Vec<Result<Figures>> = tracers.iter().map(|_| Ok(Figures::default())).collect();
    full_rate(work, plan.operations / 4)?;
    for round in 1..=plan.rounds {
        let without = full_rate(work, plan.operations)?;
        baseline.push(without);
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
        baseline,
        tracers: names.zip(all).collect(),
    })
}

/// Nanoseconds per operation at full rate.
fn full_rate(work: &Work, operations: u32) -> Result<f64> {
    work::time(operations, || work.open().map(drop))
}

/// One round of one tracer, from start to stop.
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
    figures.reported += running.drain();

    // A polling tracer takes a second per sample.
    let end = Instant::now() + Duration::from_secs(2);
    for _ in 0..plan.samples {
        let began = Instant::now();
        let held = work.open()?;
        let mut pause = Duration::from_millis(2);
        if let Some(read) = running.next(Duration::from_secs(5)) {
            let delay = read.saturating_duration_since(began);
            // Varied, so that samples do not always follow a poll directly.
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
        let held = work.open()?;
        thread::sleep(Duration::from_millis(50));
        drop(held);
        figures.made_short += 1;
        // Not a divisor of a second, so that polls come at varying moments.
        thread::sleep(Duration::from_millis(187));
    }
    figures.reported_short = running.drain();
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
    "lost, 50 ms sockets",
];

/// The figures of an emulated machine, where only ratios within one run are meaningful.
pub(super) const RATIOS: [&str; 7] = [
    "ratio",
    "p50 to portwatch's",
    "p99 to portwatch's",
    "samples",
    "RSS, kB",
    "lost at full rate",
    "lost, 50 ms sockets",
];

impl Outcome {
    pub(super) fn figures(mut self) -> Vec<Row> {
        let first = [median(&mut self.baseline, 0), Figure::Number(1.0, 2)];
        let mut rows = vec![Row::of("no tracer", &FIGURES, first)];
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

    /// Delays as ratios to the first tracer's.
    pub(super) fn ratios(self, what: &str) -> Vec<Row> {
        let name = |name: &str| format!("{what}: {name}");
        let mut rows = vec![Row::of(
            name("no tracer"),
            &RATIOS,
            [Figure::Number(1.0, 2)],
        )];
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
            Figure::Share(self.made - self.reported, self.made),
            Figure::Share(self.made_short - self.reported_short, self.made_short),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_tracer_has_dashes_and_a_reason() {
        let outcome = Outcome {
            baseline: vec![1000.0],
            tracers: vec![("other", Err(anyhow::anyhow!("failed: no kprobes")))],
        };
        let rows = outcome.figures();
        assert_eq!(rows[1].what, "other: failed: no kprobes");
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
            reported: 7,
            ..Figures::default()
        };
        let outcome = Outcome {
            baseline: vec![1000.0],
            tracers: vec![("ours", Ok(tracer(40.0))), ("other", Ok(tracer(60.0)))],
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
