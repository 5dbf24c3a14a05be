//! The messages on stderr once the monitor is armed.

use std::os::unix::fs::MetadataExt as _;

use super::Options;
use crate::{
    config::Config,
    policy::DefaultScope,
    registry::Registry,
    sandbox::{Prepared, Sandbox},
    sensor::{Sensor, Tracepoint, is_pinned},
};

/// The line that shows that the monitor is armed, and what it covers.
pub(super) fn armed(config: &Config, registry: &Registry, sensor: &Sensor) -> String {
    let counts: Vec<String> = sensor
        .transports()
        .map(|transport| {
            let count = config.watched(registry, &[transport]).count();
            format!("{count} {}", transport.name())
        })
        .collect();
    let as_of = registry
        .as_of()
        .map_or_else(|| "of unknown date".into(), |date| date.to_string());
    let uncovered = match sensor.tracepoint() {
        Tracepoint::NotNeeded => "sctp and dccp are not loaded".into(),
        Tracepoint::Attached(_) => "sctp and dccp from listen on".into(),
        Tracepoint::Rejected(transports, why) => {
            let names: Vec<&str> = transports
                .iter()
                .map(|transport| transport.name())
                .collect();
            format!("not covered: {} ({why})", names.join(", "))
        }
    };
    format!(
        "armed: {} programs at {}; watching {} ports ({}; registry {as_of}) in every network \
         namespace; {uncovered}",
        sensor.programs(),
        sensor.cgroup(),
        counts.join(", "),
        match (config.scope, config.policy.rules().len()) {
            (_, 1..) => "by the rules",
            (DefaultScope::All, _) => "all system ports",
            (DefaultScope::NotAssigned, _) => "not assigned by IANA",
        },
    )
}

/// Inodes of the first namespaces of their kind (include/linux/proc_ns.h, `PROC_*_INIT_INO`).
const INITIAL_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;
const INITIAL_TIME_NAMESPACE: u64 = 0xEFFF_FFFA;
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What the monitor cannot see, or only in part.
pub(super) fn limits(options: &Options, sensor: &Sensor) -> Vec<String> {
    let elsewhere = |kind: &str, initial: u64| {
        std::fs::metadata(format!("/proc/self/ns/{kind}"))
            .is_ok_and(|namespace| namespace.ino() != initial)
    };
    let mut limits = Vec::new();
    if options.sensor.cgroup.is_none() && elsewhere("cgroup", INITIAL_CGROUP_NAMESPACE) {
        limits.push(
            "in a cgroup namespace: only this cgroup and those below it are watched, not the host"
                .to_owned(),
        );
    }
    if elsewhere("pid", INITIAL_PID_NAMESPACE) {
        limits.push("in a pid namespace: /proc does not show the processes of the host".to_owned());
    }
    if elsewhere("time", INITIAL_TIME_NAMESPACE)
        && std::fs::metadata("/proc/self/timens_offsets").is_err()
    {
        limits.push("in a time namespace whose offsets are unknown: times are wrong".to_owned());
    }
    limits.extend(crate::sandbox::limits());
    limits.extend(missing_cgroups(sensor));
    if !options.sensor.fail_closed && is_pinned() {
        limits.push(
            "an earlier run pinned its deny rules; they stay in force until `portwatch unpin`"
                .to_owned(),
        );
    }
    limits.extend(
        sensor
            .receive_error()
            .map(|why| format!("who sends datagrams is not seen: {why}")),
    );
    limits.extend(sensor.late_deny().map(|why| {
        format!(
            "a bind is denied only after the kernel has accepted it; UDP-Lite keeps its port: {why}"
        )
    }));
    limits.extend(sensor.exec_info_error().map(|why| {
        format!("short-lived processes are described as far as /proc still shows them: {why}")
    }));
    limits
}

/// Deny rules that apply to nobody yet.
pub(super) fn missing_cgroups(sensor: &Sensor) -> Vec<String> {
    let missing = sensor.deny_rules().missing_cgroups().into_iter();
    missing
        .map(|path| {
            format!(
                "cgroup {path} does not exist yet, or lies below a delegated one: the rule for it takes \
                 effect in the kernel when root has created it"
            )
        })
        .collect()
}

/// Gives up the privileges that an armed monitor does not need. Also what to log about it.
pub(super) fn enter(
    prepared: Option<Prepared>,
    keeps_pins: bool,
    raises_priority: bool,
) -> (Option<Sandbox>, Vec<String>) {
    let Some(prepared) = prepared else {
        let warning = "WARNING: --no-sandbox: this monitor keeps all privileges that it was started \
                       with; use it for debugging only";
        return (None, vec![warning.to_owned()]);
    };
    let (sandbox, messages) = prepared.enter(keeps_pins, raises_priority);
    #[cfg(feature = "testing")]
    let messages = [
        messages,
        crate::sandbox::testing::attempt().into_iter().collect(),
    ]
    .concat();
    (Some(sandbox), messages)
}
