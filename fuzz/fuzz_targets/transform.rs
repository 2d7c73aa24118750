#![no_main]

#[path = "../src/transform.rs"]
mod transform;

libfuzzer_sys::fuzz_target!(|data: &[u8]| transform::run(data));
