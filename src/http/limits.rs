//! What one HTTP client may ask for.

use std::time::Duration;

/// Limits of the HTTP listener. Every one is named in the error that it causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// Bytes of a request's body. Default 32 MiB.
    pub body_bytes_max: usize,
    /// Bytes of the bodies of all requests at a time, beyond 64 KiB of each. Default 256 MiB.
    pub bodies_bytes_max: usize,
    /// Bytes of a request's line and headers together. Default 64 KiB.
    pub head_bytes_max: usize,
    /// Headers of a request. Default 100.
    pub headers_max: usize,
    /// Connections at a time; more wait in the system's queue. Default 1,024.
    pub connections_max: usize,
    /// For the head of a request, from its connection or from the answer before it. Default 30 s.
    pub head_timeout: Duration,
    /// For a request's whole body. Default 60 s.
    pub body_timeout: Duration,
    /// For a client to take more of an answer that is ready. Default 30 s.
    pub write_timeout: Duration,
    /// For connections to end at a graceful stop. Default 3 s.
    pub stop_timeout: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            body_bytes_max: 32 << 20,
            bodies_bytes_max: 256 << 20,
            head_bytes_max: 64 << 10,
            headers_max: 100,
            connections_max: 1_024,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(3),
        }
    }
}

/// Records that one request may append.
pub const RECORDS_IN_MAX: usize = 100_000;
/// Records that one answer may hold.
pub const RECORDS_OUT_MAX: u32 = 10_000;
/// Bytes of batches that one answer is made from; one batch may go beyond.
pub const READ_BYTES_MAX: usize = 8 << 20;
/// The longest `wait`.
pub const WAIT_MAX: Duration = Duration::from_secs(30);
