//! Committed offsets at start-up, retention and other housekeeping.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tripline_storage::error::CompactError;
use tripline_storage::partition::CompactionOutcome;
use tripline_storage::retention::SeenClock;
use tripline_storage::{Offset, Partition};
use uuid::Uuid;

use super::journal::JournalError;
use super::record::{ClockSeen, GroupForgotten, JournalRecord, OffsetCommitted};
use super::state::Committed;
use super::{Broker, StartReport, Topic, now_ms};

/// Most bytes that all committed offsets take in memory, about: a million of them without metadata.
pub const OFFSET_BYTES_MAX: usize = 256 << 20;

/// One offset that a group commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRequest {
    /// The topic.
    pub topic: Uuid,
    /// The partition.
    pub partition: u32,
    /// The next offset that the group reads; `None` forgets the commit.
    pub offset: Option<Offset>,
    /// The leader epoch of the record before it, −1 when the client did not say.
    pub leader_epoch: i32,
    /// Whatever the client keeps there.
    pub metadata: String,
}

/// Why offsets were not committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitOffsetsError {
    /// They could not be remembered.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// All committed offsets would take too much memory together.
    #[error(
        "all committed offsets would take {found} bytes together, allowed are {OFFSET_BYTES_MAX}; delete groups that are not used any more"
    )]
    NoRoom {
        /// With these.
        found: usize,
    },
}

impl Broker {
    /// Remembers offsets of a group. Durable on return, and never ahead of the data (invariant S8).
    ///
    /// # Errors
    /// See [`CommitOffsetsError`].
    pub async fn commit_offsets(&self, group: &str, commits: Vec<CommitRequest>) -> Result<(), CommitOffsetsError> {
        self.flush_for_commit(&commits).await;
        let next = self.append_commit(group, commits)?;
        Ok(self.journal().durable(next).await?)
    }

    /// The first third of [`Broker::commit_offsets`]: makes the data durable that `commits` speak of. In a partition
    /// that has stopped it never will be: what is said of it is set back at the next start, when its tail is known, and
    /// the commits of all others must not suffer.
    pub async fn flush_for_commit(&self, commits: &[CommitRequest]) {
        for commit in commits {
            let log = self.topic_by_id(commit.topic).and_then(|topic| topic.partition(commit.partition).ok().cloned());
            if let (Some(log), Some(offset)) = (log, commit.offset)
                && let Err(error) = log.flushed_to(offset.min(log.tail())).await
            {
                tracing::warn!(partition = %log.id(), %offset, %error, "offset committed in a partition that has stopped");
            }
        }
    }

    /// The second third of [`Broker::commit_offsets`], for whoever must decide and commit in one step: does not wait,
    /// and answers what to wait for with [`super::journal::Journal::durable`]. Comes after
    /// [`Broker::flush_for_commit`]. What is said of topics that are not there any more is left out.
    ///
    /// # Errors
    /// See [`CommitOffsetsError`]; nothing is remembered then.
    pub fn append_commit(&self, group: &str, commits: Vec<CommitRequest>) -> Result<Offset, CommitOffsetsError> {
        let commit_ms = now_ms();
        let record = |commit: CommitRequest| OffsetCommitted {
            group: group.to_owned(),
            topic: commit.topic,
            partition: commit.partition,
            offset: commit.offset.map(Offset::get),
            leader_epoch: commit.leader_epoch,
            metadata: commit.metadata,
            commit_ms,
        };
        let (next, ()) = self.journal().append_if(commit_ms, |state| {
            // A topic may be gone since it was looked up, and no deletion would ever forget what is said of it now.
            let there = commits.into_iter().filter(|commit| state.topics.contains_key(&commit.topic));
            let records: Vec<_> = there.map(record).collect();
            let growth_bytes: usize = records.iter().map(|commit| state.offset_growth_bytes(commit)).sum();
            let found = state.offset_bytes().saturating_add(growth_bytes);
            if growth_bytes > 0 && found > OFFSET_BYTES_MAX {
                return Err(CommitOffsetsError::NoRoom { found });
            }
            Ok((records.into_iter().map(JournalRecord::from).collect(), ()))
        })?;
        Ok(next)
    }

    /// Forgets all committed offsets of a group. Does not wait, as [`Broker::append_commit`].
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn forget_group(&self, group: &str) -> Result<Offset, JournalError> {
        self.journal().append(&[GroupForgotten { group: group.to_owned() }.into()], now_ms())
    }

    /// Forgets a group whose newest commit is not newer than `newest_ms`. Says whether there was one. Does not wait.
    ///
    /// # Errors
    /// See [`JournalError`].
    pub fn forget_group_since(&self, group: &str, newest_ms: i64) -> Result<bool, JournalError> {
        let (_, forgotten) = self.journal().append_if(now_ms(), |state| {
            let goes = state.newest_commit_ms(group).is_some_and(|newest| newest <= newest_ms);
            let forgotten = goes.then(|| JournalRecord::from(GroupForgotten { group: group.to_owned() }));
            Ok::<_, JournalError>((forgotten.into_iter().collect(), goes))
        })?;
        Ok(forgotten)
    }

    /// A group's committed offset in one partition.
    #[must_use]
    pub fn committed_offset(&self, group: &str, topic: Uuid, partition: u32) -> Option<Committed> {
        self.inner.journal.look(|state| state.offsets.get(group)?.get(&(topic, partition)).cloned())
    }

    /// All committed offsets of a group, by topic and partition.
    #[must_use]
    pub fn committed_offsets(&self, group: &str) -> Vec<((Uuid, u32), Committed)> {
        self.inner.journal.look(|state| {
            let offsets = state.offsets.get(group).into_iter().flatten();
            offsets.map(|(&key, committed)| (key, committed.clone())).collect()
        })
    }

    /// The groups that have committed offsets.
    #[must_use]
    pub fn groups_with_offsets(&self) -> Vec<String> {
        self.inner.journal.look(|state| state.offsets.keys().cloned().collect())
    }

    /// The groups that have committed offsets, each with the time of its newest commit, ms since 1970.
    #[must_use]
    pub fn newest_commits(&self) -> Vec<(String, i64)> {
        self.inner.journal.look(|state| {
            let newest = |group: &String| Some((group.clone(), state.newest_commit_ms(group)?));
            state.offsets.keys().filter_map(newest).collect()
        })
    }

    /// The time that deletion by age may use, ms since 1970; `None` while the clock is not believed.
    #[must_use]
    pub fn believed_ms(&self) -> Option<i64> {
        self.inner.retention_clock.lock().now_ms(now_ms(), self.inner.started.elapsed())
    }

    /// A commit beyond the tail speaks of records that a power cut took: it is set to the tail, and reported.
    pub(super) fn set_back_commits(&self, report: &mut StartReport) -> Result<(), JournalError> {
        let mut records = Vec::new();
        let commits: Vec<(String, Uuid, u32, Committed)> = self.inner.journal.look(|state| {
            let groups = state.offsets.iter();
            groups
                .flat_map(|(group, offsets)| {
                    offsets.iter().map(|(&(topic, partition), at)| (group.clone(), topic, partition, at.clone()))
                })
                .collect()
        });
        for (group, topic, partition, committed) in commits {
            let Some(served) = self.topic_by_id(topic) else { continue };
            let Ok(tail) = served.partition(partition).map(|log| log.tail()) else { continue };
            if let Some((back, told)) = set_back((&served, partition), tail, group, committed) {
                report.commits_set_back.push(told);
                records.push(back);
            }
        }
        if !records.is_empty() {
            self.inner.journal.append(&records, now_ms())?;
            // Before anything is appended that a commit of the old offset could be mistaken to speak of.
            self.inner.journal.flush()?;
        }
        Ok(())
    }

    /// As [`Broker::set_back_commits`], in one partition, which is not served yet.
    pub(super) async fn set_back_commits_in(
        &self,
        (topic, partition): (&Topic, u32),
        tail: Offset,
    ) -> Result<(), JournalError> {
        // Clients commit to partitions that are offline, too: what they say meanwhile stands.
        let (next, told) = self.inner.journal.append_if(now_ms(), |state| {
            let groups = state.offsets.iter();
            let commits = groups.filter_map(|(group, offsets)| Some((group, offsets.get(&(topic.id(), partition))?)));
            let back = commits
                .filter_map(|(group, committed)| set_back((topic, partition), tail, group.clone(), committed.clone()));
            let (records, told): (Vec<JournalRecord>, Vec<String>) = back.unzip();
            Ok::<_, JournalError>((records, told))
        })?;
        told.iter().for_each(|told| tracing::warn!("{told}"));
        if told.is_empty() { Ok(()) } else { self.inner.journal.durable(next).await }
    }

    /// One round of compaction over all topics that are to be compacted and are due. `holds` are the offsets from which
    /// on somebody still needs records. Blocks on the disk, and takes its time; [`Broker::end_housekeeping`] ends it
    /// early.
    pub fn compact(&self, holds: &HashMap<(Uuid, u32), Offset>) {
        let believed_ms = self.believed_ms();
        let go_on = || !self.is_stopping();
        for topic in self.topics() {
            for (number, partition) in topic.partitions() {
                let hold = holds.get(&(topic.id(), number)).copied();
                match partition.compact(believed_ms, hold, &go_on) {
                    Ok(None) => {}
                    Ok(Some(outcome)) => self.note_compaction(&topic, number, &outcome),
                    Err(CompactError::Interrupted) if !go_on() => return,
                    Err(error) => tracing::warn!(topic = %topic.name(), partition = number, %error, "not compacted"),
                }
            }
        }
    }

    fn note_compaction(&self, topic: &Topic, partition: u32, outcome: &CompactionOutcome) {
        self.inner.compacted_records.fetch_add(outcome.removed_records, Ordering::Relaxed);
        self.inner.compacted_bytes.fetch_add(outcome.removed_bytes, Ordering::Relaxed);
        tracing::info!(
            topic = %topic.name(),
            partition,
            due = ?outcome.due,
            to = %outcome.to,
            read_bytes = outcome.read_bytes,
            removed_bytes = outcome.removed_bytes,
            removed_records = outcome.removed_records,
            damaged = outcome.damaged.len(),
            "compacted"
        );
    }

    /// Records and bytes that compaction removed since the start.
    #[must_use]
    pub fn compacted(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.inner.compacted_records), count(&self.inner.compacted_bytes))
    }

    /// The broker stops: a compaction under way ends soon, and no other begins; nor is a partition opened late.
    pub fn end_housekeeping(&self) {
        self.inner.housekeeping_ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.inner.housekeeping_ended.load(Ordering::Relaxed)
    }

    /// One round of housekeeping: retention, idle producers, the journal's size. `holds` are the offsets from which on
    /// somebody still needs records. Blocks on the disk.
    pub fn housekeeping(&self, holds: &HashMap<(Uuid, u32), Offset>) {
        let now_ms = now_ms();
        let (believed_ms, seen) = {
            let mut clock = self.inner.retention_clock.lock();
            (clock.now_ms(now_ms, self.inner.started.elapsed()), clock.seen())
        };
        for topic in self.topics() {
            for (number, partition) in topic.partitions() {
                // On a full disk, records that may go make room: those who wait for them are told what they missed.
                let hold = holds.get(&(topic.id(), number)).copied().filter(|_| !self.inner.store.is_disk_full());
                tend(partition, believed_ms, hold);
            }
        }
        if self.is_disk_full() {
            // A rewrite takes room before it gives some back.
            return;
        }
        self.remember_clock(seen, now_ms);
        match self.inner.journal.rewrite_if_grown(now_ms) {
            Ok(true) => tracing::info!("state journal rewritten"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "state journal not rewritten"),
        }
    }

    /// Tells the next start what was seen of the clock. As long as it does not know, it believes less.
    fn remember_clock(&self, seen: Option<SeenClock>, now_ms: i64) {
        let known = self.inner.journal.look(|state| state.clock);
        let Some(seen) = seen.filter(|seen| seen.is_news(known)) else { return };
        if let Err(error) = self.inner.journal.append(&[ClockSeen::from(seen).into()], now_ms) {
            tracing::warn!(%error, "what was seen of the clock is not remembered");
        }
    }
}

/// What sets a commit back that lies beyond the tail, and what is to be told of it.
fn set_back(
    (topic, partition): (&Topic, u32),
    tail: Offset,
    group: String,
    committed: Committed,
) -> Option<(JournalRecord, String)> {
    let (name, from) = (topic.name(), committed.offset);
    if from <= tail {
        return None;
    }
    let told = format!("group {group}, {name}/{partition}: {from} is beyond the tail, set to {tail}");
    let (leader_epoch, metadata, topic) = (committed.leader_epoch, committed.metadata, topic.id());
    let offset = Some(tail.get());
    let back = OffsetCommitted { group, topic, partition, offset, leader_epoch, metadata, commit_ms: now_ms() };
    Some((back.into(), told))
}

fn tend(partition: &Arc<Partition>, believed_ms: Option<i64>, hold: Option<Offset>) {
    if let Err(cause) = partition.enforce_retention(believed_ms, hold) {
        tracing::error!(partition = %partition.id(), %cause, "retention failed");
    }
    // A clock that jumps ahead would have all of them forgotten, and what they send again appended twice.
    if let Some(believed_ms) = believed_ms {
        partition.expire_producers(believed_ms);
    }
}

#[cfg(test)]
mod tests {
    use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, NewRecord};

    use super::*;
    use crate::broker::BrokerConfig;
    use crate::topic::name::TopicName;
    use crate::topic::spec::{TopicConfig, TopicSpec};

    #[tokio::test]
    async fn a_clock_that_is_not_believed_has_no_producer_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        let spec = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 1, config: TopicConfig::default() };
        let topic = broker.create_topic(spec).await.unwrap();
        let producer = Some(BatchProducer { id: 7, epoch: 0, base_sequence: 0 });
        let mut batch = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
        batch.push(&NewRecord::default()).unwrap();
        broker.append(&topic, 0, batch.finish().unwrap()).unwrap();
        let partition = topic.partition(0).unwrap();
        tend(partition, None, None);
        assert!(partition.producer(7).is_some());
        let in_ten_years = now_ms() + 10 * 365 * 24 * 60 * 60 * 1000;
        tend(partition, Some(in_ten_years), None);
        assert!(partition.producer(7).is_none(), "a day without use is enough where the clock is believed");
    }

    #[tokio::test]
    async fn what_a_wrong_clock_appends_does_not_make_the_next_start_believe_it() {
        let dir = tempfile::tempdir().unwrap();
        let start = || Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap().0;
        let remembered = |broker: &Broker| broker.journal().look(|state| state.clock).unwrap();
        let broker = start();
        let spec = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 1, config: TopicConfig::default() };
        let topic = broker.create_topic(spec).await.unwrap();
        broker.housekeeping(&HashMap::new());
        assert!(remembered(&broker).distrusted.is_none());
        assert!(remembered(&broker).believed_ms.abs_diff(now_ms()) < 3_600_000);
        // As if all of this had been a month ago, and the clock had jumped to now.
        let month_ago_ms = now_ms() - 30 * 24 * 3_600_000;
        let seen = ClockSeen::from(SeenClock::believed(month_ago_ms));
        broker.journal().append(&[seen.into()], now_ms()).unwrap();
        let mut batch = BatchBuilder::new(BatchOptions::default());
        batch.push(&NewRecord::default()).unwrap();
        broker.append(&topic, 0, batch.finish().unwrap()).unwrap();
        drop((broker, topic));
        for _ in 0..2 {
            let broker = start();
            assert_eq!(broker.believed_ms(), None);
            broker.housekeeping(&HashMap::new());
            assert_eq!(remembered(&broker).believed_ms, month_ago_ms);
            assert!(remembered(&broker).distrusted.is_some());
        }
        let broker = start();
        let a_day = std::time::Duration::from_secs(24 * 3600);
        let ran = SeenClock { believed_ms: month_ago_ms, distrusted: Some((now_ms(), a_day)) };
        broker.journal().append(&[ClockSeen::from(ran).into()], now_ms()).unwrap();
        drop(broker);
        assert!(start().believed_ms().is_some(), "it ran for a day");
    }
}
