//! Other tracers of binds and accepts, on the same work in the same run. Losses are counted from the lines
//! that arrived, not from the tracer's own counters.

mod guest;
mod rounds;
mod traced;
mod tracer;
mod vm;

use anyhow::{Context as _, Result, bail};

pub(crate) use self::guest::Options as GuestOptions;
pub(crate) use self::guest::run as run_guest;
use self::{
    rounds::Plan,
    traced::{PORT, Work},
    tracer::{Mark, Tracer},
};
use super::{Figure, Profile, Row, isolated};
use crate::tools;

pub(super) fn measure(profile: Profile) -> Result<Vec<Row>> {
    tools::set_up_comparison()?;
    let plan = Plan {
        rounds: profile.rounds,
        operations: profile.operations,
        samples: profile.operations / 20 / profile.rounds as u32,
        short: profile.seconds,
    };
    let agent = crate::agent();
    let agent = agent.to_str().context("a path that is not UTF-8")?;
    let tracers = vec![portwatch(agent, "bind"), bpftrace(), ss()];
    let outcome = isolated(|| rounds::measure(&Work::Bind, tracers, plan))?;
    let mut rows = outcome.figures();
    rows.extend(vm::measure(profile));
    let has_none = |row: &&Row| row.figures.iter().all(|(_, one)| *one == Figure::None);
    if let Some(row) = rows.iter().find(has_none)
        && std::env::var_os("CI").is_some_and(|ci| ci == "true")
    {
        bail!("{} (and CI skips nothing)", row.what);
    }
    Ok(rows)
}

fn portwatch(program: &str, event: &str) -> Tracer {
    let marks = vec![
        Mark::Word(event.into()),
        Mark::Text(format!(":{PORT} ")),
        Mark::Text(format!("[{}] ", std::process::id())),
    ];
    let command = [program, "run", "--no-aggregate", "--config", "/dev/null"];
    Tracer::new("portwatch --no-aggregate", &command, marks)
}

/// The marks of a tabular line: the pid and the port are words in it.
fn words() -> Vec<Mark> {
    vec![
        Mark::Word(std::process::id().to_string()),
        Mark::Word(PORT.to_string()),
    ]
}

fn bpftrace() -> Tracer {
    let script = "tracepoint:syscalls:sys_enter_bind { \
                  $port = ((struct sockaddr_in *)uptr(args->umyaddr))->sin_port; \
                  printf(\"%d %s %d\\n\", pid, comm, ($port >> 8) | (($port & 255) << 8)); }";
    // bpftrace reads the tracepoint's format in tracefs, mounted in a mount namespace of its own.
    let mounted = "mount -t tracefs tracefs /sys/kernel/tracing && exec bpftrace -B line -e \"$0\"";
    let command = ["unshare", "--mount", "sh", "-c", mounted, script];
    Tracer::new("bpftrace, sys_enter_bind", &command, words())
}

fn ss() -> Tracer {
    let marks = vec![
        Mark::Text(format!(":{PORT} ")),
        Mark::Text(format!("pid={},", std::process::id())),
    ];
    let poll = format!("ss -Hlnup sport = :{PORT}");
    let forever = format!("while :; do {poll}; sleep 1; done");
    let mut tracer = Tracer::new("ss once a second", &["sh", "-c", &forever], marks);
    tracer.repeats = Some(poll.split(' ').map(str::to_owned).collect());
    tracer
}
