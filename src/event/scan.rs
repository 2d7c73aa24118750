//! JSON read token by token from a text, checked while it is read, nothing copied.
//!
//! What is refused is what building a [`serde_json::Value`] refuses: the same depth, numbers and surrogates; tests
//! compare the two. The text is UTF-8 already, which is checked once and faster than string by string. A crate that
//! parses with vector instructions was weighed: those want padded or mutable input, build a tape of the whole document,
//! or rest on much unsafe code, while most of a record is passed over here.

/// How deep JSON may be nested.
const DEPTH_MAX: u8 = 127;
/// A number this long is looked at for whether a double can hold it, also without an exponent.
const PLAIN_NUMBER_BYTES_MAX: usize = 300;

/// The text is not JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotJson;

/// The beginning of a value. An object's fields and a list's elements are asked for one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Object,
    List,
    Text(TextSpan),
    Number(Span),
    Bool(bool),
    Null,
}

/// A part of the text that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// What stands between two quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TextSpan {
    pub(crate) span: Span,
    /// Whether it has escapes, valid ones.
    pub(crate) escaped: bool,
}

/// Reads one JSON value.
pub(crate) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    depth: u8,
}

/// Whether `text` is one JSON value.
pub(crate) fn is_json(text: &str) -> bool {
    let mut scanner = Scanner::new(text);
    scanner.skip_value().and_then(|()| scanner.end()).is_ok()
}

impl<'a> Scanner<'a> {
    pub(crate) const fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0 }
    }

    /// All that is read.
    pub(crate) const fn text(&self) -> &'a str {
        self.text
    }

    /// What a span of this text holds.
    pub(crate) fn raw(&self, span: Span) -> &'a str {
        &self.text[span.start..span.end]
    }

    /// The next value. After an object or a list, ask for all that is in it.
    #[inline]
    pub(crate) fn token(&mut self) -> Result<Token, NotJson> {
        match self.peek_solid() {
            Some(b'"') => self.string().map(Token::Text),
            Some(b'{') => self.open(Token::Object),
            Some(b'[') => self.open(Token::List),
            Some(b't') => self.word("true", Token::Bool(true)),
            Some(b'f') => self.word("false", Token::Bool(false)),
            Some(b'n') => self.word("null", Token::Null),
            Some(b'-' | b'0'..=b'9') => self.number().map(Token::Number),
            _ => Err(NotJson),
        }
    }

    /// The next field's key, with the colon behind it; `None` at the end of the object. `first` says whether a field
    /// was read before.
    #[inline]
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Result<Option<TextSpan>, NotJson> {
        if !self.go_on(b'}', first)? {
            return Ok(None);
        }
        if self.peek_solid() != Some(b'"') {
            return Err(NotJson);
        }
        let key = self.string()?;
        if self.peek_solid() != Some(b':') {
            return Err(NotJson);
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Whether the list has an element more, which is next.
    pub(crate) fn next_element(&mut self, first: &mut bool) -> Result<bool, NotJson> {
        self.go_on(b']', first)
    }

    /// Reads a value and forgets it.
    #[inline]
    pub(crate) fn skip_value(&mut self) -> Result<(), NotJson> {
        match self.token()? {
            token @ (Token::Object | Token::List) => self.skip_rest(token),
            _ => Ok(()),
        }
    }

    /// Reads what belongs to a value whose beginning was read.
    pub(crate) fn skip_rest(&mut self, begun: Token) -> Result<(), NotJson> {
        // The kinds of what is open, the innermost in the lowest bit: 1 is an object. There is room for the depth that
        // is allowed.
        let mut objects: u128 = match begun {
            Token::Object => 1,
            Token::List => 0,
            _ => return Ok(()),
        };
        let (around, mut first) = (self.depth - 1, true);
        loop {
            let is_object = objects & 1 == 1;
            let more = if is_object { self.next_key(&mut first)?.is_some() } else { self.next_element(&mut first)? };
            if !more {
                if self.depth == around {
                    return Ok(());
                }
                objects >>= 1;
                continue;
            }
            match self.token()? {
                Token::Object => (objects, first) = (objects << 1 | 1, true),
                Token::List => (objects, first) = (objects << 1, true),
                _ => {}
            }
        }
    }

    /// Nothing but white space is left.
    pub(crate) fn end(&mut self) -> Result<(), NotJson> {
        if self.peek_solid().is_none() { Ok(()) } else { Err(NotJson) }
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.text.as_bytes().get(at).copied()
    }

    /// The next byte that is no white space, not taken.
    #[inline]
    fn peek_solid(&mut self) -> Option<u8> {
        loop {
            match self.byte(self.at)? {
                b' ' | b'\n' | b'\t' | b'\r' => self.at += 1,
                solid => return Some(solid),
            }
        }
    }

    fn open(&mut self, token: Token) -> Result<Token, NotJson> {
        self.at += 1;
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(NotJson) } else { Ok(token) }
    }

    /// Takes the comma in front of a further member, or the end. `first` is false from here on: what follows is inside
    /// or behind.
    #[inline]
    fn go_on(&mut self, end: u8, first: &mut bool) -> Result<bool, NotJson> {
        let found = self.peek_solid();
        let was_first = std::mem::replace(first, false);
        if found == Some(end) {
            self.at += 1;
            self.depth -= 1;
            return Ok(false);
        }
        match (was_first, found) {
            (true, Some(_)) => Ok(true),
            (false, Some(b',')) => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(NotJson),
        }
    }

    fn word(&mut self, word: &str, token: Token) -> Result<Token, NotJson> {
        let rest = self.text.as_bytes().get(self.at..).unwrap_or_default();
        if !rest.starts_with(word.as_bytes()) {
            return Err(NotJson);
        }
        self.at += word.len();
        Ok(token)
    }

    /// A string from its opening quote on.
    #[inline]
    fn string(&mut self) -> Result<TextSpan, NotJson> {
        let start = self.at + 1;
        let (mut at, mut escaped) = (start, false);
        loop {
            at = special_byte(self.text.as_bytes(), at);
            match self.byte(at) {
                Some(b'"') => {
                    self.at = at + 1;
                    return Ok(TextSpan { span: Span { start, end: at }, escaped });
                }
                Some(b'\\') => {
                    at = escape(self.text.as_bytes(), at).ok_or(NotJson)?.1;
                    escaped = true;
                }
                // A control character, or the end.
                _ => return Err(NotJson),
            }
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.byte(self.at).is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    fn take(&mut self, wanted: &[u8]) -> Option<u8> {
        let found = self.byte(self.at).filter(|byte| wanted.contains(byte));
        self.at += usize::from(found.is_some());
        found
    }

    fn number(&mut self) -> Result<Span, NotJson> {
        let start = self.at;
        self.take(b"-");
        let leading_zero = self.byte(self.at) == Some(b'0');
        let digits = self.digits();
        if digits == 0 || (leading_zero && digits > 1) {
            return Err(NotJson);
        }
        if self.take(b".").is_some() && self.digits() == 0 {
            return Err(NotJson);
        }
        let has_exponent = self.take(b"eE").is_some();
        if has_exponent {
            self.take(b"+-");
            if self.digits() == 0 {
                return Err(NotJson);
            }
        }
        let span = Span { start, end: self.at };
        let may_be_too_great = has_exponent || span.end - span.start > PLAIN_NUMBER_BYTES_MAX;
        if may_be_too_great && serde_json::from_str::<serde_json::Number>(self.raw(span)).is_err() {
            return Err(NotJson);
        }
        Ok(span)
    }
}

/// Where the next quote, backslash or control character is, from `at` on; the text's length when there is none.
#[inline]
fn special_byte(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = ONES * 0x80;
    while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*chunk);
        let below = |word: u64, bound: u64| word.wrapping_sub(ONES * bound) & !word;
        // The lowest byte that is marked is marked rightly; a borrow can only mark bytes above it.
        let marks = (below(word, 0x20)
            | below(word ^ (ONES * u64::from(b'"')), 1)
            | below(word ^ (ONES * u64::from(b'\\')), 1))
            & HIGHS;
        if marks != 0 {
            return at + (marks.trailing_zeros() / 8) as usize;
        }
        at += 8;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(rest.len())
}

/// The character that an escape stands for, and where what is behind it begins. `at` is the backslash.
fn escape(bytes: &[u8], at: usize) -> Option<(char, usize)> {
    let plain = match bytes.get(at + 1)? {
        b'"' => '"',
        b'\\' => '\\',
        b'/' => '/',
        b'b' => '\u{8}',
        b'f' => '\u{c}',
        b'n' => '\n',
        b'r' => '\r',
        b't' => '\t',
        b'u' => return unicode_escape(bytes, at),
        _ => return None,
    };
    Some((plain, at + 2))
}

fn unicode_escape(bytes: &[u8], at: usize) -> Option<(char, usize)> {
    let unit = hex4(bytes, at + 2)?;
    if let Some(character) = char::from_u32(unit) {
        return Some((character, at + 6));
    }
    if bytes.get(at + 6..at + 8)? != br"\u" {
        return None;
    }
    let low = hex4(bytes, at + 8)?;
    if !(0xd800..0xdc00).contains(&unit) || !(0xdc00..0xe000).contains(&low) {
        return None;
    }
    char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)).map(|character| (character, at + 12))
}

fn hex4(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 4)?;
    digits.iter().try_fold(0, |number, digit| Some(number << 4 | (*digit as char).to_digit(16)?))
}

/// Appends to `out` what a text with valid escapes says.
pub(crate) fn unescape(raw: &str, out: &mut String) {
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let Some((character, behind)) = escape(rest.as_bytes(), at) else { return };
        out.push(character);
        rest = &rest[behind..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn judged_alike(text: &str) -> bool {
        is_json(text) == serde_json::from_str::<Value>(text).is_ok()
    }

    #[test]
    fn what_is_json_is_what_the_json_reader_takes() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let objects = |depth: usize| "{\"a\":".repeat(depth) + "1" + &"}".repeat(depth);
        let long = "9".repeat(400);
        for (text, good) in [
            (nested(127), true),
            (nested(128), false),
            (objects(127), true),
            (objects(128), false),
            (long.clone(), false),
            (format!("0.{long}"), true),
            ("1e308".to_owned(), true),
            ("1e309".to_owned(), false),
            ("0e99999999999".to_owned(), true),
            ("-0".to_owned(), true),
            ("01".to_owned(), false),
            ("-".to_owned(), false),
            ("1.".to_owned(), false),
            (".5".to_owned(), false),
            ("+1".to_owned(), false),
            ("1e".to_owned(), false),
            (r#""\ud83d\ude00""#.to_owned(), true),
            (r#""\ud83d""#.to_owned(), false),
            (r#""\ude00""#.to_owned(), false),
            (r#""\ud83d\u0041""#.to_owned(), false),
            (r#""\u00G0""#.to_owned(), false),
            (r#""\x""#.to_owned(), false),
            ("\"a\u{1}\"".to_owned(), false),
            ("\"a\u{7f}\u{80}é\"".to_owned(), true),
            ("\"12345678".to_owned(), false),
            ("[1,]".to_owned(), false),
            ("[,1]".to_owned(), false),
            ("{\"a\":1,}".to_owned(), false),
            ("{\"a\" 1}".to_owned(), false),
            ("{a:1}".to_owned(), false),
            ("[1}".to_owned(), false),
            ("tru".to_owned(), false),
            ("nulll".to_owned(), false),
            (" \t\r\n[ ] \n".to_owned(), true),
            ("\u{c}1".to_owned(), false),
            (String::new(), false),
            ("1 1".to_owned(), false),
        ] {
            assert_eq!(is_json(&text), good, "{text}");
            assert!(judged_alike(&text), "{text}");
        }
    }

    /// Reads a value with the scanner into what the JSON reader builds.
    fn built(scanner: &mut Scanner<'_>) -> Result<Value, NotJson> {
        let text = |scanner: &Scanner<'_>, text: TextSpan| {
            let mut out = String::new();
            unescape(scanner.raw(text.span), &mut out);
            assert!(text.escaped || out == scanner.raw(text.span));
            out
        };
        let mut first = true;
        Ok(match scanner.token()? {
            Token::Null => Value::Null,
            Token::Bool(value) => value.into(),
            Token::Number(span) => serde_json::from_str(scanner.raw(span)).unwrap(),
            Token::Text(span) => text(scanner, span).into(),
            Token::List => {
                let mut elements = Vec::new();
                while scanner.next_element(&mut first)? {
                    elements.push(built(scanner)?);
                }
                elements.into()
            }
            Token::Object => {
                let mut fields = serde_json::Map::new();
                while let Some(key) = scanner.next_key(&mut first)? {
                    let value = built(scanner)?;
                    fields.insert(text(scanner, key), value);
                }
                fields.into()
            }
        })
    }

    /// Pieces that make JSON, nearly JSON and anything else.
    fn any_text() -> impl Strategy<Value = String> {
        const PIECES: [&str; 28] = [
            "{", "}", "[", "]", ":", ",", "\"", "\"a\"", "\"a\":", "\"\\n\"", "\\", "\\u", "d800", "\\udc00", "1", "-",
            "0", ".5", "e9", "E+400", "true", "null", "false", " ", "\n", "é", "\u{1}", "abcdefgh",
        ];
        let piece = prop_oneof![proptest::sample::select(&PIECES[..]).prop_map(str::to_owned), "[ -~]{0,3}"];
        proptest::collection::vec(piece, 0..14).prop_map(|pieces| pieces.concat())
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(".{0,9}", inner, 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn any_text_is_judged_as_the_json_reader_does(text in any_text()) {
            prop_assert!(judged_alike(&text));
        }

        #[test]
        fn what_is_read_is_what_was_written(value in any_value(), pretty in any::<bool>()) {
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            prop_assert!(is_json(&text));
            prop_assert_eq!(built(&mut Scanner::new(&text)).unwrap(), value);
        }

        #[test]
        fn a_text_cut_short_is_no_json(value in any_value(), cut in any::<prop::sample::Index>()) {
            let text = Value::from(vec![value]).to_string();
            let mut cut = cut.index(text.len());
            while !text.is_char_boundary(cut) {
                cut -= 1;
            }
            prop_assert!(!is_json(&text[..cut]));
        }

        #[test]
        fn escapes_are_read_as_the_json_reader_does(units in proptest::collection::vec(any::<u16>(), 0..6)) {
            let raw: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let quoted = format!("\"{raw}\"");
            match serde_json::from_str::<String>(&quoted) {
                Err(_) => prop_assert!(!is_json(&quoted)),
                Ok(text) => {
                    let mut out = String::new();
                    unescape(&raw, &mut out);
                    prop_assert_eq!(out, text);
                }
            }
        }
    }
}
