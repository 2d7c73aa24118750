//! A snapshot of producers. Invariants: no bytes cause a panic; what is read is written as the same bytes.

use tripline_storage::producer::{ProducerLimits, Producers};

/// Does one input.
pub(crate) fn run(body: &[u8]) {
    let _ = Producers::decode_snapshot(body, ProducerLimits::default());
    // The checksum is put behind the input, which mutation alone does not find.
    let encoded = [body, &crc32fast::hash(body).to_le_bytes()].concat();
    let Ok(snapshot) = Producers::decode_snapshot(&encoded, ProducerLimits::default()) else { return };
    assert_eq!(snapshot.producers.encode_snapshot(snapshot.next_offset), encoded);
}
