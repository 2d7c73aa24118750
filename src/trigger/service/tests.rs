//! What happens when changes, ends and lanes meet.

use std::sync::Arc;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tripline_storage::batch::{BatchBuilder, BatchOptions, NewRecord};

use super::*;
use crate::broker::BrokerConfig;
use crate::broker::record::{
    DeadLetterTarget, LaneId, LettersDiscarded, LettersGo, RunDefined, TriggerDefined, TriggerSwitched, TriggerVerdict,
};
use crate::function::FunctionOptions;
use crate::function::spec::FunctionDefinition;
use crate::topic::spec::{TopicConfig, TopicSpec};
use crate::trigger::run::RedriveRequest;

/// A service with a function `f` that nobody answers for, and a topic `t`.
pub(super) struct World {
    pub(super) broker: Broker,
    pub(super) service: TriggerService,
    topic: Arc<Topic>,
    dir: tempfile::TempDir,
}

impl World {
    pub(super) async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (broker, _) = Broker::start(BrokerConfig::new(dir.path().join("data"))).unwrap();
        let topic = TopicSpec { name: TopicName::new("t").unwrap(), partitions: 1, config: TopicConfig::default() };
        let topic = broker.create_topic(topic).await.unwrap();
        let (world, failed) = Self::on(dir, broker, topic).await;
        assert!(failed.is_empty(), "{failed:?}");
        world
    }

    async fn on(dir: tempfile::TempDir, broker: Broker, topic: Arc<Topic>) -> (Self, Vec<RestoreTriggerError>) {
        let functions = FunctionService::new(FunctionOptions::new(dir.path().join("functions")).unwrap()).unwrap();
        let function = json!({"function": "f", "runtime": "http", "url": "http://localhost/"});
        functions.deploy(FunctionDefinition::from_json(&function).unwrap().spec, None).await.unwrap();
        let (service, failed) = TriggerService::start(broker.clone(), functions);
        (Self { broker, service, topic, dir }, failed)
    }

    /// After a kill, on what is remembered.
    #[cfg(feature = "cluster")]
    pub(super) async fn begin_again(self) -> Self {
        let Self { broker, service, topic, dir } = self;
        drop(service);
        let (world, failed) = Self::on(dir, broker, topic).await;
        assert!(failed.is_empty(), "{failed:?}");
        world
    }

    /// A trigger `x`, or what `more` makes of it.
    pub(super) async fn apply(&self, more: Value) -> Uuid {
        let mut definition = json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f"});
        definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.service.apply(TriggerSpec::from_json(&definition).unwrap()).await.unwrap();
        self.service.runner(definition["trigger"].as_str().unwrap()).unwrap().id
    }

    fn produce(&self) {
        let mut builder = BatchBuilder::new(BatchOptions::default());
        builder.push(&NewRecord { timestamp_ms: 1, ..NewRecord::default() }).unwrap();
        self.broker.append(&self.topic, 0, builder.finish().unwrap()).unwrap();
    }

    fn is_paused(&self, id: Uuid) -> (bool, bool) {
        let written = self.broker.journal().look(|state| state.triggers[&id].paused_since_ms.is_some());
        (written, self.service.describe("x").unwrap().state == TriggerState::Paused)
    }
}

#[tokio::test]
async fn a_definition_that_waits_while_the_service_ends_starts_nothing_any_more() {
    let world = World::start().await;
    let id = world.apply(json!({})).await;
    let changing = world.service.inner.changing.lock().await;
    let again = json!({"trigger": "x", "input": {"topic": "t"}, "function": "f", "window": {"count": 3}});
    let (mut end, mut apply) = (
        std::pin::pin!(world.service.shutdown(Duration::ZERO)),
        std::pin::pin!(world.service.apply(TriggerSpec::from_json(&again).unwrap())),
    );
    assert!(
        end.as_mut().now_or_never().is_none() && apply.as_mut().now_or_never().is_none(),
        "they wait in this order"
    );
    drop(changing);
    end.await;
    assert!(matches!(apply.await, Err(ApplyTriggerError::Stopping)));
    assert!(world.service.list().is_empty() && world.service.inner.pollers.lock().is_empty());
    let written = world.broker.journal().look(|state| state.triggers[&id].defined.definition.clone());
    assert!(!written.contains("\"count\":3"), "{written}");
}

#[tokio::test]
async fn a_function_that_is_deployed_as_it_is_ends_no_wait_but_that_of_a_trigger_that_failed() {
    let world = World::start().await;
    world.apply(json!({})).await;
    let runner = world.service.runner("x").unwrap();
    let nudged = |function: &str, changed: bool| {
        let before = runner.nudges();
        world.service.function_deployed(function, changed);
        runner.nudges() > before
    };
    assert!(!nudged("f", false) && nudged("f", true) && !nudged("g", true));
    runner.change(|holds| crate::trigger::status::set(&mut holds.failed, Some("SyntaxError".to_owned())));
    assert!(nudged("f", false) && runner.holds(|holds| holds.failed.is_none()));
    assert!(!nudged("f", false));
}

#[tokio::test]
async fn a_pause_that_nobody_waits_for_any_more_is_made_or_not_but_not_half() {
    let world = World::start().await;
    let id = world.apply(json!({})).await;
    {
        let mut pause = std::pin::pin!(world.service.pause("x"));
        assert!(pause.as_mut().now_or_never().is_none(), "it waits for the disk at least");
    }
    world.broker.changes_ended().await;
    assert_eq!(world.is_paused(id), (true, true), "as written, and as done");
}

#[tokio::test]
async fn a_pause_waits_for_a_change_that_is_under_way() {
    let world = World::start().await;
    let id = world.apply(json!({})).await;
    let changing = world.service.inner.changing.lock().await;
    let service = world.service.clone();
    let pause = tokio::spawn(async move { service.pause("x").await });
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.is_paused(id), (false, false));
    drop(changing);
    pause.await.unwrap().unwrap();
    assert_eq!(world.is_paused(id), (true, true));
}

#[tokio::test]
async fn a_reset_forgets_the_verdict_that_is_written_while_a_lane_ends() {
    let world = World::start().await;
    let id = world.apply(json!({})).await;
    world.service.pause("x").await.unwrap();
    world.produce();
    let lane = LaneId { trigger: id, topic: world.topic.id(), partition: 0 };
    let verdict = TriggerVerdict {
        lane,
        first: 0,
        next: 1,
        offsets: vec![0],
        reason: "attempts".to_owned(),
        function: "f".to_owned(),
        attempts: Vec::new(),
        // A topic that is gone: it would wait for a person.
        dead_letters: LettersGo::To(DeadLetterTarget {
            topic: Uuid::from_u128(9),
            partition: 0,
            producer_id: 1,
            batch_bytes: 1,
        }),
    };
    let (poller, mut messages) = PollerHandle::for_test();
    world.service.inner.running.write().get_mut("x").unwrap().pollers.push(poller);
    let broker = world.broker.clone();
    let lane_ends = tokio::spawn(async move {
        let Some(Message::Remove(_, done)) = messages.recv().await else { panic!("the lane is to end") };
        broker.journal().append(&[verdict.into()], 0).unwrap();
        done.send(()).unwrap();
    });
    world.service.reset("x", &[(world.topic.id(), 0, Offset::ZERO)]).await.unwrap();
    lane_ends.await.unwrap();
    let verdicts = world.broker.journal().look(|state| state.lanes[&lane].verdicts.len());
    assert_eq!(verdicts, 0, "it would give up what is to be done again");
}

#[tokio::test]
async fn a_redrive_looks_at_the_letters_beside_other_changes_and_begins_only_where_what_it_saw_still_holds() {
    let world = World::start().await;
    let id = world.apply(json!({"dead_letter": {"topic": "t.dlq"}})).await;
    let letters = world.broker.topic("t.dlq").unwrap().id();
    let request = RedriveRequest { max: Some(1), redrives_max: None, ..RedriveRequest::default() };
    for is_discarded in [true, false] {
        let changing = world.service.inner.changing.lock().await;
        let (service, request) = (world.service.clone(), request.clone());
        let redrive = tokio::spawn(async move { service.redrive("x", request).await });
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        if is_discarded {
            let discarded = LettersDiscarded { trigger: id, topic: letters, partition: 0, below: 1 };
            world.broker.journal().append(&[discarded.into()], 0).unwrap();
        }
        drop(changing);
        let redrive = redrive.await.unwrap();
        let is_refused = matches!(&redrive, Err(RunError::State(reason)) if reason.contains("meanwhile"));
        assert_eq!((is_refused, redrive.is_ok()), (is_discarded, !is_discarded), "{redrive:?}");
    }
}

#[tokio::test]
async fn a_trigger_that_is_made_after_a_poller_broke_down_has_one_at_work() {
    let world = World::start().await;
    world.apply(json!({})).await;
    let broken = world.service.poller(&world.topic, 0).unwrap();
    broken.send(Message::Stop);
    while !broken.has_ended() {
        tokio::task::yield_now().await;
    }
    world.apply(json!({"trigger": "y"})).await;
    let running = world.service.inner.running.read();
    assert!(running["y"].pollers.iter().all(|poller| !poller.has_ended()));
}

#[tokio::test]
async fn a_trigger_that_could_not_be_restored_is_made_anew_with_its_pause_and_its_runs() {
    let World { broker, service, topic, dir } = World::start().await;
    drop(service);
    let (id, run) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let definition = json!({"trigger": "x", "input": {"topic": "gone"}, "function": "f"}).to_string();
    let replay = r#"{"kind":"replay","topic":"t","ranges":[{"partition":0,"from":0,"to":1}]}"#.to_owned();
    let remembered: [JournalRecord; 3] = [
        TriggerDefined { id, name: "x".to_owned(), definition, created_ms: 1 }.into(),
        TriggerSwitched { id, paused: true, since_ms: 2 }.into(),
        RunDefined { id: run, trigger: id, topic: topic.id(), definition: replay, created_ms: 3 }.into(),
    ];
    broker.journal().append(&remembered, 0).unwrap();
    let (world, failed) = World::on(dir, broker, topic).await;
    assert_eq!(failed.iter().map(|failed| failed.name.as_str()).collect::<Vec<_>>(), ["x"]);
    world.produce();
    assert_eq!(world.apply(json!({})).await, id);
    assert_eq!(world.is_paused(id), (true, true));
    assert_eq!(world.service.describe("x").unwrap().since_ms, 2, "it is paused for as long as it was");
    assert!(world.service.inner.runs.read().contains_key(&run));
}
