//! Whom a bug in a poller's work concerns.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::trigger::runner::Runner;

/// Whose lanes a poller has, by trigger or run. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Driven(Arc<Mutex<HashMap<Uuid, Weak<Runner>>>>);

impl Driven {
    pub(super) fn add(&self, trigger: Uuid, runner: &Arc<Runner>) {
        self.0.lock().insert(trigger, Arc::downgrade(runner));
    }

    pub(super) fn remove(&self, trigger: Uuid) {
        self.0.lock().remove(&trigger);
    }

    /// Does some of the poller's work. A bug of ours shows at its triggers, instead of their standing still in silence.
    pub(super) async fn watch(self, work: impl Future<Output = ()>) {
        if AssertUnwindSafe(work).catch_unwind().await.is_err() {
            self.broke_down();
        }
    }

    pub(super) fn broke_down(&self) {
        let runners: Vec<Arc<Runner>> = self.0.lock().values().filter_map(Weak::upgrade).collect();
        runners.iter().for_each(|runner| runner.broke_down());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_bug_shows_at_the_triggers_that_there_are() {
        let definition = json!({"trigger": "t", "input": {"topic": "in"}, "function": "f"});
        let (stays, goes) = (Runner::for_test(&definition), Runner::for_test(&definition));
        let driven = Driven::default();
        driven.add(Uuid::from_u128(1), &stays);
        driven.add(Uuid::from_u128(2), &goes);
        driven.remove(Uuid::from_u128(2));
        let broken = || [&stays, &goes].map(|runner| runner.holds(|holds| holds.broken));
        driven.clone().watch(async {}).await;
        assert_eq!(broken(), [false, false]);
        driven.watch(async { panic!("as a bug would") }).await;
        assert_eq!(broken(), [true, false]);
    }
}
