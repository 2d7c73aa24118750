//! What the README says of settings and examples is so.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::process::Command;

const README: &str = include_str!("../README.md");

/// The keys of the table under "Configuration", with their flags.
fn documented() -> BTreeSet<(String, String)> {
    let table = README.split("## Configuration").nth(1).unwrap().split("| limit |").next().unwrap();
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).skip(1);
        (cells.next().unwrap(), cells.next().unwrap())
    })
    .collect()
}

#[test]
fn every_documented_flag_exists_and_every_key_is_taken_from_a_file() {
    let help = Command::new(env!("CARGO_BIN_EXE_tripline")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let documented = documented();
    assert_eq!(documented.len(), 7, "{documented:?}");
    let dir = tempfile::tempdir().unwrap();
    for (key, flag) in &documented {
        assert!(help.contains(flag), "{flag} is not in the help");
        // A value of no allowed kind: the error names the key as known.
        let file = dir.path().join("tripline.toml");
        std::fs::write(&file, format!("{key} = 7\n")).unwrap();
        let refused = Command::new(env!("CARGO_BIN_EXE_tripline")).args(["serve", "-c"]).arg(&file).output().unwrap();
        let error = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{key}: {error}");
        assert!(error.contains(&format!("settings.{key}")) && !error.contains("unknown"), "{key}: {error}");
    }
}

#[test]
fn the_definitions_of_the_readme_are_those_of_the_example() {
    let shown = README.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let example = include_str!("../examples/hello/app.yaml");
    let without_comments: String =
        example.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert_eq!(shown, without_comments);
}
