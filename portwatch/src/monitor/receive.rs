//! When the monitor looks at datagrams: from the bind of a socket on a watched port to its close.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::Monitor;
use crate::{
    model::{Event, EventKind, Severity},
    sensor::Health,
};

/// How often it looks what the program costs, and where it is of no use any more.
const INTERVAL: Duration = Duration::from_secs(1);

impl Monitor {
    /// Notes what an event means for datagrams, before it goes to the pipeline.
    pub(super) fn note_datagrams(&mut self, event: &Event) {
        let Some(cookie) = event.cookie().filter(|_| event.transport.is_datagram()) else {
            return;
        };
        match event.kind {
            EventKind::Bind => {
                // A socket is in the cgroup of the task that created it: most often the binder. A scan
                // shows the right one.
                let cgroup = event.task.as_ref().and_then(|task| task.cgroup_id);
                self.receivers.extend(cgroup.map(|id| (cookie, id)));
            }
            EventKind::Receive => self.sensor.note_receive(event),
            EventKind::Close => {
                self.receivers.retain(|(one, _)| *one != cookie);
                self.summarize_received(cookie);
                self.sensor.stop_receiving(cookie);
            }
            _ => {}
        }
    }

    /// Begins to look at the datagrams of sockets that were bound. Not before their alerts are printed:
    /// it can take longer than anything else here.
    pub(super) fn start_receiving(&mut self) {
        for (cookie, cgroup) in std::mem::take(&mut self.receivers) {
            self.sensor.start_receiving(cookie, cgroup);
        }
        if self.receive_due.is_none() && self.sensor.is_receiving() {
            self.receive_due = Some(Instant::now() + INTERVAL);
        }
    }

    /// Gives the tracker what sockets have received that a scan did not show: it can report their
    /// close.
    pub(super) fn summarize_absent(&mut self, shown: &HashSet<u64>) {
        let absent: Vec<u64> = self.sensor.receiving().collect();
        for cookie in absent.into_iter().filter(|one| !shown.contains(one)) {
            self.summarize_received(cookie);
        }
    }

    fn summarize_received(&mut self, cookie: u64) {
        if let Some(received) = self.sensor.received(cookie) {
            self.pipeline.tracker().set_received(cookie, received);
        }
    }

    /// Looks no longer at datagrams of sockets that are not tracked any more.
    pub(super) fn stop_receiving(&mut self) {
        let tracker = self.pipeline.tracker();
        let receiving = self.sensor.receiving();
        let gone: Vec<u64> = receiving.filter(|one| !tracker.is_open(*one)).collect();
        for cookie in gone {
            self.sensor.stop_receiving(cookie);
        }
    }

    /// Detaches the program where it is of no use, and keeps to its budget.
    pub(super) fn tend_receive(&mut self) {
        let tracker = self.pipeline.tracker();
        for Health { regained, detail } in self.sensor.tend_receive(|one| tracker.is_open(one)) {
            let severity = if regained {
                Severity::Notice
            } else {
                Severity::Warning
            };
            self.report_health(severity, detail);
        }
        let is_receiving = self.sensor.is_receiving();
        self.receive_due = is_receiving.then(|| Instant::now() + INTERVAL);
    }
}
