//! Keys of records, as progress remembers them.

use crc_fast::{CrcAlgorithm, checksum};

/// The hash of a record's key: CRC-64/NVME of its bytes; a record without a key counts as one with an empty key.
///
/// Part of the format of written progress: it never changes. Keys that share a hash share a queue, which costs time and
/// breaks no order; but with `debounce` or `singleton` a record of one may be dropped for the other's. The hash is no
/// secret, so whoever chooses keys can choose two that share it.
#[must_use]
pub fn key_hash(key: Option<&[u8]>) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, key.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_this_for_ever() {
        // The check value of CRC-64/NVME in the NVM Command Set Specification.
        assert_eq!(key_hash(Some(b"123456789")), 0xae8b_1486_0a79_9888);
        assert_eq!(key_hash(None), key_hash(Some(b"")));
    }
}
