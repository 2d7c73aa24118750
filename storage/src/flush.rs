//! Threads that make partitions durable: group commit and the flush interval.
//!
//! A partition is in the queue at most once, and flushed by one thread at a time; whatever was appended by the time its
//! flush begins rides along. That is the whole of group commit: while one `fdatasync` runs, everything that arrives
//! waits for the next one together.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, after, bounded, never, unbounded};
use parking_lot::Mutex;

use crate::partition::Partition;
use crate::reserve::Reserve;

/// Hands partitions to the flush threads.
#[derive(Debug)]
pub(crate) struct Flusher {
    /// Bounded by the number of partitions: each is queued at most once (`FlushProgress`).
    queue: Sender<Arc<Partition>>,
    /// Bounded likewise, and by one [`Mark::DiskFull`] each time the disk fills up.
    marks: Sender<Mark>,
    threads: Mutex<Option<Threads>>,
}

/// What the interval thread is told.
#[derive(Debug)]
enum Mark {
    /// Something was appended.
    Dirty(Weak<Partition>),
    /// An append found the disk full.
    DiskFull,
}

/// While the disk is full, it is looked at again so often at the most.
const FULL_DISK_RETRY_MIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Threads {
    handles: Vec<JoinHandle<()>>,
    stop: Sender<()>,
}

impl Flusher {
    /// Starts `threads` flush threads and one that watches the interval, and the reserve while the disk is full.
    pub(crate) fn start(threads: usize, interval: Duration, reserve: Arc<Reserve>) -> io::Result<Arc<Self>> {
        let (queue, work) = unbounded::<Arc<Partition>>();
        let (marks, marked) = unbounded::<Mark>();
        let (stop, stopped) = bounded::<()>(0);
        let mut handles = Vec::with_capacity(threads + 1);
        for n in 0..threads {
            let (work, stopped) = (work.clone(), stopped.clone());
            handles.push(spawn(format!("flush-{n}"), move || flush_loop(&work, &stopped))?);
        }
        let queue_again = queue.clone();
        handles.push(spawn("flush-interval".to_owned(), move || {
            interval_loop(&marked, &queue_again, &stopped, interval, &reserve)
        })?);
        Ok(Arc::new(Self { queue, marks, threads: Mutex::new(Some(Threads { handles, stop })) }))
    }

    /// Flushes `partition` as soon as a thread is free.
    pub(crate) fn flush_soon(&self, partition: Arc<Partition>) {
        // Fails only after `stop`, when the caller closes the partitions itself.
        let _ = self.queue.send(partition);
    }

    /// Flushes `partition` one interval from now at the latest.
    pub(crate) fn flush_later(&self, partition: &Arc<Partition>) {
        let _ = self.marks.send(Mark::Dirty(Arc::downgrade(partition)));
    }

    /// The disk is full: looks again and again whether it has room.
    pub(crate) fn watch_disk(&self) {
        let _ = self.marks.send(Mark::DiskFull);
    }

    /// Ends the threads; flushes under way finish first.
    pub(crate) fn stop(&self) {
        let Some(threads) = self.threads.lock().take() else { return };
        drop(threads.stop);
        let this_thread = std::thread::current().id();
        // The last partition of a store that was dropped may go, and end the threads, on a flush thread.
        for handle in threads.handles.into_iter().filter(|handle| handle.thread().id() != this_thread) {
            if handle.join().is_err() {
                tracing::error!("a flush thread had panicked");
            }
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.stop();
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name).spawn(body)
}

fn flush_loop(work: &Receiver<Arc<Partition>>, stopped: &Receiver<()>) {
    loop {
        crossbeam_channel::select_biased! {
            recv(work) -> partition => match partition {
                Ok(partition) => partition.flush_from_queue(),
                Err(_) => return,
            },
            recv(stopped) -> _ => return,
        }
    }
}

/// Sleeps while nothing is dirty and the disk is not full. The first mark starts an interval; at its end all that are dirty
/// go, and a full disk is looked at again.
fn interval_loop(
    marked: &Receiver<Mark>,
    queue: &Sender<Arc<Partition>>,
    stopped: &Receiver<()>,
    interval: Duration,
    reserve: &Reserve,
) {
    loop {
        let retry = if reserve.is_full() { after(interval.max(FULL_DISK_RETRY_MIN)) } else { never() };
        let first = crossbeam_channel::select! {
            recv(marked) -> first => match first { Ok(first) => Some(first), Err(_) => return },
            recv(stopped) -> _ => return,
            recv(retry) -> _ => None,
        };
        if first.is_some() && !matches!(stopped.recv_timeout(interval), Err(RecvTimeoutError::Timeout)) {
            return;
        }
        for mark in first.into_iter().chain(marked.try_iter()) {
            let Mark::Dirty(partition) = mark else { continue };
            if let Some(partition) = partition.upgrade() {
                partition.interval_over(|partition| {
                    let _ = queue.send(partition);
                });
            }
        }
        if reserve.is_full() {
            reserve.refill();
        }
    }
}
