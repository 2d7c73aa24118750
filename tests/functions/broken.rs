//! Code that cannot run: said at once, in words that help, and never started over and over.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tripline::function::{
    DeployError, Deployed, ErrorClass, FunctionService, FunctionState, InvocationError, Launcher, Runtime,
};

use crate::support::{NAME, Stage, options, python, reference, spec, with_initializer};

/// Deploys `source`, which must fail; checks that invocations fail alike, without another start.
async fn failure(runtime: Runtime, source: &str) -> InvocationError {
    let stage = Stage::with(|options| options.start_timeout = Duration::from_secs(2));
    let mut spec = spec();
    (spec.runtime, spec.instances.min) = (runtime, 1);
    let Deployed { version: 1, changed: true, state: FunctionState::Failed(error) } = stage.deploy(spec, source).await
    else {
        panic!("the code cannot run")
    };
    assert_eq!(error.class, ErrorClass::BrokenCode);
    assert_eq!(stage.error("").await, error);
    assert_eq!(stage.error("").await, error);
    let report = stage.service.describe(NAME).unwrap();
    assert_eq!(report.state, FunctionState::Failed(error.clone()));
    assert_eq!(report.stats.starts_failed, 1, "the failure is remembered");
    error
}

#[tokio::test]
async fn a_syntax_error_shows_its_line() {
    let error = failure(python("handler"), "def handler(event, context):\n    return (1\n").await;
    assert_eq!(error.code, "SyntaxError");
    assert!(
        error.message.contains("notify.py\", line 2") && error.message.contains("'(' was never closed"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn an_error_while_importing_shows_where() {
    let error = failure(python("handler"), "import json\njson.nothing\n").await;
    assert_eq!(error.code, "AttributeError");
    assert!(error.message.contains("notify.py\", line 2, in <module>"), "{}", error.message);
    assert!(!error.message.contains("importlib"), "{}", error.message);
    let error = failure(python("handler"), "import surely_not_installed\n").await;
    assert_eq!(error.code, "ModuleNotFoundError");
    assert!(error.message.ends_with("No module named 'surely_not_installed'"), "{}", error.message);
}

#[tokio::test]
async fn a_wrong_handler_name_lists_what_is_there() {
    let source = "import json\nfrom json import dumps\ntable = 3\ndef handle(e, c): pass\ndef other(e, c): pass\ndef _own(): pass\n";
    let error = failure(python("handler"), source).await;
    assert_eq!(error.code, "handler-not-found");
    assert_eq!(
        error.message,
        "the handler is notify.handler, but module notify has no function handler; it has: handle, other"
    );
    let error = failure(python("table"), source).await;
    assert!(
        error.message.contains("module notify has table, which is not a function; it has: handle"),
        "{}",
        error.message
    );
    let initializer =
        Runtime::Python3 { handler: reference(NAME, "handle"), initializer: Some(reference("setup", "run")) };
    let error = failure(initializer, source).await;
    assert_eq!(error.code, "module-not-found");
    assert_eq!(error.message, "the initializer is setup.run, but there is no module setup in the code; it has: notify");
}

#[tokio::test]
async fn handlers_that_only_look_like_functions_are_named() {
    let error = failure(python("handler"), "async def handler(event, context): pass\n").await;
    assert_eq!(error.message, "the handler notify.handler is async; only ordinary functions can be called");
    let error = failure(python("handler"), "def handler(event, context): yield 1\n").await;
    assert_eq!(error.code, "handler-not-plain");
}

#[tokio::test]
async fn an_initializer_that_raises_or_hangs_breaks_the_code() {
    let error =
        failure(with_initializer(), "def handler(e, c): pass\ndef initialize(c): raise OSError('no table')\n").await;
    assert_eq!(error.code, "OSError");
    assert!(error.message.ends_with("OSError: no table"), "{}", error.message);
    let hanging = "import time\ndef handler(e, c): pass\ndef initialize(c):\n    print('waiting for the table')\n    time.sleep(99)\n";
    let error = failure(with_initializer(), hanging).await;
    assert_eq!(error.code, "start-timeout");
    assert!(error.message.starts_with("the initializer took too long"), "{}", error.message);
    assert!(error.message.ends_with("waiting for the table"), "the log tells where it hangs: {}", error.message);
}

#[tokio::test]
async fn code_that_ends_the_process_while_loading_says_how() {
    assert_eq!(failure(python("handler"), "import os\nos._exit(7)\n").await.code, "exit-7");
    assert_eq!(failure(python("handler"), "import sys\nsys.exit('no licence')\n").await.code, "SystemExit");
    let error = failure(python("handler"), "import os, sys\nprint('last words')\nos.kill(os.getpid(), 9)\n").await;
    assert_eq!(error.code, "signal-9");
    assert!(error.message.contains("last words"), "{}", error.message);
}

#[tokio::test]
async fn new_code_or_a_resume_ends_the_failure() {
    let stage = Stage::new();
    let flag = stage.directory.path().join("table");
    let source = format!("open({flag:?})\ndef handler(e, c): return 'old'\n");
    let first = stage.deploy(spec(), &source).await;
    assert!(matches!(&first.state, FunctionState::Failed(error) if error.code == "FileNotFoundError"));
    std::fs::write(&flag, "").unwrap();
    assert_eq!(stage.error("").await.code, "FileNotFoundError", "not tried again by itself");
    stage.service.resume(NAME).unwrap();
    assert_eq!(stage.result("").await, r#""old""#);

    std::fs::remove_file(&flag).unwrap();
    let broken = stage.deploy(spec(), &format!("{source}\n# changed\n")).await;
    assert!(matches!(broken.state, FunctionState::Failed(_)));
    let fixed = stage.deploy(spec(), "def handler(e, c): return 'new'\n").await;
    assert_eq!((fixed.version, fixed.state), (3, FunctionState::Ready));
    assert_eq!(stage.result("").await, r#""new""#);
}

#[tokio::test]
async fn the_same_broken_code_deployed_again_is_tried_again() {
    let stage = Stage::new();
    let flag = stage.directory.path().join("table");
    let source = format!("open({flag:?})\ndef handler(e, c): return 'ok'\n");
    assert!(matches!(stage.deploy(spec(), &source).await.state, FunctionState::Failed(_)));
    std::fs::write(&flag, "").unwrap();
    let again = stage.deploy(spec(), &source).await;
    assert_eq!(again, Deployed { version: 1, changed: true, state: FunctionState::Ready });
    let third = stage.deploy(spec(), &source).await;
    assert_eq!(third, Deployed { version: 1, changed: false, state: FunctionState::Ready });
}

#[tokio::test]
async fn a_missing_interpreter_is_refused_at_deploy_and_reported_after_a_restart() {
    let stage = Stage::running("def handler(e, c): return 'ok'\n").await;
    stage.service.shutdown(Duration::from_secs(5)).await;
    let mut options = options(stage.directory.path());
    options.python3 = Some(PathBuf::from("/nowhere/python3"));
    let service = FunctionService::new(options).unwrap();
    let refused = service.deploy(spec(), Some(Bytes::from_static(b"x = 1"))).await.unwrap_err();
    assert!(
        matches!(&refused, DeployError::Interpreter(_)) && refused.to_string().contains("/nowhere/python3"),
        "{refused}"
    );
    service.restore(spec(), 1).unwrap();
    let error = service.invoke(NAME, crate::support::invocation("")).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::BrokenCode, "interpreter-missing"));
    assert!(error.message.contains("/nowhere/python3"), "{}", error.message);
}

#[tokio::test]
async fn a_launcher_that_cannot_run_is_an_outage_and_not_the_fault_of_the_code() {
    let stage = Stage::with(|options| options.launcher = Launcher::Program(PathBuf::from("/nowhere/tripline")));
    let deployed = stage.deploy(spec(), "def handler(e, c): pass\n").await;
    let FunctionState::Failed(error) = deployed.state else { panic!("nothing can start") };
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Unavailable, "spawn-failed"));
    let report = stage.service.describe(NAME).unwrap();
    assert_eq!(report.status.broken, None, "it is tried again when somebody asks");
}

#[tokio::test]
async fn refused_definitions_change_nothing() {
    let stage = Stage::running("def handler(e, c): return 1\n").await;
    let empty = stage.service.deploy(spec(), Some(Bytes::new())).await.unwrap_err();
    assert_eq!(empty.to_string(), "the code is empty");
    let mut other = spec();
    other.name = "other".to_owned();
    let missing = stage.service.deploy(other, None).await.unwrap_err();
    assert_eq!(missing.to_string(), "function \"other\" has no code yet; it must come with the definition");
    let mut http = spec();
    http.runtime = Runtime::Http { url: "https://example.com/".to_owned() };
    let no_tls = stage.service.deploy(http.clone(), None).await.unwrap_err();
    assert!(no_tls.to_string().ends_with("found https, allowed: http"), "{no_tls}");
    let unwanted = stage.service.deploy(http, Some(Bytes::from_static(b"x"))).await.unwrap_err();
    assert!(matches!(unwanted, DeployError::CodeNotWanted(_)));
    assert_eq!(stage.result("").await, "1");
    assert_eq!(stage.service.list().len(), 1);
}

#[tokio::test]
async fn an_unknown_function_is_broken_code() {
    let error = Stage::new().error("").await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::BrokenCode, "unknown-function"));
}
