//! The Fetch response, written around the record bytes instead of through them.
//!
//! Records reach megabytes and come from the log as slices of its maps. The generated encoder would copy them into one
//! buffer; this one leaves them as parts of their own between small encoded parts. Tests hold it to the generated
//! encoder, byte for byte, in each version.

use bytes::{BufMut, Bytes, BytesMut};
use thiserror::Error;

use super::codec;
use super::handler::ResponseFrame;
use super::version::Api;

/// A Fetch response. No node endpoints and no leader hints: there is one node, and it leads each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchBody {
    /// How long the client was or should be held back, in milliseconds.
    pub throttle_time_ms: i32,
    /// Error of the whole request (from version 7).
    pub error_code: i16,
    /// 0 declines a fetch session (from version 7).
    pub session_id: i32,
    /// By topic.
    pub topics: Vec<FetchedTopic>,
}

/// The part of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchedTopic {
    /// Its name (to version 12).
    pub name: String,
    /// Its id (from version 13).
    pub id: [u8; 16],
    /// By partition.
    pub partitions: Vec<FetchedPartition>,
}

/// The part of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedPartition {
    /// Which one.
    pub partition: i32,
    /// Its error, 0 for none.
    pub error_code: i16,
    /// Its high watermark, -1 if unknown.
    pub high_watermark: i64,
    /// Its last stable offset, -1 if unknown.
    pub last_stable_offset: i64,
    /// Its first offset, -1 if unknown (from version 5).
    pub log_start_offset: i64,
    /// For readers of committed records: (producer id, first offset) of aborted transactions.
    pub aborted_transactions: Option<Vec<(i64, i64)>>,
    /// Whole record batches, as stored, in order; several slices where they span segments. Empty for none.
    pub records: Vec<Bytes>,
}

impl FetchedPartition {
    /// A partition with an error and nothing known.
    #[must_use]
    pub const fn failed(partition: i32, error_code: i16) -> Self {
        Self {
            partition,
            error_code,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            aborted_transactions: None,
            records: Vec::new(),
        }
    }
}

/// A response that the wire cannot carry.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FetchEncodeError {
    /// It would be longer than a frame can say.
    #[error("fetch response of {size_bytes} bytes: a frame holds at most {}", i32::MAX)]
    TooLong {
        /// Bytes of records and of everything else.
        size_bytes: usize,
    },
    /// A topic name that the version cannot carry.
    #[error("topic name of {length} bytes: at most {} fit", i16::MAX)]
    NameTooLong {
        /// Its length in bytes.
        length: usize,
    },
}

/// Encodes a whole response frame around the record slices, which are not copied.
///
/// # Errors
/// When the response or a name is longer than the wire can say.
pub fn encode_fetch(correlation_id: i32, version: i16, body: &FetchBody) -> Result<ResponseFrame, FetchEncodeError> {
    let spec = Api::Fetch.spec();
    debug_assert!(Api::Fetch.serves(version), "fetch version {version}");
    let mut writer = Writer::new(Api::Fetch.is_flexible(version));
    writer.head.put_i32(0);
    codec::put_response_header(&mut writer.head, spec.key, version, correlation_id);
    writer.head.put_i32(body.throttle_time_ms);
    if version >= 7 {
        writer.head.put_i16(body.error_code);
        writer.head.put_i32(body.session_id);
    }
    writer.array(body.topics.len())?;
    for topic in &body.topics {
        writer.topic(version, topic)?;
    }
    writer.no_tagged_fields();
    writer.finish()
}

/// Collects small encoded bytes, and cuts them where a slice goes between.
struct Writer {
    flexible: bool,
    /// Encoded bytes since the last slice.
    head: BytesMut,
    /// What stands before `head`.
    parts: Vec<Bytes>,
    /// Bytes in `parts`.
    size_bytes: usize,
}

impl Writer {
    fn new(flexible: bool) -> Self {
        Self { flexible, head: BytesMut::with_capacity(256), parts: Vec::new(), size_bytes: 0 }
    }

    fn topic(&mut self, version: i16, topic: &FetchedTopic) -> Result<(), FetchEncodeError> {
        if version >= 13 {
            self.head.put_slice(&topic.id);
        } else {
            self.string(&topic.name)?;
        }
        self.array(topic.partitions.len())?;
        for partition in &topic.partitions {
            self.partition(version, partition)?;
        }
        self.no_tagged_fields();
        Ok(())
    }

    fn partition(&mut self, version: i16, partition: &FetchedPartition) -> Result<(), FetchEncodeError> {
        self.head.put_i32(partition.partition);
        self.head.put_i16(partition.error_code);
        self.head.put_i64(partition.high_watermark);
        self.head.put_i64(partition.last_stable_offset);
        if version >= 5 {
            self.head.put_i64(partition.log_start_offset);
        }
        self.aborted_transactions(partition.aborted_transactions.as_deref())?;
        if version >= 11 {
            self.head.put_i32(-1); // no preferred replica to read from
        }
        self.records(&partition.records)?;
        self.no_tagged_fields();
        Ok(())
    }

    fn aborted_transactions(&mut self, aborted: Option<&[(i64, i64)]>) -> Result<(), FetchEncodeError> {
        let Some(aborted) = aborted else {
            if self.flexible {
                self.varint(0);
            } else {
                self.head.put_i32(-1);
            }
            return Ok(());
        };
        self.array(aborted.len())?;
        for (producer_id, first_offset) in aborted {
            self.head.put_i64(*producer_id);
            self.head.put_i64(*first_offset);
            self.no_tagged_fields();
        }
        Ok(())
    }

    /// Never null, as Kafka does it: some clients cannot read null records.
    fn records(&mut self, slices: &[Bytes]) -> Result<(), FetchEncodeError> {
        let size_bytes = slices.iter().map(Bytes::len).sum();
        self.length(size_bytes)?;
        for slice in slices {
            self.splice(slice.clone());
        }
        Ok(())
    }

    fn splice(&mut self, slice: Bytes) {
        let head = self.head.split().freeze();
        self.size_bytes += head.len() + slice.len();
        self.parts.extend([head, slice]);
    }

    fn string(&mut self, value: &str) -> Result<(), FetchEncodeError> {
        let length = i16::try_from(value.len()).map_err(|_| FetchEncodeError::NameTooLong { length: value.len() })?;
        if self.flexible {
            self.length(value.len())?;
        } else {
            self.head.put_i16(length);
        }
        self.head.put_slice(value.as_bytes());
        Ok(())
    }

    fn array(&mut self, count: usize) -> Result<(), FetchEncodeError> {
        self.length(count)
    }

    /// The length of bytes or of an array: one more than it is, as a varint, in flexible versions.
    fn length(&mut self, length: usize) -> Result<(), FetchEncodeError> {
        let length = i32::try_from(length).map_err(|_| FetchEncodeError::TooLong { size_bytes: length })?;
        if self.flexible {
            self.varint(length.unsigned_abs() + 1);
        } else {
            self.head.put_i32(length);
        }
        Ok(())
    }

    fn varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.head.put_u8((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.head.put_u8(value as u8);
    }

    fn no_tagged_fields(&mut self) {
        if self.flexible {
            self.head.put_u8(0);
        }
    }

    /// Puts the length in its place, at the start of the first part.
    fn finish(mut self) -> Result<ResponseFrame, FetchEncodeError> {
        let size_bytes = self.size_bytes + self.head.len();
        self.parts.push(self.head.freeze());
        let length = i32::try_from(size_bytes - 4).map_err(|_| FetchEncodeError::TooLong { size_bytes })?;
        let mut first = BytesMut::from(&self.parts[0][..]);
        first[..4].copy_from_slice(&length.to_be_bytes());
        self.parts[0] = first.freeze();
        Ok(ResponseFrame::from_parts(self.parts))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kafka::codec::{FetchResponse, StrBytes, Uuid, fetch_response, testing};

    /// The same response as the generated encoder sees it, records inside.
    fn generated(version: i16, body: &FetchBody) -> FetchResponse {
        let mut response = FetchResponse::default();
        response.throttle_time_ms = body.throttle_time_ms;
        if version >= 7 {
            response.error_code = body.error_code;
            response.session_id = body.session_id;
        }
        response.responses = body.topics.iter().map(|topic| generated_topic(version, topic)).collect();
        response
    }

    fn generated_topic(version: i16, topic: &FetchedTopic) -> fetch_response::FetchableTopicResponse {
        let mut response = fetch_response::FetchableTopicResponse::default();
        if version >= 13 {
            response.topic_id = Uuid::from_bytes(topic.id);
        } else {
            response.topic = StrBytes::from(topic.name.as_str());
        }
        response.partitions = topic.partitions.iter().map(|part| generated_partition(version, part)).collect();
        response
    }

    fn generated_partition(version: i16, part: &FetchedPartition) -> fetch_response::PartitionData {
        let mut response = fetch_response::PartitionData::default();
        response.partition_index = part.partition;
        response.error_code = part.error_code;
        response.high_watermark = part.high_watermark;
        response.last_stable_offset = part.last_stable_offset;
        response.log_start_offset = if version >= 5 { part.log_start_offset } else { -1 };
        response.aborted_transactions = part.aborted_transactions.as_ref().map(|aborted| {
            aborted
                .iter()
                .map(|(producer_id, first_offset)| {
                    let mut transaction = fetch_response::AbortedTransaction::default();
                    transaction.producer_id = *producer_id;
                    transaction.first_offset = *first_offset;
                    transaction
                })
                .collect()
        });
        response.records = Some(Bytes::from(part.records.concat()));
        response
    }

    fn partition() -> impl Strategy<Value = FetchedPartition> {
        let slices = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from), 0..4);
        let aborted = prop::option::of(prop::collection::vec(any::<(i64, i64)>(), 0..3));
        (any::<(i32, i16, i64, i64, i64)>(), aborted, slices).prop_map(|(numbers, aborted_transactions, records)| {
            let (partition, error_code, high_watermark, last_stable_offset, log_start_offset) = numbers;
            FetchedPartition {
                partition,
                error_code,
                high_watermark,
                last_stable_offset,
                log_start_offset,
                aborted_transactions,
                records,
            }
        })
    }

    fn body() -> impl Strategy<Value = FetchBody> {
        let topic = ("[a-z]{1,200}", any::<[u8; 16]>(), prop::collection::vec(partition(), 0..4))
            .prop_map(|(name, id, partitions)| FetchedTopic { name, id, partitions });
        (any::<(i32, i16, i32)>(), prop::collection::vec(topic, 0..4)).prop_map(
            |((throttle_time_ms, error_code, session_id), topics)| FetchBody {
                throttle_time_ms,
                error_code,
                session_id,
                topics,
            },
        )
    }

    proptest! {
        #[test]
        fn spliced_frames_equal_the_generated_encoding_in_each_version(body in body(), correlation_id: i32) {
            for version in Api::Fetch.spec().min..=Api::Fetch.spec().max {
                let spliced = encode_fetch(correlation_id, version, &body).unwrap();
                let whole = codec::encode_response(correlation_id, version, &generated(version, &body)).unwrap();
                prop_assert_eq!(Bytes::from(spliced.parts().concat()), whole, "version {}", version);
            }
        }
    }

    #[test]
    fn record_slices_are_passed_on_and_not_copied() {
        let records = Bytes::from(vec![7; 100_000]);
        let mut part = FetchedPartition::failed(0, 0);
        part.records = vec![records.slice(..60_000), records.slice(60_000..)];
        let topic = FetchedTopic { name: "t".into(), id: [1; 16], partitions: vec![part] };
        let body = FetchBody { topics: vec![topic], ..FetchBody::default() };
        for version in Api::Fetch.spec().min..=Api::Fetch.spec().max {
            let frame = encode_fetch(1, version, &body).unwrap();
            let slices: Vec<_> =
                frame.parts().iter().filter(|part| part.len() > 10_000).map(|part| part.as_ptr()).collect();
            assert_eq!(slices, [records.as_ptr(), records[60_000..].as_ptr()], "version {version}");
            let (_, decoded) = testing::decode_response::<FetchResponse>(version, &Bytes::from(frame.parts().concat()));
            assert_eq!(decoded.responses[0].partitions[0].records.as_ref().unwrap().len(), 100_000);
        }
    }

    #[test]
    fn a_name_that_does_not_fit_is_an_error() {
        let topic = FetchedTopic { name: "n".repeat(40_000), ..FetchedTopic::default() };
        let body = FetchBody { topics: vec![topic], ..FetchBody::default() };
        assert_eq!(encode_fetch(1, 4, &body), Err(FetchEncodeError::NameTooLong { length: 40_000 }));
    }
}
