#![no_main]

#[path = "../src/kafka_frame.rs"]
mod kafka_frame;

libfuzzer_sys::fuzz_target!(|data: &[u8]| kafka_frame::run(data));
