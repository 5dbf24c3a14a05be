//! What a soak watches: a process that takes and lets go of ports, alone and through children, and says
//! which of its sockets lasted.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, BorrowedFd},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgid, setuid},
};

use super::now_ns;

/// The port, which IANA has not assigned.
const PORT: u16 = 976;

/// How a process differs from the one that started it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Plain,
    Netns,
    Cgroup,
    User,
}

const KINDS: [Kind; 4] = [Kind::Plain, Kind::Netns, Kind::Cgroup, Kind::User];

#[derive(Args)]
pub(crate) struct Options {
    /// Run for so many seconds; 0: one socket that lasts
    #[arg(long)]
    seconds: u64,
    /// What is special about the process
    #[arg(long, value_enum, default_value = "plain")]
    kind: Kind,
    /// The cgroup that it is in
    #[arg(long)]
    cgroup: String,
}

/// Numbers that look random: xorshift64 (Marsaglia, 2003).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new() -> Self {
        Self(now_ns() ^ (u64::from(std::process::id()) << 32) | 1)
    }

    pub(super) const fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// A socket on the port.
enum Socket {
    Udp(UdpSocket),
    Tcp(TcpListener),
}

impl Socket {
    /// Repeats while something holds the socket before: a scan that reads /proc does for a moment.
    fn take(is_tcp: bool, address: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(address, PORT);
        for _ in 0..1000 {
            let socket = match is_tcp {
                true => TcpListener::bind(address).map(Self::Tcp),
                false => UdpSocket::bind(address).map(Self::Udp),
            };
            match socket {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    sleep(Duration::from_millis(1));
                }
                other => return other.with_context(|| format!("binding {address}")),
            }
        }
        bail!("{address} is in use")
    }

    fn cookie(&self) -> Result<u64> {
        let fd = match self {
            Self::Udp(socket) => socket.as_raw_fd(),
            Self::Tcp(socket) => socket.as_raw_fd(),
        };
        let mut cookie = 0_u64;
        let mut len = 8;
        // SAFETY: the kernel writes at most `len` bytes to the number; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                BorrowedFd::borrow_raw(fd).as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut len,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("SO_COOKIE");
        }
        Ok(cookie)
    }
}

/// Keeps a socket open for 150 to 450 ms and prints what it was.
fn last(random: &mut Random, address: IpAddr) -> Result<()> {
    let is_tcp = random.below(2) == 0;
    let opened = now_ns();
    let socket = Socket::take(is_tcp, address)?;
    let cookie = socket.cookie()?;
    sleep(Duration::from_millis(150 + random.below(300)));
    drop(socket);
    let event = if is_tcp { "listen" } else { "bind" };
    let pid = std::process::id();
    println!("{event} {cookie} {pid} {opened} {}", now_ns());
    Ok(())
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut random = Random::new();
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let mut address = IpAddr::from([127, 7, high, low]);
    match options.kind {
        Kind::Plain => {}
        Kind::Netns => {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        }
        Kind::Cgroup => {
            let below = format!("{}/{}", options.cgroup, std::process::id());
            fs::create_dir(&below).with_context(|| format!("making {below}"))?;
            join(&below)?;
            last(&mut random, address)?;
            join(&options.cgroup)?;
            return fs::remove_dir(&below).with_context(|| format!("removing {below}"));
        }
        Kind::User => {
            let id = 20_000 + random.below(5000) as u32;
            setgid(Gid::from_raw(id)).context("setgid")?;
            setuid(Uid::from_raw(id)).context("setuid")?;
        }
    }
    let end = Instant::now() + Duration::from_secs(options.seconds);
    if options.seconds == 0 {
        return last(&mut random, address);
    }
    while Instant::now() < end {
        match random.below(10) {
            // What comes and goes.
            0..=5 => {
                let is_tcp = random.below(3) == 0;
                for _ in 0..=random.below(60) {
                    drop(Socket::take(is_tcp, address)?);
                }
            }
            6 | 7 => last(&mut random, address)?,
            _ => child(options, &mut random)?,
        }
        sleep(Duration::from_millis(random.below(20)));
    }
    Ok(())
}

fn join(cgroup: &str) -> Result<()> {
    let procs = format!("{cgroup}/cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("writing {procs}"))
}

/// A process that is gone when its socket is.
fn child(options: &Options, random: &mut Random) -> Result<()> {
    let kind = KINDS[random.below(4) as usize];
    let name = kind.to_possible_value().context("no name")?;
    let status = Command::new(std::env::current_exe()?)
        .args(["soak-worker", "--seconds", "0", "--kind", name.get_name()])
        .args(["--cgroup", &options.cgroup])
        .stdin(Stdio::null())
        .status()?;
    if !status.success() {
        bail!("a child ({kind:?}): {status}");
    }
    Ok(())
}
