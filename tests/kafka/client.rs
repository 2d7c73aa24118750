//! A small raw client: one request at a time, or several at once.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_wire::{KafkaRequest, KafkaResponse, OutboundFrameLimits, RequestResponsePair};
use kafka_wire_core::{ApiVersion, DecodeLimits, Decoder, StrBytes};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Nothing here takes longer on any machine.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    socket: TcpStream,
    next_id: i32,
    /// Sent and not answered.
    expected: std::collections::VecDeque<i32>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { socket: TcpStream::connect(address).await.unwrap(), next_id: 1, expected: Default::default() }
    }

    pub(crate) async fn call<R: RequestResponsePair>(&mut self, version: i16, request: &R) -> R::Response {
        self.send(version, request).await;
        self.receive(version).await
    }

    pub(crate) async fn send<R: KafkaRequest>(&mut self, version: i16, request: &R) {
        self.send_silent(version, request).await;
        self.expected.push_back(self.next_id - 1);
    }

    /// Sends a request that gets no response.
    pub(crate) async fn send_silent<R: KafkaRequest>(&mut self, version: i16, request: &R) {
        let mut frame = BytesMut::new();
        let limits = OutboundFrameLimits::new(1 << 30);
        let client_id = Some(StrBytes::from("raw"));
        kafka_wire::encode_request(&mut frame, self.next_id, client_id, request, ApiVersion::new(version), limits)
            .unwrap_or_else(|error| panic!("{} version {version}: {error}", R::NAME));
        self.next_id += 1;
        timeout(PATIENCE, self.socket.write_all(&frame)).await.unwrap().unwrap();
    }

    pub(crate) async fn receive<R: KafkaResponse>(&mut self, version: i16) -> R {
        let frame = self.receive_frame().await.expect("the connection is open");
        let mut decoder = Decoder::new(frame, DecodeLimits::default()).unwrap();
        assert_eq!(decoder.read_i32().unwrap(), self.expected.pop_front().unwrap(), "correlation id");
        let version = ApiVersion::new(version);
        if kafka_wire::response_header_version(R::API_KEY, version, R::is_flexible(version)) == 1 {
            decoder.read_tagged_fields().unwrap();
        }
        let response = R::decode(&mut decoder, version).unwrap();
        decoder.finish().unwrap();
        response
    }

    async fn receive_frame(&mut self) -> Option<Bytes> {
        let length = timeout(PATIENCE, self.socket.read_i32()).await.expect("an answer").ok()?;
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        timeout(PATIENCE, self.socket.read_exact(&mut frame)).await.expect("a whole answer").unwrap();
        Some(Bytes::from(frame))
    }

    /// The broker closes the connection without another answer.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.receive_frame().await.is_none()
    }

    /// No answer comes within a moment. Only what follows proves that none ever does.
    pub(crate) async fn is_silent(&mut self) -> bool {
        let mut byte = [0; 1];
        timeout(Duration::from_millis(100), self.socket.peek(&mut byte)).await.is_err()
    }
}

/// A message by its fields; those not named have their defaults.
macro_rules! message {
    ($type:path { $($field:ident: $value:expr),* $(,)? }) => {{
        #[allow(unused_mut, reason = "a message without fields")]
        let mut message = <$type>::default();
        $(message.$field = $value;)*
        message
    }};
}
pub(crate) use message;
