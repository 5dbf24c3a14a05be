//! The cost for other programs: of events on unwatched ports and of reported events.

use std::{collections::BTreeMap, net::TcpListener, os::fd::AsFd as _, thread, time::Duration};

use anyhow::Result;
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};

use super::{
    Figure, Profile, Row, agent::Agent, bpf, empty::Empty, median, quantile, spread, work,
};

type Work = Box<dyn FnMut() -> std::io::Result<()>>;

/// Work on unwatched ports: without programs, with empty programs on the same hooks, and with portwatch,
/// in turns.
pub(super) fn unwatched(profile: Profile) -> Result<Vec<Row>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let works: Vec<(&str, u32, Work)> = vec![
        ("UDP socket, bind, close", 1, Box::new(|| work::bind(0))),
        ("TCP socket, bind, listen, close", 1, Box::new(work::listen)),
        (
            "TCP connect, accept, close both",
            4,
            Box::new(move || work::connect(&listener)),
        ),
    ];
    works
        .into_iter()
        .map(|(what, share, mut work)| unwatched_row(what, profile, share, &mut *work))
        .collect()
}

const PAUSE: Duration = Duration::from_millis(300);

fn unwatched_row(
    what: &str,
    profile: Profile,
    share: u32,
    work: &mut dyn FnMut() -> std::io::Result<()>,
) -> Result<Row> {
    let operations = profile.operations / share / 2;
    let [mut off, mut floors, mut ratios] = [const { Vec::new() }; 3];
    // After the same pause each time; the first operations wake the processor.
    let mut time = || -> Result<f64> {
        thread::sleep(PAUSE);
        work::time(operations / 8, &mut *work)?;
        work::time(operations, &mut *work)
    };
    for _ in 0..profile.rounds * 2 {
        let before = time()?;
        let empty = Empty::attach()?;
        let floor = time()?;
        drop(empty);
        let agent = Agent::start(&[])?;
        let with = time()?;
        agent.stop()?;
        // Before and after, so that a host that slows down does not count as cost.
        let without = f64::midpoint(before, time()?);
        off.push(without);
        floors.push(floor / without);
        ratios.push(with / without);
    }
    Ok(Row::new(what)
        .with("without portwatch, ns", median(&mut off, 0))
        .with(
            "ratio with empty programs (middle half)",
            spread(&mut floors, 3),
        )
        .with("ratio with portwatch (middle half)", spread(&mut ratios, 3)))
}

/// A reported bind and a connection on a watched port, and the share of each BPF program.
pub(super) fn event(profile: Profile) -> Result<Vec<Row>> {
    let mut watched = || work::bind(976);
    let listener = work::again(|| TcpListener::bind("127.0.0.1:977"))?;
    let mut connection = || work::connect(&listener);
    let mut rows = vec![
        in_turns(
            "UDP bind and close on port 976",
            profile,
            profile.operations,
            &[],
            &mut watched,
        )?,
        in_turns(
            "the same with --no-aggregate",
            profile,
            profile.operations,
            &["--no-aggregate"],
            &mut watched,
        )?,
        in_turns(
            "TCP connect, accept, close both on port 977",
            profile,
            profile.operations / 4,
            &[],
            &mut connection,
        )?,
        in_turns(
            "the same with --sessions",
            profile,
            profile.operations / 4,
            &["--sessions"],
            &mut connection,
        )?,
    ];
    let unwatched = |operations| -> Result<()> {
        work::time(operations, || work::bind(0))?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        work::time(operations / 4, || work::connect(&listener))?;
        Ok(())
    };
    let reported = |operations| -> Result<()> {
        work::time(operations, || work::bind(976))?;
        Ok(())
    };
    let _stats = enable_stats(Stats::RunTime)?;
    let operations = profile.operations / 4;
    for (name, work) in [
        ("unwatched", &unwatched as &dyn Fn(u32) -> Result<()>),
        ("reported", &reported),
    ] {
        let (mut floors, mut ours) = (Runs::new(), Runs::new());
        // An interrupted run includes the interruption: hence medians.
        for _ in 0..profile.rounds {
            let empty = Empty::attach()?;
            runs(|| work(operations), &mut floors)?;
            drop(empty);
            let agent = Agent::start(&[])?;
            runs(|| work(operations), &mut ours)?;
            agent.stop()?;
        }
        for (program, empty) in [
            ("post_bind4", "empty_post_bind"),
            ("sock_ops", "empty_sock_ops"),
            ("sock_release", "empty_release"),
        ] {
            let (Some(one), Some(floor)) = (ours.get_mut(program), floors.get_mut(empty)) else {
                continue;
            };
            if one.runs < u64::from(operations) / 8 {
                continue;
            }
            let (ns, floor) = (quantile(&mut one.ns, 0.5), quantile(&mut floor.ns, 0.5));
            let row = Row::new(format!("{program}, {name}"))
                .with("ns per run", Figure::Number(ns, 0))
                .with("empty program, ns", Figure::Number(floor, 0))
                .with("difference, ns", Figure::Number(ns - floor, 0))
                .with("runs", Figure::count(one.runs))
                .with("verified instructions", Figure::count(one.verified))
                .with("stack, bytes", Figure::count(one.stack));
            rows.push(row);
        }
    }
    Ok(rows)
}

fn in_turns(
    what: &str,
    profile: Profile,
    operations: u32,
    arguments: &[&str],
    work: &mut dyn FnMut() -> std::io::Result<()>,
) -> Result<Row> {
    let (mut off, mut on, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    work::time(operations / 4, &mut *work)?;
    for _ in 0..profile.rounds {
        let without = work::time(operations, &mut *work)?;
        let agent = Agent::start(arguments)?;
        let with = work::time(operations, &mut *work)?;
        agent.stop()?;
        off.push(without);
        on.push(with);
        ratios.push(with / without);
    }
    Ok(Row::new(what)
        .with("without portwatch, ns", median(&mut off, 0))
        .with("with portwatch, ns", median(&mut on, 0))
        .with("ratio (middle half)", spread(&mut ratios, 3)))
}

/// The kernel's counters of a program (`BPF_ENABLE_STATS`).
struct Counted {
    runs: u64,
    time_ns: u64,
    verified: u32,
    stack: u32,
}

/// A program's share of a workload that is repeated.
#[derive(Default)]
struct Run {
    runs: u64,
    /// Nanoseconds per run, one value per repetition.
    ns: Vec<f64>,
    verified: u32,
    stack: u32,
}

type Runs = BTreeMap<String, Run>;

/// Runs the work and adds each program's counters.
fn runs(work: impl FnOnce() -> Result<()>, all: &mut Runs) -> Result<()> {
    let before = programs()?;
    work()?;
    for (name, after) in programs()? {
        let (runs, time_ns) = before
            .get(&name)
            .map_or((0, 0), |one| (one.runs, one.time_ns));
        let new = after.runs.saturating_sub(runs);
        if new > 0 {
            let run = all.entry(name).or_default();
            run.runs += new;
            run.ns
                .push(after.time_ns.saturating_sub(time_ns) as f64 / new as f64);
            (run.verified, run.stack) = (after.verified, after.stack);
        }
    }
    Ok(())
}

fn programs() -> Result<BTreeMap<String, Counted>> {
    let mut found = BTreeMap::new();
    for program in loaded_programs() {
        let program = program?;
        let Some(name) = program.name_as_str() else {
            continue;
        };
        let entry = Counted {
            runs: program.run_count(),
            time_ns: program.run_time().as_nanos() as u64,
            verified: program.verified_instruction_count().unwrap_or(0),
            stack: bpf::stack(program.fd()?.as_fd())?,
        };
        if entry.runs > 0 {
            found.insert(name.to_owned(), entry);
        }
    }
    Ok(found)
}
