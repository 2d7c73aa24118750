//! Functions that misbehave are contained: killed with all they started, replaced, and never a burden to the broker.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use tripline::function::{ErrorClass, InstanceCounts, InvocationError, Launcher};

use crate::support::{NAME, Stage, is_running, spec, until_gone};

/// Limits must bite within this time.
const CONTAINED_WITHIN: Duration = Duration::from_secs(2);

async fn stage(timeout: Duration, source: &str) -> Stage {
    let mut spec = spec();
    spec.timeout = timeout;
    spec.memory_bytes = 100 << 20;
    Stage::running_as(spec, source).await
}

/// The outcome of an invocation that runs into a time-out of half a second, which must come in time.
async fn timed_out(stage: &Stage, payload: &str) {
    let begun = Instant::now();
    let error = stage.error(payload).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Failed, "timeout"), "{payload}: {}", error.message);
    assert!(begun.elapsed() < HALF_SECOND + CONTAINED_WITHIN, "{payload}: {:?}", begun.elapsed());
}

const HALF_SECOND: Duration = Duration::from_millis(500);

fn crashed(error: &InvocationError, code: &str) {
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Crashed, code), "{}", error.message);
}

#[tokio::test]
async fn an_instance_that_dies_is_a_crash_with_its_status_and_is_replaced() {
    let stage = stage(
        Duration::from_secs(20),
        r#"
import os, sys, signal, threading, time
def handler(event, context):
    if event == b"status":
        sys.exit(3)
    if event == b"text":
        sys.exit("cannot go on")
    if event == b"zero":
        os._exit(0)
    if event == b"killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if event == b"segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    if event == b"exit with threads":
        threading.Thread(target=time.sleep, args=(99,)).start()
        sys.exit(4)
    return os.getpid()
"#,
    )
    .await;
    let mut pids = vec![stage.result("").await];
    for (payload, code) in [
        ("status", "exit-3"),
        ("text", "exit-1"),
        ("zero", "exit-0"),
        ("killed", "signal-9"),
        ("segv", "signal-11"),
        ("exit with threads", "exit-4"),
    ] {
        let error = stage.error(payload).await;
        crashed(&error, code);
        assert_eq!(error.message.contains("cannot go on"), payload == "text", "{}", error.message);
        pids.push(stage.result("").await);
    }
    pids.dedup();
    assert_eq!(pids.len(), 7, "each crash was followed by a new instance");
}

#[tokio::test]
async fn a_timeout_kills_children_grandchildren_and_daemons() {
    let stage = stage(
        HALF_SECOND,
        r#"
import os, subprocess, sys, time
def daemon(path):
    # The classic double fork into a session of its own.
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(path, "w") as file: file.write(str(os.getpid()))
            os.rename(path, path + ".done")
            time.sleep(99)
        os._exit(0)
def handler(event, context):
    folder = event.decode()
    for name, command in (("child", "echo $$ > %s; exec sleep 99"), ("grandchild", "(sh -c 'echo $$ > %s; exec sleep 99') & sleep 99"),
                          ("clean", "env -i setsid sh -c 'echo $$ > %s; sleep 99; true' &")):
        subprocess.Popen(["sh", "-c", command % os.path.join(folder, name)])
    daemon(os.path.join(folder, "daemon"))
    time.sleep(99)
"#,
    )
    .await;
    let folder = stage.directory.path().to_owned();
    timed_out(&stage, folder.to_str().unwrap()).await;
    let mut seen = 0;
    for name in ["child", "grandchild", "clean", "daemon.done"] {
        let pid = std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        seen += usize::from(!pid.trim().is_empty());
        assert!(!is_running(&pid), "{name} {pid} survived the time-out");
    }
    assert!(seen >= 3, "the children had the time to start: {seen}");
}

#[tokio::test]
async fn what_a_crashed_instance_left_behind_is_killed_too() {
    let stage = stage(
        Duration::from_secs(20),
        r#"
import os, subprocess, sys
def handler(event, context):
    child = subprocess.Popen(["setsid", "sh", "-c", "echo started; sleep 99; true"], stdout=subprocess.PIPE)
    child.stdout.readline()
    print(child.pid)
    os._exit(5)
"#,
    )
    .await;
    let mut stage = stage;
    crashed(&stage.error("").await, "exit-5");
    let pid = stage.log().await.text;
    assert!(pid.parse::<u32>().is_ok() && !is_running(&pid), "{pid}");
}

#[tokio::test]
async fn spinning_and_ignoring_every_signal_help_nobody() {
    let stage = stage(
        HALF_SECOND,
        r#"
import os, signal, sys, time
def handler(event, context):
    for number in range(1, 32):
        try: signal.signal(number, signal.SIG_IGN)
        except OSError: pass
    if event == b"spin":
        while True: pass
    if event == b"sleep":
        while True: time.sleep(1)
    if event == b"stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if event == b"close":
        os.closerange(0, 64)
        time.sleep(99)
    if event == b"bomb":
        for _ in range(6): os.fork()
        while True: time.sleep(1)
    if event == b"print":
        while True: print("y" * 100)
    if event == b"one line":
        while True: sys.stdout.write("y" * 1000)
    return 1
"#,
    )
    .await;
    for payload in ["spin", "sleep", "stop", "bomb", "print", "one line"] {
        timed_out(&stage, payload).await;
        assert_eq!(stage.result("fine").await, "1", "after {payload}");
    }
    let error = stage.error("close").await;
    assert!(error.code == "protocol" || error.code == "timeout", "{error:?}");
    assert_eq!(stage.result("fine").await, "1");
}

#[tokio::test]
async fn endless_output_is_read_at_a_bounded_rate() {
    let mut stage =
        stage(Duration::from_secs(1), "def handler(event, context):\n    while True: print('y' * 1023)\n").await;
    assert_eq!(stage.error("").await.code, "timeout");
    let mut bytes = 0;
    while let Ok(line) = stage.logs.try_recv() {
        bytes += line.text.len();
    }
    assert!(bytes > 1 << 20 && bytes < 8 << 20, "{bytes} bytes in a second");
}

#[tokio::test]
async fn a_memory_hog_is_killed_with_its_children() {
    let stage = stage(
        Duration::from_secs(20),
        r#"
import os, time
kept = []
def handler(event, context):
    if event == b"at once":
        kept.append(b"x" * (400 << 20))
        time.sleep(20)
    if event == b"in a child":
        if os.fork() == 0:
            kept.append(b"x" * (400 << 20))
            time.sleep(20)
        time.sleep(20)
    if event == b"leak":
        kept.append(b"x" * (1 << 20))
    if event == b"shared":
        kept.append(b"x" * (40 << 20))
        children = [os.fork() for _ in range(1)]
        if children[0] == 0:
            time.sleep(0.5)
            os._exit(0)
        os.waitpid(children[0], 0)
        kept.clear()
    return 1
"#,
    )
    .await;
    assert_eq!(stage.result("shared").await, "1", "memory shared with a child counts once");
    for payload in ["at once", "in a child"] {
        let begun = Instant::now();
        crashed(&stage.error(payload).await, "out-of-memory");
        assert!(begun.elapsed() < CONTAINED_WITHIN, "{:?}", begun.elapsed());
        assert_eq!(stage.result("fine").await, "1");
    }
    let leaked = async {
        for round in 0..10_000 {
            if let Err(error) = stage.invoke("leak").await {
                return (round, error);
            }
        }
        panic!("never noticed")
    };
    let (round, error) = leaked.await;
    assert_eq!(error.code, "out-of-memory", "short invocations are watched like long ones: {error:?}");
    assert!(round < 1000, "noticed after {round} MiB");
}

#[tokio::test]
async fn a_process_whose_first_thread_has_left_is_limited_and_killed_like_any_other() {
    let mut stage = stage(
        Duration::from_secs(20),
        r#"
import subprocess, sys
LEAVE = """
import ctypes, os, threading, time
def leave(mib):
    def stay():
        # The first thread has left when it has no memory any more.
        while open("/proc/self/statm").read().split()[1] != "0": time.sleep(0.001)
        print(os.getpid(), flush=True)
        kept = b"x" * (mib << 20)
        time.sleep(99)
    threading.Thread(target=stay).start()
    ctypes.CDLL(None).pthread_exit(None)
"""
exec(LEAVE)
def child(mib, *command):
    code = LEAVE + "leave(%d)" % mib
    started = subprocess.Popen([*command, sys.executable, "-c", code], stdout=subprocess.PIPE)
    print(started.stdout.readline().decode().strip(), flush=True)
def handler(event, context):
    if event == b"itself":
        leave(400)
    if event == b"its child":
        child(400)
        time.sleep(99)
    if event == b"beside its child":
        child(1, "env", "-i", "setsid")
        kept = b"x" * (400 << 20)
        time.sleep(99)
    if event == b"behind it":
        child(1, "setsid")
        os._exit(7)
    return 1
"#,
    )
    .await;
    for (payload, code) in [
        ("itself", "out-of-memory"),
        ("its child", "out-of-memory"),
        ("beside its child", "out-of-memory"),
        ("behind it", "exit-7"),
    ] {
        crashed(&stage.error(payload).await, code);
        let pid = stage.log().await.text;
        assert!(pid.parse::<u32>().is_ok(), "{payload}: {pid}");
        // A thread that has been killed gives up its memory and environment some time before it has ended.
        until_gone(&pid).await;
    }
    assert_eq!(stage.result("fine").await, "1");
}

#[tokio::test]
async fn an_instance_that_talks_nonsense_on_the_channel_is_replaced() {
    let stage = stage(
        Duration::from_secs(20),
        r#"
import os
def channel():
    for fd in range(3, 64):
        try:
            if os.readlink("/proc/self/fd/%d" % fd).startswith("socket:"): return fd
        except OSError: pass
def handler(event, context):
    if event:
        os.write(channel(), eval(event))
    return 1
"#,
    )
    .await;
    for (frame, class, code) in [
        (r"b'\xff\xff\xff\xff\x13'", ErrorClass::Failed, "output-too-large"),
        (r"b'\0\0\0\0\x63'", ErrorClass::Crashed, "protocol"),
        (r"b'\0\0\0\0\x11'", ErrorClass::Crashed, "protocol"),
        (r"b'\xff\xff\xff\xff\x14'", ErrorClass::Crashed, "protocol"),
    ] {
        let error = stage.error(frame).await;
        assert_eq!((error.class, error.code.as_str()), (class, code), "{frame}");
        assert_eq!(stage.result("").await, "1");
    }
    // A forged result is the function's own business; the true one after it is one answer too many.
    assert_eq!(stage.result(r"b'\x02\0\0\0\x1342'").await, "42");
    assert_eq!(stage.result("").await, "1");
}

#[tokio::test]
async fn an_instance_that_does_not_read_blocks_nobody() {
    let stage = stage(
        HALF_SECOND,
        r#"
import os, signal, threading, time
def handler(event, context):
    if event == b"freeze":
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        return 1
    return len(event)
"#,
    )
    .await;
    assert_eq!(stage.result("freeze").await, "1");
    // The instance stops some time after its answer: whichever invocation meets that runs into its time-out while it is
    // written.
    let large = "x".repeat(16 << 20);
    let begun = Instant::now();
    loop {
        match stage.invoke(&large).await {
            Ok(_) => assert!(begun.elapsed() < Duration::from_secs(20), "never frozen"),
            Err(error) => break assert_eq!(error.code, "timeout"),
        }
    }
    assert_eq!(stage.result("abc").await, "3");
    assert!(stage.service.describe(NAME).unwrap().stats.cold_start.count() >= 2);
}

#[tokio::test]
async fn a_file_grows_no_larger_than_allowed() {
    let stage = Stage::with(|options| options.process_limits.file_size_bytes_max = 1 << 20);
    let source = r#"
def handler(event, context):
    with open("large", "wb") as file:
        file.write(b"x" * (2 << 20))
"#;
    stage.deploy(spec(), source).await;
    assert_eq!(stage.error("").await.code, "OSError");
}

fn running_in_group(group: &str) -> usize {
    let is_member = |stat: String| {
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
        fields[0] != "Z" && fields[2] == group
    };
    let stats = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("stat"));
    stats.filter_map(|stat| std::fs::read_to_string(stat).ok()).filter(|stat| is_member(stat.clone())).count()
}

#[tokio::test]
async fn a_fork_bomb_is_killed_whole() {
    let mut stage = Stage::with(|options| options.process_limits.processes_max = 50);
    let source = r#"
import os, time
def handler(event, context):
    if event:
        print(os.getpgid(0), flush=True)
        for _ in range(9): os.fork()
        while True: time.sleep(1)
    return 1
"#;
    stage.deploy(spec(), source).await;
    let begun = Instant::now();
    crashed(&stage.error("bomb").await, "too-many-processes");
    assert!(begun.elapsed() < CONTAINED_WITHIN, "{:?}", begun.elapsed());
    let group = stage.log().await.text;
    assert_eq!(running_in_group(&group), 0, "nobody of the group is left");
    assert_eq!(stage.result("").await, "1");
}

#[tokio::test]
async fn an_invocation_that_leaves_processes_behind_without_end_dies_of_them() {
    let stage = Stage::with(|options| options.process_limits.processes_max = 16);
    let source = r#"
import os
def handler(event, context):
    while True:
        os.system("true &")
"#;
    stage.deploy(spec(), source).await;
    let error = stage.error("1").await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Crashed, "too-many-processes"));
}

#[tokio::test]
async fn processes_that_are_left_behind_stay_few_and_no_invocation_dies_of_them() {
    let mut stage = Stage::with(|options| options.process_limits.processes_max = 16);
    let source = r#"
import os, time
def handler(event, context):
    os.system(event.decode())
    time.sleep(0.02)
    with open("/proc/self/task/%d/children" % os.getpid()) as children:
        return [os.getpid(), len(children.read().split())]
def pre_stop(context):
    print("pre_stop")
"#;
    stage.deploy(spec(), source).await;
    let (mut instances, mut left_most) = (BTreeSet::new(), 0);
    for _ in 0..100 {
        let answer = stage.result("true &").await;
        let [instance, left]: [usize; 2] = serde_json::from_str(&answer).unwrap();
        instances.insert(instance);
        left_most = left_most.max(left);
    }
    assert!(instances.len() > 1, "an instance was replaced");
    assert!(left_most < 32, "{left_most} children at most");
    assert_eq!(stage.log().await.text, "pre_stop", "it was not killed");
    // Those that end after the answer are seen while nobody invokes.
    stage.result(&"sleep 0.1 & ".repeat(8)).await;
    stage.until(|status| status.instances == InstanceCounts::default()).await;
    assert_eq!(stage.result("true").await.split(',').nth(1), Some("0]"));
}

#[tokio::test]
async fn leaked_descriptors_are_the_functions_own_trouble() {
    let stage = stage(
        Duration::from_secs(20),
        "kept = []\ndef handler(event, context):\n    for _ in range(300): kept.append(open('/dev/null'))\n",
    )
    .await;
    for _ in 0..3 {
        stage.invoke("").await.unwrap();
    }
    let error = stage.error("").await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Failed, "OSError"));
    assert!(error.message.contains("Too many open files") && error.message.contains("in handler"), "{}", error.message);
}

#[tokio::test]
async fn without_a_launcher_functions_run_and_are_still_killed_whole() {
    let mut stage = Stage::with(|options| options.launcher = Launcher::Reduced);
    let mut spec = spec();
    spec.timeout = HALF_SECOND;
    let source = r#"
import subprocess, time
def handler(event, context):
    if event:
        print(subprocess.Popen(["setsid", "sleep", "99"]).pid)
        time.sleep(99)
    return 1
"#;
    stage.deploy(spec, source).await;
    assert_eq!(stage.result("").await, "1");
    timed_out(&stage, "hang").await;
    let pid = stage.log().await.text;
    assert!(pid.parse::<u32>().is_ok() && !is_running(&pid), "{pid}");
}
