//! Models of the protocols between the BPF programs and the agent, run through every interleaving by
//! loom, with the decisions that both sides use. Each broken variant must be found, which shows that
//! the model can fail.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};

use loom::model::Builder;

/// Runs a model through its interleavings.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    // Every broken variant fails with two switches at most; all interleavings would take minutes.
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Whether some interleaving of a broken variant fails.
fn fails(model: impl Fn() + Sync + Send + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(model))).is_err()
}

/// The wake-up: `submit` in portwatch-ebpf/src/ring.rs, `Wake` in portwatch/src/sensor/ring/wake.rs.
mod wake {
    use loom::{
        sync::{
            Arc,
            atomic::{
                AtomicU32,
                Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
                fence,
            },
        },
        thread,
    };
    use portwatch_common::protocol::must_wake;

    use super::{check, fails};

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Variant {
        Correct,
        /// The program reads `polling` only before the record is there.
        CheckBeforeCommit,
        /// The agent does not read the ring again after it has stored `polling`.
        NoLastRead,
        /// The agent has no barrier between that store and that read.
        NoBarrier,
    }

    struct Shared {
        polling: AtomicU32,
        /// Records that are committed.
        committed: AtomicU32,
        /// Records that the agent has taken, as the kernel sees it.
        consumed: AtomicU32,
        /// The ring's descriptor is readable.
        woken: AtomicU32,
    }

    impl Shared {
        /// Under the lock of the descriptor's wait queue: each wake-up sees those before it.
        fn wake(&self) {
            self.woken.swap(1, AcqRel);
        }

        /// `bpf_ringbuf_commit` in kernel/bpf/ringbuf.c: an xchg, which is a full barrier, and then
        /// a wake-up if the agent has taken all records before this one.
        fn commit(&self, may_wake: bool) {
            let position = self.committed.fetch_add(1, AcqRel);
            fence(SeqCst);
            if may_wake && self.consumed.load(Acquire) == position {
                self.wake();
            }
        }

        fn submit(&self, variant: Variant) {
            if must_wake(self.polling.load(Relaxed)) {
                self.commit(true);
                return;
            }
            self.commit(false);
            // The nudge, a record of its own, wakes in any case.
            if variant != Variant::CheckBeforeCommit && must_wake(self.polling.load(Relaxed)) {
                self.committed.fetch_add(1, AcqRel);
                self.wake();
            }
        }

        /// Reads the ring until it is empty.
        fn take(&self) {
            loop {
                let taken = self.consumed.load(Relaxed);
                let committed = self.committed.load(Acquire);
                if committed == taken {
                    return;
                }
                self.consumed.store(committed, Release);
                // aya stores the position and reads the next header sequentially consistent.
                fence(SeqCst);
            }
        }
    }

    /// An agent that polls and then blocks, beside programs that hand over one record each.
    fn run(variant: Variant, programs: usize) {
        let shared = Arc::new(Shared {
            polling: AtomicU32::new(1),
            committed: AtomicU32::new(0),
            consumed: AtomicU32::new(0),
            woken: AtomicU32::new(0),
        });
        let threads: Vec<_> = (0..programs)
            .map(|_| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || shared.submit(variant))
            })
            .collect();
        shared.polling.store(0, Relaxed);
        if variant != Variant::NoBarrier {
            fence(SeqCst);
        }
        if variant != Variant::NoLastRead {
            shared.take();
        }
        // Woken once: tokio clears its readiness, and the agent reads until the ring is empty.
        if shared.woken.swap(0, AcqRel) == 1 {
            shared.take();
        }
        for thread in threads {
            thread.join().unwrap();
        }
        let is_empty = shared.committed.load(Acquire) == shared.consumed.load(Relaxed);
        assert!(
            is_empty || shared.woken.load(Acquire) == 1,
            "the agent sleeps beside a record"
        );
    }

    #[test]
    fn no_record_is_left_unread() {
        for programs in [1, 2] {
            check(move || run(Variant::Correct, programs));
        }
    }

    #[test]
    fn broken_wake_ups_are_found() {
        for variant in [
            Variant::CheckBeforeCommit,
            Variant::NoLastRead,
            Variant::NoBarrier,
        ] {
            assert!(fails(move || run(variant, 1)), "{}", variant as u8);
        }
    }
}

/// Counting: `Repeats` in portwatch/src/sensor/maps/repeats.rs, portwatch-ebpf/src/repeats.rs.
mod epochs {
    use loom::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::Relaxed},
        },
        thread,
    };
    use portwatch_common::protocol::{is_over, may_count};

    use super::{check, fails};

    const EPOCHS: usize = 6;

    #[derive(Default)]
    struct Shared {
        epoch: AtomicU32,
        /// By epoch, how often it was counted.
        counts: [AtomicU32; EPOCHS],
        reported: AtomicU32,
    }

    impl Shared {
        /// A run of a program: what it found in the map it may count long after.
        fn run(&self) {
            let epoch = self.epoch.load(Relaxed);
            if may_count(epoch, 1, 1) {
                self.counts[epoch as usize].fetch_add(1, Relaxed);
            } else {
                self.reported.fetch_add(1, Relaxed);
            }
        }

        /// The agent takes the counters that are over, each once, and begins the next epoch.
        fn take(&self, taken: &mut [Option<u32>; EPOCHS], is_over: fn(u32, u32) -> bool) {
            let current = self.epoch.load(Relaxed);
            for (epoch, taken) in taken.iter_mut().enumerate() {
                if taken.is_none() && is_over(epoch as u32, current) {
                    *taken = Some(self.counts[epoch].load(Relaxed));
                }
            }
            self.epoch.store(current + 1, Relaxed);
        }
    }

    /// Programs that run beside the agent; a run does not outlast the time between two calls of
    /// `take`.
    fn run(is_over: fn(u32, u32) -> bool) {
        let shared = Arc::new(Shared::default());
        let start = || {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.run())
        };
        let mut taken = [None; EPOCHS];
        // Counting begins beside it.
        let first = start();
        shared.epoch.store(1, Relaxed);
        shared.take(&mut taken, is_over);
        let second = start();
        first.join().unwrap();
        shared.take(&mut taken, is_over);
        second.join().unwrap();
        // The programs are detached.
        shared.take(&mut taken, is_over);
        shared.take(&mut taken, is_over);
        let counted: u32 = taken.iter().flatten().sum();
        assert_eq!(counted + shared.reported.load(Relaxed), 2, "{taken:?}");
    }

    #[test]
    fn no_count_is_lost_across_epochs() {
        check(|| run(is_over));
    }

    #[test]
    fn taking_the_epoch_in_force_is_found() {
        assert!(fails(|| run(|epoch, current| epoch <= current)));
    }
}

/// The table of counted sockets: portwatch-ebpf/src/counted.rs, and `CountedSockets` in
/// portwatch/src/sensor/maps/counted.rs.
mod counted {
    use loom::{
        sync::{
            Arc, Mutex,
            atomic::{
                AtomicU32,
                Ordering::{AcqRel, Relaxed},
            },
        },
        thread,
    };
    use portwatch_common::protocol::{LASTING_NS, has_lasted, is_reported_at_close};

    use super::{check, fails};

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Variant {
        Correct,
        /// The agent reports what it has read, whether or not it could remove it.
        AgentIgnoresRemoval,
        /// The program hands over what it has read, whether or not it could remove it.
        ProgramIgnoresRemoval,
        /// The agent reads the ring between removing and reporting.
        ReportsLate,
        /// The program counts the close although the agent has reported the bind.
        CountsCloseOfReported,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Report {
        Bind,
        Close,
    }

    struct Shared {
        /// 1 while the bind, which happened at [`BOUND`], is in the table.
        entry: AtomicU32,
        ring: Mutex<Vec<Report>>,
        binds_counted: AtomicU32,
        closes_counted: AtomicU32,
    }

    const BOUND: u64 = 1;

    impl Shared {
        /// What the map guarantees: of two that remove an entry, one succeeds.
        fn remove(&self) -> bool {
            self.entry.swap(0, AcqRel) == 1
        }

        /// A program: the socket closes.
        fn close(&self, now: u64, variant: Variant) {
            let since = (self.entry.load(Relaxed) == 1).then_some(BOUND);
            let mut is_reported = is_reported_at_close(since, now);
            if is_reported {
                if since.is_some() && (self.remove() || variant == Variant::ProgramIgnoresRemoval) {
                    self.ring.lock().unwrap().push(Report::Bind);
                }
            } else {
                self.binds_counted.fetch_add(1, Relaxed);
                if !self.remove() {
                    self.binds_counted.fetch_sub(1, Relaxed);
                    is_reported = variant != Variant::CountsCloseOfReported;
                }
            }
            if is_reported {
                self.ring.lock().unwrap().push(Report::Close);
            } else {
                self.closes_counted.fetch_add(1, Relaxed);
            }
        }

        /// The agent: one pass through the table, and one through the ring.
        fn turn(&self, now: u64, variant: Variant, pushed: &mut Vec<Report>) {
            let is_there = self.entry.load(Relaxed) == 1;
            let is_taken = is_there
                && has_lasted(BOUND, now)
                && (self.remove() || variant == Variant::AgentIgnoresRemoval);
            let read = || std::mem::take(&mut *self.ring.lock().unwrap());
            if variant == Variant::ReportsLate {
                pushed.extend(read());
            }
            if is_taken {
                pushed.push(Report::Bind);
            }
            pushed.extend(read());
        }
    }

    /// A socket that is in the table closes at one time, while the agent reads at another.
    fn run(closes: u64, reads: u64, variant: Variant) {
        let shared = Arc::new(Shared {
            entry: AtomicU32::new(1),
            ring: Mutex::new(Vec::new()),
            binds_counted: AtomicU32::new(0),
            closes_counted: AtomicU32::new(0),
        });
        let program = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.close(closes, variant))
        };
        let mut pushed = Vec::new();
        shared.turn(reads, variant, &mut pushed);
        program.join().unwrap();
        shared.turn(reads, variant, &mut pushed);
        let binds = pushed.iter().filter(|one| **one == Report::Bind).count();
        let counted = shared.binds_counted.load(Relaxed) as usize;
        assert_eq!(binds + counted, 1, "{pushed:?}");
        if binds == 1 {
            assert_eq!(pushed, [Report::Bind, Report::Close]);
        } else {
            assert_eq!(shared.closes_counted.load(Relaxed), 1, "{pushed:?}");
            assert!(!has_lasted(BOUND, closes), "what lasted was only counted");
        }
    }

    const YOUNG: u64 = BOUND + LASTING_NS - 1;
    const OLD: u64 = BOUND + LASTING_NS;

    /// When it closes and when the agent reads: that can be after the close began.
    const TIMES: [(u64, u64); 4] = [(YOUNG, YOUNG), (YOUNG, OLD), (OLD, YOUNG), (OLD, OLD)];

    #[test]
    fn each_event_is_reported_or_counted_once() {
        for (closes, reads) in TIMES {
            check(move || run(closes, reads, Variant::Correct));
        }
    }

    #[test]
    fn broken_tables_are_found() {
        for variant in [
            Variant::AgentIgnoresRemoval,
            Variant::ProgramIgnoresRemoval,
            Variant::ReportsLate,
            Variant::CountsCloseOfReported,
        ] {
            let is_found = |(closes, reads)| fails(move || run(closes, reads, variant));
            assert!(TIMES.into_iter().any(is_found), "{}", variant as u8);
        }
    }
}
