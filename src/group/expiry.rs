//! Committed offsets of groups that nobody is in any more: forgotten after a time, as Kafka does.
//!
//! A group is given up when its newest commit is older than [`OFFSET_RETENTION`] and nobody was in it for as long. Who
//! was in a group is not remembered over a restart, and so that time begins anew with each start: offsets are rather
//! kept too long than lost by members who are about to come back and have long had nothing to commit.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tripline_storage::retention::is_older;

use uuid::Uuid;

use super::id::GroupId;
use super::service::GroupService;
use super::state::GroupState;
use crate::broker::{Broker, NoPartition};

/// How long offsets outlive the last commit and the last member. Kafka's `offsets.retention.minutes`.
pub const OFFSET_RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Looks for such groups from time to time.
pub struct OffsetExpiry {
    broker: Broker,
    groups: GroupService,
    /// Groups with offsets in which nobody was since, as far as is known.
    vacant_since: HashMap<GroupId, Instant>,
}

impl OffsetExpiry {
    /// Has seen nothing yet.
    #[must_use]
    pub fn new(broker: Broker, groups: GroupService) -> Self {
        Self { broker, groups, vacant_since: HashMap::new() }
    }

    /// One look at all groups with offsets. The groups of triggers stay: those of a trigger that runs elsewhere are
    /// its progress.
    pub fn round(&mut self, now: Instant) {
        let listed: HashMap<_, _> =
            self.groups.list().into_iter().map(|listing| (listing.id.clone(), listing)).collect();
        // Behind the look at the groups: one that gives way in between is in both.
        let gone = self.groups.take_gone();
        if gone.overflown {
            self.vacant_since.clear();
        }
        // A clock that jumps ahead would have the offsets of all forgotten that are not there just now.
        let believed_ms = self.broker.believed_ms();
        let mut vacant_since = HashMap::new();
        for (group, newest_ms) in self.broker.newest_commits() {
            let Ok(group) = GroupId::parse(&group) else { continue };
            let listing = listed.get(&group);
            let is_inhabited = listing.is_some_and(|listing| listing.state != GroupState::Empty);
            if group.trigger().is_some() || is_inhabited || self.waits_for_disk(&group) {
                continue;
            }
            let noted = self.vacant_since.get(&group).copied();
            let left = listing.and_then(|listing| listing.left);
            // Members may have come and gone since the last look.
            let since = noted.max(left).max(gone.left.get(&group).copied()).unwrap_or(now);
            let given_up = now.duration_since(since) >= OFFSET_RETENTION
                && believed_ms.is_some_and(|now_ms| is_older(newest_ms, now_ms, OFFSET_RETENTION));
            if !(given_up && self.forget(&group, newest_ms)) {
                vacant_since.insert(group, since);
            }
        }
        self.vacant_since = vacant_since;
    }

    /// Whether it has offsets in a partition that is offline: nobody can go on there.
    fn waits_for_disk(&self, group: &GroupId) -> bool {
        let offsets = self.broker.committed_offsets(group.as_str());
        let is_offline = |(topic, partition): (Uuid, u32)| {
            let topic = self.broker.topic_by_id(topic);
            topic.is_some_and(|topic| matches!(topic.partition(partition), Err(NoPartition::Offline { .. })))
        };
        offsets.into_iter().any(|(place, _)| is_offline(place))
    }

    /// Forgets a group, unless somebody came or committed meanwhile.
    fn forget(&self, group: &GroupId, newest_ms: i64) -> bool {
        match self.groups.delete(group, || self.broker.forget_group_since(group.as_str(), newest_ms)) {
            Ok(Ok(forgotten)) => {
                if forgotten {
                    tracing::info!(%group, "offsets forgotten: the group was empty and committed nothing for 7 days");
                }
                forgotten
            }
            Ok(Err(error)) => {
                tracing::warn!(%group, %error, "offsets not forgotten");
                false
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use bytes::Bytes;
    use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};
    use tripline_storage::fs::SimFs;

    use super::*;
    use crate::broker::record::OffsetCommitted;
    use crate::broker::{BrokerConfig, CommitRequest, now_ms};
    use crate::group::config::GroupConfig;
    use crate::group::member::{JoinRequest, Leaver, Protocol};
    use crate::topic::name::TopicName;
    use crate::topic::spec::{TopicConfig, TopicSpec};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn member() -> JoinRequest {
        JoinRequest {
            member_id: None,
            candidate_id: GroupService::candidate_id("m", None),
            instance_id: None,
            client_id: "m".into(),
            client_host: "/127.0.0.1".into(),
            session_timeout: Duration::from_secs(1800),
            rebalance_timeout: None,
            protocol_type: "consumer".into(),
            protocols: vec![Protocol { name: "range".into(), metadata: Bytes::new() }],
            id_required: false,
            may_skip_assignment: false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn offsets_outlive_the_last_commit_and_the_last_member_by_a_week() {
        let dir = tempfile::tempdir().unwrap();
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        let spec = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 2, config: TopicConfig::default() };
        let topic = broker.create_topic(spec).await.unwrap().id();
        let commit = |group: &str, partition, days_ago: i64| {
            let commit_ms = now_ms() - days_ago * 24 * 60 * 60 * 1000;
            let (group, metadata) = (group.to_owned(), String::new());
            let record =
                OffsetCommitted { group, topic, partition, offset: Some(0), leader_epoch: -1, metadata, commit_ms };
            broker.journal().append(&[record.into()], now_ms()).unwrap();
        };
        for group in ["gone", "inhabited", "trigger.elsewhere", "recent"] {
            commit(group, 0, 8);
        }
        commit("recent", 1, 6);
        let config = GroupConfig { initial_rebalance_delay: Duration::ZERO, ..GroupConfig::default() };
        let (groups, _timers) = GroupService::new(config);
        let id = GroupId::parse("inhabited").unwrap();
        let joined = groups.join(&id, &member()).await.unwrap();
        let mut expiry = OffsetExpiry::new(broker.clone(), groups.clone());
        let start = tokio::time::Instant::now();
        let mut left_after = async |days: u32| {
            tokio::time::advance(start + DAY * days - tokio::time::Instant::now()).await;
            expiry.round(tokio::time::Instant::now().into_std());
            broker.groups_with_offsets()
        };
        assert_eq!(left_after(0).await.len(), 4, "whoever was there before the start may come back");
        assert_eq!(left_after(6).await.len(), 4);
        assert_eq!(left_after(7).await, ["inhabited", "recent", "trigger.elsewhere"]);
        let leaver = Leaver { member_id: Some(joined.member_id.to_string()), instance_id: None };
        assert_eq!(groups.leave(&id, &[leaver]), [Ok(())]);
        assert_eq!(left_after(8).await.len(), 3, "its week begins when it is left");
        assert_eq!(left_after(15).await, ["recent", "trigger.elsewhere"]);
    }

    #[tokio::test(start_paused = true)]
    async fn members_that_come_and_go_between_two_looks_keep_their_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        let spec = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 1, config: TopicConfig::default() };
        let topic = broker.create_topic(spec).await.unwrap().id();
        for group in ["gone", "nightly"] {
            let (group, metadata, commit_ms) = (group.to_owned(), String::new(), now_ms() - 8 * 24 * 60 * 60 * 1000);
            let record =
                OffsetCommitted { group, topic, partition: 0, offset: Some(0), leader_epoch: -1, metadata, commit_ms };
            broker.journal().append(&[record.into()], now_ms()).unwrap();
        }
        let config = GroupConfig { initial_rebalance_delay: Duration::ZERO, groups_max: 2, ..GroupConfig::default() };
        let (groups, _timers) = GroupService::new(config);
        let visit = async |group: &str| {
            let id = GroupId::parse(group).unwrap();
            let joined = groups.join(&id, &member()).await.unwrap();
            let leaver = Leaver { member_id: Some(joined.member_id.to_string()), instance_id: None };
            assert_eq!(groups.leave(&id, &[leaver]), [Ok(())]);
        };
        let mut expiry = OffsetExpiry::new(broker.clone(), groups.clone());
        let mut round = || {
            expiry.round(tokio::time::Instant::now().into_std());
            broker.groups_with_offsets()
        };
        assert_eq!(round().len(), 2);
        for _ in 0..8 {
            visit("nightly").await;
            tokio::time::advance(DAY).await;
            round();
        }
        assert_eq!(round(), ["nightly"]);
        tokio::time::advance(DAY * 5).await;
        visit("nightly").await;
        // It gives way to others, before anybody has looked.
        visit("other").await;
        visit("another").await;
        assert!(groups.describe(&GroupId::parse("nightly").unwrap()).is_none());
        tokio::time::advance(DAY * 6).await;
        assert_eq!(round(), ["nightly"]);
        for more in 0..6 {
            visit(&format!("more {more}")).await;
        }
        tokio::time::advance(DAY).await;
        assert!(round().is_empty(), "whatever other groups do");
    }

    #[tokio::test]
    async fn a_group_that_cannot_go_on_because_of_the_disk_is_not_forgotten() {
        let disk = SimFs::new();
        let start = |disk: &SimFs| Broker::start_on(Arc::new(disk.clone()), BrokerConfig::new("/data")).unwrap().0;
        let broker = start(&disk);
        let spec = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 2, config: TopicConfig::default() };
        let topic = broker.create_topic(spec).await.unwrap();
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push(&NewRecord { timestamp_ms: 1, key: None, value: Some(b"x"), headers: &[] }).unwrap();
        broker.append(&topic, 1, builder.finish().unwrap()).unwrap();
        let topic = topic.id();
        for (group, partition) in [("there", 0), ("offline", 0), ("offline", 1)] {
            let (group, metadata, commit_ms) = (group.to_owned(), String::new(), now_ms() - 8 * 24 * 60 * 60 * 1000);
            let record =
                OffsetCommitted { group, topic, partition, offset: Some(0), leader_epoch: -1, metadata, commit_ms };
            broker.journal().append(&[record.into()], now_ms()).unwrap();
        }
        drop(broker);
        let disk = disk.kill();
        let log = format!("/data/topics/{topic}/1/{:020}.log", 0);
        disk.set_unreadable(Path::new(&log), Some(0..4096)).unwrap();
        let broker = start(&disk);
        assert_eq!(broker.topic("t").unwrap().offline().count(), 1);
        let (groups, _timers) = GroupService::new(GroupConfig::default());
        let mut expiry = OffsetExpiry::new(broker.clone(), groups);
        let now = Instant::now();
        expiry.round(now);
        expiry.round(now + DAY * 7);
        assert_eq!(broker.groups_with_offsets(), ["offline"]);
    }

    #[tokio::test]
    async fn a_commit_that_comes_meanwhile_keeps_its_group() {
        let dir = tempfile::tempdir().unwrap();
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        let spec = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 1, config: TopicConfig::default() };
        let topic = broker.create_topic(spec).await.unwrap().id();
        let offset = tripline_storage::Offset::new(0);
        let metadata = String::new();
        let commit = CommitRequest { topic, partition: 0, offset, leader_epoch: -1, metadata };
        broker.append_commit("g", vec![commit]).unwrap();
        let (_, newest_ms) = broker.newest_commits().remove(0);
        assert!(!broker.forget_group_since("g", newest_ms - 1).unwrap(), "there is a newer one");
        assert!(broker.forget_group_since("g", newest_ms).unwrap());
        assert!(!broker.forget_group_since("g", newest_ms).unwrap(), "nothing is left to forget");
        assert!(broker.groups_with_offsets().is_empty());
    }
}
