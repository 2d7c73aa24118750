//! A partition of a cluster as an input: fetched batches, byte for byte, and a watch on the tail.
//!
//! What is fetched is what the trigger engine reads: record batches as their producers made them, so nothing is
//! converted, and any offset can be read again by asking for it. What was fetched last is kept (at most
//! [`RECENT_BYTES_MAX`], or one batch that is larger): attempts read their windows again, and usually find them there.
//! While nobody reads at the tail, because lanes are full or far behind, the watch fetches nothing: back-pressure is
//! not reading.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::wire::schema::{FetchRequest, fetch_request, fetch_response};
use super::wire::{StrBytes, WireUuid};
use bytes::Bytes;
use event_listener::{Event, EventListener};
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::AbortHandle;
use tripline_storage::Offset;
use tripline_storage::batch::Batches;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use uuid::Uuid;

use super::aborted::{Broken, keep_decided};
use super::client::{Client, ClusterError, EARLIEST, LATEST, READ_COMMITTED, code};
use super::topics::ClusterTopic;
use super::wire::{Link, PATIENCE, message};
use crate::input::Origin;

/// What is kept of what was fetched last, in bytes.
const RECENT_BYTES_MAX: usize = 1 << 20;
/// The most that is fetched at a time: what a poller reads in a turn. A window that is read again and not kept costs as
/// much, however small it is.
const FETCH_BYTES: usize = 256 << 10;
/// How long a broker holds a fetch at the tail back.
const WATCH_WAIT: Duration = Duration::from_secs(5);
/// The first and the longest pause after a fetch that failed.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How often a read follows a partition that moves.
const TRIES: u32 = 5;

/// A partition of a cluster. Clones are handles to the same one; its watch ends with the last.
#[derive(Clone, Debug)]
pub struct ClusterInput {
    watched: Arc<Watched>,
    origin: Arc<Origin>,
}

#[derive(Debug)]
struct Watched {
    partition: Arc<Partition>,
    watch: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[derive(Debug)]
struct Partition {
    client: Arc<Client>,
    origin: Arc<Origin>,
    link: AsyncMutex<FetchLink>,
    known: Mutex<Known>,
    /// There is more.
    more: Event,
    /// Somebody has read to the tail.
    at_tail: Event,
    /// The tail is watched no more, by a bug of ours.
    broke_down: AtomicBool,
    /// There is another topic of its name now.
    is_another: AtomicBool,
}

#[derive(Debug, Default)]
struct FetchLink {
    leader: Option<String>,
    link: Link,
}

#[derive(Debug)]
struct Known {
    log_start: Offset,
    tail: Offset,
    /// Where the furthest reader stands.
    read_to: Offset,
    recent: VecDeque<Recent>,
}

/// Whole batches that were fetched, and the range of offsets that they stand for.
#[derive(Debug)]
struct Recent {
    from: Offset,
    next: Offset,
    bytes: Bytes,
}

impl ClusterInput {
    /// Partition `number` of a topic: asks where it begins and ends, and watches it from then on for a reader who has
    /// read what lies below `read_to`. Needs a tokio runtime.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn open(
        client: Arc<Client>,
        name: &str,
        topic: &ClusterTopic,
        number: u32,
        read_to: Offset,
    ) -> Result<Self, ClusterError> {
        let none = || ClusterError::NoLeader { topic: name.to_owned(), partition: number };
        let log_start = client.offset_at(name, number, EARLIEST).await?.ok_or_else(none)?;
        let tail = client.offset_at(name, number, LATEST).await?.ok_or_else(none)?;
        let origin = Origin {
            topic: name.to_owned(),
            topic_id: topic.id,
            cluster_id: topic.cluster_id.clone(),
            partition: number,
            letters: None,
        };
        let origin = Arc::new(origin);
        let known = Known { log_start, tail, read_to, recent: VecDeque::new() };
        let partition = Arc::new(Partition {
            client,
            origin: Arc::clone(&origin),
            link: AsyncMutex::default(),
            known: Mutex::new(known),
            more: Event::new(),
            at_tail: Event::new(),
            broke_down: AtomicBool::new(false),
            is_another: AtomicBool::new(false),
        });
        let watch = tokio::spawn(Arc::clone(&partition).keep_watch()).abort_handle();
        Ok(Self { watched: Arc::new(Watched { partition, watch }), origin })
    }

    pub(in crate::input) fn with_letters_of(self, topics: HashMap<String, Uuid>) -> Self {
        Self { origin: Arc::new(self.origin.of_letters(topics)), ..self }
    }

    /// Whether a read has found another topic of its name: nothing of this one is there any more.
    #[must_use]
    pub fn is_another_now(&self) -> bool {
        self.partition().is_another.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn be_another_for_test(&self) {
        self.partition().is_another.store(true, Ordering::Relaxed);
    }

    /// As when its watch has met a bug.
    #[cfg(test)]
    pub(crate) fn break_down_for_test(&self) {
        self.partition().stop_watching();
    }

    /// A partition with one record that nobody fetched yet, led by whoever listens there.
    #[cfg(test)]
    pub(crate) fn with_leader_for_test(leader: std::net::SocketAddr) -> Self {
        use super::access::{ClusterAccess, Security};
        use crate::input::ClusterAddress;

        let access = ClusterAccess { bootstrap_servers: vec![leader.to_string()], security: Security::default() };
        let tail = Offset::ZERO.next();
        let partition = Partition {
            client: Arc::new(Client::new(access, ClusterAddress::SESSION_TIMEOUT, "test")),
            origin: Arc::new(Origin::for_test()),
            link: AsyncMutex::new(FetchLink { leader: Some(leader.to_string()), link: Link::default() }),
            known: Mutex::new(Known { log_start: Offset::ZERO, tail, read_to: Offset::ZERO, recent: VecDeque::new() }),
            more: Event::new(),
            at_tail: Event::new(),
            broke_down: AtomicBool::new(false),
            is_another: AtomicBool::new(false),
        };
        let watch = tokio::spawn(std::future::pending::<()>()).abort_handle();
        let origin = Arc::clone(&partition.origin);
        Self { watched: Arc::new(Watched { partition: Arc::new(partition), watch }), origin }
    }

    fn partition(&self) -> &Partition {
        &self.watched.partition
    }

    /// Who asks its cluster.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.partition().client
    }

    pub(in crate::input) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(in crate::input) fn log_start(&self) -> Offset {
        self.partition().known.lock().log_start
    }

    pub(in crate::input) fn tail(&self) -> Offset {
        self.partition().known.lock().tail
    }

    /// The tail as the cluster knows it: what was fetched last tells little where nobody has read to the tail.
    pub(in crate::input) async fn ask_tail(&self) -> Result<Offset, ReadError> {
        let Origin { topic, partition, .. } = self.origin();
        let tail = self.client().offset_at(topic, *partition, LATEST).await.map_err(io::Error::other)?;
        Ok(tail.unwrap_or_else(|| self.tail()))
    }

    /// Whether nobody will be told any more that there is more, by a bug of ours. Listen first, look then.
    pub(in crate::input) fn broke_down(&self) -> bool {
        self.partition().broke_down.load(Ordering::Acquire)
    }

    pub(in crate::input) fn listen(&self) -> EventListener {
        self.partition().more.listen()
    }

    pub(in crate::input) async fn read(&self, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        self.partition().read(from, max_bytes).await
    }
}

impl Known {
    /// What was fetched from `from` on, if it is still here.
    fn recent(&self, from: Offset) -> Option<ReadOutcome> {
        let found = self.recent.iter().find(|recent| (recent.from..recent.next).contains(&from))?;
        let bytes = found.bytes.slice(skip_below(&found.bytes, from)..);
        // What is left of it was left out; read on behind it.
        (!bytes.is_empty()).then_some(ReadOutcome {
            bytes,
            next: found.next,
            tail: self.tail,
            log_start: self.log_start,
        })
    }

    fn keep(&mut self, recent: Recent) {
        self.recent.push_back(recent);
        while self.recent.len() > 1
            && self.recent.iter().map(|recent| recent.bytes.len()).sum::<usize>() > RECENT_BYTES_MAX
        {
            self.recent.pop_front();
        }
    }

    /// What a fetch from `from` on brought.
    fn learn(&mut self, from: Offset, fetched: &Fetched) {
        if fetched.next > from {
            self.keep(Recent { from, next: fetched.next, bytes: fetched.bytes.clone() });
        }
        self.log_start = self.log_start.max(fetched.log_start);
        self.tail = self.tail.max(fetched.tail);
    }
}

/// Where the first batch begins that reaches `from`.
fn skip_below(bytes: &[u8], from: Offset) -> usize {
    let mut at = 0;
    for view in Batches::of(bytes).map_while(Result::ok) {
        if view.header().last_offset() >= from {
            return at;
        }
        at += view.bytes().len();
    }
    bytes.len()
}

/// What one fetch brought.
struct Fetched {
    bytes: Bytes,
    next: Offset,
    tail: Offset,
    log_start: Offset,
}

impl Partition {
    async fn read(&self, from: Offset, max_bytes: usize) -> Result<ReadOutcome, ReadError> {
        let recent = self.known.lock().recent(from);
        if let Some(found) = recent {
            self.has_read_to(found.next);
            return Ok(found);
        }
        let mut link = self.link.lock().await;
        let mut at = from;
        loop {
            let fetched = self.fetch(&mut link, at, max_bytes.min(FETCH_BYTES), Duration::ZERO).await?;
            let learnt = {
                let mut known = self.known.lock();
                let before = known.tail;
                known.learn(at, &fetched);
                known.tail > before
            };
            if learnt {
                // The watch does not tell what somebody else has learnt before it.
                self.more.notify(usize::MAX);
            }
            let Fetched { bytes, next, tail, log_start } = fetched;
            // Where everything was left out, what follows stands for it.
            if !bytes.is_empty() || next >= tail || next == at {
                self.has_read_to(next);
                return Ok(ReadOutcome { bytes, next, tail, log_start });
            }
            at = next;
        }
    }

    fn has_read_to(&self, next: Offset) {
        let mut known = self.known.lock();
        known.read_to = known.read_to.max(next);
        if known.read_to >= known.tail {
            drop(known);
            self.at_tail.notify(usize::MAX);
        }
    }

    /// As [`Partition::watch`]; who waits at the tail is told when that breaks down.
    async fn keep_watch(self: Arc<Self>) {
        if AssertUnwindSafe(Arc::clone(&self).watch()).catch_unwind().await.is_err() {
            self.stop_watching();
        }
    }

    fn stop_watching(&self) {
        self.broke_down.store(true, Ordering::Release);
        self.more.notify(usize::MAX);
    }

    /// Fetches at the tail, for as long as somebody reads there.
    async fn watch(self: Arc<Self>) {
        let mut link = FetchLink::default();
        let mut pause = PAUSE;
        loop {
            let at_tail = self.at_tail.listen();
            let from = {
                let known = self.known.lock();
                (known.read_to >= known.tail).then_some(known.tail)
            };
            let Some(from) = from else {
                at_tail.await;
                continue;
            };
            match self.fetch(&mut link, from, FETCH_BYTES, WATCH_WAIT).await {
                Ok(fetched) => {
                    pause = PAUSE;
                    let mut known = self.known.lock();
                    known.learn(from, &fetched);
                    known.tail = known.tail.max(fetched.next);
                    drop(known);
                    self.more.notify(usize::MAX);
                }
                Err(error) => {
                    let Origin { topic, partition, .. } = &*self.origin;
                    tracing::warn!(topic, partition, %error, "the cluster's partition cannot be read");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    /// Follows the partition to its leader.
    async fn fetch(
        &self,
        at: &mut FetchLink,
        from: Offset,
        max_bytes: usize,
        wait: Duration,
    ) -> Result<Fetched, ReadError> {
        let Origin { topic, topic_id, partition, .. } = &*self.origin;
        // From 13 on a fetch names the topic by its id: what another one of that name has is not told then.
        let versions = if topic_id.is_nil() { 4..=12 } else { 4..=13 };
        let mut failed = None;
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::time::sleep(PAUSE).await;
            }
            let leader = match at.leader.take() {
                Some(leader) => leader,
                None => {
                    let leader = self.client.leader_of(topic, *topic_id, *partition).await;
                    if matches!(leader, Err(ClusterError::OtherTopic(_))) {
                        self.is_another.store(true, Ordering::Relaxed);
                    }
                    leader.map_err(io::Error::other)?
                }
            };
            let request = self.request(from, max_bytes, wait);
            let answer =
                match at.link.call((&leader, &self.client.dialer), versions.clone(), &request, wait + PATIENCE).await {
                    Ok(answer) => answer,
                    Err(error) => {
                        failed = Some(io::Error::other(error));
                        continue;
                    }
                };
            let found = answer.responses.into_iter().flat_map(|topic| topic.partitions).next();
            let Some(found) = found else {
                failed = Some(io::Error::other("the broker answers nothing about the partition"));
                continue;
            };
            match found.error_code {
                code::NONE => {
                    at.leader = Some(leader);
                    return self.fetched(from, found);
                }
                code::OFFSET_OUT_OF_RANGE => {
                    at.leader = Some(leader);
                    return Err(self.out_of_range(from).await);
                }
                code => failed = Some(io::Error::other(ClusterError::refused("a fetch", code))),
            }
            at.link.close();
        }
        Err(failed.unwrap_or_else(|| io::ErrorKind::TimedOut.into()).into())
    }

    fn request(&self, from: Offset, max_bytes: usize, wait: Duration) -> FetchRequest {
        let max_bytes = i32::try_from(max_bytes).unwrap_or(i32::MAX);
        let asked = message!(fetch_request::FetchPartition {
            partition: self.origin.partition.cast_signed(),
            current_leader_epoch: -1,
            fetch_offset: from.get(),
            last_fetched_epoch: -1,
            log_start_offset: -1,
            partition_max_bytes: max_bytes,
        });
        let asked = message!(fetch_request::FetchTopic {
            topic: StrBytes::from(self.origin.topic.clone()),
            topic_id: WireUuid::from_bytes(self.origin.topic_id.into_bytes()),
            partitions: vec![asked],
        });
        message!(FetchRequest {
            max_wait_ms: i32::try_from(wait.as_millis()).unwrap_or(i32::MAX),
            min_bytes: 1,
            max_bytes: max_bytes,
            isolation_level: READ_COMMITTED,
            topics: vec![asked],
        })
    }

    fn fetched(&self, from: Offset, found: fetch_response::PartitionData) -> Result<Fetched, ReadError> {
        // Before Kafka 0.11 there was no last stable offset; a broker that knows none says -1.
        let tail = Offset::new(found.last_stable_offset).or_else(|| Offset::new(found.high_watermark)).unwrap_or(from);
        let log_start = Offset::new(found.log_start_offset).unwrap_or_else(|| self.known.lock().log_start);
        let aborted = found.aborted_transactions.unwrap_or_default();
        let aborted: Vec<_> = aborted.iter().map(|aborted| (aborted.producer_id, aborted.first_offset)).collect();
        let kept = keep_decided(&found.records.unwrap_or_default(), &aborted).map_err(|broken| match broken {
            Broken::Damaged { from, to } => ReadError::Damaged { from, to },
            Broken::Foreign(error) => io::Error::other(error).into(),
        })?;
        Ok(Fetched { bytes: kept.bytes, next: kept.next.unwrap_or(from).max(from), tail, log_start })
    }

    async fn out_of_range(&self, offset: Offset) -> ReadError {
        let Origin { topic, partition, .. } = &*self.origin;
        let log_start = self.client.offset_at(topic, *partition, EARLIEST).await;
        let tail = self.client.offset_at(topic, *partition, LATEST).await;
        match (log_start, tail) {
            (Ok(Some(log_start)), Ok(Some(tail))) => {
                let mut known = self.known.lock();
                // After an unclean election of a leader the log may be shorter than it was.
                (known.log_start, known.tail) = (log_start, tail.max(log_start));
                drop(known);
                // Who has lost what expired goes on there.
                self.has_read_to(log_start);
                ReadError::OutOfRange { offset, log_start, tail }
            }
            (Err(error), _) | (_, Err(error)) => io::Error::other(error).into(),
            _ => io::Error::other(format!("offset {offset} is out of range")).into(),
        }
    }
}
