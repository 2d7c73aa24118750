//! What is written down of a lane.

use std::cmp::Reverse;

use tripline_storage::Offset;

use super::queue::QueueKey;
use super::{Lane, Marker};
use crate::trigger::progress::{BlockedKey, ENCODED_BYTES_MAX, Progress, Span, TriedWindow};

impl Lane {
    /// What must be written down now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let reading_point = self.reading_point();
        let mut holes: Vec<Span> = self.unfinished.spans();
        let committed = self.committed();
        let tried = self.tried.iter().filter_map(|id| self.windows[id].tried(committed));
        let mut windows: Vec<TriedWindow> = tried.collect();
        if let Some(restoring) = &self.restoring {
            restoring.add_rest(self.at, committed, &mut holes, &mut windows);
        }
        // Of two that begin together the inner one is the last: a record belongs to it.
        windows.sort_by_key(|window| (window.span.first, Reverse(window.span.next)));
        let mut blocked_keys: Vec<BlockedKey> = self
            .markers
            .iter()
            .map(|(&hash, marker)| BlockedKey { hash, first: self.first_spilled(hash, marker) })
            .collect();
        blocked_keys.sort_by_key(|key| key.hash);
        Progress::new(reading_point, holes, windows, blocked_keys).under(self.spec.filter)
    }

    /// The progress to write down, as bytes. What does not fit is written coarsely: nothing is lost, but what is
    /// finished between holes may be delivered again after a crash, and attempts may begin anew. Nothing should come to
    /// that.
    pub fn encoded_progress(&mut self) -> Vec<u8> {
        let progress = self.progress();
        let bytes_max = self.spec.limits.progress_bytes.min(ENCODED_BYTES_MAX);
        let fitting = |progress: &Progress| progress.encode().ok().filter(|bytes| bytes.len() <= bytes_max);
        self.low = progress.committed();
        self.written_coarsely = false;
        fitting(&progress).unwrap_or_else(|| {
            self.written_coarsely = true;
            let hole: Vec<Span> = Span::new(progress.committed(), progress.reading_point()).into_iter().collect();
            let windows = progress.windows().to_vec();
            let with_windows = Progress::new(progress.reading_point(), hole.clone(), windows, Vec::new());
            fitting(&with_windows.under(self.spec.filter)).unwrap_or_else(|| {
                let least = Progress::new(progress.reading_point(), hole, Vec::new(), Vec::new());
                least.encode().expect("a single hole fits")
            })
        })
    }

    /// Whether progress did not fit the last time it was written down.
    #[must_use]
    pub const fn is_written_coarsely(&self) -> bool {
        self.written_coarsely
    }

    /// The first unfinished offset of a spilled key.
    pub(super) fn first_spilled(&self, key: u64, marker: &Marker) -> Offset {
        let Some(queue) = self.queues.get(&QueueKey::Key(key)) else { return marker.at };
        let closed = queue.windows.iter().filter_map(|id| self.windows.get(id)).filter(|held| held.spilled);
        let closed = closed.filter_map(|held| held.places.first()).map(|place| place.offset);
        let open = queue.places.first().filter(|_| queue.open_spilled).map(|place| place.offset);
        closed.chain(open).chain(Some(marker.at)).min().unwrap_or(marker.at)
    }

    /// Everything below is finished.
    #[must_use]
    pub fn committed(&self) -> Offset {
        let unfinished = self.unfinished.first();
        let restored = self.restoring.as_ref().and_then(|restoring| restoring.first_hole(self.at));
        let spilled = self.markers.iter().map(|(&key, marker)| self.first_spilled(key, marker)).min();
        let first = [unfinished, restored, spilled].into_iter().flatten().min();
        first.map_or_else(|| self.reading_point(), |first| first.min(self.reading_point()))
    }

    pub(super) fn reading_point(&self) -> Offset {
        self.restoring.as_ref().map_or(self.at, |restoring| restoring.until.max(self.at))
    }
}
