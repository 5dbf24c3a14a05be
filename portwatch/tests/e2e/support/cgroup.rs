//! Cgroups that a test creates.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};

use super::Helper;

/// The mount point of the cgroup v2 hierarchy.
pub fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words[2] == "cgroup2")
        .map(|words| PathBuf::from(words[1]))
        .expect("these tests need a mounted cgroup v2 hierarchy")
}

/// The cgroups that were created: tests in parallel can use one name.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A new cgroup in the v2 hierarchy; removed when dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Self {
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Relaxed));
        let path = cgroup_root().join(format!("portwatch-test-{pid}-{count}-{name}"));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Creates a child cgroup.
    pub fn below(&self, name: &str) -> Self {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Runs a Perl script in this cgroup to its end.
    pub fn perl(&self, script: &str) {
        let status = self.command(script).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    }

    /// Starts a Perl script in this cgroup.
    pub fn start_perl(&self, script: &str) -> Helper {
        Helper::start(&mut self.command(script))
    }

    /// Starts a program in this cgroup.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Helper {
        Helper::start(&mut self.within(program, arguments))
    }

    fn command(&self, script: &str) -> Command {
        self.within("perl", &["-e", script])
    }

    fn within(&self, program: &str, arguments: &[&str]) -> Command {
        let join = format!(
            "echo $$ > {}/cgroup.procs; exec \"$0\" \"$@\"",
            self.0.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &join, program]).args(arguments);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The kernel removes exited processes from the cgroup a moment later (EBUSY until then).
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
