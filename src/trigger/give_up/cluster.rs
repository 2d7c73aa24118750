//! Records that are given up on a cluster: their dead letters go there too.
//!
//! The verdict is made known, with the producer id of its letters, before the first of them is sent: to the group, or
//! where a run gives up, to the journal of its process. Whoever takes the partition over after that, or the next start,
//! goes on under the same id: what the cluster remembers of that producer says how far it came, as for letters here, see
//! [`DeadLetters::batches`]. So no letter is doubled for as long as the cluster remembers (Kafka: a day by default), and
//! none is left out, whatever the cluster's retention takes of the records meanwhile. Where records are gone before
//! another process takes the window over, the numbers of the others are not known: unless all letters are there, all
//! that is left gets letters under another id, of which some may be there already.

use std::sync::Arc;

use tripline_storage::Offset;

use super::{HoldUp, LetterPlaces, Told, Waited, attempts_of, remember};
use crate::broker::record::{ClusterLetters, LettersGo, TriggerVerdict};
use crate::input::EventInput;
use crate::input::cluster::{Client, ClusterError, Remembered, Sent};
use crate::trigger::attempt::{AttemptState, ExhaustedReason};
use crate::trigger::deliver::{DeadLetters, RecordsError, letters_to};
use crate::trigger::lane::WindowId;
use crate::trigger::poller::PollerHandle;
use crate::trigger::progress::Letters;
use crate::trigger::runner::{Counters, Runner, Stopped};
use crate::trigger::trace::ranges::Ranges;

/// A batch is full with so many bytes: what any topic takes unless it was told to take less.
const BATCH_BYTES: usize = 512 << 10;

/// A window to give up.
#[derive(Debug)]
pub(in crate::trigger) struct GiveUp {
    pub(in crate::trigger) runner: Arc<Runner>,
    pub(in crate::trigger) input: EventInput,
    pub(in crate::trigger) client: Arc<Client>,
    pub(in crate::trigger) hold_up: HoldUp,
    /// What its invocations were called.
    pub(in crate::trigger) name: Offset,
    /// Its records, ascending, at least one.
    pub(in crate::trigger) offsets: Vec<Offset>,
    pub(in crate::trigger) state: AttemptState,
    pub(in crate::trigger) reason: ExhaustedReason,
    pub(in crate::trigger) keeper: Keeper,
}

/// Who knows of a verdict before anything of it is done.
#[derive(Debug)]
pub(in crate::trigger) enum Keeper {
    /// The group, by the commits of this poller.
    Group {
        poller: PollerHandle,
        window: WindowId,
        /// What the group knows already.
        letters: Option<Letters>,
    },
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
    let (first, (name, state)) = (verdict.first, attempts_of(&verdict));
    let offsets = verdict.offsets.iter().copied().filter_map(Offset::new).collect();
    let reason = ExhaustedReason::from_name(&verdict.reason).unwrap_or(ExhaustedReason::Attempts);
    let keeper = Keeper::Journal(Box::new(verdict));
    let mut work = GiveUp { runner, input, client, hold_up, name, offsets, state, reason, keeper };
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
    #[error("the cluster has other batches of producer {producer_id} than it told")]
    Overtaken { producer_id: i64 },
}

/// What came of writing letters.
enum Wrote {
    /// So many are there.
    All(usize),
    /// Nothing: some may be there, and which of the records that are left have one cannot be told.
    Unclear,
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
enum Became {
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
            Became::SomebodyElses => return Ok(false),
            Became::None => None,
            Became::At(places) => Some(places),
        };
        let function = self.function();
        let told = Told { name: self.name, offsets: &self.offsets, function: &function, state: &self.state };
        told.tell(&self.runner, &self.input, self.reason.as_str(), &mut self.hold_up).await?;
        told.trace(&self.runner, &self.input, self.reason.as_str(), letters);
        Ok(true)
    }

    async fn dead_letters(&mut self) -> Result<Became, Stopped> {
        loop {
            let target = match self.target().await? {
                Ok(target) => target,
                Err(none) => return Ok(none),
            };
            if let Some(letters) = self.write_to(target).await? {
                return Ok(letters);
            }
        }
    }

    /// Writes the letters. `None`: it is to be decided anew where they go, and who writes them.
    async fn write_to(&mut self, target: ClusterLetters) -> Result<Option<Became>, Stopped> {
        match self.write(&target).await {
            Ok(Wrote::All(written)) => {
                self.hold_up.over();
                Counters::add(&self.runner.counters.dead_lettered, written);
                Counters::add(&self.runner.counters.expired, self.offsets.len() - written);
                // The cluster does not say where those are that it had already.
                Ok(Some(Became::At((target.topic, target.partition, Ranges::default()))))
            }
            Ok(Wrote::Unclear) => {
                self.begin_anew(&target);
                Ok(None)
            }
            // A person may name another topic to end a wait.
            Err(error) => Ok(self.is_skipped(&error).await?.then_some(Became::None)),
        }
    }

    /// Where the letters go, once that is known to whoever must know it; or what becomes of them else.
    async fn target(&mut self) -> Result<Result<ClusterLetters, Became>, Stopped> {
        let mut waited = false;
        loop {
            let (topic, producer_id) = match self.known() {
                Known::Target(target) => return Ok(Ok(target)),
                Known::Nowhere => {
                    self.drop_records();
                    return Ok(Err(Became::None));
                }
                Known::Defined(topic, producer_id) => (topic, producer_id),
            };
            match self.decide(topic, producer_id).await {
                Ok(target) => {
                    if std::mem::take(&mut waited) {
                        // What is skipped from now on is not the wait for that.
                        self.hold_up.over();
                    }
                    if producer_id.is_some() {
                        return Ok(Ok(target));
                    }
                    if !self.make_known(&target).await? {
                        return Ok(Err(Became::SomebodyElses));
                    }
                    // The definition may have changed meanwhile: then it is decided once more.
                    let is_same = |known| match known {
                        Known::Target(_) => true,
                        Known::Defined(topic, _) => topic == target.topic,
                        Known::Nowhere => false,
                    };
                    if is_same(self.known()) {
                        return Ok(Ok(target));
                    }
                }
                Err(error) => {
                    waited = true;
                    if self.is_skipped(&error.into()).await? {
                        return Ok(Err(Became::None));
                    }
                }
            }
        }
    }

    /// All that is left gets letters of another producer: some may be there twice, none is left out.
    fn begin_anew(&mut self, target: &ClusterLetters) {
        let (spec, origin) = (self.runner.spec(), self.input.origin());
        tracing::warn!(
            trigger = %spec.name,
            topic = origin.topic,
            partition = origin.partition,
            first = %self.offsets[0],
            dead_letters = target.topic,
            "a window has other records than when another process began to write its dead letters: some may be there twice"
        );
        if let Keeper::Group { letters, .. } = &mut self.keeper {
            *letters = None;
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
            Keeper::Group { .. } => self.runner.spec().function.label().to_owned(),
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
            Keeper::Group { letters, .. } => defined(letters.map(|letters| letters.producer_id)),
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
            Keeper::Group { poller, window, letters } => {
                let ClusterLetters { producer_id, .. } = *target;
                let is_ours = poller.make_known(self.runner.id, *window, producer_id).await;
                let records = u32::try_from(self.offsets.len()).unwrap_or(u32::MAX);
                *letters = Some(Letters { producer_id, records, is_whole: true });
                Ok(is_ours)
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

    /// Those that retention took meanwhile are not there.
    async fn write(&self, target: &ClusterLetters) -> Result<Wrote, LetterError> {
        let (spec, function) = (self.runner.spec(), self.function());
        let (topic, partition) = (target.topic.as_str(), target.partition);
        let there = match self.client.remembered(topic, partition, target.producer_id).await? {
            Remembered::Nothing => Some(0),
            Remembered::Last { epoch, sequence } => Some(letters_to(epoch, sequence)),
            Remembered::Untold => None,
        };
        if let Keeper::Group { letters: Some(Letters { records, is_whole: false, .. }), .. } = self.keeper {
            let are_all_there = there.is_some_and(|there| there >= records as usize);
            return Ok(if are_all_there { Wrote::All(self.offsets.len()) } else { Wrote::Unclear });
        }
        let letters = DeadLetters {
            trigger: spec.name.as_str(),
            function: &function,
            origin: self.input.origin(),
            state: &self.state,
            // Each for itself where the cluster does not tell: only sending it shows then whether it is there.
            batch_bytes: if there.is_some() { BATCH_BYTES } else { 0 },
            now_ms: self.runner.clock.now_ms(),
        };
        let mut written = there.unwrap_or(0).min(self.offsets.len());
        let left: Vec<(i16, Offset)> = (0..).zip(self.offsets.iter().copied()).skip(written).collect();
        for batch in letters.batches(&self.input, &left, target.producer_id).await? {
            written += batch.header().record_count.unsigned_abs() as usize;
            let sent = self.client.produce(topic, partition, &batch).await?;
            if sent == Sent::DoesNotFollow && there.is_some() {
                // Somebody else's batch came between: what there is now is to be looked at anew.
                return Err(LetterError::Overtaken { producer_id: target.producer_id });
            }
        }
        Ok(Wrote::All(written))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::broker::record::LaneId;
    use crate::input::cluster::ClusterInput;

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
                let verdict = super::super::verdict(lane, "f", (Offset::ZERO, &offsets), &state, reason);
                let keeper = Keeper::Journal(Box::new(TriggerVerdict { dead_letters: letters, ..verdict }));
                let (poller, _) = PollerHandle::for_test();
                let hold_up = HoldUp::new(poller, runner.id, WindowId::for_test(1));
                let (runner, input) = (Arc::clone(&runner), EventInput::Cluster(cluster.clone()));
                let client = Arc::clone(cluster.client());
                GiveUp { runner, input, client, hold_up, name: Offset::ZERO, offsets, state, reason, keeper }.known()
            };
            assert_eq!(known(LettersGo::ToCluster(target.clone())), Known::Target(target.clone()));
            assert_eq!(known(LettersGo::Nowhere), Known::Nowhere);
            let defined = Known::Defined("now.dlq".to_owned(), None);
            assert_eq!(known(LettersGo::Undecided), if is_named { defined } else { Known::Nowhere });
        }
    }
}
