//! Accepts connections on a socket that the caller has bound.

use std::io::ErrorKind::{ConnectionAborted, ConnectionReset, NotConnected};
use std::net::TcpStream as StdTcpStream;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::connection::{self, ConnectionConfig, FrameBudget, Shared};
use super::handler::{ConnectionContext, Handler};
use super::io_threads::IoThreads;
use super::metrics::KafkaMetrics;

/// After a failed accept (no descriptors left, as a rule), so long passes before the next.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Limits of the listener and of its connections.
#[derive(Clone, Copy, Debug)]
pub struct ListenerConfig {
    /// Most connections at a time; more wait in the system's queue. Default 10,000.
    pub connections_max: usize,
    /// Memory for frames longer than 64 KiB over all connections. Half of it is for frames up to 4 MiB, so that
    /// ordinary requests never wait for long ones; either half has room for one frame at least. As much again is there
    /// for what requests other than Produce are decoded to, where they have more than 4 KiB. Default 256 MiB.
    pub frame_bytes_total_max: usize,
    /// How long a stop waits for requests that were begun. Default 10 s.
    pub shutdown_timeout: Duration,
    /// Threads that serve connections, each its own; 0 leaves them to the runtime that serves the listener. Default 0;
    /// the server has one for each core.
    pub io_threads: usize,
    /// Limits of each connection.
    pub connection: ConnectionConfig,
}

impl Default for ListenerConfig {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            frame_bytes_total_max: 256 * 1024 * 1024,
            shutdown_timeout: Duration::from_secs(10),
            io_threads: 0,
            connection: ConnectionConfig::default(),
        }
    }
}

/// Serves until `shutdown` is cancelled, then stops accepting, lets begun requests finish within
/// [`ListenerConfig::shutdown_timeout`], and closes what is left.
pub async fn serve(
    listener: TcpListener,
    handler: Handler,
    config: ListenerConfig,
    metrics: Arc<KafkaMetrics>,
    shutdown: CancellationToken,
) {
    let kill = CancellationToken::new();
    let shared = Arc::new(Shared {
        handler,
        config: config.connection,
        metrics,
        frame_budget: FrameBudget::new(config.frame_bytes_total_max, config.connection.frames),
        drain: shutdown.clone(),
        kill: kill.clone(),
    });
    let tasks = TaskTracker::new();
    let threads = IoThreads::start(config.io_threads).unwrap_or_else(|error| {
        warn!(%error, "no threads for connections; they share the runtime");
        IoThreads::none()
    });
    tokio::select! {
        () = accept_all(&listener, &shared, &tasks, &threads, config.connections_max) => {}
        () = shutdown.cancelled() => {}
    }
    drop(listener);
    tasks.close();
    if timeout(config.shutdown_timeout, tasks.wait()).await.is_err() {
        info!(connections = tasks.len(), "requests still unanswered at the end of the stop are dropped");
        kill.cancel();
        tasks.wait().await;
    }
}

async fn accept_all(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
    threads: &IoThreads,
    connections_max: usize,
) {
    let places = Arc::new(Semaphore::new(connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let ids = AtomicU64::new(1);
    loop {
        // The place comes first: a connection that we cannot serve is better left in the system's queue.
        let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
        match accept(listener, &ids).await {
            Ok((socket, context)) => {
                threads.spawn(tasks, serve_one(socket, context, Arc::clone(shared), place));
            }
            // The client has given up already.
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionReset | NotConnected) => {}
            Err(error) => {
                shared.metrics.accept_errors_total.fetch_add(1, Ordering::Relaxed);
                warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// The socket belongs to no runtime yet.
async fn accept(listener: &TcpListener, ids: &AtomicU64) -> std::io::Result<(StdTcpStream, ConnectionContext)> {
    let (socket, peer) = listener.accept().await?;
    socket.set_nodelay(true)?;
    let local = socket.local_addr()?;
    let id = ids.fetch_add(1, Ordering::Relaxed);
    Ok((socket.into_std()?, ConnectionContext { id, peer, local, software: OnceLock::new() }))
}

async fn serve_one(
    socket: StdTcpStream,
    context: ConnectionContext,
    shared: Arc<Shared>,
    _place: OwnedSemaphorePermit,
) {
    match TcpStream::from_std(socket) {
        Ok(socket) => connection::serve(socket, Arc::new(context), shared).await,
        Err(error) => warn!(%error, "a connection could not be served"),
    }
}

#[cfg(test)]
mod tests;
