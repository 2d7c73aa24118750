//! Metadata: the topics there are, and the one node that has them.

use std::collections::HashSet;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{authorized, log_errors};
use crate::broker::{Broker, Topic};
use crate::kafka::advertised::HostPort;
use crate::kafka::codec::{MetadataRequest, MetadataResponse, StrBytes, metadata_request, metadata_response};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, NODE_ID, once_each, wire_id};
use crate::topic::name::TopicName;

/// Of a partition that nobody serves.
const NO_LEADER: i32 = -1;

/// Versions whose empty list of topics means all of them.
const EMPTY_IS_ALL_UNTIL: i16 = 0;
/// Versions that can say that a topic has no name.
const NO_NAME_SINCE: i16 = 12;
/// Versions in which a client says whether it wants topics created; those before want it.
const CREATION_ASKED_SINCE: i16 = 4;

pub(crate) async fn answer(
    service: &KafkaService,
    request: MetadataRequest,
    version: i16,
    advertised: HostPort,
) -> MetadataResponse {
    let with_operations = request.include_topic_authorized_operations;
    let creates = version < CREATION_ASKED_SINCE || request.allow_auto_topic_creation;
    let named = request.topics.filter(|topics| version > EMPTY_IS_ALL_UNTIL || !topics.is_empty());
    let topics = match named {
        None => service.broker.topics().iter().map(|topic| describe(&service.broker, topic, with_operations)).collect(),
        Some(asked) => {
            let mut found = Vec::with_capacity(asked.len());
            for asked in once_each(asked, |asked| (asked.name.clone(), asked.topic_id)) {
                let mut topic = find(service, asked, creates, with_operations).await;
                if version < NO_NAME_SINCE && topic.name.is_none() {
                    topic.name = Some(StrBytes::default());
                }
                found.push(topic);
            }
            found
        }
    };
    let asked_cluster = request.include_cluster_authorized_operations;
    message!(MetadataResponse {
        brokers: vec![message!(metadata_response::MetadataResponseBroker {
            node_id: NODE_ID,
            host: StrBytes::from(advertised.host),
            port: i32::from(advertised.port),
        })],
        cluster_id: Some(StrBytes::from(cluster_id(&service.broker))),
        controller_id: NODE_ID,
        topics: topics,
        cluster_authorized_operations: if asked_cluster { authorized::CLUSTER } else { authorized::NOT_ASKED },
    })
}

/// The data directory's id in the 22 characters that Kafka's tools expect.
pub(crate) fn cluster_id(broker: &Broker) -> String {
    URL_SAFE_NO_PAD.encode(broker.cluster_id().as_bytes())
}

async fn find(
    service: &KafkaService,
    asked: metadata_request::MetadataRequestTopic,
    creates: bool,
    with_operations: bool,
) -> metadata_response::MetadataResponseTopic {
    let found = match &asked.name {
        None => service.topic_by_id(asked.topic_id).ok_or(ErrorCode::UnknownTopicId),
        Some(name) => by_name(&service.broker, name, creates).await,
    };
    match found {
        Ok(topic) => describe(&service.broker, &topic, with_operations),
        Err(code) => message!(metadata_response::MetadataResponseTopic {
            error_code: service.count_error(code),
            name: asked.name,
            topic_id: asked.topic_id,
            topic_authorized_operations: authorized::NOT_ASKED,
        }),
    }
}

async fn by_name(broker: &Broker, name: &str, creates: bool) -> Result<Arc<Topic>, ErrorCode> {
    if let Some(topic) = broker.topic(name) {
        return Ok(topic);
    }
    let name = TopicName::new(name).map_err(|_| ErrorCode::InvalidTopicException)?;
    if !creates {
        return Err(ErrorCode::UnknownTopicOrPartition);
    }
    match broker.topic_or_create(&name).await {
        Ok(topic) => topic.ok_or(ErrorCode::UnknownTopicOrPartition),
        Err(error) => {
            tracing::warn!(topic = %name, %error, "a topic that a client asked for was not made");
            Err(log_errors::create_topic(&error))
        }
    }
}

fn describe(broker: &Broker, topic: &Topic, with_operations: bool) -> metadata_response::MetadataResponseTopic {
    let leader_epoch = broker.leader_epoch().get();
    let offline: HashSet<i32> = topic.offline().map(|(number, _)| number.cast_signed()).collect();
    let partition = |index| {
        let is_offline = offline.contains(&index);
        message!(metadata_response::MetadataResponsePartition {
            error_code: if is_offline { ErrorCode::LeaderNotAvailable.code() } else { ErrorCode::None.code() },
            partition_index: index,
            leader_id: if is_offline { NO_LEADER } else { NODE_ID },
            leader_epoch: leader_epoch,
            replica_nodes: vec![NODE_ID],
            isr_nodes: vec![NODE_ID],
            offline_replicas: if is_offline { vec![NODE_ID] } else { Vec::new() },
        })
    };
    let operations = if topic.is_internal() { authorized::INTERNAL_TOPIC } else { authorized::TOPIC };
    message!(metadata_response::MetadataResponseTopic {
        name: Some(StrBytes::from(topic.name().as_str())),
        topic_id: wire_id(topic.id()),
        is_internal: topic.is_internal(),
        partitions: (0..topic.partition_count().cast_signed()).map(partition).collect(),
        topic_authorized_operations: if with_operations { operations } else { authorized::NOT_ASKED },
    })
}
