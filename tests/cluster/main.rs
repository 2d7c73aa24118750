//! Triggers on clusters: a second Tripline, and Apache Kafka where Java and its jars are there. Processes are real, and
//! some of them are killed.
#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;
mod outputs;
#[path = "../common/ports.rs"]
mod ports;
mod runs;
mod secured;
#[path = "../common/served.rs"]
mod served;
mod topics;
mod transactions;
#[path = "../common/until.rs"]
mod until;
mod verbs;
#[path = "../kafka/client.rs"]
#[allow(dead_code, reason = "what other tests need of it")]
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::oneshot;
use tripline::function::ErrorClass;
use tripline::input::ClusterBrokers;
use tripline::input::cluster::{Client, ClusterPartition, GroupEvent, Member, Remembered, Selection, Sent};
use tripline::trigger::attempt::ExhaustedReason;
use tripline::trigger::progress::{GivenUp, Letters, Progress, Span, TriedAttempts, TriedWindow, fingerprint};
use tripline::trigger::spec::TriggerSpec;
use tripline_storage::Offset;
use tripline_storage::batch::BatchProducer;

use harness::{Cluster, Delivery, Kafka, LOOK, PATIENCE, Process, Receiver, batch, read_all};

const AT_ONCE: Duration = Duration::ZERO;

/// A scenario against each kind of cluster, in a test of its own.
macro_rules! on_both {
    ($($scenario:path => $on_tripline:ident, $on_kafka:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $on_tripline() {
                $scenario(&Cluster::Tripline(Process::start())).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $on_kafka() {
                let Some(kafka) = Kafka::start() else { return };
                $scenario(&Cluster::Kafka(kafka)).await;
            }
        )*
    };
}

on_both! {
    records_reach_the_function => records_of_a_tripline_reach_the_function, records_of_a_kafka_reach_the_function;
    a_killed_process_is_replaced => partitions_of_a_tripline_go_on_when_a_process_is_killed, partitions_of_a_kafka_go_on_when_a_process_is_killed;
    attempts_move => attempts_on_a_tripline_go_on_elsewhere, attempts_on_a_kafka_go_on_elsewhere;
    a_process_that_stood_still_is_fenced => a_tripline_fences_a_process_that_stood_still, a_kafka_fences_a_process_that_stood_still;
    verdicts_of_what_is_gone_move => a_verdict_on_a_tripline_outlives_its_records, a_verdict_on_a_kafka_outlives_its_records;
    verdicts_move => a_verdict_on_a_tripline_is_carried_out_once, a_verdict_on_a_kafka_is_carried_out_once;
    outputs::are_in_their_topics => outputs_are_in_topics_of_a_tripline, outputs_are_in_topics_of_a_kafka;
    outputs::survive_a_kill => a_kill_loses_no_result_for_a_tripline, a_kill_loses_no_result_for_a_kafka;
    outputs::are_there_once => a_tripline_has_what_is_sent_again_once, a_kafka_has_what_is_sent_again_once;
    topics::are_shared => several_topics_of_a_tripline_are_shared, several_topics_of_a_kafka_are_shared;
    topics::are_joined_later => a_topic_that_a_tripline_gets_later_is_joined, a_topic_that_a_kafka_gets_later_is_joined;
    topics::need_not_be_there => a_pattern_that_selects_nothing_of_a_tripline_waits, a_pattern_that_selects_nothing_of_a_kafka_waits;
    topics::are_selected_anew => another_selection_of_a_tripline_goes_on, another_selection_of_a_kafka_goes_on;
    verbs::look => records_of_a_tripline_are_looked_at, records_of_a_kafka_are_looked_at;
    verbs::reset => a_trigger_on_a_tripline_is_reset, a_trigger_on_a_kafka_is_reset;
    runs::replay => a_range_of_a_tripline_is_replayed, a_range_of_a_kafka_is_replayed;
    runs::survive_a_stop => a_run_on_a_tripline_goes_on_after_a_stop, a_run_on_a_kafka_goes_on_after_a_stop;
    runs::letters => letters_on_a_tripline_are_put_back_and_let_go, letters_on_a_kafka_are_put_back_and_let_go;
    runs::one_letter => a_letter_on_a_tripline_is_shown, a_letter_on_a_kafka_is_shown;
    runs::no_letter_is_left_out => no_letter_on_a_tripline_is_left_out, no_letter_on_a_kafka_is_left_out;
    runs::survive_a_kill => a_run_on_a_tripline_goes_on_after_a_kill, a_run_on_a_kafka_goes_on_after_a_kill;
    batches_are_recognised => a_tripline_recognises_batches_that_are_sent_again, a_kafka_recognises_batches_that_are_sent_again;
}

fn trigger(cluster: &Cluster, receiver: &Receiver, more: &str) -> String {
    let (address, url) = (cluster.address(), &receiver.url);
    format!(
        "trigger: far\n\
         input: {{ topic: in, start: earliest, cluster: {{ bootstrap_servers: \"{address}\", session_timeout: 30s }} }}\n\
         function: {{ http: {{ url: \"{url}\" }} }}\n{more}"
    )
}

/// The same for processes that are killed or stand still, so that their partitions are soon another's.
fn soon_lost(definition: &str) -> String {
    let soon = definition.replace("session_timeout: 30s", "session_timeout: 6s");
    assert_ne!(soon, definition);
    soon
}

fn values(range: std::ops::Range<i64>) -> Vec<String> {
    range.map(|number| format!("{{\"n\":{number}}}")).collect()
}

/// Offsets by partition, in the order of delivery.
fn by_partition(deliveries: &[Delivery]) -> BTreeMap<u32, Vec<i64>> {
    let mut offsets: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for (partition, offset) in deliveries.iter().flat_map(|delivery| &delivery.records) {
        offsets.entry(*partition).or_default().push(*offset);
    }
    offsets
}

fn distinct(deliveries: &[Delivery]) -> usize {
    deliveries.iter().flat_map(|delivery| delivery.records.clone()).collect::<BTreeSet<_>>().len()
}

async fn records_reach_the_function(cluster: &Cluster) {
    let client = cluster.topic("in", 1).await;
    client.produce("in", 0, &batch(&values(0..30), None)).await.unwrap();
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let mut process = Process::start();
    process.apply(&trigger(cluster, &receiver, "window: { count: 7 }"));
    receiver.wait_for("30 records", |deliveries| distinct(deliveries) == 30);
    client.produce("in", 0, &batch(&values(30..50), None)).await.unwrap();
    receiver.wait_for("50 records", |deliveries| distinct(deliveries) == 50);
    process.stop();
    assert_eq!(by_partition(&receiver.deliveries())[&0], (0..50).collect::<Vec<_>>(), "each once and in order");
    let committed = client.committed("trigger.far", "in", &[0]).await.unwrap().remove(&0).unwrap();
    assert_eq!(committed.offset.get(), 50, "lag is ordinary lag: {committed:?}");
    // The next process has nothing left to do but what comes.
    let next = Process::start();
    next.apply(&trigger(cluster, &receiver, "window: { count: 7 }"));
    client.produce("in", 0, &batch(&values(50..51), None)).await.unwrap();
    receiver.wait_for("51 records", |deliveries| distinct(deliveries) == 51);
    assert_eq!(by_partition(&receiver.deliveries())[&0], (0..51).collect::<Vec<_>>());
    let described = next.trigger("far");
    assert_eq!(described["state"], "Running", "{described:#}");
}

async fn a_killed_process_is_replaced(cluster: &Cluster) {
    const RECORDS: i64 = 400;
    const WINDOW: usize = 5;
    let client = cluster.topic("in", 4).await;
    let receiver = Receiver::start(|_| (200, Duration::from_millis(10)));
    let definition = soon_lost(&trigger(cluster, &receiver, &format!("window: {{ count: {WINDOW} }}")));
    let (mut first, second) = (Process::start(), Process::start());
    first.apply(&definition);
    first.wait_for_partitions("far", 4);
    for partition in 0..4 {
        client.produce("in", partition, &batch(&values(0..RECORDS / 4), None)).await.unwrap();
    }
    receiver.wait_for("40 records", |deliveries| distinct(deliveries) >= 40);
    second.apply(&definition);
    let of_second = second.wait_for_partitions("far", 2);
    let of_first = first.wait_for_partitions("far", 2);
    assert_eq!(of_first.iter().chain(&of_second).collect::<BTreeSet<_>>().len(), 4, "{of_first:?} {of_second:?}");
    receiver.wait_for("400 records", |deliveries| distinct(deliveries) == 400);
    assert_eq!(
        receiver.deliveries().iter().map(|one| one.records.len()).sum::<usize>(),
        400,
        "a handover repeats nothing"
    );
    for partition in 0..4 {
        client.produce("in", partition, &batch(&values(RECORDS / 4..RECORDS), None)).await.unwrap();
    }
    receiver.wait_for("600 records", |deliveries| distinct(deliveries) >= 600);
    first.kill();
    let deliveries = receiver.wait_for("all records", |deliveries| distinct(deliveries) == 4 * 400);
    second.wait_for_partitions("far", 4);
    for (partition, offsets) in by_partition(&deliveries) {
        let mut repeated = 0;
        let mut next = 0;
        for offset in offsets {
            assert!(offset <= next, "partition {partition}: {offset} before {next}");
            repeated += usize::from(offset < next);
            next = next.max(offset + 1);
        }
        assert_eq!(next, RECORDS);
        assert!(repeated <= WINDOW, "partition {partition} repeats {repeated} records, in flight were {WINDOW}");
        assert!(repeated == 0 || of_first.contains(&u64::from(partition)), "only what was in flight is repeated");
    }
    assert_eq!(wait_for_commits(&client, 4, RECORDS).await, Ok(()));
}

async fn attempts_move(cluster: &Cluster) {
    let client = cluster.topic("in", 1).await;
    let receiver = Receiver::start(|_| (500, AT_ONCE));
    let more = "window: { count: 3 }\n\
                retry: { initial: 1s, factor: 1, jitter: none, max_attempts: 6 }\n\
                dead_letter: { topic: in.dlq }";
    let definition = soon_lost(&trigger(cluster, &receiver, more));
    let mut first = Process::start();
    first.apply(&definition);
    first.wait_for_partitions("far", 1);
    client.produce("in", 0, &batch(&values(0..3), None)).await.unwrap();
    receiver.wait_for("2 attempts", |deliveries| deliveries.len() >= 2);
    // Otherwise the second attempt would be one that was interrupted.
    wait_for_spent_attempts(&client, 2).await;
    first.kill();
    let second = Process::start();
    second.apply(&definition);
    let deliveries =
        receiver.wait_for("all attempts", |deliveries| deliveries.last().is_some_and(|delivery| delivery.attempt == 6));
    let attempts: Vec<u32> = deliveries.iter().map(|delivery| delivery.attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4, 5, 6], "the counter goes on where it was");
    assert!(deliveries.iter().all(|delivery| delivery.records == [(0, 0), (0, 1), (0, 2)]), "as the same window");
    let waits = deliveries[2..].windows(2).map(|pair| pair[1].at - pair[0].at);
    assert!(waits.into_iter().all(|wait| wait >= Duration::from_millis(900)), "{deliveries:?}");
    assert_eq!(wait_for_commits(&client, 1, 3).await, Ok(()));
    let letters = read_all(&client, "in.dlq", 0).await;
    assert_eq!(letters.iter().map(|letter| letter.value.as_str()).collect::<Vec<_>>(), values(0..3));
    for letter in &letters {
        assert_eq!((letter.key.as_str(), letter.headers["h"].as_str()), ("k", "v"), "as it was");
        assert_eq!(letter.headers["tripline-dlq-attempts"], "6", "{letter:?}");
        assert_eq!(letter.headers["tripline-dlq-topic"], "in");
    }
    assert_eq!(receiver.deliveries().len(), 6, "nothing is invoked after the verdict");
    let (found, story) = second.command(&["trace", "in/0/1", "--json"]);
    assert!(found, "{story}");
    let story: serde_json::Value = serde_json::from_str(&story).unwrap();
    assert_eq!(story["event"]["key"], "k", "{story:#}");
    let (found, story) = second.command(&["trace", "in/0/1"]);
    for expected in
        ["trigger far: dead lettered: dead letter in in.dlq/0", "attempt 3", "attempt 6", "far/in/0/0 (3 record(s))"]
    {
        assert!(found && story.contains(expected), "no {expected:?} in {story}");
    }
    let (found, said) = second.command(&["trace", "in/0/3"]);
    assert!(!found && said.contains("there is nothing at 3 yet"), "{said}");
    let (found, said) = second.command(&["trace", "in/1/0"]);
    assert!(!found && said.contains("no trigger of this process reads in/1 of a cluster"), "{said}");
    // While it reads nothing, nobody but the cluster knows the tail.
    let (paused, said) = second.command(&["trigger", "pause", "far"]);
    assert!(paused, "{said}");
    for number in 3..6 {
        client.produce("in", 0, &batch(&values(number..number + 1), None)).await.unwrap();
    }
    let (found, story) = second.command(&["trace", "in/0/5"]);
    assert!(found, "{story}");
}

async fn a_process_that_stood_still_is_fenced(cluster: &Cluster) {
    const WINDOW: usize = 5;
    let client = cluster.topic("in", 2).await;
    let receiver = Receiver::start(|_| (200, Duration::from_millis(10)));
    let definition = soon_lost(&trigger(cluster, &receiver, &format!("window: {{ count: {WINDOW} }}")));
    let (first, second) = (Process::start(), Process::start());
    first.apply(&definition);
    second.apply(&definition);
    let of_first = first.wait_for_partitions("far", 1);
    second.wait_for_partitions("far", 1);
    for partition in 0..2 {
        client.produce("in", partition, &batch(&values(0..200), None)).await.unwrap();
    }
    receiver.wait_for("60 records", |deliveries| distinct(deliveries) >= 60);
    first.signal("-STOP");
    receiver.wait_for("all records, by the other", |deliveries| distinct(deliveries) == 400);
    first.signal("-CONT");
    first.wait_for_partitions("far", 1);
    second.wait_for_partitions("far", 1);
    for partition in 0..2 {
        client.produce("in", partition, &batch(&values(200..220), None)).await.unwrap();
    }
    let deliveries = receiver.wait_for("440 records", |deliveries| distinct(deliveries) == 440);
    for (partition, offsets) in by_partition(&deliveries) {
        let repeated = offsets.len() - 220;
        let allowed = if of_first.contains(&u64::from(partition)) { WINDOW } else { 0 };
        assert!(repeated <= allowed, "partition {partition} repeats {repeated}: {offsets:?}");
        assert_eq!(offsets[offsets.len() - 20..], (200..220).collect::<Vec<_>>(), "who is fenced does not go on");
    }
    assert_eq!(wait_for_commits(&client, 2, 220).await, Ok(()));
}

/// A window of all records in a range, which is given up; of its letters this producer has begun to write.
fn given_up(span: Span, attempts: TriedAttempts, producer_id: i64) -> TriedWindow {
    let offsets = (span.first.get()..span.next.get()).filter_map(Offset::new);
    let letters = Letters { producer_id, records: u32::try_from(span.offsets()).unwrap(), is_whole: true };
    TriedWindow {
        span,
        records: letters.records,
        fingerprint: fingerprint(offsets),
        is_foreign: false,
        key: None,
        attempts,
        given_up: Some(GivenUp { reason: ExhaustedReason::Attempts, letters: Some(letters) }),
    }
}

/// What a process leaves that is killed between its dead letters and its progress.
async fn verdicts_move(cluster: &Cluster) {
    let client = cluster.topic("in", 1).await;
    cluster.topic("in.dlq", 1).await;
    client.produce("in", 0, &batch(&values(0..5), None)).await.unwrap();
    let (producer, other) = (client.producer_id().await.unwrap(), client.producer_id().await.unwrap());
    let span = Span::new(Offset::ZERO, Offset::new(3).unwrap()).unwrap();
    let attempts = TriedAttempts { attempts: 6, first_attempt_ms: 1_700_000_000_000, ..TriedAttempts::default() };
    let window = given_up(span, attempts, producer);
    // Of this one no letter is there.
    let span = Span::new(span.next, Offset::new(5).unwrap()).unwrap();
    let failed = Some(ErrorClass::Crashed);
    let attempts = TriedAttempts { last_attempt_ms: attempts.first_attempt_ms + 1000, failed, ..attempts };
    let next = given_up(span, attempts, other);
    let hole = Span::new(Offset::ZERO, span.next).unwrap();
    let progress = Progress::new(span.next, vec![hole], vec![window, next], Vec::new());
    let metadata = STANDARD.encode(progress.encode().unwrap());
    commit_once(&client, Offset::ZERO, metadata).await;
    client.produce("in.dlq", 0, &batch(&values(0..3), Some(producer))).await.unwrap();
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let process = Process::start();
    process.apply(&trigger(cluster, &receiver, "dead_letter: { topic: in.dlq }"));
    assert_eq!(wait_for_commits(&client, 1, 5).await, Ok(()), "{}", process.trigger("far"));
    assert_eq!(receiver.deliveries().len(), 0, "nothing is invoked after a verdict");
    let letters = read_all(&client, "in.dlq", 0).await;
    assert_eq!(letters.iter().map(|letter| letter.value.as_str()).collect::<Vec<_>>(), values(0..5), "none is doubled");
    for letter in &letters[3..] {
        let names = ["error-class", "attempts", "last-attempt"];
        let told = names.map(|name| letter.headers[&format!("tripline-dlq-{name}")].as_str());
        assert_eq!(told, ["crashed", "6", "2023-11-14T22:13:21.000Z"]);
    }
    assert_eq!(process.trigger("far")["counts"]["dead_lettered"], 5, "{:#}", process.trigger("far"));
}

/// Commits to the only partition of `in`, as a process does that is killed then.
async fn commit_once(client: &Arc<Client>, at: Offset, metadata: String) {
    let (member, mut events, committer) = Member::join(Arc::clone(client), "trigger.far", Selection::named(["in"]));
    let (assigned, committed) = oneshot::channel();
    let mut assigned = Some(assigned);
    let events = tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            match event {
                GroupEvent::Assigned(partitions, tenure) => {
                    let only = ClusterPartition::new("in", 0);
                    assert_eq!(partitions, BTreeSet::from([only.clone()]));
                    committer.commit(only, tenure, at, metadata.clone()).await.unwrap();
                    assigned.take().unwrap().send(()).unwrap();
                }
                GroupEvent::Revoked(_, done) => done.send(()).unwrap(),
                lost @ (GroupEvent::Lost(_) | GroupEvent::Deleted(_) | GroupEvent::BrokeDown) => panic!("{lost:?}"),
                // A Kafka that has just started coordinates nothing for a moment.
                GroupEvent::Joined(_) | GroupEvent::Trouble(_) => {}
            }
        }
    });
    committed.await.unwrap();
    member.leave(Duration::from_secs(20)).await;
    events.await.unwrap();
}

/// Windows that were given up, whose records are not all there any more: here a filter hides them.
async fn verdicts_of_what_is_gone_move(cluster: &Cluster) {
    let client = cluster.topic("in", 1).await;
    cluster.topic("in.dlq", 1).await;
    client.produce("in", 0, &batch(&values(0..12), None)).await.unwrap();
    let attempts = TriedAttempts { attempts: 6, first_attempt_ms: 1_700_000_000_000, ..TriedAttempts::default() };
    let at = |offset| Offset::new(offset).unwrap();
    // 0, 4, 7 and 10 are gone.
    let (mut windows, mut producers) = (Vec::new(), Vec::new());
    for first in [0, 3, 6, 9] {
        let producer = client.producer_id().await.unwrap();
        windows.push(given_up(Span::new(at(first), at(first + 3)).unwrap(), attempts, producer));
        producers.push(producer);
    }
    let progress = Progress::new(at(12), vec![Span::new(at(0), at(12)).unwrap()], windows, Vec::new());
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let filter = "filter: { data: { n: [ { anything-but: [0, 4, 7, 10] } ] } }\ndead_letter: { topic: in.dlq }";
    let definition = trigger(cluster, &receiver, filter);
    // As if it had been in force before, and the log had removed them.
    let spec = TriggerSpec::from_json(&serde_saphyr::from_str(&definition).unwrap()).unwrap();
    let progress = progress.under(spec.lane().filter);
    commit_once(&client, at(0), STANDARD.encode(progress.encode().unwrap())).await;
    // Of the first window two of three letters are there, of the others one, all, and none.
    for (producer, letters) in producers.iter().zip([0..2, 3..4, 6..9]) {
        client.produce("in.dlq", 0, &batch(&values(letters), Some(*producer))).await.unwrap();
    }
    let process = Process::start();
    process.apply(&definition);
    assert_eq!(wait_for_commits(&client, 1, 12).await, Ok(()), "{}", process.trigger("far"));
    assert_eq!(receiver.deliveries().len(), 0, "nothing is invoked after a verdict");
    let mut letters: Vec<String> =
        read_all(&client, "in.dlq", 0).await.into_iter().map(|letter| letter.value).collect();
    let there: Vec<String> = letters.drain(..6).collect();
    assert_eq!(there, [values(0..2), values(3..4), values(6..9)].concat());
    letters.sort_by_key(|letter| (letter.len(), letter.clone()));
    // Which of three records have two letters or one nobody knows.
    assert_eq!(letters, [1, 2, 3, 5, 9, 11].map(|n| format!("{{\"n\":{n}}}")), "none is left out");
}

/// Waits until all partitions are committed to `offset`; answers what is committed instead.
async fn wait_for_commits(client: &Client, partitions: u32, offset: i64) -> Result<(), String> {
    wait_for_some_commits(client, &(0..partitions).map(|partition| (partition, offset)).collect::<Vec<_>>()).await
}

/// Waits until these partitions, by number, are committed to these offsets; answers what is committed instead.
async fn wait_for_some_commits(client: &Client, expected: &[(u32, i64)]) -> Result<(), String> {
    let partitions: Vec<u32> = expected.iter().map(|(partition, _)| *partition).collect();
    let begin = Instant::now();
    loop {
        let committed = client.committed("trigger.far", "in", &partitions).await.unwrap();
        let mut found: Vec<_> = committed.iter().map(|(partition, at)| (*partition, at.offset.get())).collect();
        found.sort_unstable();
        if found == expected {
            return Ok(());
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("{committed:?}"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the group knows that so many attempts were spent on the first window, and that none is under way.
async fn wait_for_spent_attempts(client: &Client, attempts: u32) {
    let begin = Instant::now();
    loop {
        let committed = client.committed("trigger.far", "in", &[0]).await.unwrap();
        let metadata = committed.get(&0).map_or("", |at| at.metadata.as_str());
        let progress = metadata.split('~').next().unwrap();
        let progress = STANDARD.decode(progress).ok().and_then(|bytes| Progress::decode(&bytes).ok());
        let tried = progress.as_ref().and_then(|progress| progress.windows().first()).map(|window| window.attempts);
        if tried.is_some_and(|tried| tried.attempts == attempts && !tried.running) {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{tried:?} in {committed:?}");
        tokio::time::sleep(LOOK).await;
    }
}

async fn batches_are_recognised(cluster: &Cluster) {
    let client = cluster.topic("in", 1).await;
    let producer = client.producer_id().await.unwrap();
    let letters = batch(&values(0..3), Some(producer));
    let remembered = async || client.remembered("in", 0, producer).await.unwrap();
    assert_eq!(remembered().await, Remembered::Nothing);
    for _ in 0..2 {
        client.produce("in", 0, &letters).await.unwrap();
        assert_eq!(remembered().await, Remembered::Last { epoch: 0, sequence: Some(2) });
    }
    assert_eq!(read_all(&client, "in", 0).await.len(), 3, "what carries a verdict out twice doubles nothing");
    // As letters go on whose predecessors are gone.
    let numbered = |epoch| letters.produced_by(BatchProducer { id: producer, epoch, base_sequence: 0 });
    assert_eq!(client.produce("in", 0, &numbered(7)).await.unwrap(), Sent::Appended);
    assert_eq!(remembered().await, Remembered::Last { epoch: 7, sequence: Some(2) });
    assert_eq!(client.produce("in", 0, &numbered(3)).await.unwrap(), Sent::DoesNotFollow);
    assert_eq!(read_all(&client, "in", 0).await.len(), 6);
}

#[test]
fn the_definition_in_the_guide_reads_back() {
    let guide = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clusters.md")).unwrap();
    let yaml = guide.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let definition: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    let spec = TriggerSpec::from_json(&definition).unwrap();
    let address = spec.input.cluster.clone().unwrap();
    assert_eq!(address.brokers, ClusterBrokers::Listed(vec!["kafka1:9092".to_owned(), "kafka2:9092".to_owned()]));
    assert_eq!(TriggerSpec::from_json(&spec.to_json()).unwrap(), spec);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_refused_by_name() {
    let cluster = Cluster::Tripline(Process::start());
    let receiver = Receiver::start(|_| (200, AT_ONCE));
    let process = Process::start();
    let (taken, said) = process.try_apply(&trigger(&cluster, &receiver, ""));
    assert!(!taken && said.contains("topic in does not exist in the cluster"), "{said}");
    let nobody = trigger(&cluster, &receiver, "").replace(cluster.address(), "127.0.0.1:1");
    let (taken, said) = process.try_apply(&nobody);
    assert!(!taken && said.contains("127.0.0.1:1"), "{said}");
    cluster.topic("in", 1).await;
    process.apply(&trigger(&cluster, &receiver, ""));
    let here = format!(
        "topic: in\n---\ntrigger: far\ninput: {{ topic: in }}\nfunction: {{ http: {{ url: \"{}\" }} }}",
        receiver.url
    );
    let (taken, said) = process.try_apply(&here);
    assert!(!taken && said.contains("does not move between this broker and a cluster"), "{said}");
}
