//! A lane, the log that it reads and the journal that it is written to, in simulated time: one action at a time, each
//! followed by whatever must hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use fastrand::Rng;
use tripline::function::{ErrorClass, InvocationError};
use tripline::trigger::attempt::{AttemptState, ErrorsTolerance, ExhaustedReason, FREE_INTERRUPTIONS, Step};
use tripline::trigger::lane::{Carried, Lane, LaneSpec, Outcome, WindowId};
use tripline::trigger::progress::{ENCODED_BYTES_MAX, Progress};
use tripline::trigger::spec::Order;
use tripline::trigger::window::{RecordFacts, Spot};
use tripline_storage::Offset;

use super::group::{self, Group};
use super::model::{Fate, Model, Record, Tried, Written};
use super::specs;

/// Records in a chunk at most.
const CHUNK_RECORDS: usize = 12;
/// Attempts at a time at most.
const SLOTS_MAX: usize = 24;

pub(crate) type Checked = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// A verdict in the journal.
#[derive(Clone, Debug)]
struct Verdict {
    /// What the invocations of its window were called.
    name: Offset,
    offsets: Vec<Offset>,
    state: AttemptState,
    reason: ExhaustedReason,
    /// Its dead letters are written.
    lettered: bool,
}

/// A window that was given up, on its way.
#[derive(Clone, Debug)]
pub(super) struct Settling {
    pub(super) window: WindowId,
    first: Offset,
    /// What is to be decided; nothing, where the verdict is written.
    decide: Option<(AttemptState, ExhaustedReason)>,
    pub(super) offsets: Vec<Offset>,
    /// On a cluster.
    pub(super) letters: Option<group::Letters>,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) model: Model,
    pub(crate) lane: Lane,
    spec: LaneSpec,
    pub(super) now_ms: i64,
    keys: u64,
    match_percent: u32,
    /// Which of the records those are.
    filter: u64,
    /// There was another one before.
    pub(super) is_refiltered: bool,
    poison_permille: u32,
    slots: usize,
    /// The journal: progress, and verdicts by their first offset.
    written: Vec<u8>,
    /// How far this lane had read when it was written.
    written_at: Offset,
    verdicts: BTreeMap<Offset, Verdict>,
    /// Where it is not a journal: its lane is on a cluster.
    pub(super) group: Option<Group>,
    pub(super) starting: Vec<WindowId>,
    in_flight: Vec<WindowId>,
    pub(super) settling: Vec<Settling>,
    settled: Vec<Offset>,
    pub(super) dirty: bool,
    paused: bool,
    failed: bool,
    outage: Option<i64>,
    catches_up: bool,
    /// Records that the lane withheld, and that were not yet missed in what it wrote.
    withheld: usize,
    /// The most records that a lane was allowed so far.
    records_max: usize,
    /// Below this offset another order was in force.
    ordered_from: Offset,
    /// Whose windows go on beside those of the new order.
    own_queues: Vec<u64>,
    /// From now on everything succeeds.
    pub(crate) calm: bool,
    /// What was done, where somebody wants to read it.
    pub(crate) told: Option<String>,
    /// The same for the same history.
    pub(crate) digest: u64,
    pub(crate) writes: u64,
    pub(crate) crashes: u64,
    pub(crate) starts: u64,
}

impl World {
    pub(crate) fn new(seed: u64, tell: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let match_percent = [100, 100, 70, 20][rng.usize(..4)];
        let spec = LaneSpec { filter: filter_number(0, match_percent), ..specs::spec(&mut rng) };
        let start = Progress::start(Offset::ZERO);
        let keys = if rng.bool() { rng.u64(1..4) } else { rng.u64(1..30) };
        let mut world = Self {
            model: Model::default(),
            lane: Lane::restore(spec.clone(), &start, Vec::new()),
            now_ms: 1_000_000,
            keys,
            match_percent,
            filter: 0,
            is_refiltered: false,
            poison_permille: [0, 0, 50, 200][rng.usize(..4)],
            slots: [1, 3, 8, SLOTS_MAX][rng.usize(..4)],
            written: start.encode().expect("a start fits"),
            written_at: Offset::ZERO,
            verdicts: BTreeMap::new(),
            // Drawn from elsewhere: the others do what they did.
            group: (Rng::with_seed(!seed).u32(..4) == 0).then(Group::default),
            starting: Vec::new(),
            in_flight: Vec::new(),
            settling: Vec::new(),
            settled: Vec::new(),
            dirty: false,
            paused: false,
            failed: false,
            outage: None,
            catches_up: false,
            withheld: 0,
            records_max: 0,
            ordered_from: Offset::ZERO,
            own_queues: Vec::new(),
            calm: false,
            told: tell.then(String::new),
            digest: seed,
            writes: 0,
            crashes: 0,
            starts: 0,
            spec,
            rng,
        };
        let line = format!("{:?}", world.spec);
        world.tell(&line);
        world
    }

    pub(crate) fn tell(&mut self, what: &str) {
        for byte in what.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(5);
        }
        let now_ms = self.now_ms;
        if let Some(told) = &mut self.told {
            let _ = writeln!(told, "{now_ms}: {what}");
        }
    }

    fn may_run(&self) -> bool {
        !self.paused && !self.failed
    }

    fn takes_time(&self) -> bool {
        self.may_run() && self.outage.is_none()
    }

    // What happens in the world around.

    pub(crate) fn append(&mut self) {
        let count = if self.rng.u32(..8) == 0 { self.rng.usize(1..40) } else { self.rng.usize(1..5) };
        let mut at = self.model.tail;
        for _ in 0..count {
            if self.rng.u32(..6) == 0 {
                at = at.checked_add(self.rng.u64(1..200)).expect("far from the end");
            }
            let record = Record {
                offset: at,
                matches: self.lets_in(at),
                doubtful: false,
                unsure: false,
                let_in: false,
                key: self.rng.u64(..self.keys) * 7919,
                size_bytes: self.rng.u64(..20),
                appended_ms: self.now_ms,
                poison: self.rng.u32(..1000) < self.poison_permille,
                fate: Fate::Unfinished,
                tried: None,
                given_up: false,
                aside: false,
                verdict: false,
                group: 0,
                repeated: false,
                letters: 0,
                invoked: false,
                may_double: false,
            };
            self.model.records.push(record);
            at = at.next();
        }
        self.model.tail = at;
        let line = format!("append {count} to {at}");
        self.tell(&line);
    }

    pub(crate) fn pass_time(&mut self) {
        let wait_ms = match (self.rng.u32(..4), self.lane.deadline_ms()) {
            (0, _) => self.rng.i64(0..10_000),
            (1, _) => self.rng.i64(0..5),
            (_, Some(at_ms)) => (at_ms - self.now_ms).clamp(0, 100_000),
            (_, None) => self.rng.i64(0..500),
        };
        self.now_ms += wait_ms;
    }

    pub(crate) fn expire(&mut self) {
        let Some(record) = self.model.records.get(self.rng.usize(..self.model.records.len().max(1))) else { return };
        let log_start = record.offset;
        if self.lane.position() < self.lane.progress().reading_point() {
            // What is gone before it was read again is not counted.
            let written = Written::of(self.lane.progress());
            for record in &mut self.model.records {
                record.unsure |= record.is_left() && written.window_of(record).is_some();
            }
        }
        self.model.expire_to(log_start);
        let line = format!("retention to {log_start}");
        self.tell(&line);
    }

    // Reading.

    fn facts(&self, from: Offset, next: Offset) -> Vec<RecordFacts> {
        let records = &self.model.records[self.model.index_from(from)..self.model.index_from(next)];
        let facts = records.iter().filter(|record| record.matches).map(|record| RecordFacts {
            offset: record.offset,
            key: if self.lane.needs_keys() { record.key } else { 0 },
            size_bytes: record.size_bytes,
            age: Duration::from_millis((self.now_ms - record.appended_ms).unsigned_abs()),
            spot: Spot::UNKNOWN,
        });
        facts.collect()
    }

    /// The end of the chunk from here: behind a record, or where the next one begins.
    fn chunk_end(&mut self, from: Offset) -> Offset {
        let first = self.model.index_from(from);
        let last = (first + self.rng.usize(..CHUNK_RECORDS)).min(self.model.records.len());
        match self.model.records.get(last) {
            None => self.model.tail,
            Some(record) if record.offset <= from || self.rng.bool() => record.offset.next(),
            Some(record) => record.offset,
        }
    }

    fn wants_to_read(&self) -> Option<Offset> {
        self.lane.read_at().filter(|at| *at < self.model.tail)
    }

    /// As the poller does it. Answers whether there was something to read.
    pub(crate) fn read(&mut self) -> Result<bool, String> {
        if !self.may_run() {
            return Ok(false);
        }
        let catch_up = self.lane.catch_up_at().filter(|_| {
            self.catches_up = !self.catches_up;
            self.catches_up || self.wants_to_read().is_none()
        });
        let Some(from) = catch_up.or_else(|| self.wants_to_read()) else { return Ok(false) };
        if from < self.model.log_start {
            let log_start = self.model.log_start;
            let line = format!("read {from}, gone to {log_start}, catch up {}", catch_up.is_some());
            self.tell(&line);
            match catch_up {
                Some(_) => self.lane.take_spilled(&[], from, log_start, self.now_ms),
                None => self.lane.pass(log_start, self.now_ms),
            }
            self.dirty = true;
            self.took()?;
            return Ok(true);
        }
        let mut next = self.chunk_end(from);
        let mut facts = self.facts(from, next);
        let room = if catch_up.is_some() { usize::MAX } else { self.lane.room() };
        if facts.len() >= room {
            facts.truncate(room);
            next = facts[room - 1].offset.next();
        }
        let line = format!("read {from}..{next}, {} match, catch up {}", facts.len(), catch_up.is_some());
        self.tell(&line);
        if catch_up.is_some() {
            self.lane.take_spilled(&facts, from, next, self.now_ms);
            self.dirty = true;
        } else {
            self.lane.take(&facts, next, self.now_ms);
            self.dirty |= !self.lane.is_idle();
        }
        self.took()?;
        Ok(true)
    }

    fn took(&mut self) -> Checked {
        let withheld = self.lane.take_withheld();
        self.withheld += withheld.debounced + withheld.skipped;
        // A new definition may allow less than is in hand.
        self.records_max = self.records_max.max(self.spec.limits.records);
        let (held, records_max) = (self.lane.held_records(), self.records_max);
        ensure!(held <= records_max, "T3: {held} records in hand of {records_max}");
        Ok(())
    }

    // Attempts.

    /// Windows whose turn it is are taken. Answers whether there was one.
    pub(crate) fn start(&mut self) -> Result<bool, String> {
        if !self.may_run() || self.outage.is_some_and(|probe_at_ms| probe_at_ms > self.now_ms) {
            return Ok(false);
        }
        let slots = if self.outage.is_some() { 1 } else { self.slots };
        let mut any = false;
        while self.starting.len() + self.in_flight.len() < slots {
            let more = self.wants_to_read().is_some();
            let Some(next) = self.lane.next(more, self.now_ms) else { break };
            let size_bytes = next.size_bytes();
            // Where all fits: else the attempts of what is cut off may not.
            let raw = self.spec.limits.progress_bytes == ENCODED_BYTES_MAX && self.rng.u32(..10) == 0;
            let window = next.start(if raw { 1 } else { usize::MAX }, self.now_ms);
            ensure!(raw || size_bytes >= self.lane.size_bytes(window), "the window is larger than was told");
            self.started(window)?;
            (any, self.dirty) = (true, true);
        }
        Ok(any)
    }

    fn started(&mut self, window: WindowId) -> Checked {
        let offsets = self.lane.offsets(window);
        self.starts += 1;
        // As long as it is tried, it is the same.
        let known = offsets.iter().map(|offset| self.model.get(*offset)).filter(|record| record.tried.is_some());
        let group = known.map(|record| record.group).find(|group| *group != 0).unwrap_or(self.starts);
        let line = format!("start {window:?} {offsets:?}, attempt {}", self.lane.state(window).attempt_number());
        self.tell(&line);
        ensure!(!offsets.is_empty() && offsets.is_sorted(), "a window of records in order");
        ensure!(offsets.len() <= 5, "a window of {} records", offsets.len());
        self.may_start(&offsets)?;
        let state = self.lane.state(window).clone();
        let policies = self.spec.policies;
        let spent =
            state.attempts < policies.retry.max_attempts() || policies.errors_tolerance == ErrorsTolerance::None;
        // A new definition may allow fewer than were made.
        ensure!(spent || self.ordered_from > Offset::ZERO, "T4: attempt {} of {:?}", state.attempt_number(), policies);
        for offset in offsets {
            let now_ms = self.now_ms;
            let record = self.model.get_mut(offset);
            if std::mem::take(&mut record.unsure) {
                record.given_up = false;
            } else if let Some(tried) = record.tried {
                let attempts = tried.attempts..=tried.attempts_max;
                ensure!(attempts.contains(&state.attempts), "T4: {offset} had {tried:?}, now {state:?}");
                ensure!(tried.interrupted == state.interrupted, "T4: {offset} had {tried:?}, now {state:?}");
                let at_ms = tried.next_attempt_ms.unwrap_or(now_ms);
                ensure!(at_ms <= now_ms, "T4: {offset} is tried {} ms early", at_ms - now_ms);
            } else {
                ensure!(state.attempts == 0, "T4: {offset} had no attempts, now {state:?}");
            }
            (record.group, record.invoked) = (group, true);
            let (attempts, interrupted) = (state.attempts, state.interrupted);
            record.tried = Some(Tried {
                attempts,
                attempts_max: attempts,
                interrupted,
                stopped_at: None,
                running: true,
                next_attempt_ms: None,
            });
        }
        self.starting.push(window);
        Ok(())
    }

    /// T1 and T2 for an attempt that begins.
    fn may_start(&self, offsets: &[Offset]) -> Checked {
        let last = offsets[offsets.len() - 1];
        for &offset in offsets {
            let record = self.model.get(offset);
            ensure!(record.matches, "{offset} does not match");
            let given_up = record.given_up && !record.unsure;
            ensure!(!record.verdict && !given_up, "T1: {offset} is given up and begins again: {record:?}");
            let gone = record.fate == Fate::Expired;
            ensure!(gone || record.fate == Fate::Unfinished, "T1: {offset} is finished and begins again: {record:?}");
        }
        let busy: Vec<Offset> =
            self.starting.iter().chain(&self.in_flight).flat_map(|&window| self.lane.offsets(window)).collect();
        for other in busy {
            ensure!(!offsets.contains(&other), "T2: {other} is in two attempts");
            for &offset in offsets {
                ensure!(!self.in_order(offset, other), "T2: {offset} begins while {other} is in flight");
            }
        }
        if self.spec.order == Order::None {
            return Ok(());
        }
        let aside = offsets.iter().any(|&offset| self.model.get(offset).aside);
        for waiting in self.model.unfinished().take_while(|record| record.offset < last) {
            let passed = offsets.iter().any(|&offset| waiting.offset < offset && self.in_order(offset, waiting.offset));
            // A debounced record may have been replaced, one of a busy key passed over.
            let withheld =
                self.withheld > 0 || self.spec.per_key.debounce.is_some() || self.spec.per_key.singleton.is_some();
            let own = withheld && waiting.tried.is_none()
                || offsets.contains(&waiting.offset)
                || aside
                || waiting.aside
                || waiting.given_up
                || waiting.repeated;
            ensure!(own || !passed, "T2: {offsets:?} overtakes {waiting:?}");
        }
        Ok(())
    }

    /// Whether two records belong to one order lane.
    fn in_order(&self, one: Offset, other: Offset) -> bool {
        if one.min(other) < self.ordered_from {
            return false;
        }
        let (one, other) = (self.model.get(one).key, self.model.get(other).key);
        match self.spec.order {
            Order::Partition => !self.own_queues.contains(&one) && !self.own_queues.contains(&other),
            Order::Key => one == other,
            Order::None => false,
        }
    }

    /// An attempt ends, somehow.
    pub(crate) fn end(&mut self) -> Checked {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        let window = self.in_flight.swap_remove(self.rng.usize(..self.in_flight.len()));
        self.end_one(window)
    }

    fn end_one(&mut self, window: WindowId) -> Checked {
        if !self.calm && self.rng.u32(..20) == 0 {
            let at_ms = self.now_ms + self.rng.i64(1..2000);
            let line = format!("postpone {window:?} to {at_ms}");
            self.tell(&line);
            self.lane.postpone(window, at_ms);
            for offset in self.lane.offsets(window) {
                self.model.get_mut(offset).tried.as_mut().expect("what is in flight was tried").running = false;
            }
            self.dirty = true;
            return Ok(());
        }
        let all = self.lane.offsets(window);
        let sent: Vec<Offset> = all.iter().copied().filter(|offset| *offset >= self.model.log_start).collect();
        let outcome = self.outcome(&sent);
        let error = outcome.error.clone();
        let line = format!(
            "end {window:?} {all:?}: failed {:?} {:?}, rejected {:?}",
            outcome.failed,
            error.as_ref().map(|error| error.class),
            outcome.rejected.keys().collect::<Vec<_>>()
        );
        self.tell(&line);
        let random = self.rng.u64(..);
        let (failed, rejected) = (outcome.failed.clone(), outcome.rejected.clone());
        let step = self.lane.end(window, outcome, self.now_ms, random);
        let line = format!("  {step:?}");
        self.tell(&line);
        self.dirty = true;
        let done: Vec<Offset> =
            all.iter().copied().filter(|offset| !failed.contains(offset) && !rejected.contains_key(offset)).collect();
        let whole = done.is_empty();
        for offset in done {
            let record = self.model.get_mut(offset);
            record.tried = None;
            if record.fate == Fate::Unfinished {
                record.fate = Fate::Delivered;
            }
        }
        let tolerates = self.spec.policies.errors_tolerance == ErrorsTolerance::All;
        let blocked = self.lane.blocked().is_some();
        ensure!(!blocked || !tolerates, "it is blocked, and errors are tolerated");
        ensure!(blocked || !step.blocks(), "it is not shown that {window:?} is blocked");
        for offset in rejected.keys() {
            let record = self.model.get_mut(*offset);
            record.aside = true;
            let tried = record.tried.as_mut().expect("what is in flight was tried");
            // Where it could not be written down, it goes on with the others.
            (tried.running, tried.attempts_max, tried.next_attempt_ms) = (false, tried.attempts + 1, None);
        }
        let class = error.as_ref().map_or(ErrorClass::Failed, |error| error.class);
        let halves = failed.len() > 1
            && (class == ErrorClass::Crashed || class == ErrorClass::Failed && self.spec.bisect && whole);
        let mut spent = matches!(class, ErrorClass::Failed | ErrorClass::Crashed | ErrorClass::Rejected);
        for offset in &failed {
            let record = self.model.get_mut(*offset);
            let tried = record.tried.as_mut().expect("what is in flight was tried");
            tried.running = false;
            if class == ErrorClass::Interrupted {
                tried.interrupted += 1;
                spent = tried.interrupted > FREE_INTERRUPTIONS;
            }
            tried.attempts_max = tried.attempts + u32::from(spent);
            if !halves {
                tried.attempts = tried.attempts_max;
            }
            tried.next_attempt_ms = match step {
                Step::RetryAt { at_ms, .. } | Step::Blocked { at_ms, .. } if !halves => Some(at_ms),
                Step::Throttled { until_ms } => Some(until_ms),
                Step::Outage { probe_at_ms } => Some(probe_at_ms),
                _ => None,
            };
            if let Step::Exhausted { .. } = step {
                ensure!(tolerates, "errors are not tolerated, and yet {offset} is given up");
                record.given_up = true;
            }
        }
        match step {
            Step::Outage { probe_at_ms } => self.outage = Some(probe_at_ms),
            Step::BrokenCode => self.failed = true,
            _ if self.outage.is_some() => {
                self.outage = None;
                self.woken(true);
            }
            _ => {}
        }
        self.lane.suspend(!self.takes_time(), self.now_ms);
        Ok(())
    }

    fn outcome(&mut self, sent: &[Offset]) -> Outcome {
        if self.calm || sent.is_empty() {
            return Outcome::done();
        }
        let poisoned = sent.iter().any(|&offset| self.model.get(offset).poison);
        if poisoned {
            let class = if sent[0].get() % 2 == 0 { ErrorClass::Failed } else { ErrorClass::Crashed };
            return Outcome::failed(sent.to_vec(), self.error(class));
        }
        let class = match self.rng.u32(..40) {
            0..=3 => ErrorClass::Failed,
            4 => ErrorClass::Crashed,
            5 => ErrorClass::Rejected,
            6 => ErrorClass::Throttled,
            7 => ErrorClass::Unavailable,
            8 => ErrorClass::BrokenCode,
            9 => ErrorClass::Interrupted,
            10..=15 => return self.mixed(sent),
            _ => return Outcome::done(),
        };
        Outcome::failed(sent.to_vec(), self.error(class))
    }

    fn error(&mut self, class: ErrorClass) -> InvocationError {
        let mut error = InvocationError::new(class, "code", "message");
        if self.rng.u32(..3) == 0 {
            error.retry_after = Some(Duration::from_millis(self.rng.u64(..4000)));
        }
        error
    }

    fn mixed(&mut self, sent: &[Offset]) -> Outcome {
        let refuses = self.rng.bool();
        let mut outcome = Outcome::done();
        for &offset in sent {
            match self.rng.u32(..4) {
                0 | 1 => {
                    outcome.failed.insert(offset);
                }
                2 if refuses => {
                    let code = ["one", "two"][self.rng.usize(..2)];
                    outcome.rejected.insert(offset, InvocationError::new(ErrorClass::Rejected, code, "refused"));
                }
                _ => {}
            }
        }
        outcome.error =
            (!outcome.failed.is_empty()).then(|| InvocationError::new(ErrorClass::Failed, "some", "not all"));
        outcome
    }

    // Verdicts.

    /// One step on the way of a window that was given up. Answers whether there was one to make.
    pub(crate) fn settle(&mut self) -> Result<bool, String> {
        if let Some((window, reason)) = self.lane.next_given_up() {
            self.given_up(window, reason)?;
            return Ok(true);
        }
        if self.settling.is_empty() {
            return Ok(false);
        }
        let index = self.rng.usize(..self.settling.len());
        let Settling { window, first, decide, offsets, .. } = self.settling[index].clone();
        if decide.is_some() {
            // It is carried out when it is written down.
            self.dirty = true;
            return Ok(true);
        }
        if self.group.is_some() {
            return self.settle_in_group(index);
        }
        let verdict = self.verdicts.get_mut(&first).ok_or("a verdict is in the journal until it is settled")?;
        if !verdict.lettered {
            verdict.lettered = true;
            for offset in verdict.offsets.clone() {
                let record = self.model.get_mut(offset);
                record.letters += 1;
                ensure!(record.letters == 1, "two dead letters of {record:?}");
            }
            return Ok(true);
        }
        let line = format!("settle {window:?}");
        self.tell(&line);
        self.settling.swap_remove(index);
        self.lane.settle(window, self.now_ms);
        for offset in offsets {
            let record = self.model.get_mut(offset);
            record.tried = None;
            record.fate = Fate::Lettered;
        }
        self.settled.push(first);
        self.dirty = true;
        Ok(true)
    }

    /// Verdicts are written down with the progress that says so.
    fn write_verdicts(&mut self) -> Checked {
        for index in 0..self.settling.len() {
            let Some((state, reason)) = self.settling[index].decide.take() else { continue };
            let Settling { window, first, offsets, .. } = self.settling[index].clone();
            let name = self.lane.name(window);
            let line = format!("verdict on {offsets:?}");
            self.tell(&line);
            for &offset in &offsets {
                let record = self.model.get_mut(offset);
                ensure!(!record.verdict, "T1: two verdicts on {record:?}");
                record.verdict = true;
            }
            let before = self.verdicts.insert(first, Verdict { name, offsets, state, reason, lettered: false });
            ensure!(before.is_none(), "two verdicts from {first}");
        }
        Ok(())
    }

    fn given_up(&mut self, window: WindowId, reason: ExhaustedReason) -> Checked {
        let offsets = self.lane.offsets(window);
        let line = format!("give up {window:?} {offsets:?}, {reason:?}");
        self.tell(&line);
        let state = self.lane.state(window).clone();
        let written = self.verdicts.get(&offsets[0]).filter(|verdict| verdict.offsets == offsets);
        let name = self.lane.name(window);
        ensure!(written.is_none_or(|verdict| verdict.name == name), "{window:?} is called {name} after a restart");
        let written = written.is_some();
        for &offset in &offsets {
            let record = self.model.get_mut(offset);
            record.given_up = true;
            let gone = record.fate == Fate::Expired;
            ensure!(gone || record.fate == Fate::Unfinished, "T1: {record:?} is finished and given up");
        }
        let tried = |offset: &Offset| {
            let record = self.model.get(*offset);
            record.tried.is_some() || record.unsure
        };
        ensure!(written || offsets.iter().all(tried), "T1: {offsets:?} are given up and were never tried");
        let letters = self.letters_of(window)?;
        let decide = (!written && letters.is_none()).then_some((state, reason));
        self.dirty |= !written;
        self.settling.push(Settling { window, first: offsets[0], decide, offsets, letters });
        Ok(())
    }

    pub(crate) fn skip(&mut self) {
        let skipped = self.lane.skip();
        self.dirty = true;
        let line = format!("skip: {skipped}");
        self.tell(&line);
    }

    pub(crate) fn pause_or_resume(&mut self) {
        if self.paused || self.failed || self.outage.is_some() {
            (self.paused, self.failed, self.outage) = (false, false, None);
            self.woken(false);
        } else {
            self.paused = true;
        }
        let line = format!("may run: {}", self.may_run());
        self.tell(&line);
        self.lane.suspend(!self.takes_time(), self.now_ms);
    }

    pub(crate) fn woken(&mut self, unavailable_only: bool) {
        let line = format!("wake, unavailable only: {unavailable_only}");
        self.tell(&line);
        self.lane.wake(unavailable_only, self.now_ms);
        // Whose wait that ends is the lane's to say.
        for tried in self.model.records.iter_mut().filter_map(|record| record.tried.as_mut()) {
            tried.next_attempt_ms = None;
        }
        self.dirty = true;
    }

    pub(crate) fn set_count(&mut self) {
        self.lane.set_count(self.rng.u32(1..=5));
    }

    pub(crate) fn redefine(&mut self) {
        let mut spec = specs::spec(&mut self.rng);
        // What is in hand is not written anew under a smaller limit.
        spec.limits.progress_bytes = self.spec.limits.progress_bytes;
        let line = format!("redefine: {spec:?}");
        self.tell(&line);
        if spec.order != self.spec.order {
            self.ordered_from = self.model.tail;
            let keys = self.lane.progress().blocked_keys().iter().map(|key| key.hash).collect::<Vec<_>>();
            self.own_queues = if spec.order == Order::Key { Vec::new() } else { keys };
        }
        self.ordered_from = self.ordered_from.max(Offset::ZERO.next());
        let before = Written::of(self.lane.progress());
        let is_restoring = self.lane.position() < before.progress().reading_point();
        if self.rng.bool() {
            self.match_percent = [100, 70, 50, 20][self.rng.usize(..4)];
            self.filter += self.rng.u64(..2);
        }
        spec.filter = filter_number(self.filter, self.match_percent);
        let changes_filter = spec.filter != self.spec.filter;
        self.is_refiltered |= changes_filter;
        if changes_filter {
            let line = format!("{} of a hundred match", self.match_percent);
            self.tell(&line);
        }
        let unused = Lane::restore(spec.clone(), &Progress::start(Offset::ZERO), Vec::new());
        self.lane = std::mem::replace(&mut self.lane, unused).redefine(spec.clone(), self.now_ms);
        self.spec = spec;
        self.dirty = true;
        self.woken(false);
        if changes_filter {
            // What is let in now was passed over before.
            self.ordered_from = self.model.tail;
            let written = Written::of(self.lane.progress());
            self.refilter(&written);
            self.may_hold(&written);
            self.may_double_all();
            for record in self.model.records.iter_mut().filter(|record| is_restoring && record.is_left()) {
                record.unsure |= before.window_of(record).is_some();
            }
        }
        self.lane.suspend(!self.takes_time(), self.now_ms);
    }

    fn lets_in(&self, offset: Offset) -> bool {
        lets_in(self.filter, self.match_percent, offset)
    }

    /// Another filter is in force than when some of these records were read.
    fn refilter(&mut self, written: &Written) {
        let (filter, match_percent) = (self.filter, self.match_percent);
        let growing = self.growing();
        for record in &mut self.model.records {
            let lets_in = lets_in(filter, match_percent, record.offset);
            let decided = self.verdicts.values().any(|verdict| verdict.offsets.contains(&record.offset));
            if record.doubtful && !decided && !written.covers(record) {
                (record.matches, record.tried, record.given_up) = (false, None, false);
            }
            let in_hand = record.tried.is_some() || record.given_up || decided || record.unsure;
            record.doubtful = in_hand && !lets_in;
            if in_hand {
                continue;
            }
            if !lets_in || record.let_in && !written.covers(record) {
                record.matches = false;
            } else if !record.matches && written.covers(record) {
                record.matches = true;
                if record.fate == Fate::Delivered && growing.contains(&record.group) {
                    // It is still one of its window's.
                    continue;
                }
                record.let_in = true;
                if record.offset < self.model.log_start {
                    record.fate = Fate::Expired;
                } else if record.fate != Fate::Expired {
                    record.repeated |= record.fate == Fate::Delivered;
                    record.fate = Fate::Unfinished;
                }
            }
        }
    }

    /// Windows of which something is unfinished. What retention took of one counts for it until its attempt has ended.
    fn growing(&self) -> Vec<u64> {
        let grows = |record: &&Record| {
            record.matches
                && record.group != 0
                && (record.fate == Fate::Unfinished || record.fate == Fate::Expired && record.tried.is_some())
        };
        self.model.records.iter().filter(grows).map(|record| record.group).collect()
    }

    /// What is read again is taken, whatever it comes to.
    fn may_hold(&mut self, written: &Written) {
        // What retention took of a window in hand is held until that ends.
        let is_held =
            |record: &&Record| matches!(record.fate, Fate::Unfinished | Fate::Expired) && written.covers(record);
        let held = self.model.records.iter().filter(|record| record.matches).filter(is_held).count();
        self.records_max = self.records_max.max(held);
    }

    // The journal.

    /// Writes progress down; then what was to begin begins.
    pub(crate) fn write(&mut self) -> Checked {
        if !self.dirty && self.rng.u32(..3) != 0 {
            return Ok(());
        }
        self.took()?;
        while let Some((window, reason)) = self.lane.next_given_up() {
            self.given_up(window, reason)?;
        }
        if self.dirty {
            self.begin_letters();
        }
        let bytes = self.lane.encoded_progress();
        ensure!(
            bytes.len() <= self.spec.limits.progress_bytes.min(ENCODED_BYTES_MAX),
            "T3: progress of {} bytes",
            bytes.len()
        );
        ensure!(!self.lane.is_written_coarsely(), "T3: progress does not fit");
        let written = Written::decode(&bytes)?;
        if self.group.is_some() && self.rng.u32(..16) == 0 {
            self.tell("what is written is refused");
            return Ok(());
        }
        self.check_written(&written)?;
        let line = format!("write {:?}", written.progress());
        self.tell(&line);
        (self.written, self.written_at) = (bytes, self.lane.position());
        self.writes += 1;
        self.dirty = false;
        for first in std::mem::take(&mut self.settled) {
            self.verdicts.remove(&first);
        }
        self.write_verdicts()?;
        self.letters_are_known();
        let starting = std::mem::take(&mut self.starting);
        self.in_flight.extend(starting);
        Ok(())
    }

    fn check_written(&mut self, written: &Written) -> Checked {
        let before = Written::decode(&self.written)?;
        let committed = written.progress().committed();
        let before_at = before.progress().committed();
        ensure!(before_at <= committed, "T1: committed goes back from {before_at} to {committed}");
        self.check_finished(&before, written)?;
        self.check_goes_on(written)?;
        let (mut withheld, mut again, mut turned_away) = (Vec::new(), Vec::new(), Vec::new());
        let from = self.model.index_from(committed);
        let growing = self.growing();
        for (index, record) in self.model.records.iter().enumerate() {
            if !record.matches || record.fate == Fate::Expired || record.verdict && record.fate == Fate::Unfinished {
                continue;
            }
            if record.offset < self.model.log_start && record.fate != Fate::Unfinished {
                continue;
            }
            let covered = index >= from && written.covers(record);
            match record.fate {
                Fate::Unfinished if !covered && record.doubtful => turned_away.push(index),
                Fate::Unfinished if !covered && (record.tried.is_none() || record.unsure) => withheld.push(index),
                Fate::Unfinished if !covered => return Err(format!("T1: not covered: {record:?}")),
                Fate::Unfinished => {
                    let Some(tried) = record.tried.filter(|_| !record.unsure) else { continue };
                    let Some(window) = written.window_of(record) else {
                        return Err(format!("T4: attempts are not written: {record:?}"));
                    };
                    let found = Tried::from(window.attempts);
                    ensure!(tried.agrees(&found), "T4: {record:?} is written as {found:?}");
                }
                Fate::Delivered if growing.contains(&record.group) => {}
                // Its key was given back from a record in front of it on, and decides anew when that is read again.
                Fate::Withheld if covered && written.is_behind_key(record) => again.push(index),
                _ => ensure!(!covered, "finished and written as unfinished: {record:?}"),
            }
        }
        ensure!(withheld.len() <= self.withheld, "T1: not covered: {:?}", self.model.records[withheld[0]]);
        self.withheld -= withheld.len();
        withheld.into_iter().for_each(|index| self.model.records[index].fate = Fate::Withheld);
        again.into_iter().for_each(|index| self.model.records[index].fate = Fate::Unfinished);
        turned_away.into_iter().for_each(|index| self.model.records[index].matches = false);
        for record in &mut self.model.records[from..] {
            record.let_in &= !written.covers(record);
            let window = written.window_of(record).copied();
            if let (Some(tried), Some(window)) = (&mut record.tried, window)
                && (!window.attempts.running || tried.running)
            {
                (tried.attempts, tried.attempts_max) = (window.attempts.attempts, window.attempts.attempts);
            }
        }
        Ok(())
    }

    /// T1: what was delivered and written as finished is so for good, also what the filter lets in no more: another one
    /// may let it in again.
    fn check_finished(&self, before: &Written, written: &Written) -> Checked {
        let from = self.model.index_from(written.progress().committed());
        // What was read last and passed over stands in no range before the next record is read.
        let read_to = &self.model.records[..self.model.index_from(self.written_at)];
        let passed = read_to.iter().rposition(|record| record.matches).map_or(0, |last| last + 1)..read_to.len();
        // Nothing is read again of what is gone.
        let from = from.max(self.model.index_from(self.model.log_start));
        for (index, record) in self.model.records.iter().enumerate().skip(from) {
            let is_done = matches!(record.fate, Fate::Delivered | Fate::Lettered) && !passed.contains(&index);
            ensure!(
                !is_done || before.covers(record) || !written.covers(record),
                "T1: was written as finished, and as unfinished again: {record:?}"
            );
        }
        Ok(())
    }

    /// T4: under one filter, and as long as nothing is gone, a crash now takes its attempts from no window. One time in
    /// eight: that looks at all records.
    fn check_goes_on(&self, written: &Written) -> Checked {
        if self.is_refiltered || self.model.log_start > Offset::ZERO || !self.writes.is_multiple_of(8) {
            return Ok(());
        }
        let found: Vec<&Record> = self.model.records.iter().filter(|record| record.matches).collect();
        let verdicts: Vec<&[Offset]> = self.verdicts.values().map(|verdict| &verdict.offsets[..]).collect();
        let same = written.same(&found, self.spec.filter, &verdicts);
        let windows = written.progress().windows().iter().zip(same);
        for (window, is_same) in windows.filter(|(window, _)| window.given_up.is_none()) {
            ensure!(is_same, "T4: a crash now takes the attempts of {window:?}");
        }
        Ok(())
    }

    pub(crate) fn crash(&mut self) -> Checked {
        self.tell("crash");
        self.crashes += 1;
        let written = Written::decode(&self.written)?;
        if self.spec.order != Order::Key {
            // What was written before the order changed may set more keys aside than were when it did.
            self.own_queues.extend(written.progress().blocked_keys().iter().map(|key| key.hash));
        }
        for record in &mut self.model.records {
            (record.tried, record.given_up, record.unsure) = (None, false, false);
        }
        self.refilter(&written);
        for record in self.model.records.iter_mut().filter(|record| !record.matches) {
            record.group = 0;
        }
        let may_be_found =
            |record: &&Record| record.matches && self.lets_in(record.offset) && record.offset >= self.model.log_start;
        let found: Vec<&Record> = self.model.records.iter().filter(may_be_found).collect();
        let verdicts: Vec<&[Offset]> = self.verdicts.values().map(|verdict| &verdict.offsets[..]).collect();
        let same = written.same(&found, self.spec.filter, &verdicts);
        self.may_double(&written, &same);
        for index in 0..self.model.records.len() {
            let mut record = self.model.records[index].clone();
            if !record.matches || record.fate == Fate::Expired {
                continue;
            }
            if self.verdicts.values().any(|verdict| verdict.offsets.contains(&record.offset)) {
                (record.fate, record.given_up) = (Fate::Unfinished, true);
            } else if written.covers(&record) {
                record.repeated |= record.fate == Fate::Delivered;
                (record.fate, record.given_up, record.verdict) = (Fate::Unfinished, false, false);
                if let Some(window) = written.goes_on(&record, &same) {
                    let mut tried = Tried::from(window.attempts);
                    record.given_up = window.given_up.is_some();
                    if tried.running {
                        tried.running = false;
                        tried.stopped_at = Some((tried.attempts, tried.interrupted));
                        tried.interrupted += 1;
                        tried.attempts += u32::from(tried.interrupted > FREE_INTERRUPTIONS);
                        tried.attempts_max = tried.attempts;
                        tried.next_attempt_ms = None;
                    }
                    record.tried = Some(tried);
                }
            }
            if record.fate == Fate::Unfinished && record.offset < self.model.log_start && !record.verdict {
                record.fate = Fate::Expired;
            }
            self.model.records[index] = record;
        }
        self.may_hold(&written);
        (self.withheld, self.written_at) = (0, Offset::ZERO);
        (self.starting, self.in_flight, self.settled, self.settling) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let verdicts = self.verdicts.values();
        let carried = verdicts.map(|verdict| {
            let Verdict { name, offsets, state, reason, .. } = verdict.clone();
            Carried::verdict(name, &offsets, state, reason)
        });
        self.lane = Lane::restore(self.spec.clone(), written.progress(), carried.collect());
        while let Some((window, reason)) = self.lane.next_given_up() {
            self.given_up(window, reason)?;
        }
        // Of what holds a trigger only a pause is remembered.
        (self.failed, self.outage) = (false, None);
        self.lane.suspend(!self.takes_time(), self.now_ms);
        self.dirty = false;
        Ok(())
    }

    // Rest.

    /// Goes on until there is nothing left to do at this time; then something must be to come, or all is done.
    pub(crate) fn quiesce(&mut self) -> Checked {
        for _ in 0..10_000 {
            let did = self.read()? | self.start()? | self.settle()?;
            self.write()?;
            // A timer that rang may have made room.
            let can_read = self.may_run() && (self.lane.catch_up_at().is_some() || self.wants_to_read().is_some());
            if !did && !can_read {
                return self.check_at_rest();
            }
        }
        Err("no end of things to do at one time".to_owned())
    }

    fn check_at_rest(&mut self) -> Checked {
        let waits = !self.starting.is_empty() || !self.in_flight.is_empty() || !self.settling.is_empty();
        if waits || !self.may_run() || self.outage.is_some() || self.lane.deadline_ms().is_some() {
            return Ok(());
        }
        self.dirty = true;
        self.write()?;
        let left = self.model.unfinished().find(|record| record.offset >= self.model.log_start);
        ensure!(left.is_none(), "nothing will ever happen, and there is {left:?}");
        ensure!(self.lane.is_idle(), "the lane waits for nothing");
        Ok(())
    }

    /// From now on everything succeeds: all must be finished and nothing remain.
    pub(crate) fn drain(&mut self) -> Checked {
        self.calm = true;
        if !self.may_run() || self.outage.is_some() {
            self.pause_or_resume();
        }
        self.tell("drain");
        for _ in 0..10_000 {
            self.quiesce()?;
            while let Some(window) = self.in_flight.pop() {
                self.end_one(window)?;
            }
            let at_rest = self.settling.is_empty() && !self.dirty;
            match self.lane.deadline_ms() {
                Some(at_ms) => self.now_ms = self.now_ms.max(at_ms),
                None if at_rest => return self.check_drained(),
                None => {}
            }
        }
        Err("it does not drain".to_owned())
    }

    fn check_drained(&mut self) -> Checked {
        self.dirty = true;
        self.write()?;
        let progress = Written::decode(&self.written)?.progress().clone();
        let tail = self.model.tail;
        ensure!(progress == Progress::start(tail), "drained to {tail}, and written is {progress:?}");
        ensure!(self.verdicts.is_empty(), "verdicts are left");
        ensure!(self.lane.is_empty(), "drained, and something is left: {:?}", self.lane);
        let left = self.model.unfinished().next();
        ensure!(left.is_none(), "drained, and there is {left:?}");
        let is_wrong = |record: &&Record| record.letters == 0 || record.letters > 1 && !record.may_double;
        let unlettered = self.model.records.iter().filter(|record| record.fate == Fate::Lettered).find(is_wrong);
        ensure!(unlettered.is_none(), "dead letters: {unlettered:?}");
        Ok(())
    }
}

fn filter_number(filter: u64, percent: u32) -> u32 {
    u32::try_from(filter << 8).expect("few filters") | percent
}

/// A filter by its number takes so many of a hundred records.
fn lets_in(filter: u64, percent: u32, offset: Offset) -> bool {
    let mixed = (offset.get().unsigned_abs() + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ filter << 7);
    (mixed >> 40) % 100 < u64::from(percent)
}
