//! The kernel's clocks as the BPF programs read them: in a time namespace, clock_gettime(2) and /proc add
//! its offsets (time_namespaces(7)).
#![forbid(unsafe_code)]

use std::{sync::OnceLock, time::Duration};

use nix::time::{ClockId, clock_gettime};

/// What this process's time namespace adds, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets {
    /// To `CLOCK_MONOTONIC`.
    pub monotonic_ns: i64,
    /// To `CLOCK_BOOTTIME`.
    pub boottime_ns: i64,
}

/// The offsets, which stay as they are as long as the process runs; 0 where they cannot be read, as on
/// kernels without time namespaces. To be called while /proc is there.
pub fn offsets() -> Offsets {
    static OFFSETS: OnceLock<Offsets> = OnceLock::new();
    *OFFSETS.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
        parse(&text)
    })
}

/// The processor time of the calling thread so far.
#[must_use]
pub fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Lines of a clock's name, seconds and nanoseconds.
fn parse(text: &str) -> Offsets {
    let mut offsets = Offsets::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let name = words.next();
        let mut number = || words.next()?.parse::<i64>().ok();
        let (Some(seconds), Some(nanoseconds)) = (number(), number()) else {
            continue;
        };
        let offset = seconds
            .saturating_mul(1_000_000_000)
            .saturating_add(nanoseconds);
        match name {
            Some("monotonic") => offsets.monotonic_ns = offset,
            Some("boottime") => offsets.boottime_ns = offset,
            _ => {}
        }
    }
    offsets
}

/// Nanoseconds of a clock as the kernel has it.
fn nanoseconds(id: ClockId, offset: i64) -> i64 {
    let now = clock_gettime(id).map_or(0, |time| time.tv_sec() * 1_000_000_000 + time.tv_nsec());
    now - offset
}

/// What `bpf_ktime_get_ns` returns now.
#[must_use]
pub fn monotonic_ns() -> u64 {
    u64::try_from(nanoseconds(
        ClockId::CLOCK_MONOTONIC,
        offsets().monotonic_ns,
    ))
    .unwrap_or(0)
}

/// `CLOCK_REALTIME` in nanoseconds.
#[must_use]
pub fn realtime_ns() -> i64 {
    nanoseconds(ClockId::CLOCK_REALTIME, 0)
}

/// A time of the kernel's `CLOCK_BOOTTIME` as clock_gettime(2) and /proc show it to this process.
#[must_use]
pub fn boottime_here(kernel_ns: u64) -> u64 {
    kernel_ns.saturating_add_signed(offsets().boottime_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_read_by_name() {
        let text = "monotonic          -7  500000000\nboottime        86400         0\nother 1 2\n";
        let offsets = parse(text);
        assert_eq!(offsets.monotonic_ns, -6_500_000_000);
        assert_eq!(offsets.boottime_ns, 86_400_000_000_000);
        for text in ["", "monotonic", "monotonic x 1", "boottime 1"] {
            assert_eq!(parse(text), Offsets::default(), "{text}");
        }
    }
}
