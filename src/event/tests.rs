use proptest::prelude::*;
use serde_json::json;

use super::testing::record;
use super::*;

fn header<'a>(name: &'a str, value: &'a str) -> Header<'a> {
    Header { name, value: Some(value.as_bytes()) }
}

/// The written event, after checking that both ways of making it agree.
fn written(record: RecordView<'_>) -> String {
    let event = EventView::new(record);
    let mut out = Vec::new();
    event.write_json(&mut out);
    assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), event.to_json());
    assert_eq!(event.to_json()["id"], event.id().as_ref());
    String::from_utf8(out).unwrap()
}

const WRAPPED: &str = r#"{"specversion":"1.0","id":"2-41","source":"/c1/00000000-0000-0000-0000-000000000007/3","type":"tripline.record","time":"2023-11-14T22:13:20.123Z","subject":"flights","partitionkey":"LH400""#;

#[test]
fn a_record_is_wrapped_and_its_json_is_copied_as_it_is() {
    let value = b" {\"a\" : 1.50}\n";
    assert_eq!(written(record(Some(value), &[])), format!("{WRAPPED},\"data\":{{\"a\" : 1.50}}}}"));
}

#[test]
fn text_bytes_and_nothing_are_wrapped_each_in_its_way() {
    let data = |value| written(record(value, &[])).strip_prefix(WRAPPED).unwrap().to_owned();
    assert_eq!(data(Some(b"a \"b\"\n".as_slice())), r#","data":"a \"b\"\n"}"#);
    assert_eq!(data(Some(b"".as_slice())), r#","data":""}"#);
    assert_eq!(data(Some(b"\xff\x00".as_slice())), r#","data_base64":"/wA="}"#);
    assert_eq!(data(None), "}");
}

#[test]
fn a_record_without_time_or_with_a_binary_key_leaves_them_out() {
    let plain = RecordView { timestamp_ms: -1, key: Some(b"\xff"), ..record(Some(b"1"), &[]) };
    let event = EventView::new(plain).to_json();
    assert_eq!((event.get("time"), event.get("partitionkey")), (None, None));
}

#[test]
fn what_a_json_reader_refuses_is_text() {
    let deep = "[".repeat(200) + &"]".repeat(200);
    for value in [&deep, "1e999", "\"\\ud800\"", "{\"a\":1} x", "{\"a\":}"] {
        let event = EventView::new(record(Some(value.as_bytes()), &[]));
        assert!(!event.has_json_payload(), "{value}");
        assert_eq!(event.to_json()["data"], *value);
        written(record(Some(value.as_bytes()), &[]));
    }
}

#[test]
fn ce_headers_make_the_record_that_event() {
    let headers = [
        header("ce_type", "late"),
        header("ce_source", "/airport"),
        header("other", "x"),
        header("ce_id", "e1"),
        header("ce_specversion", "1.0"),
        header("ce_Bad-Name", "x"),
        header("ce_subject", "LH400"),
        header("ce_id", "second"),
        header("content-type", "application/vnd.x+json; charset=utf-8"),
    ];
    let expected = r#"{"specversion":"1.0","id":"e1","source":"/airport","type":"late","subject":"LH400","datacontenttype":"application/vnd.x+json; charset=utf-8","data":[1]}"#;
    assert_eq!(written(record(Some(b"[1]"), &headers)), expected);
}

#[test]
fn the_content_type_decides_whether_data_of_an_event_is_json() {
    let with = |content_type| {
        let mut headers = [("ce_id", "1"), ("ce_source", "s"), ("ce_type", "t"), ("ce_specversion", "1.0")]
            .map(|(name, value)| header(name, value))
            .to_vec();
        headers.push(header("Content-Type", content_type));
        EventView::new(record(Some(b"12"), &headers)).to_json()["data"].clone()
    };
    assert_eq!((with("text/plain"), with("application/json"), with("TEXT/JSON")), (json!("12"), json!(12), json!(12)));
}

#[test]
fn a_structured_event_is_taken_as_it_stands() {
    let value = b" {\"specversion\":\"1.0\",\"id\":\"e\",\"source\":\"s\",\"type\":\"t\",\"n\":1.0} ";
    let headers = [header("content-type", "application/cloudevents+json; charset=utf-8")];
    assert_eq!(written(record(Some(value), &headers)).as_bytes(), value.trim_ascii());
}

#[test]
fn what_only_looks_like_an_event_is_wrapped() {
    let structured = [header("content-type", STRUCTURED_TYPE)];
    for value in [
        "not json",
        "[]",
        r#"{"specversion":"0.3","id":"e","source":"s","type":"t"}"#,
        r#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#,
        r#"{"specversion":"1.0","id":7,"source":"s","type":"t"}"#,
    ] {
        let event = EventView::new(record(Some(value.as_bytes()), &structured));
        assert_eq!(event.to_json()["type"], RECORD_TYPE, "{value}");
    }
    let incomplete = [header("ce_id", "1"), header("ce_source", "s"), header("ce_specversion", "1.0")];
    assert_eq!(EventView::new(record(None, &incomplete)).to_json()["type"], RECORD_TYPE);
    let broken = [Header { name: "ce_id", value: Some(b"\xff") }, header("ce_type", "t")];
    assert_eq!(EventView::new(record(None, &broken)).to_json()["type"], RECORD_TYPE);
}

#[test]
fn filters_see_the_place_the_key_and_the_headers_too() {
    let headers = [
        header("trace.id", "t1"),
        header("tag", "a"),
        Header { name: "tag", value: None },
        Header { name: "tag", value: Some(b"\xff") },
    ];
    let event = EventView::new(record(Some(b"{}"), &headers));
    let seen = event.for_matching();
    assert!(seen.has_dotted_keys && seen.has_json_payload);
    let facts = json!({
        "topic": "flights", "partition": 2, "offset": 41, "timestamp": 1_700_000_000_123_i64, "key": "LH400",
        "headers": {"trace.id": "t1", "tag": ["a", null, "/w=="]},
    });
    for (name, value) in facts.as_object().unwrap() {
        assert_eq!(&seen.value[name], value);
        assert_eq!(event.to_json().get(name), None, "{name} is not sent");
    }
    assert_eq!(seen.value["data"], json!({}));
}

proptest! {
    #[test]
    fn both_ways_of_making_an_event_agree_for_any_bytes(value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)), text in ".{0,20}") {
        written(record(value.as_deref(), &[]));
        written(record(Some(text.as_bytes()), &[]));
    }

    #[test]
    fn a_payload_is_json_where_the_json_reader_takes_it(pieces in proptest::collection::vec(any_piece(), 0..8)) {
        let value = pieces.concat();
        let expected = serde_json::from_slice::<Value>(&value).is_ok();
        let plain = record(Some(&value), &[]);
        prop_assert_eq!(EventView::new(plain).has_json_payload(), expected);
        written(plain);
    }

    #[test]
    fn an_event_in_json_is_one_where_the_json_reader_finds_what_it_needs(pieces in proptest::collection::vec(any_field(), 0..7)) {
        let value = format!("{{{}}}", pieces.join(","));
        let read: Value = serde_json::from_str(&value).unwrap();
        let expected = read["specversion"] == "1.0"
            && ["id", "source", "type"].iter().all(|name| read[name].as_str().is_some_and(|text| !text.is_empty()));
        let headers = [header("content-type", STRUCTURED_TYPE)];
        let event = EventView::new(record(Some(value.as_bytes()), &headers));
        prop_assert_eq!(event.to_json() == read, expected);
        written(record(Some(value.as_bytes()), &headers));
    }
}

/// Pieces of JSON, and bytes that are no text.
fn any_piece() -> impl Strategy<Value = Vec<u8>> {
    let pieces: [&[u8]; 14] = [
        b"{\"a\":",
        b"}",
        b"[",
        b"]",
        b",",
        b"\"x\"",
        b"\"\\u00e9\"",
        b"1.5e3",
        b"true",
        b" ",
        b"\"\xff\"",
        b"\xc3",
        b"\xa9",
        b"\"\xc3\xa9\"",
    ];
    proptest::sample::select(pieces.to_vec()).prop_map(<[u8]>::to_vec)
}

/// A field that an event needs, or something like it.
fn any_field() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(&["specversion", "id", "source", "type", "i\\u0064", "data"][..]);
    let value = proptest::sample::select(&["\"1.0\"", "\"x\"", "\"\"", "1", "null", "{}", "\"\\n\""][..]);
    (name, value).prop_map(|(name, value)| format!("\"{name}\": {value}"))
}

/// Compiles only while a view of longer-lived bytes passes for one of shorter-lived bytes: the transform room needs
/// that.
fn _views_may_be_shortened<'short>(event: EventView<'static>) -> EventView<'short> {
    event
}
