//! The story of one event.

use axum::Json;
use axum::extract::{RawQuery, State};
use http::StatusCode;

use super::topics::topic_name;
use crate::http::extract::Segments;
use crate::http::problem::Problem;
use crate::http::query::Query;
use crate::http::rooms::Rooms;
use crate::trigger::trace::story::Story;
use crate::trigger::trace::{SearchLimits, TraceError, Wanted};

/// The most records that a search may be told to look at.
const LIMIT_MAX: u32 = 100_000_000;
/// The longest id, in bytes.
const ID_BYTES_MAX: usize = 1_024;

/// What became of one event, and what is still to come: produced, and for every trigger of its topic matched or why
/// not, attempts, verdict, what it waits for.
///
/// Filters are asked now, of the definitions in force. Attempts and verdicts come from the topic `__tripline.traces`,
/// which keeps seven days of them, at most 256 MiB. An event's own id is looked up there first, then in the newest
/// records of the topics.
#[utoipa::path(get, path = "/v1/events/{id}", tag = "events", params(
    ("id" = String, Path, description = "`TOPIC/PARTITION/OFFSET` (with `%2F` for `/`); with `topic`, also `PARTITION-OFFSET`; else the event's own id"),
    ("topic" = Option<String>, Query, description = "The topic of the event; all are searched when left out"),
    ("limit" = Option<u32>, Query, description = "Records that a search looks at, 1 to 100,000,000, default 1,000,000; it also ends after 512 MiB or 5 s"),
), responses(
    (status = 200, description = "Its story", body = Story),
    (status = 404, description = "Problem details; `searched` tells what was looked at, and the bound that ended it"),
    (status = "4XX", description = "Problem details"),
))]
pub(crate) async fn get(
    State(rooms): State<Rooms>,
    Segments(id): Segments<String>,
    RawQuery(query): RawQuery,
) -> Result<Json<Story>, Problem> {
    let query = Query::parse(query.as_deref(), &["topic", "limit"])?;
    let topic = query.text("topic").map(topic_name).transpose()?;
    let default = SearchLimits::default();
    let records = query.number("limit", 1, LIMIT_MAX)?.map_or(default.records, u64::from);
    if id.is_empty() || id.len() > ID_BYTES_MAX {
        let detail = format!("the id has {} bytes, allowed: 1 to {ID_BYTES_MAX}", id.len());
        return Err(Problem::bad_request("invalid-id", detail));
    }
    let story = rooms.triggers.trace(&Wanted::parse(&id, topic), SearchLimits { records, ..default }).await?;
    Ok(Json(story))
}

impl From<TraceError> for Problem {
    fn from(error: TraceError) -> Self {
        let detail = error.to_string();
        match error {
            TraceError::UnknownTopic(_) | TraceError::NotRead { .. } => {
                Self::new(StatusCode::NOT_FOUND, "unknown-topic", detail)
            }
            TraceError::Partition(error) => error.into(),
            TraceError::NotProduced { .. } => Self::new(StatusCode::NOT_FOUND, "unknown-event", detail),
            TraceError::NotFound { searched, .. } => Self::new(StatusCode::NOT_FOUND, "unknown-event", detail)
                .with("searched", serde_json::to_value(searched).unwrap_or_default()),
            TraceError::Unreadable(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "unreadable", detail),
        }
    }
}
