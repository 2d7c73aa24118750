//! Whether what a target was sent is what triggers promise: nothing lost, nothing out of order in a lane, repeats only
//! after kills and no more of them than were in flight, nothing after a dead letter, no attempt forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Partition and offset of a record.
pub(super) type Place = (u32, i64);
/// A point in the order of all that a target saw and did.
pub(super) type Tick = u64;

/// What may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Partition,
    Key,
    None,
}

/// How a target answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Everything was taken but these.
    Taken { failed: Vec<Place> },
    /// A failure that spends an attempt.
    Failed,
    /// Not now; no attempt is spent.
    Later,
    /// Never.
    Refused,
    /// The caller went away first.
    Cut,
}

/// One invocation as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// Kills before it.
    pub(super) generation: usize,
    pub(super) id: String,
    pub(super) attempt: u32,
    pub(super) places: Vec<Place>,
    pub(super) begun: Tick,
    pub(super) begun_ms: i64,
    /// `None`: nothing came of it yet.
    pub(super) ended: Option<(Tick, Answer)>,
}

/// One dead letter.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) place: Place,
    pub(super) written_ms: i64,
    pub(super) last_attempt_ms: i64,
}

/// A trigger and all that became of its records.
#[derive(Debug)]
pub(super) struct History {
    pub(super) order: Order,
    pub(super) concurrency: usize,
    /// A failed window may be halved, which spends no attempt.
    pub(super) bisect: bool,
    pub(super) timeout_ms: i64,
    /// The records that match, with their keys.
    pub(super) wanted: BTreeMap<Place, String>,
    /// By their beginning.
    pub(super) calls: Vec<Call>,
    pub(super) letters: Vec<Letter>,
    /// When each kill was, in ms since 1970.
    pub(super) kills_ms: Vec<i64>,
}

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) records: usize,
    pub(super) calls: usize,
    pub(super) letters: usize,
    /// Windows that came again after they had been taken.
    pub(super) repeats: usize,
    /// The most of them after one kill.
    pub(super) repeats_max: usize,
}

/// The clocks of two processes on one machine, and a time stamp taken before a write.
const CLOCK_SLACK_MS: i64 = 20;
/// How long after a time-out the target may learn of it.
const CUT_SLACK_MS: i64 = 100;

impl History {
    pub(super) fn check(&self) -> Result<Seen, String> {
        self.check_wanted()?;
        let letters = self.check_letters()?;
        let finished = self.check_finished(&letters)?;
        self.check_order(&finished)?;
        self.check_overlap()?;
        self.check_attempts()?;
        let (repeats, repeats_max) = self.check_repeats()?;
        let (records, calls) = (self.wanted.len(), self.calls.len());
        Ok(Seen { records, calls, letters: letters.len(), repeats, repeats_max })
    }

    fn check_wanted(&self) -> Result<(), String> {
        for call in &self.calls {
            if let Some(place) = call.places.iter().find(|place| !self.wanted.contains_key(place)) {
                return Err(format!("{place:?} does not match and was sent: {call:?}"));
            }
            if !call.places.is_sorted() {
                return Err(format!("a window out of order: {call:?}"));
            }
        }
        Ok(())
    }

    /// Kills up to a time.
    fn generation_at(&self, ms: i64) -> usize {
        self.kills_ms.partition_point(|kill_ms| *kill_ms <= ms)
    }

    fn check_letters(&self) -> Result<HashMap<Place, &Letter>, String> {
        let mut letters = HashMap::new();
        for letter in &self.letters {
            if !self.wanted.contains_key(&letter.place) {
                return Err(format!("a dead letter of a record that does not match: {letter:?}"));
            }
            if letters.insert(letter.place, letter).is_some() {
                return Err(format!("two dead letters of {:?}", letter.place));
            }
        }
        for call in &self.calls {
            for letter in call.places.iter().filter_map(|place| letters.get(place)) {
                let late = call.begun_ms > letter.written_ms + CLOCK_SLACK_MS
                    || call.generation > self.generation_at(letter.last_attempt_ms);
                if late {
                    return Err(format!("sent after it was given up: {letter:?}, {call:?}"));
                }
            }
        }
        Ok(letters)
    }

    /// When each record was finished.
    fn check_finished(&self, letters: &HashMap<Place, &Letter>) -> Result<HashMap<Place, Tick>, String> {
        let mut finished: HashMap<Place, Tick> = HashMap::new();
        let mut last_begun: HashMap<Place, Tick> = HashMap::new();
        for call in &self.calls {
            for place in &call.places {
                last_begun.insert(*place, call.begun);
            }
            for (tick, place) in call.taken() {
                finished.entry(place).and_modify(|first| *first = tick.min(*first)).or_insert(tick);
            }
        }
        for (place, key) in &self.wanted {
            if !finished.contains_key(place) && !letters.contains_key(place) {
                return Err(format!("{place:?} of key {key} was neither taken nor became a dead letter"));
            }
        }
        for place in letters.keys() {
            let given_up = last_begun.get(place).copied().unwrap_or_default();
            finished.entry(*place).or_insert(given_up);
        }
        Ok(finished)
    }

    fn lane(&self, place: &Place) -> Option<(u32, &str)> {
        match self.order {
            Order::Partition => Some((place.0, "")),
            Order::Key => Some((place.0, self.wanted[place].as_str())),
            Order::None => None,
        }
    }

    /// Nothing is sent before all that is ahead of it in its lane is finished or comes with it.
    fn check_order(&self, finished: &HashMap<Place, Tick>) -> Result<(), String> {
        let mut lanes: HashMap<(u32, &str), Vec<Place>> = HashMap::new();
        for place in self.wanted.keys() {
            if let Some(lane) = self.lane(place) {
                lanes.entry(lane).or_default().push(*place);
            }
        }
        // Up to each record of a lane, when the last one was finished.
        let latest = |places: &Vec<Place>| -> Vec<Tick> {
            let ticks = places.iter().scan(0, |latest: &mut Tick, place| {
                *latest = finished[place].max(*latest);
                Some(*latest)
            });
            ticks.collect()
        };
        let latest: HashMap<(u32, &str), Vec<Tick>> = lanes.iter().map(|(lane, of)| (*lane, latest(of))).collect();
        for call in &self.calls {
            let sent: BTreeSet<&Place> = call.places.iter().collect();
            for place in &call.places {
                let Some(lane) = self.lane(place) else { continue };
                let (places, latest) = (&lanes[&lane], &latest[&lane]);
                let index = places.partition_point(|other| other < place);
                let ahead = (0..index).rev().take_while(|&index| latest[index] >= call.begun);
                for other in ahead.map(|index| &places[index]) {
                    if !sent.contains(other) && finished[other] >= call.begun {
                        return Err(format!("{place:?} was sent before {other:?} was finished: {call:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// One invocation of a lane at a time.
    fn check_overlap(&self) -> Result<(), String> {
        let mut last: HashMap<(u32, &str), &Call> = HashMap::new();
        for call in &self.calls {
            for lane in call.places.iter().filter_map(|place| self.lane(place)) {
                let Some(before) = last.insert(lane, call) else { continue };
                if before.begun == call.begun || before.generation != call.generation {
                    continue;
                }
                let timed_out = call.begun_ms - before.begun_ms >= self.timeout_ms - CUT_SLACK_MS
                    && before.ended.as_ref().is_none_or(|(_, answer)| *answer == Answer::Cut);
                let over = before.ended.as_ref().is_some_and(|(tick, _)| *tick < call.begun);
                if !over && !timed_out {
                    return Err(format!("two invocations of {lane:?} at a time: {before:?}, {call:?}"));
                }
            }
        }
        Ok(())
    }

    /// Attempts count up, also across kills, until the record is taken.
    fn check_attempts(&self) -> Result<(), String> {
        let mut last: HashMap<Place, &Call> = HashMap::new();
        for call in &self.calls {
            for place in &call.places {
                let Some(before) = last.get(place) else { continue };
                let spent = match &before.ended {
                    _ if self.bisect || before.generation != call.generation => None,
                    Some((_, Answer::Failed | Answer::Taken { .. })) => Some(1),
                    Some((_, Answer::Later)) => Some(0),
                    _ => None,
                };
                // A window is called the same for as long as it is whole and its broker lives.
                let counted = spent.is_none_or(|spent| call.attempt == before.attempt + spent && call.id == before.id);
                if call.attempt < before.attempt || !counted {
                    return Err(format!("attempts of {place:?} do not go on: {before:?}, {call:?}"));
                }
            }
            let taken: BTreeSet<Place> = call.taken().map(|(_, place)| place).collect();
            for place in &call.places {
                if taken.contains(place) {
                    last.remove(place)
                } else {
                    last.insert(*place, call)
                };
            }
        }
        Ok(())
    }

    /// What was taken comes again only after a kill, and at most what was in flight then. Answers how many windows in
    /// all, and the most after one kill.
    fn check_repeats(&self) -> Result<(usize, usize), String> {
        let mut taken: HashMap<Place, usize> = HashMap::new();
        let mut repeated: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for (index, call) in self.calls.iter().enumerate() {
            for place in &call.places {
                let Some(&before) = taken.get(place) else { continue };
                let generation = self.calls[before].generation;
                if generation == call.generation {
                    return Err(format!("{place:?} was sent again without a kill: {:?}, {call:?}", self.calls[before]));
                }
                repeated.entry(generation).or_default().insert(before);
            }
            taken.extend(call.taken().map(|(_, place)| (place, index)));
        }
        let max = repeated.iter().max_by_key(|(_, windows)| windows.len());
        if let Some((generation, windows)) = max.filter(|(_, windows)| windows.len() > self.concurrency) {
            let windows: Vec<&Call> = windows.iter().map(|index| &self.calls[*index]).collect();
            return Err(format!(
                "after kill {generation} {} windows came again, {} were in flight at most: {windows:#?}",
                windows.len(),
                self.concurrency
            ));
        }
        Ok((repeated.values().map(BTreeSet::len).sum(), max.map_or(0, |(_, windows)| windows.len())))
    }
}

impl Call {
    /// The records that were taken, and when.
    fn taken(&self) -> impl Iterator<Item = (Tick, Place)> {
        let taken = match &self.ended {
            Some((tick, Answer::Taken { failed })) => Some((*tick, failed)),
            _ => None,
        };
        taken.into_iter().flat_map(|(tick, failed)| {
            self.places.iter().filter(|place| !failed.contains(place)).map(move |place| (tick, *place))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Answer = Answer::Taken { failed: Vec::new() };

    fn history(order: Order, calls: Vec<Call>) -> History {
        let wanted = (0..4).map(|offset| ((0, offset), format!("k{}", offset % 2))).collect();
        History {
            order,
            concurrency: 1,
            bisect: false,
            timeout_ms: 1000,
            wanted,
            calls,
            letters: Vec::new(),
            kills_ms: Vec::new(),
        }
    }

    fn call(offsets: &[i64], attempt: u32, begun: Tick, answer: Answer) -> Call {
        let places = offsets.iter().map(|offset| (0, *offset)).collect();
        let ended = Some((begun + 1, answer));
        Call { generation: 0, id: String::new(), attempt, places, begun, begun_ms: begun.cast_signed(), ended }
    }

    fn letter(offset: i64, ms: i64) -> Letter {
        Letter { place: (0, offset), written_ms: ms, last_attempt_ms: ms }
    }

    #[test]
    fn what_triggers_promise_is_accepted() {
        let failed = Answer::Taken { failed: vec![(0, 1)] };
        let calls = vec![
            call(&[0, 1], 1, 1, failed),
            call(&[1], 2, 3, Answer::Later),
            call(&[1], 2, 5, OK),
            call(&[2, 3], 1, 7, OK),
        ];
        let seen = history(Order::Partition, calls).check().unwrap();
        assert_eq!(seen, Seen { records: 4, calls: 4, ..Seen::default() });
        let keys = vec![call(&[1, 3], 1, 1, OK), call(&[0, 2], 1, 3, OK)];
        assert!(history(Order::Key, keys).check().is_ok());
        let mut given_up =
            history(Order::Partition, vec![call(&[0], 1, 1, Answer::Refused), call(&[1, 2, 3], 1, 3, OK)]);
        given_up.letters = vec![letter(0, 2)];
        assert_eq!(given_up.check().unwrap().letters, 1);
    }

    #[test]
    fn each_broken_promise_is_found() {
        let broken = |order, calls: Vec<Call>| history(order, calls).check().unwrap_err();
        assert!(broken(Order::Partition, vec![call(&[0, 1, 2], 1, 1, OK)]).contains("neither taken"));
        assert!(broken(Order::Partition, vec![call(&[9], 1, 1, OK)]).contains("does not match"));
        let early = vec![call(&[1, 2, 3], 1, 1, OK), call(&[0], 1, 3, OK)];
        assert!(broken(Order::Partition, early.clone()).contains("before (0, 0) was finished"));
        assert!(broken(Order::Key, early.clone()).contains("(0, 2) was sent before"));
        assert!(history(Order::None, early).check().is_ok());
        let mut both = vec![call(&[0, 1, 2, 3], 1, 1, OK), call(&[0], 1, 3, OK)];
        assert!(broken(Order::Partition, both.clone()).contains("without a kill"));
        both[0].ended = None;
        both[1] = call(&[0, 1, 2, 3], 1, 3, OK);
        assert!(broken(Order::Partition, both).contains("at a time"));
        let forgotten = vec![call(&[0, 1, 2, 3], 2, 1, Answer::Failed), call(&[0, 1, 2, 3], 2, 3, OK)];
        assert!(broken(Order::Partition, forgotten).contains("do not go on"));
        let spent = vec![call(&[0, 1, 2, 3], 2, 1, Answer::Later), call(&[0, 1, 2, 3], 3, 3, OK)];
        assert!(broken(Order::Partition, spent).contains("do not go on"));
    }

    #[test]
    fn repeats_are_counted_per_kill() {
        let mut calls = vec![call(&[0, 1], 1, 1, OK), call(&[2, 3], 1, 3, OK), call(&[2, 3], 1, 5, OK)];
        calls[2].generation = 1;
        let seen = history(Order::Partition, calls.clone()).check().unwrap();
        assert_eq!((seen.repeats, seen.repeats_max), (1, 1));
        calls.insert(2, Call { generation: 1, ..call(&[0, 1], 1, 4, OK) });
        calls[2].ended = Some((4, OK));
        assert!(history(Order::Partition, calls).check().unwrap_err().contains("2 windows came again"));
    }

    #[test]
    fn a_dead_letter_comes_once_and_ends_all() {
        let calls = vec![call(&[0, 1, 2, 3], 1, 1, Answer::Refused), call(&[0, 1, 2, 3], 2, 500, OK)];
        let mut sent_again = history(Order::Partition, calls);
        sent_again.letters = (0..4).map(|offset| letter(offset, 2)).collect();
        assert!(sent_again.check().unwrap_err().contains("after it was given up"));
        sent_again.calls[1].begun_ms = 10;
        assert!(sent_again.check().is_ok(), "clocks are not that exact");
        sent_again.kills_ms = vec![5];
        sent_again.calls[1].generation = 1;
        assert!(sent_again.check().unwrap_err().contains("after it was given up"));
        sent_again.calls.truncate(1);
        sent_again.letters.push(letter(3, 2));
        assert!(sent_again.check().unwrap_err().contains("two dead letters"));
    }
}
