//! A lane on a cluster: what is given up has no verdict in a journal. Its letters are numbered by their producer, and
//! whoever takes over asks how far that came.

use tripline::trigger::lane::WindowId;
use tripline::trigger::progress;
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
    /// The next commit tells of this producer.
    Told(i64),
    /// One of the next does, when there is room.
    Waits(i64),
    /// It is in the next commit.
    Begun(progress::Letters),
    /// That is known, and they are written.
    Known(progress::Letters),
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
    producers: Vec<Producer>,
}

impl Group {
    fn producer(&mut self, id: i64) -> &mut Producer {
        let index = usize::try_from(i64::MAX - id).ok();
        index.and_then(|index| self.producers.get_mut(index)).expect("it was begun")
    }
}

impl World {
    /// How far the letters of a window are that is given up now; `None` where there is a journal.
    pub(super) fn letters_of(&mut self, window: WindowId) -> Result<Option<Letters>, String> {
        let Some(group) = &mut self.group else { return Ok(None) };
        let Some(begun) = self.lane.letters(window) else { return Ok(Some(Letters::Undecided)) };
        let Producer { offsets, .. } = group.producer(begun.producer_id).clone();
        ensure!(begun.records as usize == offsets.len(), "T1: letters of {offsets:?} are taken for {begun:?}");
        let now = self.lane.offsets(window);
        if begun.is_whole {
            ensure!(now == offsets, "T1: letters of {offsets:?} are numbered as those of {now:?}");
        } else {
            // Retention took some, or what had succeeded is found among them.
            let is_changed = offsets.iter().any(|offset| *offset < self.model.log_start) || now.len() > offsets.len();
            ensure!(
                is_changed || self.is_refiltered,
                "T1: letters of {offsets:?} are not known to be those of {now:?}"
            );
        }
        Ok(Some(Letters::Known(begun)))
    }

    /// One step towards the letters of a window. Answers whether there was one to make.
    pub(super) fn settle_in_group(&mut self, index: usize) -> Result<bool, String> {
        if let Some(Letters::Waits(_)) = self.settling[index].letters {
            return Ok(false);
        }
        if self.write_letters(index)? {
            self.are_written(index)?;
        }
        Ok(true)
    }

    /// Answers whether they are all there.
    fn write_letters(&mut self, index: usize) -> Result<bool, String> {
        let (window, offsets) = (self.settling[index].window, self.settling[index].offsets.clone());
        let Some(group) = &mut self.group else { return Ok(true) };
        let begun = match self.settling[index].letters {
            Some(Letters::Known(begun)) => begun,
            Some(Letters::Told(_) | Letters::Waits(_) | Letters::Begun(_)) => {
                self.dirty = true;
                return Ok(false);
            }
            Some(Letters::Undecided) | None => {
                // Ids that take as many bytes as any.
                let id = i64::MAX - i64::try_from(group.producers.len()).expect("few of them");
                group.producers.push(Producer { offsets, sent: 0 });
                self.settling[index].letters = Some(Letters::Told(id));
                self.dirty = true;
                return Ok(false);
            }
        };
        let id = begun.producer_id;
        let Producer { offsets: meant, sent } = group.producer(id).clone();
        if !begun.is_whole {
            if sent >= begun.records as usize {
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
            ensure!(record.invoked, "T1: a letter of what was never tried: {record:?}");
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

    fn are_written(&mut self, index: usize) -> Checked {
        let settling = self.settling.swap_remove(index);
        let line = format!("settle {:?}", settling.window);
        self.tell(&line);
        self.lane.settle(settling.window, self.now_ms);
        let log_start = self.model.log_start;
        for offset in settling.offsets {
            let record = self.model.get_mut(offset);
            record.tried = None;
            record.fate = if record.letters > 0 {
                Fate::Lettered
            } else if offset < log_start {
                Fate::Expired
            } else {
                // One that had succeeded needs none.
                ensure!(record.repeated, "T1: settled without a letter: {record:?}");
                Fate::Delivered
            };
        }
        self.dirty = true;
        Ok(())
    }

    /// Letters begin with what is written now, where they fit.
    pub(super) fn begin_letters(&mut self) {
        for settling in &mut self.settling {
            let Some(Letters::Told(producer_id) | Letters::Waits(producer_id)) = settling.letters else { continue };
            settling.letters = Some(Letters::Waits(producer_id));
            if self.lane.begin_letters(settling.window, producer_id) {
                settling.letters = self.lane.letters(settling.window).map(Letters::Begun);
            }
        }
    }

    /// That is known.
    pub(super) fn letters_are_known(&mut self) {
        for settling in &mut self.settling {
            if let Some(Letters::Begun(begun)) = settling.letters {
                settling.letters = Some(Letters::Known(begun));
            }
        }
    }

    /// Of windows that begin anew nobody knows which records have letters.
    pub(super) fn may_double(&mut self, written: &Written, same: &[bool]) {
        let begins_anew = |record: &Record| {
            let index = written.index_of(record).filter(|index| !same[*index]);
            index.is_some_and(|index| written.progress().windows()[index].letters().is_some())
        };
        for record in &mut self.model.records {
            record.may_double |= begins_anew(record);
        }
    }

    /// Another filter is in force: what it turns away has no letters any more, and may be let in again.
    pub(super) fn may_double_all(&mut self) {
        if self.group.is_some() {
            self.model
                .records
                .iter_mut()
                .filter(|record| record.letters > 0)
                .for_each(|record| record.may_double = true);
        }
    }
}
