//! Producers read back from the batches of a log.

use super::Producers;
use crate::batch::BatchHeader;
use crate::offset::Offset;

/// The producers as of an offset, while the log is read on.
pub(crate) struct Replay {
    producers: Producers,
    next: Offset,
}

impl Replay {
    /// Goes on from what is known of them as of `next`.
    pub(crate) const fn new(producers: Producers, next: Offset) -> Self {
        Self { producers, next }
    }

    /// The next batch, written at `now_ms`.
    pub(crate) fn record(&mut self, header: &BatchHeader, now_ms: i64) {
        self.pass_to(header.base_offset);
        self.producers.record(header, header.base_offset, now_ms);
        self.next = header.next_offset();
    }

    /// What damaged batches said of their producers is lost, in a segment, at its end or with all of it: those go on
    /// with a gap, as when they were forgotten.
    pub(crate) fn pass_to(&mut self, offset: Offset) {
        if self.next < offset {
            self.producers.record_hole(offset);
            self.next = offset;
        }
    }

    /// The producers as of `end`.
    pub(crate) fn finish(mut self, end: Offset) -> Producers {
        self.pass_to(end);
        self.producers
    }
}
