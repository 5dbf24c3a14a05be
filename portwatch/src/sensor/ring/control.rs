//! The control page that the BPF programs and the agent share, without a system call.

use std::{
    io,
    num::NonZeroUsize,
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

use aya::maps::MapData;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use portwatch_common::Control;

/// The [`Control`] page, mapped.
pub(in crate::sensor) struct Shared(NonNull<Control>);

/// A page at least, as all mappings.
const MAPPED: NonZeroUsize = NonZeroUsize::new(size_of::<Control>()).expect("not zero");

impl Shared {
    pub(in crate::sensor) fn map(control: &MapData) -> io::Result<Self> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, where the kernel has room; nothing else refers to it.
        let at = unsafe { mmap(None, MAPPED, access, MapFlags::MAP_SHARED, control.fd(), 0) }?;
        Ok(Self(at.cast()))
    }

    pub(in crate::sensor) const fn polling(&self) -> &AtomicU32 {
        // SAFETY: the mapping lives as long as this, is aligned to a page, and its words are
        // written and read as wholes on both sides.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).polling) }
    }

    pub(in crate::sensor) const fn epoch(&self) -> &AtomicU32 {
        // SAFETY: as in `polling`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).epoch) }
    }

    pub(in crate::sensor) const fn high_watermark(&self) -> &AtomicU64 {
        // SAFETY: as in `polling`.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.0.as_ptr()).high_watermark) }
    }

    pub(in crate::sensor) const fn sessions(&self) -> &AtomicU32 {
        // SAFETY: as in `polling`.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0.as_ptr()).sessions) }
    }

    pub(in crate::sensor) const fn marked_sockets(&self) -> &AtomicU64 {
        // SAFETY: as in `polling`.
        unsafe { AtomicU64::from_ptr(&raw mut (*self.0.as_ptr()).marked_sockets) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; the references into it end before this.
        let _ = unsafe { munmap(self.0.cast(), MAPPED.get()) };
    }
}
