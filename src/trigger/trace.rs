//! What triggers did with each event, kept as records of one of the broker's own topics, and told again.
//!
//! ```text
//! attempt ends ─┐                                     ┌─ the record itself
//! verdict done ─┴─▶ bounded queue ─▶ __tripline.traces ─┼─ what lanes have in hand  ─▶ story of one event
//!                   (never waited for)                ┴─ filters, asked again
//! ```
//! One record tells of an attempt, with all its events, of many that just succeeded, or of a verdict; see [`record`]
//! for their fields. A lane hands them over without waiting; what does not fit into the queue is dropped and counted.
//! So history may miss what a crash took or a flood drowned, and the story says so; progress never depends on it. What
//! a trigger does with records of that topic itself leaves no trace: each attempt would be the cause of the next.
//!
//! The records of the topic carry `<topic>/<partition>/<first>-<last>` as key: looking for an event reads keys, not
//! values.

use serde::{Deserialize, Serialize};

pub mod lookup;
pub mod ranges;
pub mod record;
pub mod story;
mod writer;

pub use lookup::{SearchLimits, TraceError, Wanted};
pub use writer::{TRACE_TOPIC, TraceCounts};

pub(super) use record::invocation_id;
pub(super) use writer::{Made, Settled, TraceLog, TracedEvents};

/// Of which attempts a trigger keeps a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TraceLevel {
    /// All.
    #[default]
    All,
    /// Those that failed, and verdicts.
    Failures,
    /// None.
    None,
}

impl TraceLevel {
    /// Whether what came out so is kept.
    #[must_use]
    pub const fn keeps(self, failed: bool) -> bool {
        match self {
            Self::All => true,
            Self::Failures => failed,
            Self::None => false,
        }
    }
}
