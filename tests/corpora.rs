//! The inputs that fuzzing found worth keeping, each given to its target once more: whatever they did once, they do no
//! more.
//!
//! `cargo test --test corpora -- --ignored` makes the first inputs anew, from what this release writes.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../fuzz/src/kafka_frame.rs"]
mod kafka_frame;
#[path = "../fuzz/src/producer_snapshot.rs"]
mod producer_snapshot;
#[path = "../fuzz/src/record_batch.rs"]
mod record_batch;
#[path = "../fuzz/src/recovery.rs"]
mod recovery;
#[path = "../fuzz/src/transform.rs"]
mod transform;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use kafka_wire::{KafkaRequest, OutboundFrameLimits};
use kafka_wire_core::{ApiVersion, StrBytes};
use tripline::kafka::version::Api;
use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, NewRecord};
use tripline_storage::fs::SimFs;
use tripline_storage::{LogConfig, PartitionId, Store, StoreConfig};
use uuid::Uuid;

/// All corpora together: a repository is no place for more.
const CORPORA_BYTES_MAX: u64 = 200 << 10;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target)
}

fn replay(target: &str, run: fn(&[u8])) {
    let mut inputs: Vec<_> = fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "no inputs for {target}");
    for input in inputs {
        // Told first: which input it was is what one wants to know of a panic.
        println!("{}", input.display());
        run(&fs::read(&input).unwrap());
    }
}

#[test]
fn kept_kafka_frames_do_no_harm() {
    replay("kafka_frame", kafka_frame::run);
}

#[test]
fn kept_producer_snapshots_do_no_harm() {
    replay("producer_snapshot", producer_snapshot::run);
}

#[test]
fn kept_record_batches_do_no_harm() {
    replay("record_batch", record_batch::run);
}

#[test]
fn kept_partitions_do_no_harm() {
    replay("recovery", recovery::run);
}

#[test]
fn kept_transforms_do_no_harm() {
    replay("transform", transform::run);
}

#[test]
fn each_target_has_a_corpus_and_all_are_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut total_bytes = 0;
    for target in fs::read_dir(root.join("fuzz_targets")).unwrap() {
        let target = target.unwrap().path();
        let name = target.file_stem().unwrap().to_str().unwrap();
        let inputs = fs::read_dir(corpus(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        total_bytes += inputs.map(|input| input.unwrap().metadata().unwrap().len()).sum::<u64>();
    }
    assert!(total_bytes <= CORPORA_BYTES_MAX, "{total_bytes} bytes");
}

// ---- making the first ones -----------------------------------------------------------------------------------------

#[test]
#[ignore = "writes into the source"]
fn make_a_partition() {
    let disk = SimFs::new();
    let config = LogConfig { segment_bytes: 1024, index_interval_bytes: 200, ..LogConfig::default() };
    let store =
        Store::open(Arc::new(disk.clone()), Path::new("/data"), StoreConfig::default(), Uuid::from_u128(1)).unwrap();
    let id = PartitionId { topic: Uuid::from_u128(7), partition: 0 };
    let (partition, _) = store.open_partition(id, config).unwrap();
    for n in 0..12 {
        let producer = Some(BatchProducer { id: 900, epoch: 0, base_sequence: 2 * n });
        let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
        for _ in 0..2 {
            let value = [b'x'; 60];
            builder.push(&NewRecord { timestamp_ms: 7, value: Some(&value), ..NewRecord::default() }).unwrap();
        }
        partition.append(&builder.finish().unwrap(), 7).unwrap();
    }
    partition.flush().unwrap();
    store.close();
    let (mut whole, mut logs) = (Vec::new(), Vec::new());
    for path in disk.paths().iter().filter(|path| path.starts_with(format!("/data/topics/{}", id.topic))) {
        let bytes = disk.read_image(path).unwrap();
        let (stem, extension) = (path.file_stem().unwrap().to_str().unwrap(), path.extension());
        let kind = match extension.map(|extension| extension.to_str().unwrap()) {
            None => 0,
            Some("log") => 1,
            Some("index") => 2,
            Some("seal") => 3,
            _ => 4,
        };
        let base: u16 = stem.parse().unwrap_or(0);
        let mut file = vec![kind];
        file.extend(base.to_le_bytes());
        file.push(0);
        file.extend(u16::try_from(bytes.len()).unwrap().to_le_bytes());
        file.extend(bytes);
        whole.extend(&file);
        if kind == 1 {
            logs.extend(file);
        }
    }
    keep("recovery", "whole", &whole);
    keep("recovery", "logs_alone", &logs);
}

/// One of each request, in the oldest and the newest version that is served; as empty as it may be.
#[test]
#[ignore = "writes into the source"]
fn make_frames() {
    macro_rules! each {
        ($($api:ident $request:ident),* $(,)?) => {
            $(
                let spec = Api::$api.spec();
                make_frame(&kafka_wire::$request::default(), spec.name, spec.min);
                make_frame(&kafka_wire::$request::default(), spec.name, spec.max);
            )*
        };
    }
    each!(
        Produce ProduceRequest,
        Fetch FetchRequest,
        ListOffsets ListOffsetsRequest,
        Metadata MetadataRequest,
        OffsetCommit OffsetCommitRequest,
        OffsetFetch OffsetFetchRequest,
        FindCoordinator FindCoordinatorRequest,
        JoinGroup JoinGroupRequest,
        Heartbeat HeartbeatRequest,
        LeaveGroup LeaveGroupRequest,
        SyncGroup SyncGroupRequest,
        DescribeGroups DescribeGroupsRequest,
        ListGroups ListGroupsRequest,
        ApiVersions ApiVersionsRequest,
        CreateTopics CreateTopicsRequest,
        DeleteTopics DeleteTopicsRequest,
        InitProducerId InitProducerIdRequest,
        DescribeConfigs DescribeConfigsRequest,
        DeleteGroups DeleteGroupsRequest,
    );
}

fn make_frame<R: KafkaRequest>(request: &R, name: &str, version: i16) {
    let mut frame = BytesMut::new();
    let client = Some(StrBytes::from("client"));
    let limits = OutboundFrameLimits::new(1 << 20);
    // Some fields have no default that both versions can say.
    if kafka_wire::encode_request(&mut frame, 1, client, request, ApiVersion::new(version), limits).is_ok() {
        keep("kafka_frame", &format!("{name}_{version}"), &frame);
    }
}

fn keep(target: &str, name: &str, bytes: &[u8]) {
    fs::create_dir_all(corpus(target)).unwrap();
    fs::write(corpus(target).join(name), bytes).unwrap();
}
