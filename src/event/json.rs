//! JSON written piece by piece, and its keys looked at.

use serde_json::Value;

/// Whether a key anywhere in `value` has a dot. The depth is what the JSON reader allows.
pub(super) fn has_dotted_keys(value: &Value) -> bool {
    match value {
        Value::Array(elements) => elements.iter().any(has_dotted_keys),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('.') || has_dotted_keys(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
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
