//! The README says what the code does.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;

use tripline::broker::OFFSET_BYTES_MAX;
use tripline::group::config::GroupConfig;
use tripline::group::expiry::OFFSET_RETENTION;
use tripline::http::HttpLimits;
use tripline::http::limits::{RECORDS_IN_MAX, RECORDS_OUT_MAX};
use tripline::kafka::api::produce_size;
use tripline::kafka::listener::ListenerConfig;
use tripline::server::ServerConfig;
use tripline::topic::spec::PARTITIONS_MAX;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The rows of all tables, cell by cell.
fn rows() -> Vec<Vec<String>> {
    let readme = read("README.md");
    let rows = readme.lines().filter(|line| line.starts_with("| "));
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[test]
fn limits_are_those_of_the_code() {
    let rows = rows();
    let value = |limit: &str| rows.iter().find(|row| row[0] == limit).unwrap_or_else(|| panic!("{limit}"))[1].clone();
    let limits = HttpLimits::default();
    let config = ServerConfig::new("x");
    assert_eq!(value("body of an HTTP request"), format!("{} MiB", limits.body_bytes_max >> 20));
    let bodies = value("bodies of all HTTP requests at a time, beyond 64 KiB of each");
    assert_eq!(bodies, format!("{} MiB", limits.bodies_bytes_max >> 20));
    let head = format!("{} KiB, {} headers", limits.head_bytes_max >> 10, limits.headers_max);
    assert_eq!(value("head of an HTTP request"), head);
    assert_eq!(value("HTTP connections"), limits.connections_max.to_string());
    assert_eq!(value("records of one HTTP request"), RECORDS_IN_MAX.to_string());
    assert_eq!(value("records of one HTTP answer"), RECORDS_OUT_MAX.to_string());
    assert_eq!(value("partitions of a topic"), PARTITIONS_MAX.to_string());
    assert_eq!(value("partitions of all topics"), config.broker.partitions_max.to_string());
    assert_eq!(value("partitions of a Produce request"), produce_size::PARTITIONS_MAX.to_string());
    let requests =
        "memory of all Kafka requests beyond 64 KiB each, and of what others than Produce are decoded to beyond 4 KiB";
    let frames_mib = ListenerConfig::default().frame_bytes_total_max >> 20;
    assert_eq!(value(requests), format!("{frames_mib} MiB, {frames_mib} MiB"));
    let groups = "memory of all committed offsets; of the members, metadata and assignments of all groups";
    let (offsets_mib, groups_mib) = (OFFSET_BYTES_MAX >> 20, GroupConfig::default().held_bytes_max >> 20);
    assert_eq!(value(groups), format!("{offsets_mib} MiB; {groups_mib} MiB"));
    let days = OFFSET_RETENTION.as_secs() / (24 * 60 * 60);
    assert_eq!(value("committed offsets after the last commit and the last member"), format!("{days} days"));
    let default = |key: &str| rows.iter().find(|row| row[0] == format!("`{key}`")).unwrap()[3].clone();
    assert_eq!(default("kafka"), format!("`{}`", config.kafka));
    assert_eq!(default("http"), format!("`{}`", config.http));
    for (key, interval) in [
        ("retention_interval", config.broker.retention_interval),
        ("compaction_interval", config.broker.compaction_interval),
    ] {
        let interval = tripline::config::units::display_duration(interval);
        assert!(default(key).starts_with(&format!("`{interval}`")), "{key}: {interval}");
    }
    let scrub = tripline::config::units::display_size(config.broker.scrub_bytes_per_second);
    assert!(default("scrub").starts_with(&format!("`{scrub}`")), "{scrub}");
}

#[test]
fn settings_are_those_of_the_command() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_tripline")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let settings: Vec<_> =
        rows().into_iter().filter(|row| row.len() == 4 && row[1].starts_with("`TRIPLINE_")).collect();
    assert_eq!(settings.len(), 11);
    for row in settings {
        for cell in &row[1..=2] {
            let word = cell.trim_matches('`');
            assert!(help.contains(word), "{word} is not in\n{help}");
        }
    }
}

#[test]
fn the_tests_that_show_promises_are_there() {
    let readme = read("README.md");
    let promises = readme.split("## What is promised").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut shown = 0;
    for row in promises.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| promise")) {
        let evidence = row.trim_end_matches('|').rsplit_once(" | ").unwrap().1;
        let paths: Vec<&str> = evidence.split('`').filter(|part| part.contains('/')).collect();
        assert!(!paths.is_empty(), "nothing shows: {row}");
        for path in paths {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{path} is gone");
        }
        // A file and the one test in it.
        if let Some((file, name)) = evidence.split_once("`: `") {
            let (file, name) = (file.trim().trim_matches('`'), name.trim().trim_matches('`'));
            assert!(read(file).contains(&format!("fn {name}(")), "{file}: {name}");
        }
        shown += 1;
    }
    assert!(shown >= 15, "{shown}");
}

#[test]
fn the_example_in_the_readme_is_the_one_that_runs() {
    let example = read("examples/hello/app.yaml");
    let without_comment: Vec<&str> = example.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(read("README.md").contains(&without_comment.join("\n")));
}

#[test]
fn every_example_of_the_guide_to_triggers_is_a_trigger() {
    let guide = include_str!("../docs/triggers.md");
    let examples: Vec<&str> = guide.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 4);
    for example in examples {
        let definitions =
            tripline::config::manifest::parse(example).unwrap_or_else(|error| panic!("{error}\n{example}"));
        assert_eq!(definitions.len(), 1, "{example}");
    }
}

#[test]
fn the_guide_to_functions_has_every_field_with_its_default() {
    let guide = read("docs/functions.md");
    let fields = guide.split("## All fields").nth(1).unwrap();
    let python = serde_json::json!({
        "function": "f", "runtime": "python3", "code": "f.py", "handler": "f.handler", "initializer": "f.start",
        "environment": { "A": "1" },
    });
    let http = serde_json::json!({ "function": "h", "runtime": "http", "url": "http://localhost/" });
    for definition in [python, http] {
        let spec = tripline::function::FunctionSpec::from_json(&definition).unwrap().to_json();
        for (name, value) in spec.as_object().unwrap() {
            let row = fields.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            let row = row.unwrap_or_else(|| panic!("{name} is not in the table"));
            if matches!(name.as_str(), "timeout" | "memory" | "payload") {
                assert!(row.contains(&format!("| `{}` |", value.as_str().unwrap())), "{row}");
            }
        }
        let instances = &spec["instances"];
        let [min, max, concurrency, idle] = ["min", "max", "concurrency", "idle"].map(|name| &instances[name]);
        let idle = idle.as_str().unwrap().replace("1m", "60s");
        let row = format!("`{{ min: {min}, max: {max}, concurrency: {concurrency}, idle: {idle} }}`");
        assert!(fields.contains(&row), "{row}");
    }
}
