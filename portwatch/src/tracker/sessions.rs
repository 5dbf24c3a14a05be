//! The ends of connections. A connection can outlive the listener that accepted it, and end after the
//! close(2) of its own socket: who served it is kept for that.
#![forbid(unsafe_code)]

use super::{Host, Stage, TrackedEvent, TrackedSocket, Tracker};
use crate::{
    model::{ConnectOutcome, Event, EventKind, Origin, SocketKey},
    util::{Bounded, ByteBounded},
};

/// Listeners that are known to have accepted, some 50 bytes each.
const ACCEPTED: usize = 65_536;

/// Bytes of the closed sockets whose connections can be open, with what is known of their processes:
/// some 1,000.
const OUTLIVED: usize = 1 << 20;

pub(super) struct Sessions {
    accepted: Bounded<SocketKey, ()>,
    outlived: ByteBounded<SocketKey, TrackedSocket>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            accepted: Bounded::new(ACCEPTED),
            outlived: ByteBounded::new(OUTLIVED),
        }
    }
}

impl Sessions {
    pub(super) fn accepted(&mut self, key: SocketKey) {
        self.accepted.put(key, ());
    }

    /// Notes that a socket closed.
    pub(super) fn closed(
        &mut self,
        key: SocketKey,
        socket: &TrackedSocket,
        outcome: Option<ConnectOutcome>,
    ) {
        let has_accepted = self.accepted.pop(&key).is_some();
        let is_connected =
            socket.stage == Stage::Connected && outcome != Some(ConnectOutcome::Failed);
        if has_accepted || is_connected {
            self.outlived.put(key, socket.clone(), socket.bytes());
        }
    }
}

impl<H: Host> Tracker<H> {
    /// Adds the tracked event of a connection's end, or of the sums of several.
    pub(super) fn end_session(&mut self, event: &Event, out: &mut Vec<TrackedEvent>) {
        let key = event.key.or_else(|| self.untracked_listener(event));
        let known = key.and_then(|key| match self.table.known(key) {
            Some(known) => Some(known.clone()),
            None => self.sessions.outlived.get(&key).cloned(),
        });
        let mut socket = self.update(event, known, true);
        if socket.process.is_none()
            && key.is_none()
            && let Some(server) = self.server_of(event)
        {
            socket.netns = socket.netns.or(Some(server.netns));
            socket.process = server.found().holders.first().cloned();
            socket.set_holders(server.found());
        }
        out.push(self.tracked_event(event, &socket, key, Origin::Live));
    }

    /// Notes the accepts and closes that matter for the sessions.
    pub(super) fn note_for_sessions(
        &mut self,
        key: SocketKey,
        socket: &TrackedSocket,
        event: &Event,
    ) {
        match event.kind {
            EventKind::Accept => self.sessions.accepted(key),
            EventKind::Close => self.sessions.closed(key, socket, event.outcome),
            _ => {}
        }
    }
}
