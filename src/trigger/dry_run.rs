//! A dry run: what filter and transform would do with a range of records, without invoking anything. A transform goes
//! as far as its first step that is a function.
//!
//! Bounded in memory (counts, a few samples, at most [`CLAUSES_MAX`] clauses) and in time: what does not fit into one
//! call goes on where [`DryRunReport::ranges`] says in the next, so that whoever asks can show how far it is.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;
use tripline_storage::LeaderEpoch;
use tripline_storage::Offset;
use tripline_storage::batch::RecordView as StoredRecord;

use super::filter::{Pattern, TurnedAway};
use super::run::{RangeRequest, RunRange, ScanError, for_each_chunk};
use super::transform::{Origin, Shown, Stage, Transform};
use crate::event::EventView;
use crate::input::EventInput;

/// Samples of a kind that one call answers at most.
pub const SAMPLES_MAX: u32 = 100;
/// Clauses that are told apart; what others turned away counts only among the records.
pub const CLAUSES_MAX: usize = 1_000;
/// The longest that one call looks.
pub const TIME_MAX: Duration = Duration::from_secs(30);
/// A sample shows its event up to this size, and what the transform makes of it.
const SAMPLE_BYTES_MAX: usize = 64 << 10;

/// A dry run to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRunRequest {
    /// Which topic; `None` means the only one.
    pub topic: Option<String>,
    /// Where; a partition is in at most one of them.
    pub ranges: Vec<RangeRequest>,
    /// A filter to try instead of the trigger's.
    pub filter: Option<Pattern>,
    /// Samples of events that match, and of events that do not. 0–[`SAMPLES_MAX`].
    pub samples: u32,
    /// How long to look, at most [`TIME_MAX`].
    pub time: Duration,
}

/// An event that was looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Where its record is.
    pub partition: u32,
    /// Its offset.
    pub offset: Offset,
    /// The event as filters see it; `None` when it is too large to show.
    pub event: Option<Value>,
    /// What turned it away; empty when it matches.
    pub turned_away: Vec<TurnedAway>,
    /// What the transform makes of it, or why it makes nothing; `None` where there is no transform, or nothing to
    /// transform.
    pub transformed: Option<Result<Shown, String>>,
}

/// A clause of the filter, and how many events it turned away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClauseCount {
    /// The keys, joined with dots.
    pub path: String,
    /// What the pattern asks for there.
    pub expected: String,
    /// How many events do not have it.
    pub events: u64,
}

/// What a filter did with a range.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DryRunReport {
    /// What was asked for, with where the next call goes on; at the end of each range when everything was looked at.
    pub ranges: Vec<(RunRange, Offset)>,
    /// Events that match.
    pub matched: u64,
    /// Events that do not.
    pub turned_away: u64,
    /// Of those that match, how many the transform refuses.
    pub transform_failed: u64,
    /// The first that do: where, and why; as many as samples were asked for.
    pub transform_failures: Vec<(u32, Offset, String)>,
    /// The clauses that turned events away, the strictest first. An event may lack several.
    pub clauses: Vec<ClauseCount>,
    /// The first events that match.
    pub matched_samples: Vec<Sample>,
    /// The first that do not.
    pub turned_away_samples: Vec<Sample>,
}

impl DryRunReport {
    /// Whether everything was looked at.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.ranges.iter().all(|(range, next)| *next >= range.next())
    }
}

/// A dry run under way: it looks at ranges, one after another, until its time is over. With any time it looks at
/// something, so that whoever asks again where it ended comes to the end.
pub(super) struct DryRun<'a> {
    counting: Counting<'a>,
    deadline: Instant,
    has_looked: bool,
}

/// What the first range has, however long it took to get there.
const FIRST_LOOK: Duration = Duration::from_secs(1);

impl<'a> DryRun<'a> {
    /// Its time begins now.
    pub(super) fn new((filter, transform): (Option<&'a Pattern>, &'a Transform), request: &DryRunRequest) -> Self {
        let deadline = Instant::now() + request.time.min(TIME_MAX);
        let samples = request.samples.min(SAMPLES_MAX) as usize;
        let (report, clauses) = (DryRunReport::default(), HashMap::new());
        Self {
            counting: Counting { filter, transform, samples, report, clauses },
            deadline,
            has_looked: request.time.is_zero(),
        }
    }

    /// Whether a range is left to the next call, as there is no time for it.
    pub(super) fn leaves(&mut self, range: &RunRange) -> bool {
        let leaves = self.has_looked && Instant::now() >= self.deadline;
        if leaves {
            self.counting.report.ranges.push((*range, range.first()));
        }
        leaves
    }

    /// Looks at a range of this partition, as far as there is time.
    pub(super) async fn look_through(&mut self, input: &EventInput, range: &RunRange) -> Result<(), ScanError> {
        let counting = &mut self.counting;
        let first = !std::mem::replace(&mut self.has_looked, true);
        let deadline = if first { self.deadline.max(Instant::now() + FIRST_LOOK) } else { self.deadline };
        let next = for_each_chunk(input, range, Some(deadline), |record, epoch| {
            counting.look_at(input, record, epoch);
            true
        })
        .await?;
        counting.report.ranges.push((*range, next));
        Ok(())
    }

    pub(super) fn finish(self) -> DryRunReport {
        self.counting.finish()
    }
}

struct Counting<'a> {
    filter: Option<&'a Pattern>,
    transform: &'a Transform,
    samples: usize,
    report: DryRunReport,
    clauses: HashMap<(String, String), u64>,
}

impl Counting<'_> {
    fn look_at(&mut self, input: &EventInput, record: &StoredRecord<'_>, epoch: LeaderEpoch) {
        let partition = input.origin().partition;
        input.origin().with_event(record, epoch, |event| {
            if self.filter.is_none_or(|filter| filter.matches(event)) {
                self.report.matched += 1;
                let transformed = self.transform(partition, event);
                if self.report.matched_samples.len() < self.samples {
                    let sample = Sample { transformed, ..sample(partition, event, Vec::new()) };
                    self.report.matched_samples.push(sample);
                }
                return;
            }
            self.report.turned_away += 1;
            let turned_away = self.filter.map_or_else(Vec::new, |filter| filter.explain(event.for_matching()));
            self.count(&turned_away);
            if self.report.turned_away_samples.len() < self.samples {
                self.report.turned_away_samples.push(sample(partition, event, turned_away));
            }
        });
    }

    /// What comes before the first function that is a step.
    fn transform(&mut self, partition: u32, event: &EventView<'_>) -> Option<Result<Shown, String>> {
        let Some(Stage::Pure(chain)) = self.transform.stages().first() else { return None };
        let made = chain.show(&Origin::Record(event), SAMPLE_BYTES_MAX).map_err(|error| error.to_string());
        if let Err(reason) = &made {
            self.report.transform_failed += 1;
            if self.report.transform_failures.len() < self.samples {
                self.report.transform_failures.push((partition, event.record().offset, reason.clone()));
            }
        }
        Some(made)
    }

    /// Each clause once an event, also one that stands in several alternatives.
    fn count(&mut self, turned_away: &[TurnedAway]) {
        let name = |reason: &TurnedAway| (reason.path.clone(), reason.expected.clone());
        for (index, reason) in turned_away.iter().enumerate() {
            let name = name(reason);
            let is_first =
                !turned_away[..index].iter().any(|other| (&other.path, &other.expected) == (&name.0, &name.1));
            if is_first && (self.clauses.len() < CLAUSES_MAX || self.clauses.contains_key(&name)) {
                *self.clauses.entry(name).or_default() += 1;
            }
        }
    }

    fn finish(self) -> DryRunReport {
        let counts = self.clauses.into_iter().map(|((path, expected), events)| ClauseCount { path, expected, events });
        let mut clauses: Vec<ClauseCount> = counts.collect();
        clauses
            .sort_by(|a, b| b.events.cmp(&a.events).then_with(|| (&a.path, &a.expected).cmp(&(&b.path, &b.expected))));
        DryRunReport { clauses, ..self.report }
    }
}

fn sample(partition: u32, event: &EventView<'_>, turned_away: Vec<TurnedAway>) -> Sample {
    let value_bytes = event.record().value.map_or(0, <[u8]>::len);
    let shown = (value_bytes <= SAMPLE_BYTES_MAX).then(|| event.for_matching().value.clone());
    Sample { partition, offset: event.record().offset, event: shown, turned_away, transformed: None }
}
