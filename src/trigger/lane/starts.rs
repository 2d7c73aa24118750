//! When attempts of keys began, for a throttle: apart from what waits, as it counts for a whole period.

use std::collections::{BTreeSet, HashMap};

use crate::trigger::flow::Throttle;

/// Bursts that are remembered of all keys together: some megabytes. Beyond, the key that began longest ago is
/// forgotten, and may begin anew before its time.
const BURSTS_MAX: usize = 65_536;
/// Starts of a key that are told apart for a whole period; where its limit is greater, those within this part of a
/// period count as long as the last of them.
const PARTS: i64 = 16;

/// Starts of one key that count together.
#[derive(Clone, Copy, Debug)]
struct Burst {
    first_ms: i64,
    last_ms: i64,
    count: u32,
}

/// Which keys began when, as far as that may count.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// Ascending; never empty.
    keys: HashMap<u64, Vec<Burst>>,
    /// The last start of each key.
    last: BTreeSet<(i64, u64)>,
    /// Of all keys.
    bursts: usize,
}

impl Starts {
    /// An attempt of a key begins.
    pub(super) fn push(&mut self, key: u64, throttle: Throttle, now_ms: i64) {
        self.forget(throttle, now_ms);
        let grain_ms = if i64::from(throttle.limit) > PARTS { throttle.period_ms / PARTS } else { 0 };
        let mut bursts = self.take(key);
        bursts.retain(|burst| burst.last_ms.saturating_add(throttle.period_ms) > now_ms);
        match bursts.last_mut().filter(|burst| now_ms.saturating_sub(burst.first_ms) <= grain_ms) {
            Some(burst) => (burst.last_ms, burst.count) = (burst.last_ms.max(now_ms), burst.count.saturating_add(1)),
            None => {
                bursts.reserve_exact(1);
                bursts.push(Burst { first_ms: now_ms, last_ms: now_ms, count: 1 });
            }
        }
        self.put(key, bursts);
    }

    /// The last attempt of a key that began was not made after all.
    pub(super) fn take_back(&mut self, key: u64) {
        let mut bursts = self.take(key);
        let Some(last) = bursts.last_mut() else { return };
        last.count -= 1;
        if last.count == 0 {
            bursts.pop();
        }
        if !bursts.is_empty() {
            self.put(key, bursts);
        }
    }

    /// When the next attempt of a key may begin; `None` when it may now.
    pub(super) fn until_ms(&self, key: u64, throttle: Throttle, now_ms: i64) -> Option<i64> {
        let bursts = self.keys.get(&key)?;
        let counts_until = |burst: &Burst| burst.last_ms.saturating_add(throttle.period_ms);
        let counting = bursts.iter().filter(|burst| counts_until(burst) > now_ms);
        let mut count: u32 = counting.clone().map(|burst| burst.count).sum();
        let mut until_ms = None;
        for burst in counting {
            if count < throttle.limit {
                break;
            }
            count -= burst.count;
            until_ms = Some(counts_until(burst));
        }
        until_ms
    }

    /// Forgets keys of which nothing counts any more, and those that began longest ago where there are too many.
    fn forget(&mut self, throttle: Throttle, now_ms: i64) {
        while let Some(&(last_ms, key)) = self.last.first()
            && (last_ms.saturating_add(throttle.period_ms) <= now_ms || self.bursts >= BURSTS_MAX)
        {
            self.take(key);
        }
    }

    fn take(&mut self, key: u64) -> Vec<Burst> {
        let bursts = self.keys.remove(&key).unwrap_or_default();
        if let Some(last) = bursts.last() {
            self.last.remove(&(last.last_ms, key));
        }
        self.bursts -= bursts.len();
        bursts
    }

    fn put(&mut self, key: u64, bursts: Vec<Burst>) {
        let last = bursts.last().expect("a key is remembered for its last start");
        self.last.insert((last.last_ms, key));
        self.bursts += bursts.len();
        self.keys.insert(key, bursts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_limit_begin_within_a_period_and_none_waits_much_longer_than_it_must() {
        for limit in [1, 3, 16, 17, 100] {
            let throttle = Throttle { limit, period_ms: 1600 };
            let seed = fastrand::u64(..);
            println!("seed {seed}");
            let mut random = fastrand::Rng::with_seed(seed);
            let mut starts = Starts::default();
            let mut began: Vec<i64> = Vec::new();
            let mut now_ms = 0;
            for _ in 0..3000 {
                now_ms += if random.u32(..4) == 0 { random.i64(0..1600) } else { random.i64(0..9) };
                let counting = began.iter().filter(|at| **at + 1600 > now_ms).count();
                let at_most = began.iter().filter(|at| **at + 1600 + 100 > now_ms).count();
                match starts.until_ms(7, throttle, now_ms) {
                    None => {
                        assert!(counting < limit as usize, "{counting} of {limit}");
                        starts.push(7, throttle, now_ms);
                        began.push(now_ms);
                    }
                    Some(until_ms) => {
                        let grain_ms = if limit > 16 { 100 } else { 0 };
                        let least = if grain_ms > 0 { at_most } else { counting };
                        assert!(least >= limit as usize, "{least} of {limit} wait");
                        assert!(until_ms > now_ms && until_ms <= now_ms + 1600);
                        if random.bool() {
                            now_ms = until_ms;
                            assert_eq!(starts.until_ms(7, throttle, now_ms), None);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_key_that_begins_all_the_time_takes_no_more_memory_than_a_few_bursts() {
        let throttle = Throttle { limit: 1000, period_ms: 86_400_000 };
        let mut starts = Starts::default();
        (0..1000).for_each(|n| starts.push(1, throttle, n * 86_400));
        assert!(starts.bursts <= 17, "{}", starts.bursts);
        assert!(starts.until_ms(1, throttle, 86_400_000 - 1).is_some());
    }

    #[test]
    fn keys_that_do_not_count_any_more_are_forgotten_and_of_too_many_the_oldest() {
        let throttle = Throttle { limit: 1, period_ms: 1_000_000 };
        let mut starts = Starts::default();
        (0..100_000).for_each(|n| starts.push(n, throttle, n as i64));
        assert_eq!((starts.bursts, starts.keys.len(), starts.last.len()), (BURSTS_MAX, BURSTS_MAX, BURSTS_MAX));
        let waits = |starts: &Starts, key| starts.until_ms(key, throttle, 100_000).is_some();
        assert!(waits(&starts, 99_999) && waits(&starts, 50_000) && !waits(&starts, 0));
        starts.push(1, throttle, 2_000_000);
        assert_eq!((starts.bursts, starts.keys.len(), starts.last.len()), (1, 1, 1));
    }

    #[test]
    fn an_attempt_that_was_not_made_does_not_count() {
        for limit in [1, 2, 100] {
            let throttle = Throttle { limit, period_ms: 1600 };
            let mut starts = Starts::default();
            starts.take_back(7);
            for round in 0..3 {
                for n in 0..limit {
                    assert_eq!(starts.until_ms(7, throttle, i64::from(n)), None, "round {round}");
                    starts.push(7, throttle, i64::from(n));
                }
                assert!(starts.until_ms(7, throttle, 200).is_some());
                starts.take_back(7);
                assert_eq!(starts.until_ms(7, throttle, 200), None);
                (1..limit).for_each(|_| starts.take_back(7));
                assert_eq!((starts.keys.len(), starts.last.len(), starts.bursts), (0, 0, 0));
            }
        }
    }
}
