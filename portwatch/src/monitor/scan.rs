//! Joins a complete scan: marks what is older than the BPF programs, and gives the rest to the
//! pipeline.

use std::{io, os::fd::AsFd as _};

use super::{Monitor, now, scheduler::Urgency};
use crate::{
    inventory::{self, Scan},
    pipeline::Input,
    sensor::ExistingSocket,
    tracker::Host as _,
};

impl Monitor {
    /// Queues the alerts for what a scan shows and events did not.
    pub(super) fn join(&mut self, scan: io::Result<Scan>) {
        let scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                self.warn(format!("the existing sockets could not be read: {error}"));
                self.pipeline.push(Input::ScanFailed, now());
                return;
            }
        };
        let tracker = self.pipeline.tracker();
        for (inode, cookie) in scan.netns_cookies() {
            tracker.host().cache_netns(cookie, inode);
        }
        if self.sensor.is_counting() {
            tracker.overrun();
        }
        let sensor = &mut self.sensor;
        // A reload can have changed the ports since the scan began.
        let scope = self.scheduler.scope();
        let (found, coverage) = scan.findings(|entry, event| {
            if !scope.watches(event.port_key()) {
                return None;
            }
            if tracker.is_to_mark(event, entry.netns)
                && let Some(socket) = inventory::duplicate(entry)
                && let Some(cookie) = entry.cookie
            {
                let existing = ExistingSocket {
                    cookie,
                    transport: entry.transport,
                    local: entry.local,
                };
                return Some(sensor.mark_existing(socket.as_fd(), &existing));
            }
            // Its close is reported, or has been: nothing else shows that it is gone.
            if tracker.is_marked(event, entry.netns) {
                return Some(false);
            }
            // Gone, if it had holders and none has it any more.
            let mut holders = entry.holders.iter();
            let exists = entry.holders.is_empty()
                || holders.any(|holder| inventory::is_held_by(entry, *holder));
            // Its report was lost, or it was bound while a program was detached or before its port
            // was watched: whether it has a mark shows when it gets one.
            exists.then_some(false)
        });
        self.pipeline.push(Input::Scan(found, coverage), now());
        if self.pipeline.take_needs_scan() {
            self.scheduler.request(Urgency::Recheck);
        }
        if self.pipeline.tracker().has_to_mark() {
            self.scheduler.request(Urgency::Unmarked);
        }
    }
}
