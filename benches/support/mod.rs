//! What several benches need: a partition full of records, and the processor time that something took.

use std::time::Duration;

use tripline::broker::{Broker, Topic};
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

/// Thousand keys, one after the other.
pub(crate) const fn in_turn(number: u64) -> u64 {
    number % 1000
}

/// JSON records of about 200 bytes, in batches of 500.
pub(crate) fn fill(broker: &Broker, topic: &Topic, records: u64, key_of: fn(u64) -> u64) {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for number in 0..records {
        let value = format!(
            r#"{{"flight":"LH{number:06}","origin":"FRA","destination":"JFK","carrier":"LH","delay":{},"gate":"A{}","passengers":{},"aircraft":{{"type":"A340-600","registration":"D-AIHE"}},"cancelled":false,"note":"on time"}}"#,
            number % 120,
            number % 60,
            number % 400,
        );
        let key = key_of(number).to_string();
        let record = NewRecord {
            timestamp_ms: 1_700_000_000_000,
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            headers: &[],
        };
        builder.push(&record).expect("it fits");
        if builder.record_count() == 500 || number + 1 == records {
            let full = std::mem::replace(&mut builder, BatchBuilder::new(BatchOptions::default()));
            broker.append(topic, 0, full.finish().expect("a batch")).expect("appended");
        }
    }
}

/// Of all threads of this process.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
