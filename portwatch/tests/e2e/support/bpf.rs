//! The BPF maps and links of a process, opened by their ids as any root can.

use std::{
    collections::HashMap,
    ffi::CStr,
    fs, io,
    num::NonZeroUsize,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Commands of bpf(2) (include/uapi/linux/bpf.h).
pub const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
pub const BPF_MAP_GET_FD_BY_ID: libc::c_long = 14;
pub const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
pub const BPF_LINK_GET_FD_BY_ID: libc::c_long = 30;
pub const BPF_LINK_DETACH: libc::c_long = 34;

/// Runs a bpf(2) command whose attributes start with one number.
pub fn bpf(command: libc::c_long, number: u32) -> libc::c_long {
    let attributes = [number, 0, 0, 0];
    // SAFETY: the kernel reads the sixteen bytes, which outlive the call.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 16) }
}

/// Opens what has that id, by a command for its kind.
pub fn open(command: libc::c_long, id: u32) -> OwnedFd {
    let fd = bpf(command, id);
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a new descriptor, which this process owns alone.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// The ids in /proc/PID/fdinfo under that key.
pub fn ids(pid: u32, key: &str) -> Vec<u32> {
    let directory = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    directory
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|info| {
            let id = info.lines().find_map(|line| line.strip_prefix(key))?;
            Some(id.trim().parse().unwrap())
        })
        .collect()
}

/// A map of a monitor.
pub struct Map(OwnedFd);

impl Map {
    /// The maps of a process, by name.
    pub fn all(pid: u32) -> HashMap<String, Self> {
        let ids = ids(pid, "map_id:").into_iter();
        ids.map(|id| {
            let map = Self(open(BPF_MAP_GET_FD_BY_ID, id));
            (map.name(), map)
        })
        .collect()
    }

    fn name(&self) -> String {
        // `struct bpf_map_info`: the name is at byte 24, 16 bytes long.
        let mut info = [0_u8; 80];
        let attributes = [
            self.0.as_raw_fd() as u64 | (info.len() as u64) << 32,
            info.as_mut_ptr() as u64,
        ];
        // SAFETY: the kernel reads the attributes and writes at most 80 bytes to `info`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_OBJ_GET_INFO_BY_FD,
                attributes.as_ptr(),
                16,
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        let name = CStr::from_bytes_until_nul(&info[24..40]).unwrap();
        name.to_str().unwrap().to_owned()
    }

    /// Sets the value of a key; both have the map's sizes.
    pub fn set(&self, key: &[u8], value: &[u8]) {
        let attributes = [
            self.0.as_raw_fd() as u64,
            key.as_ptr() as u64,
            value.as_ptr() as u64,
            0,
        ];
        // SAFETY: the kernel reads the attributes, and key and value by the map's sizes.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_UPDATE_ELEM,
                attributes.as_ptr(),
                size_of_val(&attributes),
            )
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// Sets one byte of the map's first page, by a mapping of it.
    pub fn set_byte(&self, index: usize, value: u8) {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let page = NonZeroUsize::new(4096).unwrap();
        // SAFETY: as in `add_to_word`.
        unsafe {
            let at = mmap(None, page, access, MapFlags::MAP_SHARED, &self.0, 0).unwrap();
            let bytes: NonNull<AtomicU8> = at.cast();
            bytes.add(index).as_ref().store(value, Ordering::SeqCst);
            munmap(at, page.get()).unwrap();
        }
    }

    /// Adds to the 64-bit word at that index of the map's first page, by a mapping of it.
    pub fn add_to_word(&self, index: usize, value: u64) {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let page = NonZeroUsize::new(4096).unwrap();
        // SAFETY: a new mapping of the page that nothing else in this process refers to; the word is
        // within it and aligned.
        unsafe {
            let at = mmap(None, page, access, MapFlags::MAP_SHARED, &self.0, 0).unwrap();
            let words: NonNull<AtomicU64> = at.cast();
            words.add(index).as_ref().fetch_add(value, Ordering::SeqCst);
            munmap(at, page.get()).unwrap();
        }
    }
}
