use std::collections::HashMap;

use bytes::Bytes;
use kafka_wire::*;
use kafka_wire_core::StrBytes;
use tripline_storage::batch::{BatchBuilder, BatchOptions, Batches, Compression, NewRecord};

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

const COMPACTED: [(&str, &str); 3] =
    [("cleanup.policy", "compact"), ("segment.bytes", "1024"), ("min.cleanable.dirty.ratio", "0.1")];

type Pair<'a> = (Option<&'a str>, Option<&'a str>);

fn pairs(pairs: &[Pair<'_>], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::new(BatchOptions { compression, ..BatchOptions::default() });
    for (key, value) in pairs {
        let record = NewRecord {
            timestamp_ms: 1_000,
            key: key.map(str::as_bytes),
            value: value.map(str::as_bytes),
            headers: &[],
        };
        builder.push(&record).unwrap();
    }
    builder.finish().unwrap().bytes().clone()
}

async fn compacted() -> (Server, Client) {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "c", 1, &COMPACTED).await;
    (server, client)
}

/// Offsets, keys and values of the records in whole batches, and where they end.
fn records(bytes: &[u8]) -> (Vec<(i64, String, Option<String>)>, i64) {
    let (mut found, mut next) = (Vec::new(), 0);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    for view in Batches::of(bytes) {
        let view = view.unwrap();
        view.verify_crc().unwrap();
        for record in &view.records(&Default::default()).unwrap() {
            let record = record.unwrap();
            found.push((record.offset().get(), text(record.key().unwrap()), record.value().map(text)));
        }
        next = view.header().next_offset().get();
    }
    (found, next)
}

/// Reads as a consumer does, each time from where the last batch ended.
async fn read_all(client: &mut Client, from: i64) -> Vec<(i64, String, Option<String>)> {
    let (mut all, mut at) = (Vec::new(), from);
    loop {
        let fetched = fetch(client, "c", at).await;
        assert_eq!(fetched.error_code, 0);
        let bytes = fetched.records.unwrap_or_default();
        if bytes.is_empty() {
            assert_eq!(at, fetched.high_watermark);
            return all;
        }
        let (found, next) = records(&bytes);
        assert!(next > at && !found.is_empty(), "stuck at {at}");
        all.extend(found.into_iter().filter(|(offset, ..)| *offset >= at));
        at = next;
    }
}

#[tokio::test]
async fn a_compacted_topic_refuses_records_without_a_key_and_names_the_first() {
    let (server, mut client) = compacted().await;
    for compression in Compression::ALL {
        let batch = pairs(&[(Some("a"), Some("1")), (None, Some("2")), (None, None)], compression);
        let refused = produce(&mut client, "c", batch).await;
        assert_eq!((refused.error_code, refused.base_offset), (87, -1), "{compression}");
        assert_eq!(refused.record_errors.len(), 1);
        assert_eq!(refused.record_errors[0].batch_index, 1);
        let message = refused.error_message.unwrap();
        assert!(message.contains("record 1") && message.contains("topic c"), "{message}");
    }
    assert_eq!(server.broker.topic("c").unwrap().partition(0).unwrap().tail().get(), 0);
    assert_eq!(produce(&mut client, "c", pairs(&[(Some(""), None)], Compression::None)).await.error_code, 0);
}

#[tokio::test]
async fn the_newest_record_of_each_key_is_left_at_its_offset_over_a_restart() {
    let (server, mut client) = compacted().await;
    let mut newest = HashMap::new();
    for round in 0..60 {
        let (key, value) = (format!("k{}", round % 7), format!("{round:050}"));
        let other = format!("only-{round}");
        let keys = if round % 20 == 0 { [other.as_str(), key.as_str()] } else { [key.as_str(), key.as_str()] };
        let batch: Vec<Pair<'_>> = keys.iter().map(|key| (Some(*key), Some(value.as_str()))).collect();
        let codec = Compression::ALL[round % Compression::ALL.len()];
        let produced = produce(&mut client, "c", pairs(&batch, codec)).await;
        for (offset, key) in (produced.base_offset..).zip(keys) {
            newest.insert(key.to_owned(), (offset, value.clone()));
        }
    }
    let before = read_all(&mut client, 0).await;
    assert_eq!(before.len(), 120);
    server.broker.compact(&HashMap::new());
    let (removed_records, removed_bytes) = server.broker.compacted();
    assert!(removed_records > 80 && removed_bytes > 2_000, "{removed_records} records, {removed_bytes} bytes");
    let after = read_all(&mut client, 0).await;
    assert_eq!(after.len() as u64, 120 - removed_records);
    assert!(after.iter().all(|record| before.contains(record)), "offsets and values are as they were");
    for (key, (offset, value)) in &newest {
        assert!(after.contains(&(*offset, key.clone(), Some(value.clone()))), "{key} at {offset}");
    }
    for from in [1, 50, 119] {
        let expected: Vec<_> = after.iter().filter(|(offset, ..)| *offset >= from).cloned().collect();
        assert_eq!(read_all(&mut client, from).await, expected, "from {from}, which may be gone");
    }
    let server = server.restart().await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(read_all(&mut client, 0).await, after);
}

#[tokio::test]
async fn a_hold_keeps_compaction_away() {
    let (server, mut client) = compacted().await;
    for _ in 0..40 {
        produce(&mut client, "c", pairs(&[(Some("k"), Some("x")); 3], Compression::None)).await;
    }
    let id = server.broker.topic("c").unwrap().id();
    let hold = |offset| HashMap::from([((id, 0), tripline_storage::Offset::new(offset).unwrap())]);
    server.broker.compact(&hold(0));
    assert_eq!(server.broker.compacted().0, 0);
    server.broker.compact(&hold(60));
    let left = read_all(&mut client, 0).await;
    assert!(left.len() < 120 && left.iter().filter(|(offset, ..)| *offset >= 60).count() == 60, "{}", left.len());
    server.broker.end_housekeeping();
    server.broker.compact(&HashMap::new());
    assert_eq!(read_all(&mut client, 0).await, left, "the broker stops");
}

#[tokio::test]
async fn settings_of_compaction_are_told_as_kafka_tells_them_and_wrong_ones_are_refused() {
    let (_server, mut client) = compacted().await;
    let resource = message!(describe_configs_request::DescribeConfigsResource {
        resource_type: 2,
        resource_name: StrBytes::from("c"),
    });
    let request = message!(DescribeConfigsRequest { resources: vec![resource] });
    let configs = client.call(4, &request).await.results.remove(0).configs;
    let told = |name: &str| {
        let config = configs.iter().find(|config| &*config.name == name).unwrap();
        (config.value.as_deref().unwrap().to_owned(), config.config_source, config.config_type)
    };
    assert_eq!(told("cleanup.policy"), ("compact".to_owned(), 1, 7));
    assert_eq!(told("min.cleanable.dirty.ratio"), ("0.1".to_owned(), 1, 6));
    assert_eq!(told("delete.retention.ms"), ("86400000".to_owned(), 5, 5));
    assert_eq!(told("min.compaction.lag.ms"), ("0".to_owned(), 5, 5));
    assert_eq!(told("max.compaction.lag.ms"), ("9223372036854775807".to_owned(), 5, 5));
    for (name, value) in
        [("cleanup.policy", "compact,keep"), ("min.cleanable.dirty.ratio", "2"), ("max.compaction.lag.ms", "0")]
    {
        let config = message!(create_topics_request::CreatableTopicConfig {
            name: StrBytes::from(name),
            value: Some(StrBytes::from(value)),
        });
        let topic = message!(create_topics_request::CreatableTopic {
            name: StrBytes::from("wrong"),
            num_partitions: 1,
            replication_factor: 1,
            configs: vec![config],
        });
        let result = client.call(7, &message!(CreateTopicsRequest { topics: vec![topic] })).await.topics.remove(0);
        assert_eq!(result.error_code, 40, "{name}={value}");
        assert!(result.error_message.unwrap().contains(name));
    }
}

#[tokio::test]
async fn deleted_records_stay_deleted_and_a_topic_that_is_only_compacted_deletes_none() {
    let (server, mut client) = with_topic().await;
    produce(&mut client, "t", plain(&["a", "b", "c", "d", "e"])).await;
    let delete = |topic: &str, partition, offset| {
        let partition =
            message!(delete_records_request::DeleteRecordsPartition { partition_index: partition, offset: offset });
        let topic = message!(delete_records_request::DeleteRecordsTopic {
            name: StrBytes::from(topic),
            partitions: vec![partition],
        });
        message!(DeleteRecordsRequest { topics: vec![topic], timeout_ms: 1000 })
    };
    create(&mut client, "c", 1, &COMPACTED).await;
    for (topic, partition, offset, expected) in [
        ("t", 0, 3, (3, 0)),
        ("t", 0, 6, (-1, 1)),
        ("t", 0, -2, (-1, 1)),
        ("t", 2, 0, (-1, 3)),
        ("t", -1, 0, (-1, 3)),
        ("missing", 0, 0, (-1, 3)),
        ("c", 0, 0, (-1, 44)),
    ] {
        let result = client.call(2, &delete(topic, partition, offset)).await.topics.remove(0).partitions.remove(0);
        assert_eq!((result.low_watermark, result.error_code), expected, "{topic}/{partition} before {offset}");
        assert_eq!(result.partition_index, partition);
    }
    assert_eq!(fetch(&mut client, "t", 2).await.error_code, 1);
    let server = server.restart().await;
    let mut client = Client::connect(server.address).await;
    let fetched = fetch(&mut client, "t", 3).await;
    assert_eq!((fetched.error_code, fetched.log_start_offset, fetched.high_watermark), (0, 3, 5));
    assert_eq!(fetch(&mut client, "t", 2).await.error_code, 1);
}
