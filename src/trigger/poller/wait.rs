//! What a poller waits for when it has nothing to do.

use std::time::Duration;

use tokio::time::Instant;
use tripline_storage::Offset;

use super::{Message, Poller};

/// Attempts end often when the last one before was so short a time ago.
const ENDS_OFTEN: Duration = Duration::from_micros(200);
/// How long the end of an attempt waits for others at most; a millisecond is the grain of timers.
const ENDED_WAIT: Duration = Duration::from_millis(1);
/// That many in a turn are enough.
const ENDED_PER_TURN_MAX: usize = 32;
/// After a wait in vain, as where most of those in flight are slow, so many turns do without: 12 instead of 10 thousand
/// windows a second of 64 slots where one in 20 takes 100 ms.
const UNAWAITED: u32 = 32;

impl Poller {
    /// Waits for more attempts to end where they end one upon the other, unless they are long in coming or something
    /// else happens. A turn costs about as much for one that has ended as for many, its journal append foremost: so
    /// half of those in flight share a turn.
    pub(super) async fn await_ended(&mut self) {
        if self.ended.is_empty() {
            return;
        }
        let often = self.ended_at.elapsed() < ENDS_OFTEN;
        let in_flight =
            |trigger| self.lanes.get(trigger).map(|entry| entry.tasks.len().saturating_sub(entry.stuck.len()));
        let in_flight = self.ended.iter().filter_map(in_flight).max();
        let wanted = in_flight.unwrap_or(0).div_ceil(2).min(ENDED_PER_TURN_MAX);
        if often && self.ended.len() < wanted {
            match self.unawaited.checked_sub(1) {
                Some(left) => self.unawaited = left,
                None => self.await_more(wanted).await,
            }
        }
        self.ended.clear();
        self.ended_at = Instant::now();
    }

    async fn await_more(&mut self, wanted: usize) {
        let appended = self.input.listen();
        if !self.at_head.is_empty() && self.head < self.input.tail() {
            return;
        }
        let mut enough = std::pin::pin!(async {
            tokio::select! {
                () = appended => 0,
                () = tokio::time::sleep(ENDED_WAIT) => UNAWAITED,
            }
        });
        while self.ended.len() < wanted {
            let message = tokio::select! {
                biased;
                message = self.inbox.recv() => message,
                unawaited = &mut enough => return self.unawaited = unawaited,
            };
            let Some(message) = message else { return self.stopping = true };
            // A slot that is free again wakes the lane that waits for it.
            let goes_on = matches!(message, Message::Ended(..) | Message::Wake(_));
            self.receive(message);
            if !goes_on {
                return;
            }
        }
    }

    /// Waits for a message, a timer, or records.
    pub(super) async fn wait(&mut self) {
        let appended = self.input.listen();
        #[cfg(feature = "cluster")]
        if self.input.broke_down() {
            self.driven.broke_down();
        }
        let tail = self.input.tail();
        let wants = |at: Offset| at < tail;
        if !self.stopping
            && self.head_retry_at.is_none()
            && !self.is_fetching()
            && ((!self.at_head.is_empty() && wants(self.head))
                || self.behind.iter().any(|trigger| self.lanes.get(trigger).is_some_and(|entry| entry.can_read(tail))))
        {
            return;
        }
        let listens = !self.at_head.is_empty() || !self.behind.is_empty();
        let timer = self
            .timers
            .first()
            .and_then(|(at_ms, trigger)| self.lanes.get(trigger).map(|entry| entry.runner.clock.instant(*at_ms)));
        let until = timer.into_iter().chain(self.note_at).chain(self.head_retry_at).min();
        let stopped = tokio::select! {
            message = self.inbox.recv() => match message {
                Some(message) => {
                    self.receive(message);
                    false
                }
                None => true,
            },
            () = appended, if listens => false,
            () = sleep_until_some(until) => false,
        };
        self.stopping |= stopped;
    }
}

async fn sleep_until_some(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
