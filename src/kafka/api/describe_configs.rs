//! DescribeConfigs: the settings of topics, and some of the broker's.

use crate::broker::Topic;
use crate::kafka::codec::{
    DescribeConfigsRequest, DescribeConfigsResponse, StrBytes, describe_configs_request, describe_configs_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::service::{KafkaService, NODE_ID, Shared, once_each, shown};
use crate::topic::spec::{CONFIG_KEYS, ConfigKey, ConfigKind, TopicConfig};

const TOPIC: i8 = 2;
const BROKER: i8 = 4;

/// Set on the topic.
const SOURCE_TOPIC: i8 = 1;
/// Given to the broker at its start.
const SOURCE_BROKER: i8 = 4;
/// Nobody set it.
const SOURCE_DEFAULT: i8 = 5;

const TYPE_BOOLEAN: i8 = 1;
const TYPE_STRING: i8 = 2;
const TYPE_INT: i8 = 3;
const TYPE_LONG: i8 = 5;
const TYPE_DOUBLE: i8 = 6;
const TYPE_LIST: i8 = 7;

/// Versions with types and texts.
const TYPES_SINCE: i16 = 3;

/// One setting.
struct Setting {
    name: &'static str,
    value: String,
    default: Option<String>,
    source: i8,
    kind: i8,
    doc: &'static str,
    read_only: bool,
}

pub(crate) fn answer(service: &KafkaService, request: DescribeConfigsRequest, version: i16) -> DescribeConfigsResponse {
    let (with_synonyms, with_docs) = (request.include_synonyms, request.include_documentation);
    let result = |asked: describe_configs_request::DescribeConfigsResource| {
        let settings = settings_of(service, &asked);
        let mut result = message!(describe_configs_response::DescribeConfigsResult {
            resource_type: asked.resource_type,
            resource_name: asked.resource_name,
        });
        match settings {
            Ok(settings) => {
                let wanted = settings.into_iter().filter(|setting| is_wanted(&asked.configuration_keys, setting.name));
                result.configs = wanted.map(|setting| setting.told(version, with_synonyms, with_docs)).collect();
            }
            Err((code, reason)) => {
                result.error_code = service.count_error(code);
                result.error_message = Some(StrBytes::from(reason));
            }
        }
        result
    };
    let resources = once_each(request.resources, |asked| (asked.resource_type, asked.resource_name.clone()));
    message!(DescribeConfigsResponse { results: resources.map(result).collect() })
}

/// None named means all, as with Kafka.
fn is_wanted(named: &Option<Vec<StrBytes>>, name: &str) -> bool {
    named.as_ref().is_none_or(|named| named.is_empty() || named.iter().any(|wanted| &**wanted == name))
}

fn settings_of(
    service: &Shared,
    asked: &describe_configs_request::DescribeConfigsResource,
) -> Result<Vec<Setting>, (ErrorCode, String)> {
    let name = &*asked.resource_name;
    match asked.resource_type {
        TOPIC => {
            let unknown = || (ErrorCode::UnknownTopicOrPartition, format!("topic {} does not exist", shown(name)));
            Ok(topic_settings(&*service.broker.topic(name).ok_or_else(unknown)?))
        }
        BROKER if name.is_empty() || name == NODE_ID.to_string() => Ok(broker_settings(service)),
        BROKER => {
            let found = shown(name);
            Err((ErrorCode::InvalidRequest, format!("node is {found:?}, allowed is {NODE_ID}: there is one node")))
        }
        other => {
            let reason = format!("resource_type is {other}, allowed are {TOPIC} (topic) and {BROKER} (broker)");
            Err((ErrorCode::InvalidRequest, reason))
        }
    }
}

/// Where the value of a topic's setting comes from.
pub(super) fn source_of(key: &ConfigKey, config: &TopicConfig) -> i8 {
    if key.get(config) == key.default_value() { SOURCE_DEFAULT } else { SOURCE_TOPIC }
}

fn topic_settings(topic: &Topic) -> Vec<Setting> {
    const KEYS: &[ConfigKey] = &CONFIG_KEYS;
    let config = topic.config();
    let setting = |key: &'static ConfigKey| Setting {
        name: key.name,
        value: key.get(&config),
        default: Some(key.default_value()),
        source: source_of(key, &config),
        kind: match key.kind {
            ConfigKind::Millis(..) => TYPE_LONG,
            ConfigKind::Bytes(_, to) if to > i64::from(i32::MAX) => TYPE_LONG,
            ConfigKind::Bytes(..) => TYPE_INT,
            ConfigKind::Share => TYPE_DOUBLE,
            // Kafka's clients parse it as the list that it is there.
            ConfigKind::Word(_) if key.name == "cleanup.policy" => TYPE_LIST,
            ConfigKind::Word(_) => TYPE_STRING,
        },
        doc: key.doc,
        read_only: false,
    };
    KEYS.iter().map(setting).collect()
}

fn broker_settings(service: &Shared) -> Vec<Setting> {
    let config = service.broker.config();
    let setting = |name, value: String, kind, doc| Setting {
        name,
        value,
        default: None,
        source: SOURCE_BROKER,
        kind,
        doc,
        read_only: true,
    };
    vec![
        setting(
            "auto.create.topics.enable",
            config.auto_create_topics.to_string(),
            TYPE_BOOLEAN,
            "Whether a topic that somebody asks for is made.",
        ),
        setting("broker.id", NODE_ID.to_string(), TYPE_INT, "The id of the one node."),
        setting(
            "default.replication.factor",
            "1".to_owned(),
            TYPE_INT,
            "Copies of a partition: there is one node, and it has the only one.",
        ),
        setting("log.dirs", config.data.display().to_string(), TYPE_STRING, "The data directory."),
        setting(
            "log.retention.check.interval.ms",
            config.retention_interval.as_millis().to_string(),
            TYPE_LONG,
            "How often retention looks at all topics.",
        ),
        setting(
            "message.max.bytes",
            TopicConfig::default().max_message_bytes.to_string(),
            TYPE_INT,
            "The largest record batch of a topic that does not say otherwise.",
        ),
        setting(
            "num.partitions",
            config.auto_create_partitions.to_string(),
            TYPE_INT,
            "Partitions of a topic that is made without a number of them.",
        ),
    ]
}

impl Setting {
    fn told(
        self,
        version: i16,
        with_synonyms: bool,
        with_docs: bool,
    ) -> describe_configs_response::DescribeConfigsResourceResult {
        let mut told = message!(describe_configs_response::DescribeConfigsResourceResult {
            name: StrBytes::from(self.name),
            read_only: self.read_only,
            config_source: self.source,
        });
        if with_synonyms {
            told.synonyms = self.synonyms();
        }
        if version >= TYPES_SINCE {
            told.config_type = self.kind;
            told.documentation = with_docs.then(|| StrBytes::from(self.doc));
        }
        told.value = Some(StrBytes::from(self.value));
        told
    }

    /// The values from which the one in force was chosen, it first.
    fn synonyms(&self) -> Vec<describe_configs_response::DescribeConfigsSynonym> {
        let synonym = |value: &str, source| {
            message!(describe_configs_response::DescribeConfigsSynonym {
                name: StrBytes::from(self.name),
                value: Some(StrBytes::from(value)),
                source: source,
            })
        };
        let own = (self.source != SOURCE_DEFAULT).then(|| synonym(&self.value, self.source));
        own.into_iter().chain(self.default.as_deref().map(|value| synonym(value, SOURCE_DEFAULT))).collect()
    }
}
