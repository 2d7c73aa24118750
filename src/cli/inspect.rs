//! `tripline inspect`: what a data directory or one of its files holds, offline and read-only.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tripline_storage::batch::{BatchHeader, BatchLimits, BatchView, RecordView, TimestampType};
use tripline_storage::fs::OsFs;
use tripline_storage::offline::{
    FileState, LogPiece, PartitionDirectory, PartitionFacts, SegmentInfo, SmallFile, dump_log, dump_small_file,
    is_log_name,
};
use tripline_storage::store::FORMAT_VERSION;

use super::failure::Failure;
use super::offline::{Opened, bytes};
use super::output::{Output, print, table};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads only, and not all: `tripline verify` checks every byte. Refuses a directory that a broker works in; a single file is
shown whoever works with it. Batches and records are shown in the words of Kafka's DumpLogSegments, with --json one a line.
Exit code 0: shown, also where it is damaged. 1: not readable, or the directory is in use. 2: no data directory, wrong use.

Examples:
  tripline inspect tripline-data                                topics, partitions, offsets, sizes
  tripline inspect tripline-data --topic flights                segments and the files beside them
  tripline inspect tripline-data --topic flights --partition 0 --records --from 100 --limit 10
  tripline inspect tripline-data/quarantine/SOME.log --batches")]
pub(super) struct InspectArgs {
    /// A data directory, or one file of it.
    path: PathBuf,
    /// Only this topic, by name or id; `state` is the state journal. Shows its segments.
    #[arg(long, short, value_name = "TOPIC")]
    topic: Option<String>,
    /// Only this partition.
    #[arg(long, short, value_name = "N")]
    partition: Option<u32>,
    /// The header of every batch.
    #[arg(long)]
    batches: bool,
    /// Every record, with the header of its batch.
    #[arg(long)]
    records: bool,
    /// From this offset on; of batches, from the one that holds it.
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: i64,
    /// At most so many batches, or with --records so many records.
    #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
}

pub(super) fn run(args: &InspectArgs, output: Output) -> Result<(), Failure> {
    if args.path.is_file() {
        return match is_log_name(&args.path) {
            true => Dump::new(args, output).log(&args.path),
            false => small_file(&args.path, output),
        };
    }
    let opened = Opened::look(&args.path)?;
    let chosen: Vec<_> = opened.survey.partitions.iter().filter(|found| is_chosen(args, &opened, found)).collect();
    if chosen.is_empty() && (args.topic.is_some() || args.partition.is_some()) {
        let topic = args.topic.as_ref().map(|topic| format!("topic {topic}"));
        let partition = args.partition.map(|partition| format!("partition {partition}"));
        let wanted = topic.into_iter().chain(partition).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(format!("there is no {wanted}; `tripline inspect DIR` lists what there is")));
    }
    if args.batches || args.records {
        let [partition] = chosen.as_slice() else {
            return Err(Failure::wrong_use("name one partition: --topic TOPIC --partition N"));
        };
        let logs = opened.directory.log_files(partition)?;
        let mut dump = Dump::new(args, output);
        return logs.iter().try_for_each(|log| dump.log(log));
    }
    let facts = chosen.into_iter().map(|partition| opened.directory.inspect(partition));
    let facts = facts.collect::<Result<Vec<_>, _>>()?;
    output.show(&json_of(&opened, &facts), |_| match args.topic {
        Some(_) => facts.iter().map(|facts| segments_text(&opened, facts)).collect(),
        None => overview(&opened, &facts),
    })
}

fn is_chosen(args: &InspectArgs, opened: &Opened, partition: &PartitionDirectory) -> bool {
    let id = partition.id;
    let is_topic = args.topic.as_ref().is_none_or(|wanted| {
        let name = opened.journal.name_of(id);
        let topic = name.rsplit_once('/').map_or("state", |(topic, _)| topic);
        wanted == topic || *wanted == id.topic.to_string()
    });
    is_topic && args.partition.is_none_or(|number| number == id.partition)
}

fn overview(opened: &Opened, facts: &[PartitionFacts]) -> String {
    let survey = &opened.survey;
    let mut text = format!("data directory  {}\n", opened.directory.root().display());
    text.push_str(&match &survey.format {
        SmallFile::Good(cluster) => format!("format          {FORMAT_VERSION}\ncluster id      {cluster}\n"),
        SmallFile::Missing => "format          missing\n".to_owned(),
        SmallFile::Damaged(reason) => format!("format          damaged: {reason}\n"),
    });
    text.push_str(&match &survey.epoch {
        SmallFile::Good(epoch) => format!("leader epoch    {epoch}\n"),
        SmallFile::Missing => "leader epoch    missing\n".to_owned(),
        SmallFile::Damaged(reason) => format!("leader epoch    damaged: {reason}\n"),
    });
    let kept: u64 = survey.quarantine.iter().map(|(_, size_bytes)| size_bytes).sum();
    text.push_str(&format!("quarantine      {} file(s), {}\n", survey.quarantine.len(), bytes(kept)));
    text.push_str(&format!("trash           {} topic(s)\n", survey.trash.len()));
    for alien in &survey.alien {
        text.push_str(&format!("not ours        {}\n", alien.display()));
    }
    let rows: Vec<_> = facts
        .iter()
        .map(|facts| {
            let len_bytes: u64 = facts.segments.iter().map(|segment| segment.len_bytes).sum();
            vec![
                opened.journal.name_of(facts.id),
                facts.log_start.to_string(),
                facts.flushed.to_string(),
                facts.tail.to_string(),
                facts.segments.len().to_string(),
                bytes(len_bytes),
            ]
        })
        .collect();
    text + "\n" + &table(&["PARTITION", "LOG START", "FLUSHED", "TAIL", "SEGMENTS", "SIZE"], &rows)
}

fn segments_text(opened: &Opened, facts: &PartitionFacts) -> String {
    let rows: Vec<_> = facts.segments.iter().map(segment_row).collect();
    let head = ["BASE", "NEXT", "SIZE", "STATE", "FIRST APPEND", "LAST APPEND", "NEWEST RECORD", "INDEX", "PRODUCERS"];
    let (name, path) = (opened.journal.name_of(facts.id), facts.path.display());
    let (log_start, flushed, tail) = (facts.log_start, facts.flushed, facts.tail);
    let alien: String = facts.alien.iter().map(|name| format!("not ours: {name}\n")).collect();
    format!("{name}: log start {log_start}, flushed {flushed}, tail {tail} ({path})\n{alien}{}\n", table(&head, &rows))
}

fn segment_row(segment: &SegmentInfo) -> Vec<String> {
    let seal = segment.seal.value();
    let time = |ms: Option<i64>| ms.map_or_else(|| "-".to_owned(), time_of);
    let state = match (&segment.seal, segment.is_active) {
        (_, true) => "active".to_owned(),
        (FileState::Good(_), _) => "sealed".to_owned(),
        (FileState::Missing, _) => "sealed, no seal".to_owned(),
        (FileState::Damaged(reason), _) => format!("seal: {reason}"),
    };
    vec![
        segment.base.to_string(),
        segment.next.to_string(),
        bytes(segment.len_bytes),
        state,
        time(seal.map(|seal| seal.first_append_ms)),
        time(seal.map(|seal| seal.last_append_ms)),
        time(seal.map(|seal| seal.max_timestamp_ms).filter(|&ms| ms >= 0)),
        count_of(&segment.index),
        count_of(&segment.producers),
    ]
}

fn count_of(file: &FileState<usize>) -> String {
    match file {
        FileState::Good(count) => count.to_string(),
        FileState::Missing => "-".to_owned(),
        FileState::Damaged(reason) => reason.clone(),
    }
}

fn time_of(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| time.to_string())
}

fn json_of(opened: &Opened, facts: &[PartitionFacts]) -> Value {
    let survey = &opened.survey;
    let partitions: Vec<_> = facts.iter().map(|facts| partition_json(opened, facts)).collect();
    json!({
        "directory": opened.directory.root(),
        "format": survey.format.value().map(|_| FORMAT_VERSION),
        "cluster_id": survey.format.value().map(|id| id.to_string()),
        "leader_epoch": survey.epoch.value().map(|epoch| epoch.get()),
        "quarantine": survey.quarantine.iter().map(|(name, size_bytes)| json!({ "name": name, "bytes": size_bytes })).collect::<Vec<_>>(),
        "trash": survey.trash,
        "alien": survey.alien,
        "partitions": partitions,
    })
}

fn partition_json(opened: &Opened, facts: &PartitionFacts) -> Value {
    let segments: Vec<_> = facts.segments.iter().map(segment_json).collect();
    json!({
        "name": opened.journal.name_of(facts.id),
        "topic_id": facts.id.topic.to_string(),
        "partition": facts.id.partition,
        "path": facts.path,
        "log_start": facts.log_start.get(),
        "flushed": facts.flushed.get(),
        "tail": facts.tail.get(),
        "alien": facts.alien,
        "segments": segments,
    })
}

fn segment_json(segment: &SegmentInfo) -> Value {
    let seal = segment.seal.value();
    let state = |state: &FileState<usize>| match state {
        FileState::Good(count) => json!(count),
        FileState::Missing => Value::Null,
        FileState::Damaged(reason) => json!(reason),
    };
    json!({
        "base": segment.base.get(),
        "next": segment.next.get(),
        "bytes": segment.len_bytes,
        "active": segment.is_active,
        "sealed": seal.is_some(),
        "first_append_ms": seal.map(|seal| seal.first_append_ms),
        "last_append_ms": seal.map(|seal| seal.last_append_ms),
        "max_timestamp_ms": seal.map(|seal| seal.max_timestamp_ms),
        "index_entries": state(&segment.index),
        "producers": state(&segment.producers),
    })
}

fn small_file(path: &Path, output: Output) -> Result<(), Failure> {
    let dump = dump_small_file(&OsFs, path).map_err(|error| {
        let message = format!("{}: {error}", path.display());
        if error.kind() == std::io::ErrorKind::InvalidInput {
            Failure::wrong_use(message)
        } else {
            Failure::new(message)
        }
    })?;
    let parts: Vec<Value> = dump
        .parts
        .iter()
        .map(|part| part.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect())
        .collect();
    output.show(&json!({ "kind": dump.kind, "parts": parts }), |_| {
        let line = |part: &Vec<(&str, String)>| {
            part.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>().join(" ")
        };
        dump.parts.iter().map(|part| line(part) + "\n").collect()
    })
}

/// Prints logs piece by piece.
struct Dump<'a> {
    args: &'a InspectArgs,
    output: Output,
    shown: u64,
}

impl<'a> Dump<'a> {
    const fn new(args: &'a InspectArgs, output: Output) -> Self {
        Self { args, output, shown: 0 }
    }

    fn log(&mut self, path: &Path) -> Result<(), Failure> {
        if !self.output.json {
            print(&format!("Dumping {}\n", path.display()))?;
        }
        let mut failed = None;
        dump_log(&OsFs, path, &mut |piece| match self.piece(&piece) {
            Ok(()) => self.shown < self.args.limit,
            Err(failure) => {
                failed = Some(failure);
                false
            }
        })
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
        failed.map_or(Ok(()), Err)
    }

    fn piece(&mut self, piece: &LogPiece<'_>) -> Result<(), Failure> {
        match piece {
            LogPiece::Batch { view, .. } if view.header().last_offset().get() < self.args.from => Ok(()),
            LogPiece::Batch { .. } if self.shown >= self.args.limit => Ok(()),
            LogPiece::Batch { position, view, crc } => self.batch(*position, view, crc.is_ok()),
            LogPiece::Other { position, end, reason } => self.other(*position, *end, &reason.to_string()),
            LogPiece::Reserved { position, end } => self.other(*position, *end, "reserved space"),
        }
    }

    fn other(&self, position: u64, end: u64, reason: &str) -> Result<(), Failure> {
        if self.output.json {
            return print(&json!({ "position": position, "end": end, "no_batch": reason }).to_string());
        }
        print(&format!("no batch: position: {position} size: {} {reason}\n", end - position))
    }

    fn batch(&mut self, position: u64, view: &BatchView<'_>, is_valid: bool) -> Result<(), Failure> {
        let header = view.header();
        let records = match (self.args.records && is_valid).then(|| view.records(&BatchLimits::default())) {
            Some(Ok(records)) => Some(records),
            Some(Err(reason)) => {
                return self.other(position, position + header.size_bytes() as u64, &reason.to_string());
            }
            None => None,
        };
        let records = (0..).zip(records.iter().flat_map(|set| set.iter().map_while(Result::ok)));
        // A batch may hold many more than were asked for.
        let left = usize::try_from(self.args.limit - self.shown).unwrap_or(usize::MAX);
        let wanted = records.filter(|(_, record)| record.offset().get() >= self.args.from).take(left);
        let records: Vec<(i32, RecordView<'_>)> = wanted.collect();
        self.shown += if self.args.records { records.len() as u64 } else { 1 };
        if self.output.json {
            let records: Vec<_> = records.iter().map(|(_, record)| record_json(record)).collect();
            let mut line = batch_json(header, position, is_valid);
            if self.args.records {
                line["records"] = json!(records);
            }
            return print(&line.to_string());
        }
        let mut text = batch_text(header, position, is_valid);
        for (index, record) in records {
            text.push_str(&record_text(header, index, &record));
        }
        print(&text)
    }
}

fn last_sequence(header: &BatchHeader) -> i32 {
    let base = header.base_sequence;
    if base < 0 { -1 } else { base.wrapping_add(header.last_offset_delta) & i32::MAX }
}

const fn time_name(header: &BatchHeader) -> &'static str {
    match header.attributes.timestamp_type() {
        TimestampType::CreateTime => "CreateTime",
        TimestampType::LogAppendTime => "LogAppendTime",
    }
}

/// In the words of Kafka's DumpLogSegments.
fn batch_text(header: &BatchHeader, position: u64, is_valid: bool) -> String {
    let attributes = header.attributes;
    let horizon = match attributes.has_delete_horizon() {
        true => format!("OptionalLong[{}]", header.base_timestamp_ms),
        false => "OptionalLong.empty".to_owned(),
    };
    format!(
        "baseOffset: {} lastOffset: {} count: {} baseSequence: {} lastSequence: {} producerId: {} producerEpoch: {} \
         partitionLeaderEpoch: {} isTransactional: {} isControl: {} deleteHorizonMs: {horizon} position: {position} {}: {} \
         size: {} magic: 2 compresscodec: {} crc: {} isvalid: {is_valid}\n",
        header.base_offset,
        header.last_offset(),
        header.record_count,
        header.base_sequence,
        last_sequence(header),
        header.producer_id,
        header.producer_epoch,
        header.leader_epoch.map_or(-1, |epoch| epoch.get()),
        attributes.is_transactional(),
        attributes.is_control(),
        time_name(header),
        header.max_timestamp_ms,
        header.size_bytes(),
        attributes.compression().name(),
        header.crc,
    )
}

fn batch_json(header: &BatchHeader, position: u64, is_valid: bool) -> Value {
    let attributes = header.attributes;
    json!({
        "base_offset": header.base_offset.get(),
        "last_offset": header.last_offset().get(),
        "count": header.record_count,
        "base_sequence": header.base_sequence,
        "producer_id": header.producer_id,
        "producer_epoch": header.producer_epoch,
        "leader_epoch": header.leader_epoch.map_or(-1, |epoch| epoch.get()),
        "transactional": attributes.is_transactional(),
        "control": attributes.is_control(),
        "delete_horizon_ms": attributes.has_delete_horizon().then_some(header.base_timestamp_ms),
        "position": position,
        "timestamp_type": time_name(header),
        "max_timestamp_ms": header.max_timestamp_ms,
        "bytes": header.size_bytes(),
        "codec": attributes.compression().name(),
        "crc": header.crc,
        "valid": is_valid,
    })
}

fn record_text(header: &BatchHeader, index: i32, record: &RecordView<'_>) -> String {
    let size = |field: Option<&[u8]>| field.map_or(-1, |bytes| bytes.len().cast_signed());
    let field =
        |name, field: Option<&[u8]>| field.map_or_else(String::new, |bytes| format!(" {name}: {}", clean(bytes)));
    let keys: Vec<_> = record.headers().map(|header| clean(header.name)).collect();
    let sequence = if header.base_sequence < 0 { -1 } else { header.base_sequence.wrapping_add(index) & i32::MAX };
    format!(
        "| offset: {} {}: {} keySize: {} valueSize: {} sequence: {sequence} headerKeys: [{}]{}{}\n",
        record.offset(),
        time_name(header),
        record.timestamp_ms(),
        size(record.key()),
        size(record.value()),
        keys.join(","),
        field("key", record.key()),
        field("payload", record.value()),
    )
}

fn record_json(record: &RecordView<'_>) -> Value {
    let field = |field: Option<&[u8]>| field.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let base64 = |field: Option<&[u8]>| {
        use base64::Engine;
        let is_text = field.is_none_or(|bytes| std::str::from_utf8(bytes).is_ok());
        field.filter(|_| !is_text).map(|bytes| base64::engine::general_purpose::STANDARD.encode(bytes))
    };
    let headers: Vec<_> =
        record.headers().map(|header| json!([field(Some(header.name)), field(header.value)])).collect();
    json!({
        "offset": record.offset().get(),
        "timestamp_ms": record.timestamp_ms(),
        "key": field(record.key()),
        "key_base64": base64(record.key()),
        "value": field(record.value()),
        "value_base64": base64(record.value()),
        "headers": headers,
    })
}

/// Text without what a terminal would act on.
fn clean(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
