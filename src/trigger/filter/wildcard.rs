//! `*` in a text.

use super::WILDCARD_STARS_MAX;

/// A wildcard, cut at its stars.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::trigger) struct Wildcard {
    /// Never empty; one piece means no star.
    pieces: Vec<Box<str>>,
}

impl Wildcard {
    /// Reads a wildcard; the error says what is wrong.
    pub(in crate::trigger) fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut piece = String::new();
        let mut after_star = false;
        let mut characters = text.chars();
        while let Some(character) = characters.next() {
            if character == '*' {
                if after_star {
                    return Err("two stars side by side are not allowed in a wildcard".to_owned());
                }
                pieces.push(std::mem::take(&mut piece).into_boxed_str());
                after_star = true;
                continue;
            }
            after_star = false;
            match character {
                '\\' => piece.push(escaped(characters.next())?),
                other => piece.push(other),
            }
        }
        if pieces.len() > WILDCARD_STARS_MAX {
            let found = pieces.len();
            return Err(format!(
                "a wildcard with {found} stars is too complex, at most {WILDCARD_STARS_MAX} are allowed"
            ));
        }
        pieces.push(piece.into_boxed_str());
        Ok(Self { pieces })
    }

    /// What stands between the stars, the ends included.
    pub(super) fn pieces(&self) -> &[Box<str>] {
        &self.pieces
    }

    /// Whether all of `text` matches. Every piece between two stars is taken at the first place where it fits: if any
    /// places fit, these do.
    pub(in crate::trigger) fn matches(&self, text: &str) -> bool {
        let [first, middle @ .., last] = self.pieces.as_slice() else {
            return self.pieces.first().is_some_and(|only| **only == *text);
        };
        let Some(mut rest) = text.strip_prefix(&**first) else { return false };
        for piece in middle {
            let Some(place) = rest.find(&**piece) else { return false };
            rest = &rest[place + piece.len()..];
        }
        rest.ends_with(&**last)
    }
}

fn escaped(character: Option<char>) -> Result<char, String> {
    match character {
        Some(character @ ('*' | '\\')) => Ok(character),
        Some(other) => Err(format!("`\\{other}` means nothing in a wildcard; `\\*` and `\\\\` do")),
        None => Err("a wildcard cannot end with a single `\\`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(wildcard: &str, text: &str) -> bool {
        Wildcard::parse(wildcard).unwrap().matches(text)
    }

    #[test]
    fn a_star_stands_for_any_text_also_none() {
        for (wildcard, text) in [
            ("a*b", "ab"),
            ("a*b", "aXXb"),
            ("*", ""),
            ("*a*", "banana"),
            ("*ana", "banana"),
            ("", ""),
            ("*é*", "café!"),
        ] {
            assert!(matches(wildcard, text), "{wildcard} {text}");
        }
        for (wildcard, text) in [("a*b", "a"), ("ab*ba", "aba"), ("*a*a*a*", "aa"), ("", "x"), ("a", "ab")] {
            assert!(!matches(wildcard, text), "{wildcard} {text}");
        }
    }

    #[test]
    fn stars_and_backslashes_can_be_escaped() {
        assert!(matches(r"a\*b", "a*b") && !matches(r"a\*b", "aXb"));
        assert!(matches(r"a\\*", r"a\anything") && !matches(r"a\\*", "a*"));
        assert!(matches(r"*\**", "a*b"));
    }

    #[test]
    fn what_is_no_wildcard_is_refused_with_the_reason() {
        for (text, reason) in
            [("a**b", "side by side"), (r"a\b", r"`\b`"), ("a\\", "cannot end"), ("*a*b*c*d*e*f", "6 stars")]
        {
            assert!(Wildcard::parse(text).unwrap_err().contains(reason), "{text}");
        }
        assert!(Wildcard::parse("*a*b*c*d*e").is_ok());
    }

    /// Tries every length for every star.
    fn naive(wildcard: &[u8], text: &[u8]) -> bool {
        match wildcard.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|skip| naive(rest, &text[skip..])),
            Some((first, rest)) => text.first() == Some(first) && naive(rest, &text[1..]),
        }
    }

    proptest! {
        #[test]
        fn the_first_fit_finds_what_trying_everything_finds(wildcard in "[ab*]{0,8}", text in "[ab]{0,12}") {
            if let Ok(parsed) = Wildcard::parse(&wildcard) {
                prop_assert_eq!(parsed.matches(&text), naive(wildcard.as_bytes(), text.as_bytes()));
            }
        }
    }
}
