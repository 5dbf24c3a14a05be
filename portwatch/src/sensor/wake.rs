//! When to look into the ring. A report that comes alone wakes the agent; when many come, waking it
//! for each would be most of what they cost, so it looks by itself for a while.

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

use super::control::Shared;

/// How often the agent looks while many come: well under the millisecond within which it tells.
const PERIOD: Duration = Duration::from_micros(200);

/// Wake-ups that follow each other this closely are many: it takes a few in a row.
const CLOSE: Duration = Duration::from_micros(100);
const MANY: u32 = 8;

/// Looks that found nothing, after which the agent waits to be woken again.
const IN_VAIN: u32 = 10;

/// The ring and when to look into it.
pub(super) struct Wake {
    ring: AsyncFd<RingBuf<MapData>>,
    timer: AsyncFd<Timer>,
    control: Rc<Shared>,
    state: State,
}

enum State {
    /// The kernel side wakes.
    Asleep { woken: Instant, close: u32 },
    /// The timer does.
    Awake { in_vain: u32 },
}

impl Wake {
    /// To be called inside a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>, control: Rc<Shared>) -> io::Result<Self> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::all())?;
        // SAFETY: `RingBuf` owns the descriptor of its map, returns no other, and keeps it open
        // until it is dropped, which it is after the registration.
        let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
        // SAFETY: as for the ring.
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?;
        let state = State::Asleep {
            woken: Instant::now(),
            close: 0,
        };
        Ok(Self {
            ring,
            timer,
            control,
            state,
        })
    }

    pub(super) fn ring(&mut self) -> &mut RingBuf<MapData> {
        self.ring.get_mut()
    }

    /// Notes that the ring held something.
    pub(super) const fn found(&mut self) {
        if let State::Awake { in_vain } = &mut self.state {
            *in_vain = 0;
        }
    }

    /// Waits until the ring may hold records. May be cancelled.
    pub(super) async fn readable(&mut self) -> io::Result<()> {
        match &mut self.state {
            State::Asleep { woken, close } => {
                // Who is woken reads on until the ring is empty; what comes after that makes a new
                // edge.
                self.ring.readable_mut().await?.clear_ready();
                let now = Instant::now();
                let is_close = now.duration_since(*woken) < CLOSE;
                *close = if is_close { *close + 1 } else { 0 };
                *woken = now;
                if *close >= MANY {
                    self.stay_awake()?;
                }
            }
            State::Awake { in_vain } if *in_vain >= IN_VAIN => self.sleep()?,
            State::Awake { in_vain } => {
                let mut ready = self.timer.readable_mut().await?;
                // Not yet, after all: the next look says so.
                let _ = ready.get_inner().0.wait();
                ready.clear_ready();
                *in_vain += 1;
            }
        }
        Ok(())
    }

    fn stay_awake(&mut self) -> io::Result<()> {
        let every = Expiration::Interval(TimeSpec::from_duration(PERIOD));
        let timer = &self.timer.get_ref().0;
        timer.set(every, TimerSetTimeFlags::empty())?;
        self.control.awake().store(1, Ordering::Relaxed);
        self.state = State::Awake { in_vain: 0 };
        Ok(())
    }

    /// Asks to be woken again. What is in the ring by now is to be taken once more.
    fn sleep(&mut self) -> io::Result<()> {
        self.timer.get_ref().0.unset()?;
        self.control.awake().store(0, Ordering::Relaxed);
        // The kernel side looks at it after it has handed its record over, with a barrier between
        // (the xchg of bpf_ringbuf_commit in kernel/bpf/ringbuf.c).
        fence(Ordering::SeqCst);
        self.state = State::Asleep {
            woken: Instant::now(),
            close: 0,
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
