//! Joins a complete scan: marks what is older than the BPF programs, and gives the rest to the
//! pipeline.

use std::{collections::HashSet, io, os::fd::AsFd as _};

use anyhow::Result;

use super::{Monitor, now, scheduler::Urgency};
use crate::{
    inventory::{self, Scan},
    pipeline::Input,
    sensor::ExistingSocket,
    tracker::{Host as _, has_cookies},
};

impl Monitor {
    /// Queues the alerts for what a scan shows and events did not.
    pub(super) fn join(&mut self, scan: io::Result<Scan>) -> Result<()> {
        let scan = match scan {
            Ok(scan) => scan,
            Err(error) => {
                self.warn(format!("the existing sockets could not be read: {error}"));
                self.pipeline.push(Input::ScanFailed, now());
                return Ok(());
            }
        };
        // Before the sockets that the scan shows are looked at: what is still open then, and is neither
        // in the table nor tracked, was not kept there.
        self.report_losses()?;
        let mut counted = HashSet::new();
        if self.counted_due.is_some() {
            self.take_all_counted_sockets()?;
            counted = self.sensor.counted_sockets()?;
        }
        let tracker = self.pipeline.tracker();
        for (inode, cookie) in scan.netns_cookies() {
            tracker.host().cache_netns(cookie, inode);
        }
        let is_counting = self.counts_due.is_some() || self.counted_due.is_some();
        let is_exact = is_counting && !self.is_inexact;
        if self.is_inexact {
            tracker.overrun();
        }
        let (sensor, has_skipped) = (&mut self.sensor, &mut self.has_skipped);
        // A reload can have changed the ports since the scan began.
        let scope = self.scheduler.scope();
        let canary = self.canary.netns();
        let (found, coverage) = scan.findings(|entry, event| {
            if Some(entry.netns) == canary || !scope.watches(event.port_key()) {
                return None;
            }
            if is_exact && !tracker.knows(event, entry.netns) {
                if entry.cookie.is_some_and(|cookie| counted.contains(&cookie)) {
                    return None;
                }
                // It can have closed meanwhile, and been counted.
                if entry.holders.is_empty() && has_cookies(entry.transport) {
                    *has_skipped = true;
                    return None;
                }
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
        Ok(())
    }
}
