//! Decides whether a text without quotes would be read as another type.
//!
//! go-yaml asks its own reader before it leaves out the quotes. That reader knows nulls, booleans
//! (those of YAML 1.1 too), numbers in any of Go's notations, and timestamps. A number that is too
//! large for Go (`1e999`) is a text.

/// Whether `text` would not be read as a text.
pub(super) fn is_other_type(text: &str) -> bool {
    is_null_or_bool(text) || is_special_float(text) || is_old_bool(text) || is_base60(text) || {
        match text.as_bytes().first() {
            Some(b'.') => is_go_float(text),
            Some(b'+' | b'-' | b'0'..=b'9') => is_timestamp(text) || is_number(text),
            _ => false,
        }
    }
}

fn is_null_or_bool(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
        || matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE")
}

fn is_special_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

/// Booleans of YAML 1.1, which other readers still know.
fn is_old_bool(text: &str) -> bool {
    matches!(text, "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON")
        || matches!(text, "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF")
}

/// Numbers of YAML 1.1 to the base 60, `12:30:45.6`.
fn is_base60(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (text, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut groups = text.split(':');
    let first = groups.next().unwrap_or_default();
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let mut rest = groups.peekable();
    first.starts_with(|c: char| c.is_ascii_digit())
        && is_digits(first)
        && is_digits(fraction)
        && rest.peek().is_some()
        && rest.all(|group| matches!(group.as_bytes(), [b'0'..=b'9'] | [b'0'..=b'5', b'0'..=b'9']))
}

/// A number that starts with a sign or a digit. Underscores between digits are passed over.
fn is_number(text: &str) -> bool {
    let plain = text.replace('_', "");
    let (negative, unsigned) = match plain.strip_prefix(['+', '-']) {
        Some(unsigned) => (plain.starts_with('-'), unsigned),
        None => (false, plain.as_str()),
    };
    is_go_integer(unsigned, plain.len() > unsigned.len(), negative)
        || is_plain_float(unsigned)
        || is_prefixed_with_sign(&plain)
}

/// The texts that `strconv.ParseInt` or `ParseUint` with base 0 accepts behind the sign.
fn is_go_integer(unsigned: &str, signed: bool, negative: bool) -> bool {
    let bytes = unsigned.as_bytes();
    let (digits, radix) = match bytes {
        [b'0', b'x' | b'X', ..] => (&unsigned[2..], 16),
        [b'0', b'b' | b'B', ..] => (&unsigned[2..], 2),
        [b'0', b'o' | b'O', ..] => (&unsigned[2..], 8),
        [b'0', _, ..] => (&unsigned[1..], 8),
        _ => (unsigned, 10),
    };
    let most = match (signed, negative) {
        (true, true) => 1 << 63,
        (true, false) => i64::MAX as u64,
        (false, _) => u64::MAX,
    };
    !digits.starts_with(['+', '-'])
        && u64::from_str_radix(digits, radix).is_ok_and(|value| value <= most)
}

/// go-yaml's own pattern for floats, within the range of one.
fn is_plain_float(unsigned: &str) -> bool {
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    let is_mantissa = is_digits(whole)
        && fraction.is_none_or(is_digits)
        && (!whole.is_empty() || fraction.is_some_and(|fraction| !fraction.is_empty()));
    let is_exponent = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !digits.is_empty() && is_digits(digits)
    });
    is_mantissa && is_exponent && unsigned.parse::<f64>().is_ok_and(f64::is_finite)
}

/// `0b` and `0o` with a sign behind the prefix, which go-yaml accepts by accident.
fn is_prefixed_with_sign(plain: &str) -> bool {
    let signed =
        |radix| move |digits: &str| digits.len() > 1 && i64::from_str_radix(digits, radix).is_ok();
    plain.strip_prefix("0b").is_some_and(signed(2))
        || plain.strip_prefix("0o").is_some_and(signed(8))
}

/// The texts with a dot at the start that `strconv.ParseFloat` accepts: underscores between digits.
pub(in crate::kit::kitfile) fn is_go_float(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
    let underscores_ok = bytes
        .iter()
        .enumerate()
        .all(|(at, byte)| *byte != b'_' || (at > 0 && is_between_digits(bytes, at)));
    is_digit(1) && underscores_ok && is_plain_float(&text.replace('_', ""))
}

fn is_between_digits(bytes: &[u8], at: usize) -> bool {
    bytes[at - 1].is_ascii_digit() && bytes.get(at + 1).is_some_and(u8::is_ascii_digit)
}

/// The timestamps of go-yaml: a date, or a date and a time of day. A zone follows a time behind
/// `T`, and none follows a time behind a blank.
pub(in crate::kit::kitfile) fn is_timestamp(text: &str) -> bool {
    let mut rest = Cursor(text);
    let Some(year) = rest.digits(4, 4) else { return false };
    let month = rest.eat('-').then(|| rest.digits(1, 2)).flatten();
    let day = rest.eat('-').then(|| rest.digits(1, 2)).flatten();
    let (Some(month), Some(day)) = (month, day) else { return false };
    let is_date = jiff::civil::Date::new(year as i16, month as i8, day as i8).is_ok();
    if !is_date || rest.0.is_empty() {
        return is_date;
    }
    if rest.eat('T') || rest.eat('t') {
        rest.time_of_day() && rest.zone() && rest.0.is_empty()
    } else {
        rest.eat(' ') && {
            while rest.eat(' ') {}
            rest.time_of_day() && rest.0.is_empty()
        }
    }
}

/// The rest of a text.
struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    fn eat(&mut self, expected: char) -> bool {
        let rest = self.0.strip_prefix(expected);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    /// Takes the digits that follow, up to `most`; `None` for fewer than `least`.
    fn digits(&mut self, least: usize, most: usize) -> Option<u32> {
        let count = self.0.bytes().take(most).take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        (count >= least).then(|| digits.parse().expect("a few digits fit 32 bits"))
    }

    fn at_most(&mut self, digits: (usize, usize), most: u32) -> bool {
        self.digits(digits.0, digits.1).is_some_and(|value| value <= most)
    }

    /// `15:4:5`, and a fraction.
    fn time_of_day(&mut self) -> bool {
        let is_time = self.at_most((1, 2), 23)
            && self.eat(':')
            && self.at_most((1, 2), 59)
            && self.eat(':')
            && self.at_most((1, 2), 59);
        let mut fraction = Cursor(self.0);
        if (fraction.eat('.') || fraction.eat(',')) && fraction.digits(1, 1).is_some() {
            self.0 = fraction.0.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        is_time
    }

    /// `Z`, or `+07:00`.
    fn zone(&mut self) -> bool {
        self.eat('Z')
            || ((self.eat('+') || self.eat('-'))
                && self.at_most((2, 2), 24)
                && self.eat(':')
                && self.at_most((2, 2), 60))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts_that_would_be_read_as_another_type() {
        for text in [
            "",
            "~",
            "null",
            "NULL",
            "true",
            "False",
            "yes",
            "No",
            "off",
            "y",
            "N",
            ".inf",
            "-.INF",
            "+.Inf",
            ".nan",
            "0",
            "-1",
            "+1",
            "1_000",
            "014",
            "089",
            "0x1F",
            "0X1f",
            "0b101",
            "0o14",
            "0O7",
            "-0x10",
            "18446744073709551615",
            "99999999999999999999",
            "1.",
            "1.5",
            ".5",
            "+.5",
            "-.5e3",
            "1e3",
            "1E-3",
            "1.10",
            ".1_0",
            "1_0.5_0",
            "0b-1",
            "0o+7",
            "12:30",
            "-12:30:45",
            "1:59.5",
            "190:20:30.15",
            "2024-01-02",
            "2024-1-2",
            "2024-01-02T03:04:05Z",
            "2024-01-02t3:4:5.25+01:00",
            "2024-01-02 03:04:05",
            "2024-01-02   3:4:5,5",
            "2024-02-29",
        ] {
            assert!(is_other_type(text), "{text:?}");
        }
    }

    #[test]
    fn texts_that_are_read_as_texts() {
        for text in [
            "nUll",
            "tRUE",
            "yES",
            "oN",
            "+.nan",
            "x1",
            "1e999",
            "-1e999",
            "0x",
            "0xg",
            "0b2",
            "1e",
            "e3",
            ".",
            "..",
            "._1",
            ".1_",
            ".1__0",
            "-",
            "+",
            "--1",
            "1.2.3",
            "v1.0",
            "1 2",
            "12:60",
            ":30",
            "12:",
            "1:2:x",
            "0x1p4",
            "0b-",
            "2024-13-01",
            "2023-02-29",
            "2024-1",
            "2024-01-02T",
            "2024-01-02T03:04:05",
            "2024-01-02 24:00:00",
            "2024-01-02 03:04:05Z",
            "24-01-02",
            "20240-01-02",
            "=",
            "<<",
            "inf",
            "Infinity",
            "nan",
        ] {
            assert!(!is_other_type(text), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged_without_a_panic(text in "[-+._:eExbo0-9TZtz ,é]{0,30}") {
            is_other_type(&text);
        }

        #[test]
        fn every_number_is_one(number in any::<f64>().prop_filter("finite", |n| n.is_finite())) {
            prop_assert!(is_other_type(&super::super::number::shortest(number)));
        }
    }
}
