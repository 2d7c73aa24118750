//! Threads that each serve their own connections: no request changes threads on its way.
//!
//! A runtime whose workers share all tasks wakes a second worker whenever the first has something to do, in case there
//! is more: on a connection with one request at a time that is two system calls and a wake-up across cores for each.
//! Here a connection stays where it began. Connections are dealt to the thread that has the fewest. The price: a
//! request that takes long on its own (a large batch to be checked) holds up the other connections of its thread, and
//! only those.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

/// Cold reads of one thread's connections that block at the same time.
const BLOCKING_THREADS_MAX: usize = 64;

/// The threads. They end when this is dropped, and what still runs on them with them.
#[derive(Debug)]
pub(super) struct IoThreads {
    threads: Vec<IoThread>,
}

#[derive(Debug)]
struct IoThread {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl IoThreads {
    /// Starts `count` threads. None at all is fine: connections are served by the caller's runtime then.
    pub(super) fn start(count: usize) -> io::Result<Self> {
        Ok(Self { threads: (0..count).map(IoThread::start).collect::<io::Result<_>>()? })
    }

    /// No threads at all.
    pub(super) const fn none() -> Self {
        Self { threads: Vec::new() }
    }

    /// Runs `connection` on the thread that has the fewest.
    pub(super) fn spawn(&self, tasks: &TaskTracker, connection: impl Future<Output = ()> + Send + 'static) {
        let Some(thread) = self.threads.iter().min_by_key(|thread| thread.connections.load(Ordering::Relaxed)) else {
            tasks.spawn(connection);
            return;
        };
        let counted = Counted::new(Arc::clone(&thread.connections));
        let connection = async move {
            let _counted = counted;
            connection.await;
        };
        tasks.spawn_on(connection, &thread.runtime);
    }
}

impl IoThread {
    fn start(number: usize) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (built, handle) = std::sync::mpsc::sync_channel(1);
        // Built where it runs: a runtime must not be dropped by a thread of another one.
        let run = move || {
            let runtime = match runtime(number) {
                Ok(runtime) => runtime,
                Err(error) => return drop(built.send(Err(error))),
            };
            if built.send(Ok(runtime.handle().clone())).is_err() {
                return;
            }
            // Ends when the sender is dropped.
            let _ = runtime.block_on(stopped);
            // A cold read that hangs on a dying disk is not waited for.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(format!("kafka-{number}")).spawn(run)?;
        let runtime = handle.recv().map_err(|_| io::Error::other("the thread ended before it began"))??;
        Ok(Self { runtime, connections: Arc::default(), stop: Some(stop), thread: Some(thread) })
    }
}

fn runtime(number: usize) -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .thread_name(format!("kafka-{number}-cold"))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
}

impl Drop for IoThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("a thread that serves connections had panicked");
        }
    }
}

/// A connection, counted as long as it is there.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(connections: Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(connections)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn connections_go_to_the_thread_with_the_fewest_and_stay_there() {
        let threads = IoThreads::start(3).unwrap();
        let tasks = TaskTracker::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (release, hold) = tokio::sync::watch::channel(false);
        for _ in 0..6 {
            let (seen, mut hold) = (Arc::clone(&seen), hold.clone());
            threads.spawn(&tasks, async move {
                let before = std::thread::current().id();
                hold.wait_for(|&released| released).await.unwrap();
                assert_eq!(std::thread::current().id(), before);
                seen.lock().unwrap().push(format!("{before:?}"));
            });
        }
        let counts: Vec<usize> =
            threads.threads.iter().map(|thread| thread.connections.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [2, 2, 2]);
        release.send(true).unwrap();
        tasks.close();
        tasks.wait().await;
        let mut seen = seen.lock().unwrap().clone();
        assert_eq!(seen.len(), 6);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3);
    }

    #[tokio::test]
    async fn without_threads_the_callers_runtime_serves() {
        let tasks = TaskTracker::new();
        let here = std::thread::current().id();
        IoThreads::start(0).unwrap().spawn(&tasks, async move { assert_eq!(std::thread::current().id(), here) });
        tasks.close();
        tasks.wait().await;
    }
}
