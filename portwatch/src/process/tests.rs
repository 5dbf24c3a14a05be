//! Processes of this host, as the agent identifies them.

mod cache;
mod limits;

pub(crate) use self::limits::longest;
use super::*;
use crate::model::ExecInfo;

fn task(pid: u32, comm: &[u8]) -> Task {
    Task {
        pid,
        tid: pid,
        uid: 0,
        gid: 0,
        comm: comm.to_vec(),
        cgroup_id: None,
        start_ns: None,
        exec_info: None,
    }
}

/// An exec info that leaves all to /proc.
fn unread() -> Rc<ExecInfo> {
    Rc::default()
}

fn start_of(pid: u32) -> u64 {
    ProcEntry::open(pid).unwrap().start_ns()
}

#[test]
fn this_process_is_found_with_all_that_proc_shows() {
    let me = std::process::id();
    let process = Processes::default().identify(&task(me, b"tests"), Timestamp::now());
    let exe = std::env::current_exe().unwrap();
    assert_eq!(process.exe.as_deref(), exe.to_str());
    assert_eq!((&process.exe_flags, &process.script), (&vec![], &None));
    assert_eq!(process.ppid, Some(std::os::unix::process::parent_id()));
    let arguments: Vec<String> = std::env::args().collect();
    let cmdline = process.cmdline.as_ref().unwrap().iter();
    assert_eq!(
        cmdline.map(ToString::to_string).collect::<Vec<_>>(),
        arguments
    );
    assert_eq!(process.user.as_deref(), Some("root"));
    let cwd = std::env::current_dir().unwrap();
    assert_eq!(process.cwd.as_deref(), cwd.to_str());
    assert_eq!(
        process.ancestors[0].pid,
        std::os::unix::process::parent_id()
    );
    assert_eq!(process.ancestors.last().unwrap().pid, 1);
    let age = Timestamp::now().duration_since(process.started.unwrap());
    assert!((0..600).contains(&age.as_secs()), "{age:?}");
    assert_eq!(process.tid, None);
}

#[test]
fn a_process_that_has_ended_is_described_by_its_event() {
    // Above the kernel's limit: no process has it.
    let gone = Task {
        uid: 4_000_000,
        gid: 7,
        ..task(1 << 30, b"gone")
    };
    let process = Processes::default().identify(&gone, Timestamp::now());
    assert_eq!(
        (process.pid, process.uid, process.gid),
        (1 << 30, 4_000_000, 7)
    );
    assert_eq!(&*process.comm, "gone");
    assert_eq!(
        (process.ppid, &process.exe, &process.cmdline),
        (None, &None, &None)
    );
    assert_eq!((&process.user, &process.cgroup), (&None, &None));

    // Only what the BPF programs read is known; the parent still runs.
    let info = ExecInfo {
        parent: std::process::id(),
        loginuid: Some(1000),
        exe: Some(b"/memfd:x".to_vec()),
        deleted: true,
        execfn: None,
        args: Some(vec![b"x".to_vec(), b"-l".to_vec()]),
        ..ExecInfo::default()
    };
    let seen = Task {
        start_ns: Some(u64::MAX / 2),
        exec_info: Some(Rc::new(info)),
        ..gone
    };
    let process = Processes::default().identify(&seen, Timestamp::now());
    assert_eq!(process.exe.as_deref(), Some("/memfd:x"));
    assert_eq!(process.exe_flags, [ExeFlag::Deleted, ExeFlag::Memfd]);
    assert_eq!(process.cmdline.as_ref().unwrap().len(), 2);
    assert_eq!(
        (process.ppid, process.loginuid),
        (Some(std::process::id()), Some(1000))
    );
    assert_eq!(process.ancestors[0].pid, std::process::id());
}

#[test]
fn a_reused_pid_is_not_named() {
    let me = std::process::id();
    let before = Timestamp::now() - SignedDuration::from_hours(24 * 365 * 30);
    let named = |task: &Task, time| Processes::default().identify(task, time).exe.is_some();
    // Decided by the time of the event, or by the start time where that is known.
    assert!(named(&task(me, b"x"), Timestamp::now()));
    assert!(!named(&task(me, b"x"), before));
    let started = |start_ns| Task {
        start_ns: Some(start_ns),
        ..task(me, b"x")
    };
    assert!(named(&started(start_of(me)), Timestamp::now()));
    let tick = *entry::TICK_NS;
    assert!(!named(&started(start_of(me) + tick), Timestamp::now()));
    assert!(!named(&started(start_of(me) - tick), Timestamp::now()));
}

#[test]
fn a_process_that_executes_another_program_is_shown_with_that_one() {
    use std::{io::Write as _, os::unix::fs::MetadataExt as _};
    let mut child = Sleeper(started(
        std::process::Command::new("/bin/sh")
            .args(["-c", "read go; exec sleep 1000"])
            .stdin(std::process::Stdio::piped()),
    ));
    let mut processes = Processes::default();
    // The BPF programs have seen it start, but their exec info was lost.
    let event = child.task();
    let command = |processes: &mut Processes| {
        let found = processes.identify(&event, Timestamp::now());
        found.cmdline.as_ref().map(|words| words[0].to_string())
    };
    assert_eq!(command(&mut processes).as_deref(), Some("/bin/sh"));
    child.0.stdin.take().unwrap().write_all(b"\n").unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while command(&mut processes).as_deref() != Some("sleep") {
        assert!(std::time::Instant::now() < deadline);
        std::thread::yield_now();
    }
    let found = processes.identify(&event, Timestamp::now());
    let sleep = std::fs::canonicalize("/bin/sleep").unwrap();
    assert_eq!(found.exe.as_deref(), sleep.to_str());
    assert_eq!(
        found.exe_inode,
        std::fs::metadata(sleep).ok().map(|file| file.ino())
    );
    assert!(found.exe_verified);
}

/// A child that executes its program: the kernel lets its parent go on a moment before the child has its
/// arguments (begin_new_exec in fs/exec.c, Linux 6.18).
fn started(command: &mut std::process::Command) -> std::process::Child {
    let child = command.spawn().unwrap();
    let cmdline = format!("/proc/{}/cmdline", child.id());
    while std::fs::read(&cmdline).unwrap().is_empty() {
        std::thread::yield_now();
    }
    child
}

/// A child that sleeps until it is dropped.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start(program: &std::path::Path) -> Self {
        Self(started(std::process::Command::new(program).arg("1000")))
    }

    fn task(&self) -> Task {
        let pid = self.0.id();
        Task {
            start_ns: Some(start_of(pid)),
            ..task(pid, b"sleep")
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_name_that_is_cut_within_a_character_hides_no_process() {
    use std::os::unix::ffi::OsStrExt as _;
    let directory = tempfile::tempdir().unwrap();
    // The kernel cuts names after 15 bytes: within the last ü.
    for name in ["aaaaaaaaaaaaaaü".as_bytes(), b"\xff\xfe", b"a) R 1 (b\n1 1"] {
        let path = directory.path().join(std::ffi::OsStr::from_bytes(name));
        std::fs::copy("/bin/sleep", &path).unwrap();
        let child = Sleeper::start(&path);
        let context = name.escape_ascii();
        let process = Processes::default().look_up(child.0.id());
        let process = process.unwrap_or_else(|| panic!("{context} not found"));
        let comm = Printable::limited(&name[..name.len().min(15)], MAX_COMM);
        assert_eq!(process.comm, comm, "{context}");
        assert_eq!(process.ppid, Some(std::process::id()), "{context}");
        assert_eq!(process.exe, Some(Printable::from(path.as_os_str())));
    }
}

#[test]
fn a_long_command_line_is_not_cut_where_the_bpf_programs_cut_it() {
    let long = "x".repeat(1000);
    let mut child = started(
        std::process::Command::new("/bin/sh")
            .args(["-c", "read line; exit", &long])
            .stdin(std::process::Stdio::piped()),
    );
    let pid = child.id();
    let read = |args: &[&[u8]]| {
        let info = ExecInfo {
            exe: Some(b"/bin/sh".to_vec()),
            args: Some(args.iter().map(|arg| arg.to_vec()).collect()),
            args_unread: 900,
            ..ExecInfo::default()
        };
        let event = Task {
            start_ns: Some(start_of(pid)),
            exec_info: Some(Rc::new(info)),
            ..task(pid, b"sh")
        };
        let process = Processes::default().identify(&event, Timestamp::now());
        process.cmdline.clone().unwrap().last().unwrap().to_string()
    };
    let whole = read(&[b"/bin/sh", b"-c", b"read line; exit", b"xxx"]);
    // It has executed something else since.
    let other = read(&[b"/bin/sh", b"-c", b"another", b"xxx"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(whole, long);
    assert_eq!(other, "xxx...(+900 bytes)");
}
