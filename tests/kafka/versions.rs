//! Each request in each version that we tell clients, at least one round trip each.

use bytes::Bytes;
use kafka_wire::*;
use kafka_wire_core::{StrBytes, Uuid};
use tripline::kafka::version::{APIS, Api};

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

fn text(text: &str) -> StrBytes {
    StrBytes::from(text)
}

#[tokio::test]
async fn each_request_is_answered_in_each_version_that_is_advertised() {
    let (server, mut client) = with_topic().await;
    produce(&mut client, "t", plain(&["a"])).await;
    let mut rounds = 0;
    for spec in APIS {
        for version in spec.min..=spec.max {
            round_trip(&server, &mut client, spec.api, version).await;
            rounds += 1;
        }
    }
    let served: u64 = server.metrics.requests().map(|(_, count)| count).sum();
    assert!(served >= rounds, "{served} of {rounds}");
}

/// The topic as versions name it: by name, or by id.
fn topic_id(server: &Server) -> Uuid {
    Uuid::from_bytes(*server.broker.topic("t").unwrap().id().as_bytes())
}

async fn round_trip(server: &Server, client: &mut Client, api: Api, version: i16) {
    let id = topic_id(server);
    let what = format!("{api:?} version {version}");
    match api {
        Api::ApiVersions => {
            let request =
                message!(ApiVersionsRequest { client_software_name: text("raw"), client_software_version: text("1") });
            let response = client.call(version, &request).await;
            assert_eq!((response.error_code, response.api_keys.len()), (0, APIS.len()), "{what}");
        }
        Api::Produce => {
            let mut request = produce_request("t", 0, -1, Some(plain(&["x"])));
            if version >= 13 {
                request.topic_data[0].name = StrBytes::default();
                request.topic_data[0].topic_id = id;
            }
            let response = client.call(version, &request).await;
            assert_eq!(response.responses[0].partition_responses[0].error_code, 0, "{what}");
        }
        Api::Fetch => {
            let mut request = fetch_request("t", vec![fetch_partition(0, 0, 1 << 20)]);
            if version >= 13 {
                request.topics[0].topic = StrBytes::default();
                request.topics[0].topic_id = id;
            }
            if version >= 15 {
                request.replica_id = FetchRequest::default().replica_id;
            }
            let response = client.call(version, &request).await;
            let partition = &response.responses[0].partitions[0];
            assert_eq!(partition.error_code, 0, "{what}");
            assert_eq!(values(partition.records.as_deref().unwrap())[0], (0, "a".to_owned()), "{what}");
        }
        Api::ListOffsets => {
            let partition = message!(list_offsets_request::ListOffsetsPartition { timestamp: -1 });
            let topic =
                message!(list_offsets_request::ListOffsetsTopic { name: text("t"), partitions: vec![partition] });
            let response = client.call(version, &message!(ListOffsetsRequest { topics: vec![topic] })).await;
            let partition = &response.topics[0].partitions[0];
            assert_eq!(partition.error_code, 0, "{what}");
            assert!(partition.offset > 0, "{what}");
        }
        Api::Metadata => {
            let topic = message!(metadata_request::MetadataRequestTopic { name: Some(text("t")) });
            let mut request = message!(MetadataRequest { topics: Some(vec![topic]) });
            (request.include_topic_authorized_operations, request.include_cluster_authorized_operations) =
                (version >= 8, (8..=10).contains(&version));
            let response = client.call(version, &request).await;
            assert_eq!((response.topics[0].error_code, response.topics[0].partitions.len()), (0, 2), "{what}");
            assert_eq!(response.topics[0].topic_authorized_operations > 0, version >= 8, "{what}");
            request.topics = (version == 0).then(Vec::new);
            assert!(!client.call(version, &request).await.topics.is_empty(), "{what}");
        }
        Api::CreateTopics => {
            let topic = message!(create_topics_request::CreatableTopic {
                name: text(&format!("made-{version}")),
                num_partitions: 1,
                replication_factor: 1,
            });
            let request = message!(CreateTopicsRequest { topics: vec![topic], timeout_ms: 1000 });
            assert_eq!(client.call(version, &request).await.topics[0].error_code, 0, "{what}");
            assert_eq!(client.call(version, &request).await.topics[0].error_code, 36, "{what}");
        }
        Api::DeleteTopics => {
            let name = text(&format!("gone-{version}"));
            create(client, &name, 1, &[]).await;
            let mut request = message!(DeleteTopicsRequest { timeout_ms: 1000 });
            if version >= 6 {
                request.topics = vec![message!(delete_topics_request::DeleteTopicState { name: Some(name) })];
            } else {
                request.topic_names = vec![name];
            }
            assert_eq!(client.call(version, &request).await.responses[0].error_code, 0, "{what}");
            assert_eq!(client.call(version, &request).await.responses[0].error_code, 3, "{what}");
        }
        Api::DeleteRecords => {
            let name = text(&format!("cut-{version}"));
            create(client, &name, 1, &[]).await;
            assert_eq!(produce(client, &name, plain(&["a", "b", "c"])).await.error_code, 0, "{what}");
            let partition = |offset| message!(delete_records_request::DeleteRecordsPartition { offset: offset });
            for (offset, expected) in [(2, (2, 0)), (1, (2, 0)), (4, (-1, 1)), (-1, (3, 0))] {
                let topic = message!(delete_records_request::DeleteRecordsTopic {
                    name: name.clone(),
                    partitions: vec![partition(offset)],
                });
                let request = message!(DeleteRecordsRequest { topics: vec![topic], timeout_ms: 1000 });
                let result = client.call(version, &request).await.topics.remove(0).partitions.remove(0);
                assert_eq!((result.low_watermark, result.error_code), expected, "{what}, offset {offset}");
            }
        }
        Api::InitProducerId => {
            let response = client.call(version, &idempotent()).await;
            assert_eq!((response.error_code, response.producer_epoch), (0, 0), "{what}");
        }
        Api::DescribeConfigs => {
            let resource = |kind, name| {
                message!(describe_configs_request::DescribeConfigsResource {
                    resource_type: kind,
                    resource_name: text(name),
                })
            };
            let request = message!(DescribeConfigsRequest {
                resources: vec![resource(2, "t"), resource(4, "1")],
                include_synonyms: true,
                include_documentation: version >= 3,
            });
            for result in client.call(version, &request).await.results {
                assert_eq!(result.error_code, 0, "{what}");
                assert!(!result.configs.is_empty(), "{what}");
            }
        }
        Api::DescribeProducers => {
            let name = text("produced");
            create(client, &name, 2, &[]).await;
            for (epoch, sequence) in [(0, 0), (0, 2), (3, 0)] {
                let batch = of_producer(77, epoch, sequence, &["a", "b"]);
                assert_eq!(produce(client, &name, batch).await.error_code, 0, "{what}");
            }
            let topic = |name: &str, partition_indexes| {
                message!(describe_producers_request::TopicRequest {
                    name: text(name),
                    partition_indexes: partition_indexes,
                })
            };
            let topics =
                vec![topic("produced", vec![0, 1, 2, 0]), topic("missing", vec![0]), topic("produced", vec![1])];
            let response = client.call(version, &message!(DescribeProducersRequest { topics: topics })).await;
            let told = |partition: &describe_producers_response::PartitionResponse| {
                let producers = partition.active_producers.iter();
                let producers = producers.map(|one| (one.producer_id, one.producer_epoch, one.last_sequence));
                (partition.partition_index, partition.error_code, producers.collect::<Vec<_>>())
            };
            let topics = response.topics.iter().map(|topic| topic.partitions.iter().map(told).collect::<Vec<_>>());
            let expected =
                [vec![(0, 0, vec![(77, 3, 1)]), (1, 0, Vec::new()), (2, 3, Vec::new())], vec![(0, 3, Vec::new())]];
            assert_eq!(topics.collect::<Vec<_>>(), expected, "{what}");
            let newest = &response.topics[0].partitions[0].active_producers[0];
            assert!(newest.last_timestamp > 0 && newest.current_txn_start_offset == -1, "{what}: {newest:?}");
        }
        group => group_round_trip(client, group, version).await,
    }
}

async fn group_round_trip(client: &mut Client, api: Api, version: i16) {
    let what = format!("{api:?} version {version}");
    let group = text(&format!("{api:?}-{version}"));
    match api {
        Api::FindCoordinator => {
            let mut request = FindCoordinatorRequest::default();
            if version >= 4 {
                request.coordinator_keys = vec![group];
                assert_eq!(client.call(version, &request).await.coordinators[0].error_code, 0, "{what}");
            } else {
                request.key = group;
                let response = client.call(version, &request).await;
                assert_eq!((response.error_code, &*response.host), (0, "127.0.0.1"), "{what}");
            }
        }
        Api::JoinGroup => {
            join(client, &group, version).await;
            let mut request = crate::groups::join_request(&group, "nobody");
            request.rebalance_timeout_ms = rebalance_timeout(version);
            assert_eq!(client.call(version, &request).await.error_code, 25, "{what}");
        }
        Api::SyncGroup => {
            let (member, generation) = join(client, &group, 5).await;
            let assignment = message!(sync_group_request::SyncGroupRequestAssignment {
                member_id: member.clone(),
                assignment: Bytes::from_static(b"part"),
            });
            let mut request = message!(SyncGroupRequest {
                group_id: group,
                generation_id: generation,
                member_id: member,
                assignments: vec![assignment],
            });
            if version >= 5 {
                (request.protocol_type, request.protocol_name) = (Some(text("consumer")), Some(text("range")));
            }
            let response = client.call(version, &request).await;
            assert_eq!((response.error_code, &response.assignment[..]), (0, b"part".as_slice()), "{what}");
            request.generation_id = 99;
            assert_eq!(client.call(version, &request).await.error_code, 22, "{what}");
        }
        Api::Heartbeat => {
            let (member, generation) = crate::groups::join_alone(client, &group).await;
            let request = message!(HeartbeatRequest { group_id: group, generation_id: generation, member_id: member });
            assert_eq!(client.call(version, &request).await.error_code, 0, "{what}");
        }
        Api::LeaveGroup => {
            let (member, _) = crate::groups::join_alone(client, &group).await;
            let mut request = message!(LeaveGroupRequest { group_id: group });
            if version >= 3 {
                request.members = vec![message!(leave_group_request::MemberIdentity { member_id: member })];
                assert_eq!(client.call(version, &request).await.members[0].error_code, 0, "{what}");
                assert_eq!(client.call(version, &request).await.members[0].error_code, 25, "{what}");
            } else {
                request.member_id = member;
                assert_eq!(client.call(version, &request).await.error_code, 0, "{what}");
                assert_eq!(client.call(version, &request).await.error_code, 25, "{what}");
            }
        }
        Api::OffsetCommit | Api::OffsetFetch => offsets_round_trip(client, api, version, group).await,
        Api::DescribeGroups => {
            let (member, _) = crate::groups::join_alone(client, &group).await;
            let mut request = message!(DescribeGroupsRequest { groups: vec![group, text("missing")] });
            request.include_authorized_operations = version >= 3;
            let described = client.call(version, &request).await.groups;
            assert_eq!((&*described[0].group_state, &described[0].members[0].member_id), ("Stable", &member), "{what}");
            let missing = if version >= 6 { 69 } else { 0 };
            assert_eq!((&*described[1].group_state, described[1].error_code), ("Dead", missing), "{what}");
        }
        Api::ListGroups => {
            crate::groups::join_alone(client, &group).await;
            let listed = client.call(version, &ListGroupsRequest::default()).await.groups;
            let listed = listed.iter().find(|listed| listed.group_id == group).unwrap();
            assert_eq!(&*listed.protocol_type, "consumer", "{what}");
            assert_eq!(&*listed.group_state, if version >= 4 { "Stable" } else { "" }, "{what}");
            assert_eq!(&*listed.group_type, if version >= 5 { "classic" } else { "" }, "{what}");
        }
        Api::DeleteGroups => {
            offsets_round_trip(client, Api::OffsetCommit, 9, group.clone()).await;
            let request = message!(DeleteGroupsRequest { groups_names: vec![group] });
            assert_eq!(client.call(version, &request).await.results[0].error_code, 0, "{what}");
            assert_eq!(client.call(version, &request).await.results[0].error_code, 69, "{what}");
        }
        other => panic!("no round trip for {other:?}"),
    }
}

fn rebalance_timeout(version: i16) -> i32 {
    if version >= 1 { 10_000 } else { JoinGroupRequest::default().rebalance_timeout_ms }
}

async fn join(client: &mut Client, group: &StrBytes, version: i16) -> (StrBytes, i32) {
    let mut request = crate::groups::join_request(group, "");
    request.rebalance_timeout_ms = rebalance_timeout(version);
    let mut joined = client.call(version, &request).await;
    if version >= 4 {
        assert_eq!(joined.error_code, 79, "version {version}");
        request.member_id = joined.member_id;
        joined = client.call(version, &request).await;
    }
    assert_eq!((joined.error_code, joined.members.len()), (0, 1), "version {version}");
    assert_eq!(joined.protocol_name.as_deref(), Some("range"), "version {version}");
    (joined.member_id, joined.generation_id)
}

async fn offsets_round_trip(client: &mut Client, api: Api, version: i16, group: StrBytes) {
    let commit_version = if api == Api::OffsetCommit { version } else { 9 };
    let partition = message!(offset_commit_request::OffsetCommitRequestPartition {
        committed_offset: 1,
        committed_metadata: Some(text("note")),
    });
    let topic =
        message!(offset_commit_request::OffsetCommitRequestTopic { name: text("t"), partitions: vec![partition] });
    let request = message!(OffsetCommitRequest {
        group_id: group.clone(),
        generation_id_or_member_epoch: -1,
        topics: vec![topic],
    });
    let response = client.call(commit_version, &request).await;
    assert_eq!(response.topics[0].partitions[0].error_code, 0, "OffsetCommit version {commit_version}");
    let version = if api == Api::OffsetFetch { version } else { 9 };
    let found = if version >= 8 {
        let asked = message!(offset_fetch_request::OffsetFetchRequestGroup { group_id: group, topics: None });
        let response = client.call(version, &message!(OffsetFetchRequest { groups: vec![asked] })).await;
        let partition = &response.groups[0].topics[0].partitions[0];
        (partition.committed_offset, partition.metadata.clone())
    } else {
        let asked =
            message!(offset_fetch_request::OffsetFetchRequestTopic { name: text("t"), partition_indexes: vec![0] });
        let request = message!(OffsetFetchRequest { group_id: group, topics: Some(vec![asked]) });
        let response = client.call(version, &request).await;
        let partition = &response.topics[0].partitions[0];
        (partition.committed_offset, partition.metadata.clone())
    };
    assert_eq!(found, (1, Some(text("note"))), "OffsetFetch version {version}");
}
