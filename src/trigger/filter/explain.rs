//! Which clause turned an event away.

use serde::Serialize;

use super::matcher::{Place, clause_matches, found_text, root, step};
use super::{Alternative, Node};
use crate::event::MatchEvent;

/// At most so many reasons are given.
pub const REASONS_MAX: usize = 100;
/// Values are shown up to this length, in characters.
const FOUND_CHARS_MAX: usize = 200;

/// A clause that no value of the event satisfies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TurnedAway {
    /// Which of the patterns that `$or` amounts to, from 0.
    pub alternative: usize,
    /// The keys, joined with dots.
    pub path: String,
    /// What the pattern asks for there.
    pub expected: String,
    /// What the event has there.
    pub found: String,
}

pub(super) fn explain(alternatives: &[Alternative], event: &MatchEvent) -> Vec<TurnedAway> {
    let mut reasons = Vec::new();
    for (index, alternative) in alternatives.iter().enumerate() {
        if reasons.len() >= REASONS_MAX {
            break;
        }
        let mut explainer = Explainer { alternative: index, dotted: event.has_dotted_keys, reasons: &mut reasons };
        if alternative.needs_payload && !event.has_json_payload {
            explainer.push("data", "a JSON payload".to_owned(), "a payload that is not JSON".to_owned());
        } else {
            explainer.alternative(&alternative.root, event);
        }
    }
    reasons.truncate(REASONS_MAX);
    reasons
}

struct Explainer<'r> {
    alternative: usize,
    dotted: bool,
    reasons: &'r mut Vec<TurnedAway>,
}

impl Explainer<'_> {
    fn push(&mut self, path: &str, expected: String, found: String) {
        self.reasons.push(TurnedAway { alternative: self.alternative, path: path.to_owned(), expected, found });
    }

    fn alternative(&mut self, node: &Node, event: &MatchEvent) {
        let before = self.reasons.len();
        self.clauses(node, &[root(event)]);
        if self.reasons.len() == before {
            self.split_list(node, &[root(event)], "");
        }
    }

    /// The clauses that fail on their own.
    fn clauses(&mut self, node: &Node, places: &[Place<'_>]) {
        for clause in node.clauses.iter().filter(|clause| !clause_matches(clause, places)) {
            let found = found_text(places, FOUND_CHARS_MAX).unwrap_or_else(|| "nothing".to_owned());
            self.push(&clause.path, clause.source.to_string(), found);
        }
        for (key, child) in &node.children {
            if self.reasons.len() < REASONS_MAX {
                self.clauses(child, &step(places, key, self.dotted));
            }
        }
    }

    /// Every clause holds somewhere, but below a list not all in one element: the first such list.
    fn split_list(&mut self, node: &Node, places: &[Place<'_>], path: &str) {
        for (key, child) in &node.children {
            let below = step(places, key, self.dotted);
            if child.matches(&below, self.dotted) {
                continue;
            }
            let path = if path.is_empty() { key.to_string() } else { format!("{path}.{key}") };
            if matches!(below.as_slice(), [place] if place.is_list()) {
                let expected = "one element that satisfies everything below".to_owned();
                return self.push(&path, expected, "elements that satisfy it only together".to_owned());
            }
            return self.split_list(child, &below, &path);
        }
    }
}

impl Place<'_> {
    const fn is_list(&self) -> bool {
        self.elements().is_some()
    }
}
