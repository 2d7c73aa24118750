//! What one record leaves behind, kept so that the next one allocates nothing.

use super::super::clause::{Number, Plain};
use super::FilterSet;
use super::names::NodeId;
use crate::event::scan::Span;

/// More than so many plain values of one record are not kept; its candidates are judged by their patterns alone.
const VALUES_MAX: usize = 32_768;
/// A record's texts may leave this much memory behind.
const TEXT_BYTES_KEPT: usize = 1 << 18;

/// Memory for [`FilterSet::matches`]: one per task that matches.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Which record this is. Marks of earlier ones are older, so that nothing needs to be wiped.
    pub(super) round: u64,
    pub(super) places: Places,
    pub(super) hits: Hits,
    /// By clause.
    pub(super) verdicts: Vec<Verdict>,
    /// By pattern: the round in which it matched.
    patterns: Vec<u64>,
    matched: Vec<u32>,
}

/// Whether a clause holds for the record of a round.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Verdict {
    pub(super) round: u64,
    pub(super) holds: bool,
}

/// Which alternatives may match.
#[derive(Debug, Default)]
pub(super) struct Hits {
    round: u64,
    /// By key: the round in which it was hit.
    keys: Vec<u64>,
    /// By alternative: the round in which it became a candidate.
    alternatives: Vec<u64>,
    pub(super) candidates: Vec<u32>,
    /// A text in lower case.
    pub(super) fold: String,
}

/// Which values stand at the paths that patterns ask for.
#[derive(Debug, Default)]
pub(super) struct Places {
    round: u64,
    /// By node.
    known: Vec<Place>,
    values: Vec<Kept>,
    /// Texts that do not stand in the record as they are.
    pub(super) texts: String,
    /// Whether a path had two places.
    several: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    round: u64,
    start: u32,
    end: u32,
}

/// A plain value of the record.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kept {
    Null,
    Bool(bool),
    Number(Number),
    /// In the text that is read.
    Read(Span),
    /// In [`Places::texts`].
    Made(Span),
}

impl Scratch {
    /// Memory that is still empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(super) fn begin(&mut self, set: &FilterSet) {
        self.round += 1;
        self.hits.begin(self.round, set);
        self.places.begin(self.round, set.nodes.len());
        at_least(&mut self.verdicts, set.clauses.len());
        at_least(&mut self.patterns, set.patterns.len());
        self.matched.clear();
    }

    pub(super) fn is_matched(&self, pattern: u32) -> bool {
        self.patterns[pattern as usize] == self.round
    }

    pub(super) fn set_matched(&mut self, pattern: u32) {
        self.patterns[pattern as usize] = self.round;
        self.matched.push(pattern);
    }

    /// The ids of what matched, ascending.
    pub(super) fn finish(&mut self, id: impl Fn(u32) -> u32) -> &[u32] {
        self.places.texts.shrink_to_kept();
        self.hits.fold.shrink_to_kept();
        self.matched.sort_unstable();
        self.matched.iter_mut().for_each(|pattern| *pattern = id(*pattern));
        &self.matched
    }
}

trait ShrinkToKept {
    /// Gives memory back that few records need.
    fn shrink_to_kept(&mut self);
}

impl ShrinkToKept for String {
    fn shrink_to_kept(&mut self) {
        if self.capacity() > TEXT_BYTES_KEPT {
            *self = Self::new();
        }
    }
}

fn at_least<T: Clone + Default>(marks: &mut Vec<T>, length: usize) {
    if marks.len() < length {
        marks.resize(length, T::default());
    }
}

impl Hits {
    fn begin(&mut self, round: u64, set: &FilterSet) {
        self.round = round;
        at_least(&mut self.keys, set.postings.starts.len());
        at_least(&mut self.alternatives, set.alternatives.len());
        self.candidates.clear();
    }

    /// What the key leads to become candidates, once.
    pub(super) fn hit(&mut self, set: &FilterSet, key: u32) {
        if std::mem::replace(&mut self.keys[key as usize], self.round) == self.round {
            return;
        }
        for alternative in set.postings.of(key) {
            if std::mem::replace(&mut self.alternatives[*alternative as usize], self.round) != self.round {
                self.candidates.push(*alternative);
            }
        }
    }
}

impl Places {
    fn begin(&mut self, round: u64, nodes: usize) {
        self.round = round;
        at_least(&mut self.known, nodes);
        self.values.clear();
        self.texts.clear();
        self.several = false;
    }

    /// The event has something at the path of `node`.
    pub(super) fn open(&mut self, node: NodeId) {
        let start = self.kept();
        let place = &mut self.known[node as usize];
        self.several |= place.round == self.round;
        *place = Place { round: self.round, start, end: start };
    }

    fn kept(&self) -> u32 {
        u32::try_from(self.values.len()).expect("not more are kept than VALUES_MAX")
    }

    /// A plain value at `node`, which is open. Those of one place come one after another: where others are between
    /// them, there were objects in a list, or a place twice, and it is several.
    pub(super) fn keep(&mut self, node: NodeId, value: Kept) {
        if self.values.len() < VALUES_MAX {
            self.values.push(value);
            self.known[node as usize].end = self.kept();
        } else {
            self.several = true;
        }
    }

    /// Patterns cannot be judged path by path.
    pub(super) const fn set_several(&mut self) {
        self.several = true;
    }

    /// Whether every path has one place at most, with the values of [`Places::values`].
    pub(super) const fn is_one_place_each(&self) -> bool {
        !self.several
    }

    /// The plain values at `node`.
    pub(super) fn values(&self, node: NodeId) -> &[Kept] {
        let place = self.known[node as usize];
        if place.round == self.round { &self.values[place.start as usize..place.end as usize] } else { &[] }
    }

    /// A kept value; `text` is the text that was read.
    pub(super) fn plain<'v>(&'v self, value: &Kept, text: &'v str) -> Plain<'v> {
        match value {
            Kept::Null => Plain::Null,
            Kept::Bool(value) => Plain::Bool(*value),
            Kept::Number(number) => Plain::Number(*number),
            Kept::Read(span) => Plain::Text(&text[span.start..span.end]),
            Kept::Made(span) => Plain::Text(&self.texts[span.start..span.end]),
        }
    }
}
