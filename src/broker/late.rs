//! Partitions that had no room to be recovered at the start: opened late, as soon as there is some.
//!
//! Recovery needs the disk for seconds, and nothing that others wait for. What it yields is served in a second step
//! ([`Broker::serve`]), before which whoever remembers something of the partition sets that back to its tail.

use std::sync::Arc;
use std::time::Duration;

use tripline_storage::Partition;
use tripline_storage::partition::RecoveryReport;

use super::journal::JournalError;
use super::topics::log_config;
use super::{Broker, Topic, TriedAgain, partition_id};

/// How often the loop looks whether there is room.
pub const TICK: Duration = Duration::from_secs(1);
/// Without more room than before it is tried again all the same: room that a quota gives back is not seen.
const RETRY: Duration = Duration::from_secs(300);

/// When partitions that wait for room are tried: the reading of a log is not for each tick.
#[derive(Debug, Default)]
pub(super) struct Tries {
    last: Option<Last>,
}

/// The last time that they were tried.
#[derive(Debug)]
struct Last {
    at: Duration,
    /// How many bytes were free then, if that is known.
    free_bytes: Option<u64>,
    /// How often in a row nothing was opened by then.
    in_vain: u32,
}

impl Tries {
    /// What did not fit then may fit now. Room that comes little by little is not worth a try each time: after each one
    /// in vain the next comes twice as late.
    fn is_due(&self, now: Duration, free_bytes: Option<u64>) -> bool {
        let Some(last) = &self.last else { return true };
        let (passed, pause) = (now.saturating_sub(last.at), TICK * (1 << last.in_vain.saturating_sub(1).min(16)));
        let has_more = free_bytes.zip(last.free_bytes).is_some_and(|(now, then)| now > then);
        passed >= RETRY || (has_more && passed >= pause)
    }

    /// A try begins: in vain, unless [`Tries::ended`] says otherwise.
    fn begun(&mut self, at: Duration, free_bytes: Option<u64>) {
        let in_vain = self.last.as_ref().map_or(0, |last| last.in_vain) + 1;
        self.last = Some(Last { at, free_bytes, in_vain });
    }

    /// What was opened has taken room; room that came meanwhile is more than there was.
    fn ended(&mut self, opened: usize, free_bytes: Option<u64>) {
        let Some(last) = &mut self.last else { return };
        last.free_bytes = last.free_bytes.min(free_bytes);
        if opened > 0 {
            last.in_vain = 0;
        }
    }
}

/// A partition that was opened late, and is not served yet.
#[derive(Clone, Debug)]
pub struct Late {
    /// Its topic.
    pub topic: Arc<Topic>,
    /// Its number.
    pub number: u32,
    /// Its log.
    pub log: Arc<Partition>,
}

impl Broker {
    /// Whether a partition waits for room. Once none does, none will before the next start.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        !self.waiting_for_room().is_empty()
    }

    /// Opens the partitions that wait for room, if there is some; `now` is the time since the broker's start. Blocks on
    /// the disk. Those that are not served then are in the answer again when it is tried the next time.
    pub fn open_late(&self, now: Duration) -> Vec<Late> {
        let waiting = self.waiting_for_room();
        if waiting.is_empty() {
            return Vec::new();
        }
        if self.is_disk_full() {
            self.inner.store.look_for_room();
        }
        // The reserve goes before, and those whose appends are refused.
        if self.is_disk_full() || !self.inner.late.lock().is_due(now, self.free_bytes().ok()) {
            return Vec::new();
        }
        self.inner.late.lock().begun(now, self.free_bytes().ok());
        let goes_on = |_: &(Arc<Topic>, u32)| !self.is_stopping();
        let tried = waiting.into_iter().take_while(goes_on);
        let opened: Vec<Late> = tried.filter_map(|(topic, number)| self.open_one(topic, number)).collect();
        self.inner.late.lock().ended(opened.len(), self.free_bytes().ok());
        opened
    }

    /// What the storage does by itself each second.
    #[cfg(test)]
    pub fn look_for_room(&self) {
        self.inner.store.look_for_room();
    }

    fn waiting_for_room(&self) -> Vec<(Arc<Topic>, u32)> {
        let topics = self.topics();
        let waiting = topics.iter().flat_map(|topic| {
            let waits = topic.offline().filter(|(_, again)| *again != TriedAgain::AtStart);
            waits.map(move |(number, _)| (Arc::clone(topic), number))
        });
        waiting.collect()
    }

    fn open_one(&self, topic: Arc<Topic>, number: u32) -> Option<Late> {
        let id = partition_id(topic.id(), number);
        // Opened before, where what comes before it is served could not be remembered.
        if let Some(log) = self.inner.store.partition(id) {
            return Some(Late { topic, number, log });
        }
        match self.inner.store.open_late(id, topic.with_config(log_config)) {
            Ok((log, recovery)) => {
                tell(&topic, number, &recovery);
                self.inner.scrubber.lock().found(id, recovery.damaged);
                Some(Late { topic, number, log })
            }
            Err(error) => {
                // Where it was deleted meanwhile, that is no wonder.
                if self.topic_by_id(topic.id()).is_some() {
                    topic.stays_offline(number, error);
                }
                None
            }
        }
    }

    /// Serves a partition that was opened late, unless its topic is gone: answers whether it is there. What groups have
    /// committed beyond its tail is set back first.
    ///
    /// # Errors
    /// [`JournalError`]: that could not be remembered, and the partition stays offline.
    pub async fn serve(&self, late: &Late) -> Result<bool, JournalError> {
        let Late { topic, number, log } = late;
        let _changing = self.inner.changing_topics.lock().await;
        if self.topic_by_id(topic.id()).is_none() {
            self.forget_late(topic).await;
            return Ok(false);
        }
        self.set_back_commits_in((topic, *number), log.tail()).await?;
        // It may have changed since it was opened.
        log.set_config(topic.with_config(log_config));
        topic.comes_online(*number, Arc::clone(log));
        tracing::info!(topic = %topic.name(), partition = number, "there was room: it is not offline any more");
        Ok(true)
    }

    /// Its topic was deleted while it was opened: what that has left behind goes, too.
    async fn forget_late(&self, topic: &Topic) {
        let (broker, id) = (self.clone(), topic.id());
        let removed = tokio::task::spawn_blocking(move || broker.inner.store.delete_topic(id)).await;
        if let Err(cause) = removed.expect("removing files does not panic") {
            tracing::warn!(topic = %topic.name(), %cause, "files of a deleted topic not removed");
        }
    }
}

fn tell(topic: &Topic, partition: u32, recovery: &RecoveryReport) {
    if recovery.is_clean() {
        return;
    }
    tracing::warn!(
        topic = %topic.name(),
        partition,
        rewritten_bytes = recovery.rewritten_bytes,
        cut = ?recovery.cut,
        damaged = ?recovery.damaged,
        alien = ?recovery.alien,
        "recovered"
    );
}

#[cfg(test)]
mod tests {
    use tripline_storage::fs::SimFs;

    use super::*;
    use crate::broker::BrokerConfig;
    use crate::topic::spec::TopicSpec;

    #[test]
    fn it_is_tried_again_with_more_room_than_before_or_when_that_is_long_ago() {
        let at = Duration::from_secs;
        assert!(Tries::default().is_due(at(0), Some(0)), "for the first time");
        let after = |tries: u32, seconds, free_bytes| {
            let mut late = Tries::default();
            (0..tries).for_each(|_| late.begun(at(seconds), free_bytes));
            late
        };
        let tries = after(1, 10, Some(100));
        for (seconds, free_bytes, due) in [
            (11, Some(100), false),
            (11, Some(101), true),
            (309, Some(99), false),
            (310, Some(99), true),
            (309, None, false),
        ] {
            assert_eq!(tries.is_due(at(seconds), free_bytes), due, "{seconds} s, {free_bytes:?}");
        }
        let unknown = after(1, 10, None);
        assert!(!unknown.is_due(at(11), Some(100)) && unknown.is_due(at(310), None));
        for (in_vain, pause) in [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (100, 300)] {
            let tries = after(in_vain, 10, Some(100));
            assert!(!tries.is_due(at(10 + pause - 1), Some(101)) && tries.is_due(at(10 + pause), Some(101)));
        }
    }

    #[test]
    fn room_that_comes_while_one_is_tried_is_more_than_before_and_what_is_opened_takes_some() {
        let at = Duration::from_secs;
        for (after, now, due) in [(200, 200, true), (200, 100, false), (50, 60, true), (50, 50, false)] {
            let mut tries = Tries::default();
            tries.begun(at(10), Some(100));
            tries.ended(1, Some(after));
            assert_eq!(tries.is_due(at(11), Some(now)), due, "{after} bytes after it, {now} now");
        }
    }

    #[tokio::test]
    async fn one_whose_topic_is_deleted_before_it_is_opened_leaves_nothing() {
        let disk = SimFs::new();
        let broker = Broker::start_on(Arc::new(disk.clone()), BrokerConfig::new("/data")).unwrap().0;
        let spec = TopicSpec::from_json(&serde_json::json!({"topic": "t", "partitions": 2})).unwrap();
        let topic = broker.create_topic(spec).await.unwrap();
        let files = || {
            let paths = disk.paths().into_iter();
            paths.filter(|path| path.starts_with(format!("/data/topics/{}", topic.id()))).count()
        };
        assert!(files() > 0);
        broker.delete_topic("t").await.unwrap();
        assert_eq!(files(), 0);
        let late = broker.open_one(Arc::clone(&topic), 1).unwrap();
        assert!(files() > 0, "it is made anew");
        assert!(!broker.serve(&late).await.unwrap());
        assert_eq!(files(), 0);
    }
}
