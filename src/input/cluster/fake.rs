//! A cluster of one broker and one group, for tests. Its topics have one partition each, of which the group knows
//! nothing; what is to be committed is told to whoever has the test, who answers it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kafka_wire_core::{ApiVersion, Decoder, KafkaDecode, KafkaEncode};
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::access::{ClusterAccess, Security};
use super::client::{LATEST, code};
use super::place::ClusterPartition;
use super::secured::request;
use super::wire::schema::{
    ApiVersionsRequest, FindCoordinatorRequest, HeartbeatRequest, api_versions_response, join_group_response,
    list_offsets_response, metadata_response, offset_commit_response, offset_fetch_response,
};
use super::wire::schema::{
    ApiVersionsResponse, FindCoordinatorResponse, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, KafkaRequest,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse, RequestResponsePair, SyncGroupRequest,
    SyncGroupResponse,
};
use super::wire::{StrBytes, limits, message};

/// The one version that is spoken of each request; none has tagged fields.
const SPOKEN: [(i16, i16); 9] = [
    (ApiVersionsRequest::API_KEY.value(), 0),
    (FindCoordinatorRequest::API_KEY.value(), 0),
    (HeartbeatRequest::API_KEY.value(), 0),
    (JoinGroupRequest::API_KEY.value(), 2),
    (ListOffsetsRequest::API_KEY.value(), 4),
    (MetadataRequest::API_KEY.value(), 4),
    (OffsetCommitRequest::API_KEY.value(), 2),
    (OffsetFetchRequest::API_KEY.value(), 1),
    (SyncGroupRequest::API_KEY.value(), 1),
];

/// A commit that waits for its answer.
#[derive(Debug)]
pub(crate) struct AskedCommit {
    pub(crate) member_id: String,
    pub(crate) generation: i32,
    pub(crate) offsets: Vec<(ClusterPartition, i64)>,
    /// Kafka's error code for each of them; dropped, the connection is closed.
    pub(crate) answer: oneshot::Sender<i16>,
}

/// The cluster as the test has it. It ends with the runtime.
pub(crate) struct FakeCluster {
    pub(crate) address: String,
    pub(crate) commits: mpsc::UnboundedReceiver<AskedCommit>,
    tails: Arc<Mutex<BTreeMap<String, i64>>>,
    lets_in: watch::Sender<bool>,
}

#[derive(Clone)]
struct Broker {
    port: u16,
    tails: Arc<Mutex<BTreeMap<String, i64>>>,
    lets_in: watch::Receiver<bool>,
    commits: mpsc::UnboundedSender<AskedCommit>,
}

impl FakeCluster {
    /// With these topics and their tails.
    pub(crate) async fn start(tails: &[(&str, i64)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (commits, asked) = mpsc::unbounded_channel();
        let tails = tails.iter().map(|(name, tail)| ((*name).to_owned(), *tail)).collect();
        let tails = Arc::new(Mutex::new(tails));
        let (lets_in, is_let_in) = watch::channel(false);
        let broker = Broker { port: address.port(), tails: Arc::clone(&tails), lets_in: is_let_in, commits };
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(broker.clone().serve(socket));
            }
        });
        Self { address: address.to_string(), commits: asked, tails, lets_in }
    }

    /// Records come.
    pub(crate) fn grow(&self, topic: &str, tail: i64) {
        self.tails.lock().insert(topic.to_owned(), tail);
    }

    /// Whoever joins the group is its only member from now on; before, he waits.
    pub(crate) fn let_in(&self) {
        self.lets_in.send_replace(true);
    }

    /// How to get there.
    pub(crate) fn access(&self) -> ClusterAccess {
        ClusterAccess { bootstrap_servers: vec![self.address.clone()], security: Security::default() }
    }
}

impl Broker {
    async fn serve(self, mut socket: TcpStream) {
        while let Some((key, id, body)) = request(&mut socket).await {
            let version = SPOKEN.iter().find(|(spoken, _)| *spoken == key).expect("it is told what is spoken").1;
            let Some(answer) = self.answer(key, ApiVersion::new(version), body).await else { return };
            let length = i32::try_from(4 + answer.len()).unwrap();
            let frame = [&length.to_be_bytes()[..], &id.to_be_bytes(), &answer].concat();
            if socket.write_all(&frame).await.is_err() {
                return;
            }
        }
    }

    /// `None`: the connection is closed.
    async fn answer(&self, key: i16, version: ApiVersion, body: Bytes) -> Option<Bytes> {
        let is = |of: i16| key == of;
        Some(match () {
            () if is(ApiVersionsRequest::API_KEY.value()) => {
                let spoken = SPOKEN.map(|(api_key, version)| {
                    message!(api_versions_response::ApiVersion {
                        api_key: api_key,
                        min_version: version,
                        max_version: version,
                    })
                });
                encoded::<ApiVersionsRequest>(&message!(ApiVersionsResponse { api_keys: spoken.to_vec() }), version)
            }
            () if is(FindCoordinatorRequest::API_KEY.value()) => {
                let (host, port) = (StrBytes::from("127.0.0.1"), i32::from(self.port));
                encoded::<FindCoordinatorRequest>(
                    &message!(FindCoordinatorResponse { host: host, port: port }),
                    version,
                )
            }
            () if is(HeartbeatRequest::API_KEY.value()) => {
                encoded::<HeartbeatRequest>(&HeartbeatResponse::default(), version)
            }
            () if is(JoinGroupRequest::API_KEY.value()) => {
                self.lets_in.clone().wait_for(|is_let_in| *is_let_in).await.ok()?;
                encoded::<JoinGroupRequest>(&alone(&decoded(body, version)), version)
            }
            () if is(SyncGroupRequest::API_KEY.value()) => {
                let asked: SyncGroupRequest = decoded(body, version);
                let assignment = asked.assignments.first().map(|given| given.assignment.clone()).unwrap_or_default();
                encoded::<SyncGroupRequest>(&message!(SyncGroupResponse { assignment: assignment }), version)
            }
            () if is(MetadataRequest::API_KEY.value()) => {
                encoded::<MetadataRequest>(&self.metadata(&decoded(body, version)), version)
            }
            () if is(ListOffsetsRequest::API_KEY.value()) => {
                encoded::<ListOffsetsRequest>(&self.offsets(&decoded(body, version)), version)
            }
            () if is(OffsetFetchRequest::API_KEY.value()) => {
                encoded::<OffsetFetchRequest>(&nothing_committed(&decoded(body, version)), version)
            }
            () => {
                let asked: OffsetCommitRequest = decoded(body, version);
                let code = self.ask(&asked).await?;
                encoded::<OffsetCommitRequest>(&committed(&asked, code), version)
            }
        })
    }

    fn metadata(&self, asked: &MetadataRequest) -> MetadataResponse {
        let tails = self.tails.lock();
        let names = asked.topics.iter().flatten().filter_map(|topic| topic.name.clone());
        let describe = |name: StrBytes| {
            let is_there = tails.contains_key(&*name);
            let partition = message!(metadata_response::MetadataResponsePartition { leader_id: 0, partition_index: 0 });
            message!(metadata_response::MetadataResponseTopic {
                error_code: if is_there { code::NONE } else { code::UNKNOWN_TOPIC_OR_PARTITION },
                name: Some(name),
                partitions: vec![partition],
            })
        };
        let broker = message!(metadata_response::MetadataResponseBroker {
            node_id: 0,
            host: StrBytes::from("127.0.0.1"),
            port: i32::from(self.port),
        });
        message!(MetadataResponse { brokers: vec![broker], topics: names.map(describe).collect() })
    }

    fn offsets(&self, asked: &ListOffsetsRequest) -> ListOffsetsResponse {
        let tails = self.tails.lock();
        let topics = asked.topics.iter().map(|topic| {
            let found = |asked: &super::wire::schema::list_offsets_request::ListOffsetsPartition| {
                let offset = if asked.timestamp == LATEST { tails[&*topic.name] } else { 0 };
                message!(list_offsets_response::ListOffsetsPartitionResponse {
                    partition_index: asked.partition_index,
                    offset: offset,
                })
            };
            message!(list_offsets_response::ListOffsetsTopicResponse {
                name: topic.name.clone(),
                partitions: topic.partitions.iter().map(found).collect(),
            })
        });
        message!(ListOffsetsResponse { topics: topics.collect() })
    }

    async fn ask(&self, asked: &OffsetCommitRequest) -> Option<i16> {
        let offsets = asked.topics.iter().flat_map(|topic| {
            let offset = |at: &super::wire::schema::offset_commit_request::OffsetCommitRequestPartition| {
                let number = u32::try_from(at.partition_index).unwrap();
                (ClusterPartition::new(&topic.name, number), at.committed_offset)
            };
            topic.partitions.iter().map(offset).collect::<Vec<_>>()
        });
        let (answer, answered) = oneshot::channel();
        let commit = AskedCommit {
            member_id: asked.member_id.to_string(),
            generation: asked.generation_id_or_member_epoch,
            offsets: offsets.collect(),
            answer,
        };
        self.commits.send(commit).ok()?;
        answered.await.ok()
    }
}

fn decoded<R: KafkaDecode>(body: Bytes, version: ApiVersion) -> R {
    R::decode(&mut Decoder::new(body, limits()).unwrap(), version).unwrap()
}

fn encoded<R: RequestResponsePair>(answer: &R::Response, version: ApiVersion) -> Bytes {
    let mut bytes = BytesMut::new();
    answer.encode_into(&mut bytes, version).unwrap();
    bytes.freeze()
}

/// The answer to a member who is alone, and leads.
fn alone(asked: &JoinGroupRequest) -> JoinGroupResponse {
    let member_id = StrBytes::from("m");
    let said = &asked.protocols[0];
    let member = message!(join_group_response::JoinGroupResponseMember {
        member_id: member_id.clone(),
        metadata: said.metadata.clone(),
    });
    message!(JoinGroupResponse {
        generation_id: 1,
        protocol_name: Some(said.name.clone()),
        leader: member_id.clone(),
        member_id: member_id,
        members: vec![member],
    })
}

fn nothing_committed(asked: &OffsetFetchRequest) -> OffsetFetchResponse {
    let topics = asked.topics.iter().flatten().map(|topic| {
        let partition = |index: &i32| {
            message!(offset_fetch_response::OffsetFetchResponsePartition {
                partition_index: *index,
                committed_offset: -1,
            })
        };
        message!(offset_fetch_response::OffsetFetchResponseTopic {
            name: topic.name.clone(),
            partitions: topic.partition_indexes.iter().map(partition).collect(),
        })
    });
    message!(OffsetFetchResponse { topics: topics.collect() })
}

fn committed(asked: &OffsetCommitRequest, code: i16) -> OffsetCommitResponse {
    let topics = asked.topics.iter().map(|topic| {
        let partition = |at: &super::wire::schema::offset_commit_request::OffsetCommitRequestPartition| {
            message!(offset_commit_response::OffsetCommitResponsePartition {
                partition_index: at.partition_index,
                error_code: code,
            })
        };
        message!(offset_commit_response::OffsetCommitResponseTopic {
            name: topic.name.clone(),
            partitions: topic.partitions.iter().map(partition).collect(),
        })
    });
    message!(OffsetCommitResponse { topics: topics.collect() })
}
