//! Durations and sizes as people write them: `500ms`, `10s`, `24h`; `64KiB`, `10MB`.

use std::time::Duration;

/// Units of time, largest first, with their milliseconds. Days are read but never written: `24h` reads better than `1d`
/// next to `36h`.
const TIME_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Units of size with their bytes; those that are written come first, largest first.
const SIZE_UNITS: [(&str, u64); 11] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1000),
    ("kB", 1000),
    ("", 1),
];

/// Why a text is not a duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It does not start with digits.
    #[error("a whole number is expected in front of the unit")]
    Number,
    /// A duration without its unit; only 0 needs none.
    #[error("the unit is missing: ms, s, m, h or d")]
    UnitMissing,
    /// The letters after the number are no unit.
    #[error("{unit:?} is not a unit")]
    Unit {
        /// What stands there.
        unit: String,
    },
    /// It does not fit 64 bits.
    #[error("the number is too large")]
    TooLarge,
}

/// Reads a duration: a whole number and `ms`, `s`, `m`, `h` or `d`; a bare `0` is fine, any other bare number is not,
/// because seconds and milliseconds are too easily mixed up.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return if number == 0 { Ok(Duration::ZERO) } else { Err(UnitError::UnitMissing) };
    }
    scale(number, unit, &TIME_UNITS).map(Duration::from_millis)
}

/// Reads a size in bytes: a whole number, bare (bytes) or with `B`, `KiB`, `MiB`, `GiB`, `TiB` (powers of 1,024) or
/// `kB`, `MB`, `GB`, `TB` (powers of 1,000).
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text)?;
    scale(number, unit, &SIZE_UNITS)
}

/// Writes a duration so that [`parse_duration`] reads the same; whole milliseconds only, the rest is cut.
#[must_use]
pub fn display_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0".to_owned();
    }
    let written = TIME_UNITS[1..].iter().find(|(_, unit_millis)| millis.is_multiple_of(*unit_millis));
    let (name, unit_millis) = written.unwrap_or(&("ms", 1));
    format!("{}{name}", millis / unit_millis)
}

/// Writes a size so that [`parse_size`] reads the same.
#[must_use]
pub fn display_size(size_bytes: u64) -> String {
    if size_bytes == 0 {
        return "0".to_owned();
    }
    let written = SIZE_UNITS[..5].iter().find(|(_, unit_bytes)| size_bytes.is_multiple_of(*unit_bytes));
    let (name, unit_bytes) = written.unwrap_or(&("B", 1));
    format!("{}{name}", size_bytes / unit_bytes)
}

fn split(text: &str) -> Result<(u64, &str), UnitError> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if digits == 0 {
        return Err(UnitError::Number);
    }
    let number = text[..digits].parse().map_err(|_| UnitError::TooLarge)?;
    Ok((number, text[digits..].trim_start()))
}

fn scale(number: u64, unit: &str, units: &[(&str, u64)]) -> Result<u64, UnitError> {
    let known = units.iter().find(|(name, _)| *name == unit);
    let (_, factor) = known.ok_or_else(|| UnitError::Unit { unit: unit.chars().take(16).collect() })?;
    number.checked_mul(*factor).ok_or(UnitError::TooLarge)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_with_their_unit() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("7d", 604_800_000),
            ("0", 0),
            ("0s", 0),
            (" 1 s ", 1000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse_duration("10"), Err(UnitError::UnitMissing));
        for (text, unit) in [("1.5s", ".5s"), ("10sec", "sec"), ("10S", "S"), ("1h30m", "h30m")] {
            assert_eq!(parse_duration(text), Err(UnitError::Unit { unit: unit.to_owned() }), "{text}");
        }
        for text in ["", "s", "-1s", "soon"] {
            assert_eq!(parse_duration(text), Err(UnitError::Number), "{text}");
        }
        for text in ["99999999999999999999s", "18446744073709551615h"] {
            assert_eq!(parse_duration(text), Err(UnitError::TooLarge), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_both_families_of_units() {
        for (text, bytes) in [
            ("1MiB", 1 << 20),
            ("64KiB", 65_536),
            ("10MB", 10_000_000),
            ("5kB", 5000),
            ("5KB", 5000),
            ("7", 7),
            ("7B", 7),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("1mib"), Err(UnitError::Unit { unit: "mib".to_owned() }));
        assert_eq!(parse_size("99999999TiB"), Err(UnitError::TooLarge));
        assert_eq!(parse_size("MiB"), Err(UnitError::Number));
    }

    #[test]
    fn they_are_written_in_the_largest_whole_unit() {
        assert_eq!(display_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(display_duration(Duration::from_secs(90)), "90s");
        assert_eq!(display_duration(Duration::from_secs(86_400)), "24h");
        assert_eq!(display_size(1 << 20), "1MiB");
        assert_eq!(display_size(1500), "1500B");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(number in any::<u64>()) {
            prop_assert_eq!(parse_size(&display_size(number)), Ok(number));
            let duration = Duration::from_millis(number);
            prop_assert_eq!(parse_duration(&display_duration(duration)), Ok(duration));
        }
    }
}
