//! `portwatch demo`: takes a port for a moment, for a first look at an alert.

use std::{
    io,
    net::{Ipv4Addr, TcpListener, TcpStream},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::write;

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The port
    #[arg(default_value_t = 976, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
}

/// For how long it has the port.
const DURATION: Duration = Duration::from_secs(1);

/// Listens on the port on loopback, connects to it, and closes it.
///
/// # Errors
///
/// When the port is in use, or the privilege to bind it is missing.
pub fn run(args: &Args, out: &mut impl io::Write) -> Result<()> {
    let port = args.port;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).with_context(|| {
        format!("binding 127.0.0.1:{port} (ports below 1024 need root; `portwatch explain {port}` shows who has one)")
    })?;
    write(
        format!(
            "listening on 127.0.0.1:{port} for a second: a running monitor prints bind, listen, accept and close\n"
        ),
        out,
    )?;
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting")?;
    let accepted = listener.accept().context("accepting")?;
    sleep(DURATION);
    drop((client, accepted));
    Ok(())
}
