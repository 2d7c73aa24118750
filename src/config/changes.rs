//! What is different between two definitions of the same thing.

use serde::Serialize;
use serde_json::Value;

/// One place where they differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Where: `window.count`.
    pub path: String,
    /// What stood there; `None` where nothing did.
    pub from: Option<Value>,
    /// What stands there now; `None` where nothing does.
    pub to: Option<Value>,
}

/// The places where `after` differs from `before`, in the order of their names. Objects are looked into, lists and
/// all other values are compared whole.
#[must_use]
pub fn changes(before: &Value, after: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    compare("", Some(before), Some(after), &mut found);
    found
}

fn compare(path: &str, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Change>) {
    match (before, after) {
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
            names.sort_unstable();
            names.dedup();
            for name in names {
                let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                compare(&below, old.get(name), new.get(name), found);
            }
        }
        _ if before == after => {}
        _ => found.push(Change { path: path.to_owned(), from: before.cloned(), to: after.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(before: &Value, after: &Value) -> Vec<String> {
        let text = |value: Option<Value>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        changes(before, after).into_iter().map(|c| format!("{}: {} {}", c.path, text(c.from), text(c.to))).collect()
    }

    #[test]
    fn every_place_that_differs_is_there_once_and_no_other() {
        let before = json!({"a": 1, "w": {"count": 2, "interval": "10s"}, "l": [1, 2], "gone": {"x": 1}, "f": "n"});
        let after = json!({"a": 1, "w": {"count": 5, "interval": "10s"}, "l": [2], "new": null, "f": {"url": "u"}});
        assert_eq!(
            told(&before, &after),
            ["f: \"n\" {\"url\":\"u\"}", "gone: {\"x\":1} -", "l: [1,2] [2]", "new: - null", "w.count: 2 5"]
        );
        assert!(told(&before, &before).is_empty());
    }
}
