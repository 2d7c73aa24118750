//! Dead letters on a cluster whose writing has begun: by which producer, over takeovers.
//!
//! A cluster has no journal in which a verdict could stand with its records. What is committed is the lane's progress,
//! which says what is given up, and beside it which producer writes the letters of which window: whoever takes over
//! asks the cluster how far that producer came.

use std::collections::BTreeMap;

use tripline_storage::Offset;

use super::{Lane, WindowId, Written};

/// Which producers write the dead letters of a lane's windows.
#[derive(Debug, Default)]
pub struct BegunLetters {
    /// Of windows in hand.
    windows: BTreeMap<WindowId, i64>,
    /// Of whoever had the lane before, by the first offset of their window in progress, until that is made again.
    carried: BTreeMap<Offset, i64>,
}

/// Letters that somebody began to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begun {
    /// Who writes them.
    pub producer_id: i64,
    /// How many records they were for.
    pub records: usize,
    /// Whether those are the records that there are now. Else nobody knows which is which, nor so the numbers of any.
    pub is_whole: bool,
}

/// What is committed of the letters of one window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The window; `None` where it is still to be made again.
    pub window: Option<WindowId>,
    /// Its first offset.
    pub first: Offset,
    /// Who writes its letters.
    pub producer_id: i64,
}

impl BegunLetters {
    /// What somebody else's commit tells of, by the first offset of each window in the progress that it came with: a lane
    /// that goes on from that is told of them by [`Lane::expect_letters`].
    #[must_use]
    pub const fn carried(carried: BTreeMap<Offset, i64>) -> Self {
        Self { windows: BTreeMap::new(), carried }
    }

    /// Where windows begin whose letters somebody else has begun.
    pub fn begun_at(&self) -> impl Iterator<Item = Offset> {
        self.carried.keys().copied()
    }

    /// This producer writes the letters of a window from now on. Nothing is written before that is committed.
    pub fn begin(&mut self, window: WindowId, producer_id: i64) {
        self.windows.insert(window, producer_id);
    }

    /// Whether somebody else has begun those of a window that is made again.
    #[must_use]
    pub fn has(&self, lane: &Lane, window: WindowId) -> bool {
        lane.written(window).is_some_and(|written| self.carried.contains_key(&written.first))
    }

    /// What is known of the letters of a window that is given up.
    pub fn take_up(&mut self, lane: &Lane, window: WindowId) -> Option<Begun> {
        if let Some(&producer_id) = self.windows.get(&window) {
            return Some(Begun { producer_id, records: lane.offsets(window).len(), is_whole: true });
        }
        let Written { first, records, is_whole } = lane.written(window)?;
        let producer_id = self.carried.remove(&first)?;
        // Where records are gone the next one would not know of it.
        if is_whole {
            self.windows.insert(window, producer_id);
        }
        Some(Begun { producer_id, records, is_whole })
    }

    /// What is to be committed with the progress that the lane was just asked for. Of windows that are settled nothing is
    /// left to carry out, nor of those that begin anew.
    pub fn listed(&mut self, lane: &Lane) -> Vec<Listed> {
        self.windows.retain(|window, _| lane.has(*window));
        self.carried.retain(|first, _| lane.has_written(*first));
        // By where a window began, also where the log has removed that: another one may begin at what is left.
        let carried =
            self.carried.iter().map(|(&first, &producer_id)| Listed { window: None, first, producer_id });
        let in_hand = self.windows.iter().map(|(&window, &producer_id)| {
            let first = lane.offsets(window)[0];
            Listed { window: Some(window), first, producer_id }
        });
        carried.chain(in_hand).collect()
    }
}
