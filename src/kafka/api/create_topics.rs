//! CreateTopics.

use std::collections::HashMap;

use super::log_errors;
use crate::kafka::codec::{
    CreateTopicsRequest, CreateTopicsResponse, StrBytes, create_topics_request, create_topics_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, Shared, shown, wire_id};
use crate::topic::name::TopicName;
use crate::topic::spec::{CONFIG_KEYS, PARTITIONS_MAX, TopicConfig, TopicSpec};

use super::describe_configs::source_of;

/// Versions that tell the settings of the topic made.
const CONFIGS_TOLD_SINCE: i16 = 5;

/// Why a topic was not made.
struct Refusal {
    code: ErrorCode,
    reason: String,
}

fn refusal(code: ErrorCode, reason: impl Into<String>) -> Refusal {
    Refusal { code, reason: reason.into() }
}

pub(crate) async fn answer(service: &KafkaService, request: CreateTopicsRequest, version: i16) -> CreateTopicsResponse {
    let mut named: HashMap<StrBytes, u32> = HashMap::new();
    for topic in &request.topics {
        *named.entry(topic.name.clone()).or_default() += 1;
    }
    let mut results = Vec::with_capacity(named.len());
    for topic in request.topics {
        // One answer for each name, even for one named twice.
        let Some(times) = named.remove(&topic.name) else { continue };
        let made = if times > 1 {
            Err(refusal(ErrorCode::InvalidRequest, format!("the topic is named {times} times in one request")))
        } else {
            create(service, &topic, request.validate_only).await
        };
        results.push(match made {
            Ok(made) => made.result(version),
            Err(refusal) => message!(create_topics_response::CreatableTopicResult {
                name: topic.name,
                error_code: service.count_error(refusal.code),
                error_message: Some(StrBytes::from(refusal.reason)),
            }),
        });
    }
    message!(CreateTopicsResponse { topics: results })
}

/// A topic that was made, or could be.
struct Made {
    spec: TopicSpec,
    id: Option<uuid::Uuid>,
}

impl Made {
    fn result(self, version: i16) -> create_topics_response::CreatableTopicResult {
        let config = |key: &'static crate::topic::spec::ConfigKey| {
            message!(create_topics_response::CreatableTopicConfigs {
                name: StrBytes::from(key.name),
                value: Some(StrBytes::from(key.get(&self.spec.config))),
                config_source: source_of(key, &self.spec.config),
            })
        };
        let mut result = message!(create_topics_response::CreatableTopicResult {
            name: StrBytes::from(self.spec.name.as_str()),
            topic_id: self.id.map(wire_id).unwrap_or_default(),
        });
        if version >= CONFIGS_TOLD_SINCE {
            const KEYS: &[crate::topic::spec::ConfigKey] = &CONFIG_KEYS;
            result.num_partitions = i32::try_from(self.spec.partitions).expect("at most 1,000");
            result.replication_factor = 1;
            result.configs = Some(KEYS.iter().map(config).collect());
        }
        result
    }
}

async fn create(
    service: &KafkaService,
    asked: &create_topics_request::CreatableTopic,
    validate_only: bool,
) -> Result<Made, Refusal> {
    let spec = check(service, asked)?;
    let refused = |error| refusal(log_errors::create_topic(&error), error.to_string());
    if validate_only {
        service.broker.check_new_topic(&spec).map_err(refused)?;
        return Ok(Made { spec, id: None });
    }
    let topic = service.broker.create_topic(spec.clone()).await.map_err(refused)?;
    Ok(Made { spec, id: Some(topic.id()) })
}

fn check(service: &Shared, asked: &create_topics_request::CreatableTopic) -> Result<TopicSpec, Refusal> {
    let name = TopicName::new(&*asked.name)
        .map_err(|error| refusal(ErrorCode::InvalidTopicException, format!("the topic's name: {error}")))?;
    if name.is_internal() {
        return Err(refusal(ErrorCode::InvalidTopicException, "names with this beginning are the broker's own"));
    }
    if !asked.assignments.is_empty() {
        let reason = "there is one node: partitions cannot be assigned to others";
        return Err(refusal(ErrorCode::InvalidReplicaAssignment, reason));
    }
    let partitions = match asked.num_partitions {
        -1 => service.broker.config().auto_create_partitions,
        found => u32::try_from(found).ok().filter(|count| (1..=PARTITIONS_MAX).contains(count)).ok_or_else(|| {
            let reason =
                format!("num_partitions is {found}, allowed are 1 to {PARTITIONS_MAX}, and -1 for the default");
            refusal(ErrorCode::InvalidPartitions, reason)
        })?,
    };
    if ![-1, 1].contains(&asked.replication_factor) {
        let found = asked.replication_factor;
        let reason = format!("replication_factor is {found}, allowed are 1 and -1: there is one node");
        return Err(refusal(ErrorCode::InvalidReplicationFactor, reason));
    }
    let mut pairs = Vec::with_capacity(asked.configs.len());
    for config in &asked.configs {
        let Some(value) = &config.value else {
            let reason = format!("{}: found null, allowed is a value", shown(&config.name));
            return Err(refusal(ErrorCode::InvalidConfig, reason));
        };
        pairs.push((&*config.name, &**value));
    }
    let config =
        TopicConfig::from_pairs(pairs).map_err(|error| refusal(ErrorCode::InvalidConfig, error.to_string()))?;
    Ok(TopicSpec { name, partitions, config })
}
