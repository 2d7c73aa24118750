//! A broken function is told where the user looks, in words that name what is wrong.

use crate::harness::{Broker, until};

/// Applies a function with this code and handler; answers whether it went well, and what was printed as an error.
fn apply(broker: &Broker, code: Option<&str>, handler: &str) -> (bool, String) {
    if let Some(code) = code {
        broker.file("f.py", code);
    }
    let file = broker.file("app.yaml", &format!("function: f\nruntime: python3\ncode: f.py\nhandler: {handler}\n"));
    let output = broker.command(&["apply", "-f", &file.display().to_string()]);
    let complained = String::from_utf8(output.stderr).unwrap();
    println!("{}{complained}", String::from_utf8(output.stdout).unwrap());
    (output.status.success(), complained)
}

/// What must be said, and that the command failed.
fn assert_refused((succeeded, complained): (bool, String), parts: &[&str]) {
    assert!(!succeeded, "{complained}");
    for part in parts {
        assert!(complained.contains(part), "no {part:?} in: {complained}");
    }
}

#[test]
fn a_syntax_error_is_told_with_file_and_line_when_it_is_applied() {
    let broker = Broker::start();
    let refused = apply(&broker, Some("\ndef handler(event, context)\n    return 1\n"), "f.handler");
    assert_refused(refused, &["app.yaml: function f does not run", "f.py\", line 2", "SyntaxError"]);
    let described = broker.tripline(&["function", "describe", "f"]);
    assert!(described.contains("Failed") && described.contains("SyntaxError"), "{described}");
}

#[test]
fn code_that_is_not_there_is_told_with_its_path_and_nothing_is_deployed() {
    let broker = Broker::start();
    let refused = apply(&broker, None, "f.handler");
    assert_refused(refused, &["app.yaml: function f: code", "f.py", "No such file", "relative to the file"]);
    assert!(!broker.command(&["function", "describe", "f"]).status.success());
}

#[test]
fn a_handler_that_is_not_in_the_code_is_told_with_what_is_there() {
    let broker = Broker::start();
    let code = "def handle(event, context):\n    return 1\n";
    assert_refused(
        apply(&broker, Some(code), "f.handler"),
        &["the handler is f.handler, but module f has no function handler; it has: handle"],
    );
    // With the right name it is well again.
    assert!(apply(&broker, Some(code), "f.handle").0);
    assert_eq!(broker.tripline(&["function", "invoke", "f", "--data", "[]"]).trim(), "1");
}

#[test]
fn a_result_that_is_not_json_is_told_by_an_invocation_and_by_the_trigger() {
    const SAID: &str = "the handler returned a set that is not JSON";
    let broker = Broker::start();
    assert!(apply(&broker, Some("def handler(event, context):\n    return {1, 2}\n"), "f.handler").0);
    let invoked = broker.command(&["function", "invoke", "f", "--data", "[]"]);
    let complained = String::from_utf8(invoked.stderr).unwrap();
    assert!(!invoked.status.success() && complained.contains(SAID), "{complained}");

    broker.apply(
        "topic: t\n---\ntrigger: t\ninput: { topic: t, start: earliest }\nfunction: f\nretry: { initial: 60s }\n",
    );
    let file = broker.file("records", "hello\n").display().to_string();
    broker.tripline(&["produce", "t", "--file", &file]);
    until("last error", || {
        let described = broker.tripline(&["trigger", "describe", "t"]);
        if described.contains(SAID) { Ok(()) } else { Err(described) }
    });
}

#[test]
fn a_missing_interpreter_is_told_with_what_was_looked_for_and_nothing_is_deployed() {
    let broker = Broker::start_with(&["--python3", "/nowhere/python3"]);
    let refused = apply(&broker, Some("def handler(event, context):\n    return 1\n"), "f.handler");
    assert_refused(refused, &["/nowhere/python3", "python3"]);
    assert!(!broker.command(&["function", "describe", "f"]).status.success());
}
