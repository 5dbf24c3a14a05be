//! `cgroup_skb/ingress`: a packet for a socket of the cgroup (`sk_filter_trim_cap` in
//! net/core/filter.c, called by `udp_queue_rcv_one_skb` in net/ipv4/udp.c, Linux 5.10 to 6.18). That
//! is after reassembly, and once for each socket that gets a copy. It runs for each packet of every
//! transport, so the way out for one to another port must be short.
//!
//! A datagram whose checksum the kernel looks at only when it is read is seen here even if it is
//! wrong, as is one that the full buffer of the socket will not take.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_sock},
    btf_maps::{HashMap, LruHashMap, PerCpuArray},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_socket_cookie, bpf_sk_fullsock, bpf_skb_cgroup_id},
    },
    macros::{btf_map, cgroup_skb},
    programs::SkBuffContext,
};
use portwatch_common::{
    MAX_ADDRESSES, MAX_PEERS, MAX_PREFIXES, MAX_RECEIVERS, PROTOCOL_UDP, PROTOCOL_UDPLITE, Peer,
    PeerKey, Receiver, SYSTEM_PORTS, counted,
};

use crate::{
    counted::release_events,
    field::add,
    marks::mark_of,
    packet::{self, Packet},
    repeats,
    report::{Key, Local, Socket, report_receive},
    watched::is_watched,
};

#[btf_map]
static RECEIVERS: HashMap<
    u64,
    Receiver,
    { MAX_RECEIVERS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
static PEERS: HashMap<PeerKey, Peer, { MAX_PEERS as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
static UNWATCHED_PACKETS: PerCpuArray<u64, 1> = PerCpuArray::new();

#[btf_map]
static BUSY_CGROUPS: LruHashMap<u64, u64, 256> = LruHashMap::new();

/// Lets the packet pass.
const ALLOW: i32 = 1;

/// Of so many packets for other sockets, one is charged to its socket's cgroup. A power of two.
const SAMPLE: u64 = 256;

#[cgroup_skb(ingress)]
pub fn receive(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    // The kernel calls these programs with a full socket only (`__cgroup_bpf_run_filter_skb` in
    // kernel/bpf/cgroup.c): its port can be read without asking for it.
    if field!(skb, local_port) >= SYSTEM_PORTS {
        unwatched(skb);
        return ALLOW;
    }
    system_port(&ctx);
    ALLOW
}

#[inline(always)]
fn unwatched(skb: *mut __sk_buff) {
    let Some(count) = UNWATCHED_PACKETS.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's slot. What preempts this run can make it miss one: it is an estimate.
    let now = unsafe {
        let now = count.read_volatile() + 1;
        count.write_volatile(now);
        now
    };
    if now % SAMPLE == 0 {
        sample(skb);
    }
}

#[inline(always)]
fn sample(skb: *mut __sk_buff) {
    // SAFETY: the helper takes this program type's context.
    let cgroup = unsafe { bpf_skb_cgroup_id(skb) };
    if let Some(count) = BUSY_CGROUPS.get_ptr_mut(cgroup) {
        // SAFETY: a map's value, valid for the whole run.
        unsafe { add(count, SAMPLE) };
    } else {
        let _ = BUSY_CGROUPS.insert(cgroup, SAMPLE, 0);
    }
}

#[inline(always)]
fn system_port(ctx: &SkBuffContext) {
    let skb = ctx.skb.skb;
    let sk = field!(skb, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    // SAFETY: the non-null `sk` of the context.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return;
    }
    let protocol = field!(sk, protocol) as u8;
    let port = field!(skb, local_port);
    let is_datagram = protocol == PROTOCOL_UDP || protocol == PROTOCOL_UDPLITE;
    if !is_datagram || !is_watched(port, protocol) {
        unwatched(skb);
        return;
    }
    received(ctx, sk, protocol, port as u16);
}

#[inline(always)]
fn received(ctx: &SkBuffContext, sk: *mut bpf_sock, protocol: u8, port: u16) {
    let skb = ctx.skb.skb;
    let mut packet = Packet::EMPTY;
    if !packet::read(skb, &mut packet) {
        return;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let Some(receiver) = receiver(cookie) else {
        return;
    };
    let (datagrams, bytes) = (packet.datagrams, packet.bytes);
    // SAFETY: a map's value, valid for the whole run.
    unsafe {
        add(&raw mut (*receiver).datagrams, datagrams);
        add(&raw mut (*receiver).bytes, bytes);
    }
    let address = PeerKey {
        cookie,
        address: packet.source,
        family: packet.family.into(),
        prefix: 0,
    };
    if count(&address, &packet) {
        return;
    }
    let is_exact = field!(receiver, addresses) < MAX_ADDRESSES;
    let mut key = address;
    if !is_exact {
        key = address.prefix();
        if count(&key, &packet) {
            return;
        }
    }
    // The first from another host is reported whatever else there is.
    let is_first = !packet.is_from_host && field!(receiver, is_reached) == 0;
    let has_room = is_exact || field!(receiver, prefixes) < MAX_PREFIXES;
    let may_report = has_room && repeats::epoch() == 0;
    // Before it is reported, so that only one CPU does.
    let is_added = (may_report || is_first) && has_room && insert(&key, &packet);
    // Another CPU can have added it meanwhile, and reports it.
    if !is_added && count(&key, &packet) {
        return;
    }
    if !is_added && !is_first {
        // SAFETY: as above.
        unsafe { add(&raw mut (*receiver).others, datagrams) };
        return;
    }
    // What is kept of the socket is reported before this.
    // SAFETY: what `bpf_sk_fullsock` returned, not null.
    if let Some(mark) = unsafe { mark_of(sk.cast()) } {
        let bits = field!(mark.as_ptr(), counted);
        if bits & !counted::COUNTED != 0 {
            release_events(cookie, bits);
        }
    }
    let socket = socket(cookie, &packet, protocol, port);
    if !report_receive(&socket) {
        if is_added {
            let _ = PEERS.remove(key);
        }
        // SAFETY: as above.
        unsafe { add(&raw mut (*receiver).others, datagrams) };
        return;
    }
    // SAFETY: as above.
    unsafe {
        if !packet.is_from_host {
            (&raw mut (*receiver).is_reached).write_volatile(1);
        }
        if !is_added {
            add(&raw mut (*receiver).others, datagrams);
        } else if is_exact {
            add(&raw mut (*receiver).addresses, 1);
        } else {
            add(&raw mut (*receiver).prefixes, 1);
        }
    }
}

#[inline(always)]
fn receiver(cookie: u64) -> Option<*mut Receiver> {
    if let Some(receiver) = RECEIVERS.get_ptr_mut(cookie) {
        return Some(receiver);
    }
    let new = Receiver {
        datagrams: 0,
        bytes: 0,
        addresses: 0,
        prefixes: 0,
        others: 0,
        is_reached: 0,
    };
    let _ = RECEIVERS.insert(cookie, new, BPF_NOEXIST.into());
    RECEIVERS.get_ptr_mut(cookie)
}

/// Counts the packet for a peer; false where there is no such key.
#[inline(always)]
fn count(key: &PeerKey, packet: &Packet) -> bool {
    let Some(peer) = PEERS.get_ptr_mut(key) else {
        return false;
    };
    // SAFETY: a map's value, valid for the whole run.
    unsafe {
        add(&raw mut (*peer).datagrams, packet.datagrams);
        add(&raw mut (*peer).bytes, packet.bytes);
        (&raw mut (*peer).last_ns).write_volatile(bpf_ktime_get_ns());
    }
    true
}

#[inline(always)]
fn insert(key: &PeerKey, packet: &Packet) -> bool {
    // SAFETY: takes no argument.
    let now = unsafe { bpf_ktime_get_ns() };
    let peer = Peer {
        datagrams: packet.datagrams,
        bytes: packet.bytes,
        first_ns: now,
        last_ns: now,
    };
    PEERS.insert(key, peer, BPF_NOEXIST.into()).is_ok()
}

#[inline(always)]
fn socket(cookie: u64, packet: &Packet, protocol: u8, port: u16) -> Socket {
    let local = Local {
        family: packet.family,
        protocol,
        address: packet.destination,
        port,
    };
    Socket {
        remote: Some((packet.source, packet.port)),
        is_from_host: packet.is_from_host,
        ..Socket::new(Key::Cookie(cookie), local)
    }
}
