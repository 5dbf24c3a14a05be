//! What this host gives the sensor, one thing at a time.

use std::os::fd::AsFd as _;

use aya::{EbpfLoader, maps::RingBuf, programs::loaded_programs};
use portwatch_common::{Layout, names};
use serde::Serialize;

use super::{
    OBJECT, SensorError,
    cgroup::{self, Cgroup},
    error::release,
    hooks::{HOOKS, attached},
    layout,
    load::{Helpers, attach_program, check_privileges, load, load_program, map},
    tracepoint,
};
use crate::model::Printable;

/// One thing that the monitor needs or can use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it is.
    pub name: String,
    /// Whether this host has it.
    pub ok: bool,
    /// Whether the monitor cannot work without it.
    pub required: bool,
    /// What was found, or what the kernel said.
    pub detail: String,
}

/// The name of the check that fails when this process may not load BPF programs.
pub const PRIVILEGES: &str = "privileges";

/// Everything that the sensor needs or can use, tried; it leaves nothing behind.
#[must_use]
pub fn probe() -> Vec<Check> {
    let mut checks = vec![Check {
        name: "kernel".into(),
        ok: true,
        required: true,
        detail: release(),
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
    let said = |error: SensorError| error.to_string();
    let may = add(
        PRIVILEGES,
        true,
        check_privileges().map_err(said).map(|()| "may load".into()),
    );
    let cgroup = cgroup::open(None).map_err(said);
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
    let layout = layout::of_this_kernel();
    let used = layout.as_ref().copied().unwrap_or(Layout::UNKNOWN);
    match load(EbpfLoader::new(), OBJECT, 1 << 12, &used) {
        Ok(mut object) => {
            let ring = map(object.map_mut(names::RING), names::RING, RingBuf::try_from);
            add(
                "ring buffer",
                true,
                ring.map(|_| "works".into()).map_err(said),
            );
            for (name, program) in super::required(&mut object) {
                let result = load_program(program)
                    .map_err(|error| SensorError::program(name, error))
                    .and_then(|()| {
                        attach_program(program, &cgroup)
                            .map_err(|error| SensorError::attach(name, &error))
                    });
                let detail = result.map(|()| "loads and attaches".into()).map_err(said);
                add(&format!("program {name}"), true, detail);
            }
        }
        Err(error) => {
            add("ring buffer and maps", true, Err(error.to_string()));
        }
    }
    let here = tracepoint::present();
    let here: Vec<&str> = here.iter().map(|transport| transport.name()).collect();
    let here = if here.is_empty() {
        "neither is on this kernel now".into()
    } else {
        here.join(", ")
    };
    let tracepoint = load(EbpfLoader::new(), OBJECT, 1 << 12, &used)
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
        layout
            .map(|_| "read at the bind: short-lived programs are named in full".into())
            .map_err(|error| {
                format!("{error}: short-lived programs are named as far as /proc still shows them")
            }),
    );
    let helpers = Helpers::probe();
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
            helpers.task,
            "a listen names its process",
            "refused by this kernel: a listen names the process that bound, or the one that holds the socket",
        ),
    );
    add(
        "the netns cookie in sock_ops",
        false,
        optional(
            helpers.netns,
            "an event names its network namespace",
            "refused by this kernel: an event names the namespace of its bind",
        ),
    );
    for (hook, attach_type) in HOOKS {
        let others = attached(cgroup.as_fd(), attach_type)
            .map(|ids| neighbours(&ids))
            .map_err(|error| error.to_string());
        add(&format!("others on {hook}"), false, others);
    }
    checks
}

/// Programs by name, for people.
fn neighbours(ids: &[u32]) -> String {
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
