//! `portwatch list`: the watched ports in use, from a scan alone.

use std::{io, net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};

use super::{
    args::{self, ConfigArgs, RegistryArgs},
    connections,
    table::Widths,
};
use crate::{
    aggregate::Settings,
    alert::Alert,
    config::Overrides,
    decide::Decider,
    inventory::{Reach, Scan, Scope},
    model::{Direction, EventKind, Transport},
    monitor::host_name,
    output::{FormatName, Sink, Sinks},
    pipeline::Pipeline,
    tracker::ThisHost,
    util::{console, parallel, quote},
};

/// Its arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output format: a table, or the alerts that a monitor started now would print first
    #[arg(long, value_enum, default_value_t)]
    format: FormatName,
    /// List assigned ports too
    #[arg(long)]
    all: bool,
    /// Exit with 8 when a watched port is in use, for cron and health checks
    #[arg(long)]
    check: bool,
    /// List the open TCP connections on watched ports, accepted and outgoing, with the bytes of each
    #[arg(long, conflicts_with = "check")]
    connections: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    registry: RegistryArgs,
}

/// With `--check`: a watched port is in use.
#[derive(Debug, thiserror::Error)]
#[error("{0} sockets are on watched ports")]
pub struct Taken(pub usize);

/// Writes the watched ports in use: a table, or the alerts that a monitor started now would print
/// first. With `--connections`, the open connections.
///
/// # Errors
///
/// When /proc cannot be read or `out` not written to; [`Taken`].
pub fn run(args: Args, out: &mut impl io::Write) -> Result<()> {
    let registry = args.registry.read()?;
    let overrides = Overrides {
        all: args.all,
        ..Overrides::default()
    };
    let config = args::load(&args.config.source(overrides))?;
    let watched = config.watched(&registry, &Transport::ALL);
    if args.connections {
        return connections::run(watched, args.format, out);
    }
    let scope = Scope {
        watched: watched.collect(),
        ..Scope::default()
    };
    let scan =
        Scan::take(Arc::new(scope), Reach::All, parallel::threads()).context("reading /proc")?;
    let (found, coverage) = scan.findings(|_, _| Some(false));
    let settings = Settings {
        enabled: false,
        ..Settings::default()
    };
    let decider = Decider::new(registry, config.policy, config.dry_run);
    let sinks = Sinks::new(vec![Sink::Memory(Vec::new())]);
    let mut pipeline = Pipeline::new(ThisHost::default(), host_name(), decider, settings, sinks);
    let mut alerts = pipeline.list(found);
    alerts.sort_by_key(|alert| (alert.port, alert.transport));
    let mut bytes = Vec::new();
    match args.format {
        FormatName::Text if alerts.is_empty() => {}
        FormatName::Text => bytes.extend_from_slice(table(&alerts).as_bytes()),
        FormatName::Json => {
            let format = args.format.format(false);
            for alert in &alerts {
                format.write(alert, &mut bytes);
            }
        }
    }
    super::write(bytes, out)?;
    warn_of_limits(&coverage.unread);
    if args.check && !alerts.is_empty() {
        return Err(Taken(alerts.len()).into());
    }
    Ok(())
}

/// Logs what this user may not see.
pub(super) fn warn_of_limits(unread: &[u64]) {
    for namespace in unread {
        console::log(&format!("network namespace {namespace} could not be read"));
    }
    if !nix::unistd::geteuid().is_root() {
        console::log("not root: only what this user may see is listed");
    }
}

const TITLES: [&str; 8] = [
    "PORT", "STATE", "ADDRESS", "REGISTRY", "PROCESS", "USER", "UNIT", "NETNS",
];

/// One line per socket, columns aligned.
fn table(alerts: &[Alert]) -> String {
    let rows: Vec<[String; 8]> = std::iter::once(TITLES.map(String::from))
        .chain(alerts.iter().map(row))
        .collect();
    let widths = Widths::of(&rows);
    rows.iter()
        .map(|row| widths.line(row, &[]) + "\n")
        .collect()
}

fn row(alert: &Alert) -> [String; 8] {
    let port = alert.port.unwrap_or(0);
    let transport = alert.transport.map_or("?", Transport::name);
    let state = match (alert.event, alert.peer) {
        (EventKind::Listen, _) => "listening".into(),
        (EventKind::Connect, Some(peer)) => {
            let state = match alert.direction {
                Some(Direction::Out) => "connected to",
                _ => "connection with",
            };
            format!("{state} {}", SocketAddr::new(peer.address, peer.port))
        }
        _ => "bound".into(),
    };
    let address = alert.address.and_then(|_| alert.local());
    let mut address = address.unwrap_or_else(|| "?".into());
    if let Some(device) = &alert.device {
        address.push_str(&format!(" on {}", quote(device)));
    }
    if let Some(v6only) = alert.v6only {
        address.push_str(if v6only {
            " (IPv6 only)"
        } else {
            " (and IPv4)"
        });
    }
    let registry = alert.registry.as_ref().map_or("?".into(), |word| {
        let service = word
            .service
            .as_ref()
            .map(|name| format!(" {}", quote(name)));
        format!("{}{}", word.status.name(), service.unwrap_or_default())
    });
    let names: Vec<String> = alert
        .holders
        .iter()
        .map(|holder| format!("{}[{}]", quote(&holder.comm), holder.pid))
        .collect();
    let first = alert.holders.first();
    let place = first.and_then(|holder| {
        let container = holder.container.as_ref().map(|one| (&one.id, "container"));
        let unit = holder.unit.as_ref().map(|unit| (unit, "unit"));
        let (name, key) = unit.or(container)?;
        Some(match holder.unverified.contains(&key) {
            true => format!("{} (unverified)", quote(name)),
            false => quote(name).into_owned(),
        })
    });
    let unknown = || "-".to_owned();
    [
        format!("{port}/{transport}"),
        state,
        address,
        registry,
        if names.is_empty() {
            unknown()
        } else {
            names.join(" ")
        },
        first.map_or_else(unknown, |holder| quote(&holder.user).into_owned()),
        place.unwrap_or_else(unknown),
        match (alert.socket.netns, alert.socket.host_netns) {
            (_, Some(true)) => "host".into(),
            (Some(netns), _) => netns.to_string(),
            (None, _) => unknown(),
        },
    ]
}
