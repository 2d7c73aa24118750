//! The guide to transforms says what they do: every example in `docs/transforms.md` is run.
#![allow(clippy::unwrap_used, reason = "tests")]

use serde_json::Value;
use tripline::config::manifest;
use tripline::trigger::transform::{Origin, Stage, Transform};

const GUIDE: &str = include_str!("../docs/transforms.md");

/// The blocks of the guide: what stands behind the fence, and the text.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let mut parts = GUIDE.split("```");
    parts.next();
    let blocks: Vec<_> = parts.step_by(2).map(|block| block.split_once('\n').unwrap()).collect();
    assert!(blocks.iter().all(|(kind, _)| !kind.contains('`')));
    blocks
}

fn json(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error} in\n{yaml}"))
}

fn apply(source: &str, event: &Value) -> Result<Value, String> {
    let transform = Transform::parse(&json(source)).unwrap_or_else(|errors| panic!("{errors} in\n{source}"));
    let [Stage::Pure(chain)] = transform.stages() else { panic!("one chain: {transform:?}") };
    chain.apply(&Origin::Written(event), None).map_err(|error| format!("{}: {}", error.code.as_str(), error.message))
}

#[test]
fn every_example_gives_what_stands_below_it() {
    let blocks = blocks();
    let (_, event) = blocks.iter().find(|(kind, _)| *kind == "json event").unwrap();
    let event: Value = serde_json::from_str(event).unwrap();
    let mut examples = 0;
    for pair in blocks.windows(2) {
        let [("yaml transform", source), (kind, expected)] = pair else { continue };
        let found = apply(source, &event);
        match *kind {
            "json result" => assert_eq!(found, Ok(serde_json::from_str(expected).unwrap()), "{source}"),
            "text failure" => assert_eq!(found, Err(expected.trim().to_owned()), "{source}"),
            other => panic!("{other} stands below\n{source}"),
        }
        examples += 1;
    }
    assert_eq!(examples, blocks.iter().filter(|(kind, _)| *kind == "yaml transform").count());
    assert!(examples >= 12, "{examples}");
}

#[test]
fn the_trigger_at_the_top_is_a_trigger() {
    let blocks = blocks();
    let (kind, trigger) = blocks.first().unwrap();
    assert_eq!(*kind, "yaml");
    let definitions = manifest::parse(trigger).unwrap();
    let [manifest::Definition::Trigger(trigger)] = definitions.as_slice() else { panic!("{definitions:?}") };
    assert!(!trigger.transform.is_original());
}
