//! Dead letters of a trigger: putting them back, and letting them go.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use tripline_storage::Offset;
use uuid::Uuid;

use super::TriggerService;
use super::run_topic::{LookedUp, RunTopic, changed_meanwhile};
use super::runs::{RunError, definition, run_progress};
use crate::broker::Broker;
use crate::broker::record::{JournalRecord, LettersDiscarded, RunDefined, RunState, RunSwitched};
use crate::broker::state::RunEntry;
use crate::input::EventInput;
use crate::trigger::filter::{Pattern, PatternError};
use crate::trigger::run::{
    Gate, Left, LetterCounts, RangeRequest, RedriveRequest, Redriven, RunDefinition, RunKind, RunRange, scan_letters,
};
use crate::trigger::runner::Runner;

/// Letters that a preview names.
const NAMED_MAX: usize = 100;

/// What a redrive would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedrivePreview {
    /// The dead-letter topic.
    pub topic: String,
    /// What it would read.
    pub ranges: Vec<RunRange>,
    /// What it would find there.
    pub counts: LetterCounts,
    /// The first letters that it would take, by partition and offset; at most 100.
    pub first: Vec<(u32, Offset)>,
    /// Whether everything was looked at, within the time that was given.
    pub is_complete: bool,
}

/// What became of the letters of one partition that are not wanted any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discarded {
    /// The partition.
    pub partition: u32,
    /// The first offset that is still wanted.
    pub below: Offset,
    /// Letters that were discarded now.
    pub letters: u64,
    /// Whether the records were deleted too, because they all were letters of this trigger and nobody else reads the
    /// topic.
    pub deleted: bool,
}

/// What decides which letters a redrive takes: while it is the same, they are.
#[derive(PartialEq)]
struct BeforeRedrive {
    trigger: Uuid,
    topic: Uuid,
    redrives: Vec<(RunEntry, RunDefinition)>,
    discarded_below: HashMap<u32, Offset>,
}

/// A topic of dead letters, here or on a cluster.
#[derive(Debug)]
pub struct LetterTopic {
    broker: Broker,
    topic: RunTopic,
}

impl LetterTopic {
    /// How many partitions it has.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        self.topic.partition_count()
    }

    /// One of them.
    ///
    /// # Errors
    /// It is not there, or its cluster does not answer.
    pub async fn partition(&self, partition: u32) -> Result<EventInput, RunError> {
        self.topic.input(&self.broker, partition).await
    }
}

/// A cancelled redrive that gives way to another.
struct Replaced {
    /// What is to be remembered for that.
    records: Vec<JournalRecord>,
    topic: Uuid,
    /// With what it had read of its ranges, and what it left there.
    definition: RunDefinition,
}

impl TriggerService {
    /// Puts dead letters of a trigger back through it. Durable on return, with its range. A redrive that was cancelled
    /// gives way: this one takes what it had left, where it is asked to.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn redrive(&self, name: &str, request: RedriveRequest) -> Result<Uuid, RunError> {
        let (service, name) = (self.clone(), name.to_owned());
        self.inner.broker.to_the_end(async move { service.redrive_now(&name, &request).await }).await
    }

    async fn redrive_now(&self, name: &str, request: &RedriveRequest) -> Result<Uuid, RunError> {
        let mut looked_up = self.dead_letters_of(name).await?;
        self.ask_what_to_forget(&mut looked_up).await?;
        let LookedUp { runner, topic, .. } = &looked_up;
        let before = self.before_redrive(runner, topic)?;
        let replaced = self.replace_cancelled(runner)?;
        let mut definition = redrive_definition(topic, request).await?;
        if request.max.is_some() {
            // However many letters there are, nobody else waits while they are looked through.
            let gate = self.gate_after(runner, topic, &definition, &replaced)?;
            let found = self.look_through(topic, &definition, &gate, request.max, None).await?;
            definition.ranges = found.ranges;
        }
        let _changing = self.inner.changing.lock().await;
        self.still_holds(name, &looked_up)?;
        if self.before_redrive(runner, topic)? != before {
            return Err(changed_meanwhile(name));
        }
        let records = replaced.into_iter().flat_map(|replaced| replaced.records).collect();
        self.begin_run(&looked_up, definition, records).await
    }

    /// What a redrive would do, as far as `time` allows to look.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn preview_redrive(
        &self,
        name: &str,
        request: &RedriveRequest,
        time: Duration,
    ) -> Result<RedrivePreview, RunError> {
        let LookedUp { runner, topic, .. } = self.dead_letters_of(name).await?;
        let replaced = self.replace_cancelled(&runner)?;
        let definition = redrive_definition(&topic, request).await?;
        let gate = self.gate_after(&runner, &topic, &definition, &replaced)?;
        let deadline = Some(Instant::now() + time);
        self.look_through(&topic, &definition, &gate, request.max, deadline).await
    }

    /// The first `limit` letters of a trigger that no redrive has taken and nobody has discarded, by partition and
    /// offset.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn open_letters(&self, name: &str, limit: usize) -> Result<BTreeSet<(u32, Offset)>, RunError> {
        let LookedUp { runner, topic, .. } = self.dead_letters_of(name).await?;
        let ranges = topic.ranges(&[RangeRequest::ALL]).await?;
        let mut gate = self.gate(&runner, topic.id(), &everything(&topic, ranges.clone()), None)?;
        gate.earlier.extend(self.taken_so_far(&runner, &topic)?);
        let mut open = BTreeSet::new();
        for range in &ranges {
            let left = limit - open.len();
            if left == 0 {
                break;
            }
            let input = topic.input(&self.inner.broker, range.partition).await?;
            let (max, partition) = (Some(left as u64), range.partition);
            let mut counts = LetterCounts::default();
            scan_letters(&input, range, &gate, max, None, &mut counts, |offset| {
                open.insert((partition, offset));
            })
            .await
            .map_err(|error| topic.scan_failed(error))?;
        }
        Ok(open)
    }

    /// The topic of a trigger's dead letters, to look at.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn letter_topic(&self, name: &str) -> Result<LetterTopic, RunError> {
        let LookedUp { topic, .. } = self.dead_letters_of(name).await?;
        Ok(LetterTopic { broker: self.inner.broker.clone(), topic })
    }

    /// Lets letters of a trigger go: all in `partition`, or in all partitions, below `to`. They are not listed and not
    /// redriven any more. Where the records below are nothing but letters of this trigger, and no trigger reads them,
    /// they are deleted.
    ///
    /// # Errors
    /// See [`RunError`]; a redrive must not be under way.
    pub async fn discard(&self, name: &str, ranges: &[RangeRequest]) -> Result<Vec<Discarded>, RunError> {
        let (service, name, ranges) = (self.clone(), name.to_owned(), ranges.to_vec());
        self.inner.broker.to_the_end(async move { service.discard_now(&name, &ranges).await }).await
    }

    async fn discard_now(&self, name: &str, ranges: &[RangeRequest]) -> Result<Vec<Discarded>, RunError> {
        let looked_up = self.dead_letters_of(name).await?;
        let LookedUp { runner, topic, .. } = &looked_up;
        topic.has_id()?;
        self.no_redrive(runner)?;
        let ranges = topic.ranges(ranges).await?;
        let gate = self.gate(runner, topic.id(), &everything(topic, Vec::new()), None)?;
        let gate = Gate { earlier: Vec::new(), ..gate };
        let mut discarded = Vec::new();
        for range in &ranges {
            let input = topic.input(&self.inner.broker, range.partition).await?;
            let mut counts = LetterCounts::default();
            let scanned = scan_letters(&input, range, &gate, None, None, &mut counts, |_| ()).await;
            scanned.map_err(|error| topic.scan_failed(error))?;
            // Who else reads them on a cluster is not known here.
            let deleted = counts.not_ours == 0 && topic.local().is_some();
            discarded.push(Discarded {
                partition: range.partition,
                below: range.next(),
                letters: counts.taken,
                deleted,
            });
        }
        // However many letters there were, nobody else waited while they were looked through.
        let _changing = self.inner.changing.lock().await;
        self.still_holds(name, &looked_up)?;
        self.no_redrive(runner)?;
        if self.is_read(topic.id()) {
            discarded.iter_mut().for_each(|discarded| discarded.deleted = false);
        }
        let records = discarded.iter().map(|discarded| {
            let below = discarded.below.get();
            LettersDiscarded { trigger: runner.id, topic: topic.id(), partition: discarded.partition, below }.into()
        });
        let records: Vec<JournalRecord> = records.collect();
        self.remember(&records, &topic.sources(&ranges)).await?;
        let Some(topic) = topic.local() else { return Ok(discarded) };
        for discarded in discarded.iter_mut().filter(|discarded| discarded.deleted) {
            let deleted = self.inner.broker.delete_records(topic, discarded.partition, Some(discarded.below)).await;
            if let Err(error) = &deleted {
                tracing::warn!(topic = %topic.name(), partition = discarded.partition, %error, "discarded letters not deleted");
            }
            discarded.deleted = deleted.is_ok();
        }
        Ok(discarded)
    }

    /// Which letters a redrive takes: those that no other took. One at a time goes on, and one that was cancelled gives
    /// way to the next: so all that have ended were before it, whatever the clock said then. `id`: its own, when it has
    /// one.
    pub(super) fn gate(
        &self,
        trigger: &Runner,
        topic: Uuid,
        redrive: &RunDefinition,
        id: Option<Uuid>,
    ) -> Result<Gate, RunError> {
        let ended = self.redrives(trigger, RunState::has_ended)?.into_iter();
        let others = ended.filter(|(other, _)| other.defined.topic == topic && Some(other.defined.id) != id);
        let took = others.filter(|_| !redrive.again).map(|(_, definition)| Redriven::new(definition));
        let earlier = took.collect::<Result<Vec<Redriven>, PatternError>>()?;
        let filter = redrive.filter.as_ref().map(Pattern::parse).transpose()?;
        let (name, discarded_below) = (trigger.spec().name.to_string(), self.discarded_below(trigger, topic));
        Ok(Gate { trigger: name, filter, redrives_max: redrive.redrives_max, earlier, discarded_below })
    }

    /// What decides which letters a redrive takes.
    fn before_redrive(&self, trigger: &Runner, topic: &RunTopic) -> Result<BeforeRedrive, RunError> {
        let discarded_below = self.discarded_below(trigger, topic.id());
        Ok(BeforeRedrive {
            trigger: trigger.id,
            topic: topic.id(),
            redrives: self.redrives(trigger, |_| true)?,
            discarded_below,
        })
    }

    /// By partition: letters below are not wanted any more.
    pub(super) fn discarded_below(&self, trigger: &Runner, topic: Uuid) -> HashMap<u32, Offset> {
        self.inner.broker.journal().look(|state| {
            let of = |of: &Uuid, letters: &Uuid| *of == trigger.id && *letters == topic;
            let discarded = state.discarded.iter().filter(|((trigger, letters, _), _)| of(trigger, letters));
            discarded.map(|((.., partition), below)| (*partition, *below)).collect()
        })
    }

    /// As [`TriggerService::gate`], after cancelled redrives have given way.
    fn gate_after(
        &self,
        trigger: &Runner,
        topic: &RunTopic,
        redrive: &RunDefinition,
        replaced: &[Replaced],
    ) -> Result<Gate, RunError> {
        let mut gate = self.gate(trigger, topic.id(), redrive, None)?;
        if !redrive.again {
            let here = replaced.iter().filter(|replaced| replaced.topic == topic.id());
            let here = here.map(|replaced| Redriven::new(replaced.definition.clone()));
            gate.earlier
                .extend(here.collect::<Result<Vec<_>, _>>().map_err(|error| RunError::Lane(error.to_string()))?);
        }
        Ok(gate)
    }

    /// What redrives that have not ended have taken so far.
    fn taken_so_far(&self, trigger: &Runner, topic: &RunTopic) -> Result<Vec<Redriven>, RunError> {
        let open = self.redrives(trigger, |state| !state.has_ended())?;
        let here = open.into_iter().filter(|(entry, _)| entry.defined.topic == topic.id());
        here.map(|(entry, definition)| Ok(Redriven::new(self.cut(&entry, definition))?)).collect()
    }

    fn redrives(
        &self,
        trigger: &Runner,
        wanted: impl Fn(RunState) -> bool,
    ) -> Result<Vec<(RunEntry, RunDefinition)>, RunError> {
        let entries: Vec<RunEntry> = self
            .inner
            .broker
            .journal()
            .look(|state| state.runs_of(trigger.id).into_iter().filter(|run| wanted(run.state)).cloned().collect());
        let with_definitions = entries.into_iter().map(|entry| {
            let definition = definition(&entry)?;
            Ok((entry, definition))
        });
        let all: Vec<(RunEntry, RunDefinition)> = with_definitions.collect::<Result<_, RunError>>()?;
        Ok(all.into_iter().filter(|(_, definition)| definition.kind == RunKind::Redrive).collect())
    }

    fn no_redrive(&self, trigger: &Runner) -> Result<(), RunError> {
        match self.redrives(trigger, |state| state == RunState::Running)?.first() {
            None => Ok(()),
            Some((entry, _)) => {
                let run = entry.defined.id;
                Err(RunError::State(format!("redrive {run} of this trigger goes on: wait for its end, or cancel it")))
            }
        }
    }

    /// What is to be remembered so that cancelled redrives give way to another one: they end where they stand. An
    /// earlier one that goes on does not give way.
    fn replace_cancelled(&self, trigger: &Runner) -> Result<Vec<Replaced>, RunError> {
        self.no_redrive(trigger)?;
        let since_ms = self.inner.clock.now_ms();
        let replace = |(entry, definition): (RunEntry, RunDefinition)| {
            let definition = self.cut(&entry, definition);
            let text = serde_json::to_string(&definition).expect("a definition is JSON");
            let (id, topic, counts) = (entry.defined.id, entry.defined.topic, entry.counts.clone());
            let switched = RunSwitched { id, state: RunState::Replaced, since_ms, counts };
            let records = vec![RunDefined { definition: text, ..entry.defined }.into(), switched.into()];
            Replaced { records, topic, definition }
        };
        Ok(self.redrives(trigger, |state| state == RunState::Cancelled)?.into_iter().map(replace).collect())
    }

    /// What a redrive that has not ended has taken so far: up to where it has read, besides what is not finished there.
    fn cut(&self, entry: &RunEntry, definition: RunDefinition) -> RunDefinition {
        let (mut ranges, mut left) = (Vec::new(), Left::default());
        for range in &definition.ranges {
            let progress = self.inner.broker.journal().look(|state| run_progress(state, entry, range.partition));
            let Some(progress) = progress else { continue };
            // Where it left too much to be remembered, what is finished behind the first of that is taken again.
            let is_left = left.add(range.partition, &progress);
            let taken_to = if is_left { progress.reading_point() } else { progress.committed() };
            let taken_to = taken_to.clamp(range.first(), range.next());
            ranges.extend(RunRange::new(range.partition, range.first(), taken_to));
        }
        RunDefinition { ranges, left, ..definition }
    }

    /// Counts what a redrive would find, and cuts its ranges where it would have taken `max` letters.
    async fn look_through(
        &self,
        topic: &RunTopic,
        redrive: &RunDefinition,
        gate: &Gate,
        max: Option<u64>,
        deadline: Option<Instant>,
    ) -> Result<RedrivePreview, RunError> {
        let mut counts = LetterCounts::default();
        let (mut ranges, mut first, mut is_complete) = (Vec::new(), Vec::new(), true);
        for range in &redrive.ranges {
            if max.is_some_and(|max| counts.taken >= max) {
                break;
            }
            let partition = range.partition;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                is_complete = false;
                ranges.push(*range);
                continue;
            }
            let input = topic.input(&self.inner.broker, partition).await?;
            let next = scan_letters(&input, range, gate, max, deadline, &mut counts, |offset| {
                if first.len() < NAMED_MAX {
                    first.push((partition, offset));
                }
            })
            .await
            .map_err(|error| topic.scan_failed(error))?;
            is_complete &= next == range.next() || max.is_some_and(|max| counts.taken >= max);
            ranges.extend(RunRange::new(
                partition,
                range.first(),
                if deadline.is_some() { range.next() } else { next },
            ));
        }
        Ok(RedrivePreview { topic: topic.name().to_owned(), ranges, counts, first, is_complete })
    }
}

async fn redrive_definition(topic: &RunTopic, request: &RedriveRequest) -> Result<RunDefinition, RunError> {
    Ok(RunDefinition {
        ranges: topic.ranges(&request.ranges).await?,
        filter: request.filter.as_ref().map(|filter| filter.source().clone()),
        rate: request.rate,
        redrives_max: request.redrives_max,
        again: request.again,
        ..everything(topic, Vec::new())
    })
}

/// A redrive that takes whatever there is.
fn everything(topic: &RunTopic, ranges: Vec<RunRange>) -> RunDefinition {
    RunDefinition {
        kind: RunKind::Redrive,
        topic: topic.name().to_owned(),
        ranges,
        filter: None,
        rate: None,
        redrives_max: None,
        again: false,
        left: Left::default(),
    }
}
