//! Random definitions, small enough that every limit is met all the time.

use std::time::Duration;

use fastrand::Rng;
use tripline::trigger::attempt::{ErrorsTolerance, Policies};
use tripline::trigger::flow::{Debounce, PerKey, Singleton, Throttle};
use tripline::trigger::lane::{LaneLimits, LaneSpec};
use tripline::trigger::retry::{FreeRetry, Jitter, RetryPolicy};
use tripline::trigger::spec::Order;
use tripline::trigger::window::WindowSpec;

pub(crate) fn spec(rng: &mut Rng) -> LaneSpec {
    let order = match rng.u32(..5) {
        0 | 1 => Order::Partition,
        2 | 3 => Order::Key,
        _ => Order::None,
    };
    LaneSpec {
        order,
        window: window(rng),
        policies: policies(rng),
        bisect: rng.bool(),
        per_key: if order == Order::Key { per_key(rng) } else { PerKey::default() },
        filter: 0,
        limits: limits(rng),
    }
}

fn window(rng: &mut Rng) -> WindowSpec {
    WindowSpec {
        count: rng.u32(1..=5),
        interval: Duration::from_millis(if rng.bool() { 0 } else { rng.u64(1..3000) }),
        bytes: if rng.u32(..4) == 0 { rng.u64(1..60) } else { 1 << 20 },
        max_wait: (rng.u32(..4) == 0).then(|| Duration::from_millis(rng.u64(1..5000))),
    }
}

fn policies(rng: &mut Rng) -> Policies {
    let initial_ms = rng.u64(1..2000);
    let free = FreeRetry {
        initial: Duration::from_millis(initial_ms),
        factor_thousandths: rng.u32(1000..3000),
        max_interval: Duration::from_millis(initial_ms + rng.u64(..10_000)),
        max_attempts: rng.u32(1..6),
        jitter: [Jitter::Full, Jitter::Equal, Jitter::None][rng.usize(..3)],
        max_age: Duration::from_millis(if rng.u32(..4) == 0 { rng.u64(1000..20_000) } else { 86_400_000 }),
    };
    Policies {
        retry: if rng.u32(..5) == 0 { RetryPolicy::BackoffRetry } else { RetryPolicy::Free(free) },
        errors_tolerance: if rng.u32(..4) == 0 { ErrorsTolerance::None } else { ErrorsTolerance::All },
    }
}

fn per_key(rng: &mut Rng) -> PerKey {
    let throttle = Throttle { limit: rng.u32(1..4), period_ms: rng.i64(1..5000) };
    let period_ms = rng.i64(1..3000);
    let debounce = Debounce { period_ms, max_ms: period_ms + rng.i64(0..5000) };
    PerKey {
        throttle: (rng.u32(..3) == 0).then_some(throttle),
        debounce: (rng.u32(..5) == 0).then_some(debounce),
        singleton: (rng.u32(..8) == 0).then_some(Singleton::Skip),
    }
}

fn limits(rng: &mut Rng) -> LaneLimits {
    // Few bytes for many records, or enough for few.
    if rng.u32(..3) == 0 {
        let progress_bytes = rng.usize(200..500);
        let (records, keys) = (rng.usize(20..100), rng.usize(10..40));
        return LaneLimits { records, key_records: rng.usize(2..30), keys, progress_bytes };
    }
    LaneLimits {
        records: rng.usize(4..40),
        key_records: rng.usize(2..10),
        keys: rng.usize(2..10),
        progress_bytes: 3000,
    }
}
