//! What patterns take on the heap: matching all of a topic nothing, once its scratch has grown; reading one no more
//! than it is large.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::{Value, json};
use tripline::event::{EventView, Header, RecordView};
use tripline::trigger::filter::{FilterSet, Pattern, Scratch};
use tripline_storage::{LeaderEpoch, Offset};
use uuid::Uuid;

#[test]
fn matching_a_record_allocates_nothing_in_the_steady_state() {
    let patterns: Vec<Pattern> = (0..300)
        .map(|n| match n % 3 {
            0 => json!({"data": {"id": [format!("i{n}")], "note": [{"anything-but": "x"}]}, "time": [{"prefix": "2"}]}),
            1 => json!({"data": {"note": [{"contains": format!("w{n}")}, {"equals-ignore-case": "STORM"}]}}),
            _ => json!({"data": {"n": [{"numeric": [">", n]}]}, "headers": {"trace.id": [{"exists": true}]}}),
        })
        .map(|source| Pattern::parse(&source).unwrap())
        .collect();
    let set = FilterSet::build((0..).zip(&patterns)).unwrap();
    let headers = [
        Header { name: "trace.id", value: Some(b"t1") },
        Header { name: "ce_id", value: Some(b"1") },
        Header { name: "binary", value: Some(b"\xff") },
    ];
    let values: [&[u8]; 4] = [
        br#"{"id": "i3", "note": "st\u006frm", "n": 7.5, "list": [1, {"a": []}]}"#,
        b"\"text\"",
        b"no json",
        b"[1,2,3]",
    ];
    let mut scratch = Scratch::new();
    let mut match_all = || {
        let matched = values.iter().map(|value| {
            let record = RecordView {
                topic: "t",
                cluster_id: "c",
                topic_id: Uuid::nil(),
                leader_epoch: LeaderEpoch::NONE,
                partition: 0,
                offset: Offset::ZERO,
                timestamp_ms: 1_700_000_000_000,
                key: Some(b"k"),
                value: Some(value),
                headers: &headers,
            };
            set.matches(&EventView::new(record), &mut scratch).len()
        });
        matched.sum::<usize>()
    };
    let matched = match_all();
    assert_eq!(matched, 1 + 100 + 2, "every kind of pattern is at work");
    let allocated = allocation_counter::measure(|| assert_eq!(match_all(), matched));
    assert_eq!((allocated.count_total, allocated.bytes_total), (0, 0));
}

/// A pattern with so many keys.
fn keys(count: usize) -> Value {
    Value::Object((0..count).map(|n| (format!("k{n:06}"), json!([1]))).collect())
}

#[test]
fn a_pattern_that_amounts_to_too_much_is_refused_before_it_is_multiplied_out() {
    let mut pattern = keys(60);
    pattern["$or"] = vec![json!({}); 1000].into();
    let read = || assert!(Pattern::parse(&pattern).unwrap_err().reason.contains("60000 lists"));
    let allocated = allocation_counter::measure(read);
    assert!(allocated.bytes_total < 60_000 * size_of::<usize>() as u64, "{allocated:?}");
}

#[test]
fn reading_twice_the_keys_takes_twice_the_memory() {
    let bytes = |count| {
        let pattern = keys(count);
        allocation_counter::measure(|| drop(Pattern::parse(&pattern).unwrap())).bytes_total
    };
    let (once, twice) = (bytes(4_000), bytes(8_000));
    assert!(twice < once * 5 / 2, "{once} and {twice} bytes");
}
