//! Definitions that will be there by the time another one is applied: whoever tries several at once says so.

use std::collections::BTreeSet;

/// What a trial takes as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Planned {
    topics: BTreeSet<String>,
    functions: BTreeSet<String>,
}

impl Planned {
    /// Reads `topic/NAME,function/NAME`; an empty text plans nothing. `None` when something else stands there.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut planned = Self::default();
        for one in text.split(',').filter(|one| !one.is_empty()) {
            let (kind, name) = one.split_once('/')?;
            let names = match kind {
                "topic" => &mut planned.topics,
                "function" => &mut planned.functions,
                _ => return None,
            };
            names.insert(name.to_owned());
        }
        Some(planned)
    }

    /// The topics that will be there.
    pub fn topics(&self) -> impl Iterator<Item = &str> {
        self.topics.iter().map(String::as_str)
    }

    /// Whether this topic will be there.
    #[must_use]
    pub fn has_topic(&self, name: &str) -> bool {
        self.topics.contains(name)
    }

    /// Whether this function will be there, fit for whoever names it.
    #[must_use]
    pub fn has_function(&self, name: &str) -> bool {
        self.functions.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_names_are_told_apart() {
        let planned = Planned::parse("topic/a,function/b,function/c").unwrap();
        assert!(planned.has_topic("a") && planned.has_function("b") && planned.has_function("c"));
        assert!(!planned.has_topic("b") && !planned.has_function("a"));
        assert_eq!(Planned::parse(""), Some(Planned::default()));
        assert_eq!((Planned::parse("a"), Planned::parse("trigger/a")), (None, None));
    }
}
