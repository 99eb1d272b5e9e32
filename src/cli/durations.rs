//! Durations in arguments: `90`, `90s`, `5m`, `1h`, `2d`.

use std::time::Duration;

/// The units, in seconds. The last name of a unit is the one that is shown.
const UNITS: [(&str, u64); 6] =
    [("", 1), ("s", 1), ("min", 60), ("m", 60), ("h", 3600), ("d", 86400)];

/// A duration, or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limit(pub Option<Duration>);

/// Parses a duration. A number without a unit counts seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "`{text}` is not a time: write a number of seconds, or one with a unit: 90s, 5m, 1h, 2d"
        )
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(unit).filter(|&seconds| seconds <= u64::from(u32::MAX));
    seconds.map(Duration::from_secs).ok_or_else(|| "the duration is too long".to_owned())
}

/// Parses a duration of a second or more, in seconds.
pub(super) fn parse_seconds(text: &str) -> Result<u64, String> {
    match parse_duration(text)?.as_secs() {
        0 => Err("the least duration is one second".to_owned()),
        seconds => Ok(seconds),
    }
}

/// Parses a duration of a second or more, or `never`.
pub(super) fn parse_limit(text: &str) -> Result<Limit, String> {
    match text {
        "never" => Ok(Limit(None)),
        text => match parse_seconds(text) {
            Ok(seconds) => Ok(Limit(Some(Duration::from_secs(seconds)))),
            Err(error) => Err(format!("{error}, or `never`")),
        },
    }
}

/// Writes a duration in its largest whole unit, in the form that [`parse_limit`] reads.
pub(super) fn show_limit(limit: Option<Duration>) -> String {
    let Some(limit) = limit else { return "never".to_owned() };
    let seconds = limit.as_secs();
    let is_whole = |(_, unit): &&(&str, u64)| seconds > 0 && seconds.is_multiple_of(*unit);
    match UNITS.iter().rev().find(is_whole) {
        Some((name, unit)) => format!("{}{name}", seconds / unit),
        None => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_counts_seconds_unless_it_has_a_unit() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("5m", 300),
            ("5min", 300),
            ("1h", 3600),
            ("2d", 172_800),
            ("0", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "5 m", "5sec", "-1", "1.5h", "99999999999", "99999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_limit_is_a_second_or_more_or_never() {
        assert_eq!(parse_limit("never"), Ok(Limit(None)));
        assert_eq!(parse_seconds("5min"), Ok(300));
        for text in ["", "0", "0h", "Never", "never ", "10x"] {
            assert!(parse_limit(text).unwrap_err().ends_with("or `never`"), "{text}");
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_limit_that_was_shown_is_parsed_again(seconds in proptest::option::of(1..=u32::MAX)) {
            let limit = seconds.map(|seconds| Duration::from_secs(seconds.into()));
            prop_assert_eq!(parse_limit(&show_limit(limit)), Ok(Limit(limit)));
        }
    }
}
