//! The bodies of requests and errors as the description of the API shows them. What is allowed in them is up to their
//! readers; a test holds the names here to those that the readers know. Durations are texts such as `500ms`, sizes are
//! numbers of bytes or texts such as `1MiB`; a position in a partition is an offset, an RFC 3339 time, `earliest` or
//! `latest`.

#![expect(dead_code, reason = "only the description reads them")]

use std::collections::BTreeMap;

use serde_json::Value;
use utoipa::ToSchema;

/// A topic.
#[derive(ToSchema)]
pub(super) struct TopicBody {
    /// Its name; may be left out where it stands in the path.
    #[schema(required = false)]
    topic: String,
    /// How many partitions it has, default 1.
    #[schema(required = false, minimum = 1, maximum = 1000)]
    partitions: u32,
    /// Its settings, such as `retention.ms`.
    #[schema(required = false)]
    config: BTreeMap<String, Value>,
}

/// Records to append.
#[derive(ToSchema)]
pub(super) struct RecordsBody {
    /// 1 to 100,000.
    records: Vec<RecordBody>,
}

/// A record to append.
#[derive(ToSchema)]
pub(super) struct RecordBody {
    /// Its key.
    #[schema(required = false)]
    key: String,
    /// Its key, where that is no text.
    #[schema(required = false, content_encoding = "base64")]
    key_base64: String,
    /// Its value: the bytes of this JSON, as it is written.
    #[schema(required = false)]
    value: Value,
    /// Its value, byte for byte.
    #[schema(required = false, content_encoding = "base64")]
    value_base64: String,
    /// By name: a text, null, `{"base64": …}`, or a list of those.
    #[schema(required = false)]
    headers: BTreeMap<String, Value>,
    /// Its partition; by its key when left out, else any.
    #[schema(required = false)]
    partition: u32,
    /// Milliseconds since 1970; now when left out.
    #[schema(required = false, minimum = 0)]
    timestamp: i64,
}

/// A CloudEvent 1.0 in structured mode.
#[derive(ToSchema)]
pub(super) struct CloudEventBody {
    /// `1.0`
    specversion: String,
    /// Its id.
    id: String,
    /// Where it comes from.
    source: String,
    /// What it is.
    r#type: String,
    /// The key of its record.
    #[schema(required = false)]
    partitionkey: String,
    /// What it says.
    #[schema(required = false)]
    data: Value,
}

/// A trigger.
#[derive(ToSchema)]
pub(super) struct TriggerBody {
    /// Its name, which stands in the path.
    #[schema(required = false)]
    trigger: String,
    /// What it reads: `{"topic": …, "start": …}`. Needed.
    #[schema(required = false)]
    input: Value,
    /// Another word for `input`.
    #[schema(required = false)]
    source: Value,
    /// Which events it takes, an event pattern; all when left out.
    #[schema(required = false)]
    filter: Value,
    /// What becomes of an event before it is handed over.
    #[schema(required = false)]
    transform: Value,
    /// How records are put together: `{"count", "interval", "bytes", "max_wait"}`, and `adaptive`.
    #[schema(required = false)]
    window: Value,
    /// `partition` (default), `key` or `none`.
    #[schema(required = false)]
    order: String,
    /// With order by key: `{"throttle", "debounce", "singleton"}`.
    #[schema(required = false)]
    per_key: Value,
    /// What is in hand at a time: `{"records", "bytes", "invocations_per_second"}`.
    #[schema(required = false)]
    limits: Value,
    /// Whether a window that fails is halved. Default false.
    #[schema(required = false)]
    bisect: bool,
    /// Invocations at a time, default 8.
    #[schema(required = false, minimum = 1, maximum = 10_000)]
    concurrency: u32,
    /// The name of a function, or `{"http": {"url": …}}`.
    function: Value,
    /// The name of a preset, or `{"initial", "factor", "max_interval", "max_attempts", "jitter", "max_age"}`.
    #[schema(required = false)]
    retry: Value,
    /// `all` (default) or `none`.
    #[schema(required = false)]
    errors_tolerance: String,
    /// `{"topic": …}`, or `none`.
    #[schema(required = false)]
    dead_letter: Value,
    /// What it leaves behind: `{"results", "on_success", "on_failure"}`.
    #[schema(required = false)]
    destinations: Value,
    /// What history keeps: `all` (default), `failures` or `none`.
    #[schema(required = false)]
    trace: String,
}

/// A schedule. One of `cron`, `rate` and `at` is needed.
#[derive(ToSchema)]
pub(super) struct ScheduleBody {
    /// Its name, which stands in the path.
    #[schema(required = false)]
    schedule: String,
    /// A cron expression of five or six fields.
    #[schema(required = false)]
    cron: String,
    /// A duration of whole seconds from tick to tick.
    #[schema(required = false)]
    rate: String,
    /// One moment.
    #[schema(required = false)]
    at: String,
    /// The zone whose clock it follows, default `UTC`.
    #[schema(required = false)]
    timezone: String,
    /// No tick before this moment.
    #[schema(required = false)]
    start: String,
    /// No tick after this moment.
    #[schema(required = false)]
    end: String,
    /// Events come up to so much after their tick.
    #[schema(required = false)]
    jitter: String,
    /// What happens to missed ticks: `skip` (default) or `once`.
    #[schema(required = false)]
    catch_up: String,
    /// Where its events go.
    topic: String,
    /// The key of its records.
    #[schema(required = false)]
    key: String,
    /// The data of its events.
    #[schema(required = false)]
    data: Value,
    /// Default true.
    #[schema(required = false)]
    enabled: bool,
}

/// A function.
#[derive(ToSchema)]
pub(super) struct FunctionBody {
    /// Its name, which stands in the path.
    #[schema(required = false)]
    function: String,
    /// `python3` or `http`.
    runtime: String,
    /// A source file or a zip archive, for `python3`; what is there stays when left out.
    #[schema(required = false, content_encoding = "base64")]
    code_base64: String,
    /// `module.function`, for `python3`.
    #[schema(required = false)]
    handler: String,
    /// `module.function` that is called once in each process, for `python3`.
    #[schema(required = false)]
    initializer: String,
    /// Where it is, for `http`.
    #[schema(required = false)]
    url: String,
    /// `{"min", "max", "concurrency", "idle"}`.
    #[schema(required = false)]
    instances: Value,
    /// For one invocation, default `30s`.
    #[schema(required = false)]
    timeout: String,
    /// Of one process, default 256 MiB.
    #[schema(required = false)]
    memory: Value,
    /// Variables by name.
    #[schema(required = false)]
    environment: BTreeMap<String, Value>,
    /// What it gets: `events` (default) or `raw`.
    #[schema(required = false)]
    payload: String,
}

/// Where to set a trigger.
#[derive(ToSchema)]
pub(super) struct ResetBody {
    /// In this topic; may be left out where the trigger reads one.
    #[schema(required = false)]
    topic: String,
    /// In this partition; in all when left out.
    #[schema(required = false)]
    partition: u32,
    /// The next record: its offset, an RFC 3339 time, `earliest` or `latest`.
    to: Value,
}

/// A part of a partition, or of all partitions.
#[derive(ToSchema)]
pub(super) struct RangeBody {
    /// Of this partition; of all when left out.
    #[schema(required = false)]
    partition: u32,
    /// Its first record: an offset, an RFC 3339 time, `latest`, or `earliest`, the default.
    #[schema(required = false)]
    from: Value,
    /// The record after its last: an offset, an RFC 3339 time, `earliest`, or `latest`, the default.
    #[schema(required = false)]
    to: Value,
}

/// What to read again.
#[derive(ToSchema)]
pub(super) struct ReplayBody {
    /// Of this topic; may be left out where the trigger reads one.
    #[schema(required = false)]
    topic: String,
    /// Of this partition; of all when left out.
    #[schema(required = false)]
    partition: u32,
    /// The first record: an offset, an RFC 3339 time, `latest`, or `earliest`, the default.
    #[schema(required = false)]
    from: Value,
    /// The record after the last: an offset, an RFC 3339 time, `earliest`, or `latest`, the default.
    #[schema(required = false)]
    to: Value,
    /// Instead of `partition`, `from` and `to`.
    #[schema(required = false)]
    ranges: Vec<RangeBody>,
    /// Records that may begin in a second.
    #[schema(required = false, minimum = 1, maximum = 1_000_000)]
    rate: u32,
}

/// Which dead letters to put back.
#[derive(ToSchema)]
pub(super) struct RedriveBody {
    /// Of this partition of the dead-letter topic; of all when left out.
    #[schema(required = false)]
    partition: u32,
    /// The first letter: an offset, an RFC 3339 time, `latest`, or `earliest`, the default.
    #[schema(required = false)]
    from: Value,
    /// The letter after the last: an offset, an RFC 3339 time, `earliest`, or `latest`, the default.
    #[schema(required = false)]
    to: Value,
    /// Instead of `partition`, `from` and `to`.
    #[schema(required = false)]
    ranges: Vec<RangeBody>,
    /// Which letters, an event pattern; all when left out.
    #[schema(required = false)]
    filter: Value,
    /// At most so many.
    #[schema(required = false, minimum = 1)]
    max: u32,
    /// Letters that may begin in a second.
    #[schema(required = false, minimum = 1, maximum = 1_000_000)]
    rate: u32,
    /// Those that were redriven so often are passed over, default 10.
    #[schema(required = false, minimum = 1, maximum = 1_000_000)]
    max_redrives: u32,
    /// However often they were redriven.
    #[schema(required = false)]
    force: bool,
    /// Also those that an earlier redrive took.
    #[schema(required = false)]
    again: bool,
    /// Only tell what it would do.
    #[schema(required = false)]
    dry_run: bool,
}

/// Which dead letters to let go.
#[derive(ToSchema)]
pub(super) struct DiscardBody {
    /// Of this partition of the dead-letter topic; of all when left out.
    #[schema(required = false)]
    partition: u32,
    /// The first letter that is still wanted: its offset, an RFC 3339 time, `earliest` or `latest`.
    to: Value,
}

/// What to look at.
#[derive(ToSchema)]
pub(super) struct DryRunBody {
    /// Of this topic; may be left out where the trigger reads one.
    #[schema(required = false)]
    topic: String,
    /// Of this partition; of all when left out.
    #[schema(required = false)]
    partition: u32,
    /// The first record: an offset, an RFC 3339 time, `latest`, or `earliest`, the default.
    #[schema(required = false)]
    from: Value,
    /// The record after the last: an offset, an RFC 3339 time, `earliest`, or `latest`, the default.
    #[schema(required = false)]
    to: Value,
    /// Instead of `partition`, `from` and `to`.
    #[schema(required = false)]
    ranges: Vec<RangeBody>,
    /// An event pattern in place of the trigger's.
    #[schema(required = false)]
    pattern: Value,
    /// Events that are shown, default 5.
    #[schema(required = false)]
    samples: u32,
    /// How long to look: `1ms` to `30s`, default `10s`.
    #[schema(required = false)]
    time: String,
}

/// What to explain: a record, or an event.
#[derive(ToSchema)]
pub(super) struct ExplainBody {
    /// Any JSON, taken as an event.
    #[schema(required = false)]
    event: Value,
    /// The topic of the record; may be left out where the trigger reads one.
    #[schema(required = false)]
    topic: String,
    /// The partition of the record.
    #[schema(required = false)]
    partition: u32,
    /// The offset of the record.
    #[schema(required = false)]
    offset: u64,
}

/// A pattern to try.
#[derive(ToSchema)]
pub(super) struct PatternTestBody {
    /// An event pattern.
    pattern: Value,
    /// Any JSON, taken as an event.
    event: Value,
}

/// A transform to try.
#[derive(ToSchema)]
pub(super) struct TransformTestBody {
    /// As in a trigger.
    transform: Value,
    /// Any JSON, taken as an event.
    event: Value,
}

/// What went wrong, as problem details (RFC 9457). Some have facts besides, such as `limit`.
#[derive(ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody {
    /// `urn:tripline:error:` and the code.
    r#type: String,
    /// The status in words.
    title: String,
    /// The status of the answer.
    status: u16,
    /// A stable word for programs.
    code: String,
    /// A sentence for people: what, where, what to do.
    detail: String,
    /// All that is wrong with a definition, where that is it: `path`, `found`, `allowed`, `suggestion`.
    #[schema(required = false)]
    errors: Vec<Value>,
}
