//! DeleteTopics, by name or by id.

use std::sync::Arc;

use super::log_errors;
use crate::broker::{DeleteTopicError, Topic};
use crate::kafka::codec::{
    DeleteTopicsRequest, DeleteTopicsResponse, StrBytes, Uuid, delete_topics_request, delete_topics_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, Shared, wire_id};

/// Versions that name topics by name or by id.
const IDS_SINCE: i16 = 6;

pub(crate) async fn answer(service: &KafkaService, request: DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    let by_name = |name| message!(delete_topics_request::DeleteTopicState { name: Some(name) });
    let asked: Vec<_> =
        if version >= IDS_SINCE { request.topics } else { request.topic_names.into_iter().map(by_name).collect() };
    let mut responses = Vec::with_capacity(asked.len());
    for asked in asked {
        responses.push(delete(service, asked).await);
    }
    message!(DeleteTopicsResponse { responses: responses })
}

async fn delete(
    service: &KafkaService,
    asked: delete_topics_request::DeleteTopicState,
) -> delete_topics_response::DeletableTopicResult {
    let (found, deleted) = match find(service, &asked) {
        Ok(topic) => {
            let deleted = delete_found(service, &topic, asked.name.is_none()).await;
            (Some(topic), deleted)
        }
        Err(refusal) => (None, Err(refusal)),
    };
    let (code, reason) = match deleted {
        Ok(()) => (ErrorCode::None, None),
        Err((code, reason)) => (code, Some(reason)),
    };
    let name = found.as_ref().map(|topic| StrBytes::from(topic.name().as_str()));
    message!(delete_topics_response::DeletableTopicResult {
        name: name.or(asked.name),
        topic_id: found.as_ref().map_or(asked.topic_id, |topic| wire_id(topic.id())),
        error_code: service.count_error(code),
        error_message: reason.map(StrBytes::from),
    })
}

type Refusal = (ErrorCode, String);

fn find(service: &Shared, asked: &delete_topics_request::DeleteTopicState) -> Result<Arc<Topic>, Refusal> {
    match &asked.name {
        Some(_) if asked.topic_id != Uuid::ZERO => {
            Err((ErrorCode::InvalidRequest, "a topic is named by its name or by its id, not by both".to_owned()))
        }
        Some(name) => service
            .broker
            .topic(name)
            .ok_or_else(|| (ErrorCode::UnknownTopicOrPartition, format!("topic {name} does not exist"))),
        None => service
            .topic_by_id(asked.topic_id)
            .ok_or_else(|| (ErrorCode::UnknownTopicId, "no topic has this id".to_owned())),
    }
}

async fn delete_found(service: &Shared, topic: &Arc<Topic>, by_id: bool) -> Result<(), Refusal> {
    let name = topic.name().as_str();
    if topic.is_internal() {
        return Err((ErrorCode::TopicAuthorizationFailed, format!("topic {name} belongs to the broker")));
    }
    match service.triggers.delete_topic(topic).await {
        Ok(()) => Ok(()),
        Err(DeleteTopicError::Unknown(_)) if by_id => {
            Err((ErrorCode::UnknownTopicId, "no topic has this id any more".to_owned()))
        }
        Err(error) => {
            tracing::warn!(topic = name, %error, "deleting a topic");
            match log_errors::delete_topic(&error) {
                ErrorCode::None => Ok(()),
                code => Err((code, error.to_string())),
            }
        }
    }
}
