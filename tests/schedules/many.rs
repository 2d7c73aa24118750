//! Thousands of schedules: what each keeps in memory.

use serde_json::json;
use tripline::broker::{Broker, BrokerConfig};
use tripline::source::schedule::clock::{Clock, ManualClock};
use tripline::source::schedule::service::ScheduleService;
use tripline::source::schedule::spec::ScheduleSpec;

/// 2026-12-01T07:00:30Z.
const T0_MS: i64 = 1_796_108_430_000;
const SCHEDULES: usize = 1_000;
/// On the heap, with a definition of about 170 bytes.
const BYTES_MAX: i64 = 4 << 10;

#[test]
fn a_schedule_takes_less_than_four_kib_also_after_its_ticks() {
    let directory = tempfile::tempdir().unwrap();
    // One thread: what is counted is what it has allocated.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let clock = ManualClock::new(T0_MS);
    let schedules = runtime.block_on(async {
        let (broker, _) = Broker::start(BrokerConfig::new(directory.path().join("data"))).unwrap();
        let (schedules, _) = ScheduleService::start(broker, Clock::Manual(clock.clone())).await;
        schedules.apply(definition(SCHEDULES)).await.unwrap();
        schedules
    });
    let held = allocation_counter::measure(|| {
        runtime.block_on(async {
            for number in 0..SCHEDULES {
                schedules.apply(definition(number)).await.unwrap();
            }
            clock.pass(60_000);
            schedules.settled().await;
        });
    });
    let fired: u64 = schedules.list().iter().map(|report| report.counts.fired).sum();
    assert_eq!(fired, SCHEDULES as u64 + 1);
    let each = held.bytes_current / SCHEDULES as i64;
    println!("{each} bytes a schedule");
    assert!(each < BYTES_MAX, "{each} bytes a schedule");
    runtime.block_on(schedules.shutdown());
}

fn definition(number: usize) -> ScheduleSpec {
    let definition = json!({
        "schedule": format!("schedule-{number:05}"), "cron": "* * * * *", "timezone": "Europe/Berlin", "topic": "ticks",
        "key": format!("key-{number:05}"), "data": {"number": number, "what": "report", "for": "customer"},
    });
    ScheduleSpec::from_json(&definition).unwrap()
}
