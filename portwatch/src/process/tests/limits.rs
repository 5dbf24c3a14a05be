//! How long the texts of a record can be.
#![forbid(unsafe_code)]

use super::task;
use crate::{model::ExecInfo, process::*};

#[test]
fn each_text_is_cut_at_its_limit() {
    let long = vec![b'a'; 10_000];
    let info = ExecInfo {
        exe: Some(long.clone()),
        execfn: Some([b"/", &*long].concat()),
        args: Some(vec![long.clone(), [b"/", &*long].concat()]),
        ..ExecInfo::default()
    };
    let gone = Task {
        exec_info: Some(Rc::new(info)),
        ..task(1 << 30, &long)
    };
    let process = Processes::default().identify(&gone, Timestamp::now());
    let cut = |max: usize, len: usize| format!("{}...(+{} bytes)", "a".repeat(max), len - max);
    assert_eq!(*process.comm, *cut(MAX_COMM, 10_000));
    assert_eq!(**process.exe.as_ref().unwrap(), *cut(MAX_EXE, 10_000));
    let script = format!("/{}", cut(MAX_SCRIPT - 1, 10_000));
    assert_eq!(**process.script.as_ref().unwrap(), *script);
    let big = MAX_CMDLINE - 3;
    for (lens, unread, words, note) in [
        (vec![big], 0, vec![big], None),
        (vec![big], 7, vec![big], Some(7)),
        (vec![big + 1], 0, vec![big], Some(1)),
        (vec![big, 0, 5], 0, vec![big, 0], Some(6)),
        (vec![100, big - 103, 2], 1, vec![100, big - 103, 0], Some(3)),
        (
            vec![100, 5000, 5],
            1000,
            vec![100, big - 103],
            Some(6109 - big),
        ),
    ] {
        let args: Vec<Vec<u8>> = lens.iter().map(|len| vec![b'x'; *len]).collect();
        let printed = cmdline(&args, unread);
        let xs = printed.iter().map(|word| word.matches('x').count());
        assert_eq!(xs.collect::<Vec<_>>(), words, "{lens:?}");
        let note = note.map(|bytes| format!("...(+{bytes} bytes)"));
        let last = printed.last().unwrap().trim_start_matches('x');
        assert_eq!(last, note.unwrap_or_default(), "{lens:?}");
    }
}

/// A record whose texts are all as long as they can be, made of `text` again and again.
pub(crate) fn longest(text: &[u8]) -> Process {
    let long = text.repeat(10_000);
    let info = ExecInfo {
        exe: Some(long.clone()),
        execfn: Some(long.clone()),
        args: Some(vec![text.to_vec(), long.clone()]),
        deleted: true,
        args_unread: u64::from(u32::MAX),
        ..ExecInfo::default()
    };
    let task = Task {
        exec_info: Some(Rc::new(info)),
        ..task(1 << 30, &long)
    };
    let mut process = Process::clone(&Processes::default().identify(&task, Timestamp::now()));
    let some = |max| Some(Printable::limited(&long, max));
    process.script = some(MAX_SCRIPT);
    process.cwd = some(MAX_CWD);
    process.user = some(users::MAX_NAME);
    process.cgroup = some(MAX_CGROUP);
    process.unit = some(MAX_UNIT);
    process.container = Some(Container {
        id: Printable::limited(&long, MAX_CONTAINER),
        runtime: Some("systemd-nspawn"),
    });
    process.capabilities = Some(vec!["CAP_NET_BIND_SERVICE"]);
    let ancestor = Ancestor {
        pid: u32::MAX,
        comm: Printable::limited(&long, MAX_COMM),
        exe: some(MAX_ANCESTOR_EXE),
    };
    let fit = MAX_ANCESTORS / ancestor.json_bytes();
    process.ancestors = vec![ancestor; fit].into();
    process.ancestors_omitted = 99;
    let json = process.json().unwrap().get().len();
    assert!(json <= 9 << 10, "{json}");
    process
}
