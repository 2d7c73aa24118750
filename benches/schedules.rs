//! What ten thousand schedules cost: to define, to hold, to wait for, to fire in the same minute, and to find again at
//! start.
//!
//! `cargo bench --bench schedules` prints times, the CPU time of all threads and resident memory. Ticks are fired by a
//! clock that the bench sets, and idleness is measured by the clock of the machine. `-- --test` does it with few
//! schedules.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tripline::broker::{Broker, BrokerConfig};
use tripline::source::schedule::clock::{Clock, ManualClock};
use tripline::source::schedule::service::ScheduleService;
use tripline::source::schedule::spec::ScheduleSpec;

use crate::support::Meter;

#[allow(dead_code, reason = "other benches use the rest")]
mod support;

/// 2026-12-01T07:00:30Z.
const T0_MS: i64 = 1_796_108_430_000;
const MINUTES: usize = 5;
const IDLE: Duration = Duration::from_secs(10);

fn definition(number: usize, cron: &str) -> ScheduleSpec {
    let definition: Value = json!({
        "schedule": format!("schedule-{number:05}"), "cron": cron, "timezone": "Europe/Berlin", "topic": "ticks",
        "key": format!("key-{number:05}"), "data": {"number": number, "what": "report", "for": "customer"},
    });
    ScheduleSpec::from_json(&definition).expect("a schedule")
}

fn broker(directory: &Path) -> Broker {
    Broker::start(BrokerConfig::new(directory.join("data"))).expect("a broker").0
}

/// Of this process.
fn resident_kib() -> f64 {
    let status = fs::read_to_string("/proc/self/status").expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim_end_matches("kB").trim().parse().expect("a number")
}

/// How often each thread of this process has waited for something so far.
fn waits() -> HashMap<OsString, u64> {
    let tasks = fs::read_dir("/proc/self/task").expect("its threads");
    let count = |task: fs::DirEntry| -> Option<(OsString, u64)> {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        Some((task.file_name(), count.trim().parse().ok()?))
    };
    tasks.filter_map(|task| count(task.ok()?)).collect()
}

/// Milliseconds by the clock, and of CPU.
fn ms(meter: &Meter) -> (f64, f64) {
    let cpu = meter.cpu();
    (meter.elapsed().as_secs_f64() * 1e3, cpu.as_secs_f64() * 1e3)
}

/// Applies `count` schedules one after the other, each durable, and prints what they took.
async fn define(schedules: &ScheduleService, count: usize, cron: &str) {
    // What all share is there before.
    schedules.apply(definition(count, cron)).await.expect("applied");
    let (before_kib, meter) = (resident_kib(), Meter::start());
    for number in 0..count {
        schedules.apply(definition(number, cron)).await.expect("applied");
    }
    let (took_ms, cpu_ms) = ms(&meter);
    let each = (resident_kib() - before_kib) / count as f64;
    println!("define {count}, {cron:?}: {took_ms:.0} ms, {cpu_ms:.0} ms of CPU; {each:.2} KiB resident each");
}

async fn wait_idle(what: &str, idle: Duration) {
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, meter) = (waits(), Meter::start());
    tokio::time::sleep(idle).await;
    let (took_ms, cpu_ms) = ms(&meter);
    // A thread that has ended meanwhile waits no more.
    let since = |(thread, count): (OsString, u64)| count - before.get(&thread).copied().unwrap_or(0);
    let waits = waits().into_iter().map(since).sum::<u64>() as f64 * 1e3 / took_ms;
    println!("idle, {what}: {waits:.1} wake-ups a second, {:.2} ms of CPU a second", cpu_ms * 1e3 / took_ms);
}

async fn wait(directory: &Path, count: usize, idle: Duration) {
    let broker = broker(directory);
    let (schedules, _) = ScheduleService::start(broker.clone(), Clock::default()).await;
    wait_idle("no schedule", idle).await;
    define(&schedules, count, "0 0 1 1 *").await;
    wait_idle("none due", idle).await;
    schedules.shutdown().await;
    broker.close();
}

async fn recover(directory: &Path, what: &str) {
    let meter = Meter::start();
    let broker = broker(directory);
    let (opened_ms, _) = ms(&meter);
    let meter = Meter::start();
    let (schedules, failed) = ScheduleService::start(broker.clone(), Clock::default()).await;
    let (took_ms, cpu_ms) = ms(&meter);
    assert!(failed.is_empty());
    let count = schedules.list().len();
    println!(
        "start again, {what}: broker {opened_ms:.1} ms, {count} schedules {took_ms:.1} ms, {cpu_ms:.1} ms of CPU, {:.1} MiB resident",
        resident_kib() / 1024.0,
    );
    schedules.shutdown().await;
    broker.close();
}

async fn fire(directory: &Path, count: usize) {
    let broker = broker(directory);
    let clock = ManualClock::new(T0_MS);
    let (schedules, _) = ScheduleService::start(broker.clone(), Clock::Manual(clock.clone())).await;
    define(&schedules, count, "* * * * *").await;
    clock.pass(30_000);
    schedules.settled().await;
    for _ in 0..MINUTES {
        let meter = Meter::start();
        clock.pass(60_000);
        schedules.settled().await;
        let (took_ms, cpu_ms) = ms(&meter);
        println!("fire {} in one minute: {took_ms:.0} ms, {cpu_ms:.0} ms of CPU", count + 1);
    }
    let fired: u64 = schedules.list().iter().map(|report| report.counts.fired).sum();
    assert_eq!(fired, ((count + 1) * (MINUTES + 1)) as u64, "every tick once");
    schedules.shutdown().await;
    broker.close();
}

fn main() {
    let test = std::env::args().any(|argument| argument == "--test");
    let (count, idle) = if test { (200, Duration::from_millis(100)) } else { (9_999, IDLE) };
    let (waiting, firing) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        wait(waiting.path(), count, idle).await;
        recover(waiting.path(), "none due").await;
        fire(firing.path(), count).await;
        recover(firing.path(), "after ticks").await;
    });
}
