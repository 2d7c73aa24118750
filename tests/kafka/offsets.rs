use kafka_wire::*;
use kafka_wire_core::StrBytes;

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

async fn list(
    client: &mut Client,
    version: i16,
    timestamp: i64,
) -> list_offsets_response::ListOffsetsPartitionResponse {
    let partition =
        message!(list_offsets_request::ListOffsetsPartition { current_leader_epoch: -1, timestamp: timestamp });
    let topic =
        message!(list_offsets_request::ListOffsetsTopic { name: StrBytes::from("t"), partitions: vec![partition] });
    let request = message!(ListOffsetsRequest { replica_id: -1, topics: vec![topic] });
    client.call(version, &request).await.topics[0].partitions[0].clone()
}

#[tokio::test]
async fn offsets_are_found_by_place_and_by_time() {
    let (server, mut client) = with_topic().await;
    assert_eq!(list(&mut client, 8, -3).await.offset, -1, "an empty log has no greatest timestamp");
    // Timestamps 1000, 1001, 1002 and again 1000, 1001.
    produce(&mut client, "t", plain(&["0", "1", "2"])).await;
    produce(&mut client, "t", plain(&["3", "4"])).await;
    let epoch = server.broker.leader_epoch().get();
    for (asked, offset, timestamp) in [
        (-1, 5, -1),
        (-2, 0, -1),
        (-4, 0, -1),
        (-3, 2, 1002),
        (0, 0, 1000),
        (1000, 0, 1000),
        (1001, 1, 1001),
        (1002, 2, 1002),
    ] {
        let found = list(&mut client, 8, asked).await;
        assert_eq!((found.error_code, found.offset, found.timestamp), (0, offset, timestamp), "{asked}");
        assert_eq!(found.leader_epoch, epoch);
    }
    let found = list(&mut client, 8, 1003).await;
    assert_eq!((found.error_code, found.offset, found.timestamp, found.leader_epoch), (0, -1, -1, -1));
    for (version, asked) in [(6, -3), (7, -4), (8, -5), (8, i64::MIN)] {
        assert_eq!(list(&mut client, version, asked).await.error_code, 35, "{asked} in version {version}");
    }
}

#[tokio::test]
async fn the_first_offset_is_known_also_where_its_batch_is_damaged() {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "t", 1, &[("segment.bytes", "4096")]).await;
    let value = "x".repeat(1000);
    for _ in 0..10 {
        produce(&mut client, "t", plain(&[&value])).await;
    }
    let id = server.broker.topic("t").unwrap().id();
    let data = server.stop().await;
    let log = data.path().join(format!("data/topics/{id}/0/{:020}.log", 0));
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let server = Server::start_on(data).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(fetch(&mut client, "t", 0).await.error_code, 2, "the batch is damaged");
    for version in [1, 4, 8] {
        let found = list(&mut client, version, -2).await;
        assert_eq!((found.error_code, found.offset, found.leader_epoch), (0, 0, -1), "version {version}");
    }
}

#[tokio::test]
async fn the_greatest_timestamp_is_found_wherever_it_is() {
    use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};
    let seed = 0x5eed_u64;
    let mut random = seed;
    let mut next = move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        i64::try_from(random >> 33).unwrap()
    };
    for round in 0..20 {
        let (_server, mut client) = with_topic().await;
        let times: Vec<i64> = (0..5).map(|_| 1_700_000_000_000 + next() % 100_000_000).collect();
        for &timestamp_ms in &times {
            let mut builder = BatchBuilder::new(BatchOptions::default());
            builder.push(&NewRecord { timestamp_ms, value: Some(b"x"), ..NewRecord::default() }).unwrap();
            produce(&mut client, "t", builder.finish().unwrap().bytes().clone()).await;
        }
        let greatest = *times.iter().max().unwrap();
        let first = times.iter().position(|time| *time == greatest).unwrap();
        let found = list(&mut client, 7, -3).await;
        let expected = (i64::try_from(first).unwrap(), greatest);
        assert_eq!((found.offset, found.timestamp), expected, "seed {seed:#x}, round {round}: {times:?}");
    }
}
