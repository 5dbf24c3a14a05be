//! What is read once, and when it is read again.
#![forbid(unsafe_code)]

use super::{Sleeper, start_of, task, unread};
use crate::model::ExecInfo;
use crate::process::{
    cache::{MAX_CACHE_PER_PROCESS, MAX_THREADS},
    *,
};

#[test]
fn a_process_that_acts_again_is_read_once_until_it_runs_something_else() {
    let me = std::process::id();
    let mut processes = Processes::default();
    let started = Task {
        start_ns: Some(start_of(me)),
        exec_info: Some(unread()),
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
    let info = ExecInfo {
        exe: Some(b"/other".to_vec()),
        args: Some(vec![b"other".to_vec()]),
        ..ExecInfo::default()
    };
    let executed = Task {
        exec_info: Some(Rc::new(info)),
        ..started
    };
    let second = processes.identify(&executed, Timestamp::now());
    assert_eq!(second.exe.as_deref(), Some("/other"));
}

#[test]
fn a_process_in_another_cgroup_is_read_again() {
    use std::os::unix::fs::MetadataExt as _;
    struct Cgroup(std::path::PathBuf);
    impl Drop for Cgroup {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir(&self.0);
        }
    }
    let root = crate::linux::cgroup::root().expect("needs a mounted cgroup v2 hierarchy");
    let name = |unit: &str| format!("portwatch-move-{}-{unit}.service", std::process::id());
    let groups = ["a", "b"].map(|unit| {
        let path = root.join(name(unit));
        std::fs::create_dir(&path).unwrap();
        Cgroup(path)
    });
    let child = Sleeper::start("/bin/sleep".as_ref());
    let mut processes = Processes::default();
    let exec_info = Some(unread());
    for (group, unit) in groups.iter().zip(["a", "b"]) {
        let members = group.0.join("cgroup.procs");
        std::fs::write(members, child.0.id().to_string()).unwrap();
        let moved = Task {
            cgroup_id: Some(std::fs::metadata(&group.0).unwrap().ino()),
            exec_info: exec_info.clone(),
            ..child.task()
        };
        let first = processes.identify(&moved, Timestamp::now());
        assert_eq!(first.unit.as_deref(), Some(&*name(unit)));
        let again = processes.identify(&moved, Timestamp::now());
        assert!(Rc::ptr_eq(&first, &again), "{unit}");
    }
    drop(child);
}

#[test]
fn the_cache_is_bounded_in_bytes_whatever_processes_and_threads_call_themselves() {
    let pids: Vec<u32> = (0..50).map(|index| (1 << 30) + index * 64).collect();
    let mut processes = Processes::default();
    for pid in &pids {
        let long = |name: &str| format!("/{name}{pid}/{}", "d\u{1}".repeat(1500)).into_bytes();
        let info = Rc::new(ExecInfo {
            exe: Some(long("exe")),
            args: Some(vec![long("arg")]),
            ..ExecInfo::default()
        });
        for thread in 0..MAX_THREADS as u32 {
            let event = Task {
                tid: pid + thread,
                start_ns: Some(1),
                exec_info: Some(Rc::clone(&info)),
                ..task(*pid, format!("thread-{thread}").as_bytes())
            };
            let process = processes.identify(&event, Timestamp::now());
            let exe = process.exe.as_ref().unwrap().len();
            assert!(process.bytes() > 2 * exe, "{}", process.bytes());
            assert!(Rc::ptr_eq(
                &process,
                &processes.identify(&event, Timestamp::now())
            ));
        }
    }
    let cached: Vec<usize> = pids
        .iter()
        .filter_map(|pid| processes.cache.get(pid).map(CachedProcess::bytes))
        .collect();
    assert!(cached.len() > 10);
    assert!(cached.iter().all(|bytes| *bytes <= MAX_CACHE_PER_PROCESS));
    assert!(cached.iter().sum::<usize>() <= MAX_CACHE);
}

#[test]
fn a_user_name_that_is_known_later_is_shown_from_then_on() {
    let directory = tempfile::tempdir().unwrap();
    let passwd = directory.path().join("passwd");
    let mut processes = Processes {
        users: Users::of(passwd.clone(), |_| None),
        ..Processes::default()
    };
    let me = std::process::id();
    let event = Task {
        start_ns: Some(start_of(me)),
        exec_info: Some(unread()),
        ..task(me, b"x")
    };
    for name in [None, Some("first"), Some("second")] {
        if let Some(name) = name {
            std::fs::write(&passwd, format!("{name}:x:0:0::/:\n")).unwrap();
        }
        let deadline = std::time::Instant::now() + Duration::from_millis(1500);
        while processes.identify(&event, Timestamp::now()).user.as_deref() != name {
            assert!(std::time::Instant::now() < deadline, "{name:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        let threads = &processes.cache.get(&me).unwrap().threads;
        assert_eq!(threads.len(), 1, "outdated records are dropped");
    }
}
