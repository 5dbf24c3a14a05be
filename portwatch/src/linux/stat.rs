//! `/proc/PID/stat` and `/proc/PID/status` (proc_pid_stat(5), proc_pid_status(5)), read as bytes: a
//! process chooses its name, which need not be UTF-8.
#![forbid(unsafe_code)]

/// The fields of `/proc/PID/stat` in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Name of the main thread, unescaped: any bytes but NUL, 15 at most, 63 for a kernel thread
    /// (`proc_task_name` in fs/proc/array.c, Linux 6.18).
    pub comm: Vec<u8>,
    /// Process id of the parent; 0 without one.
    pub ppid: u32,
    /// Start time in clock ticks of `CLOCK_BOOTTIME`.
    pub start_ticks: u64,
    /// Bytes of the arguments; 0 without permission to ptrace the process.
    pub args_bytes: u64,
}

impl Stat {
    /// None when the text is not in the kernel's format.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        // The name can hold parentheses and newlines; what follows it holds numbers only.
        let begin = text.iter().position(|byte| *byte == b'(')? + 1;
        let end = text.iter().rposition(|byte| *byte == b')')?;
        let comm = text.get(begin..end)?.to_vec();
        let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
        let mut fields = rest.split_ascii_whitespace();
        // State is field 3, the parent 4, the start time 22, the arguments' begin 48 and end 49.
        let ppid = fields.nth(1)?.parse().ok()?;
        let start_ticks = fields.nth(17)?.parse().ok()?;
        let mut address = |skip| fields.nth(skip)?.parse::<u64>().ok();
        let args = address(25).zip(address(0));
        Some(Self {
            comm,
            ppid,
            start_ticks,
            args_bytes: args.map_or(0, |(begin, end)| end.saturating_sub(begin)),
        })
    }
}

/// The fields of `/proc/PID/status` in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Real user id, in the reader's user namespace.
    pub uid: u32,
    /// Real group id, in the same namespace.
    pub gid: u32,
    /// Effective capabilities, one bit each.
    pub effective: u64,
}

impl Status {
    /// None when the text is not in the kernel's format.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        // The kernel escapes newlines in the name, so that a name cannot form a line.
        let value = |key: &[u8]| {
            let line = text
                .split(|byte| *byte == b'\n')
                .find_map(|line| line.strip_prefix(key))?;
            std::str::from_utf8(line).ok()?.split_whitespace().next()
        };
        Some(Self {
            uid: value(b"Uid:")?.parse().ok()?,
            gid: value(b"Gid:")?.parse().ok()?,
            effective: u64::from_str_radix(value(b"CapEff:")?, 16).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_whatever_the_name_is() {
        const REST: &[u8] = b" S 7 812 812 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 123 9 \
              18446744073709551615 1 2\n";
        for name in [
            &b"nc"[..],
            b"a) R 1 (b",
            b"x\n1 (y) S 9",
            b"gr\xc3",
            b"\xff\xfe\x80",
            b"",
            b") S 1 1",
        ] {
            let text = [b"812 (", name, b")", REST].concat();
            let expected = Stat {
                comm: name.to_vec(),
                ppid: 7,
                start_ticks: 4711,
                args_bytes: 0,
            };
            let context = name.escape_ascii();
            assert_eq!(Stat::parse(&text), Some(expected), "{context}");
        }
        for text in [&b""[..], b"812 (nc", b"812 (nc) S 7 1", b"812 )nc( S"] {
            assert_eq!(Stat::parse(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn status_is_parsed_whatever_the_name_is() {
        for name in [&b"nc"[..], b"gr\xc3", b"a\\nUid:\t7", b"Uid:\t9"] {
            let text = [
                b"Name:\t",
                name,
                b"\nUmask:\t0022\nUid:\t1000\t0\t0\t0\nGid:\t100\t0\t0\t0\n",
                b"CapPrm:\t0000000000000001\nCapEff:\t0000000000000400\n",
            ]
            .concat();
            let expected = Status {
                uid: 1000,
                gid: 100,
                effective: 0x400,
            };
            assert_eq!(
                Status::parse(&text),
                Some(expected),
                "{}",
                name.escape_ascii()
            );
        }
        assert_eq!(Status::parse(b"Name:\tnc\nUid:\t1\n"), None);
    }
}
