//! Memory for the bodies of requests, over all connections.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So much of each body is free, so that a want of memory stops no ordinary request.
const FREE_BYTES: usize = 64 << 10;
/// The budget is counted in units of this size.
const UNIT_BYTES: usize = 1 << 10;

/// What all bodies may take together. A handle, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BodyBudget {
    units: Arc<Semaphore>,
    bytes: usize,
}

impl BodyBudget {
    pub(crate) fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), bytes }
    }

    /// Room for one body, none of it taken yet.
    pub(crate) fn room(&self) -> BodyRoom {
        BodyRoom { budget: self.clone(), taken: Arc::default() }
    }

    /// What all bodies may take together, in bytes.
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What one request has taken; it is given back when the last clone of this goes.
#[derive(Clone, Debug)]
pub(crate) struct BodyRoom {
    budget: BodyBudget,
    taken: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl BodyRoom {
    /// Takes what is missing for a body of so many bytes. Nobody waits for it: those who have a part of what they need
    /// would wait for each other.
    ///
    /// # Errors
    /// What all may take together, where that is taken.
    pub(crate) fn reach(&self, body_bytes: usize) -> Result<(), usize> {
        let wanted = body_bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT_BYTES);
        let mut taken = self.taken.lock();
        let has = taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(missing) = wanted.checked_sub(has).filter(|missing| *missing > 0) else { return Ok(()) };
        let more = u32::try_from(missing).map(|missing| Arc::clone(&self.budget.units).try_acquire_many_owned(missing));
        let Ok(Ok(more)) = more else { return Err(self.budget.bytes()) };
        match taken.as_mut() {
            Some(taken) => taken.merge(more),
            None => *taken = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_budget_and_give_back_what_they_took() {
        let budget = BodyBudget::new(100 << 10);
        let (one, two) = (budget.room(), budget.room());
        assert_eq!(one.reach(FREE_BYTES), Ok(()));
        assert_eq!(two.reach(FREE_BYTES + (100 << 10)), Ok(()), "nothing was taken yet");
        assert_eq!(one.reach(FREE_BYTES + 1), Err(100 << 10));
        let clone = two.clone();
        drop(two);
        assert_eq!(one.reach(FREE_BYTES + 1), Err(100 << 10), "somebody holds it still");
        drop(clone);
        for bytes in [1, 1024, 1025, 50 << 10, 1] {
            assert_eq!(one.reach(FREE_BYTES + bytes), Ok(()));
        }
        assert_eq!(budget.room().reach(FREE_BYTES + (50 << 10)), Ok(()), "it took the most that it ever needed");
        assert_eq!(budget.room().reach(FREE_BYTES + (50 << 10) + 1), Err(100 << 10));
        assert_eq!(budget.room().reach(usize::MAX), Err(100 << 10));
    }
}
