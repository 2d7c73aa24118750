//! The one shape of errors: problem details (RFC 9457) with a stable `code`.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};
use tripline_storage::error::{AppendError, FlushError, ReadError, Stopped, TrimError};

use crate::broker::journal::JournalError;
use crate::broker::{CreateTopicError, DeleteRecordsError, DeleteTopicError, NoPartition, ProduceError};
use crate::config::fields::FieldErrors;
use crate::function::registry::{RegisterError, UnregisterError};
use crate::function::{DeployError, ErrorClass, InvocationError, RemoveError};
use crate::source::schedule::service::{ApplyScheduleError, ScheduleError};
use crate::source::schedule::{DEFINITIONS_BYTES_MAX, SCHEDULES_MAX};
use crate::trigger::service::{ApplyTriggerError, ChoiceError, ResetTriggerError, RunError, TriggerError};

/// The media type of an error.
pub const PROBLEM_TYPE: &str = "application/problem+json";

/// An error as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The status of the answer.
    pub status: StatusCode,
    /// A stable word for programs.
    pub code: &'static str,
    /// A sentence for people: what, where, what to do.
    pub detail: String,
    /// Facts for programs, by name.
    pub facts: Map<String, Value>,
}

impl Problem {
    /// A problem without facts.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), facts: Map::new() }
    }

    /// With one fact more.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.facts.insert(name.to_owned(), value.into());
        self
    }

    /// 400.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// The same of what was asked of a cluster: what it does not answer is not this broker's disk.
    #[must_use]
    pub fn of_cluster(self) -> Self {
        if self.status != StatusCode::INTERNAL_SERVER_ERROR {
            return self;
        }
        Self { status: StatusCode::BAD_GATEWAY, code: "cluster", ..self }
    }

    /// 404 for a `kind` such as `topic`.
    #[must_use]
    pub fn not_found(kind: &'static str, code: &'static str, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, format!("{kind} {name} does not exist"))
    }

    /// 503 until the broker is back.
    #[must_use]
    pub fn stopping(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", detail)
    }

    fn internal(code: &'static str, cause: impl std::fmt::Display) -> Self {
        let detail = cause.to_string();
        tracing::error!(code, %detail, "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, code, detail)
    }

    /// The body of the answer.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut body = json!({
            "type": format!("urn:tripline:error:{}", self.code),
            "title": self.status.canonical_reason().unwrap_or("error"),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        if let Value::Object(fields) = &mut body {
            fields.extend(self.facts.clone());
        }
        body
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.to_json().to_string()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_TYPE));
        if let Some(seconds) = self.facts.get("retry_after_s").and_then(Value::as_u64) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<FieldErrors> for Problem {
    fn from(errors: FieldErrors) -> Self {
        let detail = errors.to_string();
        let list = serde_json::to_value(&errors).expect("texts are JSON");
        Self::bad_request("invalid-definition", detail).with("errors", list)
    }
}

impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        match &error {
            JournalError::Append(AppendError::DiskFull) => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "disk-full", error.to_string())
            }
            JournalError::Append(cause @ AppendError::NoDescriptors(_)) => no_descriptors(cause),
            JournalError::Append(_) | JournalError::Flush(_) | JournalError::Build(_) => {
                Self::internal("state-journal", error)
            }
        }
    }
}

impl From<CreateTopicError> for Problem {
    fn from(error: CreateTopicError) -> Self {
        match error {
            CreateTopicError::Exists(_) => Self::new(StatusCode::CONFLICT, "topic-exists", error.to_string()),
            CreateTopicError::TooManyPartitions { limit, total, .. } => {
                let detail = format!("{error}; delete topics that are not needed");
                Self::new(StatusCode::CONFLICT, "too-many-partitions", detail).with("limit", limit).with("total", total)
            }
            CreateTopicError::Log(cause) => Self::internal("storage", cause),
            CreateTopicError::Journal(error) => error.into(),
        }
    }
}

impl From<DeleteTopicError> for Problem {
    fn from(error: DeleteTopicError) -> Self {
        match error {
            DeleteTopicError::Unknown(name) => Self::not_found("topic", "unknown-topic", &name),
            DeleteTopicError::InUse { .. } => Self::new(StatusCode::CONFLICT, "topic-in-use", error.to_string()),
            DeleteTopicError::Journal(error) => error.into(),
            DeleteTopicError::Files { .. } => Self::internal("storage", error),
        }
    }
}

impl From<ProduceError> for Problem {
    fn from(error: ProduceError) -> Self {
        match error {
            ProduceError::Batch(cause) => Self::bad_request("invalid-records", cause.to_string()),
            ProduceError::Append(cause) => cause.into(),
            ProduceError::Flush(cause) => cause.into(),
            ProduceError::Partition(cause) => cause.into(),
            ProduceError::Internal(_) => Self::new(StatusCode::FORBIDDEN, "internal-topic", error.to_string()),
            ProduceError::WithoutKey { index, .. } => {
                Self::bad_request("key-missing", error.to_string()).with("record", index)
            }
        }
    }
}

impl From<NoPartition> for Problem {
    fn from(error: NoPartition) -> Self {
        let detail = error.to_string();
        match error {
            NoPartition::Unknown { .. } => Self::new(StatusCode::NOT_FOUND, "unknown-partition", detail),
            NoPartition::Offline { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "partition-offline", detail),
        }
    }
}

impl From<DeleteRecordsError> for Problem {
    fn from(error: DeleteRecordsError) -> Self {
        match &error {
            DeleteRecordsError::Partition(cause) => cause.clone().into(),
            DeleteRecordsError::Internal(_) => Self::new(StatusCode::FORBIDDEN, "internal-topic", error.to_string()),
            DeleteRecordsError::Compacted(_) => Self::new(StatusCode::CONFLICT, "topic-compacted", error.to_string()),
            DeleteRecordsError::Trim(TrimError::OutOfRange { tail, .. }) => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "offset-out-of-range", error.to_string())
                    .with("tail", tail.get())
            }
            DeleteRecordsError::Trim(TrimError::Flush(_) | TrimError::Io(_)) => Self::internal("storage", error),
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::DiskFull => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "disk-full",
                "the disk of the data directory is full; free space and send the records again",
            )
            .with("retry_after_s", 1),
            AppendError::NoDescriptors(_) => no_descriptors(&error),
            AppendError::Stopped(cause) => stopped("nothing was appended", &cause),
            AppendError::TooLarge { limit_bytes, .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "records-too-large", error.to_string())
                    .with("limit_bytes", limit_bytes)
            }
            other => Self::internal("storage", other),
        }
    }
}

/// Passes by itself, when connections end.
fn no_descriptors(error: &AppendError) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "no-descriptors", format!("nothing was appended: {error}"))
        .with("retry_after_s", 1)
}

/// A partition that takes no writes any more. `what` became of the records.
fn stopped(what: &str, stopped: &Stopped) -> Problem {
    let detail = format!("{what}: {stopped}; it is served for reading, and takes writes again after a restart");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "partition-stopped", detail)
}

impl From<FlushError> for Problem {
    fn from(error: FlushError) -> Self {
        match error {
            FlushError::Stopped(cause) => stopped("the records were appended but are not known to be on disk", &cause),
        }
    }
}

impl From<ReadError> for Problem {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::OutOfRange { log_start, tail, .. } => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "offset-out-of-range", error.to_string())
                    .with("log_start", log_start.get())
                    .with("tail", tail.get())
            }
            ReadError::Damaged { from, to } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "damaged-records", format!("{error}; read on from {to}"))
                    .with("from", from.get())
                    .with("to", to.get())
            }
            other => Self::internal("storage", other),
        }
    }
}

impl From<DeployError> for Problem {
    fn from(error: DeployError) -> Self {
        match error {
            DeployError::CodeMissing(_) => {
                Self::bad_request("code-missing", format!("{error}: send it as `code_base64`"))
            }
            DeployError::CodeNotWanted(_) => Self::bad_request("code-not-wanted", error.to_string()),
            DeployError::Embedded(_) => Self::bad_request("embedded-function", error.to_string()),
            DeployError::Code(_) => Self::bad_request("invalid-code", error.to_string()),
            DeployError::Store(_) => Self::internal("code-store", error),
            DeployError::Interpreter(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "interpreter-missing", error.to_string())
            }
            DeployError::Target(_) => Self::bad_request("target-refused", error.to_string()),
            DeployError::Stopping => Self::stopping(error.to_string()),
        }
    }
}

impl From<RegisterError> for Problem {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Deploy(error) => error.into(),
            RegisterError::Journal(error) => error.into(),
            RegisterError::LogTopic(error) => error.into(),
        }
    }
}

impl From<UnregisterError> for Problem {
    fn from(error: UnregisterError) -> Self {
        match error {
            UnregisterError::InUse { .. } => Self::new(StatusCode::CONFLICT, "function-in-use", error.to_string()),
            UnregisterError::Journal(error) => error.into(),
            UnregisterError::Remove(RemoveError::Store(_)) => Self::internal("code-store", error),
            UnregisterError::Remove(RemoveError::Stopping) => Self::stopping(error.to_string()),
        }
    }
}

impl From<ApplyTriggerError> for Problem {
    fn from(error: ApplyTriggerError) -> Self {
        match error {
            ApplyTriggerError::UnknownTopic { .. } => {
                Self::new(StatusCode::CONFLICT, "unknown-topic", error.to_string())
            }
            ApplyTriggerError::UnknownFunction(_) | ApplyTriggerError::UnknownStep(_) => {
                Self::new(StatusCode::CONFLICT, "unknown-function", error.to_string())
            }
            ApplyTriggerError::Partition(cause) => cause.into(),
            ApplyTriggerError::Stopping => Self::stopping(error.to_string()),
            ApplyTriggerError::Unfit(_) => Self::bad_request("function-unfit", error.to_string()),
            ApplyTriggerError::OtherTopic { .. } => Self::new(StatusCode::CONFLICT, "other-topic", error.to_string()),
            ApplyTriggerError::OtherPlace => Self::new(StatusCode::CONFLICT, "other-place", error.to_string()),
            ApplyTriggerError::UnknownCluster(_) => {
                Self::new(StatusCode::CONFLICT, "unknown-cluster", error.to_string())
            }
            ApplyTriggerError::Cluster(_) => Self::new(StatusCode::BAD_GATEWAY, "cluster", error.to_string()),
            ApplyTriggerError::Topic(error) => error.into(),
            ApplyTriggerError::Deploy(error) => error.into(),
            ApplyTriggerError::Start(error) => error.into(),
            ApplyTriggerError::Journal(error) => error.into(),
            ApplyTriggerError::Lane(_) => Self::internal("trigger-state", error),
        }
    }
}

impl From<ChoiceError> for Problem {
    fn from(error: ChoiceError) -> Self {
        let kind = match &error {
            ChoiceError::OtherTopic { .. } => "other-topic",
            ChoiceError::SeveralTopics { .. } => "topic-missing",
            ChoiceError::OtherPartition { .. } => "unknown-partition",
            ChoiceError::NoTopicYet(_) => "no-topic-yet",
            ChoiceError::Partition(cause) => return cause.clone().into(),
        };
        Self::bad_request(kind, error.to_string())
    }
}

impl From<TriggerError> for Problem {
    fn from(error: TriggerError) -> Self {
        match error {
            TriggerError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown-trigger", error.to_string()),
            TriggerError::Choice(error) => error.into(),
            TriggerError::Journal(error) => error.into(),
        }
    }
}

impl From<ApplyScheduleError> for Problem {
    fn from(error: ApplyScheduleError) -> Self {
        match error {
            ApplyScheduleError::UnknownTopic(_) => Self::new(StatusCode::CONFLICT, "unknown-topic", error.to_string()),
            ApplyScheduleError::Partition(cause) => cause.into(),
            ApplyScheduleError::KeyMissing(_) => Self::bad_request("key-missing", error.to_string()),
            ApplyScheduleError::TooMany => {
                Self::new(StatusCode::CONFLICT, "too-many-schedules", error.to_string()).with("limit", SCHEDULES_MAX)
            }
            ApplyScheduleError::TooLarge { .. } => {
                Self::new(StatusCode::CONFLICT, "schedules-too-large", error.to_string())
                    .with("limit_bytes", DEFINITIONS_BYTES_MAX)
            }
            ApplyScheduleError::UnclearTick { .. } => Self::internal("storage", error),
            ApplyScheduleError::Topic(error) => error.into(),
            ApplyScheduleError::Journal(error) => error.into(),
        }
    }
}

impl From<ScheduleError> for Problem {
    fn from(error: ScheduleError) -> Self {
        match error {
            ScheduleError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown-schedule", error.to_string()),
            ScheduleError::Disabled(_) => Self::new(StatusCode::CONFLICT, "schedule-disabled", error.to_string()),
            ScheduleError::Journal(error) => error.into(),
        }
    }
}

impl From<ResetTriggerError> for Problem {
    fn from(error: ResetTriggerError) -> Self {
        match &error {
            ResetTriggerError::Unknown(_) => Self::new(StatusCode::NOT_FOUND, "unknown-trigger", error.to_string()),
            ResetTriggerError::NotPaused(_) => Self::new(StatusCode::CONFLICT, "not-paused", error.to_string()),
            ResetTriggerError::Offset { log_start, tail, .. } => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "offset-out-of-range", error.to_string())
                    .with("log_start", log_start.get())
                    .with("tail", tail.get())
            }
            ResetTriggerError::Beyond { tail, .. } => {
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "offset-out-of-range", error.to_string())
                    .with("tail", tail.get())
            }
            ResetTriggerError::Partition(cause) => cause.clone().into(),
            ResetTriggerError::OtherTopic(_) => Self::bad_request("other-topic", error.to_string()),
            ResetTriggerError::Choice(error) => error.clone().into(),
            ResetTriggerError::Members(_) => Self::new(StatusCode::CONFLICT, "group-members", error.to_string()),
            ResetTriggerError::Changed(_) => Self::new(StatusCode::CONFLICT, "changed", error.to_string()),
            ResetTriggerError::Cluster(_) | ResetTriggerError::Unclear(_) => {
                Self::new(StatusCode::BAD_GATEWAY, "cluster", error.to_string())
            }
            ResetTriggerError::Journal(_) | ResetTriggerError::Lane(_) => Self::internal("trigger-state", error),
        }
    }
}

impl From<RunError> for Problem {
    fn from(error: RunError) -> Self {
        match error {
            RunError::UnknownTrigger(_) => Self::new(StatusCode::NOT_FOUND, "unknown-trigger", error.to_string()),
            RunError::UnknownRun { .. } => Self::new(StatusCode::NOT_FOUND, "unknown-run", error.to_string()),
            RunError::NoDeadLetters(_) => Self::new(StatusCode::CONFLICT, "no-dead-letter-topic", error.to_string()),
            RunError::Choice(error) => error.into(),
            RunError::Empty { .. } => Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "empty-range", error.to_string()),
            RunError::Partition { .. } => Self::bad_request("unknown-partition", error.to_string()),
            RunError::State(_) => Self::new(StatusCode::CONFLICT, "run-state", error.to_string()),
            RunError::Cluster(_) => Self::new(StatusCode::BAD_GATEWAY, "cluster", error.to_string()),
            RunError::Offline(cause) => cause.into(),
            RunError::Scan(_) => Self::internal("storage", error),
            RunError::Journal(error) => error.into(),
            RunError::Lane(_) => Self::internal("trigger-state", error),
        }
    }
}

impl From<InvocationError> for Problem {
    fn from(error: InvocationError) -> Self {
        let status = match error.class {
            ErrorClass::BrokenCode if error.code == "unknown-function" => {
                return Self::new(StatusCode::NOT_FOUND, "unknown-function", error.message);
            }
            ErrorClass::Failed if error.code == "timeout" => StatusCode::GATEWAY_TIMEOUT,
            ErrorClass::Throttled => StatusCode::TOO_MANY_REQUESTS,
            ErrorClass::Unavailable | ErrorClass::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
            ErrorClass::Failed | ErrorClass::Rejected | ErrorClass::BrokenCode | ErrorClass::Crashed => {
                StatusCode::BAD_GATEWAY
            }
        };
        let problem = Self::new(status, "invocation-failed", error.message)
            .with("error_class", error.class.as_str())
            .with("error_code", error.code);
        match error.retry_after {
            Some(wait) => problem.with("retry_after_s", wait.as_secs_f64().ceil() as u64),
            None => problem,
        }
    }
}
