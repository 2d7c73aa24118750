//! A checked reader of JSON objects: every wrong field becomes an error that names its path, what was found and what is
//! allowed.
//!
//! All errors of an object are collected, so that a file is right after one correction, not after ten. A reader
//! therefore goes on after an error with a value that stands in for the wrong one; the result is thrown away then.

use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::units::{display_duration, display_size, parse_duration, parse_size};
use crate::topic::name::NameError;

/// At most so many errors are collected.
pub const ERRORS_MAX: usize = 50;
/// How much of a wrong value an error shows, in characters.
const FOUND_CHARS_MAX: usize = 80;

/// Durations that errors give as examples, in milliseconds, and sizes in bytes: those of them that are allowed.
const DURATIONS: [u64; 4] = [500, 10_000, 300_000, 24 * 3_600_000];
const SIZES: [u64; 4] = [64 << 10, 1 << 20, 64 << 20, 1 << 30];

/// One field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    /// Where: `trigger.window.count`.
    pub path: String,
    /// What stands there, as JSON, or `nothing`.
    pub found: String,
    /// What may stand there.
    pub allowed: String,
    /// The nearest right name, if one is near.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: found {}, allowed: {}", self.path, self.found, self.allowed)?;
        match &self.suggestion {
            Some(name) => write!(f, "; did you mean `{name}`?"),
            None => Ok(()),
        }
    }
}

/// Everything wrong with one definition; at least one error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
pub struct FieldErrors(pub Vec<FieldError>);

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

/// Reads `value`, an object, whose own path is `root`.
///
/// # Errors
/// All that is wrong with it. A reader that answers `None` must have reported an error.
pub fn read<T>(value: &Value, root: &str, reader: impl FnOnce(&mut Fields<'_>) -> Option<T>) -> Result<T, FieldErrors> {
    let errors = RefCell::new(Vec::new());
    let read = match value {
        Value::Object(map) => Fields::read(map, root.to_owned(), &errors, reader),
        other => {
            errors.borrow_mut().push(error(root, Some(other), "an object".to_owned()));
            None
        }
    };
    match (read, errors.into_inner()) {
        (Some(read), errors) if errors.is_empty() => Ok(read),
        (_, errors) => {
            assert!(!errors.is_empty(), "a reader that gives up says why");
            Err(FieldErrors(errors))
        }
    }
}

/// The fields of one object.
#[derive(Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
    errors: &'a RefCell<Vec<FieldError>>,
    known: Vec<&'static str>,
    hidden: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn read<T>(
        map: &'a Map<String, Value>,
        path: String,
        errors: &'a RefCell<Vec<FieldError>>,
        reader: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        let mut fields = Self { map, path, errors, known: Vec::new(), hidden: Vec::new() };
        let read = reader(&mut fields);
        fields.refuse_unknown();
        read
    }

    /// The value of a field that may be left out.
    pub fn value(&mut self, name: &'static str) -> Option<&'a Value> {
        if !self.known.contains(&name) {
            self.known.push(name);
        }
        self.map.get(name)
    }

    /// Reports a field. `allowed` says what may stand there.
    pub fn wrong(&self, name: &str, allowed: impl Into<String>) {
        self.push(error(&self.path_of(name), self.map.get(name), allowed.into()));
    }

    /// Reports a field without showing what stands there, which may be a secret.
    pub fn wrong_unseen(&self, name: &str, allowed: impl Into<String>) {
        let found = "what is not shown here".to_owned();
        self.push(FieldError { path: self.path_of(name), found, allowed: allowed.into(), suggestion: None });
    }

    /// As [`Fields::wrong_unseen`], of something below a field.
    pub fn wrong_unseen_below(&self, name: &str, below: &str, allowed: impl Into<String>) {
        self.wrong_unseen(&format!("{name}.{below}"), allowed);
    }

    /// Reports something below a field.
    pub fn wrong_below(&self, name: &str, below: &str, found: Option<&Value>, allowed: impl Into<String>) {
        self.push(error(&format!("{}.{below}", self.path_of(name)), found, allowed.into()));
    }

    /// Reports a name below a field that nobody knows.
    pub fn unknown_below(&self, name: &str, below: &str, allowed: String, suggestion: Option<String>) {
        let path = format!("{}.{below}", self.path_of(name));
        self.push(FieldError { path, found: "an unknown name".to_owned(), allowed, suggestion });
    }

    /// Refuses fields that are part of the language but not of this release.
    pub fn not_yet(&mut self, names: &[&'static str]) {
        for name in names {
            self.hidden.push(name);
            if self.map.contains_key(*name) {
                self.wrong(name, "leave it out: it is not supported yet");
            }
        }
    }

    /// Refuses fields that belong elsewhere, as `allowed` says; what stands there may be a secret and is not shown.
    pub fn elsewhere(&mut self, names: &[&'static str], allowed: &str) {
        for name in names {
            self.hidden.push(name);
            if self.map.contains_key(*name) {
                self.wrong_unseen(name, allowed);
            }
        }
    }

    /// A text that must be there.
    pub fn text(&mut self, name: &'static str, allowed: &str) -> Option<&'a str> {
        if self.value(name).is_none() {
            self.wrong(name, allowed);
            return None;
        }
        self.optional_text(name, allowed)
    }

    /// A text that may be left out.
    pub fn optional_text(&mut self, name: &'static str, allowed: &str) -> Option<&'a str> {
        let text = self.value(name)?.as_str();
        if text.is_none() {
            self.wrong(name, allowed);
        }
        text
    }

    /// A name that must be there.
    pub fn name<N>(
        &mut self,
        field: &'static str,
        check: fn(String) -> Result<N, NameError>,
        allowed: &str,
    ) -> Option<N> {
        let text = self.text(field, allowed)?;
        match check(text.to_owned()) {
            Ok(name) => Some(name),
            Err(reason) => {
                self.wrong(field, format!("{allowed}; {reason}"));
                None
            }
        }
    }

    /// True or false, or `default` when it is left out.
    pub fn flag(&mut self, name: &'static str, default: bool) -> bool {
        match self.value(name) {
            None => default,
            Some(Value::Bool(flag)) => *flag,
            Some(_) => {
                self.wrong(name, "true or false");
                default
            }
        }
    }

    /// A whole number, or `default` when it is left out.
    pub fn integer(&mut self, name: &'static str, allowed: RangeInclusive<u32>, default: u32) -> u32 {
        let Some(value) = self.value(name) else { return default };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        number.filter(|number| allowed.contains(number)).unwrap_or_else(|| {
            self.wrong(name, format!("a whole number from {} to {}", allowed.start(), allowed.end()));
            default
        })
    }

    /// A duration, if it is there.
    pub fn optional_duration(&mut self, name: &'static str, allowed: RangeInclusive<Duration>) -> Option<Duration> {
        let value = self.value(name)?;
        let duration = match value {
            Value::String(text) => parse_duration(text).ok(),
            other => (other.as_u64() == Some(0)).then_some(Duration::ZERO),
        };
        let duration = duration.filter(|duration| allowed.contains(duration));
        if duration.is_none() {
            let (from, to) = (display_duration(*allowed.start()), display_duration(*allowed.end()));
            let examples = DURATIONS.map(Duration::from_millis).into_iter().filter(|example| allowed.contains(example));
            let examples = such_as(examples.map(display_duration).collect());
            self.wrong(name, format!("a duration with its unit from {from} to {to}{examples}"));
        }
        duration
    }

    /// A duration, or `default` when it is left out.
    pub fn duration(&mut self, name: &'static str, allowed: RangeInclusive<Duration>, default: Duration) -> Duration {
        self.optional_duration(name, allowed).unwrap_or(default)
    }

    /// A size in bytes, or `default` when it is left out.
    pub fn size(&mut self, name: &'static str, allowed: RangeInclusive<u64>, default: u64) -> u64 {
        let Some(value) = self.value(name) else { return default };
        let size = match value {
            Value::String(text) => parse_size(text).ok(),
            other => other.as_u64(),
        };
        size.filter(|size| allowed.contains(size)).unwrap_or_else(|| {
            let (from, to) = (display_size(*allowed.start()), display_size(*allowed.end()));
            let examples = SIZES.into_iter().filter(|example| allowed.contains(example));
            self.wrong(name, format!("a size from {from} to {to}{}", such_as(examples.map(display_size).collect())));
            default
        })
    }

    /// One of a few words, or `default` when it is left out. `not_yet` are words of later releases.
    pub fn choice<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)], not_yet: &[&str], default: T) -> T {
        let Some(value) = self.value(name) else { return default };
        if let Some((_, chosen)) = words.iter().find(|(word, _)| value == word) {
            return *chosen;
        }
        let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let mut allowed = names.join(", ");
        if !not_yet.is_empty() {
            allowed.push_str(&format!(" (not supported yet: {})", not_yet.join(", ")));
        }
        let mut wrong = error(&self.path_of(name), Some(value), allowed);
        wrong.suggestion = value.as_str().filter(|word| !not_yet.contains(word)).and_then(|word| nearest(word, names));
        self.push(wrong);
        default
    }

    /// An object, if it is there, read by `reader`.
    pub fn object<T>(&mut self, name: &'static str, reader: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        match self.value(name)? {
            Value::Object(map) => Self::read(map, self.path_of(name), self.errors, reader),
            _ => {
                self.wrong(name, "an object");
                None
            }
        }
    }

    /// Entry `entry` of the object in field `name`, an object itself, read by `reader`.
    pub fn entry<T>(
        &self,
        name: &str,
        entry: &str,
        map: &'a Map<String, Value>,
        reader: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        Self::read(map, format!("{}.{entry}", self.path_of(name)), self.errors, reader)
    }

    /// Element `index` of the list in field `name`, an object, read by `reader`.
    pub fn element<T>(
        &self,
        name: &str,
        index: usize,
        map: &'a Map<String, Value>,
        reader: impl FnOnce(&mut Self) -> Option<T>,
    ) -> Option<T> {
        Self::read(map, format!("{}[{index}]", self.path_of(name)), self.errors, reader)
    }

    /// Reports element `index` of the list in field `name`.
    pub fn wrong_at(&self, name: &str, index: usize, found: &Value, allowed: impl Into<String>) {
        self.push(error(&format!("{}[{index}]", self.path_of(name)), Some(found), allowed.into()));
    }

    /// The entries of an object whose names are not known beforehand.
    pub fn entries(&mut self, name: &'static str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        let map = match self.value(name) {
            Some(Value::Object(map)) => Some(map),
            Some(_) => {
                self.wrong(name, "an object");
                None
            }
            None => None,
        };
        map.into_iter().flatten()
    }

    fn path_of(&self, name: &str) -> String {
        // The field that names the definition has the definition's own path.
        if name == self.path { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn push(&self, error: FieldError) {
        let mut errors = self.errors.borrow_mut();
        if errors.len() < ERRORS_MAX {
            errors.push(error);
        }
    }

    fn refuse_unknown(&self) {
        for name in self.map.keys().filter(|name| !self.is_known(name)) {
            let shown: String = name.chars().take(FOUND_CHARS_MAX).collect();
            self.push(FieldError {
                path: self.path_of(&shown),
                found: "an unknown name".to_owned(),
                allowed: self.known.join(", "),
                suggestion: nearest(&shown, self.known.iter().copied()),
            });
        }
    }

    fn is_known(&self, name: &str) -> bool {
        self.known.contains(&name) || self.hidden.contains(&name)
    }
}

/// `, such as A, B or C`; nothing where there is no example.
fn such_as(mut examples: Vec<String>) -> String {
    let Some(last) = examples.pop() else { return String::new() };
    if examples.is_empty() {
        return format!(", such as {last}");
    }
    format!(", such as {} or {last}", examples.join(", "))
}

/// An error about `found`, or about nothing being there.
pub(crate) fn error(path: &str, found: Option<&Value>, allowed: String) -> FieldError {
    let text = found.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let shortened: String = text.chars().take(FOUND_CHARS_MAX).collect();
    let mark = if shortened.len() < text.len() { "…" } else { "" };
    FieldError { path: path.to_owned(), found: shortened + mark, allowed, suggestion: None }
}

/// The name most like `written`, if one is like it at all.
pub fn nearest<'n>(written: &str, names: impl IntoIterator<Item = &'n str>) -> Option<String> {
    let written = written.to_lowercase();
    let distance = |name: &&str| strsim::damerau_levenshtein(&written, &name.to_lowercase());
    let near = names.into_iter().filter(|name| distance(name) <= 1 + name.len() / 4);
    near.min_by_key(distance).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn errors(value: &Value, reader: impl FnOnce(&mut Fields<'_>)) -> Vec<String> {
        let result = read(value, "thing", |fields| {
            reader(fields);
            Some(())
        });
        result.err().map_or_else(Vec::new, |errors| errors.0.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn all_errors_are_collected_with_their_paths() {
        let value = json!({"thing": 3, "n": 0, "inside": {"d": "5", "sz": 1}, "word": "al"});
        let found = errors(&value, |fields| {
            fields.text("thing", "a name");
            fields.text("missing", "a text");
            fields.integer("n", 1..=9, 1);
            fields.choice("word", &[("all", 1), ("none", 2)], &["some"], 1);
            fields.object("inside", |fields| {
                fields.optional_duration("d", Duration::ZERO..=Duration::from_secs(300));
                fields.size("size", 1..=1024, 1);
                Some(())
            });
        });
        let expected = [
            "thing: found 3, allowed: a name",
            "thing.missing: found nothing, allowed: a text",
            "thing.n: found 0, allowed: a whole number from 1 to 9",
            "thing.word: found \"al\", allowed: all, none (not supported yet: some); did you mean `all`?",
            "thing.inside.d: found \"5\", allowed: a duration with its unit from 0 to 5m, such as 500ms, 10s or 5m",
            "thing.inside.sz: found an unknown name, allowed: d, size; did you mean `size`?",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn examples_are_allowed_themselves() {
        let found = errors(&json!({"a": 1, "b": true, "c": true}), |fields| {
            fields.duration("a", Duration::from_secs(1)..=Duration::from_secs(9), Duration::ZERO);
            fields.size("b", 16 << 20..=64 << 30, 1);
            fields.size("c", 1..=64 << 10, 1);
        });
        assert!(found[0].ends_with("a duration with its unit from 1s to 9s"), "{found:?}");
        assert!(found[1].ends_with("a size from 16MiB to 64GiB, such as 64MiB or 1GiB"), "{found:?}");
        assert!(found[2].ends_with(", such as 64KiB"), "{found:?}");
    }

    #[test]
    fn numbers_must_be_whole_and_durations_must_have_a_unit() {
        let value = json!({"a": 1.5, "b": -1, "c": "1", "d": 10, "e": 0, "f": true, "g": 4_294_967_296_u64});
        let found = errors(&value, |fields| {
            for name in ["a", "b", "c", "g"] {
                fields.integer(name, 0..=u32::MAX, 0);
            }
            for name in ["d", "e", "f"] {
                fields.duration(name, Duration::ZERO..=Duration::from_secs(1), Duration::ZERO);
            }
        });
        let paths: Vec<&str> = found.iter().map(|error| error.split(':').next().unwrap()).collect();
        assert_eq!(paths, ["thing.a", "thing.b", "thing.c", "thing.g", "thing.d", "thing.f"]);
    }

    #[test]
    fn what_is_no_object_and_what_is_long_is_reported_briefly() {
        assert_eq!(errors(&json!([1]), |_| ()), ["thing: found [1], allowed: an object"]);
        let long = "x".repeat(5000);
        let found = errors(&json!({"a": long}), |fields| {
            fields.object("a", |_| Some(()));
        });
        assert!(found[0].len() < 150 && found[0].contains('…'), "{found:?}");
    }

    #[test]
    fn no_more_than_fifty_errors_are_kept() {
        let map: Map<String, Value> = (0..80).map(|number| (format!("k{number}"), Value::Null)).collect();
        assert_eq!(errors(&Value::Object(map), |_| ()).len(), ERRORS_MAX);
    }

    #[test]
    fn the_nearest_name_must_be_near() {
        let names = ["interval", "count", "max_wait"];
        assert_eq!(nearest("intervall", names).as_deref(), Some("interval"));
        assert_eq!(nearest("maxWait", names).as_deref(), Some("max_wait"));
        assert_eq!(nearest("zebra", names), None);
        assert_eq!(nearest("x", []), None);
    }
}
