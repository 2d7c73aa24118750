//! What becomes of records whose attempts are spent: the verdict, then their dead letters.
//!
//! After a crash between them, what is missing is done and nothing twice: the verdict names the records, the topic and the
//! producer id of their letters, so that a letter which is there is recognised as a duplicate.

use std::sync::Arc;

use tripline_storage::Offset;
use tripline_storage::error::{AppendError, ReadError};
use tripline_storage::producer::SequenceError;

use super::attempt::{AttemptState, ExhaustedReason};
use super::deliver::{DeadLetters, RecordsError};
use super::lane::Carried;
use super::outputs::{self, Invoked, OutputError};
use super::runner::{Counters, Runner, Stopped};
use super::trace::Settled;
use super::trace::ranges::Ranges;
use crate::broker::codec;
use crate::broker::record::{DeadLetterTarget, LaneId, TriggerVerdict};
use crate::broker::{Acks, ProduceError};
use crate::input::EventInput;

#[cfg(feature = "cluster")]
pub(super) mod cluster;

/// What to do.
#[derive(Debug)]
pub(super) enum Task {
    /// Decide, write that down, and carry it out.
    Decide {
        /// The records, ascending, at least one.
        offsets: Vec<Offset>,
        /// Their attempts.
        state: AttemptState,
        /// Why they are given up.
        reason: ExhaustedReason,
    },
    /// Carry out what was decided before a restart.
    Known(TriggerVerdict),
}

/// Why dead letters could not be written yet.
#[derive(Debug, thiserror::Error)]
enum DeadLetterError {
    #[error("the dead-letter topic was deleted")]
    NoTopic,
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(transparent)]
    Produce(#[from] ProduceError),
}

/// The window of a verdict that a restart found.
pub(super) fn carried(verdict: &TriggerVerdict) -> Option<Carried> {
    let offsets: Vec<Offset> = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
    let reason = ExhaustedReason::from_name(&verdict.reason).unwrap_or(ExhaustedReason::Attempts);
    (!offsets.is_empty()).then(|| Carried::verdict(&offsets, attempts_of(verdict), reason))
}

fn attempts_of(verdict: &TriggerVerdict) -> AttemptState {
    codec::decode_part(&verdict.attempts).unwrap_or_else(|reason| {
        tracing::error!(lane = ?verdict.lane, reason, "attempts in the journal do not decode");
        AttemptState::default()
    })
}

/// Goes on until the records are dead letters, or dropped. Answers the first offset of the verdict's range.
///
/// # Errors
/// [`Stopped`]: the trigger ended first.
pub(super) async fn run(runner: Arc<Runner>, input: EventInput, lane: LaneId, task: Task) -> Result<i64, Stopped> {
    let work = GiveUp { runner, input, lane };
    let verdict = match task {
        Task::Known(verdict) => verdict,
        Task::Decide { offsets, state, reason } => work.decide(&offsets, &state, reason).await?,
    };
    work.carry_out(&verdict).await?;
    Ok(verdict.first)
}

/// The words that invocation records use for why a window was given up.
fn condition(reason: &str) -> &'static str {
    match ExhaustedReason::from_name(reason) {
        Some(ExhaustedReason::Age) => "EventAgeExceeded",
        Some(ExhaustedReason::Rejected) => "Rejected",
        Some(ExhaustedReason::Skipped) => "Skipped",
        Some(ExhaustedReason::Attempts) | None => "RetriesExhausted",
    }
}

struct GiveUp {
    runner: Arc<Runner>,
    input: EventInput,
    lane: LaneId,
}

impl GiveUp {
    async fn decide(
        &self,
        offsets: &[Offset],
        state: &AttemptState,
        reason: ExhaustedReason,
    ) -> Result<TriggerVerdict, Stopped> {
        let dead_letters = self.target().await?;
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        let verdict = TriggerVerdict {
            lane: self.lane,
            first: first.get(),
            next: last.next().get(),
            offsets: offsets.iter().map(|offset| offset.get()).collect(),
            reason: reason.as_str().to_owned(),
            function: self.runner.spec().function.label().to_owned(),
            attempts: codec::encode_part(state),
            dead_letters,
        };
        let source = self.input.sources(last.next());
        loop {
            let now_ms = crate::broker::now_ms();
            // Durable before the first letter: one whose verdict a power cut took would be written a second time.
            match self.runner.broker.journal().commit(&[verdict.clone().into()], &source, now_ms).await {
                Ok(()) => return Ok(verdict),
                Err(error) => self.runner.blocked(self.lane.partition, &error.to_string()).await?,
            }
        }
    }

    /// Where dead letters go, with an idempotent producer of their own: whatever becomes of one verdict, the next is not
    /// held up by it.
    async fn target(&self) -> Result<Option<DeadLetterTarget>, Stopped> {
        loop {
            // Read anew each time: a person may name another topic to end the wait.
            let Some(name) = self.runner.spec().dead_letter.clone() else { return Ok(None) };
            let Some(topic) = self.runner.broker.topic(name.as_str()) else {
                self.runner
                    .blocked(self.lane.partition, &format!("the dead-letter topic {name} does not exist"))
                    .await?;
                continue;
            };
            match self.runner.broker.next_producer_id().await {
                Ok(producer_id) => {
                    let partition = self.lane.partition % topic.partition_count();
                    let batch_bytes = topic.with_config(|config| config.max_message_bytes);
                    return Ok(Some(DeadLetterTarget { topic: topic.id(), partition, producer_id, batch_bytes }));
                }
                Err(error) => self.runner.blocked(self.lane.partition, &error.to_string()).await?,
            }
        }
    }

    async fn carry_out(&self, verdict: &TriggerVerdict) -> Result<(), Stopped> {
        let offsets: Vec<Offset> = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
        let letters = self.dead_letters(verdict, &offsets).await?;
        self.tell(verdict, &offsets).await?;
        self.trace(verdict, offsets, letters);
        Ok(())
    }

    fn trace(&self, verdict: &TriggerVerdict, offsets: Vec<Offset>, letters: Option<(String, u32, Ranges)>) {
        let spec = self.runner.spec();
        if spec.trace.keeps(true) {
            self.runner.traces.verdict(Box::new(Settled {
                spec,
                trigger: self.lane.trigger,
                run: self.runner.run,
                input: self.input.clone(),
                offsets: Ranges::of(offsets),
                reason: verdict.reason.clone(),
                state: attempts_of(verdict),
                at_ms: self.runner.clock.now_ms(),
                letters,
            }));
        }
    }

    /// The record of the invocation that failed, for those who asked for it. After a crash it may be there twice.
    async fn tell(&self, verdict: &TriggerVerdict, offsets: &[Offset]) -> Result<(), Stopped> {
        let (spec, state) = (self.runner.spec(), attempts_of(verdict));
        let origin = self.input.origin();
        let id = self.runner.invocation_id(origin, Offset::new(verdict.first).unwrap_or(Offset::ZERO));
        loop {
            let invoked = Invoked {
                id: &id,
                trigger: spec.name.as_str(),
                function: &verdict.function,
                topic: &origin.topic,
                partition: origin.partition,
                offsets,
                attempts: state.attempts,
                now_ms: self.runner.clock.now_ms(),
                cause: None,
            };
            let condition = condition(&verdict.reason);
            match outputs::given_up(&self.runner.broker, &spec.destinations, &invoked, condition, &state) {
                Ok(()) => return Ok(()),
                Err(error @ OutputError::TooLarge { .. }) => {
                    tracing::error!(%error, "invocation record left out");
                    return Ok(());
                }
                Err(error) => self.runner.blocked(origin.partition, &error.to_string()).await?,
            }
        }
    }

    /// Answers topic, partition and offsets of the letters, where there are any.
    async fn dead_letters(
        &self,
        verdict: &TriggerVerdict,
        offsets: &[Offset],
    ) -> Result<Option<(String, u32, Ranges)>, Stopped> {
        let counters = &self.runner.counters;
        let Some(target) = verdict.dead_letters else {
            Counters::add(&counters.dropped, offsets.len());
            let spec = self.runner.spec();
            let (topic, first, reason) = (&self.input.origin().topic, verdict.first, &verdict.reason);
            tracing::warn!(trigger = %spec.name, topic, partition = self.lane.partition, first, records = offsets.len(), reason, "records dropped: there is no dead-letter topic");
            return Ok(None);
        };
        let (written, places) = loop {
            match self.write(verdict, offsets, target).await {
                Ok(written) => break written,
                Err(error) => self.runner.blocked(self.lane.partition, &format!("dead letters: {error}")).await?,
            }
        };
        Counters::add(&counters.dead_lettered, written);
        Counters::add(&counters.expired, offsets.len() - written);
        let topic = self.runner.broker.topic_by_id(target.topic);
        Ok(topic.map(|topic| (topic.name().to_string(), target.partition, places)))
    }

    /// Answers how many there are, and where; those that retention took meanwhile are not.
    async fn write(
        &self,
        verdict: &TriggerVerdict,
        offsets: &[Offset],
        target: DeadLetterTarget,
    ) -> Result<(usize, Ranges), DeadLetterError> {
        let broker = &self.runner.broker;
        let topic = broker.topic_by_id(target.topic).ok_or(DeadLetterError::NoTopic)?;
        let state = attempts_of(verdict);
        let spec = self.runner.spec();
        let letters = DeadLetters {
            trigger: spec.name.as_str(),
            function: &verdict.function,
            origin: self.input.origin(),
            state: &state,
            batch_bytes: target.batch_bytes as usize,
            now_ms: self.runner.clock.now_ms(),
        };
        let mut readable = offsets.to_vec();
        let batches = loop {
            match letters.batches(&self.input, &readable, target.producer_id).await {
                // Whoever skips what cannot be read has seen the range.
                Err(RecordsError::Read(ReadError::Damaged { from, to }))
                    if verdict.reason == ExhaustedReason::Skipped.as_str() =>
                {
                    tracing::error!(trigger = %spec.name, %from, %to, "skipped without dead letters: damaged");
                    readable.retain(|offset| !(from..to).contains(offset));
                }
                batches => break batches?,
            }
        };
        let (mut written, mut places) = (0, Ranges::default());
        for batch in batches {
            written += batch.header().record_count.unsigned_abs() as usize;
            match broker.append_reserved(&topic, target.partition, batch) {
                Ok(appended) => {
                    appended.acknowledged(Acks::All).await.map_err(ProduceError::from)?;
                    places.push(appended.outcome.base_offset.get(), appended.outcome.last_offset.get());
                }
                // So long ago that the log forgot where: it is there.
                Err(ProduceError::Append(AppendError::Sequence(SequenceError::Duplicate { .. }))) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((written, places))
    }
}
