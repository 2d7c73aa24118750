//! `docs/schedules.md` says what the code does.

use std::path::Path;

use jiff::Timestamp;
use tripline::config::manifest::{Definition, parse};
use tripline::source::schedule::spec::ScheduleSpec;
use tripline::source::schedule::{DEFINITIONS_BYTES_MAX, SCHEDULES_MAX};

fn text() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schedules.md")).unwrap()
}

/// The blocks with code, with their languages.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let fenced = text.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

fn schedule(yaml: &str) -> ScheduleSpec {
    match parse(yaml).unwrap().remove(0) {
        Definition::Schedule(spec) => *spec,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_example_has_the_ticks_that_stand_below_it() {
    let text = text();
    let mut shown = 0;
    let mut current = None;
    for (language, block) in blocks(&text) {
        match language {
            "yaml" => current = Some(schedule(block)),
            "text" => {
                let timing = current.take().unwrap().timing;
                let mut lines = block.lines();
                let after = lines.next().unwrap().strip_prefix("after ").unwrap();
                let mut after_s = after.parse::<Timestamp>().unwrap().as_second();
                for line in lines {
                    let tick = timing.next_after(after_s).unwrap();
                    assert_eq!(tick.time_text(), line);
                    after_s = tick.unix_s();
                }
                shown += 1;
            }
            other => assert_eq!(other, "sh"),
        }
    }
    assert_eq!((shown, current), (6, None), "each definition has its ticks");
}

#[test]
fn the_table_of_fields_has_every_field_and_the_limits_are_those_of_the_code() {
    let text = text();
    let spec = schedule("schedule: s\nrate: 1s\ntopic: t\nkey: k\ndata: 1\nstart: 2026-01-01\nend: 2027-01-01\n");
    for field in spec.to_json().as_object().unwrap().keys() {
        let row = text.lines().find(|line| line.starts_with("| ") && line.contains(&format!("`{field}`")));
        assert!(row.is_some(), "{field} is not in the table");
    }
    let thousands = |number: usize| format!("{},{:03}", number / 1000, number % 1000);
    assert!(text.contains(&format!("At most {} schedules", thousands(SCHEDULES_MAX))));
    assert!(text.contains(&format!("at most {} MiB together", DEFINITIONS_BYTES_MAX >> 20)));
}
