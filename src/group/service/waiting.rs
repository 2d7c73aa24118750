//! Answers that wait, and clients that do not.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;

use super::{GroupService, Slot, SlotState, now};
use crate::group::error::{JoinError, SyncError};
use crate::group::member::{JoinAnswer, SyncAnswer, Ticket};
use crate::group::state::Effect;

/// An answer to come.
///
/// The event has happened already; this is only the wait. Dropping it before the answer is there tells the group that
/// the client has gone.
pub struct Waiting<T, E> {
    state: State<T, E>,
}

enum State<T, E> {
    Ready(Option<Result<T, E>>),
    Pending { receiver: oneshot::Receiver<Result<T, E>>, behind: Behind },
    Done,
}

/// Where the answer comes from.
struct Behind {
    service: GroupService,
    slot: Arc<Slot>,
    ticket: Ticket,
}

impl<T, E> Waiting<T, E> {
    pub(super) const fn ready(answer: Result<T, E>) -> Self {
        Self { state: State::Ready(Some(answer)) }
    }
}

impl<T: Unpin, E: Unpin> Future for Waiting<T, E> {
    type Output = Result<T, E>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.state {
            State::Ready(answer) => answer.take().expect("polled after it was ready"),
            State::Pending { receiver, .. } => match Pin::new(receiver).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(answer) => answer.expect("each ticket is answered before its group is forgotten"),
            },
            State::Done => panic!("polled after it was ready"),
        };
        self.state = State::Done;
        Poll::Ready(answer)
    }
}

impl<T, E> Drop for Waiting<T, E> {
    fn drop(&mut self) {
        if let State::Pending { behind, .. } = &self.state {
            behind.abandon();
        }
    }
}

impl Behind {
    fn abandon(&self) {
        // A panic inside the group unwinds through here with the group locked.
        if std::thread::panicking() {
            return;
        }
        let mut state = self.slot.state.lock();
        // Not there any more: the answer was sent and nobody read it. The member is one, and its session runs.
        if state.waiters.remove(&self.ticket).is_none() {
            return;
        }
        let now = now();
        state.group.abandon(now, self.ticket);
        let forgets = self.service.shared.settle(&self.slot, &mut state, now);
        drop(state);
        if forgets {
            self.service.shared.forget_if_unused(&self.slot);
        }
    }
}

/// The other end of a [`Waiting`].
pub(super) enum Waiter {
    Join(oneshot::Sender<Result<JoinAnswer, JoinError>>),
    Sync(oneshot::Sender<Result<SyncAnswer, SyncError>>),
}

impl Waiter {
    pub(super) fn answer(self, effect: Effect) {
        match (self, effect) {
            (Self::Join(sender), Effect::Join(_, answer)) => drop(sender.send(answer)),
            (Self::Sync(sender), Effect::Sync(_, answer)) => drop(sender.send(answer)),
            (Self::Join(_), Effect::Sync(..)) | (Self::Sync(_), Effect::Join(..)) => {
                unreachable!("a ticket is for a join or for a sync")
            }
        }
    }
}

pub(super) fn join_waiter(
    service: &GroupService,
    slot: &Arc<Slot>,
    state: &mut SlotState,
) -> (Ticket, Waiting<JoinAnswer, JoinError>) {
    waiter(service, slot, state, Waiter::Join)
}

pub(super) fn sync_waiter(
    service: &GroupService,
    slot: &Arc<Slot>,
    state: &mut SlotState,
) -> (Ticket, Waiting<SyncAnswer, SyncError>) {
    waiter(service, slot, state, Waiter::Sync)
}

fn waiter<T, E>(
    service: &GroupService,
    slot: &Arc<Slot>,
    state: &mut SlotState,
    kind: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Waiter,
) -> (Ticket, Waiting<T, E>) {
    let ticket = Ticket(state.next_ticket);
    state.next_ticket += 1;
    let (sender, receiver) = oneshot::channel();
    state.waiters.insert(ticket, kind(sender));
    let behind = Behind { service: service.clone(), slot: Arc::clone(slot), ticket };
    (ticket, Waiting { state: State::Pending { receiver, behind } })
}
