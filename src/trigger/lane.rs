//! One partition of a trigger, decided: which records wait together, which window may start, what follows its outcome.
//!
//! A lane never acts. Whoever drives it reads where [`Lane::read_at`] says and hands over the facts of the records that
//! match ([`Lane::take`]), starts the windows that [`Lane::next`] gives out, tells how they ended ([`Lane::end`]) and
//! writes down [`Lane::progress`] before it goes on. A window is a list of offsets; its records are read again for each
//! attempt (T3: what is held does not grow with the backlog).
//!
//! # One rule for three orders
//! Records queue in *queues*, and in one queue windows run one after another, in offset order (T2). In order
//! `partition` all records of the partition share one queue; in order `key` each key has its own (records without a key
//! share one); in order `none` a closed window waits in no queue. A window that fails keeps its place at the front of
//! its queue: only that queue waits for it.
//!
//! # Spilling
//! A key that holds more than its share, because it fails or because it floods, is *spilled*: its further records are
//! not kept. A marker, the first offset that is not kept, stands for all of them; when the queue has room they are read
//! again from there ([`Lane::catch_up_at`]), and the marker moves on. So memory is bounded whatever a key does, and the
//! other keys go on. From the first attempt on a record stands in a hole as any other.
//!
//! Where there is no room to read on, keys that wait for something give back what was not tried: behind a window that
//! waits for another attempt, and all of it where a throttled key waits for its turn. Such a key *rests*: it is read
//! again when its turn has come. Together their markers take half of the bytes of progress at most, so that other keys
//! have the rest to begin.
//!
//! # What fits
//! Progress that does not fit its bytes would lose attempts (T4). So a bound on what may have to be written is kept at
//! hand, with what the windows that are being tried may add: their outcomes cut holes. Near the limit no more is read,
//! fewer records start at a time, windows are not halved, and what a partial failure finished is written as unfinished
//! until the rest of its window is finished too. With nothing in flight, the oldest record may always start: that only
//! frees bytes.
//!
//! # Restart
//! [`Lane::restore`] goes on from written progress: what lies in holes is read again, windows that were tried are made
//! again as they were, and one whose attempt has no outcome was interrupted. The same way takes over a new definition
//! ([`Lane::redefine`]); windows that were tried are carried over as they are. Where the order changes, each of them
//! goes on beside what is made under the new one. What another filter lets in between their records is none of theirs.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tripline_storage::Offset;

use super::attempt::{AttemptState, ErrorsTolerance, ExhaustedReason, Policies};
use super::flow::PerKey;
use super::progress::{ENCODED_BYTES_MAX, GivenUp, Letters, Progress, Span, TriedAttempts, TriedWindow, fingerprint};
use super::spec::Order;
use super::unfinished::{Place, Unfinished};
use super::window::{Spot, WindowSpec};
use crate::function::ErrorClass;

mod fill;
mod fit;
mod letters;
mod outcome;
mod queue;
mod rest;
mod restore;
mod standing;
mod starts;
mod turn;
mod written;

#[cfg(test)]
mod tests;

pub use outcome::Outcome;
pub use restore::Carried;
pub use standing::{Before, Standing};
pub use turn::Next;

use queue::{Queue, QueueKey};
use rest::Holding;
use restore::Restoring;
use starts::Starts;

/// What a lane holds at most; 24 bytes a record, up to a kilobyte a key. Near it no more is read until an eighth of it
/// is free again. What is read again after a restart was in hand before, and is taken whatever it comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLimits {
    /// Records in windows and waiting for one. Default 20,000.
    pub records: usize,
    /// Records of one key before it is spilled; two windows, where that is more. Default 2,000.
    pub key_records: usize,
    /// Keys at a time. Default 10,000.
    pub keys: usize,
    /// Bytes of written progress. At most, and by default, [`ENCODED_BYTES_MAX`].
    pub progress_bytes: usize,
}

impl Default for LaneLimits {
    fn default() -> Self {
        Self { records: 20_000, key_records: 2_000, keys: 10_000, progress_bytes: ENCODED_BYTES_MAX }
    }
}

/// Closed windows that wait in one queue, or for an invocation in order `none`; beyond it no more is read.
const CLOSED_MAX: usize = 2;
/// Windows that wait to be started, over all queues, before no more is read.
const READY_MAX: usize = 256;
/// Matching records that it takes at a time: one chunk of the log may unpack to millions.
pub const TAKEN_MAX: usize = 8_192;

/// What of a trigger's definition a lane needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneSpec {
    /// What may run at the same time.
    pub order: Order,
    /// When a window closes.
    pub window: WindowSpec,
    /// When a failed window is tried again, and what if that ends.
    pub policies: Policies,
    /// Whether a failed window of several records is halved.
    pub bisect: bool,
    /// What is held back per key.
    pub per_key: PerKey,
    /// Tells the filter that lets its records in from others: the same number for the same one, and another one, as
    /// good as always, for another.
    pub filter: u32,
    /// What it holds at most.
    pub limits: LaneLimits,
}

/// A window that was given out, for as long as its lane lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WindowId(u64);

#[cfg(test)]
impl WindowId {
    pub(super) const fn for_test(number: u64) -> Self {
        Self(number)
    }
}

/// What happened to records without an invocation, since the last time somebody asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Withheld {
    /// Replaced by a newer record of their key while that was debounced.
    pub debounced: usize,
    /// Came while their key was busy, and the trigger takes one at a time.
    pub skipped: usize,
}

/// A closed window.
#[derive(Clone, Debug)]
pub(super) struct Held {
    places: Vec<Place>,
    /// Records that were finished and stand as unfinished until the window is: cut out, they would take too many bytes.
    done: Vec<Place>,
    /// How many ranges its outcome may be cut out of.
    cuts: usize,
    size_bytes: u64,
    queue: QueueKey,
    /// The hash of its records' key, where it has one.
    key: Option<u64>,
    state: AttemptState,
    phase: Phase,
    /// What its invocations are called: the first offset that it had.
    name: Offset,
    /// Who writes its dead letters on a cluster; only where it is given up.
    letters: Option<Letters>,
    /// Another filter was in force when it was made.
    foreign: bool,
    /// Its verdict was found in the journal, and stands for it there.
    decided: bool,
    /// Behind the marker of its key: its records are in no hole. Only before the first attempt.
    spilled: bool,
    /// What was cut off a window whose turn it was: the turn is not over.
    is_rest: bool,
    /// It would have been given up, were errors tolerated: so it stays until it is finished.
    blocked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Behind another one of its queue.
    Queued,
    /// It may start.
    Ready,
    /// It may start at this time.
    Waiting(i64),
    /// An invocation has it.
    InFlight,
    /// All attempts are spent.
    GivenUp(ExhaustedReason),
    /// Its verdict is being carried out.
    Settling(ExhaustedReason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A window may start.
    Window(WindowId),
    /// The open window of a queue closes.
    Open(QueueKey),
    /// A start of a throttled key does not count any more.
    Turn(QueueKey),
}

/// A key whose records are not kept from an offset on.
#[derive(Clone, Copy, Debug)]
struct Marker {
    /// The next offset to read again for it.
    at: Offset,
}

/// One partition of a trigger.
#[derive(Debug)]
pub struct Lane {
    spec: LaneSpec,
    /// The effective window count, where it adapts.
    count: u32,
    unfinished: Unfinished,
    /// Nobody outside chooses ids: they need no hash that holds out against it, as keys do.
    windows: FxHashMap<WindowId, Held>,
    queues: HashMap<QueueKey, Queue>,
    ready: VecDeque<WindowId>,
    given_up: VecDeque<WindowId>,
    /// Queues with an open window that needs nothing but a free invocation: interval 0 and nothing before it.
    open_idle: VecDeque<QueueKey>,
    timers: BTreeSet<(i64, Timer)>,
    /// Of keys that are throttled, also when nothing of them is in hand.
    starts: Starts,
    markers: HashMap<u64, Marker>,
    /// Throttled keys that gave back all they held: nothing is read again for them before their turn.
    resting: HashSet<u64>,
    /// What it held when no key could be sent to rest.
    restless: Option<Holding>,
    /// Where to read next.
    at: Offset,
    restoring: Option<Restoring>,
    next_id: u64,
    held_records: usize,
    /// Windows that were tried: what stands in progress, and costs its bytes.
    tried: BTreeSet<WindowId>,
    /// What their outcomes may add to it.
    reserved: fit::Reserved,
    /// Where reading was when it was looked where bits begin.
    surveyed: Offset,
    /// Not above the first unfinished offset.
    low: Offset,
    /// Where reading for the first time began: below, records of a key may be finished in front of others that were not
    /// tried, in windows made without keys, or by a filter that let in fewer.
    new_from: Offset,
    written_coarsely: bool,
    suspended: bool,
    withheld: Withheld,
}

impl Lane {
    /// A lane that goes on from `progress`, with windows that it takes over as they are.
    #[must_use]
    pub fn restore(spec: LaneSpec, progress: &Progress, carried: Vec<Carried>) -> Self {
        Self::restore_numbered(spec, progress, carried, 0)
    }

    fn restore_numbered(spec: LaneSpec, progress: &Progress, carried: Vec<Carried>, next_id: u64) -> Self {
        let count = spec.window.count;
        let (restoring, markers) = Restoring::new(progress, spec.filter);
        let at = restoring
            .as_ref()
            .map_or_else(|| progress.reading_point(), |restoring| restoring.next_from(progress.committed()));
        let mut lane = Self {
            spec,
            count,
            unfinished: Unfinished::default(),
            windows: FxHashMap::default(),
            queues: HashMap::new(),
            ready: VecDeque::new(),
            given_up: VecDeque::new(),
            open_idle: VecDeque::new(),
            timers: BTreeSet::new(),
            starts: Starts::default(),
            markers,
            resting: HashSet::new(),
            restless: None,
            at,
            restoring,
            next_id,
            held_records: 0,
            tried: BTreeSet::new(),
            reserved: fit::Reserved::default(),
            surveyed: at,
            low: progress.committed(),
            new_from: progress.reading_point(),
            written_coarsely: false,
            suspended: false,
            withheld: Withheld::default(),
        };
        carried.into_iter().for_each(|window| lane.carry(window));
        lane
    }

    /// Where to read next, for the first time or again after a restart; `None` while enough is in hand.
    #[must_use]
    pub fn read_at(&self) -> Option<Offset> {
        let room = self.has_space()
            && self.ready.len() < READY_MAX
            && (self.restoring.is_some() || !self.is_full())
            && match self.spec.order {
                Order::Partition => self.queues.get(&QueueKey::Whole).is_none_or(|queue| queue.closed() < CLOSED_MAX),
                Order::Key => true,
                Order::None => self.ready.len() < CLOSED_MAX,
            };
        // What is read again was in hand before; among it is what must go on for anything else to fit.
        let is_stuck = self.restoring.is_some() && !self.fits(fit::More { windows: 1, cuts: 1, from: self.at });
        (room || is_stuck).then_some(self.at)
    }

    /// How many matching records it takes, at most, of what is read at [`Lane::read_at`]; what is behind them is read
    /// again. At least 1.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.restoring.is_some() {
            return TAKEN_MAX;
        }
        let LaneLimits { records, keys, .. } = self.spec.limits;
        let of_order = match self.spec.order {
            Order::Key => keys.saturating_sub(self.queues.len()),
            // What waits in closed windows does not follow the target.
            Order::Partition | Order::None if self.count < self.spec.window.count => self.count as usize * CLOSED_MAX,
            Order::Partition | Order::None => usize::MAX,
        };
        records.saturating_sub(self.held_records).min(of_order).clamp(1, TAKEN_MAX)
    }

    /// Whether it holds as many records or keys as it may (T3), or would with so many more.
    pub(super) fn is_filled(&self, records: usize, keys: usize) -> bool {
        let limits = self.spec.limits;
        self.held_records + records >= limits.records
            || self.spec.order == Order::Key && self.queues.len() + keys >= limits.keys
    }

    /// Whether there is space to read for: each time the start of a batch that was taken before is walked over, so an
    /// eighth of all. What is read again after a restart was in hand before.
    pub(super) fn has_space(&self) -> bool {
        let LaneLimits { records, keys, .. } = self.spec.limits;
        let part = |limit: usize| if self.restoring.is_some() { 0 } else { limit / 8 };
        !self.is_filled(part(records), part(keys))
    }

    /// Where it will read next, whether or not it has room.
    #[must_use]
    pub const fn position(&self) -> Offset {
        self.at
    }

    /// The offsets of a window, ascending.
    ///
    /// # Panics
    /// When it is not in hand.
    #[must_use]
    pub fn offsets(&self, id: WindowId) -> Vec<Offset> {
        self.windows[&id].places.iter().map(|place| place.offset).collect()
    }

    /// Where the records of a window were found, in the order of [`Lane::offsets`].
    ///
    /// # Panics
    /// When it is not in hand.
    #[must_use]
    pub fn spots(&self, id: WindowId) -> Vec<Spot> {
        self.windows[&id].places.iter().map(|place| place.spot).collect()
    }

    /// A window's attempts.
    ///
    /// # Panics
    /// When it is not in hand.
    #[must_use]
    pub fn state(&self, id: WindowId) -> &AttemptState {
        &self.windows[&id].state
    }

    /// What a window's invocations are called: the first offset that it had.
    ///
    /// # Panics
    /// When it is not in hand.
    #[must_use]
    pub fn name(&self, id: WindowId) -> Offset {
        self.windows[&id].name
    }

    /// Whether a window is in hand.
    #[must_use]
    pub fn has(&self, id: WindowId) -> bool {
        self.windows.contains_key(&id)
    }

    /// The size of a window's records.
    ///
    /// # Panics
    /// When it is not in hand.
    #[must_use]
    pub fn size_bytes(&self, id: WindowId) -> u64 {
        self.windows[&id].size_bytes
    }

    /// The window count that applies from now on, within the definition's.
    pub fn set_count(&mut self, count: u32) {
        self.count = count.clamp(1, self.spec.window.count);
    }

    /// Records that were finished without an invocation since the last call.
    pub fn take_withheld(&mut self) -> Withheld {
        std::mem::take(&mut self.withheld)
    }

    /// Records in hand, in windows and waiting for one.
    #[must_use]
    pub const fn held_records(&self) -> usize {
        self.held_records
    }

    /// Whether a record, once it is read, waits only for others or for its turn.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.held_records == 0 && self.restoring.is_none() && self.markers.is_empty()
    }

    /// Whether there is nothing left of what it ever held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.is_idle()
            && self.windows.is_empty()
            && self.queues.is_empty()
            && self.timers.is_empty()
            && self.given_up.is_empty()
            && self.resting.is_empty()
            && self.tried.is_empty()
            && self.reserved == fit::Reserved::default()
            && self.unfinished.first().is_none()
    }

    /// What is in hand, for people.
    #[must_use]
    pub fn look(&self) -> LaneLook {
        let tried = self.tried.iter().filter_map(|id| self.windows.get(id));
        let mut look = LaneLook { blocked_keys: self.markers.len(), ..LaneLook::default() };
        let mut runs_one = false;
        for held in tried {
            look.in_flight_records += held.places.len();
            look.in_flight_windows += 1;
            if held.state.attempts >= look.attempts || look.last_error.is_none() {
                look.attempts = look.attempts.max(held.state.attempts);
                if let Some(error) = &held.state.last_error {
                    look.last_error = Some(error.message.clone());
                }
            }
            runs_one |= matches!(held.phase, Phase::Ready | Phase::InFlight);
            if let Phase::Waiting(at_ms) = held.phase {
                look.next_attempt_ms = Some(look.next_attempt_ms.map_or(at_ms, |next| next.min(at_ms)));
            }
        }
        // A window whose attempt runs, or is about to, ends soon and makes room.
        let stands = look.in_flight_windows > 0 && !runs_one;
        let begins_nothing = stands && !self.fits(fit::More { windows: 1, cuts: 1, from: self.at });
        look.full = self.restoring.is_none() && (self.is_full() || begins_nothing);
        look
    }

    /// Why the oldest window failed that would have been given up, were errors tolerated: for as long as there is one,
    /// the lane is blocked.
    #[must_use]
    pub fn blocked(&self) -> Option<&str> {
        if self.spec.policies.errors_tolerance == ErrorsTolerance::All {
            return None;
        }
        let mut tried = self.tried.iter().filter_map(|id| self.windows.get(id));
        let held = tried.find(|held| held.blocked && held.given_up().is_none())?;
        Some(held.state.last_error.as_ref().map_or("", |error| &error.message))
    }

    /// Whether records must come with the hash of their key.
    #[must_use]
    pub fn needs_keys(&self) -> bool {
        self.spec.order == Order::Key || !self.markers.is_empty() || self.restoring.is_some()
    }
}

/// What a lane has in hand, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaneLook {
    /// Records of windows that were tried.
    pub in_flight_records: usize,
    /// How many windows those are.
    pub in_flight_windows: usize,
    /// The most attempts spent on one of them.
    pub attempts: u32,
    /// When the next attempt begins, ms since 1970.
    pub next_attempt_ms: Option<i64>,
    /// The last error.
    pub last_error: Option<String>,
    /// Keys whose further records wait in the log.
    pub blocked_keys: usize,
    /// Nothing more is read or begun: what is unfinished is too scattered, or in too many windows that wait for
    /// something, for more to be written down.
    pub full: bool,
}

fn in_order(mut places: Vec<Place>) -> Vec<Place> {
    places.sort_unstable_by_key(|place| place.offset);
    places
}

impl Held {
    /// A part of the same window: it has had the same attempts.
    fn part(&self, places: Vec<Place>) -> Self {
        let whole = self.places.len() + places.len();
        Self {
            size_bytes: self.size_bytes * places.len() as u64 / whole.max(1) as u64,
            name: places[0].offset,
            done: Vec::new(),
            cuts: 0,
            letters: None,
            state: self.state.clone(),
            places,
            ..*self
        }
    }

    /// What is finished among the records of another part goes with that: where the two crossed, a restart could not
    /// tell them apart.
    fn pass_done(&mut self, rest: &mut Self) {
        let from = rest.name;
        rest.done.extend(self.done.extract_if(.., |place| place.offset > from));
    }

    /// All that stands as unfinished with it.
    fn all_places(&self) -> Vec<Place> {
        in_order([&self.places[..], &self.done].concat())
    }

    /// Its records are elsewhere.
    fn part_of_none(&self) -> Self {
        Self { places: Vec::new(), done: Vec::new(), state: AttemptState::default(), ..*self }
    }

    const fn is_tried(&self) -> bool {
        self.state.first_attempt_ms.is_some()
    }

    fn waits_for_outage(&self) -> bool {
        self.state.last_error.as_ref().is_some_and(|error| error.class == ErrorClass::Unavailable)
    }

    const fn given_up(&self) -> Option<ExhaustedReason> {
        match self.phase {
            Phase::GivenUp(reason) | Phase::Settling(reason) => Some(reason),
            _ => None,
        }
    }

    /// Its records from an offset on: what retention took is not part of it any more. Those that stand as
    /// unfinished with it are its own until it is given up: another window around it would take them for one of its own
    /// after a restart, and begin anew.
    fn own(&self, from: Offset) -> impl Iterator<Item = Offset> {
        let with_it = self.done.iter().filter(|_| self.given_up().is_none());
        self.places.iter().chain(with_it).map(|place| place.offset).filter(move |offset| *offset >= from)
    }

    fn span(&self, from: Offset) -> Option<Span> {
        Span::new(self.own(from).min()?, self.own(from).max()?.next())
    }

    /// How it is written down, where `from` is the committed offset.
    fn tried(&self, from: Offset) -> Option<TriedWindow> {
        let attempts = TriedAttempts::of(&self.state).filter(|_| !self.decided)?;
        let span = self.span(from)?;
        let records = u32::try_from(self.own(from).count()).unwrap_or(u32::MAX);
        let (fingerprint, is_foreign) = (fingerprint(self.own(from)), self.foreign);
        // Were one of them not its own any more, the numbers of the others would be wrong.
        let letters = self.letters.map(|letters| {
            let is_whole = letters.is_whole && letters.records == records;
            Letters { is_whole, ..letters }
        });
        let given_up = self.given_up().map(|reason| GivenUp { reason, letters });
        Some(TriedWindow { span, records, fingerprint, is_foreign, key: self.key, attempts, given_up })
    }
}

/// A window knows time as the distance from any fixed start.
fn at(now_ms: i64) -> Duration {
    Duration::from_millis(now_ms.max(0).unsigned_abs())
}
