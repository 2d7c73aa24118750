//! What the state journal remembers: its records, in their released shapes.
//!
//! | kind | version | body |
//! |---|---|---|
//! | 1 | 1 | [`TopicCreated`] |
//! | 2 | 1 | [`TopicDeleted`] |
//! | 3 | 1 | [`TopicConfigured`] |
//! | 10 | 1 | [`FunctionDeployed`] |
//! | 11 | 1 | [`FunctionRemoved`] |
//! | 20 | 1 | [`TriggerDefined`] |
//! | 21 | 1 | [`TriggerRemoved`] |
//! | 22 | 1 | [`TriggerSwitched`] |
//! | 23 | 1 | [`TriggerProgress`] |
//! | 24 | 1 | retired before the first release |
//! | 25 | 1 | [`TriggerVerdict`] |
//! | 26 | 1 | [`TriggerSettled`] |
//! | 27 | 1 | [`TriggerTopicForgotten`] |
//! | 28 | 1 | [`TriggerStart`] |
//! | 30 | 1 | [`OffsetCommitted`] |
//! | 31 | 1 | [`GroupForgotten`] |
//! | 40 | 1 | [`ProducerIds`] |
//! | 50 | 1 | [`ScheduleDefined`] |
//! | 51 | 1 | [`ScheduleRemoved`] |
//! | 52 | 1 | [`ScheduleSwitched`] |
//! | 53 | 1 | [`ScheduleFiring`] |
//! | 54 | 1 | [`ScheduleFired`] |
//! | 55 | 1 | [`ScheduleTicksDone`] |
//! | 60 | 1 | [`RunDefined`] |
//! | 61 | 1 | [`RunSwitched`] |
//! | 62 | 1 | [`RunForgotten`] |
//! | 63 | 1 | [`LettersDiscarded`] |
//! | 70 | 1 | [`ClockSeen`] |
//!
//! A record sets what it is about; the last one wins. So a journal whose beginning was replaced by the records of the
//! live state says the same as before. Definitions are kept as the JSON that people write, which outlives our types.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::codec::{self, DecodeError, Frame};

macro_rules! journal_records {
    ($($(#[$doc:meta])* $kind:literal, $version:literal => $name:ident),+ $(,)?) => {
        /// One record of the state journal.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum JournalRecord {
            $($(#[$doc])* $name($name),)+
        }

        impl JournalRecord {
            /// The record's bytes.
            #[must_use]
            pub fn encode(&self) -> Vec<u8> {
                match self {
                    $(Self::$name(body) => codec::encode($kind, $version, body),)+
                }
            }

            /// The record of these bytes.
            ///
            /// # Errors
            /// See [`DecodeError`].
            pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
                let frame = Frame::open(bytes)?;
                match (frame.kind, frame.version) {
                    $(($kind, $version) => frame.body().map(Self::$name),)+
                    _ => Err(frame.unknown()),
                }
            }
        }

        $(impl From<$name> for JournalRecord {
            fn from(body: $name) -> Self {
                Self::$name(body)
            }
        })+
    };
}

journal_records! {
    /// A topic exists from here on.
    1, 1 => TopicCreated,
    /// A topic is no more; its id is not used again.
    2, 1 => TopicDeleted,
    /// A topic's settings are now these.
    3, 1 => TopicConfigured,
    /// A function's definition and code version are now these.
    10, 1 => FunctionDeployed,
    /// A function is no more.
    11, 1 => FunctionRemoved,
    /// A trigger's definition is now this.
    20, 1 => TriggerDefined,
    /// A trigger and its progress are no more.
    21, 1 => TriggerRemoved,
    /// A person paused or resumed a trigger.
    22, 1 => TriggerSwitched,
    /// How far a trigger has come in a partition.
    23, 1 => TriggerProgress,
    /// A window is given up. Once more when it is known where its dead letters go; they follow, then it is settled.
    25, 1 => TriggerVerdict,
    /// Verdicts are carried out, and progress has passed their records.
    26, 1 => TriggerSettled,
    /// A trigger does not read a topic any more; its progress there is forgotten.
    27, 1 => TriggerTopicForgotten,
    /// Where a trigger starts in a partition of a cluster, until its group knows.
    28, 1 => TriggerStart,
    /// A group's committed offset in a partition.
    30, 1 => OffsetCommitted,
    /// All offsets of a group are forgotten.
    31, 1 => GroupForgotten,
    /// Producer ids below this may have been handed out.
    40, 1 => ProducerIds,
    /// A schedule's definition is now this.
    50, 1 => ScheduleDefined,
    /// A schedule is no more.
    51, 1 => ScheduleRemoved,
    /// A person paused or resumed a schedule.
    52, 1 => ScheduleSwitched,
    /// A tick's event is about to be appended.
    53, 1 => ScheduleFiring,
    /// A tick's event is in its topic.
    54, 1 => ScheduleFired,
    /// The ticks of a stretch of time are done; others before it were left out.
    55, 1 => ScheduleTicksDone,
    /// A run of a trigger over a range is defined so.
    60, 1 => RunDefined,
    /// A run goes on, was cancelled, or has ended.
    61, 1 => RunSwitched,
    /// A run that has ended is forgotten.
    62, 1 => RunForgotten,
    /// Dead letters of a trigger below an offset are not wanted any more.
    63, 1 => LettersDiscarded,
    /// What the next start is to know of the clock that deletes by age.
    70, 1 => ClockSeen,
}

/// See [`JournalRecord::TopicCreated`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicCreated {
    /// Its id, for ever.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// Settings that differ from the defaults, by Kafka's names.
    pub config: BTreeMap<String, String>,
    /// When, ms since 1970.
    pub created_ms: i64,
}

/// See [`JournalRecord::TopicDeleted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicDeleted {
    /// Which.
    pub id: Uuid,
}

/// See [`JournalRecord::TopicConfigured`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicConfigured {
    /// Which.
    pub id: Uuid,
    /// Settings that differ from the defaults, by Kafka's names.
    pub config: BTreeMap<String, String>,
}

/// See [`JournalRecord::FunctionDeployed`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionDeployed {
    /// Its name.
    pub name: String,
    /// The version of its code in the code store; 0 for a runtime without code.
    pub version: u64,
    /// The definition as JSON.
    pub definition: String,
}

/// See [`JournalRecord::FunctionRemoved`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionRemoved {
    /// Its name.
    pub name: String,
}

/// See [`JournalRecord::TriggerDefined`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerDefined {
    /// Its id: a trigger that is deleted and made anew starts anew.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The definition as JSON.
    pub definition: String,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
}

/// See [`JournalRecord::TriggerRemoved`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerRemoved {
    /// Which.
    pub id: Uuid,
}

/// See [`JournalRecord::TriggerSwitched`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerSwitched {
    /// Which.
    pub id: Uuid,
    /// Whether it is paused now.
    pub paused: bool,
    /// Since when, ms since 1970.
    pub since_ms: i64,
}

/// One partition as a trigger reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LaneId {
    /// The trigger.
    pub trigger: Uuid,
    /// The topic it reads.
    pub topic: Uuid,
    /// The partition.
    pub partition: u32,
}

/// See [`JournalRecord::TriggerProgress`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerProgress {
    /// Where.
    pub lane: LaneId,
    /// `trigger::progress::Progress` in its own encoding.
    pub progress: Vec<u8>,
}

/// See [`JournalRecord::TriggerSettled`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerSettled {
    /// Where.
    pub lane: LaneId,
    /// `trigger::progress::Progress` in its own encoding.
    pub progress: Vec<u8>,
    /// The verdicts, by the first offset of the range that their window spans.
    pub verdicts: Vec<i64>,
}

/// See [`JournalRecord::TriggerVerdict`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerVerdict {
    /// Where.
    pub lane: LaneId,
    /// First offset of the range that the window spans.
    pub first: i64,
    /// One after its last offset.
    pub next: i64,
    /// The offsets given up, ascending: those of the range that matched the filter and failed.
    pub offsets: Vec<i64>,
    /// Why: `attempts`, `age`, `rejected` or `skipped`.
    pub reason: String,
    /// The function that failed, as dead letters call it.
    pub function: String,
    /// The attempts that led here, with the last error and what they were called, in the encoding of the trigger room.
    pub attempts: Vec<u8>,
    /// Where its dead letters go.
    pub dead_letters: LettersGo,
}

/// Where the dead letters of a verdict go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LettersGo {
    /// Nowhere: the records are dropped.
    Nowhere,
    /// There.
    To(DeadLetterTarget),
    /// That is not decided yet, and none was written.
    Undecided,
    /// To a topic of the cluster that the records come from.
    ToCluster(ClusterLetters),
}

/// Where the dead letters of a verdict go on a cluster, and under which id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterLetters {
    /// The name of the dead-letter topic.
    pub topic: String,
    /// Its partition.
    pub partition: u32,
    /// The producer id; every verdict has its own, with sequences from 0.
    pub producer_id: i64,
}

/// Where the dead letters of a verdict go, and the internal idempotent producer that writes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterTarget {
    /// The dead-letter topic.
    pub topic: Uuid,
    /// Its partition.
    pub partition: u32,
    /// The producer id; every verdict has its own, with sequences from 0.
    pub producer_id: i64,
    /// Bytes after which a batch of dead letters is full.
    pub batch_bytes: u32,
}

/// See [`JournalRecord::TriggerTopicForgotten`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerTopicForgotten {
    /// The trigger.
    pub trigger: Uuid,
    /// The topic that it read.
    pub topic: Uuid,
}

/// See [`JournalRecord::TriggerStart`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TriggerStart {
    /// The trigger.
    pub trigger: Uuid,
    /// The name of the cluster's topic.
    pub topic: String,
    /// The id that the cluster gives it; nil where it gives none.
    pub topic_id: Uuid,
    /// The partition.
    pub partition: u32,
    /// The first offset that the trigger reads; `None` forgets the start.
    pub offset: Option<i64>,
}

/// See [`JournalRecord::OffsetCommitted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetCommitted {
    /// The group.
    pub group: String,
    /// The topic.
    pub topic: Uuid,
    /// The partition.
    pub partition: u32,
    /// The next offset that the group reads; `None` forgets the commit.
    pub offset: Option<i64>,
    /// The leader epoch of the record before it, −1 when the client did not say.
    pub leader_epoch: i32,
    /// Whatever the client keeps there.
    pub metadata: String,
    /// When, ms since 1970.
    pub commit_ms: i64,
}

/// See [`JournalRecord::GroupForgotten`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupForgotten {
    /// The group.
    pub group: String,
}

/// See [`JournalRecord::ProducerIds`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProducerIds {
    /// Ids below were or may have been handed out.
    pub next: i64,
}

/// See [`JournalRecord::ScheduleDefined`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleDefined {
    /// Its id: a schedule that is deleted and made anew starts anew.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// The topic that it appends to.
    pub topic: Uuid,
    /// The definition as JSON.
    pub definition: String,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
    /// Ticks up to here are not its own, ms since 1970: it was made then, or became due at other times.
    pub since_ms: i64,
}

/// See [`JournalRecord::ScheduleRemoved`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleRemoved {
    /// Which.
    pub id: Uuid,
}

/// See [`JournalRecord::ScheduleSwitched`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleSwitched {
    /// Which.
    pub id: Uuid,
    /// Whether it is paused now.
    pub paused: bool,
    /// Since when, ms since 1970. Ticks up to a resumption are not made up for.
    pub since_ms: i64,
}

/// See [`JournalRecord::ScheduleFiring`]. Durable before the event is appended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleFiring {
    /// Which schedule.
    pub id: Uuid,
    /// The tick, seconds since 1970.
    pub tick_s: i64,
    /// The topic that its event goes to.
    pub topic: Uuid,
    /// The partition.
    pub partition: u32,
    /// The event has this offset or a later one.
    pub from: i64,
}

/// See [`JournalRecord::ScheduleFired`]. Not durable before the event is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleFired {
    /// Which schedule.
    pub id: Uuid,
    /// The tick, seconds since 1970.
    pub tick_s: i64,
}

/// See [`JournalRecord::ScheduleTicksDone`]. Comes before the [`ScheduleFired`] of the same tick, together with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleTicksDone {
    /// Which schedule.
    pub id: Uuid,
    /// The first tick, seconds since 1970.
    pub first_s: i64,
    /// The last one.
    pub last_s: i64,
}

/// See [`JournalRecord::RunDefined`]. Its progress is kept as that of a trigger, under the id of the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDefined {
    /// Its id.
    pub id: Uuid,
    /// Whose run it is.
    pub trigger: Uuid,
    /// The topic it reads.
    pub topic: Uuid,
    /// The definition as JSON.
    pub definition: String,
    /// When it was made, ms since 1970.
    pub created_ms: i64,
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunState {
    /// It does, also after a restart.
    Running,
    /// A person cancelled it; it can be resumed.
    Cancelled,
    /// It has come to the end of its range.
    Done,
    /// It was cancelled, and another one took its place.
    Replaced,
}

impl RunState {
    /// Whether nothing can follow: its progress is forgotten.
    #[must_use]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Done | Self::Replaced)
    }
}

/// See [`JournalRecord::RunSwitched`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunSwitched {
    /// Which.
    pub id: Uuid,
    /// What it is from here on.
    pub state: RunState,
    /// Since when, ms since 1970.
    pub since_ms: i64,
    /// What became of its records so far, in the encoding of the trigger room.
    pub counts: Vec<u8>,
}

/// See [`JournalRecord::RunForgotten`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunForgotten {
    /// Which.
    pub id: Uuid,
}

/// See [`JournalRecord::LettersDiscarded`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LettersDiscarded {
    /// Whose letters.
    pub trigger: Uuid,
    /// The dead-letter topic.
    pub topic: Uuid,
    /// The partition.
    pub partition: u32,
    /// The first offset that is still wanted.
    pub below: i64,
}

/// See [`JournalRecord::ClockSeen`], and `SeenClock` of the storage crate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSeen {
    /// What was believed last, ms since 1970.
    pub believed_ms: i64,
    /// Of a clock that was not: what it showed last, ms since 1970, and for how long it had run, ms.
    pub distrusted: Option<(i64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_bytes([7; 16]);

    /// Kind, version, then the body: what a release has written stays readable.
    #[test]
    fn the_records_of_schedules_are_these_bytes() {
        let topic = Uuid::from_bytes([9; 16]);
        let (id_hex, topic_hex) = (format!("10{}", "07".repeat(16)), format!("10{}", "09".repeat(16)));
        let defined = ScheduleDefined {
            id: ID,
            name: "n".to_owned(),
            topic,
            definition: "{}".to_owned(),
            created_ms: 1,
            since_ms: -1,
        };
        let records: [(JournalRecord, String); 6] = [
            (defined.into(), format!("3201{id_hex}016e{topic_hex}027b7d0201")),
            (ScheduleRemoved { id: ID }.into(), format!("3301{id_hex}")),
            (ScheduleSwitched { id: ID, paused: true, since_ms: 2 }.into(), format!("3401{id_hex}0104")),
            (
                ScheduleFiring { id: ID, tick_s: 60, topic, partition: 3, from: 5 }.into(),
                format!("3501{id_hex}78{topic_hex}030a"),
            ),
            (ScheduleFired { id: ID, tick_s: 60 }.into(), format!("3601{id_hex}78")),
            (ScheduleTicksDone { id: ID, first_s: 3, last_s: 60 }.into(), format!("3701{id_hex}0678")),
        ];
        hold(&records);
    }

    #[test]
    fn the_record_of_a_topic_that_is_read_no_more_is_these_bytes() {
        let forgotten = TriggerTopicForgotten { trigger: ID, topic: Uuid::from_bytes([9; 16]) };
        hold(&[(forgotten.into(), format!("1b0110{}10{}", "07".repeat(16), "09".repeat(16)))]);
    }

    #[test]
    fn the_record_of_a_start_is_these_bytes() {
        let start = |offset| {
            let (topic, topic_id) = ("n".to_owned(), Uuid::from_bytes([9; 16]));
            TriggerStart { trigger: ID, topic, topic_id, partition: 3, offset }.into()
        };
        let of = format!("1c0110{}016e10{}03", "07".repeat(16), "09".repeat(16));
        hold(&[(start(Some(5)), format!("{of}010a")), (start(None), format!("{of}00"))]);
    }

    fn hold(records: &[(JournalRecord, String)]) {
        for (record, expected) in records {
            let bytes = record.encode();
            let hex: String = bytes[8..].iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(&hex, expected, "{record:?}");
            assert_eq!(JournalRecord::decode(&bytes).unwrap(), *record);
        }
    }

    #[test]
    fn the_records_of_runs_are_these_bytes() {
        let (trigger, topic) = (Uuid::from_bytes([8; 16]), Uuid::from_bytes([9; 16]));
        let hex_of = |byte: &str| format!("10{}", byte.repeat(16));
        let (id_hex, trigger_hex, topic_hex) = (hex_of("07"), hex_of("08"), hex_of("09"));
        let definition = "{}".to_owned();
        let switched = |state| RunSwitched { id: ID, state, since_ms: 2, counts: vec![5] };
        hold(&[
            (
                RunDefined { id: ID, trigger, topic, definition, created_ms: 1 }.into(),
                format!("3c01{id_hex}{trigger_hex}{topic_hex}027b7d02"),
            ),
            (switched(RunState::Running).into(), format!("3d01{id_hex}00040105")),
            (switched(RunState::Cancelled).into(), format!("3d01{id_hex}01040105")),
            (switched(RunState::Done).into(), format!("3d01{id_hex}02040105")),
            (switched(RunState::Replaced).into(), format!("3d01{id_hex}03040105")),
            (RunForgotten { id: ID }.into(), format!("3e01{id_hex}")),
            (
                LettersDiscarded { trigger, topic, partition: 3, below: 5 }.into(),
                format!("3f01{trigger_hex}{topic_hex}030a"),
            ),
        ]);
    }

    #[test]
    fn what_is_seen_of_the_clock_keeps_its_shape() {
        hold(&[
            (ClockSeen { believed_ms: 5, distrusted: None }.into(), "46010a00".to_owned()),
            (ClockSeen { believed_ms: 5, distrusted: Some((7, 3)) }.into(), "46010a010e03".to_owned()),
        ]);
    }
}
