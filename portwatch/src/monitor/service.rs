//! Messages to the service manager (sd_notify(3)): armed, reloading, stopping, and at intervals that the
//! ring is read. They are sent by a thread of their own, so that a manager that does not take them holds
//! nothing up.
#![forbid(unsafe_code)]

use std::{
    env,
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
    thread,
    time::{Duration, Instant},
};

use sd_notify::{NotifyState, notify, watchdog_enabled};

/// Messages that wait; what comes on top is dropped.
const WAITING: usize = 16;

/// Bytes of the thread's stack.
const STACK: usize = 1 << 17;

enum Message {
    /// And what to show of it.
    Ready(String),
    Reloading,
    Stopping,
    Alive,
}

/// The service manager, where one started this process and waits for messages.
pub(super) struct Service {
    sender: Option<SyncSender<Message>>,
    /// The time between two messages that the ring is read, and when the next is due.
    watchdog: Option<(Duration, Instant)>,
}

impl Service {
    /// Without a manager that waits for messages it does nothing.
    pub(super) fn start() -> Self {
        let mut service = Self {
            sender: None,
            watchdog: None,
        };
        if env::var_os("NOTIFY_SOCKET").is_none() {
            return service;
        }
        let (sender, messages) = sync_channel(WAITING);
        let send = move || {
            for message in messages {
                // Who does not listen misses nothing.
                let _ = match &message {
                    Message::Ready(status) => {
                        notify(&[NotifyState::Ready, NotifyState::Status(status)])
                    }
                    Message::Reloading => NotifyState::monotonic_usec_now()
                        .and_then(|now| notify(&[NotifyState::Reloading, now])),
                    Message::Stopping => notify(&[NotifyState::Stopping]),
                    Message::Alive => notify(&[NotifyState::Watchdog]),
                };
            }
        };
        let thread = thread::Builder::new()
            .name("service".into())
            .stack_size(STACK);
        if thread.spawn(send).is_ok() {
            service.sender = Some(sender);
            // Half of what the manager allows, as sd_watchdog_enabled(3) says.
            let interval = watchdog_enabled().map(|allowed| allowed / 2);
            service.watchdog = interval.map(|interval| (interval, Instant::now()));
        }
        service
    }

    /// The monitor is armed, or has reloaded; `status` is for people.
    pub(super) fn ready(&mut self, status: &str) {
        self.send(Message::Ready(status.to_owned()));
    }

    /// It reads its configuration again.
    pub(super) fn reloading(&mut self) {
        self.send(Message::Reloading);
    }

    /// It is about to end.
    pub(super) fn stopping(&mut self) {
        self.send(Message::Stopping);
    }

    /// When [`alive`](Self::alive) is to be called at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        self.watchdog.map(|(_, due)| due)
    }

    /// To be called in each turn of the loop that reads the ring.
    pub(super) fn alive(&mut self) {
        let Some((interval, due)) = &mut self.watchdog else {
            return;
        };
        let now = Instant::now();
        if *due <= now {
            *due = now + *interval;
            self.send(Message::Alive);
        }
    }

    fn send(&mut self, message: Message) {
        let sent = self.sender.as_ref().map(|sender| sender.try_send(message));
        if let Some(Err(TrySendError::Disconnected(_))) = sent {
            self.sender = None;
        }
    }
}
