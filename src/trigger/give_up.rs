//! What becomes of records whose attempts are spent: the verdict, then their dead letters.
//!
//! A verdict is written down twice: with the first progress that says that its window is given up, so that nothing of
//! it is invoked again and what its last attempt said is kept; and when it is known where its letters go. The second
//! one names their topic and their producer id, and what the topic's partition remembers of that producer says how far
//! it came: so after a crash what is missing is done and nothing twice.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::Fuse;
use tokio::sync::oneshot;
use tripline_storage::Offset;
use uuid::Uuid;

use super::attempt::{AttemptState, ExhaustedReason};
use super::deliver::{DeadLetters, RecordsError, letters_there};
use super::lane::{Carried, WindowId};
use super::outputs::{Invoked, Outlet, Outputs};
use super::poller::{Message, PollerHandle};
use super::runner::{Counters, Runner, Stopped};
use super::trace::Settled;
use super::trace::ranges::Ranges;
use crate::broker::codec;
use crate::broker::record::{DeadLetterTarget, LaneId, LettersGo, TriggerVerdict};
use crate::broker::{Acks, ProduceError};
use crate::input::{EventInput, Origin};

#[cfg(feature = "cluster")]
pub(super) mod cluster;

/// The verdict on a window whose attempts are spent: these records, ascending and at least one. It is written down with
/// the first progress that says so, while what the last attempt said is still known. `name`: what the invocations of the
/// window were called, of which these may be the rest.
pub(super) fn verdict(
    lane: LaneId,
    function: &str,
    (name, offsets): (Offset, &[Offset]),
    state: &AttemptState,
    reason: ExhaustedReason,
) -> TriggerVerdict {
    debug_assert!(name <= offsets[0], "a window is named after the first record that it had");
    TriggerVerdict {
        lane,
        first: offsets[0].get(),
        next: offsets[offsets.len() - 1].next().get(),
        offsets: offsets.iter().map(|offset| offset.get()).collect(),
        reason: reason.as_str().to_owned(),
        function: function.to_owned(),
        // Most windows are given up whole: their name is the first of the offsets.
        attempts: if name == offsets[0] { codec::encode_part(state) } else { codec::encode_part(&(state, name.get())) },
        dead_letters: LettersGo::Undecided,
    }
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

impl DeadLetterError {
    fn is_damage(&self) -> bool {
        matches!(self, Self::Records(error) if error.damaged().is_some())
    }
}

/// The window of a verdict that a restart found.
pub(super) fn carried(verdict: &TriggerVerdict) -> Option<Carried> {
    let offsets: Vec<Offset> = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
    let reason = ExhaustedReason::from_name(&verdict.reason).unwrap_or(ExhaustedReason::Attempts);
    let (name, state) = attempts_of(verdict);
    (!offsets.is_empty()).then(|| Carried::verdict(name, &offsets, state, reason))
}

/// The attempts that led to a verdict, and what they were called.
fn attempts_of(verdict: &TriggerVerdict) -> (Offset, AttemptState) {
    let first = Offset::new(verdict.first).unwrap_or(Offset::ZERO);
    let whole = |_| codec::decode_part(&verdict.attempts).map(|state| (state, verdict.first));
    match codec::decode_part(&verdict.attempts).or_else(whole) {
        Ok((state, name)) => (Offset::new(name).unwrap_or(first), state),
        Err(reason) => {
            tracing::error!(lane = ?verdict.lane, reason, "attempts in the journal do not decode");
            (first, AttemptState::default())
        }
    }
}

/// Goes on until the records of a verdict that is written down are dead letters, or dropped. Answers the first offset
/// of its range.
///
/// # Errors
/// [`Stopped`]: the trigger ended first.
pub(super) async fn run(
    runner: Arc<Runner>,
    input: EventInput,
    mut verdict: TriggerVerdict,
    mut hold_up: HoldUp,
) -> Result<i64, Stopped> {
    #[cfg(feature = "cluster")]
    if let EventInput::Cluster(partition) = &input {
        let client = Arc::clone(partition.client());
        return cluster::run(runner, input, client, verdict, hold_up).await;
    }
    let work = GiveUp { runner, input };
    let target = work.decide(&mut verdict, &mut hold_up).await?;
    work.carry_out(&verdict, target, &mut hold_up).await?;
    Ok(verdict.first)
}

/// What holds up a verdict, as a person may end it.
#[derive(Debug)]
pub(super) struct HoldUp {
    poller: PollerHandle,
    trigger: Uuid,
    window: WindowId,
    /// Set while the poller knows of it.
    skipped: Option<Fuse<oneshot::Receiver<()>>>,
}

/// How the wait of a verdict ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    /// It may be tried again.
    Again,
    /// A person skips what holds it up.
    Skipped,
}

impl HoldUp {
    pub(super) const fn new(poller: PollerHandle, trigger: Uuid, window: WindowId) -> Self {
        Self { poller, trigger, window, skipped: None }
    }

    /// What held it up is over: a skip that comes from now on does not mean what may come next.
    fn over(&mut self) {
        self.skipped = None;
    }

    /// Shows why, and waits a little, or until somebody changes or skips something.
    async fn wait(&mut self, runner: &Runner, origin: &Origin, reason: &str) -> Result<Waited, Stopped> {
        let Self { poller, trigger, window, .. } = self;
        let skipped = self.skipped.get_or_insert_with(|| {
            let (skip, skipped) = oneshot::channel();
            poller.send(Message::HeldUp(*trigger, *window, skip));
            skipped.fuse()
        });
        tokio::select! {
            waited = runner.blocked(origin, reason) => waited.map(|()| Waited::Again),
            Ok(()) = skipped => {
                self.skipped = None;
                Ok(Waited::Skipped)
            }
        }
    }
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

/// What is told of a window that is given up.
struct Told<'a> {
    /// What its invocations were called.
    name: Offset,
    /// Its records, ascending, at least one.
    offsets: &'a [Offset],
    function: &'a str,
    state: &'a AttemptState,
}

impl Told<'_> {
    /// The record of the invocation that failed, for those who asked for it. After a crash it may be there twice.
    async fn tell(
        &self,
        runner: &Runner,
        input: &EventInput,
        reason: &str,
        hold_up: &mut HoldUp,
    ) -> Result<(), Stopped> {
        let (spec, origin) = (runner.spec(), input.origin());
        let id = runner.invocation_id(origin, self.name);
        let invoked = Invoked {
            id: &id,
            trigger: spec.name.as_str(),
            function: self.function,
            topic: &origin.topic,
            partition: origin.partition,
            offsets: self.offsets,
            attempts: self.state.attempts,
            now_ms: runner.clock.now_ms(),
            cause: None,
        };
        let outlet = Outlet::of(&runner.broker, input);
        let mut outputs = Outputs::of_failure(&spec.destinations, &invoked, condition(reason), self.state);
        loop {
            match outputs.leave(&outlet, &invoked).await {
                Ok(()) => return Ok(()),
                Err(error) if error.fails_attempt().is_some() => {
                    tracing::error!(%error, "invocation record left out");
                    return Ok(());
                }
                Err(error) => {
                    if hold_up.wait(runner, origin, &error.to_string()).await? == Waited::Skipped {
                        tracing::error!(%error, "invocation record skipped");
                        return Ok(());
                    }
                }
            }
        }
    }

    /// History tells of it.
    fn trace(&self, runner: &Runner, input: &EventInput, reason: &str, letters: Option<LetterPlaces>) {
        let spec = runner.spec();
        if spec.keeps_trace(&input.origin().topic, true) {
            runner.traces.verdict(Box::new(Settled {
                spec,
                trigger: runner.id,
                run: runner.run,
                input: input.clone(),
                offsets: Ranges::of(self.offsets.iter().copied()),
                reason: reason.to_owned(),
                state: self.state.clone(),
                at_ms: runner.clock.now_ms(),
                letters,
            }));
        }
    }
}

/// Topic, partition and offsets of dead letters.
type LetterPlaces = (String, u32, Ranges);

/// Writes a verdict down that says where its letters go. Durable before the first of them: one whose verdict a power
/// cut took would be written a second time.
async fn remember(runner: &Runner, input: &EventInput, verdict: &TriggerVerdict) -> Result<(), Stopped> {
    let source = Offset::new(verdict.next).map(|next| input.sources(next)).unwrap_or_default();
    loop {
        match runner.broker.journal().commit(&[verdict.clone().into()], &source, crate::broker::now_ms()).await {
            Ok(()) => return Ok(()),
            Err(error) => runner.blocked(input.origin(), &error.to_string()).await?,
        }
    }
}

struct GiveUp {
    runner: Arc<Runner>,
    input: EventInput,
}

impl GiveUp {
    /// Decides where the dead letters go, and writes that down, unless that was done before. `None`: nowhere.
    async fn decide(
        &self,
        verdict: &mut TriggerVerdict,
        hold_up: &mut HoldUp,
    ) -> Result<Option<DeadLetterTarget>, Stopped> {
        match &verdict.dead_letters {
            // Of a cluster no lane of this broker knows anything.
            LettersGo::Undecided | LettersGo::ToCluster(_) => {}
            LettersGo::Nowhere => return Ok(None),
            LettersGo::To(target) => return Ok(Some(*target)),
        }
        let target = self.target(verdict.lane.partition, hold_up).await?;
        verdict.dead_letters = target.map_or(LettersGo::Nowhere, LettersGo::To);
        remember(&self.runner, &self.input, verdict).await?;
        Ok(target)
    }

    /// Where dead letters go, with an idempotent producer of their own: whatever becomes of one verdict, the next is
    /// not held up by it. `None`: nowhere.
    async fn target(&self, partition: u32, hold_up: &mut HoldUp) -> Result<Option<DeadLetterTarget>, Stopped> {
        loop {
            // Read anew each time: a person may name another topic to end the wait.
            let Some(name) = self.runner.spec().dead_letter.clone() else { return Ok(None) };
            let Some(topic) = self.runner.broker.topic(name.as_str()) else {
                let reason = format!("the dead-letter topic {name} does not exist");
                match hold_up.wait(&self.runner, self.input.origin(), &reason).await? {
                    Waited::Again => continue,
                    Waited::Skipped => return Ok(None),
                }
            };
            match self.runner.broker.next_producer_id().await {
                Ok(producer_id) => {
                    hold_up.over();
                    let partition = topic.taking_from(partition % topic.partition_count());
                    let batch_bytes = topic.with_config(|config| config.max_message_bytes);
                    return Ok(Some(DeadLetterTarget { topic: topic.id(), partition, producer_id, batch_bytes }));
                }
                Err(error) => self.runner.blocked(self.input.origin(), &error.to_string()).await?,
            }
        }
    }

    async fn carry_out(
        &self,
        verdict: &TriggerVerdict,
        target: Option<DeadLetterTarget>,
        hold_up: &mut HoldUp,
    ) -> Result<(), Stopped> {
        let offsets: Vec<Offset> = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
        let letters = self.dead_letters(verdict, target, &offsets, hold_up).await?;
        let (name, state) = attempts_of(verdict);
        let told = Told { name, offsets: &offsets, function: &verdict.function, state: &state };
        told.tell(&self.runner, &self.input, &verdict.reason, hold_up).await?;
        told.trace(&self.runner, &self.input, &verdict.reason, letters);
        Ok(())
    }

    /// Answers topic, partition and offsets of the letters, where there are any.
    async fn dead_letters(
        &self,
        verdict: &TriggerVerdict,
        target: Option<DeadLetterTarget>,
        offsets: &[Offset],
        hold_up: &mut HoldUp,
    ) -> Result<Option<LetterPlaces>, Stopped> {
        let counters = &self.runner.counters;
        let Some(target) = target else {
            Counters::add(&counters.dropped, offsets.len());
            let spec = self.runner.spec();
            let (topic, first, reason) = (&self.input.origin().topic, verdict.first, &verdict.reason);
            tracing::warn!(trigger = %spec.name, topic, partition = verdict.lane.partition, first, records = offsets.len(), reason, "records dropped: there is no dead-letter topic");
            return Ok(None);
        };
        // Whoever skips what cannot be read has seen the range.
        let mut pass_damage = verdict.reason == ExhaustedReason::Skipped.as_str();
        let (written, places) = loop {
            let error = match self.write(verdict, offsets, target, pass_damage).await {
                Ok(written) => break written,
                Err(error) => error,
            };
            let reason = format!("dead letters: {error}");
            match hold_up.wait(&self.runner, self.input.origin(), &reason).await? {
                Waited::Again => {}
                Waited::Skipped if error.is_damage() && !pass_damage => pass_damage = true,
                Waited::Skipped => {
                    Counters::add(&counters.dropped, offsets.len());
                    let (spec, first) = (self.runner.spec(), verdict.first);
                    tracing::error!(trigger = %spec.name, first, records = offsets.len(), %error, "skipped without dead letters");
                    return Ok(None);
                }
            }
        };
        hold_up.over();
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
        pass_damage: bool,
    ) -> Result<(usize, Ranges), DeadLetterError> {
        let broker = &self.runner.broker;
        let topic = broker.topic_by_id(target.topic).ok_or(DeadLetterError::NoTopic)?;
        let (_, state) = attempts_of(verdict);
        let spec = self.runner.spec();
        let letters = DeadLetters {
            trigger: spec.name.as_str(),
            function: &verdict.function,
            origin: self.input.origin(),
            state: &state,
            batch_bytes: target.batch_bytes as usize,
            now_ms: self.runner.clock.now_ms(),
        };
        let there = topic.partition(target.partition).map_err(ProduceError::from)?.producer(target.producer_id);
        let mut written = there.as_ref().map_or(0, letters_there).min(offsets.len());
        let mut left: Vec<(i16, Offset)> = (0..).zip(offsets.iter().copied()).skip(written).collect();
        let batches = loop {
            match letters.batches(&self.input, &left, target.producer_id).await {
                Ok(batches) => break batches,
                Err(error) => {
                    let Some(damaged) = error.damaged().filter(|_| pass_damage) else { return Err(error.into()) };
                    tracing::error!(trigger = %spec.name, %error, "skipped without dead letters: damaged");
                    left.retain(|(_, offset)| !damaged.contains(offset));
                }
            }
        };
        let mut places = Ranges::default();
        for batch in batches {
            written += batch.header().record_count.unsigned_abs() as usize;
            let appended = broker.append_reserved(&topic, target.partition, batch)?;
            appended.acknowledged(Acks::All).await.map_err(ProduceError::from)?;
            places.push(appended.outcome.base_offset.get(), appended.outcome.last_offset.get());
        }
        // Those that a broken-off try wrote may have waited for nothing.
        if let (Ok(log), Some(last)) = (topic.partition(target.partition), there.and_then(|there| there.last_offset)) {
            log.flushed_to(last.next()).await.map_err(ProduceError::from)?;
        }
        Ok((written, places))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tripline_storage::batch::{BatchBuilder, BatchLimits, BatchOptions, Batches, Compression, NewRecord};
    use uuid::Uuid;

    use super::*;
    use crate::broker::Topic;
    use crate::input::LogInput;
    use crate::topic::name::TopicName;
    use crate::topic::spec::{TopicConfig, TopicSpec};

    struct World {
        work: GiveUp,
        topic: Arc<Topic>,
        letters: Arc<Topic>,
    }

    impl World {
        async fn start() -> Self {
            let definition = json!({"trigger": "t", "input": {"topic": "in"}, "function": "f"});
            let runner = Runner::for_test(&definition);
            let make = async |name| {
                let spec =
                    TopicSpec { name: TopicName::new(name).unwrap(), partitions: 1, config: TopicConfig::default() };
                runner.broker.create_topic(spec).await.unwrap()
            };
            let (topic, letters) = (make("in").await, make("dlq").await);
            let input = EventInput::Log(LogInput::new(&runner.broker, &topic, 0).unwrap());
            Self { work: GiveUp { runner, input }, topic, letters }
        }

        fn append(&self, values: &[Vec<u8>], compression: Compression) {
            let mut builder = BatchBuilder::new(BatchOptions { compression, ..BatchOptions::default() });
            for value in values {
                builder.push(&NewRecord { timestamp_ms: 5, value: Some(value), ..NewRecord::default() }).unwrap();
            }
            self.work.runner.broker.append(&self.topic, 0, builder.finish().unwrap()).unwrap();
        }

        /// Carries out a verdict on the records at 0 to `next`; answers how many letters there are.
        async fn write(&self, next: i64) -> usize {
            let offsets: Vec<Offset> = (0..next).map(|at| Offset::new(at).unwrap()).collect();
            let target =
                DeadLetterTarget { topic: self.letters.id(), partition: 0, producer_id: 77, batch_bytes: 2_000 };
            let verdict = TriggerVerdict {
                lane: LaneId { trigger: Uuid::from_u128(1), topic: self.topic.id(), partition: 0 },
                first: 0,
                next,
                offsets: (0..next).collect(),
                reason: "attempts".to_owned(),
                function: "f".to_owned(),
                attempts: codec::encode_part(&AttemptState::default()),
                dead_letters: LettersGo::To(target),
            };
            self.work.write(&verdict, &offsets, target, false).await.unwrap().0
        }

        fn letters(&self) -> Vec<Vec<u8>> {
            let log = self.letters.partition(0).unwrap();
            let (mut at, mut found) = (log.log_start(), Vec::new());
            while at < log.tail() {
                let outcome = log.read_blocking(at, 1 << 20).unwrap();
                for view in Batches::of(&outcome.bytes) {
                    for record in &view.unwrap().records(&BatchLimits::default()).unwrap() {
                        found.push(record.unwrap().value().unwrap().to_vec());
                    }
                }
                at = outcome.next;
            }
            found
        }
    }

    fn values(range: std::ops::Range<i64>) -> Vec<Vec<u8>> {
        range.map(|number| number.to_string().into_bytes()).collect()
    }

    #[test]
    fn a_verdict_says_what_its_invocations_were_called_in_no_more_bytes_where_that_is_its_first_record() {
        let lane = LaneId { trigger: Uuid::from_u128(1), topic: Uuid::from_u128(2), partition: 0 };
        let at = |offset| Offset::new(offset).unwrap();
        let state = AttemptState { attempts: 3, ..AttemptState::default() };
        let of = |name| verdict(lane, "f", (at(name), &[at(7), at(9)]), &state, ExhaustedReason::Attempts);
        for name in [5, 7] {
            assert_eq!((of(name).first, attempts_of(&of(name))), (7, (at(name), state.clone())));
        }
        assert_eq!(of(7).attempts, codec::encode_part(&state), "as those who know no names wrote it");
    }

    #[tokio::test]
    async fn what_expires_under_a_half_done_verdict_moves_no_letter_and_no_letter_is_doubled() {
        for (there, expired) in [(0, 4), (5, 3), (5, 5), (5, 7), (5, 10), (10, 4)] {
            let world = World::start().await;
            world.append(&values(0..10), Compression::None);
            // A crash came behind so many letters.
            if there > 0 {
                assert_eq!(world.write(there).await, there as usize);
            }
            let before = Offset::new(expired).unwrap();
            world.work.runner.broker.delete_records(&world.topic, 0, Some(before)).await.unwrap();
            for _ in 0..2 {
                world.write(10).await;
                let expected = [values(0..there), values(expired.max(there)..10)].concat();
                assert_eq!(world.letters(), expected, "{there} letters, {expired} expired");
            }
        }
    }

    #[tokio::test]
    async fn a_record_as_large_as_can_be_read_becomes_a_letter() {
        let world = World::start().await;
        let frame = {
            let mut builder = BatchBuilder::new(BatchOptions::default());
            let value = vec![0; 20 << 20];
            builder.push(&NewRecord { timestamp_ms: 5, value: Some(&value), ..NewRecord::default() }).unwrap();
            builder.size_bytes() - value.len() - BatchBuilder::new(BatchOptions::default()).size_bytes()
        };
        let value = vec![0; BatchBuilder::RECORD_BYTES_MAX - frame];
        world.append(std::slice::from_ref(&value), Compression::Zstd);
        assert_eq!(world.write(1).await, 1);
        assert!(world.letters() == [value]);
    }

    #[tokio::test]
    async fn a_skip_ends_what_holds_a_verdict_up_and_nothing_that_comes_later() {
        let world = World::start().await;
        let runner = &world.work.runner;
        let (poller, mut inbox) = PollerHandle::for_test();
        let mut hold_up = HoldUp::new(poller, runner.id, WindowId::for_test(1));
        let mut told = || match inbox.try_recv() {
            Ok(Message::HeldUp(_, _, skip)) => skip,
            other => panic!("{other:?}"),
        };
        let origin = world.work.input.origin();
        for _ in 0..2 {
            let mut wait = std::pin::pin!(hold_up.wait(runner, origin, "no such topic"));
            assert!(wait.as_mut().now_or_never().is_none());
            told().send(()).unwrap();
            assert_eq!(wait.await.unwrap(), Waited::Skipped);
        }
        {
            let mut wait = std::pin::pin!(hold_up.wait(runner, origin, "no such topic"));
            assert!(wait.as_mut().now_or_never().is_none());
            runner.nudge();
            assert_eq!(wait.await.unwrap(), Waited::Again);
        }
        hold_up.over();
        assert!(told().send(()).is_err(), "there is nothing to skip any more");
    }
}
