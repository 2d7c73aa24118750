//! A lane on a cluster: its progress is committed to its group, and begins nothing that the group does not know of.
//!
//! As with the journal, an attempt is written down before it begins (T4), here for whoever takes the partition over.
//! One commit of a lane is under way at a time; what changes meanwhile goes with the next. Nor does its poller wait for
//! what it reads: a leader that is dead takes a minute to be given up, and outcomes, a person, and the group have
//! something to say meanwhile.

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;
use tripline_storage::Offset;
use tripline_storage::error::ReadError;
use tripline_storage::partition::ReadOutcome;
use uuid::Uuid;

use super::{Message, Poller, PollerHandle, Starting};
use crate::input::cluster::{Client, ClusterPartition, CommitError, Committer, Tenure};
use crate::trigger::attempt::ExhaustedReason;
use crate::trigger::commit_metadata;
use crate::trigger::give_up::cluster::Keeper;
use crate::trigger::give_up::{self, HoldUp};
use crate::trigger::lane::WindowId;

use super::entry::Entry;

/// A chunk that a poller wants to read. There is one lane, so one is enough.
#[derive(Debug, Default)]
pub(super) enum Fetch {
    #[default]
    Idle,
    /// It is on its way.
    UnderWay {
        /// Ends with the poller.
        _task: AbortOnDropHandle<()>,
    },
    /// What lies at this offset, or why it could not be read.
    Here(Offset, Result<ReadOutcome, ReadError>),
}

/// Where a poller's lane stands in its group.
#[derive(Clone, Debug)]
pub(in crate::trigger) struct GroupPlace {
    pub(in crate::trigger) client: Arc<Client>,
    pub(in crate::trigger) committer: Committer,
    /// What it commits counts in this one.
    pub(in crate::trigger) tenure: Tenure,
}

/// What a lane on a cluster keeps besides.
#[derive(Debug, Default)]
pub(in crate::trigger) struct Kept {
    /// The commit under way.
    committing: Option<Committing>,
    /// Dead letters that are to begin: the group must know of them first.
    beginning: Vec<NewLetters>,
}

#[derive(Debug)]
struct Committing {
    committed: Offset,
    /// What begins when it is done.
    starting: Vec<Starting>,
    /// Letters that it tells of.
    letters: Vec<NewLetters>,
}

impl Kept {
    pub(super) const fn is_at_rest(&self) -> bool {
        self.committing.is_none()
    }
}

/// Dead letters of a window: who writes them is made known before the first is sent.
#[derive(Debug)]
pub(in crate::trigger) struct NewLetters {
    pub(in crate::trigger) trigger: Uuid,
    pub(in crate::trigger) window: WindowId,
    pub(in crate::trigger) producer_id: i64,
    pub(in crate::trigger) told: oneshot::Sender<()>,
}

impl PollerHandle {
    /// Makes known to the group who writes the letters of a window. `false`: the lane is somebody else's now.
    pub(in crate::trigger) async fn make_known(&self, trigger: Uuid, window: WindowId, producer_id: i64) -> bool {
        let (told, known) = oneshot::channel();
        self.send(Message::Letters(NewLetters { trigger, window, producer_id, told }));
        known.await.is_ok()
    }
}

impl Poller {
    pub(super) const fn is_fetching(&self) -> bool {
        matches!(self.fetch, Fetch::UnderWay { .. })
    }

    /// The chunk from `from` on, if it is here; else it is asked for.
    pub(super) fn fetched(&mut self, from: Offset, max_bytes: usize) -> Option<Result<ReadOutcome, ReadError>> {
        match std::mem::take(&mut self.fetch) {
            Fetch::Here(at, outcome) if at == from => return Some(outcome),
            under_way @ Fetch::UnderWay { .. } => self.fetch = under_way,
            // What was asked for is not wanted any more.
            Fetch::Here(..) | Fetch::Idle => {
                let (input, handle) = (self.input.clone(), self.handle.clone());
                let task = tokio::spawn(self.driven.clone().watch(async move {
                    let outcome = input.read(from, max_bytes).await;
                    handle.send(Message::Fetched(from, Box::new(outcome)));
                }));
                self.fetch = Fetch::UnderWay { _task: AbortOnDropHandle::new(task) };
            }
        }
        None
    }

    pub(super) fn is_committed(&self) -> bool {
        self.group.is_none()
            || (self.changed.is_empty() && self.lanes.values().all(|entry| entry.kept.is_at_rest() && !entry.dirty))
    }

    pub(super) fn letters(&mut self, new: NewLetters) {
        let Some(entry) = self.lanes.get_mut(&new.trigger) else { return };
        self.touched.insert(new.trigger);
        entry.kept.beginning.push(new);
        entry.dirty = true;
    }

    /// Commits what has changed; the answers come as messages.
    pub(super) fn commit(&mut self, group: &GroupPlace) {
        for trigger in std::mem::take(&mut self.changed) {
            let Some(entry) = self.lanes.get_mut(&trigger) else { continue };
            if !entry.kept.is_at_rest() || entry.is_held_up() {
                self.changed.insert(trigger);
                continue;
            }
            entry.hold_back();
            let (committed, metadata) = entry.next_commit();
            let (handle, committer, tenure) = (self.handle.clone(), group.committer.clone(), group.tenure);
            let partition = ClusterPartition::new(&self.input.origin().topic, entry.id.partition);
            tokio::spawn(self.driven.clone().watch(async move {
                let result = committer.commit(partition, tenure, committed, metadata).await;
                handle.send(Message::Committed(trigger, result));
            }));
        }
    }

    pub(super) fn committed(&mut self, trigger: Uuid, result: Result<(), CommitError>) {
        let Some(entry) = self.lanes.get_mut(&trigger) else { return };
        let Some(done) = entry.kept.committing.take() else { return };
        self.touched.insert(trigger);
        match result {
            Ok(()) => {
                entry.is_committed_to(done.committed, done.letters);
                self.begin_windows(trigger, done.starting);
            }
            Err(CommitError::Failed(reason)) => {
                entry.starting.splice(0..0, done.starting);
                entry.kept.beginning.splice(0..0, done.letters);
                entry.dirty = true;
                self.not_written(trigger, &reason);
            }
            Err(CommitError::Fenced) => {
                let (topic, partition) = (&self.input.origin().topic, self.input.origin().partition);
                tracing::warn!(
                    topic,
                    partition,
                    "another member of the group has the partition: nothing more is done here"
                );
                // Nobody waits for that.
                self.remove(trigger, oneshot::channel().0);
                self.stopping = true;
            }
        }
    }

    /// Windows whose attempts are spent get their verdict, which is committed before anything of it is done.
    pub(super) fn give_up_there(&self, group: &GroupPlace, entry: &mut Entry) {
        if self.stopping || entry.runner.is_over() {
            return;
        }
        while let Some((window, reason)) = entry.lane.next_given_up() {
            self.carry_out_there(group, entry, window, reason);
        }
    }

    fn carry_out_there(&self, group: &GroupPlace, entry: &mut Entry, window: WindowId, reason: ExhaustedReason) {
        let (offsets, state) = (entry.lane.offsets(window), entry.lane.state(window).clone());
        let (handle, trigger, first) = (self.handle.clone(), entry.id.trigger, offsets[0].get());
        let work = give_up::cluster::GiveUp {
            runner: Arc::clone(&entry.runner),
            input: self.input.clone(),
            client: Arc::clone(&group.client),
            hold_up: HoldUp::new(handle.clone(), trigger, window),
            name: entry.lane.name(window),
            offsets,
            state,
            reason,
            keeper: Keeper::Group { poller: handle.clone(), window, letters: entry.lane.letters(window) },
        };
        let runner = Arc::clone(&entry.runner);
        let running = self.tracker.spawn(async move {
            handle.send(match runner.watch(work.run()).await {
                Some(true) => Message::Settled(trigger, window, first),
                Some(false) | None => Message::Abandoned(trigger, window),
            });
        });
        entry.runs(window, running);
    }
}

impl Entry {
    /// The offset and the metadata to commit now. Letters that find no room begin when others are settled.
    fn next_commit(&mut self) -> (Offset, String) {
        self.kept.beginning.retain(|new| self.lane.has(new.window));
        let begins = |new: &mut NewLetters| self.lane.begin_letters(new.window, new.producer_id);
        let mut letters: Vec<NewLetters> = self.kept.beginning.extract_if(.., begins).collect();
        let (progress, committed) = (self.lane.encoded_progress(), self.lane.committed());
        if self.lane.is_written_coarsely() {
            // It may tell nothing of windows.
            self.kept.beginning.append(&mut letters);
        }
        self.settled.clear();
        let metadata = commit_metadata::encode(self.id.topic, &progress);
        let starting = std::mem::take(&mut self.starting);
        self.kept.committing = Some(Committing { committed, starting, letters });
        self.dirty = false;
        (committed, metadata)
    }

    fn is_committed_to(&mut self, committed: Offset, letters: Vec<NewLetters>) {
        self.noted = committed;
        if self.writes_again_at.take().is_some() {
            self.unblock();
        }
        for new in letters {
            // Who gave it up may be gone with the lane.
            let _ = new.told.send(());
        }
        self.status.show(&self.lane, self.noted);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use tokio::time::timeout;
    use tokio_util::task::TaskTracker;

    use super::super::testing::World;
    use super::super::{NewLane, spawn};
    use super::*;
    use crate::broker::record::LaneId;
    use crate::broker::state::LaneState;
    use crate::input::EventInput;
    use crate::input::cluster::ClusterInput;
    use crate::trigger::lane_status::LaneStatus;
    use crate::trigger::progress::Progress;
    use crate::trigger::runner::Runner;
    use crate::trigger::status::set;

    #[tokio::test]
    async fn a_window_whose_start_is_committed_does_not_begin_while_its_trigger_is_paused() {
        let mut world = World::new().await;
        world.add_with_record();
        world.poller.advance_touched();
        let entry = world.entry(1);
        let window = entry.starting[0].window;
        // On its way.
        entry.next_commit();
        world.runner.change(|holds| set(&mut holds.paused, true));
        world.poller.committed(Uuid::from_u128(1), Ok(()));
        let entry = world.entry(1);
        assert!(entry.tasks.is_empty() && entry.dirty && !entry.lane.state(window).running);
        // One that the group refused is not offered again either.
        world.runner.change(|holds| set(&mut holds.paused, false));
        world.poller.advance_touched();
        let entry = world.entry(1);
        assert_eq!(entry.starting.len(), 1, "resumed, it may begin");
        entry.next_commit();
        world.poller.committed(Uuid::from_u128(1), Err(CommitError::Failed("down".to_owned())));
        world.runner.change(|holds| set(&mut holds.paused, true));
        let entry = world.entry(1);
        entry.hold_back();
        assert!(entry.starting.is_empty() && !entry.lane.state(window).running);
    }

    /// Well below what a leader that does not answer is given.
    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_poller_whose_cluster_does_not_answer_listens_to_everybody_else() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let input = EventInput::Cluster(ClusterInput::with_leader_for_test(silent.local_addr().unwrap()));
        let (poller, task) = spawn(input.clone(), TaskTracker::new());
        let runner = Runner::for_test(&json!({"trigger": "t", "input": {"topic": "in"}, "function": "f"}));
        poller.send(Message::Add(Box::new(lane(&runner, input, Offset::ZERO))));
        // It asks the leader.
        let _asked = timeout(SOON, silent.accept()).await.expect("it reads").unwrap();
        let skipped = timeout(SOON, poller.skip(runner.id)).await;
        assert_eq!(skipped.expect("a person is heard"), 0);
        timeout(SOON, poller.remove(runner.id)).await.expect("the lane is let go of");
        poller.send(Message::Stop);
        timeout(SOON, task).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn a_trigger_whose_partition_is_watched_no_more_says_so() {
        let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let cluster = ClusterInput::with_leader_for_test(nobody.local_addr().unwrap());
        let input = EventInput::Cluster(cluster.clone());
        let (poller, _task) = spawn(input.clone(), TaskTracker::new());
        let runner = Runner::for_test(&json!({"trigger": "t", "input": {"topic": "in"}, "function": "f"}));
        let tail = input.tail();
        poller.send(Message::Add(Box::new(lane(&runner, input, tail))));
        // It has read everything there is, and waits.
        assert_eq!(timeout(SOON, poller.skip(runner.id)).await.expect("it is there"), 0);
        assert!(!runner.holds(|holds| holds.broken));
        cluster.break_down_for_test();
        let says_so = async {
            loop {
                let changed = runner.listen();
                if runner.holds(|holds| holds.broken) {
                    return;
                }
                changed.await;
            }
        };
        timeout(SOON, says_so).await.expect("it says so");
    }

    fn lane(runner: &Arc<Runner>, input: EventInput, from: Offset) -> NewLane {
        NewLane {
            id: LaneId { trigger: runner.id, topic: Uuid::nil(), partition: 0 },
            progress: Progress::start(from),
            remembered: LaneState::default(),
            status: Arc::new(LaneStatus::new(input, from, None)),
            runner: Arc::clone(runner),
            run: None,
            group: None,
        }
    }
}
