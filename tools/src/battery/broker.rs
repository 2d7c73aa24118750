//! The real broker, its load, and what it serves afterwards.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kafka_wire::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_wire::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_wire::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::{FetchRequest, ListOffsetsRequest, OffsetCommitRequest, OffsetFetchRequest, ProduceRequest};
use kafka_wire_core::StrBytes;
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

use crate::client::{Client, next_offset};
use crate::ledger::{Ack, Found, Ledger, Level, Stamp, now};
use crate::store::{keyed_records, stamps};
use crate::{Failure, keyed, machine};

const PRODUCE: i16 = 8;
const FETCH: i16 = 11;
const LIST_OFFSETS: i16 = 5;
const OFFSET_COMMIT: i16 = 7;
const OFFSET_FETCH: i16 = 5;
/// Kafka's UNKNOWN_TOPIC_OR_PARTITION.
const UNKNOWN: i16 = 3;
const FETCH_BYTES: i32 = 4 << 20;

/// The broker's.
pub(crate) const FLUSH_INTERVAL: Duration = Duration::from_millis(100);

const ENDED: &str = "the broker ended before it was ready";

/// The topics of a load: to the first a producer writes with acks=all, to the second with acks=1.
pub(crate) const TOPICS: [(&str, i16); 2] = [("all", -1), ("one", 1)];

/// A broker in a process of its own, killed when it is dropped.
pub(crate) struct Broker {
    child: Child,
    pub(crate) kafka: SocketAddr,
    /// What the command line calls the server.
    pub(crate) http: String,
}

impl Broker {
    /// Starts it on `data`, under the program and arguments of `wrapper` when there are any, and waits until it is
    /// ready.
    pub(crate) fn start(binary: &Path, data: &Path, wrapper: &[String]) -> Result<Self, Failure> {
        Self::try_start(binary, data, wrapper)?.ok_or_else(|| ENDED.into())
    }

    /// As [`Broker::start`]; what it logs is added to a file.
    pub(crate) fn start_logged(binary: &Path, data: &Path, log: &Path) -> Result<Self, Failure> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        Self::launch(binary, data, &[], log.into())?.ok_or_else(|| ENDED.into())
    }

    /// As [`Broker::start`]; `None` when it ended before it was ready.
    pub(crate) fn try_start(binary: &Path, data: &Path, wrapper: &[String]) -> Result<Option<Self>, Failure> {
        Self::launch(binary, data, wrapper, Stdio::null())
    }

    fn launch(binary: &Path, data: &Path, wrapper: &[String], log: Stdio) -> Result<Option<Self>, Failure> {
        // It runs in another directory than this process.
        let binary = binary.canonicalize().map_err(|error| format!("--binary {}: {error}", binary.display()))?;
        let mut words = wrapper.iter().map(String::as_str).chain([machine::text(&binary)?]);
        let mut command = Command::new(words.next().ok_or("no program")?);
        command.args(words).args(["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]).arg(data);
        // A settings file of whoever runs this is none of ours.
        command.current_dir(data.parent().ok_or("a data directory in a directory")?);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let output = child.stdout.take().ok_or("a broker without output")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let (mut kafka, mut http) = (None, None);
        for line in lines.by_ref() {
            kafka = kafka.or_else(|| line.trim().strip_prefix("Kafka")?.trim().parse().ok());
            http = http.or_else(|| Some(line.trim().strip_prefix("HTTP")?.trim().to_owned()));
            if line.starts_with("ready.") {
                break;
            }
        }
        let Some((kafka, http)) = kafka.zip(http) else {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        };
        // Whatever it prints later must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        Ok(Some(Self { child, kafka, http }))
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(mut self) -> Result<(), Failure> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it, or the broker below the program that it runs under, to end, and waits for that. `false` when it did not
    /// end well.
    pub(crate) fn stop(mut self) -> Result<bool, Failure> {
        let own = self.child.id();
        let below = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let pid = below.split_whitespace().next().map_or(Ok(own), str::parse)?;
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).ok_or("a process without a number")?;
        // Gone already is as good.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        Ok(self.child.wait()?.success())
    }

    /// Whether the process is still there.
    pub(crate) fn lives(&mut self) -> Result<bool, Failure> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- requests ------------------------------------------------------------------------------------------------------

fn name(text: &str) -> StrBytes {
    StrBytes::from(text.to_owned())
}

/// Makes a topic of one partition whose segments are small, if it is not there.
pub(crate) fn create_topic(client: &mut Client, topic: &str, segment_bytes: u32) -> Result<(), Failure> {
    client.create_topic(topic, 1, &[("segment.bytes", &segment_bytes.to_string())])
}

/// A batch of `count` records from `first` on.
pub(crate) fn batch(first: Stamp, count: u64, fill: usize) -> Result<Bytes, Failure> {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for nth in 0..count {
        let value = Stamp { number: first.number + nth, ..first }.value(fill);
        let timestamp_ms = now().as_millis() as i64;
        builder.push(&NewRecord { timestamp_ms, value: Some(value.as_bytes()), ..NewRecord::default() })?;
    }
    Ok(builder.finish()?.bytes().clone())
}

/// A batch of `count` records of a compacted topic from `first` on.
pub(crate) fn keyed_batch(first: Stamp, count: u64, fill: usize) -> Result<Bytes, Failure> {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for nth in 0..count {
        let stamp = Stamp { number: first.number + nth, ..first };
        let (key, value) = (keyed::key(stamp).to_string(), (!keyed::deletes(stamp)).then(|| stamp.value(fill)));
        let (key, value) = (Some(key.as_bytes()), value.as_ref().map(String::as_bytes));
        builder.push(&NewRecord { timestamp_ms: now().as_millis() as i64, key, value, ..NewRecord::default() })?;
    }
    Ok(builder.finish()?.bytes().clone())
}

/// Produces; the base offset, or Kafka's error code.
pub(crate) fn produce(
    client: &mut Client,
    topic: &str,
    acks: i16,
    records: Bytes,
) -> Result<Result<i64, i16>, Failure> {
    produce_to(client, topic, 0, acks, records)
}

/// As [`produce`], to any partition.
pub(crate) fn produce_to(
    client: &mut Client,
    topic: &str,
    number: i32,
    acks: i16,
    records: Bytes,
) -> Result<Result<i64, i16>, Failure> {
    let mut partition = PartitionProduceData::default();
    partition.index = number;
    partition.records = Some(records);
    let mut data = TopicProduceData::default();
    data.name = name(topic);
    data.partition_data = vec![partition];
    let mut request = ProduceRequest::default();
    request.acks = acks;
    request.timeout_ms = 30_000;
    request.topic_data = vec![data];
    let answer = client.call(PRODUCE, &request)?;
    let partition = answer.responses.first().and_then(|topic| topic.partition_responses.first());
    let partition = partition.ok_or("an answer without partition")?;
    Ok(if partition.error_code == 0 { Ok(partition.base_offset) } else { Err(partition.error_code) })
}

/// Records from `offset` on, or Kafka's error code.
pub(crate) fn fetch(client: &mut Client, topic: &str, offset: i64) -> Result<Result<Bytes, i16>, Failure> {
    fetch_from(client, topic, 0, offset)
}

/// As [`fetch`], from any partition.
pub(crate) fn fetch_from(
    client: &mut Client,
    topic: &str,
    number: i32,
    offset: i64,
) -> Result<Result<Bytes, i16>, Failure> {
    let mut partition = FetchPartition::default();
    partition.partition = number;
    partition.fetch_offset = offset;
    partition.partition_max_bytes = FETCH_BYTES;
    partition.current_leader_epoch = -1;
    let mut wanted = FetchTopic::default();
    wanted.topic = name(topic);
    wanted.partitions = vec![partition];
    let mut request = FetchRequest::default();
    request.max_wait_ms = 0;
    request.min_bytes = 1;
    request.max_bytes = FETCH_BYTES;
    request.session_epoch = -1;
    request.topics = vec![wanted];
    let answer = client.call(FETCH, &request)?;
    let partition = answer.responses.first().and_then(|topic| topic.partitions.first());
    let partition = partition.ok_or("an answer without partition")?;
    Ok(match partition.error_code {
        0 => Ok(partition.records.clone().unwrap_or_default()),
        code => Err(code),
    })
}

/// The first offset (`-2`) or the tail (`-1`) of a topic; `None` when there is no such topic.
fn list_offset(client: &mut Client, topic: &str, which: i64) -> Result<Option<i64>, Failure> {
    let mut partition = ListOffsetsPartition::default();
    partition.timestamp = which;
    partition.current_leader_epoch = -1;
    let mut wanted = ListOffsetsTopic::default();
    wanted.name = name(topic);
    wanted.partitions = vec![partition];
    let mut request = ListOffsetsRequest::default();
    request.replica_id = -1;
    request.topics = vec![wanted];
    let answer = client.call(LIST_OFFSETS, &request)?;
    let partition = answer.topics.first().and_then(|topic| topic.partitions.first());
    match partition.map(|partition| (partition.error_code, partition.offset)) {
        Some((0, offset)) => Ok(Some(offset)),
        Some((UNKNOWN, _)) => Ok(None),
        other => Err(format!("offsets of {topic}: {other:?}").into()),
    }
}

/// Commits an offset of a group that nobody is a member of.
pub(crate) fn commit(client: &mut Client, group: &str, topic: &str, offset: i64) -> Result<(), Failure> {
    let mut partition = OffsetCommitRequestPartition::default();
    partition.committed_offset = offset;
    partition.committed_leader_epoch = -1;
    let mut wanted = OffsetCommitRequestTopic::default();
    wanted.name = name(topic);
    wanted.partitions = vec![partition];
    let mut request = OffsetCommitRequest::default();
    request.group_id = group.to_owned().into();
    request.generation_id_or_member_epoch = -1;
    request.topics = vec![wanted];
    let answer = client.call(OFFSET_COMMIT, &request)?;
    match answer.topics.first().and_then(|topic| topic.partitions.first()).map(|partition| partition.error_code) {
        Some(0) => Ok(()),
        other => Err(format!("commit of {group}: error {other:?}").into()),
    }
}

/// What a group has committed; −1 for nothing.
pub(crate) fn committed(client: &mut Client, group: &str, topic: &str) -> Result<i64, Failure> {
    let mut wanted = OffsetFetchRequestTopic::default();
    wanted.name = name(topic);
    wanted.partition_indexes = vec![0];
    let mut request = OffsetFetchRequest::default();
    request.group_id = group.to_owned().into();
    request.topics = Some(vec![wanted]);
    let answer = client.call(OFFSET_FETCH, &request)?;
    let partition = answer.topics.first().and_then(|topic| topic.partitions.first());
    match partition.map(|partition| (partition.error_code, partition.committed_offset)) {
        Some((0, offset)) => Ok(offset),
        other => Err(format!("committed offset of {group}: {other:?}").into()),
    }
}

// ---- load ----------------------------------------------------------------------------------------------------------

/// Two producers, each with one request at a time, until the broker is gone.
pub(crate) struct Load {
    producers: Vec<JoinHandle<Vec<Ack>>>,
}

impl Load {
    /// Answers when both topics are there.
    pub(crate) fn start(broker: &Broker, run: u32) -> Result<Self, Failure> {
        let mut setup = Client::connect(broker.kafka)?;
        for (topic, _) in TOPICS {
            create_topic(&mut setup, topic, 16 << 10)?;
        }
        let address = broker.kafka;
        let (begun, beginning) = mpsc::channel();
        let producers = TOPICS.iter().zip(0..).map(|(&(topic, acks), partition)| {
            let begun = begun.clone();
            thread::spawn(move || {
                let mut acked = Vec::new();
                // It ends when the broker does.
                let _ = produce_until_end(address, topic, acks, partition, run, &begun, &mut acked);
                acked
            })
        });
        let producers = producers.collect();
        drop(begun);
        TOPICS.iter().try_for_each(|_| beginning.recv())?;
        Ok(Self { producers })
    }

    /// Notes what was acknowledged; how much that was.
    pub(crate) fn finish(self, ledgers: &mut BTreeMap<u32, Ledger>) -> Result<u64, Failure> {
        let mut count = 0;
        for producer in self.producers {
            for ack in producer.join().map_err(|_| "a producer broke down")? {
                ledgers.entry(ack.partition).or_default().note(ack);
                count += 1;
            }
        }
        Ok(count)
    }
}

fn produce_until_end(
    address: SocketAddr,
    topic: &str,
    acks: i16,
    partition: u32,
    run: u32,
    begun: &mpsc::Sender<()>,
    acked: &mut Vec<Ack>,
) -> Result<(), Failure> {
    let mut client = Client::connect(address)?;
    begun.send(())?;
    let mut first = Stamp { run, number: 0 };
    for n in 0.. {
        let count = 1 + n % 4;
        let fill = (n * 37 % 300) as usize;
        let base = produce(&mut client, topic, acks, batch(first, count, fill)?)?;
        let base = base.map_err(|code| format!("error {code}"))?;
        let level = if acks == 1 { Level::Written } else { Level::Durable };
        acked.push(Ack { partition, base, count, first, level, at: now(), recorded_bytes: 0 });
        first.number += count;
        if acks == 1 {
            thread::sleep(Duration::from_micros(300));
        }
    }
    Ok(())
}

/// All records of the load's topics; of one that does not exist, none.
pub(crate) fn read_all(broker: &Broker) -> Result<Vec<Found>, Failure> {
    let mut client = Client::connect(broker.kafka)?;
    TOPICS.iter().map(|(topic, _)| Ok(read_topic(&mut client, topic)?.unwrap_or_default())).collect()
}

/// The first offset of a topic.
pub(crate) fn log_start(client: &mut Client, topic: &str) -> Result<i64, Failure> {
    Ok(list_offset(client, topic, -2)?.ok_or_else(|| format!("there is no topic {topic}"))?)
}

/// All records of a compacted topic; none when there is no such topic.
pub(crate) fn read_keyed(client: &mut Client, topic: &str) -> Result<Vec<keyed::Record>, Failure> {
    let Some(mut at) = list_offset(client, topic, -2)? else { return Ok(Vec::new()) };
    let tail = list_offset(client, topic, -1)?.ok_or("a topic that was there is gone")?;
    let mut found = Vec::new();
    while at < tail {
        let bytes = fetch(client, topic, at)?.map_err(|code| format!("fetch of {topic} at {at}: error {code}"))?;
        found.extend(keyed_records(&bytes)?.into_iter().filter(|record| record.offset >= at));
        let next = next_offset(&bytes)?.filter(|&next| next > at);
        at = next.ok_or_else(|| format!("{topic} stands still at {at} of {tail}"))?;
    }
    Ok(found)
}

/// All records of a topic; `None` when there is no such topic.
pub(crate) fn read_topic(client: &mut Client, topic: &str) -> Result<Option<Found>, Failure> {
    let Some(log_start) = list_offset(client, topic, -2)? else { return Ok(None) };
    let tail = list_offset(client, topic, -1)?.ok_or("a topic that was there is gone")?;
    let mut found = Found { log_start, records: Vec::new() };
    while found.tail() < tail {
        let at = found.tail();
        let bytes = fetch(client, topic, at)?.map_err(|code| format!("fetch of {topic} at {at}: error {code}"))?;
        for (offset, stamp) in stamps(&bytes)? {
            if offset < at {
                continue;
            }
            if offset != found.tail() {
                return Err(format!("{topic}: offset {offset} where {} was expected", found.tail()).into());
            }
            found.records.push(stamp);
        }
        if found.tail() == at {
            return Err(format!("{topic} stands still at {at} of {tail}").into());
        }
    }
    Ok(Some(found))
}
