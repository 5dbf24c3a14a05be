//! What datagram sockets have received.

use super::{Host, Tracker};
use crate::model::{Received, SocketKey};

impl<H: Host> Tracker<H> {
    /// Notes what a socket has received so far.
    pub fn set_received(&mut self, cookie: u64, received: Received) {
        if let Some(socket) = self.table.get_mut(SocketKey::Cookie(cookie)) {
            socket.received = Some(received);
        }
    }

    /// Whether the socket is tracked, and open as far as is known.
    pub fn is_open(&self, cookie: u64) -> bool {
        let key = SocketKey::Cookie(cookie);
        self.table.known(key).is_some() && !self.table.has_closed(key)
    }
}
