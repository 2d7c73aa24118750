//! From a value at a path to the keys that it has.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::net::IpAddr;

use aho_corasick::AhoCorasick;
use ipnet::IpNet;

use super::super::clause::{Plain, folded};
use super::affix::Affixes;
use super::key::Key;
use super::names::{TextHasher, TextMap};
use super::ranges::Ranges;

/// No address is longer as text, and texts that are longer are not tried.
const ADDRESS_BYTES_MAX: usize = 64;

/// All keys of one path, each with its number.
#[derive(Debug, Default)]
pub(super) struct Index {
    any: Option<u32>,
    null: Option<u32>,
    bools: [Option<u32>; 2],
    texts: TextMap<u32>,
    parts: Option<Box<Parts>>,
    numbers: Option<Box<Numbers>>,
}

/// What is looked for in texts.
#[derive(Debug, Default)]
struct Parts {
    beginnings: Affixes,
    endings: Affixes,
    inside: Option<Inside>,
    folded: Option<Folded>,
    networks: Option<Networks>,
}

/// The same in lower case.
#[derive(Debug)]
struct Folded {
    texts: TextMap<u32>,
    beginnings: Affixes,
    endings: Affixes,
}

#[derive(Debug)]
struct Inside {
    search: AhoCorasick,
    keys: Vec<u32>,
}

#[derive(Debug, Default)]
struct Networks {
    /// Lengths of prefixes that there are, of both families.
    lengths: [Vec<u8>; 2],
    known: HashMap<IpNet, u32>,
}

#[derive(Debug)]
struct Numbers {
    exact: HashMap<u64, u32, BuildHasherDefault<TextHasher>>,
    ranges: Ranges,
}

/// Keys sorted by what finds them.
#[derive(Default)]
struct Sorted {
    index: Index,
    beginnings: Vec<(Box<[u8]>, u32)>,
    endings: Vec<(Box<[u8]>, u32)>,
    inside: Vec<(Box<[u8]>, u32)>,
    folded: TextMap<u32>,
    folded_beginnings: Vec<(Box<[u8]>, u32)>,
    folded_endings: Vec<(Box<[u8]>, u32)>,
    networks: Networks,
    exact: HashMap<u64, u32, BuildHasherDefault<TextHasher>>,
    ranges: Vec<(f64, f64, u32)>,
}

impl Index {
    /// Each key once.
    pub(super) fn new(keys: impl IntoIterator<Item = (Key, u32)>) -> Self {
        let mut sorted = Sorted::default();
        for (key, number) in keys {
            sorted.add(key, number);
        }
        sorted.index()
    }

    /// The keys that `value` has. `fold` is scratch.
    #[inline]
    pub(super) fn each(&self, value: Plain<'_>, fold: &mut String, hit: &mut impl FnMut(u32)) {
        let exact = match value {
            Plain::Null => self.null,
            Plain::Bool(value) => self.bools[usize::from(value)],
            Plain::Text(text) => {
                if let Some(parts) = &self.parts {
                    parts.each(text, fold, hit);
                }
                if self.texts.is_empty() { None } else { self.texts.get(text).copied() }
            }
            Plain::Number(number) => match &self.numbers {
                None => None,
                Some(numbers) => {
                    let number = number.as_double();
                    numbers.ranges.each_around(number, hit);
                    numbers.exact.get(&Key::number(number)).copied()
                }
            },
        };
        exact.into_iter().chain(self.any).for_each(hit);
    }
}

impl Parts {
    fn each(&self, text: &str, fold: &mut String, hit: &mut impl FnMut(u32)) {
        self.beginnings.each_beginning(text.as_bytes(), hit);
        self.endings.each_ending(text.as_bytes(), hit);
        if let Some(inside) = &self.inside {
            for found in inside.search.find_overlapping_iter(text) {
                hit(inside.keys[found.pattern().as_usize()]);
            }
        }
        if let Some(networks) = &self.networks {
            networks.each(text, hit);
        }
        if let Some(parts) = &self.folded {
            fold.clear();
            fold.extend(folded(text));
            parts.texts.get(fold.as_str()).copied().into_iter().for_each(&mut *hit);
            parts.beginnings.each_beginning(fold.as_bytes(), hit);
            parts.endings.each_ending(fold.as_bytes(), hit);
        }
    }
}

impl Networks {
    fn each(&self, text: &str, hit: &mut impl FnMut(u32)) {
        let begins_well = text.bytes().next().is_some_and(|first| first == b':' || first.is_ascii_hexdigit());
        if !begins_well || text.len() > ADDRESS_BYTES_MAX {
            return;
        }
        let Ok(address) = text.parse::<IpAddr>() else { return };
        for length in &self.lengths[usize::from(address.is_ipv6())] {
            let network = IpNet::new(address, *length).ok().map(|network| network.trunc());
            network.and_then(|network| self.known.get(&network).copied()).into_iter().for_each(&mut *hit);
        }
    }
}

impl Sorted {
    fn add(&mut self, key: Key, number: u32) {
        let bytes = |text: Box<str>| (text.into_boxed_bytes(), number);
        let backwards = |text: Box<str>| (text.bytes().rev().collect(), number);
        match key {
            Key::Any => self.index.any = Some(number),
            // Looked at when all values are known.
            Key::Absent => {}
            Key::Null => self.index.null = Some(number),
            Key::Bool(value) => self.index.bools[usize::from(value)] = Some(number),
            Key::Number(bits) => _ = self.exact.insert(bits, number),
            Key::Range { low, high } => self.ranges.push((f64::from_bits(low), f64::from_bits(high), number)),
            Key::Text(text) => _ = self.index.texts.insert(text, number),
            Key::Prefix(text) => self.beginnings.push(bytes(text)),
            Key::Suffix(text) => self.endings.push(backwards(text)),
            Key::Folded(text) => _ = self.folded.insert(text, number),
            Key::FoldedPrefix(text) => self.folded_beginnings.push(bytes(text)),
            Key::FoldedSuffix(text) => self.folded_endings.push(backwards(text)),
            Key::Inside(bytes) => self.inside.push((bytes, number)),
            Key::Network(network) => self.networks.add(network, number),
        }
    }

    fn index(mut self) -> Index {
        if !(self.exact.is_empty() && self.ranges.is_empty()) {
            self.index.numbers = Some(Box::new(Numbers { exact: self.exact, ranges: Ranges::new(self.ranges) }));
        }
        let folded = (!(self.folded.is_empty() && self.folded_beginnings.is_empty() && self.folded_endings.is_empty()))
            .then(|| Folded {
                texts: self.folded,
                beginnings: Affixes::new(self.folded_beginnings),
                endings: Affixes::new(self.folded_endings),
            });
        let networks = (!self.networks.known.is_empty()).then_some(self.networks);
        let any_affix = !(self.beginnings.is_empty() && self.endings.is_empty());
        if any_affix || !self.inside.is_empty() || folded.is_some() || networks.is_some() {
            self.index.parts = Some(Box::new(Parts {
                beginnings: Affixes::new(self.beginnings),
                endings: Affixes::new(self.endings),
                inside: (!self.inside.is_empty()).then(|| Inside::new(self.inside)),
                folded,
                networks,
            }));
        }
        self.index
    }
}

impl Inside {
    fn new(wanted: Vec<(Box<[u8]>, u32)>) -> Self {
        let (texts, keys): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
        let search = AhoCorasick::new(texts).expect("what a set may hold is far below what a search can");
        Self { search, keys }
    }
}

impl Networks {
    fn add(&mut self, network: IpNet, number: u32) {
        let lengths = &mut self.lengths[usize::from(network.addr().is_ipv6())];
        if !lengths.contains(&network.prefix_len()) {
            lengths.push(network.prefix_len());
        }
        self.known.insert(network, number);
    }
}
