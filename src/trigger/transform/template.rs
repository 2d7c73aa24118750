//! Templates: text with placeholders.
//!
//! A template is JSON when it is JSON with any value in each placeholder's place; otherwise it is plain text, and its
//! result is that text as a JSON string. Placeholders in a string literal, and all of a plain text, take texts as they
//! are and other values as their JSON text, escaped so that the literal holds exactly that; placeholders elsewhere take
//! JSON values. A template that begins as JSON begins (`{`, `[` or `"`) and is not is refused: it would become a text
//! by one forgotten comma.

use serde_json::Value;

use super::extract::{Extracted, missing};
use super::output::Output;
use super::path::{Budget, Path};
use super::{Failure, Origin};
use crate::event::time_text;

mod compile;

#[cfg(test)]
mod tests;

pub(super) use compile::{TemplateParts, parts};

/// The longest template, in characters.
pub const TEMPLATE_CHARS_MAX: usize = 10_240;
/// How many values a template may name.
pub const VALUES_MAX: usize = 100;
/// How long the name of a value may be, in bytes.
pub(super) const VALUE_NAME_BYTES_MAX: usize = 64;
/// What the names begin with that speak of the record.
pub(super) const RESERVED_PREFIX: &str = "tripline.";

/// Names that need no path. They speak of the record in every step of a chain.
///
/// `tripline.event` is the event as functions get it; `tripline.event.json` is its JSON text, as a text. The others are
/// `topic`, `partition`, `offset`, `key` and `timestamp` (milliseconds since 1970) as filters see them, and `time`, the
/// timestamp in RFC 3339.
pub const RESERVED: [&str; 8] = [
    "tripline.event",
    "tripline.event.json",
    "tripline.key",
    "tripline.offset",
    "tripline.partition",
    "tripline.time",
    "tripline.timestamp",
    "tripline.topic",
];

/// A compiled template.
#[derive(Debug)]
pub(super) struct Template {
    parts: Box<[Part]>,
    /// What placeholders name, each once.
    slots: Box<[Slot]>,
    strict: bool,
}

#[derive(Debug)]
enum Part {
    /// JSON text as it is.
    Text(Box<[u8]>),
    /// A JSON value.
    Value { slot: usize },
    /// Inside a string literal.
    Content { slot: usize },
}

#[derive(Debug)]
pub(super) enum Slot {
    Path(Path),
    /// The event as functions get it.
    Event,
    /// The same, as a text.
    EventText,
    /// A field that filters see.
    Fact(&'static str),
    Time,
}

/// What a slot holds for one record.
enum Filled<'v> {
    Extracted(Extracted<'v>),
    Made(Value),
    /// JSON text.
    Event(Vec<u8>),
    EventText(Vec<u8>),
}

impl Slot {
    /// What a reserved name stands for.
    pub(super) fn reserved(name: &str) -> Option<Self> {
        let known = RESERVED.iter().find(|known| **known == name)?;
        Some(match known.strip_prefix(RESERVED_PREFIX)? {
            "event" => Self::Event,
            "event.json" => Self::EventText,
            "time" => Self::Time,
            fact => Self::Fact(fact),
        })
    }

    fn fill<'v>(&self, origin: &Origin<'v>, event: &'v Value, budget: &mut Budget) -> Result<Filled<'v>, Failure> {
        Ok(match self {
            Self::Path(path) => Filled::Extracted(Extracted::of(path, event, budget)?),
            Self::Event => Filled::Event(origin.event_text()),
            Self::EventText => Filled::EventText(origin.event_text()),
            Self::Fact(name) => Filled::Extracted(origin.seen().get(name).map_or(Extracted::Nothing, Extracted::One)),
            Self::Time => time(origin.seen()).map_or(Filled::Extracted(Extracted::Nothing), Filled::Made),
        })
    }

    fn label(&self) -> String {
        match self {
            Self::Path(path) => path.source().to_owned(),
            Self::Event => "<tripline.event>".to_owned(),
            Self::EventText => "<tripline.event.json>".to_owned(),
            Self::Fact(name) => format!("<{RESERVED_PREFIX}{name}>"),
            Self::Time => "<tripline.time>".to_owned(),
        }
    }
}

fn time(seen: &Value) -> Option<Value> {
    let timestamp_ms = seen.get("timestamp")?.as_i64()?;
    let time = jiff::Timestamp::from_millisecond(timestamp_ms).ok()?;
    Some(time_text(time).into())
}

impl Filled<'_> {
    fn write(&self, output: &mut Output<'_>) -> Result<(), Failure> {
        match self {
            Self::Extracted(extracted) => extracted.write(output),
            Self::Made(value) => output.value(value),
            Self::Event(text) => output.raw(text),
            Self::EventText(text) => output.text(text),
        }
    }

    fn write_content(&self, output: &mut Output<'_>) -> Result<(), Failure> {
        match self {
            Self::Extracted(extracted) => extracted.write_content(output),
            Self::Made(value) => output.value_content(value),
            Self::Event(text) | Self::EventText(text) => output.text_content(text),
        }
    }
}

impl Template {
    /// Puts together what [`parts`] found and what its names stand for, in the order of [`TemplateParts::names`].
    pub(super) fn new(parts: TemplateParts, slots: Vec<Slot>, strict: bool) -> Self {
        assert_eq!(parts.names.len(), slots.len(), "each name stands for something");
        Self { parts: parts.parts.into(), slots: slots.into(), strict }
    }

    /// Writes the result; paths go through `event`.
    pub(super) fn write<'v>(
        &self,
        origin: &Origin<'v>,
        event: &'v Value,
        budget: &mut Budget,
        output: &mut Output<'_>,
    ) -> Result<(), Failure> {
        let mut filled = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let one = slot.fill(origin, event, budget)?;
            if self.strict && matches!(one, Filled::Extracted(Extracted::Nothing)) {
                return Err(missing(&slot.label()));
            }
            filled.push(one);
        }
        for part in &self.parts {
            match part {
                Part::Text(text) => output.raw(text)?,
                Part::Value { slot } => filled[*slot].write(output)?,
                Part::Content { slot } => filled[*slot].write_content(output)?,
            }
        }
        Ok(())
    }
}
