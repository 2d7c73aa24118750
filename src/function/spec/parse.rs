//! Function definitions as written, checked and printed back.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::{FunctionSpec, Handler, Instances, Payload, Runtime};
use crate::config::fields::{FieldErrors, Fields, read};
use crate::config::units::{display_duration, display_size};
use crate::topic::name::{FunctionName, INTERNAL_FUNCTION_PREFIX, NAME_BYTES_MAX, allowed_name};

const INSTANCES_MAX: u32 = 1000;
const IDLE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
const TIMEOUT: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(24 * 3600));
const MEMORY_BYTES: (u64, u64) = (16 << 20, 64 << 30);
const ENVIRONMENT_MAX: usize = 128;
const ENVIRONMENT_VALUE_BYTES_MAX: usize = 4096;
const HANDLER_BYTES_MAX: usize = 256;
const URL_BYTES_MAX: usize = 2048;

const HANDLER: &str = "module.function, such as notify.handler";
const URL: &str = "an absolute http:// URL without user name and fragment, at most 2048 bytes";

/// A function's definition and where its owner keeps the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionDefinition {
    /// The checked definition.
    pub spec: FunctionSpec,
    /// File, folder or zip as written, to be read by whoever applies the definition; `None` for http, and over HTTP
    /// where the code comes as bytes.
    pub code: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum RuntimeWord {
    Python3,
    Http,
}

impl FunctionDefinition {
    /// Reads a definition such as `{"function": "notify", "runtime": "python3", "code": "./notify.py", "handler":
    /// "notify.handler"}`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_json(value: &Value) -> Result<Self, FieldErrors> {
        read(value, "function", |fields| {
            let name = new_name(fields);
            definition(fields, name)
        })
    }
}

impl FunctionSpec {
    /// Reads a definition and leaves out where its code is. Any name is taken: what is remembered has been accepted.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_json(value: &Value) -> Result<Self, FieldErrors> {
        let read = read(value, "function", |fields| {
            let name = any_name(fields);
            definition(fields, name)
        });
        read.map(|definition| definition.spec)
    }

    /// The definition in the shape that [`FunctionSpec::from_json`] reads.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Instances { min, max, concurrency, idle } = self.instances;
        let mut definition = json!({
            "function": self.name,
            "instances": { "min": min, "max": max, "concurrency": concurrency, "idle": display_duration(idle) },
            "timeout": display_duration(self.timeout),
            "memory": display_size(self.memory_bytes),
            "payload": match self.payload { Payload::Events => "events", Payload::Raw => "raw" },
        });
        if !self.environment.is_empty() {
            definition["environment"] = json!(self.environment);
        }
        match &self.runtime {
            Runtime::Python3 { handler, initializer } => {
                definition["runtime"] = json!("python3");
                definition["handler"] = json!(handler.to_string());
                if let Some(initializer) = initializer {
                    definition["initializer"] = json!(initializer.to_string());
                }
            }
            Runtime::Http { url } => {
                definition["runtime"] = json!("http");
                definition["url"] = json!(url);
            }
            Runtime::Embedded => definition["runtime"] = json!("embedded"),
        }
        definition
    }
}

impl std::fmt::Display for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.module, self.function)
    }
}

impl Handler {
    /// Reads `module.function`; the module may be dotted.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (module, function) = text.rsplit_once('.')?;
        let good = text.len() <= HANDLER_BYTES_MAX && text.split('.').all(is_identifier);
        good.then(|| Self { module: module.to_owned(), function: function.to_owned() })
    }
}

fn any_name(fields: &mut Fields<'_>) -> Option<FunctionName> {
    fields.name("function", FunctionName::new, &allowed_name(NAME_BYTES_MAX))
}

/// The name of a function that someone else than the broker deploys.
fn new_name(fields: &mut Fields<'_>) -> Option<FunctionName> {
    let name = any_name(fields)?;
    if name.is_internal() {
        let allowed = format!("a name that does not begin with {INTERNAL_FUNCTION_PREFIX}, which is the broker's own");
        fields.wrong("function", allowed);
        return None;
    }
    Some(name)
}

fn definition(fields: &mut Fields<'_>, name: Option<FunctionName>) -> Option<FunctionDefinition> {
    fields.not_yet(&["destinations", "route", "isolation"]);
    let words = [("python3", RuntimeWord::Python3), ("http", RuntimeWord::Http)];
    let later = ["node", "process", "lambda", "wasm"];
    if fields.value("runtime").is_none() {
        fields.wrong("runtime", "python3, http");
    }
    let word = fields.choice("runtime", &words, &later, RuntimeWord::Python3);
    let code = fields.optional_text("code", "the path of a file, a folder or a zip").filter(|code| !code.is_empty());
    if code.is_none() && fields.value("code").is_some_and(Value::is_string) {
        fields.wrong("code", "the path of a file, a folder or a zip");
    }
    let runtime = match word {
        RuntimeWord::Python3 => python3(fields),
        RuntimeWord::Http => http(fields, code),
    };
    let code = code.filter(|_| word == RuntimeWord::Python3).map(str::to_owned);
    let instances = instances(fields, word);
    let timeout = fields.duration("timeout", TIMEOUT.0..=TIMEOUT.1, Duration::from_secs(30));
    let memory_bytes = fields.size("memory", MEMORY_BYTES.0..=MEMORY_BYTES.1, 256 << 20);
    let environment = environment(fields);
    let payloads = [("events", Payload::Events), ("raw", Payload::Raw)];
    let payload = fields.choice("payload", &payloads, &["fc", "lambda"], Payload::Events);
    let spec =
        FunctionSpec { name: name?.into(), runtime: runtime?, instances, timeout, memory_bytes, environment, payload };
    Some(FunctionDefinition { spec, code })
}

fn python3(fields: &mut Fields<'_>) -> Option<Runtime> {
    let text = fields.text("handler", HANDLER);
    let handler = text.and_then(|text| handler(fields, "handler", text));
    let text = fields.optional_text("initializer", HANDLER);
    let initializer = text.and_then(|text| self::handler(fields, "initializer", text));
    Some(Runtime::Python3 { handler: handler?, initializer })
}

fn handler(fields: &Fields<'_>, field: &str, text: &str) -> Option<Handler> {
    let handler = Handler::parse(text);
    if handler.is_none() {
        fields.wrong(field, HANDLER);
    }
    handler
}

fn is_identifier(part: &str) -> bool {
    let mut characters = part.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The URL is `url`, or stands where other runtimes have their code.
fn http(fields: &mut Fields<'_>, code: Option<&str>) -> Option<Runtime> {
    let field = if fields.value("url").is_none() && code.is_some() { "code" } else { "url" };
    http_url(fields, field).map(|url| Runtime::Http { url })
}

/// A URL that must be there.
pub(crate) fn http_url(fields: &mut Fields<'_>, field: &'static str) -> Option<String> {
    let text = fields.text(field, URL)?;
    if is_http_url(text) {
        return Some(text.to_owned());
    }
    fields.wrong(field, URL);
    None
}

fn is_http_url(text: &str) -> bool {
    let Ok(url) = text.parse::<http::Uri>() else { return false };
    let scheme = matches!(url.scheme_str(), Some("http" | "https"));
    let authority = url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    let host = url.host().is_some_and(|host| !host.is_empty());
    scheme && authority && host && !text.contains('#') && text.len() <= URL_BYTES_MAX
}

fn instances(fields: &mut Fields<'_>, runtime: RuntimeWord) -> Instances {
    let default = Instances { min: 0, max: 4, concurrency: 1, idle: Duration::from_secs(60) };
    let read = fields.object("instances", |fields| {
        let min = fields.integer("min", 0..=INSTANCES_MAX, default.min);
        let max = fields.integer("max", 1..=INSTANCES_MAX, default.max.max(min));
        let concurrency = fields.integer("concurrency", 1..=INSTANCES_MAX, default.concurrency);
        let idle = fields.duration("idle", IDLE.0..=IDLE.1, default.idle);
        if max < min {
            fields.wrong("max", format!("at least `min`, which is {min}"));
        }
        if concurrency > 1 && runtime == RuntimeWord::Python3 {
            fields.wrong("concurrency", "1 for python3 (more is not supported yet)");
        }
        Some(Instances { min, max, concurrency, idle })
    });
    read.unwrap_or(default)
}

fn environment(fields: &mut Fields<'_>) -> BTreeMap<String, String> {
    let entries: Vec<_> = fields.entries("environment").collect();
    if entries.len() > ENVIRONMENT_MAX {
        fields.wrong("environment", format!("at most {ENVIRONMENT_MAX} variables"));
        return BTreeMap::new();
    }
    let mut environment = BTreeMap::new();
    for (name, value) in entries {
        if let Some(allowed) = variable_refused(name) {
            fields.wrong_below("environment", name, Some(value), allowed);
            continue;
        }
        match value.as_str().filter(|text| text.len() <= ENVIRONMENT_VALUE_BYTES_MAX && !text.contains('\0')) {
            Some(text) => drop(environment.insert(name.clone(), text.to_owned())),
            None => {
                let allowed =
                    format!("a text (numbers in quotes) of at most {ENVIRONMENT_VALUE_BYTES_MAX} bytes without NUL");
                fields.wrong_below("environment", name, Some(value), allowed);
            }
        }
    }
    environment
}

fn variable_refused(name: &str) -> Option<&'static str> {
    if !is_identifier(name) || name.len() > NAME_BYTES_MAX {
        return Some("names of letters, digits and _, not beginning with a digit, at most 249 bytes");
    }
    let own = name == "PATH" || ["TRIPLINE_", "LD_", "PYTHON"].iter().any(|prefix| name.starts_with(prefix));
    own.then_some("names other than PATH, TRIPLINE_*, LD_* and PYTHON*, which the broker sets itself")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minimal() -> Value {
        json!({"function": "notify", "runtime": "python3", "code": "./notify.py", "handler": "notify.handler"})
    }

    fn paths(value: &Value) -> Vec<String> {
        FunctionDefinition::from_json(value).unwrap_err().0.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_minimal_python_function_has_the_defaults() {
        let definition = FunctionDefinition::from_json(&minimal()).unwrap();
        assert_eq!(definition.code.as_deref(), Some("./notify.py"));
        let spec = definition.spec;
        let handler = Handler { module: "notify".to_owned(), function: "handler".to_owned() };
        assert_eq!(spec.runtime, Runtime::Python3 { handler, initializer: None });
        assert_eq!(spec.instances, Instances { min: 0, max: 4, concurrency: 1, idle: Duration::from_secs(60) });
        assert_eq!(
            (spec.timeout, spec.memory_bytes, spec.payload),
            (Duration::from_secs(30), 256 << 20, Payload::Events)
        );
    }

    #[test]
    fn definitions_print_back_the_same() {
        let mut full = minimal();
        for (field, value) in [
            ("handler", json!("pkg.notify.handler")),
            ("initializer", json!("pkg.notify.initialize")),
            ("instances", json!({"min": 5, "concurrency": 1, "idle": "90s"})),
            ("timeout", json!("1500ms")),
            ("memory", json!("20MB")),
            ("environment", json!({"TABLE": "late", "_x": ""})),
            ("payload", json!("raw")),
        ] {
            full[field] = value;
        }
        let http = json!({"function": "h", "runtime": "http", "url": "https://example.com:8443/a?b=c", "instances": {"concurrency": 9}});
        for definition in [minimal(), full, http] {
            let spec = FunctionSpec::from_json(&definition).unwrap();
            assert_eq!(FunctionSpec::from_json(&spec.to_json()).unwrap(), spec);
        }
    }

    #[test]
    fn a_name_of_the_brokers_own_is_only_taken_from_what_is_remembered() {
        let own = json!({"function": "__own", "runtime": "http", "url": "http://a/"});
        let refused = FunctionDefinition::from_json(&own).unwrap_err().to_string();
        assert!(refused.contains("__own") && refused.contains("does not begin with __"), "{refused}");
        assert_eq!(FunctionSpec::from_json(&own).unwrap().name, "__own");
    }

    #[test]
    fn the_url_of_an_http_function_may_stand_in_place_of_code() {
        let definition =
            FunctionDefinition::from_json(&json!({"function": "h", "runtime": "http", "code": "http://[::1]:80/x"}))
                .unwrap();
        assert_eq!(definition.spec.runtime, Runtime::Http { url: "http://[::1]:80/x".to_owned() });
        assert_eq!(definition.code, None);
        assert_eq!(paths(&json!({"function": "h", "runtime": "http", "code": "./x.py"})), ["function.code"]);
    }

    #[test]
    fn every_field_names_itself_when_it_is_wrong() {
        let texts = vec![json!(null), json!(1), json!([]), json!({}), json!("")];
        let with = |more: Vec<Value>| [texts.clone(), more].concat();
        let long = "x".repeat(5000);
        for (field, wrong) in [
            ("function", with(vec![json!("a b"), json!("."), json!("__trigger.t")])),
            ("runtime", with(vec![json!("python"), json!("node"), json!("wasm")])),
            ("code", texts.clone()),
            (
                "handler",
                with(vec![
                    json!("notify"),
                    json!("a.b-c"),
                    json!(".a"),
                    json!("a."),
                    json!("1a.b"),
                    json!(format!("a.{long}")),
                ]),
            ),
            ("initializer", with(vec![json!("notify")])),
            ("instances", vec![json!(null), json!(4), json!([]), json!("4")]),
            ("timeout", vec![json!(null), json!(30), json!("30"), json!("0s"), json!("25h"), json!([]), json!({})]),
            ("memory", vec![json!(null), json!("15MiB"), json!("65GiB"), json!(5), json!("much"), json!([])]),
            ("environment", vec![json!(null), json!([]), json!("A=1"), json!(1)]),
            ("payload", with(vec![json!("event"), json!("fc")])),
            ("destinations", vec![json!({})]),
        ] {
            for value in wrong {
                let mut definition = minimal();
                definition[field] = value.clone();
                let expected = if field == "function" { "function".to_owned() } else { format!("function.{field}") };
                assert_eq!(paths(&definition), [expected], "{field} {value}");
            }
        }
        for (path, wrong) in [
            ("min", vec![json!(-1), json!(1001), json!("1")]),
            ("max", vec![json!(0), json!(1001), json!(null)]),
            ("concurrency", vec![json!(0), json!(2), json!("1")]),
            ("idle", vec![json!(60), json!("500ms"), json!("25h")]),
            ("mx", vec![json!(1)]),
        ] {
            for value in wrong {
                let mut definition = minimal();
                definition["instances"] = json!({ path: value });
                assert_eq!(paths(&definition), [format!("function.instances.{path}")], "{value}");
            }
        }
        let mut definition = minimal();
        definition["instances"] = json!({"min": 3, "max": 2});
        assert_eq!(paths(&definition), ["function.instances.max"]);
        for field in ["function", "runtime", "handler"] {
            let mut definition = minimal();
            definition.as_object_mut().unwrap().remove(field);
            let expected = if field == "function" { "function".to_owned() } else { format!("function.{field}") };
            assert_eq!(paths(&definition), [expected], "{field} is missing");
        }
    }

    #[test]
    fn every_variable_names_itself_when_it_is_wrong() {
        for (name, value) in [
            ("PATH", json!("x")),
            ("LD_PRELOAD", json!("x")),
            ("PYTHONPATH", json!("x")),
            ("TRIPLINE_X", json!("x")),
            ("1A", json!("x")),
            ("A-B", json!("x")),
            ("", json!("x")),
            ("A", json!(1)),
            ("A", json!("x".repeat(4097))),
            ("A", json!("a\0b")),
        ] {
            let mut definition = minimal();
            definition["environment"] = json!({ name: value });
            assert_eq!(paths(&definition), [format!("function.environment.{name}")], "{value}");
        }
        let mut definition = minimal();
        definition["environment"] = (0..129).map(|number| (format!("A{number}"), json!("x"))).collect();
        assert_eq!(paths(&definition), ["function.environment"]);
    }

    #[test]
    fn a_target_is_an_absolute_http_url() {
        for url in ["ftp://a/b", "/a", "http://", "http://u:p@a/", "https://a/#x", "http://a b/", "a.b"] {
            assert_eq!(paths(&json!({"function": "h", "runtime": "http", "url": url})), ["function.url"], "{url}");
        }
        let long = format!("http://a/{}", "x".repeat(2048));
        assert_eq!(paths(&json!({"function": "h", "runtime": "http", "url": long})), ["function.url"]);
        assert_eq!(paths(&json!({"function": "h", "runtime": "http"})), ["function.url"]);
    }
}
