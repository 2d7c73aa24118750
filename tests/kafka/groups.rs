use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_wire::*;
use kafka_wire_core::StrBytes;

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

pub(crate) fn join_request(group: &str, member: &str) -> JoinGroupRequest {
    let protocol = message!(join_group_request::JoinGroupRequestProtocol {
        name: StrBytes::from("range"),
        metadata: Bytes::from_static(b"subscription"),
    });
    message!(JoinGroupRequest {
        group_id: StrBytes::from(group),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 10_000,
        member_id: StrBytes::from(member),
        protocol_type: StrBytes::from("consumer"),
        protocols: vec![protocol],
    })
}

fn commit_request(group: &str, member: &str, generation: i32, offset: i64, metadata: &str) -> OffsetCommitRequest {
    let partition = message!(offset_commit_request::OffsetCommitRequestPartition {
        committed_offset: offset,
        committed_leader_epoch: 3,
        committed_metadata: Some(StrBytes::from(metadata)),
    });
    let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
        name: StrBytes::from("t"),
        partitions: vec![partition],
    });
    message!(OffsetCommitRequest {
        group_id: StrBytes::from(group),
        generation_id_or_member_epoch: generation,
        member_id: StrBytes::from(member),
        topics: vec![topic],
    })
}

async fn commit(client: &mut Client, request: &OffsetCommitRequest) -> i16 {
    client.call(9, request).await.topics[0].partitions[0].error_code
}

async fn committed(client: &mut Client, group: &str) -> offset_fetch_response::OffsetFetchResponsePartition {
    let topic = message!(offset_fetch_request::OffsetFetchRequestTopic {
        name: StrBytes::from("t"),
        partition_indexes: vec![0],
    });
    let request = message!(OffsetFetchRequest { group_id: StrBytes::from(group), topics: Some(vec![topic]) });
    client.call(7, &request).await.topics[0].partitions[0].clone()
}

/// Joins alone, with assignment; answers the member's id and generation.
pub(crate) async fn join_alone(client: &mut Client, group: &str) -> (StrBytes, i32) {
    let refused = client.call(9, &join_request(group, "")).await;
    assert_eq!(refused.error_code, 79, "first the member gets its id");
    let joined = client.call(9, &join_request(group, &refused.member_id)).await;
    assert_eq!((joined.error_code, &joined.leader), (0, &joined.member_id));
    assert_eq!((joined.protocol_type.as_deref(), joined.protocol_name.as_deref()), (Some("consumer"), Some("range")));
    assert_eq!(joined.members[0].metadata, Bytes::from_static(b"subscription"));
    let assignment = message!(sync_group_request::SyncGroupRequestAssignment {
        member_id: joined.member_id.clone(),
        assignment: Bytes::from_static(b"all of it"),
    });
    let request = message!(SyncGroupRequest {
        group_id: StrBytes::from(group),
        generation_id: joined.generation_id,
        member_id: joined.member_id.clone(),
        protocol_type: Some(StrBytes::from("consumer")),
        protocol_name: Some(StrBytes::from("range")),
        assignments: vec![assignment],
    });
    let synced = client.call(5, &request).await;
    assert_eq!((synced.error_code, &synced.assignment[..]), (0, b"all of it".as_slice()));
    (joined.member_id, joined.generation_id)
}

#[tokio::test]
async fn a_member_joins_at_once_lives_commits_and_leaves() {
    let (server, mut client) = with_topic().await;
    let begin = Instant::now();
    let (member, generation) = join_alone(&mut client, "g").await;
    assert!(begin.elapsed() < Duration::from_secs(2), "joining takes 100 ms, not three seconds");
    let heartbeat = |generation| {
        message!(HeartbeatRequest {
            group_id: StrBytes::from("g"),
            generation_id: generation,
            member_id: member.clone(),
        })
    };
    assert_eq!(client.call(4, &heartbeat(generation)).await.error_code, 0);
    assert_eq!(client.call(4, &heartbeat(generation + 1)).await.error_code, 22);
    for (member, generation, code) in
        [(&*member, generation, 0), (&*member, generation - 1, 22), ("nobody", generation, 25), ("", -1, 25)]
    {
        let request = commit_request("g", member, generation, 7, "note");
        assert_eq!(commit(&mut client, &request).await, code, "{member} in generation {generation}");
    }
    let found = committed(&mut client, "g").await;
    assert_eq!((found.committed_offset, found.committed_leader_epoch, found.metadata.as_deref()), (7, 3, Some("note")));

    let described =
        client.call(6, &message!(DescribeGroupsRequest { groups: vec!["g".into()] })).await.groups.remove(0);
    assert_eq!((&*described.group_state, &*described.protocol_data), ("Stable", "range"));
    assert_eq!((&*described.members[0].client_id, &*described.members[0].client_host), ("raw", "/127.0.0.1"));
    assert_eq!(
        client.call(2, &message!(DeleteGroupsRequest { groups_names: vec!["g".into()] })).await.results[0].error_code,
        68
    );

    let leaver = message!(leave_group_request::MemberIdentity { member_id: member.clone() });
    let request = message!(LeaveGroupRequest { group_id: StrBytes::from("g"), members: vec![leaver] });
    assert_eq!(client.call(5, &request).await.members[0].error_code, 0);
    assert_eq!(client.call(5, &request).await.members[0].error_code, 25);
    assert_eq!(server.broker.committed_offsets("g").len(), 1);
    assert_eq!(
        client.call(2, &message!(DeleteGroupsRequest { groups_names: vec!["g".into()] })).await.results[0].error_code,
        0
    );
    assert_eq!(committed(&mut client, "g").await.committed_offset, -1);
    assert_eq!(
        client.call(2, &message!(DeleteGroupsRequest { groups_names: vec!["g".into()] })).await.results[0].error_code,
        69
    );
}

#[tokio::test]
async fn a_second_member_makes_the_first_join_again() {
    let (server, mut one) = with_topic().await;
    let (first, generation) = join_alone(&mut one, "g").await;
    let mut two = Client::connect(server.address).await;
    let refused = two.call(9, &join_request("g", "")).await;
    two.send(9, &join_request("g", &refused.member_id)).await;
    let heartbeat = message!(HeartbeatRequest {
        group_id: StrBytes::from("g"),
        generation_id: generation,
        member_id: first.clone(),
    });
    // The join of the other connection is on its way: it is there when heartbeats say so.
    let begin = Instant::now();
    while one.call(4, &heartbeat).await.error_code != 27 {
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
    let joined = one.call(9, &join_request("g", &first)).await;
    let other: JoinGroupResponse = two.receive(9).await;
    assert_eq!((joined.generation_id, other.generation_id), (generation + 1, generation + 1));
    assert_eq!((joined.members.len(), other.members.len()), (2, 0), "the leader is told all members");
    assert_eq!(commit(&mut one, &commit_request("g", &first, generation + 1, 1, "")).await, 27, "not before the sync");
}

#[tokio::test]
async fn commits_without_members_are_kept_listed_and_bounded() {
    let (_server, mut client) = with_topic().await;
    assert_eq!(commit(&mut client, &commit_request("simple", "", -1, 5, &"m".repeat(4096))).await, 0);
    assert_eq!(commit(&mut client, &commit_request("simple", "", -1, 6, &"m".repeat(4097))).await, 12);
    assert_eq!(commit(&mut client, &commit_request("simple", "", -1, -1, "")).await, 1);
    assert_eq!(commit(&mut client, &commit_request("", "", -1, 1, "")).await, 24);
    assert_eq!(commit(&mut client, &commit_request("absent", "member", 1, 1, "")).await, 25);
    let mut unknown = commit_request("simple", "", -1, 1, "");
    unknown.topics[0].name = StrBytes::from("missing");
    assert_eq!(commit(&mut client, &unknown).await, 3);
    assert_eq!(committed(&mut client, "simple").await.committed_offset, 5);
    let list = |states: &[&str], types: &[&str]| {
        message!(ListGroupsRequest {
            states_filter: states.iter().map(|state| StrBytes::from(*state)).collect(),
            types_filter: types.iter().map(|kind| StrBytes::from(*kind)).collect(),
        })
    };
    for (states, types, count) in [
        (&[][..], &[][..], 1),
        (&["Empty"], &["classic"], 1),
        (&["empty", "Stable"], &["Classic"], 1),
        (&["Stable"], &[], 0),
        (&[], &["consumer"], 0),
    ] {
        let groups = client.call(5, &list(states, types)).await.groups;
        assert_eq!(groups.len(), count, "{states:?} {types:?}");
    }
    let described =
        client.call(6, &message!(DescribeGroupsRequest { groups: vec!["simple".into(), "absent".into()] })).await;
    let states: Vec<_> = described.groups.iter().map(|group| (&*group.group_state, group.error_code)).collect();
    assert_eq!(states, [("Empty", 0), ("Dead", 69)]);
}

#[tokio::test]
async fn offsets_of_many_groups_and_of_all_topics_are_fetched_at_once() {
    let (_server, mut client) = with_topic().await;
    commit(&mut client, &commit_request("a", "", -1, 1, "")).await;
    commit(&mut client, &commit_request("b", "", -1, 2, "")).await;
    let group = |name: &str, topics| {
        message!(offset_fetch_request::OffsetFetchRequestGroup { group_id: StrBytes::from(name), topics: topics })
    };
    let named = message!(offset_fetch_request::OffsetFetchRequestTopics {
        name: StrBytes::from("t"),
        partition_indexes: vec![0, 1, -1],
    });
    let missing = message!(offset_fetch_request::OffsetFetchRequestTopics {
        name: StrBytes::from("missing"),
        partition_indexes: vec![0],
    });
    let groups = vec![group("a", None), group("b", Some(vec![named, missing])), group("none", None), group("", None)];
    let response = client.call(9, &message!(OffsetFetchRequest { groups: groups, require_stable: true })).await;
    let codes: Vec<_> = response.groups.iter().map(|group| group.error_code).collect();
    assert_eq!(codes, [0, 0, 0, 24]);
    assert_eq!(response.groups[0].topics[0].partitions[0].committed_offset, 1);
    let offsets: Vec<_> =
        response.groups[1].topics.iter().flat_map(|topic| &topic.partitions).map(|p| p.committed_offset).collect();
    assert_eq!(offsets, [2, -1, -1, -1]);
    assert!(response.groups[2].topics.is_empty());
}

#[tokio::test]
async fn a_commit_is_on_disk_with_its_data_before_it_is_answered() {
    let (server, mut client) = with_topic().await;
    let response = client.call(9, &produce_request("t", 0, 1, Some(plain(&["a", "b"])))).await;
    assert_eq!(response.responses[0].partition_responses[0].error_code, 0);
    assert_eq!(commit(&mut client, &commit_request("g", "", -1, 2, "")).await, 0);
    let topic = server.broker.topic("t").unwrap();
    assert_eq!(topic.partition(0).unwrap().flushed().get(), 2);
}

#[tokio::test]
async fn a_member_of_before_a_restart_is_told_to_join_again_when_it_commits() {
    let (server, mut client) = with_topic().await;
    let (member, generation) = join_alone(&mut client, "g").await;
    let server = server.restart().await;
    let mut client = Client::connect(server.address).await;
    for version in [2, 8, 9] {
        let response = client.call(version, &commit_request("g", &member, generation, 1, "")).await;
        assert_eq!(response.topics[0].partitions[0].error_code, 25, "version {version}");
    }
    assert_eq!(committed(&mut client, "g").await.committed_offset, -1);
    let (member, generation) = join_alone(&mut client, "g").await;
    assert_eq!(commit(&mut client, &commit_request("g", &member, generation, 1, "")).await, 0);
}

#[tokio::test]
async fn each_key_of_a_coordinator_request_is_answered() {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    let request = message!(FindCoordinatorRequest { coordinator_keys: vec!["g".into(), "".into(), "h".into()] });
    let response = client.call(4, &request).await;
    let found: Vec<_> = response.coordinators.iter().map(|c| (&*c.key, c.error_code, c.port)).collect();
    let port = i32::from(server.address.port());
    assert_eq!(found, [("g", 0, port), ("", 24, -1), ("h", 0, port)]);
    let request = message!(FindCoordinatorRequest { key: StrBytes::from("g"), key_type: 9 });
    assert_eq!(client.call(3, &request).await.error_code, 42);
}

#[tokio::test]
async fn a_group_without_a_name_is_described_as_wrong_in_every_version() {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    for version in 0..=6 {
        let request = message!(DescribeGroupsRequest { groups: vec!["".into(), "g".into()] });
        let groups = client.call(version, &request).await.groups;
        let codes: Vec<_> = groups.iter().map(|group| group.error_code).collect();
        assert_eq!(codes, [24, if version >= 6 { 69 } else { 0 }], "version {version}");
        assert_eq!(groups[0].error_message.is_some(), version >= 6, "version {version}");
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_for_members_that_wait() {
    let (server, mut one) = with_topic().await;
    let (_first, _) = join_alone(&mut one, "g").await;
    let mut two = Client::connect(server.address).await;
    let refused = two.call(9, &join_request("g", "")).await;
    two.send(9, &join_request("g", &refused.member_id)).await;
    assert!(two.is_silent().await, "it waits for the first member");
    let begin = Instant::now();
    let _server = server.restart().await;
    assert_eq!(two.receive::<JoinGroupResponse>(9).await.error_code, 15);
    assert!(begin.elapsed() < Duration::from_secs(5));
}
