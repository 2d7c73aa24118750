//! Runs of a trigger over a range: replays of its input, and redrives of its dead letters.

use std::time::Duration;

use serde_json::{Value, json};
use tripline::broker::record::{JournalRecord, RunDefined, RunState, RunSwitched};
use tripline::broker::{DeleteTopicError, Topic};
use tripline::trigger::dry_run::DryRunRequest;
use tripline::trigger::filter::Pattern;
use tripline::trigger::run::{REMEMBERED_MAX, RangeRequest, RedriveRequest, ReplayRequest};
use tripline::trigger::service::{LaneChoice, RunError, RunPhase, RunReport, TriggerState};
use tripline::trigger::spec::StartPosition;
use tripline::trigger::transform::Shown;
use tripline_storage::Offset;
use uuid::Uuid;

use crate::harness::{PATIENCE, Stored, World, python_definition};

/// Prints the data of each event, one a line.
const PRINT: &str = "
import json
def handler(event, context):
    for e in json.loads(event):
        print(e['data'])
";
const RAISE: &str = "
def handler(event, context):
    raise ValueError('no good')
";
/// Does not take the first.
const PICKY: &str = "
import json
def handler(event, context):
    for e in json.loads(event):
        if e['data'] == 1:
            raise ValueError('no good')
        print(e['data'])
";
/// Prints where each event says that it comes from.
const PRINT_PLACE: &str = "
import json
def handler(event, context):
    for e in json.loads(event):
        print(e['id'], e['source'].split('/', 2)[2], e['subject'], e['time'], e['data'])
";

fn at(offset: i64) -> StartPosition {
    StartPosition::Offset(Offset::new(offset).unwrap())
}

fn range(from: i64, to: i64) -> RangeRequest {
    RangeRequest { partition: Some(0), from: at(from), to: at(to) }
}

fn pattern(value: Value) -> Option<Pattern> {
    Some(Pattern::parse(&value).unwrap())
}

fn header(letter: &Stored, name: &str) -> String {
    let wanted = format!("tripline-dlq-{name}");
    letter.headers.iter().find(|(header, _)| *header == wanted).and_then(|(_, value)| value.clone()).unwrap()
}

impl World {
    async fn until_run(&self, run: Uuid, wanted: impl Fn(&RunReport) -> bool) -> RunReport {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let report = self.triggers.describe_run("x", run).unwrap();
            if wanted(&report) {
                return report;
            }
            assert!(tokio::time::Instant::now() < deadline, "{report:?}; printed {:?}", self.printed.lines());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn until_done(&self, run: Uuid) -> RunReport {
        self.until_run(run, |report| report.phase == RunPhase::Done).await
    }

    async fn redrive(&self, request: RedriveRequest) -> RunReport {
        let run = self.triggers.redrive("x", request).await.unwrap();
        self.until_done(run).await
    }

    /// A trigger `x` whose function fails for as long as nobody deploys another one, and a dead letter for each value.
    async fn with_letters(&self, values: &[&str], more: Value) -> std::sync::Arc<Topic> {
        let topic = self.with_failing_trigger(more).await;
        self.produce(&topic, 0, values).await;
        self.until_committed("x", 0, i64::try_from(values.len()).unwrap()).await;
        topic
    }

    async fn with_failing_trigger(&self, more: Value) -> std::sync::Arc<Topic> {
        let topic = self.topic("t", 1).await;
        self.python("f", RAISE).await;
        self.apply(failing_trigger(more)).await;
        topic
    }
}

/// Makes a dead letter at the first failure, unless `more` says otherwise.
fn failing_trigger(more: Value) -> Value {
    let mut definition = json!({
        "trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f",
        "retry": {"initial": "1ms", "max_attempts": 1}, "dead_letter": {"topic": "t.dlq"},
    });
    definition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    definition
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_reads_its_range_again_and_leaves_the_live_progress_alone() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT).await;
    let filter = json!({"data": [{"numeric": [">", 2]}]});
    world
        .apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "filter": filter, "function": "f"}))
        .await;
    world.produce(&topic, 0, &["1", "2", "3", "4", "5", "6"]).await;
    world.until_committed("x", 0, 6).await;
    assert_eq!(world.printed.wait_for(4).await, ["3", "4", "5", "6"]);
    let run =
        world.triggers.replay("x", ReplayRequest { topic: None, ranges: vec![range(1, 5)], rate: None }).await.unwrap();
    world.produce(&topic, 0, &["7"]).await;
    let report = world.until_done(run).await;
    let live = world.until_committed("x", 0, 7).await;
    let mut printed = world.printed.wait_for(8).await.split_off(4);
    printed.sort();
    assert_eq!(printed, ["3", "4", "5", "7"], "the range once more, filtered, and the live record once");
    assert_eq!((report.counts.delivered, report.counts.filtered, report.lag()), (3, 1, 0));
    assert_eq!((live.counts.delivered, live.counts.filtered), (5, 2), "a run counts for itself");
    assert_eq!(report.lanes[0].range.next().get(), 5);
    assert_eq!(world.triggers.runs("x").unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_a_time_and_of_several_partitions_ends_even_where_nothing_is() {
    let world = World::start();
    let topic = world.topic("t", 3).await;
    world.python("f", PRINT).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f"})).await;
    world.produce(&topic, 0, &["1", "2"]).await;
    world.produce(&topic, 2, &["3"]).await;
    world.until_committed("x", 0, 2).await;
    world.until_committed("x", 2, 1).await;
    let from = |time: &str| RangeRequest { from: StartPosition::Time(time.parse().unwrap()), ..RangeRequest::ALL };
    let replay = async |range| {
        let run =
            world.triggers.replay("x", ReplayRequest { topic: None, ranges: vec![range], rate: None }).await.unwrap();
        world.until_done(run).await
    };
    let later = replay(from("2030-01-01T00:00:00Z")).await;
    assert_eq!((later.lanes.len(), later.counts.delivered), (0, 0));
    let earlier = replay(from("2020-01-01T00:00:00Z")).await;
    assert_eq!((earlier.lanes.len(), earlier.counts.delivered), (2, 3));
    let twice = ReplayRequest { topic: None, ranges: vec![RangeRequest::ALL, range(0, 1)], rate: None };
    assert!(matches!(world.triggers.replay("x", twice).await, Err(RunError::Partition { found: 0, .. })));
    let unknown = ReplayRequest {
        topic: None,
        ranges: vec![RangeRequest { partition: Some(3), ..RangeRequest::ALL }],
        rate: None,
    };
    assert!(matches!(world.triggers.replay("x", unknown).await, Err(RunError::Partition { found: 3, .. })));
    for range in [range(1, 1), range(2, 1), range(9, 99), RangeRequest { from: at(3), ..RangeRequest::ALL }] {
        let refused = world.triggers.replay("x", ReplayRequest { topic: None, ranges: vec![range], rate: None }).await;
        assert!(matches!(&refused, Err(RunError::Empty { topic }) if topic == "t"), "{range:?}: {refused:?}");
    }
    assert_eq!(replay(RangeRequest { from: at(1), ..RangeRequest::ALL }).await.counts.delivered, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_delivers_each_letter_once_as_the_record_that_it_was() {
    let world = World::start();
    let topic = world.with_letters(&["1", "2", "3"], json!({"filter": {"topic": ["t"]}})).await;
    world.python("f", PRINT_PLACE).await;
    let report = world.redrive(RedriveRequest::default()).await;
    assert_eq!((report.counts.delivered, report.counts.dead_lettered), (3, 0));
    let printed = world.printed.wait_for(3).await;
    let place = |n: usize| format!("0-{n} {}/1 t 2023-11-14T22:13:20.000Z {}", topic.id(), n + 1);
    assert_eq!(printed, [place(0), place(1), place(2)], "the names that the live events had");
    // Letters stay where they are, but nobody takes them a second time.
    let second = world.redrive(RedriveRequest::default()).await;
    assert_eq!((second.counts.delivered, world.records("t.dlq", 0).len()), (0, 3));
    assert!(world.triggers.open_letters("x", 10).await.unwrap().is_empty());
    let again = world.redrive(RedriveRequest { again: true, ..RedriveRequest::default() }).await;
    assert_eq!(again.counts.delivered, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_fails_again_is_appended_anew_with_its_origin_and_one_redrive_more() {
    let world = World::start();
    world.with_letters(&["1", "2"], json!({})).await;
    let report = world.redrive(RedriveRequest::default()).await;
    assert_eq!((report.counts.dead_lettered, report.counts.delivered), (2, 0), "its own letters are not read");
    let letters = world.records("t.dlq", 0);
    assert_eq!(letters.len(), 4);
    for (old, new) in letters[..2].iter().zip(&letters[2..]) {
        assert_eq!((&old.key, &old.value), (&new.key, &new.value));
        let names = |letter: &Stored| letter.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(old), names(new), "every header of ours stands there once");
        for name in ["trigger", "topic", "partition", "offset", "timestamp", "leader-epoch"] {
            assert_eq!(header(old, name), header(new, name), "{name}");
        }
        assert_eq!((header(old, "redrives"), header(new, "redrives")), ("0".to_owned(), "1".to_owned()));
    }
    // The next takes the new letters and not those that it has tried.
    let second = world.redrive(RedriveRequest::default()).await;
    assert_eq!(second.counts.dead_lettered, 2);
    let redrives: Vec<String> = world.records("t.dlq", 0).iter().map(|letter| header(letter, "redrives")).collect();
    assert_eq!(redrives, ["0", "0", "1", "1", "2", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_drops_no_letter_of_a_busy_key_and_a_replay_does_as_the_live_lanes_do() {
    for per_key in [json!({"singleton": "skip"}), json!({"debounce": {"period": "1ms"}})] {
        let world = World::start();
        world.with_letters(&["1", "2", "3"], json!({})).await;
        world.python("f", PRINT).await;
        let definition = json!({
            "trigger": "x", "input": {"topic": "t"}, "function": "f", "dead_letter": {"topic": "t.dlq"},
            "order": "key", "window": {"count": 1}, "per_key": per_key,
        });
        world.apply(definition).await;
        // All letters have one key, and are read at once.
        let report = world.redrive(RedriveRequest::default()).await;
        assert_eq!(report.counts.delivered, 3, "{per_key}");
        assert_eq!(world.printed.wait_for(3).await, ["1", "2", "3"], "{per_key}");
        let request = ReplayRequest { topic: None, ranges: vec![range(0, 3)], rate: None };
        let replay = world.triggers.replay("x", request).await.unwrap();
        assert_eq!(world.until_done(replay).await.counts.delivered, 1, "{per_key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_that_were_redriven_too_often_are_passed_over_and_counted_unless_somebody_insists() {
    let world = World::start();
    world.with_letters(&["1"], json!({})).await;
    let twice = || RedriveRequest { redrives_max: Some(2), ..RedriveRequest::default() };
    for _ in 0..2 {
        assert_eq!(world.redrive(twice()).await.counts.dead_lettered, 1);
    }
    world.python("f", PRINT).await;
    let guarded = world.redrive(twice()).await;
    assert_eq!((guarded.counts.passed_over, guarded.counts.delivered), (1, 0));
    assert_eq!(world.triggers.open_letters("x", 10).await.unwrap().len(), 1, "it still waits for somebody");
    let forced = world.redrive(RedriveRequest { redrives_max: None, ..RedriveRequest::default() }).await;
    assert_eq!((forced.counts.passed_over, forced.counts.delivered), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_and_a_maximum_choose_letters_and_the_others_stay_for_later() {
    let world = World::start();
    world.with_letters(&["1", "2", "3", "4", "5", "6"], json!({})).await;
    world.python("f", PRINT).await;
    let reason = json!({"data": [{"numeric": [">", 2]}], "headers": {"tripline-dlq-error-code": ["ValueError"]}});
    let chosen = RedriveRequest { filter: pattern(reason), max: Some(2), ..RedriveRequest::default() };
    let preview = world.triggers.preview_redrive("x", &chosen, PATIENCE).await.unwrap();
    assert_eq!((preview.counts.taken, preview.counts.turned_away, preview.is_complete), (2, 2, true));
    assert_eq!(preview.first.iter().map(|(_, offset)| offset.get()).collect::<Vec<_>>(), [2, 3]);
    assert!(world.printed.lines().is_empty() && world.triggers.runs("x").unwrap().is_empty(), "only looked at");
    assert_eq!(world.redrive(chosen).await.counts.delivered, 2);
    assert_eq!(world.printed.wait_for(2).await, ["3", "4"]);
    let rest = world.redrive(RedriveRequest::default()).await;
    assert_eq!(rest.counts.delivered, 4);
    assert_eq!(world.printed.wait_for(6).await[2..], ["1", "2", "5", "6"]);
    let none = RedriveRequest {
        filter: pattern(json!({"headers": {"tripline-dlq-error-code": ["KeyError"]}})),
        again: true,
        ..RedriveRequest::default()
    };
    assert_eq!(world.redrive(none).await.counts.delivered, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn letters_of_another_trigger_in_the_same_topic_stay_where_they_are() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", RAISE).await;
    for name in ["x", "y"] {
        let retry = json!({"initial": "1ms", "max_attempts": 1});
        world.apply(json!({"trigger": name, "input": {"topic": "t", "start": "earliest"}, "function": "f", "retry": retry, "dead_letter": {"topic": "t.dlq"}})).await;
    }
    world.produce(&topic, 0, &["1", "2"]).await;
    world.until_committed("x", 0, 2).await;
    world.until_committed("y", 0, 2).await;
    world.python("f", PRINT).await;
    assert_eq!(world.redrive(RedriveRequest::default()).await.counts.delivered, 2);
    let others = world.triggers.preview_redrive("y", &RedriveRequest::default(), PATIENCE).await.unwrap();
    assert_eq!((others.counts.taken, others.counts.not_ours), (2, 2));
    let discarded = world.triggers.discard("x", &[RangeRequest::ALL]).await.unwrap();
    assert!(!discarded[0].deleted, "letters of others lie between them");
    assert_eq!(world.records("t.dlq", 0).len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_holds_letters_back_one_by_one() {
    let world = World::start();
    world.with_letters(&["1", "2", "3", "4", "5", "6"], json!({"window": {"count": 2}})).await;
    world.python("f", PRINT).await;
    let started = tokio::time::Instant::now();
    let report = world.redrive(RedriveRequest { rate: Some(2), ..RedriveRequest::default() }).await;
    assert_eq!(report.counts.delivered, 6);
    // One window empties the bucket of a second; each of the two behind it waits until its first letter may begin.
    assert!(started.elapsed() >= Duration::from_millis(1_400), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_below_the_window_makes_windows_smaller() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT).await;
    // More than the rate, and a window that would take them all at once.
    let input = json!({"topic": "t"});
    world.apply(json!({"trigger": "x", "input": input, "function": "f", "window": {"count": 100}})).await;
    world.produce(&topic, 0, &["1", "2", "3", "4"]).await;
    world.until_committed("x", 0, 4).await;
    let started = tokio::time::Instant::now();
    let run = world
        .triggers
        .replay("x", ReplayRequest { topic: None, ranges: vec![range(0, 4)], rate: Some(2) })
        .await
        .unwrap();
    let report = world.until_done(run).await;
    assert_eq!(report.counts.delivered, 4);
    assert_eq!(report.counts.attempts_succeeded, 2, "two windows of as many records as may begin in a second");
    assert!(started.elapsed() >= Duration::from_millis(450), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_half_way_loses_no_letter_and_delivers_none_twice_that_was_finished() {
    let world = World::start();
    let values: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let topic = world.with_letters(&values, json!({"window": {"count": 1}})).await;
    drop(topic);
    let slow = "
import json, time
def handler(event, context):
    print(json.loads(event)[0]['data'], flush=True)
    time.sleep(0.05)
";
    let version = world.python("f", slow).await;
    let run = world.triggers.redrive("x", RedriveRequest::default()).await.unwrap();
    let mut printed = world.printed.wait_for(5).await;
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    world.until_done(run).await;
    let rest = world.printed.lines();
    let known = printed.len();
    assert!(known < 20, "the kill came half-way");
    printed.extend(rest);
    let mut numbers: Vec<u32> = printed.iter().map(|line| line.parse().unwrap()).collect();
    assert!(numbers.len() <= 22, "at most the windows in flight are repeated: {numbers:?}");
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (0..20).collect::<Vec<u32>>(), "every letter");
    assert_eq!(world.redrive(RedriveRequest::default()).await.counts.delivered, 0, "and all are known to be redriven");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_while_letters_fail_again_makes_one_new_letter_each() {
    let world = World::start();
    let values: Vec<String> = (0..12).map(|n| n.to_string()).collect();
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    let topic = world.with_letters(&values, json!({"window": {"count": 1}})).await;
    drop(topic);
    let version = world
        .python("f", "import time\ndef handler(event, context):\n    time.sleep(0.03)\n    raise ValueError('still')\n")
        .await;
    let run = world.triggers.redrive("x", RedriveRequest::default()).await.unwrap();
    world.until_run(run, |report| report.counts.dead_lettered >= 3).await;
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    world.until_done(run).await;
    let letters = world.records("t.dlq", 0);
    let mut again: Vec<u32> = letters[12..].iter().map(|letter| letter.value.parse().unwrap()).collect();
    again.sort_unstable();
    assert_eq!(again, (0..12).collect::<Vec<u32>>(), "one each, none lost, none doubled");
    assert!(letters[12..].iter().all(|letter| header(letter, "redrives") == "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_stays_so_over_a_restart_and_goes_on_where_it_was() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let version = world.python("f", PRINT).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f", "window": {"count": 1}})).await;
    world.produce(&topic, 0, &["1", "2", "3", "4", "5", "6"]).await;
    world.until_committed("x", 0, 6).await;
    let run = world
        .triggers
        .replay("x", ReplayRequest { topic: None, ranges: vec![RangeRequest::ALL], rate: Some(1) })
        .await
        .unwrap();
    world.printed.wait_for(7).await;
    world.triggers.cancel_run("x", run).await.unwrap();
    world.triggers.cancel_run("x", run).await.unwrap();
    let cancelled = world.triggers.describe_run("x", run).unwrap();
    assert_eq!(cancelled.phase, RunPhase::Cancelled);
    assert!(cancelled.lag() > 0);
    let before = world.printed.lines().len();
    drop(topic);
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    let report = world.triggers.describe_run("x", run).unwrap();
    assert_eq!((report.phase, report.lag(), report.counts), (RunPhase::Cancelled, cancelled.lag(), cancelled.counts));
    world.triggers.resume_run("x", run).await.unwrap();
    let report = world.until_done(run).await;
    assert_eq!(report.lag(), 0);
    let after = world.printed.lines().len();
    assert!(before - 6 + after <= 7, "what was finished is not done again: {before} {after}");
    assert!(before - 6 + after >= 6);
    assert!(matches!(world.triggers.resume_run("x", run).await, Err(RunError::State(_))));
    assert!(matches!(world.triggers.cancel_run("x", Uuid::nil()).await, Err(RunError::UnknownRun { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_can_be_deleted_when_no_run_on_it_goes_on() {
    let world = World::start();
    world.with_letters(&["1", "2", "3"], json!({"window": {"count": 1}})).await;
    let version = world.python("f", PRINT).await;
    let request = RedriveRequest { rate: Some(1), ..RedriveRequest::default() };
    let run = world.triggers.redrive("x", request).await.unwrap();
    let refused = world.broker.delete_topic("t.dlq").await.unwrap_err();
    assert!(matches!(refused, DeleteTopicError::InUse { .. }), "{refused}");
    world.triggers.cancel_run("x", run).await.unwrap();
    let left = world.triggers.describe_run("x", run).unwrap();
    assert!(left.lag() > 0, "it can still be seen, and go on");
    world.broker.delete_topic("t.dlq").await.unwrap();
    let gone = world.triggers.resume_run("x", run).await.unwrap_err();
    assert!(matches!(gone, RunError::UnknownRun { .. }), "{gone}");
    let world = World::start_in(world.kill().await, &[(python_definition("f"), version)]);
    assert!(world.triggers.runs("x").unwrap().is_empty());
    world.until_state("x", TriggerState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_replays_give_way_to_others_when_as_many_are_remembered_as_may_be() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f"})).await;
    world.produce(&topic, 0, &["1"]).await;
    world.until_committed("x", 0, 1).await;
    let trigger = world.broker.journal().look(|state| state.trigger_named("x").unwrap());
    let definition = json!({"kind": "replay", "topic": "t", "ranges": [{"partition": 0, "from": 0, "to": 1}]});
    let ids: Vec<Uuid> = (0..REMEMBERED_MAX).map(|_| Uuid::new_v4()).collect();
    let remembered = ids.iter().zip(1..).flat_map(|(&id, created_ms)| -> [JournalRecord; 2] {
        let state = RunState::Cancelled;
        let definition = definition.to_string();
        let defined = RunDefined { id, trigger, topic: topic.id(), definition, created_ms };
        [defined.into(), RunSwitched { id, state, since_ms: created_ms, counts: Vec::new() }.into()]
    });
    world.broker.journal().append(&remembered.collect::<Vec<_>>(), 0).unwrap();
    let replay =
        async || world.triggers.replay("x", ReplayRequest { topic: None, ranges: vec![range(0, 1)], rate: None }).await;
    world.until_done(replay().await.unwrap()).await;
    let is_known = |index: usize| world.triggers.describe_run("x", ids[index]).is_some();
    assert_eq!((is_known(0), is_known(1)), (false, true), "the oldest");
    world.until_done(replay().await.unwrap()).await;
    assert!(is_known(1), "what has ended goes first");
    assert_eq!(world.triggers.runs("x").unwrap().len(), REMEMBERED_MAX);
    world.triggers.resume_run("x", ids[1]).await.unwrap();
    assert_eq!(world.until_done(ids[1]).await.counts.delivered, 1, "it goes on as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_redrive_goes_on_at_a_time_and_a_cancelled_one_gives_way_without_losing_a_letter() {
    let world = World::start();
    world.with_letters(&["1", "2", "3", "4"], json!({"window": {"count": 1}})).await;
    world.python("f", PRINT).await;
    let first =
        world.triggers.redrive("x", RedriveRequest { rate: Some(1), ..RedriveRequest::default() }).await.unwrap();
    world.until_run(first, |report| report.counts.delivered >= 1).await;
    assert!(matches!(world.triggers.redrive("x", RedriveRequest::default()).await, Err(RunError::State(_))));
    assert!(matches!(world.triggers.discard("x", &[RangeRequest::ALL]).await, Err(RunError::State(_))));
    world.triggers.cancel_run("x", first).await.unwrap();
    let left = world.triggers.describe_run("x", first).unwrap().lag();
    assert!((1..4).contains(&left));
    let report = world.redrive(RedriveRequest::default()).await;
    assert_eq!(report.counts.delivered, left);
    assert_eq!(world.triggers.describe_run("x", first).unwrap().phase, RunPhase::Replaced);
    let mut printed = world.printed.wait_for(4).await;
    printed.sort();
    printed.dedup();
    assert_eq!(printed, ["1", "2", "3", "4"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_takes_nothing_again_that_a_cancelled_one_finished_behind_what_it_had_left() {
    for order in ["none", "key"] {
        let world = World::start();
        let keyed = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4"), ("b", "5")];
        let topic = world.with_failing_trigger(json!({"order": order, "window": {"count": 1}})).await;
        world.produce_keyed(&topic, 0, &keyed).await;
        world.until_committed("x", 0, 5).await;
        let patient = json!({"initial": "1h", "max_interval": "1h"});
        world.apply(failing_trigger(json!({"order": order, "window": {"count": 1}, "retry": patient}))).await;
        world.python("f", PICKY).await;
        let run = world.triggers.redrive("x", RedriveRequest::default()).await.unwrap();
        // In order of keys the third waits behind the first.
        let done: &[&str] = if order == "key" { &["2", "4", "5"] } else { &["2", "3", "4", "5"] };
        world.until_run(run, |report| report.counts.delivered == done.len() as u64).await;
        world.triggers.cancel_run("x", run).await.unwrap();
        let open = world.triggers.open_letters("x", 100).await.unwrap();
        assert_eq!(open.len(), 5 - done.len(), "in order {order}: {open:?}");
        world.python("f", PRINT).await;
        let report = world.redrive(RedriveRequest::default()).await;
        assert_eq!(report.counts.delivered, 5 - done.len() as u64, "in order {order}");
        assert!(world.triggers.open_letters("x", 100).await.unwrap().is_empty());
        let mut printed = world.printed.wait_for(5).await;
        printed.sort();
        assert_eq!(printed, ["1", "2", "3", "4", "5"], "in order {order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_letters_are_neither_listed_nor_redriven_and_deleted_where_nobody_needs_the_records() {
    let world = World::start();
    world.with_letters(&["1", "2", "3"], json!({})).await;
    let discarded = world.triggers.discard("x", &[range(0, 2)]).await.unwrap();
    assert_eq!((discarded[0].letters, discarded[0].below.get(), discarded[0].deleted), (2, 2, true));
    let log_start = world.broker.topic("t.dlq").unwrap().partition(0).unwrap().log_start();
    assert_eq!(log_start.get(), 2);
    // A trigger that reads the letters itself still needs the rest.
    world.apply(json!({"trigger": "reader", "input": {"topic": "t.dlq"}, "function": "f"})).await;
    let preview = world.triggers.preview_redrive("x", &RedriveRequest::default(), PATIENCE).await.unwrap();
    assert_eq!(preview.counts.taken, 1);
    let rest = world.triggers.discard("x", &[RangeRequest::ALL]).await.unwrap();
    assert_eq!((rest[0].letters, rest[0].deleted), (1, false));
    let preview = world.triggers.preview_redrive("x", &RedriveRequest::default(), PATIENCE).await.unwrap();
    assert_eq!((preview.counts.taken, preview.counts.discarded), (0, 1));
    assert!(world.triggers.open_letters("x", 10).await.unwrap().is_empty());
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), 1)]);
    let preview = world.triggers.preview_redrive("x", &RedriveRequest::default(), PATIENCE).await.unwrap();
    assert_eq!((preview.counts.taken, preview.counts.discarded), (0, 1), "also after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_while_its_trigger_is_paused_follows_its_definition_and_ends_with_it() {
    let world = World::start();
    world.with_letters(&["1", "2"], json!({})).await;
    world.triggers.pause("x").await.unwrap();
    world.python("f", "def handler(event, context):\n    return oops(\n").await;
    let run = world.triggers.redrive("x", RedriveRequest::default()).await.unwrap();
    world.until_run(run, |report| report.phase == RunPhase::Active(TriggerState::Failed)).await;
    assert_eq!(world.triggers.describe("x").unwrap().state, TriggerState::Paused);
    world.python("f", PRINT).await;
    assert_eq!(world.until_done(run).await.counts.delivered, 2);
    world.python("f", "def handler(event, context):\n    return oops(\n").await;
    let stuck = world.triggers.redrive("x", RedriveRequest { again: true, ..RedriveRequest::default() }).await.unwrap();
    world.until_run(stuck, |report| report.phase == RunPhase::Active(TriggerState::Failed)).await;
    world.python("g", PRINT).await;
    world
        .apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "g", "dead_letter": {"topic": "t.dlq"}}))
        .await;
    assert_eq!(world.until_done(stuck).await.counts.delivered, 2, "the new function took them");
    assert!(world.triggers.remove("x").await.unwrap());
    assert!(world.triggers.runs("x").is_none());
    world.broker.delete_topic("t.dlq").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_a_run_reads_is_not_deleted_and_a_removed_trigger_takes_its_runs_along() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    let version = world.python("f", PRINT).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": "f"})).await;
    world.produce(&topic, 0, &["1", "2", "3"]).await;
    world.until_committed("x", 0, 3).await;
    let run = world
        .triggers
        .replay("x", ReplayRequest { topic: None, ranges: vec![RangeRequest::ALL], rate: Some(1) })
        .await
        .unwrap();
    let held = world.triggers.holds();
    // Its first record may be done already; the live lanes need none of them.
    assert!(held[&(topic.id(), 0)].get() < 3, "retention waits for the run");
    assert!(world.broker.delete_topic("t").await.is_err());
    world.triggers.remove("x").await.unwrap();
    assert!(world.broker.journal().look(|state| state.runs.is_empty() && state.lanes.is_empty()));
    let _ = run;
    drop(topic);
    let dir = world.kill().await;
    let world = World::start_in(dir, &[(python_definition("f"), version)]);
    assert!(world.broker.journal().look(|state| state.runs.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_run_is_skipped_over_and_leaves_the_live_lanes_running() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT).await;
    let definition = |function: &str| {
        json!({"trigger": "x", "input": {"topic": "t", "start": "earliest"}, "function": function, "errors_tolerance": "none",
            "order": "partition", "window": {"count": 1},
            "retry": {"initial": "1h", "factor": 1, "max_interval": "1h", "max_attempts": 1, "jitter": "none"}})
    };
    world.apply(definition("f")).await;
    world.produce(&topic, 0, &["1", "2"]).await;
    world.until_committed("x", 0, 2).await;
    world
        .python(
            "f",
            "
import json
def handler(event, context):
    if json.loads(event)[0]['data'] == 1:
        raise ValueError('not again')
    print(json.loads(event)[0]['data'])
",
        )
        .await;
    let run = world
        .triggers
        .replay("x", ReplayRequest { topic: None, ranges: vec![RangeRequest::ALL], rate: None })
        .await
        .unwrap();
    world.until_run(run, |report| report.phase == RunPhase::Active(TriggerState::Blocked)).await;
    world.produce(&topic, 0, &["3"]).await;
    world.until_committed("x", 0, 3).await;
    assert_eq!(world.triggers.skip_in_run("x", run).await.unwrap(), 1);
    let report = world.until_done(run).await;
    assert_eq!((report.counts.delivered, report.counts.dropped), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_counts_explains_and_invokes_nothing() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT).await;
    let filter = json!({"data": {"delay": [{"numeric": [">", 60]}], "carrier": ["AA"]}});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "filter": filter, "function": "f"})).await;
    let flight = |delay: u32, carrier: &str| json!({"delay": delay, "carrier": carrier}).to_string();
    let values: Vec<String> = (0..100).map(|n| flight(n, if n % 2 == 0 { "AA" } else { "BB" })).collect();
    world.produce(&topic, 0, &values.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let live = world.until_committed("x", 0, 100).await.counts;
    let request = DryRunRequest { topic: None, ranges: vec![range(0, 90)], filter: None, samples: 2, time: PATIENCE };
    let report = world.triggers.dry_run("x", &request).await.unwrap();
    assert_eq!((report.matched, report.turned_away, report.is_complete()), (14, 76, true));
    assert_eq!(report.matched_samples.iter().map(|sample| sample.offset.get()).collect::<Vec<_>>(), [62, 64]);
    let worst = &report.clauses[0];
    assert_eq!((worst.path.as_str(), worst.events), ("data.delay", 61));
    assert_eq!((report.clauses[1].path.as_str(), report.clauses[1].events), ("data.carrier", 45));
    let away = &report.turned_away_samples[0];
    assert_eq!((away.offset.get(), away.turned_away[0].path.as_str()), (0, "data.delay"));
    assert_eq!(away.event.as_ref().unwrap()["data"]["carrier"], "AA");
    let other = DryRunRequest { filter: pattern(json!({"data": {"carrier": ["BB"]}})), samples: 0, ..request.clone() };
    let other = world.triggers.dry_run("x", &other).await.unwrap();
    assert_eq!((other.matched, other.matched_samples.len()), (45, 0));
    // Without time nothing is looked at, and it says where to go on.
    let no_time_request = DryRunRequest { time: Duration::ZERO, ..request };
    let no_time = world.triggers.dry_run("x", &no_time_request).await.unwrap();
    assert_eq!((no_time.is_complete(), no_time.matched, no_time.ranges[0].1.get()), (false, 0, 0));
    // With any time it gets on.
    let little = DryRunRequest { time: Duration::from_nanos(1), ..no_time_request };
    let little = world.triggers.dry_run("x", &little).await.unwrap();
    assert!(little.ranges[0].1.get() > 0 && little.matched + little.turned_away > 0);
    assert_eq!(world.triggers.describe("x").unwrap().counts, live);
    assert_eq!(world.printed.wait_for(19).await.len(), 19, "what the live lane delivered, and nothing more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_no_result_that_is_larger_than_the_largest_event_it_shows() {
    let world = World::start();
    let topic = world.topic("t", 1).await;
    world.python("f", PRINT).await;
    // Ten times the payload, which is shown.
    let transform = json!({"template": format!("[{}]", ["<x>"; 10].join(",")), "values": {"x": "$.data"}});
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "transform": transform, "function": "f"})).await;
    let large = json!("x".repeat(7_000)).to_string();
    world.produce(&topic, 0, &["1", &large]).await;
    let request = DryRunRequest { topic: None, ranges: vec![range(0, 2)], filter: None, samples: 9, time: PATIENCE };
    let report = world.triggers.dry_run("x", &request).await.unwrap();
    assert_eq!((report.matched, report.transform_failed), (2, 0));
    assert!(report.matched_samples.iter().all(|sample| sample.event.is_some()));
    let shown: Vec<_> = report.matched_samples.into_iter().map(|sample| sample.transformed.unwrap().unwrap()).collect();
    assert_eq!(shown[0], Shown::Whole(json!(vec![1; 10])));
    assert_eq!(shown[1], Shown::TooLarge { size_bytes: 10 * large.len() + 11 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_trigger_is_reset_to_a_time_or_an_end() {
    let world = World::start();
    let topic = world.topic("t", 2).await;
    world.python("f", PRINT).await;
    world.apply(json!({"trigger": "x", "input": {"topic": "t"}, "function": "f"})).await;
    world.produce(&topic, 0, &["1", "2"]).await;
    world.until_committed("x", 0, 2).await;
    assert!(world.triggers.reset_to("x", LaneChoice::ALL, StartPosition::Earliest).await.is_err(), "it runs");
    world.triggers.pause("x").await.unwrap();
    let offsets = async |partition, to| {
        let set = world.triggers.reset_to("x", LaneChoice { topic: None, partition }, to).await.unwrap();
        set.into_iter().map(|(_, partition, offset)| (partition, offset.get())).collect::<Vec<_>>()
    };
    assert_eq!(offsets(None, StartPosition::Earliest).await, [(0, 0), (1, 0)]);
    assert_eq!(offsets(None, StartPosition::Latest).await, [(0, 2), (1, 0)]);
    let time = |text: &str| StartPosition::Time(text.parse().unwrap());
    assert_eq!(offsets(Some(0), time("2020-01-01T00:00:00Z")).await, [(0, 0)]);
    assert_eq!(offsets(Some(0), time("2030-01-01T00:00:00Z")).await, [(0, 2)]);
    assert_eq!(offsets(None, at(1)).await, [(0, 1), (1, 0)], "each takes the nearest that it has");
    assert!(world.triggers.reset_to("x", LaneChoice { topic: None, partition: Some(1) }, at(1)).await.is_err());
    assert!(
        world
            .triggers
            .reset_to("x", LaneChoice { topic: None, partition: Some(7) }, StartPosition::Earliest)
            .await
            .is_err()
    );
    world.triggers.resume("x").await.unwrap();
    world.until_committed("x", 0, 2).await;
    assert_eq!(world.printed.wait_for(3).await, ["1", "2", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redrive_takes_no_letter_twice_whatever_the_clock_said_when_it_began() {
    let world = World::start();
    world.with_letters(&["1", "2"], json!({})).await;
    world.python("f", PRINT).await;
    assert_eq!(world.redrive(RedriveRequest::default()).await.counts.delivered, 2);
    // As if the clock had been a day ahead then, and was set back.
    let ahead = world.broker.journal().look(|state| {
        let run = state.runs.values().next().unwrap().defined.clone();
        RunDefined { created_ms: run.created_ms + 86_400_000, ..run }
    });
    world.broker.journal().append(&[ahead.into()], 0).unwrap();
    assert_eq!(world.redrive(RedriveRequest::default()).await.counts.delivered, 0);
}
