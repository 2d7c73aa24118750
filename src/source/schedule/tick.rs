//! A tick, and the event that it becomes.
//!
//! The event is a CloudEvent in binary mode, as the Kafka protocol binding has it: attributes in headers, data in the
//! value.
//!
//! | header | value |
//! |---|---|
//! | `ce_specversion` | `1.0` |
//! | `ce_id` | `<schedule>/<time of the tick>` |
//! | `ce_source` | `/<cluster id>/schedules/<schedule>` |
//! | `ce_type` | `tripline.schedule.tick` |
//! | `ce_time` | the time of the tick, however late it is appended |
//! | `ce_subject` | the schedule |
//! | `content-type` | `application/json` |

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::spec::ScheduleSpec;

/// The `type` of a tick's event.
pub const TICK_TYPE: &str = "tripline.schedule.tick";
/// The header that has the tick's id.
pub const ID_HEADER: &str = "ce_id";

/// The header that has the cluster and the schedule.
pub const SOURCE_HEADER: &str = "ce_source";

/// A moment at which a schedule is due: whole seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(i64);

impl Tick {
    /// The tick at `unix_s` seconds since 1970.
    #[must_use]
    pub const fn new(unix_s: i64) -> Self {
        Self(unix_s)
    }

    /// Seconds since 1970.
    #[must_use]
    pub const fn unix_s(self) -> i64 {
        self.0
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub const fn unix_ms(self) -> i64 {
        self.0.saturating_mul(1000)
    }

    /// RFC 3339 in UTC: `2026-12-01T07:00:00Z`.
    #[must_use]
    pub fn time_text(self) -> String {
        Timestamp::from_second(self.0).map_or_else(|_| self.0.to_string(), |time| time.to_string())
    }

    /// Its id, which no other tick has.
    #[must_use]
    pub fn id(self, schedule: &str) -> String {
        format!("{schedule}/{}", self.time_text())
    }
}

/// The `ce_source` of a schedule's events.
#[must_use]
pub fn source(schedule: &str, cluster_id: Uuid) -> String {
    format!("/{cluster_id}/schedules/{schedule}")
}

/// A record to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TickRecord {
    /// Its key.
    pub key: Option<Vec<u8>>,
    /// Its value.
    pub value: Vec<u8>,
    /// Its headers.
    pub headers: [(&'static str, String); 7],
}

impl TickRecord {
    /// The event of a tick. Without `data`, it tells the schedule and the time.
    #[must_use]
    pub fn new(spec: &ScheduleSpec, tick: Tick, cluster_id: Uuid) -> Self {
        let name = spec.name.as_str();
        let value = match &spec.data {
            Some(data) => data.as_bytes().to_vec(),
            None => json!({ "schedule": name, "time": tick.time_text() }).to_string().into_bytes(),
        };
        let headers = [
            ("ce_specversion", "1.0".to_owned()),
            (ID_HEADER, tick.id(name)),
            (SOURCE_HEADER, source(name, cluster_id)),
            ("ce_type", TICK_TYPE.to_owned()),
            ("ce_time", tick.time_text()),
            ("ce_subject", name.to_owned()),
            ("content-type", "application/json".to_owned()),
        ];
        Self { key: spec.key.as_ref().map(|key| key.as_bytes().to_vec()), value, headers }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn record(definition: Value) -> String {
        let spec = ScheduleSpec::from_json(&definition).unwrap();
        let record = TickRecord::new(&spec, Tick::new(1_796_108_400), Uuid::nil());
        let mut text = String::new();
        for (name, value) in &record.headers {
            text.push_str(&format!("{name}={value}\n"));
        }
        let key = record.key.map(|key| String::from_utf8(key).unwrap());
        format!("{text}{key:?}\n{}\n", String::from_utf8(record.value).unwrap())
    }

    #[test]
    fn the_event_is_these_bytes() {
        let expected = "ce_specversion=1.0\n\
            ce_id=nightly/2026-12-01T07:00:00Z\n\
            ce_source=/00000000-0000-0000-0000-000000000000/schedules/nightly\n\
            ce_type=tripline.schedule.tick\n\
            ce_time=2026-12-01T07:00:00Z\n\
            ce_subject=nightly\n\
            content-type=application/json\n";
        let plain = json!({"schedule": "nightly", "rate": "1h", "topic": "ticks"});
        let value = r#"{"schedule":"nightly","time":"2026-12-01T07:00:00Z"}"#;
        assert_eq!(record(plain), format!("{expected}None\n{value}\n"));
        let full = json!({"schedule": "nightly", "rate": "1h", "topic": "ticks", "key": "k", "data": {"b": [1, null]}});
        assert_eq!(record(full), format!("{expected}Some(\"k\")\n{{\"b\":[1,null]}}\n"));
        let null = json!({"schedule": "nightly", "rate": "1h", "topic": "ticks", "data": null});
        assert_eq!(record(null), format!("{expected}None\nnull\n"), "JSON, no tombstone");
    }
}
