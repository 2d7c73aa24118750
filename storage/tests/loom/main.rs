//! What `progress.rs` promises, in every order in which the steps of the threads can be seen: loom runs each model
//! again and again, with each choice of who goes next and of what a load may still read.
//!
//! The file itself is compiled here, on loom's atomics. Around it stands as little of a partition as its contract
//! names: bytes, an append lock, a flush lock, a queue.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../src/progress.rs"]
mod progress;
mod sync;

use std::collections::VecDeque;

use loom::cell::UnsafeCell;
use loom::future::block_on;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::sync::{Arc, Condvar, Mutex, RwLock};
use loom::thread;
use progress::{FlushProgress, Published};

/// Runs `model` in all orders with at most `switches` switches away from a thread that could go on; `None` for all
/// orders.
fn explore(switches: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = switches;
    builder.check(model);
}

// ---- publish and read ----------------------------------------------------------------------------------------------

/// A segment for one batch of one record. loom fails the model when its byte is read while it may be written.
struct Segment {
    base: u64,
    byte: UnsafeCell<u8>,
    published: Published,
}

impl Segment {
    fn new(base: u64) -> Arc<Self> {
        Arc::new(Self { base, byte: UnsafeCell::new(0), published: Published::new(0) })
    }
}

/// A log whose segments hold one record: the second append rolls.
struct Log {
    active: RwLock<Arc<Segment>>,
    tail: Published,
}

impl Log {
    fn append(&self, segment: &Segment) {
        segment.byte.with_mut(|byte| {
            #[expect(unsafe_code, reason = "loom demands it, and shows that nobody else is there")]
            // SAFETY: loom hands out a valid pointer and fails the model if anybody else may use it meanwhile.
            unsafe {
                *byte = 7;
            }
        });
        segment.published.move_to(1);
        self.tail.move_to(segment.base + 1);
    }

    /// As `Partition::place` and `read_hot`: the tail first, then the segment that is active.
    fn read(&self) {
        let tail = self.tail.get();
        if tail == 0 {
            return;
        }
        let active = Arc::clone(&self.active.read().unwrap());
        let published = active.published.get();
        assert!(active.base + published >= tail, "the tail {tail} lies behind what is published");
        if published > 0 {
            let byte = active.byte.with(|byte| {
                #[expect(unsafe_code, reason = "loom demands it, and shows that nobody writes")]
                // SAFETY: as above.
                unsafe {
                    *byte
                }
            });
            assert_eq!(byte, 7, "a published byte");
        }
    }
}

#[test]
fn readers_see_whole_what_is_below_the_tail_also_across_a_roll() {
    explore(None, || {
        let first = Segment::new(0);
        let log = Arc::new(Log { active: RwLock::new(Arc::clone(&first)), tail: Published::new(0) });
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let log = Arc::clone(&log);
                thread::spawn(move || log.read())
            })
            .collect();
        log.append(&first);
        let second = Segment::new(1);
        *log.active.write().unwrap() = Arc::clone(&second);
        log.append(&second);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}

// ---- flush and wait ------------------------------------------------------------------------------------------------

/// A partition as far as its flushes go.
struct Partition {
    /// The append lock, and what a flush reads under it.
    writer: Mutex<u64>,
    /// The flush lock.
    flush: Mutex<()>,
    /// What a disk would have.
    durable: Mutex<u64>,
    tail: Published,
    flushing: FlushProgress,
    stopped: AtomicBool,
    fails: bool,
    queue: Mutex<Queue>,
    queue_moved: Condvar,
}

#[derive(Default)]
struct Queue {
    turns: VecDeque<Turn>,
    closed: bool,
}

#[derive(Clone, Copy)]
enum Turn {
    Flush,
    Interval,
}

impl Partition {
    fn new(fails: bool) -> Arc<Self> {
        Arc::new(Self {
            writer: Mutex::new(0),
            flush: Mutex::new(()),
            durable: Mutex::new(0),
            tail: Published::new(0),
            flushing: FlushProgress::new(0),
            stopped: AtomicBool::new(false),
            fails,
            queue: Mutex::default(),
            queue_moved: Condvar::new(),
        })
    }

    fn append(&self) -> u64 {
        let mut writer = self.writer.lock().unwrap();
        *writer += 1;
        self.tail.move_to(*writer);
        let next = *writer;
        drop(writer);
        if self.flushing.ask_interval() {
            self.push(Turn::Interval);
        }
        next
    }

    fn push(&self, turn: Turn) {
        let mut queue = self.queue.lock().unwrap();
        queue.turns.push_back(turn);
        assert!(queue.turns.len() <= 2, "each kind of turn at most once");
        drop(queue);
        self.queue_moved.notify_one();
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.stopped.load(Ordering::Acquire) { Err("stopped") } else { Ok(()) }
    }

    fn wait(&self, offset: u64) -> Result<(), &'static str> {
        let ask = || {
            if self.flushing.ask() {
                self.push(Turn::Flush);
            }
        };
        block_on(self.flushing.wait(offset, ask, || self.check()))
    }

    /// As `Partition::flush`.
    fn flush(&self) {
        let _flush = self.flush.lock().unwrap();
        self.flush_in_turn();
    }

    fn flush_in_turn(&self) {
        if self.check().is_err() || self.flushing.flushed() == self.tail.get() {
            return;
        }
        let tail = *self.writer.lock().unwrap();
        if self.fails {
            self.stopped.store(true, Ordering::Release);
            self.flushing.notify();
            return;
        }
        *self.durable.lock().unwrap() = tail;
        self.flushing.reach(tail);
    }

    /// A flush thread and the one that watches the interval, in one, until the queue is closed and empty.
    fn serve(&self) {
        loop {
            let mut queue = self.queue.lock().unwrap();
            while queue.turns.is_empty() && !queue.closed {
                queue = self.queue_moved.wait(queue).unwrap();
            }
            let Some(turn) = queue.turns.pop_front() else { return };
            drop(queue);
            match turn {
                Turn::Flush => {
                    let _flush = self.flush.lock().unwrap();
                    self.flushing.begin();
                    self.flush_in_turn();
                }
                Turn::Interval if self.flushing.interval_over(|| self.tail.get()) => self.push(Turn::Flush),
                Turn::Interval => {}
            }
        }
    }

    fn close_queue(&self) {
        self.queue.lock().unwrap().closed = true;
        self.queue_moved.notify_all();
    }
}

fn start<T: 'static>(
    partition: &Arc<Partition>,
    body: impl FnOnce(&Partition) -> T + 'static,
) -> thread::JoinHandle<T> {
    let partition = Arc::clone(partition);
    thread::spawn(move || body(&partition))
}

/// Nobody hangs, which loom would notice, and nobody is answered before the disk has his record.
#[test]
fn whoever_waits_for_a_flush_is_answered_when_his_record_is_durable() {
    explore(Some(2), || {
        let partition = Partition::new(false);
        let append_and_wait = |partition: &Partition| {
            let next = partition.append();
            partition.wait(next).unwrap();
            assert!(*partition.durable.lock().unwrap() >= next, "answered before it was durable");
        };
        let server = start(&partition, Partition::serve);
        let other = start(&partition, append_and_wait);
        append_and_wait(&partition);
        other.join().unwrap();
        partition.close_queue();
        server.join().unwrap();
    });
}

/// What nobody waits for is flushed by the interval, also what is appended just when it ends with nothing to do.
#[test]
fn the_interval_leaves_nothing_behind() {
    explore(None, || {
        let partition = Partition::new(false);
        let server = start(&partition, Partition::serve);
        partition.append();
        partition.flush();
        partition.append();
        partition.close_queue();
        server.join().unwrap();
        assert_eq!(partition.flushing.flushed(), 2, "flushed, the tail is 2");
    });
}

/// A flush that somebody does on a thread of his own takes nobody's turn away.
#[test]
fn a_flush_from_elsewhere_leaves_no_waiter_behind() {
    explore(Some(2), || {
        let partition = Partition::new(false);
        let server = start(&partition, Partition::serve);
        let elsewhere = start(&partition, Partition::flush);
        let next = partition.append();
        partition.wait(next).unwrap();
        elsewhere.join().unwrap();
        partition.close_queue();
        server.join().unwrap();
    });
}

#[test]
fn a_failed_flush_is_told_to_all_that_wait() {
    explore(Some(2), || {
        let partition = Partition::new(true);
        let append_and_wait = |partition: &Partition| {
            let next = partition.append();
            assert_eq!(partition.wait(next), Err("stopped"));
        };
        let server = start(&partition, Partition::serve);
        let other = start(&partition, append_and_wait);
        append_and_wait(&partition);
        other.join().unwrap();
        partition.close_queue();
        server.join().unwrap();
    });
}
