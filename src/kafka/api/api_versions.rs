//! ApiVersions: what we serve, and who is asking.
//!
//! The response to a version that we do not know is a version 0 body with error 35 and the whole list, so that the
//! client can ask again in a version that both know.
//!
//! No feature is advertised or finalised. Clients then use the classic forms: transactions without KIP-890's second
//! part, classic consumer groups.

use bytes::Bytes;

use crate::kafka::codec::{
    self, ApiVersionsRequest, ApiVersionsResponse, DecodeError, EncodeError, RequestHeader, api_versions_response,
};
use crate::kafka::error_code::ErrorCode;
use crate::kafka::handler::ClientSoftware;
use crate::kafka::version::{APIS, Api};

/// Longest name or version of a client's software in bytes.
pub const SOFTWARE_BYTES_MAX: usize = 128;

/// What an ApiVersions request leads to.
#[derive(Debug)]
pub struct ApiVersionsAnswer {
    /// The whole response frame.
    pub frame: Bytes,
    /// What the client said of itself, when it did and is accepted.
    pub software: Option<ClientSoftware>,
    /// Whether the client was told the versions of its own choice, not merely how to ask again.
    pub accepted: bool,
}

/// Answers one request, in whatever version.
///
/// # Errors
/// When the body cannot be read.
pub fn answer(header: &RequestHeader, body: Bytes) -> Result<ApiVersionsAnswer, DecodeError> {
    let version = header.api_version;
    if !Api::ApiVersions.serves(version) {
        return Ok(refusal(header, 0, ErrorCode::UnsupportedVersion));
    }
    let request: ApiVersionsRequest = codec::decode_body(version, body)?;
    if !Api::ApiVersions.is_flexible(version) {
        return Ok(ApiVersionsAnswer {
            frame: frame(header, version, ErrorCode::None),
            software: None,
            accepted: true,
        });
    }
    let name = request.client_software_name.as_str();
    let software_version = request.client_software_version.as_str();
    if !is_software_name(name) || !is_software_name(software_version) {
        return Ok(refusal(header, version, ErrorCode::InvalidRequest));
    }
    let software = ClientSoftware { name: name.to_owned(), version: software_version.to_owned() };
    Ok(ApiVersionsAnswer { frame: frame(header, version, ErrorCode::None), software: Some(software), accepted: true })
}

fn refusal(header: &RequestHeader, version: i16, error: ErrorCode) -> ApiVersionsAnswer {
    ApiVersionsAnswer { frame: frame(header, version, error), software: None, accepted: false }
}

fn frame(header: &RequestHeader, version: i16, error: ErrorCode) -> Bytes {
    let encoded: Result<Bytes, EncodeError> = codec::encode_response(header.correlation_id, version, &response(error));
    encoded.expect("each field of this response exists in each version from 0 to the highest served")
}

fn response(error: ErrorCode) -> ApiVersionsResponse {
    let mut response = ApiVersionsResponse::default();
    response.error_code = error.code();
    response.api_keys = APIS
        .iter()
        .map(|spec| {
            let mut row = api_versions_response::ApiVersion::default();
            row.api_key = spec.key;
            row.min_version = spec.min_advertised;
            row.max_version = spec.max;
            row
        })
        .collect();
    response
}

/// Kafka's rule: letters, digits, `-` and `.`, neither first nor last.
fn is_software_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    let bytes = name.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    bytes.len() <= SOFTWARE_BYTES_MAX
        && bytes.iter().copied().all(inner)
        && ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::codec::decode_header;
    use crate::kafka::codec::testing::decode_response;

    fn ask(frame: &[u8]) -> ApiVersionsAnswer {
        let (header, body) = decode_header(Bytes::copy_from_slice(&frame[4..])).unwrap();
        answer(&header, body).unwrap()
    }

    /// librdkafka, first try of an old release: version 0, client id `rdkafka`, no body.
    const RDKAFKA_V0: &[u8] = b"\0\0\0\x11\0\x12\0\0\0\0\0\x01\0\x07rdkafka";

    /// librdkafka: version 3, correlation id 1, client id `rdkafka`; flexible header; name `librdkafka`, version
    /// `2.15.0`.
    const RDKAFKA_V3: &[u8] = b"\0\0\0\x25\0\x12\0\x03\0\0\0\x01\0\x07rdkafka\0\x0blibrdkafka\x072.15.0\0";

    /// The Java client: version 4, correlation id 0, client id `producer-1`; name `apache-kafka-java`, version `4.2.0`.
    const JAVA_V4: &[u8] = b"\0\0\0\x2e\0\x12\0\x04\0\0\0\0\0\x0aproducer-1\0\x12apache-kafka-java\x064.2.0\0";

    #[test]
    fn the_golden_frames_announce_their_own_length() {
        for frame in [RDKAFKA_V0, RDKAFKA_V3, JAVA_V4] {
            assert_eq!(u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize, frame.len() - 4);
        }
    }

    #[test]
    fn version_0_is_answered_byte_for_byte() {
        let answer = ask(RDKAFKA_V0);
        let mut expected = Vec::new();
        let length = u32::try_from(4 + 2 + 4 + 6 * APIS.len()).unwrap();
        expected.extend_from_slice(&length.to_be_bytes());
        expected.extend_from_slice(&[0, 0, 0, 1]); // correlation id
        expected.extend_from_slice(&[0, 0]); // error
        expected.extend_from_slice(&u32::try_from(APIS.len()).unwrap().to_be_bytes());
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 13]); // Produce from 0
        assert_eq!(answer.frame[..expected.len()], expected[..]);
        assert_eq!(answer.frame.len(), 4 + length as usize);
        assert_eq!(answer.software, None);
    }

    #[test]
    fn version_3_has_an_old_header_a_flexible_body_and_no_features() {
        let answer = ask(RDKAFKA_V3);
        let mut expected = vec![0, 0, 0, 1, 0, 0]; // correlation id without tagged fields, error
        expected.push(u8::try_from(APIS.len() + 1).unwrap());
        expected.extend_from_slice(&[0, 0, 0, 0, 0, 13, 0]);
        assert_eq!(answer.frame[4..4 + expected.len()], expected[..]);
        assert!(answer.frame.ends_with(&[0, 0, 0, 0, 0]), "throttle time, then no tagged fields");
        let software = answer.software.unwrap();
        assert_eq!((software.name.as_str(), software.version.as_str()), ("librdkafka", "2.15.0"));
    }

    #[test]
    fn the_java_client_is_answered_in_version_4() {
        let answer = ask(JAVA_V4);
        let (correlation_id, response) = decode_response::<ApiVersionsResponse>(4, &answer.frame);
        assert_eq!((correlation_id, response.error_code), (0, 0));
        assert_eq!(response.api_keys.len(), APIS.len());
        assert_eq!(answer.software.unwrap().name, "apache-kafka-java");
        assert!(answer.accepted);
    }

    #[test]
    fn an_unknown_version_is_answered_in_version_0_with_error_35_and_the_list() {
        for version in [5_i16, 9, i16::MAX] {
            let mut frame = JAVA_V4.to_vec();
            frame[6..8].copy_from_slice(&version.to_be_bytes());
            let answer = ask(&frame);
            let (_, response) = decode_response::<ApiVersionsResponse>(0, &answer.frame);
            assert_eq!(response.error_code, 35, "version {version}");
            assert_eq!(response.api_keys.len(), APIS.len());
            assert!(!answer.accepted);
        }
    }

    #[test]
    fn a_negative_version_is_answered_too() {
        let mut frame = RDKAFKA_V0.to_vec();
        frame[6..8].copy_from_slice(&(-1_i16).to_be_bytes());
        assert_eq!(decode_response::<ApiVersionsResponse>(0, &ask(&frame).frame).1.error_code, 35);
    }

    #[test]
    fn software_names_follow_kafkas_rule() {
        for good in ["a", "librdkafka", "apache-kafka-java", "1.0.0-rc.1"] {
            assert!(is_software_name(good), "{good}");
        }
        for bad in ["", "-a", "a.", "a b", "a\x1b", "ä", &"a".repeat(SOFTWARE_BYTES_MAX + 1)] {
            assert!(!is_software_name(bad), "{bad:?}");
        }
        let mut frame = RDKAFKA_V3.to_vec();
        let name = frame.windows(10).position(|window| window == b"librdkafka").unwrap();
        frame[name] = b' ';
        let answer = ask(&frame);
        assert_eq!(decode_response::<ApiVersionsResponse>(3, &answer.frame).1.error_code, 42);
    }
}
