//! One pass over a record: values at paths that patterns ask for are kept and looked up.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::super::clause::Number;
use super::FilterSet;
use super::names::{NodeId, ROOT};
use super::scratch::{Hits, Kept, Places, Scratch};
use crate::event::scan::{NotJson, Scanner, Span, TextSpan, Token, unescape};
use crate::event::{EventView, Header, Parts, PayloadText, RecordView};

pub(super) struct Reader<'r> {
    set: &'r FilterSet,
    places: &'r mut Places,
    hits: &'r mut Hits,
}

/// What a pass found out.
pub(super) struct Read<'a> {
    /// What kept values refer to.
    pub(super) text: &'a str,
    pub(super) has_json_payload: bool,
}

impl<'r> Reader<'r> {
    pub(super) const fn new(set: &'r FilterSet, scratch: &'r mut Scratch) -> Self {
        Self { set, places: &mut scratch.places, hits: &mut scratch.hits }
    }

    pub(super) fn read<'a>(mut self, event: &EventView<'a>) -> Read<'a> {
        // First, because a structured event's fields of the same names are hidden by what is here.
        self.record_facts(event.record());
        match event.parts() {
            Parts::Structured(text) => {
                let read = self.structured(event.record(), text);
                debug_assert!(read.is_ok(), "only JSON is a structured event");
                Read { text, has_json_payload: true }
            }
            Parts::Binary(attributes, payload) => {
                for (name, value) in attributes {
                    let node = self.set.names.child(ROOT, name);
                    if let Some(node) = node.filter(|node| !self.is_hidden(event.record(), *node)) {
                        self.made_text(node, |out| out.push_str(value));
                    }
                }
                self.payload(payload)
            }
            Parts::Wrapped(payload) => {
                for (name, node) in &self.set.fields.wrapped {
                    self.wrapped_attribute(event, name, *node);
                }
                self.payload(payload)
            }
        }
    }

    fn wrapped_attribute(&mut self, event: &EventView<'_>, name: &str, node: NodeId) {
        let start = self.places.texts.len();
        if event.wrapped_attribute(name, &mut self.places.texts) {
            let value = Kept::Made(Span { start, end: self.places.texts.len() });
            self.only(node, value, "");
        }
    }

    fn record_facts(&mut self, record: &RecordView<'_>) {
        let fields = &self.set.fields;
        if let Some(node) = fields.topic {
            self.made_text(node, |out| out.push_str(record.topic));
        }
        if let Some(node) = fields.partition {
            self.only(node, Kept::Number(Number::Signed(record.partition.into())), "");
        }
        if let Some(node) = fields.offset {
            self.only(node, Kept::Number(Number::Signed(record.offset.get())), "");
        }
        if let Some(node) = fields.timestamp.filter(|_| record.timestamp_ms >= 0) {
            self.only(node, Kept::Number(Number::Signed(record.timestamp_ms)), "");
        }
        if let Some(node) = fields.key {
            self.bytes(node, record.key);
        }
        if let Some(node) = fields.headers {
            self.headers(node, record.headers);
        }
    }

    fn headers(&mut self, node: NodeId, headers: &[Header<'_>]) {
        self.places.open(node);
        for header in headers {
            if let Some(node) = self.set.names.below(node, header.name) {
                self.bytes(node, header.value);
            }
        }
    }

    /// Whether a fact of the record stands at this field of an event.
    fn is_hidden(&self, record: &RecordView<'_>, node: NodeId) -> bool {
        let fields = &self.set.fields;
        let timestamp = fields.timestamp.filter(|_| record.timestamp_ms >= 0);
        let facts = [fields.topic, fields.partition, fields.offset, timestamp, fields.key, fields.headers];
        facts.contains(&Some(node))
    }

    /// Text, or base64 of what is none, or null.
    fn bytes(&mut self, node: NodeId, bytes: Option<&[u8]>) {
        match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
            None => self.only(node, Kept::Null, ""),
            Some(Ok(text)) => self.made_text(node, |out| out.push_str(text)),
            Some(Err(bytes)) => self.made_text(node, |out| BASE64.encode_string(bytes, out)),
        }
    }

    fn made_text(&mut self, node: NodeId, write: impl FnOnce(&mut String)) {
        let value = self.make(write);
        self.only(node, value, "");
    }

    fn make(&mut self, write: impl FnOnce(&mut String)) -> Kept {
        let start = self.places.texts.len();
        write(&mut self.places.texts);
        Kept::Made(Span { start, end: self.places.texts.len() })
    }

    fn payload<'a>(&mut self, payload: PayloadText<'a>) -> Read<'a> {
        let (text, has_json_payload) = match payload {
            PayloadText::None => ("", true),
            PayloadText::NotJson => ("", false),
            // Nobody asks.
            PayloadText::Unread(_) if !self.set.fields.payload => ("", true),
            PayloadText::Unread(text) => (text, self.data(text).is_ok()),
        };
        Read { text, has_json_payload }
    }

    /// What was found in a text that turns out to be no JSON does no harm: patterns that ask for it are not judged
    /// then.
    fn data(&mut self, text: &str) -> Result<(), NotJson> {
        let mut scanner = Scanner::new(text);
        match self.set.fields.data {
            Some(node) => self.place(&mut scanner, node)?,
            None => scanner.skip_value()?,
        }
        scanner.end()
    }

    fn structured(&mut self, record: &RecordView<'_>, text: &str) -> Result<(), NotJson> {
        let mut scanner = Scanner::new(text);
        if scanner.token()? == Token::Object {
            self.fields(&mut scanner, ROOT, |reader, node| !reader.is_hidden(record, node))?;
        }
        scanner.end()
    }

    /// The value at `node`'s path.
    fn place(&mut self, scanner: &mut Scanner<'_>, node: NodeId) -> Result<(), NotJson> {
        self.places.open(node);
        self.value(scanner, node, false)
    }

    fn value(&mut self, scanner: &mut Scanner<'_>, node: NodeId, in_list: bool) -> Result<(), NotJson> {
        let value = match scanner.token()? {
            Token::Object if self.set.names.has_children(node) => {
                // Clauses below must hold in one element.
                if in_list {
                    self.places.set_several();
                }
                return self.fields(scanner, node, |_, _| true);
            }
            token @ Token::Object => return scanner.skip_rest(token),
            Token::List => {
                let mut first = true;
                while scanner.next_element(&mut first)? {
                    self.value(scanner, node, true)?;
                }
                return Ok(());
            }
            _ if !self.set.nodes[node as usize].wanted => return Ok(()),
            Token::Null => Kept::Null,
            Token::Bool(value) => Kept::Bool(value),
            Token::Number(span) => Kept::Number(Number::read(scanner.raw(span))),
            Token::Text(TextSpan { span, escaped: false }) => Kept::Read(span),
            Token::Text(TextSpan { span, .. }) => self.make(|out| unescape(scanner.raw(span), out)),
        };
        self.keep(node, value, scanner.text());
        Ok(())
    }

    /// The fields of an object that is open, where `wanted`.
    fn fields(
        &mut self,
        scanner: &mut Scanner<'_>,
        node: NodeId,
        wanted: impl Fn(&Self, NodeId) -> bool,
    ) -> Result<(), NotJson> {
        let mut first = true;
        while let Some(key) = scanner.next_key(&mut first)? {
            match self.below(node, scanner.raw(key.span), key.escaped).filter(|child| wanted(self, *child)) {
                Some(child) => self.place(scanner, child)?,
                None => scanner.skip_value()?,
            }
        }
        Ok(())
    }

    fn below(&mut self, node: NodeId, key: &str, escaped: bool) -> Option<NodeId> {
        if !escaped {
            return self.set.names.below(node, key);
        }
        let fold = &mut self.hits.fold;
        fold.clear();
        unescape(key, fold);
        self.set.names.below(node, fold)
    }

    /// A plain value is all that stands at a node.
    fn only(&mut self, node: NodeId, value: Kept, text: &str) {
        self.places.open(node);
        self.keep(node, value, text);
    }

    fn keep(&mut self, node: NodeId, value: Kept, text: &str) {
        self.places.keep(node, value);
        if let Some(index) = &self.set.nodes[node as usize].index {
            let mut fold = std::mem::take(&mut self.hits.fold);
            index.each(self.places.plain(&value, text), &mut fold, &mut |key| self.hits.hit(self.set, key));
            self.hits.fold = fold;
        }
    }
}
