use kafka_wire::*;
use kafka_wire_core::StrBytes;
use tripline::kafka::listener::ListenerConfig;
use tripline_storage::batch::{BatchOptions, BatchProducer, Compression};

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

#[tokio::test]
async fn batches_of_every_codec_come_back_as_they_went() {
    let (_server, mut client) = with_topic().await;
    let mut expected = Vec::new();
    for codec in [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd] {
        let produced = produce(&mut client, "t", compressed(codec, &["a", "b", "c"])).await;
        assert_eq!((produced.error_code, produced.base_offset), (0, i64::try_from(expected.len()).unwrap()), "{codec}");
        for value in ["a", "b", "c"] {
            expected.push((i64::try_from(expected.len()).unwrap(), value.to_owned()));
        }
    }
    let fetched = fetch(&mut client, "t", 0).await;
    assert_eq!(values(&fetched.records.unwrap()), expected);
    assert_eq!((fetched.high_watermark, fetched.last_stable_offset, fetched.log_start_offset), (15, 15, 0));
}

#[tokio::test]
async fn acks_decide_whether_there_is_an_answer_and_when() {
    let (server, mut client) = with_topic().await;
    client.send_silent(9, &produce_request("t", 0, 0, Some(plain(&["none"])))).await;
    assert!(client.is_silent().await);
    for (acks, offset) in [(1, 1), (-1, 2)] {
        let response = client.call(9, &produce_request("t", 0, acks, Some(plain(&["some"])))).await;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (0, offset), "acks {acks}");
    }
    let topic = server.broker.topic("t").unwrap();
    assert_eq!(topic.partition(0).unwrap().flushed().get(), 3, "acks=all is on disk before its answer");
    for acks in [2, -2, i16::MAX] {
        let response = client.call(9, &produce_request("t", 0, acks, Some(plain(&["x"])))).await;
        assert_eq!(response.responses[0].partition_responses[0].error_code, 21, "acks {acks}");
    }
    assert_eq!(topic.partition(0).unwrap().tail().get(), 3, "nothing of them was appended");
}

#[tokio::test]
async fn a_failed_produce_without_acks_closes_the_connection() {
    let (server, mut client) = with_topic().await;
    client.send_silent(9, &produce_request("missing", 0, 0, Some(plain(&["x"])))).await;
    assert!(client.is_closed().await);
    assert!(server.metrics.errors().any(|(code, count)| (code, count) == (3, 1)));
}

#[tokio::test]
async fn requests_of_one_connection_are_appended_and_answered_in_order() {
    let (_server, mut client) = with_topic().await;
    for n in 0..50 {
        let acks = if n % 3 == 0 { 1 } else { -1 };
        client.send(9, &produce_request("t", 0, acks, Some(plain(&["x"])))).await;
    }
    for n in 0..50 {
        let response: ProduceResponse = client.receive(9).await;
        assert_eq!(response.responses[0].partition_responses[0].base_offset, n);
    }
}

#[tokio::test]
async fn batches_that_are_small_only_while_packed_leave_other_connections_their_turns() {
    let listener = ListenerConfig { io_threads: 1, ..ListenerConfig::default() };
    let server = Server::start_with(tempfile::tempdir().unwrap(), listener).await;
    let mut first = Client::connect(server.address).await;
    create(&mut first, "t", 2, &[]).await;
    let mut second = Client::connect(server.address).await;
    let batch = compressed(Compression::Zstd, &[&"x".repeat(16 << 20)]);
    assert!(batch.len() < 2 << 10, "{} bytes", batch.len());
    let mut request = produce_request("t", 0, 1, Some(batch));
    request.topic_data[0].partition_data = vec![request.topic_data[0].partition_data[0].clone(); 400];
    second.send(9, &request).await;
    let topic = server.broker.topic("t").unwrap();
    let tail = || topic.partition(0).unwrap().tail().get();
    while tail() == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    first.call(9, &MetadataRequest::default()).await;
    assert!(tail() < 400, "answered between two batches, not after the last");
    let response: ProduceResponse = second.receive(9).await;
    assert!(response.responses[0].partition_responses.iter().all(|partition| partition.error_code == 0));
}

#[tokio::test]
async fn an_ordinary_request_does_not_wait_for_long_ones_that_are_announced_and_not_sent() {
    use std::sync::atomic::Ordering;
    use tokio::io::AsyncWriteExt;
    let (server, mut client) = with_topic().await;
    let received = || server.metrics.received_bytes_total.load(Ordering::Relaxed);
    let before = received();
    let mut holders = Vec::new();
    for _ in 0..4 {
        let mut holder = tokio::net::TcpStream::connect(server.address).await.unwrap();
        holder.write_all(&[4, 0, 0, 0, 0, 0, 0, 9]).await.unwrap(); // a Produce of 64 MiB, as far as it goes
        holders.push(holder);
    }
    while received() < before + 32 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let produced = produce(&mut client, "t", plain(&[&"x".repeat(200_000)])).await;
    assert_eq!(produced.error_code, 0);
    for holder in &mut holders {
        holder.write_all(&[0; 8]).await.unwrap();
    }
    assert_eq!(produce(&mut client, "t", plain(&["small"])).await.error_code, 0);
    drop(holders);
}

#[tokio::test]
async fn a_second_try_of_an_idempotent_producer_gets_the_offset_of_the_first() {
    let (_server, mut client) = with_topic().await;
    let id = client.call(4, &idempotent()).await.producer_id;
    for _ in 0..3 {
        let produced = produce(&mut client, "t", of_producer(id, 0, 0, &["a", "b"])).await;
        assert_eq!((produced.error_code, produced.base_offset), (0, 0));
    }
    let produced = produce(&mut client, "t", of_producer(id, 0, 2, &["c"])).await;
    assert_eq!((produced.error_code, produced.base_offset), (0, 2));
    assert_eq!(produce(&mut client, "t", of_producer(id, 0, 7, &["gap"])).await.error_code, 45);
    assert_eq!(produce(&mut client, "t", of_producer(id, 1, 0, &["raised"])).await.error_code, 0);
    assert_eq!(produce(&mut client, "t", of_producer(id, 0, 3, &["old"])).await.error_code, 47);
    let fetched = fetch(&mut client, "t", 0).await;
    assert_eq!(values(&fetched.records.unwrap()).len(), 4);
}

#[tokio::test]
async fn producer_ids_are_never_given_twice_and_transactions_are_refused_clearly() {
    let (_server, mut client) = with_topic().await;
    let mut ids = Vec::new();
    for version in 0..=5 {
        let response = client.call(version, &idempotent()).await;
        assert_eq!((response.error_code, response.producer_epoch), (0, 0));
        ids.push(response.producer_id);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 6);
    let request = message!(InitProducerIdRequest { transactional_id: Some(StrBytes::from("tx")) });
    assert_eq!(client.call(4, &request).await.error_code, 53);
    let mut request = produce_request("t", 0, -1, Some(plain(&["x"])));
    request.transactional_id = Some(StrBytes::from("tx"));
    assert_eq!(client.call(9, &request).await.responses[0].partition_responses[0].error_code, 53);
    let options = BatchOptions {
        transactional: true,
        producer: Some(BatchProducer { id: ids[0], epoch: 0, base_sequence: 0 }),
        ..BatchOptions::default()
    };
    assert_eq!(produce(&mut client, "t", batch(&["x"], options)).await.error_code, 53, "with the bit alone");
    let request = message!(FindCoordinatorRequest { key: StrBytes::from("tx"), key_type: 1 });
    assert_eq!(client.call(3, &request).await.error_code, 53);
}

#[tokio::test]
async fn hostile_records_are_refused_with_the_code_that_says_whether_to_try_again() {
    let (server, mut client) = with_topic().await;
    let good = plain(&["a", "b"]);
    let changed = |place: usize, byte: u8| {
        let mut bytes = good.to_vec();
        bytes[place] = byte;
        Some(bytes.into())
    };
    let mut long = good.to_vec();
    long.extend_from_slice(&good);
    let huge = "x".repeat(2 << 20);
    let mut not_zstd = good.to_vec();
    not_zstd[22] = 4;
    let crc = tripline_storage::batch::crc32c(&not_zstd[21..]);
    not_zstd[17..21].copy_from_slice(&crc.to_be_bytes());
    for (what, records, code) in [
        ("null", None, 87),
        ("nothing", Some(bytes::Bytes::new()), 87),
        ("cut", Some(good.slice(..good.len() - 1)), 2),
        ("a few bytes", Some(good.slice(..10)), 2),
        ("a flipped byte", changed(good.len() - 1, b'z'), 2),
        ("a length beyond the bytes", changed(8, 0x7f), 2),
        ("a negative length", changed(8, 0x80), 87),
        ("an old format", changed(16, 1), 43),
        ("two batches", Some(long.into()), 87),
        ("too large", Some(plain(&[&huge])), 10),
        ("compressed rubbish", Some(not_zstd.into()), 87),
    ] {
        let response = client.call(9, &produce_request("t", 0, -1, records)).await;
        let partition = &response.responses[0].partition_responses[0];
        assert_eq!((partition.error_code, partition.base_offset), (code, -1), "{what}: {:?}", partition.error_message);
        assert!(partition.error_message.as_ref().is_some_and(|message| !message.is_empty()), "{what}");
    }
    assert_eq!(server.broker.topic("t").unwrap().partition(0).unwrap().tail().get(), 0);
    assert_eq!(produce(&mut client, "t", good.clone()).await.error_code, 0, "the connection is as good as before");
}

#[tokio::test]
async fn topics_and_partitions_that_are_not_there_have_their_own_codes() {
    let (server, mut client) = with_topic().await;
    for (topic, partition) in [("missing", 0), ("t", 2), ("t", -1), ("t", i32::MAX), ("", 0)] {
        let response = client.call(9, &produce_request(topic, partition, -1, Some(plain(&["x"])))).await;
        assert_eq!(response.responses[0].partition_responses[0].error_code, 3, "{topic}/{partition}");
    }
    let name = tripline::topic::name::TopicName::new("__tripline.test").unwrap();
    server.broker.internal_topic(&name, Default::default()).await.unwrap();
    let response = client.call(9, &produce_request("__tripline.test", 0, -1, Some(plain(&["x"])))).await;
    assert_eq!(response.responses[0].partition_responses[0].error_code, 29);
    let data = message!(produce_request::PartitionProduceData { records: Some(plain(&["x"])) });
    let topic = message!(produce_request::TopicProduceData {
        topic_id: kafka_wire_core::Uuid::from_bytes([9; 16]),
        partition_data: vec![data],
    });
    let response = client.call(13, &message!(ProduceRequest { acks: -1, topic_data: vec![topic] })).await;
    assert_eq!(response.responses[0].partition_responses[0].error_code, 100);
}

#[tokio::test]
async fn several_partitions_of_one_request_have_their_own_results() {
    let (_server, mut client) = with_topic().await;
    let data = |index, records| message!(produce_request::PartitionProduceData { index: index, records: records });
    let partitions = vec![data(0, Some(plain(&["a"]))), data(1, None), data(1, Some(plain(&["b"]))), data(5, None)];
    let topic = message!(produce_request::TopicProduceData { name: StrBytes::from("t"), partition_data: partitions });
    let response =
        client.call(9, &message!(ProduceRequest { acks: -1, timeout_ms: 1000, topic_data: vec![topic] })).await;
    let codes: Vec<_> = response.responses[0].partition_responses.iter().map(|p| (p.index, p.error_code)).collect();
    assert_eq!(codes, [(0, 0), (1, 87), (1, 0), (5, 3)]);
}

#[tokio::test]
async fn the_brokers_time_is_told_where_the_topic_wants_it() {
    let (server, mut client) = with_topic().await;
    create(&mut client, "stamped", 1, &[("message.timestamp.type", "LogAppendTime")]).await;
    let produced = produce(&mut client, "stamped", plain(&["x"])).await;
    assert!(produced.log_append_time_ms > 1_600_000_000_000, "{}", produced.log_append_time_ms);
    let produced = produce(&mut client, "t", plain(&["x"])).await;
    assert_eq!(produced.log_append_time_ms, -1);
    let mut other = Client::connect(server.address).await;
    let fetched = fetch(&mut other, "stamped", 0).await;
    assert_eq!(values(&fetched.records.unwrap()), [(0, "x".to_owned())]);
}
