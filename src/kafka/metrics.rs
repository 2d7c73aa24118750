//! What the listener counts.

use std::sync::atomic::{AtomicU64, Ordering};

use super::version::{API_COUNT, APIS, Api};

/// Counters of the Kafka listener. They only grow, but for the number of open connections.
#[derive(Debug, Default)]
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

    pub(super) fn add(counter: &AtomicU64, count: usize) {
        // A usize fits in a u64 on each platform that we build for.
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}
