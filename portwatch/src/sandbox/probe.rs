//! What a monitor would give up on this host: tried on a thread, where that is possible.

use std::thread;

use caps::{CapSet, Capability, CapsHashSet};

use super::{capabilities, filter::Filters};

/// One thing that a monitor gives up, or why it cannot.
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// What a monitor does, or what is in its way.
    pub result: Result<String, String>,
}

/// What an armed monitor would give up here. Nothing changes for this process.
#[must_use]
pub fn probe() -> Vec<Finding> {
    vec![
        Finding {
            name: "sandbox: capabilities",
            result: on_thread(|| {
                let before = permitted().len();
                capabilities::drop_others(false)?;
                let kept = permitted();
                let names = capabilities::KEPT.into_iter();
                let names: Vec<String> = names
                    .filter(|capability| kept.contains(capability))
                    .map(|capability| capability.to_string())
                    .collect();
                let names = names.join(", ");
                Ok(format!("of {before}, an armed monitor keeps {names}"))
            }),
        },
        Finding {
            name: "sandbox: system calls",
            result: on_thread(|| {
                let filters = Filters::of_monitor(false)?;
                filters.install()?;
                Ok("filtered once armed; a denied one is reported".into())
            }),
        },
        Finding {
            name: "sandbox: helper process",
            result: if capabilities::has(Capability::CAP_SYS_ADMIN) {
                Ok("opens sockets in other network namespaces".into())
            } else {
                Err(format!("without CAP_SYS_ADMIN {}", super::WITHOUT_HELPER))
            },
        },
        Finding {
            name: "sandbox: OOM score",
            result: if capabilities::has(Capability::CAP_SYS_RESOURCE) {
                Ok(format!("{} once armed", super::OOM_SCORE_ADJUSTMENT))
            } else {
                Err("stays as it is without CAP_SYS_RESOURCE".into())
            },
        },
        Finding {
            name: "sandbox: landlock",
            result: Err(landlock()),
        },
    ]
}

/// Why landlock is not used, and what the kernel has.
fn landlock() -> String {
    /// `LANDLOCK_CREATE_RULESET_VERSION` in include/uapi/linux/landlock.h.
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads no attributes and makes no ruleset.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0,
            VERSION,
        )
    };
    let kernel = match version {
        1.. => format!("this kernel has version {version}"),
        _ => "this kernel has none".into(),
    };
    format!("not used, since it would hide the descriptors of other processes; {kernel}")
}

/// The capabilities of the calling thread.
fn permitted() -> CapsHashSet {
    caps::read(None, CapSet::Permitted).unwrap_or_default()
}

/// The result of `attempt` on a thread of its own: capabilities and filters are a thread's.
fn on_thread(
    attempt: impl FnOnce() -> Result<String, String> + Send + 'static,
) -> Result<String, String> {
    let attempt = thread::Builder::new().spawn(attempt);
    let attempt = attempt.map_err(|error| error.to_string())?;
    attempt
        .join()
        .unwrap_or_else(|_| Err("the thread panicked".into()))
}
