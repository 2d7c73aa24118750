//! Query parameters: each is known, there once, and says what it may be.

use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::problem::Problem;
use crate::config::fields::nearest;
use crate::config::units::parse_duration;

/// The parameters of one request.
#[derive(Clone, Debug, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// Reads what stands behind the `?`. Only names in `allowed` may be there, each once.
    ///
    /// # Errors
    /// 400, with the nearest right name.
    pub fn parse(raw: Option<&str>, allowed: &[&str]) -> Result<Self, Problem> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if !allowed.contains(&name.as_str()) {
                return Err(unknown(&name, allowed));
            }
            if pairs.iter().any(|(known, _)| *known == name) {
                return Err(Problem::bad_request("invalid-query", format!("query parameter `{name}` is there twice")));
            }
            pairs.push((name, value));
        }
        Ok(Self { pairs })
    }

    /// The text of a parameter.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A whole number from `min` to `max`.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn number(&self, name: &str, min: u32, max: u32) -> Result<Option<u32>, Problem> {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| (min..=max).contains(number));
        number.map(Some).ok_or_else(|| wrong(name, text, &format!("a whole number from {min} to {max}")))
    }

    /// `true` or `false`; false when it is missing.
    ///
    /// # Errors
    /// 400 when it is neither.
    pub fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.text(name) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(other) => Err(wrong(name, other, "true or false")),
        }
    }

    /// A duration with its unit, at most `max`; zero when it is missing.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn duration(&self, name: &str, max: Duration) -> Result<Duration, Problem> {
        let Some(text) = self.text(name) else { return Ok(Duration::ZERO) };
        let duration = parse_duration(text).ok().filter(|duration| *duration <= max);
        let allowed = format!("a duration with its unit up to {}s, such as 500ms or 10s", max.as_secs());
        duration.ok_or_else(|| wrong(name, text, &allowed))
    }
}

/// A parameter that is not what it may be.
#[must_use]
pub fn wrong(name: &str, found: &str, allowed: &str) -> Problem {
    let found: String = found.chars().take(80).collect();
    let detail = format!("query parameter `{name}`: found {found:?}, allowed: {allowed}");
    Problem::bad_request("invalid-query", detail)
}

fn unknown(name: &str, allowed: &[&str]) -> Problem {
    let shown: String = name.chars().take(80).collect();
    let mut detail = format!("query parameter {shown:?} is not known here");
    match allowed {
        [] => detail.push_str("; none is"),
        _ => detail.push_str(&format!(", allowed: {}", allowed.join(", "))),
    }
    let suggestion = nearest(name, allowed.iter().copied());
    if let Some(suggestion) = &suggestion {
        detail.push_str(&format!("; did you mean `{suggestion}`?"));
    }
    let problem = Problem::bad_request("invalid-query", detail);
    match suggestion {
        Some(suggestion) => problem.with("suggestion", suggestion),
        None => problem,
    }
}

fn decode(text: &str) -> Result<String, Problem> {
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().map(|text| text.into_owned());
    decoded
        .map_err(|_| Problem::bad_request("invalid-query", format!("the query has bytes that are not UTF-8: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detail<T: std::fmt::Debug>(result: Result<T, Problem>) -> String {
        result.unwrap_err().detail
    }

    #[test]
    fn parameters_are_decoded_and_checked() {
        let query = Query::parse(Some("a=1%20b&n=7&f=true&d=500ms"), &["a", "n", "f", "d"]).unwrap();
        assert_eq!((query.text("a"), query.text("b")), (Some("1 b"), None));
        assert_eq!(query.number("n", 1, 9).unwrap(), Some(7));
        assert!(query.flag("f").unwrap());
        assert_eq!(query.duration("d", Duration::from_secs(1)).unwrap(), Duration::from_millis(500));
        assert!(detail(query.number("n", 8, 9)).contains("a whole number from 8 to 9"));
        assert!(detail(query.flag("a")).contains("true or false"));
        assert!(detail(query.duration("n", Duration::from_secs(1))).contains("duration"));
    }

    #[test]
    fn unknown_and_repeated_names_are_refused_with_the_nearest() {
        let unknown = Query::parse(Some("partion=1"), &["partition", "from"]);
        assert_eq!(
            detail(unknown),
            "query parameter \"partion\" is not known here, allowed: partition, from; did you mean `partition`?"
        );
        assert!(detail(Query::parse(Some("x=1"), &[])).ends_with("; none is"));
        assert!(detail(Query::parse(Some("a=1&a=2"), &["a"])).contains("twice"));
        assert!(detail(Query::parse(Some("a=%ff"), &["a"])).contains("UTF-8"));
    }
}
