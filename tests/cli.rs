//! The command line: the real binary, its words and its exit codes.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/served.rs"]
mod served;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use served::{Served, TRIPLINE};

/// A broker on free ports, and its directory.
struct Broker {
    served: Served,
    directory: tempfile::TempDir,
}

impl Broker {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(TRIPLINE);
        command.args(["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"]);
        command.arg(directory.path().join("data")).current_dir(directory.path());
        change(&mut command);
        Self { served: Served::start(&mut command), directory }
    }

    fn run(&self, args: &[&str]) -> Output {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], input: &str) -> Output {
        let mut command = Command::new(TRIPLINE);
        command.args(args).env("TRIPLINE_SERVER", &self.served.http).current_dir(self.directory.path());
        output(&mut command, input)
    }

    /// Standard output of a command that succeeds.
    fn good(&self, args: &[&str]) -> String {
        good(self.run(args))
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).unwrap();
    }
}

fn output(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that does not read is no reason to fail.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn good(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The line on standard error of a command that ends with `code`.
fn failed(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(text.starts_with("error: "), "{text}");
    text
}

const FUNCTION: &str = "function: f\nruntime: python3\ncode: ./f.py\nhandler: f.handler\n";

#[test]
fn records_go_in_and_come_out_and_survive_a_kill() {
    let mut broker = Broker::start();
    let made = broker.good(&["topic", "create", "t", "-p", "2", "--config", "retention.ms=1h"]);
    assert_eq!(made, "topic t made with 2 partition(s)\n");
    assert_eq!(good(broker.run_with(&["produce", "t", "-k", "k", "-H", "h=1"], "one\ntwo")), "2 records to t\n");
    let lines = broker.good(&["consume", "t", "-f", "%k %v %h\\n"]);
    assert_eq!(lines, "k one {\"h\":\"1\"}\nk two {\"h\":\"1\"}\n");
    let jsonl = "{\"value\": {\"a\": 1}, \"partition\": 0}\n{\"value\": 2, \"partition\": 1}\n";
    assert_eq!(good(broker.run_with(&["produce", "t", "--jsonl"], jsonl)), "2 records to t\n");
    assert_eq!(broker.good(&["consume", "t", "-n", "1", "--json"]).lines().count(), 1);
    assert!(broker.good(&["topic", "describe", "t"]).contains("retention.ms = 3600000"));
    broker.served.kill();
    let verified = good(output(Command::new(TRIPLINE).arg("verify").arg(broker.directory.path().join("data")), ""));
    assert!(verified.ends_with("all good\n"), "{verified}");
}

/// A broker that was killed after it made `some text that is long enough to be hit` durable, and the log that holds it.
fn killed() -> (Broker, std::path::PathBuf, std::path::PathBuf) {
    let mut broker = Broker::start();
    good(broker.run_with(&["produce", "t"], "some text that is long enough to be hit"));
    let data = broker.directory.path().join("data");
    let running = output(Command::new(TRIPLINE).arg("verify").arg(&data), "");
    let refused = failed(&running, 1);
    assert!(refused.contains(&format!("in use by process {} (tripline)", broker.served.child.id())), "{refused}");
    for command in ["inspect", "repair"] {
        assert_eq!(failed(&output(Command::new(TRIPLINE).arg(command).arg(&data), ""), 1), refused);
    }
    broker.served.kill();
    let mut logs = Vec::new();
    find_logs(&data.join("topics"), &mut logs);
    let hit = logs.into_iter().find(|path| contains(&std::fs::read(path).unwrap(), b"long enough")).unwrap();
    (broker, data, hit)
}

#[test]
fn verify_tells_a_changed_byte_and_repair_leaves_the_rest() {
    let (_broker, data, log) = killed();
    let run = |args: &[&str]| output(Command::new(TRIPLINE).args(args).arg(&data), "");
    assert!(good(run(&["verify"])).ends_with("all good\n"));
    assert_eq!(good(run(&["repair"])), "nothing to repair\n");
    let mut bytes = std::fs::read(&log).unwrap();
    let at = bytes.windows(11).position(|window| window == b"long enough").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let damaged = run(&["verify"]);
    assert!(failed(&damaged, 1).starts_with("error: 1 damaged place(s), 0 defect(s)"));
    let text = String::from_utf8(damaged.stdout).unwrap();
    assert!(
        text.starts_with("damage: topics/") && text.contains("byte 0, offset 0") && text.contains("[t/0]"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_slice(&run(&["verify", "--json"]).stdout).unwrap();
    let finding = &json["findings"][0];
    assert_eq!((finding["topic"].as_str(), finding["offsets"]["to"].as_i64()), (Some("t"), Some(1)));
    assert!(finding["expected"].as_str().unwrap().starts_with("0x"), "{finding}");
    let before = std::fs::read(&log).unwrap();
    let asked = run(&["repair", "--json"]);
    let refused: serde_json::Value = serde_json::from_slice(&asked.stderr).unwrap();
    assert!(refused["error"]["detail"].as_str().unwrap().starts_with("--json asks nobody"), "{refused}");
    assert_eq!(asked.status.code(), Some(2));
    let json = |args: &[&str]| -> serde_json::Value { serde_json::from_str(&good(run(args))).unwrap() };
    let planned = json(&["repair", "--json", "--dry-run"]);
    let step = &planned["steps"][0];
    assert!(step["file"].as_str().unwrap().starts_with("topics/") && step["what"].is_string(), "{planned}");
    assert_eq!((&step["partition"], planned["steps"].as_array().unwrap().len()), (&"t/0".into(), 1));
    let lost = serde_json::json!([{ "partition": "t/0", "offsets": { "from": 0, "to": 1 } }]);
    assert_eq!((&planned["lost"], &planned["left"], &planned["done"]), (&lost, &serde_json::json!([]), &false.into()));
    for (args, code) in [(&["repair"][..], 2), (&["repair", "--dry-run"][..], 0)] {
        let planned = run(args);
        assert_eq!(planned.status.code(), Some(code), "{planned:?}");
        let text = String::from_utf8(planned.stdout).unwrap();
        assert!(text.starts_with("1. topics/") && text.contains("lost: t/0, offsets 0..1"), "{text}");
        assert_eq!(std::fs::read(&log).unwrap(), before, "nothing is done without being told");
    }
    let done = good(run(&["repair", "--yes"]));
    assert!(done.contains("step 1 of 1") && done.ends_with("1 step(s) done\n"), "{done}");
    assert!(good(run(&["verify"])).ends_with("all good\n"));
    assert_eq!(good(run(&["repair", "--yes"])), "nothing to repair\n");
    std::fs::write(&log, before).unwrap();
    let done = json(&["repair", "--json", "--yes"]);
    assert_eq!((&done["lost"], &done["left"], &done["done"]), (&lost, &serde_json::json!([]), &true.into()), "{done}");
    assert!(done["steps"].as_array().unwrap().contains(step), "{done}");
    let unlisted = serde_json::json!({ "places": 0, "offsets": 0 });
    let nothing_left =
        serde_json::json!({ "steps": [], "lost": [], "lost_unlisted": unlisted, "left": [], "done": false });
    assert_eq!(json(&["repair", "--json", "--yes"]), nothing_left);
    let nothing = output(Command::new(TRIPLINE).arg("verify").arg(data.parent().unwrap()), "");
    assert!(failed(&nothing, 2).contains("not a data directory"));
    assert!(failed(&output(Command::new(TRIPLINE).args(["verify", "/nowhere"]), ""), 2).contains("/nowhere"));
}

#[test]
fn inspect_shows_directories_partitions_and_files() {
    let (_broker, data, log) = killed();
    let run = |args: &[&str]| good(output(Command::new(TRIPLINE).arg("inspect").arg(&data).args(args), ""));
    let overview = run(&[]);
    assert!(overview.contains("leader epoch    1\n") && overview.contains("state journal"), "{overview}");
    assert!(overview.lines().any(|line| line.starts_with("t/0 ")), "{overview}");
    let segments = run(&["--topic", "t"]);
    assert!(segments.contains("t/0: log start 0, flushed 1, tail 1") && segments.contains("active"), "{segments}");
    let records = run(&["--topic", "t", "--partition", "0", "--records"]);
    assert!(records.contains("baseOffset: 0 lastOffset: 0 count: 1") && records.contains("isvalid: true"), "{records}");
    assert!(records.contains("payload: some text that"), "{records}");
    let json: serde_json::Value = serde_json::from_str(&run(&["--json"])).unwrap();
    assert_eq!(json["partitions"].as_array().unwrap().len(), 2);
    let file = good(output(Command::new(TRIPLINE).arg("inspect").arg(&log).args(["--batches", "--json"]), ""));
    let batch: serde_json::Value = serde_json::from_str(file.lines().next().unwrap()).unwrap();
    assert_eq!((batch["count"].as_i64(), batch["valid"].as_bool()), (Some(1), Some(true)));
    let slots = good(output(Command::new(TRIPLINE).arg("inspect").arg(log.parent().unwrap().join("flushed")), ""));
    assert!(slots.contains("flushed: 1"), "{slots}");
    let other = output(Command::new(TRIPLINE).arg("inspect").arg(data.join("LOCK")), "");
    assert!(failed(&other, 2).contains("allowed: a name that ends in .log"));
    let none = output(Command::new(TRIPLINE).arg("inspect").arg(&data).args(["--topic", "nope"]), "");
    assert!(failed(&none, 1).contains("nope"));
}

#[test]
fn inspect_shows_the_records_that_are_asked_for_of_a_batch() {
    let mut broker = Broker::start();
    good(broker.run_with(&["produce", "t"], "a\nb\nc\nd\ne"));
    broker.served.kill();
    let args = ["inspect", "data", "--topic", "t", "--partition", "0", "--records", "--from", "1", "--limit", "2"];
    let text = broker.good(&args);
    let offsets: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("| offset: ")?.split(' ').next()).collect();
    assert_eq!(offsets, ["1", "2"], "{text}");
    assert_eq!(broker.good(&[&args[..], &["--json"]].concat()).matches("\"offset\":").count(), 2);
}

#[test]
fn a_second_broker_on_a_directory_is_told_who_has_it() {
    let broker = Broker::start();
    let data = broker.directory.path().join("data");
    let args = ["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"];
    let second = failed(&output(Command::new(TRIPLINE).args(args).arg(&data), ""), 1);
    let who = format!("process {} (tripline)", broker.served.child.id());
    assert!(second.contains(&who) && second.contains(&data.display().to_string()), "{second}");
}

#[test]
fn directories_that_cannot_be_opened_are_refused_untouched_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let serve = || {
        let args = ["serve", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0", "--data"];
        failed(&output(Command::new(TRIPLINE).args(args).arg(directory.path()), ""), 1)
    };
    std::fs::write(directory.path().join("letter.txt"), "dear").unwrap();
    assert!(serve().contains("\"letter.txt\" is there"));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing was put beside the letter");
    std::fs::remove_file(directory.path().join("letter.txt")).unwrap();
    let newer = "tripline data directory\nversion 7\nsomething else\n";
    std::fs::write(directory.path().join("FORMAT"), newer).unwrap();
    let told = serve();
    assert!(told.contains("format version 7") && told.contains("versions up to 1"), "{told}");
    for command in ["verify", "inspect", "repair"] {
        let told = output(Command::new(TRIPLINE).arg(command).arg(directory.path()), "");
        assert!(failed(&told, 1).contains("format version 7"));
    }
    assert_eq!(std::fs::read_to_string(directory.path().join("FORMAT")).unwrap(), newer);
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.iter().all(|name| name == "FORMAT" || name == "LOCK"), "{names:?}");
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

fn find_logs(folder: &Path, logs: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_logs(&path, logs);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            logs.push(path);
        }
    }
}

#[test]
fn apply_makes_what_the_examples_say_and_says_what_changed() {
    let broker = Broker::start();
    for example in ["hello", "flights"] {
        let file = format!("{}/examples/{example}/app.yaml", env!("CARGO_MANIFEST_DIR"));
        let dry = broker.good(&["apply", "-f", &file, "--dry-run"]);
        assert_eq!(dry.matches("created (dry run)\n").count(), 3, "{dry}");
        let applied = broker.good(&["apply", "-f", &file]);
        assert_eq!(applied.matches(": created").count(), 3, "{applied}");
        let again = broker.good(&["apply", "-f", &file]);
        assert_eq!(again.matches(": unchanged").count(), 3, "{again}");
    }
    let exported = broker.good(&["export"]);
    broker.write("all.yaml", &exported);
    let unchanged = broker.good(&["apply", "-f", "all.yaml"]);
    assert_eq!(unchanged.matches(": unchanged").count(), exported.matches("---").count() + 1, "{unchanged}");
    let flights = format!("{}/examples/flights/flights.ndjson", env!("CARGO_MANIFEST_DIR"));
    broker.good(&["produce", "flights", "--file", &flights]);
    let mut follow = Command::new(TRIPLINE)
        .args(["logs", "-f", "late", "-n", "1000", "--json"])
        .env("TRIPLINE_SERVER", &broker.served.http)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut late = 0;
    for line in lines {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = line["text"].as_str().unwrap().trim_start_matches("[INFO] ").to_owned();
        // Other lines tell of the two that it refuses.
        late += text.split(' ').next().unwrap().parse::<u64>().unwrap_or(0);
        if late == 158 {
            break;
        }
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert!(broker.good(&["trigger", "list"]).contains("late-flights  Running"));
}

#[test]
fn an_export_leaves_out_what_the_broker_makes_for_the_url_of_a_trigger() {
    let broker = Broker::start();
    broker.good(&["topic", "create", "in"]);
    broker
        .write("direct.yaml", "trigger: t\ninput: { topic: in }\nfunction: { http: { url: 'http://127.0.0.1:9/' } }\n");
    broker.good(&["apply", "-f", "direct.yaml"]);
    assert!(broker.good(&["function", "list"]).contains("__trigger.t"));
    let exported = broker.good(&["export"]);
    assert!(exported.contains("trigger: \"t\"") && !exported.contains("__trigger"), "{exported}");
    assert!(!broker.good(&["get", "functions"]).contains("__trigger"));
    broker.write("all.yaml", &exported);
    assert_eq!(broker.good(&["apply", "-f", "all.yaml"]).matches(": unchanged").count(), 2);
    broker.write("own.yaml", "function: __trigger.t\nruntime: http\nurl: 'http://127.0.0.1:9/'\n");
    let refused = failed(&broker.run(&["apply", "-f", "own.yaml"]), 1);
    let reason = "function: found \"__trigger.t\", allowed: a name that does not begin with __";
    assert!(refused.contains(reason), "{refused}");
}

/// Times, durations and the source, which differ from run to run, made the same.
fn same(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let (word, end) = word.strip_suffix('\n').map_or((word, ""), |word| (word, "\n"));
        let (word, comma) = word.strip_suffix(',').map_or((word, ""), |word| (word, ","));
        let is_time = word.contains(':') && word.ends_with('Z');
        let is_number = word.parse::<f64>().is_ok() && word.contains('.');
        let shown = match word {
            _ if is_time => "TIME",
            _ if is_number => "N",
            _ if word.starts_with('/') => "/SOURCE",
            _ => word,
        };
        format!("{shown}{comma}{end}")
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_guide_to_tracing_shows_what_the_commands_print() {
    let guide = include_str!("../docs/tracing.md");
    let blocks: Vec<(&str, &str)> =
        guide.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect();
    let broker = Broker::start();
    for (kind, text) in &blocks {
        if let Some((_, name)) = kind.split_once(' ').filter(|(language, _)| *language != "text") {
            broker.write(name, text);
        }
    }
    broker.good(&["apply", "-f", "app.yaml"]);
    broker.good(&["produce", "flights", "--file", "events"]);
    // Told from outside, there is nothing to wait for but the story itself.
    let given_up = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !broker.good(&["trace", "flights/0/1"]).contains("dead letter flights.dlq/0/0") {
        assert!(std::time::Instant::now() < given_up, "{}", broker.good(&["trace", "flights/0/1"]));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut shown = 0;
    for (kind, expected) in blocks {
        let Some(command) = kind.strip_prefix("text tripline ") else { continue };
        let printed = broker.good(&command.split(' ').collect::<Vec<_>>());
        let lines = |text: &str| text.lines().map(same).collect::<Vec<_>>();
        assert_eq!(lines(&printed), lines(expected), "{printed}");
        shown += 1;
    }
    assert_eq!(shown, 2);
    let json: serde_json::Value =
        serde_json::from_str(&broker.good(&["trace", "0-1", "--topic", "flights", "--json"])).unwrap();
    assert_eq!((&json["triggers"][0]["outcome"], &json["event"]["offset"]), (&"dead-lettered".into(), &1.into()));
    let nobody = failed(&broker.run(&["trace", "nobody"]), 1);
    assert!(nobody.contains("no event with id \"nobody\" among"), "{nobody}");
}

#[test]
fn explain_tells_what_turned_a_record_or_an_event_away() {
    let broker = Broker::start();
    let filter = "filter: { data: { delay: [ { numeric: [ \">\", 60 ] } ] }, $or: [ { key: [ a ] }, { key: [ b ] } ] }";
    let inline = "function: { http: { url: \"http://127.0.0.1:1/\" } }";
    broker.write("app.yaml", &format!("topic: t\n---\ntrigger: late\ninput: {{ topic: t }}\n{inline}\n{filter}\n"));
    broker.good(&["apply", "-f", "app.yaml"]);
    good(broker.run_with(&["produce", "t", "-k", "a"], "{\"delay\": 5}\n{\"delay\": 95}"));
    assert_eq!(broker.good(&["trigger", "explain", "late", "--offset", "1"]), "trigger late takes it\n");
    let away = broker.good(&["trigger", "explain", "late", "--partition", "0", "--offset", "0"]);
    assert!(away.starts_with("trigger late turns it away:\nCHOICE OF $OR  PATH        EXPECTED"), "{away}");
    assert!(away.contains("0              data.delay  [{\"numeric\":[\">\",60]}]  5\n"), "{away}");
    broker.write("event.json", "{\"data\": {\"delay\": 61}, \"key\": \"b\"}");
    assert_eq!(broker.good(&["trigger", "explain", "late", "--event", "event.json"]), "trigger late takes it\n");
    let piped = good(broker.run_with(&["trigger", "explain", "late", "--event", "-", "--json"], "{\"key\": \"b\"}"));
    let piped: serde_json::Value = serde_json::from_str(&piped).unwrap();
    assert_eq!((&piped["matches"], &piped["explain"][1]["path"]), (&false.into(), &"data.delay".into()), "{piped}");
    failed(&broker.run(&["trigger", "explain", "late"]), 2);
    failed(&broker.run(&["trigger", "explain", "late", "--offset", "1", "--event", "event.json"]), 2);
    let no_json = failed(&broker.run_with(&["trigger", "explain", "late", "--event", "-"], "{"), 1);
    assert!(no_json.contains("standard input: the event is not JSON"), "{no_json}");
    let missing = failed(&broker.run(&["trigger", "explain", "late", "--event", "none.json"]), 1);
    assert!(missing.contains("none.json: No such file"), "{missing}");
    let behind = failed(&broker.run(&["trigger", "explain", "late", "--offset", "9"]), 1);
    assert!(behind.contains('9') && behind.contains("0"), "{behind}");
}

#[test]
fn functions_that_cannot_run_are_told_with_their_reason() {
    let broker = Broker::start();
    broker.write("app.yaml", FUNCTION);
    let missing = failed(&broker.run(&["apply", "-f", "app.yaml"]), 1);
    assert!(missing.contains("app.yaml: function f: code") && missing.contains("No such file"), "{missing}");
    broker.write("f.py", "def handler(event, context)\n    pass\n");
    let syntax = failed(&broker.run(&["apply", "-f", "app.yaml"]), 1);
    assert!(syntax.contains("does not run") && syntax.contains("SyntaxError"), "{syntax}");
    broker.write("f.py", "def other(event, context):\n    pass\n");
    let handler = failed(&broker.run(&["apply", "-f", "app.yaml"]), 1);
    assert!(handler.contains("does not run") && handler.contains("handler"), "{handler}");
    broker.write("f.py", "def handler(event, context):\n    return object()\n");
    broker.good(&["apply", "-f", "app.yaml"]);
    let output = failed(&broker.run(&["function", "invoke", "f", "--data", "1"]), 1);
    assert!(output.contains("JSON"), "{output}");
}

/// Answers every request with its own body.
fn echo(listener: std::net::TcpListener) {
    for stream in listener.incoming() {
        let mut reader = BufReader::new(stream.unwrap());
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line).unwrap() > 2 {
            let header = line.to_ascii_lowercase();
            length = header.strip_prefix("content-length:").map_or(length, |found| found.trim().parse().unwrap());
            line.clear();
        }
        let mut body = vec![0; length];
        std::io::Read::read_exact(&mut reader, &mut body).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        reader.get_mut().write_all(&[head.as_bytes(), &body].concat()).unwrap();
    }
}

#[test]
fn functions_reach_the_private_addresses_that_egress_allow_names_and_no_others() {
    // With a listener that others reach, this machine is as private to functions as any other network.
    let start = |more: &[&str]| {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(TRIPLINE);
        command.args(["serve", "--kafka", "0.0.0.0:0", "--insecure", "--http", "127.0.0.1:0", "--data"]);
        command.arg(directory.path().join("data")).current_dir(directory.path()).args(more);
        Broker { served: Served::start(&mut command), directory }
    };
    let target = std::net::TcpListener::bind("127.0.0.2:0").unwrap();
    let port = target.local_addr().unwrap().port();
    std::thread::spawn(move || echo(target));
    let apply = |broker: &Broker, host: &str| {
        broker.write("h.yaml", &format!("function: h\nruntime: http\nurl: http://{host}:{port}/\n"));
        broker.run(&["apply", "-f", "h.yaml"])
    };
    let broker = start(&["--egress-allow", "127.0.0.2,10.1.0.0/16", "--egress-allow", "fd00::/8"]);
    for (host, kind) in [("127.0.0.3", "loopback"), ("10.2.0.1", "private"), ("169.254.169.254", "metadata")] {
        let refused = failed(&apply(&broker, host), 1);
        assert!(refused.contains(&format!("{host}:{port} is a")) && refused.contains(kind), "{refused}");
        assert!(refused.contains("by `--egress-allow"), "{refused}");
    }
    for host in ["10.1.2.3", "[fd00::1]", "127.0.0.2"] {
        good(apply(&broker, host));
    }
    let answer = broker.good(&["function", "invoke", "h", "--data", "[{\"a\": 1}]"]);
    assert_eq!(answer.trim(), "[{\"a\": 1}]");
    let without = failed(&apply(&start(&[]), "127.0.0.2"), 1);
    assert!(without.contains("loopback"), "{without}");
}

#[test]
fn a_missing_interpreter_is_named() {
    let broker = Broker::start_with(|command| {
        command.args(["--python3", "/nowhere/python3"]);
    });
    broker.write("app.yaml", FUNCTION);
    broker.write("f.py", "def handler(event, context):\n    pass\n");
    let missing = failed(&broker.run(&["apply", "-f", "app.yaml"]), 1);
    assert!(missing.contains("/nowhere/python3"), "{missing}");
}

#[test]
fn wrong_files_name_the_place_what_is_allowed_and_the_nearest_name() {
    let broker = Broker::start();
    broker.write(
        "bad.yaml",
        "topic: t\npartition: 3\n---\ntrigger: g\ninput: { topic: t }\nfunction: f\nwindow: { count: 0 }\n",
    );
    let bad = failed(&broker.run(&["apply", "-f", "bad.yaml"]), 1);
    assert!(bad.contains("bad.yaml: document 1 (line 1): topic.partition"), "{bad}");
    assert!(bad.contains("did you mean `partitions`?"), "{bad}");
    assert!(bad.contains("trigger.window.count: found 0, allowed: a whole number from 1 to 10000"), "{bad}");
    broker.write("broken.yaml", "topic: [\n");
    let broken = failed(&broker.run(&["apply", "-f", "broken.yaml"]), 1);
    assert!(broken.starts_with("error: broken.yaml: line ") && broken.matches("error").count() == 1, "{broken}");
    assert!(failed(&broker.run(&["apply", "-f", "none.yaml"]), 1).contains("none.yaml: No such file"));
    broker.write("alone.yaml", "trigger: g\ninput: { topic: t }\nfunction: nobody\n");
    let alone = failed(&broker.run(&["apply", "-f", "alone.yaml"]), 1);
    assert!(alone.contains("function nobody does not exist"), "{alone}");
}

#[test]
fn wrong_use_ends_with_2_and_failure_with_1() {
    let run = |args: &[&str]| output(Command::new(TRIPLINE).args(args), "");
    failed(&run(&["topic", "crate", "t"]), 2);
    failed(&run(&["--server", "ftp://x", "topic", "list"]), 2);
    let nobody = failed(&run(&["--server", "http://127.0.0.1:1", "topic", "list"]), 1);
    assert!(nobody.contains("start one with `tripline`"), "{nobody}");
    let open = failed(&run(&["serve", "--http", "0.0.0.0:0", "--ephemeral"]), 1);
    assert!(open.contains("--insecure"), "{open}");
    assert!(good(run(&["--version"])).starts_with("tripline 0.1.0 ("));
    for shell in ["bash", "zsh", "fish"] {
        assert!(good(run(&["completions", shell])).contains("tripline"));
    }
    let broker = Broker::start();
    let unknown = broker.run(&["topic", "describe", "nope", "--json"]);
    assert_eq!(unknown.status.code(), Some(1));
    let error: serde_json::Value = serde_json::from_slice(&unknown.stderr).unwrap();
    assert_eq!(error["error"]["code"], "unknown-topic");
}

#[test]
fn a_port_in_use_names_its_holder_and_the_flag() {
    let broker = Broker::start();
    let address = broker.served.http.strip_prefix("http://").unwrap();
    let second =
        output(Command::new(TRIPLINE).args(["serve", "--ephemeral", "--kafka", "127.0.0.1:0", "--http", address]), "");
    let text = failed(&second, 1);
    assert!(text.contains("--http ADDR") && text.contains(&format!("process {}", broker.served.child.id())), "{text}");
}

#[test]
fn settings_come_from_the_file_the_environment_and_flags_in_this_order() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("tripline.toml");
    std::fs::write(&file, "http = \"127.0.0.1:0\"\nkafka = \"127.0.0.1:0\"\ndta = \"x\"\n").unwrap();
    let wrong = output(Command::new(TRIPLINE).arg("serve").current_dir(&directory), "");
    assert!(failed(&wrong, 2).contains("did you mean `data`?"));
}

#[test]
fn a_broker_that_nobody_reads_any_more_stops_gracefully_as_well() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = Command::new(TRIPLINE);
    command.args(["serve", "--ephemeral", "--kafka", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command.env("TMPDIR", temporary.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The pipe goes with the lines.
    assert!(lines.map_while(Result::ok).any(|line| line.starts_with("ready.")));
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    // A terminal that is closed says this; it ends nothing.
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "the data of an ephemeral broker go with it");
}

#[test]
fn the_environment_counts_without_a_command_and_flags_win_over_it() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("named");
    let tripline = || {
        let mut command = Command::new(TRIPLINE);
        command.current_dir(directory.path()).env("TRIPLINE_DATA", &data);
        command.env("TRIPLINE_KAFKA", "127.0.0.1:0").env("TRIPLINE_HTTP", "127.0.0.1:0");
        command
    };
    drop(Served::start(&mut tripline()));
    assert!(data.join("FORMAT").exists() && !directory.path().join("tripline-data").exists());
    std::fs::remove_dir_all(&data).unwrap();
    drop(Served::start(tripline().args(["serve", "--ephemeral"])));
    assert!(!data.exists());
    let both = failed(&output(tripline().args(["serve", "--ephemeral", "--data", "d"]), ""), 2);
    assert!(both.contains("'--data <DIR>' cannot be used with '--ephemeral'"), "{both}");
    // What the file allows, the environment may forbid.
    std::fs::write(directory.path().join("tripline.toml"), "insecure = true\n").unwrap();
    let mut refused = tripline();
    refused.env("TRIPLINE_HTTP", "0.0.0.0:0").env("TRIPLINE_INSECURE", "false");
    let refused = failed(&output(&mut refused, ""), 1);
    assert!(refused.contains("0.0.0.0"), "{refused}");
}

#[test]
fn what_records_and_functions_say_steers_no_terminal() {
    let broker = Broker::start();
    broker.write("f.py", "def handler(event, context):\n    raise ValueError('\\x1b]0;title\\x07')\n");
    broker.write("f.yaml", FUNCTION);
    broker.good(&["apply", "-f", "f.yaml"]);
    let said = failed(&broker.run_with(&["function", "invoke", "f"], "1"), 1);
    assert!(said.contains("?]0;title?"), "{said:?}");
}

#[test]
fn definitions_are_exported_as_json_for_programs() {
    let broker = Broker::start();
    good(broker.run_with(&["produce", "t"], "x"));
    let exported: serde_json::Value = serde_json::from_str(&broker.good(&["export", "--json"])).unwrap();
    assert_eq!(exported["definitions"][0]["topic"], "t", "{exported:#}");
}

#[test]
fn a_signal_stops_the_broker_gracefully() {
    let mut broker = Broker::start();
    good(broker.run_with(&["produce", "t"], "x"));
    let pid = rustix::process::Pid::from_raw(broker.served.child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = broker.served.child.wait().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn the_demo_shows_two_windows_and_the_late_flights() {
    let demo = good(output(Command::new(TRIPLINE).arg("demo"), ""));
    assert!(demo.contains("2 record(s)") && demo.contains("1 record(s)"), "{demo}");
    let invocations = demo.lines().filter(|line| line.contains("late flights, the worst")).count();
    assert!(demo.contains(&format!("158 late flights delivered in {invocations} invocations")), "{demo}");
    assert!(demo.contains("509 minutes late: ") && demo.contains(" after 3 attempts"), "{demo}");
}

/// Waits until the command prints what is wanted, and answers all of it.
fn until(broker: &Broker, args: &[&str], wanted: &str) -> String {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let text = broker.good(args);
        if text.contains(wanted) {
            return text;
        }
        assert!(std::time::Instant::now() < deadline, "{wanted:?} in {text}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn dead_letters_are_redriven_and_ranges_replayed_from_the_command_line() {
    let broker = Broker::start();
    let function = |code: &str| {
        broker.write("f.py", &format!("import json\ndef handler(event, context):\n{code}"));
        broker.good(&["apply", "-f", "app.yaml"]);
    };
    broker.write(
        "app.yaml",
        "topic: t\n---\nfunction: f\nruntime: python3\ncode: f.py\nhandler: f.handler\n---\ntrigger: x\n\
         input: { topic: t, start: earliest }\nfilter: { data: { n: [ { numeric: [ \">\", 1 ] } ] } }\nfunction: f\n\
         window: { count: 1 }\nretry: { initial: 1ms, max_attempts: 1 }\ndead_letter: { topic: t.dlq }\n",
    );
    function("    raise ValueError('no')\n");
    good(broker.run_with(&["produce", "t"], "{\"n\": 1}\n{\"n\": 2}\n{\"n\": 3}\n"));
    let listed = until(&broker, &["dlq", "list", "x"], "t.dlq/0/1");
    assert_eq!(listed.matches("failed ValueError  ValueError: no\n").count(), 2, "{listed}");
    let tried = broker.good(&["trigger", "dry-run", "x"]);
    assert!(tried.starts_with("2 event(s) match, 1 do not\n"), "{tried}");
    assert!(tried.contains("1            data.n  [{\"numeric\":[\">\",1]}]"), "{tried}");
    let other = broker.good(&["trigger", "dry-run", "x", "--pattern", r#"{"data": {"n": [1]}}"#, "--json"]);
    let other: serde_json::Value = serde_json::from_str(&other).unwrap();
    assert_eq!((&other["matched"], &other["matched_samples"][0]["offset"]), (&1.into(), &0.into()));
    let preview = broker.good(&["dlq", "redrive", "x", "--dry-run", "--filter", r#"{"data": {"n": [3]}}"#]);
    assert_eq!(preview, "1 letter(s) of t.dlq would be redriven\n1 that the filter turns away\nt.dlq/0/1\n");
    function("    return None\n");
    let one = broker.good(&["dlq", "redrive", "x", "--max", "1", "--wait"]);
    assert!(one.starts_with("redrive ") && one.contains(": Done, delivered 1"), "{one}");
    assert!(!broker.good(&["dlq", "list", "x"]).contains("t.dlq/0/0"));
    assert!(broker.good(&["dlq", "list", "x", "--all"]).contains("t.dlq/0/0"));
    assert!(broker.good(&["dlq", "list"]).contains("t.dlq/0/1"));
    let gone = broker.good(&["dlq", "discard", "x", "--to", "latest"]);
    assert_eq!(gone, "2 letter(s) of trigger x discarded\npartition 0 below offset 2: deleted\n");
    let replay = broker.good(&["trigger", "replay", "x", "--from", "1", "--to", "3", "--rate", "1/s"]);
    assert!(replay.contains("of trigger x started: 2 record(s) of t to look at"), "{replay}");
    let cancelled = broker.good(&["trigger", "cancel", "x"]);
    assert!(cancelled.contains(": Cancelled: cancelled by a person; it ends when someone resumes it"), "{cancelled}");
    let runs = broker.good(&["trigger", "runs", "x"]);
    let id = runs.lines().find(|line| line.contains("Cancelled")).unwrap().split(' ').next().unwrap();
    broker.good(&["trigger", "resume", "x", &id[..13]]);
    until(&broker, &["trigger", "describe", "x"], &format!("replay {id}: Done"));
    assert!(broker.good(&["trigger", "describe", "x"]).contains("order: partition\n"));
    assert!(broker.good(&["trigger", "list"]).contains("partition  0"));
    assert_eq!(broker.good(&["trigger", "skip", "x"]), "0 record(s) given up\n");
    let told = |args: &[&str], code: i32| failed(&broker.run(args), code);
    assert!(told(&["trigger", "reset", "x", "--to", "earliest"], 1).contains("pause it first"));
    broker.good(&["trigger", "pause", "x"]);
    assert_eq!(broker.good(&["trigger", "reset", "x", "--to", "1"]), "TOPIC  PARTITION  OFFSET\nt      0          1\n");
    assert!(told(&["trigger", "reset", "x", "--to", "soon"], 1).contains("found \"soon\", allowed: earliest, latest"));
    assert!(told(&["trigger", "cancel", "x"], 1).contains("has no run to cancel"));
    assert!(told(&["trigger", "cancel", "x", "zzz"], 1).contains("whose id begins with \"zzz\""));
    assert!(told(&["trigger", "replay", "x", "--rate", "fast"], 2).contains("--rate: found \"fast\""));
    assert!(told(&["trigger", "dry-run", "x", "--pattern", "none.json"], 1).contains("none.json: No such file"));
    assert!(told(&["dlq", "redrive", "x", "--filter", "{\"a\": 1}"], 1).starts_with("error: a: "));
    assert!(told(&["dlq", "redrive", "nobody"], 1).contains("trigger nobody does not exist"));
}

#[test]
fn what_does_not_reach_the_broker_says_how_much_did() {
    let broker = Broker::start();
    let many = "{\"value\": 1}\n".repeat(1_000);
    let told = |lines: &str, expected: &str| {
        let said = failed(&broker.run_with(&["produce", "t", "--jsonl"], lines), 1);
        assert!(said.contains(expected), "{said}");
    };
    told(&format!("{many}{{\n"), "; 1000 record(s) before it are in t");
    told("{\"value\": 1}\n{\"value_base64\": \"%\"}\n", "error: line 2: value_base64: ");
    told(&format!("{many}{{\"key\": 3}}\n"), "error: line 1001: key: ");
    assert!(broker.good(&["topic", "list"]).contains("t      1           2000"));
    broker.write("empty.yaml", "# nothing yet\n");
    let nothing = failed(&broker.run(&["apply", "-f", "empty.yaml"]), 1);
    assert_eq!(nothing, "error: no definitions in empty.yaml\n");
    broker.write("start.yaml", "trigger: g\ninput: { topic: t, start: yesterday }\nfunction: f\n");
    let start = failed(&broker.run(&["apply", "-f", "start.yaml"]), 1);
    assert!(
        start.contains("trigger.input.start: found \"yesterday\", allowed: earliest, latest, {offset: N}"),
        "{start}"
    );
    assert!(failed(&broker.run(&["logs", "nope"]), 1).contains("nope"));
}

#[test]
fn a_window_that_is_stuck_says_which_command_ends_that_and_errors_are_told_in_a_line() {
    let broker = Broker::start();
    broker.write(
        "app.yaml",
        "function: f\nruntime: python3\ncode: f.py\nhandler: f.handler\n---\ntrigger: x\n\
         input: { topic: t, start: earliest }\nfunction: f\nretry: { initial: 1ms, max_attempts: 1 }\n\
         errors_tolerance: none\n",
    );
    broker.write("f.py", "def handler(event, context):\n    raise ValueError('no')\n");
    broker.good(&["apply", "-f", "app.yaml"]);
    good(broker.run_with(&["produce", "t"], "1"));
    let stuck = until(&broker, &["trigger", "describe", "x"], "Blocked");
    assert!(stuck.contains("(`tripline trigger skip x`)"), "{stuck}");
    assert!(stuck.lines().any(|line| line.ends_with("  ValueError: no")), "{stuck}");
    let invoked = failed(&broker.run(&["function", "invoke", "f", "--data", "1"]), 1);
    assert!(invoked.ends_with("ValueError: no (--verbose shows the traceback)\n"), "{invoked}");
    assert_eq!(invoked.lines().count(), 1, "{invoked}");
    let whole = failed(&broker.run(&["function", "invoke", "f", "--data", "1", "--verbose"]), 1);
    assert!(whole.contains("Traceback"), "{whole}");
    let exported = broker.good(&["export"]);
    assert!(exported.starts_with("# The code of functions is not in here."), "{exported}");
}

#[test]
fn what_the_broker_logs_has_colours_on_a_terminal_only() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let broker = Broker::start_with(|command| {
        command.arg("--verbose").stderr(file.reopen().unwrap());
    });
    let mut garbage = std::net::TcpStream::connect(broker.served.http.strip_prefix("http://").unwrap()).unwrap();
    garbage.write_all(b"\0\r\n\r\n").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let logged = loop {
        let logged = std::fs::read_to_string(file.path()).unwrap();
        if logged.ends_with('\n') {
            break logged;
        }
        assert!(std::time::Instant::now() < deadline, "{logged:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert!(logged.contains("connection ended early") && !logged.contains('\u{1b}'), "{logged:?}");
}

#[test]
fn apply_does_all_or_nothing_and_says_what_changes() {
    let broker = Broker::start();
    let app = |partitions: u32, count: u32, function: &str| {
        broker.write(
            "app.yaml",
            &format!(
                "topic: t\npartitions: {partitions}\n---\n{FUNCTION}---\ntrigger: g\ninput: {{ topic: t }}\n\
                 function: {function}\nwindow: {{ count: {count} }}\ndead_letter: {{ topic: t.dlq }}\n"
            ),
        );
    };
    let apply = |args: &[&str]| broker.run(&[&["apply", "-f", "app.yaml"], args].concat());
    broker.write("f.py", "def handler(event, context):\n    pass\n");
    app(1, 2, "nobody");
    for args in [&[][..], &["--dry-run"]] {
        let refused = failed(&apply(args), 1);
        assert!(refused.contains("app.yaml: trigger g: trigger.function: function nobody does not exist"), "{refused}");
        assert!(refused.ends_with("\nnothing was applied\n"), "{refused}");
        assert!(!broker.good(&["topic", "list"]).contains("t "), "{args:?}");
    }
    app(1, 2, "f");
    assert_eq!(good(apply(&["--dry-run"])).matches(": created (dry run)\n").count(), 3);
    assert_eq!(broker.good(&["get", "--json"]), "[]\n", "a trial leaves nothing behind");
    assert_eq!(good(apply(&[])).matches(": created\n").count(), 3);
    assert_eq!(good(apply(&["--dry-run"])).matches(": unchanged (dry run)\n").count(), 3);
    app(1, 5, "f");
    broker.write("f.py", "def handler(event, context):\n    return 1\n");
    let code = "function f: changed (dry run)\n  code: version 1 -> new code\n";
    let window = "trigger g: changed (dry run)\n  window.count: 2 -> 5\n";
    assert_eq!(good(apply(&["--dry-run"])), format!("topic t: unchanged (dry run)\n{code}{window}"));
    assert_eq!(
        good(apply(&["--dry-run"])),
        format!("topic t: unchanged (dry run)\n{code}{window}"),
        "nothing was done"
    );
    let done = format!("topic t: unchanged\n{code}{window}").replace(" (dry run)", "");
    assert_eq!(good(apply(&[])), done);
    app(3, 5, "f");
    broker.write("two.yaml", "trigger: h\ninput: { topic: t }\nfunction: nobody\n");
    let both = failed(&apply(&["-f", "two.yaml", "--dry-run"]), 1);
    assert!(both.contains("topic t has 1 partitions, found 3") && both.contains("function nobody"), "{both}");
    broker.write("raw.yaml", &format!("{FUNCTION}payload: raw\n---\ntrigger: r\ninput: {{ topic: t }}\nfunction: f\n"));
    let unfit = failed(&broker.run(&["apply", "-f", "raw.yaml", "--dry-run"]), 1);
    assert!(unfit.contains("raw.yaml: trigger r: trigger.window.count: found 100, allowed: 1"), "{unfit}");
}

#[test]
fn apply_sees_what_only_the_files_together_say() {
    let broker = Broker::start();
    broker.write("a.yaml", "topic: t\n");
    broker.write("b.yaml", "topic: t\npartitions: 3\n");
    let twice = failed(&broker.run(&["apply", "-f", "a.yaml", "-f", "b.yaml"]), 1);
    assert!(twice.contains("b.yaml: topic t: it is defined in a.yaml already"), "{twice}");
    broker.write("c.yaml", "topic: c\nconfig: { cleanup.policy: compact }\n---\nschedule: s\nrate: 1h\ntopic: c\n");
    let keyless = failed(&broker.run(&["apply", "-f", "c.yaml"]), 1);
    assert!(keyless.contains("c.yaml: schedule s: ") && keyless.contains("key"), "{keyless}");
    assert_eq!(broker.good(&["get", "--json"]), "[]\n", "nothing was applied");
    broker.write("d.yaml", "topic: d\n---\ntrigger: g\ninput: { topic: d }\nfunction: nobody\n");
    let told = broker.run(&["apply", "-f", "d.yaml", "--json"]);
    let told = String::from_utf8(told.stderr).unwrap();
    let detail = "d.yaml: trigger g: trigger.function: function nobody does not exist";
    assert!(told.contains(detail) && told.contains("nothing was applied"), "programs are told where, too: {told}");
}

/// Waits until an action's text is what a guide shows, told from outside.
fn until_same(broker: &Broker, command: &str, expected: &str) {
    let lines = |text: &str| text.lines().map(same).collect::<Vec<_>>();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let printed = String::from_utf8(broker.run(&command.split(' ').collect::<Vec<_>>()).stdout).unwrap();
        if lines(&printed) == lines(expected) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{command}: {printed}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn the_guide_to_functions_is_what_happens() {
    let guide = include_str!("../docs/functions.md");
    let blocks: Vec<(&str, &str)> =
        guide.split("```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap()).collect();
    let broker = Broker::start();
    let mut shown = 0;
    for (kind, text) in &blocks {
        match kind.split_once(' ') {
            None if *kind == "sh" => text.lines().for_each(|line| {
                broker.good(&line.strip_prefix("tripline ").unwrap().split(' ').collect::<Vec<_>>());
            }),
            Some(("text", command)) => {
                shown += 1;
                match command.strip_prefix("failed tripline ") {
                    Some(command) => {
                        assert_eq!(failed(&broker.run(&command.split(' ').collect::<Vec<_>>()), 1), **text);
                    }
                    None => until_same(&broker, command.strip_prefix("tripline ").unwrap(), text),
                }
            }
            // The event that the guide shows has the names that a handler finds.
            Some(("json", "event")) => {
                broker.write(
                    "names.py",
                    "import json\ndef handler(event, context):\n    return [{'names': sorted(json.loads(event)[0])}]\n",
                );
                broker.write("names.yaml", "function: names\nruntime: python3\ncode: names.py\nhandler: names.handler\n---\ntrigger: names\ninput: { topic: orders, start: earliest }\nfunction: names\ndestinations: { results: { topic: named } }\n");
                broker.good(&["apply", "-f", "names.yaml"]);
                let event: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).unwrap();
                let mut names: Vec<&String> = event.keys().collect();
                names.sort();
                until(&broker, &["consume", "named"], &format!("{}\n", serde_json::json!({ "names": names })));
            }
            Some((_, name)) => broker.write(name, text),
            None => panic!("what is {kind}?"),
        }
    }
    assert_eq!(shown, 6);
    broker.good(&["apply", "-f", "remote.yaml", "-f", "direct.yaml"]);
}
