//! One connection: a reader that begins requests in order, a writer that sends their responses in the same order.
//!
//! ```text
//!  socket ─▶ frames ─▶ begin (in order) ─▶ queue of answers ─▶ await (in order) ─▶ one vectored write of what is ready ─▶ socket
//! ```
//! Reading stops while as many requests are unanswered, or as many response bytes unsent, as the limits allow; so a
//! client that does not read its responses holds a bounded amount of memory and then its own requests, nobody else's.
//!
//! Everything that waits has a deadline: the first request, a frame once begun, a response once ready, and silence.

mod frame_budget;
mod reader;
mod writer;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(super) use frame_budget::FrameBudget;

use super::frame::{FrameError, FrameLimits, LENGTH_BYTES};
use super::handler::{Answer, ConnectionContext, Handler};
use super::metrics::KafkaMetrics;

/// Frames up to this size are read without asking the common budget, so that a short of memory never stops heartbeats;
/// nor is it counted what requests up to 4 KiB are decoded to.
pub const UNBUDGETED_FRAME_BYTES: usize = 64 * 1024;
/// Requests other than Produce that one connection has begun and that are not answered have so many bytes together; one
/// of more than 4 KiB counts for all of it. Their answers go out in order, so that those behind one that waits gain
/// nothing by being begun but what they take in memory.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Budgets are counted in units of this size.
const BUDGET_UNIT_BYTES: usize = 1024;
/// Transfers get one more second for each so many bytes, above their time-out.
const SLOWEST_BYTES_PER_SECOND: u64 = 1024 * 1024;

/// Limits of each connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionConfig {
    /// How long frames may be.
    pub frames: FrameLimits,
    /// A connection that asks nothing for so long is closed. Default 10 min, as Kafka.
    pub idle_timeout: Duration,
    /// From the connect to the end of the first request. Default 30 s.
    pub first_request_timeout: Duration,
    /// From the first byte of a frame to its last, and one second more per MiB. Default 30 s.
    pub frame_timeout: Duration,
    /// From the moment a response is ready until it is sent, and one second more per MiB. Default 30 s.
    pub write_timeout: Duration,
    /// Most requests begun and not answered. Default 64.
    pub in_flight_max: usize,
    /// Most bytes of finished responses that wait for their turn. Default 4 MiB.
    pub queued_response_bytes_max: usize,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            frames: FrameLimits::default(),
            idle_timeout: Duration::from_secs(600),
            first_request_timeout: Duration::from_secs(30),
            frame_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            in_flight_max: 64,
            queued_response_bytes_max: 4 * 1024 * 1024,
        }
    }
}

/// What all connections of a listener share.
pub(super) struct Shared {
    pub(super) handler: Handler,
    pub(super) config: ConnectionConfig,
    pub(super) metrics: Arc<KafkaMetrics>,
    /// Memory for frames longer than [`UNBUDGETED_FRAME_BYTES`], over all connections.
    pub(super) frame_budget: FrameBudget,
    /// Stop reading, answer what was begun, close.
    pub(super) drain: CancellationToken,
    /// Close.
    pub(super) kill: CancellationToken,
}

/// Why a connection ended.
#[derive(Debug, Error)]
enum End {
    #[error("the client closed it")]
    Closed,
    #[error("the broker stops")]
    Drained,
    #[error("nothing was asked for {0:?}")]
    Idle(Duration),
    #[error("{what} took longer than {allowed:?}")]
    TimedOut { what: &'static str, allowed: Duration },
    #[error("{0}")]
    Frame(#[from] FrameError),
    #[error("request {api_key} version {api_version} of client {client_id:?}: {error}")]
    Malformed { api_key: i16, api_version: i16, client_id: Option<String>, error: String },
    #[error("request {api_key} version {api_version} of client {client_id:?} is not served")]
    Unknown { api_key: i16, api_version: i16, client_id: Option<String> },
    #[error("{0}")]
    Refused(&'static str),
    #[error("a panic while a request was handled")]
    Panicked,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// A request that was begun, with what it holds until its response is sent.
struct Begun {
    answer: Answer,
    _in_flight: OwnedSemaphorePermit,
    _frame: Option<OwnedSemaphorePermit>,
    _queued: Option<OwnedSemaphorePermit>,
    _held: Held,
}

/// What a request other than a Produce takes beside its frame.
#[derive(Default)]
struct Held {
    _waiting: Option<OwnedSemaphorePermit>,
    decoded: Option<OwnedSemaphorePermit>,
}

/// Serves one connection until it ends.
pub(super) async fn serve(socket: TcpStream, context: Arc<ConnectionContext>, shared: Arc<Shared>) {
    shared.metrics.connections_total.fetch_add(1, Ordering::Relaxed);
    shared.metrics.connections_open.fetch_add(1, Ordering::Relaxed);
    let end = tokio::select! {
        end = run(socket, &context, &shared) => end,
        () = shared.kill.cancelled() => End::Drained,
    };
    shared.metrics.connections_open.fetch_sub(1, Ordering::Relaxed);
    report(&end, &context, &shared.metrics);
}

async fn run(socket: TcpStream, context: &Arc<ConnectionContext>, shared: &Arc<Shared>) -> End {
    let (read_half, write_half) = socket.into_split();
    // Never holds more than `in_flight_max` elements: each carries one of so many permits.
    let (queue, begun) = mpsc::unbounded_channel();
    let mut reader = Box::pin(reader::Reader::new(read_half, queue, Arc::clone(context), Arc::clone(shared)).run());
    let mut writer = Box::pin(writer::write_responses(write_half, begun, Arc::clone(shared)));
    tokio::select! {
        end = &mut reader => {
            if !matches!(end, End::Drained) {
                return end;
            }
            // Drops the sender, so that the writer ends after the last response.
            drop(reader);
            let _ = writer.await;
            end
        }
        end = &mut writer => end.err().unwrap_or(End::Closed),
    }
}

fn report(end: &End, context: &ConnectionContext, metrics: &KafkaMetrics) {
    let counter = match end {
        End::Closed | End::Drained | End::Io(_) | End::Refused(_) => None,
        End::Idle(_) => Some(&metrics.idle_closed_total),
        End::TimedOut { .. } => Some(&metrics.timeouts_total),
        End::Frame(_) | End::Malformed { .. } => Some(&metrics.malformed_requests_total),
        End::Unknown { .. } => Some(&metrics.unknown_requests_total),
        End::Panicked => Some(&metrics.handler_panics_total),
    };
    if let Some(counter) = counter {
        counter.fetch_add(1, Ordering::Relaxed);
    }
    let (id, peer) = (context.id, context.peer);
    match end {
        End::Closed | End::Drained | End::Io(_) => debug!(connection = id, %peer, reason = %end, "connection ended"),
        End::Idle(_) => info!(connection = id, %peer, reason = %end, "connection closed"),
        _ => warn!(connection = id, %peer, reason = %end, "connection closed"),
    }
}

/// Time for a transfer: the time-out, and more for what is long.
fn allowance(timeout: Duration, size_bytes: usize) -> Duration {
    timeout + Duration::from_secs((size_bytes + LENGTH_BYTES) as u64 / SLOWEST_BYTES_PER_SECOND)
}

/// Units of a budget for so many bytes, at most all of it: what is larger than the budget goes through alone.
fn budget_units(size_bytes: usize, budget_bytes: usize) -> u32 {
    let units = size_bytes.min(budget_bytes).div_ceil(BUDGET_UNIT_BYTES).max(1);
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// A budget of so many bytes.
fn budget(size_bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(size_bytes.div_ceil(BUDGET_UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS)))
}
