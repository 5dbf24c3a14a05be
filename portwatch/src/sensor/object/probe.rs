//! What this host gives the sensor, one thing at a time.
#![forbid(unsafe_code)]

use std::os::fd::AsFd as _;

use aya::{EbpfLoader, maps::RingBuf, programs::loaded_programs};
use portwatch_common::names;
use serde::Serialize;

use super::{HostFeatures, OBJECT, check_privileges, load, load_program};
use crate::{
    model::Printable,
    sensor::{
        SensorError,
        attach::{Cgroup, HOOKS, Links, attach_program, attached, tracepoint},
        maps::map,
        required,
    },
};

/// One thing that the monitor needs or can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is.
    pub name: String,
    /// Whether this host has it.
    pub ok: bool,
    /// Whether the monitor cannot work without it.
    pub required: bool,
    /// What was found, or what the kernel returned.
    pub detail: String,
}

/// The name of the check that fails when this process may not load BPF programs.
pub const PRIVILEGES: &str = "privileges";

/// The ring of the probe, in bytes.
const RING_SIZE: u32 = 1 << 12;

/// Everything that the sensor needs or can use, tried; it leaves nothing behind.
#[must_use]
pub fn probe() -> Vec<Check> {
    let (features, loader) = HostFeatures::read();
    let mut checks = vec![Check {
        name: "kernel".into(),
        ok: true,
        required: true,
        detail: features.release.clone(),
    }];
    let mut add = |name: &str, required: bool, result: Result<String, String>| {
        let ok = result.is_ok();
        let detail = result.unwrap_or_else(|problem| problem);
        checks.push(Check {
            name: name.into(),
            ok,
            required,
            detail,
        });
        ok
    };
    let text = |error: SensorError| error.to_string();
    let may = add(
        PRIVILEGES,
        true,
        check_privileges().map_err(text).map(|()| "may load".into()),
    );
    let cgroup = Cgroup::open(None).map_err(text);
    add(
        "cgroup v2",
        true,
        cgroup
            .as_ref()
            .map(|found| found.label.clone())
            .map_err(Clone::clone),
    );
    let Ok(Cgroup { fd: cgroup, .. }) = cgroup else {
        return checks;
    };
    if !may {
        return checks;
    }
    match load(loader, OBJECT, RING_SIZE, &features) {
        Ok(mut object) => {
            let ring = map(object.map_mut(names::RING), names::RING, RingBuf::try_from);
            add(
                "ring buffer",
                true,
                ring.map(|_| "works".into()).map_err(text),
            );
            for (name, program) in required(&mut object) {
                let result = load_program(program)
                    .map_err(|error| SensorError::program(name, error))
                    .and_then(|()| {
                        attach_program(name, program, &cgroup, None, &mut Links::default())
                    });
                let detail = result.map(|()| "loads and attaches".into()).map_err(text);
                add(&format!("program {name}"), true, detail);
            }
            for name in names::BEFORE_BIND {
                let Some(program) = object.program_mut(name) else {
                    continue;
                };
                let result = load_program(program)
                    .map_err(|error| SensorError::program(name, error))
                    .and_then(|()| {
                        attach_program(name, program, &cgroup, None, &mut Links::default())
                    });
                let detail = result
                    .map(|()| "loads and attaches: deny comes before the port is taken".into())
                    .map_err(text);
                add(&format!("program {name}"), false, detail);
            }
        }
        Err(error) => {
            add("ring buffer and maps", true, Err(error.to_string()));
        }
    }
    let here = features.tracepoint_transports.iter();
    let here: Vec<&str> = here.map(|transport| transport.name()).collect();
    let here = if here.is_empty() {
        "neither is on this kernel now".into()
    } else {
        here.join(", ")
    };
    let tracepoint = load(EbpfLoader::new(), OBJECT, RING_SIZE, &features)
        .and_then(|mut object| tracepoint::load_and_attach(&mut object));
    add(
        "tracepoint for sctp and dccp",
        false,
        tracepoint
            .map(|()| format!("loads and attaches; {here}"))
            .map_err(|error| format!("{error}; {here}")),
    );
    add(
        "what a process runs",
        false,
        features
            .kernel_offsets
            .map(|_| "read at the bind: short-lived programs are named in full".into())
            .map_err(|error| {
                format!("{error}: short-lived programs are named as far as /proc still shows them")
            }),
    );
    let optional = |has: bool, with: &str, without: &str| {
        if has {
            Ok(with.to_owned())
        } else {
            Err(without.to_owned())
        }
    };
    add(
        "the task in sock_ops",
        false,
        optional(
            features.helpers.task,
            "a listen names its process",
            "rejected by this kernel: a listen names the process that bound, or the one that holds the socket",
        ),
    );
    add(
        "the netns cookie in sock_ops",
        false,
        optional(
            features.helpers.netns,
            "an event names its network namespace",
            "rejected by this kernel: an event names the namespace of its bind",
        ),
    );
    for (hook, attach_type) in HOOKS {
        let others = attached(cgroup.as_fd(), attach_type)
            .map(|ids| others_by_name(&ids))
            .map_err(|error| error.to_string());
        add(&format!("others on {hook}"), false, others);
    }
    checks
}

/// Programs by name, for people.
fn others_by_name(ids: &[u32]) -> String {
    if ids.is_empty() {
        return "none".into();
    }
    let mut names: Vec<String> = loaded_programs()
        .flatten()
        .filter(|program| ids.contains(&program.id()))
        .map(|program| {
            let name = Printable::from_bytes(program.name());
            format!("{name} (id {})", program.id())
        })
        .collect();
    if names.len() < ids.len() {
        names.push(format!("{} more", ids.len() - names.len()));
    }
    names.join(", ")
}
