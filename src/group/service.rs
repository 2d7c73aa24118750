//! The groups of a running broker: holds them, keeps the answers that wait, lets time pass.
//!
//! Each group is a state machine behind a lock of its own; there is no task per group. A heartbeat, by far the most
//! frequent event, is then a look-up and a comparison without a hand-over to another task, an idle group costs no task,
//! and a commit can hold its group while it appends (G2). All deadlines are in one ordered set that one task,
//! [`Timers`], works off; it belongs on the runtime that keeps time even when requests are slow.
//!
//! Locks are taken in this order and never across an await: the table of groups, one group, the deadlines. Those that
//! are gone have a lock of their own, held for a look.

mod timers;
mod waiting;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use super::config::GroupConfig;
use super::error::{CommitError, DeleteError, HeartbeatError, JoinError, MemberError, SyncError};
use super::id::{GroupId, InstanceId, MemberId};
use super::member::{JoinAnswer, JoinRequest, Leaver, Speaker, SyncAnswer, SyncRequest, Ticket};
use super::state::{Effect, Group, GroupDescription, GroupState};

use timers::Deadlines;
pub use timers::Timers;
use waiting::Waiter;
pub use waiting::Waiting;

/// All groups; a handle, cheap to clone.
#[derive(Clone)]
pub struct GroupService {
    shared: Arc<Shared>,
}

struct Shared {
    config: GroupConfig,
    groups: RwLock<HashMap<GroupId, Arc<Slot>>>,
    deadlines: Deadlines,
    /// What all groups hold. Decided on before it is added, so that those who ask at once may exceed it by what they ask.
    held_bytes: AtomicUsize,
    /// When the last members of groups went that have given way to others.
    gone: Mutex<Gone>,
}

/// What is still known of groups that were forgotten.
#[derive(Debug, Default)]
pub struct Gone {
    /// When their last members went.
    pub left: HashMap<GroupId, Instant>,
    /// There were more of them than are remembered.
    pub overflown: bool,
}

/// So many are remembered until somebody asks.
const GONE_MAX: usize = 100_000;

/// One group in the table.
struct Slot {
    id: GroupId,
    state: Mutex<SlotState>,
}

struct SlotState {
    group: Group,
    /// Taken out of the table: whoever still holds the slot looks again.
    removed: bool,
    /// Offsets were committed from outside, so the group is one even if it never has members.
    committed: bool,
    waiters: HashMap<Ticket, Waiter>,
    next_ticket: u64,
    /// Its part of what all groups hold.
    held_bytes: usize,
    /// There are members.
    is_inhabited: bool,
    /// When the last one went.
    left: Option<Instant>,
    /// The entry of this group in the deadlines, never later than what the group needs.
    scheduled: Option<Instant>,
}

/// A group in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupListing {
    /// Its id.
    pub id: GroupId,
    /// Where it stands.
    pub state: GroupState,
    /// What kind of members it has; empty if it never had any.
    pub protocol_type: String,
    /// How many members it has.
    pub members: usize,
    /// When the last of its members went; `None` while there are some, and when there never were.
    pub left: Option<Instant>,
}

impl GroupService {
    /// No groups yet. The second part must run for as long as the first is used.
    #[must_use]
    pub fn new(config: GroupConfig) -> (Self, Timers) {
        let shared = Arc::new(Shared {
            config,
            groups: RwLock::new(HashMap::new()),
            deadlines: Deadlines::default(),
            held_bytes: AtomicUsize::new(0),
            gone: Mutex::default(),
        });
        (Self { shared: Arc::clone(&shared) }, Timers::new(shared))
    }

    /// An id for a member, should it need one: whose it is, and unique.
    #[must_use]
    pub fn candidate_id(client_id: &str, instance_id: Option<&InstanceId>) -> MemberId {
        let prefix = instance_id.map_or(client_id, InstanceId::as_str);
        MemberId::new(if prefix.is_empty() { "member" } else { prefix }, Uuid::new_v4())
    }

    /// A member joins. It has joined when this returns; what is awaited is the answer, which comes with the next
    /// generation.
    ///
    /// Dropping the answer unread says that the client has gone.
    #[must_use]
    pub fn join(&self, id: &GroupId, request: &JoinRequest) -> Waiting<JoinAnswer, JoinError> {
        let creates = request.member_id.is_none();
        let joined = self.with_group(id, creates, |slot, state, now| {
            if let Err((found, max)) = self.shared.check_room(state.group.growth_bytes(request)) {
                return Waiting::ready(Err(JoinError::NoRoom { found, max }));
            }
            let (ticket, waiting) = waiting::join_waiter(self, slot, state);
            state.group.join(now, ticket, request);
            waiting
        });
        match joined {
            Ok(waiting) => waiting,
            Err(NoGroup::Missing) => Waiting::ready(Err(MemberError::Unknown.into())),
            Err(NoGroup::TooMany(count)) => Waiting::ready(Err(JoinError::TooManyGroups(count))),
        }
    }

    /// A member asks for its assignment, or brings those of all. The answer comes when the leader has assigned.
    #[must_use]
    pub fn sync(&self, id: &GroupId, request: &SyncRequest) -> Waiting<SyncAnswer, SyncError> {
        let synced = self.with_group(id, false, |slot, state, now| {
            if let Err((found, max)) = self.shared.check_room(request.assignment_bytes()) {
                return Waiting::ready(Err(SyncError::NoRoom { found, max }));
            }
            let (ticket, waiting) = waiting::sync_waiter(self, slot, state);
            state.group.sync(now, ticket, request);
            waiting
        });
        synced.unwrap_or_else(|_| Waiting::ready(Err(MemberError::Unknown.into())))
    }

    /// A member lives.
    ///
    /// # Errors
    /// When it is no member of this generation, or has to join again.
    pub fn heartbeat(&self, id: &GroupId, speaker: &Speaker) -> Result<(), HeartbeatError> {
        // Deadlines only move away: the timers find out when they look.
        let Some(slot) = self.find(id) else { return Err(MemberError::Unknown.into()) };
        slot.state.lock().group.heartbeat(now(), speaker)
    }

    /// Members leave; the result of each, in order.
    #[must_use]
    pub fn leave(&self, id: &GroupId, leavers: &[Leaver]) -> Vec<Result<(), MemberError>> {
        let left = self.with_group(id, false, |_, state, now| state.group.leave(now, leavers));
        left.unwrap_or_else(|_| leavers.iter().map(|_| Err(MemberError::Unknown)).collect())
    }

    /// Runs `commit` if this speaker may commit now, holding the group so that no generation begins in between (G2).
    ///
    /// `commit` is short and does not wait: the members' heartbeats queue up behind it. Groups of triggers do not come
    /// here.
    ///
    /// # Errors
    /// When the speaker may not commit.
    pub fn commit<T>(&self, id: &GroupId, speaker: &Speaker, commit: impl FnOnce() -> T) -> Result<T, CommitError> {
        let outside = speaker.generation < 0 && speaker.member_id.is_empty();
        let committed = self.with_group(id, outside, |_, state, now| {
            state.group.check_commit(now, speaker)?;
            state.committed = true;
            Ok(commit())
        });
        match committed {
            Ok(result) => result,
            Err(NoGroup::Missing) => Err(CommitError::NoSuchGroup),
            Err(NoGroup::TooMany(count)) => Err(CommitError::TooManyGroups(count)),
        }
    }

    /// Runs `delete` and forgets the group, if it has no members.
    ///
    /// # Errors
    /// When it has members.
    pub fn delete<T>(&self, id: &GroupId, delete: impl FnOnce() -> T) -> Result<T, DeleteError> {
        let mut groups = self.shared.groups.write();
        let Some(slot) = groups.get(id).cloned() else { return Ok(delete()) };
        let mut state = slot.state.lock();
        if !state.group.is_vacant() {
            return Err(DeleteError::NotEmpty(state.group.member_count()));
        }
        let deleted = delete();
        self.shared.forget(&slot, &mut state);
        groups.remove(id);
        Ok(deleted)
    }

    /// The group as it stands, if it is known here.
    #[must_use]
    pub fn describe(&self, id: &GroupId) -> Option<GroupDescription> {
        self.find(id).map(|slot| slot.state.lock().group.describe())
    }

    /// All groups known here, by id.
    #[must_use]
    pub fn list(&self) -> Vec<GroupListing> {
        let slots: Vec<_> = self.shared.groups.read().values().cloned().collect();
        let listing = |slot: &Arc<Slot>| {
            let state = slot.state.lock();
            GroupListing {
                id: slot.id.clone(),
                state: state.group.state(),
                protocol_type: state.group.protocol_type().unwrap_or_default().to_owned(),
                members: state.group.member_count(),
                left: state.left.filter(|_| !state.is_inhabited),
            }
        };
        let mut listings: Vec<_> = slots.iter().map(listing).collect();
        listings.sort_by(|one, other| one.id.cmp(&other.id));
        listings
    }

    /// What is known of groups that have given way to others since this was asked last.
    #[must_use]
    pub fn take_gone(&self) -> Gone {
        std::mem::take(&mut self.shared.gone.lock())
    }

    fn find(&self, id: &GroupId) -> Option<Arc<Slot>> {
        self.shared.groups.read().get(id).cloned()
    }

    /// One event of one group: under its lock, with its answers sent and its deadline noted.
    fn with_group<T>(
        &self,
        id: &GroupId,
        creates: bool,
        event: impl FnOnce(&Arc<Slot>, &mut SlotState, Instant) -> T,
    ) -> Result<T, NoGroup> {
        loop {
            let slot = match self.find(id) {
                Some(slot) => slot,
                None if creates => self.create(id)?,
                None => return Err(NoGroup::Missing),
            };
            let mut state = slot.state.lock();
            if state.removed {
                continue;
            }
            let now = now();
            let result = event(&slot, &mut state, now);
            let forgets = self.shared.settle(&slot, &mut state, now);
            drop(state);
            if forgets {
                self.shared.forget_if_unused(&slot);
            }
            return Ok(result);
        }
    }

    fn create(&self, id: &GroupId) -> Result<Arc<Slot>, NoGroup> {
        let mut groups = self.shared.groups.write();
        if let Some(slot) = groups.get(id) {
            return Ok(Arc::clone(slot));
        }
        let max = self.shared.config.groups_max;
        if groups.len() >= max {
            // Empty groups are remembered only for those who ask; their committed offsets are kept elsewhere.
            self.shared.give_way(&mut groups, |state| state.group.is_vacant());
        }
        if groups.len() >= max {
            // An id costs a client nothing, and whoever was given one in good faith asks for another.
            self.shared.give_way(&mut groups, |state| state.group.state() == GroupState::Empty);
        }
        if groups.len() >= max {
            return Err(NoGroup::TooMany(groups.len()));
        }
        let slot = Arc::new(Slot {
            id: id.clone(),
            state: Mutex::new(SlotState {
                group: Group::new(self.shared.config),
                removed: false,
                committed: false,
                held_bytes: 0,
                is_inhabited: false,
                left: None,
                waiters: HashMap::new(),
                next_ticket: 0,
                scheduled: None,
            }),
        });
        groups.insert(id.clone(), Arc::clone(&slot));
        Ok(slot)
    }
}

enum NoGroup {
    Missing,
    TooMany(usize),
}

impl Shared {
    /// Whether all groups together may hold so much more; if not, how much that would be, and the limit.
    fn check_room(&self, growth_bytes: usize) -> Result<(), (usize, usize)> {
        let found = self.held_bytes.load(Ordering::Relaxed).saturating_add(growth_bytes);
        let max = self.config.held_bytes_max;
        // Whoever grows by nothing only goes on.
        if growth_bytes > 0 && found > max { Err((found, max)) } else { Ok(()) }
    }

    fn holds(&self, state: &mut SlotState, held_bytes: usize) {
        let before = std::mem::replace(&mut state.held_bytes, held_bytes);
        // Wraps around, and so subtracts where it has become less.
        self.held_bytes.fetch_add(held_bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Sends the answers decided on and notes the next deadline. Says whether the group is not worth keeping.
    fn settle(&self, slot: &Arc<Slot>, state: &mut SlotState, now: Instant) -> bool {
        for effect in state.group.take_effects() {
            let ticket = match &effect {
                Effect::Join(ticket, _) | Effect::Sync(ticket, _) => *ticket,
            };
            if let Some(waiter) = state.waiters.remove(&ticket) {
                waiter.answer(effect);
            }
        }
        let held_bytes = state.group.held_bytes();
        self.holds(state, held_bytes);
        let was_inhabited = std::mem::replace(&mut state.is_inhabited, state.group.state() != GroupState::Empty);
        if was_inhabited && !state.is_inhabited {
            state.left = Some(now);
        }
        self.deadlines.schedule(slot, state);
        state.is_unused()
    }

    /// Forgets the groups that `gives_way` says, none of them with members.
    fn give_way(&self, groups: &mut HashMap<GroupId, Arc<Slot>>, gives_way: impl Fn(&SlotState) -> bool) {
        groups.retain(|_, slot| {
            let mut state = slot.state.lock();
            let goes = gives_way(&state);
            if goes {
                self.note_gone(slot, &state);
                self.forget(slot, &mut state);
            }
            !goes
        });
    }

    fn note_gone(&self, slot: &Slot, state: &SlotState) {
        let Some(left) = state.left else { return };
        let mut gone = self.gone.lock();
        if gone.left.len() < GONE_MAX || gone.left.contains_key(&slot.id) {
            gone.left.insert(slot.id.clone(), left);
        } else {
            gone.overflown = true;
        }
    }

    fn forget(&self, slot: &Arc<Slot>, state: &mut SlotState) {
        debug_assert!(state.waiters.is_empty(), "nobody waits in a group without members");
        state.removed = true;
        self.holds(state, 0);
        self.deadlines.cancel(slot, state);
    }

    fn forget_if_unused(&self, slot: &Arc<Slot>) {
        let mut groups = self.groups.write();
        let mut state = slot.state.lock();
        if !state.removed && state.is_unused() {
            self.forget(slot, &mut state);
            groups.remove(&slot.id);
        }
    }

    /// The time of this group has come, perhaps.
    fn tick(&self, slot: &Arc<Slot>, now: Instant) {
        let mut state = slot.state.lock();
        if state.removed {
            return;
        }
        state.scheduled = None;
        state.group.tick(now);
        let forgets = self.settle(slot, &mut state, now);
        drop(state);
        if forgets {
            self.forget_if_unused(slot);
        }
    }
}

impl SlotState {
    /// Nobody is in it, nobody ever was for a whole generation, and it has no offsets: someone asked once and went.
    fn is_unused(&self) -> bool {
        self.group.is_vacant() && self.group.generation() == 0 && !self.committed
    }
}

/// The clock that tests can stop.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
