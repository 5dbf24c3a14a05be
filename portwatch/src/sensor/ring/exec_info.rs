//! The record of what the BPF programs read of a process.
#![forbid(unsafe_code)]

use portwatch_common::exec_info_flags;
use rustix::fs::makedev;

use crate::model::{ExecInfo, FileId};

/// What the record says; None for what it does not have whole.
pub(super) fn exec_info(wire: &portwatch_common::ExecInfo) -> ExecInfo {
    let has = |flag| wire.flags & flag != 0;
    let set = |array: &[u8], len: u32| array.get(..len as usize).map(<[u8]>::to_vec);
    let namespace = |inode: u32| (inode != 0).then_some(inode.into());
    let text = |bytes: Vec<u8>| bytes.strip_suffix(b"\0").map(<[u8]>::to_vec);
    let exe = set(&wire.exe, wire.exe_len)
        .filter(|bytes| has(exec_info_flags::EXE) && !bytes.is_empty())
        .map(|names| {
            let mut path = Vec::with_capacity(names.len());
            for name in names.split(|byte| *byte == 0).rev().skip(1) {
                path.push(b'/');
                path.extend_from_slice(name);
            }
            path
        });
    let args = set(&wire.args, wire.args_len)
        .filter(|bytes| !bytes.is_empty())
        .map(|bytes| {
            let bytes = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
            bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
        });
    ExecInfo {
        parent: wire.parent,
        // `AUDIT_UID_UNSET` in include/uapi/linux/audit.h.
        loginuid: (has(exec_info_flags::LOGINUID) && wire.loginuid != u32::MAX)
            .then_some(wire.loginuid),
        exe,
        // A memfd has no name anywhere, as proc_pid_exe(5) shows it.
        deleted: has(exec_info_flags::DELETED) || has(exec_info_flags::DETACHED),
        exe_file: (wire.exe_device != 0 && wire.exe_inode != 0).then(|| FileId {
            device: device(wire.exe_device),
            inode: wire.exe_inode,
        }),
        exe_mount_ns: namespace(wire.exe_mount_ns),
        mount_ns: namespace(wire.mount_ns),
        user_ns: namespace(wire.user_ns),
        execfn: set(&wire.execfn, wire.execfn_len).and_then(text),
        args,
        args_unread: wire.args_whole.saturating_sub(wire.args_len).into(),
    }
}

/// From the kernel's encoding, 12 bits of major number above 20 bits of minor number
/// (include/linux/kdev_t.h, Linux 6.18), to makedev(3)'s.
fn device(kernels: u32) -> u64 {
    makedev(kernels >> 20, kernels & 0xf_ffff)
}

#[cfg(test)]
mod tests {
    use portwatch_common::{Report, known};

    use super::{
        super::decode::{Clock, Decoder, tests::report},
        *,
    };

    fn wire_exec_info() -> portwatch_common::ExecInfo {
        let mut info = portwatch_common::ExecInfo {
            start_ns: 40,
            tgid: 812,
            parent: 1,
            loginuid: u32::MAX,
            flags: exec_info_flags::EXE | exec_info_flags::LOGINUID,
            exe_len: 12,
            execfn_len: 5,
            args_len: 9,
            exe_device: 259 << 20 | 0x12345,
            exe_inode: 7,
            mount_ns: 1,
            user_ns: 0xefff_fffd,
            ..bytemuck::Zeroable::zeroed()
        };
        info.exe[..14].copy_from_slice(b"nc\0bin\0usr\0\0\xff\xff");
        info.exe_len = 11;
        info.execfn[..5].copy_from_slice(b"./nc\0");
        info.args[..9].copy_from_slice(b"nc\0-l\0\0x\0");
        info
    }

    #[test]
    fn an_exec_info_goes_with_the_reports_of_its_process_only() {
        let mut decoder = Decoder::new();
        let clock = Clock(0);
        assert!(
            decoder
                .decode(bytemuck::bytes_of(&wire_exec_info()), clock)
                .is_none()
        );
        let started = Report {
            start_ns: 40,
            known: known::TASK | known::START,
            ..report()
        };
        let mut exec_info_of = |report: &Report| {
            let event = decoder.decode(bytemuck::bytes_of(report), clock).unwrap();
            event.task.unwrap().exec_info
        };
        let info = exec_info_of(&started).unwrap();
        assert_eq!(info.exe.as_deref(), Some(&b"/usr/bin/nc"[..]));
        assert_eq!(info.execfn.as_deref(), Some(&b"./nc"[..]));
        let args = [&b"nc"[..], b"-l", b"", b"x"].map(<[u8]>::to_vec).to_vec();
        assert_eq!(info.args, Some(args));
        assert_eq!((info.parent, info.loginuid, info.deleted), (1, None, false));
        let (device, inode) = (makedev(259, 0x12345), 7);
        assert_eq!(info.exe_file, Some(FileId { device, inode }));
        let namespaces = (info.mount_ns, info.exe_mount_ns, info.user_ns);
        assert_eq!(namespaces, (Some(1), None, Some(0xefff_fffd)));
        for other in [
            Report {
                tgid: 813,
                ..started
            },
            Report {
                start_ns: 41,
                ..started
            },
            Report {
                known: known::TASK,
                ..started
            },
        ] {
            assert_eq!(exec_info_of(&other), None);
        }
    }

    #[test]
    fn of_an_exec_info_only_what_is_set_and_whole_is_taken() {
        let cut = portwatch_common::ExecInfo {
            flags: exec_info_flags::DETACHED,
            execfn_len: 4,
            args_len: 9999,
            exe_device: 0,
            ..wire_exec_info()
        };
        let info = exec_info(&cut);
        assert_eq!((info.exe, info.execfn, info.args), (None, None, None));
        assert!(info.deleted);
        assert_eq!(info.exe_file, None);
    }
}
