//! The canary process. It takes ports in a network namespace of its own, where it disturbs nobody and
//! nothing else happens: each program is to report that, and the agent to be woken for it. A process of
//! its own, since an armed monitor cannot enter a namespace and listens on nothing.

use std::{
    fs::File,
    io::{self, IoSliceMut, Write as _},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::Path,
    thread,
    time::Duration,
};

use bytemuck::{Pod, Zeroable};
use caps::Capability;
use nix::{
    errno::Errno,
    getsockopt_impl,
    sched::{CloneFlags, unshare},
    sockopt_impl,
    sys::{
        socket::{
            AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrIn, SockaddrIn6,
            SockaddrLike, bind, connect, getsockopt, listen, send, setsockopt, socket,
            sockopt::{ReuseAddr, SendTimeout},
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use rustix::net::{RecvAncillaryBuffer, RecvFlags, recvmsg};

use super::{child, filter::Filters};
use crate::linux::cgroup;

sockopt_impl!(
    /// `SO_COOKIE`, Linux 4.12.
    Cookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_COOKIE,
    u64
);

/// What the canary needs: to bind system ports, in the only namespace that it is ever in.
pub(super) const KEPT: [Capability; 1] = [Capability::CAP_NET_BIND_SERVICE];

/// How many seconds the canary waits for a connection.
const TIMEOUT_S: i64 = 1;

/// How long after it was asked the canary acts: the monitor waits for the ring then, and does not
/// happen to read it.
const HEAD_START: Duration = Duration::from_millis(2);

/// The sockets of one round.
pub const SOCKETS: usize = 3;

/// In [`Answer`]s, in this order: a UDP socket of each family, and a listener.
pub mod sockets {
    /// UDP over IPv4.
    pub const UDP4: usize = 0;
    /// UDP over IPv6.
    pub const UDP6: usize = 1;
    /// TCP over IPv4, which listens and gets a connection.
    pub const TCP4: usize = 2;
}

/// What the canary is to do.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Request {
    /// Distinguishes rounds.
    pub number: u32,
    /// Host byte order; 0 for none.
    pub udp_port: u16,
    /// Host byte order; 0 for none.
    pub tcp_port: u16,
}

/// What the canary is about to do, or has done.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Answer {
    /// Of the request.
    pub number: u32,
    /// Not 0 once all is done and closed.
    pub is_done: u32,
    /// The cookies of the sockets, 0 for one that there is not.
    pub cookies: [u64; SOCKETS],
    /// errno(3) by which a socket, its bind or what follows failed; 0 for none.
    pub errors: [i32; SOCKETS],
    /// Of which the bind is.
    pub bind_errors: [i32; SOCKETS],
    /// errno(3) by which the watched cgroup could not be joined; 0 for none.
    pub join_error: i32,
    /// Zero.
    pub reserved: i32,
}

/// A running canary, as the monitor sees it.
#[derive(Debug)]
pub struct Canary {
    socket: OwnedFd,
    netns: u64,
}

impl Canary {
    /// Starts one, whose sockets are in the watched cgroup. To be called while this process has one
    /// thread.
    ///
    /// # Errors
    ///
    /// Why it is not possible.
    pub fn start(watched: Option<&Path>) -> Result<Self, String> {
        let membership = Membership::of(watched)?;
        let text = |error: io::Error| error.to_string();
        let filters = Filters::of_canary()?;
        let started = child::start(|socket| serve(&socket, membership, &filters));
        let (child, socket) = started.map_err(text)?;
        let ready: Answer = receive(&socket, RecvFlags::empty()).map_err(text)?;
        if ready.is_done == 0 {
            return Err(Errno::from_raw(ready.errors[0]).to_string());
        }
        let netns = std::fs::metadata(format!("/proc/{child}/ns/net")).map_err(text)?;
        Ok(Self {
            socket,
            netns: netns.ino(),
        })
    }

    /// Inode of its network namespace, which is its alone.
    #[must_use]
    pub const fn netns(&self) -> u64 {
        self.netns
    }

    /// Begins a round. Never blocks.
    ///
    /// # Errors
    ///
    /// The kernel's, also when the canary has ended.
    pub fn begin(&self, request: Request) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(self.socket.as_raw_fd(), bytemuck::bytes_of(&request), flags)?;
        Ok(())
    }

    /// The next answer, if there is one. Never blocks.
    ///
    /// # Errors
    ///
    /// The kernel's, also when the canary has ended.
    pub fn answer(&self) -> io::Result<Option<Answer>> {
        match receive(&self.socket, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            answer => answer.map(Some),
        }
    }
}

/// How the sockets get into the watched cgroup: they are in that of the process which creates them.
struct Membership(Option<Files>);

/// `cgroup.procs` of the watched cgroup and of this process's own, open for writing.
struct Files {
    watched: File,
    own: File,
}

impl Membership {
    /// A process that stayed in the watched cgroup would keep it from being removed, so the canary is
    /// in it only while it creates its sockets, unless the monitor is as well.
    fn of(watched: Option<&Path>) -> Result<Self, String> {
        let Some(watched) = watched else {
            return Ok(Self(None));
        };
        let outside = |error: &dyn std::fmt::Display| {
            format!("the monitor is outside of --cgroup, and cannot join it: {error}")
        };
        let own = cgroup::own().ok_or_else(|| outside(&"its own cgroup is unknown"))?;
        let resolved = watched.canonicalize().map_err(|error| outside(&error))?;
        if own.starts_with(resolved) {
            return Ok(Self(None));
        }
        let open = |directory: &Path| {
            let file = File::options()
                .write(true)
                .open(directory.join("cgroup.procs"));
            file.map_err(|error| outside(&error))
        };
        let mut files = Files {
            watched: open(watched)?,
            own: open(&own)?,
        };
        // Domains with controllers, and threaded ones, do not take processes.
        let joined = files.watched.write_all(b"0");
        let left = files.own.write_all(b"0");
        joined.and(left).map_err(|error| outside(&error))?;
        Ok(Self(Some(files)))
    }

    fn join(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Some(files) => files.watched.write_all(b"0"),
            None => Ok(()),
        }
    }

    fn leave(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Some(files) => files.own.write_all(b"0"),
            None => Ok(()),
        }
    }
}

/// Answers until the monitor ends. Returns what went wrong.
fn serve(socket: &OwnedFd, mut membership: Membership, filters: &Filters) -> Result<(), String> {
    let mut ready = Answer::default();
    match unshare(CloneFlags::CLONE_NEWNET).and_then(|()| bring_loopback_up()) {
        Ok(()) => ready.is_done = 1,
        Err(error) => ready.errors[0] = error as i32,
    }
    let mut kept = vec![socket.as_fd()];
    if let Some(files) = &membership.0 {
        kept.extend([files.watched.as_fd(), files.own.as_fd()]);
    }
    child::confine(c"portwatch-canary", &mut kept, &KEPT, filters)?;
    drop(kept);
    let reply = |answer: &Answer| {
        let bytes = bytemuck::bytes_of(answer);
        send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).is_ok()
    };
    if !reply(&ready) || ready.is_done == 0 {
        return Ok(());
    }
    while let Ok(request) = receive::<Request>(socket, RecvFlags::empty()) {
        let mut answer = Answer {
            number: request.number,
            ..Answer::default()
        };
        let sockets = create(&mut membership, request, &mut answer);
        // Before they act, so that the monitor knows them by what they do.
        if !reply(&answer) {
            break;
        }
        thread::sleep(HEAD_START);
        act(&sockets, request, &mut answer);
        drop(sockets);
        answer.is_done = 1;
        if !reply(&answer) {
            break;
        }
    }
    Ok(())
}

type Sockets = [Option<OwnedFd>; SOCKETS];

fn create(membership: &mut Membership, request: Request, answer: &mut Answer) -> Sockets {
    let kinds = [
        (AddressFamily::Inet, SockType::Datagram, request.udp_port),
        (AddressFamily::Inet6, SockType::Datagram, request.udp_port),
        (AddressFamily::Inet, SockType::Stream, request.tcp_port),
    ];
    let mut sockets = Sockets::default();
    if let Err(error) = membership.join() {
        answer.join_error = error.raw_os_error().unwrap_or(libc::EIO);
        return sockets;
    }
    for (index, (family, kind, port)) in kinds.into_iter().enumerate() {
        if port == 0 {
            continue;
        }
        match socket(family, kind, SockFlag::SOCK_CLOEXEC, None) {
            Ok(created) => {
                answer.cookies[index] = getsockopt(&created, Cookie).unwrap_or(0);
                sockets[index] = Some(created);
            }
            Err(error) => answer.errors[index] = error as i32,
        }
    }
    let _ = membership.leave();
    sockets
}

/// Takes the ports, listens, and connects to the listener.
fn act(created: &Sockets, request: Request, answer: &mut Answer) {
    let local4 = |port| SockaddrIn::new(127, 0, 0, 1, port);
    let local6 = |port| {
        let any = std::net::SocketAddrV6::new(std::net::Ipv6Addr::UNSPECIFIED, port, 0, 0);
        SockaddrIn6::from(any)
    };
    let bound = |socket: &OwnedFd, address: &dyn SockaddrLike| {
        setsockopt(socket, ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), address)
    };
    let error = |outcome: Result<(), Errno>| outcome.err().map_or(0, |error| error as i32);
    for (index, socket) in created.iter().enumerate() {
        let Some(socket) = socket else { continue };
        let outcome = match index {
            sockets::UDP4 => bound(socket, &local4(request.udp_port)),
            sockets::UDP6 => bound(socket, &local6(request.udp_port)),
            _ => bound(socket, &local4(request.tcp_port)),
        };
        answer.bind_errors[index] = error(outcome);
        if index == sockets::TCP4 && outcome.is_ok() {
            let connected = listen(socket, Backlog::new(1).unwrap_or(Backlog::MAXCONN))
                .and_then(|()| connect_to(&local4(request.tcp_port)));
            answer.errors[index] = error(connected);
        }
    }
}

fn connect_to(listener: &SockaddrIn) -> Result<(), Errno> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let client = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&client, SendTimeout, &TimeVal::seconds(TIMEOUT_S))?;
    connect(client.as_raw_fd(), listener)
}

/// Brings up the loopback interface of this thread's network namespace.
fn bring_loopback_up() -> Result<(), Errno> {
    /// The libc crate has it with another type for each libc (include/uapi/linux/sockios.h).
    const SIOCSIFFLAGS: libc::Ioctl = 0x8914;
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    // SAFETY: a C struct of integers and a union of such, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel reads `request`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCSIFFLAGS, &raw const request) };
    Errno::result(result).map(drop)
}

/// The next message; fails with `UnexpectedEof` when there are no more.
fn receive<T: Pod>(from: &OwnedFd, flags: RecvFlags) -> io::Result<T> {
    let mut beside = RecvAncillaryBuffer::default();
    let mut message = T::zeroed();
    let bytes = bytemuck::bytes_of_mut(&mut message);
    let size = bytes.len();
    let received = recvmsg(from, &mut [IoSliceMut::new(bytes)], &mut beside, flags)?;
    if received.bytes != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(message)
}
