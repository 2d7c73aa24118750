//! Which topics triggers read: what a definition selects, and what follows when topics come and go.
//!
//! A lane of which nothing is remembered starts at offset 0. So a topic that is made after a pattern needs no note in
//! the journal: the trigger joins it when it hears of it, or at the next start, and misses nothing either way.

use std::sync::{Arc, Weak};

use tokio::task::JoinHandle;
use uuid::Uuid;

use super::{ChoiceError, Inner, Running, TriggerService};
use crate::broker::{Broker, DeleteTopicError, NoPartition, Topic};
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::poller::PollerHandle;
use crate::trigger::runner::Runner;
use crate::trigger::spec::TopicSelection;

/// Which partitions of a trigger are meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneChoice<'a> {
    /// Of this topic; `None` means all, or where a partition is named, the only one.
    pub topic: Option<&'a str>,
    /// This partition; `None` means all.
    pub partition: Option<u32>,
}

impl LaneChoice<'_> {
    /// All partitions of all topics.
    pub const ALL: Self = Self { topic: None, partition: None };

    /// The name of the topic that is meant; `None` means all.
    pub(super) fn topic_of(&self, trigger: &str, running: &Running) -> Result<Option<String>, ChoiceError> {
        if *self == Self::ALL {
            return Ok(None);
        }
        let topic = running.topic_meant(trigger, self.topic)?;
        if let Some(here) = running.topics.iter().find(|here| here.name().as_str() == topic) {
            return match self.partition.map_or(Ok(()), |number| here.partition(number).map(drop)) {
                Ok(()) => Ok(Some(topic)),
                Err(NoPartition::Unknown { last, found, .. }) => {
                    Err(ChoiceError::OtherPartition { trigger: trigger.to_owned(), topic, found, last })
                }
                Err(error @ NoPartition::Offline { .. }) => Err(error.into()),
            };
        }
        let numbers = || running.lanes.iter().filter(|lane| lane.origin().topic == topic).map(|lane| lane.number());
        match (self.partition, numbers().max()) {
            (Some(found), Some(last)) if !numbers().any(|number| number == found) => {
                Err(ChoiceError::OtherPartition { trigger: trigger.to_owned(), topic, found, last })
            }
            _ => Ok(Some(topic)),
        }
    }
}

impl Running {
    pub(super) fn new(runner: Arc<Runner>) -> Self {
        Self {
            runner,
            topics: Vec::new(),
            lanes: Vec::new(),
            pollers: Vec::new(),
            #[cfg(feature = "cluster")]
            place: None,
        }
    }

    /// Shows a lane, in the order of topics and partitions.
    pub(super) fn insert(&mut self, status: Arc<LaneStatus>, poller: PollerHandle) {
        let at = self.lanes.partition_point(|lane| lane.place() < status.place());
        self.lanes.insert(at, status);
        self.pollers.insert(at, poller);
    }

    /// Shows the lanes that `is_taken` says no more; answers who drives them.
    pub(super) fn take(&mut self, is_taken: impl Fn(&LaneStatus) -> bool) -> Vec<PollerHandle> {
        let lanes = std::mem::take(&mut self.lanes).into_iter().zip(std::mem::take(&mut self.pollers));
        let (taken, left): (Vec<_>, Vec<_>) = lanes.partition(|(lane, _)| is_taken(lane));
        (self.lanes, self.pollers) = left.into_iter().unzip();
        taken.into_iter().map(|(_, poller)| poller).collect()
    }

    pub(super) fn reads(&self, topic: Uuid) -> bool {
        self.topics.iter().any(|read| read.id() == topic)
    }

    /// The name of the topic that is meant: the one that is wanted, or the only one.
    pub(super) fn topic_meant(&self, trigger: &str, wanted: Option<&str>) -> Result<String, ChoiceError> {
        // Of what is offline there are no lanes; of a cluster there are no topics.
        let here = self.topics.iter().map(|topic| topic.name().as_str());
        let there = self.lanes.iter().map(|lane| lane.origin().topic.as_str());
        let mut reads: Vec<&str> = here.chain(there).collect();
        reads.sort_unstable();
        reads.dedup();
        meant(trigger, wanted, &reads)
    }
}

/// The name of the topic that is meant, of those that a trigger reads: the one that is wanted, or the only one.
pub(super) fn meant(trigger: &str, wanted: Option<&str>, reads: &[&str]) -> Result<String, ChoiceError> {
    let trigger = trigger.to_owned();
    match (wanted, reads) {
        (Some(wanted), reads) if reads.contains(&wanted) => Ok(wanted.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (_, []) => Err(ChoiceError::NoTopicYet(trigger)),
        (Some(found), reads) => {
            Err(ChoiceError::OtherTopic { trigger, found: found.to_owned(), reads: shortened(reads) })
        }
        (None, reads) => Err(ChoiceError::SeveralTopics { trigger, reads: shortened(reads) }),
    }
}

/// Names of which there may be many, in a sentence.
pub(super) fn shortened(names: &[&str]) -> String {
    const SHOWN: usize = 10;
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

impl TriggerService {
    /// Hears of topics that come and go, for as long as the service is there.
    pub(super) fn follow(inner: &Arc<Inner>) -> JoinHandle<()> {
        // It keeps neither the service nor the broker.
        tokio::spawn(follow_topics(Arc::downgrade(inner), inner.broker.listen_topics()))
    }

    /// The topics that a trigger reads, by name; none for one of a cluster.
    pub(super) fn topics_of(&self, name: &str) -> Vec<Arc<Topic>> {
        self.inner.running.read().get(name).map(|running| running.topics.clone()).unwrap_or_default()
    }

    /// The name of the one topic that a trigger reads, here or on a cluster.
    ///
    /// # Errors
    /// See [`ChoiceError`].
    pub fn only_topic(&self, name: &str) -> Result<String, ChoiceError> {
        let running = self.inner.running.read();
        let running = running.get(name).ok_or_else(|| ChoiceError::NoTopicYet(name.to_owned()))?;
        running.topic_meant(name, None)
    }

    /// The topic that is meant: the one that is wanted, or the only one.
    pub(super) fn topic_meant(&self, name: &str, wanted: Option<&str>) -> Result<Arc<Topic>, ChoiceError> {
        let running = self.inner.running.read();
        let running = running.get(name).ok_or_else(|| ChoiceError::NoTopicYet(name.to_owned()))?;
        let meant = running.topic_meant(name, wanted)?;
        let topic = running.topics.iter().find(|topic| topic.name().as_str() == meant);
        topic.cloned().ok_or_else(|| ChoiceError::NoTopicYet(name.to_owned()))
    }

    /// The topics of what is chosen.
    pub(super) fn topics_meant(&self, name: &str, choice: LaneChoice<'_>) -> Result<Vec<Arc<Topic>>, ChoiceError> {
        let running = self.inner.running.read();
        let Some(running) = running.get(name) else { return Ok(Vec::new()) };
        let meant = choice.topic_of(name, running)?;
        let is_meant = |topic: &&Arc<Topic>| meant.as_ref().is_none_or(|meant| *meant == topic.name().as_str());
        Ok(running.topics.iter().filter(is_meant).cloned().collect())
    }

    /// Has every trigger with a pattern read what that selects now.
    pub(super) async fn follow_all(&self) {
        let with_pattern: Vec<String> = {
            let running = self.inner.running.read();
            let has_pattern = |running: &Running| {
                let spec = running.runner.spec();
                spec.input.cluster.is_none() && matches!(spec.input.topics, TopicSelection::Pattern(_))
            };
            running.iter().filter(|(_, running)| has_pattern(running)).map(|(name, _)| name.clone()).collect()
        };
        for name in with_pattern {
            self.follow_one(&name).await;
        }
    }

    /// Closes a trigger's lanes in topics that are gone, and joins those that its definition selects.
    pub(super) async fn follow_one(&self, name: &str) {
        let Some(runner) = self.runner(name) else { return };
        let spec = runner.spec();
        let broker = &self.inner.broker;
        let joined = self.topics_of(name);
        for gone in joined.iter().filter(|topic| broker.topic_by_id(topic.id()).is_none()) {
            tracing::info!(trigger = name, topic = %gone.name(), "topic deleted");
            self.leave(name, gone.id()).await;
        }
        for topic in selected(broker, &spec.input.topics) {
            if joined.iter().any(|known| known.id() == topic.id()) {
                continue;
            }
            tracing::info!(trigger = name, topic = %topic.name(), "topic joined");
            if let Err(reason) = self.join(name, &runner, &topic) {
                tracing::error!(trigger = name, topic = %topic.name(), reason, "topic not joined");
            }
        }
    }

    /// Starts a running trigger's lanes in one more topic.
    fn join(&self, name: &str, runner: &Arc<Runner>, topic: &Arc<Topic>) -> Result<(), String> {
        let lanes = self.live_lanes(runner, topic)?;
        let mut running = self.inner.running.write();
        let running = running.get_mut(name).ok_or("it does not run any more")?;
        self.drive(running, topic, lanes)
    }

    /// Ends a trigger's lanes in a topic at once.
    pub(super) async fn leave(&self, name: &str, topic: Uuid) {
        let (runner, pollers) = {
            let mut running = self.inner.running.write();
            let Some(running) = running.get_mut(name) else { return };
            running.topics.retain(|read| read.id() != topic);
            (Arc::clone(&running.runner), running.take(|lane| lane.origin().topic_id == topic))
        };
        PollerHandle::remove_from_all(&pollers, runner.id).await;
        runner.change(|holds| holds.unblock(|(of, _)| *of == topic));
        self.end_pollers(topic);
    }

    /// Deletes a topic. Triggers that read it by a pattern go on with the others; a trigger that names it keeps it.
    ///
    /// # Errors
    /// See [`DeleteTopicError`].
    pub async fn delete_topic(&self, topic: &Arc<Topic>) -> Result<(), DeleteTopicError> {
        let (service, topic) = (self.clone(), Arc::clone(topic));
        self.inner.broker.to_the_end(async move { service.delete_topic_now(&topic).await }).await
    }

    async fn delete_topic_now(&self, topic: &Arc<Topic>) -> Result<(), DeleteTopicError> {
        let _changing = self.inner.changing.lock().await;
        let name = topic.name().as_str();
        // Another one of its name, made since it was looked up, stays.
        if self.inner.broker.topic_by_id(topic.id()).is_none() {
            return Err(DeleteTopicError::Unknown(name.to_owned()));
        }
        if let Some(user) = self.using_topic(name) {
            return Err(DeleteTopicError::InUse { name: name.to_owned(), kind: "trigger", user });
        }
        let readers: Vec<(String, Uuid)> = {
            let running = self.inner.running.read();
            let readers = running.iter().filter(|(_, running)| running.reads(topic.id()));
            readers.map(|(trigger, running)| (trigger.clone(), running.runner.id)).collect()
        };
        // The lanes end first: what they remember at their end must not come behind the topic's.
        for (trigger, _) in &readers {
            self.leave(trigger, topic.id()).await;
        }
        let ids: Vec<Uuid> = readers.iter().map(|(_, id)| *id).collect();
        let deleted = self.inner.broker.delete_topic_of(topic, &ids).await;
        // Where it was not deleted, they go on where the journal says.
        for (trigger, _) in &readers {
            self.follow_one(trigger).await;
        }
        deleted
    }
}

/// The topics that are selected now, by name.
pub(super) fn selected(broker: &Broker, selection: &TopicSelection) -> Vec<Arc<Topic>> {
    match selection {
        TopicSelection::Pattern(pattern) => {
            let mut topics = broker.topics();
            topics.retain(|topic| pattern.matches(topic.name().as_str()));
            topics
        }
        named => named.named().iter().filter_map(|name| broker.topic(name.as_str())).collect(),
    }
}

async fn follow_topics(inner: Weak<Inner>, mut changed: event_listener::EventListener) {
    loop {
        changed.await;
        let Some(inner) = inner.upgrade() else { return };
        let service = TriggerService { inner };
        // Before looking: what changes meanwhile is looked at again.
        changed = service.inner.broker.listen_topics();
        let _changing = service.inner.changing.lock().await;
        service.follow_all().await;
    }
}
