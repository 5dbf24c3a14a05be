//! `portwatch list` compared with ss and lsof, which read one network namespace only.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{Figure, Profile, Row, quantile};

pub(super) fn measure(profile: Profile) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (sockets, namespaces) in profile.sockets {
        let mut holder = hold(*sockets, *namespaces)?;
        let list = crate::agent();
        let list = list.to_str().context("a path that is not UTF-8")?;
        let mut times: [Vec<f64>; 3] = Default::default();
        for _ in 0..profile.rounds {
            for (times, command) in times.iter_mut().zip([
                &[list, "list", "--all", "--config", "/dev/null"][..],
                &["ss", "-lntup"],
                &["lsof", "-i", "-n", "-P"],
            ]) {
                times.push(run(command)?);
            }
        }
        drop(holder.stdin.take());
        holder.wait()?;
        let [list, ss, lsof] = times.map(|mut times| quantile(&mut times, 0.5));
        rows.push(
            Row::new(format!("{sockets} sockets, {namespaces} namespaces"))
                .with("list, ms", Figure::Number(list, 0))
                .with("ss -lntup, ms", Figure::Number(ss, 0))
                .with("lsof -i, ms", Figure::Number(lsof, 0))
                .with("list / ss", Figure::Number(list / ss, 2)),
        );
    }
    Ok(rows)
}

/// Runs a command; milliseconds.
fn run(command: &[&str]) -> Result<f64> {
    let (program, arguments) = command.split_first().context("no command")?;
    let began = Instant::now();
    Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("starting {program}"))?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Opens listening sockets, spread over network namespaces, for the lifetime of the child. The first
/// namespace is this one; each other one also has a socket on a watched port.
fn hold(sockets: usize, namespaces: usize) -> Result<Child> {
    let script = format!(
        "use Socket; use POSIX; my @children; for my $number (0..{last}) {{ pipe(my $r, my $w); \
         my $child = fork; if (!$child) {{ close $r; \
         if ($number) {{ syscall(272, 0x40000000) == 0 or die; system('ip link set lo up') }} \
         my @held; for my $port (20000..20000 + {each} - 1, $number ? 955 : ()) {{ \
         socket(my $s, PF_INET, SOCK_STREAM, 0) or die $!; bind($s, sockaddr_in($port, INADDR_LOOPBACK)) or die $!; \
         listen($s, 1) or die; push @held, $s }} syswrite($w, 'x'); close $w; pause; POSIX::_exit(0) }} \
         push @children, $child; close $w; sysread($r, my $x, 1) or die }} \
         $| = 1; print \"ready\\n\"; <STDIN>; kill 9, @children; wait for @children",
        last = namespaces - 1,
        each = sockets / namespaces,
    );
    let limited = "ulimit -n 20000; exec perl -e \"$0\"";
    let mut child = Command::new("sh")
        .args(["-c", limited, &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting perl")?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no pipe")?).read_line(&mut line)?;
    anyhow::ensure!(line == "ready\n", "the sockets could not be opened");
    Ok(child)
}
