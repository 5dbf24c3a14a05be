use super::*;

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
fn a_process_that_is_gone_keeps_what_its_event_carried() {
    // Above the kernel's limit, so nobody has it.
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

    // What the kernel side read of it is all there is, and its parent is still there.
    let image = ExecInfo {
        parent: std::process::id(),
        loginuid: Some(1000),
        exe: Some(b"/memfd:x".to_vec()),
        deleted: true,
        execfn: None,
        args: Some(vec![b"x".to_vec(), b"-l".to_vec()]),
    };
    let seen = Task {
        start_ns: Some(u64::MAX / 2),
        exec_info: Some(Rc::new(image)),
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
fn a_number_that_another_process_has_by_now_names_nobody() {
    let me = std::process::id();
    let before = Timestamp::now() - SignedDuration::from_hours(24 * 365 * 30);
    let named = |task: &Task, time| Processes::default().identify(task, time).exe.is_some();
    // By the time of the event, and where it is known by the time of the start.
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
fn a_process_that_acts_again_is_read_once_until_it_runs_something_else() {
    let me = std::process::id();
    let mut processes = Processes::default();
    let started = Task {
        start_ns: Some(start_of(me)),
        ..task(me, b"x")
    };
    let first = processes.identify(&started, Timestamp::now());
    assert!(Rc::ptr_eq(
        &first,
        &processes.identify(&started, Timestamp::now())
    ));
    let other_thread = Task {
        tid: me + 1,
        ..started.clone()
    };
    assert_eq!(
        processes.identify(&other_thread, Timestamp::now()).tid,
        Some(me + 1)
    );
    let image = ExecInfo {
        exe: Some(b"/other".to_vec()),
        args: Some(vec![b"other".to_vec()]),
        ..ExecInfo::default()
    };
    let executed = Task {
        exec_info: Some(Rc::new(image)),
        ..started
    };
    let second = processes.identify(&executed, Timestamp::now());
    assert_eq!(second.exe.as_deref(), Some("/other"));
}

#[test]
fn a_script_is_named_beside_its_interpreter() {
    let image = |execfn: &str, exe: &str, args: &[&str]| ExecInfo {
        exe: Some(exe.into()),
        execfn: Some(execfn.into()),
        args: Some(args.iter().map(|word| word.as_bytes().to_vec()).collect()),
        ..ExecInfo::default()
    };
    let cases = [
        (
            image(
                "/opt/x.py",
                "/usr/bin/python3.11",
                &["/usr/bin/python3", "/opt/x.py", "-v"],
            ),
            Some("/opt/x.py"),
        ),
        (
            image("./x", "/usr/bin/perl", &["/usr/bin/perl", "-w", "./x"]),
            Some("/work/x"),
        ),
        (
            image(
                "/usr/bin/python3",
                "/usr/bin/python3.11",
                &["python3", "/opt/x.py"],
            ),
            None,
        ),
        (
            image("/usr/bin/nc", "/usr/bin/nc.openbsd", &["nc", "-l", "976"]),
            None,
        ),
        (
            image("/usr/bin/grep", "/usr/bin/grep", &["grep", "/usr/bin/grep"]),
            None,
        ),
        (image("/bin/x", "/bin/y", &[]), None),
    ];
    for (image, expected) in cases {
        assert_eq!(
            script(&image, Some("/work")).as_deref(),
            expected,
            "{image:?}"
        );
    }
}
