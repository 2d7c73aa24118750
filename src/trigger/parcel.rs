//! What a function receives for a window: its records, read again, transformed, in the shape that the function wants.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;
use tripline_storage::batch::RecordView as StoredRecord;
use tripline_storage::{LeaderEpoch, Offset};

use super::attempt::{BatchOutcome, BatchRecord, parse_batch_item_failures};
use super::deliver::{RecordsError, read_offsets};
use super::lane::Outcome;
use super::trace::TracedEvents;
use super::transform::{self, Stage, Transform, TransformError, parse_function_result};
use super::window::Spot;
use crate::event::trace::TraceContext;
use crate::event::{BATCH_TYPE, EventView};
use crate::function::{ErrorClass, FunctionService, Invocation, InvocationError, PAYLOAD_BYTES_MAX, Payload};
use crate::input::{EventInput, Origin};

/// Media type of one record's bytes.
const RAW_TYPE: &str = "application/octet-stream";
/// Media type of events that a transform made.
const JSON_TYPE: &str = "application/json";
/// What the attributes of most events take, in bytes.
const EVENT_ROOM: usize = 320;
/// How many events of a window a function that is a transform step gets at the same time.
const STEP_CONCURRENCY: usize = 8;

/// How a window's records become a payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recipe<'a> {
    pub(super) transform: &'a Transform,
    pub(super) shape: Payload,
    /// For the functions that are steps.
    pub(super) functions: &'a FunctionService,
    /// What the attempt is called.
    pub(super) id: &'a str,
    pub(super) attempt: u32,
}

/// Why there is no payload.
#[derive(Debug)]
pub(super) enum NoParcel {
    /// The records cannot be read: that says nothing about the function.
    Records(RecordsError),
    /// A function that is a transform step, this one, cannot be invoked at all; as if the trigger's own function had
    /// answered so.
    Step(Reach, InvocationError),
}

/// How far along the functions of a trigger an attempt came: to the steps of its transform, one after the other, then
/// to its target. An outage is of one of them, and who did not ask that one does not know whether it is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reach(usize);

impl Reach {
    /// None was asked.
    pub(super) const NONE: Self = Self(0);
    /// The trigger's own function was asked.
    pub(super) const TARGET: Self = Self(usize::MAX);

    /// The function behind this one.
    pub(super) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// What a function receives, and which record each event of it is.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    /// One for a function that takes events, one an event for a function that takes raw bytes.
    pub(super) payloads: Vec<Bytes>,
    pub(super) content_type: &'static str,
    /// The records that went in, ascending by offset.
    records: Vec<Sent>,
    /// Records that a transform refuses for good.
    rejected: BTreeMap<Offset, InvocationError>,
    /// Records for which a step's function failed, and the last reason.
    failed: BTreeSet<Offset>,
    step_error: Option<InvocationError>,
    /// Whether the records make more than a function takes at a time: there is no payload then.
    is_too_large: bool,
    /// How far along the functions that are steps any of them came.
    steps: Reach,
    /// What history tells of its events.
    pub(super) traced: TracedEvents,
}

/// A record that a function receives.
#[derive(Debug)]
struct Sent {
    /// Where it stands in the log.
    at: Offset,
    /// The id of its event.
    id: String,
    /// Partition and offset as its event says them: of a dead letter those of the record that it was.
    place: (u32, Offset),
    /// Its topic, where that may be another than the one that is read.
    topic: Option<Box<str>>,
}

impl Sent {
    fn of(at: Offset, event: &EventView<'_>, origin: &Origin) -> Self {
        let record = event.record();
        let topic = origin.shows_letters().then(|| record.topic.into());
        Self { at, id: event.id().into_owned(), place: (record.partition, record.offset), topic }
    }

    /// The id, unless it is the one that an event gets from its place.
    fn own_id(&self) -> Option<&str> {
        let (partition, offset) = self.place;
        let said = self.id.split_once('-').map(|(partition, offset)| (partition.parse(), offset.parse()));
        Some(self.id.as_str()).filter(|_| said != Some((Ok(partition), Ok(offset.get()))))
    }
}

/// A record on its way through steps that are functions.
struct Staged {
    sent: Sent,
    /// As filters see it.
    seen: Value,
    events: Vec<Value>,
    trace: Option<TraceContext>,
}

/// A parcel while its records are read.
pub(super) struct Builder<'a> {
    parcel: Parcel,
    writer: Writer,
    staged: Vec<Staged>,
    recipe: Recipe<'a>,
    has_steps: bool,
}

impl<'a> Builder<'a> {
    pub(super) fn new(recipe: Recipe<'a>) -> Self {
        let content_type = match (recipe.shape, recipe.transform.is_original()) {
            (Payload::Raw, _) => RAW_TYPE,
            (Payload::Events, true) => BATCH_TYPE,
            (Payload::Events, false) => JSON_TYPE,
        };
        Self {
            parcel: Parcel { content_type, ..Parcel::default() },
            writer: Writer::new(recipe.shape),
            staged: Vec::new(),
            recipe,
            has_steps: recipe.transform.functions().next().is_some(),
        }
    }

    /// The next record, ascending by offset.
    pub(super) fn take(&mut self, record: &StoredRecord<'_>, epoch: LeaderEpoch, origin: &Origin) {
        let Self { parcel, writer, staged, recipe, .. } = self;
        let is_over = writer.is_over();
        let headers = record.headers().map(|header| (header.name, header.value));
        let trace = TraceContext::of_record(headers, record.value());
        if recipe.shape == Payload::Raw && recipe.transform.is_original() {
            if !is_over {
                writer.raw(Bytes::copy_from_slice(record.value().unwrap_or_default()));
            }
            parcel.traced.note(record.offset(), None, trace.as_ref());
            let (at, id) = (record.offset(), String::new());
            return parcel.records.push(Sent { at, id, place: (origin.partition, at), topic: None });
        }
        origin.with_event(record, epoch, |event| {
            let sent = Sent::of(record.offset(), event, origin);
            parcel.traced.note(sent.at, sent.own_id(), trace.as_ref());
            let made = if is_over {
                parcel.records.push(sent);
                Ok(())
            } else if self.has_steps {
                first_stage(recipe.transform, event, trace.as_ref()).map(|events| {
                    let seen = event.for_matching().value.clone();
                    staged.push(Staged { sent, seen, events, trace });
                })
            } else {
                writer.event(recipe.transform, event, trace.as_ref()).map(|()| parcel.records.push(sent))
            };
            if let Err(error) = made {
                parcel.rejected.insert(record.offset(), refused(&error));
            }
        });
    }

    /// The parcel of a recipe without steps that are functions.
    pub(super) fn finish(self) -> Parcel {
        let Self { mut parcel, mut writer, .. } = self;
        parcel.is_too_large = parcel.records.len() > 1 && writer.is_over();
        parcel.payloads = writer.finish();
        parcel
    }
}

impl Parcel {
    /// Builds the payload of the records at `offsets`, which were found at `spots`.
    pub(super) async fn build(
        input: &EventInput,
        offsets: &[Offset],
        spots: &[Spot],
        recipe: Recipe<'_>,
    ) -> Result<Self, NoParcel> {
        let mut builder = Builder::new(recipe);
        let origin = input.origin();
        let read = read_offsets(input, offsets, spots, |record, epoch| builder.take(record, epoch, origin));
        read.await.map_err(NoParcel::Records)?;
        let staged = std::mem::take(&mut builder.staged);
        if builder.has_steps {
            builder.parcel.run_steps(staged, recipe, &mut builder.writer).await?;
        }
        Ok(builder.finish())
    }

    /// Hands every record through the steps after the first, and writes what comes out.
    async fn run_steps(
        &mut self,
        staged: Vec<Staged>,
        recipe: Recipe<'_>,
        writer: &mut Writer,
    ) -> Result<(), NoParcel> {
        let done = stream::iter(staged)
            .map(|record| async move {
                let (outcome, reach) = later_stages(&record, recipe).await?;
                Ok::<_, NoParcel>((record.sent, outcome, reach))
            })
            .buffered(STEP_CONCURRENCY);
        let mut done = std::pin::pin!(done);
        while let Some((sent, outcome, reach)) = done.try_next().await? {
            self.steps = self.steps.max(reach);
            match outcome {
                Ok(events) => {
                    if !writer.is_over() {
                        events.iter().for_each(|event| writer.value(event));
                    }
                    self.records.push(sent);
                }
                Err(error) if error.class == ErrorClass::Rejected => {
                    self.rejected.insert(sent.at, error);
                }
                Err(error) => {
                    self.failed.insert(sent.at);
                    self.step_error = Some(error);
                }
            }
        }
        Ok(())
    }

    /// Why the function is not asked: the records have to go in smaller parts.
    pub(super) fn too_large(&self) -> Option<InvocationError> {
        self.is_too_large.then(|| InvocationError::payload_too_large_for_one(self.records.len()))
    }

    /// Which functions have something to say about the records, or had.
    pub(super) const fn reach(&self) -> Reach {
        if self.payloads.is_empty() { self.steps } else { Reach::TARGET }
    }

    /// Records that were there, whatever became of them.
    pub(super) fn seen(&self) -> usize {
        self.records.len() + self.rejected.len() + self.failed.len()
    }

    /// What becomes of all records that were there, where `sent` became of those that went in.
    pub(super) fn outcome(&mut self, sent: Outcome) -> Outcome {
        let mut outcome = sent;
        outcome.rejected.append(&mut self.rejected);
        if self.failed.is_empty() {
            return outcome;
        }
        // What the function refuses for good says nothing of records that it did not get.
        if let Some(refusal) = outcome.error.take_if(|error| error.class == ErrorClass::Rejected) {
            let refused = std::mem::take(&mut outcome.failed).into_iter();
            outcome.rejected.extend(refused.map(|offset| (offset, refusal.clone())));
        }
        outcome.failed.append(&mut self.failed);
        outcome.error = outcome.error.or_else(|| self.step_error.take());
        outcome
    }

    /// The offsets of the records that went in, ascending.
    pub(super) fn offsets(&self) -> impl Iterator<Item = Offset> + '_ {
        self.records.iter().map(|sent| sent.at)
    }

    pub(super) fn record_count(&self) -> usize {
        self.records.len()
    }

    /// Which of the records an answer names as failed: their offsets, ascending; empty for a success.
    pub(super) fn failures(&self, origin: &Origin, answer: &[u8]) -> Result<Vec<Offset>, String> {
        let records: Vec<BatchRecord<'_>> = self
            .records
            .iter()
            .map(|Sent { id, place: (partition, offset), topic, .. }| BatchRecord {
                id,
                topic: topic.as_deref().unwrap_or(&origin.topic),
                partition: *partition,
                offset: *offset,
            })
            .collect();
        match parse_batch_item_failures(answer, &records) {
            BatchOutcome::Success => Ok(Vec::new()),
            BatchOutcome::Partial(places) => Ok(places.into_iter().map(|place| self.records[place].at).collect()),
            BatchOutcome::Whole(failure) => Err(failure.to_string()),
        }
    }
}

/// Writes payloads in a function's shape.
struct Writer {
    shape: Payload,
    /// The array of events, while it is open.
    array: Vec<u8>,
    raw: Vec<Bytes>,
    raw_bytes: usize,
    /// It was more than a function takes, and is not kept.
    is_over: bool,
}

impl Writer {
    const fn new(shape: Payload) -> Self {
        Self { shape, array: Vec::new(), raw: Vec::new(), raw_bytes: 0, is_over: false }
    }

    /// Whether what was written is more than a function takes. Memory ends with that.
    fn is_over(&mut self) -> bool {
        // With the end of the array.
        if self.array.len().max(self.raw_bytes) >= PAYLOAD_BYTES_MAX {
            *self = Self { is_over: true, ..Self::new(self.shape) };
        }
        self.is_over
    }

    fn raw(&mut self, payload: Bytes) {
        self.raw_bytes += payload.len();
        self.raw.push(payload);
    }

    fn separator(&mut self) {
        self.array.push(if self.array.is_empty() { b'[' } else { b',' });
    }

    /// A record whose transform, if it has one, is all pure.
    fn event(
        &mut self,
        transform: &Transform,
        event: &EventView<'_>,
        trace: Option<&TraceContext>,
    ) -> Result<(), TransformError> {
        let Some(Stage::Pure(chain)) = transform.stages().first() else {
            let record = event.record();
            let told = [record.key, record.value].into_iter().flatten().map(<[u8]>::len).sum::<usize>();
            self.array.reserve(told + EVENT_ROOM);
            self.separator();
            let begin = self.array.len();
            event.write_json(&mut self.array);
            if let Some(trace) = trace {
                trace.add_to_written(&mut self.array, begin);
            }
            return Ok(());
        };
        let before = self.array.len();
        self.separator();
        let origin = transform::Origin::Record(event);
        let written = chain.write_json(&origin, None, &mut self.array);
        if written.is_err() {
            self.array.truncate(before);
        }
        written?;
        if self.shape == Payload::Raw {
            let text = self.array.split_off(before + 1);
            self.array.clear();
            self.raw(raw_text(text));
        }
        Ok(())
    }

    fn value(&mut self, event: &Value) {
        let text = event.to_string().into_bytes();
        if self.shape == Payload::Raw {
            return self.raw(raw_text(text));
        }
        self.separator();
        self.array.extend_from_slice(&text);
    }

    fn finish(mut self) -> Vec<Bytes> {
        if self.shape == Payload::Raw {
            return self.raw;
        }
        if self.array.is_empty() {
            return Vec::new();
        }
        self.array.push(b']');
        vec![self.array.into()]
    }
}

/// A text stands for itself; anything else for its JSON.
fn raw_text(json: Vec<u8>) -> Bytes {
    match serde_json::from_slice::<Value>(&json) {
        Ok(Value::String(text)) => text.into(),
        _ => json.into(),
    }
}

/// What the first stage makes of a record, as one event.
fn first_stage(
    transform: &Transform,
    event: &EventView<'_>,
    trace: Option<&TraceContext>,
) -> Result<Vec<Value>, TransformError> {
    if let Some(Stage::Pure(chain)) = transform.stages().first() {
        return Ok(vec![chain.apply(&transform::Origin::Record(event), None)?]);
    }
    let mut event = event.to_json();
    if let (Some(trace), Value::Object(event)) = (trace, &mut event) {
        trace.add_to(event);
    }
    Ok(vec![event])
}

/// What the stages after a first pure one make of a record, and which functions it came to. The inner error is about
/// this record alone.
async fn later_stages(
    record: &Staged,
    recipe: Recipe<'_>,
) -> Result<(Result<Vec<Value>, InvocationError>, Reach), NoParcel> {
    let stages = recipe.transform.stages();
    let skip = usize::from(matches!(stages.first(), Some(Stage::Pure(_))));
    let mut events = record.events.clone();
    // Of a function that gets no event nothing is known, nor of those behind it.
    let (mut place, mut reach) = (Reach::NONE, Reach::NONE);
    for stage in &stages[skip..] {
        let mut made = Vec::new();
        if let Stage::Function { .. } = stage {
            place = place.next();
            reach = if events.is_empty() { reach } else { place };
        }
        for event in &events {
            match stage {
                Stage::Pure(chain) => match chain.apply(&transform::Origin::Written(&record.seen), Some(event)) {
                    Ok(event) => made.push(event),
                    Err(error) => return Ok((Err(refused(&error)), reach)),
                },
                Stage::Function { name, step } => {
                    match invoke_step(name.as_str(), (*step, place), event, record, recipe).await? {
                        Ok(events) => made.extend(events),
                        Err(error) => return Ok((Err(error), reach)),
                    }
                }
            }
        }
        events = made;
    }
    Ok((Ok(events), reach))
}

async fn invoke_step(
    function: &str,
    (step, place): (usize, Reach),
    event: &Value,
    record: &Staged,
    recipe: Recipe<'_>,
) -> Result<Result<Vec<Value>, InvocationError>, NoParcel> {
    let raw = recipe.functions.payload(function) == Some(Payload::Raw);
    let (payload, content_type) = if raw {
        (raw_text(event.to_string().into_bytes()), RAW_TYPE)
    } else {
        (format!("[{event}]").into(), JSON_TYPE)
    };
    let invocation = Invocation {
        id: format!("{}/{}/step-{step}", recipe.id, record.sent.at),
        attempt: recipe.attempt,
        payload,
        content_type,
        record_count: 1,
        trace: record.trace.as_ref().map(|trace| trace.child(fastrand::u64(..))),
    };
    let error = match recipe.functions.invoke(function, invocation).await {
        Ok(success) => return Ok(parse_function_result(step, &success.body).map_err(|error| refused(&error))),
        Err(error) => error,
    };
    let error =
        InvocationError { message: format!("transform step {step}, function {function}: {}", error.message), ..error };
    match error.class {
        // About this record.
        ErrorClass::Failed | ErrorClass::Rejected | ErrorClass::Crashed => Ok(Err(error)),
        _ => Err(NoParcel::Step(place, error)),
    }
}

/// Another try would fail as well.
fn refused(error: &TransformError) -> InvocationError {
    InvocationError::new(ErrorClass::Rejected, error.code.as_str(), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(at: &[i64]) -> BTreeSet<Offset> {
        at.iter().map(|at| Offset::new(*at).unwrap()).collect()
    }

    #[test]
    fn records_whose_step_failed_do_not_share_the_refusal_of_those_that_were_sent() {
        let failed = InvocationError::new(ErrorClass::Failed, "503", "step");
        let refusal = InvocationError::new(ErrorClass::Rejected, "422", "no");
        let mut parcel = Parcel { failed: offsets(&[3, 5]), step_error: Some(failed.clone()), ..Parcel::default() };
        let outcome = parcel.outcome(Outcome::failed(offsets(&[1, 4]), refusal.clone()));
        assert_eq!((outcome.failed, outcome.error), (offsets(&[3, 5]), Some(failed)));
        assert_eq!(outcome.rejected, offsets(&[1, 4]).into_iter().map(|offset| (offset, refusal.clone())).collect());
    }

    #[test]
    fn what_keeps_the_function_from_answering_holds_up_the_whole_window() {
        let failed = InvocationError::new(ErrorClass::Failed, "503", "step");
        let down = InvocationError::new(ErrorClass::Unavailable, "connect", "refused");
        let mut parcel = Parcel { failed: offsets(&[3]), step_error: Some(failed), ..Parcel::default() };
        let outcome = parcel.outcome(Outcome::failed(offsets(&[1, 4]), down.clone()));
        assert_eq!((outcome.failed, outcome.error), (offsets(&[1, 3, 4]), Some(down)));
        assert!(outcome.rejected.is_empty());
    }
}
