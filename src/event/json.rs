//! JSON checked without being built, and written piece by piece.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Whether the bytes are one JSON value that a [`Value`] can hold: the same depth, numbers and strings are refused, nothing is allocated.
pub(super) fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Checked>(bytes).is_ok()
}

/// Whether a key anywhere in `value` has a dot. The depth is what the JSON reader allows.
pub(super) fn has_dotted_keys(value: &Value) -> bool {
    match value {
        Value::Array(elements) => elements.iter().any(has_dotted_keys),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('.') || has_dotted_keys(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// A JSON value that was read and thrown away. (Serde's own `IgnoredAny` is not enough: it lets pass numbers, strings and depths that
/// building a value refuses.)
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CheckedVisitor)
    }
}

struct CheckedVisitor;

impl<'de> Visitor<'de> for CheckedVisitor {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_str<E>(self, _: &str) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Checked, A::Error> {
        while elements.next_element::<Checked>()?.is_some() {}
        Ok(Checked)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Checked, A::Error> {
        while fields.next_entry::<Checked, Checked>()?.is_some() {}
        Ok(Checked)
    }
}

/// Writes a JSON object field by field.
pub(super) struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> ObjectWriter<'a> {
    pub(super) fn begin(out: &'a mut Vec<u8>) -> Self {
        let start = out.len();
        out.push(b'{');
        Self { out, start }
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        write_text(self.out, value);
    }

    /// `raw` is one JSON value.
    pub(super) fn raw(&mut self, name: &str, raw: &[u8]) {
        self.name(name);
        self.out.extend_from_slice(raw);
    }

    pub(super) fn end(self) {
        self.out.push(b'}');
    }

    /// Writes `raw`, a whole JSON object, instead of what was written so far.
    pub(super) fn replace_with(self, raw: &[u8]) {
        self.out.truncate(self.start);
        self.out.extend_from_slice(raw);
    }

    fn name(&mut self, name: &str) {
        if self.out.len() > self.start + 1 {
            self.out.push(b',');
        }
        write_text(self.out, name);
        self.out.push(b':');
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("text written to memory does not fail");
}
