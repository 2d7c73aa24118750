//! Records that are given up on a cluster: their dead letters go there too.
//!
//! The verdict is made known, with the producer id of its letters, before the first of them is sent: to the group, or
//! where a run gives up, to the journal of its process. Whoever takes the partition over after that, or the next start,
//! sends the same batches under the same id, and the cluster drops those that it has: no letter is doubled for as long
//! as the cluster remembers the producer (Kafka: a day by default). For that, batches are cut by what the records are
//! and never by what is said about them: the error of the last attempt is not known to who takes over.

use std::sync::Arc;

use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, CheckedBatch, NewRecord};

use super::{HoldUp, LetterPlaces, Told, Waited, attempts_of, remember};
use crate::broker::record::{ClusterLetters, LettersGo, TriggerVerdict};
use crate::input::EventInput;
use crate::input::cluster::{Client, ClusterError};
use crate::trigger::attempt::{AttemptState, ExhaustedReason};
use crate::trigger::deliver::{DeadLetters, RecordsError, read_offsets};
use crate::trigger::poller::PollerHandle;
use crate::trigger::runner::{Counters, Runner, Stopped};
use crate::trigger::trace::ranges::Ranges;

/// A batch is full with so many bytes of records…
const BATCH_BYTES: usize = 512 << 10;
/// …where each counts this for what is said about it: names of at most 250 bytes, a message of at most 1 KiB, numbers.
const ABOUT_BYTES: usize = 4 << 10;

/// A window to give up.
#[derive(Debug)]
pub(in crate::trigger) struct GiveUp {
    pub(in crate::trigger) runner: Arc<Runner>,
    pub(in crate::trigger) input: EventInput,
    pub(in crate::trigger) client: Arc<Client>,
    pub(in crate::trigger) hold_up: HoldUp,
    /// Its records, ascending, at least one.
    pub(in crate::trigger) offsets: Vec<Offset>,
    pub(in crate::trigger) state: AttemptState,
    pub(in crate::trigger) reason: ExhaustedReason,
    pub(in crate::trigger) keeper: Keeper,
}

/// Who knows of a verdict before anything of it is done.
#[derive(Debug)]
pub(in crate::trigger) enum Keeper {
    /// The group, by the commits of this poller; with the producer id of the letters, if it knows that.
    Group(PollerHandle, Option<i64>),
    /// The journal.
    Journal(Box<TriggerVerdict>),
}

/// As [`super::run`], on a cluster.
pub(super) async fn run(
    runner: Arc<Runner>,
    input: EventInput,
    client: Arc<Client>,
    verdict: TriggerVerdict,
    hold_up: HoldUp,
) -> Result<i64, Stopped> {
    let (first, state) = (verdict.first, attempts_of(&verdict));
    let offsets = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
    let reason = ExhaustedReason::from_name(&verdict.reason).unwrap_or(ExhaustedReason::Attempts);
    let keeper = Keeper::Journal(Box::new(verdict));
    let mut work = GiveUp { runner, input, client, hold_up, offsets, state, reason, keeper };
    let is_done = work.carry_out().await?;
    debug_assert!(is_done, "what the journal has is nobody else's");
    Ok(first)
}

#[derive(Debug, thiserror::Error)]
enum LetterError {
    #[error(transparent)]
    Records(#[from] RecordsError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// What is decided of dead letters before.
#[derive(Debug, PartialEq, Eq)]
enum Known {
    /// They go there.
    Target(ClusterLetters),
    /// There are to be none.
    Nowhere,
    /// To the topic that the definition names; under this id, if some may be there.
    Defined(String, Option<i64>),
}

/// What became of dead letters.
enum Letters {
    /// They are there.
    At(LetterPlaces),
    /// There are none.
    None,
    /// The partition is somebody else's now, and so are they.
    SomebodyElses,
}

impl GiveUp {
    /// Goes on until the records are dead letters, or dropped. `false`: the partition is somebody else's now, or the
    /// trigger has ended.
    pub(in crate::trigger) async fn run(mut self) -> bool {
        self.carry_out().await.unwrap_or(false)
    }

    async fn carry_out(&mut self) -> Result<bool, Stopped> {
        let letters = match self.dead_letters().await? {
            Letters::SomebodyElses => return Ok(false),
            Letters::None => None,
            Letters::At(places) => Some(places),
        };
        let function = self.function();
        let told = Told { offsets: &self.offsets, function: &function, state: &self.state };
        told.tell(&self.runner, &self.input, self.reason.as_str(), &mut self.hold_up).await?;
        told.trace(&self.runner, &self.input, self.reason.as_str(), letters);
        Ok(true)
    }

    async fn dead_letters(&mut self) -> Result<Letters, Stopped> {
        let target = loop {
            let (topic, producer_id) = match self.known() {
                Known::Target(target) => break target,
                Known::Nowhere => {
                    self.drop_records();
                    return Ok(Letters::None);
                }
                Known::Defined(topic, producer_id) => (topic, producer_id),
            };
            match self.decide(topic, producer_id).await {
                Ok(target) if producer_id.is_some() || self.make_known(&target).await? => break target,
                Ok(_) => return Ok(Letters::SomebodyElses),
                Err(error) => {
                    if self.is_skipped(&error.into()).await? {
                        return Ok(Letters::None);
                    }
                }
            }
        };
        // What is skipped from now on is not the wait for that.
        self.hold_up.over();
        loop {
            match self.write(&target).await {
                Ok(written) => {
                    self.hold_up.over();
                    Counters::add(&self.runner.counters.dead_lettered, written);
                    Counters::add(&self.runner.counters.expired, self.offsets.len() - written);
                    // The cluster does not say where those are that it had already.
                    return Ok(Letters::At((target.topic, target.partition, Ranges::default())));
                }
                Err(error) => {
                    if self.is_skipped(&error).await? {
                        return Ok(Letters::None);
                    }
                }
            }
        }
    }

    /// Waits before letters are tried again; when a person skips them meanwhile, they are dropped.
    async fn is_skipped(&mut self, error: &LetterError) -> Result<bool, Stopped> {
        let (origin, reason) = (self.input.origin(), format!("dead letters: {error}"));
        let is_skipped = self.hold_up.wait(&self.runner, origin, &reason).await? == Waited::Skipped;
        if is_skipped {
            tracing::error!(%error, "skipped without dead letters");
            self.drop_records();
        }
        Ok(is_skipped)
    }

    /// Which function gave them up, as far as that is known.
    fn function(&self) -> String {
        match &self.keeper {
            Keeper::Group(..) => self.runner.spec().function.label().to_owned(),
            Keeper::Journal(verdict) => verdict.function.clone(),
        }
    }

    /// What is decided. The definition is read anew each time: a person may name another topic to end a wait.
    fn known(&self) -> Known {
        let defined = |producer_id| match &self.runner.spec().dead_letter {
            Some(topic) => Known::Defined(topic.to_string(), producer_id),
            None => Known::Nowhere,
        };
        match &self.keeper {
            Keeper::Group(_, producer_id) => defined(*producer_id),
            Keeper::Journal(verdict) => match &verdict.dead_letters {
                LettersGo::ToCluster(target) => Known::Target(target.clone()),
                LettersGo::Nowhere => Known::Nowhere,
                LettersGo::Undecided | LettersGo::To(_) => defined(None),
            },
        }
    }

    /// In the partition of their record modulo the topic's.
    async fn decide(&self, topic: String, producer_id: Option<i64>) -> Result<ClusterLetters, ClusterError> {
        let partition = self.input.origin().partition % self.client.topic(&topic).await?.partition_count().max(1);
        let producer_id = match producer_id {
            Some(known) => known,
            None => self.client.producer_id().await?,
        };
        Ok(ClusterLetters { topic, partition, producer_id })
    }

    /// `false`: the partition is somebody else's now.
    async fn make_known(&mut self, target: &ClusterLetters) -> Result<bool, Stopped> {
        match &mut self.keeper {
            Keeper::Group(poller, _) => {
                Ok(poller.make_known(self.runner.id, self.offsets[0].get(), target.producer_id).await)
            }
            Keeper::Journal(verdict) => {
                verdict.dead_letters = LettersGo::ToCluster(target.clone());
                remember(&self.runner, &self.input, verdict).await?;
                Ok(true)
            }
        }
    }

    fn drop_records(&self) {
        Counters::add(&self.runner.counters.dropped, self.offsets.len());
        let (spec, origin) = (self.runner.spec(), self.input.origin());
        let (topic, partition, reason) = (&origin.topic, origin.partition, self.reason.as_str());
        tracing::warn!(trigger = %spec.name, topic, partition, first = %self.offsets[0], records = self.offsets.len(), reason, "records dropped without dead letters");
    }

    /// Answers how many there are; those that retention took meanwhile are not.
    async fn write(&self, target: &ClusterLetters) -> Result<usize, LetterError> {
        let mut written = 0;
        for batch in self.batches(target.producer_id).await? {
            written += batch.header().record_count.unsigned_abs() as usize;
            // Whether it is new or was there: it is there.
            self.client.produce(&target.topic, target.partition, &batch).await?;
        }
        Ok(written)
    }

    async fn batches(&self, producer_id: i64) -> Result<Vec<CheckedBatch>, RecordsError> {
        let (spec, function) = (self.runner.spec(), self.function());
        let letters = DeadLetters {
            trigger: spec.name.as_str(),
            function: &function,
            origin: self.input.origin(),
            state: &self.state,
            batch_bytes: BATCH_BYTES,
            now_ms: self.runner.clock.now_ms(),
        };
        let mut cutter = Cutter::new(producer_id);
        read_offsets(&self.input, &self.offsets, &[], |record, epoch| {
            let (names, values) = letters.headers(record, epoch);
            let headers: Vec<_> = names.iter().map(Vec::as_slice).zip(values.iter().map(Option::as_deref)).collect();
            let own: usize =
                record.headers().map(|header| header.name.len() + header.value.map_or(0, <[u8]>::len)).sum();
            let size_bytes = own + record.key().map_or(0, <[u8]>::len) + record.value().map_or(0, <[u8]>::len);
            let letter =
                NewRecord { timestamp_ms: letters.now_ms, key: record.key(), value: record.value(), headers: &headers };
            cutter.push(size_bytes, record.offset(), &letter);
        })
        .await?;
        cutter.finish()
    }
}

/// Cuts letters into batches with sequences from 0.
struct Cutter {
    producer_id: i64,
    sequence: i32,
    batches: Vec<CheckedBatch>,
    builder: BatchBuilder,
    counted_bytes: usize,
    failed: Option<RecordsError>,
}

impl Cutter {
    fn new(producer_id: i64) -> Self {
        let builder = Self::builder(producer_id, 0);
        Self { producer_id, sequence: 0, batches: Vec::new(), builder, counted_bytes: 0, failed: None }
    }

    fn builder(id: i64, base_sequence: i32) -> BatchBuilder {
        let producer = Some(BatchProducer { id, epoch: 0, base_sequence });
        BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() })
    }

    /// `size_bytes` is that of the record without what is said about it.
    fn push(&mut self, size_bytes: usize, offset: Offset, letter: &NewRecord<'_>) {
        let counted = size_bytes + ABOUT_BYTES;
        if !self.builder.is_empty() && self.counted_bytes + counted > BATCH_BYTES {
            self.cut(offset);
        }
        self.counted_bytes += counted;
        if let Err(reason) = self.builder.push(letter) {
            self.failed.get_or_insert_with(|| RecordsError::Batch {
                offsets: offset..offset.next(),
                reason: reason.to_string(),
            });
        }
    }

    fn cut(&mut self, offset: Offset) {
        let count = i32::try_from(self.builder.record_count()).expect("a window has at most 10,000 records");
        self.sequence += count;
        let full = std::mem::replace(&mut self.builder, Self::builder(self.producer_id, self.sequence));
        self.counted_bytes = 0;
        match full.finish() {
            Ok(batch) => self.batches.push(batch),
            Err(reason) => {
                self.failed.get_or_insert_with(|| RecordsError::Batch {
                    offsets: offset..offset.next(),
                    reason: reason.to_string(),
                });
            }
        }
    }

    fn finish(mut self) -> Result<Vec<CheckedBatch>, RecordsError> {
        if !self.builder.is_empty() {
            self.cut(Offset::ZERO);
        }
        self.failed.map_or(Ok(self.batches), Err)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::broker::record::LaneId;
    use crate::input::cluster::ClusterInput;
    use crate::trigger::lane::WindowId;

    #[tokio::test]
    async fn letters_of_a_run_go_where_its_verdict_says_whatever_is_defined_now() {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cluster = ClusterInput::with_leader_for_test(nobody.local_addr().unwrap());
        let target = ClusterLetters { topic: "then.dlq".to_owned(), partition: 3, producer_id: 9 };
        for dead_letter in [json!({"topic": "now.dlq"}), json!("none")] {
            let definition =
                json!({"trigger": "t", "input": {"topic": "in"}, "function": "f", "dead_letter": dead_letter});
            let runner = Runner::for_test(&definition);
            let is_named = runner.spec().dead_letter.is_some();
            let known = |letters: LettersGo| {
                let lane = LaneId { trigger: runner.id, topic: uuid::Uuid::nil(), partition: 0 };
                let (state, reason) = (AttemptState::default(), ExhaustedReason::Attempts);
                let offsets = vec![Offset::ZERO];
                let verdict = super::super::verdict(lane, "f", &offsets, &state, reason);
                let keeper = Keeper::Journal(Box::new(TriggerVerdict { dead_letters: letters, ..verdict }));
                let (poller, _) = PollerHandle::for_test();
                let hold_up = HoldUp::new(poller, runner.id, WindowId::for_test(1));
                let (runner, input) = (Arc::clone(&runner), EventInput::Cluster(cluster.clone()));
                let client = Arc::clone(cluster.client());
                GiveUp { runner, input, client, hold_up, offsets, state, reason, keeper }.known()
            };
            assert_eq!(known(LettersGo::ToCluster(target.clone())), Known::Target(target.clone()));
            assert_eq!(known(LettersGo::Nowhere), Known::Nowhere);
            let defined = Known::Defined("now.dlq".to_owned(), None);
            assert_eq!(known(LettersGo::Undecided), if is_named { defined } else { Known::Nowhere });
        }
    }

    fn cut(count: i64, value_bytes: usize, said: &str) -> Vec<(i32, i32)> {
        let value = vec![b'v'; value_bytes];
        let headers = [(b"tripline-dlq-error-message".as_slice(), Some(said.as_bytes()))];
        let letter = NewRecord { timestamp_ms: 5, key: None, value: Some(&value), headers: &headers };
        let mut cutter = Cutter::new(9);
        for offset in 0..count {
            cutter.push(value_bytes, Offset::new(offset).unwrap(), &letter);
        }
        let batches = cutter.finish().unwrap();
        let numbers = batches.iter().map(|batch| (batch.header().producer().unwrap(), batch.header().record_count));
        numbers
            .inspect(|(producer, _)| assert_eq!(producer.id, 9))
            .map(|(producer, count)| (producer.base_sequence, count))
            .collect()
    }

    #[test]
    fn what_is_said_about_records_does_not_move_the_cuts() {
        let batches = cut(1000, 100, "");
        assert_eq!(batches, cut(1000, 100, &"x".repeat(1024)), "so who takes over sends the same batches");
        assert_eq!(batches.iter().map(|(_, count)| count).sum::<i32>(), 1000);
        let mut next = 0;
        for (sequence, count) in batches {
            assert_eq!(sequence, next);
            next += count;
        }
        assert_eq!(cut(3, 600 << 10, "").len(), 3, "a large record goes alone");
    }
}
