//! A topic as its owner declares it, checked.

use serde_json::{Map, Value, json};

use super::name::{INTERNAL_PREFIX, NAME_BYTES_MAX, TopicName, allowed_name};
use crate::config::fields::{FieldErrors, Fields, nearest, read};
use crate::config::units::{parse_duration, parse_size};

/// The most partitions that a topic may have.
pub const PARTITIONS_MAX: u32 = 1000;

/// A checked topic definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name; not one of the broker's own.
    pub name: TopicName,
    /// 1–1,000, default 1.
    pub partitions: u32,
    /// Its settings.
    pub config: TopicConfig,
}

/// What removes old records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CleanupPolicy {
    /// Age and size.
    #[default]
    Delete,
    /// A newer record with the same key.
    Compact,
    /// Whichever comes first.
    CompactAndDelete,
}

impl CleanupPolicy {
    /// Whether a record goes when there is a newer one with its key.
    #[must_use]
    pub const fn compacts(self) -> bool {
        matches!(self, Self::Compact | Self::CompactAndDelete)
    }

    /// Whether records go by age and size.
    #[must_use]
    pub const fn deletes(self) -> bool {
        matches!(self, Self::Delete | Self::CompactAndDelete)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Compact => "compact",
            Self::CompactAndDelete => "compact,delete",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "compact" => Self::Compact,
            "compact,delete" | "delete,compact" => Self::CompactAndDelete,
            _ => Self::Delete,
        }
    }
}

/// Whose clock a record's timestamp is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's.
    #[default]
    CreateTime,
    /// The broker's, when it appends.
    LogAppendTime,
}

/// The settings of a topic. [`CONFIG_KEYS`] says how each is called in Kafka, what is allowed and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicConfig {
    /// `retention.ms`; `None` keeps records for ever.
    pub retention_ms: Option<u64>,
    /// `retention.hold.max.ms`; `None` is no limit.
    pub retention_hold_max_ms: Option<u64>,
    /// `retention.bytes` of each partition; `None` is no limit.
    pub retention_bytes: Option<u64>,
    /// `segment.bytes`.
    pub segment_bytes: u32,
    /// `segment.ms`.
    pub segment_ms: u64,
    /// `cleanup.policy`.
    pub cleanup_policy: CleanupPolicy,
    /// `delete.retention.ms`: how long a tombstone stays after it was first compacted.
    pub delete_retention_ms: u64,
    /// `min.cleanable.dirty.ratio`, in millionths.
    pub dirty_millionths_min: u32,
    /// `min.compaction.lag.ms`.
    pub compaction_lag_min_ms: u64,
    /// `max.compaction.lag.ms`; `None` is no limit.
    pub compaction_lag_max_ms: Option<u64>,
    /// `max.message.bytes`.
    pub max_message_bytes: u32,
    /// `message.timestamp.type`.
    pub message_timestamp_type: TimestampType,
}

impl Default for TopicConfig {
    fn default() -> Self {
        Self {
            retention_ms: Some(7 * 24 * 3600 * 1000),
            retention_hold_max_ms: Some(7 * 24 * 3600 * 1000),
            retention_bytes: None,
            segment_bytes: 1 << 30,
            segment_ms: 7 * 24 * 3600 * 1000,
            cleanup_policy: CleanupPolicy::Delete,
            delete_retention_ms: 24 * 3600 * 1000,
            dirty_millionths_min: MILLIONTHS / 2,
            compaction_lag_min_ms: 0,
            compaction_lag_max_ms: None,
            max_message_bytes: 1_048_588,
            message_timestamp_type: TimestampType::CreateTime,
        }
    }
}

/// What a setting may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigKind {
    /// Milliseconds from the first to the second number, both included; −1 means none where the first is −1.
    Millis(i64, i64),
    /// Bytes, in the same way.
    Bytes(i64, i64),
    /// A share from 0 to 1, to the millionth.
    Share,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// One setting: parsing, printing, DescribeConfigs and the documentation all read this table.
#[derive(Debug)]
pub struct ConfigKey {
    /// Kafka's name.
    pub name: &'static str,
    /// What is allowed.
    pub kind: ConfigKind,
    /// What it means.
    pub doc: &'static str,
    get: fn(&TopicConfig) -> String,
    set: fn(&mut TopicConfig, &str),
}

/// All settings of a topic, by name.
pub const CONFIG_KEYS: [ConfigKey; 12] = [
    ConfigKey {
        name: "cleanup.policy",
        kind: ConfigKind::Word(&["delete", "compact", "compact,delete", "delete,compact"]),
        doc: "What removes old records: delete, by age and size; compact, when there is a newer one with the same key, so \
              that every record needs one; or both.",
        get: |config| config.cleanup_policy.name().to_owned(),
        set: |config, text| config.cleanup_policy = CleanupPolicy::parse(text),
    },
    ConfigKey {
        name: "delete.retention.ms",
        kind: ConfigKind::Millis(0, i64::MAX),
        doc: "How long a compacted topic keeps a record without a value after everything that it deletes is gone, for \
              readers that have seen that.",
        get: |config| config.delete_retention_ms.to_string(),
        set: |config, text| config.delete_retention_ms = text.parse().unwrap_or(u64::MAX),
    },
    ConfigKey {
        name: "max.compaction.lag.ms",
        kind: ConfigKind::Millis(1, i64::MAX),
        doc: "What was appended so long ago is compacted, however little it is; the largest number is no limit.",
        get: |config| config.compaction_lag_max_ms.unwrap_or(i64::MAX.unsigned_abs()).to_string(),
        set: |config, text| {
            config.compaction_lag_max_ms = text.parse().ok().filter(|limit| *limit < i64::MAX.unsigned_abs());
        },
    },
    ConfigKey {
        name: "max.message.bytes",
        kind: ConfigKind::Bytes(64, 100 << 20),
        doc: "The largest record batch, as it is stored.",
        get: |config| config.max_message_bytes.to_string(),
        set: |config, text| config.max_message_bytes = number(text),
    },
    ConfigKey {
        name: "message.timestamp.type",
        kind: ConfigKind::Word(&["CreateTime", "LogAppendTime"]),
        doc: "Whose clock a record's timestamp is: the producer's, or the broker's when it appends.",
        get: |config| match config.message_timestamp_type {
            TimestampType::CreateTime => "CreateTime".to_owned(),
            TimestampType::LogAppendTime => "LogAppendTime".to_owned(),
        },
        set: |config, text| {
            let append_time = text == "LogAppendTime";
            config.message_timestamp_type =
                if append_time { TimestampType::LogAppendTime } else { TimestampType::CreateTime };
        },
    },
    ConfigKey {
        name: "min.cleanable.dirty.ratio",
        kind: ConfigKind::Share,
        doc: "A partition is compacted when so much of it, by size, has been appended since.",
        get: |config| (f64::from(config.dirty_millionths_min) / f64::from(MILLIONTHS)).to_string(),
        set: |config, text| config.dirty_millionths_min = millionths(text).unwrap_or(MILLIONTHS),
    },
    ConfigKey {
        name: "min.compaction.lag.ms",
        kind: ConfigKind::Millis(0, i64::MAX),
        doc: "What was appended less than so long ago is not compacted.",
        get: |config| config.compaction_lag_min_ms.to_string(),
        set: |config, text| config.compaction_lag_min_ms = text.parse().unwrap_or(u64::MAX),
    },
    ConfigKey {
        name: "retention.bytes",
        kind: ConfigKind::Bytes(-1, i64::MAX),
        doc: "How much each partition keeps; -1 is no limit. Whole segments are removed, the active one never.",
        get: |config| or_none(config.retention_bytes),
        set: |config, text| config.retention_bytes = text.parse().ok(),
    },
    ConfigKey {
        name: "retention.hold.max.ms",
        kind: ConfigKind::Millis(-1, i64::MAX),
        doc: "How long beyond their time records are kept that an enabled trigger has not finished; -1 is without a limit. A \
              full disk ends it too.",
        get: |config| or_none(config.retention_hold_max_ms),
        set: |config, text| config.retention_hold_max_ms = text.parse().ok(),
    },
    ConfigKey {
        name: "retention.ms",
        kind: ConfigKind::Millis(-1, i64::MAX),
        doc: "How long records are kept; -1 is for ever. Whole segments are removed, the active one never.",
        get: |config| or_none(config.retention_ms),
        set: |config, text| config.retention_ms = text.parse().ok(),
    },
    ConfigKey {
        name: "segment.bytes",
        kind: ConfigKind::Bytes(1024, i32::MAX as i64),
        doc: "The size at which a new segment begins.",
        get: |config| config.segment_bytes.to_string(),
        set: |config, text| config.segment_bytes = number(text),
    },
    ConfigKey {
        name: "segment.ms",
        kind: ConfigKind::Millis(1, i64::MAX),
        doc: "The age at which a new segment begins.",
        get: |config| config.segment_ms.to_string(),
        set: |config, text| config.segment_ms = text.parse().unwrap_or(u64::MAX),
    },
];

/// Why a setting is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No setting has this name.
    #[error("{name} is not a topic setting; these are: {allowed}")]
    UnknownName {
        /// The name.
        name: String,
        /// All names.
        allowed: String,
        /// The nearest of them, if one is near.
        suggestion: Option<String>,
    },
    /// The value is not allowed.
    #[error("{name}: found {found:?}, allowed: {allowed}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What was found.
        found: String,
        /// What is allowed.
        allowed: String,
    },
}

impl ConfigKey {
    /// The setting with this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &str) -> Result<&'static Self, ConfigError> {
        const KEYS: &[ConfigKey] = &CONFIG_KEYS;
        KEYS.iter().find(|key| key.name == name).ok_or_else(|| {
            let names = || KEYS.iter().map(|key| key.name);
            let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
            let suggestion = nearest(&shown, names());
            ConfigError::UnknownName { name: shown, allowed: names().collect::<Vec<_>>().join(", "), suggestion }
        })
    }

    /// The value in `config`, as Kafka writes it.
    #[must_use]
    pub fn get(&self, config: &TopicConfig) -> String {
        (self.get)(config)
    }

    /// The value when nothing is set.
    #[must_use]
    pub fn default_value(&self) -> String {
        self.get(&TopicConfig::default())
    }

    /// Sets the value in `config`. Numbers may have a unit, as in `7d` or `1GiB`.
    ///
    /// # Errors
    /// When it is not allowed; `config` has not changed then.
    pub fn set(&self, config: &mut TopicConfig, text: &str) -> Result<(), ConfigError> {
        let value = match self.kind {
            ConfigKind::Word(words) => words.contains(&text).then(|| text.to_owned()),
            ConfigKind::Millis(..) => {
                text.parse().ok().or_else(|| millis(text)).and_then(|number| self.in_range(number))
            }
            ConfigKind::Bytes(..) => text.parse().ok().or_else(|| bytes(text)).and_then(|number| self.in_range(number)),
            ConfigKind::Share => millionths(text).map(|_| text.to_owned()),
        };
        let Some(value) = value else {
            let found = text.chars().take(80).collect();
            return Err(ConfigError::Value { name: self.name, found, allowed: self.allowed() });
        };
        (self.set)(config, &value);
        Ok(())
    }

    /// What is allowed, for people.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self.kind {
            ConfigKind::Millis(from, to) => format!("milliseconds from {from} to {to}, or a duration such as 7d"),
            ConfigKind::Bytes(from, to) => format!("bytes from {from} to {to}, or a size such as 1GiB"),
            ConfigKind::Share => "a number from 0 to 1".to_owned(),
            ConfigKind::Word(words) => words.join(" or "),
        }
    }

    fn in_range(&self, number: i64) -> Option<String> {
        let (ConfigKind::Millis(from, to) | ConfigKind::Bytes(from, to)) = self.kind else { return None };
        (from..=to).contains(&number).then(|| number.to_string())
    }
}

fn millis(text: &str) -> Option<i64> {
    parse_duration(text).ok().and_then(|duration| i64::try_from(duration.as_millis()).ok())
}

fn bytes(text: &str) -> Option<i64> {
    parse_size(text).ok().and_then(|size| i64::try_from(size).ok())
}

/// All of something, in millionths.
const MILLIONTHS: u32 = 1_000_000;

fn millionths(text: &str) -> Option<u32> {
    let share: f64 = text.parse().ok().filter(|share| (0.0..=1.0).contains(share))?;
    // Between 0 and a million, so nothing is cut off.
    Some((share * f64::from(MILLIONTHS)).round() as u32)
}

/// Texts come here only after their range was checked.
fn number(text: &str) -> u32 {
    text.parse().unwrap_or(u32::MAX)
}

fn or_none(number: Option<u64>) -> String {
    number.map_or_else(|| "-1".to_owned(), |number| number.to_string())
}

impl TopicConfig {
    /// Reads settings under Kafka's names; the rest have their defaults.
    ///
    /// # Errors
    /// The first setting that is wrong.
    pub fn from_pairs<'p>(pairs: impl IntoIterator<Item = (&'p str, &'p str)>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        for (name, value) in pairs {
            ConfigKey::find(name)?.set(&mut config, value)?;
        }
        config.check()
    }

    /// What no setting can be wrong in by itself.
    fn check(self) -> Result<Self, ConfigError> {
        match self.compaction_lag_max_ms {
            Some(found) if found < self.compaction_lag_min_ms => Err(ConfigError::Value {
                name: "max.compaction.lag.ms",
                found: found.to_string(),
                allowed: format!("at least min.compaction.lag.ms, which is {}", self.compaction_lag_min_ms),
            }),
            _ => Ok(self),
        }
    }

    /// The settings that differ from their defaults, under Kafka's names.
    #[must_use]
    pub fn overrides(&self) -> Vec<(&'static str, String)> {
        let values = CONFIG_KEYS.iter().map(|key| (key.name, key.get(self), key.default_value()));
        values.filter_map(|(name, value, default)| (value != default).then_some((name, value))).collect()
    }
}

impl TopicSpec {
    /// Reads a definition such as `{"topic": "flights", "partitions": 3, "config": {"retention.ms": "7d"}}`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_json(value: &Value) -> Result<Self, FieldErrors> {
        read(value, "topic", |fields| {
            let name = new_topic_name(fields, "topic");
            let partitions = fields.integer("partitions", 1..=PARTITIONS_MAX, 1);
            let config = read_config(fields);
            Some(Self { name: name?, partitions, config })
        })
    }

    /// The definition in the shape that [`TopicSpec::from_json`] reads.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut definition = json!({ "topic": self.name.as_str(), "partitions": self.partitions });
        let overrides = self.config.overrides();
        if !overrides.is_empty() {
            let config: Map<String, Value> =
                overrides.into_iter().map(|(name, value)| (name.to_owned(), config_value(&value))).collect();
            definition["config"] = Value::Object(config);
        }
        definition
    }
}

/// The name of a topic that someone else than the broker writes to.
pub(crate) fn new_topic_name(fields: &mut Fields<'_>, field: &'static str) -> Option<TopicName> {
    let name = fields.name(field, TopicName::new, &allowed_name(NAME_BYTES_MAX))?;
    if name.is_internal() {
        fields.wrong(field, format!("a name that does not begin with {INTERNAL_PREFIX}, which is the broker's own"));
        return None;
    }
    Some(name)
}

fn config_value(text: &str) -> Value {
    text.parse::<i64>().map_or_else(|_| Value::from(text), Value::from)
}

fn read_config(fields: &mut Fields<'_>) -> TopicConfig {
    let mut config = TopicConfig::default();
    for (name, value) in fields.entries("config") {
        let text = match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match ConfigKey::find(name).and_then(|key| key.set(&mut config, &text)) {
            Ok(()) => {}
            Err(ConfigError::Value { allowed, .. }) => fields.wrong_below("config", name, Some(value), allowed),
            Err(ConfigError::UnknownName { name, allowed, suggestion }) => {
                fields.unknown_below("config", &name, allowed, suggestion);
            }
        }
    }
    let mut value =
        |name: &str| fields.entries("config").find(|(found, _)| *found == name).map(|(_, value)| value.clone());
    match config.clone().check() {
        Ok(config) => config,
        Err(ConfigError::Value { name, allowed, .. }) => {
            let found = value(name);
            fields.wrong_below("config", name, found.as_ref(), allowed);
            config
        }
        Err(ConfigError::UnknownName { .. }) => config,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(value: &Value) -> Vec<String> {
        TopicSpec::from_json(value).unwrap_err().0.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_definition_reads_and_prints_back_the_same() {
        let short = TopicSpec::from_json(&json!({"topic": "flights"})).unwrap();
        assert_eq!((short.partitions, &short.config), (1, &TopicConfig::default()));
        assert_eq!(short.to_json(), json!({"topic": "flights", "partitions": 1}));
        let full = json!({"topic": "a", "partitions": 1000, "config": {
            "retention.ms": "1d", "retention.bytes": "1GiB", "segment.bytes": "64KiB", "segment.ms": "10m",
            "cleanup.policy": "delete,compact", "max.message.bytes": 2000, "message.timestamp.type": "LogAppendTime",
            "delete.retention.ms": "1h", "min.cleanable.dirty.ratio": 0.01, "min.compaction.lag.ms": 5,
            "max.compaction.lag.ms": "1m",
        }});
        let spec = TopicSpec::from_json(&full).unwrap();
        assert_eq!((spec.config.retention_ms, spec.config.retention_bytes), (Some(86_400_000), Some(1 << 30)));
        assert_eq!(
            (spec.config.segment_bytes, spec.config.segment_ms, spec.config.max_message_bytes),
            (65_536, 600_000, 2000)
        );
        assert_eq!(spec.config.message_timestamp_type, TimestampType::LogAppendTime);
        assert_eq!(
            (spec.config.cleanup_policy, spec.config.delete_retention_ms),
            (CleanupPolicy::CompactAndDelete, 3_600_000)
        );
        assert_eq!(
            (spec.config.dirty_millionths_min, spec.config.compaction_lag_min_ms, spec.config.compaction_lag_max_ms),
            (10_000, 5, Some(60_000))
        );
        assert_eq!(TopicSpec::from_json(&spec.to_json()).unwrap(), spec);
        let forever = TopicSpec::from_json(&json!({"topic": "a", "config": {"retention.ms": -1}})).unwrap();
        assert_eq!(forever.config.retention_ms, None);
        assert_eq!(TopicSpec::from_json(&forever.to_json()).unwrap(), forever);
    }

    #[test]
    fn every_field_names_itself_when_it_is_wrong() {
        for (field, wrong) in [
            (
                "topic",
                vec![json!(null), json!(3), json!([]), json!({}), json!(""), json!("a/b"), json!("__tripline.x")],
            ),
            ("partitions", vec![json!(null), json!(0), json!(1001), json!("3"), json!(1.5), json!(-1), json!([3])]),
            ("config", vec![json!(null), json!([]), json!("x"), json!(3)]),
        ] {
            for value in wrong {
                let mut definition = json!({"topic": "t"});
                definition[field] = value.clone();
                let expected = if field == "topic" { "topic".to_owned() } else { format!("topic.{field}") };
                assert_eq!(paths(&definition), [expected], "{value}");
            }
        }
        assert_eq!(paths(&json!({})), ["topic"]);
        let error = TopicSpec::from_json(&json!({"topic": "t", "partition": 3})).unwrap_err().0.remove(0);
        assert_eq!((error.path.as_str(), error.suggestion.as_deref()), ("topic.partition", Some("partitions")));
    }

    #[test]
    fn every_setting_names_itself_when_it_is_wrong() {
        for key in &CONFIG_KEYS {
            for value in
                [json!(null), json!(-2), json!("x"), json!(1.5), json!([]), json!({}), json!(true), json!(1e30)]
            {
                let expected = format!("topic.config.{}", key.name);
                assert_eq!(paths(&json!({"topic": "t", "config": {key.name: value}})), [expected]);
            }
        }
        let error =
            TopicSpec::from_json(&json!({"topic": "t", "config": {"retention_ms": 1}})).unwrap_err().0.remove(0);
        assert_eq!(
            (error.path.as_str(), error.suggestion.as_deref()),
            ("topic.config.retention_ms", Some("retention.ms"))
        );
        let policy = TopicConfig::from_pairs([("cleanup.policy", "keep")]).unwrap_err();
        let allowed = "delete or compact or compact,delete or delete,compact";
        assert_eq!(policy.to_string(), format!("cleanup.policy: found \"keep\", allowed: {allowed}"));
    }

    #[test]
    fn what_waits_for_compaction_may_not_have_to_go_before_it_may() {
        let pairs = [("max.compaction.lag.ms", "9"), ("min.compaction.lag.ms", "10")];
        let error = TopicConfig::from_pairs(pairs).unwrap_err();
        let expected = "max.compaction.lag.ms: found \"9\", allowed: at least min.compaction.lag.ms, which is 10";
        assert_eq!(error.to_string(), expected);
        let definition = json!({"topic": "t", "config": {"max.compaction.lag.ms": 9, "min.compaction.lag.ms": "10ms"}});
        assert_eq!(paths(&definition), ["topic.config.max.compaction.lag.ms"]);
        let none = TopicConfig::from_pairs([("max.compaction.lag.ms", "9223372036854775807")]).unwrap();
        assert_eq!(none, TopicConfig::default());
    }

    #[test]
    fn a_share_is_a_number_from_0_to_1() {
        for (text, expected) in
            [("0", Some(0)), ("0.0", Some(0)), ("1", Some(1_000_000)), ("0.1", Some(100_000)), ("5e-1", Some(500_000))]
        {
            assert_eq!(millionths(text), expected, "{text}");
        }
        for text in ["-0.1", "1.01", "NaN", "inf", "", "50%"] {
            assert_eq!(millionths(text), None, "{text}");
        }
        let ratio = TopicConfig::from_pairs([("min.cleanable.dirty.ratio", "0.25")]).unwrap();
        assert_eq!(ratio.overrides(), [("min.cleanable.dirty.ratio", "0.25".to_owned())]);
    }

    #[test]
    fn the_table_is_sorted_and_every_default_is_allowed() {
        assert!(CONFIG_KEYS.is_sorted_by_key(|key| key.name));
        for key in &CONFIG_KEYS {
            let mut config = TopicConfig::default();
            key.set(&mut config, &key.default_value()).unwrap();
            assert_eq!(config, TopicConfig::default(), "{}", key.name);
        }
    }
}
