//! What the monitor gives back to the kernel: starting and scanning take more memory than running.

/// Bytes from which on an allocation is a mapping of its own, and free bytes at the heap's end that are
/// returned. As the defaults, but fixed: glibc raises them to the largest that was freed, and from then on
/// a scan's tables lie between what stays.
#[cfg(target_env = "gnu")]
const THRESHOLD: libc::c_int = 128 << 10;

/// Lets scans, which have threads of their own, allocate where the ring's thread does: what they free
/// is used again. What is large is returned when it is freed.
pub(super) fn set_up_allocator() {
    // SAFETY: mallopt(3) may be called before there are other threads.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, THRESHOLD);
        libc::mallopt(libc::M_TRIM_THRESHOLD, THRESHOLD);
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

/// Unmaps the code and constants of the program and its libraries: what only the start needs is not
/// mapped again.
pub(super) fn release_files() {
    #[cfg(target_env = "gnu")]
    for range in unchanged(&std::fs::read_to_string("/proc/self/smaps").unwrap_or_default()) {
        // SAFETY: the range is a private mapping of a file that cannot be written to and has no page of
        // its own, so that all its pages are the file's, and are read again when they are used (madvise(2)).
        unsafe {
            libc::madvise(range.start as *mut _, range.len(), libc::MADV_DONTNEED);
        }
    }
}

/// The private mappings of files that are not writable and that nobody has written to, from
/// proc_pid_smaps(5).
#[cfg(target_env = "gnu")]
fn unchanged(smaps: &str) -> Vec<std::ops::Range<usize>> {
    let mut all = Vec::new();
    let mut mapping = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else {
            continue;
        };
        if let Some(bounds) = first.split_once('-') {
            let parse = |text| usize::from_str_radix(text, 16).ok();
            let is_fixed = words
                .next()
                .is_some_and(|mode| matches!(mode, "r--p" | "r-xp"));
            let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
            mapping = parse(bounds.0)
                .zip(parse(bounds.1))
                .filter(|_| is_fixed && is_file);
        } else if first == "Anonymous:"
            && words.next() == Some("0")
            && let Some((start, end)) = mapping.take()
        {
            all.push(start..end);
        }
    }
    all
}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_files_have_is_unmapped() {
        let smaps = [
            ("5000-5800 r--p 00000000 fe:01 7    /usr/bin/portwatch", 0),
            ("5800-6000 r-xp 00000800 fe:01 7    /usr/bin/portwatch", 0),
            ("6000-6800 r--p 00001000 fe:01 7    /usr/bin/portwatch", 4),
            ("6800-7000 rw-p 00001800 fe:01 7    /usr/bin/portwatch", 0),
            ("7000-7800 r--s 00000000 fe:01 8    /usr/share/x", 0),
            ("7800-8000 r--p 00000000 00:00 0    [vvar]", 0),
            ("8000-8800 r--p 00000000 00:00 0 ", 0),
        ];
        let smaps = smaps.map(|(line, kb)| format!("{line}\nRss: 4 kB\nAnonymous:  {kb} kB\n"));
        assert_eq!(unchanged(&smaps.concat()), [0x5000..0x5800, 0x5800..0x6000]);
        // It runs on afterwards.
        release_files();
    }
}
