//! The topic that a run reads: one of its trigger's input, or that of its dead letters; here, or on its cluster.

use std::collections::HashMap;
use std::sync::Arc;

use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::TriggerService;
use super::apply::start_offset;
#[cfg(feature = "cluster")]
use super::cluster::{There, told_in_time};
use super::runs::RunError;
use crate::broker::{Broker, Topic};
use crate::input::{EventInput, LogInput};
use crate::trigger::run::{RangeRequest, RunRange, ScanError, chosen, none_where_named};
use crate::trigger::runner::Runner;
use crate::trigger::spec::{StartPosition, TriggerSpec};

/// A topic that a run reads. Clones are of the same.
#[derive(Clone, Debug)]
pub(super) struct RunTopic {
    at: At,
    /// Set for dead letters, which are seen as the records that they were: of these topics, their ids by name.
    letters_of: Option<HashMap<String, Uuid>>,
    /// Where partitions of a cluster begin, as far as somebody asked.
    log_starts: HashMap<u32, Offset>,
}

#[derive(Clone, Debug)]
enum At {
    Here(Arc<Topic>),
    #[cfg(feature = "cluster")]
    There(There),
}

impl RunTopic {
    pub(super) fn here(topic: Arc<Topic>) -> Self {
        Self { at: At::Here(topic), letters_of: None, log_starts: HashMap::new() }
    }

    #[cfg(feature = "cluster")]
    pub(super) fn there(topic: There) -> Self {
        Self { at: At::There(topic), letters_of: None, log_starts: HashMap::new() }
    }

    pub(super) fn with_letters_of(self, topics: HashMap<String, Uuid>) -> Self {
        Self { letters_of: Some(topics), ..self }
    }

    pub(super) fn name(&self) -> &str {
        match &self.at {
            At::Here(topic) => topic.name().as_str(),
            #[cfg(feature = "cluster")]
            At::There(there) => there.name(),
        }
    }

    /// Nil on a cluster that gives none.
    pub(super) fn id(&self) -> Uuid {
        match &self.at {
            At::Here(topic) => topic.id(),
            #[cfg(feature = "cluster")]
            At::There(there) => there.id(),
        }
    }

    pub(super) fn partition_count(&self) -> u32 {
        match &self.at {
            At::Here(topic) => topic.partition_count(),
            #[cfg(feature = "cluster")]
            At::There(there) => there.partition_count(),
        }
    }

    /// The topic itself; `None` on a cluster.
    pub(super) const fn local(&self) -> Option<&Arc<Topic>> {
        match &self.at {
            At::Here(topic) => Some(topic),
            #[cfg(feature = "cluster")]
            At::There(_) => None,
        }
    }

    /// Where a partition begins; `None` when nobody asked its cluster, see [`RunTopic::ask_log_starts`].
    pub(super) fn log_start(&self, partition: u32) -> Option<Offset> {
        match self.local() {
            Some(topic) => topic.partition(partition).ok().map(|log| log.log_start()),
            None => self.log_starts.get(&partition).copied(),
        }
    }

    /// Asks where partitions begin; here that is known.
    #[cfg_attr(not(feature = "cluster"), expect(clippy::unused_async, reason = "a cluster is asked"))]
    pub(super) async fn ask_log_starts(&mut self) -> Result<(), RunError> {
        #[cfg(feature = "cluster")]
        if self.local().is_none() {
            let asked = async {
                let mut found = HashMap::new();
                for partition in 0..self.partition_count() {
                    found.insert(partition, self.offset(partition, StartPosition::Earliest).await?);
                }
                Ok::<_, RunError>(found)
            };
            self.log_starts = told_in_time(self.partition_count(), asked).await?;
        }
        Ok(())
    }

    /// What runs leave behind is known by the id of their topic: a name may be another's tomorrow.
    pub(super) fn has_id(&self) -> Result<(), RunError> {
        if self.id().is_nil() {
            let reason = format!(
                "topic {}: its cluster gives topics no ids (Kafka does from 2.8 on), without which runs and discards could mean another topic of that name",
                self.name()
            );
            return Err(RunError::State(reason));
        }
        Ok(())
    }

    /// A partition that could not be looked through.
    pub(super) fn scan_failed(&self, error: ScanError) -> RunError {
        match self.local() {
            Some(_) => RunError::Scan(error),
            None => RunError::Cluster(error.to_string()),
        }
    }

    /// What must be durable before anything that is written down about its records in these ranges.
    pub(super) fn sources(&self, ranges: &[RunRange]) -> Vec<(Arc<Partition>, Offset)> {
        let of_range = |range: &RunRange| {
            let log = self.local()?.partition(range.partition).ok()?;
            Some((Arc::clone(log), range.next()))
        };
        ranges.iter().filter_map(of_range).collect()
    }

    /// A partition to look at, as it is seen.
    pub(super) async fn input(&self, broker: &Broker, partition: u32) -> Result<EventInput, RunError> {
        let input = match &self.at {
            At::Here(topic) => EventInput::Log(LogInput::new(broker, topic, partition)?),
            #[cfg(feature = "cluster")]
            At::There(there) => there.input(partition, Offset::ZERO).await?,
        };
        Ok(match &self.letters_of {
            Some(topics) => input.with_letters_of(topics.clone()),
            None => input,
        })
    }

    /// The offsets that a request means now, at most one range a partition, in their order; empty ones are left out.
    pub(super) async fn ranges(&self, asked: &[RangeRequest]) -> Result<Vec<RunRange>, RunError> {
        #[cfg(feature = "cluster")]
        if self.local().is_none() {
            return told_in_time(self.partition_count(), self.find_ranges(asked)).await;
        }
        self.find_ranges(asked).await
    }

    async fn find_ranges(&self, asked: &[RangeRequest]) -> Result<Vec<RunRange>, RunError> {
        let mut ranges = Vec::new();
        for (partition, request) in (0..).zip(chosen(self.name(), self.partition_count(), asked)?) {
            let Some(request) = request else { continue };
            let from = self.offset(partition, request.from).await?;
            let to = self.offset(partition, request.to).await?;
            ranges.extend(RunRange::new(partition, from, to));
        }
        if ranges.is_empty() {
            none_where_named(self.name(), asked)?;
        }
        Ok(ranges)
    }

    async fn offset(&self, partition: u32, position: StartPosition) -> Result<Offset, RunError> {
        match &self.at {
            At::Here(topic) => {
                let failed = |reason: String| ScanError { partition, reason };
                let log = topic.partition(partition)?;
                Ok(start_offset(log, position).await.map_err(|error| failed(error.to_string()))?)
            }
            #[cfg(feature = "cluster")]
            At::There(there) => Ok(there.offset(partition, position).await?),
        }
    }
}

/// What was looked up while others could change things.
#[derive(Debug)]
pub(super) struct LookedUp {
    pub(super) runner: Arc<Runner>,
    /// The definition that said which topic it is.
    pub(super) spec: Arc<TriggerSpec>,
    pub(super) topic: RunTopic,
}

impl TriggerService {
    /// A trigger, and the topic of its input that is meant: the one that is wanted, or the only one.
    pub(super) async fn input_of(&self, name: &str, wanted: Option<&str>) -> Result<LookedUp, RunError> {
        let runner = self.trigger(name)?;
        let spec = runner.spec();
        #[cfg(feature = "cluster")]
        if spec.input.cluster.is_some() {
            let topic = self.input_there(&spec, wanted).await?;
            return Ok(LookedUp { runner, spec, topic });
        }
        let topic = RunTopic::here(self.topic_meant(name, wanted)?);
        Ok(LookedUp { runner, spec, topic })
    }

    /// A trigger, and the topic of its dead letters.
    pub(super) async fn dead_letters_of(&self, name: &str) -> Result<LookedUp, RunError> {
        let runner = self.trigger(name)?;
        let spec = runner.spec();
        let none = || RunError::NoDeadLetters(name.to_owned());
        let letters = spec.dead_letter.as_ref().ok_or_else(none)?;
        #[cfg(feature = "cluster")]
        if spec.input.cluster.is_some() {
            let topic = self.letter_topic_there(&spec, letters).await?;
            return Ok(LookedUp { runner, spec, topic });
        }
        let topic = self.inner.broker.topic(letters.as_str()).ok_or_else(none)?;
        let topic = RunTopic::here(topic).with_letters_of(self.ids_of_topics(name));
        Ok(LookedUp { runner, spec, topic })
    }

    /// The topics of this broker that a trigger reads: their ids, by name.
    pub(super) fn ids_of_topics(&self, name: &str) -> HashMap<String, Uuid> {
        self.topics_of(name).iter().map(|topic| (topic.name().to_string(), topic.id())).collect()
    }

    /// Whether that trigger has its name, what its definition says of topics, and that topic still.
    pub(super) fn still_holds(&self, name: &str, looked_up: &LookedUp) -> Result<(), RunError> {
        debug_assert!(self.is_changing(), "it may be otherwise in the next moment");
        let LookedUp { runner, spec, topic } = looked_up;
        let now = self.trigger(name)?;
        let is_there = topic.local().is_none_or(|topic| self.inner.broker.topic_by_id(topic.id()).is_some());
        let defined = now.spec();
        let is_same = now.id == runner.id && (&defined.input, &defined.dead_letter) == (&spec.input, &spec.dead_letter);
        if is_same && is_there { Ok(()) } else { Err(changed_meanwhile(name)) }
    }
}

/// What was looked up holds no more.
pub(super) fn changed_meanwhile(trigger: &str) -> RunError {
    RunError::State(format!("trigger {trigger} or its runs changed meanwhile: try again"))
}

#[cfg(all(test, feature = "cluster"))]
mod tests {
    use serde_json::json;

    use super::super::tests::World;
    use super::*;
    use crate::broker::record::{JournalRecord, RunDefined, RunState, RunSwitched};
    use crate::trigger::run::REMEMBERED_MAX;

    fn there(name: &str, id: u128) -> RunTopic {
        RunTopic::there(There::for_test(name, Uuid::from_u128(id)))
    }

    #[test]
    fn a_topic_without_an_id_has_no_runs() {
        assert!(there("t.dlq", 7).has_id().is_ok());
        let refused = there("t.dlq", 0).has_id().unwrap_err().to_string();
        assert!(refused.contains("topic t.dlq: its cluster gives topics no ids"), "{refused}");
    }

    #[tokio::test]
    async fn redrives_of_letters_that_a_cluster_has_no_more_are_forgotten_for_new_ones() {
        let world = World::start().await;
        let trigger = world.apply(json!({})).await;
        let runner = world.service.runner("x").unwrap();
        // As many as are remembered: a letter each, the last of another topic.
        let mut records: Vec<JournalRecord> = Vec::new();
        for number in 0..REMEMBERED_MAX {
            let (id, last) = (Uuid::new_v4(), number == REMEMBERED_MAX - 1);
            let (topic, name) = if last { (8, "u.dlq") } else { (7, "t.dlq") };
            let range = json!({"partition": 0, "from": number, "to": number + 1});
            let definition = json!({"kind": "redrive", "topic": name, "ranges": [range], "again": false}).to_string();
            let topic = Uuid::from_u128(topic);
            records.push(RunDefined { id, trigger, topic, definition, created_ms: number as i64 }.into());
            let counts = Vec::new();
            records.push(RunSwitched { id, state: RunState::Done, since_ms: 0, counts }.into());
        }
        world.service.remember(&records, &[]).await.unwrap();
        let forgets = |topic: &RunTopic| world.service.forget_ended(&runner, topic).map(|forgotten| forgotten.len());
        let mut topic = there("t.dlq", 7);
        assert!(forgets(&topic).is_err(), "where it begins is not known");
        topic.log_starts = HashMap::from([(0, Offset::ZERO)]);
        assert!(forgets(&topic).is_err(), "all letters are there");
        topic.log_starts = HashMap::from([(0, Offset::new(5).unwrap())]);
        assert_eq!(forgets(&topic).unwrap(), 1);
        // One that was made again under its name has none of them.
        assert_eq!(forgets(&there("t.dlq", 9)).unwrap(), 1);
        assert!(forgets(&there("v.dlq", 9)).is_err());
    }
}
