#![no_main]

#[path = "../src/producer_snapshot.rs"]
mod producer_snapshot;

libfuzzer_sys::fuzz_target!(|data: &[u8]| producer_snapshot::run(data));
