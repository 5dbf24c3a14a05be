//! The two positions of the ring, mapped. The agent writes the consumer's and the kernel reads it; so
//! can anyone with the privilege to open the map, and then reports are dropped as if the ring were
//! full, or the agent is not woken for them (`__bpf_ringbuf_reserve` and `bpf_ringbuf_commit` in
//! kernel/bpf/ringbuf.c, Linux 6.18).

use std::{
    io,
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicUsize, Ordering},
};

use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    unistd::{SysconfVar, sysconf},
};

/// The ring's positions, and what they were when the agent had last read the ring.
pub(in crate::sensor) struct Positions {
    consumer: Page,
    producer: Page,
    consumed: usize,
    produced: usize,
}

impl Positions {
    pub(in crate::sensor) fn map(ring: impl AsFd) -> io::Result<Self> {
        let page = sysconf(SysconfVar::PAGE_SIZE)?.unwrap_or(4096) as usize;
        let page = NonZeroUsize::new(page).ok_or(io::ErrorKind::InvalidData)?;
        let write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mut positions = Self {
            consumer: Page::map(&ring, page, write, 0)?,
            // The kernel lets nobody write to this page.
            producer: Page::map(&ring, page, ProtFlags::PROT_READ, page.get())?,
            consumed: 0,
            produced: 0,
        };
        positions.note();
        Ok(positions)
    }

    /// To be called when the ring was read.
    pub(in crate::sensor) fn note(&mut self) {
        self.consumed = self.consumer.position().load(Ordering::Relaxed);
        self.produced = self.produced();
    }

    /// Puts the consumer's position back if it is not what the agent wrote. To be called before the
    /// ring is read, which moves it. Whether either was changed by another hand.
    pub(in crate::sensor) fn restore(&self) -> bool {
        let consumer = self.consumer.position();
        let is_changed = consumer.load(Ordering::Relaxed) != self.consumed;
        if is_changed {
            consumer.store(self.consumed, Ordering::SeqCst);
        }
        // The producer's only grows.
        is_changed || self.produced().wrapping_sub(self.produced) > usize::MAX / 2
    }

    /// The producer's position: where the next record will begin.
    pub(in crate::sensor) fn produced(&self) -> usize {
        self.producer.position().load(Ordering::Acquire)
    }

    /// Whether the agent has read all that was in the ring when the producer's position was
    /// `produced`.
    pub(in crate::sensor) const fn is_read_up_to(&self, produced: usize) -> bool {
        self.consumed == produced
    }
}

/// A mapped page of the ring, which begins with a position.
struct Page(NonNull<AtomicUsize>, NonZeroUsize);

impl Page {
    fn map(
        ring: impl AsFd,
        size: NonZeroUsize,
        access: ProtFlags,
        offset: usize,
    ) -> io::Result<Self> {
        let shared = MapFlags::MAP_SHARED;
        // SAFETY: a new mapping, where the kernel has room; nothing else refers to it.
        let at = unsafe { mmap(None, size, access, shared, ring, offset as i64) }?;
        Ok(Self(at.cast(), size))
    }

    const fn position(&self) -> &AtomicUsize {
        // SAFETY: the mapping lives as long as this and is aligned to a page; both sides read and
        // write the position as a whole. The one that may only be read is never stored to.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; the references into it end before this.
        let _ = unsafe { munmap(self.0.cast(), self.1.get()) };
    }
}
