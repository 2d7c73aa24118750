//! `compare.py` still fits the broker and the thin client that it runs.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/compare.py");
const BENCH: &str = env!("CARGO_BIN_EXE_tripline-bench");

/// Standard output, of a run that ends well.
fn compare(arguments: &[&str]) -> String {
    let output = Command::new("python3").arg(SCRIPT).args(arguments).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

#[test]
fn its_help_shows_examples() {
    let help = compare(&["--help"]);
    assert!(help.contains("examples") && help.contains("compare.py --quick"), "{help}");
}

#[test]
fn a_quick_run_measures_every_load_on_the_broker() {
    let broker = Path::new(BENCH).with_file_name("tripline");
    if !broker.is_file() {
        println!("SKIP: {} is not there: cargo test --workspace builds it", broker.display());
        return;
    }
    let said = compare(&["--quick", "--bench", BENCH, "--tripline", broker.to_str().unwrap()]);
    let loads: Vec<_> = said.lines().filter(|line| line.contains("| Tripline |")).collect();
    assert_eq!(loads.len(), 6, "{said}");
    for load in ["produce 1024 B, cache", "consume 1024 B, cache", "produce 100 B, disk"] {
        assert!(loads.iter().any(|line| line.contains(load)), "{load} is not in\n{said}");
    }
}
