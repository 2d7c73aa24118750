//! What turning an event into what its function gets costs, by kind of transform and size of the event; and how long
//! the most costly path may hold a thread.
//!
//! `cargo bench -p tripline --bench transform`

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};
use tripline::trigger::transform::{Origin, Stage, Transform};

#[path = "support/allocator.rs"]
mod allocator;

/// Elements of the list in the event; the largest event has about a megabyte.
const ELEMENTS: [usize; 3] = [1, 100, 10_000];

fn event(elements: usize) -> Value {
    let passengers: Vec<_> =
        (0..elements).map(|number| json!({ "name": format!("passenger {number}"), "seat": "12C", "checked": false, "bags": [number % 3, 23] })).collect();
    json!({
        "specversion": "1.0", "id": "0-41", "source": "/c/t/1", "type": "tripline.record", "subject": "flights",
        "data": { "origin": "FRA", "destination": "JFK", "delay": 95, "note": "crew \"late\"", "passengers": passengers },
        "topic": "flights", "partition": 0, "offset": 41, "timestamp": 1_700_000_000_123_i64, "key": "LH400", "headers": {},
    })
}

fn transforms() -> [(&'static str, Value); 6] {
    [
        ("constant", json!({ "constant": { "do": "refresh" } })),
        ("jsonpath one", json!({ "jsonpath": "$.data.delay" })),
        ("jsonpath filter", json!({ "jsonpath": "$.data.passengers[?@.bags[0] == 2].name" })),
        (
            "template three values",
            json!({
                "template": r#"{"flight": "<origin>-<dest>", "late_min": <delay>}"#,
                "values": { "origin": "$.data.origin", "dest": "$.data.destination", "delay": "$.data.delay" },
            }),
        ),
        ("template whole data", json!({ "template": r#"{"data": <data>}"#, "values": { "data": "$.data" } })),
        ("delete", json!({ "delete": ["$.data.note", "$.data.passengers[*].seat"] })),
    ]
}

fn each_kind(c: &mut Criterion) {
    for (kind, source) in transforms() {
        let mut group = c.benchmark_group(kind);
        group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(20);
        let transform = Transform::parse(&source).expect("these are right");
        let [Stage::Pure(chain)] = transform.stages() else { panic!("these are pure") };
        for elements in ELEMENTS {
            let event = event(elements);
            let mut out = Vec::new();
            group.throughput(Throughput::Elements(1));
            group.bench_function(BenchmarkId::from_parameter(elements), |b| {
                b.iter(|| {
                    out.clear();
                    chain.write_json(&Origin::Written(black_box(&event)), None, &mut out).expect("within the limits");
                });
            });
        }
        group.finish();
    }
}

/// Paths that use up their budget: the longest that one record may hold a thread.
fn hostile(c: &mut Criterion) {
    let mut group = c.benchmark_group("hostile");
    group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2)).sample_size(10);
    let event = event(10_000);
    for path in ["$[?count($..*..*..*) > 1]", "$..[?$ == $]", "$..[?search('a', @.name)]", "$..[?$..[?@.x == 1]]"] {
        let transform = Transform::parse(&json!({ "jsonpath": path })).expect("these are right");
        let [Stage::Pure(chain)] = transform.stages() else { panic!("these are pure") };
        group.bench_function(BenchmarkId::from_parameter(path), |b| {
            b.iter(|| {
                let failed = chain.write_json(&Origin::Written(black_box(&event)), None, &mut Vec::new());
                assert_eq!(failed.expect_err("too costly").code.as_str(), "transform-too-costly");
            });
        });
    }
    group.finish();
}

/// What compiling costs, once per definition.
fn compile(c: &mut Criterion) {
    for (kind, source) in transforms() {
        c.bench_function(&format!("compile {kind}"), |b| b.iter(|| Transform::parse(black_box(&source)).is_ok()));
    }
}

criterion_group!(benches, each_kind, hostile, compile);
criterion_main!(benches);
