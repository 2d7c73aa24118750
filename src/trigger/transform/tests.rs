use proptest::prelude::*;
use serde_json::json;

use super::path::{FILTERS_NESTED_MAX, PATH_BYTES_MAX, PATTERN_BYTES_MAX, PATTERN_POSITIONS_MAX};
use super::*;
use crate::event::EventView;
use crate::event::testing::record;

fn transform(source: &Value) -> Transform {
    Transform::parse(source).unwrap_or_else(|errors| panic!("{source}: {errors}"))
}

fn run(source: &Value, event: &Value) -> Result<Value, TransformError> {
    let transform = transform(source);
    let [Stage::Pure(chain)] = transform.stages() else { panic!("one chain: {transform:?}") };
    chain.apply(&Origin::Written(event), None)
}

fn errors(source: &Value) -> Vec<String> {
    Transform::parse(source).unwrap_err().0.iter().map(ToString::to_string).collect()
}

/// The beginning of the only error.
fn refused(source: &Value, beginning: &str) {
    let errors = errors(source);
    assert!(errors.len() == 1 && errors[0].starts_with(beginning), "{source}: {errors:#?}");
}

#[test]
fn a_record_becomes_what_the_template_says() {
    let source = json!({
        "template": r#"{"flight": "<origin>-<dest>", "late_min": <delay>, "at": "<tripline.topic>/<tripline.partition>/<tripline.offset>"}"#,
        "values": { "origin": "$.data.origin", "dest": "$.data.destination", "delay": "$.data.delay" },
    });
    let event = EventView::new(record(Some(br#"{"origin": "FRA", "destination": "J\"FK", "delay": 95}"#), &[]));
    let transform = transform(&source);
    let [Stage::Pure(chain)] = transform.stages() else { panic!() };
    let mut out = b"before".to_vec();
    chain.write_json(&Origin::Record(&event), None, &mut out).unwrap();
    let expected = r#"before{"flight": "FRA-J\"FK", "late_min": 95, "at": "flights/2/41"}"#;
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn the_first_step_sees_the_facts_of_the_record_and_edits_the_event_without_them() {
    let event = EventView::new(record(Some(b"{\"a\": 1}"), &[]));
    let apply = |source: &Value| {
        let transform = transform(source);
        let [Stage::Pure(chain)] = transform.stages() else { panic!() };
        chain.apply(&Origin::Record(&event), None).unwrap()
    };
    assert_eq!(apply(&json!({ "jsonpath": "$['topic', 'offset', 'key']" })), json!(["flights", 41, "LH400"]));
    let mut expected = event.to_json();
    expected["data"]["b"] = json!(2);
    assert_eq!(apply(&json!({ "set": { "$.data.b": 2 } })), expected);
    assert_eq!(apply(&json!(["original", { "delete": ["$.nothing"] }])), event.to_json());
    assert_eq!(apply(&json!({ "template": "<tripline.event>" })), event.to_json());
}

#[test]
fn the_original_needs_no_stage() {
    for source in [json!("original"), json!(["original"])] {
        assert!(transform(&source).is_original() && transform(&source).stages().is_empty());
    }
    assert!(Transform::default().is_original());
    assert_eq!(Transform::default(), transform(&json!("original")));
    assert!(!transform(&json!({ "constant": 1 })).is_original());
}

#[test]
fn a_path_gives_one_value_a_list_or_null() {
    let event = json!({ "data": { "x": [1, 2], "y": null } });
    let pick = |path: &str| run(&json!({ "jsonpath": path }), &event).unwrap();
    assert_eq!((pick("$.data.x"), pick("$.data.x[*]"), pick("$.data.x[:1]")), (json!([1, 2]), json!([1, 2]), json!(1)));
    assert_eq!((pick("$.data.y"), pick("$.data.z")), (json!(null), json!(null)));
    let strict = |path: &str| run(&json!({ "jsonpath": path, "strict": true }), &event);
    assert_eq!(strict("$.data.y").unwrap(), json!(null));
    let error = strict("$.data.z").unwrap_err();
    assert_eq!(error.to_string(), "transform step 0: there is nothing at $.data.z, and the step is strict");
    assert_eq!(error.code.as_str(), "transform-missing-value");
}

#[test]
fn a_strict_template_names_what_is_missing() {
    let source = json!({ "template": "<a><tripline.topic>", "values": { "a": "$.a" }, "strict": true });
    assert_eq!(run(&source, &json!({ "a": null, "topic": "t" })).unwrap(), json!("nullt"));
    assert!(run(&source, &json!({ "topic": "t" })).unwrap_err().message.contains("nothing at $.a,"));
    assert!(run(&source, &json!({ "a": 1 })).unwrap_err().message.contains("nothing at <tripline.topic>,"));
}

#[test]
fn steps_follow_each_other_and_the_record_stays_in_reach() {
    let event = json!({ "data": { "inner": [{ "n": 1 }, { "n": 2 }] }, "topic": "t" });
    let chain = json!([
        { "jsonpath": "$.data.inner[*].n" },
        { "template": r#"{"all": <all>, "topic": "<tripline.topic>"}"#, "values": { "all": "$" } },
        { "set": { "$.all[0]": "first", "$.more.deep": [] } },
        { "delete": ["$.all[1]"] },
        { "jsonpath": "$['all', 'topic', 'more']" },
    ]);
    assert_eq!(run(&chain, &event).unwrap(), json!([["first"], "t", { "deep": [] }]));
    let fails = json!([{ "constant": {} }, { "jsonpath": "$.x", "strict": true }, { "constant": 1 }]);
    assert_eq!(run(&fails, &event).unwrap_err().step, 1);
}

#[test]
fn functions_part_a_chain_into_stages() {
    let source = json!([{ "constant": 1 }, { "jsonpath": "$" }, { "function": "f" }, { "function": "g" }, { "jsonpath": "$.x", "strict": true }]);
    let transform = transform(&source);
    let [Stage::Pure(first), Stage::Function { name: f, step: 2 }, Stage::Function { step: 3, .. }, Stage::Pure(last)] =
        transform.stages()
    else {
        panic!("{:?}", transform.stages())
    };
    assert_eq!(f.as_str(), "f");
    assert_eq!(transform.functions().map(FunctionName::as_str).collect::<Vec<_>>(), ["f", "g"]);
    let event = json!({ "data": 7 });
    let origin = Origin::Written(&event);
    assert_eq!(first.apply(&origin, None).unwrap(), json!(1));
    assert_eq!(last.apply(&origin, Some(&json!({ "x": 5 }))).unwrap(), json!(5));
    assert_eq!(last.apply(&origin, Some(&json!({}))).unwrap_err().step, 4);
}

#[test]
fn a_failure_leaves_what_was_written_before() {
    let event = json!({ "x": "y".repeat(OUTPUT_BYTES_MAX) });
    let transform = transform(&json!({ "jsonpath": "$.x" }));
    let [Stage::Pure(chain)] = transform.stages() else { panic!() };
    let mut out = b"[1,".to_vec();
    let error = chain.write_json(&Origin::Written(&event), None, &mut out).unwrap_err();
    assert_eq!((out.as_slice(), error.code), (b"[1,".as_slice(), TransformCode::TooLarge));
    assert_eq!(error.message, "the result has more than 1048576 bytes");
}

#[test]
fn hostile_steps_end_with_a_failure() {
    let mut deep = json!({ "wide": vec![json!({}); 50_000] });
    for _ in 0..100 {
        deep = json!([deep, 1]);
    }
    let code = |source: Value| run(&source, &deep).unwrap_err().code;
    assert_eq!(code(json!({ "jsonpath": "$[?count($..*..*..*) > 1]" })), TransformCode::TooCostly);
    assert_eq!(code(json!([{ "jsonpath": "$..*" }, { "constant": 1 }])), TransformCode::TooLarge);
    let wide = json!({ "wide": vec![json!({}); 50_000] });
    let set = json!([{ "set": { "$.wide[*].x": "y".repeat(1000) } }, { "constant": 1 }]);
    assert_eq!(run(&set, &wide).unwrap_err().code, TransformCode::TooLarge);
    let delete = json!({ "delete": vec!["$.wide[*].x"; PLACES_MAX] });
    assert_eq!(run(&delete, &wide).unwrap_err().code, TransformCode::TooCostly);
}

#[test]
fn a_chain_has_one_budget() {
    let wide = json!({ "data": vec![1; 300_000] });
    let many = |count: usize| {
        let values: serde_json::Map<_, _> = (0..count).map(|n| (format!("v{n}"), json!("$..x"))).collect();
        let template: String = (0..count).map(|n| format!("<v{n}>")).collect();
        run(&json!({ "template": template, "values": values }), &wide)
    };
    assert!(many(2).is_ok());
    assert_eq!(many(VALUES_MAX).unwrap_err().code, TransformCode::TooCostly);
}

#[test]
fn what_is_nested_too_deep_is_a_failure_not_a_panic() {
    let event: Value = serde_json::from_str(&("[".repeat(127) + &"]".repeat(127))).unwrap();
    let wrap = json!({ "template": "[[<x>]]", "values": { "x": "$" } });
    assert_eq!(run(&wrap, &event).unwrap_err().code, TransformCode::TooDeep);
    assert_eq!(run(&json!([wrap, { "constant": 1 }]), &event).unwrap_err().step, 0);
}

#[test]
fn fields_are_set_and_taken_away() {
    let event = json!({ "data": { "items": [{ "a": 1 }, { "a": 2, "b": 3 }], "s": "x" } });
    let after = |step: Value| run(&step, &event).map(|event| event["data"].clone());
    let set =
        after(json!({ "set": { "$.data.items[*].b": 0, "$.data.items[-1].a": [], "$.data.new.er": null } })).unwrap();
    assert_eq!(set, json!({ "items": [{ "a": 1, "b": 0 }, { "a": [], "b": 0 }], "s": "x", "new": { "er": null } }));
    let gone = after(json!({ "delete": ["$.data.items[*].a", "$.data.items[0]", "$.data.s.x", "$.data.s", "$.z.y"] }))
        .unwrap();
    assert_eq!(gone, json!({ "items": [{ "b": 3 }] }));
    let emptied = after(json!({ "delete": ["$.data.items.*"] })).unwrap();
    assert_eq!(emptied["items"], json!([]));
    for (path, reason) in [
        ("$.data.s.x", "what should hold x is no object"),
        ("$.data.items[2]", "there is no element 2"),
        ("$.data.s[0]", "a value on the way has no elements"),
        ("$.data.s.*", "a value on the way has no elements"),
    ] {
        let error = after(json!({ "set": { path: 1 } })).unwrap_err();
        assert_eq!(
            (error.code, error.message),
            (TransformCode::NotSettable, format!("{path} cannot be set: {reason}"))
        );
    }
}

#[test]
fn a_function_makes_none_one_or_many_events() {
    let events = |returned: &str| parse_function_result(3, returned.as_bytes());
    for none in ["", " \n", "null", "[]", "[null]"] {
        assert_eq!(events(none).unwrap(), Vec::<Value>::new(), "{none:?}");
    }
    assert_eq!(events(r#"{"a": 1}"#).unwrap(), [json!({ "a": 1 })]);
    assert_eq!(events(r#"[{"a": 1}, null, [], "t"]"#).unwrap(), [json!({ "a": 1 }), json!([]), json!("t")]);
    for bad in ["true", "3", "\"ok\"", "{", "[1] x", "\u{0}"] {
        let error = events(bad).unwrap_err();
        assert_eq!((error.code, error.step), (TransformCode::BadResult, 3), "{bad}");
    }
    let many = |count: usize| events(&json!(vec![1; count]).to_string()).map(|events| events.len());
    assert_eq!(many(RESULTS_MAX), Ok(RESULTS_MAX));
    assert_eq!(many(RESULTS_MAX + 1).unwrap_err().code, TransformCode::TooManyEvents);
    assert_eq!(events(&" ".repeat(OUTPUT_BYTES_MAX + 1)).unwrap_err().code, TransformCode::TooLarge);
}

#[test]
fn every_wrong_definition_names_the_place_and_what_is_allowed() {
    for wrong in [json!(null), json!(1), json!("jsonpath"), json!({}), json!({ "strict": true }), json!([])] {
        refused(&wrong, "transform: found ");
    }
    refused(&json!("orignal"), "transform: found \"orignal\", allowed: original, {jsonpath: …}");
    assert!(errors(&json!("orignal"))[0].ends_with("; did you mean `original`?"));
    refused(&json!({ "templte": "x" }), "transform.templte: found an unknown name");
    assert!(errors(&json!({ "templte": "x" }))[0].ends_with("did you mean `template`?"));
    refused(&json!({ "constant": 1, "jsonpath": "$" }), "transform.constant: found 1, allowed: leave it out");
    refused(&json!({ "constant": 1, "strict": true }), "transform.strict: found an unknown name");
    refused(&json!({ "jsonpath": "$", "strict": "yes" }), "transform.strict: found \"yes\", allowed: true or false");
    refused(&json!({ "jsonpath": "x" }), "transform.jsonpath: found \"x\", allowed: a JSONPath (RFC 9535)");
    refused(&json!({ "jsonpath": null }), "transform.jsonpath: found null, allowed: a JSONPath");
    refused(&json!({ "function": "a b" }), "transform.function: found \"a b\"");
    refused(&json!([{ "constant": 1 }, "original"]), "transform[1]: found \"original\", allowed: {jsonpath: …}");
    refused(&json!([{ "constant": 1 }, { "jsonpath": "$[" }]), "transform[1].jsonpath: found \"$[\"");
    refused(&json!({ "set": {} }), "transform.set: found {}");
    refused(&json!({ "set": [] }), "transform.set: found []");
    refused(&json!({ "set": { "$..a": 1 } }), "transform.set.$..a: ");
    refused(&json!({ "set": { "$": 1 } }), "transform.set.$: ");
    refused(&json!({ "delete": "$.a" }), "transform.delete: found \"$.a\", allowed: a list of 1 to 100 paths");
    refused(&json!({ "delete": ["$.a", 1] }), "transform.delete[1]: found 1, allowed: a JSONPath");
    assert_eq!(errors(&json!([1, { "constant": 1, "x": 1 }])).len(), 2, "all errors are told");
}

#[test]
fn every_wrong_template_names_the_place_and_what_is_allowed() {
    let template = |template: &str, values: Value| json!({ "template": template, "values": values });
    let errors_of = errors(&template("<orign> <dest>", json!({ "origin": "$.a", "dest": "$.b" })));
    assert_eq!(errors_of.len(), 2);
    assert!(errors_of[0].starts_with("transform.values.origin: found \"$.a\", allowed: leave it out, or use it"));
    assert!(errors_of[1].starts_with("transform.template.<orign>: found an unknown name"), "{errors_of:?}");
    assert!(errors_of[1].ends_with("did you mean `origin`?"));
    assert!(errors(&template("<tripline.topc>", json!({})))[0].ends_with("did you mean `tripline.topic`?"));
    refused(&template("<a>", json!({ "a": 1 })), "transform.values.a: found 1, allowed: a JSONPath");
    refused(&template("<a>", json!({ "a": "$[" })), "transform.values.a: found \"$[\"");
    refused(&template("<a>", json!([])), "transform.values: found []");
    for name in ["", "1a", "a b", "tripline.x", "tripline.topic", &"a".repeat(65)] {
        refused(&template("x", json!({ name: "$" })), "transform.values.");
    }
    refused(&json!({ "template": 1 }), "transform.template: found 1");
    refused(&json!({ "jsonpath": "$", "values": {} }), "transform.values: found an unknown name");
}

#[test]
fn every_limit_is_held_to_the_letter() {
    let chain = |count: usize| Transform::parse(&json!(vec![json!({ "constant": 1 }); count])).is_ok();
    assert!(chain(CHAIN_STEPS_MAX) && !chain(CHAIN_STEPS_MAX + 1));
    let constant = |bytes: usize| Transform::parse(&json!({ "constant": "x".repeat(bytes - 2) })).is_ok();
    assert!(constant(CONSTANT_BYTES_MAX) && !constant(CONSTANT_BYTES_MAX + 1));
    let set = |bytes: usize| Transform::parse(&json!({ "set": { "$.a": "x".repeat(bytes - 2) } })).is_ok();
    assert!(set(CONSTANT_BYTES_MAX) && !set(CONSTANT_BYTES_MAX + 1));
    let delete = |count: usize| Transform::parse(&json!({ "delete": vec!["$.a"; count] })).is_ok();
    assert!(delete(PLACES_MAX) && !delete(PLACES_MAX + 1));
    let place = |steps: usize| Transform::parse(&json!({ "delete": [format!("${}", ".a".repeat(steps))] })).is_ok();
    assert!(place(edit::PLACE_STEPS_MAX) && !place(edit::PLACE_STEPS_MAX + 1));
    let template = |chars: usize| Transform::parse(&json!({ "template": "ä".repeat(chars) })).is_ok();
    assert!(template(TEMPLATE_CHARS_MAX) && !template(TEMPLATE_CHARS_MAX + 1));
    let values = |count: usize| {
        let values: serde_json::Map<_, _> = (0..count).map(|n| (format!("v{n}"), json!("$"))).collect();
        let template: String = (0..count).map(|n| format!("<v{n}>")).collect();
        Transform::parse(&json!({ "template": template, "values": values })).is_ok()
    };
    assert!(values(VALUES_MAX) && !values(VALUES_MAX + 1));
}

#[test]
fn a_definition_is_kept_as_written() {
    let source = json!([{ "template": "<a>", "values": { "a": "$.a" } }, { "function": "f" }]);
    assert_eq!(transform(&source).source(), &source);
    assert_eq!(transform(&source), transform(&source));
    assert_ne!(transform(&source), Transform::default());
}

#[test]
fn the_public_paths_lead_through_a_template_where_they_should() {
    let Some(shared) = std::env::var_os("TRIPLINE_SHARED") else {
        println!("SKIP: TRIPLINE_SHARED is not set, so data/jsonpath-cts.json is not there");
        return;
    };
    let file = std::path::Path::new(&shared).join("data/jsonpath-cts.json");
    let suite: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let cases = suite["tests"].as_array().unwrap();
    let wrong: Vec<_> = cases.iter().filter_map(|case| judge(case).err()).collect();
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(cases.len(), 703, "cases in {}", file.display());
}

/// Whether a template whose only value is the case's path gives the case's nodes, or is refused with the path's place.
fn judge(case: &Value) -> Result<(), String> {
    let says = |what: String| format!("{} {}: {what}", case["name"], case["selector"]);
    let source = json!({ "template": "<nodes>", "values": { "nodes": case["selector"] } });
    let transform = match (Transform::parse(&source), case["invalid_selector"] == true) {
        (Err(errors), true) if errors.0[0].path == "transform.values.nodes" => return Ok(()),
        (Err(errors), _) => return Err(says(errors.to_string())),
        (Ok(_), true) => return Err(says("should be refused".to_owned())),
        (Ok(transform), false) => transform,
    };
    // No node is null, one stands for itself.
    let collapsed = |nodes: &Value| match nodes.as_array().unwrap().as_slice() {
        [] => Value::Null,
        [one] => one.clone(),
        _ => nodes.clone(),
    };
    let expected: Vec<_> = match case.get("results") {
        Some(results) => results.as_array().unwrap().iter().map(collapsed).collect(),
        None => vec![collapsed(&case["result"])],
    };
    let [Stage::Pure(chain)] = transform.stages() else { panic!() };
    let found = chain.apply(&Origin::Written(&case["document"]), None).map_err(|error| says(error.to_string()))?;
    if expected.contains(&found) { Ok(()) } else { Err(says(format!("found {found}, expected one of {expected:?}"))) }
}

#[test]
fn the_guide_names_the_limits() {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/transforms.md")).unwrap();
    let row = |what: &str| {
        let cells = guide.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | "));
        let mut found = cells.filter(|(name, _)| *name == what).map(|(_, value)| value.replace(',', ""));
        found.next().unwrap_or_else(|| panic!("no limit called {what}"))
    };
    assert_eq!(row("steps of a list"), CHAIN_STEPS_MAX.to_string());
    assert_eq!(row("characters of a template"), TEMPLATE_CHARS_MAX.to_string());
    assert_eq!(row("values of a template"), VALUES_MAX.to_string());
    assert_eq!(row("bytes of a path"), PATH_BYTES_MAX.to_string());
    assert_eq!(row("filters inside each other"), FILTERS_NESTED_MAX.to_string());
    assert_eq!(row("bytes of a regular expression"), PATTERN_BYTES_MAX.to_string());
    assert_eq!(row("characters and classes of one, repetitions written out"), PATTERN_POSITIONS_MAX.to_string());
    assert_eq!(row("places of one `set` or `delete`"), PLACES_MAX.to_string());
    assert_eq!(row("bytes of a constant, or of a value that is set"), CONSTANT_BYTES_MAX.to_string());
    assert_eq!(row("bytes of the result for one record"), OUTPUT_BYTES_MAX.to_string());
    assert_eq!(row("events that a function makes of one record"), RESULTS_MAX.to_string());
    assert_eq!(row("steps that the paths of one record take together"), PATH_STEPS_MAX.to_string());
    for name in RESERVED {
        assert!(guide.contains(&format!("| `<{name}>` |")), "{name} is not in the guide");
    }
    let codes = [
        TransformCode::MissingValue,
        TransformCode::NotSettable,
        TransformCode::TooCostly,
        TransformCode::TooLarge,
        TransformCode::TooDeep,
        TransformCode::TooManyEvents,
        TransformCode::BadResult,
    ];
    for code in codes {
        assert!(guide.contains(&format!("| `{}` |", code.as_str())), "{code:?} is not in the guide");
    }
}

proptest! {
    #[test]
    fn no_result_exceeds_the_limit(copies in 1..40_usize, bytes in 0..80_000_usize, chained in any::<bool>()) {
        let template = format!("[{}]", vec!["<x>"; copies].join(","));
        let step = json!({ "template": template, "values": { "x": "$.x" } });
        let source = if chained { json!([step, { "jsonpath": "$" }]) } else { step };
        let exact_bytes = copies * (bytes + 2) + copies + 1;
        match run(&source, &json!({ "x": "y".repeat(bytes) })) {
            Ok(value) => prop_assert!(value.to_string().len() == exact_bytes && exact_bytes <= OUTPUT_BYTES_MAX),
            Err(error) => prop_assert!(error.code == TransformCode::TooLarge && exact_bytes > OUTPUT_BYTES_MAX),
        }
    }

    #[test]
    fn what_a_step_gives_the_next_is_what_it_writes(step in 0..5_usize, event in "[a-c\\[\\]{}:,\"1 ]{0,12}") {
        let event = serde_json::from_str(&event).unwrap_or(Value::String(event));
        let steps = [
            json!({ "jsonpath": "$..*" }),
            json!({ "constant": { "a": ["\n"] } }),
            json!({ "template": "{\"a\": <a>, \"b\": \"<a>\"}", "values": { "a": "$.a" } }),
            json!({ "delete": ["$.a", "$[0]"] }),
            json!({ "template": "<tripline.event.json> <a>", "values": { "a": "$[0, 'a']" } }),
        ];
        let alone = run(&steps[step], &event).unwrap();
        prop_assert_eq!(run(&json!([steps[step], { "jsonpath": "$" }]), &event).unwrap(), alone);
    }
}
