//! The broker's own promises over restarts: topics, committed offsets, producer ids, the journal's size.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tripline::broker::record::OffsetCommitted;
use tripline::broker::{
    Acks, Broker, BrokerConfig, CommitOffsetsError, CommitRequest, CreateTopicError, NoPartition, OFFSET_BYTES_MAX,
    ProduceError, TriedAgain, now_ms,
};
use tripline::topic::name::TopicName;
use tripline::topic::spec::{TopicConfig, TopicSpec};
use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, CheckedBatch, NewRecord};
use tripline_storage::fs::sim::Fault;
use tripline_storage::fs::{Fs, SimFs};
use tripline_storage::{Offset, StoreConfig};

fn batch(count: usize) -> CheckedBatch {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for n in 0..count {
        let value = format!("value {n}");
        builder.push(&NewRecord { timestamp_ms: 1, value: Some(value.as_bytes()), ..NewRecord::default() }).unwrap();
    }
    builder.finish().unwrap()
}

fn spec(name: &str, partitions: u32) -> TopicSpec {
    TopicSpec { name: TopicName::new(name).unwrap(), partitions, config: TopicConfig::default() }
}

fn start(dir: &tempfile::TempDir) -> Broker {
    Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap().0
}

fn offset(n: i64) -> Offset {
    Offset::new(n).unwrap()
}

#[tokio::test]
async fn topics_records_and_settings_survive_a_restart_without_a_clean_stop() {
    let dir = tempfile::tempdir().unwrap();
    let (id, epoch, cluster) = {
        let broker = start(&dir);
        let topic = broker.create_topic(spec("flights", 3)).await.unwrap();
        let appended = broker.append(&topic, 1, batch(10)).unwrap();
        appended.acknowledged(Acks::All).await.unwrap();
        let config = TopicConfig { retention_bytes: Some(1 << 30), ..TopicConfig::default() };
        broker.configure_topic(&topic, config).await.unwrap();
        (topic.id(), broker.leader_epoch(), broker.cluster_id())
    };
    let broker = start(&dir);
    let topic = broker.topic("flights").unwrap();
    assert_eq!((topic.id(), topic.partition_count()), (id, 3));
    assert_eq!(topic.config().retention_bytes, Some(1 << 30));
    assert_eq!(topic.partition(1).unwrap().config().retention_bytes, Some(1 << 30));
    assert_eq!(topic.partition(1).unwrap().tail(), offset(10));
    assert!(broker.leader_epoch() > epoch);
    assert_eq!(broker.cluster_id(), cluster);
}

#[tokio::test]
async fn a_deleted_topic_takes_its_records_and_commits_along_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(&dir);
    let topic = broker.create_topic(spec("a", 1)).await.unwrap();
    assert!(matches!(broker.create_topic(spec("a", 1)).await, Err(CreateTopicError::Exists(_))));
    broker.append(&topic, 0, batch(1)).unwrap();
    let commit = CommitRequest {
        topic: topic.id(),
        partition: 0,
        offset: Some(offset(1)),
        leader_epoch: -1,
        metadata: String::new(),
    };
    broker.commit_offsets("g", vec![commit]).await.unwrap();
    broker.delete_topic("a").await.unwrap();
    assert!(broker.groups_with_offsets().is_empty());
    let again = broker.create_topic(spec("a", 1)).await.unwrap();
    assert_ne!(again.id(), topic.id());
    assert_eq!(again.partition(0).unwrap().tail(), offset(0));
    drop((again, topic, broker));
    let broker = start(&dir);
    assert_eq!(broker.topics().len(), 1);
}

#[tokio::test]
async fn commits_that_come_after_the_end_of_their_topic_are_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(&dir);
    let (gone, there) =
        (broker.create_topic(spec("a", 1)).await.unwrap(), broker.create_topic(spec("b", 1)).await.unwrap());
    let commit = |topic: &tripline::broker::Topic| CommitRequest {
        topic: topic.id(),
        partition: 0,
        offset: Some(offset(0)),
        leader_epoch: -1,
        metadata: String::new(),
    };
    broker.delete_topic("a").await.unwrap();
    let tail = broker.append_commit("late", vec![commit(&gone)]).unwrap();
    assert_eq!(broker.append_commit("late", vec![commit(&gone)]).unwrap(), tail, "nothing is written either");
    broker.append_commit("both", vec![commit(&gone), commit(&there)]).unwrap();
    assert_eq!(broker.committed_offsets("both").len(), 1);
    assert_eq!(broker.groups_with_offsets(), ["both"]);
    // As it stands in journals of earlier versions.
    let late = OffsetCommitted {
        group: "late".to_owned(),
        topic: gone.id(),
        partition: 0,
        offset: Some(1),
        leader_epoch: -1,
        metadata: String::new(),
        commit_ms: 0,
    };
    broker.journal().append(&[late.into()], now_ms()).unwrap();
    drop((gone, there, broker));
    assert_eq!(start(&dir).groups_with_offsets(), ["both"]);
}

#[tokio::test]
async fn a_partition_that_has_stopped_holds_up_no_commits_of_others() {
    let disk = SimFs::new();
    let (broker, _) = Broker::start_on(Arc::new(disk.clone()), BrokerConfig::new("/data")).unwrap();
    let topic = broker.create_topic(spec("a", 2)).await.unwrap();
    broker.append(&topic, 0, batch(5)).unwrap();
    broker.append(&topic, 1, batch(5)).unwrap();
    topic.partition(1).unwrap().flush().unwrap();
    disk.fail_nth(disk.operations() + 1, Fault::Eio);
    topic.partition(0).unwrap().flush().unwrap_err();
    let commit = |partition, at| CommitRequest {
        topic: topic.id(),
        partition,
        offset: Some(offset(at)),
        leader_epoch: -1,
        metadata: String::new(),
    };
    broker.commit_offsets("g", vec![commit(0, 5), commit(1, 3)]).await.unwrap();
    let committed = |broker: &Broker, partition| broker.committed_offset("g", topic.id(), partition).unwrap().offset;
    assert_eq!((committed(&broker, 0), committed(&broker, 1)), (offset(5), offset(3)));
    drop(broker);
    // The power fails as well: what was not on the disk is gone, and what was said of it with it.
    let (broker, _) = Broker::start_on(Arc::new(disk.crash(1)), BrokerConfig::new("/data")).unwrap();
    let tail = broker.topic("a").unwrap().partition(0).unwrap().tail();
    assert_eq!((committed(&broker, 0), committed(&broker, 1)), (offset(5).min(tail), offset(3)));
}

#[tokio::test]
async fn committed_offsets_have_a_limit_that_holds_up_no_commits_in_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(&dir);
    let topic = broker.create_topic(spec("a", 2)).await.unwrap();
    let commit = |partition, metadata: String| CommitRequest {
        topic: topic.id(),
        partition,
        offset: Some(offset(0)),
        leader_epoch: -1,
        metadata,
    };
    let all = "x".repeat(OFFSET_BYTES_MAX);
    broker.append_commit("g", vec![commit(0, "kept".to_owned())]).unwrap();
    for (group, partition) in [("g", 0), ("g", 1), ("h", 0)] {
        let refused = broker.append_commit(group, vec![commit(partition, all.clone())]).unwrap_err();
        assert!(matches!(refused, CommitOffsetsError::NoRoom { found } if found > OFFSET_BYTES_MAX), "{refused}");
    }
    broker.append_commit("g", vec![commit(0, "less".to_owned())]).unwrap();
    assert_eq!(broker.committed_offset("g", topic.id(), 0).unwrap().metadata, "less");
    assert_eq!(broker.groups_with_offsets(), ["g"]);
}

#[tokio::test]
async fn a_commit_is_durable_only_after_its_data_and_beyond_the_tail_it_is_set_back() {
    let dir = tempfile::tempdir().unwrap();
    {
        let broker = start(&dir);
        let topic = broker.create_topic(spec("a", 1)).await.unwrap();
        broker.append(&topic, 0, batch(5)).unwrap();
        assert_eq!(topic.partition(0).unwrap().flushed(), offset(0));
        let commit = |at| CommitRequest {
            topic: topic.id(),
            partition: 0,
            offset: Some(offset(at)),
            leader_epoch: 1,
            metadata: "m".to_owned(),
        };
        broker.commit_offsets("g", vec![commit(5)]).await.unwrap();
        assert_eq!(topic.partition(0).unwrap().flushed(), offset(5), "S8");
        // What a power cut that took records would leave behind.
        let ahead = OffsetCommitted {
            group: "lost".to_owned(),
            topic: topic.id(),
            partition: 0,
            offset: Some(9),
            leader_epoch: 1,
            metadata: String::new(),
            commit_ms: 0,
        };
        broker.journal().append(&[ahead.into()], now_ms()).unwrap();
    }
    let (broker, report) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
    let id = broker.topic("a").unwrap().id();
    let kept = broker.committed_offset("g", id, 0).unwrap();
    assert_eq!((kept.offset, kept.metadata.as_str(), kept.leader_epoch), (offset(5), "m", 1));
    assert_eq!(broker.committed_offset("lost", id, 0).unwrap().offset, offset(5));
    assert_eq!(report.commits_set_back.len(), 1);
}

#[tokio::test]
async fn no_producer_id_is_given_out_twice_even_over_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        let broker = start(&dir);
        let ids = futures_util::future::join_all((0..1_500).map(|_| broker.next_producer_id())).await;
        for id in ids {
            assert!(seen.insert(id.unwrap()));
        }
    }
}

#[tokio::test]
async fn the_journal_stays_small_and_says_the_same_after_a_rewrite() {
    let dir = tempfile::tempdir().unwrap();
    let commit = |topic, at: i64| CommitRequest {
        topic,
        partition: 0,
        offset: Some(offset(at)),
        leader_epoch: 0,
        metadata: "x".repeat(4_000),
    };
    let topic = {
        let broker = start(&dir);
        let topic = broker.create_topic(spec("a", 1)).await.unwrap();
        for _ in 0..10 {
            broker.append(&topic, 0, batch(1_000)).unwrap();
        }
        for at in 0..10_000 {
            let records = [OffsetCommitted {
                group: "g".to_owned(),
                topic: topic.id(),
                partition: 0,
                offset: Some(at),
                leader_epoch: 0,
                metadata: "x".repeat(4_000),
                commit_ms: 0,
            }
            .into()];
            broker.journal().append(&records, 0).unwrap();
            if at % 1_000 == 0 {
                broker.housekeeping(&std::collections::HashMap::new());
            }
        }
        broker.commit_offsets("h", vec![commit(topic.id(), 7)]).await.unwrap();
        topic.id()
    };
    let state = std::fs::read_dir(dir.path().join("data/state")).unwrap();
    let bytes: u64 = state.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 32 << 20, "{bytes} bytes of journal");
    let broker = start(&dir);
    assert_eq!(broker.committed_offset("g", topic, 0).unwrap().offset, offset(9_999));
    assert_eq!(broker.committed_offset("h", topic, 0).unwrap().offset, offset(7));
    assert_eq!(broker.topic_by_id(topic).unwrap().name().as_str(), "a");
}

#[tokio::test]
async fn batches_of_clients_are_checked_and_the_brokers_own_topics_are_closed_to_them() {
    let dir = tempfile::tempdir().unwrap();
    let broker = start(&dir);
    let topic = broker.create_topic(spec("a", 1)).await.unwrap();
    let mut bytes = batch(3).bytes().to_vec();
    broker.append_client_batch(&topic, 0, Bytes::from(bytes.clone())).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    assert!(matches!(broker.append_client_batch(&topic, 0, Bytes::from(bytes)), Err(ProduceError::Batch(_))));
    let unknown = broker.append(&topic, 1, batch(1));
    assert!(matches!(unknown, Err(ProduceError::Partition(NoPartition::Unknown { last: 0, .. }))));
    let name = TopicName::new("__tripline.function_logs").unwrap();
    let own = broker.internal_topic(&name, TopicConfig::default()).await.unwrap();
    let refused = broker.append_client_batch(&own, 0, Bytes::copy_from_slice(batch(1).bytes()));
    assert!(matches!(refused, Err(ProduceError::Internal(_))));
}

#[tokio::test]
async fn topics_beyond_the_limit_are_refused_with_the_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig { partitions_max: 3, ..BrokerConfig::new(dir.path().join("data")) };
    let (broker, _) = Broker::start(config).unwrap();
    broker.create_topic(spec("a", 2)).await.unwrap();
    let refused = broker.create_topic(spec("b", 2)).await.unwrap_err();
    assert!(matches!(refused, CreateTopicError::TooManyPartitions { wanted: 2, total: 4, limit: 3 }), "{refused}");
}

#[tokio::test]
async fn the_scrubber_finds_damage_and_tells_it() {
    use std::time::Duration;
    let dir = tempfile::tempdir().unwrap();
    let config = TopicConfig { segment_bytes: 4096, ..TopicConfig::default() };
    let topic_id = {
        let broker = start(&dir);
        let topic = broker.create_topic(TopicSpec { config, ..spec("old", 1) }).await.unwrap();
        for _ in 0..60 {
            broker.append(&topic, 0, batch(10)).unwrap();
        }
        broker.close();
        topic.id()
    };
    let log = dir.path().join(format!("data/topics/{topic_id}/0/{:020}.log", 0));
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let broker = start(&dir);
    let second = Duration::from_secs(1);
    broker.scrub(second, Duration::ZERO);
    broker.scrub(second, second);
    let report = broker.scrub_report();
    assert!(report.read_bytes > 4096 && report.rounds == 1, "{report:?}");
    let (id, ranges) = report.damaged.first_key_value().unwrap();
    assert_eq!((id.topic, ranges.len(), ranges[0].from), (topic_id, 1, offset(0)));
    let topic = broker.topic("old").unwrap();
    assert!(topic.partition(0).unwrap().stopped().is_none());
    broker.append(&topic, 0, batch(1)).unwrap();
    // The next round is a day off.
    broker.scrub(second, Duration::from_secs(3600));
    assert_eq!(broker.scrub_report().read_bytes, report.read_bytes);
    broker.scrub(second, tripline::broker::scrub::ROUND_INTERVAL);
    assert!(broker.scrub_report().read_bytes > report.read_bytes);
}

#[tokio::test]
async fn a_scrubber_that_is_turned_off_reads_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig { scrub_bytes_per_second: 0, ..BrokerConfig::new(dir.path().join("data")) };
    let broker = Broker::start(config).unwrap().0;
    broker.scrub(std::time::Duration::from_secs(1), std::time::Duration::ZERO);
    assert_eq!(broker.scrub_report(), tripline::broker::scrub::ScrubReport::default());
}

/// Names below the folder of topics, on a disk of the heap.
fn topic_folders(disk: &SimFs) -> Vec<PathBuf> {
    disk.paths()
        .into_iter()
        .filter(|path| path.starts_with("/data/topics") && path != Path::new("/data/topics"))
        .collect()
}

#[tokio::test]
async fn half_a_topic_whose_making_failed_anywhere_is_removed() {
    let config = BrokerConfig::new("/data");
    let start = |disk: &SimFs| Broker::start_on(Arc::new(disk.clone()), config.clone()).unwrap().0;
    let count = {
        let disk = SimFs::new();
        let broker = start(&disk);
        let before = disk.operations();
        broker.create_topic(spec("a", 5)).await.unwrap();
        disk.operations() - before
    };
    let mut failed = 0;
    for nth in 1..=count {
        for fault in [Fault::Eio, Fault::Enospc] {
            let disk = SimFs::new();
            let broker = start(&disk);
            disk.fail_nth(disk.operations() + nth, fault);
            let made = broker.create_topic(spec("a", 5)).await;
            disk.heal();
            let left = topic_folders(&disk);
            match made {
                Ok(topic) => assert_eq!(topic.partition_count(), 5, "operation {nth}, {fault:?}"),
                // The next start knows whether it is there.
                Err(CreateTopicError::Journal(_)) => {}
                Err(error) => {
                    failed += 1;
                    assert!(left.is_empty(), "operation {nth}, {fault:?}: {error}: {left:?}");
                    broker.create_topic(spec("a", 5)).await.unwrap();
                }
            }
            drop(broker);
            let disk = disk.kill();
            let broker = start(&disk);
            let found = broker.topic("a").map(|topic| topic.partition_count());
            assert!(found.is_none_or(|count| count == 5), "operation {nth}, {fault:?}: {found:?}");
            assert_eq!(topic_folders(&disk).is_empty(), found.is_none(), "operation {nth}, {fault:?}");
        }
    }
    assert!(failed > 20, "only {failed} failed");
}

const MIB: u64 = 1 << 20;

/// A start on a disk in memory, where nothing happens by itself, with 4 MiB kept back.
fn start_small(disk: &SimFs) -> Broker {
    let store =
        StoreConfig { reserve_bytes: 4 * MIB, flush_interval: Duration::from_secs(3600), ..StoreConfig::default() };
    let config = BrokerConfig { store, ..BrokerConfig::new("/data") };
    Broker::start_on(Arc::new(disk.clone()), config).unwrap().0
}

fn fill(disk: &SimFs, free_bytes: u64) {
    disk.set_capacity(1 << 40);
    let used_bytes = (1 << 40) - disk.free_bytes(Path::new("/data")).unwrap();
    disk.set_capacity(used_bytes + free_bytes);
}

fn log_of(disk: &SimFs, partition: u32) -> PathBuf {
    let paths = topic_folders(disk).into_iter();
    let mut logs = paths.filter(|path| path.extension().is_some_and(|it| it == "log"));
    logs.find(|path| path.parent().unwrap().ends_with(partition.to_string())).unwrap()
}

/// As a power cut leaves it: with 8 MiB behind what was flushed that are no batch.
fn tear(disk: &SimFs, partition: u32) {
    let log = log_of(disk, partition);
    let torn = [disk.read_image(&log).unwrap(), vec![1; 8 * MIB as usize]].concat();
    disk.write_image(&log, &torn).unwrap();
}

fn of_producer(base_sequence: i32) -> CheckedBatch {
    let producer = Some(BatchProducer { id: 7, epoch: 0, base_sequence });
    let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
    builder.push(&NewRecord { timestamp_ms: 1, ..NewRecord::default() }).unwrap();
    builder.finish().unwrap()
}

/// Topic `t` of two partitions, each with a record, of which 1 has no room to be recovered.
async fn without_room() -> (SimFs, Broker) {
    let disk = SimFs::new();
    let broker = start_small(&disk);
    let topic = broker.create_topic(spec("t", 2)).await.unwrap();
    for partition in 0..2 {
        broker.append(&topic, partition, of_producer(0)).unwrap().acknowledged(Acks::All).await.unwrap();
    }
    // Beyond the tail, as where a power cut took what it speaks of.
    let commit = |partition, next| CommitRequest {
        topic: topic.id(),
        partition,
        offset: Some(offset(next)),
        leader_epoch: 3,
        metadata: "m".to_owned(),
    };
    broker.commit_offsets("g", vec![commit(0, 1), commit(1, 9)]).await.unwrap();
    drop((topic, broker));
    let disk = disk.kill();
    tear(&disk, 1);
    fill(&disk, 2 * MIB);
    let broker = start_small(&disk);
    (disk, broker)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn tried_again(broker: &Broker) -> Option<TriedAgain> {
    match broker.topic("t").unwrap().partition(1) {
        Err(NoPartition::Offline { again, .. }) => Some(again),
        found => found.map(|_| None).unwrap(),
    }
}

#[tokio::test]
async fn a_partition_without_room_at_the_start_comes_with_all_that_is_remembered_when_there_is_some() {
    let (disk, broker) = without_room().await;
    assert_eq!(tried_again(&broker), Some(TriedAgain::WithRoom));
    assert!(broker.waits_for_room() && broker.is_disk_full() && broker.open_late(at(1)).is_empty());
    // Enough for the others and the reserve.
    fill(&disk, 6 * MIB);
    assert!(broker.open_late(at(2)).is_empty());
    assert_eq!((broker.is_disk_full(), broker.reserve_held_bytes()), (false, 4 * MIB), "others go on");
    let topic = broker.topic("t").unwrap();
    broker.append(&topic, 0, batch(1)).unwrap();
    let config = TopicConfig { retention_bytes: Some(1 << 30), ..TopicConfig::default() };
    broker.configure_topic(&topic, config).await.unwrap();
    let log = log_of(&disk, 1);
    disk.set_unreadable(&log, Some(0..4096)).unwrap();
    assert!(broker.open_late(at(3)).is_empty());
    assert_eq!(tried_again(&broker), Some(TriedAgain::WithRoom), "without more room it is not read again");
    disk.set_unreadable(&log, None).unwrap();
    fill(&disk, 12 * MIB);
    let [late] = broker.open_late(at(4)).try_into().unwrap();
    assert_eq!(tried_again(&broker), Some(TriedAgain::WithRoom), "it is not served yet");
    assert!(broker.serve(&late).await.unwrap());
    assert_eq!(tried_again(&broker), None);
    assert!(!broker.waits_for_room() && broker.open_late(at(5)).is_empty());
    topic.is_whole().unwrap();
    let log = topic.partition(1).unwrap();
    assert_eq!((log.tail(), log.config().retention_bytes), (offset(1), Some(1 << 30)));
    let committed = |partition| broker.committed_offset("g", topic.id(), partition).unwrap();
    assert_eq!((committed(0).offset, committed(1).offset), (offset(1), offset(1)));
    assert_eq!((committed(1).leader_epoch, committed(1).metadata.as_str()), (3, "m"));
    let again = broker.append(&topic, 1, of_producer(0)).unwrap();
    assert_eq!(again.outcome.base_offset, offset(0), "its producers are known");
    assert_eq!(broker.append(&topic, 1, of_producer(1)).unwrap().outcome.base_offset, offset(1));
}

#[tokio::test]
async fn one_that_cannot_be_read_when_there_is_room_waits_for_the_next_start() {
    let (disk, broker) = without_room().await;
    fill(&disk, 20 * MIB);
    disk.set_unreadable(&log_of(&disk, 1), Some(0..4096)).unwrap();
    assert!(broker.open_late(at(1)).is_empty());
    assert_eq!(tried_again(&broker), Some(TriedAgain::AtStart));
    disk.set_unreadable(&log_of(&disk, 1), None).unwrap();
    assert!(broker.open_late(at(1000)).is_empty());
    drop(broker);
    assert_eq!(tried_again(&start_small(&disk.kill())), None);
}

#[tokio::test]
async fn one_that_could_not_be_served_is_served_later() {
    let (disk, broker) = without_room().await;
    fill(&disk, 20 * MIB);
    let [late] = broker.open_late(at(1)).try_into().unwrap();
    drop(late);
    assert_eq!(tried_again(&broker), Some(TriedAgain::WithRoom));
    let [late] = broker.open_late(at(1000)).try_into().unwrap();
    assert!(broker.serve(&late).await.unwrap());
    assert_eq!(tried_again(&broker), None);
}

#[tokio::test]
async fn a_topic_that_is_deleted_while_its_partition_is_opened_leaves_nothing() {
    let (disk, broker) = without_room().await;
    fill(&disk, 20 * MIB);
    let [late] = broker.open_late(at(1)).try_into().unwrap();
    broker.delete_topic("t").await.unwrap();
    let again = broker.create_topic(spec("t", 1)).await.unwrap();
    assert!(!broker.serve(&late).await.unwrap());
    assert_eq!(again.partition_count(), 1);
    let left = topic_folders(&disk);
    assert!(left.iter().all(|path| path.starts_with(format!("/data/topics/{}", again.id()))), "{left:?}");
}
