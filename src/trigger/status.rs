//! What a trigger is doing, as its lanes and the people around it say.
//!
//! Several things can hold a trigger at once; the state that is shown is the one that a person has to end first:
//! Paused, Failed, Outage, Blocked, else Running.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::parcel::Reach;
use super::service::TriggerState;
use crate::input::Origin;

/// What holds a trigger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Holds {
    /// A person paused it.
    pub(super) paused: bool,
    /// The broker stops.
    pub(super) stopped: bool,
    /// It has begun to read.
    pub(super) started: bool,
    /// A bug of ours ended what worked for it: nobody works for it any more.
    pub(super) broken: bool,
    /// The code cannot run, and why.
    pub(super) failed: Option<String>,
    /// The target cannot be reached.
    pub(super) outage: Option<Outage>,
    /// It cannot get at what it reads on a cluster.
    pub(super) cluster: Option<ClusterTrouble>,
    /// Partitions that wait for success or for a person, by topic and number.
    pub(super) blocked: BTreeMap<(Uuid, u32), Blocked>,
}

/// A partition that waits for success or for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    topic: String,
    reason: String,
}

/// What stands between a trigger, or a run, and its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ClusterTrouble {
    /// Why.
    pub(super) reason: String,
    /// What would end it.
    pub(super) ends_when: &'static str,
}

/// A target that cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outage {
    /// Why.
    pub(super) reason: String,
    /// When to try again, ms since 1970.
    pub(super) probe_at_ms: i64,
    /// Which of the trigger's functions it is.
    pub(super) of: Reach,
}

/// A state, why, and what would end it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) state: TriggerState,
    pub(super) reason: String,
    pub(super) ends_when: &'static str,
}

/// Puts a value in its place; answers whether there was another.
pub(super) fn set<T: PartialEq>(place: &mut T, value: T) -> bool {
    let changed = *place != value;
    *place = value;
    changed
}

impl Holds {
    /// A partition waits, for this reason. Answers whether that is news.
    pub(super) fn block(&mut self, origin: &Origin, reason: &str) -> bool {
        let place = (origin.topic_id, origin.partition);
        if self.blocked.get(&place).is_some_and(|blocked| blocked.reason == reason) {
            return false;
        }
        let blocked = Blocked { topic: origin.topic.clone(), reason: reason.to_owned() };
        self.blocked.insert(place, blocked);
        true
    }

    /// These partitions wait no more. Answers whether one did.
    pub(super) fn unblock(&mut self, is_gone: impl Fn(&(Uuid, u32)) -> bool) -> bool {
        let before = self.blocked.len();
        self.blocked.retain(|place, _| !is_gone(place));
        self.blocked.len() < before
    }

    pub(super) fn shown(&self) -> Shown {
        let shown = |state, reason: &str, ends_when| Shown { state, reason: reason.to_owned(), ends_when };
        if self.stopped {
            return shown(TriggerState::Stopped, "the broker stops", "the broker starts again");
        }
        if self.broken {
            let reason = "a worker of the broker broke down; its log says where: please report this";
            return shown(TriggerState::Failed, reason, "the broker starts again");
        }
        if self.paused {
            return shown(TriggerState::Paused, "paused by a person", "someone resumes it");
        }
        if let Some(reason) = &self.failed {
            return shown(TriggerState::Failed, reason, "the function gets new code, or someone resumes the trigger");
        }
        if let Some(outage) = &self.outage {
            return shown(TriggerState::Outage, &outage.reason, "a probe of the target succeeds");
        }
        if let Some(ClusterTrouble { reason, ends_when }) = &self.cluster {
            return shown(TriggerState::Blocked, reason, ends_when);
        }
        if let Some(((_, partition), Blocked { topic, reason })) = self.blocked.first_key_value() {
            let reason = format!("partition {topic}/{partition}: {reason}");
            return shown(
                TriggerState::Blocked,
                &reason,
                "the window succeeds, or someone skips it or repairs what blocks it",
            );
        }
        let state = if self.started { TriggerState::Running } else { TriggerState::Starting };
        shown(state, "", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_that_a_person_must_end_first_is_shown() {
        let mut holds = Holds::default();
        assert_eq!(holds.shown().state, TriggerState::Starting);
        holds.started = true;
        assert_eq!(holds.shown().state, TriggerState::Running);
        let blocked = Blocked { topic: "flights".to_owned(), reason: "it fails".to_owned() };
        holds.blocked.insert((Uuid::nil(), 3), blocked);
        assert_eq!(
            (holds.shown().state, holds.shown().reason.as_str()),
            (TriggerState::Blocked, "partition flights/3: it fails")
        );
        holds.outage = Some(Outage { reason: "refused".to_owned(), probe_at_ms: 1, of: Reach::TARGET });
        assert_eq!(holds.shown().state, TriggerState::Outage);
        holds.failed = Some("SyntaxError".to_owned());
        assert_eq!(holds.shown().state, TriggerState::Failed);
        holds.paused = true;
        assert_eq!(holds.shown().state, TriggerState::Paused);
        holds.broken = true;
        assert_eq!(holds.shown().state, TriggerState::Failed);
        holds.stopped = true;
        assert_eq!(holds.shown().state, TriggerState::Stopped);
    }

    #[test]
    fn what_is_said_again_is_no_change() {
        let (mut holds, origin) = (Holds::default(), Origin::for_test());
        let place = (origin.topic_id, origin.partition);
        assert_eq!([true, false], [(); 2].map(|()| set(&mut holds.failed, Some("SyntaxError".to_owned()))));
        assert_eq!([true, false], [(); 2].map(|()| holds.block(&origin, "it fails")));
        assert!(holds.block(&origin, "it fails otherwise"), "another reason is news");
        assert!(!holds.unblock(|_| false));
        assert_eq!([true, false], [(); 2].map(|()| holds.unblock(|of| *of == place)));
    }
}
