//! The workloads.

use std::{
    io::{self, ErrorKind},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    time::Instant,
};

use anyhow::Result;

/// Nanoseconds per call, over `count` calls of `work`.
pub(super) fn time(count: u32, mut work: impl FnMut() -> io::Result<()>) -> Result<f64> {
    let began = Instant::now();
    for _ in 0..count {
        work()?;
    }
    Ok(began.elapsed().as_nanos() as f64 / f64::from(count))
}

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// socket, bind, close on a UDP port; 0 lets the kernel pick one.
pub(super) fn bind(port: u16) -> io::Result<()> {
    again(|| UdpSocket::bind(SocketAddrV4::new(HERE, port))).map(drop)
}

/// Retries while the address is in use: a reader of /proc/PID/fd (ss, lsof, the monitor's scans) can hold
/// a closed socket open for a moment.
pub(super) fn again<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    loop {
        match bind() {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

/// socket, bind, listen, close: on a port that the kernel picks.
pub(super) fn listen() -> io::Result<()> {
    TcpListener::bind(SocketAddrV4::new(HERE, 0)).map(drop)
}

/// connect, accept, close both.
pub(super) fn connect(listener: &TcpListener) -> io::Result<()> {
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    // The server's end first, so that no client port is left in TIME_WAIT.
    drop(server);
    drop(client);
    Ok(())
}
