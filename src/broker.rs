//! The broker: the one door to the log.
//!
//! Everything above (groups, functions, triggers, Kafka, HTTP) appends, reads and remembers through [`Broker`]. It owns
//! the data directory, the topics and the state journal, and knows no protocol.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use event_listener::Event;
use parking_lot::{Mutex, RwLock};
use tripline_storage::fs::{Fs, OsFs};
use tripline_storage::partition::{OffsetRange, RecoveryReport};
use tripline_storage::retention::{RetentionClock, SeenClock};
use tripline_storage::{LeaderEpoch, LogConfig, PartitionId, Store, StoreConfig};
use uuid::Uuid;

use crate::topic::name::TopicName;

mod changes;
pub mod codec;
mod data;
mod error;
mod import;
pub mod journal;
pub mod late;
mod maintain;
pub mod offline;
pub mod record;
pub mod scrub;
pub mod state;
mod topics;

pub use data::{Acks, Appended};
pub use error::{
    CreateTopicError, DeleteRecordsError, DeleteTopicError, NoPartition, ProduceError, StartError, TriedAgain,
};
pub use import::ImportTopicError;
pub use maintain::{CommitOffsetsError, CommitRequest, OFFSET_BYTES_MAX};
pub use topics::Topic;

use changes::Changes;
use journal::Journal;

/// What a broker is started with.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// The data directory; made if it is missing.
    pub data: PathBuf,
    /// How the log flushes and reads.
    pub store: StoreConfig,
    /// Whether a topic that somebody asks for is made. Default true.
    pub auto_create_topics: bool,
    /// Partitions of such a topic. 1–1,000, default 1.
    pub auto_create_partitions: u32,
    /// How many partitions all topics may have together; each costs open files. Default 10,000.
    pub partitions_max: usize,
    /// How often retention looks at all topics. Default 5 min.
    pub retention_interval: Duration,
    /// How fast the scrubber reads sealed segments again. Bytes a second; 0 turns it off. Default 8 MiB: a day reads
    /// 675 GiB.
    pub scrub_bytes_per_second: u64,
    /// How often compaction looks at all topics. Default 15 s.
    pub compaction_interval: Duration,
}

impl BrokerConfig {
    /// The defaults, with data in `data`.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            store: StoreConfig::default(),
            auto_create_topics: true,
            auto_create_partitions: 1,
            partitions_max: 10_000,
            retention_interval: Duration::from_secs(300),
            scrub_bytes_per_second: 8 << 20,
            compaction_interval: Duration::from_secs(15),
        }
    }
}

/// What a start found.
#[derive(Clone, Debug, Default)]
pub struct StartReport {
    /// Topics there are.
    pub topics: usize,
    /// Partitions there are.
    pub partitions: usize,
    /// Records that can be read, in all partitions.
    pub records: u64,
    /// Partitions whose recovery has something to tell.
    pub recovered: Vec<(String, RecoveryReport)>,
    /// Partitions that are offline, when they are tried again, and what their disk did not give back, or had no room
    /// for.
    pub offline: Vec<(String, TriedAgain, String)>,
    /// Committed offsets that were beyond the tail and were set to it: group, topic, partition, from, to.
    pub commits_set_back: Vec<String>,
    /// Directories below `topics/` that no topic owns. They are left alone.
    pub unknown_topics: Vec<Uuid>,
    /// How long opening took.
    pub took: Duration,
}

/// A running broker. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Broker {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: BrokerConfig,
    store: Store,
    journal: Journal,
    topics: RwLock<Topics>,
    changes: Changes,
    /// Notified when there is another topic, or one less.
    topics_changed: Event,
    /// When partitions that wait for room were tried the last time.
    late: Mutex<late::Tries>,
    /// One topic is made or deleted at a time.
    changing_topics: tokio::sync::Mutex<()>,
    /// Producer ids handed out so far, and the end of the journalled block.
    producer_ids: Mutex<(i64, i64)>,
    retention_clock: Mutex<RetentionClock>,
    started: Instant,
    scrubber: Mutex<scrub::Scrubber>,
    appended_records: AtomicI64,
    appended_bytes: AtomicI64,
    compacted_records: AtomicU64,
    compacted_bytes: AtomicU64,
    housekeeping_ended: AtomicBool,
}

impl Drop for Inner {
    /// The last handle is gone: with the flush threads ends whatever else holds the data directory.
    fn drop(&mut self) {
        self.store.stop_flushing();
    }
}

#[derive(Debug, Default)]
struct Topics {
    by_name: HashMap<TopicName, Arc<Topic>>,
    by_id: HashMap<Uuid, Arc<Topic>>,
}

impl Broker {
    /// Opens the data directory, recovers every log and reads the state journal back. Blocks: call it before serving,
    /// or where blocking is fine, on the runtime that lives as long as the broker.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: BrokerConfig) -> Result<(Self, StartReport), StartError> {
        Self::start_on(Arc::new(OsFs), config)
    }

    /// As [`Broker::start`], with its data on another disk than the operating system's.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_on(fs: Arc<dyn Fs>, config: BrokerConfig) -> Result<(Self, StartReport), StartError> {
        let started = Instant::now();
        let store = Store::open(fs, &config.data, config.store, Uuid::new_v4())?;
        let (state, state_report) = store.open_state(journal_log())?;
        let journal = Journal::replay(state)?;
        let mut report = StartReport::default();
        if !state_report.is_clean() {
            report.recovered.push(("state journal".to_owned(), state_report));
        }
        let topics = topics::open_all(&store, &journal, &mut report)?;
        topics::clean_up(&store, &journal, &mut report);
        let next_id = journal.look(|state| state.next_producer_id);
        // A data directory that has not been told yet has what was appended.
        let found = || newest_append_ms(&topics).map(SeenClock::believed);
        let seen_clock = journal.look(|state| state.clock).or_else(found);
        let broker = Self {
            inner: Arc::new(Inner {
                retention_clock: Mutex::new(RetentionClock::start(now_ms(), Duration::ZERO, seen_clock)),
                scrubber: Mutex::new(scrub::Scrubber::new(config.scrub_bytes_per_second, seen_damage(&report))),
                config,
                store,
                journal,
                topics: RwLock::new(topics),
                topics_changed: Event::new(),
                late: Mutex::default(),
                changes: Changes::here(),
                changing_topics: tokio::sync::Mutex::new(()),
                producer_ids: Mutex::new((next_id, next_id)),
                started,
                appended_records: AtomicI64::new(0),
                appended_bytes: AtomicI64::new(0),
                compacted_records: AtomicU64::new(0),
                compacted_bytes: AtomicU64::new(0),
                housekeeping_ended: AtomicBool::new(false),
            }),
        };
        broker.set_back_commits(&mut report)?;
        report.took = started.elapsed();
        Ok((broker, report))
    }

    /// What it was started with.
    #[must_use]
    pub fn config(&self) -> &BrokerConfig {
        &self.inner.config
    }

    /// The data directory's id, for ever.
    #[must_use]
    pub fn cluster_id(&self) -> Uuid {
        self.inner.store.cluster_id()
    }

    /// The epoch of this start.
    #[must_use]
    pub fn leader_epoch(&self) -> LeaderEpoch {
        self.inner.store.leader_epoch()
    }

    /// The state journal.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.inner.journal
    }

    /// Bytes free on the data directory's file system.
    ///
    /// # Errors
    /// The disk does not answer.
    pub fn free_bytes(&self) -> std::io::Result<u64> {
        self.inner.store.free_bytes()
    }

    /// Whether appends are refused because the disk is full. Service returns by itself when there is room.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        self.inner.store.is_disk_full()
    }

    /// Bytes kept back for the state journal and dead letters on a full disk, at the moment.
    #[must_use]
    pub fn reserve_held_bytes(&self) -> u64 {
        self.inner.store.reserve_held_bytes()
    }

    /// Records and bytes appended since the start.
    #[must_use]
    pub fn appended(&self) -> (u64, u64) {
        let count = |counter: &AtomicI64| counter.load(Ordering::Relaxed).unsigned_abs();
        (count(&self.inner.appended_records), count(&self.inner.appended_bytes))
    }

    /// Does a change of several steps to its end also when whoever asked for it goes away: a client that hangs up does
    /// not leave half a change.
    ///
    /// # Panics
    /// When `work` panics.
    pub async fn to_the_end<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        self.inner.changes.to_the_end(work).await
    }

    /// Waits for the changes under way; when nobody can ask for more, the broker can be closed.
    pub async fn changes_ended(&self) {
        self.inner.changes.ended().await;
    }

    /// Makes everything durable. Call it last.
    ///
    /// Answers how many partitions could not be made durable; the log says why.
    pub fn close(&self) -> usize {
        self.inner.store.close()
    }
}

/// The broker's clock: ms since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The journal rolls often, so that a rewrite can remove what lies before it.
fn journal_log() -> LogConfig {
    LogConfig { segment_bytes: 4 << 20, retention_age: None, retention_bytes: None, ..LogConfig::default() }
}

/// What recovery has seen of damage.
fn seen_damage(report: &StartReport) -> BTreeMap<PartitionId, Vec<OffsetRange>> {
    let damaged = report.recovered.iter().filter(|(_, recovery)| !recovery.damaged.is_empty());
    damaged.map(|(_, recovery)| (recovery.partition, recovery.damaged.clone())).collect()
}

fn newest_append_ms(topics: &Topics) -> Option<i64> {
    let partitions = topics.by_id.values().flat_map(|topic| topic.partitions());
    partitions.filter_map(|(_, partition)| partition.last_append_ms()).max()
}

/// The partition `partition` of `topic` in the store.
const fn partition_id(topic: Uuid, partition: u32) -> PartitionId {
    PartitionId { topic, partition }
}
