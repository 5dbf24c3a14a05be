//! The names of network devices in other network namespaces.
#![forbid(unsafe_code)]

use std::{fs::File, io::Read as _};

use crate::model::Printable;

/// Bytes of the table that are read: some 80 for each device, so several hundred devices. The thread
/// that reads the ring asks, for a namespace that anybody can fill with devices.
const MAX_BYTES: u64 = 1 << 16;

/// The name of the device with that index in the network namespace of thread `tid`, by the table of its
/// multicast groups, which every device with IPv4 is in (`igmp_mc_seq_show` in net/ipv4/igmp.c, 5.10 to
/// 6.18). None where that cannot be read.
pub fn name(tid: u32, index: u32) -> Option<Printable> {
    let table = File::open(format!("/proc/{tid}/net/igmp")).ok()?;
    let mut text = Vec::new();
    table.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    find(&text, index).map(Printable::from_bytes)
}

fn find(table: &[u8], index: u32) -> Option<&[u8]> {
    let index = index.to_string();
    table.split(|byte| *byte == b'\n').find_map(|line| {
        let (number, rest) = line.split_at_checked(line.iter().position(|byte| *byte == b'\t')?)?;
        let name = rest.get(1..)?.split(|byte| *byte == b' ').next()?;
        (number == index.as_bytes() && !name.is_empty()).then_some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_index() {
        let table = b"Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
            1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
            12\teth0.100 :     1      V3\n";
        for (index, name) in [
            (1, Some(&b"lo"[..])),
            (12, Some(b"eth0.100")),
            (2, None),
            (0, None),
        ] {
            assert_eq!(find(table, index), name, "{index}");
        }
        assert!(find(b"", 1).is_none());
        assert_eq!(name(std::process::id(), u32::MAX), None);
    }
}
