//! A plain pattern against an event, without allocating per clause.
//!
//! The pattern is a tree of keys; the walk follows it with the places of the event that have the same path. Usually
//! that is one place. Where keys of the event have dots it can be several (`a.b` as a key, and `b` inside `a`); a
//! clause then holds if it holds at one of them. Every place of the event is visited at most once per node of the
//! pattern, so the cost is bounded by their product.

use serde_json::Value;
use smallvec::SmallVec;

use super::clause::{Clause, Plain};
use super::{Alternative, Node};
use crate::event::MatchEvent;

/// A place in an event: a value, or the keys of an object that begin with a text.
#[derive(Clone, Copy)]
pub(super) struct Place<'e> {
    value: &'e Value,
    /// Empty for the value itself, else the beginning of a dotted key, its last dot included.
    prefix: &'e str,
}

pub(super) type Places<'e> = SmallVec<[Place<'e>; 2]>;

impl<'e> Place<'e> {
    const fn whole(value: &'e Value) -> Self {
        Self { value, prefix: "" }
    }

    pub(super) const fn elements(&self) -> Option<&'e Vec<Value>> {
        match self.value {
            Value::Array(elements) if self.prefix.is_empty() => Some(elements),
            _ => None,
        }
    }
}

impl Alternative {
    pub(super) fn matches(&self, event: &MatchEvent) -> bool {
        let readable = event.has_json_payload || !self.needs_payload;
        readable && self.root.matches(&[Place::whole(&event.value)], event.has_dotted_keys)
    }
}

/// The place where a pattern begins.
pub(super) const fn root(event: &MatchEvent) -> Place<'_> {
    Place::whole(&event.value)
}

impl Node {
    pub(super) fn matches(&self, places: &[Place<'_>], dotted: bool) -> bool {
        self.clauses.iter().all(|clause| clause_matches(clause, places)) && self.children_match(places, dotted)
    }

    fn children_match(&self, places: &[Place<'_>], dotted: bool) -> bool {
        if self.children.is_empty() {
            return true;
        }
        if let [place] = places
            && let Some(elements) = place.elements()
        {
            // One element must satisfy everything below; a list without elements is as good as nothing.
            if elements.is_empty() {
                return self.children_match(&[], dotted);
            }
            return elements.iter().any(|element| self.children_match(&[Place::whole(element)], dotted));
        }
        self.children.iter().all(|(key, child)| child.matches(&step(places, key, dotted), dotted))
    }
}

pub(super) fn clause_matches(clause: &Clause, places: &[Place<'_>]) -> bool {
    let mut found = false;
    let mut matches = |value: &Value| {
        found = true;
        Plain::of(value).is_some_and(|value| clause.matches_value(value))
    };
    any_value(places, &mut matches) || (!found && clause.matches_nothing())
}

/// Whether `test` holds for one of the plain values at these places; lists are their elements, objects are no values.
fn any_value(places: &[Place<'_>], test: &mut impl FnMut(&Value) -> bool) -> bool {
    fn any(value: &Value, test: &mut impl FnMut(&Value) -> bool) -> bool {
        match value {
            Value::Array(elements) => elements.iter().any(|element| any(element, test)),
            Value::Object(_) => false,
            plain => test(plain),
        }
    }
    places.iter().filter(|place| place.prefix.is_empty()).any(|place| any(place.value, test))
}

/// The places one key further.
pub(super) fn step<'e>(places: &[Place<'e>], key: &str, dotted: bool) -> Places<'e> {
    let mut found = Places::new();
    for place in places {
        step_from(*place, key, dotted, &mut found);
    }
    found
}

fn step_from<'e>(place: Place<'e>, key: &str, dotted: bool, found: &mut Places<'e>) {
    match place.value {
        Value::Array(elements) => {
            for element in elements {
                step_from(Place::whole(element), key, dotted, found);
            }
        }
        Value::Object(fields) if dotted => {
            let mut prefix = None;
            for (name, value) in fields {
                let Some(rest) = name.strip_prefix(place.prefix).and_then(|rest| rest.strip_prefix(key)) else {
                    continue;
                };
                if rest.is_empty() {
                    found.push(Place::whole(value));
                } else if rest.starts_with('.') {
                    prefix = Some(&name[..place.prefix.len() + key.len() + 1]);
                }
            }
            found.extend(prefix.map(|prefix| Place { value: place.value, prefix }));
        }
        Value::Object(fields) => found.extend(fields.get(key).map(Place::whole)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The plain values at these places, as text for people, cut to `chars_max`.
pub(super) fn found_text(places: &[Place<'_>], chars_max: usize) -> Option<String> {
    let mut text = String::new();
    any_value(places, &mut |value| {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(&value.to_string());
        text.len() > chars_max
    });
    let shortened: String = text.chars().take(chars_max).collect();
    let mark = if shortened.len() < text.len() { "…" } else { "" };
    (!text.is_empty()).then(|| shortened + mark)
}
