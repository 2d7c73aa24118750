//! Topics that a real Kafka wrote (tests/golden/kafka), taken over by the real binary and read back.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/served.rs"]
mod served;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use served::{Served, TRIPLINE};
use tripline::broker::{Broker, BrokerConfig};
use tripline_storage::batch::{BatchHeader, BatchLimits, BatchView, Batches};
use tripline_storage::{Offset, Partition};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/kafka")
}

fn tripline(args: &[&str]) -> Output {
    Command::new(TRIPLINE).args(args).output().unwrap()
}

fn import(topic: &str, from: &Path, data: &Path) -> Output {
    tripline(&["import", "--topic", topic, "--from", from.to_str().unwrap(), "--data", data.to_str().unwrap()])
}

fn good(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(output: Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// What a reader gets, in the words in which Kafka's DumpLogSegments prints records.
struct ReadBack {
    lines: Vec<String>,
    headers: Vec<BatchHeader>,
}

fn read_back(partition: &Partition) -> ReadBack {
    let mut read = ReadBack { lines: Vec::new(), headers: Vec::new() };
    let mut at = partition.log_start();
    while at < partition.tail() {
        let outcome = partition.read_blocking(at, 500).unwrap();
        for view in Batches::of(&outcome.bytes) {
            let view = view.unwrap();
            view.verify_crc().unwrap();
            read.lines.extend(lines(&view));
            read.headers.push(*view.header());
        }
        at = outcome.next;
    }
    read
}

fn lines(view: &BatchView<'_>) -> Vec<String> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let header = view.header();
    let records = view.records(&BatchLimits::default()).unwrap();
    let lines = records.iter().map(|record| {
        let record = record.unwrap();
        let size = |field: Option<&[u8]>| field.map_or(-1, |bytes| bytes.len() as i64);
        let delta = i32::try_from(record.offset().since(header.base_offset)).unwrap();
        let sequence = if header.base_sequence < 0 { -1 } else { header.base_sequence + delta };
        let names: Vec<_> = record.headers().map(|header| text(header.name)).collect();
        let (offset, time) = (record.offset(), record.timestamp_ms());
        let (key, value) = (record.key(), record.value());
        let mut line =
            format!("| offset: {offset} CreateTime: {time} keySize: {} valueSize: {}", size(key), size(value));
        write!(line, " sequence: {sequence} headerKeys: [{}]", names.join(",")).unwrap();
        key.into_iter().for_each(|key| write!(line, " key: {}", text(key)).unwrap());
        value.into_iter().for_each(|value| write!(line, " payload: {}", text(value)).unwrap());
        line
    });
    lines.collect()
}

/// What Kafka's own tool says, without the markers of transactions.
fn expected(partition: &str) -> Vec<String> {
    let text = std::fs::read_to_string(golden().join(format!("{partition}.records"))).unwrap();
    text.lines().filter(|line| !line.contains("endTxnMarker")).map(str::to_owned).collect()
}

fn opened(data: &Path) -> Broker {
    Broker::start(BrokerConfig::new(data)).unwrap().0
}

fn offset(n: i64) -> Offset {
    Offset::new(n).unwrap()
}

#[test]
fn what_kafka_wrote_is_read_back_record_by_record() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let told = good(import("plain", &golden(), &data));
    assert!(told.ends_with("topic plain: 100 records imported\n") && told.contains("plain/1: offsets 0..50"), "{told}");
    let broker = opened(&data);
    let topic = broker.topic("plain").unwrap();
    assert_eq!(topic.partition_count(), 2);
    for (number, partition) in topic.partitions() {
        let read = read_back(partition);
        assert_eq!(read.lines, expected(&format!("plain-{number}")));
        assert_eq!((partition.tail(), partition.flushed()), (offset(50), offset(50)));
        let codecs: std::collections::BTreeSet<_> =
            read.headers.iter().map(|header| header.attributes.compression().name()).collect();
        assert_eq!(codecs.len(), 5, "batches stay compressed as they were: {codecs:?}");
        assert!(read.headers.iter().all(|header| header.producer_id >= 0 && header.leader_epoch.is_some()));
        assert_eq!(
            partition.offset_for_time(1_700_000_000_050).unwrap().map(|(found, _)| found >= offset(20)),
            Some(true)
        );
    }
    broker.close();
    drop((topic, broker));
    assert!(good(tripline(&["verify", data.to_str().unwrap()])).ends_with("all good\n"));
}

#[test]
fn offsets_that_compaction_left_out_stay_out_and_all_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let told = good(import("compacted", &golden(), &data));
    assert!(
        told.contains("offsets 0..120") && told.contains("offsets between batches that compaction left out"),
        "{told}"
    );
    let broker = opened(&data);
    let topic = broker.topic("compacted").unwrap();
    let partition = topic.partition(0).unwrap();
    let read = read_back(partition);
    assert_eq!(read.lines, expected("compacted-0"));
    assert!(read.lines[0].starts_with("| offset: 30 "), "the first batches are gone");
    let mut next = offset(0);
    for header in &read.headers {
        assert_eq!(header.base_offset, next, "batches are dense");
        next = header.next_offset();
    }
    assert_eq!(next, offset(120));
    assert!(read.headers.iter().any(|header| header.attributes.has_delete_horizon()));
    broker.close();
    drop((topic, broker));
    assert!(good(tripline(&["verify", data.to_str().unwrap()])).ends_with("all good\n"));
}

#[test]
fn committed_transactions_become_ordinary_records_and_aborted_ones_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    assert!(good(import("committed", &golden(), &data)).contains("5 records in 2 batches"));
    let told = good(import("aborted", &golden(), &data));
    assert!(told.contains("1 aborted transactions left out") && told.contains("0 records imported"), "{told}");
    let broker = opened(&data);
    let read = |topic: &str| read_back(broker.topic(topic).unwrap().partition(0).unwrap());
    let committed = read("committed");
    assert_eq!(committed.lines, expected("committed-0"));
    assert!(committed.headers.iter().all(|header| !header.attributes.is_transactional()));
    let aborted = read("aborted");
    assert!(aborted.lines.is_empty());
    assert_eq!(
        broker.topic("aborted").unwrap().partition(0).unwrap().tail(),
        offset(6),
        "the offsets are not given again"
    );
    assert!(broker.journal().look(|state| state.next_producer_id) > 6, "ids of Kafka's producers are not given again");
}

/// A copy of a golden partition under the same name.
fn copy_of(partition: &str, to: &Path) -> PathBuf {
    let copy = to.join(partition);
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(golden().join(partition)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

fn first_log(folder: &Path) -> PathBuf {
    let mut logs: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    logs.remove(0)
}

#[test]
fn what_cannot_be_taken_over_is_refused_with_the_place_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let attempt = |name: &str, change: fn(&mut Vec<u8>)| {
        let folder = copy_of(name, &dir.path().join(name));
        let log = first_log(&folder);
        let mut bytes = std::fs::read(&log).unwrap();
        change(&mut bytes);
        std::fs::write(&log, bytes).unwrap();
        refused(import("t", &folder, &data))
    };
    let damaged = attempt("plain-0", |bytes| bytes[100] ^= 1);
    assert!(damaged.contains("byte 0, offset 0: CRC-32C"), "{damaged}");
    let old = attempt("plain-0", |bytes| bytes[16] = 1);
    assert!(old.contains("message format v1, allowed is v2"), "{old}");
    let torn = attempt("plain-0", |bytes| bytes.truncate(bytes.len() - 5));
    assert!(torn.contains("the batch needs"), "{torn}");
    let back = attempt("plain-0", |bytes| {
        let second = BatchView::parse(bytes).unwrap().0.bytes().len();
        bytes[second..second + 8].fill(0);
    });
    assert!(back.contains("offset 0 after") && back.contains("was reached"), "{back}");
    // The marker is in the second file.
    let open = copy_of("aborted-0", &dir.path().join("open"));
    std::fs::remove_file(open.join("00000000000000000005.log")).unwrap();
    let told = refused(import("t", &open, &data));
    assert!(told.contains("transaction of producer") && told.contains("offset 0 has no end"), "{told}");
    let swap = copy_of("plain-0", &dir.path().join("swap"));
    std::fs::write(swap.join("00000000000000000000.log.swap"), "").unwrap();
    assert!(refused(import("t", &swap, &data)).contains("did not finish"));
    let far = copy_of("plain-0", &dir.path().join("far"));
    let mut bytes = std::fs::read(first_log(&far)).unwrap();
    bytes.truncate(BatchView::parse(&bytes).unwrap().0.bytes().len());
    bytes[..8].copy_from_slice(&(1_i64 << 50).to_be_bytes());
    std::fs::write(far.join(format!("{:020}.log", 1_i64 << 50)), bytes).unwrap();
    let told = refused(import("t", &far, &data));
    assert!(told.contains("offsets are missing") && told.contains("allowed are 1099511627776"), "{told}");
    let gap = copy_of("plain-1", &dir.path().join("gap"));
    assert!(refused(import("t", &gap, &data)).contains("no folder of partition 0"));
    std::fs::write(dir.path().join("swap/meta.properties"), "").unwrap();
    assert!(refused(import("t", &swap, &data)).contains("was not stopped cleanly"));
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn a_dry_run_makes_nothing_and_a_name_that_is_taken_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data_text = data.to_str().unwrap();
    let from = golden();
    let dry = ["import", "--topic", "plain", "--from", from.to_str().unwrap(), "--data", data_text, "--dry-run"];
    assert!(good(tripline(&dry)).ends_with("can be imported (dry run)\n"));
    assert!(!data.exists());
    good(import("plain", &golden(), &data));
    let twice = refused(import("plain", &golden(), &data));
    assert!(twice.contains("topic plain exists already"), "{twice}");
    let topics = std::fs::read_dir(data.join("topics")).unwrap().count();
    assert_eq!(topics, 1, "nothing of the second try is left");
    let wrong = tripline(&["import", "--topic", "a b", "--from", from.to_str().unwrap(), "--data", data_text]);
    assert_eq!(wrong.status.code(), Some(2));
    let config = ["import", "--topic", "t", "--from", from.to_str().unwrap(), "--data", data_text, "--config", "x"];
    assert_eq!(tripline(&config).status.code(), Some(2));
}

#[test]
fn producers_may_append_behind_what_was_imported_whatever_ids_kafka_had_given() {
    use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, NewRecord};
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    good(import("plain", &golden(), &data));
    let broker = opened(&data);
    let topic = broker.topic("plain").unwrap();
    let partition = topic.partition(0).unwrap();
    let ids: std::collections::BTreeSet<_> =
        read_back(partition).headers.iter().map(|header| (header.producer_id, header.producer_epoch)).collect();
    for (next, (id, epoch)) in (50..).zip(ids) {
        let producer = Some(BatchProducer { id, epoch, base_sequence: 0 });
        let mut builder = BatchBuilder::new(BatchOptions { producer, ..BatchOptions::default() });
        builder.push(&NewRecord { timestamp_ms: 1, value: Some(b"new"), ..NewRecord::default() }).unwrap();
        let appended = partition.append(&builder.finish().unwrap(), 1).unwrap();
        assert!(!appended.duplicate, "a new record is not taken for one of Kafka's");
        assert_eq!(appended.base_offset, offset(next));
    }
}

#[test]
fn the_broker_serves_what_was_imported_over_http() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    good(import("compacted", &golden(), &data));
    let mut command = Command::new(TRIPLINE);
    command.args(["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
    let broker = Served::start(command.arg(&data));
    let consume = ["consume", "compacted", "--json", "--server", &broker.http];
    let consumed = Command::new(TRIPLINE).args(consume).output().unwrap();
    drop(broker);
    let text = good(consumed);
    let offsets: Vec<i64> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["offset"].as_i64().unwrap())
        .collect();
    let written: Vec<i64> =
        expected("compacted-0").iter().map(|line| line.split_whitespace().nth(2).unwrap().parse().unwrap()).collect();
    assert_eq!(offsets, written, "readers go over empty batches");
}
