//! How many instances there are, when they come and go, and what they leave behind.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tripline::function::{
    Deployed, ErrorClass, FunctionService, FunctionSpec, FunctionState, Home, InstanceCounts, Runtime,
};

use crate::support::{NAME, PATIENCE, Stage, invocation, is_running, options, spec, until_gone, with_initializer};

/// Answers the process id once the file named by the event is there.
const WAITING: &str = r#"
import os, time
def handler(event, context):
    while event and not os.path.exists(event): time.sleep(0.005)
    return os.getpid()
def pre_stop(context):
    print("pre_stop", context.function.name)
"#;

fn counts(starting: usize, idle: usize, busy: usize, leaving: usize) -> InstanceCounts {
    InstanceCounts { starting, idle, busy, leaving }
}

#[tokio::test]
async fn the_reserve_is_warm_and_demand_goes_up_to_the_quota() {
    let mut spec = spec();
    (spec.instances.min, spec.instances.max) = (1, 3);
    let stage = Stage::running_as(spec, WAITING).await;
    stage.until(|status| status.instances == counts(0, 1, 0, 0)).await;
    let gate = stage.directory.path().join("gate");
    let six = join_all((0..6).map(|_| stage.invoke(gate.to_str().unwrap())));
    let opened = async {
        stage.until(|status| status.instances == counts(0, 0, 3, 0) && status.queued == 3).await;
        std::fs::write(&gate, "").unwrap();
    };
    let (results, ()) = tokio::join!(six, opened);
    let mut pids: Vec<Bytes> = results.into_iter().map(|result| result.unwrap().body).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 3, "F1: three processes did all the work");
    let report = stage.service.describe(NAME).unwrap();
    assert_eq!((report.stats.succeeded, report.stats.cold_start.count()), (6, 3));
    assert_eq!((report.stats.run.count(), report.stats.queue_wait.count()), (6, 6));
}

#[tokio::test]
async fn idle_instances_run_pre_stop_and_go_down_to_the_reserve() {
    let mut spec = spec();
    (spec.instances.min, spec.instances.idle) = (1, Duration::from_millis(1));
    let mut stage = Stage::running_as(spec, WAITING).await;
    let gate = stage.directory.path().join("gate");
    let two = join_all((0..2).map(|_| stage.invoke(gate.to_str().unwrap())));
    let opened = async {
        stage.until(|status| status.instances.busy == 2).await;
        std::fs::write(&gate, "").unwrap();
    };
    tokio::join!(two, opened);
    assert_eq!(stage.log().await.text, "pre_stop notify");
    stage.until(|status| status.instances == counts(0, 1, 0, 0)).await;
}

#[tokio::test]
async fn without_a_reserve_the_last_instance_goes_and_comes_back_on_demand() {
    let mut spec = spec();
    spec.instances.idle = Duration::from_millis(1);
    let stage = Stage::running_as(spec, WAITING).await;
    stage.until(|status| status.instances == counts(0, 0, 0, 0)).await;
    let pid = stage.result("").await;
    stage.until(|status| status.instances == counts(0, 0, 0, 0)).await;
    assert!(!is_running(&pid));
    assert_ne!(stage.result("").await, pid);
}

#[tokio::test]
async fn a_reserved_instance_that_dies_idle_is_replaced() {
    let mut spec = spec();
    spec.instances.min = 1;
    let stage = Stage::running_as(spec, WAITING).await;
    let pid = stage.result("").await;
    let raw = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::KILL).unwrap();
    stage.until(|status| status.instances != counts(0, 1, 0, 0)).await;
    stage.until(|status| status.instances == counts(0, 1, 0, 0)).await;
    assert_ne!(stage.result("").await, pid);
}

#[tokio::test]
async fn an_invocation_never_pays_for_an_instance_that_died_idle() {
    let stage = Stage::running(WAITING).await;
    for _ in 0..10 {
        let pid = rustix::process::Pid::from_raw(stage.result("").await.parse().unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // No wait: the pool may not know yet. Only one that took the work before it died may lose it.
        if let Err(error) = stage.invoke("").await {
            assert_eq!((error.class, error.code.as_str()), (ErrorClass::Crashed, "signal-9"));
        }
    }
}

#[tokio::test]
async fn new_code_takes_over_while_old_instances_finish_what_they_hold() {
    let stage = Stage::running(&WAITING.replace("return os.getpid()", "return 'old'")).await;
    let gate = stage.directory.path().join("gate");
    let held = stage.invoke(gate.to_str().unwrap());
    let switched = async {
        stage.until(|status| status.instances.busy == 1).await;
        let deployed = stage.deploy(spec(), &WAITING.replace("return os.getpid()", "return 'new'")).await;
        assert_eq!(deployed, Deployed { version: 2, changed: true, state: FunctionState::Ready });
        assert_eq!(stage.result("").await, r#""new""#);
        stage.until(|status| status.instances == counts(0, 1, 1, 0)).await;
        std::fs::write(&gate, "").unwrap();
    };
    let (held, ()) = tokio::join!(held, switched);
    assert_eq!(held.unwrap().body, r#""old""#);
    stage.until(|status| status.instances == counts(0, 1, 0, 0)).await;
}

#[tokio::test]
async fn a_changed_definition_keeps_the_code_and_the_same_one_changes_nothing() {
    let stage = Stage::running(WAITING).await;
    let pid = stage.result("").await;
    let same = stage.deploy(spec(), WAITING).await;
    assert_eq!(same, Deployed { version: 1, changed: false, state: FunctionState::Ready });
    assert_eq!(stage.result("").await, pid);
    let mut changed = spec();
    changed.timeout = Duration::from_millis(400);
    let deployed = stage.service.deploy(changed, None).await.unwrap();
    assert_eq!(deployed, Deployed { version: 1, changed: true, state: FunctionState::Ready });
    assert_ne!(stage.result("").await, pid);
    assert_eq!(stage.error("/never").await.code, "timeout");
}

#[tokio::test]
async fn old_versions_leave_the_disk_when_nothing_uses_them() {
    let stage = Stage::new();
    for version in 1..=4 {
        let deployed = stage.deploy(spec(), &format!("def handler(e, c): return {version}\n")).await;
        assert_eq!(deployed.version, version);
        assert_eq!(stage.result("").await, version.to_string());
    }
    stage.until(|status| status.instances == counts(0, 1, 0, 0)).await;
    let last = stage.deploy(spec(), "def handler(e, c): return 5\n").await;
    assert_eq!(last.version, 5);
    let folder = stage.directory.path().join("functions").join(NAME);
    let mut left: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort_unstable();
    assert!(left.ends_with(&["4".to_owned(), "5".to_owned()]) && !left.contains(&"1".to_owned()), "{left:?}");
}

#[tokio::test]
async fn a_restart_needs_nothing_but_the_definition_and_its_version() {
    let stage = Stage::running("def handler(e, c): return 'kept'\n").await;
    stage.service.shutdown(PATIENCE).await;
    assert_eq!(stage.service.list().len(), 0);
    let service = FunctionService::new(options(stage.directory.path())).unwrap();
    service.restore(spec(), 1).unwrap();
    assert_eq!(service.describe(NAME).unwrap().state, FunctionState::Ready);
    assert_eq!(service.invoke(NAME, invocation("")).await.unwrap().body, r#""kept""#);
    assert!(service.restore(spec(), 9).unwrap_err().to_string().contains("notify/9"));
}

#[tokio::test]
async fn a_shutdown_lets_work_finish_and_runs_pre_stop() {
    let mut stage = Stage::running(WAITING).await;
    let gate = stage.directory.path().join("gate");
    let held = stage.invoke(gate.to_str().unwrap());
    let shut = async {
        let mut status = stage.service.watch(NAME).unwrap();
        stage.until(|status| status.instances.busy == 1).await;
        let closed = stage.service.shutdown(PATIENCE);
        let opened = async {
            std::fs::write(&gate, "").unwrap();
        };
        tokio::join!(closed, opened);
        assert!(status.borrow_and_update().stopped);
    };
    let (held, ()) = tokio::join!(held, shut);
    assert!(held.is_ok());
    assert_eq!(stage.log().await.text, "pre_stop notify");
}

#[tokio::test]
async fn a_shutdown_interrupts_what_does_not_finish() {
    let stage = Stage::running(WAITING).await;
    let held = stage.invoke("/never");
    let shut = async {
        stage.until(|status| status.instances.busy == 1).await;
        let begun = std::time::Instant::now();
        stage.service.shutdown(Duration::from_millis(100)).await;
        assert!(begun.elapsed() < Duration::from_secs(4));
    };
    let (held, ()) = tokio::join!(held, shut);
    assert_eq!(held.unwrap_err().class, ErrorClass::Interrupted);
}

#[tokio::test]
async fn a_pre_stop_that_hangs_is_cut_off() {
    let stage = Stage::with(|options| options.stop_timeout = Duration::from_millis(200));
    let source = r#"
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def handler(event, context): return os.getpid()
def pre_stop(context):
    while True: time.sleep(1)
"#;
    stage.deploy(spec(), source).await;
    let pid = stage.result("").await;
    let begun = std::time::Instant::now();
    stage.service.shutdown(PATIENCE).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(!is_running(&pid));
}

#[tokio::test]
async fn a_removed_function_is_gone_with_its_code() {
    let stage = Stage::running(WAITING).await;
    let pid = stage.result("").await;
    assert!(stage.service.remove(NAME, PATIENCE).await.unwrap());
    assert!(!is_running(&pid));
    assert!(!stage.directory.path().join("functions").join(NAME).exists());
    assert_eq!(stage.error("").await.code, "unknown-function");
    assert!(!stage.service.remove(NAME, PATIENCE).await.unwrap());
}

#[tokio::test]
async fn dropping_the_last_handle_ends_all_instances() {
    let stage = Stage::running(WAITING).await;
    let pid = stage.result("").await;
    let mut status = stage.service.watch(NAME).unwrap();
    drop(stage.service);
    // The sender goes with the pool; its instances go before or with it.
    while status.changed().await.is_ok() {}
    until_gone(&pid).await;
}

#[tokio::test]
async fn a_caller_that_gives_up_in_the_queue_frees_its_place() {
    let mut spec = spec();
    spec.instances.max = 1;
    let stage = Stage::running_as(spec, WAITING).await;
    let gate = stage.directory.path().join("gate");
    let held = stage.invoke(gate.to_str().unwrap());
    let given_up = async {
        stage.until(|status| status.instances.busy == 1).await;
        let waiting = stage.service.invoke(NAME, invocation("/never"));
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting).await.is_err());
        std::fs::write(&gate, "").unwrap();
    };
    let (held, ()) = tokio::join!(held, given_up);
    assert!(held.is_ok());
    stage.result("").await;
    assert_eq!(stage.service.describe(NAME).unwrap().stats.run.count(), 2, "what nobody waited for never ran");
}

#[tokio::test]
async fn a_function_may_change_its_runtime() {
    let stage = Stage::running(WAITING).await;
    let mut http = spec();
    http.runtime = Runtime::Http { url: "http://127.0.0.1:9/".to_owned() };
    let deployed = stage.service.deploy(http, None).await.unwrap();
    assert_eq!(deployed.state, FunctionState::Ready);
    assert_eq!(stage.error("").await.class, ErrorClass::Unavailable);
    let mut python = spec();
    python.runtime = with_initializer();
    let source = "def handler(e, c): return 'back'\ndef initialize(c): pass\n";
    let deployed = stage.deploy(python, source).await;
    assert_eq!((deployed.version, deployed.state), (2, FunctionState::Ready));
    assert_eq!(stage.result("").await, r#""back""#);
}

/// A target that answers nothing until the listener goes.
async fn silent() -> (tokio::net::TcpListener, FunctionSpec) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut http = spec();
    http.runtime = Runtime::Http { url: format!("http://{}/", listener.local_addr().unwrap()) };
    http.instances.max = 1;
    (listener, http)
}

#[tokio::test]
async fn what_waits_for_a_url_goes_on_with_the_code_that_takes_its_place() {
    let (_listener, http) = silent().await;
    let stage = Stage::new();
    stage.service.deploy(http, None).await.unwrap();
    let replaced = async {
        stage.until(|status| status.instances.busy == 1 && status.queued == 1).await;
        stage.deploy(spec(), "def handler(e, c): return 'from code'\n").await;
    };
    tokio::select! {
        biased;
        held = stage.invoke("held") => panic!("nobody answers it: {held:?}"),
        (waited, ()) = async { tokio::join!(stage.invoke("waits"), replaced) } => {
            assert_eq!(waited.unwrap().body, r#""from code""#);
        }
    }
}

#[tokio::test]
async fn what_waits_for_a_function_that_is_deleted_is_told_so() {
    let (_listener, http) = silent().await;
    let stage = Stage::new();
    stage.service.deploy(http, None).await.unwrap();
    let deleted = async {
        stage.until(|status| status.instances.busy == 1 && status.queued == 1).await;
        assert!(stage.service.remove(NAME, Duration::ZERO).await.unwrap());
    };
    let (held, waited, ()) = tokio::join!(stage.invoke("held"), stage.invoke("waits"), deleted);
    assert_eq!(held.unwrap_err().code, "shutdown");
    let error = waited.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Interrupted, "deleted"));
    assert_eq!(error.message, r#"function "notify" was deleted before this invocation began"#);
    assert_eq!(stage.error("later").await.code, "unknown-function");
}

/// A broker in a process of its own, for [`a_killed_broker_takes_its_instances_along`].
#[tokio::test]
#[ignore = "runs until it is killed; started by another test"]
async fn broker_to_be_killed() {
    let stage = Stage::running(WAITING).await;
    println!("\ninstance {}", stage.result("").await);
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_broker_takes_its_instances_along() {
    let mut broker = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "instances::broker_to_be_killed", "--ignored", "--nocapture"])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = printed_line(&mut broker, "instance ").await;
    assert!(is_running(&pid));
    broker.kill().await.unwrap();
    until_gone(&pid).await;
}

/// What stands behind `prefix` in the first line that a process prints so.
async fn printed_line(process: &mut tokio::process::Child, prefix: &str) -> String {
    use tokio::io::{AsyncBufReadExt, BufReader};

    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
        if let Some(rest) = line.strip_prefix(prefix) {
            return rest.to_owned();
        }
    }
}

/// Of the data directory in these two tests.
const CLUSTER_ID: uuid::Uuid = uuid::Uuid::from_u128(7);

fn at_home(directory: &std::path::Path) -> FunctionService {
    let mut options = options(directory);
    options.home = Some(Home::new(CLUSTER_ID, directory).unwrap());
    FunctionService::new(options).unwrap()
}

/// A broker in a process of its own, for [`what_a_function_had_started_ends_with_the_next_start_of_its_broker`].
#[tokio::test]
#[ignore = "runs until it is killed; started by another test"]
async fn broker_to_be_killed_at_home() {
    let service = at_home(std::path::Path::new(&std::env::var("TRIPLINE_TEST_HOME").unwrap()));
    let source = "import os, subprocess
def handler(event, context):
    return '%d %d' % (os.getpid(), subprocess.Popen(['setsid', 'sleep', '99']).pid)
";
    service.deploy(spec(), Some(source.into())).await.unwrap();
    let started = service.invoke(NAME, invocation("")).await.unwrap().body;
    println!("\ninstance {}", std::str::from_utf8(&started).unwrap());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn what_a_function_had_started_ends_with_the_next_start_of_its_broker() {
    let directory = tempfile::tempdir().unwrap();
    let mut broker = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "instances::broker_to_be_killed_at_home", "--ignored", "--nocapture"])
        .env("TRIPLINE_TEST_HOME", directory.path())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let line = printed_line(&mut broker, "instance ").await;
    let (instance, left) = line.trim_matches('"').split_once(' ').unwrap();
    broker.kill().await.unwrap();
    until_gone(instance).await;
    assert!(is_running(left), "nothing else would end it");
    // That of a copy of the directory, whose broker may well run.
    let mut other = tokio::process::Command::new("sleep")
        .arg("99")
        .env("TRIPLINE_INSTANCE", format!("{CLUSTER_ID}.0-0/1"))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let service = at_home(directory.path());
    assert_eq!(service.end_left_over().await, 1);
    until_gone(left).await;
    assert!(is_running(&other.id().unwrap().to_string()));
    other.kill().await.unwrap();
    assert_eq!(service.end_left_over().await, 0);
}

/// Not a check but a measurement: `cargo test --release --test functions measure -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure_cold_start_and_round_trip() {
    use std::time::Instant;

    let stage = Stage::new();
    let mut starts = Vec::new();
    for version in 0..20 {
        let source =
            format!("import json, logging\n# {version}\ndef handler(event, context): return json.loads(event)\n");
        let begun = Instant::now();
        stage.deploy(spec(), &source).await;
        starts.push(begun.elapsed());
    }
    let mut calls = Vec::new();
    for _ in 0..20_000 {
        let begun = Instant::now();
        stage.invoke("[1]").await.unwrap();
        calls.push(begun.elapsed());
    }
    starts.sort_unstable();
    calls.sort_unstable();
    let stats = stage.service.describe(NAME).unwrap().stats;
    println!("deploy with cold start: median {:?}, most {:?}", starts[10], starts[19]);
    println!("cold start alone: mean {} us", stats.cold_start.sum_us / stats.cold_start.count());
    println!("round trip: p50 {:?}, p99 {:?}, p99.9 {:?}", calls[10_000], calls[19_800], calls[19_980]);
}
