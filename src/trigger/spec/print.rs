//! A trigger definition printed in the shape in which it is written.

use std::time::Duration;

use serde_json::{Value, json};

use super::{FlowLimits, FunctionRef, Order, TriggerSpec, input};
use crate::config::units::{display_duration, display_size};
use crate::trigger::attempt::ErrorsTolerance;
use crate::trigger::flow::{PerKey, Singleton};
use crate::trigger::retry::{FreeRetry, Jitter, RetryPolicy};
use crate::trigger::trace::TraceLevel;

pub(super) fn trigger(spec: &TriggerSpec) -> Value {
    let mut definition = json!({
        "trigger": spec.name,
        "input": input::print(&spec.input),
        "transform": spec.transform.source(),
        "window": {
            "count": spec.window.count,
            "interval": display_duration(spec.window.interval),
            "bytes": display_size(spec.window.bytes),
        },
        "order": match spec.order {
            Order::Partition => "partition",
            Order::Key => "key",
            Order::None => "none",
        },
        "concurrency": spec.concurrency,
        "function": match &spec.function {
            FunctionRef::Named(name) => json!(name),
            FunctionRef::Http { url } => json!({ "http": { "url": url } }),
        },
        "retry": retry(&spec.retry),
        "errors_tolerance": match spec.errors_tolerance { ErrorsTolerance::All => "all", ErrorsTolerance::None => "none" },
        "bisect": spec.bisect,
        "limits": limits(&spec.limits),
        "trace": match spec.trace { TraceLevel::All => "all", TraceLevel::Failures => "failures", TraceLevel::None => "none" },
        "dead_letter": spec.dead_letter.as_ref().map_or_else(|| json!("none"), |topic| json!({ "topic": topic })),
    });
    if let Some(max_wait) = spec.window.max_wait {
        definition["window"]["max_wait"] = display_duration(max_wait).into();
    }
    if let Some(latency) = spec.window_latency {
        definition["window"]["adaptive"] = json!({ "latency": display_duration(latency) });
    }
    for (field, topic) in spec.destinations.topics() {
        definition["destinations"][field] = json!({ "topic": topic });
    }
    if spec.per_key != PerKey::default() {
        definition["per_key"] = per_key(&spec.per_key);
    }
    if let Some(filter) = &spec.filter {
        definition["filter"] = filter.source().clone();
    }
    definition
}

fn limits(limits: &FlowLimits) -> Value {
    let mut printed = json!({ "records": limits.records, "bytes": display_size(limits.bytes) });
    if let Some(rate) = limits.invocations_per_second {
        printed["invocations_per_second"] = rate.into();
    }
    printed
}

fn per_key(per_key: &PerKey) -> Value {
    let duration = |ms: i64| display_duration(Duration::from_millis(ms.unsigned_abs()));
    let mut printed = json!({});
    if let Some(throttle) = per_key.throttle {
        printed["throttle"] = json!({ "limit": throttle.limit, "period": duration(throttle.period_ms) });
    }
    if let Some(debounce) = per_key.debounce {
        printed["debounce"] = json!({ "period": duration(debounce.period_ms), "max": duration(debounce.max_ms) });
    }
    if let Some(Singleton::Skip) = per_key.singleton {
        printed["singleton"] = "skip".into();
    }
    printed
}

fn retry(retry: &RetryPolicy) -> Value {
    match retry {
        RetryPolicy::BackoffRetry => json!("BACKOFF_RETRY"),
        RetryPolicy::ExponentialDecayRetry => json!("EXPONENTIAL_DECAY_RETRY"),
        RetryPolicy::Free(free) => free_retry(free),
    }
}

fn free_retry(free: &FreeRetry) -> Value {
    let thousandths = free.factor_thousandths;
    let factor = if thousandths.is_multiple_of(1000) {
        json!(thousandths / 1000)
    } else {
        json!(f64::from(thousandths) / 1000.0)
    };
    json!({
        "initial": display_duration(free.initial),
        "factor": factor,
        "max_interval": display_duration(free.max_interval),
        "max_attempts": free.max_attempts,
        "jitter": match free.jitter { Jitter::Full => "full", Jitter::Equal => "equal", Jitter::None => "none" },
        "max_age": display_duration(free.max_age),
    })
}
