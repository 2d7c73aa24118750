//! String literals of a path.

use super::PathError;
use super::parse::Parser;

impl Parser<'_> {
    /// A string in single or double quotes; the opening quote is next.
    pub(super) fn quoted(&mut self) -> Result<String, PathError> {
        let Some(quote @ ('\'' | '"')) = self.peek() else { return Err(self.expected("a string in quotes")) };
        self.next();
        let mut text = String::new();
        loop {
            match self.peek() {
                Some(end) if end == quote => {
                    self.next();
                    return Ok(text);
                }
                Some('\\') => text.push(self.escaped(quote)?),
                Some(plain) if plain >= ' ' => {
                    text.push(plain);
                    self.next();
                }
                Some(_) => return Err(self.expected("a control character as an escape such as \\n or \\u0000")),
                None => return Err(self.expected("the closing quote")),
            }
        }
    }

    fn escaped(&mut self, quote: char) -> Result<char, PathError> {
        const ALLOWED: &str = "an escape: \\b \\f \\n \\r \\t \\/ \\\\ \\uXXXX or the quote";
        self.next();
        let escaped = match self.peek() {
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('/') => '/',
            Some('\\') => '\\',
            Some(same) if same == quote => quote,
            Some('u') => return self.unicode_escape(),
            _ => return Err(self.expected(ALLOWED)),
        };
        self.next();
        Ok(escaped)
    }

    /// `uXXXX`, or two of them for a surrogate pair.
    fn unicode_escape(&mut self) -> Result<char, PathError> {
        const PAIR: &str = "a surrogate pair, such as \\uD83D\\uDE00";
        let first = self.four_digits()?;
        if let Some(plain) = char::from_u32(first) {
            return Ok(plain);
        }
        if !(0xD800..0xDC00).contains(&first) || !self.take("\\") || self.peek() != Some('u') {
            return Err(self.expected(PAIR));
        }
        let second = self.four_digits()?;
        if !(0xDC00..0xE000).contains(&second) {
            return Err(self.expected(PAIR));
        }
        let joined = 0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00);
        char::from_u32(joined).ok_or_else(|| self.expected(PAIR))
    }

    fn four_digits(&mut self) -> Result<u32, PathError> {
        self.next();
        let mut number = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|digit| digit.to_digit(16));
            let Some(digit) = digit else { return Err(self.expected("four hexadecimal digits")) };
            number = 16 * number + digit;
            self.next();
        }
        Ok(number)
    }
}
