//! When to read the ring. A report that comes alone wakes the agent; when many come, waking it for
//! each would be most of their cost, so it polls for a while.
//!
//! No record is left unread: the agent stores `polling = 0`, then a full barrier, then reads the ring
//! once more; a program commits its record, then a full barrier (the xchg of `bpf_ringbuf_commit` in
//! kernel/bpf/ringbuf.c, 5.10 to 6.18), then reads `polling`. Whichever barrier comes first, the other
//! side sees the store before it: the agent reads the record, or the program wakes the agent. The model
//! in portwatch-common/tests/protocol.rs runs through the interleavings.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    rc::Rc,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use aya::maps::{MapData, RingBuf};
use nix::sys::{
    time::TimeSpec,
    timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::{Shared, positions::Positions};

/// How often the agent polls: well under the millisecond within which it reports.
const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// This many wake-ups in a row, each within the interval of the one before, make the agent poll.
const BUSY_WAKEUPS: u32 = 8;
const BUSY_INTERVAL: Duration = Duration::from_micros(100);

/// Polls in a row that found nothing, after which the agent blocks again.
const MAX_EMPTY_POLLS: u32 = 10;

/// The ring and when to read it.
pub(in crate::sensor) struct Wake {
    ring: AsyncFd<RingBuf<MapData>>,
    timer: AsyncFd<Timer>,
    control: Rc<Shared>,
    positions: Positions,
    state: State,
}

enum State {
    /// The BPF programs wake the agent.
    Blocked { woken: Instant, busy: u32 },
    /// The timer does.
    Polling { empty: u32 },
}

impl Wake {
    /// To be called inside a tokio runtime.
    pub(in crate::sensor) fn new(ring: RingBuf<MapData>, control: Rc<Shared>) -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::all())?;
        let positions = Positions::map(&ring)?;
        // SAFETY: `RingBuf` owns the descriptor of its map, returns no other, and keeps it open
        // until it is dropped, which it is after the registration.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
        // SAFETY: as for the ring.
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?;
        let state = State::Blocked {
            woken: Instant::now(),
            busy: 0,
        };
        Ok(Self {
            ring,
            timer,
            control,
            positions,
            state,
        })
    }

    pub(in crate::sensor) fn ring(&mut self) -> &mut RingBuf<MapData> {
        self.ring.get_mut()
    }

    /// The ring's positions.
    pub(in crate::sensor) const fn positions(&mut self) -> &mut Positions {
        &mut self.positions
    }

    /// Puts the word back by which the BPF programs know whether to wake the agent. Whether it was
    /// changed by another hand.
    pub(in crate::sensor) fn restore(&self) -> bool {
        let expected = matches!(self.state, State::Polling { .. }).into();
        let found = self.control.polling().swap(expected, Ordering::Relaxed);
        // As in `block`: the caller reads the ring once more.
        fence(Ordering::SeqCst);
        found != expected
    }

    /// Notes that the ring held something.
    pub(in crate::sensor) const fn found(&mut self) {
        if let State::Polling { empty } = &mut self.state {
            *empty = 0;
        }
    }

    /// Waits until the ring may hold records. May be cancelled.
    pub(in crate::sensor) async fn readable(&mut self) -> io::Result<()> {
        match &mut self.state {
            State::Blocked { woken, busy } => {
                // Who is woken reads on until the ring is empty; what comes after that makes a new
                // edge.
                self.ring.readable_mut().await?.clear_ready();
                let now = Instant::now();
                let is_busy = now.duration_since(*woken) < BUSY_INTERVAL;
                *busy = if is_busy { *busy + 1 } else { 0 };
                *woken = now;
                if *busy >= BUSY_WAKEUPS {
                    self.start_polling()?;
                }
            }
            State::Polling { empty } if *empty >= MAX_EMPTY_POLLS => self.block()?,
            State::Polling { empty } => {
                let mut ready = self.timer.readable_mut().await?;
                // A spurious wake-up: then this poll is one too many.
                let _ = ready.get_inner().0.wait();
                ready.clear_ready();
                *empty += 1;
            }
        }
        Ok(())
    }

    fn start_polling(&mut self) -> io::Result<()> {
        let every = Expiration::Interval(TimeSpec::from_duration(POLL_INTERVAL));
        let timer = &self.timer.get_ref().0;
        timer.set(every, TimerSetTimeFlags::empty())?;
        self.control.polling().store(1, Ordering::Relaxed);
        self.state = State::Polling { empty: 0 };
        Ok(())
    }

    /// Has itself woken again. The caller must read the ring once more.
    fn block(&mut self) -> io::Result<()> {
        self.timer.get_ref().0.unset()?;
        self.control.polling().store(0, Ordering::Relaxed);
        // See the head of this file.
        fence(Ordering::SeqCst);
        self.state = State::Blocked {
            woken: Instant::now(),
            busy: 0,
        };
        Ok(())
    }
}

/// A timer as tokio wants it.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
