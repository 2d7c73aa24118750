//! A transform as written, compiled.

use std::sync::Arc;

use serde_json::Value;

use super::edit::{Edit, PLACE_STEPS_MAX, Place};
use super::path::Path;
use super::step::Step;
use super::template::{
    RESERVED, RESERVED_PREFIX, Slot, TEMPLATE_CHARS_MAX, Template, TemplateParts, VALUE_NAME_BYTES_MAX, VALUES_MAX,
    parts,
};
use super::{CHAIN_STEPS_MAX, CONSTANT_BYTES_MAX, PLACES_MAX, PureChain, Stage, Transform};
use crate::config::fields::{Fields, nearest};
use crate::topic::name::{FunctionName, NAME_BYTES_MAX, allowed_name};

const ALLOWED: &str = "original, {jsonpath: …}, {constant: …}, {template: …, values: …}, {set: …}, {delete: […]}, {function: …}, or a list of these";
const STEP: &str = "{jsonpath: …}, {constant: …}, {template: …, values: …}, {set: …}, {delete: […]} or {function: …}";
const PATH: &str = "a JSONPath (RFC 9535) such as $.data.x";
const TEMPLATE: &str = "a text, such as '{\"flight\": \"<origin>-<dest>\"}'";
/// What makes an object a step; one of them in each.
const KINDS: [&str; 6] = ["jsonpath", "constant", "template", "set", "delete", "function"];
/// What may stand beside.
const OPTIONS: [&str; 2] = ["values", "strict"];

/// A step that is right.
enum Written {
    Original,
    Pure(Step),
    Function(FunctionName),
}

pub(super) fn field(fields: &mut Fields<'_>, name: &'static str) -> Option<Transform> {
    let Some(source) = fields.value(name) else { return Some(Transform::default()) };
    let steps = match source {
        Value::Array(elements) => list(fields, name, elements)?,
        Value::Object(map) if is_step(map) => vec![fields.object(name, step)?],
        Value::String(word) if word == "original" => Vec::new(),
        other => {
            let near = other.as_str().and_then(|word| nearest(word, ["original"]));
            let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            fields.wrong(name, format!("{ALLOWED}{hint}"));
            return None;
        }
    };
    Some(Transform { source: Arc::new(source.clone()), stages: stages(steps).into() })
}

fn list<'a>(fields: &mut Fields<'a>, name: &'static str, elements: &'a [Value]) -> Option<Vec<Written>> {
    if !(1..=CHAIN_STEPS_MAX).contains(&elements.len()) {
        fields.wrong(name, format!("1 to {CHAIN_STEPS_MAX} steps"));
        return None;
    }
    // All of them are read, so that all errors are told.
    let read: Vec<_> = elements.iter().enumerate().map(|(index, element)| one(fields, name, index, element)).collect();
    read.into_iter().collect()
}

fn one<'a>(fields: &mut Fields<'a>, name: &'static str, index: usize, element: &'a Value) -> Option<Written> {
    match element {
        Value::Object(map) if is_step(map) => fields.element(name, index, map, step),
        Value::String(word) if word == "original" && index == 0 => Some(Written::Original),
        _ => {
            let original = if index == 0 { "original, " } else { "" };
            fields.wrong_at(name, index, element, format!("{original}{STEP}"));
            None
        }
    }
}

/// Whether there is a name that makes it a step, or one that could be such a name written wrongly.
fn is_step(map: &serde_json::Map<String, Value>) -> bool {
    map.keys().any(|key| !OPTIONS.contains(&key.as_str()))
}

/// Pure steps side by side become one chain.
fn stages(steps: Vec<Written>) -> Vec<Stage> {
    let mut stages = Vec::new();
    let mut pure = Vec::new();
    let count = steps.len();
    for (index, step) in steps.into_iter().enumerate() {
        match step {
            Written::Original => {}
            Written::Pure(step) => pure.push(step),
            Written::Function(name) => {
                end_chain(&mut stages, &mut pure, index);
                stages.push(Stage::Function { name, step: index });
            }
        }
    }
    end_chain(&mut stages, &mut pure, count);
    stages
}

fn end_chain(stages: &mut Vec<Stage>, pure: &mut Vec<Step>, end: usize) {
    if !pure.is_empty() {
        let steps = std::mem::take(pure);
        stages.push(Stage::Pure(PureChain { first: end - steps.len(), steps: steps.into() }));
    }
}

fn step(fields: &mut Fields<'_>) -> Option<Written> {
    let mut kinds = KINDS.into_iter().filter(|kind| fields.value(kind).is_some());
    // Without any, the names that are there are reported as unknown.
    let kind = kinds.next()?;
    if let Some(second) = kinds.next() {
        drop(kinds);
        fields.wrong(second, format!("leave it out: a step does one thing, and `{kind}` is there already"));
        return None;
    }
    drop(kinds);
    match kind {
        "jsonpath" => json_path(fields),
        "constant" => constant(fields),
        "template" => template(fields),
        "set" => set(fields),
        "delete" => delete(fields),
        _ => {
            let name = fields.name("function", FunctionName::new, &allowed_name(NAME_BYTES_MAX));
            return name.map(Written::Function);
        }
    }
    .map(Written::Pure)
}

fn json_path(fields: &mut Fields<'_>) -> Option<Step> {
    let strict = fields.flag("strict", false);
    let source = fields.text("jsonpath", PATH)?;
    match Path::parse(source) {
        Ok(path) => Some(Step::JsonPath { path, strict }),
        Err(error) => {
            fields.wrong("jsonpath", format!("{PATH}; {error}"));
            None
        }
    }
}

fn constant(fields: &mut Fields<'_>) -> Option<Step> {
    let value = fields.value("constant")?;
    if is_too_large(value) {
        fields.wrong("constant", format!("a JSON value of at most {CONSTANT_BYTES_MAX} bytes"));
        return None;
    }
    Some(Step::constant(value.clone()))
}

fn is_too_large(value: &Value) -> bool {
    value.to_string().len() > CONSTANT_BYTES_MAX
}

// ---- templates
// -----------------------------------------------------------------------------------------------------------

fn template(fields: &mut Fields<'_>) -> Option<Step> {
    let strict = fields.flag("strict", false);
    let values = values(fields);
    let text = fields.text("template", TEMPLATE)?;
    if text.chars().count() > TEMPLATE_CHARS_MAX {
        fields.wrong("template", format!("a text of at most {TEMPLATE_CHARS_MAX} characters"));
        return None;
    }
    let parts = match parts(text) {
        Ok(parts) => parts,
        Err(error) => {
            fields.wrong("template", format!("{TEMPLATE}; {error}"));
            return None;
        }
    };
    let values = values?;
    let unused: Vec<_> = values.iter().filter(|(name, _)| !parts.names.contains(name)).collect();
    for (name, path) in &unused {
        let found = Value::from(path.source());
        fields.wrong_below(
            "values",
            name,
            Some(&found),
            format!("leave it out, or use it in the template as <{name}>"),
        );
    }
    let is_wrong = !unused.is_empty();
    let slots = slots(fields, &parts, values)?;
    (!is_wrong).then(|| Step::Template(Template::new(parts, slots, strict)))
}

/// The paths of a template, by name.
fn values(fields: &mut Fields<'_>) -> Option<Vec<(String, Path)>> {
    let mut read = Vec::new();
    let mut is_wrong = fields.value("values").is_some_and(|values| !values.is_object());
    let entries: Vec<_> = fields.entries("values").collect();
    if entries.len() > VALUES_MAX {
        fields.wrong("values", format!("at most {VALUES_MAX} values"));
        return None;
    }
    for (name, value) in entries {
        match value_path(name, value) {
            Ok(path) => read.push((name.clone(), path)),
            Err(allowed) => {
                let shown: String = name.chars().take(VALUE_NAME_BYTES_MAX).collect();
                fields.wrong_below("values", &shown, Some(value), allowed);
                is_wrong = true;
            }
        }
    }
    (!is_wrong).then_some(read)
}

fn value_path(name: &str, value: &Value) -> Result<Path, String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins || name.len() > VALUE_NAME_BYTES_MAX || !name.bytes().all(is_part) {
        let rule = "letters, digits, `_`, `.` and `-`, with a letter or `_` first";
        return Err(format!("a name of at most {VALUE_NAME_BYTES_MAX} {rule}"));
    }
    if name.starts_with(RESERVED_PREFIX) {
        return Err(format!(
            "another name: those with `{RESERVED_PREFIX}` need no path, and are {}",
            RESERVED.join(", ")
        ));
    }
    let Value::String(source) = value else { return Err(PATH.to_owned()) };
    Path::parse(source).map_err(|error| format!("{PATH}; {error}"))
}

fn slots(fields: &Fields<'_>, parts: &TemplateParts, mut values: Vec<(String, Path)>) -> Option<Vec<Slot>> {
    let mut slots = Vec::new();
    let known: Vec<String> = values.iter().map(|(name, _)| name.clone()).collect();
    for name in &parts.names {
        if let Some(place) = values.iter().position(|(known, _)| known == name) {
            slots.push(Slot::Path(values.swap_remove(place).1));
        } else if let Some(slot) = Slot::reserved(name) {
            slots.push(slot);
        } else {
            let names = || known.iter().map(String::as_str).chain(RESERVED);
            let shown: String = name.chars().take(VALUE_NAME_BYTES_MAX).collect();
            let allowed =
                format!("a name of `values` or {}; \\< is a < that begins no placeholder", RESERVED.join(", "));
            fields.unknown_below("template", &format!("<{shown}>"), allowed, nearest(&shown, names()));
        }
    }
    (slots.len() == parts.names.len()).then_some(slots)
}

// ---- edits
// ---------------------------------------------------------------------------------------------------------------

fn set(fields: &mut Fields<'_>) -> Option<Step> {
    let entries: Vec<_> = fields.value("set").and_then(Value::as_object).into_iter().flatten().collect();
    if !(1..=PLACES_MAX).contains(&entries.len()) {
        fields.wrong("set", format!("an object with 1 to {PLACES_MAX} paths and their values"));
        return None;
    }
    let mut read = Vec::new();
    let count = entries.len();
    for (path, value) in entries {
        let shown: String = path.chars().take(80).collect();
        match place(path) {
            Ok(_) if is_too_large(value) => {
                fields.wrong_below(
                    "set",
                    &shown,
                    Some(value),
                    format!("a JSON value of at most {CONSTANT_BYTES_MAX} bytes"),
                );
            }
            Ok(place) => read.push((place, value.clone())),
            Err(allowed) => fields.unknown_below("set", &shown, allowed, None),
        }
    }
    (read.len() == count).then(|| Step::Edit(Edit::set(read)))
}

fn delete(fields: &mut Fields<'_>) -> Option<Step> {
    let allowed = format!("a list of 1 to {PLACES_MAX} paths");
    let paths = match fields.value("delete") {
        Some(Value::Array(paths)) if (1..=PLACES_MAX).contains(&paths.len()) => paths,
        _ => {
            fields.wrong("delete", allowed);
            return None;
        }
    };
    let mut read = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        match path.as_str().map_or_else(|| Err(PATH.to_owned()), place) {
            Ok(place) => read.push(place),
            Err(allowed) => fields.wrong_at("delete", index, path, allowed),
        }
    }
    (read.len() == paths.len()).then(|| Step::Edit(Edit::Delete(read.into())))
}

fn place(source: &str) -> Result<Place, String> {
    let path = Path::parse(source).map_err(|error| format!("{PATH}; {error}"))?;
    Place::of(&path).ok_or_else(|| {
        format!(
            "a path below $ of at most {PLACE_STEPS_MAX} names, indexes and wildcards, without filters, slices and `..`"
        )
    })
}
