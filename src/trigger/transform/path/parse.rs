//! A path as written, compiled: recursive descent along the grammar of RFC 9535, with the types of functions checked.

use serde_json::{Number, Value};

use super::pattern::{Extent, TextPattern};
use super::{
    Comparable, Comparison, FILTERS_NESTED_MAX, Logical, NESTING_MAX, PATH_BYTES_MAX, PathError, Query, Segment,
    Selector, Slice, Start,
};
use crate::config::fields::nearest;

/// The greatest number that every JSON reader takes exactly, and so the greatest index.
const INDEX_MAX: i64 = (1 << 53) - 1;
const FUNCTIONS: [&str; 5] = ["length", "count", "match", "search", "value"];

pub(super) fn whole(source: &str) -> Result<Query, PathError> {
    if source.len() > PATH_BYTES_MAX {
        let reason = format!("at most {PATH_BYTES_MAX} bytes are allowed, found {}; too long", source.len());
        return Err(PathError { position: PATH_BYTES_MAX, reason });
    }
    let mut parser = Parser { source, rest: source, filters: 0, nesting: 0 };
    if !parser.take("$") {
        return Err(parser.expected("`$`, the event"));
    }
    let query = parser.segments(Start::Root)?;
    if parser.rest.is_empty() { Ok(query) } else { Err(parser.expected("`.`, `[` or the end")) }
}

pub(super) struct Parser<'s> {
    source: &'s str,
    rest: &'s str,
    filters: u32,
    nesting: u32,
}

/// What a function was called with; which arguments are right depends on the function.
enum Argument {
    Value(Comparable),
    /// A query that may have many nodes.
    Nodes(Query),
}

/// What a function gives.
enum Called {
    Value(Comparable),
    Logical(Logical),
}

// ---- characters
// --------------------------------------------------------------------------------------------------------

impl Parser<'_> {
    pub(super) fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    pub(super) fn next(&mut self) {
        let mut rest = self.rest.chars();
        rest.next();
        self.rest = rest.as_str();
    }

    pub(super) fn take(&mut self, token: &str) -> bool {
        let Some(rest) = self.rest.strip_prefix(token) else { return false };
        self.rest = rest;
        true
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
    }

    fn error(&self, reason: String) -> PathError {
        self.error_at(self.rest, reason)
    }

    /// An error about the beginning of `rest`, which was not read yet then.
    fn error_at(&self, rest: &str, reason: String) -> PathError {
        let before = &self.source[..self.source.len() - rest.len()];
        PathError { position: before.chars().count() + 1, reason }
    }

    pub(super) fn expected(&self, allowed: &str) -> PathError {
        let found = self.peek().map_or_else(|| "the end".to_owned(), |found| format!("`{}`", found.escape_debug()));
        self.error(format!("expected {allowed}, found {found}"))
    }

    fn require(&mut self, token: &str) -> Result<(), PathError> {
        if self.take(token) { Ok(()) } else { Err(self.expected(&format!("`{token}`"))) }
    }
}

// ---- segments and selectors
// ---------------------------------------------------------------------------------------------

impl Parser<'_> {
    fn segments(&mut self, start: Start) -> Result<Query, PathError> {
        let mut segments = Vec::new();
        loop {
            // Blanks belong to the segment after them: at the end of a path they are an error.
            let before = self.rest;
            self.skip_blanks();
            match self.segment()? {
                Some(segment) => segments.push(segment),
                None => {
                    self.rest = before;
                    return Ok(Query { start, segments: segments.into() });
                }
            }
        }
    }

    fn segment(&mut self) -> Result<Option<Segment>, PathError> {
        let descendants = self.take("..");
        if self.peek() == Some('[') {
            return Ok(Some(Segment { descendants, selectors: self.bracketed()? }));
        }
        if !descendants && !self.take(".") {
            return Ok(None);
        }
        let selector = if self.take("*") { Selector::All } else { Selector::Name(self.short_name()?) };
        Ok(Some(Segment { descendants, selectors: [selector].into() }))
    }

    fn short_name(&mut self) -> Result<Box<str>, PathError> {
        let is_first = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
        let end = self.rest.find(|c: char| !is_first(c) && !c.is_ascii_digit()).unwrap_or(self.rest.len());
        if !self.peek().is_some_and(is_first) {
            return Err(self.expected("a name (of letters, digits and _; others stand in brackets: ['a-b']) or `*`"));
        }
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(name.into())
    }

    fn bracketed(&mut self) -> Result<Box<[Selector]>, PathError> {
        self.require("[")?;
        let mut selectors = Vec::new();
        loop {
            self.skip_blanks();
            selectors.push(self.selector()?);
            self.skip_blanks();
            if self.take("]") {
                return Ok(selectors.into());
            }
            if !self.take(",") {
                return Err(self.expected("`,` or `]`"));
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, PathError> {
        match self.peek() {
            Some('\'' | '"') => Ok(Selector::Name(self.quoted()?.into())),
            Some('*') => {
                self.next();
                Ok(Selector::All)
            }
            Some('?') => self.filter(),
            Some(':' | '-' | '0'..='9') => self.index_or_slice(),
            _ => Err(self.expected("a name in quotes, an index, a slice, `*` or `?`")),
        }
    }

    fn index_or_slice(&mut self) -> Result<Selector, PathError> {
        let start = self.optional_index()?;
        let after_start = self.rest;
        self.skip_blanks();
        if !self.take(":") {
            self.rest = after_start;
            return start.map(Selector::Index).ok_or_else(|| self.expected("an index"));
        }
        self.skip_blanks();
        let end = self.optional_index()?;
        self.skip_blanks();
        let mut step = 1;
        if self.take(":") {
            self.skip_blanks();
            step = self.optional_index()?.unwrap_or(1);
        }
        Ok(Selector::Slice(Slice { start, end, step }))
    }

    fn optional_index(&mut self) -> Result<Option<i64>, PathError> {
        const ALLOWED: &str = "a whole number without leading zeros, from -(2^53-1) to 2^53-1";
        let digits = self.rest.strip_prefix('-').unwrap_or(self.rest);
        let count = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let end = self.rest.len() - digits.len() + count;
        if end == 0 {
            return Ok(None);
        }
        let written = &self.rest[..end];
        let is_plain = written == "0" || !digits.starts_with('0');
        let index = written.parse::<i64>().ok().filter(|index| is_plain && (-INDEX_MAX..=INDEX_MAX).contains(index));
        if index.is_none() {
            return Err(self.expected(ALLOWED));
        }
        self.rest = &self.rest[end..];
        Ok(index)
    }

    fn filter(&mut self) -> Result<Selector, PathError> {
        if self.filters == FILTERS_NESTED_MAX {
            return Err(self.error(format!("at most {FILTERS_NESTED_MAX} filters inside each other are allowed")));
        }
        self.require("?")?;
        self.filters += 1;
        self.skip_blanks();
        let filter = self.any_of()?;
        self.filters -= 1;
        Ok(Selector::Filter(filter))
    }
}

// ---- what is true or false
// -----------------------------------------------------------------------------------------------

impl Parser<'_> {
    fn any_of(&mut self) -> Result<Logical, PathError> {
        self.joined("||", Self::all_of, Logical::Any)
    }

    fn all_of(&mut self) -> Result<Logical, PathError> {
        self.joined("&&", Self::term, Logical::All)
    }

    fn joined(
        &mut self,
        operator: &str,
        term: fn(&mut Self) -> Result<Logical, PathError>,
        join: fn(Box<[Logical]>) -> Logical,
    ) -> Result<Logical, PathError> {
        let first = term(self)?;
        let mut terms = vec![first];
        loop {
            let before = self.rest;
            self.skip_blanks();
            if !self.take(operator) {
                self.rest = before;
                break;
            }
            self.skip_blanks();
            terms.push(term(self)?);
        }
        Ok(if terms.len() == 1 { terms.remove(0) } else { join(terms.into()) })
    }

    fn term(&mut self) -> Result<Logical, PathError> {
        self.nested(|parser| {
            if parser.take("!") {
                parser.skip_blanks();
                let term = if parser.peek() == Some('(') { parser.parenthesized()? } else { parser.test()? };
                return Ok(Logical::Not(Box::new(term)));
            }
            if parser.peek() == Some('(') { parser.parenthesized() } else { parser.test_or_comparison() }
        })
    }

    fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T, PathError>) -> Result<T, PathError> {
        if self.nesting == NESTING_MAX {
            return Err(
                self.error(format!("at most {NESTING_MAX} parentheses and functions inside each other are allowed"))
            );
        }
        self.nesting += 1;
        let read = inner(self)?;
        self.nesting -= 1;
        Ok(read)
    }

    fn parenthesized(&mut self) -> Result<Logical, PathError> {
        self.require("(")?;
        self.skip_blanks();
        let inner = self.any_of()?;
        self.skip_blanks();
        self.require(")")?;
        Ok(inner)
    }

    /// What may stand behind `!`: a query or a function, without a comparison.
    fn test(&mut self) -> Result<Logical, PathError> {
        match self.operand()? {
            Operand::Nodes(query) => Ok(Logical::Exists(query)),
            Operand::Called(Called::Logical(logical)) => Ok(logical),
            Operand::Called(Called::Value(_)) | Operand::Literal(_) => {
                Err(self.expected("a comparison, and no `!` before it without parentheses"))
            }
        }
    }

    fn test_or_comparison(&mut self) -> Result<Logical, PathError> {
        let left_at = self.rest;
        let left = self.operand()?;
        let after_left = self.rest;
        self.skip_blanks();
        if let Some(comparison) = self.comparison() {
            let left = left.comparable().map_err(|reason| self.error_at(left_at, reason.to_owned()))?;
            self.skip_blanks();
            let right_at = self.rest;
            let right = self.operand()?.comparable().map_err(|reason| self.error_at(right_at, reason.to_owned()))?;
            return Ok(Logical::Compare { left, comparison, right });
        }
        self.rest = after_left;
        match left {
            Operand::Nodes(query) => Ok(Logical::Exists(query)),
            Operand::Called(Called::Logical(logical)) => Ok(logical),
            Operand::Called(Called::Value(_)) | Operand::Literal(_) => {
                self.skip_blanks();
                Err(self.expected("one of == != < <= > >="))
            }
        }
    }

    fn comparison(&mut self) -> Option<Comparison> {
        let operators = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        operators.into_iter().find(|(operator, _)| self.take(operator)).map(|(_, comparison)| comparison)
    }
}

// ---- operands and functions
// ----------------------------------------------------------------------------------------------

enum Operand {
    Literal(Value),
    Nodes(Query),
    Called(Called),
}

impl Operand {
    fn comparable(self) -> Result<Comparable, &'static str> {
        match self {
            Self::Literal(literal) => Ok(Comparable::Literal(literal)),
            Self::Nodes(query) if query.is_singular() => Ok(Comparable::Query(query)),
            Self::Nodes(_) => Err("only a path of names and indexes can be compared, others may have many values;"),
            Self::Called(Called::Value(comparable)) => Ok(comparable),
            Self::Called(Called::Logical(_)) => Err("match and search are true or false and cannot be compared;"),
        }
    }
}

impl Parser<'_> {
    fn operand(&mut self) -> Result<Operand, PathError> {
        match self.peek() {
            Some('@') => {
                self.next();
                self.segments(Start::Current).map(Operand::Nodes)
            }
            Some('$') => {
                self.next();
                self.segments(Start::Root).map(Operand::Nodes)
            }
            Some('\'' | '"') => Ok(Operand::Literal(self.quoted()?.into())),
            Some('-' | '0'..='9') => Ok(Operand::Literal(Value::Number(self.number()?))),
            Some('a'..='z') => self.word(),
            _ => Err(self.expected("`@`, `$`, a value or a function")),
        }
    }

    fn number(&mut self) -> Result<Number, PathError> {
        let is_part = |c: char| c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E');
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let Ok(number) = serde_json::from_str(&self.rest[..end]) else { return Err(self.expected("a JSON number")) };
        self.rest = &self.rest[end..];
        Ok(number)
    }

    fn word(&mut self) -> Result<Operand, PathError> {
        let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, after) = self.rest.split_at(end);
        if after.starts_with('(') {
            return self.nested(|parser| parser.call(word)).map(Operand::Called);
        }
        let literal = match word {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            _ => return Err(self.expected("true, false, null or a function")),
        };
        self.rest = after;
        Ok(Operand::Literal(literal))
    }

    fn call(&mut self, name: &str) -> Result<Called, PathError> {
        if !FUNCTIONS.contains(&name) {
            let near = nearest(name, FUNCTIONS).map_or_else(String::new, |near| format!(", did you mean `{near}`?"));
            let reason = format!("unknown function `{name}`; there are {}{near}", FUNCTIONS.join(", "));
            return Err(self.error(reason));
        }
        self.rest = &self.rest[name.len()..];
        let start = self.rest;
        let arguments = self.arguments()?;
        build(name, arguments).map_err(|reason| self.error_at(start, reason))
    }

    fn arguments(&mut self) -> Result<Vec<Argument>, PathError> {
        self.require("(")?;
        self.skip_blanks();
        let mut arguments = Vec::new();
        if self.take(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.argument()?);
            self.skip_blanks();
            if self.take(")") {
                return Ok(arguments);
            }
            if !self.take(",") {
                return Err(self.expected("`,` or `)`"));
            }
            self.skip_blanks();
        }
    }

    fn argument(&mut self) -> Result<Argument, PathError> {
        match self.operand()? {
            Operand::Literal(literal) => Ok(Argument::Value(Comparable::Literal(literal))),
            Operand::Nodes(query) => Ok(Argument::Nodes(query)),
            Operand::Called(Called::Value(comparable)) => Ok(Argument::Value(comparable)),
            Operand::Called(Called::Logical(_)) => {
                Err(self.error("match and search are true or false: no function takes that".to_owned()))
            }
        }
    }
}

fn build(name: &str, arguments: Vec<Argument>) -> Result<Called, String> {
    let mut arguments = arguments.into_iter();
    let (first, second, third) = (arguments.next(), arguments.next(), arguments.next());
    match (name, first, second, third) {
        ("length", Some(of), None, None) => Ok(Called::Value(Comparable::Length(Box::new(of.one_value()?)))),
        ("count", Some(of), None, None) => Ok(Called::Value(Comparable::Count(of.nodes()?))),
        ("value", Some(of), None, None) => Ok(Called::Value(Comparable::OnlyValue(of.nodes()?))),
        ("match", Some(text), Some(pattern), None) => text_pattern(Extent::Whole, text, pattern),
        ("search", Some(text), Some(pattern), None) => text_pattern(Extent::Part, text, pattern),
        ("match" | "search", ..) => {
            Err(format!("expected two arguments, a value and a regular expression, for {name}"))
        }
        _ => Err(format!("expected one argument for {name}")),
    }
}

fn text_pattern(extent: Extent, text: Argument, pattern: Argument) -> Result<Called, String> {
    let pattern = match pattern.one_value()? {
        Comparable::Literal(Value::String(expression)) => {
            TextPattern::literal(extent, &expression).map_err(|allowed| format!("expected {allowed}"))?
        }
        operand => TextPattern::found(extent, operand),
    };
    Ok(Called::Logical(Logical::Matches { text: text.one_value()?, pattern }))
}

impl Argument {
    fn one_value(self) -> Result<Comparable, String> {
        match self {
            Self::Value(comparable) => Ok(comparable),
            Self::Nodes(query) if query.is_singular() => Ok(Comparable::Query(query)),
            Self::Nodes(_) => Err("expected one value: a path here may have only names and indexes".to_owned()),
        }
    }

    fn nodes(self) -> Result<Query, String> {
        match self {
            Self::Nodes(query) => Ok(query),
            Self::Value(_) => Err("expected a path".to_owned()),
        }
    }
}
