//! The paths that patterns ask for, as a tree of keys, and maps by text.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A place in the tree.
pub(super) type NodeId = u32;
/// Where an event begins.
pub(super) const ROOT: NodeId = 0;

/// A map by text. What is looked up comes from records, but what is inside only from patterns: a record cannot make it
/// slow.
pub(super) type TextMap<V> = HashMap<Box<str>, V, BuildHasherDefault<TextHasher>>;

/// All keys below one path.
#[derive(Debug, Default)]
struct Children {
    /// A bit for each byte that a key begins with, and for each length that one has, all great lengths sharing one.
    /// Most keys of most events are ruled out by these.
    first_bytes: [u64; 4],
    lengths: u64,
    by_key: TextMap<NodeId>,
}

/// The tree; nodes are numbered from the root on.
#[derive(Debug)]
pub(super) struct Names {
    nodes: Vec<Children>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { nodes: vec![Children::default()] }
    }

    pub(super) const fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The node at `key` below `node`, made where it is not there yet.
    pub(super) fn child_or_new(&mut self, node: NodeId, key: &str) -> NodeId {
        if let Some(child) = self.child(node, key) {
            return child;
        }
        let new = u32::try_from(self.nodes.len()).expect("a set has fewer lists than this");
        let children = &mut self.nodes[node as usize];
        children.lengths |= length_bit(key);
        match key.bytes().next() {
            Some(first) => children.first_bytes[usize::from(first >> 6)] |= 1 << (first & 63),
            // A key with dots may begin with a dot.
            None => children.first_bytes[usize::from(b'.' >> 6)] |= 1 << (b'.' & 63),
        }
        children.by_key.insert(key.into(), new);
        self.nodes.push(Children::default());
        new
    }

    /// The node at a key without dots.
    #[inline]
    pub(super) fn child(&self, node: NodeId, key: &str) -> Option<NodeId> {
        let children = &self.nodes[node as usize];
        if children.lengths & length_bit(key) == 0 {
            return None;
        }
        children.by_key.get(key).copied()
    }

    /// The node at a key as an event has it: one with dots leads as far down as it has parts.
    #[inline]
    pub(super) fn below(&self, node: NodeId, key: &str) -> Option<NodeId> {
        let first_bytes = &self.nodes[node as usize].first_bytes;
        if key.bytes().next().is_some_and(|first| first_bytes[usize::from(first >> 6)] >> (first & 63) & 1 == 0) {
            return None;
        }
        if key.as_bytes().contains(&b'.') {
            return key.split('.').try_fold(node, |node, part| self.child(node, part));
        }
        self.child(node, key)
    }

    #[inline]
    pub(super) fn has_children(&self, node: NodeId) -> bool {
        self.nodes[node as usize].lengths != 0
    }
}

const fn length_bit(key: &str) -> u64 {
    1 << if key.len() < 63 { key.len() } else { 63 }
}

/// Multiplies eight bytes at a time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TextHasher(u64);

impl TextHasher {
    #[inline]
    const fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for TextHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            self.add(rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
    }

    #[inline]
    fn write_u8(&mut self, byte: u8) {
        self.add(u64::from(byte));
    }

    #[inline]
    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ self.0 >> 32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_with_dots_lead_down_as_far_as_they_have_parts() {
        let mut names = Names::new();
        let a = names.child_or_new(ROOT, "a");
        let deep = ["b", ""].into_iter().fold(a, |node, key| names.child_or_new(node, key));
        assert_eq!(names.child_or_new(ROOT, "a"), a);
        assert_eq!((names.below(ROOT, "a"), names.below(ROOT, "a.b.")), (Some(a), Some(deep)));
        let empty = names.child_or_new(ROOT, "");
        let below_empty = names.child_or_new(empty, "b");
        assert_eq!((names.below(ROOT, ""), names.below(ROOT, ".b")), (Some(empty), Some(below_empty)));
        assert_eq!((names.below(a, ""), names.below(a, ".b"), names.below(ROOT, "é")), (None, None, None));
        assert_eq!((names.below(ROOT, "a.c"), names.below(ROOT, "a.b.c"), names.below(ROOT, "b")), (None, None, None));
        let long = "x".repeat(500);
        let child = names.child_or_new(ROOT, &long);
        assert_eq!((names.child(ROOT, &long), names.child(ROOT, &"x".repeat(499))), (Some(child), None));
        assert!(names.has_children(a) && !names.has_children(deep));
    }

    #[test]
    fn many_keys_of_one_length_are_told_apart() {
        let mut names = Names::new();
        let made: Vec<NodeId> = (0..10_000).map(|n| names.child_or_new(ROOT, &format!("k{n:05}"))).collect();
        for (n, node) in made.iter().enumerate() {
            assert_eq!(names.child(ROOT, &format!("k{n:05}")), Some(*node));
        }
    }
}
