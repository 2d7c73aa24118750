//! What a trigger reads: `input: { topic: flights, start: earliest }`, or several `topics`, or a `pattern`.
//!
//! A pattern is a wildcard over the whole name: `*` stands for any text, also none, everything else for itself. Kafka
//! clients subscribe by regular expression; here that would be a trap, because a dot is an ordinary character of names:
//! `flights.*` would also take `flightsX`. So nothing but the star is special, and the other signs of an expression are
//! refused by name instead of meaning something else.

use std::fmt;

use serde_json::{Value, json};
use tripline_storage::Offset;

use super::cluster::{self, cluster};
use super::{InputSpec, StartPosition};
use crate::config::fields::Fields;
use crate::topic::name::{NAME_BYTES_MAX, TopicName, allowed_name};
use crate::trigger::filter::Wildcard;

/// The most topics that a definition names.
pub const TOPICS_MAX: usize = 100;

const START: &str = "earliest, latest, {offset: N} or {time: \"2026-01-31T12:00:00Z\"}";
const ONE_OF: &str = "one of `topic`, `topics` and `pattern`, not several";

/// Which topics a trigger reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicSelection {
    /// This one.
    One(TopicName),
    /// These, 1–[`TOPICS_MAX`], none twice.
    List(Vec<TopicName>),
    /// All that there are with such a name, also those that are made later.
    Pattern(TopicPattern),
}

/// A pattern for names of topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern {
    text: String,
    wildcard: Wildcard,
}

impl TopicPattern {
    /// Reads a pattern: 1–249 bytes, the characters of names and at least one `*`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.len() > NAME_BYTES_MAX {
            return Err(format!("it has {} bytes", text.len()));
        }
        if let Some(other) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-*".contains(*c))) {
            return Err(format!("the character {other:?} is not allowed: it is no regular expression"));
        }
        if !text.contains('*') {
            return Err("it has no `*`: name one topic as `topic`".to_owned());
        }
        Ok(Self { text: text.to_owned(), wildcard: Wildcard::parse(text)? })
    }

    /// Whether a topic with this name is read. Names that begin with two underscores are the broker's and other tools'
    /// own: never.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        !name.starts_with("__") && self.wildcard.matches(name)
    }
}

impl TopicSelection {
    /// The topics that are named one by one; they must exist.
    #[must_use]
    pub fn named(&self) -> &[TopicName] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::List(names) => names,
            Self::Pattern(_) => &[],
        }
    }

    /// Whether a topic with this name is read, if it exists.
    #[must_use]
    pub fn selects(&self, name: &str) -> bool {
        match self {
            Self::Pattern(pattern) => pattern.matches(name),
            named => named.named().iter().any(|named| named.as_str() == name),
        }
    }

    /// The field that it is written in.
    #[must_use]
    pub const fn field(&self) -> &'static str {
        match self {
            Self::One(_) => "topic",
            Self::List(_) => "topics",
            Self::Pattern(_) => "pattern",
        }
    }

    fn to_json(&self) -> Value {
        match self {
            Self::One(name) => json!(name),
            Self::List(names) => json!(names),
            Self::Pattern(pattern) => json!(pattern.text),
        }
    }
}

impl fmt::Display for TopicSelection {
    /// The name, the names with commas, or the pattern.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pattern(pattern) => f.write_str(&pattern.text),
            named => named.named().iter().enumerate().try_for_each(|(index, name)| {
                f.write_str(if index == 0 { "" } else { ", " })?;
                name.fmt(f)
            }),
        }
    }
}

pub(super) fn print(input: &InputSpec) -> Value {
    let mut printed = json!({ input.topics.field(): input.topics.to_json(), "start": print_start(&input.start) });
    if let Some(address) = &input.cluster {
        printed["cluster"] = cluster::print(address);
    }
    printed
}

fn print_start(start: &StartPosition) -> Value {
    match start {
        StartPosition::Earliest => json!("earliest"),
        StartPosition::Latest => json!("latest"),
        StartPosition::Offset(offset) => json!({ "offset": offset.get() }),
        StartPosition::Time(time) => json!({ "time": time.to_string() }),
    }
}

pub(super) fn input(fields: &mut Fields<'_>) -> Option<InputSpec> {
    let (as_input, as_source) = (fields.value("input").is_some(), fields.value("source").is_some());
    match (as_input, as_source) {
        (true, true) => {
            fields.wrong("source", "`input` or `source`, which are the same, but not both");
            None
        }
        (false, false) => {
            fields.wrong("input", "an object such as {topic: flights, start: earliest}");
            None
        }
        _ => fields.object(if as_input { "input" } else { "source" }, |fields| {
            let topics = selection(fields);
            let start = start(fields);
            let cluster = cluster(fields);
            let topics = topics?;
            if matches!(start, StartPosition::Offset(_)) && !matches!(topics, TopicSelection::One(_)) {
                fields.wrong("start", "earliest, latest or {time: …}: an offset means something in one `topic` only");
            }
            Some(InputSpec { topics, start, cluster })
        }),
    }
}

fn selection(fields: &mut Fields<'_>) -> Option<TopicSelection> {
    let written = ["topic", "topics", "pattern"].map(|name| fields.value(name).map(|_| name));
    let mut written = written.into_iter().flatten();
    let (first, second) = (written.next(), written.next());
    if let Some(second) = second {
        fields.wrong(second, ONE_OF);
        return None;
    }
    match first {
        Some("topics") => topics(fields).map(TopicSelection::List),
        Some("pattern") => pattern(fields).map(TopicSelection::Pattern),
        Some(_) => fields.name("topic", TopicName::new, &allowed_name(NAME_BYTES_MAX)).map(TopicSelection::One),
        None => {
            let names = allowed_name(NAME_BYTES_MAX);
            fields.wrong("topic", format!("{names}; or a list of them as `topics`, or a `pattern`"));
            None
        }
    }
}

fn topics(fields: &mut Fields<'_>) -> Option<Vec<TopicName>> {
    let list = match fields.value("topics") {
        Some(Value::Array(list)) if (1..=TOPICS_MAX).contains(&list.len()) => list,
        _ => {
            fields.wrong("topics", format!("a list of 1 to {TOPICS_MAX} names of topics, such as [flights, trains]"));
            return None;
        }
    };
    let mut names: Vec<TopicName> = Vec::new();
    for (index, written) in list.iter().enumerate() {
        let allowed = allowed_name(NAME_BYTES_MAX);
        match written.as_str().map(TopicName::new) {
            Some(Ok(name)) if names.contains(&name) => {
                fields.wrong_at("topics", index, written, "each topic once");
            }
            Some(Ok(name)) => names.push(name),
            Some(Err(reason)) => fields.wrong_at("topics", index, written, format!("{allowed}; {reason}")),
            None => fields.wrong_at("topics", index, written, allowed),
        }
    }
    (names.len() == list.len()).then_some(names)
}

fn pattern(fields: &mut Fields<'_>) -> Option<TopicPattern> {
    const ALLOWED: &str =
        "1 to 249 of the characters A-Z a-z 0-9 . _ - and `*`, which stands for any text, such as flights.*";
    let read = fields.optional_text("pattern", ALLOWED).map(TopicPattern::new)?;
    read.map_err(|reason| fields.wrong("pattern", format!("{ALLOWED}; {reason}"))).ok()
}

fn start(fields: &mut Fields<'_>) -> StartPosition {
    match fields.value("start") {
        Some(Value::Object(map)) if map.len() == 1 => {
            let position = fields.object("start", |fields| {
                let offset = fields.value("offset").map(|offset| offset.as_i64().and_then(Offset::new));
                let time = fields.value("time").map(|time| time.as_str().and_then(|time| time.parse().ok()));
                match (offset, time) {
                    (Some(Some(offset)), _) => Some(StartPosition::Offset(offset)),
                    (_, Some(Some(time))) => Some(StartPosition::Time(time)),
                    (Some(None), _) => {
                        fields.wrong("offset", "a whole number from 0");
                        None
                    }
                    (_, Some(None)) => {
                        fields.wrong("time", "a time such as 2026-01-31T12:00:00Z (RFC 3339)");
                        None
                    }
                    (None, None) => None,
                }
            });
            position.unwrap_or_default()
        }
        Some(Value::String(word)) if word == "earliest" => StartPosition::Earliest,
        Some(Value::String(word)) if word == "latest" => StartPosition::Latest,
        Some(_) => {
            fields.wrong("start", START);
            StartPosition::Latest
        }
        None => StartPosition::Latest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trigger::spec::TriggerSpec;

    fn with(input: &Value, more: &Value) -> Value {
        let mut definition = json!({ "trigger": "t", "input": input, "function": "f" });
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        definition
    }

    /// Path and what is allowed of all that is wrong with an input.
    fn wrong(input: &Value, more: &Value) -> Vec<(String, String)> {
        let errors = TriggerSpec::from_json(&with(input, more)).unwrap_err();
        errors.0.into_iter().map(|error| (error.path, error.allowed)).collect()
    }

    fn read(input: &Value) -> TopicSelection {
        let spec = TriggerSpec::from_json(&with(input, &json!({}))).unwrap();
        assert_eq!(TriggerSpec::from_json(&spec.to_json()).unwrap(), spec);
        spec.input.topics
    }

    #[test]
    fn a_topic_a_list_and_a_pattern_are_read_and_print_back_the_same() {
        let one = read(&json!({"topic": "a"}));
        let list = read(&json!({"topics": ["b", "a"], "start": "earliest"}));
        let pattern = read(&json!({"pattern": "fl*.*-eu", "start": {"time": "2026-01-31T12:00:00Z"}}));
        assert_eq!([&one, &list, &pattern].map(ToString::to_string), ["a", "b, a", "fl*.*-eu"]);
        assert!(one.selects("a") && !one.selects("b"));
        assert!(list.selects("a") && list.selects("b") && !list.selects("ab"));
        assert!(pattern.selects("flights.late-eu") && !pattern.selects("flights-eu"));
        assert_eq!([&one, &list, &pattern].map(|topics| topics.named().len()), [1, 2, 0]);
    }

    #[test]
    fn a_star_is_any_text_a_dot_is_a_dot_and_internal_names_never_match() {
        let matches = |pattern: &str, name: &str| TopicPattern::new(pattern).unwrap().matches(name);
        for (pattern, name) in [("*", "a"), ("flights.*", "flights."), ("flights.*", "flights.x.y"), ("*a*", "xay")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("flights.*", "flights"),
            ("flights.*", "flightsXy"),
            ("*.dlq", "a.dlq2"),
            ("*", "__tripline.traces"),
            ("__*", "__consumer_offsets"),
        ] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        // As long as it can be, against a name that it just misses.
        let pattern = TopicPattern::new(&format!("*{}b*", "a".repeat(240))).unwrap();
        assert!(!pattern.matches(&"a".repeat(249)));
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        for (pattern, reason) in [
            ("", "no `*`"),
            ("flights", "name one topic as `topic`"),
            ("flights\\..*", "'\\\\' is not allowed: it is no regular expression"),
            ("(a|b)*", "'('"),
            ("a b*", "' '"),
            ("a**", "side by side"),
            (&format!("{}*", "a".repeat(249)), "250 bytes"),
        ] {
            let errors = wrong(&json!({ "pattern": pattern }), &json!({}));
            assert_eq!(errors[0].0, "trigger.input.pattern", "{pattern}");
            assert!(errors[0].1.contains(reason), "{pattern}: {}", errors[0].1);
        }
    }

    #[test]
    fn exactly_one_of_the_three_is_written() {
        for (input, path) in [
            (json!({}), "topic"),
            (json!({"topic": "a", "topics": ["b"]}), "topics"),
            (json!({"topic": "a", "pattern": "b*"}), "pattern"),
            (json!({"topics": ["a"], "pattern": "b*"}), "pattern"),
        ] {
            let errors = wrong(&input, &json!({}));
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert_eq!(errors[0].0, format!("trigger.input.{path}"), "{input}");
            assert!(
                ["topic", "topics", "pattern"]
                    .iter()
                    .all(|name| errors[0].1.contains(&format!("`{name}`")) || path == *name)
            );
        }
    }

    #[test]
    fn a_list_has_names_each_once_and_not_too_many() {
        let many: Vec<String> = (0..=TOPICS_MAX).map(|index| format!("t{index}")).collect();
        for (topics, path) in [
            (json!([]), "topics"),
            (json!("a"), "topics"),
            (json!(many), "topics"),
            (json!(["a", 3]), "topics[1]"),
            (json!(["a", "b/c"]), "topics[1]"),
            (json!(["a", "b", "a"]), "topics[2]"),
        ] {
            let errors = wrong(&json!({ "topics": topics }), &json!({}));
            let paths: Vec<&str> = errors.iter().map(|(path, _)| path.as_str()).collect();
            assert_eq!(paths, [format!("trigger.input.{path}")], "{topics}");
        }
        assert!(TriggerSpec::from_json(&with(&json!({ "topics": many[1..] }), &json!({}))).is_ok());
    }

    #[test]
    fn an_offset_starts_one_topic_only() {
        let start = json!({"offset": 3});
        for input in [json!({"topics": ["a"], "start": start}), json!({"pattern": "a*", "start": start})] {
            let errors = wrong(&input, &json!({}));
            assert_eq!(errors[0].0, "trigger.input.start");
            assert!(errors[0].1.contains("one `topic` only"));
        }
    }

    #[test]
    fn what_a_trigger_writes_it_does_not_read() {
        for input in [json!({"topics": ["a", "a.dlq"]}), json!({"pattern": "a.*"})] {
            for (field, value, path) in [
                ("dead_letter", json!({"topic": "a.dlq"}), "trigger.dead_letter.topic"),
                ("destinations", json!({"results": {"topic": "a.dlq"}}), "trigger.destinations.results.topic"),
            ] {
                let errors = wrong(&input, &json!({ field: value }));
                assert_eq!(errors[0].0, path);
                assert!(errors[0].1.contains("feed for ever"), "{}", errors[0].1);
            }
        }
    }

    #[cfg(feature = "cluster")]
    #[test]
    fn what_is_read_on_a_cluster_is_selected_in_the_same_ways() {
        let cluster = json!({"bootstrap_servers": "h:1"});
        for (field, value) in [("topic", json!("a")), ("topics", json!(["a", "b"])), ("pattern", json!("a*"))] {
            let written = with(&json!({ field: value, "cluster": cluster }), &json!({}));
            let spec = TriggerSpec::from_json(&written).unwrap();
            assert!(spec.input.topics.selects("a") && spec.input.cluster.is_some());
            assert_eq!(TriggerSpec::from_json(&spec.to_json()).unwrap(), spec);
        }
    }
}
