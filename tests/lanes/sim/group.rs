//! A lane on a cluster: what is given up has no verdict in a journal. Its letters are numbered by their producer, and
//! whoever takes over asks how far that came.

use std::collections::BTreeMap;

use fastrand::Rng;
use tripline::function::{ErrorClass, InvocationError};
use tripline::trigger::lane::{Begun, BegunLetters, Outcome, WindowId};
use tripline_storage::Offset;

use super::model::{Fate, Record, Written};
use super::world::{Checked, World};

macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// How far the letters of a window are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Letters {
    /// Nobody knows of them yet.
    Undecided,
    /// The next commit tells of their producer.
    Told(i64),
    /// That is known, and they are written.
    Known(Begun),
}

/// What the cluster remembers of a producer.
#[derive(Clone, Debug)]
struct Producer {
    /// Whose letters it writes, by number.
    offsets: Vec<Offset>,
    /// So many it sent, or those that followed were gone.
    sent: usize,
}

/// What a lane has on a cluster besides its progress.
#[derive(Debug, Default)]
pub(crate) struct Group {
    letters: BegunLetters,
    /// What was committed last.
    committed: BTreeMap<Offset, i64>,
    /// A commit has room for so many.
    committed_max: usize,
    producers: Vec<Producer>,
}

impl Group {
    pub(super) fn new(rng: &mut Rng) -> Self {
        Self { committed_max: rng.usize(2..6), ..Self::default() }
    }

    /// Where the windows begin whose letters are known to be begun.
    pub(super) fn committed(&self) -> Vec<Offset> {
        self.committed.keys().copied().collect()
    }

    fn producer(&mut self, id: i64) -> &mut Producer {
        usize::try_from(id).ok().and_then(|index| self.producers.get_mut(index)).expect("it was begun")
    }
}

impl World {
    /// How far the letters of a window are that is given up now; `None` where there is a journal.
    pub(super) fn letters_of(&mut self, window: WindowId) -> Result<Option<Letters>, String> {
        let Some(group) = &mut self.group else { return Ok(None) };
        let Some(begun) = group.letters.take_up(&self.lane, window) else { return Ok(Some(Letters::Undecided)) };
        let Producer { offsets, .. } = group.producer(begun.producer_id).clone();
        ensure!(begun.records == offsets.len(), "T1: letters of {offsets:?} are taken for {begun:?}");
        if begun.is_whole {
            let now = self.lane.offsets(window);
            ensure!(now == offsets, "T1: letters of {offsets:?} are numbered as those of {now:?}");
        }
        Ok(Some(Letters::Known(begun)))
    }

    /// One step towards the letters of a window. Answers whether they are all there.
    pub(super) fn write_letters(&mut self, index: usize) -> Result<bool, String> {
        let (window, offsets) = (self.settling[index].window, self.settling[index].offsets.clone());
        let Some(group) = &mut self.group else { return Ok(true) };
        let begun = match self.settling[index].letters {
            Some(Letters::Known(begun)) => begun,
            Some(Letters::Told(_)) => {
                self.dirty = true;
                return Ok(false);
            }
            Some(Letters::Undecided) | None => {
                let id = i64::try_from(group.producers.len()).expect("few of them");
                group.producers.push(Producer { offsets, sent: 0 });
                group.letters.begin(window, id);
                self.settling[index].letters = Some(Letters::Told(id));
                self.dirty = true;
                return Ok(false);
            }
        };
        let id = begun.producer_id;
        let Producer { offsets: meant, sent } = group.producer(id).clone();
        if !begun.is_whole {
            if sent >= begun.records {
                return Ok(true);
            }
            for offset in offsets {
                self.model.get_mut(offset).may_double = true;
            }
            self.settling[index].letters = Some(Letters::Undecided);
            let line = format!("letters of {meant:?} begin anew for {window:?}");
            self.tell(&line);
            return Ok(false);
        }
        for (number, offset) in meant.iter().enumerate().skip(sent) {
            if *offset < self.model.log_start {
                continue;
            }
            let line = format!("letter {number} of producer {id}: {offset}");
            self.tell(&line);
            let record = self.model.get_mut(*offset);
            record.letters += 1;
            ensure!(record.letters == 1 || record.may_double, "two dead letters of {record:?}");
            let group = self.group.as_mut().expect("it is one");
            group.producer(id).sent = number + 1;
            match self.rng.u32(..8) {
                0 => self.crash()?,
                1 => {
                    self.expire();
                    self.crash()?;
                }
                2 | 3 => {}
                _ => continue,
            }
            return Ok(false);
        }
        Ok(true)
    }

    pub(super) fn settle_in_group(&mut self, index: usize) -> Checked {
        let settling = self.settling.swap_remove(index);
        let line = format!("settle {:?}", settling.window);
        self.tell(&line);
        self.lane.settle(settling.window, self.now_ms);
        let log_start = self.model.log_start;
        for offset in settling.offsets {
            let record = self.model.get_mut(offset);
            let is_gone = offset < log_start;
            ensure!(record.letters > 0 || is_gone, "T1: settled without a letter: {record:?}");
            (record.tried, record.fate) = (None, if record.letters > 0 { Fate::Lettered } else { Fate::Expired });
        }
        self.dirty = true;
        Ok(())
    }

    /// What is written now tells of letters that are begun.
    pub(super) fn commit_letters(&mut self) {
        let Some(group) = &mut self.group else { return };
        let mut listed = group.letters.listed(&self.lane);
        listed.truncate(group.committed_max);
        group.committed = listed.iter().map(|listed| (listed.first, listed.producer_id)).collect();
        for settling in &mut self.settling {
            let is_told = listed.iter().any(|listed| listed.window == Some(settling.window));
            if let Some(Letters::Told(producer_id)) = settling.letters
                && is_told
            {
                let records = settling.offsets.len();
                settling.letters = Some(Letters::Known(Begun { producer_id, records, is_whole: true }));
            }
        }
        let line = format!("commit {:?}", group.committed);
        self.tell(&line);
    }

    /// Windows that somebody gave up before are not invoked again.
    pub(super) fn end_known(&mut self) -> Checked {
        let Some(group) = &self.group else { return Ok(()) };
        let is_known = |window: &WindowId| group.letters.has(&self.lane, *window);
        let known: Vec<WindowId> = self.starting.extract_if(.., |window| is_known(window)).collect();
        for window in known {
            let offsets = self.lane.offsets(window);
            let error = InvocationError::new(ErrorClass::Rejected, "given-up", "by the process that had it before");
            self.lane.end(window, Outcome::failed(offsets.clone(), error), self.now_ms, 0);
            for offset in offsets {
                let record = self.model.get_mut(offset);
                record.given_up = true;
                record.tried.as_mut().expect("what starts is tried").running = false;
            }
            self.dirty = true;
        }
        Ok(())
    }

    /// Another process goes on.
    pub(super) fn take_over(&mut self) {
        let Some(group) = &mut self.group else { return };
        group.letters = BegunLetters::carried(group.committed.clone());
        self.lane.expect_letters(group.letters.begun_at());
    }

    /// Of windows that begin anew nobody knows which records have letters.
    pub(super) fn may_double(&mut self, written: &Written, same: &[bool]) {
        let Some(group) = &self.group else { return };
        let begins_anew = |record: &Record| {
            let index = written.index_of(record).filter(|index| !same[*index]);
            index.is_some_and(|index| group.committed.contains_key(&written.progress().windows()[index].span.first))
        };
        for record in &mut self.model.records {
            record.may_double |= begins_anew(record);
        }
    }

    /// Another filter is in force: what it turns away has no letters any more, and may be let in again.
    pub(super) fn may_double_all(&mut self) {
        if self.group.is_some() {
            self.model.records.iter_mut().filter(|record| record.letters > 0).for_each(|record| record.may_double = true);
        }
    }
}
