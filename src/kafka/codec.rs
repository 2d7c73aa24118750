//! The one door to the crates that know Kafka's message schemas.
//!
//! Everything else in the broker names messages through this module. The generated codec slices strings and bytes out
//! of the frame without copying them: whoever *keeps* such a value keeps the whole frame in memory, so state that
//! outlives a request copies what it keeps.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_wire_core::{ApiVersion, DecodeLimits};
use thiserror::Error;

use super::version::Api;

pub use kafka_wire::{
    ApiVersionsRequest, ApiVersionsResponse, CreateTopicsRequest, CreateTopicsResponse, DeleteGroupsRequest,
    DeleteGroupsResponse, DeleteRecordsRequest, DeleteRecordsResponse, DeleteTopicsRequest, DeleteTopicsResponse,
    DescribeConfigsRequest, DescribeConfigsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    DescribeProducersRequest, DescribeProducersResponse, FetchRequest, FetchResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, HeartbeatRequest, HeartbeatResponse, InitProducerIdRequest, InitProducerIdResponse,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, ProduceRequest, ProduceResponse, SyncGroupRequest,
    SyncGroupResponse,
};
/// The parts of each message, in a module per message.
pub use kafka_wire::{
    api_versions_request, api_versions_response, create_topics_request, create_topics_response, delete_groups_request,
    delete_groups_response, delete_records_request, delete_records_response, delete_topics_request,
    delete_topics_response, describe_configs_request, describe_configs_response, describe_groups_request,
    describe_groups_response, describe_producers_request, describe_producers_response, fetch_request, fetch_response,
    find_coordinator_request, find_coordinator_response, heartbeat_request, heartbeat_response,
    init_producer_id_request, init_producer_id_response, join_group_request, join_group_response, leave_group_request,
    leave_group_response, list_groups_request, list_groups_response, list_offsets_request, list_offsets_response,
    metadata_request, metadata_response, offset_commit_request, offset_commit_response, offset_fetch_request,
    offset_fetch_response, produce_request, produce_response, sync_group_request, sync_group_response,
};
pub use kafka_wire::{
    decode_consumer_protocol_assignment, decode_consumer_protocol_subscription, encode_consumer_protocol_assignment,
    encode_consumer_protocol_subscription,
};
pub use kafka_wire_core::{DecodeError, Decoder, EncodeError, StrBytes, Uuid};

/// What every request type offers.
pub trait Request: kafka_wire::KafkaRequest {}
impl<T: kafka_wire::KafkaRequest> Request for T {}

/// What every response type offers.
pub trait Response: kafka_wire::KafkaResponse {}
impl<T: kafka_wire::KafkaResponse> Response for T {}

/// Longest string of a request in bytes: what the older encodings can carry at all.
pub const STRING_BYTES_MAX: usize = i16::MAX as usize;
/// Most elements of one array of a request.
pub const ARRAY_ELEMENTS_MAX: usize = 100_000;
/// Most tagged fields of one structure of a request; Kafka's own schemas stay below 8.
pub const TAGGED_FIELDS_MAX: usize = 64;
/// Longest tagged field in bytes.
pub const TAGGED_FIELD_BYTES_MAX: usize = 64 * 1024;
/// Longest client id in bytes.
pub const CLIENT_ID_BYTES_MAX: usize = 249;

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Which request, as sent.
    pub api_key: i16,
    /// In which version, as sent.
    pub api_version: i16,
    /// Returned in the response.
    pub correlation_id: i32,
    /// The name that the client gave itself; none when it sent null or nothing.
    pub client_id: Option<StrBytes>,
}

/// A request whose head cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The bytes do not hold a request header.
    #[error("request header: {0}")]
    Malformed(#[from] DecodeError),
    /// The client id breaks the rules for names.
    #[error(
        "client id of {length_bytes} bytes: allowed are at most {CLIENT_ID_BYTES_MAX} bytes of UTF-8 without control characters"
    )]
    ClientId {
        /// Its length.
        length_bytes: usize,
    },
}

/// Splits a frame (without its length) into the request header and the request's body.
///
/// The client id stands at the same place in each version of the header, so a request that we do not know still yields
/// its key, version and client id; only the body of a known one is meaningful.
///
/// # Errors
/// When the bytes end early, the client id is not a legal name, or the tagged fields break their rules.
pub fn decode_header(frame: Bytes) -> Result<(RequestHeader, Bytes), HeaderError> {
    let mut decoder = decoder(frame)?;
    let api_key = decoder.read_i16()?;
    let api_version = decoder.read_i16()?;
    let correlation_id = decoder.read_i32()?;
    let client_id = decoder.read_nullable_string()?.filter(|id| !id.is_empty());
    if let Some(id) = &client_id
        && (id.len() > CLIENT_ID_BYTES_MAX || id.as_str().chars().any(char::is_control))
    {
        return Err(HeaderError::ClientId { length_bytes: id.len() });
    }
    if Api::from_key(api_key).is_some_and(|api| api.is_flexible(api_version)) {
        decoder.read_tagged_fields()?;
    }
    let body = decoder.take_bytes(decoder.remaining())?;
    Ok((RequestHeader { api_key, api_version, correlation_id, client_id }, body))
}

/// Decodes a request body. Bytes behind it are ignored, as Kafka does: librdkafka 2.15 leaves three of them behind a
/// Metadata request for all topics in flexible versions.
///
/// Memory grows with the bytes present, never with the counts that they claim.
///
/// # Errors
/// Whatever is wrong with the bytes, with its place.
pub fn decode_body<R: Request>(version: i16, body: Bytes) -> Result<R, DecodeError> {
    R::decode(&mut decoder(body)?, ApiVersion::new(version))
}

/// Reads a message piece by piece, within the bounds on what a request may hold.
///
/// # Errors
/// When there are more bytes than any request has.
pub fn decoder(bytes: Bytes) -> Result<Decoder, DecodeError> {
    Decoder::new(bytes, limits())
}

/// Encodes a whole response frame: length, header in the version that the request calls for, body.
///
/// # Errors
/// When the response holds something that this version cannot carry: a mistake of ours.
pub fn encode_response<R: Response>(correlation_id: i32, version: i16, response: &R) -> Result<Bytes, EncodeError> {
    let api_version = ApiVersion::new(version);
    let header_bytes = response_header_length(R::API_KEY.value(), version);
    let frame_bytes = header_bytes + response.encoded_len(api_version)?;
    let length = i32::try_from(frame_bytes).map_err(|_| EncodeError::FrameTooLarge { bytes: frame_bytes })?;
    let mut buffer = BytesMut::with_capacity(4 + frame_bytes);
    buffer.put_i32(length);
    put_response_header(&mut buffer, R::API_KEY.value(), version, correlation_id);
    response.encode_into(&mut buffer, api_version)?;
    debug_assert_eq!(buffer.len(), 4 + frame_bytes, "the length written is the length announced");
    Ok(buffer.freeze())
}

/// Whether the response header of this request carries tagged fields.
///
/// The response to ApiVersions never does: a client reads it before it knows what the broker speaks.
fn response_header_is_flexible(api_key: i16, version: i16) -> bool {
    Api::from_key(api_key).is_some_and(|api| api != Api::ApiVersions && api.is_flexible(version))
}

/// Length in bytes of the response header of this request.
#[must_use]
pub fn response_header_length(api_key: i16, version: i16) -> usize {
    4 + usize::from(response_header_is_flexible(api_key, version))
}

/// Appends the response header of this request.
pub fn put_response_header(buffer: &mut impl BufMut, api_key: i16, version: i16, correlation_id: i32) {
    buffer.put_i32(correlation_id);
    if response_header_is_flexible(api_key, version) {
        buffer.put_u8(0);
    }
}

/// Bounds on what a request may hold. The frame itself is bounded before it gets here.
fn limits() -> DecodeLimits {
    let mut limits = DecodeLimits::default();
    limits.max_frame_bytes = i32::MAX as usize;
    limits.max_bytes_bytes = i32::MAX as usize;
    limits.max_string_bytes = STRING_BYTES_MAX;
    limits.max_array_elements = ARRAY_ELEMENTS_MAX;
    limits.max_tagged_fields = TAGGED_FIELDS_MAX;
    limits.max_tag_bytes = TAGGED_FIELD_BYTES_MAX;
    limits.max_total_tag_bytes = TAGGED_FIELD_BYTES_MAX;
    limits
}

#[cfg(test)]
pub(crate) mod testing {
    //! The client's side of the codec, for tests.

    use bytes::{Bytes, BytesMut};
    use kafka_wire::OutboundFrameLimits;
    use kafka_wire_core::{ApiVersion, Decoder, VersionRange};

    use super::{Request, Response, StrBytes};

    /// The versions that the schemas know of a request.
    pub(crate) fn schema_versions<R: Request>() -> (i16, i16, Option<i16>) {
        let range = R::SUPPORTED_VERSIONS;
        let flexible = R::FLEXIBLE_VERSIONS.map(VersionRange::min);
        (range.min().value(), range.max().value(), flexible.map(ApiVersion::value))
    }

    /// A whole request frame with its length.
    pub(crate) fn encode_request<R: Request>(correlation_id: i32, version: i16, client_id: &str, request: &R) -> Bytes {
        let mut buffer = BytesMut::new();
        let client_id = Some(StrBytes::from(client_id));
        let limits = OutboundFrameLimits::new(1 << 30);
        kafka_wire::encode_request(&mut buffer, correlation_id, client_id, request, ApiVersion::new(version), limits)
            .unwrap();
        buffer.freeze()
    }

    /// Decodes a whole response frame with its length; returns the correlation id too.
    pub(crate) fn decode_response<R: Response>(version: i16, frame: &Bytes) -> (i32, R) {
        let length = i32::from_be_bytes(frame[..4].try_into().unwrap());
        assert_eq!(usize::try_from(length).unwrap(), frame.len() - 4, "announced length");
        let flexible_header = kafka_wire::response_header_version(
            R::API_KEY,
            ApiVersion::new(version),
            R::is_flexible(ApiVersion::new(version)),
        );
        let mut decoder = Decoder::new(frame.slice(4..), super::limits()).unwrap();
        let correlation_id = decoder.read_i32().unwrap();
        if flexible_header == 1 {
            decoder.read_tagged_fields().unwrap();
        }
        let body = R::decode(&mut decoder, ApiVersion::new(version)).unwrap();
        decoder.finish().unwrap();
        (correlation_id, body)
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{decode_response, encode_request};
    use super::*;

    fn header_of(frame: &Bytes) -> (RequestHeader, Bytes) {
        decode_header(frame.slice(4..)).unwrap()
    }

    #[test]
    fn a_request_survives_the_trip_in_old_and_flexible_headers() {
        for version in 0..=13 {
            let mut request = MetadataRequest::default();
            request.topics = Some(Vec::new());
            let frame = encode_request(7, version, "cli", &request);
            let (header, body) = header_of(&frame);
            assert_eq!((header.api_key, header.api_version, header.correlation_id), (3, version, 7));
            assert_eq!(header.client_id.as_deref(), Some("cli"));
            assert!(decode_body::<MetadataRequest>(version, body).is_ok(), "version {version}");
        }
    }

    #[test]
    fn a_response_carries_its_length_and_the_right_header() {
        for version in 0..=4 {
            let frame = encode_response(9, version, &ApiVersionsResponse::default()).unwrap();
            assert_eq!(decode_response::<ApiVersionsResponse>(version, &frame).0, 9);
        }
        for version in 0..=13 {
            let frame = encode_response(-3, version, &MetadataResponse::default()).unwrap();
            assert_eq!(decode_response::<MetadataResponse>(version, &frame).0, -3, "version {version}");
        }
    }

    #[test]
    fn a_request_that_nobody_knows_still_names_itself() {
        let (header, _) = decode_header(Bytes::from_static(&[0x7f, 0xff, 0, 9, 0, 0, 0, 1, 0, 1, b'x', 0xff])).unwrap();
        assert_eq!((header.api_key, header.api_version), (i16::MAX, 9));
        assert_eq!(header.client_id.as_deref(), Some("x"));
    }

    #[test]
    fn client_ids_with_control_characters_or_too_long_are_refused() {
        let head = |id: &[u8]| {
            let mut bytes = vec![0, 3, 0, 0, 0, 0, 0, 1];
            bytes.extend_from_slice(&u16::try_from(id.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(id);
            decode_header(Bytes::from(bytes))
        };
        assert_eq!(head(b"a\x1bb"), Err(HeaderError::ClientId { length_bytes: 3 }));
        assert_eq!(head(&[b'a'; 250]), Err(HeaderError::ClientId { length_bytes: 250 }));
        assert!(matches!(head(&[0xff]), Err(HeaderError::Malformed(_))));
        assert_eq!(head(b"").unwrap().0.client_id, None, "an empty id is no id");
        assert!(head(&[b'a'; 249]).is_ok());
    }

    #[test]
    fn tagged_fields_out_of_order_or_too_many_are_refused() {
        let head = |tags: &[u8]| {
            let mut bytes = vec![0, 3, 0, 9, 0, 0, 0, 1, 0xff, 0xff];
            bytes.extend_from_slice(tags);
            decode_header(Bytes::from(bytes))
        };
        assert!(head(&[0]).is_ok());
        assert!(head(&[2, 1, 0, 2, 0]).is_ok());
        assert!(head(&[2, 2, 0, 1, 0]).is_err(), "unsorted");
        assert!(head(&[2, 1, 0, 1, 0]).is_err(), "twice");
        assert!(head(&[0xff, 0xff, 0xff, 0xff, 0x0f]).is_err(), "four billion");
    }
}
