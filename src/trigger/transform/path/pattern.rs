//! Regular expressions of `match` and `search`: I-Regexp (RFC 9485) and what the regex crate takes beyond it.

use regex::{Regex, RegexBuilder};
use regex_syntax::hir::{Hir, HirKind};

use super::{Budget, Comparable, PathFailure};

/// The longest regular expression, in bytes; a longer one matches nothing, or is refused when a path has it as a
/// literal.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// What a compiled one may take, in bytes, once for the program and once for its cache.
const COMPILED_BYTES_MAX: usize = 256 << 10;
/// How many characters and classes one may have, repetitions written out. Matching may have to follow that many at each
/// byte of a text.
pub const PATTERN_POSITIONS_MAX: u64 = 1_000;
/// What compiling one costs, in steps: about what it takes beside visits of nodes, which are some nanoseconds each.
const COMPILE_STEPS: u64 = 100_000;

/// A compiled expression with what a text costs.
#[derive(Clone, Debug)]
struct Compiled {
    regex: Regex,
    positions: u64,
}

#[derive(Clone, Debug)]
pub(super) struct TextPattern {
    extent: Extent,
    source: Source,
}

/// What of a text must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// `match`: all of it.
    Whole,
    /// `search`: some of it.
    Part,
}

#[derive(Clone, Debug)]
enum Source {
    Compiled(Compiled),
    /// Not a text, so nothing matches.
    Never,
    /// From the event.
    Dynamic(Box<Comparable>),
}

/// The last expression that came out of an event: mostly one is used for many nodes.
#[derive(Default)]
pub(super) struct Scratch {
    last: Option<(Extent, String, Option<Compiled>)>,
}

impl TextPattern {
    /// A pattern that is known when the path is compiled.
    pub(super) fn literal(extent: Extent, expression: &str) -> Result<Self, String> {
        let compiled = compile(extent, expression)?;
        Ok(Self { extent, source: Source::Compiled(compiled) })
    }

    /// A pattern that is found in the event, or is a literal of another type.
    pub(super) fn found(extent: Extent, operand: Comparable) -> Self {
        let source = match operand {
            Comparable::Literal(_) => Source::Never,
            operand => Source::Dynamic(Box::new(operand)),
        };
        Self { extent, source }
    }

    /// Where the expression comes from, if it is not known beforehand.
    pub(super) fn operand(&self) -> Option<&Comparable> {
        match &self.source {
            Source::Dynamic(operand) => Some(operand),
            Source::Compiled(_) | Source::Never => None,
        }
    }

    /// Whether `text` matches. `dynamic` is what the operand was; an expression that is not one matches nothing, as the
    /// standard says.
    pub(super) fn is_match(
        &self,
        text: &str,
        dynamic: Option<&str>,
        scratch: &mut Scratch,
        budget: &mut Budget,
    ) -> Result<bool, PathFailure> {
        let compiled = match (&self.source, dynamic) {
            (Source::Compiled(compiled), _) => Some(compiled),
            (Source::Dynamic(_), Some(expression)) => scratch.compiled(self.extent, expression, budget)?,
            (Source::Dynamic(_), None) | (Source::Never, _) => None,
        };
        compiled.map_or(Ok(false), |compiled| compiled.is_match(text, budget))
    }
}

impl Compiled {
    /// Spends for the slow way, which the regex crate takes where its automaton would grow too large: a long expression
    /// on a long text takes minutes there.
    fn is_match(&self, text: &str, budget: &mut Budget) -> Result<bool, PathFailure> {
        budget.spend_text(text.len())?;
        budget.spend(self.positions * text.len() as u64 / 16)?;
        Ok(self.regex.is_match(text))
    }
}

impl Scratch {
    fn compiled(
        &mut self,
        extent: Extent,
        expression: &str,
        budget: &mut Budget,
    ) -> Result<Option<&Compiled>, PathFailure> {
        if expression.len() > PATTERN_BYTES_MAX {
            return Ok(None);
        }
        let is_last = self.last.as_ref().is_some_and(|last| last.0 == extent && last.1 == expression);
        if !is_last {
            budget.spend(COMPILE_STEPS)?;
            self.last = Some((extent, expression.to_owned(), compile(extent, expression).ok()));
        }
        Ok(self.last.as_ref().and_then(|last| last.2.as_ref()))
    }
}

fn compile(extent: Extent, expression: &str) -> Result<Compiled, String> {
    if expression.len() > PATTERN_BYTES_MAX {
        return Err(format!("a regular expression of at most {PATTERN_BYTES_MAX} bytes"));
    }
    let positions = positions(&regex_syntax::parse(expression).map_err(|error| refused(&error))?);
    if positions > PATTERN_POSITIONS_MAX {
        let limit = format!("at most {PATTERN_POSITIONS_MAX} characters and classes, repetitions written out");
        return Err(format!("a regular expression of {limit}, found {positions}"));
    }
    // Only what was read alone is put into something: `a)|(b` must not become valid there.
    let whole = match extent {
        Extent::Part => expression.to_owned(),
        Extent::Whole => format!(r"\A(?:{expression})\z"),
    };
    let mut builder = RegexBuilder::new(&whole);
    // With `crlf` a dot is what I-Regexp has: anything but line feed and carriage return.
    builder.crlf(true).size_limit(COMPILED_BYTES_MAX).dfa_size_limit(COMPILED_BYTES_MAX);
    let regex = builder.build().map_err(|error| refused(&error))?;
    Ok(Compiled { regex, positions })
}

/// The last line of a long explanation.
fn refused(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
    format!("a regular expression ({reason})")
}

/// How many characters and classes there are, repetitions written out. The parser limits how deep an expression is
/// nested.
fn positions(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Empty => 0,
        HirKind::Literal(literal) => literal.0.len() as u64,
        HirKind::Class(_) | HirKind::Look(_) => 1,
        HirKind::Repetition(repetition) => {
            let times = repetition.max.unwrap_or_else(|| repetition.min.saturating_add(1));
            positions(&repetition.sub).saturating_mul(u64::from(times))
        }
        HirKind::Capture(capture) => positions(&capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().map(positions).fold(0, u64::saturating_add)
        }
    }
}
