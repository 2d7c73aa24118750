//! Which of the records that were read are not finished.
//!
//! Every matching record gets a number when it is read, one more than the one before. Records with consecutive numbers are
//! a run: nothing between them is finished, so that a run is one range of offsets, however many records the filter turned
//! away in between. Reading on extends the last run; a finished record cuts the run that it is in.

use std::collections::BTreeMap;

use tripline_storage::Offset;

use super::progress::Span;

/// A record that was read: where it stands, and its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) offset: Offset,
    pub(super) number: u64,
}

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
}

impl Unfinished {
    /// A matching record was read, behind all others; answers its number.
    pub(super) fn push(&mut self, offset: Offset) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        match self.runs.last_entry() {
            Some(mut last) if last.get().end == number => {
                let run = last.get_mut();
                assert!(run.span.next <= offset, "records are read in offset order");
                run.end = number + 1;
                run.span.next = offset.next();
            }
            _ => {
                let span = Span { first: offset, next: offset.next() };
                self.runs.insert(number, Run { end: number + 1, span });
            }
        }
        number
    }

    /// What was read now is finished or looked after elsewhere: the next record begins a run of its own.
    pub(super) const fn cut(&mut self) {
        self.next_number += 1;
    }

    /// These records, ascending, are finished.
    ///
    /// # Panics
    /// When one of them is finished already.
    pub(super) fn finish(&mut self, places: impl IntoIterator<Item = Place>) {
        let mut group: Option<(Place, Place)> = None;
        for place in places {
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

    /// Records with consecutive numbers, all in one run.
    fn finish_group(&mut self, first: Place, last: Place) {
        let found = self.runs.range(..=first.number).next_back().map(|(&begin, &run)| (begin, run));
        let (begin, run) = found.filter(|(_, run)| last.number < run.end).expect("T1: what finishes was unfinished");
        self.runs.remove(&begin);
        if begin < first.number {
            let span = Span { first: run.span.first, next: first.offset };
            self.runs.insert(begin, Run { end: first.number, span });
        }
        if last.number + 1 < run.end {
            let span = Span { first: last.offset.next(), next: run.span.next };
            self.runs.insert(last.number + 1, Run { end: run.end, span });
        }
    }

    /// The runs as ranges of offsets, ascending.
    pub(super) fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.runs.values().map(|run| run.span)
    }

    /// How many runs there are.
    #[cfg(test)]
    fn len(&self) -> usize {
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
        unfinished.spans().map(|span| (span.first.get(), span.next.get())).collect()
    }

    #[test]
    fn records_that_the_filter_turns_away_do_not_cut_a_run_and_finished_ones_do() {
        let mut unfinished = Unfinished::default();
        let places: Vec<Place> =
            [0, 4, 9, 12].map(|at| Place { offset: offset(at), number: unfinished.push(offset(at)) }).to_vec();
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
        let place = Place { offset: offset(3), number: unfinished.push(offset(3)) };
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
                open.push(Place { offset: offset(at), number: unfinished.push(offset(at)) });
            }
            let mut done = BTreeSet::new();
            for index in finished {
                if open.is_empty() {
                    break;
                }
                let place = open.remove(index.index(open.len()));
                done.insert(place.offset);
                unfinished.finish([place]);
                let held = |offset: Offset| unfinished.spans().filter(|span| span.contains(offset)).count();
                prop_assert!(open.iter().all(|place| held(place.offset) == 1));
                prop_assert!(done.iter().all(|&offset| held(offset) == 0));
                prop_assert!(open.is_empty() == (unfinished.len() == 0), "no run without records");
            }
        }
    }
}
