use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn matches(pattern: &Value, event: &Value) -> bool {
    Pattern::parse(pattern).unwrap().matches_json(&MatchEvent::new(event.clone()))
}

/// The pattern's list `list` at key `a` against `{"a": value}`.
fn leaf(list: Value, value: Value) -> bool {
    matches(&json!({ "a": list }), &json!({ "a": value }))
}

fn refusal(pattern: &Value) -> PatternError {
    Pattern::parse(pattern).unwrap_err()
}

#[test]
fn values_match_themselves_and_numbers_by_value() {
    assert!(leaf(json!(["x", "y"]), json!("y")) && !leaf(json!(["x"]), json!("X")));
    assert!(leaf(json!([300]), json!(300.0)) && leaf(json!([3.0e2]), json!(300)) && !leaf(json!([300]), json!("300")));
    assert!(!leaf(json!([9_007_199_254_740_992_u64]), json!(9_007_199_254_740_993_u64)));
    assert!(leaf(json!([u64::MAX]), json!(u64::MAX)) && !leaf(json!([-1]), json!(u64::MAX)));
    assert!(leaf(json!([true]), json!(true)) && !leaf(json!([true]), json!(false)));
    assert!(leaf(json!([null]), json!(null)) && !leaf(json!([null]), json!("null")) && !leaf(json!([null]), json!([])));
    assert!(leaf(json!([""]), json!("")) && !leaf(json!([""]), json!(null)));
    assert!(!matches(&json!({"a": [null]}), &json!({})));
}

#[test]
fn texts_match_by_prefix_suffix_and_content() {
    assert!(leaf(json!([{"prefix": "ab"}]), json!("abc")) && !leaf(json!([{"prefix": "ab"}]), json!("cab")));
    assert!(leaf(json!([{"suffix": ".jpg"}]), json!("a.jpg")) && !leaf(json!([{"suffix": ".jpg"}]), json!("a.JPG")));
    assert!(leaf(json!([{"contains": "b"}]), json!("abc")) && !leaf(json!([{"contains": "b"}]), json!("ac")));
    assert!(leaf(json!([{"prefix": ""}]), json!("")) && !leaf(json!([{"prefix": ""}]), json!(1)));
    assert!(leaf(json!([{"wildcard": "a*c"}]), json!("abc")) && !leaf(json!([{"wildcard": "a*c"}]), json!("abcd")));
}

#[test]
fn case_is_ignored_beyond_ascii() {
    let equals = |list: &str, text: &str| leaf(json!([{"equals-ignore-case": list}]), json!(text));
    assert!(equals("ÄRGER", "ärger") && !equals("ärger", "arger") && equals("", ""));
    assert!(leaf(json!([{"prefix": {"equals-ignore-case": "Är"}}]), json!("äRGER")));
    assert!(!leaf(json!([{"prefix": {"equals-ignore-case": "ärgers"}}]), json!("ÄRGER")));
    assert!(leaf(json!([{"suffix": {"equals-ignore-case": "GÉR"}}]), json!("Ärgér")));
    assert!(!leaf(json!([{"suffix": {"equals-ignore-case": "x"}}]), json!("")));
}

#[test]
fn numbers_match_by_range() {
    let range = |terms: Value, number: Value| leaf(json!([{ "numeric": terms }]), number);
    assert!(range(json!([">", 0, "<=", 5]), json!(5)) && !range(json!([">", 0, "<=", 5]), json!(0)));
    assert!(range(json!(["<", 5, ">=", 0]), json!(0)) && !range(json!(["<", 5, ">=", 0]), json!(5.0)));
    assert!(range(json!(["=", 3.018e2]), json!(301.8)) && !range(json!(["=", 3]), json!("3")));
    assert!(range(json!([">=", 5, "<=", 5]), json!(5)));
}

#[test]
fn addresses_match_by_network() {
    let inside = |network: &str, address: &str| leaf(json!([{ "cidr": network }]), json!(address));
    assert!(inside("10.0.0.0/24", "10.0.0.255") && !inside("10.0.0.0/24", "10.0.1.0") && !inside("10.0.0.0/24", "x"));
    assert!(inside("10.0.0.77/24", "10.0.0.1") && inside("0.0.0.0/0", "1.2.3.4") && !inside("0.0.0.0/0", "::1"));
    assert!(inside("2001:db8::/32", "2001:0DB8:0000::1") && !inside("2001:db8::/32", "2001:db9::1"));
}

#[test]
fn existence_is_about_values_not_objects() {
    let (present, absent) = (json!({"a": [{"exists": true}]}), json!({"a": [{"exists": false}]}));
    for event in [json!({"a": null}), json!({"a": ""}), json!({"a": [1]}), json!({"a": [[], [{}, 1]]})] {
        assert!(matches(&present, &event) && !matches(&absent, &event), "{event}");
    }
    for event in [json!({}), json!({"a": {}}), json!({"a": []}), json!({"a": {"b": 1}}), json!({"a": [{}]}), json!([])]
    {
        assert!(!matches(&present, &event) && matches(&absent, &event), "{event}");
    }
    let below = json!({"a": {"b": {"c": [{"exists": false}]}}});
    for event in [json!({}), json!({"a": 1}), json!({"a": []}), json!({"a": [1]}), json!({"a": {"b": {"d": 1}}})] {
        assert!(matches(&below, &event), "{event}");
    }
    assert!(!matches(&below, &json!({"a": {"b": {"c": null}}})));
}

#[test]
fn anything_but_matches_every_other_value_that_is_there() {
    let but = |operand: Value, value: Value| leaf(json!([{ "anything-but": operand }]), value);
    assert!(but(json!("x"), json!("y")) && but(json!("x"), json!(null)) && but(json!("x"), json!(3)));
    assert!(!but(json!("x"), json!("x")) && !but(json!(["x", "y"]), json!("y")) && !but(json!([1, 2]), json!(2.0)));
    assert!(but(json!(1), json!("1")) && !but(json!(0), json!(0)));
    assert!(!but(json!({"prefix": "a"}), json!("ab")) && but(json!({"prefix": ["a", "b"]}), json!("cb")));
    assert!(!but(json!({"suffix": ["x", "b"]}), json!("ab")) && but(json!({"suffix": "b"}), json!(12)));
    assert!(
        !but(json!({"equals-ignore-case": ["X"]}), json!("x")) && but(json!({"equals-ignore-case": "x"}), json!("y"))
    );
    assert!(!but(json!({"wildcard": "a*"}), json!("ab")) && but(json!({"wildcard": ["a*", ""]}), json!("b")));
    assert!(!matches(&json!({"a": [{"anything-but": "x"}]}), &json!({})));
    assert!(but(json!("x"), json!(["x", "y"])), "a list matches when one element does");
}

#[test]
fn or_is_multiplied_out_with_everything_around_it() {
    let pattern = json!({"s": [1], "$or": [{"a": [1]}, {"b": {"$or": [{"c": [2]}, {"d": [3]}]}}]});
    for (event, expected) in [
        (json!({"s": 1, "a": 1}), true),
        (json!({"s": 1, "b": {"c": 2}}), true),
        (json!({"s": 1, "b": {"d": 3}}), true),
        (json!({"s": 1, "b": {"c": 3}}), false),
        (json!({"a": 1}), false),
    ] {
        assert_eq!(matches(&pattern, &event), expected, "{event}");
    }
}

#[test]
fn one_element_of_a_list_must_satisfy_all_clauses_below_it() {
    let pattern = json!({"items": {"name": ["x"], "size": [1]}});
    assert!(matches(&pattern, &json!({"items": [{"name": "y"}, {"name": "x", "size": 1}]})));
    assert!(!matches(&pattern, &json!({"items": [{"name": "x", "size": 2}, {"name": "y", "size": 1}]})));
    let around_or = json!({"items": {"name": ["x"]}, "$or": [{"items": {"size": [1]}}, {"items": {"size": [2]}}]});
    assert!(matches(&around_or, &json!({"items": [{"name": "x", "size": 2}]})));
    assert!(!matches(&around_or, &json!({"items": [{"name": "x"}, {"size": 2}]})));
    let nested = json!({"a": {"b": {"c": [1], "d": [2]}}});
    assert!(matches(&nested, &json!({"a": [{"b": []}, {"b": [{"c": 1}, [{"c": 1, "d": [3, 2]}]]}]})));
    assert!(!matches(&nested, &json!({"a": [{"b": {"c": 1}}, {"b": {"d": 2}}]})));
    assert!(matches(
        &json!({"items": {"name": ["x"], "size": [{"exists": false}]}}),
        &json!({"items": [{"size": 1}, {"name": "x"}]})
    ));
}

#[test]
fn dots_join_keys_on_both_sides() {
    let event = json!({"h": {"trace": "t", "trace.id": "i", "trace.id.x": {"y.z": 5}, "a": {"b": 1}, "a.c": [2, 3]}});
    for pattern in [
        json!({"h": {"trace": ["t"], "trace.id": ["i"]}}),
        json!({"h": {"trace": {"id": ["i"]}}}),
        json!({"h.trace.id.x.y.z": [5]}),
        json!({"h": {"a": {"b": [1], "c": [3]}}}),
        json!({"h": {"trace.none": [{"exists": false}]}}),
    ] {
        assert!(matches(&pattern, &event), "{pattern}");
    }
    for pattern in [
        json!({"h": {"trace.id": [{"exists": false}]}}),
        json!({"h": {"tra": {"ce": ["t"]}}}),
        json!({"h": {"trace.": ["t"]}}),
        json!({"h": {"a": {"c": [1]}}}),
    ] {
        assert!(!matches(&pattern, &event), "{pattern}");
    }
    assert!(matches(&json!({"a..b": [1]}), &json!({"a..b": 1})));
}

#[test]
fn wrong_patterns_are_refused_with_their_place() {
    for (pattern, path, reason) in [
        (json!([]), "pattern", "not a list"),
        (json!({"a": 1}), "a", "write [1]"),
        (json!({"a": {"b": "x"}}), "a.b", "write [\"x\"]"),
        (json!({"a": []}), "a", "empty list"),
        (json!({"a": [[1]]}), "a", "list inside a list"),
        (json!({"a": [{}]}), "a", "exactly one key"),
        (json!({"a": [{"prefix": "x", "suffix": "y"}]}), "a", "exactly one key"),
        (json!({"a": [{"EXISTS": true}]}), "a", "did you mean `exists`?"),
        (json!({"a": [{"exists": 1}]}), "a", "true or false"),
        (json!({"a": [{"prefix": 1}]}), "a", "`prefix` takes a text, not a number"),
        (json!({"a": [{"suffix": {"wildcard": "x"}}]}), "a", "equals-ignore-case"),
        (json!({"a": [{"equals-ignore-case": ["x"]}]}), "a", "not a list"),
        (json!({"a": [{"contains": null}]}), "a", "not null"),
        (json!({"a": [{"wildcard": "a**"}]}), "a", "side by side"),
        (json!({"a": [{"wildcard": "*:*:*:*:*:x/*"}]}), "a", "6 stars"),
        (json!({"a": [{"cidr": "10.0.0.0"}]}), "a", "10.0.0.0/24"),
        (json!({"a": [{"numeric": 10}]}), "a", "list such as"),
        (json!({"a": [{"numeric": [">", 0, ">", 1]}]}), "a", "one lower and one upper"),
        (json!({"a": [{"numeric": ["=", 0, "<", 1]}]}), "a", "list such as"),
        (json!({"a": [{"numeric": [">", "0"]}]}), "a", "list such as"),
        (json!({"a": [{"numeric": [">", 5, "<", 5]}]}), "a", "no number is inside"),
        (json!({"a": [{"anything-but": null}]}), "a", "texts or numbers"),
        (json!({"a": [{"anything-but": []}]}), "a", "texts or numbers"),
        (json!({"a": [{"anything-but": ["x", 1]}]}), "a", "not both"),
        (json!({"a": [{"anything-but": {"cidr": "x"}}]}), "a", "not an operator here"),
        (json!({"a": [{"anything-but": {"prefix": ""}}]}), "a", "empty `prefix`"),
        (json!({"a": [{"anything-but": {"prefix": []}}]}), "a", "not a list"),
        (json!({"a": {"$or": [{"b": [1]}]}}), "a.$or", "two or more"),
        (json!({"$or": [{"b": [1]}, 3]}), "$or", "two or more"),
    ] {
        let error = refusal(&pattern);
        assert_eq!(error.path, path, "{pattern}");
        assert!(error.reason.contains(reason), "{pattern}: {error}");
    }
}

#[test]
fn patterns_that_would_explode_are_refused_with_the_limit() {
    let choices: Vec<Value> = (0..11).map(|number| json!({"a": [number]})).collect();
    let nested = json!({"$or": choices, "x": {"$or": choices}, "y": {"$or": choices}});
    assert!(refusal(&nested).reason.contains("1331 patterns, at most 1000"));
    let mut wide = serde_json::Map::new();
    for number in 0..600 {
        wide.insert(format!("k{number}"), json!([1]));
    }
    wide.insert("$or".to_owned(), json!(choices));
    wide.insert("x".to_owned(), json!({"$or": choices}));
    assert!(refusal(&Value::Object(wide)).reason.contains("lists, at most 50000"));
    let deep = (0..40).fold(json!([1]), |inner, _| json!({ "a": inner }));
    assert!(refusal(&deep).reason.contains("32 deep"));
    let ors = (0..70).fold(json!({"a": [1]}), |inner, _| json!({"$or": [inner, {"b": [1]}]}));
    assert!(refusal(&ors).reason.contains("32 deep"));
    assert!(refusal(&json!({ ".".repeat(200): [1] })).reason.contains("64 parts"));
}

#[test]
fn explain_names_the_clauses_that_no_value_satisfies() {
    let pattern = Pattern::parse(&json!({"a": ["x"], "b": {"c": [{"numeric": [">", 1]}]}, "d": [1]})).unwrap();
    let event = MatchEvent::new(json!({"a": ["y", 2], "d": 1}));
    let reason = |path: &str, expected: &str, found: &str| TurnedAway {
        alternative: 0,
        path: path.to_owned(),
        expected: expected.to_owned(),
        found: found.to_owned(),
    };
    let expected = [reason("a", r#"["x"]"#, r#""y", 2"#), reason("b.c", r#"[{"numeric":[">",1]}]"#, "nothing")];
    assert_eq!(pattern.explain(&event), expected);
    assert_eq!(pattern.explain(&MatchEvent::new(json!({"a": "x", "b": {"c": 2}, "d": 1}))), []);
}

#[test]
fn explain_tells_of_lists_whose_elements_match_only_together_and_of_every_alternative() {
    let pattern = Pattern::parse(&json!({"o": {"l": {"a": [1], "b": [2]}}})).unwrap();
    let reasons = pattern.explain(&MatchEvent::new(json!({"o": {"l": [{"a": 1}, {"b": 2}]}})));
    assert_eq!((reasons.len(), reasons[0].path.as_str()), (1, "o.l"));
    let or = Pattern::parse(&json!({"$or": [{"a": [1]}, {"b": [1]}]})).unwrap();
    let alternatives: Vec<usize> = or.explain(&MatchEvent::new(json!({}))).iter().map(|why| why.alternative).collect();
    assert_eq!(alternatives, [0, 1]);
    let long = Pattern::parse(&json!({"a": ["x"]})).unwrap();
    let found = &long.explain(&MatchEvent::new(json!({"a": "é".repeat(9999)})))[0].found;
    assert_eq!(found.chars().count(), 201);
}

mod records {
    use super::*;
    use crate::event::RecordView;
    use crate::event::testing::record;

    fn taken(pattern: Value, value: Option<&[u8]>) -> bool {
        let record = RecordView { topic: "t", partition: 1, key: Some(b"k"), ..record(value, &[]) };
        Pattern::parse(&pattern).unwrap().matches(&EventView::new(record))
    }

    #[test]
    fn the_event_and_the_record_around_it_can_be_matched() {
        assert!(taken(json!({"data": {"delay": [{"numeric": [">", 60]}]}}), Some(b"{\"delay\": 61}")));
        assert!(taken(
            json!({"topic": ["t"], "partition": [1], "key": ["k"], "type": ["tripline.record"]}),
            Some(b"1")
        ));
    }

    #[test]
    fn a_record_that_is_not_json_matches_only_patterns_that_need_no_payload() {
        let text: Option<&[u8]> = Some(b"not json");
        assert!(taken(json!({"topic": ["t"]}), text));
        assert!(taken(json!({"$or": [{"data": {"a": [1]}}, {"key": ["k"]}]}), text));
        assert!(!taken(json!({"data": {"a": [{"exists": false}]}}), text));
        assert!(!taken(json!({"data": [{"prefix": "not"}], "key": ["k"]}), text));
        assert!(!taken(json!({"data_base64": [{"exists": true}]}), Some(b"\xff")));
        let why = Pattern::parse(&json!({"data": [1]})).unwrap();
        let event = MatchEvent { has_json_payload: false, ..MatchEvent::new(json!({"data": "x"})) };
        assert_eq!(why.explain(&event)[0].found, "a payload that is not JSON");
    }

    #[test]
    fn a_tombstone_has_no_payload_and_can_be_matched_as_such() {
        assert!(taken(json!({"data": [{"exists": false}]}), None));
        assert!(!taken(json!({"data": [{"exists": true}]}), None));
    }
}

/// The rule said once more, without cleverness: every clause picks one value of its path, and no two picks may sit in
/// different elements of one list.
mod naive {
    use super::*;

    type Picks = Vec<(String, usize)>;

    fn flatten(value: &Value, path: &str, lists: &Picks, found: &mut Vec<(String, Value, Picks)>) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    flatten(value, &format!("{path}/{key}"), lists, found);
                }
            }
            Value::Array(elements) => {
                let list = format!("{path}#{lists:?}");
                for (index, element) in elements.iter().enumerate() {
                    let mut inside = lists.clone();
                    inside.push((list.clone(), index));
                    flatten(element, path, &inside, found);
                }
            }
            plain => found.push((path.to_owned(), plain.clone(), lists.clone())),
        }
    }

    fn clauses(pattern: &Value, path: &str, found: &mut Vec<(String, Value)>) {
        for (key, value) in pattern.as_object().unwrap() {
            let path = format!("{path}/{key}");
            if value.is_object() { clauses(value, &path, found) } else { found.push((path, value.clone())) }
        }
    }

    fn value_matches(test: &Value, value: &Value) -> bool {
        match test.get("prefix") {
            Some(prefix) => value.as_str().is_some_and(|text| text.starts_with(prefix.as_str().unwrap())),
            None => match test.get("anything-but") {
                Some(unwanted) => value != unwanted,
                None => value == test,
            },
        }
    }

    fn pick(clauses: &[(String, Value)], values: &[(String, Value, Picks)], picked: &Picks) -> bool {
        let Some(((path, list), rest)) = clauses.split_first() else { return true };
        values.iter().filter(|(at, ..)| at == path).any(|(_, value, lists)| {
            let holds = list.as_array().unwrap().iter().any(|test| value_matches(test, value));
            let agrees =
                lists.iter().all(|(list, index)| picked.iter().all(|(other, at)| other != list || at == index));
            holds && agrees && pick(rest, values, &[picked.as_slice(), lists].concat())
        })
    }

    pub(super) fn matches(pattern: &Value, event: &Value) -> bool {
        let (mut values, mut wanted) = (Vec::new(), Vec::new());
        flatten(event, "", &Vec::new(), &mut values);
        clauses(pattern, "", &mut wanted);
        pick(&wanted, &values, &Vec::new())
    }
}

#[test]
fn the_keys_that_lead_to_a_list_are_of_bounded_length() {
    let key = "k".repeat(PATH_BYTES_MAX - 2);
    assert!(leaf(json!([1]), json!(1)) && matches(&json!({"a": {&key: [1]}}), &json!({"a": {&key: 1}})));
    let found = refusal(&json!({"ab": {&key: [1]}}));
    assert_eq!(found.to_string(), "ab: keys, joined with dots, may have 1024 bytes at most");
}

fn keys(count: usize) -> Value {
    Value::Object((0..count).map(|n| (format!("k{n}"), json!([n]))).collect())
}

#[test]
fn a_pattern_as_large_as_is_allowed_is_read_and_matched() {
    for pattern in [keys(CLAUSES_MAX), json!({ "data": keys(CLAUSES_MAX) })] {
        let parsed = Pattern::parse(&pattern).unwrap();
        let set = FilterSet::build([(7, &parsed)]).unwrap();
        assert_eq!((parsed.lists, parsed.alternatives.len(), set.len()), (CLAUSES_MAX, 1, 1));
        let found = |key: &str| if pattern.get("data").is_some() { json!({"data": {key: 3}}) } else { json!({key: 3}) };
        assert!(!parsed.matches_json(&MatchEvent::new(found("k3"))));
    }
    let mut larger = keys(CLAUSES_MAX);
    larger["$or"] = json!([{"a": [1]}, {"b": [1]}]);
    assert_eq!(refusal(&larger).reason, "it amounts to 100002 lists, at most 50000 are allowed");
}

#[test]
fn what_a_pattern_amounts_to_is_counted_before_it_is_multiplied_out() {
    // Each `$or` has ten plain patterns with a list in each; so have twelve of them, beside each other in one object.
    let ten = |n: usize| json!({"$or": (0..10).map(|m| json!({format!("k{n}-{m}"): [1]})).collect::<Vec<_>>()});
    let nested: Value = Value::Object((0..12).map(|n| (format!("o{n}"), ten(n))).collect());
    let reason = "its $or lists amount to 1000000000000 patterns, at most 1000 are allowed";
    assert_eq!(refusal(&nested).reason, reason);
    let three = json!({"x": ten(0), "y": ten(1), "z": {"$or": [{"a": [1], "b": [2]}, {}, {"$or": [{"c": [3]}, {}]}]}});
    // 10 x 10 x 4, with one, one and three quarters of a list in each.
    let parsed = Pattern::parse(&three).unwrap();
    assert_eq!((parsed.alternatives.len(), parsed.lists), (400, 400 + 400 + 300));
}

fn any_object(leaf: impl Strategy<Value = Value> + 'static, lists: bool) -> impl Strategy<Value = Value> {
    let object = |value: BoxedStrategy<Value>| {
        proptest::collection::btree_map("[ab]", value, 0..3)
            .prop_map(|fields| Value::Object(fields.into_iter().collect()))
    };
    let inner = leaf.prop_recursive(3, 12, 3, move |inner| {
        let nested = object(inner.clone().boxed());
        if lists {
            prop_oneof![nested, proptest::collection::vec(inner, 0..3).prop_map(Value::from)].boxed()
        } else {
            nested.boxed()
        }
    });
    object(inner.boxed())
}

fn any_event() -> impl Strategy<Value = Value> {
    any_object(prop_oneof![Just(json!("x")), Just(json!("xy")), Just(json!(1))], true)
}

fn any_pattern() -> impl Strategy<Value = Value> {
    let test =
        prop_oneof![Just(json!("x")), Just(json!(1)), Just(json!({"prefix": "x"})), Just(json!({"anything-but": "x"}))];
    any_object(proptest::collection::vec(test, 1..3).prop_map(Value::from), false)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_walk_agrees_with_picking_values_clause_by_clause(pattern in any_pattern(), event in any_event()) {
        prop_assert_eq!(matches(&pattern, &event), naive::matches(&pattern, &event));
    }

    #[test]
    fn dots_in_keys_of_an_event_change_nothing_elsewhere(pattern in any_pattern(), event in any_event()) {
        let mut dotted = MatchEvent::new(event.clone());
        dotted.has_dotted_keys = true;
        prop_assert_eq!(Pattern::parse(&pattern).unwrap().matches_json(&dotted), matches(&pattern, &event));
    }

    #[test]
    fn explain_has_a_reason_exactly_when_the_event_is_turned_away(pattern in any_pattern(), event in any_event()) {
        let reasons = Pattern::parse(&pattern).unwrap().explain(&MatchEvent::new(event.clone()));
        prop_assert_eq!(reasons.is_empty(), matches(&pattern, &event), "{:?}", reasons);
    }
}

#[test]
fn the_public_patterns_are_judged_as_recorded() {
    let Some(shared) = std::env::var_os("TRIPLINE_SHARED") else {
        println!("SKIP: TRIPLINE_SHARED is not set, so data/event-patterns is not there");
        return;
    };
    let folder = std::path::Path::new(&shared).join("data/event-patterns");
    let mut wrong = Vec::new();
    let mut count = 0;
    for file in std::fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let case: Value = json5::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let expected = match &name {
            name if name.ends_with("_EXC") => None,
            name => Some(!name.ends_with("_NEG")),
        };
        let event = MatchEvent::new(case["Event"].clone());
        let judged = Pattern::parse(&case["EventPattern"]).ok().map(|pattern| pattern.matches_json(&event));
        count += 1;
        if judged != expected {
            wrong.push(format!("{name}: {judged:?}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert_eq!(count, 155, "cases in {}", folder.display());
}
