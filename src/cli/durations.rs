//! Durations in arguments: `90`, `90s`, `5m`, `1h`, `2d`.

use std::time::Duration;

/// The units, in seconds.
const UNITS: [(&str, u64); 5] = [("", 1), ("s", 1), ("m", 60), ("h", 3600), ("d", 86400)];

/// Parses a duration. A number without a unit counts seconds.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a number with a unit: 90s, 5m, 1h, 2d".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, unit) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(unit).filter(|&seconds| seconds <= u64::from(u32::MAX));
    seconds.map(Duration::from_secs).ok_or_else(|| "the duration is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_counts_seconds_unless_it_has_a_unit() {
        for (text, seconds) in
            [("90", 90), ("90s", 90), ("5m", 300), ("1h", 3600), ("2d", 172_800), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "s", "5 m", "5min", "-1", "1.5h", "99999999999", "99999999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }
}
