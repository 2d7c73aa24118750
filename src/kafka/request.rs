//! A request, decoded.

use bytes::Bytes;

use super::api::produce_size;
use super::codec::{self, DecodeError, RequestHeader};
use super::version::Api;

macro_rules! requests {
    ($($api:ident($request:ident)),* $(,)?) => {
        /// The body of a request, by kind.
        #[derive(Clone, Debug, PartialEq)]
        #[expect(missing_docs, reason = "Kafka's own names")]
        pub enum RequestBody {
            $($api(Box<codec::$request>),)*
        }

        impl RequestBody {
            /// Decodes the body of a request in a version that we serve.
            ///
            /// # Errors
            /// Whatever is wrong with the bytes, with its place.
            pub fn decode(api: Api, version: i16, body: Bytes) -> Result<Self, DecodeError> {
                if api == Api::Produce {
                    produce_size::check(version, body.clone())?;
                }
                match api {
                    $(Api::$api => codec::decode_body(version, body).map(|request| Self::$api(Box::new(request))),)*
                }
            }

            /// Which request it is.
            #[must_use]
            pub const fn api(&self) -> Api {
                match self {
                    $(Self::$api(_) => Api::$api,)*
                }
            }
        }
    };
}

requests! {
    Produce(ProduceRequest),
    Fetch(FetchRequest),
    ListOffsets(ListOffsetsRequest),
    Metadata(MetadataRequest),
    OffsetCommit(OffsetCommitRequest),
    OffsetFetch(OffsetFetchRequest),
    FindCoordinator(FindCoordinatorRequest),
    JoinGroup(JoinGroupRequest),
    Heartbeat(HeartbeatRequest),
    LeaveGroup(LeaveGroupRequest),
    SyncGroup(SyncGroupRequest),
    DescribeGroups(DescribeGroupsRequest),
    ListGroups(ListGroupsRequest),
    ApiVersions(ApiVersionsRequest),
    CreateTopics(CreateTopicsRequest),
    DeleteTopics(DeleteTopicsRequest),
    DeleteRecords(DeleteRecordsRequest),
    InitProducerId(InitProducerIdRequest),
    DescribeConfigs(DescribeConfigsRequest),
    DeleteGroups(DeleteGroupsRequest),
    DescribeProducers(DescribeProducersRequest),
}

/// One request, ready to be handled.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedRequest {
    /// Its head; the version is one that we serve.
    pub header: RequestHeader,
    /// Its body.
    pub body: RequestBody,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::version::APIS;

    /// Every place of a message can be a length: put hostile ones everywhere and look for panics and memory.
    #[test]
    fn hostile_lengths_at_every_place_of_every_version_are_errors_or_requests() {
        let hostile: [&[u8]; 9] = [
            &[0xff, 0xff, 0xff, 0xfe],
            &[0xff, 0xff, 0xff, 0xff],
            &[0, 0, 0, 0],
            &[0x7f, 0xff, 0xff, 0xff],
            &[0x7f, 0xff],
            &[0x80, 0x00],
            &[0xff, 0xff, 0xff, 0xff, 0x0f],
            &[0xff, 0xff, 0xff, 0xff, 0x7f],
            &[0x80, 0x80, 0x80, 0x80, 0x08],
        ];
        let mut refused = 0_u32;
        for spec in APIS {
            for version in spec.min..=spec.max {
                for filler in [0_u8, 1, 2] {
                    for place in 0..48 {
                        for lengths in hostile {
                            let mut body = vec![filler; 64];
                            body[place..place + lengths.len()].copy_from_slice(lengths);
                            refused += u32::from(RequestBody::decode(spec.api, version, Bytes::from(body)).is_err());
                        }
                    }
                }
            }
        }
        assert!(refused > 10_000, "the hostile bytes reached the decoders: {refused}");
    }

    #[test]
    fn an_empty_body_and_each_cut_of_a_body_of_zeroes_decode_or_are_refused() {
        for spec in APIS {
            for version in spec.min..=spec.max {
                for length in 0..64 {
                    for filler in [0_u8, 0xff] {
                        let _ = RequestBody::decode(spec.api, version, Bytes::from(vec![filler; length]));
                    }
                }
            }
        }
    }

    #[test]
    fn trailing_bytes_are_ignored_as_kafka_does() {
        // librdkafka 2.15: all topics, the null array written in four bytes where one is read.
        let body = Bytes::from_static(&[0, 0, 0, 0, 1, 0, 0]);
        let RequestBody::Metadata(request) = RequestBody::decode(Api::Metadata, 13, body).unwrap() else {
            panic!("a Metadata request")
        };
        assert_eq!(request.topics, None);
    }

    #[test]
    fn a_decoded_request_names_its_api() {
        let body = RequestBody::decode(Api::ListGroups, 0, Bytes::new()).unwrap();
        assert_eq!(body.api(), Api::ListGroups);
    }

    #[test]
    fn an_array_of_more_elements_than_allowed_is_refused_however_many_bytes_back_it() {
        let mut body = vec![0xa2, 0x8d, 0x06]; // 100,001 elements, written as one more
        body.resize(300_000, 1);
        assert!(matches!(
            RequestBody::decode(Api::DescribeGroups, 5, Bytes::from(body)),
            Err(DecodeError::LimitExceeded { limit: codec::ARRAY_ELEMENTS_MAX, .. })
        ));
    }

    #[test]
    fn strings_and_records_are_slices_of_the_frame() {
        let mut body = vec![0xff, 0xff, 0, 1, 0, 0, 0, 9, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3];
        body.extend_from_slice(b"abc");
        let body = Bytes::from(body);
        let RequestBody::Produce(request) = RequestBody::decode(Api::Produce, 3, body.clone()).unwrap() else {
            panic!("a Produce request")
        };
        let records = request.topic_data[0].partition_data[0].records.clone().unwrap();
        assert_eq!(records.as_ptr(), body[body.len() - 3..].as_ptr(), "not copied");
    }
}
