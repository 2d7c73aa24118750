use std::time::{Duration, Instant};

use kafka_wire::*;
use kafka_wire_core::{StrBytes, Uuid};
use tripline::kafka::listener::ListenerConfig;

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

fn records(response: &FetchResponse, partition: usize) -> Vec<(i64, String)> {
    values(response.responses[0].partitions[partition].records.as_deref().unwrap())
}

#[tokio::test]
async fn a_fetch_that_waits_wakes_at_the_append() {
    let (server, mut client) = with_topic().await;
    let mut request = fetch_request("t", vec![fetch_partition(0, 0, 1 << 20), fetch_partition(1, 0, 1 << 20)]);
    request.max_wait_ms = 15_000;
    let begin = Instant::now();
    client.send(12, &request).await;
    assert!(client.is_silent().await);
    let mut producer = Client::connect(server.address).await;
    let produced = producer.call(9, &produce_request("t", 1, -1, Some(plain(&["late"])))).await;
    assert_eq!(produced.responses[0].partition_responses[0].error_code, 0);
    let response: FetchResponse = client.receive(12).await;
    assert!(begin.elapsed() < Duration::from_secs(10), "woken, not timed out");
    assert_eq!((records(&response, 0), records(&response, 1)), (vec![], vec![(0, "late".to_owned())]));
}

#[tokio::test]
async fn a_fetch_that_waits_gives_back_what_was_taken_for_its_request() {
    // Decoded requests of more than 4 KiB go through one by one.
    let listener = ListenerConfig { frame_bytes_total_max: 1, ..ListenerConfig::default() };
    let server = Server::start_with(tempfile::tempdir().unwrap(), listener).await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "t", 1, &[]).await;
    let mut request = fetch_request("t", vec![fetch_partition(0, 0, 1 << 20)]);
    request.max_wait_ms = 15_000;
    request.rack_id = "r".repeat(5_000).into();
    client.send(12, &request).await;
    assert!(client.is_silent().await);
    let mut another = Client::connect(server.address).await;
    request.max_wait_ms = 0;
    let response = another.call(12, &request).await;
    assert_eq!(response.error_code, 0);
    assert!(client.is_silent().await, "the other was answered beside it, and not after it");
}

#[tokio::test]
async fn a_fetch_waits_for_its_least_bytes_and_no_longer_than_it_says() {
    let (server, mut client) = with_topic().await;
    let mut request = fetch_request("t", vec![fetch_partition(0, 0, 1 << 20)]);
    (request.max_wait_ms, request.min_bytes) = (15_000, 300);
    client.send(12, &request).await;
    let mut producer = Client::connect(server.address).await;
    produce(&mut producer, "t", plain(&["too little"])).await;
    assert!(client.is_silent().await);
    produce(&mut producer, "t", plain(&[&"x".repeat(300)])).await;
    let response: FetchResponse = client.receive(12).await;
    assert_eq!(records(&response, 0).len(), 2);
    (request.max_wait_ms, request.min_bytes) = (50, 100_000);
    let response = client.call(12, &request).await;
    assert_eq!(records(&response, 0).len(), 2, "what there is when the time is up");
}

#[tokio::test]
async fn an_offset_inside_a_batch_gets_the_whole_batch() {
    let (_server, mut client) = with_topic().await;
    produce(&mut client, "t", plain(&["0", "1", "2"])).await;
    produce(&mut client, "t", plain(&["3", "4", "5"])).await;
    for (from, first) in [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3)] {
        let fetched = fetch(&mut client, "t", from).await;
        let found = values(&fetched.records.unwrap());
        assert_eq!((found[0].0, found.last().unwrap().0), (first, 5), "from {from}");
    }
    assert_eq!(fetch(&mut client, "t", 6).await.records.unwrap().len(), 0, "the tail is no error");
}

#[tokio::test]
async fn the_first_batch_is_whole_however_little_is_asked_for() {
    let (_server, mut client) = with_topic().await;
    let large = "x".repeat(5_000);
    for partition in [0, 1] {
        for _ in 0..3 {
            let request = produce_request("t", partition, -1, Some(plain(&[&large])));
            client.call(9, &request).await;
        }
    }
    for (request_bytes, partition_bytes, expected) in [
        (1, 1 << 20, (1, 0)),
        (1 << 20, 1, (1, 0)),
        (1 << 20, 0, (1, 0)),
        (11_000, 1 << 20, (2, 0)),
        (1 << 20, 6_000, (1, 1)),
        (16_000, 11_000, (2, 1)),
    ] {
        let partitions = vec![fetch_partition(0, 0, partition_bytes), fetch_partition(1, 0, partition_bytes)];
        let mut request = fetch_request("t", partitions);
        request.max_bytes = request_bytes;
        let response = client.call(12, &request).await;
        let found = (records(&response, 0).len(), records(&response, 1).len());
        assert_eq!(found, expected, "{request_bytes} and {partition_bytes} bytes");
        assert_eq!(response.responses[0].partitions[1].high_watermark, 3, "known without a read");
    }
}

#[tokio::test]
async fn offsets_outside_the_log_are_answered_at_once_with_its_start() {
    let (_server, mut client) = with_topic().await;
    produce(&mut client, "t", plain(&["0"])).await;
    for offset in [-1, 2, i64::MAX] {
        let mut request = fetch_request("t", vec![fetch_partition(0, offset, 1 << 20)]);
        request.max_wait_ms = 15_000;
        let response = client.call(12, &request).await;
        let partition = &response.responses[0].partitions[0];
        assert_eq!(partition.error_code, 1, "offset {offset}");
        if offset > 0 {
            assert_eq!((partition.log_start_offset, partition.high_watermark), (0, 1));
        }
    }
}

#[tokio::test]
async fn leader_epochs_older_or_newer_than_this_start_are_refused() {
    let (server, mut client) = with_topic().await;
    let epoch = server.broker.leader_epoch().get();
    for (claimed, code) in [(-1, 0), (epoch, 0), (epoch - 1, 74), (epoch + 1, 75)] {
        let mut partition = fetch_partition(0, 0, 1 << 20);
        partition.current_leader_epoch = claimed;
        let response = client.call(12, &fetch_request("t", vec![partition])).await;
        let expected = if claimed < 0 { 0 } else { code };
        assert_eq!(response.responses[0].partitions[0].error_code, expected, "epoch {claimed} of {epoch}");
        let partition =
            message!(list_offsets_request::ListOffsetsPartition { current_leader_epoch: claimed, timestamp: -1 });
        let topic =
            message!(list_offsets_request::ListOffsetsTopic { name: StrBytes::from("t"), partitions: vec![partition] });
        let response = client.call(4, &message!(ListOffsetsRequest { replica_id: -1, topics: vec![topic] })).await;
        assert_eq!(response.topics[0].partitions[0].error_code, expected, "epoch {claimed} of {epoch}");
    }
}

#[tokio::test]
async fn sessions_are_declined_and_foreign_ones_unknown() {
    let (_server, mut client) = with_topic().await;
    produce(&mut client, "t", plain(&["0"])).await;
    let mut request = fetch_request("t", vec![fetch_partition(0, 0, 1 << 20)]);
    for (id, epoch, code) in [(0, 0, 0), (0, -1, 0), (7, -1, 0), (7, 1, 70)] {
        (request.session_id, request.session_epoch) = (id, epoch);
        let response = client.call(12, &request).await;
        assert_eq!((response.error_code, response.session_id), (code, 0), "session {id} epoch {epoch}");
        assert_eq!(response.responses.len(), usize::from(code == 0));
    }
}

#[tokio::test]
async fn topics_are_found_by_id_and_replicas_and_unknowns_are_refused() {
    let (server, mut client) = with_topic().await;
    produce(&mut client, "t", plain(&["0"])).await;
    let id = Uuid::from_bytes(*server.broker.topic("t").unwrap().id().as_bytes());
    let by_id = |id| {
        let topic =
            message!(fetch_request::FetchTopic { topic_id: id, partitions: vec![fetch_partition(0, 0, 1 << 20)] });
        message!(FetchRequest { max_bytes: 1 << 20, max_wait_ms: 15_000, min_bytes: 1, topics: vec![topic] })
    };
    let response = client.call(16, &by_id(id)).await;
    assert_eq!((response.responses[0].topic_id, records(&response, 0).len()), (id, 1));
    for unknown in [Uuid::ZERO, Uuid::from_bytes([7; 16])] {
        let response = client.call(16, &by_id(unknown)).await;
        assert_eq!(response.responses[0].partitions[0].error_code, 100);
    }
    let mut request = fetch_request("t", vec![fetch_partition(0, 0, 1 << 20), fetch_partition(9, 0, 1)]);
    let response = client.call(12, &request).await;
    let codes: Vec<_> = response.responses[0].partitions.iter().map(|partition| partition.error_code).collect();
    assert_eq!(codes, [0, 3]);
    request.replica_id = 2;
    let response = client.call(12, &request).await;
    assert_eq!(response.responses[0].partitions[0].error_code, 29, "replicas are refused");
    let response = client.call(12, &fetch_request("missing", vec![fetch_partition(0, 0, 1)])).await;
    assert_eq!(response.responses[0].partitions[0].error_code, 3);
}

#[tokio::test]
async fn a_partition_named_many_times_is_read_once() {
    let (_server, mut client) = with_topic().await;
    produce(&mut client, "t", plain(&["0"])).await;
    let mut partitions = vec![fetch_partition(0, 0, 1 << 20); 1000];
    partitions.push(fetch_partition(1, 0, 1 << 20));
    let mut request = fetch_request("t", partitions);
    request.topics = vec![request.topics[0].clone(); 2];
    let response = client.call(12, &request).await;
    assert_eq!((response.responses.len(), response.responses[0].partitions.len()), (1, 2));
    assert_eq!((records(&response, 0), records(&response, 1)), (vec![(0, "0".to_owned())], vec![]));
}

#[tokio::test]
async fn a_fetch_of_nothing_is_answered_at_once() {
    let (_server, mut client) = with_topic().await;
    let request = message!(FetchRequest { replica_id: -1, max_wait_ms: 15_000, min_bytes: 1, max_bytes: 1 });
    for version in 4..=12 {
        assert!(client.call(version, &request).await.responses.is_empty());
    }
}

#[tokio::test]
async fn a_log_of_many_segments_is_read_to_its_end_without_waiting_before_and_after_a_restart() {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "t", 1, &[("segment.bytes", "4096")]).await;
    let value = "x".repeat(1000);
    for _ in 0..40 {
        produce(&mut client, "t", plain(&[&value])).await;
    }
    let epoch = server.broker.leader_epoch().get();
    read_all(&mut client).await;
    let server = server.restart().await;
    let mut client = Client::connect(server.address).await;
    read_all(&mut client).await;
    assert!(server.broker.leader_epoch().get() > epoch);
    let mut partition = fetch_partition(0, 0, 1 << 20);
    partition.current_leader_epoch = epoch;
    let response = client.call(12, &fetch_request("t", vec![partition])).await;
    assert_eq!(response.responses[0].partitions[0].error_code, 74, "the epoch of the start before");
    assert_eq!(produce(&mut client, "t", plain(&["after"])).await.base_offset, 40);
}

/// All 40 records, by fetches that would rather wait for more than a segment has.
async fn read_all(client: &mut Client) {
    let begin = Instant::now();
    let mut next = 0;
    while next < 40 {
        let mut request = fetch_request("t", vec![fetch_partition(0, next, 1 << 20)]);
        (request.min_bytes, request.max_wait_ms) = (10_000, if next < 36 { 15_000 } else { 10 });
        let response = client.call(12, &request).await;
        let found = records(&response, 0);
        assert_eq!(found[0].0, next);
        next = found.last().unwrap().0 + 1;
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "no fetch waited while there were records");
}

#[tokio::test]
async fn a_stop_does_not_wait_for_fetches_that_wait() {
    let (server, mut client) = with_topic().await;
    let mut request = fetch_request("t", vec![fetch_partition(0, 0, 1 << 20)]);
    request.max_wait_ms = 60_000;
    client.send(12, &request).await;
    assert!(client.is_silent().await);
    let begin = Instant::now();
    let _server = server.restart().await;
    let response: FetchResponse = client.receive(12).await;
    assert_eq!((response.error_code, records(&response, 0).len()), (0, 0));
    assert!(client.is_closed().await);
    assert!(begin.elapsed() < Duration::from_secs(5));
}
