use std::sync::Arc;

use futures_util::future::BoxFuture;
use kafka_wire::*;
use kafka_wire_core::StrBytes;
use parking_lot::Mutex;
use tripline::kafka::trigger_groups::{PartitionOffset, ResetError, TriggerGroups};
use tripline_storage::Offset;
use uuid::Uuid;

use crate::client::{Client, message};
use crate::groups::join_request;
use crate::requests::*;
use crate::support::Server;

/// One trigger, `late`, on partition 1 of one topic.
#[derive(Default)]
struct OneTrigger {
    topic: Mutex<Uuid>,
    paused: Mutex<bool>,
    offset: Mutex<Offset>,
}

impl TriggerGroups for OneTrigger {
    fn names(&self) -> Vec<String> {
        vec!["late".to_owned()]
    }

    fn committed(&self, name: &str) -> Option<Vec<PartitionOffset>> {
        (name == "late").then(|| vec![(*self.topic.lock(), 1, *self.offset.lock())])
    }

    fn paused(&self, name: &str) -> Option<bool> {
        (name == "late").then(|| *self.paused.lock())
    }

    fn reset<'a>(&'a self, name: &'a str, offsets: Vec<PartitionOffset>) -> BoxFuture<'a, Result<(), ResetError>> {
        Box::pin(async move {
            match self.paused(name) {
                None => Err(ResetError::Unknown),
                Some(false) => Err(ResetError::Running),
                Some(true) => {
                    *self.offset.lock() = offsets[0].2;
                    Ok(())
                }
            }
        })
    }

    fn user_of_topic(&self, topic: &str) -> Option<String> {
        (topic == "t").then(|| "late".to_owned())
    }
}

async fn with_trigger() -> (Server, Client, Arc<OneTrigger>) {
    let trigger = Arc::<OneTrigger>::default();
    let server = Server::start_with(Arc::clone(&trigger) as _).await;
    let mut client = Client::connect(server.address).await;
    create(&mut client, "t", 2, &[]).await;
    *trigger.topic.lock() = server.broker.topic("t").unwrap().id();
    *trigger.offset.lock() = Offset::new(41).unwrap();
    (server, client, trigger)
}

#[tokio::test]
async fn a_trigger_shows_as_a_group_with_one_member_and_its_offsets() {
    let (_server, mut client, trigger) = with_trigger().await;
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
    assert_eq!((fetched.partitions[0].partition_index, fetched.partitions[0].committed_offset), (1, 41));
    *trigger.paused.lock() = true;
    let described = client.call(6, &describe).await.groups;
    assert_eq!((&*described[0].group_state, described[0].members.len()), ("Empty", 0), "so that tools reset it");
}

#[tokio::test]
async fn foreign_members_are_refused_and_commits_reset_a_paused_trigger_only() {
    let (_server, mut client, trigger) = with_trigger().await;
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
        [("trigger.late", false, 30, 41), ("trigger.other", true, 30, 41), ("trigger.late", true, 0, 7)]
    {
        *trigger.paused.lock() = paused;
        let response = client.call(9, &commit(group)).await;
        assert_eq!(response.topics[0].partitions[0].error_code, code, "{group} paused {paused}");
        assert_eq!(trigger.offset.lock().get(), offset);
    }
    let request = message!(DeleteGroupsRequest { groups_names: vec!["trigger.late".into()] });
    assert_eq!(client.call(2, &request).await.results[0].error_code, 30);
}

#[tokio::test]
async fn a_topic_that_a_trigger_uses_is_not_deleted() {
    let (server, mut client, _trigger) = with_trigger().await;
    let response = client.call(5, &message!(DeleteTopicsRequest { topic_names: vec!["t".into()] })).await;
    assert_eq!(response.responses[0].error_code, 44);
    assert!(response.responses[0].error_message.as_ref().unwrap().contains("late"));
    assert!(server.broker.topic("t").is_some());
}
