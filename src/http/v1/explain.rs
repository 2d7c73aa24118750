//! Why a trigger takes an event, or which clause of its filter turned it away.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde_json::{Value, json};
use tripline_storage::batch::{BatchLimits, Batches};
use tripline_storage::error::ReadError;
use tripline_storage::{LeaderEpoch, Offset};

use super::topics::existing_topic;
use super::triggers::trigger_name;
use crate::config::fields::{FieldErrors, Fields, read};
use crate::event::{EventView, MatchEvent};
use crate::http::bodies;
use crate::http::extract::{JsonBody, NoParameters, Segments};
use crate::http::problem::Problem;
use crate::http::rooms::Rooms;
use crate::input::{EventInput, LogInput};
use crate::trigger::filter::Pattern;
use crate::trigger::service::RunError;

/// How much is read for one record; a larger batch is read whole.
const READ_BYTES: usize = 1 << 20;

/// What is explained.
#[derive(Debug)]
enum Subject {
    /// Any JSON, taken as an event.
    Event(Value),
    /// A record of the log.
    Record { topic: Option<String>, partition: u32, offset: Offset },
}

/// Explain one record, or an event that is sent along.
///
/// The body is `{"partition": …, "offset": …}` for a record of the trigger's one topic, with `topic` for one of any
/// other, or `{"event": …}`; on a cluster of a topic that the trigger reads. Nothing is invoked and no progress is made.
#[utoipa::path(post, path = "/v1/triggers/{trigger}/explain", tag = "triggers", request_body = bodies::ExplainBody, params(("trigger" = String, Path, description = "Its name")),
    responses((status = 200, description = "`matches`, in `explain` what turned the event away, and for a record the `event` that filters see"),
        (status = 400, description = "Problem details"), (status = 404, description = "There is no such trigger, topic, partition or record")))]
pub(crate) async fn explain(
    State(rooms): State<Rooms>,
    Segments(name): Segments<String>,
    _: NoParameters,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, Problem> {
    let name = trigger_name(&name)?;
    let subject = subject(&body)?;
    let report = rooms.triggers.describe(name.as_str());
    let spec = report.ok_or_else(|| Problem::not_found("trigger", "unknown-trigger", name.as_str()))?.spec;
    let filter = spec.filter.as_ref();
    let mut answer = match subject {
        Subject::Event(event) => verdict(filter, &MatchEvent::new(event)),
        Subject::Record { topic, partition, offset } => {
            let there = rooms.triggers.input_on_cluster(name.as_str(), topic.as_deref(), partition).await;
            let there = there.map_err(|error| match error {
                RunError::Partition { .. } => {
                    Problem::new(StatusCode::NOT_FOUND, "unknown-partition", error.to_string())
                }
                error => error.into(),
            })?;
            match there {
                Some(input) => record(&input, filter, offset).await.map_err(Problem::of_cluster)?,
                None => {
                    let topic = topic.map_or_else(|| rooms.triggers.only_topic(name.as_str()), Ok)?;
                    record(&EventInput::Log(input(&rooms, &topic, partition)?), filter, offset).await?
                }
            }
        }
    };
    answer["trigger"] = name.as_str().into();
    Ok(Json(answer))
}

fn subject(body: &Value) -> Result<Subject, FieldErrors> {
    read(body, "explain", |fields| {
        let event = fields.value("event");
        let record = ["topic", "partition", "offset"].map(|name| fields.value(name));
        match event {
            Some(_) if record.iter().any(Option::is_some) => {
                fields.wrong("event", "either an event, or the partition and offset of a record");
                None
            }
            Some(event) => Some(Subject::Event(event.clone())),
            None => record_subject(fields),
        }
    })
}

fn record_subject(fields: &mut Fields<'_>) -> Option<Subject> {
    let topic = fields.optional_text("topic", "a topic's name").map(str::to_owned);
    let partition = fields.value("partition").and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    if partition.is_none() {
        fields.wrong("partition", "the number of a partition, from 0 on; or `event` with an event");
    }
    let offset = fields.value("offset").and_then(Value::as_i64).and_then(Offset::new);
    if offset.is_none() {
        fields.wrong("offset", "the offset of a record, from 0 on");
    }
    Some(Subject::Record { topic, partition: partition?, offset: offset? })
}

fn verdict(filter: Option<&Pattern>, event: &MatchEvent) -> Value {
    let reasons = filter.map(|filter| filter.explain(event)).unwrap_or_default();
    let matches = filter.is_none_or(|filter| filter.matches_json(event));
    json!({ "matches": matches, "explain": reasons })
}

fn input(rooms: &Rooms, topic: &str, number: u32) -> Result<LogInput, Problem> {
    let topic = existing_topic(&rooms.broker, topic)?;
    Ok(LogInput::new(&rooms.broker, &topic, number)?)
}

/// The verdict over the record at `offset`.
async fn record(input: &EventInput, filter: Option<&Pattern>, offset: Offset) -> Result<Value, Problem> {
    let (log_start, tail) = (input.log_start(), input.tail());
    if offset < log_start || offset >= tail {
        return Err(ReadError::OutOfRange { offset, log_start, tail }.into());
    }
    let outcome = input.read(offset, READ_BYTES).await?;
    let seen = with_record(input, &outcome.bytes, offset, |event| {
        let mut answer = verdict(filter, event.for_matching());
        answer["event"] = event.for_matching().value.clone();
        answer
    });
    seen.ok_or_else(|| {
        let origin = input.origin();
        let detail = format!(
            "{}/{} has no record at offset {offset}: it was compacted away, ends a transaction, or was aborted with one",
            origin.topic, origin.partition
        );
        Problem::new(StatusCode::NOT_FOUND, "unknown-record", detail)
    })
}

fn with_record<T>(
    input: &EventInput,
    bytes: &[u8],
    offset: Offset,
    look: impl FnOnce(&EventView<'_>) -> T,
) -> Option<T> {
    let view = Batches::of(bytes).map_while(Result::ok).find(|view| view.header().last_offset() >= offset)?;
    let header = view.header();
    if header.attributes.is_control() {
        return None;
    }
    let epoch = header.leader_epoch.unwrap_or(LeaderEpoch::NONE);
    let records = view.records(&BatchLimits::default()).ok()?;
    let record = records.iter().flatten().find(|record| record.offset() == offset)?;
    Some(input.origin().with_event(&record, epoch, look))
}
