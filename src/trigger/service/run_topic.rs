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
}

#[derive(Clone, Debug)]
enum At {
    Here(Arc<Topic>),
    #[cfg(feature = "cluster")]
    There(There),
}

impl RunTopic {
    pub(super) const fn here(topic: Arc<Topic>) -> Self {
        Self { at: At::Here(topic), letters_of: None }
    }

    #[cfg(feature = "cluster")]
    pub(super) const fn there(topic: There) -> Self {
        Self { at: At::There(topic), letters_of: None }
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

    /// Where a partition begins, as far as that is known here.
    pub(super) fn log_start(&self, partition: u32) -> Offset {
        let log = self.local().and_then(|topic| topic.partition(partition));
        log.map_or(Offset::ZERO, |log| log.log_start())
    }

    /// What must be durable before anything that is written down about its records in these ranges.
    pub(super) fn sources(&self, ranges: &[RunRange]) -> Vec<(Arc<Partition>, Offset)> {
        let of_range = |range: &RunRange| {
            let log = self.local()?.partition(range.partition)?;
            Some((Arc::clone(log), range.next()))
        };
        ranges.iter().filter_map(of_range).collect()
    }

    /// A partition to look at, as it is seen.
    pub(super) async fn input(&self, broker: &Broker, partition: u32) -> Result<EventInput, RunError> {
        let input = match &self.at {
            At::Here(topic) => {
                let missing = || ScanError { partition, reason: "it is missing".to_owned() };
                EventInput::Log(LogInput::new(broker, topic, partition).ok_or_else(missing)?)
            }
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
            return told_in_time(self.find_ranges(asked)).await;
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
                let log = topic.partition(partition).ok_or_else(|| failed("it is missing".to_owned()))?;
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

    /// Whether that trigger has its name, its definition, and that topic still.
    pub(super) fn still_holds(&self, name: &str, looked_up: &LookedUp) -> Result<(), RunError> {
        debug_assert!(self.is_changing(), "it may be otherwise in the next moment");
        let LookedUp { runner, spec, topic } = looked_up;
        let now = self.trigger(name)?;
        let is_there = topic.local().is_none_or(|topic| self.inner.broker.topic_by_id(topic.id()).is_some());
        if now.id == runner.id && now.spec() == *spec && is_there { Ok(()) } else { Err(changed_meanwhile(name)) }
    }
}

/// What was looked up holds no more.
pub(super) fn changed_meanwhile(trigger: &str) -> RunError {
    RunError::State(format!("trigger {trigger} or its runs changed meanwhile: try again"))
}
