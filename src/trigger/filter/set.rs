//! All patterns of a topic at once.
//!
//! A record is read **once**, however many patterns there are: keys that no pattern asks for are passed over, and what
//! stands at a path that one does is looked up in an index of that path. Out come the ids of the patterns that match.
//!
//! # How
//! 1. `build` takes the plain patterns (alternatives) of all patterns apart. Paths become one tree of keys; equal lists
//!    at one path become one clause. Of each alternative **one** clause, the one that the fewest alternatives share,
//!    goes into the index of its path.
//! 2. Reading a record collects the values at the paths asked for and looks each up: exact texts and numbers by hash,
//!    beginnings and endings by binary search, ranges in an interval tree, texts inside by Aho-Corasick, networks by
//!    masked address, `exists` and `anything-but` by any value, `exists: false` by none. An alternative whose clause is
//!    hit is a candidate. The index may say yes too often, never too rarely.
//! 3. Candidates are judged exactly, by the same tests as [`Pattern::matches`]: each clause at most once per record,
//!    then remembered.
//!
//! So the cost is one pass over the record, a look-up for each value at a path asked for, and the candidates; not the
//! patterns. It grows with their number only where they share even their rarest clause, and where they match.
//!
//! Where a path has more than one place in an event (a pattern goes on below a list of objects, a key comes twice, a
//! key with dots meets nested ones), the candidates are judged by [`Pattern`]'s own walk over the event as a JSON
//! value. Telling those events apart is what keeps the fast way simple, and is exact because a place is counted when it
//! is read.
//!
//! Weighed and left: one automaton over all patterns (builds slowly, and explodes with wildcards); counting satisfied
//! clauses per alternative (touches every alternative of a common clause in every record); judging by a copy of the
//! wanted part of the event (a second matcher).
//!
//! # Bounds
//! A set holds at most [`SET_LISTS_MAX`] lists and [`SET_BYTES_MAX`] bytes of patterns. A scratch has some words per
//! list of the largest set it served; what a record adds stays below 2 MiB between records. Numbers in a list of an
//! event that lie in many ranges cost their product, as do ranges that match.
//!
//! # Measured
//! `cargo bench --bench filter`, 2 vCPU (AMD EPYC, Zen 5, VM), best of three runs beside other work, one core; per
//! record, from `EventView::new` to the ids, of which there is one; in brackets the ratio to 1 pattern. Turned away
//! costs a few percent less.
//!
//! | patterns | 1 | 100 | 10,000 |
//! |---|---|---|---|
//! | exact texts on one field, 211 B | 231 ns | 229 ns (1.0) | 230 ns (1.0) |
//! | three lists each, two of them shared by all, 211 B | 272 ns | 273 ns (1.0) | 275 ns (1.0) |
//! | fields of their own, 211 B | 231 ns | 230 ns (1.0) | 231 ns (1.0) |
//! | eight operators mixed, 211 B | 230 ns | 549 ns (2.4) | 621 ns (2.7) |
//! | exact texts on one field, 2,443 B | 1.90 µs | 1.89 µs (1.0) | 1.90 µs (1.0) |
//! | eight operators mixed, 2,443 B | 1.97 µs | 2.21 µs (1.1) | 2.31 µs (1.2) |
//! | below a list of objects, 196 B | 1.71 µs | 1.72 µs (1.0) | 1.73 µs (1.0) |
//!
//! The walk of one [`Pattern`] over a JSON value takes 1.87 µs (211 B) and 10.7 µs (2,443 B). A set of 10,000 is built
//! in 5 to 12 ms.

use std::ops::Range;
use std::sync::Arc;

use super::clause::{Clause, Plain};
use super::{Alternative, Pattern};
use crate::event::EventView;

mod affix;
mod build;
mod index;
mod key;
mod names;
mod ranges;
mod read;
mod scratch;

#[cfg(test)]
mod tests;

use index::Index;
use names::{Names, NodeId};
use read::Reader;
pub use scratch::Scratch;
use scratch::{Places, Verdict};

/// How many lists the patterns of one set may have, counted in every plain pattern that they amount to.
pub const SET_LISTS_MAX: usize = 1_000_000;
/// How many bytes the patterns of one set may have, written as JSON.
pub const SET_BYTES_MAX: usize = 64 << 20;

/// Patterns that are too much for one set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterSetError {
    /// Too many lists.
    #[error("the filters of one topic amount to {found} lists, at most {SET_LISTS_MAX} are allowed")]
    Lists {
        /// In all patterns.
        found: usize,
    },
    /// Too much text.
    #[error("the filters of one topic have {found} bytes, at most {SET_BYTES_MAX} are allowed")]
    Bytes {
        /// In all patterns.
        found: usize,
    },
}

/// Patterns that are matched together. The head of this file says how.
#[derive(Debug)]
pub struct FilterSet {
    /// By id.
    patterns: Box<[(u32, Pattern)]>,
    alternatives: Vec<SetAlternative>,
    /// The clauses of alternatives, one alternative after another, the rarest last.
    checks: Vec<u32>,
    clauses: Vec<SetClause>,
    names: Names,
    /// By node.
    nodes: Vec<Node>,
    /// Candidates by key.
    postings: Postings,
    /// Alternatives without lists: candidates always.
    always: Vec<u32>,
    /// Keys that nodes without a value have.
    absent: Vec<(NodeId, u32)>,
    fields: EventFields,
}

#[derive(Debug)]
struct SetAlternative {
    pattern: u32,
    /// Which of the pattern's.
    place: u32,
    needs_payload: bool,
    checks: Range<u32>,
}

#[derive(Debug)]
struct SetClause {
    node: NodeId,
    clause: Arc<Clause>,
}

#[derive(Debug, Default)]
struct Node {
    /// Whether values here are asked for.
    wanted: bool,
    index: Option<Box<Index>>,
}

/// Lists of alternatives, one after another.
#[derive(Debug, Default)]
struct Postings {
    starts: Vec<u32>,
    alternatives: Vec<u32>,
}

/// The nodes of what every record has.
#[derive(Debug)]
struct EventFields {
    topic: Option<NodeId>,
    partition: Option<NodeId>,
    offset: Option<NodeId>,
    timestamp: Option<NodeId>,
    key: Option<NodeId>,
    headers: Option<NodeId>,
    data: Option<NodeId>,
    /// Attributes of records that are no events of their own, those that are asked for.
    wrapped: Vec<(&'static str, NodeId)>,
    /// Whether a pattern needs to know what the payload is.
    payload: bool,
}

impl Postings {
    fn of(&self, key: u32) -> &[u32] {
        let (start, end) = (self.starts[key as usize], self.starts[key as usize + 1]);
        &self.alternatives[start as usize..end as usize]
    }
}

impl FilterSet {
    /// Puts patterns together, each under an id of the caller's; ids are distinct. Patterns are cheap to clone, and
    /// 10,000 of a few lists take some tens of milliseconds.
    ///
    /// # Errors
    /// When they are too much for one set.
    pub fn build<'p>(patterns: impl IntoIterator<Item = (u32, &'p Pattern)>) -> Result<Self, FilterSetError> {
        let mut patterns: Vec<(u32, Pattern)> =
            patterns.into_iter().map(|(id, pattern)| (id, pattern.clone())).collect();
        patterns.sort_unstable_by_key(|(id, _)| *id);
        let found = patterns.iter().fold(0, |sum: usize, (_, pattern)| sum.saturating_add(pattern.lists));
        if found > SET_LISTS_MAX {
            return Err(FilterSetError::Lists { found });
        }
        let found = patterns.iter().fold(0, |sum: usize, (_, pattern)| sum.saturating_add(pattern.size_bytes));
        if found > SET_BYTES_MAX {
            return Err(FilterSetError::Bytes { found });
        }
        Ok(build::build(patterns))
    }

    /// How many patterns there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.patterns.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// The ids of the patterns that match, ascending: exactly those for which [`Pattern::matches`] is true. A scratch
    /// may be used for one set after another.
    pub fn matches<'s>(&self, event: &EventView<'_>, scratch: &'s mut Scratch) -> &'s [u32] {
        scratch.begin(self);
        let read = Reader::new(self, scratch).read(event);
        scratch.hits.candidates.extend(&self.always);
        for (node, key) in &self.absent {
            if !scratch.places.is_one_place_each() || scratch.places.values(*node).is_empty() {
                scratch.hits.hit(self, *key);
            }
        }
        for place in 0..scratch.hits.candidates.len() {
            let alternative = &self.alternatives[scratch.hits.candidates[place] as usize];
            let readable = read.has_json_payload || !alternative.needs_payload;
            if readable
                && !scratch.is_matched(alternative.pattern)
                && self.judge(alternative, event, read.text, scratch)
            {
                scratch.set_matched(alternative.pattern);
            }
        }
        scratch.finish(|pattern| self.patterns[pattern as usize].0)
    }

    fn judge(&self, alternative: &SetAlternative, event: &EventView<'_>, text: &str, scratch: &mut Scratch) -> bool {
        if !scratch.places.is_one_place_each() {
            return self.alternative(alternative).matches(event.for_matching());
        }
        let checks = &self.checks[alternative.checks.start as usize..alternative.checks.end as usize];
        checks.iter().all(|check| {
            let known = &mut scratch.verdicts[*check as usize];
            if known.round != scratch.round {
                let holds = self.clauses[*check as usize].holds(&scratch.places, text);
                *known = Verdict { round: scratch.round, holds };
            }
            known.holds
        })
    }

    fn alternative(&self, alternative: &SetAlternative) -> &Alternative {
        &self.patterns[alternative.pattern as usize].1.alternatives[alternative.place as usize]
    }
}

impl SetClause {
    fn holds(&self, places: &Places, text: &str) -> bool {
        let values = places.values(self.node);
        if values.is_empty() {
            return self.clause.matches_nothing();
        }
        values.iter().any(|value| {
            let value: Plain<'_> = places.plain(value, text);
            self.clause.matches_value(value)
        })
    }
}
