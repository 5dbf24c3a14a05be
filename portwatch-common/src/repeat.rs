//! What the two sides say to each other when much happens.

use bytemuck::{Pod, Zeroable};

/// What the agent tells the kernel side while both run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Control {
    /// Not 0 while the agent looks into the ring by itself, every now and then: it need not be woken.
    pub awake: u32,
    /// Which [`Repeat`]s are counted; 0 while none are, and each is reported.
    pub epoch: u32,
    /// The ring is filling from that many bytes on: what repeats itself is then counted.
    pub pressure: u64,
}

/// What is counted as one and the same while the ring is filling; the first of it is reported.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Repeat {
    /// The listener's, on an accept; 0 otherwise.
    pub cookie: u64,
    /// As in [`Report`](super::Report); 0 when it is not known.
    pub netns_cookie: u64,
    /// As in [`Report`](super::Report).
    pub local_address: [u32; 4],
    /// As in [`Report`](super::Report); 0 except on an accept.
    pub remote_address: [u32; 4],
    /// Process id of who took the port; 0 when it is not known.
    pub tgid: u32,
    /// The [`Control::epoch`] in which it was counted.
    pub epoch: u32,
    /// Host byte order.
    pub local_port: u16,
    /// One of [`kind`](super::kind).
    pub kind: u8,
    /// As in [`Report`](super::Report).
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// As in [`Report`](super::Report): which of these the kernel side knows.
    pub known: u8,
    /// Zero.
    pub reserved: u16,
}

const _: () = assert!(size_of::<Repeat>() == 64 && align_of::<Repeat>() == 8);

/// What became of the reports, since the kernel side was loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Tally {
    /// Reports that found the ring full.
    pub lost: u64,
    /// [`Repeat`]s that were begun to be counted.
    pub repeats: u64,
}
