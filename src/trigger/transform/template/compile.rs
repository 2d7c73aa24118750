//! A template as written, cut at its placeholders.

use serde_json::Value;

use super::Part;

/// A template without what its names stand for.
#[derive(Debug)]
pub(in super::super) struct TemplateParts {
    pub(super) parts: Vec<Part>,
    /// Each name once, in the order in which they are used first.
    pub(in super::super) names: Vec<String>,
}

/// Why a template is refused: it begins as JSON and is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at character {position}")]
pub(in super::super) struct TemplateError {
    /// Where, in characters from 1.
    pub(in super::super) position: usize,
    pub(in super::super) reason: String,
}

/// Cuts a template at its placeholders, after finding out whether it is JSON.
pub(in super::super) fn parts(template: &str) -> Result<TemplateParts, TemplateError> {
    let json = Cutter::new(template).json();
    let sample = Sample::of(&json);
    let Err(error) = serde_json::from_str::<Value>(&sample.text) else { return Ok(json.finish()) };
    if template.trim_start().starts_with(['{', '[', '"']) {
        let reason = error.to_string();
        let reason = reason.split(" at line ").next().unwrap_or_default();
        let place = sample.place_in_template(&error);
        let position = template.char_indices().take_while(|(at, _)| *at < place).count().max(1);
        return Err(TemplateError { position, reason: format!("not JSON ({reason})") });
    }
    Ok(Cutter::new(template).plain_text().finish())
}

/// The name of a placeholder at the beginning of `rest`: `<`, a letter or `_`, more of them, digits, `.` or `-`, and
/// `>`.
fn placeholder(rest: &str) -> Option<&str> {
    let inner = rest.strip_prefix('<')?;
    let name = &inner[..inner.find('>')?];
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    (begins && name.chars().all(is_part)).then_some(name)
}

struct Cutter<'t> {
    template: &'t str,
    /// Where in the template the next character stands.
    at: usize,
    text: String,
    cut: Cut,
}

/// Parts with the places in the template behind them.
#[derive(Default)]
struct Cut {
    parts: Vec<(usize, Part)>,
    names: Vec<String>,
}

impl<'t> Cutter<'t> {
    fn new(template: &'t str) -> Self {
        Self { template, at: 0, text: String::new(), cut: Cut::default() }
    }

    fn rest(&self) -> &'t str {
        &self.template[self.at..]
    }

    /// Cuts JSON. What is no JSON comes out as it went in.
    fn json(mut self) -> Cut {
        let mut in_string = false;
        while let Some(next) = self.rest().chars().next() {
            match next {
                '<' if self.take_placeholder(in_string) => {}
                '\\' if in_string => self.take_escape(),
                '"' => {
                    in_string = !in_string;
                    self.take(next);
                }
                other => self.take(other),
            }
        }
        self.end_text();
        self.cut
    }

    /// Cuts plain text, written as one JSON string: `\<` is `<` and `\\` is `\`, every other backslash stands for
    /// itself.
    fn plain_text(mut self) -> Cut {
        self.text.push('"');
        while let Some(next) = self.rest().chars().next() {
            match next {
                '<' if self.take_placeholder(true) => {}
                '\\' if self.rest().starts_with("\\<") || self.rest().starts_with("\\\\") => {
                    self.at += 1;
                    let escaped = if self.rest().starts_with('<') { "<" } else { "\\\\" };
                    self.text.push_str(escaped);
                    self.at += 1;
                }
                other => {
                    let quoted = Value::from(other.to_string()).to_string();
                    self.text.push_str(&quoted[1..quoted.len() - 1]);
                    self.at += other.len_utf8();
                }
            }
        }
        self.text.push('"');
        self.end_text();
        self.cut
    }

    fn take(&mut self, character: char) {
        self.text.push(character);
        self.at += character.len_utf8();
    }

    /// A backslash in a string literal and what comes after it; `\<` is `<`.
    fn take_escape(&mut self) {
        if self.rest().starts_with("\\<") {
            self.at += 1;
            return self.take('<');
        }
        self.take('\\');
        if let Some(escaped) = self.rest().chars().next() {
            self.take(escaped);
        }
    }

    fn take_placeholder(&mut self, in_string: bool) -> bool {
        let Some(name) = placeholder(self.rest()) else { return false };
        self.end_text();
        let slot = self.cut.slot(name);
        let part = if in_string { Part::Content { slot } } else { Part::Value { slot } };
        self.cut.parts.push((self.at, part));
        self.at += name.len() + 2;
        true
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text).into_bytes();
            // As long as in the template, unless escapes were undone: near enough to name a place.
            let start = self.at.saturating_sub(text.len());
            self.cut.parts.push((start, Part::Text(text.into())));
        }
    }
}

impl Cut {
    fn slot(&mut self, name: &str) -> usize {
        self.names.iter().position(|known| known == name).unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        })
    }

    fn finish(self) -> TemplateParts {
        TemplateParts { parts: self.parts.into_iter().map(|(_, part)| part).collect(), names: self.names }
    }
}

/// The template with something in the place of each placeholder.
struct Sample {
    text: String,
    /// For the beginning of each part: where it is in the sample and in the template.
    places: Vec<(usize, usize)>,
}

impl Sample {
    fn of(cut: &Cut) -> Self {
        let mut sample = Self { text: String::new(), places: Vec::new() };
        for (place, part) in &cut.parts {
            sample.places.push((sample.text.len(), *place));
            sample.text.push_str(match part {
                Part::Text(text) => std::str::from_utf8(text).expect("a part of a text is text"),
                Part::Value { .. } => "null",
                // No hexadecimal digit: it may not complete an escape that the template began.
                Part::Content { .. } => "x",
            });
        }
        sample
    }

    fn place_in_template(&self, error: &serde_json::Error) -> usize {
        let line_start: usize =
            self.text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
        let at = line_start + error.column();
        let part = self.places.iter().rev().find(|(start, _)| *start < at);
        part.map_or(at, |(start, place)| place + (at - start))
    }
}
