//! Changes of several steps (a topic made, a trigger applied): each is done to its end, whoever asked for it.

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

/// The changes under way.
#[derive(Debug)]
pub(super) struct Changes {
    /// Where they run: connections have runtimes of their own, which end with the listener. `None` where the broker was
    /// started outside of any; changes run where they are asked for then.
    runtime: Option<Handle>,
    tasks: TaskTracker,
}

impl Changes {
    /// They run on the runtime of whoever calls this.
    pub(super) fn here() -> Self {
        Self { runtime: Handle::try_current().ok(), tasks: TaskTracker::new() }
    }

    /// Does `work` to its end also when this future is dropped, or the runtime that it runs on.
    pub(super) async fn to_the_end<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        let doing = match &self.runtime {
            Some(runtime) => self.tasks.spawn_on(work, runtime),
            None => self.tasks.spawn(work),
        };
        match doing.await {
            Ok(done) => done,
            Err(failed) => match failed.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is going down; so is whoever asked.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Waits until none is under way.
    pub(super) async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_change_whose_client_and_runtime_are_gone_is_done_to_its_end() {
        let changes = Arc::new(Changes::here());
        let (begun, has_begun) = oneshot::channel();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let done = Arc::new(AtomicBool::new(false));
        let asked = (Arc::clone(&changes), Arc::clone(&done));
        let connection = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (changes, done) = asked;
            runtime.spawn(async move {
                let change = async move {
                    begun.send(()).unwrap();
                    may_go_on.await.unwrap();
                    done.store(true, Ordering::SeqCst);
                };
                changes.to_the_end(change).await;
            });
            runtime.block_on(has_begun).unwrap();
        });
        // It waits for this runtime, on which the change runs.
        tokio::task::spawn_blocking(move || connection.join().unwrap()).await.unwrap();
        assert!(!done.load(Ordering::SeqCst), "it waits");
        go_on.send(()).unwrap();
        changes.ended().await;
        assert!(done.load(Ordering::SeqCst), "it was dropped with the connection");
    }

    #[tokio::test]
    #[should_panic(expected = "no good")]
    async fn a_panic_is_that_of_whoever_asked() {
        Changes::here().to_the_end(async { panic!("no good") }).await;
    }
}
