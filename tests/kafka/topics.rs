use kafka_wire::*;
use kafka_wire_core::{StrBytes, Uuid};

use crate::client::{Client, message};
use crate::requests::*;
use crate::support::Server;

fn named(names: &[&str]) -> Option<Vec<metadata_request::MetadataRequestTopic>> {
    let topic = |name: &&str| message!(metadata_request::MetadataRequestTopic { name: Some(StrBytes::from(*name)) });
    Some(names.iter().map(topic).collect())
}

fn names(response: &MetadataResponse) -> Vec<(&str, i16)> {
    response.topics.iter().map(|topic| (topic.name.as_deref().unwrap_or_default(), topic.error_code)).collect()
}

#[tokio::test]
async fn metadata_tells_the_node_that_the_client_connected_to() {
    let (server, mut client) = with_topic().await;
    let response = client.call(13, &message!(MetadataRequest { topics: named(&["t"]) })).await;
    let broker = &response.brokers[0];
    let port = i32::from(server.address.port());
    assert_eq!((broker.node_id, &*broker.host, broker.port), (response.controller_id, "127.0.0.1", port));
    assert_eq!(response.cluster_id.unwrap().len(), 22);
    let topic = &response.topics[0];
    assert_eq!(topic.topic_id.as_bytes(), server.broker.topic("t").unwrap().id().as_bytes());
    assert_eq!(topic.partitions.len(), 2);
    for partition in &topic.partitions {
        let node = broker.node_id;
        assert_eq!(
            (partition.leader_id, &partition.replica_nodes, &partition.isr_nodes),
            (node, &vec![node], &vec![node])
        );
        assert_eq!(partition.leader_epoch, server.broker.leader_epoch().get());
    }
}

#[tokio::test]
async fn metadata_of_all_of_none_and_of_named_topics() {
    let (_server, mut client) = with_topic().await;
    create(&mut client, "u", 1, &[]).await;
    let all = client.call(9, &message!(MetadataRequest { topics: None })).await;
    assert_eq!(names(&all), [("t", 0), ("u", 0)]);
    let none = client.call(9, &message!(MetadataRequest { topics: Some(vec![]) })).await;
    assert!(none.topics.is_empty() && none.brokers.len() == 1);
    let oldest = client.call(0, &message!(MetadataRequest { topics: Some(vec![]) })).await;
    assert_eq!(oldest.topics.len(), 2, "in version 0 none named means all");
    let request =
        message!(MetadataRequest { topics: named(&["u", "missing", "a/b", ""]), allow_auto_topic_creation: false });
    assert_eq!(names(&client.call(9, &request).await), [("u", 0), ("missing", 3), ("a/b", 17), ("", 17)]);
}

#[tokio::test]
async fn metadata_makes_topics_when_asked_and_never_the_brokers_own() {
    let (server, mut client) = with_topic().await;
    let request =
        message!(MetadataRequest { topics: named(&["new", "__tripline.x"]), allow_auto_topic_creation: true });
    assert_eq!(names(&client.call(9, &request).await), [("new", 0), ("__tripline.x", 3)]);
    assert_eq!(server.broker.topic("new").unwrap().partition_count(), 1);
    let request = message!(MetadataRequest { topics: named(&["older"]) });
    assert_eq!(names(&client.call(3, &request).await), [("older", 0)], "versions before 4 always ask");
}

#[tokio::test]
async fn metadata_by_id_finds_topics_and_says_when_it_does_not() {
    let (server, mut client) = with_topic().await;
    let id = Uuid::from_bytes(*server.broker.topic("t").unwrap().id().as_bytes());
    for version in 10..=13 {
        let asked = |id| message!(metadata_request::MetadataRequestTopic { topic_id: id });
        let request = message!(MetadataRequest { topics: Some(vec![asked(id), asked(Uuid::from_bytes([7; 16]))]) });
        let mut request = request;
        for topic in request.topics.as_mut().unwrap() {
            topic.name = (version < 12).then(StrBytes::default).filter(|_| version < 10);
        }
        let response = client.call(version, &request).await;
        let found: Vec<_> = response.topics.iter().map(|topic| topic.error_code).collect();
        assert_eq!((found, response.topics[0].name.as_deref()), (vec![0, 100], Some("t")), "version {version}");
    }
}

fn creatable(
    name: &str,
    partitions: i32,
    factor: i16,
    configs: &[(&str, Option<&str>)],
) -> create_topics_request::CreatableTopic {
    let config = |(name, value): &(&str, Option<&str>)| {
        message!(create_topics_request::CreatableTopicConfig {
            name: StrBytes::from(*name),
            value: value.map(StrBytes::from),
        })
    };
    message!(create_topics_request::CreatableTopic {
        name: StrBytes::from(name),
        num_partitions: partitions,
        replication_factor: factor,
        configs: configs.iter().map(config).collect(),
    })
}

#[tokio::test]
async fn what_a_topic_may_not_be_is_refused_with_its_own_code_and_a_reason() {
    let (server, mut client) = with_topic().await;
    let mut assigned = creatable("assigned", -1, -1, &[]);
    assigned.assignments = vec![message!(create_topics_request::CreatableReplicaAssignment { broker_ids: vec![1] })];
    let cases = [
        (creatable("t", 1, 1, &[]), 36, "exists"),
        (creatable("a b", 1, 1, &[]), 17, "' '"),
        (creatable("", 1, 1, &[]), 17, "empty"),
        (creatable("__tripline.x", 1, 1, &[]), 17, "broker's own"),
        (creatable("a", 0, 1, &[]), 37, "1 to 1000"),
        (creatable("a", -2, 1, &[]), 37, "-2"),
        (creatable("a", 1001, 1, &[]), 37, "1001"),
        (creatable("a", 1, 0, &[]), 38, "one node"),
        (creatable("a", 1, 3, &[]), 38, "3"),
        (creatable("a", 1, 1, &[("retention.ms", Some("soon"))]), 40, "retention.ms"),
        (creatable("a", 1, 1, &[("retention_ms", Some("1"))]), 40, "retention_ms"),
        (creatable("a", 1, 1, &[("retention.ms", None)]), 40, "null"),
        (assigned, 39, "one node"),
    ];
    for (topic, code, reason) in cases {
        let request = message!(CreateTopicsRequest { topics: vec![topic.clone()], timeout_ms: 1000 });
        let result = client.call(7, &request).await.topics.remove(0);
        assert_eq!(result.error_code, code, "{topic:?}");
        let message = result.error_message.unwrap();
        assert!(message.contains(reason), "{message} has no {reason}");
    }
    assert_eq!(server.broker.topics().len(), 1);
}

#[tokio::test]
async fn a_topic_is_made_with_defaults_or_only_looked_at_and_twice_in_a_request_is_refused() {
    let (server, mut client) = with_topic().await;
    let topics = vec![creatable("new", -1, -1, &[("segment.bytes", Some("1048576"))])];
    let mut request = message!(CreateTopicsRequest { topics: topics, timeout_ms: 1000, validate_only: true });
    let looked = client.call(7, &request).await.topics.remove(0);
    assert_eq!((looked.error_code, looked.num_partitions, looked.topic_id), (0, 1, Uuid::ZERO));
    assert!(server.broker.topic("new").is_none());
    request.validate_only = false;
    let made = client.call(7, &request).await.topics.remove(0);
    assert_eq!((made.error_code, made.replication_factor), (0, 1));
    assert_eq!(made.topic_id.as_bytes(), server.broker.topic("new").unwrap().id().as_bytes());
    let configs = made.configs.unwrap();
    let source = |name: &str| configs.iter().find(|config| &*config.name == name).unwrap().config_source;
    assert_eq!((source("segment.bytes"), source("retention.ms")), (1, 5));
    let twice =
        message!(CreateTopicsRequest { topics: vec![creatable("two", 1, 1, &[]), creatable("two", 1, 1, &[])] });
    let results = client.call(7, &twice).await.topics;
    assert_eq!((results.len(), results[0].error_code), (1, 42));
    assert!(server.broker.topic("two").is_none());
}

#[tokio::test]
async fn topics_are_deleted_by_name_and_by_id() {
    let (server, mut client) = with_topic().await;
    create(&mut client, "u", 1, &[]).await;
    let id = Uuid::from_bytes(*server.broker.topic("u").unwrap().id().as_bytes());
    let state = |name: Option<&str>, id| {
        message!(delete_topics_request::DeleteTopicState { name: name.map(StrBytes::from), topic_id: id })
    };
    let unknown = Uuid::from_bytes([7; 16]);
    let asked = vec![
        state(Some("t"), Uuid::ZERO),
        state(None, id),
        state(Some("missing"), Uuid::ZERO),
        state(None, unknown),
        state(Some("u"), id),
    ];
    let response = client.call(6, &message!(DeleteTopicsRequest { topics: asked, timeout_ms: 1000 })).await;
    let results: Vec<_> = response.responses.iter().map(|result| (result.name.as_deref(), result.error_code)).collect();
    assert_eq!(results, [(Some("t"), 0), (Some("u"), 0), (Some("missing"), 3), (None, 100), (Some("u"), 42)]);
    assert!(server.broker.topics().is_empty());
    assert_eq!(fetch(&mut client, "t", 0).await.error_code, 3);
}

#[tokio::test]
async fn settings_are_described_with_their_sources_types_and_texts() {
    let (_server, mut client) = with_topic().await;
    create(&mut client, "set", 1, &[("retention.ms", "1000")]).await;
    let resource = |kind, name: &str, keys: Option<&[&str]>| {
        message!(describe_configs_request::DescribeConfigsResource {
            resource_type: kind,
            resource_name: StrBytes::from(name),
            configuration_keys: keys.map(|keys| keys.iter().map(|key| StrBytes::from(*key)).collect()),
        })
    };
    let request = message!(DescribeConfigsRequest {
        resources: vec![
            resource(2, "set", Some(&["retention.ms"])),
            resource(2, "t", None),
            resource(2, "missing", None),
            resource(4, "1", None),
            resource(4, "2", None),
            resource(99, "x", None),
        ],
        include_synonyms: true,
        include_documentation: true,
    });
    let results = client.call(4, &request).await.results;
    assert_eq!(results.iter().map(|result| result.error_code).collect::<Vec<_>>(), [0, 0, 3, 0, 42, 42]);
    let retention = &results[0].configs[0];
    assert_eq!((retention.value.as_deref(), retention.config_source, retention.config_type), (Some("1000"), 1, 5));
    let synonyms: Vec<_> =
        retention.synonyms.iter().map(|synonym| (synonym.source, synonym.value.as_deref())).collect();
    assert_eq!(synonyms, [(1, Some("1000")), (5, Some("604800000"))]);
    assert!(retention.documentation.as_ref().is_some_and(|text| text.contains("records are kept")));
    assert_eq!(results[0].configs.len(), 1);
    assert_eq!(results[1].configs.len(), tripline::topic::spec::CONFIG_KEYS.len());
    let broker = &results[3].configs;
    assert!(broker.iter().any(|config| &*config.name == "num.partitions" && config.value.as_deref() == Some("1")));
    assert!(broker.iter().all(|config| config.read_only));
}

#[tokio::test]
async fn reasons_fit_every_version_however_long_the_name_that_they_repeat() {
    let (_server, mut client) = with_topic().await;
    let long = StrBytes::from("x".repeat(i16::MAX.unsigned_abs().into()));
    for version in 1..=4 {
        let resource = |kind| {
            message!(describe_configs_request::DescribeConfigsResource {
                resource_type: kind,
                resource_name: long.clone(),
            })
        };
        let request = message!(DescribeConfigsRequest { resources: vec![resource(2)] });
        assert_eq!(client.call(version, &request).await.results[0].error_code, 3, "version {version}");
        let request = message!(DescribeConfigsRequest { resources: vec![resource(4)] });
        assert_eq!(client.call(version, &request).await.results[0].error_code, 42, "version {version}");
    }
    for version in 2..=7 {
        let topic = creatable("new", 1, 1, &[(&long, None)]);
        let request = message!(CreateTopicsRequest { topics: vec![topic] });
        assert_eq!(client.call(version, &request).await.topics[0].error_code, 40, "version {version}");
    }
}

#[tokio::test]
async fn empty_and_null_arrays_are_answered_by_each_request_that_has_them() {
    let server = Server::start().await;
    let mut client = Client::connect(server.address).await;
    assert!(client.call(9, &message!(ProduceRequest { acks: -1 })).await.responses.is_empty());
    assert!(client.call(7, &CreateTopicsRequest::default()).await.topics.is_empty());
    assert!(client.call(6, &DeleteTopicsRequest::default()).await.responses.is_empty());
    assert!(client.call(5, &DeleteTopicsRequest::default()).await.responses.is_empty());
    assert!(client.call(2, &DeleteRecordsRequest::default()).await.topics.is_empty());
    assert!(client.call(4, &DescribeConfigsRequest::default()).await.results.is_empty());
    assert!(client.call(8, &ListOffsetsRequest::default()).await.topics.is_empty());
    assert!(client.call(4, &FindCoordinatorRequest::default()).await.coordinators.is_empty());
    assert!(client.call(6, &DescribeGroupsRequest::default()).await.groups.is_empty());
    assert!(client.call(2, &DeleteGroupsRequest::default()).await.results.is_empty());
    assert!(client.call(9, &OffsetFetchRequest::default()).await.groups.is_empty());
    assert!(client.call(5, &ListGroupsRequest::default()).await.groups.is_empty());
    let group = StrBytes::from("g");
    assert!(
        client
            .call(9, &message!(OffsetCommitRequest { group_id: group.clone(), generation_id_or_member_epoch: -1 }))
            .await
            .topics
            .is_empty()
    );
    assert!(client.call(5, &message!(LeaveGroupRequest { group_id: group.clone() })).await.members.is_empty());
    let response = client.call(7, &message!(OffsetFetchRequest { group_id: group, topics: Some(vec![]) })).await;
    assert_eq!((response.error_code, response.topics.len()), (0, 0));
    // Groups without a name are refused by each request of a group.
    assert_eq!(client.call(5, &JoinGroupRequest::default()).await.error_code, 24);
    assert_eq!(client.call(5, &SyncGroupRequest::default()).await.error_code, 24);
    assert_eq!(client.call(4, &HeartbeatRequest::default()).await.error_code, 24);
    assert_eq!(client.call(5, &LeaveGroupRequest::default()).await.error_code, 24);
    assert_eq!(client.call(7, &OffsetFetchRequest::default()).await.error_code, 24);
    assert_eq!(client.call(3, &FindCoordinatorRequest::default()).await.error_code, 24);
}

#[tokio::test]
async fn what_is_named_many_times_is_told_once() {
    let (_server, mut client) = with_topic().await;
    let request = message!(MetadataRequest { topics: named(&["t"; 1000]) });
    assert_eq!(client.call(9, &request).await.topics.len(), 1);
    let resource = message!(describe_configs_request::DescribeConfigsResource {
        resource_type: 2,
        resource_name: StrBytes::from("t"),
    });
    let request = message!(DescribeConfigsRequest { resources: vec![resource; 1000] });
    assert_eq!(client.call(4, &request).await.results.len(), 1);
    let request = message!(DescribeGroupsRequest { groups: vec!["g".into(); 1000] });
    assert_eq!(client.call(5, &request).await.groups.len(), 1);
    let first = message!(list_offsets_request::ListOffsetsPartition { timestamp: 0 });
    let topic =
        message!(list_offsets_request::ListOffsetsTopic { name: StrBytes::from("t"), partitions: vec![first; 1000] });
    let request = message!(ListOffsetsRequest { topics: vec![topic; 3] });
    let topics = client.call(7, &request).await.topics;
    assert_eq!((topics.len(), topics[0].partitions.len()), (1, 1));
    let group = message!(offset_fetch_request::OffsetFetchRequestGroup { group_id: StrBytes::from("g"), topics: None });
    let request = message!(OffsetFetchRequest { groups: vec![group; 1000] });
    assert_eq!(client.call(9, &request).await.groups.len(), 1);
    let topic = message!(offset_fetch_request::OffsetFetchRequestTopic {
        name: StrBytes::from("t"),
        partition_indexes: [0, 1].repeat(1000),
    });
    for group in ["g", ""] {
        let topics = Some(vec![topic.clone(); 3]);
        let request = message!(OffsetFetchRequest { group_id: StrBytes::from(group), topics: topics });
        let topics = client.call(7, &request).await.topics;
        let told: Vec<_> = topics.iter().flat_map(|topic| &topic.partitions).map(|p| p.partition_index).collect();
        assert_eq!((topics.len(), told), (1, vec![0, 1]), "group {group:?}");
    }
    let topic = message!(offset_fetch_request::OffsetFetchRequestTopics {
        name: StrBytes::from("t"),
        partition_indexes: [0, 1].repeat(1000),
    });
    let topics = Some(vec![topic; 3]);
    let group =
        message!(offset_fetch_request::OffsetFetchRequestGroup { group_id: StrBytes::from("g"), topics: topics });
    let topics = client.call(9, &message!(OffsetFetchRequest { groups: vec![group] })).await.groups.remove(0).topics;
    let told: Vec<_> = topics.iter().flat_map(|topic| &topic.partitions).map(|p| p.partition_index).collect();
    assert_eq!((topics.len(), told), (1, vec![0, 1]));
}
