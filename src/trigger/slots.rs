//! Which window begins next: invocations in flight, and turns for those that wait for room.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use uuid::Uuid;

use super::flow::RateLimit;
use super::poller::PollerHandle;
use super::spec::TriggerSpec;

/// Invocations in flight: at most the trigger's `concurrency`, fewer for a while after the target asked to slow down,
/// and at most so many bytes and so many in a second.
#[derive(Debug)]
pub(super) struct Slots {
    counts: Mutex<SlotCounts>,
}

#[derive(Debug)]
struct SlotCounts {
    in_flight: u32,
    bytes: u64,
    limit: u32,
    max: u32,
    bytes_max: u64,
    rate: Option<RateLimit>,
    /// Of a run: how many records may begin in a second.
    pace: Option<RateLimit>,
    /// Those that had to wait, in their order: nobody overtakes them.
    waiting: VecDeque<Wanted>,
    /// Those that waited and were told that there is room for them.
    promised: Vec<Wanted>,
}

/// Room for a window, which a poller asked for. Each asks for one at a time.
#[derive(Debug)]
struct Wanted {
    poller: PollerHandle,
    bytes: u64,
}

/// Why no invocation may begin now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// The poller is told when there is room for it.
    Busy,
    /// The rate allows the next one after so long.
    After(Duration),
}

impl Slots {
    pub(super) fn new(spec: &TriggerSpec) -> Self {
        let counts = SlotCounts {
            in_flight: 0,
            bytes: 0,
            limit: spec.concurrency,
            max: spec.concurrency,
            bytes_max: spec.limits.bytes,
            rate: spec.limits.invocations_per_second.map(RateLimit::new),
            pace: None,
            waiting: VecDeque::new(),
            promised: Vec::new(),
        };
        Self { counts: Mutex::new(counts) }
    }

    /// A slot for `bytes`, or why there is none. One window is let through however large it is. Those who wait are
    /// served in turn, so that small windows do not pass a large one by for ever.
    pub(super) fn take(
        self: &Arc<Self>,
        bytes: u64,
        now: Duration,
        poller: &PollerHandle,
        trigger: Uuid,
    ) -> Result<Slot, NoSlot> {
        let mut counts = self.counts.lock();
        let was_promised = counts.take_promise(poller);
        let is_next = was_promised || counts.waiting.front().is_none_or(|first| first.poller.is_same(poller));
        if !is_next || !counts.has_room(bytes) {
            counts.wait(Wanted { poller: poller.clone(), bytes }, was_promised);
            return Err(NoSlot::Busy);
        }
        let rate = match counts.pace.as_ref().and_then(|pace| pace.wait(now)) {
            Some(wait) => Err(wait),
            None => counts.rate.as_mut().map_or(Ok(()), |rate| rate.take(now)),
        };
        if let Err(wait) = rate {
            counts.wait(Wanted { poller: poller.clone(), bytes }, true);
            return Err(NoSlot::After(wait));
        }
        if !was_promised {
            counts.waiting.pop_front();
        }
        counts.in_flight += 1;
        counts.bytes = counts.bytes.saturating_add(bytes);
        counts.promise_room(trigger);
        drop(counts);
        Ok(Slot { slots: Arc::clone(self), bytes, trigger })
    }

    /// How many records may begin in a second.
    pub(super) fn set_pace(&self, records_per_second: Option<u32>) {
        self.counts.lock().pace = records_per_second.map(RateLimit::new);
    }

    /// The records of a window begin: where they have a pace, the next wait until it allows them.
    pub(super) fn spend(&self, records: usize, now: Duration) {
        if let Some(pace) = &mut self.counts.lock().pace {
            pace.spend(u32::try_from(records).unwrap_or(u32::MAX), now);
        }
    }

    /// This poller wants nothing now: what it was promised, and its place among those who wait, goes to the next.
    pub(super) fn withdraw(&self, poller: &PollerHandle, trigger: Uuid) {
        let mut counts = self.counts.lock();
        counts.take_promise(poller);
        counts.waiting.retain(|wanted| !wanted.poller.is_same(poller));
        counts.promise_room(trigger);
    }

    /// The target asked to slow down.
    pub(super) fn halve(&self) {
        let mut counts = self.counts.lock();
        counts.limit = (counts.limit / 2).max(1);
    }

    /// An invocation succeeded: one more may run, up to the maximum.
    pub(super) fn grow(&self, trigger: Uuid) {
        let mut counts = self.counts.lock();
        if counts.limit < counts.max {
            counts.limit += 1;
            counts.promise_room(trigger);
        }
    }

    pub(super) fn redefine(&self, spec: &TriggerSpec) {
        let mut counts = self.counts.lock();
        (counts.max, counts.limit) = (spec.concurrency, spec.concurrency);
        counts.bytes_max = spec.limits.bytes;
        counts.rate = spec.limits.invocations_per_second.map(RateLimit::new);
    }
}

impl SlotCounts {
    /// Whether a window of so many bytes may begin besides those in flight and those that were promised room.
    fn has_room(&self, bytes: u64) -> bool {
        let taken = self.in_flight as usize + self.promised.len();
        let promised_bytes = self.promised.iter().fold(0_u64, |sum, wanted| sum.saturating_add(wanted.bytes));
        let all_bytes = self.bytes.saturating_add(promised_bytes).saturating_add(bytes);
        taken < self.limit as usize && (taken == 0 || all_bytes <= self.bytes_max)
    }

    /// Takes back what a poller was promised; answers whether it was.
    fn take_promise(&mut self, poller: &PollerHandle) -> bool {
        let own = self.promised.iter().position(|wanted| wanted.poller.is_same(poller));
        own.map(|index| self.promised.swap_remove(index)).is_some()
    }

    /// Has a poller wait for its turn; it keeps the turn that it had and could not use yet.
    fn wait(&mut self, wanted: Wanted, had_turn: bool) {
        match self.waiting.iter_mut().find(|other| other.poller.is_same(&wanted.poller)) {
            Some(own) => own.bytes = wanted.bytes,
            None if had_turn => self.waiting.push_front(wanted),
            None => self.waiting.push_back(wanted),
        }
    }

    /// Promises the room there is to those who wait, in turn.
    fn promise_room(&mut self, trigger: Uuid) {
        while let Some(wanted) = self.waiting.pop_front() {
            if !self.has_room(wanted.bytes) {
                return self.waiting.push_front(wanted);
            }
            wanted.poller.wake(trigger);
            self.promised.push(wanted);
        }
    }
}

/// One invocation in flight.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    bytes: u64,
    trigger: Uuid,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.counts.lock();
        counts.in_flight -= 1;
        counts.bytes = counts.bytes.saturating_sub(self.bytes);
        // A large one may have stood in the way of several.
        counts.promise_room(self.trigger);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::trigger::poller::Message;

    const NOW: Duration = Duration::from_secs(100);

    fn slots(more: serde_json::Value) -> Arc<Slots> {
        let mut definition = json!({"trigger": "t", "input": {"topic": "in"}, "function": "f", "concurrency": 2});
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        Arc::new(Slots::new(&TriggerSpec::from_json(&definition).unwrap()))
    }

    #[test]
    fn a_large_window_that_ends_makes_room_for_all_that_it_kept_waiting() {
        let slots = slots(json!({"limits": {"bytes": "1KiB"}}));
        let id = Uuid::from_u128(1);
        let (first, mut to_first) = PollerHandle::for_test();
        let (second, mut to_second) = PollerHandle::for_test();
        let large = slots.take(1024, NOW, &first, id).unwrap();
        for poller in [&first, &second] {
            assert_eq!(slots.take(512, NOW, poller, id).unwrap_err(), NoSlot::Busy);
        }
        drop(large);
        for told in [&mut to_first, &mut to_second] {
            assert!(matches!(told.try_recv(), Ok(Message::Wake(_))));
        }
        let _held = [&first, &second].map(|poller| slots.take(512, NOW, poller, id).unwrap());
    }

    #[test]
    fn a_free_slot_goes_from_one_who_waits_to_the_next_until_somebody_takes_it() {
        let slots = slots(json!({}));
        let id = Uuid::from_u128(1);
        let (first, mut to_first) = PollerHandle::for_test();
        let (second, mut to_second) = PollerHandle::for_test();
        let (third, mut to_third) = PollerHandle::for_test();
        let mut held: Vec<Slot> = (0..2).map(|_| slots.take(1, NOW, &first, id).unwrap()).collect();
        for poller in [&first, &second, &third, &first] {
            assert_eq!(slots.take(1, NOW, poller, id).unwrap_err(), NoSlot::Busy);
        }
        drop(held.pop());
        assert!(matches!(to_first.try_recv(), Ok(Message::Wake(_))));
        // Nobody overtakes one who was told.
        assert_eq!(slots.take(1, NOW, &third, id).unwrap_err(), NoSlot::Busy);
        assert!(to_second.try_recv().is_err() && to_third.try_recv().is_err());
        // The first has no use for it.
        slots.withdraw(&first, id);
        assert!(matches!(to_second.try_recv(), Ok(Message::Wake(_))));
        // It comes back behind the others.
        assert_eq!(slots.take(1, NOW, &first, id).unwrap_err(), NoSlot::Busy);
        held.push(slots.take(1, NOW, &second, id).unwrap());
        drop(held);
        assert!(matches!(to_third.try_recv(), Ok(Message::Wake(_))), "once for each");
        assert!(to_third.try_recv().is_err());
        assert!(matches!(to_first.try_recv(), Ok(Message::Wake(_))));
        let _held = [&third, &first].map(|poller| slots.take(1, NOW, poller, id).unwrap());
        assert!(to_second.try_recv().is_err(), "it has what it asked for");
    }

    #[test]
    fn small_windows_do_not_pass_a_large_one_by() {
        let slots = slots(json!({"concurrency": 8, "limits": {"bytes": "1KiB"}}));
        let id = Uuid::from_u128(1);
        let (large, mut to_large) = PollerHandle::for_test();
        let (small, mut to_small) = PollerHandle::for_test();
        let held = slots.take(100, NOW, &small, id).unwrap();
        // The second time it wants less, and still too much: it has asked once.
        for bytes in [1024, 1000] {
            assert_eq!(slots.take(bytes, NOW, &large, id).unwrap_err(), NoSlot::Busy);
        }
        assert_eq!(slots.take(100, NOW, &small, id).unwrap_err(), NoSlot::Busy, "there would be room");
        drop(held);
        assert!(matches!(to_large.try_recv(), Ok(Message::Wake(_))));
        assert!(to_small.try_recv().is_err() && to_large.try_recv().is_err());
        // What it was promised is its own until it looks, though nothing is in flight.
        assert_eq!(slots.take(100, NOW, &small, id).unwrap_err(), NoSlot::Busy);
        let held = slots.take(1000, NOW, &large, id).unwrap();
        assert!(to_small.try_recv().is_err(), "no room beside it");
        drop(held);
        assert!(matches!(to_small.try_recv(), Ok(Message::Wake(_))));
        let held = slots.take(100, NOW, &small, id).unwrap();
        drop((held, slots.take(900, NOW, &large, id).unwrap()));
        assert!(to_large.try_recv().is_err());
    }

    #[test]
    fn one_whose_window_grew_while_it_was_told_keeps_its_turn() {
        let slots = slots(json!({"concurrency": 8, "limits": {"bytes": "1KiB"}}));
        let id = Uuid::from_u128(1);
        let (grown, mut to_grown) = PollerHandle::for_test();
        let (other, mut to_other) = PollerHandle::for_test();
        let [first, second] = [600, 300].map(|bytes| slots.take(bytes, NOW, &other, id).unwrap());
        for (bytes, poller) in [(400, &grown), (1024, &other)] {
            assert_eq!(slots.take(bytes, NOW, poller, id).unwrap_err(), NoSlot::Busy);
        }
        drop(first);
        assert!(matches!(to_grown.try_recv(), Ok(Message::Wake(_))));
        assert_eq!(slots.take(900, NOW, &grown, id).unwrap_err(), NoSlot::Busy);
        drop(second);
        assert!(matches!(to_grown.try_recv(), Ok(Message::Wake(_))));
        assert!(to_other.try_recv().is_err());
        drop(slots.take(900, NOW, &grown, id).unwrap());
        assert!(matches!(to_other.try_recv(), Ok(Message::Wake(_))));
    }

    #[test]
    fn one_that_waits_for_the_rate_keeps_its_turn() {
        let slots = slots(json!({"concurrency": 1, "limits": {"invocations_per_second": 1}}));
        let id = Uuid::from_u128(1);
        let (first, mut to_first) = PollerHandle::for_test();
        let (second, mut to_second) = PollerHandle::for_test();
        let held = slots.take(1, NOW, &first, id).unwrap();
        assert_eq!(slots.take(1, NOW, &second, id).unwrap_err(), NoSlot::Busy);
        drop(held);
        assert!(matches!(to_second.try_recv(), Ok(Message::Wake(_))));
        let NoSlot::After(wait) = slots.take(1, NOW, &second, id).unwrap_err() else { panic!("there is room") };
        // A moment before the other comes back.
        assert_eq!(slots.take(1, NOW + wait, &first, id).unwrap_err(), NoSlot::Busy);
        let held = slots.take(1, NOW + wait, &second, id).unwrap();
        assert!(to_first.try_recv().is_err() && to_second.try_recv().is_err());
        drop(held);
        assert!(matches!(to_first.try_recv(), Ok(Message::Wake(_))));
    }

    /// Pollers with windows of random sizes, in random turns: never too many at a time, everybody comes to the end, and
    /// nobody is passed by for long. At most once by each who waited before, and by each for whom there is room besides
    /// once it was promised its own: fewer than two of each.
    #[test]
    fn who_waits_for_a_slot_is_served_in_turn() {
        const POLLERS: usize = 5;
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (id, concurrency) = (Uuid::from_u128(1), random.u32(1..4));
            let slots = slots(json!({"concurrency": concurrency, "limits": {"bytes": "1KiB"}}));
            let mut pollers: Vec<_> = (0..POLLERS).map(|_| PollerHandle::for_test()).collect();
            let mut windows: Vec<Vec<u64>> =
                (0..POLLERS).map(|_| (0..random.usize(..12)).map(|_| random.u64(1..1_500)).collect()).collect();
            // By how many others each was passed by since it waits.
            let mut waits: [Option<usize>; POLLERS] = [None; POLLERS];
            let mut held: Vec<Slot> = Vec::new();
            while !held.is_empty() || windows.iter().any(|windows| !windows.is_empty()) {
                let mut looks = Vec::new();
                for (number, (_, messages)) in pollers.iter_mut().enumerate() {
                    let is_told = messages.try_recv().is_ok();
                    if (is_told || waits[number].is_none()) && !windows[number].is_empty() {
                        looks.push(number);
                    }
                }
                if looks.is_empty() || random.bool() && !held.is_empty() {
                    assert!(!held.is_empty(), "seed {seed}: nobody is told");
                    held.swap_remove(random.usize(..held.len()));
                }
                for number in looks {
                    if random.u8(..8) == 0 {
                        // For a moment it had nothing to begin.
                        slots.withdraw(&pollers[number].0, id);
                        waits[number] = None;
                    }
                    let Ok(slot) = slots.take(*windows[number].last().unwrap(), NOW, &pollers[number].0, id) else {
                        waits[number].get_or_insert(0);
                        continue;
                    };
                    held.push(slot);
                    windows[number].pop();
                    waits[number] = None;
                    waits.iter_mut().flatten().for_each(|passed_by| *passed_by += 1);
                    assert!(waits.iter().flatten().all(|passed_by| *passed_by < 2 * POLLERS), "seed {seed}: {waits:?}");
                    let counts = slots.counts.lock();
                    assert!(counts.in_flight <= concurrency, "seed {seed}");
                    assert!(counts.in_flight == 1 || counts.bytes <= 1024, "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn a_poller_that_lets_go_of_the_trigger_keeps_no_slot() {
        let slots = slots(json!({}));
        let id = Uuid::from_u128(1);
        let (first, mut to_first) = PollerHandle::for_test();
        let (second, mut to_second) = PollerHandle::for_test();
        let (third, mut to_third) = PollerHandle::for_test();
        let held: Vec<Slot> = (0..2).map(|_| slots.take(1, NOW, &third, id).unwrap()).collect();
        for poller in [&first, &second, &third] {
            assert_eq!(slots.take(1, NOW, poller, id).unwrap_err(), NoSlot::Busy);
        }
        // One that waits is passed over, and the promise of another goes on.
        slots.withdraw(&first, id);
        drop(held);
        assert!(to_first.try_recv().is_err());
        assert!(matches!(to_second.try_recv(), Ok(Message::Wake(_))));
        assert!(matches!(to_third.try_recv(), Ok(Message::Wake(_))));
        let _held = slots.take(1, NOW, &third, id).unwrap();
        assert_eq!(slots.take(1, NOW, &third, id).unwrap_err(), NoSlot::Busy);
        slots.withdraw(&second, id);
        assert!(matches!(to_third.try_recv(), Ok(Message::Wake(_))));
        assert!(slots.take(1, NOW, &third, id).is_ok());
    }

    #[test]
    fn bytes_in_flight_are_bounded_but_one_window_always_fits() {
        let slots = slots(json!({"limits": {"bytes": "1KiB"}}));
        let (poller, _messages) = PollerHandle::for_test();
        let id = Uuid::from_u128(1);
        let large = slots.take(1 << 30, NOW, &poller, id).unwrap();
        assert_eq!(slots.take(1, NOW, &poller, id).unwrap_err(), NoSlot::Busy);
        drop(large);
        let _small = slots.take(1000, NOW, &poller, id).unwrap();
        assert_eq!(slots.take(100, NOW, &poller, id).unwrap_err(), NoSlot::Busy);
        assert!(slots.take(24, NOW, &poller, id).is_ok());
    }

    #[test]
    fn a_target_that_asks_to_slow_down_gets_half_and_one_more_with_each_success() {
        let slots = slots(json!({"concurrency": 8}));
        let (poller, _messages) = PollerHandle::for_test();
        let id = Uuid::from_u128(1);
        let room = || {
            let taken: Vec<Slot> = (0..20).map_while(|_| slots.take(1, NOW, &poller, id).ok()).collect();
            taken.len()
        };
        assert_eq!(room(), 8);
        slots.halve();
        assert_eq!(room(), 4);
        (0..3).for_each(|_| slots.halve());
        assert_eq!(room(), 1);
        (0..20).for_each(|_| slots.grow(id));
        assert_eq!(room(), 8);
    }
}
