//! Topics: making, opening, configuring and deleting them.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use event_listener::EventListener;
use parking_lot::{Mutex, RwLock};
use tripline_storage::error::{OpenLogError, OpenLogErrorKind};
use tripline_storage::partition::RecoveryReport;
use tripline_storage::{CompactionConfig, LogConfig, Partition, Store};
use uuid::Uuid;

use super::error::{CreateTopicError, DeleteTopicError, NoPartition, StartError, TriedAgain};
use super::journal::{Journal, JournalError};
use super::record::{JournalRecord, TopicConfigured, TopicCreated, TopicDeleted};
use super::{Broker, StartReport, Topics, now_ms, partition_id};
use crate::topic::name::TopicName;
use crate::topic::spec::{TopicConfig, TopicSpec};

/// A topic that is served.
#[derive(Debug)]
pub struct Topic {
    id: Uuid,
    name: TopicName,
    config: RwLock<TopicConfig>,
    slots: Vec<Slot>,
}

/// A partition of a topic.
#[derive(Debug)]
enum Slot {
    Open(Arc<Partition>),
    /// Its disk did not give back at the start what a start needs, or had no room for it. Nothing is known of its
    /// records, not even which offsets they have.
    Offline {
        /// Why, the last time that it was tried.
        cause: Mutex<OpenLogError>,
        /// Where it was for want of room: set when there was some, for as long as the broker runs.
        late: OnceLock<Arc<Partition>>,
    },
}

impl Slot {
    fn log(&self) -> Option<&Arc<Partition>> {
        match self {
            Self::Open(log) => Some(log),
            Self::Offline { late, .. } => late.get(),
        }
    }

    /// Why it is offline; `None` where it is not.
    fn cause(&self) -> Option<&Mutex<OpenLogError>> {
        match self {
            Self::Offline { cause, late } if late.get().is_none() => Some(cause),
            _ => None,
        }
    }
}

/// What becomes of a partition that is offline because of this.
fn tried_again(cause: &OpenLogError) -> TriedAgain {
    match cause.kind() {
        OpenLogErrorKind::Unreadable => TriedAgain::AtStart,
        OpenLogErrorKind::NoRoom => TriedAgain::WithRoom,
        OpenLogErrorKind::Other => TriedAgain::Soon,
    }
}

impl Topic {
    /// Its id, for ever.
    #[must_use]
    pub const fn id(&self) -> Uuid {
        self.id
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &TopicName {
        &self.name
    }

    /// Whether it is one of the broker's own.
    #[must_use]
    pub fn is_internal(&self) -> bool {
        self.name.is_internal()
    }

    /// Its settings.
    #[must_use]
    pub fn config(&self) -> TopicConfig {
        self.config.read().clone()
    }

    /// Looks at its settings without a copy.
    pub fn with_config<T>(&self, look: impl FnOnce(&TopicConfig) -> T) -> T {
        look(&self.config.read())
    }

    /// Its partitions with their numbers, but for those that are offline.
    pub fn partitions(&self) -> impl Iterator<Item = (u32, &Arc<Partition>)> {
        (0..).zip(&self.slots).filter_map(|(number, slot)| Some((number, slot.log()?)))
    }

    /// Its partitions that are offline: the disk did not give back at the start what opening them needs, or had no
    /// room for it.
    pub fn offline(&self) -> impl Iterator<Item = (u32, TriedAgain)> {
        (0..).zip(&self.slots).filter_map(|(number, slot)| Some((number, tried_again(&slot.cause()?.lock()))))
    }

    /// One partition.
    ///
    /// # Errors
    /// See [`NoPartition`].
    pub fn partition(&self, number: u32) -> Result<&Arc<Partition>, NoPartition> {
        let topic = || self.name.to_string();
        match self.slots.get(number as usize) {
            Some(Slot::Open(log)) => Ok(log),
            Some(Slot::Offline { cause, late }) => late.get().ok_or_else(|| {
                let cause = cause.lock();
                let (again, reason) = (tried_again(&cause), cause.to_string());
                NoPartition::Offline { topic: topic(), partition: number, again, reason }
            }),
            None => {
                let last = self.partition_count().saturating_sub(1);
                Err(NoPartition::Unknown { topic: topic(), last, found: number })
            }
        }
    }

    /// That none of its partitions is offline, for what is to be known of all of them.
    ///
    /// # Errors
    /// [`NoPartition::Offline`] with the first one that is.
    pub fn is_whole(&self) -> Result<(), NoPartition> {
        (0..self.partition_count()).try_for_each(|number| self.partition(number).map(drop))
    }

    /// The first partition from this one on, around, that takes records; this one where none does.
    #[must_use]
    pub fn taking_from(&self, number: u32) -> u32 {
        let takes = |number: &u32| self.partition(*number).is_ok_and(|log| log.stopped().is_none());
        (number..self.partition_count()).chain(0..number).find(takes).unwrap_or(number)
    }

    /// How many partitions it has.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("at most 1,000 partitions")
    }

    /// A try to open a partition that is offline has failed. Logged when that changes what is waited for.
    pub(super) fn stays_offline(&self, number: u32, error: OpenLogError) {
        let Some(cause) = self.slots.get(number as usize).and_then(Slot::cause) else { return };
        let mut cause = cause.lock();
        if error.kind() != cause.kind() {
            let again = tried_again(&error);
            tracing::error!(topic = %self.name, partition = number, %error, "still offline, and tried again {again}");
        }
        *cause = error;
    }

    /// A partition that was offline is served from now on.
    pub(super) fn comes_online(&self, number: u32, log: Arc<Partition>) {
        if let Some(Slot::Offline { late, .. }) = self.slots.get(number as usize) {
            let _ = late.set(log);
        }
    }

    /// The definition that would make it.
    #[must_use]
    pub fn spec(&self) -> TopicSpec {
        TopicSpec { name: self.name.clone(), partitions: self.partition_count(), config: self.config() }
    }
}

impl Broker {
    /// The topic with this name.
    #[must_use]
    pub fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.inner.topics.read().by_name.get(name).cloned()
    }

    /// The topic with this id.
    #[must_use]
    pub fn topic_by_id(&self, id: Uuid) -> Option<Arc<Topic>> {
        self.inner.topics.read().by_id.get(&id).cloned()
    }

    /// All topics, by name.
    #[must_use]
    pub fn topics(&self) -> Vec<Arc<Topic>> {
        let mut topics: Vec<_> = self.inner.topics.read().by_id.values().cloned().collect();
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        topics
    }

    /// Checks that `spec` could be made now.
    ///
    /// # Errors
    /// As [`Broker::create_topic`].
    pub fn check_new_topic(&self, spec: &TopicSpec) -> Result<(), CreateTopicError> {
        let topics = self.inner.topics.read();
        if topics.by_name.contains_key(&spec.name) {
            return Err(CreateTopicError::Exists(spec.name.to_string()));
        }
        let total = topics.by_id.values().map(|topic| topic.slots.len()).sum::<usize>() + spec.partitions as usize;
        let limit = self.inner.config.partitions_max;
        if total > limit {
            return Err(CreateTopicError::TooManyPartitions { wanted: spec.partitions, total, limit });
        }
        Ok(())
    }

    /// Makes a topic. On return it is durable: its definition, its directories and the names that lead to them.
    ///
    /// # Errors
    /// See [`CreateTopicError`].
    pub async fn create_topic(&self, spec: TopicSpec) -> Result<Arc<Topic>, CreateTopicError> {
        let broker = self.clone();
        self.to_the_end(async move { broker.create_topic_now(spec).await }).await
    }

    async fn create_topic_now(&self, spec: TopicSpec) -> Result<Arc<Topic>, CreateTopicError> {
        let _changing = self.inner.changing_topics.lock().await;
        self.check_new_topic(&spec)?;
        let id = Uuid::new_v4();
        let made = match self.make_partitions(id, &spec).await {
            Ok(partitions) => self.add_topic(id, spec, partitions, Vec::new()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &made {
            self.forget_files(id, error).await;
        }
        made
    }

    async fn make_partitions(&self, id: Uuid, spec: &TopicSpec) -> Result<Vec<Arc<Partition>>, CreateTopicError> {
        let (broker, partitions, log) = (self.clone(), spec.partitions, log_config(&spec.config));
        let opened = tokio::task::spawn_blocking(move || {
            (0..partitions)
                .map(|number| {
                    broker.inner.store.open_partition(partition_id(id, number), log).map(|(opened, _)| opened)
                })
                .collect::<Result<Vec<_>, _>>()
        });
        Ok(opened.await.expect("opening a log does not panic")?)
    }

    /// Removes what was made of a topic before it failed. One that may be remembered keeps its files.
    async fn forget_files(&self, id: Uuid, failed: &CreateTopicError) {
        if failed.may_be_remembered() {
            return;
        }
        let broker = self.clone();
        let removed = tokio::task::spawn_blocking(move || broker.inner.store.delete_topic(id)).await;
        if let Err(cause) = removed.expect("removing files does not panic") {
            tracing::warn!(topic = %id, %cause, "half a topic is not removed; the next start does it");
        }
    }

    /// Remembers a topic whose logs are there, with `more` in the same batch, and serves it.
    pub(super) async fn add_topic(
        &self,
        id: Uuid,
        spec: TopicSpec,
        partitions: Vec<Arc<Partition>>,
        more: Vec<JournalRecord>,
    ) -> Result<Arc<Topic>, CreateTopicError> {
        let created = TopicCreated {
            id,
            name: spec.name.to_string(),
            partitions: spec.partitions,
            config: overrides(&spec.config),
            created_ms: now_ms(),
        };
        let (next, ()) = self.inner.journal.append_if(now_ms(), |state| {
            // One whose making failed behind this point is there again after the next start.
            let taken = state.topics.values().any(|topic| topic.name == spec.name.as_str());
            let exists = || Err(CreateTopicError::Exists(spec.name.to_string()));
            if taken { exists() } else { Ok((std::iter::once(created.into()).chain(more).collect(), ())) }
        })?;
        self.inner.journal.durable(next).await?;
        let slots = partitions.into_iter().map(Slot::Open).collect();
        let topic = Arc::new(Topic { id, name: spec.name, config: RwLock::new(spec.config), slots });
        let mut topics = self.inner.topics.write();
        topics.by_name.insert(topic.name.clone(), Arc::clone(&topic));
        topics.by_id.insert(id, Arc::clone(&topic));
        drop(topics);
        self.inner.topics_changed.notify(usize::MAX);
        Ok(topic)
    }

    /// The topic with this name, made with the defaults if it is missing and topics may be made so.
    ///
    /// # Errors
    /// See [`CreateTopicError`].
    pub async fn topic_or_create(&self, name: &TopicName) -> Result<Option<Arc<Topic>>, CreateTopicError> {
        if let Some(topic) = self.topic(name.as_str()) {
            return Ok(Some(topic));
        }
        if !self.inner.config.auto_create_topics || name.is_internal() {
            return Ok(None);
        }
        let partitions = self.inner.config.auto_create_partitions;
        match self.create_topic(TopicSpec { name: name.clone(), partitions, config: TopicConfig::default() }).await {
            Ok(topic) => Ok(Some(topic)),
            // Somebody else asked for it at the same time.
            Err(CreateTopicError::Exists(_)) => Ok(self.topic(name.as_str())),
            Err(error) => Err(error),
        }
    }

    /// Whether [`Broker::topic_or_create`] would answer a topic; nothing is made.
    ///
    /// # Errors
    /// As that would.
    pub fn has_or_would_create(&self, name: &TopicName) -> Result<bool, CreateTopicError> {
        if self.topic(name.as_str()).is_some() {
            return Ok(true);
        }
        if !self.inner.config.auto_create_topics || name.is_internal() {
            return Ok(false);
        }
        let partitions = self.inner.config.auto_create_partitions;
        self.check_new_topic(&TopicSpec { name: name.clone(), partitions, config: TopicConfig::default() })?;
        Ok(true)
    }

    /// One of the broker's own topics, made if it is missing.
    ///
    /// # Errors
    /// See [`CreateTopicError`].
    pub async fn internal_topic(&self, name: &TopicName, config: TopicConfig) -> Result<Arc<Topic>, CreateTopicError> {
        debug_assert!(name.is_internal(), "only the broker's own topics are made here");
        if let Some(topic) = self.topic(name.as_str()) {
            return Ok(topic);
        }
        match self.create_topic(TopicSpec { name: name.clone(), partitions: 1, config }).await {
            Err(CreateTopicError::Exists(_)) if self.topic(name.as_str()).is_some() => {
                Ok(self.topic(name.as_str()).expect("it exists"))
            }
            other => other,
        }
    }

    /// Changes a topic's settings. Durable on return.
    ///
    /// # Errors
    /// [`JournalError`]; nothing has changed then.
    pub async fn configure_topic(&self, topic: &Topic, config: TopicConfig) -> Result<(), JournalError> {
        let _changing = self.inner.changing_topics.lock().await;
        let configured = TopicConfigured { id: topic.id, config: overrides(&config) };
        let next = self.inner.journal.append(&[configured.into()], now_ms())?;
        let log = log_config(&config);
        *topic.config.write() = config;
        topic.partitions().for_each(|(_, partition)| partition.set_config(log));
        self.inner.journal.durable(next).await
    }

    /// Notified when there is another topic, or one less. Listen first, look then, wait last.
    #[must_use]
    pub fn listen_topics(&self) -> EventListener {
        self.inner.topics_changed.listen()
    }

    /// Deletes a topic and everything that is remembered about it.
    ///
    /// # Errors
    /// See [`DeleteTopicError`].
    pub async fn delete_topic(&self, name: &str) -> Result<(), DeleteTopicError> {
        let topic = self.topic(name).ok_or_else(|| DeleteTopicError::Unknown(name.to_owned()))?;
        self.delete_topic_of(&topic, &[]).await
    }

    /// As [`Broker::delete_topic`] of this very topic, also when these triggers have progress there: it is forgotten
    /// with the topic.
    ///
    /// # Errors
    /// See [`DeleteTopicError`].
    pub async fn delete_topic_of(&self, topic: &Arc<Topic>, readers: &[Uuid]) -> Result<(), DeleteTopicError> {
        let (broker, topic, readers) = (self.clone(), Arc::clone(topic), readers.to_vec());
        self.to_the_end(async move { broker.delete_topic_now(&topic, &readers).await }).await
    }

    async fn delete_topic_now(&self, topic: &Topic, readers: &[Uuid]) -> Result<(), DeleteTopicError> {
        let _changing = self.inner.changing_topics.lock().await;
        let name = topic.name.as_str();
        // Another one of its name, made since it was looked up, stays.
        if self.topic_by_id(topic.id).is_none() {
            return Err(DeleteTopicError::Unknown(name.to_owned()));
        }
        let deleted = TopicDeleted { id: topic.id };
        let (next, ()) = self.inner.journal.append_if(now_ms(), |state| {
            let trigger = state.trigger_on(topic.id, readers).map(|user| ("trigger", user));
            match trigger.or_else(|| state.schedule_on(topic.id).map(|user| ("schedule", user))) {
                Some((kind, user)) => {
                    Err(DeleteTopicError::InUse { name: name.to_owned(), kind, user: user.to_owned() })
                }
                None => Ok((vec![deleted.into()], ())),
            }
        })?;
        {
            let mut topics = self.inner.topics.write();
            topics.by_name.remove(&topic.name);
            topics.by_id.remove(&topic.id);
        }
        self.inner.topics_changed.notify(usize::MAX);
        self.inner.journal.durable(next).await?;
        let broker = self.clone();
        let id = topic.id;
        let removed = tokio::task::spawn_blocking(move || broker.inner.store.delete_topic(id));
        removed
            .await
            .expect("removing files does not panic")
            .map_err(|cause| DeleteTopicError::Files { name: name.to_owned(), cause })
    }
}

/// Opens the logs of all topics in the journal.
pub(super) fn open_all(store: &Store, journal: &Journal, report: &mut StartReport) -> Result<Topics, StartError> {
    let created: Vec<TopicCreated> = journal.look(|state| state.topics.values().cloned().collect());
    let mut topics = Topics::default();
    for created in created {
        let topic = Arc::new(open(store, created, report)?);
        report.topics += 1;
        report.partitions += topic.slots.len();
        report.records += topic.partitions().map(|(_, log)| log.tail().since(log.log_start())).sum::<u64>();
        topics.by_name.insert(topic.name.clone(), Arc::clone(&topic));
        topics.by_id.insert(topic.id, topic);
    }
    Ok(topics)
}

fn open(store: &Store, created: TopicCreated, report: &mut StartReport) -> Result<Topic, StartError> {
    let refused = |reason: String| StartError::Topic { name: created.name.clone(), reason };
    let name = TopicName::new(created.name.clone()).map_err(|error| refused(error.to_string()))?;
    let pairs = created.config.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let config = TopicConfig::from_pairs(pairs).map_err(|error| refused(error.to_string()))?;
    let mut slots = Vec::new();
    for number in 0..created.partitions {
        slots.push(match store.open_partition(partition_id(created.id, number), log_config(&config)) {
            Ok((partition, recovery)) => {
                note(&name, number, recovery, report);
                Slot::Open(partition)
            }
            // Whatever else it is, want of descriptors for one, is the same for all.
            Err(cause) if cause.kind() == OpenLogErrorKind::Other => return Err(cause.into()),
            Err(cause) => {
                report.offline.push((format!("{name}/{number}"), tried_again(&cause), cause.to_string()));
                Slot::Offline { cause: Mutex::new(cause), late: OnceLock::new() }
            }
        });
    }
    Ok(Topic { id: created.id, name, config: RwLock::new(config), slots })
}

fn note(name: &TopicName, number: u32, recovery: RecoveryReport, report: &mut StartReport) {
    if !recovery.is_clean() {
        report.recovered.push((format!("{name}/{number}"), recovery));
    }
}

/// Removes the directories of topics that were deleted, or whose making a crash interrupted; reports the others that no
/// topic owns.
pub(super) fn clean_up(store: &Store, journal: &Journal, report: &mut StartReport) {
    let Ok(on_disk) = store.topics_on_disk() else { return };
    let (known, deleted): (HashSet<Uuid>, HashSet<Uuid>) =
        journal.look(|state| (state.topics.keys().copied().collect(), state.deleted_topics.iter().copied().collect()));
    for id in on_disk.into_iter().filter(|id| !known.contains(id)) {
        let ours = deleted.contains(&id) || store.topic_is_empty(id).unwrap_or(false);
        match ours.then(|| store.delete_topic(id)) {
            Some(Ok(())) => {}
            Some(Err(cause)) => tracing::warn!(topic = %id, %cause, "files of a deleted topic not removed"),
            None => report.unknown_topics.push(id),
        }
    }
}

/// The log settings that a topic's settings ask for.
pub(super) fn log_config(config: &TopicConfig) -> LogConfig {
    let policy = config.cleanup_policy;
    let compaction = policy.compacts().then(|| CompactionConfig {
        lag_min: Duration::from_millis(config.compaction_lag_min_ms),
        lag_max: config.compaction_lag_max_ms.map(Duration::from_millis),
        dirty_millionths_min: config.dirty_millionths_min,
        tombstone_age: Duration::from_millis(config.delete_retention_ms),
    });
    let segment_age = Duration::from_millis(config.segment_ms);
    // What must be compacted by then must be in a sealed segment by then.
    let lag_max = compaction.and_then(|compaction| compaction.lag_max);
    LogConfig {
        segment_bytes: config.segment_bytes.clamp(LogConfig::SEGMENT_BYTES_MIN, LogConfig::SEGMENT_BYTES_MAX),
        segment_age: lag_max.map_or(segment_age, |lag_max| lag_max.min(segment_age)),
        retention_bytes: config.retention_bytes.filter(|_| policy.deletes()),
        retention_age: config.retention_ms.map(Duration::from_millis).filter(|_| policy.deletes()),
        hold_max: config.retention_hold_max_ms.map(Duration::from_millis),
        compaction,
        ..LogConfig::default()
    }
}

fn overrides(config: &TopicConfig) -> BTreeMap<String, String> {
    config.overrides().into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
