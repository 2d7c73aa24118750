//! Threads that make partitions durable: group commit and the flush interval.
//!
//! A partition is in the queue at most once, and flushed by one thread at a time; whatever was appended by the time its
//! flush begins rides along. That is the whole of group commit: while one `fdatasync` runs, everything that arrives
//! waits for the next one together.

use std::sync::atomic::{AtomicUsize, Ordering};
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
    crew: Arc<Crew>,
    /// Partitions that something was appended to. Bounded as the queue is.
    dirty: Sender<Weak<Partition>>,
    /// Dropped to end the threads.
    stop: Mutex<Option<Sender<()>>>,
}

/// While the disk is full and nothing is appended, it is looked at again so often at the most; otherwise once a flush
/// interval.
const FULL_DISK_RETRY_MIN: Duration = Duration::from_secs(1);

/// The flush threads: as many as were ever wanted at once. Disks sync many files at a time much faster than one after
/// the other, but most logs have few partitions that are busy, and a thread costs start-up time and memory.
#[derive(Debug)]
struct Crew {
    /// Bounded by the number of partitions: each is queued at most once (`FlushProgress`). What is queued after the end
    /// stays, and a partition keeps the store, its lock and this crew: so the queue keeps none.
    queue: Sender<Weak<Partition>>,
    work: Receiver<Weak<Partition>>,
    stopped: Receiver<()>,
    threads_max: usize,
    /// Threads that wait for work.
    idle: AtomicUsize,
    /// Those that flush, and the interval thread; `None` when they were told to end.
    handles: Mutex<Option<Vec<JoinHandle<()>>>>,
}

impl Crew {
    fn push(self: &Arc<Self>, partition: &Arc<Partition>) {
        // Does nothing after the end, when the caller closes the partitions itself.
        let _ = self.queue.send(Arc::downgrade(partition));
        // Only a hint: a thread that has just taken its work or is about to wait is counted wrongly for a moment, and
        // what is queued then is taken by the next that is free.
        if self.work.len() > self.idle.load(Ordering::Relaxed) {
            self.grow();
        }
    }

    fn grow(self: &Arc<Self>) {
        let mut handles = self.handles.lock();
        let Some(handles) = handles.as_mut() else { return };
        // One of them is the interval thread.
        let flushing = handles.len().saturating_sub(1);
        if flushing >= self.threads_max {
            return;
        }
        let crew = Arc::clone(self);
        match spawn(format!("flush-{flushing}"), move || crew.work_off()) {
            Ok(handle) => handles.push(handle),
            Err(cause) => tracing::warn!(%cause, threads = flushing, "no further flush thread"),
        }
    }

    fn work_off(&self) {
        loop {
            self.idle.fetch_add(1, Ordering::Relaxed);
            let work = crossbeam_channel::select_biased! {
                recv(self.work) -> partition => partition.ok(),
                recv(self.stopped) -> _ => None,
            };
            self.idle.fetch_sub(1, Ordering::Relaxed);
            let Some(partition) = work else { return };
            if let Some(partition) = partition.upgrade() {
                partition.flush_from_queue();
            }
        }
    }
}

impl Flusher {
    /// Starts the first of at most `threads_max` flush threads, and one that watches the interval, and the reserve
    /// while the disk is full.
    pub(crate) fn start(threads_max: usize, interval: Duration, reserve: Arc<Reserve>) -> io::Result<Arc<Self>> {
        let (queue, work) = unbounded();
        let (dirty, marked) = unbounded();
        let (stop, stopped) = bounded::<()>(0);
        let idle = AtomicUsize::new(0);
        let crew = Arc::new(Crew { queue, work, stopped, threads_max, idle, handles: Mutex::default() });
        let watching = Arc::clone(&crew);
        let watch = move || interval_loop(&marked, &watching, interval, &reserve);
        *crew.handles.lock() = Some(vec![spawn("flush-interval".to_owned(), watch)?]);
        // So that there is one whatever happens later.
        crew.grow();
        if crew.handles.lock().as_ref().is_none_or(|handles| handles.len() < 2) {
            return Err(io::Error::other("no thread could be started to flush with"));
        }
        Ok(Arc::new(Self { crew, dirty, stop: Mutex::new(Some(stop)) }))
    }

    /// Flushes `partition` as soon as a thread is free.
    pub(crate) fn flush_soon(&self, partition: &Arc<Partition>) {
        self.crew.push(partition);
    }

    /// Flushes `partition` one interval from now at the latest.
    pub(crate) fn flush_later(&self, partition: &Arc<Partition>) {
        let _ = self.dirty.send(Arc::downgrade(partition));
    }

    /// Ends the threads; what is queued is flushed first.
    pub(crate) fn stop(&self) {
        drop(self.stop.lock().take());
        let Some(handles) = self.crew.handles.lock().take() else { return };
        let this_thread = thread::current().id();
        // The last partition of a store that was dropped may go, and end the threads, on a flush thread.
        for handle in handles.into_iter().filter(|handle| handle.thread().id() != this_thread) {
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

/// Sleeps while nothing is dirty and the disk is not full. The first mark starts an interval; at its end all that are
/// dirty go, and a full disk is looked at again.
fn interval_loop(marked: &Receiver<Weak<Partition>>, crew: &Arc<Crew>, interval: Duration, reserve: &Reserve) {
    loop {
        let retry = if reserve.is_full() { after(interval.max(FULL_DISK_RETRY_MIN)) } else { never() };
        let first = crossbeam_channel::select! {
            recv(marked) -> first => match first { Ok(first) => Some(first), Err(_) => return },
            recv(crew.stopped) -> _ => return,
            // The wait begins now.
            recv(reserve.filled_up()) -> _ => continue,
            recv(retry) -> _ => None,
        };
        if first.is_some() && !matches!(crew.stopped.recv_timeout(interval), Err(RecvTimeoutError::Timeout)) {
            return;
        }
        for partition in first.into_iter().chain(marked.try_iter()) {
            if let Some(partition) = partition.upgrade() {
                partition.interval_over(|partition| crew.push(partition));
            }
        }
        if reserve.is_full() {
            reserve.refill();
        }
    }
}
