//! How many partitions a Produce request names, counted before it is decoded.
//!
//! A partition without records takes seven bytes of the frame, and some hundred each for what is decoded, what became
//! of it and its part of the answer: a frame of 64 MiB would take gigabytes. So its arrays are walked first, which
//! keeps nothing.

use bytes::Bytes;

use crate::kafka::codec::{self, DecodeError, Decoder};
use crate::kafka::version::Api;

/// Most partitions of one request, over all its topics: as many as a broker has, unless told otherwise.
pub const PARTITIONS_MAX: usize = 10_000;

/// Versions that name topics by id.
const TOPIC_ID_SINCE: i16 = 13;

/// Refuses a body of version 3 or later that names more than [`PARTITIONS_MAX`] partitions.
///
/// # Errors
/// When it does, or cannot be read.
pub fn check(version: i16, body: Bytes) -> Result<(), DecodeError> {
    let mut walk = Walk { decoder: codec::decoder(body)?, flexible: Api::Produce.is_flexible(version) };
    walk.transactional_id()?;
    walk.decoder.read_i16()?;
    walk.decoder.read_i32()?;
    let mut partitions: usize = 0;
    for _ in 0..walk.count()? {
        walk.topic(version)?;
        let offset = walk.decoder.offset();
        let count = walk.count()?;
        partitions = partitions.saturating_add(count);
        if partitions > PARTITIONS_MAX {
            let (kind, limit) = ("partitions of all topics", PARTITIONS_MAX);
            return Err(DecodeError::LimitExceeded { kind, length: partitions, limit, offset });
        }
        for _ in 0..count {
            walk.partition()?;
        }
        walk.end()?;
    }
    Ok(())
}

struct Walk {
    decoder: Decoder,
    flexible: bool,
}

impl Walk {
    fn transactional_id(&mut self) -> Result<(), DecodeError> {
        let decoder = &mut self.decoder;
        if self.flexible { decoder.read_compact_nullable_string() } else { decoder.read_nullable_string() }.map(drop)
    }

    fn topic(&mut self, version: i16) -> Result<(), DecodeError> {
        let decoder = &mut self.decoder;
        if version >= TOPIC_ID_SINCE {
            return decoder.read_uuid().map(drop);
        }
        if self.flexible { decoder.read_compact_string() } else { decoder.read_string() }.map(drop)
    }

    fn partition(&mut self) -> Result<(), DecodeError> {
        let decoder = &mut self.decoder;
        decoder.read_i32()?;
        if self.flexible { decoder.read_compact_nullable_bytes() } else { decoder.read_nullable_bytes() }?;
        self.end()
    }

    /// Elements of the array that follows.
    fn count(&mut self) -> Result<usize, DecodeError> {
        let decoder = &mut self.decoder;
        let count = if self.flexible { decoder.read_compact_array_len() } else { decoder.read_array_len() };
        Ok(count?.get())
    }

    /// What a structure ends with.
    fn end(&mut self) -> Result<(), DecodeError> {
        if self.flexible { self.decoder.read_tagged_fields().map(drop) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::codec::testing::encode_request;
    use crate::kafka::codec::{ProduceRequest, decode_header, produce_request};
    use crate::kafka::request::RequestBody;

    /// So many partitions in each topic.
    fn body(version: i16, partitions: &[usize]) -> Bytes {
        let mut partition = produce_request::PartitionProduceData::default();
        partition.records = (version % 2 == 0).then(|| Bytes::from_static(b"records"));
        let topics = partitions.iter().map(|&count| {
            let mut topic = produce_request::TopicProduceData::default();
            if version < TOPIC_ID_SINCE {
                topic.name = "topic".into();
            }
            topic.partition_data = vec![partition.clone(); count];
            topic
        });
        let mut request = ProduceRequest::default();
        request.topic_data = topics.collect();
        let frame = encode_request(1, version, "tests", &request);
        decode_header(frame.slice(4..)).unwrap().1
    }

    #[test]
    fn requests_of_more_partitions_than_allowed_are_refused_before_they_are_decoded() {
        let spec = Api::Produce.spec();
        for version in spec.min.max(3)..=spec.max {
            let allowed = body(version, &[4_000, 0, 6_000]);
            assert!(RequestBody::decode(Api::Produce, version, allowed).is_ok(), "version {version}");
            let refused = RequestBody::decode(Api::Produce, version, body(version, &[4_000, 0, 6_001]));
            assert!(
                matches!(refused, Err(DecodeError::LimitExceeded { length: 10_001, limit: PARTITIONS_MAX, .. })),
                "version {version}: {refused:?}"
            );
        }
    }

    #[test]
    fn a_count_is_refused_before_what_it_counts_is_looked_at() {
        let mut body = body(9, &[1]).to_vec();
        let count = body.len() - 9; // one partition without records: its number, length and end, and two ends
        assert_eq!(body[count], 2);
        body.splice(count..=count, [0x92, 0x4e]); // 10,001, written as one more
        assert!(matches!(check(9, body.into()), Err(DecodeError::LimitExceeded { length: 10_001, .. })));
    }
}
