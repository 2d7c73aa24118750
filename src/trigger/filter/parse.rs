//! A pattern as written, checked and multiplied out into plain patterns.

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Map, Value};

use super::clause::{Bound, Clause, Number, NumericRange, Test, TextTest, fold};
use super::wildcard::Wildcard;
use super::{ALTERNATIVES_MAX, Alternative, CLAUSES_MAX, DEPTH_MAX, Node, PATH_BYTES_MAX, PatternError};

const OPERATORS: [&str; 9] =
    ["prefix", "suffix", "contains", "equals-ignore-case", "wildcard", "numeric", "cidr", "exists", "anything-but"];
const BUT_OPERATORS: [&str; 4] = ["prefix", "suffix", "equals-ignore-case", "wildcard"];
const NUMERIC_FORM: &str = "`numeric` takes a list such as [\">\", 0, \"<=\", 5] or [\"=\", 3]";

/// What an object of a pattern asks for.
enum Item {
    Clause(Arc<Clause>),
    /// One of these.
    Or(Vec<Vec<Self>>),
}

/// What a pattern amounts to.
pub(super) struct Parsed {
    /// Plain patterns.
    pub(super) alternatives: Vec<Alternative>,
    /// Their lists.
    pub(super) lists: usize,
}

/// Checks a pattern and multiplies it out.
pub(super) fn pattern(source: &Value) -> Result<Parsed, PatternError> {
    let Value::Object(fields) = source else {
        return Err(refuse("", format!("a pattern is a JSON object, not {}", kind(source))));
    };
    // Before anything is made of it: a small pattern may amount to more than there is memory.
    let Amount { alternatives, lists } = amount(fields);
    if alternatives > ALTERNATIVES_MAX {
        return Err(refuse(
            "",
            format!("its $or lists amount to {alternatives} patterns, at most {ALTERNATIVES_MAX} are allowed"),
        ));
    }
    if lists > CLAUSES_MAX {
        return Err(refuse("", format!("it amounts to {lists} lists, at most {CLAUSES_MAX} are allowed")));
    }
    let plain = multiply_out(&object(fields, "", 1)?);
    debug_assert_eq!((plain.len(), plain.iter().map(Vec::len).sum::<usize>()), (alternatives, lists));
    Ok(Parsed { alternatives: plain.into_iter().map(alternative).collect(), lists })
}

fn refuse(path: &str, reason: impl Into<String>) -> PatternError {
    let path = if path.is_empty() { "pattern" } else { path };
    PatternError { path: path.to_owned(), reason: reason.into() }
}

fn object(fields: &Map<String, Value>, path: &str, depth: usize) -> Result<Vec<Item>, PatternError> {
    if depth > DEPTH_MAX {
        return Err(refuse(path, format!("patterns may be nested {DEPTH_MAX} deep at most")));
    }
    let mut items = Vec::new();
    for (key, value) in fields {
        if key == "$or" {
            items.push(or(value, path, depth)?);
            continue;
        }
        let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        if below.matches('.').count() >= DEPTH_MAX * 2 {
            return Err(refuse(path, format!("keys may have {} parts at most", DEPTH_MAX * 2)));
        }
        // Each list keeps its own: one long key must not be kept for all that is below it.
        if below.len() > PATH_BYTES_MAX {
            return Err(refuse(path, format!("keys, joined with dots, may have {PATH_BYTES_MAX} bytes at most")));
        }
        match value {
            Value::Object(fields) => items.extend(object(fields, &below, depth + 1)?),
            Value::Array(elements) => items.push(Item::Clause(Arc::new(clause(below, value, elements)?))),
            other => {
                let reason = format!("a pattern's value is a list or an object, not {}: write [{other}]", kind(other));
                return Err(refuse(&below, reason));
            }
        }
    }
    Ok(items)
}

fn or(value: &Value, path: &str, depth: usize) -> Result<Item, PatternError> {
    let place = if path.is_empty() { "$or".to_owned() } else { format!("{path}.$or") };
    let wrong = || refuse(&place, "$or takes a list of two or more patterns");
    let patterns = value.as_array().filter(|patterns| patterns.len() >= 2).ok_or_else(wrong)?;
    let read = |pattern: &Value| match pattern {
        Value::Object(fields) => object(fields, path, depth + 1),
        _ => Err(wrong()),
    };
    Ok(Item::Or(patterns.iter().map(read).collect::<Result<_, _>>()?))
}

/// What a pattern amounts to, multiplied out.
#[derive(Clone, Copy)]
struct Amount {
    /// Plain patterns.
    alternatives: usize,
    /// Their lists.
    lists: usize,
}

/// Of a pattern as written. What is wrong in it counts as anything.
fn amount(fields: &Map<String, Value>) -> Amount {
    fields.iter().fold(Amount { alternatives: 1, lists: 0 }, |product, (key, value)| {
        let factor = match value {
            Value::Array(patterns) if key == "$or" => {
                let amounts = patterns.iter().filter_map(Value::as_object).map(amount);
                amounts.fold(Amount { alternatives: 0, lists: 0 }, |sum, one| Amount {
                    alternatives: sum.alternatives.saturating_add(one.alternatives),
                    lists: sum.lists.saturating_add(one.lists),
                })
            }
            Value::Object(fields) => amount(fields),
            _ => Amount { alternatives: 1, lists: 1 },
        };
        // The lists of each stand in every plain pattern of the other.
        let lists = product.lists.saturating_mul(factor.alternatives);
        Amount {
            alternatives: product.alternatives.saturating_mul(factor.alternatives),
            lists: lists.saturating_add(factor.lists.saturating_mul(product.alternatives)),
        }
    })
}

/// Only called when they amount to little.
fn multiply_out(items: &[Item]) -> Vec<Vec<Arc<Clause>>> {
    let mut products = vec![Vec::new()];
    for item in items {
        match item {
            Item::Clause(clause) => products.iter_mut().for_each(|product| product.push(Arc::clone(clause))),
            Item::Or(patterns) => {
                let choices: Vec<_> = patterns.iter().flat_map(|items| multiply_out(items)).collect();
                let with_each =
                    |product: Vec<_>| choices.iter().map(move |choice| [&product[..], &choice[..]].concat());
                products = products.into_iter().flat_map(with_each).collect();
            }
        }
    }
    products
}

fn alternative(clauses: Vec<Arc<Clause>>) -> Alternative {
    let mut root = Growing::default();
    for clause in clauses {
        let node = clause.path.split('.').fold(&mut root, Growing::child);
        node.clauses.push(clause);
    }
    let root = root.grown();
    let needs_payload = root.children.iter().any(|(key, _)| matches!(&**key, "data" | "data_base64"));
    Alternative { root, needs_payload }
}

/// A node while children come: each is looked for among those that are there.
#[derive(Default)]
struct Growing {
    children: Vec<(Arc<str>, Self)>,
    by_key: HashMap<Arc<str>, usize>,
    clauses: Vec<Arc<Clause>>,
}

impl Growing {
    fn child<'a>(&'a mut self, key: &str) -> &'a mut Self {
        let place = self.by_key.get(key).copied().unwrap_or_else(|| {
            let key: Arc<str> = key.into();
            self.by_key.insert(Arc::clone(&key), self.children.len());
            self.children.push((key, Self::default()));
            self.children.len() - 1
        });
        &mut self.children[place].1
    }

    fn grown(self) -> Node {
        let children = self.children.into_iter().map(|(key, child)| (key, child.grown()));
        Node { children: children.collect(), clauses: self.clauses }
    }
}

fn clause(path: String, source: &Value, elements: &[Value]) -> Result<Clause, PatternError> {
    if elements.is_empty() {
        return Err(refuse(&path, "an empty list matches nothing; leave the key out or list what is allowed"));
    }
    let tests = elements.iter().map(|element| test(element).map_err(|reason| refuse(&path, reason)));
    Ok(Clause { tests: tests.collect::<Result<_, _>>()?, source: source.clone(), path })
}

fn test(element: &Value) -> Result<Test, String> {
    match element {
        Value::Null => Ok(Test::Null),
        Value::Bool(wanted) => Ok(Test::Bool(*wanted)),
        Value::Number(wanted) => Ok(Test::Number(Number::of(wanted))),
        Value::String(wanted) => Ok(Test::Text(TextTest::Equal(wanted.as_str().into()))),
        Value::Array(_) => Err("a list inside a list is not allowed".to_owned()),
        Value::Object(fields) => {
            let (operator, operand) = only_field(fields)?;
            operator_test(operator, operand)
        }
    }
}

fn only_field(fields: &Map<String, Value>) -> Result<(&str, &Value), String> {
    let mut fields = fields.iter();
    match (fields.next(), fields.next()) {
        (Some((operator, operand)), None) => Ok((operator, operand)),
        _ => Err("an operator is an object with exactly one key".to_owned()),
    }
}

fn operator_test(operator: &str, operand: &Value) -> Result<Test, String> {
    match operator {
        "prefix" => affix(operator, operand, TextTest::Prefix, TextTest::PrefixFolded),
        "suffix" => affix(operator, operand, TextTest::Suffix, TextTest::SuffixFolded),
        "contains" => Ok(Test::Text(TextTest::Contains(text(operator, operand)?.into()))),
        "equals-ignore-case" => Ok(Test::Text(TextTest::EqualFolded(fold(text(operator, operand)?)))),
        "wildcard" => Ok(Test::Text(TextTest::Wildcard(Wildcard::parse(text(operator, operand)?)?))),
        "numeric" => numeric(operand).map(Test::Numeric),
        "cidr" => cidr(text(operator, operand)?),
        "exists" => match operand {
            Value::Bool(true) => Ok(Test::Exists),
            Value::Bool(false) => Ok(Test::Absent),
            other => Err(format!("`exists` takes true or false, not {}", kind(other))),
        },
        "anything-but" => anything_but(operand),
        other => Err(unknown_operator(other, &OPERATORS)),
    }
}

fn unknown_operator(found: &str, known: &[&str]) -> String {
    let found: String = found.chars().take(64).collect();
    let nearest = known.iter().find(|name| strsim::damerau_levenshtein(&found.to_lowercase(), name) <= 2);
    let hint = nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    format!("`{found}` is not an operator here; these are: {}{hint}", known.join(", "))
}

fn text<'a>(operator: &str, operand: &'a Value) -> Result<&'a str, String> {
    operand.as_str().ok_or_else(|| format!("`{operator}` takes a text, not {}", kind(operand)))
}

fn affix(
    operator: &str,
    operand: &Value,
    exact: fn(Box<str>) -> TextTest,
    in_any_case: fn(Box<str>) -> TextTest,
) -> Result<Test, String> {
    let Value::Object(fields) = operand else { return Ok(Test::Text(exact(text(operator, operand)?.into()))) };
    match only_field(fields)? {
        ("equals-ignore-case", operand) => Ok(Test::Text(in_any_case(fold(text("equals-ignore-case", operand)?)))),
        (other, _) => Err(unknown_operator(other, &["equals-ignore-case"])),
    }
}

fn cidr(written: &str) -> Result<Test, String> {
    let network = written.parse::<IpNet>();
    network.map(Test::Cidr).map_err(|_| {
        let written: String = written.chars().take(64).collect();
        format!("`cidr` takes a network such as 10.0.0.0/24 or 2001:db8::/64, not {written:?}")
    })
}

fn numeric(operand: &Value) -> Result<NumericRange, String> {
    let terms = operand.as_array().filter(|terms| matches!(terms.len(), 2 | 4)).ok_or(NUMERIC_FORM)?;
    let mut range = NumericRange { low: None, high: None };
    for term in terms.chunks_exact(2) {
        let (Some(comparison), Some(value)) = (term[0].as_str(), term[1].as_f64()) else {
            return Err(NUMERIC_FORM.to_owned());
        };
        let exclusive = Some(Bound { value, inclusive: false });
        let inclusive = Some(Bound { value, inclusive: true });
        let (low, high) = match comparison {
            "=" if terms.len() == 2 => (inclusive, inclusive),
            ">" => (exclusive, None),
            ">=" => (inclusive, None),
            "<" => (None, exclusive),
            "<=" => (None, inclusive),
            _ => return Err(NUMERIC_FORM.to_owned()),
        };
        let twice = (low.is_some() && range.low.is_some()) || (high.is_some() && range.high.is_some());
        if twice {
            return Err("`numeric` takes one lower and one upper bound".to_owned());
        }
        range = NumericRange { low: low.or(range.low), high: high.or(range.high) };
    }
    if range.is_empty() { Err("no number is inside this `numeric` range".to_owned()) } else { Ok(range) }
}

fn anything_but(operand: &Value) -> Result<Test, String> {
    let wrong = || "`anything-but` takes texts or numbers, not both, or one operator".to_owned();
    match operand {
        Value::String(_) | Value::Number(_) => anything_but_list(std::slice::from_ref(operand)).ok_or_else(wrong),
        Value::Array(unwanted) => anything_but_list(unwanted).ok_or_else(wrong),
        Value::Object(fields) => {
            let (operator, operand) = only_field(fields)?;
            let unwanted = match operand {
                Value::Array(unwanted) if !unwanted.is_empty() => unwanted.as_slice(),
                one => std::slice::from_ref(one),
            };
            let tests = unwanted.iter().map(|unwanted| but_test(operator, unwanted));
            Ok(Test::ButTexts(tests.collect::<Result<_, _>>()?))
        }
        Value::Null | Value::Bool(_) => Err(wrong()),
    }
}

fn anything_but_list(unwanted: &[Value]) -> Option<Test> {
    if unwanted.iter().all(Value::is_number) && !unwanted.is_empty() {
        return Some(Test::ButNumbers(unwanted.iter().filter_map(Value::as_number).map(Number::of).collect()));
    }
    let texts: Option<Vec<_>> = unwanted.iter().map(|text| Some(TextTest::Equal(text.as_str()?.into()))).collect();
    texts.filter(|texts| !texts.is_empty()).map(Test::ButTexts)
}

fn but_test(operator: &str, operand: &Value) -> Result<TextTest, String> {
    if !BUT_OPERATORS.contains(&operator) {
        return Err(unknown_operator(operator, &BUT_OPERATORS));
    }
    let unwanted = text(operator, operand)?;
    match operator {
        "equals-ignore-case" => Ok(TextTest::EqualFolded(fold(unwanted))),
        "wildcard" => Ok(TextTest::Wildcard(Wildcard::parse(unwanted)?)),
        _ if unwanted.is_empty() => Err(format!("an empty `{operator}` inside `anything-but` matches nothing")),
        "prefix" => Ok(TextTest::Prefix(unwanted.into())),
        _ => Ok(TextTest::Suffix(unwanted.into())),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
