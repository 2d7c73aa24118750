//! Bytes from a stranger: frames, headers, and each request in each version. Nothing may panic, hang, or take much
//! memory.

use bytes::{BufMut, Bytes};
use tripline::kafka::api::{api_versions, produce_too_old};
use tripline::kafka::codec::decode_header;
use tripline::kafka::frame::{FrameDecoder, FrameLimits, READ_BYTES};
use tripline::kafka::request::RequestBody;
use tripline::kafka::version::Api;

/// Does one input.
pub(crate) fn run(data: &[u8]) {
    request(Bytes::copy_from_slice(data));
    let mut decoder = FrameDecoder::new(FrameLimits::default());
    let mut rest = data;
    while !rest.is_empty() {
        let Ok(spare) = decoder.spare() else { return };
        let room = (spare.capacity() - spare.len()).min(rest.len());
        spare.put_slice(&rest[..room]);
        rest = &rest[room..];
        assert!(decoder.capacity() <= (4 * data.len()).max(READ_BYTES));
        while let Ok(Some(frame)) = decoder.next_frame() {
            decoder.accept();
            request(frame);
        }
    }
}

fn request(frame: Bytes) {
    let Ok((header, body)) = decode_header(frame) else { return };
    match Api::from_key(header.api_key) {
        Some(Api::ApiVersions) => drop(api_versions::answer(&header, body)),
        Some(Api::Produce) if (0..=2).contains(&header.api_version) => drop(produce_too_old::refuse(&header, body)),
        Some(api) if api.serves(header.api_version) => drop(RequestBody::decode(api, header.api_version, body)),
        _ => {}
    }
}
