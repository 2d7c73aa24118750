//! Throttled keys give back what waits for their turn, where there is no room to read on for others.

use std::cmp::Reverse;

use super::fit::More;
use super::queue::{Queue, QueueKey};
use super::{Held, Lane, Phase};
use crate::trigger::spec::Order;
use crate::trigger::unfinished::{Place, UNNUMBERED};

/// How much a lane holds. While that is the same it is not looked again who could give something back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holding {
    records: usize,
    queues: usize,
    markers: usize,
    tried: usize,
}

impl Lane {
    /// Where nothing can begin and nothing more could be read, keys that wait for their turn give back all they hold.
    /// It is read again when that has come.
    pub(super) fn send_to_rest(&mut self) {
        let per_key = self.spec.per_key;
        // What drops records of a busy key goes by what the key holds.
        let drops = per_key.debounce.is_some() || per_key.singleton.is_some();
        if per_key.throttle.is_none() || drops || self.spec.order != Order::Key || self.restoring.is_some() {
            return;
        }
        let fits = !self.is_full() && self.fits(More { windows: 1, cuts: 1, from: self.at });
        if self.has_space() && fits || self.next_turn(false).is_some() {
            return;
        }
        let holding = Holding {
            records: self.held_records,
            queues: self.queues.len(),
            markers: self.markers.len(),
            tried: self.tried.len(),
        };
        if self.restless.replace(holding) == Some(holding) {
            return;
        }
        let waiting = self.queues.iter().filter(|(_, queue)| self.waits_untried(queue));
        let mut keys: Vec<QueueKey> = waiting.map(|(key, _)| *key).collect();
        // Those that hold the most first.
        keys.sort_unstable_by_key(|key| (Reverse(self.queues[key].records), *key));
        // Together: what many hold lies closer than what each of them holds, and is cut out of fewer ranges.
        while !keys.is_empty() && !self.rest_together(&keys) {
            keys.truncate(keys.len() / 2);
        }
    }

    /// Whether a queue waits for the turn of its key, and nothing of it was tried.
    fn waits_untried(&self, queue: &Queue) -> bool {
        let is_untried = |held: &Held| held.phase == Phase::Queued && !held.is_tried();
        queue.turn_ms.is_some() && queue.windows.iter().all(|id| is_untried(&self.windows[id]))
    }

    /// These keys give back what they hold, if their markers fit into half of the bytes, or into fewer than what they
    /// hold takes now. Answers whether they did.
    fn rest_together(&mut self, keys: &[QueueKey]) -> bool {
        let given: Vec<_> = keys.iter().filter_map(|key| Some((*key, self.untried(*key)?))).collect();
        let numbered = given.iter().flat_map(|(_, untried)| &untried.places);
        let mut numbered: Vec<Place> = numbered.filter(|place| place.number != UNNUMBERED).copied().collect();
        numbered.sort_unstable_by_key(|place| place.offset);
        let is_marked = |key: &QueueKey| matches!(key, QueueKey::Key(hash) if self.markers.contains_key(hash));
        let markers = given.iter().filter(|(key, _)| !is_marked(key)).count();
        let bytes_max = self.bytes_bound().max(self.spec.limits.progress_bytes / 2);
        let before = self.unfinished.clone();
        self.unfinished.finish(numbered);
        if self.bytes_bound() + self.markers_bytes(markers) > bytes_max {
            self.unfinished = before;
            return false;
        }
        for (key, untried) in &given {
            self.put_behind_marker(*key, untried);
            if self.queues.get(key).is_some_and(|queue| !queue.is_busy()) {
                // Its timer stays.
                self.queues.remove(key);
            }
            if let QueueKey::Key(hash) = key {
                self.resting.insert(*hash);
            }
        }
        true
    }
}
