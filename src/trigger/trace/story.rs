//! The story of one event, put together from what is known of it. Pure: facts in, a story out.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::record::{AttemptRecord, Fact, Next, VerdictRecord};
use crate::trigger::attempt::{AttemptState, ExhaustedReason};
use crate::trigger::lane::{Before, Standing};

/// What is known of one event.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Story {
    /// The time of the answer, ms since 1970: what is still to come counts from here.
    pub now_ms: i64,
    /// The event.
    pub event: EventFacts,
    /// Every trigger that reads its topic or has left history of it, by name.
    pub triggers: Vec<TriggerStory>,
    /// How far history goes back.
    pub history: History,
    /// How the event was found, when it was asked for by its own id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Searched>,
}

/// Where an event is and what it says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct EventFacts {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The offset.
    pub offset: i64,
    /// Why its record cannot be shown: it is not in the log any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<String>,
    /// The record's timestamp, ms since 1970: its producer's, unless the topic has the broker's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp_ms: Option<i64>,
    /// Key, value and headers, in bytes.
    pub size_bytes: u64,
    /// The record's key, where it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The event's id.
    pub id: String,
    /// Its source.
    pub source: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// Its `traceparent`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Its `tracestate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracestate: Option<String>,
}

/// What one trigger did with the event, and will do.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct TriggerStory {
    /// Its name.
    pub trigger: String,
    /// Its function, or its URL.
    pub function: String,
    /// What became of the event.
    pub outcome: TriggerOutcome,
    /// The same in a sentence.
    pub summary: String,
    /// What the trigger is doing, such as `Running` or `Outage`; nothing for one that was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Why, where it does not simply run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_reason: Option<String>,
    /// Whether its filter takes the event. Asked now, of the definition in force; unknown when record or trigger are
    /// gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matches: Option<bool>,
    /// The clauses that turn the event away.
    pub why_not: Vec<WhyNot>,
    /// Attempts with the event, oldest first, as far as history is kept.
    pub attempts: Vec<AttemptStory>,
    /// What was decided when attempts were spent.
    pub verdicts: Vec<VerdictStory>,
    /// What it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TriggerOutcome {
    /// The function took it.
    Done,
    /// It is in the dead-letter topic.
    DeadLettered,
    /// It was given up, and there is no dead-letter topic.
    Dropped,
    /// The filter turns it away.
    NotMatched,
    /// It is finished; history does not say how.
    Finished,
    /// The trigger has not come to it yet.
    Unread,
    /// Its window fills, or waits for others or for a free invocation.
    Queued,
    /// It waits behind its key, which fails or floods.
    KeyBlocked,
    /// The function has it.
    InFlight,
    /// It waits for its next attempt.
    Waiting,
    /// It is given up and becomes a dead letter, or is dropped.
    GivingUp,
}

/// A clause of a filter that no value of the event satisfies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WhyNot {
    /// Which of the patterns that `$or` amounts to, from 0.
    pub alternative: usize,
    /// The keys, joined with dots.
    pub path: String,
    /// What the pattern asks for there.
    pub expected: String,
    /// What the event has there.
    pub found: String,
}

/// One attempt with the event.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct AttemptStory {
    /// What the invocation is called: the same for all attempts of a window.
    pub window: String,
    /// How many records were in it.
    pub records: u64,
    /// From 1; an attempt that is not counted has the number of the next one.
    pub attempt: u32,
    /// How often the broker had stopped during an attempt on this window before.
    pub interrupted: u32,
    /// When it began, ms since 1970.
    pub began_ms: i64,
    /// How long the function had it, ms.
    pub took_ms: f64,
    /// For this event: `success`, or the class of the error.
    pub outcome: String,
    /// Others of its window came out differently.
    pub partial: bool,
    /// A short word for the error.
    pub code: String,
    /// The error for people.
    pub message: String,
    /// What followed: `retry`, `throttled`, `outage`, `broken-code`, `blocked` or `given-up-…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub follows: Option<Next>,
    /// When, ms since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub follows_at_ms: Option<i64>,
    /// The `traceparent` that the function was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The event was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct VerdictStory {
    /// `attempts`, `age`, `rejected` or `skipped`.
    pub reason: String,
    /// Attempts that were made.
    pub attempts: u32,
    /// When that was carried out, ms since 1970.
    pub at_ms: i64,
    /// Class, code and message of the last error.
    pub error: String,
    /// The dead letter; nothing when the record was dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<LetterPlace>,
}

/// Where a dead letter is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct LetterPlace {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: u32,
    /// The offset; unknown when retention took it, or a crash came between.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<i64>,
}

/// What an event waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pending {
    /// When it goes on by itself, ms since 1970, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// The number of the attempt that runs or comes next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// When the attempt that runs began, ms since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub began_ms: Option<i64>,
    /// Windows that come first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows_ahead: Option<usize>,
    /// The window that holds it up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behind: Option<Behind>,
    /// Where the trigger reads next, when it has not come to the event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reading_at: Option<i64>,
}

/// A window that holds others up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Behind {
    /// The offset that its invocations are called by.
    pub offset: i64,
    /// Attempts spent on it.
    pub attempts: u32,
    /// When it may start, ms since 1970, where it waits for a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ms: Option<i64>,
    /// Its last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// How far history goes back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct History {
    /// The topic that holds it.
    pub topic: String,
    /// The time of the oldest record that there is, ms since 1970; nothing when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
    /// Attempts and verdicts that are missing in it since the broker started.
    pub dropped: u64,
    /// What was looked at.
    pub searched: Searched,
}

/// What was looked at to find something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Searched {
    /// Records.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// The bound that ended it before everything was looked at: `records`, `bytes` or `time`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<String>,
}

/// What is known of a trigger that reads the event's partition.
#[derive(Clone, Debug)]
pub(super) struct TriggerFacts {
    pub(super) id: Uuid,
    pub(super) trigger: String,
    pub(super) function: String,
    pub(super) state: &'static str,
    pub(super) state_reason: String,
    /// What turns the event away, if the record is there; empty when it matches.
    pub(super) why_not: Option<Vec<WhyNot>>,
    pub(super) standing: Option<Standing>,
    /// Whether a newer record of its key may have taken the event's place.
    pub(super) holds_back: bool,
}

/// What history has of the event, with the place of its dead letter, where it has one.
pub(super) type Told = (Fact<'static>, Option<LetterPlace>);

/// The part of each trigger, by name.
pub(super) fn triggers(facts: Vec<TriggerFacts>, told: &[Told], offset: i64) -> Vec<TriggerStory> {
    // A run over a range belongs to the trigger of its name.
    let is_of = |record: &Fact<'_>, id: Uuid, name: &str| {
        let subject = record.subject();
        subject.trigger_id == id || (subject.run.is_some() && subject.trigger == name)
    };
    let mut gone: Vec<&Told> = Vec::new();
    for one in told {
        let known = facts.iter().any(|facts| is_of(&one.0, facts.id, &facts.trigger));
        let id = one.0.subject().trigger_id;
        if !known && !gone.iter().any(|(record, _)| record.subject().trigger_id == id) {
            gone.push(one);
        }
    }
    let deleted = gone.into_iter().map(|(record, _)| {
        let subject = record.subject();
        let mut story = TriggerStory::new(subject.trigger.to_string(), subject.function.to_string());
        story.tell(told.iter().filter(|(other, _)| other.subject().trigger_id == subject.trigger_id), offset);
        story.conclude(false);
        let where_from =
            if subject.run.is_some() { "in a run over a range" } else { "the trigger is not there any more" };
        story.summary = format!("{}; {where_from}", story.summary);
        story
    });
    let deleted: Vec<TriggerStory> = deleted.collect();
    let present = facts.into_iter().map(|facts| {
        let own = told.iter().filter(|(record, _)| is_of(record, facts.id, &facts.trigger));
        let mut story = TriggerStory::new(facts.trigger.clone(), facts.function);
        story.tell(own, offset);
        story.state = Some(facts.state.to_owned());
        story.state_reason = Some(facts.state_reason).filter(|reason| !reason.is_empty());
        story.matches = facts.why_not.as_ref().map(Vec::is_empty);
        story.why_not = facts.why_not.unwrap_or_default();
        story.stands(facts.standing.unwrap_or(Standing::Finished), facts.holds_back);
        story
    });
    let mut stories: Vec<TriggerStory> = present.chain(deleted).collect();
    stories.sort_by(|a, b| a.trigger.cmp(&b.trigger));
    stories
}

impl TriggerStory {
    const fn new(trigger: String, function: String) -> Self {
        Self {
            trigger,
            function,
            outcome: TriggerOutcome::Finished,
            summary: String::new(),
            state: None,
            state_reason: None,
            matches: None,
            why_not: Vec::new(),
            attempts: Vec::new(),
            verdicts: Vec::new(),
            pending: None,
        }
    }

    fn tell<'t>(&mut self, told: impl Iterator<Item = &'t Told>, offset: i64) {
        for (record, letter) in told {
            match record {
                Fact::Attempt(attempt) => self.attempts.push(AttemptStory::of(attempt, offset)),
                Fact::Verdict(verdict) => self.verdicts.push(VerdictStory::of(verdict, letter.clone())),
            }
        }
        self.attempts.sort_by_key(|attempt| attempt.began_ms);
        self.verdicts.sort_by_key(|verdict| verdict.at_ms);
    }

    /// The trigger has finished with the event.
    fn conclude(&mut self, holds_back: bool) {
        let last = self.attempts.last();
        let verdict =
            self.verdicts.last().filter(|verdict| last.is_none_or(|attempt| attempt.began_ms <= verdict.at_ms));
        (self.outcome, self.summary) = match (last, verdict) {
            (_, Some(verdict)) => verdict.concludes(),
            (Some(attempt), None) if attempt.outcome == "success" => {
                (TriggerOutcome::Done, format!("attempt {} succeeded", attempt.attempt))
            }
            (Some(attempt), None) => {
                let what = format!("attempt {} failed, and what followed is not on record", attempt.attempt);
                (TriggerOutcome::Finished, what)
            }
            (None, None) if self.matches == Some(false) => {
                (TriggerOutcome::NotMatched, "the filter turns it away".to_owned())
            }
            (None, None) => {
                let held_back = if holds_back {
                    ", it was held back for a newer record of its key (debounce, singleton)"
                } else {
                    ""
                };
                let why = format!(
                    "no attempt is on record: it lies before the trigger's start, an earlier definition turned it away{held_back}, or its history was not kept"
                );
                (TriggerOutcome::Finished, why)
            }
        };
    }

    /// What the trigger's lane says of the event.
    fn stands(&mut self, standing: Standing, holds_back: bool) {
        let mut pending = Pending::default();
        let attempt = |state: &AttemptState| Some(state.attempt_number());
        (self.outcome, self.summary) = match standing {
            Standing::Finished => return self.conclude(holds_back),
            Standing::Unread { at } => {
                pending.reading_at = Some(at.get());
                let expected = if self.matches == Some(false) { "; the filter will turn it away" } else { "" };
                (TriggerOutcome::Unread, format!("not read yet, the trigger reads at offset {at}{expected}"))
            }
            Standing::ReadAgain => {
                let why = "unfinished, and read again after a restart or a change of the definition";
                (TriggerOutcome::Unread, why.to_owned())
            }
            Standing::Filling { closes_ms } => {
                pending.until_ms = closes_ms;
                let until = if closes_ms.is_some() { "until its window closes" } else { "for a free invocation" };
                (TriggerOutcome::Queued, format!("waits {until}"))
            }
            Standing::Queued { ahead, front } => {
                pending.windows_ahead = Some(ahead);
                let summary = format!("queued, {ahead} window(s) come first; {}", front.holds_up());
                pending.behind = Some(front.into());
                (TriggerOutcome::Queued, summary)
            }
            Standing::Ready(state) => {
                pending.attempt = attempt(&state);
                (
                    TriggerOutcome::Queued,
                    format!("attempt {} begins when an invocation is free", state.attempt_number()),
                )
            }
            Standing::Waiting { until_ms, state } => {
                (pending.until_ms, pending.attempt) = (Some(until_ms), attempt(&state));
                (TriggerOutcome::Waiting, waits(&state))
            }
            Standing::InFlight(state) => {
                (pending.attempt, pending.began_ms) = (attempt(&state), state.last_attempt_ms);
                (TriggerOutcome::InFlight, format!("attempt {} is running", state.attempt_number()))
            }
            Standing::GivenUp { reason, state } => {
                let why = match reason {
                    ExhaustedReason::Attempts => "all attempts are spent",
                    ExhaustedReason::Age => "it is too old",
                    ExhaustedReason::Rejected => "the function refuses it",
                    ExhaustedReason::Skipped => "a person skips it",
                };
                (TriggerOutcome::GivingUp, format!("being given up after {} attempt(s), {why}", state.attempts))
            }
            Standing::KeyBlocked { front } => {
                let why = front
                    .as_ref()
                    .map_or_else(|| "its key catches up, or waits for its turn".to_owned(), Before::holds_up);
                pending.behind = front.map(Behind::from);
                (TriggerOutcome::KeyBlocked, format!("waits in the log behind its key; {why}"))
            }
        };
        self.pending = Some(pending);
    }
}

/// Why a window waits for its next attempt.
fn waits(state: &AttemptState) -> String {
    use crate::function::ErrorClass;
    let why = match state.last_error.as_ref().map(|error| error.class) {
        Some(ErrorClass::Throttled) => ": the target asked to slow down",
        Some(ErrorClass::Unavailable) => ": the target cannot be reached",
        Some(ErrorClass::BrokenCode) => ": the code does not run",
        _ => "",
    };
    format!("waits for attempt {}{why}", state.attempt_number())
}

impl Before {
    fn holds_up(&self) -> String {
        match &self.last_error {
            Some(error) => format!("that of offset {} fails since {} attempt(s): {error}", self.name, self.attempts),
            None => format!("that of offset {} has its turn", self.name),
        }
    }
}

impl From<Before> for Behind {
    fn from(before: Before) -> Self {
        let Before { name, attempts, until_ms, last_error } = before;
        Self { offset: name.get(), attempts, until_ms, last_error }
    }
}

impl AttemptStory {
    fn of(record: &AttemptRecord<'_>, offset: i64) -> Self {
        let rejected = record.rejected.contains(offset);
        let outcome = match (rejected, record.failed.contains(offset)) {
            (true, _) => "rejected",
            (false, true) => &record.outcome,
            (false, false) => "success",
        };
        let concerned = record.outcome == outcome;
        let text = |text: &str| if concerned { text.to_owned() } else { String::new() };
        let follows = record.follows.filter(|_| !rejected && outcome != "success");
        let unlike_others = record.failed.count() + record.rejected.count();
        Self {
            window: record.window.to_string(),
            records: record.subject.offsets.count(),
            attempt: record.attempt,
            interrupted: record.interrupted,
            began_ms: record.began_ms,
            took_ms: record.took_us as f64 / 1000.0,
            outcome: outcome.to_owned(),
            partial: unlike_others > 0 && (outcome == "success" || unlike_others < record.subject.offsets.count()),
            code: text(&record.code),
            message: text(&record.message),
            follows: follows.map(|follows| follows.what),
            follows_at_ms: follows.and_then(|follows| follows.at_ms),
            traceparent: record.traceparent.as_ref().map(ToString::to_string),
        }
    }
}

impl VerdictStory {
    fn of(record: &VerdictRecord<'_>, dead_letter: Option<LetterPlace>) -> Self {
        let error = [&record.outcome, &record.code, &record.message];
        let error: Vec<&str> = error.into_iter().map(AsRef::as_ref).filter(|part: &&str| !part.is_empty()).collect();
        Self {
            reason: record.reason.to_string(),
            attempts: record.attempts,
            at_ms: record.at_ms,
            error: error.join(" "),
            dead_letter,
        }
    }

    fn concludes(&self) -> (TriggerOutcome, String) {
        let after = match self.reason.as_str() {
            "rejected" => "the function refused it".to_owned(),
            "skipped" => "a person skipped it".to_owned(),
            "age" => format!("it was too old after {} attempt(s)", self.attempts),
            _ => format!("after {} attempt(s)", self.attempts),
        };
        match &self.dead_letter {
            Some(letter) => (TriggerOutcome::DeadLettered, format!("dead letter {letter}, {after}")),
            None => (TriggerOutcome::Dropped, format!("dropped, there was no dead-letter topic; {after}")),
        }
    }
}

impl std::fmt::Display for LetterPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.offset {
            Some(offset) => write!(f, "{}/{}/{offset}", self.topic, self.partition),
            None => write!(f, "in {}/{} (where is not known any more)", self.topic, self.partition),
        }
    }
}
