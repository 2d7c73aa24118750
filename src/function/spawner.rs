//! The one thread that starts processes.
//!
//! An instance asks the kernel to kill it when its parent dies, and the kernel takes the parent *thread* for the
//! parent. A worker of the runtime may end at any time, so all processes are started by a thread that lives as long as
//! its
//! [`Spawner`]: with it go all instances, even those that nobody stopped.

use std::io;
use std::sync::mpsc;
use std::thread;

use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// How many starts may wait for the thread.
const STARTS_WAITING_MAX: usize = 1024;

struct Start {
    command: Command,
    runtime: Handle,
    answer: oneshot::Sender<io::Result<Child>>,
}

/// The handle of the thread; the thread ends with it.
#[derive(Debug)]
pub(super) struct Spawner {
    starts: mpsc::SyncSender<Start>,
}

impl Spawner {
    /// Starts the thread.
    pub(super) fn new() -> io::Result<Self> {
        let (starts, orders) = mpsc::sync_channel(STARTS_WAITING_MAX);
        thread::Builder::new().name("tripline-spawn".to_owned()).spawn(move || run(&orders))?;
        Ok(Self { starts })
    }

    /// Starts `command` on the thread; the child's descriptors are served by the caller's runtime.
    pub(super) async fn spawn(&self, command: Command) -> io::Result<Child> {
        let (answer, started) = oneshot::channel();
        let start = Start { command, runtime: Handle::current(), answer };
        self.starts.try_send(start).map_err(|_| io::Error::other("too many processes are waiting to be started"))?;
        started.await.unwrap_or_else(|_| Err(io::Error::other("the thread that starts processes is gone")))
    }
}

fn run(starts: &mpsc::Receiver<Start>) {
    while let Ok(Start { mut command, runtime, answer }) = starts.recv() {
        let child = {
            let _served_by = runtime.enter();
            command.spawn()
        };
        // Given up meanwhile: the child is dropped, which kills it (`kill_on_drop`).
        let _ = answer.send(child);
    }
}
