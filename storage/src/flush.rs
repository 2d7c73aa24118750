//! Threads that make partitions durable: group commit and the flush interval.
//!
//! A partition is in the queue at most once, and flushed by one thread at a time; whatever was appended by the time its
//! flush begins rides along. That is the whole of group commit: while one `fdatasync` runs, everything that arrives
//! waits for the next one together.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use parking_lot::Mutex;

use crate::partition::Partition;

/// Hands partitions to the flush threads.
#[derive(Debug)]
pub(crate) struct Flusher {
    /// Bounded by the number of partitions: each is queued at most once (`FlushProgress`).
    queue: Sender<Arc<Partition>>,
    /// Likewise.
    dirty: Sender<Weak<Partition>>,
    threads: Mutex<Option<Threads>>,
}

#[derive(Debug)]
struct Threads {
    handles: Vec<JoinHandle<()>>,
    stop: Sender<()>,
}

impl Flusher {
    /// Starts `threads` flush threads and one that watches the interval.
    pub(crate) fn start(threads: usize, interval: Duration) -> io::Result<Arc<Self>> {
        let (queue, work) = unbounded::<Arc<Partition>>();
        let (dirty, marked) = unbounded::<Weak<Partition>>();
        let (stop, stopped) = bounded::<()>(0);
        let mut handles = Vec::with_capacity(threads + 1);
        for n in 0..threads {
            let (work, stopped) = (work.clone(), stopped.clone());
            handles.push(spawn(format!("flush-{n}"), move || flush_loop(&work, &stopped))?);
        }
        let queue_again = queue.clone();
        handles.push(spawn("flush-interval".to_owned(), move || {
            interval_loop(&marked, &queue_again, &stopped, interval)
        })?);
        Ok(Arc::new(Self { queue, dirty, threads: Mutex::new(Some(Threads { handles, stop })) }))
    }

    /// Flushes `partition` as soon as a thread is free.
    pub(crate) fn flush_soon(&self, partition: Arc<Partition>) {
        // Fails only after `stop`, when the caller closes the partitions itself.
        let _ = self.queue.send(partition);
    }

    /// Flushes `partition` one interval from now at the latest.
    pub(crate) fn flush_later(&self, partition: &Arc<Partition>) {
        let _ = self.dirty.send(Arc::downgrade(partition));
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

/// Sleeps while nothing is dirty. The first dirty partition starts an interval; at its end all that are dirty go.
fn interval_loop(
    marked: &Receiver<Weak<Partition>>,
    queue: &Sender<Arc<Partition>>,
    stopped: &Receiver<()>,
    interval: Duration,
) {
    loop {
        let first = crossbeam_channel::select! {
            recv(marked) -> first => match first { Ok(first) => first, Err(_) => return },
            recv(stopped) -> _ => return,
        };
        if !matches!(stopped.recv_timeout(interval), Err(RecvTimeoutError::Timeout)) {
            return;
        }
        for partition in std::iter::once(first).chain(marked.try_iter()) {
            if let Some(partition) = partition.upgrade() {
                partition.interval_over(|partition| {
                    let _ = queue.send(partition);
                });
            }
        }
    }
}
