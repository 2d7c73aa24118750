use kafka_wire::*;
use kafka_wire_core::StrBytes;
use tripline::broker::Acks;
use tripline::trigger::spec::TriggerSpec;
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

use crate::client::{Client, message};
use crate::groups::join_request;
use crate::requests::*;
use crate::support::Server;

/// Topic `t` with 41 records in partition 1, and behind them trigger `late`, whose function nobody serves.
async fn with_trigger() -> (Server, Client) {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "t", 2, &[]).await;
    let topic = server.broker.topic("t").unwrap();
    let mut records = BatchBuilder::new(BatchOptions::default());
    for _ in 0..41 {
        records.push(&NewRecord { timestamp_ms: 0, key: None, value: Some(b"x"), headers: &[] }).unwrap();
    }
    server.broker.append(&topic, 1, records.finish().unwrap()).unwrap().acknowledged(Acks::All).await.unwrap();
    let definition = serde_json::json!({
        "trigger": "late", "input": { "topic": "t" }, "function": { "http": { "url": "http://127.0.0.1:9/" } },
    });
    server.triggers.apply(TriggerSpec::from_json(&definition).unwrap()).await.unwrap();
    (server, client)
}

fn committed(server: &Server) -> i64 {
    server.triggers.describe("late").unwrap().lanes[1].committed.get()
}

#[tokio::test]
async fn a_trigger_shows_as_a_group_with_one_member_and_its_offsets() {
    let (server, mut client) = with_trigger().await;
    let listed = client.call(5, &ListGroupsRequest::default()).await.groups.remove(0);
    assert_eq!(
        (&*listed.group_id, &*listed.protocol_type, &*listed.group_state),
        ("trigger.late", "trigger", "Stable")
    );
    let describe = message!(DescribeGroupsRequest { groups: vec!["trigger.late".into(), "trigger.other".into()] });
    let described = client.call(6, &describe).await.groups;
    assert_eq!((&*described[0].members[0].member_id, described[0].error_code), ("tripline", 0));
    assert_eq!((&*described[1].group_state, described[1].error_code), ("Dead", 69));
    let request = message!(OffsetFetchRequest { group_id: StrBytes::from("trigger.late"), topics: None });
    let fetched = client.call(7, &request).await.topics.remove(0);
    assert_eq!((fetched.partitions[1].partition_index, fetched.partitions[1].committed_offset), (1, 41));
    server.triggers.pause("late").await.unwrap();
    let described = client.call(6, &describe).await.groups;
    assert_eq!((&*described[0].group_state, described[0].members.len()), ("Empty", 0), "so that tools reset it");
}

#[tokio::test]
async fn a_trigger_on_several_topics_has_offsets_in_each_and_is_reset_in_one() {
    let (server, mut client) = with_trigger().await;
    create(&mut client, "u", 1, &[]).await;
    let definition = serde_json::json!({
        "trigger": "late", "input": { "pattern": "*" }, "function": { "http": { "url": "http://127.0.0.1:9/" } },
    });
    server.triggers.apply(TriggerSpec::from_json(&definition).unwrap()).await.unwrap();
    let request = message!(OffsetFetchRequest { group_id: StrBytes::from("trigger.late"), topics: None });
    let fetched = async |client: &mut Client| {
        let topics = client.call(7, &request).await.topics;
        let mut offsets: Vec<_> = topics
            .iter()
            .flat_map(|topic| {
                let name = topic.name.to_string();
                topic.partitions.iter().map(move |at| (name.clone(), at.partition_index, at.committed_offset))
            })
            .collect();
        offsets.sort_unstable();
        offsets
    };
    let at = |offset| [("t".to_owned(), 0, 0), ("t".to_owned(), 1, offset), ("u".to_owned(), 0, 0)];
    assert_eq!(fetched(&mut client).await, at(41));
    server.triggers.pause("late").await.unwrap();
    let partition =
        message!(offset_commit_request::OffsetCommitRequestPartition { partition_index: 1, committed_offset: 7 });
    let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
        name: StrBytes::from("t"),
        partitions: vec![partition],
    });
    let commit = message!(OffsetCommitRequest {
        group_id: StrBytes::from("trigger.late"),
        generation_id_or_member_epoch: -1,
        topics: vec![topic],
    });
    assert_eq!(client.call(9, &commit).await.topics[0].partitions[0].error_code, 0);
    assert_eq!(fetched(&mut client).await, at(7));
    let deleted =
        client.call(5, &message!(DeleteTopicsRequest { topic_names: vec!["t".into()], timeout_ms: 1000 })).await;
    assert_eq!(deleted.responses[0].error_code, 0, "a pattern keeps no topic");
    assert_eq!(fetched(&mut client).await, [("u".to_owned(), 0, 0)]);
}

#[tokio::test]
async fn foreign_members_are_refused_and_commits_reset_a_paused_trigger_only() {
    let (server, mut client) = with_trigger().await;
    assert_eq!(client.call(9, &join_request("trigger.late", "")).await.error_code, 30);
    let commit = |group: &str| {
        let partition =
            message!(offset_commit_request::OffsetCommitRequestPartition { partition_index: 1, committed_offset: 7 });
        let topic = message!(offset_commit_request::OffsetCommitRequestTopic {
            name: StrBytes::from("t"),
            partitions: vec![partition],
        });
        message!(OffsetCommitRequest {
            group_id: StrBytes::from(group),
            generation_id_or_member_epoch: -1,
            topics: vec![topic],
        })
    };
    for (group, paused, code, offset) in
        [("trigger.late", false, 30, 41), ("trigger.other", true, 0, 41), ("trigger.late", true, 0, 7)]
    {
        if paused {
            server.triggers.pause("late").await.unwrap();
        }
        let response = client.call(9, &commit(group)).await;
        assert_eq!(response.topics[0].partitions[0].error_code, code, "{group} paused {paused}");
        assert_eq!(committed(&server), offset);
    }
    // The group of a trigger that runs elsewhere and reads this broker as a cluster is one like any other.
    let request = message!(DeleteGroupsRequest { groups_names: vec!["trigger.late".into(), "trigger.other".into()] });
    let deleted = client.call(2, &request).await.results;
    assert_eq!((deleted[0].error_code, deleted[1].error_code), (30, 0));
    assert_eq!(client.call(9, &join_request("trigger.other", "")).await.error_code, 79, "it is given an id first");
}

#[tokio::test]
async fn a_topic_that_a_trigger_uses_is_not_deleted() {
    let (server, mut client) = with_trigger().await;
    let response = client.call(5, &message!(DeleteTopicsRequest { topic_names: vec!["t".into()] })).await;
    assert_eq!(response.responses[0].error_code, 44);
    assert!(response.responses[0].error_message.as_ref().unwrap().contains("late"));
    assert!(server.broker.topic("t").is_some());
}
