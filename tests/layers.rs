//! Who may import whom: upwards only, as the head of `src/lib.rs` draws it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

/// Rooms of the broker crate with their floor. A room may import rooms of lower floors and itself.
const FLOORS: [(&str, u32); 14] = [
    ("config", 1),
    ("topic", 1),
    ("event", 2),
    ("broker", 3),
    ("group", 4),
    ("function", 5),
    ("input", 6),
    ("source", 7),
    ("trigger", 7),
    ("kafka", 8),
    ("http", 8),
    ("server", 9),
    ("cli", 10),
    ("main", 11),
];

/// Files that stand above the room whose folder they are in, with their floor and the reason.
const EXCEPTIONS: [(&str, u32, &str); 1] =
    [("config/manifest.rs", 8, "a file of definitions is made of the definitions of the rooms above")];

/// Two rooms on one floor that lean on each other: fields of definitions are read with the rules for names.
const NEIGHBOURS: [&str; 2] = ["config", "topic"];

/// Pure rooms: no runtime, no clock, no network, no files.
const PURE: [&str; 22] = [
    "broker/codec.rs",
    "broker/record.rs",
    "broker/state.rs",
    "event.rs",
    "group/state.rs",
    "kafka/frame.rs",
    "source/schedule/cron.rs",
    "source/schedule/planner.rs",
    "source/schedule/spec.rs",
    "source/schedule/tick.rs",
    "input/cluster/aborted.rs",
    "input/cluster/assign.rs",
    "trigger/attempt.rs",
    "trigger/commit_metadata.rs",
    "trigger/filter.rs",
    "trigger/flow.rs",
    "trigger/lane.rs",
    "trigger/progress.rs",
    "trigger/retry.rs",
    "trigger/transform.rs",
    "trigger/unfinished.rs",
    "trigger/window.rs",
];

fn source_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

const TEST_ONLY: &str = "#[cfg(test)]\n";

/// The name of the module that this line opens with `end`: `;` for one in a file of its own.
fn module(line: &str, end: &str) -> Option<String> {
    let (visibility, name) = line.strip_suffix(end)?.rsplit_once("mod ")?;
    (visibility.is_empty() || visibility.starts_with("pub")).then(|| name.to_owned())
}

/// Files of tests that this file declares, by their path below `src` without `.rs`.
fn test_modules(file: &str, text: &str) -> Vec<String> {
    let folder = file.strip_suffix(".rs").unwrap();
    // The modules of the crate's root lie beside it.
    let folder = if folder == "lib" { String::new() } else { format!("{folder}/") };
    let declared = text.split(TEST_ONLY).skip(1).filter_map(|rest| module(rest.lines().next()?, ";"));
    declared.map(|name| format!("{folder}{name}")).collect()
}

/// `text` without the module of tests at its end.
fn before_tests(text: &str) -> &str {
    let opens_module = |rest: &str| rest.lines().next().and_then(|line| module(line, " {")).is_some();
    let mut marks = text.match_indices(TEST_ONLY).map(|(at, mark)| (at, at + mark.len()));
    marks.find(|(_, item)| opens_module(&text[*item..])).map_or(text, |(at, _)| &text[..at])
}

/// Every file below `src` that is more than tests, by its path from there, with its text before the tests.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    assert!(files.len() > 50, "the sources are where they are expected");
    let name = |path: &PathBuf| path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
    let texts = files.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap()));
    let texts: Vec<(String, String)> = texts.collect();
    let tests: Vec<String> = texts.iter().flat_map(|(file, text)| test_modules(file, text)).collect();
    assert!(tests.iter().any(|module| module == "trigger/lane/tests"), "modules of tests are found");
    let is_test = |file: &str| {
        let below = |module: &String| {
            file.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        tests.iter().any(below)
    };
    let sources = texts.into_iter().filter(|(file, _)| !is_test(file));
    sources.map(|(file, text)| (file, before_tests(&text).to_owned())).collect()
}

fn floor_of(room: &str) -> Option<u32> {
    FLOORS.iter().find(|(name, _)| *name == room).map(|(_, floor)| *floor)
}

fn imported_rooms(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or(""))
}

#[test]
fn rooms_import_downwards_only() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let room = file.split(['/', '.']).next().unwrap();
        let exception = EXCEPTIONS.iter().find(|(path, _, _)| *path == file).map(|(_, floor, _)| *floor);
        let Some(floor) = exception.or_else(|| floor_of(room)) else {
            assert_eq!(file, "lib.rs", "{file} belongs to no room: give it a floor");
            continue;
        };
        for imported in imported_rooms(&text) {
            let Some(below) = floor_of(imported) else { continue };
            let neighbours = NEIGHBOURS.contains(&room) && NEIGHBOURS.contains(&imported);
            if imported != room && below >= floor && !neighbours {
                wrong.push(format!("{file} (floor {floor}) imports {imported} (floor {below})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_the_broker_opens_stores_and_only_the_codec_names_bincode() {
    for (file, text) in sources() {
        if !file.starts_with("broker") && !file.starts_with("cli") {
            for store in ["tripline_storage::Store", "tripline_storage::fs", "OsFs"] {
                assert!(!text.contains(store), "{file} reaches around the broker: {store}");
            }
        }
        if file != "broker/codec.rs" {
            assert!(!text.contains("bincode::"), "{file} names bincode");
        }
        if file != "kafka/codec.rs" && file != "input/cluster/wire.rs" {
            assert!(!text.contains("kafka_wire::") && !text.contains("kafka_wire_core::"), "{file} names kafka-wire");
        }
    }
}

#[test]
fn pure_rooms_know_no_runtime_clock_network_or_files() {
    let sources = sources();
    for pure in PURE {
        assert!(sources.iter().any(|(file, _)| file == pure), "{pure} is gone");
        let folder = pure.replace(".rs", "/");
        // What lies in a room's folder is the room.
        for (file, text) in sources.iter().filter(|(file, _)| file == pure || file.starts_with(&folder)) {
            // A type for addresses, no door to the network.
            let text = text.replace("std::net::IpAddr", "");
            for impure in ["tokio::", "Instant::now", "SystemTime::now", "std::net", "std::fs", "thread::"] {
                assert!(!text.contains(impure), "{file} knows {impure}");
            }
        }
    }
}
