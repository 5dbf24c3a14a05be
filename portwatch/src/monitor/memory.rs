//! What the monitor gives back to the kernel: starting and scanning take more memory than running.

/// Lets scans, which have threads of their own, allocate where the ring's thread does: what they free
/// is used again.
pub(super) fn use_one_arena() {
    // SAFETY: mallopt(3) may be called before there are other threads.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns to the kernel what the allocator keeps for later.
pub(super) fn release() {
    // SAFETY: malloc_trim(3) may be called at any time.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the program's code: what only the start needs is not mapped again.
pub(super) fn release_code() {
    #[cfg(target_env = "gnu")]
    if let Some(code) = std::fs::read_to_string("/proc/self/maps")
        .ok()
        .and_then(|maps| range(&maps, release_code as *const () as usize))
    {
        // SAFETY: the range is a private mapping of the executable that is not writable, so that its pages
        // are the file's, and are read again when they are executed (madvise(2)). A running
        // executable cannot be written to (ETXTBSY).
        unsafe {
            libc::madvise(code.start as *mut _, code.len(), libc::MADV_DONTNEED);
        }
    }
}

/// The mapping of code around an address, from proc_pid_maps(5).
#[cfg(target_env = "gnu")]
fn range(maps: &str, address: usize) -> Option<std::ops::Range<usize>> {
    maps.lines().find_map(|line| {
        let mut words = line.split(' ');
        let (start, end) = words.next()?.split_once('-')?;
        let parse = |text| usize::from_str_radix(text, 16).ok();
        let range = parse(start)?..parse(end)?;
        (words.next()? == "r-xp" && range.contains(&address)).then_some(range)
    })
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_unmapped() {
        let maps = "55d0-55d8 r--p 00000000 fe:01 7 /usr/bin/portwatch\n\
                    55d8-55f0 r-xp 00008000 fe:01 7 /usr/bin/portwatch\n\
                    55f0-55f8 rw-p 00020000 fe:01 7 /usr/bin/portwatch\n";
        let cases = [
            (0x55d0, None),
            (0x55d8, Some(0x55d8..0x55f0)),
            (0x55ef, Some(0x55d8..0x55f0)),
            (0x55f0, None),
        ];
        for (address, expected) in cases {
            assert_eq!(range(maps, address), expected, "{address:x}");
        }
        // It runs on afterwards.
        release_code();
    }
}
