//! Which of the records that were read are not finished.
//!
//! Every matching record gets a number when it is read, one more than the one before. Records with consecutive numbers
//! are a run: nothing between them is finished, so that a run is one range of offsets, however many records the filter
//! turned away in between. Reading on extends the last run; a finished record cuts the run that it is in.
//!
//! A record that was read again for a spilled key has no number: others were read in the meantime. From its first
//! attempt on it stands by itself, *scattered*; neighbours share a range.

use std::collections::BTreeMap;

use tripline_storage::Offset;

use super::progress::{Span, varint_bytes};
use super::window::Spot;

/// A record that was read: where it stands, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: Offset,
    pub(super) number: u64,
    pub(super) spot: Spot,
}

/// The number of a record that has none yet: something else stands for it.
pub(super) const UNNUMBERED: u64 = u64::MAX;
/// The number of a record that stands by itself.
const SCATTERED: u64 = u64::MAX - 1;

#[derive(Clone, Copy, Debug)]
struct Run {
    /// One after the number of its last record.
    end: u64,
    span: Span,
}

/// The runs of unfinished records.
#[derive(Clone, Debug, Default)]
pub(super) struct Unfinished {
    /// By the number of their first record.
    runs: BTreeMap<u64, Run>,
    next_number: u64,
    /// Ranges of scattered records: first, and behind the last.
    scattered: BTreeMap<Offset, Offset>,
    all: Ranges,
    /// Those that begin below `dense_from`.
    below: Ranges,
    /// From here on a bit for each offset is taken for less than the ranges: see [`Unfinished::below`].
    dense_from: Offset,
    /// How often a range has come, gone or changed.
    changes: usize,
}

/// What some ranges take in written progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges {
    count: usize,
    length_bytes: usize,
}

impl Ranges {
    pub(super) const fn add(&mut self, span: Span) {
        self.count += 1;
        self.length_bytes += bytes_of(span);
    }

    const fn remove(&mut self, span: Span) {
        self.count -= 1;
        self.length_bytes -= bytes_of(span);
    }

    /// Bytes at most, where a distance takes `distance_bytes`.
    pub(super) const fn written_bytes(self, distance_bytes: usize) -> usize {
        self.length_bytes + self.count * distance_bytes
    }
}

/// How many ranges these records, ascending, may be cut out of: one for each sequence of consecutive ones.
pub(super) fn groups(places: &[Place]) -> usize {
    places.len().min(1) + places.windows(2).filter(|pair| !pair[0].is_before(&pair[1])).count()
}

impl Place {
    /// Whether nothing can lie between the two in a range.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        if self.number >= SCATTERED || other.number >= SCATTERED {
            return self.number == other.number && self.offset.next() == other.offset;
        }
        self.number + 1 == other.number
    }
}

const fn bytes_of(span: Span) -> usize {
    varint_bytes(span.next.since(span.first))
}

impl Unfinished {
    /// A matching record was read, behind all others; answers its number.
    pub(super) fn push(&mut self, offset: Offset) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        match self.runs.last_entry() {
            Some(mut last) if last.get().end == number => {
                let run = last.get_mut();
                assert!(run.span.next <= offset, "T1: records are read in offset order");
                let before = run.span;
                run.end = number + 1;
                run.span.next = offset.next();
                let after = run.span;
                self.uncount(before);
                self.count(after);
            }
            _ => self.insert(number, Run { end: number + 1, span: Span { first: offset, next: offset.next() } }),
        }
        number
    }

    fn insert(&mut self, begin: u64, run: Run) {
        self.count(run.span);
        self.runs.insert(begin, run);
    }

    fn count(&mut self, span: Span) {
        self.changes += 1;
        self.all.add(span);
        if span.first < self.dense_from {
            self.below.add(span);
        }
    }

    fn uncount(&mut self, span: Span) {
        self.all.remove(span);
        if span.first < self.dense_from {
            self.below.remove(span);
        }
    }

    /// What was read now is finished or looked after elsewhere: the next record begins a run of its own.
    pub(super) const fn cut(&mut self) {
        self.next_number += 1;
    }

    /// These records without numbers, ascending, stand by themselves from now on.
    pub(super) fn scatter(&mut self, places: &mut [Place]) {
        for place in places {
            assert_eq!(place.number, UNNUMBERED, "T1: a record stands in one range");
            place.number = SCATTERED;
            let mut span = Span { first: place.offset, next: place.offset.next() };
            if let Some((&first, &next)) = self.scattered.range(..=place.offset).next_back() {
                assert!(next <= place.offset, "T1: a record stands in one range");
                if next == place.offset {
                    self.take_scattered(first, next);
                    span.first = first;
                }
            }
            if let Some(next) = self.scattered.get(&span.next).copied() {
                self.take_scattered(span.next, next);
                span.next = next;
            }
            self.put_scattered(Some(span));
        }
    }

    fn take_scattered(&mut self, first: Offset, next: Offset) {
        self.scattered.remove(&first);
        self.uncount(Span { first, next });
    }

    fn put_scattered(&mut self, span: Option<Span>) {
        let Some(span) = span else { return };
        self.scattered.insert(span.first, span.next);
        self.count(span);
    }

    /// These records, ascending, are finished.
    ///
    /// # Panics
    /// When one of them is finished already.
    pub(super) fn finish(&mut self, places: impl IntoIterator<Item = Place>) {
        let mut group: Option<(Place, Place)> = None;
        for place in places {
            if place.number == SCATTERED {
                self.finish_scattered(place.offset);
                continue;
            }
            group = match group {
                Some((first, last)) if last.number + 1 == place.number => Some((first, place)),
                before => {
                    before.into_iter().for_each(|(first, last)| self.finish_group(first, last));
                    Some((place, place))
                }
            };
        }
        group.into_iter().for_each(|(first, last)| self.finish_group(first, last));
    }

    fn finish_scattered(&mut self, offset: Offset) {
        let found = self.scattered.range(..=offset).next_back().map(|(&first, &next)| Span { first, next });
        let span = found.filter(|span| span.contains(offset)).expect("T1: what finishes was unfinished");
        self.take_scattered(span.first, span.next);
        self.put_scattered(Span::new(span.first, offset));
        self.put_scattered(Span::new(offset.next(), span.next));
    }

    /// Records with consecutive numbers, all in one run.
    fn finish_group(&mut self, first: Place, last: Place) {
        let found = self.runs.range(..=first.number).next_back().map(|(&begin, &run)| (begin, run));
        let (begin, run) = found.filter(|(_, run)| last.number < run.end).expect("T1: what finishes was unfinished");
        self.runs.remove(&begin);
        self.uncount(run.span);
        if begin < first.number {
            let span = Span { first: run.span.first, next: first.offset };
            self.insert(begin, Run { end: first.number, span });
        }
        if last.number + 1 < run.end {
            let span = Span { first: last.offset.next(), next: run.span.next };
            self.insert(last.number + 1, Run { end: run.end, span });
        }
    }

    /// How many ranges these records, ascending, may be cut out of when they finish together: none where they are all
    /// of a range, or its begin or end, which only takes it away or makes it shorter.
    pub(super) fn cuts_of(&self, places: &[Place]) -> usize {
        let groups = places.chunk_by(Place::is_before);
        let cuts = groups.filter(|group| {
            let (first, last) = (group[0].number, group[group.len() - 1].number);
            if last >= SCATTERED {
                return last == UNNUMBERED;
            }
            let run = self.runs.range(..=first).next_back();
            // What is read next may extend the last run.
            run.is_none_or(|(&begin, run)| begin < first && (last + 1 < run.end || run.end == self.next_number))
        });
        cuts.count()
    }

    /// The ranges of offsets, ascending.
    pub(super) fn spans(&self) -> Vec<Span> {
        let scattered = self.scattered.iter().map(|(&first, &next)| Span { first, next });
        let mut spans: Vec<Span> = self.runs.values().map(|run| run.span).chain(scattered).collect();
        if !self.scattered.is_empty() {
            spans.sort_unstable_by_key(|span| span.first);
        }
        spans
    }

    /// The first offset of all ranges.
    pub(super) fn first(&self) -> Option<Offset> {
        let run = self.runs.first_key_value().map(|(_, run)| run.span.first);
        run.into_iter().chain(self.scattered.first_key_value().map(|(&first, _)| first)).min()
    }

    /// Whether a record is the first of all runs. Their first range may begin before it.
    pub(super) fn is_first(&self, place: &Place) -> bool {
        self.runs.first_key_value().is_some_and(|(&begin, _)| begin == place.number)
    }

    /// All ranges.
    pub(super) const fn all(&self) -> Ranges {
        self.all
    }

    /// The ranges that begin below [`Unfinished::dense_from`]: the others may stand as a bit for each offset from there
    /// on.
    pub(super) const fn below(&self) -> Ranges {
        self.below
    }

    /// Where bits begin. Any offset is right; which one takes the fewest bytes changes as records finish.
    pub(super) const fn dense_from(&self) -> Offset {
        self.dense_from
    }

    /// `below`: the ranges that begin below it.
    pub(super) fn set_dense_from(&mut self, from: Offset, below: Ranges) {
        (self.dense_from, self.below, self.changes) = (from, below, 0);
        debug_assert_eq!(self.below, {
            let mut below = Ranges::default();
            self.spans().iter().filter(|span| span.first < from).for_each(|span| below.add(*span));
            below
        });
    }

    /// How often a range has come, gone or changed since [`Unfinished::set_dense_from`].
    pub(super) const fn changes(&self) -> usize {
        self.changes
    }

    /// How many ranges there are.
    pub(super) const fn len(&self) -> usize {
        self.all.count
    }

    /// How many runs there are.
    #[cfg(test)]
    fn runs(&self) -> usize {
        self.runs.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn offset(value: u64) -> Offset {
        Offset::ZERO.checked_add(value).unwrap()
    }

    fn spans(unfinished: &Unfinished) -> Vec<(i64, i64)> {
        unfinished.spans().iter().map(|span| (span.first.get(), span.next.get())).collect()
    }

    #[test]
    fn records_that_the_filter_turns_away_do_not_cut_a_run_and_finished_ones_do() {
        let mut unfinished = Unfinished::default();
        let places: Vec<Place> = [0, 4, 9, 12]
            .map(|at| Place { offset: offset(at), number: unfinished.push(offset(at)), spot: Spot::UNKNOWN })
            .to_vec();
        assert_eq!(spans(&unfinished), [(0, 13)]);
        unfinished.finish([places[1]]);
        assert_eq!(spans(&unfinished), [(0, 4), (5, 13)]);
        unfinished.finish([places[0]]);
        assert_eq!(spans(&unfinished), [(5, 13)]);
        unfinished.cut();
        unfinished.push(offset(20));
        assert_eq!(spans(&unfinished), [(5, 13), (20, 21)]);
        unfinished.finish([places[2], places[3]]);
        assert_eq!(spans(&unfinished), [(20, 21)]);
    }

    #[test]
    #[should_panic(expected = "T1")]
    fn nothing_finishes_twice() {
        let mut unfinished = Unfinished::default();
        let place = Place { offset: offset(3), number: unfinished.push(offset(3)), spot: Spot::UNKNOWN };
        unfinished.finish([place]);
        unfinished.finish([place]);
    }

    proptest! {
        #[test]
        fn the_runs_hold_what_is_unfinished_and_nothing_finished(
            gaps in proptest::collection::vec(0u64..4, 1..80), finished in proptest::collection::vec(any::<prop::sample::Index>(), 0..80),
        ) {
            let mut unfinished = Unfinished::default();
            let mut at = 0;
            let mut open = Vec::new();
            for gap in gaps {
                at += gap + 1;
                open.push(Place { offset: offset(at), number: unfinished.push(offset(at)), spot: Spot::UNKNOWN });
            }
            let mut done = BTreeSet::new();
            for index in finished {
                if open.is_empty() {
                    break;
                }
                let place = open.remove(index.index(open.len()));
                done.insert(place.offset);
                unfinished.finish([place]);
                let held = |offset: Offset| unfinished.spans().iter().filter(|span| span.contains(offset)).count();
                prop_assert!(open.iter().all(|place| held(place.offset) == 1));
                prop_assert!(done.iter().all(|&offset| held(offset) == 0));
                prop_assert!(open.is_empty() == (unfinished.runs() == 0), "no run without records");
            }
        }
    }
}
