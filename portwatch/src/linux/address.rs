//! Addresses in the kernel's encoding.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6};

/// The address that `bytes`, in network byte order, stand for in an address family: IPv4 takes the
/// first four bytes, and an IPv4-mapped IPv6 address is given as IPv4. None for another family.
#[must_use]
pub fn ip(family: u8, bytes: [u8; 16]) -> Option<IpAddr> {
    match family {
        FAMILY_IPV4 => {
            let [a, b, c, d, ..] = bytes;
            Some(Ipv4Addr::new(a, b, c, d).into())
        }
        FAMILY_IPV6 => Some(Ipv6Addr::from(bytes).to_canonical()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_ipv4_and_an_unknown_family_is_none() {
        let mapped = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(ip(FAMILY_IPV6, mapped), Some([10, 0, 0, 1].into()));
        let mut v4 = [0xff; 16];
        v4[..4].copy_from_slice(&[192, 0, 2, 7]);
        assert_eq!(ip(FAMILY_IPV4, v4), Some([192, 0, 2, 7].into()));
        assert_eq!(ip(1, v4), None);
    }
}
