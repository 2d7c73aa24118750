use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::trigger::transform::{OUTPUT_BYTES_MAX, Stage, Transform, TransformCode, TransformError};

/// What `template` with the paths `values` makes of `event`.
fn result(template: &str, values: &Value, event: &Value) -> Result<Value, TransformError> {
    let transform = Transform::parse(&json!({ "template": template, "values": values }));
    let transform = transform.unwrap_or_else(|errors| panic!("{template}: {errors}"));
    let [Stage::Pure(chain)] = transform.stages() else { panic!("one chain") };
    let mut text = Vec::new();
    chain.write_json(&Origin::Written(event), None, &mut text)?;
    Ok(serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{error} in {}", String::from_utf8_lossy(&text))))
}

fn with_x(template: &str, x: &Value) -> Value {
    result(template, &json!({ "x": "$.x" }), &json!({ "x": x })).unwrap()
}

fn refusal(template: &str) -> String {
    Transform::parse(&json!({ "template": template, "values": { "x": "$.x" } })).unwrap_err().to_string()
}

#[test]
fn a_value_is_inserted_as_json_or_escaped_for_the_string_it_stands_in() {
    let hostile = json!("a\"b\\c\n\u{1}d<x>é");
    assert_eq!(with_x(r#"{"a": <x>, "b": "<x>", "c": "1<x>2<x>"}"#, &json!(5)), json!({"a": 5, "b": "5", "c": "1525"}));
    assert_eq!(with_x(r#"{"a": <x>, "b": "<x>"}"#, &hostile), json!({ "a": hostile, "b": hostile }));
    assert_eq!(with_x(r#"["<x>"]"#, &json!({"k": ["\""]})), json!([r#"{"k":["\""]}"#]));
    assert_eq!(with_x(r#"["<x>", <x>]"#, &json!(null)), json!(["null", null]));
    assert_eq!(with_x(r#"{"<x>": 1}"#, &json!("k\"")), json!({ "k\"": 1 }));
    assert_eq!(with_x("<x>", &json!([1])), json!([1]));
}

#[test]
fn what_is_not_json_is_a_text() {
    assert_eq!(
        with_x("flight <x> is \"late\"\n\\o/ C:\\dir", &json!("L\"H")),
        json!("flight L\"H is \"late\"\n\\o/ C:\\dir")
    );
    assert_eq!(with_x("<x> <x>", &json!(["a"])), json!("[\"a\"] [\"a\"]"));
}

#[test]
fn a_smaller_than_sign_is_written_with_a_backslash_or_alone() {
    assert_eq!(with_x(r#"{"a": "\<x> < <x> \\<x> \" <"}"#, &json!(1)), json!({"a": "<x> < 1 \\1 \" <"}));
    assert_eq!(with_x(r"\<x> < <x> \\<x> <1> </b> <>", &json!(1)), json!("<x> < 1 \\1 <1> </b> <>"));
    assert_eq!(with_x("\"\\u003cx> <x>\"", &json!(1)), json!("<x> 1"));
}

#[test]
fn what_begins_as_json_and_is_not_is_refused_with_the_place() {
    let refused = |template: &str| {
        let text = refusal(template);
        let place = text.rsplit("not JSON (").next().unwrap().to_owned();
        assert!(text.starts_with("transform.template: found ") && text.contains("not JSON"), "{text}");
        place
    };
    assert_eq!(refused(r#"{"a": <x> "b": 1}"#), "expected `,` or `}`) at character 11");
    assert_eq!(refused("{\n \"ä\": <x><x>}"), "expected `,` or `}`) at character 12");
    assert_eq!(refused("{\"a\": -<x>}"), "invalid number) at character 8");
    assert_eq!(refused("[<x>, 01]"), "invalid number) at character 8");
    assert_eq!(refused("{<x>: 1}"), "key must be a string) at character 2");
    refused(r#""<x> is late"#);
    refused(r#"{"a": "\u00<x>"}"#);
    refused(r#"{"a": "\ud83d<x>\ude00"}"#);
}

#[test]
fn a_missing_value_is_null_and_in_a_text_too() {
    let missing = |template: &str| result(template, &json!({ "x": "$.data.y" }), &json!({ "data": {} })).unwrap();
    assert_eq!(missing(r#"{"a": <x>, "b": "-<x>-"}"#), json!({ "a": null, "b": "-null-" }));
}

#[test]
fn many_values_are_a_list() {
    let event = json!({ "x": ["a\"", 2, {"b": 3}] });
    let many = |template: &str| result(template, &json!({ "x": "$.x[*]" }), &event).unwrap();
    assert_eq!(many("{\"a\": <x>}"), json!({ "a": event["x"] }));
    let text = many("\"<x>\"");
    assert_eq!(serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap(), event["x"]);
}

#[test]
fn reserved_names_speak_of_the_record() {
    let event = json!({
        "id": "1-7", "data": {"a": "\""}, "topic": "t\"", "partition": 1, "offset": 7, "timestamp": 1_700_000_000_123_i64,
        "key": null, "headers": {},
    });
    let sent = json!({ "id": "1-7", "data": {"a": "\""} });
    let of = |template: &str| result(template, &json!({}), &event).unwrap();
    assert_eq!(of("<tripline.event>"), sent);
    assert_eq!(of("{\"e\": <tripline.event>}"), json!({ "e": sent }));
    for template in
        ["<tripline.event.json>", "\"<tripline.event>\"", "\"<tripline.event.json>\"", "<tripline.event.json> "]
    {
        assert_eq!(serde_json::from_str::<Value>(of(template).as_str().unwrap()).unwrap(), sent, "{template}");
    }
    let place = of("[<tripline.topic>, <tripline.partition>, <tripline.offset>, <tripline.key>, <tripline.timestamp>]");
    assert_eq!(place, json!(["t\"", 1, 7, null, 1_700_000_000_123_i64]));
    assert_eq!(of("<tripline.time>"), json!("2023-11-14T22:13:20.123Z"));
    assert_eq!(result("<tripline.time>", &json!({}), &json!({})).unwrap(), json!(null));
}

#[test]
fn every_reserved_name_stands_for_something() {
    for name in RESERVED {
        assert!(Slot::reserved(name).is_some_and(|slot| slot.label() == format!("<{name}>")), "{name}");
    }
    assert!(RESERVED.is_sorted() && Slot::reserved("tripline.x").is_none());
}

#[test]
fn a_result_has_at_most_a_mebibyte() {
    let event = json!({ "x": "\u{1}".repeat(OUTPUT_BYTES_MAX / 6) });
    let bytes_beside = OUTPUT_BYTES_MAX - OUTPUT_BYTES_MAX / 6 * 6 - 2;
    let template = |spare: usize| format!("\"<x>{}\"", "y".repeat(spare));
    assert!(result(&template(bytes_beside), &json!({ "x": "$.x" }), &event).is_ok());
    let error = result(&template(bytes_beside + 1), &json!({ "x": "$.x" }), &event).unwrap_err();
    assert_eq!((error.code, error.step), (TransformCode::TooLarge, 0));
}

fn any_value() -> impl Strategy<Value = Value> {
    let plain =
        prop_oneof![Just(Value::Null), any::<i64>().prop_map(Value::from), any::<String>().prop_map(Value::from)];
    plain.prop_recursive(2, 8, 3, |inner| {
        let object = proptest::collection::btree_map(any::<String>(), inner.clone(), 0..3);
        prop_oneof![
            object.prop_map(|map| Value::Object(map.into_iter().collect())),
            proptest::collection::vec(inner, 0..3).prop_map(Value::from)
        ]
    })
}

proptest! {
    #[test]
    fn whatever_text_is_put_in_comes_out(text in any::<String>(), around in "[a-z ]{0,5}") {
        let x = Value::from(text.clone());
        prop_assert_eq!(with_x("{\"a\": [<x>]}", &x), json!({ "a": [text] }));
        prop_assert_eq!(with_x(&format!("{{\"a\": \"{around}<x>{around}\"}}"), &x), json!({ "a": format!("{around}{text}{around}") }));
        prop_assert_eq!(with_x(&format!("t{around}<x> {around}"), &x), json!(format!("t{around}{text} {around}")));
    }

    #[test]
    fn whatever_value_is_put_in_comes_out(value in any_value()) {
        prop_assert_eq!(&with_x("{\"a\": <x>}", &value)["a"], &value);
        let text = with_x("{\"a\": \"<x>\"}", &value)["a"].as_str().unwrap().to_owned();
        match &value {
            Value::String(plain) => prop_assert_eq!(plain, &text),
            other => prop_assert_eq!(&serde_json::from_str::<Value>(&text).unwrap(), other),
        }
    }

    #[test]
    fn any_template_that_is_taken_gives_json(template in "([{}\\[\\]:,\"\\\\ a\\n]|<x>|<|\\\\<|\\\\u00|\\\\ud83d|1|\"a\": ){0,12}<x>", value in any_value()) {
        let read = Transform::parse(&json!({ "template": template, "values": { "x": "$.x" } }));
        // What `result` gets is read as JSON there. Without a placeholder (it was escaped) the value is unused and
        // refused.
        if read.is_ok() {
            result(&template, &json!({ "x": "$.x" }), &json!({ "x": value })).unwrap();
        }
    }

    #[test]
    fn any_template_is_read_or_refused(template in any::<String>()) {
        drop(Transform::parse(&json!({ "template": template })));
    }
}
