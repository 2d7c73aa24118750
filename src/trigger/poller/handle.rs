//! What is said to a poller, and who says it.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tripline_storage::Offset;
#[cfg(feature = "cluster")]
use tripline_storage::{error::ReadError, partition::ReadOutcome};
use uuid::Uuid;

#[cfg(feature = "cluster")]
use super::cluster;
use crate::broker::record::LaneId;
use crate::broker::state::LaneState;
use crate::input::EventInput;
use crate::trigger::invoke::Ended;
use crate::trigger::lane::{Standing, WindowId};
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::progress::Progress;
use crate::trigger::run::{Completion, Gate};
use crate::trigger::runner::{Permit, Runner};

/// Sends messages to a poller. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub(in crate::trigger) struct PollerHandle {
    pub(super) sender: mpsc::UnboundedSender<Message>,
}

#[derive(Debug)]
pub(in crate::trigger) enum Message {
    /// Drive a lane of this trigger.
    Add(Box<NewLane>),
    /// Let go of a trigger's lane at once, attempts included; answered when nothing of them runs any more.
    Remove(Uuid, oneshot::Sender<()>),
    /// Something about this trigger may have changed.
    Wake(Uuid),
    /// An attempt has ended.
    Ended(Uuid, WindowId, Box<Ended>, Permit),
    /// A verdict was carried out; the first offset of its range.
    Settled(Uuid, WindowId, i64),
    /// The broker stops before a verdict could be carried out: the next start goes on with it.
    Abandoned(Uuid, WindowId),
    /// A verdict cannot be carried out for now; its task is told when a person skips it.
    HeldUp(Uuid, WindowId, oneshot::Sender<()>),
    /// Give up what a trigger's lane waits to try again, and pass over a damaged range; answered with how many records.
    Skip(Uuid, oneshot::Sender<usize>),
    /// A commit to the group is answered.
    #[cfg(feature = "cluster")]
    Committed(Uuid, Result<(), crate::input::cluster::CommitError>),
    /// Dead letters that the group is to know of.
    #[cfg(feature = "cluster")]
    Letters(cluster::NewLetters),
    /// What lies at an offset of a cluster's partition, or why it could not be read.
    #[cfg(feature = "cluster")]
    Fetched(Offset, Box<Result<ReadOutcome, ReadError>>),
    /// Where a trigger's lane has the record at an offset, with this hash of its key; nothing where it has no lane
    /// here.
    Stands(Uuid, Offset, u64, oneshot::Sender<Standing>),
    /// Start nothing more; end when nothing is in flight.
    Stop,
}

/// A lane to drive.
#[derive(Debug)]
pub(in crate::trigger) struct NewLane {
    pub(in crate::trigger) runner: Arc<Runner>,
    pub(in crate::trigger) id: LaneId,
    pub(in crate::trigger) progress: Progress,
    pub(in crate::trigger) remembered: LaneState,
    pub(in crate::trigger) status: Arc<LaneStatus>,
    /// Set for a lane of a run, which ends.
    pub(in crate::trigger) run: Option<RunLane>,
    #[cfg(feature = "cluster")]
    pub(in crate::trigger) group: Option<cluster::GroupPlace>,
}

/// What a lane of a run has besides.
#[derive(Clone, Debug)]
pub(in crate::trigger) struct RunLane {
    /// Nothing from here on is taken.
    pub(in crate::trigger) until: Offset,
    /// Which records are taken; `None` leaves that to the trigger's filter.
    pub(in crate::trigger) gate: Option<Arc<Gate>>,
    /// The partition as its attempts see it: dead letters as the records that they were.
    pub(in crate::trigger) input: EventInput,
    /// Told when everything is finished and written down.
    pub(in crate::trigger) completion: Arc<Completion>,
}

impl PollerHandle {
    /// A handle to nothing but the messages sent to it.
    #[cfg(test)]
    pub(in crate::trigger) fn for_test() -> (Self, mpsc::UnboundedReceiver<Message>) {
        let (sender, messages) = mpsc::unbounded_channel();
        (Self { sender }, messages)
    }

    pub(in crate::trigger) fn wake(&self, trigger: Uuid) {
        self.send(Message::Wake(trigger));
    }

    /// A poller that has ended needs no messages.
    pub(in crate::trigger) fn send(&self, message: Message) {
        let _ = self.sender.send(message);
    }

    pub(in crate::trigger) fn has_ended(&self) -> bool {
        self.sender.is_closed()
    }

    pub(in crate::trigger) fn is_same(&self, other: &Self) -> bool {
        self.sender.same_channel(&other.sender)
    }

    /// Lets go of a trigger's lane, and waits for that.
    pub(in crate::trigger) async fn remove(&self, trigger: Uuid) {
        let (done, removed) = oneshot::channel();
        self.send(Message::Remove(trigger, done));
        // One that has ended has no lanes.
        let _ = removed.await;
    }

    /// The same of all these pollers; none waits for another.
    pub(in crate::trigger) async fn remove_from_all(pollers: &[Self], trigger: Uuid) {
        join_all(pollers.iter().map(|poller| poller.remove(trigger))).await;
    }

    /// Where a trigger's lane has the record at `offset`; `None` when there is no such lane.
    pub(in crate::trigger) async fn stands(&self, trigger: Uuid, offset: Offset, key: u64) -> Option<Standing> {
        let (answer, standing) = oneshot::channel();
        self.send(Message::Stands(trigger, offset, key, answer));
        standing.await.ok()
    }

    /// Skips what a trigger's lane waits for; answers how many records that were.
    pub(in crate::trigger) async fn skip(&self, trigger: Uuid) -> usize {
        let (done, skipped) = oneshot::channel();
        self.send(Message::Skip(trigger, done));
        skipped.await.unwrap_or(0)
    }
}
