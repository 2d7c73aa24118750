//! A thin Kafka client: blocking, one connection, requests in order.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_wire::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_wire::{CreateTopicsRequest, KafkaRequest, KafkaResponse, OutboundFrameLimits};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, StrBytes};
use tripline_storage::batch::Batches;

use crate::Failure;

/// No answer takes longer; one that does is a failed measurement.
const PATIENCE: Duration = Duration::from_secs(60);
const CREATE_TOPICS: i16 = 4;
/// Kafka's TOPIC_ALREADY_EXISTS.
const EXISTS: i16 = 36;
/// The largest answer that is taken.
const FRAME_BYTES_MAX: usize = 128 << 20;

pub(crate) struct Client {
    socket: TcpStream,
    next_id: i32,
    /// The answer before: its memory serves again when nobody holds a part of it.
    last: Bytes,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self, Failure> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, next_id: 1, last: Bytes::new() })
    }

    /// A second handle to the same connection, to receive on.
    pub(crate) fn receiver(&self) -> Result<Self, Failure> {
        Ok(Self { socket: self.socket.try_clone()?, next_id: 0, last: Bytes::new() })
    }

    /// A whole frame for `request`, which may be sent any number of times.
    pub(crate) fn frame<R: KafkaRequest>(version: i16, request: &R) -> Result<Bytes, Failure> {
        let mut frame = BytesMut::new();
        let limits = OutboundFrameLimits::new(FRAME_BYTES_MAX);
        kafka_wire::encode_request(
            &mut frame,
            1,
            Some(StrBytes::from("bench")),
            request,
            ApiVersion::new(version),
            limits,
        )?;
        Ok(frame.freeze())
    }

    pub(crate) fn send_frame(&mut self, frame: &[u8]) -> Result<(), Failure> {
        Ok(self.socket.write_all(frame)?)
    }

    pub(crate) fn call<R>(&mut self, version: i16, request: &R) -> Result<R::Response, Failure>
    where
        R: kafka_wire::RequestResponsePair,
    {
        self.next_id += 1;
        let frame = Self::frame(version, request)?;
        self.send_frame(&frame)?;
        self.receive(version)
    }

    /// Makes a topic with settings, if it is not there.
    pub(crate) fn create_topic(
        &mut self,
        topic: &str,
        partitions: u32,
        settings: &[(&str, &str)],
    ) -> Result<(), Failure> {
        let text = |text: &str| StrBytes::from(text.to_owned());
        let setting = |(key, value): &(&str, &str)| {
            let mut config = CreatableTopicConfig::default();
            (config.name, config.value) = (text(key), Some(text(value)));
            config
        };
        let mut wanted = CreatableTopic::default();
        wanted.name = text(topic);
        wanted.num_partitions = i32::try_from(partitions)?;
        wanted.replication_factor = 1;
        wanted.configs = settings.iter().map(setting).collect();
        let mut request = CreateTopicsRequest::default();
        request.topics = vec![wanted];
        request.timeout_ms = 30_000;
        let answer = self.call(CREATE_TOPICS, &request)?;
        match answer.topics.first().map(|topic| topic.error_code) {
            Some(0 | EXISTS) => Ok(()),
            other => Err(format!("topic {topic} was not made: error {other:?}").into()),
        }
    }

    pub(crate) fn receive<R: KafkaResponse>(&mut self, version: i16) -> Result<R, Failure> {
        let mut decoder = Decoder::new(self.receive_frame()?, DecodeLimits::default())?;
        decoder.read_i32()?;
        let version = ApiVersion::new(version);
        if kafka_wire::response_header_version(R::API_KEY, version, R::is_flexible(version)) == 1 {
            decoder.read_tagged_fields()?;
        }
        Ok(R::decode(&mut decoder, version)?)
    }

    fn receive_frame(&mut self) -> Result<Bytes, Failure> {
        let mut length = [0; 4];
        self.socket.read_exact(&mut length)?;
        let length = usize::try_from(i32::from_be_bytes(length))?;
        if length > FRAME_BYTES_MAX {
            return Err(format!("an answer of {length} bytes, allowed: {FRAME_BYTES_MAX}").into());
        }
        let last = std::mem::take(&mut self.last);
        let mut frame = if last.is_unique() { Vec::from(last) } else { Vec::new() };
        // Zeroed where it grows alone, and read in as few calls as there can be: what a client does with its memory is
        // not the broker's cost.
        frame.resize(length, 0);
        self.socket.read_exact(&mut frame)?;
        self.last = frame.into();
        Ok(self.last.clone())
    }
}

/// Where to read on behind the whole batches that a fetch brought; `None` when there are none.
pub(crate) fn next_offset(bytes: &[u8]) -> Result<Option<i64>, Failure> {
    Batches::of(bytes).try_fold(None, |_, view| Ok(Some(view?.header().next_offset().get())))
}
