//! What `describe` shows of a lane: written by the one who drives it, read by anybody.

use parking_lot::Mutex;
use tripline_storage::Offset;

use super::lane::{Lane, LaneLook};
use super::service::LaneReport;
use crate::input::{EventInput, Origin};

#[derive(Debug)]
pub(super) struct LaneStatus {
    input: EventInput,
    number: u32,
    /// Of a run: where it ends.
    until: Option<Offset>,
    shown: Mutex<(Offset, LaneLook)>,
}

impl LaneStatus {
    pub(super) fn new(input: EventInput, committed: Offset, until: Option<Offset>) -> Self {
        let number = input.origin().partition;
        Self { input, number, until, shown: Mutex::new((committed, LaneLook::default())) }
    }

    pub(super) fn show(&self, lane: &Lane, committed: Offset) {
        *self.shown.lock() = (committed, lane.look());
    }

    /// Nothing is in hand any more.
    pub(super) fn ended(&self) {
        self.shown.lock().1 = LaneLook::default();
    }

    pub(super) fn report(&self) -> LaneReport {
        let (committed, look) = self.shown.lock().clone();
        LaneReport {
            topic: self.origin().topic.clone(),
            partition: self.number,
            committed,
            tail: self.until.unwrap_or_else(|| self.input.tail()),
            in_flight_records: u32::try_from(look.in_flight_records).unwrap_or(u32::MAX),
            attempts: look.attempts,
            next_attempt_ms: look.next_attempt_ms,
            last_error: look.last_error,
            blocked_keys: look.blocked_keys,
            full: look.full,
        }
    }

    /// Everything below is finished.
    pub(super) fn committed(&self) -> Offset {
        self.shown.lock().0
    }

    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    /// Its topic and partition, in the order in which lanes are shown.
    pub(super) fn place(&self) -> (&str, u32) {
        (&self.origin().topic, self.number)
    }

    /// What it reads.
    pub(super) const fn input(&self) -> &EventInput {
        &self.input
    }

    /// The partition that it reads.
    pub(super) fn origin(&self) -> &Origin {
        self.input.origin()
    }
}
