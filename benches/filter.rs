//! What it costs to see a record as an event and match it against 1, 100 and 10,000 patterns in one pass.
//!
//! `cargo bench --bench filter`. The figures are in the head of `src/trigger/filter/set.rs`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use serde_json::{Value, json};
use tripline::event::{EventView, Header, RecordView};
use tripline::trigger::filter::{FilterSet, Pattern, Scratch};

#[path = "support/allocator.rs"]
mod allocator;
#[path = "../src/event/testing.rs"]
mod testing;

const COUNTS: [u32; 3] = [1, 100, 10_000];

fn record(value: &[u8]) -> RecordView<'_> {
    RecordView { cluster_id: "0198c0de-0000-7000-8000-000000000001", ..testing::record(Some(value), &[]) }
}

/// About 200 bytes. Number 0 is what some patterns take.
fn small(number: u32) -> Value {
    json!({
        "flight": format!("LH{number:05}"), "carrier": "LH", "origin": "FRA", "dest": format!("dest-{number:05}"),
        "delay": number, "gate": "B42", "ip": format!("10.{}.{}.9", number >> 8, number & 255),
        "late": true, "note": "weather in the north", "crew": ["a-17", "b-4"], "fare": 129.5, "seats": {"y": 140, "c": 12},
    })
}

/// About 2 KB: the same among much that no pattern asks for.
fn large(number: u32) -> Value {
    let mut event = small(number);
    for leg in 0..9 {
        event[format!("leg{leg}")] = json!({
            "from": {"code": "FRA", "name": "Frankfurt am Main", "position": [50.0379, 8.5622]},
            "to": {"code": "JFK", "name": "New York \"JFK\"", "position": [40.6413, -73.7781]},
            "minutes": 512, "remarks": ["none so far", "see the briefing of the day"], "delayed": false,
        });
    }
    event
}

type MakePattern = fn(u32) -> Value;

const KINDS: [(&str, MakePattern); 4] = [
    ("one field", |n| json!({"data": {"flight": [format!("LH{n:05}")]}})),
    (
        "two fields",
        |n| json!({"data": {"carrier": ["LH"], "origin": [{"anything-but": "JFK"}], "flight": [format!("LH{n:05}")]}}),
    ),
    ("fields of their own", |n| {
        if n == 0 { json!({"data": {"flight": ["LH00000"]}}) } else { json!({"data": {format!("field{n}"): ["x"]}}) }
    }),
    ("operators", |n| {
        let list = match n % 8 {
            0 => return json!({"data": {"flight": [format!("LH{n:05}")]}}),
            1 => return json!({"data": {"dest": [{"prefix": format!("dest-{n:05}")}]}}),
            2 => return json!({"data": {"dest": [{"suffix": format!("-{n:05}")}]}}),
            3 => return json!({"data": {"delay": [{"numeric": [">=", n, "<", n + 1]}]}}),
            4 => return json!({"data": {"ip": [{"cidr": format!("10.{}.{}.0/24", n >> 8, n & 255)}]}}),
            5 => json!([{"contains": format!("word{n}")}]),
            6 => json!([{"wildcard": format!("*a{n}*b*")}]),
            _ => json!([{"equals-ignore-case": format!("NOTE {n}")}]),
        };
        json!({"data": {"carrier": ["LH"], "note": list}})
    }),
];

fn set(count: u32, make: MakePattern) -> FilterSet {
    let patterns: Vec<Pattern> = (0..count).map(|n| Pattern::parse(&make(n)).unwrap()).collect();
    FilterSet::build((0..).zip(&patterns)).unwrap()
}

/// An event that one pattern takes, and one that none does.
fn events() -> Vec<(&'static str, Vec<u8>, bool)> {
    [("200 B", small as fn(u32) -> Value), ("2 KB", large)]
        .into_iter()
        .flat_map(|(size, make)| {
            [(0, true), (70_000, false)].map(|(n, taken)| (size, make(n).to_string().into_bytes(), taken))
        })
        .collect()
}

fn matching(criterion: &mut Criterion) {
    for (kind, make) in KINDS {
        let mut group = criterion.benchmark_group(kind);
        for count in COUNTS {
            let set = set(count, make);
            for (size, value, taken) in events() {
                let mut scratch = Scratch::new();
                let id = BenchmarkId::new(format!("{size}, {}", if taken { "taken" } else { "turned away" }), count);
                group.throughput(Throughput::Elements(1)).bench_function(id, |bench| {
                    bench.iter(|| {
                        let event = EventView::new(record(black_box(&value)));
                        let matched = set.matches(&event, &mut scratch).len();
                        assert_eq!(matched, usize::from(taken));
                    });
                });
            }
        }
    }
}

fn single(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("one pattern alone");
    let pattern = Pattern::parse(&KINDS[0].1(0)).unwrap();
    for (size, value, taken) in events() {
        let id = BenchmarkId::new("walk", format!("{size}, {}", if taken { "taken" } else { "turned away" }));
        group.bench_function(id, |bench| {
            bench.iter(|| assert_eq!(pattern.matches(&EventView::new(record(black_box(&value)))), taken));
        });
    }
    let value = small(0).to_string().into_bytes();
    group.bench_function("write_json", |bench| {
        let mut out = Vec::new();
        bench.iter(|| {
            out.clear();
            EventView::new(record(black_box(&value))).write_json(&mut out);
            out.len()
        });
    });
}

fn building(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("build");
    group.sample_size(10);
    for (kind, make) in KINDS {
        let patterns: Vec<Pattern> = (0..10_000).map(|n| Pattern::parse(&make(n)).unwrap()).collect();
        group.bench_function(kind, |bench| bench.iter(|| FilterSet::build((0..).zip(&patterns)).unwrap()));
    }
}

/// A list of objects that patterns go below: judged by the walk over the event as a JSON value.
fn lists(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("list of objects");
    for count in COUNTS {
        let set = set(count, |n| json!({"data": {"items": {"id": [format!("i{n}")], "n": [1]}}}));
        for (name, value) in [
            ("taken", json!({"items": [{"id": "x", "n": 1}, {"id": "i0", "n": 1}], "note": "y".repeat(140)})),
            ("turned away", json!({"items": [{"id": "x", "n": 1}, {"id": "y", "n": 1}], "note": "y".repeat(140)})),
        ] {
            let (value, mut scratch) = (value.to_string().into_bytes(), Scratch::new());
            group.bench_function(BenchmarkId::new(name, count), |bench| {
                bench.iter(|| set.matches(&EventView::new(record(black_box(&value))), &mut scratch).len());
            });
        }
    }
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (size, value, _) in events() {
        println!("{size}: {} bytes", value.len());
    }
    matching(&mut criterion);
    single(&mut criterion);
    lists(&mut criterion);
    building(&mut criterion);
    criterion.final_summary();
}
