//! The record that a transform is about.

use serde_json::{Map, Value};

use crate::event::EventView;

/// Names that paths see beside the event and functions do not get.
const FACTS: [&str; 6] = ["topic", "partition", "offset", "timestamp", "key", "headers"];

/// A record, from which all steps of a transform may take.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// A record of a topic.
    Record(&'a EventView<'a>),
    /// An event written by hand, with `topic`, `partition`, `offset`, `timestamp`, `key` and `headers` as filters see
    /// them.
    Written(&'a Value),
}

impl<'a> Origin<'a> {
    /// The event with the facts of its record, as filters see it.
    #[must_use]
    pub fn seen(&self) -> &'a Value {
        match self {
            Self::Record(event) => &event.for_matching().value,
            Self::Written(event) => event,
        }
    }

    /// The event as functions get it.
    #[must_use]
    pub fn event(&self) -> Value {
        match self {
            Self::Record(event) => event.to_json(),
            Self::Written(Value::Object(event)) => {
                let sent = event.iter().filter(|(name, _)| !FACTS.contains(&name.as_str()));
                Value::Object(sent.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>())
            }
            Self::Written(event) => (*event).clone(),
        }
    }

    /// The event as functions get it, as JSON text.
    pub(super) fn event_text(&self) -> Vec<u8> {
        let mut text = Vec::new();
        match self {
            Self::Record(event) => event.write_json(&mut text),
            Self::Written(_) => {
                serde_json::to_writer(&mut text, &self.event()).expect("a JSON value written to memory does not fail");
            }
        }
        text
    }
}
