//! Producing, consuming and both at once.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use hdrhistogram::Histogram;
use kafka_wire::fetch_request::{FetchPartition, FetchTopic};
use kafka_wire::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_wire::{FetchRequest, FetchResponse, ProduceRequest, ProduceResponse};
use kafka_wire_core::StrBytes;
use tripline_storage::batch::{BatchBuilder, BatchError, BatchLimits, BatchOptions, BatchView, Batches, NewRecord};

use crate::client::{Client, next_offset};
use crate::pacer::Pacer;
use crate::{Failure, LatencyArgs, LoadArgs, process};

const PRODUCE: i16 = 8;
const FETCH: i16 = 11;
/// Bytes asked for by a fetch that looks for a few records.
const FETCH_BYTES: i32 = 1 << 20;

/// What is put into a topic.
#[derive(Clone, Copy)]
pub(crate) struct Fill<'a> {
    pub(crate) topic: &'a str,
    pub(crate) partitions: u32,
    /// In all partitions together.
    pub(crate) bytes: u64,
}

/// Batches of at most a MB, in turn to each partition, in the page cache when this returns.
pub(crate) fn fill(client: &mut Client, fill: &Fill<'_>) -> Result<(), Failure> {
    const BATCH_BYTES: u64 = 1_000_000;
    let batch_bytes = (fill.bytes / u64::from(fill.partitions)).clamp(1024, BATCH_BYTES);
    let value = vec![b'x'; 1024];
    let values: Vec<&[u8]> = vec![&value; usize::try_from(batch_bytes / 1024)?];
    let records = batch(&values, 0)?;
    let batches = (fill.bytes / batch_bytes).max(fill.partitions.into());
    for n in 0..batches {
        let partition = i32::try_from(n % u64::from(fill.partitions))?;
        let frame = Client::frame(PRODUCE, &produce_request(fill.topic, partition, records.clone(), 1))?;
        client.send_frame(&frame)?;
        check_produced(&client.receive(PRODUCE)?)?;
    }
    Ok(())
}

/// One record, on stable storage when this returns.
pub(crate) fn produce_once(client: &mut Client, topic: &str) -> Result<(), Failure> {
    let frame = Client::frame(PRODUCE, &produce_request(topic, 0, batch(&[b"first"], 0)?, -1))?;
    client.send_frame(&frame)?;
    check_produced(&client.receive(PRODUCE)?)
}

fn batch(values: &[&[u8]], timestamp_ms: i64) -> Result<Bytes, Failure> {
    let mut builder = BatchBuilder::new(BatchOptions::default());
    for value in values {
        builder.push(&NewRecord { timestamp_ms, value: Some(value), ..NewRecord::default() })?;
    }
    Ok(builder.finish()?.bytes().clone())
}

fn now_ms() -> Result<i64, Failure> {
    Ok(i64::try_from(SystemTime::UNIX_EPOCH.elapsed()?.as_millis())?)
}

fn produce_request(topic: &str, index: i32, records: Bytes, acks: i16) -> ProduceRequest {
    let mut partition = PartitionProduceData::default();
    partition.index = index;
    partition.records = Some(records);
    let mut data = TopicProduceData::default();
    data.name = StrBytes::from(topic.to_owned());
    data.partition_data = vec![partition];
    let mut request = ProduceRequest::default();
    request.acks = acks;
    request.timeout_ms = 30_000;
    request.topic_data = vec![data];
    request
}

fn check_produced(answer: &ProduceResponse) -> Result<(), Failure> {
    let codes =
        answer.responses.iter().flat_map(|topic| &topic.partition_responses).map(|partition| partition.error_code);
    match codes.into_iter().find(|&code| code != 0) {
        None => Ok(()),
        Some(code) => Err(format!("the broker answered a produce with error {code}").into()),
    }
}

fn acks_of(text: &str) -> i16 {
    if text == "1" { 1 } else { -1 }
}

/// Sends one prepared batch again and again, `in_flight` requests ahead of the answers.
pub(crate) fn produce(args: &LoadArgs) -> Result<String, Failure> {
    let mut client = Client::connect(args.kafka)?;
    client.create_topic(&args.topic, 1, &[])?;
    let value = vec![b'x'; args.size as usize];
    let per_batch = (args.batch / (args.size + 10)).max(1);
    let values: Vec<&[u8]> = vec![&value; per_batch as usize];
    // Records of 1970 would be beyond any retention.
    let records = batch(&values, now_ms()?)?;
    let frame = Client::frame(PRODUCE, &produce_request(&args.topic, 0, records, acks_of(&args.acks)))?;
    let batches = args.count.div_ceil(u64::from(per_batch));
    let before = Cpu::read(args.pid)?;
    let begun = Instant::now();
    let mut receiver = client.receiver()?;
    // Full when so many are unanswered.
    let (sending, unanswered) = mpsc::sync_channel::<()>(args.in_flight as usize);
    let sender = thread::spawn(move || -> Result<(), Failure> {
        for _ in 0..batches {
            if sending.send(()).is_err() {
                return Err("the answers ended".into());
            }
            client.send_frame(&frame)?;
        }
        Ok(())
    });
    for _ in 0..batches {
        check_produced(&receiver.receive(PRODUCE)?)?;
        // In the channel since before it was sent.
        unanswered.recv()?;
    }
    sender.join().map_err(|_| "the sender broke down")??;
    let records = batches * u64::from(per_batch);
    Ok(report("produced", records, args.size, begun.elapsed(), &before.since(args.pid)?))
}

/// Fetches from the first offset on.
pub(crate) fn consume(args: &LoadArgs) -> Result<String, Failure> {
    let mut client = Client::connect(args.kafka)?;
    let before = Cpu::read(args.pid)?;
    let begun = Instant::now();
    let (mut offset, mut bytes) = (0, 0_u64);
    while offset < args.count.cast_signed() {
        let records = fetch(&mut client, &args.topic, offset, (args.fetch, 1_000))?;
        let Some(next) = next_offset(&records)? else {
            return Err(format!("the topic has {offset} records, {} were asked for", args.count).into());
        };
        bytes += records.len() as u64;
        offset = next;
    }
    let size = u32::try_from(bytes / offset.unsigned_abs().max(1))?;
    Ok(report("consumed", offset.unsigned_abs(), size, begun.elapsed(), &before.since(args.pid)?))
}

fn fetch(
    client: &mut Client,
    topic: &str,
    offset: i64,
    (max_bytes, max_wait_ms): (i32, i32),
) -> Result<Bytes, Failure> {
    let mut partition = FetchPartition::default();
    partition.fetch_offset = offset;
    partition.partition_max_bytes = max_bytes;
    partition.current_leader_epoch = -1;
    let mut wanted = FetchTopic::default();
    wanted.topic = StrBytes::from(topic.to_owned());
    wanted.partitions = vec![partition];
    let mut request = FetchRequest::default();
    request.max_wait_ms = max_wait_ms;
    request.min_bytes = 1;
    request.max_bytes = max_bytes;
    request.session_epoch = -1;
    request.topics = vec![wanted];
    let answer: FetchResponse = client.call(FETCH, &request)?;
    let partition =
        answer.responses.first().and_then(|topic| topic.partitions.first()).ok_or("an answer without partition")?;
    match partition.error_code {
        0 => whole_batches(&partition.records.clone().unwrap_or_default()),
        code => Err(format!("the broker answered a fetch with error {code}").into()),
    }
}

/// Kafka itself cuts the last batch of an answer where the answer is full.
fn whole_batches(bytes: &Bytes) -> Result<Bytes, Failure> {
    let mut rest: &[u8] = bytes;
    loop {
        match BatchView::parse(rest) {
            Ok((_, behind)) => rest = behind,
            Err(BatchError::Truncated { .. }) => return Ok(bytes.slice(..bytes.len() - rest.len())),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends at a fixed rate whatever the answers do: a broker that stalls is charged with what waits meanwhile. One
/// process sends and receives, so both read one clock.
pub(crate) fn latency(args: &LatencyArgs) -> Result<String, Failure> {
    let mut producer = Client::connect(args.kafka)?;
    producer.create_topic(&args.topic, 1, &[])?;
    let (topic, count, size) = (args.topic.clone(), args.count, args.size as usize);
    let mut consumer = Client::connect(args.kafka)?;
    let mut offset = 0;
    while let Some(next) = next_offset(&fetch(&mut consumer, &topic, offset, (FETCH_BYTES, 0))?)? {
        offset = next;
    }
    let pacer = Pacer::start(args.rate)?;
    let begun = pacer.begun();
    let receiving = thread::spawn(move || receive_all(&mut consumer, &topic, offset, count, begun));
    let mut answers = producer.receiver()?;
    let answered = thread::spawn(move || (0..count).try_for_each(|_| check_produced(&answers.receive(PRODUCE)?)));
    let acks = acks_of(&args.acks);
    let mut value = vec![b'x'; size];
    for n in 0..count {
        let due = pacer.wait_for(n);
        value[..8].copy_from_slice(&u64::try_from(due.as_nanos())?.to_le_bytes());
        let frame = Client::frame(PRODUCE, &produce_request(&args.topic, 0, batch(&[&value], 0)?, acks))?;
        producer.send_frame(&frame)?;
    }
    answered.join().map_err(|_| "the receiver of answers broke down")??;
    let times = receiving.join().map_err(|_| "the consumer broke down")??;
    let at = |quantile| times.value_at_quantile(quantile) as f64 / 1e3;
    Ok(format!(
        "produce to receipt at {}/s, {} B: p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, max {:.0} us; {count} records",
        args.rate,
        args.size,
        at(0.5),
        at(0.99),
        at(0.999),
        times.max() as f64 / 1e3
    ))
}

fn receive_all(
    client: &mut Client,
    topic: &str,
    mut offset: i64,
    count: u32,
    begun: Instant,
) -> Result<Histogram<u64>, Failure> {
    let mut times = Histogram::new(3)?;
    while times.len() < u64::from(count) {
        let bytes = fetch(client, topic, offset, (FETCH_BYTES, 1_000))?;
        let now = u64::try_from(begun.elapsed().as_nanos())?;
        for view in Batches::of(&bytes) {
            let view = view?;
            for record in &view.records(&BatchLimits::default())? {
                let value =
                    record?.value().and_then(<[u8]>::first_chunk).copied().ok_or("a record without its time")?;
                times.record(now.saturating_sub(u64::from_le_bytes(value)).max(1))?;
            }
            offset = view.header().next_offset().get();
        }
    }
    Ok(times)
}

/// CPU time of the broker and of this process.
struct Cpu {
    broker: Option<Duration>,
    own: Duration,
}

impl Cpu {
    fn read(pid: Option<u32>) -> Result<Self, Failure> {
        let broker = pid.map(process::cpu_time).transpose()?;
        Ok(Self { broker, own: process::cpu_time(std::process::id())? })
    }

    fn since(&self, pid: Option<u32>) -> Result<Self, Failure> {
        let now = Self::read(pid)?;
        let broker = now.broker.zip(self.broker).map(|(now, before)| now.saturating_sub(before));
        Ok(Self { broker, own: now.own.saturating_sub(self.own) })
    }
}

fn report(verb: &str, records: u64, size_bytes: u32, took: Duration, cpu: &Cpu) -> String {
    let seconds = took.as_secs_f64();
    let millions = records as f64 / 1e6;
    let gigabytes = records as f64 * f64::from(size_bytes) / 1e9;
    let broker = cpu.broker.map_or_else(
        || "broker CPU not measured (--pid)".to_owned(),
        |time| {
            let time = time.as_secs_f64();
            format!("broker CPU {:.3} s per million, {:.3} s per GB", time / millions, time / gigabytes)
        },
    );
    let own = cpu.own.as_secs_f64() / millions;
    format!(
        "{verb} {records} records of {size_bytes} B in {seconds:.3} s: {:.0} records/s, {:.3} GB/s; {broker}; client CPU {own:.3} s per million",
        records as f64 / seconds,
        gigabytes / seconds
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_an_answer_cuts_is_left_to_the_next_fetch() {
        let one = batch(&[b"a", b"b"], 0).unwrap();
        let two = Bytes::from([&one[..], &one[..]].concat());
        assert_eq!(whole_batches(&two).unwrap(), two);
        for cut in 0..one.len() {
            assert_eq!(whole_batches(&two.slice(..one.len() + cut)).unwrap(), one, "{cut}");
        }
        assert!(whole_batches(&Bytes::new()).unwrap().is_empty());
        let mut wrong = two.to_vec();
        // The magic of the second.
        wrong[one.len() + 16] = 9;
        assert!(whole_batches(&wrong.into()).is_err());
    }
}
