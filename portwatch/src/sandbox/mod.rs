//! What the monitor gives up once it is armed: capabilities, system calls, and everything else that
//! it needs for starting only. SECURITY.md says what this is worth.

mod calls;
mod canary;
mod capabilities;
mod child;
mod denied;
mod filter;
mod helper;
mod probe;
#[cfg(feature = "testing")]
pub mod testing;

use std::{fs, io, thread, time::Duration};

use caps::Capability;
use nix::sys::{
    prctl::{set_dumpable, set_no_new_privs},
    resource::{Resource, setrlimit},
};

use self::helper::Helper;
pub use self::{
    canary::{Answer, Canary, Request, SOCKETS, sockets},
    probe::{Finding, probe},
};
use crate::linux::{hierarchy, netns};

/// What has to be done before the monitor is armed, while it still may.
#[derive(Debug)]
pub struct Prepared {
    helper: io::Result<Helper>,
}

/// The privileges are given up.
#[derive(Debug)]
pub struct Sandbox {
    helper: Option<&'static Helper>,
    /// Whether the helper was there at the last check.
    had_helper: bool,
}

/// What is missing without a helper.
const WITHOUT_HELPER: &str = "scans read other network namespaces from /proc/PID/net: without \
                              cookies, and without TCP sockets that are only bound";

/// Where the kernel kills other processes first; -1000 would mean never (proc(5), `oom_score_adj`).
const OOM_SCORE_ADJUSTMENT: i32 = -900;

/// Starts the helper process and protects both from the kernel's OOM killer. To be called while
/// there is one thread.
#[must_use]
pub fn prepare() -> Prepared {
    protect_from_oom();
    Prepared {
        helper: Helper::start(),
    }
}

impl Prepared {
    /// Gives up what an armed monitor does not need, in all threads to come. Also what the operator
    /// should know: what could not be given up, and what is missing. A monitor that `keeps_pins` of
    /// programs may put them back, one that `raises_priority` by a capability keeps that. To be called while there is one thread.
    #[must_use]
    pub fn enter(self, keeps_pins: bool, raises_priority: bool) -> (Sandbox, Vec<String>) {
        let mut kept = Vec::new();
        let mut note = |what: &str, result: Result<(), String>| {
            kept.extend(result.err().map(|error| format!("{what} ({error})")));
        };
        note(
            "core dumps",
            setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|error| error.to_string()),
        );
        note(
            "access by other processes",
            set_dumpable(false).map_err(|error| error.to_string()),
        );
        // Capabilities are a thread's own: those of a second thread would stay.
        note("capabilities of other threads", is_only_thread());
        note("capabilities", capabilities::drop_others(raises_priority));
        note(
            "new privileges",
            set_no_new_privs().map_err(|error| error.to_string()),
        );
        let mut messages = Vec::new();
        if let Err(error) = &self.helper {
            messages.push(format!("{WITHOUT_HELPER}: {error}"));
        }
        let helper = share(self.helper);
        denied::watch();
        note("system calls", filter::install_in_all_threads(keeps_pins));
        let sandbox = Sandbox {
            helper,
            had_helper: helper.is_some(),
        };
        if !kept.is_empty() {
            messages.push(format!("could not be given up: {}", kept.join(", ")));
        }
        (sandbox, messages)
    }
}

impl Sandbox {
    /// What has gone wrong since the last call.
    pub fn check(&mut self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(denied::Denied {
            first,
            argument,
            count,
        }) = denied::take()
        {
            problems.push(format!(
                "the sandbox denied {count} system calls, the first with number {first} and {argument:#x} as \
                 its first argument: either a fault of portwatch, or it runs code that is not its own"
            ));
        }
        let has_helper = self.helper.is_some_and(Helper::is_running);
        if self.had_helper && !has_helper {
            problems.push(format!("the helper process has ended: {WITHOUT_HELPER}"));
        }
        self.had_helper = has_helper;
        problems
    }
}

/// Makes the helper the only way into other network namespaces. This process gives up setns(2), so
/// without a helper there is none, and /proc/PID/net has to do.
fn share(helper: io::Result<Helper>) -> Option<&'static Helper> {
    // As long as the process.
    let helper = helper.ok().map(|helper| &*Box::leak(Box::new(helper)));
    netns::open_with(Box::new(move |namespace| match helper {
        Some(helper) => helper.sock_diag_in(namespace),
        None => Err(io::ErrorKind::PermissionDenied.into()),
    }));
    if let Some(helper) = helper {
        hierarchy::read_with(Box::new(|directory| helper.trusted(directory)));
    }
    helper
}

/// For how many milliseconds a thread that was joined can still be seen: the kernel wakes who joins it
/// before it removes it (mm_release in kernel/fork.c, Linux 6.18).
const LINGERING_MS: u32 = 1000;

fn is_only_thread() -> Result<(), String> {
    let mut waited = 0;
    loop {
        let threads = fs::read_dir("/proc/self/task").map_err(|error| error.to_string())?;
        match threads.count() {
            1 => return Ok(()),
            threads if waited == LINGERING_MS => return Err(format!("{threads} threads")),
            _ => waited += 1,
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Lowers the score; a lower one stays. Needs `CAP_SYS_RESOURCE`, without which nothing changes.
fn protect_from_oom() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(FILE).ok();
    let score: Option<i32> = score.and_then(|score| score.trim().parse().ok());
    if score.is_some_and(|score| score > OOM_SCORE_ADJUSTMENT) {
        let _ = fs::write(FILE, OOM_SCORE_ADJUSTMENT.to_string());
    }
}

/// What this process cannot read of others, for want of a capability.
#[must_use]
pub fn limits() -> Vec<String> {
    let missing = capabilities::missing();
    let lack = [
        (
            Capability::CAP_SYS_PTRACE,
            "executables, network namespaces and open sockets of other users' processes are unknown",
        ),
        (
            Capability::CAP_DAC_READ_SEARCH,
            "cgroups of processes that have ended are unknown",
        ),
    ];
    lack.into_iter()
        .filter(|(capability, _)| missing.contains(capability))
        .map(|(capability, lack)| format!("without {capability}, {lack}"))
        .collect()
}

/// Confines the calling thread as an armed monitor is.
#[cfg(test)]
pub fn confine_thread() -> Result<(), String> {
    capabilities::drop_others(false)?;
    denied::watch();
    filter::Filters::of_monitor(false)?.install()
}
