//! Where the running kernel keeps what an image is read from, by its own type information
//! (Documentation/bpf/btf.rst).
//!
//! The crates that read it hold all of the kernel's types: 60 MB and a tenth of a second
//! (btfparse 1.3, Linux 6.18), for two dozen offsets. This walks over them once and keeps nothing.

use std::{collections::HashMap, fs, io};

use portwatch_common::Layout;

/// The type information that kernels show from 5.2 on, if built with it.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// Why the layout is not known.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The kernel shows none.
    #[error("{VMLINUX}: {0}")]
    Io(#[from] io::Error),
    /// It is not what the documentation says.
    #[error("{VMLINUX}: malformed at byte {0}")]
    Malformed(usize),
    /// This kernel keeps it elsewhere.
    #[error("{VMLINUX}: has no {0}.{1}")]
    Missing(&'static str, &'static str),
}

/// The layout of the running kernel.
///
/// # Errors
///
/// [`LayoutError`]: images are then not read.
pub fn of_this_kernel() -> Result<Layout, LayoutError> {
    layout(&fs::read(VMLINUX)?)
}

fn layout(bytes: &[u8]) -> Result<Layout, LayoutError> {
    let types = Types::parse(bytes)?;
    let mut offsets = [0; Layout::MEMBERS.len()];
    let members = Layout::MEMBERS.into_iter().zip(&mut offsets);
    for (index, ((structure, path), offset)) in members.enumerate() {
        match types.offset(structure, path) {
            Some(found) => *offset = found,
            None if index < Layout::OPTIONAL => {}
            None => return Err(LayoutError::Missing(structure, path)),
        }
    }
    Ok(Layout::from_offsets(offsets))
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
    fn parse(bytes: &'a [u8]) -> Result<Self, LayoutError> {
        let header = |index: usize| word(bytes, index * 4).map(|word| word as usize);
        let (Some(magic), Some(len)) = (word(bytes, 0), header(1)) else {
            return Err(LayoutError::Malformed(0));
        };
        if magic & 0xffff != 0xeb9f {
            return Err(LayoutError::Malformed(0));
        }
        let [Some(begin), Some(size), Some(strings)] = [header(2), header(3), header(4)] else {
            return Err(LayoutError::Malformed(8));
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
            let info = word(bytes, at + 4).ok_or(LayoutError::Malformed(at))?;
            types.starts.push(at);
            if kind(info) == KIND_STRUCT {
                let name = types.text(word(bytes, at).unwrap_or(0));
                let wanted = Layout::MEMBERS
                    .iter()
                    .find(|(wanted, _)| wanted.as_bytes() == name);
                if let Some((structure, _)) = wanted {
                    types
                        .structures
                        .insert(structure, types.starts.len() as u32);
                }
            }
            at += TYPE + trailer(info).ok_or(LayoutError::Malformed(at))?;
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

    /// Offset in bytes of `path` (`a.b`) in that structure.
    fn offset(&self, structure: &str, path: &str) -> Option<u32> {
        let mut id = *self.structures.get(structure)?;
        let mut offset = 0;
        for name in path.split('.') {
            let (bits, member) = self.member(id, name.as_bytes(), 8)?;
            offset += bits / 8;
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
    fn this_kernels_layout_is_found() {
        let bytes = fs::read(VMLINUX).expect("these tests need a kernel with type information");
        let layout = layout(&bytes).unwrap();
        assert_eq!(layout.known, 1);
        // `struct path` is two pointers, the mount first.
        assert_eq!(layout.file_dentry, layout.file_mount + 8);
        assert_eq!(layout.mm_arg_end, layout.mm_arg_start + 8);
        let of_mount = [
            layout.mount_vfsmount,
            layout.mount_parent,
            layout.mount_point,
        ];
        assert_eq!(HashSet::from(of_mount).len(), 3);

        let types = Types::parse(&bytes).unwrap();
        assert_eq!(types.offset("task_struct", "no_such_member"), None);
        assert_eq!(types.offset("sock", "sk_socket.x"), None);
    }

    #[test]
    fn what_is_no_type_information_is_refused() {
        let cut = [
            0x9f, 0xeb, 1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ];
        for bytes in [&b""[..], b"\x7fELF and so on and so on", &cut] {
            assert!(matches!(layout(bytes), Err(LayoutError::Malformed(_))));
        }
    }
}
