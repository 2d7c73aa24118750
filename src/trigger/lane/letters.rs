//! Dead letters on a cluster. There is no journal there in which a verdict could stand: that a window is given up, and
//! who writes its letters, stands in progress, before the first of them is sent.

use super::{Lane, Phase, WindowId};
use crate::trigger::progress::Letters;

impl Lane {
    /// What is known of the dead letters of a window that was given up; `None` before somebody begins to write them.
    ///
    /// # Panics
    /// When it is not in hand.
    #[must_use]
    pub fn letters(&self, id: WindowId) -> Option<Letters> {
        self.windows[&id].letters
    }

    /// This producer, which has written nothing yet, writes the dead letters of a window that was given up: when that is
    /// written down they may be sent. `false`: it does not fit until others are settled. Those of one window always do.
    ///
    /// # Panics
    /// When the window was not given up, or the producer id is negative.
    pub fn begin_letters(&mut self, id: WindowId, producer_id: i64) -> bool {
        assert!(producer_id >= 0, "a producer id is not negative");
        let held = &self.windows[&id];
        assert!(matches!(held.phase, Phase::Settling(_)), "T1: only what was given up has dead letters");
        let is_new = held.letters.is_none();
        if is_new && !self.fits_letters() {
            return false;
        }
        self.reserve_letters(usize::from(is_new));
        let held = self.windows.get_mut(&id).expect("a window in hand");
        let records = u32::try_from(held.places.len()).unwrap_or(u32::MAX);
        held.letters = Some(Letters { producer_id, records, is_whole: true });
        true
    }
}
