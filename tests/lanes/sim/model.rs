//! What must become of each record, kept in the plainest way: a list with one entry per record of the log.

use std::collections::BTreeMap;

use tripline::trigger::progress::{Progress, TriedAttempts, TriedWindow, fingerprint};
use tripline_storage::Offset;

/// What has become of a matching record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    /// It has to be delivered.
    Unfinished,
    /// Its invocation succeeded.
    Delivered,
    /// Its verdict was carried out.
    Lettered,
    /// A newer one replaced it, or its key was busy.
    Withheld,
    /// Retention took it.
    Expired,
}

/// The attempts that a record's window has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tried {
    pub(crate) attempts: u32,
    /// Where only the lane knows whether one was spent.
    pub(crate) attempts_max: u32,
    pub(crate) interrupted: u32,
    pub(crate) running: bool,
    /// It stood there running when the broker stopped, with so many attempts and interruptions: it does so until its
    /// window is made again.
    pub(crate) stopped_at: Option<(u32, u32)>,
    /// Not before; known after most outcomes.
    pub(crate) next_attempt_ms: Option<i64>,
}

/// A record of the log.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) offset: Offset,
    pub(crate) key: u64,
    pub(crate) size_bytes: u64,
    pub(crate) appended_ms: i64,
    pub(crate) matches: bool,
    /// The filter does not let it in any more. What was tried goes on, for as long as it is in hand.
    pub(crate) doubtful: bool,
    /// Its window was still to be made again when the filter changed: only the lane knows what it found of it.
    pub(crate) unsure: bool,
    /// It lies between records that were unfinished when a filter began to let it in. Before that is written down, a
    /// crash forgets it.
    pub(crate) let_in: bool,
    /// Whatever it is part of fails.
    pub(crate) poison: bool,
    pub(crate) fate: Fate,
    pub(crate) tried: Option<Tried>,
    /// Its attempts are spent; nothing waits for it.
    pub(crate) given_up: bool,
    /// It was refused by itself and goes its own way behind its window.
    pub(crate) aside: bool,
    /// Its verdict is in the journal, or was.
    pub(crate) verdict: bool,
    /// Which window it was first tried in. What of that was delivered may be written as unfinished until all of it is.
    pub(crate) group: u64,
    /// It was delivered before a crash, and is delivered again: what comes behind it need not wait.
    pub(crate) repeated: bool,
    pub(crate) letters: u32,
    /// An attempt was made on it, at some time.
    pub(crate) invoked: bool,
    /// Which of its window had a letter was forgotten.
    pub(crate) may_double: bool,
}

impl Record {
    /// Whether it has to be delivered.
    pub(crate) fn is_left(&self) -> bool {
        self.matches && self.fate == Fate::Unfinished
    }
}

/// All records, and how far the log reaches.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) records: Vec<Record>,
    pub(crate) log_start: Offset,
    pub(crate) tail: Offset,
}

impl Model {
    pub(crate) fn index_from(&self, offset: Offset) -> usize {
        self.records.partition_point(|record| record.offset < offset)
    }

    pub(crate) fn get(&self, offset: Offset) -> &Record {
        let record = &self.records[self.index_from(offset)];
        assert_eq!(record.offset, offset, "there is such a record");
        record
    }

    pub(crate) fn get_mut(&mut self, offset: Offset) -> &mut Record {
        let index = self.index_from(offset);
        let record = &mut self.records[index];
        assert_eq!(record.offset, offset, "there is such a record");
        record
    }

    pub(crate) fn unfinished(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.is_left())
    }

    /// Retention moves the log start.
    pub(crate) fn expire_to(&mut self, log_start: Offset) {
        self.log_start = self.log_start.max(log_start);
        for record in self.records.iter_mut().filter(|record| record.offset < log_start) {
            if record.fate == Fate::Unfinished && !record.verdict {
                record.fate = Fate::Expired;
            }
        }
    }
}

/// What written progress says, looked up as its format is described and in no cleverer way.
pub(crate) struct Written {
    progress: Progress,
    keys: BTreeMap<u64, Offset>,
}

impl Written {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let progress = Progress::decode(bytes).map_err(|error| format!("written progress does not decode: {error}"))?;
        Ok(Self::of(progress))
    }

    pub(crate) fn of(progress: Progress) -> Self {
        let keys = progress.blocked_keys().iter().map(|key| (key.hash, key.first)).collect();
        Self { progress, keys }
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    fn in_hole(&self, offset: Offset) -> bool {
        self.progress.holes().iter().any(|hole| hole.contains(offset))
    }

    /// Whether a restart delivers this record, if there is no verdict on it.
    pub(crate) fn covers(&self, record: &Record) -> bool {
        record.offset >= self.progress.reading_point() || self.in_hole(record.offset) || self.is_behind_key(record)
    }

    /// Whether it is read again for its key.
    pub(crate) fn is_behind_key(&self, record: &Record) -> bool {
        self.keys.get(&record.key).is_some_and(|first| *first <= record.offset)
    }

    /// The tried window that a record belongs to: the innermost of its key, or else without one.
    pub(crate) fn window_of(&self, record: &Record) -> Option<&TriedWindow> {
        self.index_of(record).map(|index| &self.progress.windows()[index])
    }

    pub(crate) fn index_of(&self, record: &Record) -> Option<usize> {
        if !self.in_hole(record.offset) {
            return None;
        }
        let innermost = |key: Option<u64>| {
            let mut windows = self.progress.windows().iter();
            windows.rposition(|window| window.key == key && window.span.contains(record.offset))
        };
        innermost(Some(record.key)).or_else(|| innermost(None))
    }

    /// Whether each tried window goes on with these records, which the filter with this number lets in, where there are
    /// verdicts on those of `verdicts`.
    pub(crate) fn same(&self, records: &[&Record], filter: u32, verdicts: &[&[Offset]]) -> Vec<bool> {
        let decided = |offset: Offset| verdicts.iter().any(|offsets| offsets.contains(&offset));
        let windows = self.progress.windows().iter().enumerate();
        let one = |(index, window): (usize, &TriedWindow)| {
            let records = records.iter().filter(|record| self.index_of(record) == Some(index));
            let own: Vec<Offset> = records.map(|record| record.offset).filter(|offset| !decided(*offset)).collect();
            let span = (window.span.first.get()..window.span.next.get()).filter_map(Offset::new);
            let known: Vec<Offset> = span.filter(|offset| decided(*offset)).collect();
            let is_its = |offsets: &&[Offset]| {
                let left = || offsets.iter().filter(|offset| **offset >= self.progress.committed());
                left().min() == Some(&window.span.first)
                    && left().max().map(|last| last.next()) == Some(window.span.next)
            };
            let is_partly = own.len() < window.records as usize && !known.is_empty();
            if window.given_up.is_some() && (is_partly || verdicts.iter().any(is_its)) {
                return false;
            }
            let is_whole = |decided: &[Offset]| {
                let offsets = own.iter().chain(decided).copied();
                own.len() + decided.len() == window.records as usize && fingerprint(offsets) == window.fingerprint
            };
            let is_foreign = window.is_foreign || filter != self.progress.filter();
            if !is_foreign && window.letters().is_some() {
                return true;
            }
            let is_less = !is_foreign && own.len() < window.records as usize;
            is_less || is_whole(&[]) || is_whole(&known)
        };
        windows.map(one).collect()
    }

    /// The tried window that goes on with a record.
    pub(crate) fn goes_on(&self, record: &Record, same: &[bool]) -> Option<&TriedWindow> {
        self.index_of(record).filter(|index| same[*index]).map(|index| &self.progress.windows()[index])
    }
}

impl From<TriedAttempts> for Tried {
    fn from(attempts: TriedAttempts) -> Self {
        Self {
            attempts: attempts.attempts,
            attempts_max: attempts.attempts,
            interrupted: attempts.interrupted,
            stopped_at: None,
            running: attempts.running,
            next_attempt_ms: attempts.next_attempt_ms.map(|next_ms| i64::try_from(next_ms).unwrap_or(i64::MAX)),
        }
    }
}

impl Tried {
    /// Whether `found` is what is known.
    pub(crate) fn agrees(&self, found: &Self) -> bool {
        if found.running && self.stopped_at == Some((found.attempts, found.interrupted)) {
            return true;
        }
        (self.attempts..=self.attempts_max).contains(&found.attempts)
            && self.interrupted == found.interrupted
            && self.running == found.running
            && (self.next_attempt_ms.is_none() || self.next_attempt_ms == found.next_attempt_ms)
    }
}
