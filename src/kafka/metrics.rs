//! What the listener counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::error_code::ErrorCode;
use super::version::{API_COUNT, APIS, Api};

/// Error codes are counted one by one below this number.
const ERROR_CODES: usize = 128;

/// Counters of the Kafka listener. They only grow, but for the number of open connections.
#[derive(Debug)]
pub struct KafkaMetrics {
    /// Connections open now.
    pub connections_open: AtomicU64,
    /// Connections ever accepted.
    pub connections_total: AtomicU64,
    /// Accepts that failed, for want of descriptors as a rule.
    pub accept_errors_total: AtomicU64,
    /// Bytes received.
    pub received_bytes_total: AtomicU64,
    /// Bytes sent.
    pub sent_bytes_total: AtomicU64,
    /// Requests with a key or version that we do not serve.
    pub unknown_requests_total: AtomicU64,
    /// Frames or requests that could not be read, other protocols included.
    pub malformed_requests_total: AtomicU64,
    /// Connections closed because a first request, a frame or a response took too long.
    pub timeouts_total: AtomicU64,
    /// Connections closed because nothing was asked for so long.
    pub idle_closed_total: AtomicU64,
    /// Panics while a request was handled. Not zero means a mistake of ours.
    pub handler_panics_total: AtomicU64,
    requests_total: [AtomicU64; API_COUNT],
    /// By error code; the first is for those that no place is kept for.
    errors_total: [AtomicU64; ERROR_CODES],
}

impl Default for KafkaMetrics {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            connections_open: zero(),
            connections_total: zero(),
            accept_errors_total: zero(),
            received_bytes_total: zero(),
            sent_bytes_total: zero(),
            unknown_requests_total: zero(),
            malformed_requests_total: zero(),
            timeouts_total: zero(),
            idle_closed_total: zero(),
            handler_panics_total: zero(),
            requests_total: std::array::from_fn(|_| zero()),
            errors_total: std::array::from_fn(|_| zero()),
        }
    }
}

impl KafkaMetrics {
    /// Counts one request.
    pub fn request(&self, api: Api) {
        self.requests_total[api as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Requests so far, by name.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        APIS.iter().map(|spec| (spec.name, self.requests_total[spec.api as usize].load(Ordering::Relaxed)))
    }

    /// Counts one error that a client was told.
    pub fn error(&self, code: ErrorCode) {
        let place = usize::try_from(code.code()).ok().filter(|place| *place < ERROR_CODES).unwrap_or(0);
        self.errors_total[place].fetch_add(1, Ordering::Relaxed);
    }

    /// Errors that clients were told so far, by Kafka's error code; those that never happened are left out. -1 collects
    /// the codes that have no place of their own.
    pub fn errors(&self) -> impl Iterator<Item = (i16, u64)> {
        let counts = self.errors_total.iter().map(|count| count.load(Ordering::Relaxed));
        let codes = std::iter::once(ErrorCode::UnknownServerError.code()).chain(1..);
        codes.zip(counts).filter(|(_, count)| *count > 0)
    }

    pub(super) fn add(counter: &AtomicU64, count: usize) {
        // A usize fits in a u64 on each platform that we build for.
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}
