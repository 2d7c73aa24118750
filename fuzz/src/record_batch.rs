//! A batch of a producer. Invariants: no bytes cause a panic; a batch that passes the check can be read to its last
//! record.

use bytes::{Bytes, BytesMut};
use tripline_storage::batch::header::{ATTRIBUTES_AT, BATCH_LENGTH_AT, CRC_AT, LEADER_EPOCH_AT};
use tripline_storage::batch::{BatchLimits, BatchView, CheckedBatch, Validation, crc32c};

const LIMITS: BatchLimits =
    BatchLimits { batch_bytes_max: 1 << 20, decompressed_bytes_max: 1 << 20, zstd_window_log_max: 20 };

/// Does one input.
pub(crate) fn run(data: &[u8]) {
    let _ = CheckedBatch::check(Bytes::copy_from_slice(data), &LIMITS, Validation::Records);
    let mended = mended(data);
    if let Ok(checked) = CheckedBatch::check(mended.clone(), &LIMITS, Validation::Records) {
        let records = checked.view().records(&LIMITS).expect("the check has unpacked it");
        assert_eq!(records.iter().map(Result::unwrap).count(), checked.header().record_count as usize);
    }
    let Ok((view, _)) = BatchView::parse(&mended) else { return };
    let Ok(records) = view.records(&LIMITS) else { return };
    let _ = records.iter().flatten().flat_map(|record| record.headers()).count();
}

/// The bytes with a length and a hash that fit, which mutation alone does not find.
fn mended(data: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(data);
    if data.len() > ATTRIBUTES_AT {
        let length = (data.len() - LEADER_EPOCH_AT) as u32;
        bytes[BATCH_LENGTH_AT..LEADER_EPOCH_AT].copy_from_slice(&length.to_be_bytes());
        let crc = crc32c(&bytes[ATTRIBUTES_AT..]);
        bytes[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&crc.to_be_bytes());
    }
    bytes.freeze()
}
