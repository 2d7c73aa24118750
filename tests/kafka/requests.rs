//! Requests as tests need them.

use bytes::Bytes;
use kafka_wire::*;
use kafka_wire_core::StrBytes;
use tripline_storage::batch::{BatchBuilder, BatchOptions, BatchProducer, Batches, Compression, NewRecord};

use crate::client::{Client, message};
use crate::support::Server;

pub(crate) fn batch(values: &[&str], options: BatchOptions) -> Bytes {
    let mut builder = BatchBuilder::new(options);
    for (at, value) in (0..).zip(values) {
        let timestamp_ms = 1_000 + at;
        builder.push(&NewRecord { timestamp_ms, value: Some(value.as_bytes()), ..NewRecord::default() }).unwrap();
    }
    builder.finish().unwrap().bytes().clone()
}

pub(crate) fn plain(values: &[&str]) -> Bytes {
    batch(values, BatchOptions::default())
}

pub(crate) fn compressed(compression: Compression, values: &[&str]) -> Bytes {
    batch(values, BatchOptions { compression, ..BatchOptions::default() })
}

pub(crate) fn of_producer(id: i64, epoch: i16, base_sequence: i32, values: &[&str]) -> Bytes {
    let producer = Some(BatchProducer { id, epoch, base_sequence });
    batch(values, BatchOptions { producer, ..BatchOptions::default() })
}

/// What an idempotent producer asks: no transactional id, which is not the same as an empty one.
pub(crate) fn idempotent() -> InitProducerIdRequest {
    message!(InitProducerIdRequest { transactional_id: None })
}

/// A topic made the way an administrator makes it.
pub(crate) async fn create(client: &mut Client, name: &str, partitions: i32, configs: &[(&str, &str)]) {
    let config = |(name, value): &(&str, &str)| {
        message!(create_topics_request::CreatableTopicConfig {
            name: StrBytes::from(*name),
            value: Some(StrBytes::from(*value)),
        })
    };
    let topic = message!(create_topics_request::CreatableTopic {
        name: StrBytes::from(name),
        num_partitions: partitions,
        replication_factor: 1,
        configs: configs.iter().map(config).collect(),
    });
    let response = client.call(7, &message!(CreateTopicsRequest { topics: vec![topic], timeout_ms: 1000 })).await;
    assert_eq!(response.topics[0].error_code, 0, "{:?}", response.topics[0].error_message);
}

pub(crate) fn produce_request(topic: &str, partition: i32, acks: i16, records: Option<Bytes>) -> ProduceRequest {
    let partition = message!(produce_request::PartitionProduceData { index: partition, records: records });
    let topic =
        message!(produce_request::TopicProduceData { name: StrBytes::from(topic), partition_data: vec![partition] });
    message!(ProduceRequest { acks: acks, timeout_ms: 10_000, topic_data: vec![topic] })
}

/// Produces to partition 0 with acks=all.
pub(crate) async fn produce(
    client: &mut Client,
    topic: &str,
    records: Bytes,
) -> produce_response::PartitionProduceResponse {
    let response = client.call(9, &produce_request(topic, 0, -1, Some(records))).await;
    response.responses[0].partition_responses[0].clone()
}

/// Partition, offset, most bytes.
pub(crate) fn fetch_partition(partition: i32, offset: i64, max_bytes: i32) -> fetch_request::FetchPartition {
    message!(fetch_request::FetchPartition {
        partition: partition,
        fetch_offset: offset,
        partition_max_bytes: max_bytes,
    })
}

pub(crate) fn fetch_request(topic: &str, partitions: Vec<fetch_request::FetchPartition>) -> FetchRequest {
    let topic = message!(fetch_request::FetchTopic { topic: StrBytes::from(topic), partitions: partitions });
    message!(FetchRequest { replica_id: -1, max_wait_ms: 0, min_bytes: 1, max_bytes: 1 << 20, topics: vec![topic] })
}

/// Fetches from partition 0 without waiting.
pub(crate) async fn fetch(client: &mut Client, topic: &str, offset: i64) -> fetch_response::PartitionData {
    let response = client.call(12, &fetch_request(topic, vec![fetch_partition(0, offset, 1 << 20)])).await;
    assert_eq!(response.error_code, 0);
    response.responses[0].partitions[0].clone()
}

/// Values of the records in whole batches, with their offsets.
pub(crate) fn values(bytes: &[u8]) -> Vec<(i64, String)> {
    let mut values = Vec::new();
    for view in Batches::of(bytes) {
        let view = view.unwrap();
        view.verify_crc().unwrap();
        let records = view.records(&Default::default()).unwrap();
        for record in &records {
            let record = record.unwrap();
            values.push((record.offset().get(), String::from_utf8_lossy(record.value().unwrap()).into_owned()));
        }
    }
    values
}

/// A broker with a client and a topic `t` of two partitions.
pub(crate) async fn with_topic() -> (Server, Client) {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "t", 2, &[]).await;
    (server, client)
}
