//! What a handler sees and what becomes of what it returns, raises and prints.

use std::time::Duration;

use bytes::Bytes;
use tripline::function::{ErrorClass, FunctionState, LINE_BYTES_MAX, LogStream, OUTPUT_BYTES_MAX, PAYLOAD_BYTES_MAX};

use crate::support::{NAME, Stage, invocation, reference, spec, with_initializer};

/// The handler of the founding article.
const FOUNDING: &str = r#"
import json
import logging

def handler(event, context):
    records = json.loads(event)
    logging.info("received %d records", len(records))
    for record in records:
        logging.info("record %s", record["id"])
    return "ok"
"#;

#[tokio::test]
async fn the_founding_handler_runs_and_its_log_lines_name_the_invocation() {
    let mut stage = Stage::running(FOUNDING).await;
    assert_eq!(stage.result(r#"[{"id": "0-1"}, {"id": "0-2"}]"#).await, r#""ok""#);
    let line = stage.log().await;
    assert_eq!(line.text, "[INFO] received 2 records");
    assert_eq!((&*line.function, line.version, line.instance), (NAME, 1, 1));
    assert_eq!(line.invocation.as_deref(), Some("late/flights/0/5"));
    assert_eq!(stage.log().await.text, "[INFO] record 0-1");
    assert_eq!(stage.log().await.text, "[INFO] record 0-2");
}

#[tokio::test]
async fn the_event_is_bytes_and_the_context_tells_about_the_attempt() {
    let mut spec = spec();
    spec.environment.insert("TABLE".to_owned(), "late flights".to_owned());
    let stage = Stage::running_as(
        spec,
        r#"
import os, sys
def handler(event, context):
    f = context.function
    context.logger.info("hello")
    return [type(event).__name__, event.decode(), context.request_id, context.attempt, context.record_count, context.content_type,
            f.name, f.handler, f.memory, f.timeout, 0 < context.get_remaining_time_in_millis() <= 20000,
            os.environ["TABLE"], sys.stdin.read()]
"#,
    )
    .await;
    let mut second = invocation("é\0x");
    (second.attempt, second.record_count) = (7, 3);
    let body = stage.service.invoke(NAME, second).await.unwrap().body;
    let expected = r#"["bytes","é\u0000x","late/flights/0/5",7,3,"application/json","notify","notify.handler",256,20.0,true,"late flights",""]"#;
    assert_eq!(std::str::from_utf8(&body).unwrap(), expected);
}

#[tokio::test]
async fn an_instance_sees_a_clean_environment_its_own_folder_and_no_foreign_descriptor() {
    // A descriptor that this process would hand down to any child.
    let leaked = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let stage = Stage::running(
        r#"
import os, resource
def handler(event, context):
    fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
    limits = [resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)]
    status = dict(line.split(":\t") for line in open("/proc/self/status").read().splitlines())
    return [sorted(os.environ), os.getcwd() == os.environ["HOME"], len(fds), limits, status["NoNewPrivs"],
            os.getsid(0) == os.getpid(), os.path.exists("notify.py")]
"#,
    )
    .await;
    let expected =
        r#"[["HOME","LANG","LC_CTYPE","PATH","TRIPLINE_INSTANCE"],true,5,[0,1024,1073741824],"1",true,true]"#;
    let found = stage.result("").await.replace(r#""LC_CTYPE","#, "");
    // Standard input, output and error, the channel, and the one that lists them.
    assert_eq!(found, expected.replace(r#""LC_CTYPE","#, ""));
}

#[tokio::test]
async fn results_become_json_and_bytes_stay_as_they_are() {
    let stage = Stage::running(
        r#"
def handler(event, context):
    return eval(event)
"#,
    )
    .await;
    for (returned, body) in [
        ("None", "null"),
        ("'é'", "\"é\""),
        ("{'a': [1, 2.5, True]}", r#"{"a":[1,2.5,true]}"#),
        ("b'raw {'", "raw {"),
        ("bytearray(b'x')", "x"),
        ("[]", "[]"),
    ] {
        assert_eq!(stage.result(returned).await, body, "{returned}");
    }
    for (returned, expected) in [
        ("{1, 2}", "the handler returned a set that is not JSON: Object of type set is not JSON serializable"),
        (
            "float('nan')",
            "the handler returned a float that is not JSON: Out of range float values are not JSON compliant",
        ),
        (
            "(lambda a: a.append(a) or a)([])",
            "the handler returned a list that is not JSON: Circular reference detected",
        ),
    ] {
        let error = stage.error(returned).await;
        assert_eq!((error.class, error.code.as_str()), (ErrorClass::Failed, "result-not-json"));
        assert!(error.message.starts_with(expected), "{}", error.message);
    }
    assert_eq!(stage.service.describe(NAME).unwrap().stats.cold_start.count(), 1, "the instance survived all of it");
}

#[tokio::test]
async fn an_exception_is_a_failure_with_its_type_and_traceback() {
    let stage = Stage::running(
        r#"
class Late(Exception):
    pass

def check(record):
    raise Late("by an hour")

def handler(event, context):
    if event == b"deep":
        return handler(event, context)
    if event == b"long":
        raise ValueError("x" * 100000 + " the end")
    if event == b"key":
        return {}["missing"]
    check(event)
"#,
    )
    .await;
    let error = stage.error("").await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Failed, "notify.Late"));
    assert!(error.message.starts_with("Traceback (most recent call last):\n"), "{}", error.message);
    assert!(error.message.ends_with("notify.Late: by an hour"), "{}", error.message);
    assert!(error.message.contains("in check\n    raise Late(\"by an hour\")"), "{}", error.message);
    assert!(!error.message.contains("<string>"), "our own frames are not shown: {}", error.message);
    assert_eq!(stage.error("key").await.code, "KeyError");
    assert_eq!(stage.error("deep").await.code, "RecursionError");
    let long = stage.error("long").await;
    assert!(long.message.len() <= 4096 && long.message.ends_with(" the end"), "the end of a traceback says most");
    assert_eq!(stage.service.describe(NAME).unwrap().status.instances.idle, 1, "raising costs no instance");
}

#[tokio::test]
async fn an_exception_that_says_so_is_a_refusal_and_whatever_else_it_has_is_a_failure() {
    let stage = Stage::running(
        r#"
class Refused(Exception):
    retryable = False
class Later(Refused):
    retryable = True
class Odd(Exception):
    def __init__(self, retryable):
        self.retryable = retryable
class Hostile(Exception):
    @property
    def retryable(self):
        raise self.cause
    def __init__(self, cause):
        self.cause = cause
class Slots(Exception):
    def __getattribute__(self, name):
        if name == "retryable": raise KeyboardInterrupt
        return super().__getattribute__(name)
class Equal:
    def __eq__(self, other): return True
    def __bool__(self): return False
def marked():
    error = ValueError("no good")
    error.retryable = False
    return error
def handler(event, context):
    raise eval(event)
"#,
    )
    .await;
    for (raised, class, code) in [
        ("Refused('for good')", ErrorClass::Rejected, "notify.Refused"),
        ("marked()", ErrorClass::Rejected, "ValueError"),
        ("Odd(False)", ErrorClass::Rejected, "notify.Odd"),
        ("Later()", ErrorClass::Failed, "notify.Later"),
        ("ValueError('as ever')", ErrorClass::Failed, "ValueError"),
        ("Odd(None)", ErrorClass::Failed, "notify.Odd"),
        ("Odd(0)", ErrorClass::Failed, "notify.Odd"),
        ("Odd('')", ErrorClass::Failed, "notify.Odd"),
        ("Odd(Equal())", ErrorClass::Failed, "notify.Odd"),
        ("Hostile(ValueError())", ErrorClass::Failed, "notify.Hostile"),
        ("Hostile(SystemExit(3))", ErrorClass::Failed, "notify.Hostile"),
        ("Slots()", ErrorClass::Failed, "notify.Slots"),
    ] {
        let error = stage.error(raised).await;
        assert_eq!((error.class, error.code.as_str()), (class, code), "{raised}: {}", error.message);
        assert!(error.message.starts_with("Traceback (most recent call last):\n"), "{raised}: {}", error.message);
    }
    assert_eq!(stage.service.describe(NAME).unwrap().stats.cold_start.count(), 1, "the instance survived all of it");
}

#[tokio::test]
async fn the_initializer_runs_once_before_the_first_invocation() {
    let mut spec = spec();
    spec.runtime = with_initializer();
    let mut stage = Stage::running_as(
        spec,
        r#"
calls = []
def initialize(context):
    print("initializing", context.function.initializer)
    calls.append("i")
def handler(event, context):
    calls.append("h")
    return "".join(calls)
"#,
    )
    .await;
    let line = stage.log().await;
    assert_eq!((line.text.as_str(), line.invocation), ("initializing notify.initialize", None));
    assert_eq!(stage.result("").await, r#""ih""#);
    assert_eq!(stage.result("").await, r#""ihh""#);
    assert_eq!(stage.service.describe(NAME).unwrap().stats.initializer.count(), 1);
}

#[tokio::test]
async fn printed_lines_arrive_in_order_with_their_stream() {
    let mut stage = Stage::running(
        r#"
import sys
def handler(event, context):
    print("one\ntwo")
    print("no end", end="")
    sys.stdout.flush()
    sys.stderr.write("to stderr\n")
    sys.stdout.buffer.write(b" \xff\n")
    print("x" * 20000)
"#,
    )
    .await;
    stage.result("").await;
    let mut stdout = Vec::new();
    let mut stderr = Vec::new();
    while let Ok(line) = stage.logs.try_recv() {
        assert_eq!(line.invocation.as_deref(), Some("late/flights/0/5"), "all was read before the outcome: {line:?}");
        match line.stream {
            LogStream::Stdout => stdout.push(line.text),
            LogStream::Stderr => stderr.push(line.text),
        }
    }
    assert_eq!(stderr, ["to stderr"]);
    assert_eq!(stdout[..3], ["one", "two", "no end \u{fffd}"]);
    assert_eq!(
        stdout[3..].iter().map(String::len).collect::<Vec<_>>(),
        [LINE_BYTES_MAX, LINE_BYTES_MAX, 20_000 - 2 * LINE_BYTES_MAX]
    );
}

#[tokio::test]
async fn payloads_and_results_have_limits() {
    let stage = Stage::running(
        r#"
def handler(event, context):
    return b"x" * int(event) if len(event) < 20 else str(len(event)).encode()
"#,
    )
    .await;
    assert_eq!(stage.result(&OUTPUT_BYTES_MAX.to_string()).await.len(), OUTPUT_BYTES_MAX);
    let error = stage.error(&(OUTPUT_BYTES_MAX + 1).to_string()).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Failed, "output-too-large"));
    assert_eq!(stage.result(&"y".repeat(PAYLOAD_BYTES_MAX)).await, PAYLOAD_BYTES_MAX.to_string());
    let error = stage.error(&"y".repeat(PAYLOAD_BYTES_MAX + 1)).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Rejected, "payload-too-large"));
}

#[tokio::test]
async fn an_archive_brings_its_own_modules() {
    use std::io::Write;
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, source) in [
        ("app/__init__.py", ""),
        ("app/main.py", "from lib import greet\ndef handler(event, context): return greet(event.decode())"),
        ("lib.py", "import pathlib\ndef greet(name): return pathlib.Path('greeting.txt').read_text() + name"),
        ("greeting.txt", "hello "),
    ] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(source.as_bytes()).unwrap();
    }
    let mut spec = spec();
    spec.runtime =
        tripline::function::Runtime::Python3 { handler: reference("app.main", "handler"), initializer: None };
    let stage = Stage::new();
    let code = Bytes::from(zip.finish().unwrap().into_inner());
    let deployed = stage.service.deploy(spec, Some(code)).await.unwrap();
    assert_eq!(deployed.state, FunctionState::Ready);
    assert_eq!(stage.result("you").await, r#""hello you""#);
}

#[tokio::test]
async fn usual_ways_to_start_more_work_work() {
    let stage = Stage::running(
        r#"
import subprocess, multiprocessing, threading, os

def square(x):
    return x * x

def handler(event, context):
    out = subprocess.run(["echo", "sub"], capture_output=True, text=True).stdout.strip()
    with multiprocessing.get_context(event.decode()).Pool(2) as pool:
        squares = pool.map(square, [1, 2, 3])
    child = os.fork()
    if child == 0:
        return "a child that comes back through the handler says nothing"
    os.waitpid(child, 0)
    return [out, squares]
"#,
    )
    .await;
    for method in ["fork", "spawn"] {
        assert_eq!(stage.result(method).await, r#"["sub",[1,4,9]]"#, "{method}");
    }
}

#[tokio::test]
async fn exit_and_the_packages_of_the_system_are_there_as_ever() {
    let stage = Stage::running(
        r#"
import site, sys
def handler(event, context):
    if event == b"exit":
        exit(3)
    try:
        import surely_not_installed
    except ImportError as error:
        return [str(error), any("site-packages" in entry or "dist-packages" in entry for entry in sys.path)]
"#,
    )
    .await;
    assert_eq!(stage.result("").await, r#"["No module named 'surely_not_installed'",true]"#);
    assert_eq!(stage.error("exit").await.code, "exit-3");
}

#[tokio::test]
async fn a_result_that_comes_too_late_is_a_timeout() {
    let mut spec = spec();
    spec.timeout = Duration::from_millis(300);
    let stage = Stage::running_as(spec, "import time\ndef handler(event, context): time.sleep(float(event))").await;
    assert_eq!(stage.result("0").await, "null");
    let error = stage.error("30").await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Failed, "timeout"));
    assert_eq!(error.message, "no answer within 300ms; the instance was killed");
    assert_eq!(stage.result("0").await, "null");
    assert_eq!(stage.service.describe(NAME).unwrap().stats.cold_start.count(), 2, "F3: not on the same instance");
}
