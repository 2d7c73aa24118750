//! Bytes on real sockets.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::*;
use crate::kafka::codec::testing::{decode_response, encode_request};
use crate::kafka::codec::{
    ApiVersionsRequest, ApiVersionsResponse, HeartbeatRequest, HeartbeatResponse, ListGroupsRequest, MetadataRequest,
    MetadataResponse, ProduceRequest, StrBytes, SyncGroupRequest, encode_response, produce_request,
};
use crate::kafka::handler::{Answer, Response, ResponseFrame};
use crate::kafka::request::{DecodedRequest, RequestBody};

/// Metadata is answered at once, Produce by silence; SyncGroup never, and keeps nothing; Heartbeat later, when its group's gate opens; ListGroups panics; DescribeGroups is
/// answered with a frame of 8 MiB; LeaveGroup not at all; DeleteGroups by closing.
struct Scripted {
    begun: mpsc::UnboundedSender<i32>,
    gates: HashMap<&'static str, Arc<Semaphore>>,
}

impl Scripted {
    fn answer(&self, request: DecodedRequest) -> Answer {
        let id = request.header.correlation_id;
        let version = request.header.api_version;
        self.begun.send(id).ok();
        match request.body {
            RequestBody::Metadata(_) => Answer::Now(metadata(id, version)),
            RequestBody::Heartbeat(heartbeat) => {
                let gate = Arc::clone(&self.gates[heartbeat.group_id.as_str()]);
                let later = async move {
                    let _open = gate.acquire().await;
                    frame(encode_response(id, version, &HeartbeatResponse::default()).unwrap())
                };
                Answer::Later(later.boxed())
            }
            RequestBody::ListGroups(_) => panic!("a scripted panic"),
            RequestBody::DescribeGroups(_) => Answer::Now(frame(Bytes::from(vec![0; 8 << 20]))),
            RequestBody::LeaveGroup(_) | RequestBody::Produce(_) => Answer::Now(Response::Silence),
            RequestBody::SyncGroup(_) => Answer::Detached(std::future::pending().boxed()),
            RequestBody::DeleteGroups(_) => Answer::Now(Response::Close("scripted")),
            other => panic!("not scripted: {other:?}"),
        }
    }
}

fn frame(bytes: Bytes) -> Response {
    Response::Frame(ResponseFrame::from(bytes))
}

fn metadata(id: i32, version: i16) -> Response {
    let mut response = MetadataResponse::default();
    response.controller_id = 1;
    frame(encode_response(id, version, &response).unwrap())
}

struct Server {
    address: SocketAddr,
    metrics: Arc<KafkaMetrics>,
    begun: mpsc::UnboundedReceiver<i32>,
    gate: Arc<Semaphore>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(config: ListenerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (begun_sender, begun) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let scripted = Scripted { begun: begun_sender, gates: HashMap::from([("gated", Arc::clone(&gate))]) };
        let scripted = Arc::new(scripted);
        let handler: Handler = Arc::new(move |request, _| {
            let scripted = Arc::clone(&scripted);
            async move { scripted.answer(request) }.boxed()
        });
        let metrics = Arc::new(KafkaMetrics::default());
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, handler, config, Arc::clone(&metrics), shutdown.clone()));
        Self { address, metrics, begun, gate, shutdown, task }
    }

    async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    fn count(&self, counter: impl Fn(&KafkaMetrics) -> &AtomicU64) -> u64 {
        counter(&self.metrics).load(Ordering::Relaxed)
    }

    /// Waits until a connection is counted as ended.
    async fn none_open(&self) {
        while self.count(|metrics| &metrics.connections_open) > 0 {
            tokio::task::yield_now().await;
        }
    }
}

struct Client(TcpStream);

impl Client {
    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    async fn receive(&mut self) -> Bytes {
        let length = self.0.read_i32().await.unwrap();
        let mut frame = length.to_be_bytes().to_vec();
        frame.resize(4 + usize::try_from(length).unwrap(), 0);
        self.0.read_exact(&mut frame[4..]).await.unwrap();
        Bytes::from(frame)
    }

    /// Whether the broker has closed the connection, with nothing more to read.
    async fn is_closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 64]).await, Ok(0) | Err(_))
    }
}

fn metadata_request(id: i32) -> Bytes {
    let mut request = MetadataRequest::default();
    request.topics = Some(Vec::new());
    encode_request(id, 12, "tests", &request)
}

fn heartbeat_request(id: i32) -> Bytes {
    let mut request = HeartbeatRequest::default();
    request.group_id = "gated".into();
    encode_request(id, 4, "tests", &request)
}

fn api_versions_request(version: i16) -> Bytes {
    let mut request = ApiVersionsRequest::default();
    if version >= 3 {
        request.client_software_name = "tests".into();
        request.client_software_version = "1".into();
    }
    encode_request(0, version, "tests", &request)
}

#[tokio::test]
async fn a_client_learns_the_versions_and_asks_byte_by_byte() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    for version in 0..=4 {
        client.send(&api_versions_request(version)).await;
        let (_, response) = decode_response::<ApiVersionsResponse>(version, &client.receive().await);
        assert_eq!(response.error_code, 0, "version {version}");
    }
    for byte in metadata_request(3) {
        client.send(&[byte]).await;
    }
    let (id, response) = decode_response::<MetadataResponse>(12, &client.receive().await);
    assert_eq!((id, response.controller_id), (3, 1));
    let requests: HashMap<_, _> = server.metrics.requests().collect();
    assert_eq!((requests["ApiVersions"], requests["Metadata"], requests["Fetch"]), (5, 1, 0));
}

#[tokio::test]
async fn requests_begin_at_once_and_are_answered_in_order() {
    let mut server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    let mut pipeline = heartbeat_request(1).to_vec();
    pipeline.extend(metadata_request(2));
    pipeline.extend(heartbeat_request(3));
    pipeline.extend(metadata_request(4));
    client.send(&pipeline).await;
    for id in 1..=4 {
        assert_eq!(server.begun.recv().await, Some(id), "begun although 1 is not answered");
    }
    server.gate.add_permits(1);
    assert_eq!(decode_response::<HeartbeatResponse>(4, &client.receive().await).0, 1);
    assert_eq!(decode_response::<MetadataResponse>(12, &client.receive().await).0, 2);
    assert_eq!(decode_response::<HeartbeatResponse>(4, &client.receive().await).0, 3);
    assert_eq!(decode_response::<MetadataResponse>(12, &client.receive().await).0, 4);
}

#[tokio::test]
async fn reading_stops_at_the_limit_of_requests_in_flight() {
    let mut config = ListenerConfig::default();
    config.connection.in_flight_max = 3;
    let mut server = Server::start(config).await;
    let mut client = server.connect().await;
    for id in 0..10 {
        client.send(&heartbeat_request(id)).await;
    }
    for id in 0..3 {
        assert_eq!(server.begun.recv().await, Some(id));
    }
    // Another connection's round trip shows that the first had its chance to go on.
    let mut other = server.connect().await;
    other.send(&metadata_request(100)).await;
    other.receive().await;
    assert_eq!(server.begun.recv().await, Some(100), "the fourth was not begun");
    server.gate.add_permits(1);
    for id in 0..10 {
        assert_eq!(decode_response::<HeartbeatResponse>(4, &client.receive().await).0, id);
    }
}

#[tokio::test]
async fn an_unknown_request_or_version_closes_the_connection_and_is_counted() {
    let server = Server::start(ListenerConfig::default()).await;
    for (key, version) in [(71_i16, 0_i16), (-1, 0), (3, 14), (3, -1), (0, 14), (0, -1), (1, 3), (i16::MAX, i16::MAX)] {
        let mut client = server.connect().await;
        let mut bytes = metadata_request(1).to_vec();
        bytes[4..6].copy_from_slice(&key.to_be_bytes());
        bytes[6..8].copy_from_slice(&version.to_be_bytes());
        client.send(&bytes).await;
        assert!(client.is_closed().await, "{key} {version}");
    }
    server.none_open().await;
    assert_eq!(server.count(|metrics| &metrics.unknown_requests_total), 8);
}

#[tokio::test]
async fn api_versions_of_an_unknown_version_is_answered_and_the_connection_goes_on() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    let mut bytes = api_versions_request(4).to_vec();
    bytes[7] = 99;
    client.send(&bytes).await;
    assert_eq!(decode_response::<ApiVersionsResponse>(0, &client.receive().await).1.error_code, 35);
    client.send(&api_versions_request(0)).await;
    assert_eq!(decode_response::<ApiVersionsResponse>(0, &client.receive().await).1.error_code, 0);
}

#[tokio::test]
async fn produce_below_version_3_is_answered_with_unsupported_version() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    client
        .send(b"\0\0\0\x26\0\0\0\x02\0\0\0\x05\0\x01c\0\x01\0\0\0\x64\0\0\0\x01\0\x01t\0\0\0\x01\0\0\0\x07\0\0\0\x02ab")
        .await;
    let frame = client.receive().await;
    assert_eq!(frame[4 + 4 + 4 + 3 + 4 + 4..][..2], [0, 35]);
}

#[tokio::test]
async fn a_panic_closes_that_connection_and_no_other() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut bystander = server.connect().await;
    bystander.send(&metadata_request(1)).await;
    bystander.receive().await;
    let mut client = server.connect().await;
    client.send(&encode_request(1, 0, "tests", &ListGroupsRequest::default())).await;
    assert!(client.is_closed().await);
    bystander.send(&metadata_request(2)).await;
    assert_eq!(decode_response::<MetadataResponse>(12, &bystander.receive().await).0, 2);
    assert_eq!(server.count(|metrics| &metrics.handler_panics_total), 1);
}

#[tokio::test]
async fn silence_sends_nothing_and_close_closes() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    client.send(&encode_request(1, 0, "tests", &crate::kafka::codec::LeaveGroupRequest::default())).await;
    client.send(&metadata_request(2)).await;
    assert_eq!(decode_response::<MetadataResponse>(12, &client.receive().await).0, 2);
    client.send(&encode_request(3, 0, "tests", &crate::kafka::codec::DeleteGroupsRequest::default())).await;
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn what_is_answered_before_a_close_is_sent() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    let mut pipeline = heartbeat_request(1).to_vec();
    pipeline.extend(metadata_request(2));
    pipeline.extend(encode_request(3, 0, "tests", &crate::kafka::codec::DeleteGroupsRequest::default()));
    pipeline.extend(metadata_request(4));
    client.send(&pipeline).await;
    server.gate.add_permits(1);
    assert_eq!(decode_response::<HeartbeatResponse>(4, &client.receive().await).0, 1);
    assert_eq!(decode_response::<MetadataResponse>(12, &client.receive().await).0, 2);
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn other_protocols_and_malformed_requests_close_the_connection() {
    let server = Server::start(ListenerConfig::default()).await;
    let hostile: [&[u8]; 7] = [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/topics HTTP/1.1\r\n\r\n",
        &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc],
        &[0, 0, 0, 0],
        &[0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 8, 0, 3, 0, 0, 0, 0, 0, 1],
        &[0, 0, 0, 14, 0, 3, 0, 0, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff],
    ];
    for bytes in hostile {
        let mut client = server.connect().await;
        client.send(bytes).await;
        assert!(client.is_closed().await, "{bytes:?}");
    }
    server.none_open().await;
    assert_eq!(server.count(|metrics| &metrics.malformed_requests_total), 7);
}

#[tokio::test]
async fn a_thousand_sockets_that_announce_two_gibibytes_are_closed_at_once() {
    let server = Server::start(ListenerConfig::default()).await;
    for _ in 0..10 {
        let mut clients = Vec::new();
        for _ in 0..100 {
            let mut client = server.connect().await;
            client.send(&i32::MAX.to_be_bytes()).await;
            clients.push(client);
        }
        for client in &mut clients {
            assert!(client.is_closed().await);
        }
    }
    server.none_open().await;
    assert_eq!(server.count(|metrics| &metrics.malformed_requests_total), 1_000);
    assert_eq!(server.count(|metrics| &metrics.received_bytes_total), 4_000);
}

#[tokio::test]
async fn a_client_over_the_limit_waits_until_another_leaves() {
    let config = ListenerConfig { connections_max: 1, ..ListenerConfig::default() };
    let server = Server::start(config).await;
    let mut first = server.connect().await;
    first.send(&metadata_request(1)).await;
    first.receive().await;
    let mut second = server.connect().await;
    second.send(&metadata_request(2)).await;
    first.send(&metadata_request(3)).await;
    first.receive().await;
    assert_eq!(server.count(|metrics| &metrics.connections_total), 1);
    drop(first);
    assert_eq!(decode_response::<MetadataResponse>(12, &second.receive().await).0, 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_first_request_is_closed_in_time() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut silent = server.connect().await;
    let begun = tokio::time::Instant::now();
    assert!(silent.is_closed().await);
    assert!(begun.elapsed() >= Duration::from_secs(30) && begun.elapsed() < Duration::from_secs(31));
    assert_eq!(server.count(|metrics| &metrics.timeouts_total), 1);
}

/// In real time: a stopped clock jumps with each byte that arrives.
#[tokio::test]
async fn one_byte_now_and_then_does_not_keep_a_frame_alive() {
    let mut config = ListenerConfig::default();
    config.connection.frame_timeout = Duration::from_millis(100);
    let server = Server::start(config).await;
    let mut client = server.connect().await;
    client.send(&metadata_request(1)).await;
    client.receive().await;
    client.send(&[0, 0, 0xf0, 0, 0, 3]).await;
    let trickle = async {
        while client.0.write_all(&[0]).await.is_ok() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), trickle).await.expect("closed long before the frame is complete");
    server.none_open().await;
    assert_eq!(server.count(|metrics| &metrics.timeouts_total), 1);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_after_ten_minutes() {
    let mut config = ListenerConfig::default();
    // The clock is paused and jumps when nothing runs, even while bytes are on their way.
    config.connection.first_request_timeout = Duration::from_secs(1_000_000);
    config.connection.idle_timeout = Duration::from_secs(600_000);
    let server = Server::start(config).await;
    let mut client = server.connect().await;
    client.send(&metadata_request(1)).await;
    client.receive().await;
    assert!(client.is_closed().await);
    assert_eq!(server.count(|metrics| &metrics.idle_closed_total), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_never_reads_is_closed_in_time() {
    let server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    let mut request = crate::kafka::codec::DescribeGroupsRequest::default();
    request.groups = vec!["g".into()];
    client.send(&encode_request(1, 0, "tests", &request)).await;
    server.none_open_after_one(&client).await;
    assert_eq!(server.count(|metrics| &metrics.timeouts_total), 1);
}

impl Server {
    /// Waits until the one connection has come and gone, without reading from it.
    async fn none_open_after_one(&self, _client: &Client) {
        while self.count(|metrics| &metrics.connections_total) == 0
            || self.count(|metrics| &metrics.connections_open) > 0
        {
            sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
async fn a_stop_answers_what_was_begun_and_takes_nothing_new() {
    let mut server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    client.send(&heartbeat_request(1)).await;
    assert_eq!(server.begun.recv().await, Some(1));
    server.shutdown.cancel();
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    server.gate.add_permits(1);
    assert_eq!(decode_response::<HeartbeatResponse>(4, &client.receive().await).0, 1);
    assert!(client.is_closed().await);
    server.task.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_for_ever() {
    let mut server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    client.send(&heartbeat_request(1)).await;
    assert_eq!(server.begun.recv().await, Some(1));
    server.shutdown.cancel();
    server.task.await.unwrap();
    assert!(client.is_closed().await);
}

fn metadata_request_of(id: i32, topics: usize) -> Bytes {
    let mut request = MetadataRequest::default();
    request.topics = Some(vec![Default::default(); topics]);
    encode_request(id, 9, "tests", &request)
}

/// A request of 120 KB: longer than what needs no budget, and than a first frame may be.
fn large_metadata_request(id: i32) -> Bytes {
    let frame = metadata_request_of(id, 60_000);
    assert!(frame.len() > 64 * 1024);
    frame
}

#[tokio::test]
async fn requests_that_could_not_be_answered_yet_are_not_taken_apart_but_for_a_few() {
    let mut server = Server::start(ListenerConfig::default()).await;
    let mut client = server.connect().await;
    let mut pipeline = heartbeat_request(1).to_vec();
    pipeline.extend(metadata_request_of(2, 1_000));
    // Each of 40 KB, which would take 1.4 MB.
    (3..6).for_each(|id| pipeline.extend(metadata_request_of(id, 20_000)));
    client.send(&pipeline).await;
    assert_eq!((server.begun.recv().await, server.begun.recv().await), (Some(1), Some(2)));
    holds_up_nobody_else(&server).await;
    assert_eq!(server.begun.recv().await, Some(100), "3 waits until 1 and 2 are answered");
    server.gate.add_permits(1);
    assert_eq!(decode_response::<HeartbeatResponse>(4, &client.receive().await).0, 1);
    for id in 2..6 {
        assert_eq!(decode_response::<MetadataResponse>(9, &client.receive().await).0, id);
    }
}

#[tokio::test]
async fn what_requests_are_decoded_to_has_a_limit_over_all_connections() {
    let mut server = Server::start(one_large_frame_at_a_time()).await;
    let [mut detached, mut holds, mut waits] = [server.connect().await, server.connect().await, server.connect().await];
    let long = StrBytes::from("x".repeat(8_000));
    let mut sync = SyncGroupRequest::default();
    sync.member_id = long.clone();
    detached.send(&encode_request(1, 3, "tests", &sync)).await;
    assert_eq!(server.begun.recv().await, Some(1), "it waits, and has given back what it took");
    let mut heartbeat = HeartbeatRequest::default();
    (heartbeat.group_id, heartbeat.member_id) = ("gated".into(), long);
    holds.send(&encode_request(2, 4, "tests", &heartbeat)).await;
    assert_eq!(server.begun.recv().await, Some(2));
    waits.send(&metadata_request_of(3, 4_000)).await;
    holds_up_nobody_else(&server).await;
    assert_eq!(server.begun.recv().await, Some(100), "3 waits");
    server.gate.add_permits(1);
    assert_eq!(decode_response::<MetadataResponse>(9, &waits.receive().await).0, 3);
}

fn one_large_frame_at_a_time() -> ListenerConfig {
    let mut config = ListenerConfig { frame_bytes_total_max: 1, ..ListenerConfig::default() };
    config.connection.frames.produce_bytes_max = 1 << 20;
    config.connection.frames.other_bytes_max = 1 << 20;
    config
}

#[tokio::test]
async fn frames_larger_than_the_common_budget_pass_one_after_the_other() {
    let server = Server::start(one_large_frame_at_a_time()).await;
    let mut clients = Vec::new();
    for id in 0..8 {
        let mut client = server.connect().await;
        client.send(&metadata_request(id)).await;
        client.receive().await;
        clients.push(client);
    }
    let large = large_metadata_request(9);
    let sends = clients.iter_mut().map(|client| async {
        client.send(&large).await;
        decode_response::<MetadataResponse>(9, &client.receive().await).0
    });
    assert_eq!(futures_util::future::join_all(sends).await, [9; 8]);
}

#[tokio::test]
async fn a_large_frame_waits_while_others_hold_the_memory_and_small_ones_pass() {
    let mut server = Server::start(one_large_frame_at_a_time()).await;
    let mut waits = server.connect().await;
    waits.send(&metadata_request(1)).await;
    waits.receive().await;
    let mut holds = server.connect().await;
    let held = server.count(|metrics| &metrics.received_bytes_total) + 8;
    holds.send(&[0, 0x10, 0, 0, 0, 0, 0, 9]).await; // a Produce of 1 MiB, as far as it goes
    while server.count(|metrics| &metrics.received_bytes_total) < held {
        tokio::task::yield_now().await;
    }
    waits.send(&large_metadata_request(2)).await;
    holds_up_nobody_else(&server).await;
    assert_eq!((server.begun.recv().await, server.begun.recv().await), (Some(1), Some(100)), "2 waits");
    drop(holds);
    assert_eq!(decode_response::<MetadataResponse>(9, &waits.receive().await).0, 2);
}

async fn holds_up_nobody_else(server: &Server) {
    let mut other = server.connect().await;
    other.send(&metadata_request(100)).await;
    other.receive().await;
}

#[tokio::test]
async fn what_is_answered_behind_one_that_waits_holds_no_memory_that_others_need() {
    let mut server = Server::start(one_large_frame_at_a_time()).await;
    let mut client = server.connect().await;
    client.send(&heartbeat_request(1)).await;
    let mut topic = produce_request::TopicProduceData::default();
    topic.name = "abcdef".into();
    let mut produce = ProduceRequest::default();
    produce.topic_data = vec![topic; 80_000];
    for id in 2..5 {
        let frame = encode_request(id, 9, "tests", &produce);
        assert!((1 << 19..1 << 20).contains(&frame.len()), "two of them have no room");
        client.send(&frame).await;
    }
    for id in 1..5 {
        assert_eq!(server.begun.recv().await, Some(id));
    }
}
