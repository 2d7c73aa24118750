//! A poller in a test's hands.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::task::TaskTracker;
use tripline_storage::Offset;
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};
use tripline_storage::fs::SimFs;
use uuid::Uuid;

use super::entry::Entry;
use super::{NewLane, Poller};
use crate::broker::Topic;
use crate::broker::record::{LaneId, TriggerDefined};
use crate::broker::state::LaneState;
use crate::input::{EventInput, LogInput};
use crate::topic::name::TopicName;
use crate::topic::spec::{TopicConfig, TopicSpec};
use crate::trigger::lane_status::LaneStatus;
use crate::trigger::progress::Progress;
use crate::trigger::runner::Runner;
use crate::trigger::window::{RecordFacts, Spot};

/// A poller of a topic with one record, and the disk below.
pub(super) struct World {
    pub(super) disk: Arc<SimFs>,
    pub(super) runner: Arc<Runner>,
    pub(super) topic: Arc<Topic>,
    pub(super) poller: Poller,
}

impl World {
    pub(super) async fn new() -> Self {
        let disk = Arc::new(SimFs::new());
        let definition = json!({"trigger": "t", "input": {"topic": "in"}, "function": "f"});
        let runner = Runner::for_test_on(Arc::clone(&disk), &definition);
        let name = TopicName::new("in").unwrap();
        let spec = TopicSpec { name, partitions: 1, config: TopicConfig::default() };
        let topic = runner.broker.create_topic(spec).await.unwrap();
        let poller = Poller::new(Self::input(&runner, &topic), TaskTracker::new());
        let world = Self { disk, runner, topic, poller };
        world.append();
        world
    }

    /// One more record.
    pub(super) fn append(&self) {
        let mut batch = BatchBuilder::new(BatchOptions::default());
        batch.push(&NewRecord { value: Some(b"1"), ..NewRecord::default() }).unwrap();
        self.runner.broker.append(&self.topic, 0, batch.finish().unwrap()).unwrap();
    }

    pub(super) fn input(runner: &Runner, topic: &Topic) -> EventInput {
        EventInput::Log(LogInput::new(&runner.broker, topic, 0).unwrap())
    }

    pub(super) fn lane_id(&self, number: u128) -> LaneId {
        LaneId { trigger: Uuid::from_u128(number), topic: self.topic.id(), partition: 0 }
    }

    /// A lane that goes on from what is remembered.
    pub(super) fn add(&mut self, number: u128, remembered: LaneState) -> &mut Entry {
        let id = self.lane_id(number);
        // The journal keeps nothing of triggers that it does not know.
        let (name, definition) = (format!("t{number}"), "{}".to_owned());
        let defined = TriggerDefined { id: id.trigger, name, definition, created_ms: 0 };
        self.runner.broker.journal().append(&[defined.into()], 0).unwrap();
        let input = Self::input(&self.runner, &self.topic);
        let progress = remembered.progress.as_deref().map(|bytes| Progress::decode(bytes).unwrap());
        self.poller.add(NewLane {
            id,
            progress: progress.unwrap_or_else(|| Progress::start(Offset::ZERO)),
            remembered,
            status: Arc::new(LaneStatus::new(input, Offset::ZERO, None)),
            runner: Arc::clone(&self.runner),
            run: None,
            #[cfg(feature = "cluster")]
            group: None,
        });
        self.entry(number)
    }

    /// A new lane 1 that was given the topic's only record.
    pub(super) fn add_with_record(&mut self) -> &mut Entry {
        let entry = self.add(1, LaneState::default());
        let record =
            RecordFacts { offset: Offset::ZERO, key: 0, size_bytes: 1, age: Duration::ZERO, spot: Spot::UNKNOWN };
        let now_ms = entry.runner.clock.now_ms();
        entry.lane.take(&[record], Offset::ZERO.next(), now_ms);
        entry
    }

    pub(super) fn entry(&mut self, number: u128) -> &mut Entry {
        self.poller.lanes.get_mut(&Uuid::from_u128(number)).unwrap()
    }

    /// What the journal has of a lane.
    pub(super) fn remembered(&self, number: u128) -> LaneState {
        let lane = self.lane_id(number);
        self.runner.broker.journal().look(|state| state.lanes.get(&lane).cloned()).unwrap_or_default()
    }

    /// Partitions that the trigger is shown to stand still in.
    pub(super) fn blocks(&self) -> usize {
        self.runner.holds(|holds| holds.blocked.len())
    }
}
