//! Where the running kernel keeps the exec info, by its own type information
//! (Documentation/bpf/btf.rst, Linux 6.18).
//!
//! The crates that read it hold all of the kernel's types: 60 MB and a tenth of a second
//! (btfparse 1.3, Linux 6.18), for two dozen offsets. This walks over them once and keeps nothing.
#![forbid(unsafe_code)]

use std::{collections::HashMap, fs, io};

use portwatch_common::KernelOffsets;

/// The type information that kernels show from 5.2 on, if built with it.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the offsets are not known.
#[derive(Debug, thiserror::Error)]
pub(in crate::sensor) enum OffsetsError {
    /// The kernel shows none.
    #[error("{VMLINUX}: {0}")]
    Io(#[from] io::Error),
    /// It is not what the documentation says.
    #[error("{VMLINUX}: malformed at byte {0}")]
    Malformed(usize),
    /// This kernel keeps it elsewhere.
    #[error("{VMLINUX}: has no {0}.{1}")]
    Missing(&'static str, &'static str),
    /// The thread that read it ended early.
    #[error("{VMLINUX}: reading it failed")]
    Failed,
}

/// The offsets of the running kernel.
///
/// # Errors
///
/// [`OffsetsError`]: no exec info is then read.
pub(super) fn of_this_kernel() -> Result<KernelOffsets, OffsetsError> {
    offsets(&fs::read(VMLINUX)?)
}

fn offsets(bytes: &[u8]) -> Result<KernelOffsets, OffsetsError> {
    let types = Types::parse(bytes)?;
    let mut found = [0; KernelOffsets::MEMBERS.len()];
    let members = KernelOffsets::MEMBERS.into_iter().zip(&mut found);
    for (index, ((structure, path), offset)) in members.enumerate() {
        let in_bits = KernelOffsets::IN_BITS.contains(&path);
        match types.bit_offset(structure, path) {
            Some(bits) => *offset = if in_bits { bits } else { bits / 8 },
            None if index < KernelOffsets::OPTIONAL => {}
            None => return Err(OffsetsError::Missing(structure, path)),
        }
    }
    Ok(KernelOffsets::from_offsets(found))
}

const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
/// Typedef, volatile, const, restrict and type tag: another type under another name.
const KINDS_OF_NAME: [u32; 5] = [8, 9, 10, 11, 18];

/// `struct btf_type` and the members behind it.
const TYPE: usize = 12;

struct Types<'a> {
    bytes: &'a [u8],
    strings: usize,
    /// Where each type begins; the first has the number 1.
    starts: Vec<usize>,
    /// The structures that are asked for.
    structures: HashMap<&'static str, u32>,
}

impl<'a> Types<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, OffsetsError> {
        let header = |index: usize| word(bytes, index * 4).map(|word| word as usize);
        let (Some(magic), Some(len)) = (word(bytes, 0), header(1)) else {
            return Err(OffsetsError::Malformed(0));
        };
        if magic & 0xffff != 0xeb9f {
            return Err(OffsetsError::Malformed(0));
        }
        let [Some(begin), Some(size), Some(strings)] = [header(2), header(3), header(4)] else {
            return Err(OffsetsError::Malformed(8));
        };
        let (begin, strings) = (len + begin, len + strings);
        let mut types = Self {
            bytes,
            strings,
            starts: Vec::new(),
            structures: HashMap::new(),
        };
        let mut at = begin;
        while at < begin + size {
            let info = word(bytes, at + 4).ok_or(OffsetsError::Malformed(at))?;
            types.starts.push(at);
            if kind(info) == KIND_STRUCT {
                let name = types.text(word(bytes, at).unwrap_or(0));
                let wanted = KernelOffsets::MEMBERS
                    .iter()
                    .find(|(wanted, _)| wanted.as_bytes() == name);
                if let Some((structure, _)) = wanted {
                    types
                        .structures
                        .insert(structure, types.starts.len() as u32);
                }
            }
            at += TYPE + trailer(info).ok_or(OffsetsError::Malformed(at))?;
        }
        Ok(types)
    }

    /// The bytes of the string at that offset, without its NUL.
    fn text(&self, offset: u32) -> &'a [u8] {
        let rest = self
            .bytes
            .get(self.strings + offset as usize..)
            .unwrap_or(&[]);
        rest.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    /// Offset in bits of `path` (`a.b`) in that structure.
    fn bit_offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structures.get(structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let (bits, member) = self.member(id, name.as_bytes(), 8)?;
            offset += bits;
            id = member;
        }
        Some(offset)
    }

    /// Offset in bits and type of the member, also of one in an unnamed structure or union inside.
    fn member(&self, id: u32, name: &[u8], depth: u32) -> Option<(u32, u32)> {
        let (at, info) = self.resolve(id)?;
        if depth == 0 || !matches!(kind(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        (0..info as usize & 0xffff).find_map(|index| {
            let member = at + TYPE + index * 12;
            let its = |index: usize| word(self.bytes, member + index * 4);
            let (its_name, its_type, mut bits) = (self.text(its(0)?), its(1)?, its(2)?);
            if info >> 31 != 0 {
                // The upper byte is the size of a bit field.
                bits &= 0xff_ffff;
            }
            if its_name == name {
                return Some((bits, its_type));
            }
            if !its_name.is_empty() {
                return None;
            }
            let (inner, member) = self.member(its_type, name, depth - 1)?;
            Some((bits + inner, member))
        })
    }

    /// Where the type begins that this one is another name of, and its info.
    fn resolve(&self, mut id: u32) -> Option<(usize, u32)> {
        for _ in 0..16 {
            let at = *self.starts.get(id.checked_sub(1)? as usize)?;
            let info = word(self.bytes, at + 4)?;
            if !KINDS_OF_NAME.contains(&kind(info)) {
                return Some((at, info));
            }
            id = word(self.bytes, at + 8)?;
        }
        None
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

const fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes behind a `struct btf_type` of that info; None for a kind that is not documented.
fn trailer(info: u32) -> Option<usize> {
    let count = info as usize & 0xffff;
    Some(match kind(info) {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        KIND_ARRAY => 12,
        KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12,
        // Enumeration, function prototype.
        6 | 13 => count * 8,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn this_kernels_offsets_are_found() {
        let bytes = fs::read(VMLINUX).expect("these tests need a kernel with type information");
        let found = offsets(&bytes).unwrap();
        assert_eq!(found.known, 1);
        // `struct path` is two pointers, the mount first.
        assert_eq!(found.file_dentry, found.file_mount + 8);
        assert_eq!(found.mm_arg_end, found.mm_arg_start + 8);
        let of_mount = [found.mount_vfsmount, found.mount_parent, found.mount_point];
        assert_eq!(HashSet::from(of_mount).len(), 3);

        // Optional, but kernels of today have them.
        let optional = [
            found.task_exec_id,
            found.file_inode,
            found.inode_number,
            found.inode_super,
            found.super_device,
            found.task_cred,
            found.cred_user_ns,
            found.user_ns_inum,
            found.task_nsproxy,
            found.nsproxy_mount_ns,
            found.mount_ns_inum,
            found.mount_ns,
            found.sock_prot,
            found.proto_put_port,
            found.sock_ulp_data,
            found.subflow_conn,
            found.sock_is_mptcp,
            found.subflow_join,
            found.task_cgroups,
            found.css_set_cgroup,
            found.cgroup_level,
            found.cgroup_parent,
            found.cgroup_kernfs,
            found.kernfs_name,
            found.sock_flags,
            found.sock_error,
            found.sock_device,
            found.sock_v6only,
        ];
        assert!(!optional.contains(&0), "{optional:?}");

        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.bit_offset("task_struct", "no_such_member"), None);
        assert_eq!(types.bit_offset("sock", "sk_socket.x"), None);
    }

    #[test]
    fn what_is_no_type_information_is_rejected() {
        let cut = [
            0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        for bytes in [&b""[..], b"\x7fELF and so on and so on", &cut] {
            assert!(matches!(offsets(bytes), Err(OffsetsError::Malformed(_))));
        }
    }
}
