//! A value that is an event in JSON by itself.

use std::borrow::Cow;

use super::REQUIRED;
use super::scan::{NotJson, Scanner, Token, unescape};

/// The event that a value is, without white space around it, and its `id`; `None` when it lacks what an event needs.
pub(super) fn event(value: &[u8]) -> Option<(&str, Cow<'_, str>)> {
    let text = std::str::from_utf8(value).ok()?;
    let [specversion, id, source, kind] = required(text).ok()??;
    let there = |text: &Option<Cow<'_, str>>| text.as_ref().is_some_and(|text| !text.is_empty());
    let is_event = specversion.as_deref() == Some("1.0") && there(&source) && there(&kind);
    id.filter(|id| is_event && !id.is_empty()).map(|id| (text.trim_ascii(), id))
}

/// The texts of [`REQUIRED`], the last where one is there twice; `None` when the value is no object.
fn required(text: &str) -> Result<Option<[Option<Cow<'_, str>>; 4]>, NotJson> {
    let mut scanner = Scanner::new(text);
    let token = scanner.token()?;
    if token != Token::Object {
        return Ok(None);
    }
    let (mut found, mut first) = ([const { None }; 4], true);
    while let Some(key) = scanner.next_key(&mut first)? {
        let key = as_text(scanner.raw(key.span), key.escaped);
        let token = scanner.token()?;
        if let Some(place) = REQUIRED.iter().position(|name| *name == key) {
            found[place] = match token {
                Token::Text(text) => Some(as_text(scanner.raw(text.span), text.escaped)),
                _ => None,
            };
        }
        scanner.skip_rest(token)?;
    }
    scanner.end().map(|()| Some(found))
}

fn as_text(raw: &str, escaped: bool) -> Cow<'_, str> {
    if !escaped {
        return Cow::Borrowed(raw);
    }
    let mut text = String::with_capacity(raw.len());
    unescape(raw, &mut text);
    Cow::Owned(text)
}
