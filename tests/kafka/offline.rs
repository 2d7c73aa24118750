use std::path::PathBuf;
use std::time::Duration;

use kafka_wire::*;
use kafka_wire_core::StrBytes;
use tripline_storage::fs::SimFs;

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

const STORAGE_ERROR: i16 = 56;

/// What each of the requests answers for a partition: ListOffsets, Fetch, DeleteRecords and DescribeProducers.
async fn asked(client: &mut Client, partition: i32) -> [i16; 4] {
    let one = message!(list_offsets_request::ListOffsetsPartition { partition_index: partition, timestamp: -1 });
    let topic = message!(list_offsets_request::ListOffsetsTopic { name: StrBytes::from("t"), partitions: vec![one] });
    let listed = client.call(8, &message!(ListOffsetsRequest { replica_id: -1, topics: vec![topic] })).await;
    let fetched = client.call(12, &fetch_request("t", vec![fetch_partition(partition, 1, 1 << 20)])).await;
    let one = message!(delete_records_request::DeleteRecordsPartition { partition_index: partition, offset: 0 });
    let topic =
        message!(delete_records_request::DeleteRecordsTopic { name: StrBytes::from("t"), partitions: vec![one] });
    let deleted = client.call(2, &message!(DeleteRecordsRequest { topics: vec![topic], timeout_ms: 1000 })).await;
    let topic = message!(describe_producers_request::TopicRequest {
        name: StrBytes::from("t"),
        partition_indexes: vec![partition]
    });
    let described = client.call(0, &message!(DescribeProducersRequest { topics: vec![topic] })).await;
    [
        listed.topics[0].partitions[0].error_code,
        fetched.responses[0].partitions[0].error_code,
        deleted.topics[0].partitions[0].error_code,
        described.topics[0].partitions[0].error_code,
    ]
}

async fn produced(client: &mut Client, partition: i32) -> produce_response::PartitionProduceResponse {
    let mut request = produce_request("t", partition, 1, Some(plain(&["more"])));
    request.topic_data[0].partition_data[0].index = partition;
    client.call(9, &request).await.responses[0].partition_responses[0].clone()
}

async fn committed(client: &mut Client, offset: Option<i64>) -> (i16, i64) {
    if let Some(offset) = offset {
        let one = message!(offset_commit_request::OffsetCommitRequestPartition {
            partition_index: 1,
            committed_offset: offset,
        });
        let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
            name: StrBytes::from("t"),
            partitions: vec![one]
        });
        let request = message!(OffsetCommitRequest {
            group_id: StrBytes::from("g"),
            generation_id_or_member_epoch: -1,
            topics: vec![topic],
        });
        let code = client.call(8, &request).await.topics[0].partitions[0].error_code;
        assert_eq!(code, 0);
    }
    let topic = message!(offset_fetch_request::OffsetFetchRequestTopic {
        name: StrBytes::from("t"),
        partition_indexes: vec![1]
    });
    let request = message!(OffsetFetchRequest { group_id: StrBytes::from("g"), topics: Some(vec![topic]) });
    let found = client.call(7, &request).await.topics[0].partitions[0].clone();
    (found.error_code, found.committed_offset)
}

/// A server on a disk in memory with a record in each partition of topic `t`.
async fn serving(disk: &SimFs) -> (Server, Client) {
    let server = Server::start_on_disk(disk).await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "t", 2, &[]).await;
    for partition in 0..2 {
        assert_eq!(produced(&mut client, partition).await.error_code, 0);
    }
    (server, client)
}

/// The log of partition 1.
fn log_of(disk: &SimFs) -> PathBuf {
    let is_log =
        |path: &PathBuf| path.parent().unwrap().ends_with("1") && path.extension().is_some_and(|it| it == "log");
    disk.paths().into_iter().find(is_log).unwrap()
}

/// Of each partition the error, the leader, its epoch and the replicas that are offline.
async fn metadata(client: &mut Client) -> Vec<(i16, i32, i32, Vec<i32>)> {
    let topics = client.call(9, &message!(MetadataRequest { topics: None })).await.topics;
    let told = |partition: &metadata_response::MetadataResponsePartition| {
        (partition.error_code, partition.leader_id, partition.leader_epoch, partition.offline_replicas.clone())
    };
    topics[0].partitions.iter().map(told).collect()
}

/// Nobody is told that there is nothing, or that its offset does not exist: a consumer would begin anew.
#[tokio::test]
async fn of_a_partition_that_is_offline_everything_answers_that_its_storage_failed() {
    let disk = SimFs::new();
    let (server, mut client) = serving(&disk).await;
    assert_eq!(committed(&mut client, Some(1)).await, (0, 1));
    drop(client);
    server.stop().await;

    let disk = disk.kill();
    let log = log_of(&disk);
    disk.set_unreadable(&log, Some(0..4096)).unwrap();
    let server = Server::start_on_disk(&disk).await;
    let mut client = Client::connect(server.address).await;
    let told = metadata(&mut client).await;
    let (_, node, epoch, _) = told[0];
    assert_eq!(told, [(0, node, epoch, vec![]), (5, -1, epoch, vec![node])], "no leader is available");
    assert_eq!(asked(&mut client, 0).await, [0; 4]);
    assert_eq!(asked(&mut client, 1).await, [STORAGE_ERROR; 4]);
    assert_eq!(asked(&mut client, 2).await, [3; 4]);
    assert_eq!(produced(&mut client, 0).await.error_code, 0);
    let refused = produced(&mut client, 1).await;
    let reason = refused.error_message.unwrap();
    assert!(refused.error_code == STORAGE_ERROR && reason.contains("t/1 is offline"), "{reason}");
    // What groups have there stays, and may change.
    assert_eq!(committed(&mut client, None).await, (0, 1));
    assert_eq!(committed(&mut client, Some(0)).await, (0, 0));
    drop(client);
    server.stop().await;

    let disk = disk.kill();
    disk.set_unreadable(&log, None).unwrap();
    let server = Server::start_on_disk(&disk).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(asked(&mut client, 1).await, [0; 4]);
    assert_eq!(produced(&mut client, 1).await.base_offset, 1, "it goes on behind what was there");
}

/// A power cut on a full disk, with more to be kept aside than the reserve has room for.
#[tokio::test]
async fn a_partition_without_room_to_be_recovered_keeps_no_other_from_being_served_and_follows_when_there_is_some() {
    let disk = SimFs::new();
    let (server, client) = serving(&disk).await;
    drop(client);
    server.stop().await;

    let disk = disk.kill();
    let log = log_of(&disk);
    let torn = [disk.read_image(&log).unwrap(), vec![1; 80 << 20]].concat();
    disk.write_image(&log, &torn).unwrap();
    let used_bytes: usize = disk.paths().iter().map(|path| disk.read_image(path).map_or(0, |bytes| bytes.len())).sum();
    disk.set_capacity(used_bytes as u64 + (1 << 20));
    let server = Server::start_on_disk(&disk).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(asked(&mut client, 1).await, [STORAGE_ERROR; 4]);
    let records = async |client: &mut Client, partition| {
        let fetched = client.call(12, &fetch_request("t", vec![fetch_partition(partition, 0, 1 << 20)])).await;
        values(fetched.responses[0].partitions[0].records.as_deref().unwrap()).len()
    };
    assert_eq!(records(&mut client, 0).await, 1);
    let told = metadata(&mut client).await;
    let (_, node, epoch, _) = told[0];
    assert_eq!(told[1], (5, -1, epoch, vec![node]));
    let reason = produced(&mut client, 1).await.error_message.unwrap();
    assert!(reason.contains("tried again when there is room"), "{reason}");

    // With room again it is as it was, for the clients that are there.
    disk.set_capacity(1 << 30);
    let [late] = server.broker.open_late(Duration::from_secs(1)).try_into().unwrap();
    server.triggers.serve(late).await.unwrap();
    assert_eq!(metadata(&mut client).await[1], (0, node, epoch, vec![]));
    assert_eq!(records(&mut client, 1).await, 1);
    assert_eq!(asked(&mut client, 1).await, [0; 4]);
    assert_eq!(produced(&mut client, 1).await.base_offset, 1, "it goes on behind what was there");
    drop(client);
    server.stop().await;
}
