//! The contract of whatever runs a function.

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;

use super::outcome::{Invocation, InvocationError, InvocationSuccess};
use super::pool_state::InstanceCounts;

/// What an invoker is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InvokerStatus {
    /// Instances by what they do; an http function counts its requests in flight as busy.
    pub instances: InstanceCounts,
    /// Invocations that wait for an instance.
    pub queued: usize,
    /// Why nothing can run, until new code or a resume.
    pub broken: Option<InvocationError>,
    /// Whether the invoker has stopped and holds nothing any more.
    pub stopped: bool,
}

/// Runs the invocations of one function.
///
/// Every implementation keeps these rules; `tests/functions.rs` runs one suite over all of them:
/// - Each call has exactly one outcome, and it has one: within the time-out of the function plus the time it waited for
///   an instance, or when the invoker stops.
/// - When the outcome is an error, nothing of the attempt is running any more as far as the invoker can tell: a retry
///   does not overlap it.
/// - At most as many invocations run at a time as the function has instances; the rest wait in the order of their
///   calls.
/// - The payload reaches the function byte for byte, with the id and the attempt number.
/// - Results above [`super::OUTPUT_BYTES_MAX`] are errors, never cut. Memory per call stays below payload plus output.
/// - A caller that goes away does not stop an attempt that has begun: its effects count as done or not, as after a
///   crash.
pub trait Invoker: Send + Sync {
    /// One attempt.
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'_, Result<InvocationSuccess, InvocationError>>;

    /// What the invoker is doing; the receiver sees every later change.
    fn status(&self) -> watch::Receiver<InvokerStatus>;

    /// Forgets why nothing can run and tries again.
    fn resume(&self);

    /// Takes no more invocations, lets those that run finish until `deadline`, then ends them with class `interrupted`.
    fn stop(&self, deadline: Instant) -> BoxFuture<'_, ()>;
}
