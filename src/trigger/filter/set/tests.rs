use serde_json::{Value, json};

use super::*;
use crate::event::{Header, RecordView, STRUCTURED_TYPE, testing};

fn pattern(source: &Value) -> Pattern {
    Pattern::parse(source).unwrap_or_else(|error| panic!("{source}: {error}"))
}

fn record<'a>(value: Option<&'a [u8]>, headers: &'a [Header<'a>]) -> RecordView<'a> {
    RecordView { topic: "t", partition: 1, timestamp_ms: 5, key: Some(b"k"), ..testing::record(value, headers) }
}

fn set(sources: &[Value]) -> FilterSet {
    let patterns: Vec<Pattern> = sources.iter().map(pattern).collect();
    FilterSet::build((0..).zip(&patterns)).unwrap()
}

fn matched(set: &FilterSet, value: &str) -> Vec<u32> {
    set.matches(&EventView::new(record(Some(value.as_bytes()), &[])), &mut Scratch::new()).to_vec()
}

#[test]
fn the_ids_are_the_callers_and_ascend() {
    let (one, other) = (pattern(&json!({"key": ["k"]})), pattern(&json!({"key": ["x"]})));
    let set = FilterSet::build([(9, &one), (4_000_000_000, &one), (3, &one), (5, &other)]).unwrap();
    assert_eq!((set.len(), set.is_empty()), (4, false));
    assert_eq!(matched(&set, "{}"), [3, 9, 4_000_000_000]);
    let none = FilterSet::build([]).unwrap();
    assert!(none.is_empty());
    assert_eq!(matched(&none, "{}"), [] as [u32; 0]);
}

#[test]
fn a_pattern_without_lists_takes_everything_and_one_that_needs_a_payload_only_json() {
    let set = set(&[json!({}), json!({"data": {}}), json!({"data_base64": [{"exists": false}]}), json!({"data": [1]})]);
    assert_eq!(matched(&set, "not json"), [0, 1]);
    assert_eq!(matched(&set, "1"), [0, 1, 2, 3]);
}

#[test]
fn a_scratch_serves_one_set_after_another() {
    let mut scratch = Scratch::new();
    let (small, large) = (set(&[json!({"data": ["a"]})]), set(&[json!({"data": ["b"]}), json!({"data": ["a"]})]));
    let event = EventView::new(record(Some(b"\"a\""), &[]));
    for _ in 0..3 {
        assert_eq!(small.matches(&event, &mut scratch), [0]);
        assert_eq!(large.matches(&event, &mut scratch), [1]);
    }
}

#[test]
fn sets_that_are_too_large_are_refused_with_the_limit() {
    let choices: Vec<Value> = (0..30).map(|n| json!({"a": [n], "b": [n], "c": [n], "d": [n]})).collect();
    let wide = pattern(&json!({"$or": choices, "x": {"$or": choices}}));
    let error = FilterSet::build((0..200).map(|id| (id, &wide))).unwrap_err();
    assert_eq!(error, FilterSetError::Lists { found: 200 * 900 * 8 });
    assert!(error.to_string().contains("1440000 lists, at most 1000000"), "{error}");
    assert!(FilterSet::build((0..20).map(|id| (id, &wide))).is_ok());
    let long = pattern(&json!({"a": ["x".repeat(1 << 20)]}));
    let error = FilterSet::build((0..64).map(|id| (id, &long))).unwrap_err();
    assert!(matches!(error, FilterSetError::Bytes { found } if found > 64 << 20), "{error}");
}

/// How many candidates are judged for a value.
fn candidates(set: &FilterSet, value: &Value) -> usize {
    let (value, mut scratch) = (value.to_string(), Scratch::new());
    set.matches(&EventView::new(record(Some(value.as_bytes()), &[])), &mut scratch);
    scratch.hits.candidates.len()
}

#[test]
fn of_ten_thousand_patterns_only_those_that_may_match_are_judged() {
    let of = |make: fn(u32) -> Value| set(&(0..10_000).map(make).collect::<Vec<_>>());
    let value = json!({"kind": "late", "id": "id-00042", "n": 42.5, "ip": "10.0.42.7"});
    for (name, set, most) in [
        ("exact", of(|n| json!({"data": {"kind": ["late"], "id": [format!("id-{n:05}")]}})), 1),
        ("prefix", of(|n| json!({"data": {"id": [{"prefix": format!("id-{n:05}")}]}})), 1),
        ("suffix", of(|n| json!({"data": {"id": [{"suffix": format!("{n:05}")}]}})), 1),
        ("inside", of(|n| json!({"data": {"id": [{"contains": format!("-{n:05}")}]}})), 1),
        ("wildcard", of(|n| json!({"data": {"id": [{"wildcard": format!("i*-{n:05}")}]}})), 1),
        ("any case", of(|n| json!({"data": {"id": [{"equals-ignore-case": format!("ID-{n:05}")}]}})), 1),
        ("range", of(|n| json!({"data": {"n": [{"numeric": [">", n, "<", n + 1]}]}})), 1),
        ("network", of(|n| json!({"data": {"ip": [{"cidr": format!("10.{}.{}.0/24", n >> 8, n & 255)}]}})), 1),
        ("fields", of(|n| json!({"data": {format!("id{n}"): [{"exists": true}]}})), 0),
        ("anything-but", of(|n| json!({"data": {"id": [format!("{n}")], "kind": [{"anything-but": "x"}]}})), 0),
        ("absent", of(|n| json!({"data": {"id": [format!("{n}")], "none": [{"exists": false}]}})), 0),
    ] {
        assert_eq!(candidates(&set, &value), most, "{name}");
    }
}

#[test]
fn a_list_with_very_many_values_is_judged_all_the_same() {
    let set = set(&[json!({"data": [40_000]}), json!({"data": [-1]})]);
    let numbers: Vec<u32> = (0..=40_000).collect();
    assert_eq!(matched(&set, &json!(numbers).to_string()), [0]);
}

/// Patterns and records made from few names and values, so that they meet often, in every shape that the matching
/// knows.
mod any {
    use fastrand::Rng;

    use super::*;

    const KEYS: [&str; 7] = ["a", "b", "c", "a.b", "b.c", "", "a."];
    const TEXTS: [&str; 12] =
        ["", "x", "xy", "X", "xyx", "Äx", "äX", "10.0.0.1", "10.0.1.2", "2001:db8::1", "a*b", "x\n"];
    const NUMBERS: [&str; 12] = [
        "0",
        "-0",
        "1",
        "1.0",
        "10e-1",
        "2",
        "-3",
        "1.5",
        "9007199254740993",
        "9007199254740992",
        "18446744073709551615",
        "-9223372036854775808",
    ];

    fn pick<T: Clone>(rng: &mut Rng, choices: &[T]) -> T {
        choices[rng.usize(..choices.len())].clone()
    }

    fn number(rng: &mut Rng) -> Value {
        serde_json::from_str(pick(rng, &NUMBERS)).unwrap()
    }

    fn text(rng: &mut Rng) -> Value {
        pick(rng, &TEXTS).into()
    }

    fn test(rng: &mut Rng) -> Value {
        let wildcards = ["*", "x*", "*x", "*y*", "x*x", "", "x", r"a\*b", "1*.0*1"];
        let networks = ["10.0.0.0/24", "10.0.0.0/8", "0.0.0.0/0", "2001:db8::/32", "10.0.0.1/32", "::/0"];
        match rng.u8(..20) {
            0..4 => text(rng),
            4..6 => number(rng),
            6 => pick(rng, &[json!(null), json!(true), json!(false)]),
            7 => json!({ "prefix": text(rng) }),
            8 => json!({ "suffix": text(rng) }),
            9 => json!({ "contains": text(rng) }),
            10 => json!({ "equals-ignore-case": text(rng) }),
            11 => json!({ pick(rng, &["prefix", "suffix"]): { "equals-ignore-case": text(rng) } }),
            12 => json!({ "wildcard": pick(rng, &wildcards) }),
            13 => json!({ "numeric": [pick(rng, &[">", ">=", "<", "<=", "="]), number(rng)] }),
            14 => json!({ "numeric": [pick(rng, &[">", ">="]), rng.i8(-4..2), pick(rng, &["<", "<="]), rng.i8(2..5)] }),
            15 => json!({ "cidr": pick(rng, &networks) }),
            16 | 17 => json!({ "exists": rng.bool() }),
            18 => {
                json!({ "anything-but": pick(rng, &[json!("x"), json!(["x", "", "xy"]), json!(1), json!([1, 2, 0])]) })
            }
            _ => {
                let operator = pick(rng, &["prefix", "suffix", "equals-ignore-case", "wildcard"]);
                json!({ "anything-but": { operator: pick(rng, &[json!("x"), json!(["x", "10"])]) } })
            }
        }
    }

    fn object(rng: &mut Rng, depth: u32) -> Value {
        let mut fields = serde_json::Map::new();
        for _ in 0..rng.u32(1..3) {
            fields.insert(pick(rng, &KEYS).to_owned(), below(rng, depth));
        }
        if rng.u8(..6) == 0 {
            fields.insert("$or".to_owned(), (0..2).map(|_| object(rng, depth + 1)).collect());
        }
        fields.into()
    }

    fn below(rng: &mut Rng, depth: u32) -> Value {
        if depth < 3 && rng.u8(..3) == 0 {
            return object(rng, depth + 1);
        }
        (0..rng.u32(1..4)).map(|_| test(rng)).collect()
    }

    pub(super) fn pattern(rng: &mut Rng) -> Pattern {
        let mut fields = serde_json::Map::new();
        for _ in 0..rng.u32(0..3) {
            let (key, value) = match rng.u8(..20) {
                0..12 => ("data", if rng.u8(..6) == 0 { below(rng, 0) } else { object(rng, 0) }),
                12 => ("headers", object(rng, 2)),
                13 => ("key", json!([text(rng), test(rng)])),
                14 => ("partition", json!([1, test(rng)])),
                15 => ("timestamp", json!([{ "numeric": ["<", 9] }, { "exists": rng.bool() }])),
                16 => ("id", json!([{ "prefix": "1-" }, text(rng)])),
                17 => (
                    pick(rng, &["time", "source", "subject", "partitionkey"]),
                    json!([{ "exists": rng.bool() }, test(rng)]),
                ),
                18 => (pick(rng, &["topic", "offset", "x", "datacontenttype"]), json!(["t", 7, test(rng)])),
                _ => ("data_base64", json!([test(rng)])),
            };
            fields.insert(key.to_owned(), value);
        }
        if rng.u8(..8) == 0 {
            fields.insert("$or".to_owned(), json!([{ "data": object(rng, 1) }, { "key": ["k", text(rng)] }]));
        }
        let source = Value::Object(fields);
        Pattern::parse(&source)
            .unwrap_or_else(|_| Pattern::parse(&json!({ "data": { "a": [test_that_is_valid()] } })).unwrap())
    }

    fn test_that_is_valid() -> Value {
        json!({ "prefix": "x" })
    }

    /// A text in quotes, some of its characters escaped where they need not be.
    fn write_text(rng: &mut Rng, text: &str, out: &mut String) {
        if rng.u8(..8) > 0 {
            return out.push_str(&Value::from(text).to_string());
        }
        out.push('"');
        let mut units = [0; 2];
        for unit in text.chars().flat_map(|c| c.encode_utf16(&mut units).to_vec()) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
        out.push('"');
    }

    fn write_object(rng: &mut Rng, depth: u32, out: &mut String) {
        out.push('{');
        for field in 0..rng.u32(..5) {
            out.push_str(if field == 0 { " " } else { " ," });
            let key = pick(rng, &KEYS);
            write_text(rng, key, out);
            out.push(':');
            write_value(rng, depth + 1, out);
        }
        out.push('}');
    }

    fn write_value(rng: &mut Rng, depth: u32, out: &mut String) {
        match rng.u8(..12) {
            0..3 if depth < 4 => write_object(rng, depth, out),
            3..5 if depth < 4 => {
                out.push('[');
                for element in 0..rng.u32(..4) {
                    out.push_str(if element == 0 { "" } else { ", " });
                    write_value(rng, depth + 1, out);
                }
                out.push(']');
            }
            5 => out.push_str(pick(rng, &["null", "true", "false"])),
            6..8 => out.push_str(pick(rng, &NUMBERS)),
            _ => {
                let text = pick(rng, &TEXTS);
                write_text(rng, text, out);
            }
        }
    }

    /// The parts of a record.
    #[derive(Debug)]
    pub(super) struct AnyRecord {
        value: Option<Vec<u8>>,
        headers: Vec<(&'static str, Option<&'static [u8]>)>,
        key: Option<&'static [u8]>,
        timestamp_ms: i64,
    }

    pub(super) fn record(rng: &mut Rng) -> AnyRecord {
        let mut headers: Vec<(&str, Option<&[u8]>)> = Vec::new();
        for _ in 0..rng.u32(..3) {
            let value = pick(rng, &[Some(b"x".as_slice()), Some(b"xy"), None, Some(b"\xff"), Some(b"10.0.0.1")]);
            headers.push((pick(rng, &["a", "b", "a.b", "b.c", "other"]), value));
        }
        if rng.u8(..6) == 0 {
            let (id, source, kind) = (Some(b"1-x".as_slice()), Some(b"x".as_slice()), Some(b"x".as_slice()));
            headers.extend([("ce_id", id), ("ce_source", source), ("ce_type", kind), ("ce_specversion", Some(b"1.0"))]);
            headers.extend([("ce_topic", Some(b"x".as_slice())), ("ce_x", Some(b"t")), ("ce_timestamp", Some(b"x"))]);
            let types = [Some(b"text/plain".as_slice()), Some(b"application/json"), None];
            headers.extend(pick(rng, &types).map(|value| ("content-type", Some(value))));
        }
        let mut text = String::new();
        if rng.u8(..8) == 0 {
            headers.push(("Content-Type", Some(STRUCTURED_TYPE.as_bytes())));
            text.push_str(
                r#"{"specversion":"1.0","id":"1-y","source":"x","type":"t","topic":"x","headers":{"a":"x"},"#,
            );
            text.push_str(r#""timestamp": "x", "offset.a": 7, "headers.b": "x", "data":"#);
            write_value(rng, 0, &mut text);
            text.push('}');
        } else if rng.u8(..5) > 0 {
            write_object(rng, 0, &mut text);
        } else {
            write_value(rng, 0, &mut text);
        }
        let mut value = text.into_bytes();
        match rng.u8(..24) {
            0 => value.truncate(rng.usize(..value.len())),
            1 => value.push(0xff),
            _ => {}
        }
        AnyRecord {
            value: (rng.u8(..30) > 0).then_some(value),
            headers,
            key: pick(rng, &[Some(b"k".as_slice()), Some(b"x"), None, Some(b"\xff")]),
            timestamp_ms: pick(rng, &[5, 50, -1]),
        }
    }

    impl AnyRecord {
        pub(super) fn with<T>(&self, look: impl FnOnce(RecordView<'_>) -> T) -> T {
            let headers: Vec<Header<'_>> =
                self.headers.iter().map(|(name, value)| Header { name, value: *value }).collect();
            let plain = super::record(self.value.as_deref(), &headers);
            look(RecordView { key: self.key, timestamp_ms: self.timestamp_ms, ..plain })
        }
    }
}

#[test]
fn a_set_matches_exactly_what_its_patterns_match() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut scratch = Scratch::new();
    let (mut matches, mut with_several, mut not_json) = (0, 0, 0);
    for _ in 0..2000 {
        let patterns: Vec<Pattern> = (0..rng.usize(1..9)).map(|_| any::pattern(&mut rng)).collect();
        let set = FilterSet::build((0..).zip(&patterns)).unwrap();
        for _ in 0..50 {
            let record = any::record(&mut rng);
            record.with(|record| {
                let event = EventView::new(record);
                let expected: Vec<u32> =
                    (0..).zip(&patterns).filter(|(_, pattern)| pattern.matches(&event)).map(|(id, _)| id).collect();
                let found = set.matches(&EventView::new(record), &mut scratch);
                assert_eq!(found, expected, "{patterns:#?} {:?} {}", event.for_matching(), event.to_json());
                matches += expected.len();
                not_json += usize::from(!event.has_json_payload());
            });
            with_several += usize::from(!scratch.places.is_one_place_each());
        }
    }
    // Records of every kind were there.
    assert!(matches > 50_000 && with_several > 3_000 && not_json > 3_000, "{matches} {with_several} {not_json}");
}

#[test]
fn the_public_patterns_are_judged_by_sets_as_alone() {
    let Some(shared) = std::env::var_os("TRIPLINE_SHARED") else {
        println!("SKIP: TRIPLINE_SHARED is not set, so data/event-patterns is not there");
        return;
    };
    let folder = std::path::Path::new(&shared).join("data/event-patterns");
    let read = |file: std::io::Result<std::fs::DirEntry>| -> (bool, Option<Pattern>, String) {
        let path = file.unwrap().path();
        let case: Value = json5::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let negative = path.file_stem().unwrap().to_str().unwrap().ends_with("_NEG");
        let pattern = Pattern::parse(&json!({ "data": case["EventPattern"] })).ok();
        (!negative, pattern, case["Event"].to_string())
    };
    let cases: Vec<_> = std::fs::read_dir(folder).unwrap().map(read).collect();
    assert_eq!(cases.len(), 155);
    let patterns: Vec<(u32, &Pattern)> =
        (0..).zip(&cases).filter_map(|(id, (_, pattern, _))| Some((id, pattern.as_ref()?))).collect();
    let all = FilterSet::build(patterns.iter().copied()).unwrap();
    for (id, (expected, pattern, event)) in (0..).zip(&cases) {
        let Some(pattern) = pattern else { continue };
        let alone = FilterSet::build([(id, pattern)]).unwrap();
        assert_eq!(!matched(&alone, event).is_empty(), *expected, "{pattern:?} {event}");
        let view = EventView::new(record(Some(event.as_bytes()), &[]));
        let each: Vec<u32> = patterns.iter().filter(|(_, pattern)| pattern.matches(&view)).map(|(id, _)| *id).collect();
        assert_eq!(matched(&all, event), each, "{event}");
        assert_eq!(each.contains(&id), *expected);
    }
}
