//! Taking patterns apart, and putting each alternative where it is found most rarely.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use smallvec::SmallVec;

use super::super::clause::Clause;
use super::super::{Node as PatternNode, Pattern};
use super::index::Index;
use super::key::Key;
use super::names::{Names, NodeId, ROOT};
use super::{EventFields, FilterSet, Node, Postings, SetAlternative, SetClause};
use crate::event::WRAPPED_NAMES;

/// What is known of a key while the set is built.
struct KeyFacts {
    node: NodeId,
    key: Key,
    /// Alternatives with a clause that has it.
    uses: u64,
}

/// What is known of a clause.
struct ClauseFacts {
    keys: SmallVec<[u32; 2]>,
    cost: u64,
}

struct Builder {
    names: Names,
    clauses: Vec<SetClause>,
    clause_facts: Vec<ClauseFacts>,
    /// Plain patterns of one pattern share their lists.
    by_address: HashMap<*const Clause, u32>,
    by_text: HashMap<(NodeId, String), u32>,
    keys: Vec<KeyFacts>,
    by_key: HashMap<(NodeId, Key), u32>,
    alternatives: Vec<SetAlternative>,
    checks: Vec<u32>,
}

/// The set of `patterns`, which are sorted by id and not too many.
pub(super) fn build(patterns: Vec<(u32, Pattern)>) -> FilterSet {
    let mut builder = Builder {
        names: Names::new(),
        clauses: Vec::new(),
        clause_facts: Vec::new(),
        by_address: HashMap::new(),
        by_text: HashMap::new(),
        keys: Vec::new(),
        by_key: HashMap::new(),
        alternatives: Vec::new(),
        checks: Vec::new(),
    };
    for (pattern, (_, source)) in (0..).zip(&patterns) {
        builder.pattern(pattern, source);
    }
    builder.set_costs();
    builder.finish(patterns)
}

fn number(length: usize) -> u32 {
    u32::try_from(length).expect("the bounds of a set are far below this")
}

impl Builder {
    fn pattern(&mut self, pattern: u32, source: &Pattern) {
        for (place, alternative) in (0..).zip(source.alternatives.iter()) {
            let start = number(self.checks.len());
            self.lists(&alternative.root, ROOT);
            let checks = start..number(self.checks.len());
            self.alternatives.push(SetAlternative { pattern, place, needs_payload: alternative.needs_payload, checks });
        }
    }

    fn lists(&mut self, pattern: &PatternNode, node: NodeId) {
        for clause in &pattern.clauses {
            let clause = self.clause(node, clause);
            for key in &self.clause_facts[clause as usize].keys {
                self.keys[*key as usize].uses += 1;
            }
            self.checks.push(clause);
        }
        for (key, below) in &pattern.children {
            let child = self.names.child_or_new(node, key);
            self.lists(below, child);
        }
    }

    fn clause(&mut self, node: NodeId, clause: &Arc<Clause>) -> u32 {
        let address = Arc::as_ptr(clause);
        if let Some(known) = self.by_address.get(&address) {
            return *known;
        }
        let new = number(self.clauses.len());
        let known = *self.by_text.entry((node, clause.source.to_string())).or_insert(new);
        self.by_address.insert(address, known);
        if known == new {
            self.clauses.push(SetClause { node, clause: Arc::clone(clause) });
            let keys = Key::of(clause).map(|key| self.key(node, key)).collect();
            self.clause_facts.push(ClauseFacts { keys, cost: 0 });
        }
        known
    }

    fn key(&mut self, node: NodeId, key: Key) -> u32 {
        match self.by_key.entry((node, key)) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(free) => {
                let new = number(self.keys.len());
                self.keys.push(KeyFacts { node, key: free.key().1.clone(), uses: 0 });
                *free.insert(new)
            }
        }
    }

    fn set_costs(&mut self) {
        let mut ranges = vec![0; self.names.len()];
        for facts in &self.keys {
            if matches!(facts.key, Key::Range { .. }) {
                ranges[facts.node as usize] += facts.uses;
            }
        }
        for facts in &mut self.clause_facts {
            let costs = facts.keys.iter().map(|key| {
                let facts = &self.keys[*key as usize];
                facts.key.cost(facts.uses, ranges[facts.node as usize])
            });
            facts.cost = costs.sum();
        }
    }

    fn finish(mut self, patterns: Vec<(u32, Pattern)>) -> FilterSet {
        let mut by_key: Vec<Vec<u32>> = vec![Vec::new(); self.keys.len()];
        let mut always = Vec::new();
        for (place, alternative) in (0..).zip(&self.alternatives) {
            let checks = &mut self.checks[alternative.checks.start as usize..alternative.checks.end as usize];
            // The rarest comes last: that it holds is likely, since it was hit.
            checks.sort_by_key(|clause| std::cmp::Reverse(self.clause_facts[*clause as usize].cost));
            let Some(rarest) = checks.last() else {
                always.push(place);
                continue;
            };
            for key in &self.clause_facts[*rarest as usize].keys {
                by_key[*key as usize].push(place);
            }
        }
        let fields = EventFields::new(&self.names, &self.alternatives);
        let mut set = FilterSet {
            patterns: patterns.into(),
            alternatives: self.alternatives,
            checks: self.checks,
            clauses: self.clauses,
            nodes: std::iter::repeat_with(Node::default).take(self.names.len()).collect(),
            names: self.names,
            postings: Postings::new(&by_key),
            always,
            absent: Vec::new(),
            fields,
        };
        for clause in &set.clauses {
            set.nodes[clause.node as usize].wanted = true;
        }
        index(&mut set, self.keys);
        set
    }
}

/// Makes the indexes of all nodes, of the keys that lead to candidates.
fn index(set: &mut FilterSet, keys: Vec<KeyFacts>) {
    let mut by_node: HashMap<NodeId, Vec<(Key, u32)>> = HashMap::new();
    for (at, facts) in (0..).zip(keys) {
        if set.postings.of(at).is_empty() {
            continue;
        }
        if facts.key == Key::Absent {
            set.absent.push((facts.node, at));
        } else {
            by_node.entry(facts.node).or_default().push((facts.key, at));
        }
    }
    for (node, keys) in by_node {
        set.nodes[node as usize].index = Some(Box::new(Index::new(keys)));
    }
}

impl Postings {
    fn new(by_key: &[Vec<u32>]) -> Self {
        let mut postings = Self { starts: vec![0], alternatives: Vec::new() };
        for alternatives in by_key {
            postings.alternatives.extend(alternatives);
            postings.starts.push(number(postings.alternatives.len()));
        }
        postings
    }
}

impl EventFields {
    fn new(names: &Names, alternatives: &[SetAlternative]) -> Self {
        let node = |key| names.child(ROOT, key);
        Self {
            topic: node("topic"),
            partition: node("partition"),
            offset: node("offset"),
            timestamp: node("timestamp"),
            key: node("key"),
            headers: node("headers"),
            data: node("data"),
            wrapped: WRAPPED_NAMES.iter().filter_map(|name| Some((*name, node(name)?))).collect(),
            payload: alternatives.iter().any(|alternative| alternative.needs_payload),
        }
    }
}
