//! Event patterns: which events a trigger takes.
//!
//! A pattern is a JSON object shaped like the events it matches. Its leaves are lists: one of the listed values or
//! operators must match (OR), and every key must (AND). `$or` with two or more patterns matches when one of them does.
//! Keys may be joined with dots, in patterns and in events: `{"a": {"b": [1]}}` and `{"a.b": [1]}` are the same.
//!
//! | operator | matches |
//! |---|---|
//! | `"x"`, `3`, `true`, `null`, `""` | that value; numbers by value, so 300 is 300.0 |
//! | `{"prefix": "x"}`, `{"suffix": "x"}` | text that begins or ends so; `{"prefix": {"equals-ignore-case": "x"}}` in any case |
//! | `{"contains": "x"}` | text with that inside |
//! | `{"equals-ignore-case": "x"}` | that text in any case |
//! | `{"wildcard": "a*b"}` | `*` stands for any text; `\*` and `\\` for themselves; at most 5 stars, no two side by side |
//! | `{"numeric": [">", 0, "<=", 5]}` | numbers in that range; `=` alone for one number |
//! | `{"cidr": "10.0.0.0/24"}` | IPv4 or IPv6 addresses in that network |
//! | `{"exists": true}`, `{"exists": false}` | a value is there, or none; objects are not values |
//! | `{"anything-but": …}` | any value but that text or number, or those of a list; also `prefix`, `suffix`, `equals-ignore-case`, `wildcard` inside, each with a text or a list |
//!
//! [`Pattern`] judges one event, and explains. [`FilterSet`] matches all patterns of a topic in one pass, with the same
//! verdicts.
//!
//! A list in an event matches when one of its elements does. When patterns go on below a list of objects, **one**
//! element must satisfy all of them.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use crate::event::{EventView, MatchEvent};

mod clause;
mod explain;
mod matcher;
mod parse;
mod set;
mod wildcard;

#[cfg(test)]
mod tests;

pub(in crate::trigger) use wildcard::Wildcard;

pub use explain::{REASONS_MAX, TurnedAway};
pub use set::{FilterSet, FilterSetError, SET_BYTES_MAX, SET_LISTS_MAX, Scratch};

/// How deep a pattern may be nested.
pub const DEPTH_MAX: usize = 32;
/// How long the keys that lead to a list may be, joined with dots, in bytes.
pub const PATH_BYTES_MAX: usize = 1024;
/// How many plain patterns the `$or`s of one pattern may amount to, multiplied out.
pub const ALTERNATIVES_MAX: usize = 1000;
/// How many lists a pattern may have, counted in every one of its plain patterns.
pub const CLAUSES_MAX: usize = 50_000;
/// How many stars a wildcard may have.
pub const WILDCARD_STARS_MAX: usize = 5;

/// Why a pattern is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct PatternError {
    /// Where, as keys joined with dots; `pattern` at its root.
    pub path: String,
    /// What is wrong there and what is allowed.
    pub reason: String,
}

/// A checked event pattern.
#[derive(Clone)]
pub struct Pattern {
    source: Arc<Value>,
    alternatives: Arc<[Alternative]>,
    /// Lists, counted in every alternative.
    lists: usize,
    /// As JSON without white space.
    size_bytes: usize,
}

/// A pattern without `$or`; one that matches is enough.
#[derive(Debug)]
struct Alternative {
    root: Node,
    needs_payload: bool,
}

/// What must hold at one place of an event.
#[derive(Debug, Default)]
struct Node {
    /// By key without dots.
    children: Vec<(Arc<str>, Self)>,
    clauses: Vec<Arc<clause::Clause>>,
}

impl Pattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// The first place that is wrong, and why.
    pub fn parse(source: &Value) -> Result<Self, PatternError> {
        let parse::Parsed { alternatives, lists } = parse::pattern(source)?;
        let size_bytes = source.to_string().len();
        Ok(Self { source: Arc::new(source.clone()), alternatives: alternatives.into(), lists, size_bytes })
    }

    /// The pattern as written.
    #[must_use]
    pub fn source(&self) -> &Value {
        &self.source
    }

    /// Whether a record's event matches.
    #[must_use]
    pub fn matches(&self, event: &EventView<'_>) -> bool {
        // A payload that is not JSON is not even looked at for a pattern that needs one.
        let hopeless = !event.has_json_payload() && self.alternatives.iter().all(|one| one.needs_payload);
        !hopeless && self.matches_json(event.for_matching())
    }

    /// Whether an event in JSON matches.
    #[must_use]
    pub fn matches_json(&self, event: &MatchEvent) -> bool {
        self.alternatives.iter().any(|alternative| alternative.matches(event))
    }

    /// What turned an event away: per plain pattern, the lists that no value matches. Empty when the event matches; at
    /// most [`REASONS_MAX`].
    #[must_use]
    pub fn explain(&self, event: &MatchEvent) -> Vec<TurnedAway> {
        if self.matches_json(event) { Vec::new() } else { explain::explain(&self.alternatives, event) }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({})", self.source)
    }
}
