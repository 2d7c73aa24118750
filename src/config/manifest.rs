//! A YAML file with topics, functions, triggers and schedules, one document each.
//!
//! The kinds are told apart by the key that names the definition: `topic:`, `function:`, `trigger:`, `schedule:`. A
//! trigger also has a `function:` and a schedule a `topic:`, so `trigger:` and `schedule:` decide first.

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};
use serde_saphyr::{Options, Spanned};

use super::fields::{FieldError, FieldErrors, error, nearest};
use crate::function::spec::FunctionDefinition;
use crate::source::schedule::spec::ScheduleSpec;
use crate::topic::spec::TopicSpec;
use crate::trigger::spec::TriggerSpec;

/// The largest file, in bytes.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// The most documents in a file.
pub const DOCUMENTS_MAX: usize = 1000;
/// How deep a document may be nested.
pub const DEPTH_MAX: usize = 64;
/// The most aliases (`*name`) in a file; what they stand for counts towards the nodes.
pub const ALIASES_MAX: usize = 100;
/// The most values in a file, aliases followed.
pub const NODES_MAX: usize = 200_000;

const KINDS: [&str; 4] = ["topic", "function", "trigger", "schedule"];

/// One document of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Definition {
    /// `topic:`.
    Topic(TopicSpec),
    /// `function:`.
    Function(FunctionDefinition),
    /// `trigger:`.
    Trigger(Box<TriggerSpec>),
    /// `schedule:`.
    Schedule(Box<ScheduleSpec>),
}

/// What is wrong with one document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DocumentError {
    /// Which, from 1; empty ones are not counted.
    pub document: usize,
    /// The line of the file where it begins, from 1.
    pub line: u64,
    /// Its wrong fields.
    pub errors: FieldErrors,
}

/// Why a file is refused. Nothing of it is applied then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is larger than [`FILE_BYTES_MAX`].
    #[error("the file has {size_bytes} bytes, at most {FILE_BYTES_MAX} are allowed")]
    TooLarge {
        /// How large.
        size_bytes: usize,
    },
    /// It is not YAML, or nested, repeated or long beyond measure.
    #[error("{message}")]
    Syntax {
        /// Where, from 1; 0 when it is not known.
        line: u64,
        /// What is wrong there, with the place and the lines around it.
        message: String,
    },
    /// It has more than [`DOCUMENTS_MAX`] documents.
    #[error("the file has {found} documents, at most {DOCUMENTS_MAX} are allowed")]
    TooManyDocuments {
        /// How many.
        found: usize,
    },
    /// Documents have wrong fields.
    #[error("{}", Lines(.0))]
    Documents(Vec<DocumentError>),
}

struct Lines<'a>(&'a [DocumentError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.0.iter().flat_map(|document| document.errors.0.iter().map(move |error| (document, error)));
        for (index, (document, error)) in errors.enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}document {} (line {}): {error}", document.document, document.line)?;
        }
        Ok(())
    }
}

impl Definition {
    /// Reads one definition, whatever its kind.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_json(value: &Value) -> Result<Self, FieldErrors> {
        let Value::Object(fields) = value else {
            return Err(one(error("definition", Some(value), format!("an object with one of {}", KINDS.join(", ")))));
        };
        if fields.contains_key("trigger") {
            TriggerSpec::from_json(value).map(|spec| Self::Trigger(Box::new(spec)))
        } else if fields.contains_key("schedule") {
            ScheduleSpec::from_json(value).map(|spec| Self::Schedule(Box::new(spec)))
        } else if fields.contains_key("function") {
            FunctionDefinition::from_json(value).map(Self::Function)
        } else if fields.contains_key("topic") {
            TopicSpec::from_json(value).map(Self::Topic)
        } else {
            Err(one(unknown_kind(fields)))
        }
    }

    /// The key that tells its kind, and its name.
    #[must_use]
    pub fn kind_and_name(&self) -> (&'static str, &str) {
        match self {
            Self::Topic(spec) => ("topic", spec.name.as_str()),
            Self::Function(definition) => ("function", &definition.spec.name),
            Self::Trigger(spec) => ("trigger", spec.name.as_str()),
            Self::Schedule(spec) => ("schedule", spec.name.as_str()),
        }
    }
}

/// Reads a file.
///
/// # Errors
/// Why all of it is refused.
pub fn parse(text: &str) -> Result<Vec<Definition>, ManifestError> {
    let mut definitions = Vec::new();
    let mut errors = Vec::new();
    let mut seen = HashMap::new();
    for (index, Spanned { value, defined, .. }) in documents(text)?.into_iter().enumerate() {
        let (document, line) = (index + 1, defined.line());
        let fresh = Definition::from_json(&value).and_then(|definition| {
            let (kind, name) = definition.kind_and_name();
            match seen.insert((kind, name.to_owned()), line) {
                None => Ok(definition),
                Some(before) => {
                    let allowed = format!("a name that no other {kind} in this file has; line {before} has it");
                    Err(one(error(kind, Some(&Value::from(name)), allowed)))
                }
            }
        });
        match fresh {
            Ok(definition) => definitions.push(definition),
            Err(wrong) => errors.push(DocumentError { document, line, errors: wrong }),
        }
    }
    if errors.is_empty() { Ok(definitions) } else { Err(ManifestError::Documents(errors)) }
}

fn documents(text: &str) -> Result<Vec<Spanned<Value>>, ManifestError> {
    if text.len() > FILE_BYTES_MAX {
        return Err(ManifestError::TooLarge { size_bytes: text.len() });
    }
    let documents = serde_saphyr::from_multiple_with_options::<Spanned<Value>>(text, options()).map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let message = error.to_string();
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        ManifestError::Syntax { line, message: message.chars().take(1000).collect() }
    })?;
    let documents: Vec<_> = documents.into_iter().filter(|document| !document.value.is_null()).collect();
    match documents.len() {
        0..=DOCUMENTS_MAX => Ok(documents),
        found => Err(ManifestError::TooManyDocuments { found }),
    }
}

/// Only `true` and `false` are booleans: `no` is a word, as in `jitter: no`, which then gets a clear answer.
fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_aliases: ALIASES_MAX,
            max_anchors: ALIASES_MAX,
            max_nodes: NODES_MAX,
            max_documents: DOCUMENTS_MAX * 2,
        },
        strict_booleans: true,
    }
}

fn one(error: FieldError) -> FieldErrors {
    FieldErrors(vec![error])
}

fn unknown_kind(fields: &Map<String, Value>) -> FieldError {
    let suggestion = fields.keys().find_map(|name| nearest(name, KINDS));
    let names: Vec<&str> = fields.keys().map(String::as_str).collect();
    let found = Value::from(names.join(", "));
    let allowed = format!("an object with one of {}", KINDS.join(", "));
    FieldError { suggestion, ..error("definition", Some(&found), allowed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
# what a user writes
topic: flights
partitions: 3
---
function: notify
runtime: python3
code: ./notify.py
handler: notify.handler
instances: { min: 0, max: 4, concurrency: 1, idle: 60s }
environment: { TABLE: late }
---
trigger: slow-flights
input:    { topic: flights, start: earliest }
filter:   { data: { delay: [ { numeric: [ ">", 60 ] } ] } }
window:   { count: 100, interval: 500ms, bytes: 1MiB }
order:    partition
concurrency: 8
function: notify
retry:    { initial: 200ms, factor: 2, max_interval: 60s, max_attempts: 10, jitter: full, max_age: 24h }
errors_tolerance: all
dead_letter: { topic: flights.dlq }
---
schedule: nightly
at: 2026-12-01T08:00:00
timezone: Europe/Berlin
topic: ticks
data: { any: json }
---
"#;

    fn errors(text: &str) -> Vec<(usize, u64, String)> {
        match parse(text).unwrap_err() {
            ManifestError::Documents(documents) => {
                let path = |error: &DocumentError| (error.document, error.line, error.errors.0[0].path.clone());
                documents.iter().map(path).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_holds_definitions_of_all_kinds_in_their_order() {
        let definitions = parse(FILE).unwrap();
        let names: Vec<_> = definitions.iter().map(Definition::kind_and_name).collect();
        assert_eq!(
            names,
            [("topic", "flights"), ("function", "notify"), ("trigger", "slow-flights"), ("schedule", "nightly")]
        );
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn every_wrong_document_is_told_with_its_line() {
        let text = "topic: a\npartitions: 0\n---\ntopic: b\n---\n\ntrigger: t\ninput: { topic: b }\nfunction: f\nwindow: { count: no }\n---\nschedule: { cron: '* * * * *' }\n---\ntriger: x\n---\n- 1\n";
        let expected = [
            (1, 1, "topic.partitions"),
            (3, 7, "trigger.window.count"),
            (4, 12, "schedule"),
            (5, 14, "definition"),
            (6, 16, "definition"),
        ];
        assert_eq!(errors(text), expected.map(|(document, line, path)| (document, line, path.to_owned())));
        let text = parse(text).unwrap_err().to_string();
        assert!(
            text.contains("document 3 (line 7): trigger.window.count: found \"no\", allowed: a whole number"),
            "{text}"
        );
        assert!(text.contains("did you mean `trigger`?"), "{text}");
    }

    #[test]
    fn a_name_may_be_used_once_per_kind() {
        let text = "topic: a\n---\nfunction: a\nruntime: http\nurl: http://x/\n---\ntopic: a\n";
        assert_eq!(errors(text), [(3, 7, "topic".to_owned())]);
    }

    #[test]
    fn what_is_not_yaml_is_told_with_its_line() {
        for (text, line) in [("topic: a\n---\ntopic: [\n", 3), ("topic: a\ntopic: b\n", 2), ("a: *nobody\n", 1)] {
            match parse(text).unwrap_err() {
                ManifestError::Syntax { line: found, message } => assert_eq!(found, line, "{message}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn files_beyond_measure_are_refused() {
        assert_eq!(
            parse(&" ".repeat(FILE_BYTES_MAX + 1)),
            Err(ManifestError::TooLarge { size_bytes: FILE_BYTES_MAX + 1 })
        );
        let deep = format!("topic: {}{}", "[".repeat(100), "]".repeat(100));
        assert!(matches!(parse(&deep), Err(ManifestError::Syntax { .. })));
        let many = "topic: a\n---\n".repeat(DOCUMENTS_MAX + 1);
        assert_eq!(parse(&many), Err(ManifestError::TooManyDocuments { found: DOCUMENTS_MAX + 1 }));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..9 {
            let below = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [below.as_str(); 10].join(", ")));
        }
        assert!(matches!(parse(&bomb), Err(ManifestError::Syntax { .. })));
    }
}
