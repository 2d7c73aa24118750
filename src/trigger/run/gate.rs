//! Which letters of a dead-letter topic a redrive takes.
//!
//! Decided by the letter and by what was known when the run started, so that a run which goes on after a crash decides
//! the same.

use std::collections::HashMap;

use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::{LeaderEpoch, Offset};

use super::{RunDefinition, RunKind};
use crate::input::{Origin, letter_text, redrives};
use crate::trigger::filter::{Pattern, PatternError};

/// What is decided of a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It is taken.
    Taken,
    /// It is no letter of this trigger.
    NotOurs,
    /// Somebody discarded it.
    Discarded,
    /// An earlier redrive took it.
    Redriven,
    /// The pattern turns it away.
    TurnedAway,
    /// It was redriven too often.
    PassedOver,
}

/// An earlier redrive: the letters that it took.
#[derive(Clone, Debug)]
pub struct Redriven {
    definition: RunDefinition,
    filter: Option<Pattern>,
}

/// What a redrive of one trigger takes.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// The trigger's name.
    pub trigger: String,
    /// Which letters; `None` takes all.
    pub filter: Option<Pattern>,
    /// Letters that were redriven so often are passed over.
    pub redrives_max: Option<u32>,
    /// Redrives whose letters are not taken again.
    pub earlier: Vec<Redriven>,
    /// By partition: letters below are not wanted any more.
    pub discarded_below: HashMap<u32, Offset>,
}

impl Redriven {
    /// The letters of a redrive.
    ///
    /// # Errors
    /// Its pattern is none.
    pub fn new(definition: RunDefinition) -> Result<Self, PatternError> {
        debug_assert_eq!(definition.kind, RunKind::Redrive, "only a redrive takes letters");
        let filter = definition.filter.as_ref().map(Pattern::parse).transpose()?;
        Ok(Self { definition, filter })
    }

    fn took(&self, letter: &Letter<'_, '_>) -> bool {
        let (partition, offset) = (letter.origin.partition, letter.record.offset());
        self.definition.range(partition).is_some_and(|range| range.contains(partition, offset))
            && !self.definition.left.contains(partition, offset, letter.record.key())
            && !is_too_many(letter.redrives, self.definition.redrives_max)
            && self.filter.as_ref().is_none_or(|filter| letter.matches(filter))
    }
}

/// A letter and where it lies.
struct Letter<'r, 'b> {
    record: &'r StoredRecord<'b>,
    origin: &'r Origin,
    epoch: LeaderEpoch,
    redrives: u32,
}

impl Letter<'_, '_> {
    /// Patterns see the record as it was, and among its headers the reasons why it became a letter.
    fn matches(&self, pattern: &Pattern) -> bool {
        self.origin.with_reason(self.record, self.epoch, |event| pattern.matches(event))
    }
}

const fn is_too_many(redrives: u32, max: Option<u32>) -> bool {
    matches!(max, Some(max) if redrives >= max)
}

impl Gate {
    /// Decides about a record of the dead-letter topic. `origin` shows its letters as what they were.
    #[must_use]
    pub fn admit(&self, record: &StoredRecord<'_>, origin: &Origin, epoch: LeaderEpoch) -> Admission {
        if letter_text(record, "trigger") != Some(self.trigger.as_str()) {
            return Admission::NotOurs;
        }
        if self.discarded_below.get(&origin.partition).is_some_and(|below| record.offset() < *below) {
            return Admission::Discarded;
        }
        let letter = Letter { record, origin, epoch, redrives: redrives(record) };
        if self.earlier.iter().any(|earlier| earlier.took(&letter)) {
            return Admission::Redriven;
        }
        if self.filter.as_ref().is_some_and(|filter| !letter.matches(filter)) {
            return Admission::TurnedAway;
        }
        if is_too_many(letter.redrives, self.redrives_max) {
            return Admission::PassedOver;
        }
        Admission::Taken
    }
}
