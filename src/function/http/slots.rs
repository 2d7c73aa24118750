//! How many requests of an http function run at a time, and what waits for its turn.
//!
//! The queue belongs to the function, not to one definition of it: what waits when another takes over goes on with
//! that, in its order. Requests that are under way then belong to the old definition, and are not counted any more.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::super::pool_state::{QUEUE_BYTES_MAX, QUEUE_LENGTH_MAX};

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// Too much is waiting already.
    QueueFull,
    /// The function has stopped.
    Closed,
}

/// The slots of one function.
#[derive(Debug)]
pub(super) struct Slots {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    most: usize,
    taken: usize,
    /// Rises with every definition: a slot of an older one is gone when it is given back.
    generation: u64,
    is_closed: bool,
    next_ticket: u64,
    /// In the order in which they came.
    queue: BTreeMap<u64, Waiter>,
    queue_bytes: usize,
}

#[derive(Debug)]
struct Waiter {
    bytes: usize,
    /// Gets the generation of its slot.
    turn: oneshot::Sender<u64>,
}

/// The right to send a request, while it lives.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    generation: u64,
}

/// A place in the queue, while it lives.
#[derive(Debug)]
pub(super) struct Waiting {
    slots: Arc<Slots>,
    ticket: u64,
    turn: oneshot::Receiver<u64>,
}

/// What there is for who asks.
#[derive(Debug)]
pub(super) enum Place {
    Free(Slot),
    Queued(Waiting),
}

impl Slots {
    pub(super) fn new(most: usize) -> Arc<Self> {
        let state = State {
            most,
            taken: 0,
            generation: 0,
            is_closed: false,
            next_ticket: 0,
            queue: BTreeMap::new(),
            queue_bytes: 0,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// A slot, or a place in the queue for a payload of `bytes`.
    ///
    /// # Errors
    /// [`NoSlot`].
    pub(super) fn ask(self: &Arc<Self>, bytes: usize) -> Result<Place, NoSlot> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(NoSlot::Closed);
        }
        if state.taken < state.most && state.queue.is_empty() {
            state.taken += 1;
            return Ok(Place::Free(Slot { slots: Arc::clone(self), generation: state.generation }));
        }
        if state.queue.len() >= QUEUE_LENGTH_MAX || state.queue_bytes + bytes > QUEUE_BYTES_MAX {
            return Err(NoSlot::QueueFull);
        }
        let (turn, is_turn) = oneshot::channel();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue_bytes += bytes;
        state.queue.insert(ticket, Waiter { bytes, turn });
        Ok(Place::Queued(Waiting { slots: Arc::clone(self), ticket, turn: is_turn }))
    }

    /// Another definition takes over, of which `most` requests run at a time.
    pub(super) fn replace(&self, most: usize) {
        let mut state = self.state.lock();
        (state.most, state.taken) = (most, 0);
        state.generation += 1;
        state.hand_out();
    }

    /// Gives out no more slots; nothing waits any longer.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.queue_bytes = 0;
        state.queue.clear();
    }

    fn give_back(&self, generation: u64) {
        let mut state = self.state.lock();
        if generation == state.generation {
            state.taken -= 1;
            state.hand_out();
        }
    }
}

impl State {
    fn hand_out(&mut self) {
        while self.taken < self.most
            && let Some((_, waiter)) = self.queue.pop_first()
        {
            self.queue_bytes -= waiter.bytes;
            self.taken += 1;
            let given = waiter.turn.send(self.generation);
            assert!(given.is_ok(), "who stops waiting leaves the queue first");
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.give_back(self.generation);
    }
}

impl Waiting {
    /// Waits for the slot.
    ///
    /// # Errors
    /// The slots were closed.
    pub(super) async fn slot(mut self) -> Result<Slot, NoSlot> {
        let generation = (&mut self.turn).await.map_err(|_| NoSlot::Closed)?;
        Ok(Slot { slots: Arc::clone(&self.slots), generation })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.slots.state.lock();
        if let Some(waiter) = state.queue.remove(&self.ticket) {
            state.queue_bytes -= waiter.bytes;
            return;
        }
        drop(state);
        // Its turn may have come without anybody there to take it.
        if let Ok(generation) = self.turn.try_recv() {
            self.slots.give_back(generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn free(slots: &Arc<Slots>) -> Slot {
        match slots.ask(0) {
            Ok(Place::Free(slot)) => slot,
            other => panic!("{other:?}"),
        }
    }

    fn queued(slots: &Arc<Slots>, bytes: usize) -> Waiting {
        match slots.ask(bytes) {
            Ok(Place::Queued(waiting)) => waiting,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_slot_that_is_given_back_goes_to_who_has_waited_for_longest() {
        let slots = Slots::new(1);
        let first = free(&slots);
        let (mut second, mut third) = (Box::pin(queued(&slots, 1).slot()), Box::pin(queued(&slots, 1).slot()));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        assert!(third.as_mut().now_or_never().is_none());
        let second = second.as_mut().now_or_never().expect("its turn").unwrap();
        assert!(matches!(slots.ask(0), Ok(Place::Queued(_))));
        drop(second);
        drop(third.as_mut().now_or_never().expect("its turn").unwrap());
        free(&slots);
    }

    #[test]
    fn who_stops_waiting_keeps_nothing() {
        let slots = Slots::new(1);
        let first = free(&slots);
        drop(queued(&slots, QUEUE_BYTES_MAX));
        let (second, third) = (queued(&slots, QUEUE_BYTES_MAX), slots.ask(1));
        assert_eq!(third.unwrap_err(), NoSlot::QueueFull);
        drop(first);
        // It has the slot by now, and does not know yet.
        drop(second);
        free(&slots);
    }

    #[test]
    fn the_queue_is_bounded_in_length_and_bytes() {
        let slots = Slots::new(1);
        let _taken = free(&slots);
        let _waiting: Vec<Waiting> = (0..QUEUE_LENGTH_MAX).map(|_| queued(&slots, 0)).collect();
        assert_eq!(slots.ask(0).unwrap_err(), NoSlot::QueueFull);
        let slots = Slots::new(1);
        let (taken, first) = (free(&slots), queued(&slots, QUEUE_BYTES_MAX));
        assert_eq!(slots.ask(1).unwrap_err(), NoSlot::QueueFull);
        drop(taken);
        assert!(matches!(slots.ask(QUEUE_BYTES_MAX), Ok(Place::Queued(_))), "bytes in work do not count as waiting");
        drop(first);
    }

    #[test]
    fn another_definition_has_all_its_slots_at_once_for_those_who_wait_and_the_old_ones_go() {
        let slots = Slots::new(1);
        let old = free(&slots);
        let waiting: Vec<Waiting> = (0..3).map(|_| queued(&slots, 1)).collect();
        slots.replace(2);
        let mut turns = waiting.into_iter().map(|waiting| waiting.slot().now_or_never());
        let new: Vec<Slot> = turns.by_ref().take(2).map(|turn| turn.expect("its turn").unwrap()).collect();
        drop(old);
        assert!(turns.next().unwrap().is_none(), "a slot of the old definition is none of the new");
        drop(new);
        let _both = (free(&slots), free(&slots));
        assert!(matches!(slots.ask(0), Ok(Place::Queued(_))));
    }

    #[test]
    fn closed_slots_are_told_to_who_waits_and_to_who_asks() {
        let slots = Slots::new(1);
        let taken = free(&slots);
        let waiting = queued(&slots, 1);
        slots.close();
        assert_eq!(waiting.slot().now_or_never().expect("at once").unwrap_err(), NoSlot::Closed);
        assert_eq!(slots.ask(0).unwrap_err(), NoSlot::Closed);
        drop(taken);
        assert_eq!(slots.ask(0).unwrap_err(), NoSlot::Closed);
    }
}
