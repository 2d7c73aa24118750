//! A trigger as its owner declares it, checked.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tripline_storage::Offset;

use super::attempt::{ErrorsTolerance, Policies};
use super::filter::Pattern;
use super::flow::PerKey;
use super::lane::{LaneLimits, LaneSpec};
use super::outputs::Destinations;
use super::retry::RetryPolicy;
use super::trace::{TRACE_TOPIC, TraceLevel};
use super::transform::Transform;
use super::window::WindowSpec;
use crate::config::fields::{FieldError, FieldErrors, read};
use crate::function::log_topic::LOG_TOPIC;
use crate::function::spec::{FunctionSpec, Payload};
use crate::input::ClusterAddress;
use crate::topic::name::{FunctionName, TopicName, TriggerName};

mod cluster;
mod input;
mod parse;
mod print;

pub use input::{TOPICS_MAX, TopicPattern, TopicSelection};

#[cfg(test)]
mod tests;

/// The most invocations in flight for one trigger.
pub const CONCURRENCY_MAX: u32 = 10_000;

/// A checked trigger definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriggerSpec {
    /// Its name.
    pub name: TriggerName,
    /// What it reads.
    pub input: InputSpec,
    /// Which events it takes; `None` takes all.
    pub filter: Option<Pattern>,
    /// What the function gets of each event.
    pub transform: Transform,
    /// Which records go to the function together.
    pub window: WindowSpec,
    /// How long an attempt should take when the window's size adapts; `None` keeps it. 1 ms–1 h.
    pub window_latency: Option<Duration>,
    /// What may run at the same time.
    pub order: Order,
    /// Invocations in flight. 1–10,000, default 8.
    pub concurrency: u32,
    /// What is invoked.
    pub function: FunctionRef,
    /// When a failed attempt is made again.
    pub retry: RetryPolicy,
    /// What happens when all attempts are spent.
    pub errors_tolerance: ErrorsTolerance,
    /// Where records go that are given up; `None` drops them, counted and logged.
    pub dead_letter: Option<TopicName>,
    /// Whether a failed window of several records is halved, which spends no attempt. Default no.
    pub bisect: bool,
    /// What is held back per key; only in order `key`.
    pub per_key: PerKey,
    /// What may be in flight.
    pub limits: FlowLimits,
    /// Where results, and records of what was invoked, go.
    pub destinations: Destinations,
    /// Of which attempts a history is kept. Default all.
    pub trace: TraceLevel,
}

/// What may be in flight for one trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowLimits {
    /// Records held per partition, in windows and waiting for one. 1–1,000,000, default 20,000.
    pub records: u32,
    /// Bytes of the records that functions have in hand; one window is let through however large. 1 KiB–16 GiB, default
    /// 64 MiB.
    pub bytes: u64,
    /// Invocations that may begin in a second. 1–1,000,000; `None`, the default, sets no limit.
    pub invocations_per_second: Option<u32>,
}

impl Default for FlowLimits {
    fn default() -> Self {
        Self { records: 20_000, bytes: 64 << 20, invocations_per_second: None }
    }
}

/// What a trigger reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputSpec {
    /// The topics.
    pub topics: TopicSelection,
    /// Where reading starts when the trigger is created. At an offset only in one topic.
    pub start: StartPosition,
    /// The cluster that has the one topic; `None`: this broker.
    pub cluster: Option<ClusterAddress>,
}

/// Where reading starts: resolved to offsets when the trigger is created. Topics that are made later start at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StartPosition {
    /// At the log start.
    Earliest,
    /// At the tail.
    #[default]
    Latest,
    /// At this offset of every partition, or the nearest one there is.
    Offset(Offset),
    /// At the first record that is not older.
    Time(Timestamp),
}

/// What may run at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Windows of a partition one after another; partitions in parallel.
    #[default]
    Partition,
    /// Records of one key in order, different keys in parallel. Records without a key count as one key.
    Key,
    /// Any window as soon as an invocation is free.
    None,
}

/// What a trigger invokes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FunctionRef {
    /// A registered function.
    Named(FunctionName),
    /// A URL, without a function of its own.
    Http {
        /// `http://` or `https://`, as written.
        url: String,
    },
}

impl FunctionRef {
    /// What dead letters and metrics call it: the name, or the URL.
    #[must_use]
    pub fn label(&self) -> &str {
        match self {
            Self::Named(name) => name.as_str(),
            Self::Http { url } => url,
        }
    }
}

impl TriggerSpec {
    /// Reads a definition such as `{"trigger": "slow", "input": {"topic": "flights"}, "function": "notify"}`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_json(value: &Value) -> Result<Self, FieldErrors> {
        read(value, "trigger", parse::trigger)
    }

    /// The definition in the shape that [`TriggerSpec::from_json`] reads, every field written out.
    #[must_use]
    pub fn to_json(&self) -> Value {
        print::trigger(self)
    }

    /// Whether a registered function is invoked by it, as its function or as a transform step.
    #[must_use]
    pub fn invokes(&self, function: &str) -> bool {
        let own = matches!(&self.function, FunctionRef::Named(name) if name.as_str() == function);
        own || self.transform.functions().any(|step| step.as_str() == function)
    }

    /// The policies that decide what follows an attempt.
    #[must_use]
    pub const fn policies(&self) -> Policies {
        Policies { retry: self.retry, errors_tolerance: self.errors_tolerance }
    }

    /// What its lanes need to know.
    #[must_use]
    pub fn lane(&self) -> LaneSpec {
        let limits = LaneLimits { records: self.limits.records as usize, ..LaneLimits::default() };
        LaneSpec {
            order: self.order,
            window: self.window,
            policies: self.policies(),
            bisect: self.bisect,
            per_key: self.per_key,
            filter: self.filter.as_ref().map_or(0, |filter| crc32fast::hash(filter.source().to_string().as_bytes())),
            limits,
        }
    }

    /// What its owner should know before it runs, one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.errors_tolerance == ErrorsTolerance::All && self.dead_letter.is_none() {
            let sentence = "records whose attempts are spent are dropped: `errors_tolerance` is all and there is no `dead_letter` topic";
            warnings.push(format!("trigger {}: {sentence}", self.name));
        }
        if self.errors_tolerance == ErrorsTolerance::None && self.dead_letter.is_some() {
            let sentence = "the `dead_letter` topic stays empty: with `errors_tolerance` none, a failing window is tried until it succeeds";
            warnings.push(format!("trigger {}: {sentence}", self.name));
        }
        if self.input.cluster.is_none() && self.input.topics.selects(TRACE_TOPIC) {
            let sentence =
                "what it does with records of that topic leaves no trace, or it would go on for ever by itself";
            warnings.push(format!("trigger {} reads {TRACE_TOPIC}: {sentence}", self.name));
        }
        if self.input.cluster.is_none() && self.input.topics.selects(LOG_TOPIC) {
            let sentence = "each line that its own function prints comes to it as a record again: have it print nothing, or filter by `data.function`";
            warnings.push(format!("trigger {} reads {LOG_TOPIC}: {sentence}", self.name));
        }
        warnings
    }

    /// Whether history is kept of what came out so of records of this topic. That of history would be history for
    /// itself.
    #[must_use]
    pub fn keeps_trace(&self, topic: &str, failed: bool) -> bool {
        let is_history = self.input.cluster.is_none() && topic == TRACE_TOPIC;
        !is_history && self.trace.keeps(failed)
    }

    /// Whether the function can take this trigger's windows.
    ///
    /// # Errors
    /// When it takes one record at a time and the window has more.
    pub fn check_function(&self, function: &FunctionSpec) -> Result<(), FieldErrors> {
        if function.payload != Payload::Raw || self.window.count == 1 {
            return Ok(());
        }
        Err(FieldErrors(vec![FieldError {
            path: "trigger.window.count".to_owned(),
            found: self.window.count.to_string(),
            allowed: format!("1, because function {} has `payload: raw`, which is one record's bytes", function.name),
            suggestion: None,
        }]))
    }
}
