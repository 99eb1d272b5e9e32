//! Scalars of `parameters` as go-yaml reads them, and as Go then writes them in JSON.
//!
//! A plain text may be a null, a boolean, a number in any of Go's notations, or a timestamp. A timestamp
//! becomes a text in RFC 3339.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::json::Json;
use super::super::yaml::{is_go_float, is_timestamp};
use super::nodes::Scalar;

/// The value of a scalar in `parameters`. The error says why JSON has none.
pub(super) fn value(scalar: &Scalar) -> Result<Json, String> {
    let text = scalar.text.as_str();
    match scalar.tag.as_deref() {
        Some("binary") => return binary(text).map(Json::Text),
        Some("str") => return Ok(Json::Text(text.to_owned())),
        Some(tag @ ("int" | "float" | "bool" | "null")) => {
            let value = plain(text)?;
            let fits = matches!(
                (&value, tag),
                (Json::Integer(_), "int" | "float")
                    | (Json::Float(_), "float")
                    | (Json::Bool(_), "bool")
                    | (Json::Null, "null")
            );
            return match fits {
                true => Ok(value),
                false => Err(format!("`{text}` is not of the type !!{tag}")),
            };
        }
        Some("timestamp") => {
            return match is_timestamp(text) {
                true => Ok(Json::Text(rfc3339(text))),
                false => Err(format!("`{text}` is not a timestamp")),
            };
        }
        // Another type's text stays a text.
        Some(_) => return Ok(Json::Text(text.to_owned())),
        None => {}
    }
    match scalar.is_plain {
        true => plain(text),
        false => Ok(Json::Text(text.to_owned())),
    }
}

/// The text of a field that holds a text: any scalar as it is written, nothing for a null.
pub(super) fn text(scalar: &Scalar) -> Result<String, String> {
    let text = scalar.text.as_str();
    let is_untyped = scalar.is_plain && scalar.tag.is_none();
    match scalar.tag.as_deref() {
        Some("binary") => binary(text),
        Some("null") => Ok(String::new()),
        _ if is_untyped && is_null(text) => Ok(String::new()),
        _ => Ok(text.to_owned()),
    }
}

/// Whether a scalar stands for nothing.
pub(super) fn is_nothing(scalar: &Scalar) -> bool {
    scalar.tag.as_deref() == Some("null")
        || (scalar.tag.is_none() && scalar.is_plain && is_null(&scalar.text))
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn binary(text: &str) -> Result<String, String> {
    let plain: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(plain).map_err(|_| "!!binary needs base64".to_owned())?;
    String::from_utf8(bytes).map_err(|_| "!!binary holds no UTF-8 text".to_owned())
}

fn plain(text: &str) -> Result<Json, String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(format!("JSON has no number `{text}`; put it into quotes"));
    }
    let value = match text {
        _ if is_null(text) => Some(Json::Null),
        "true" | "True" | "TRUE" => Some(Json::Bool(true)),
        "false" | "False" | "FALSE" => Some(Json::Bool(false)),
        _ => match text.as_bytes().first() {
            Some(b'.') => is_go_float(text).then(|| float(&text.replace('_', ""))).flatten(),
            Some(b'+' | b'-' | b'0'..=b'9') if is_timestamp(text) => {
                Some(Json::Text(rfc3339(text)))
            }
            Some(b'+' | b'-' | b'0'..=b'9') => number(&text.replace('_', "")),
            _ => None,
        },
    };
    Ok(value.unwrap_or_else(|| Json::Text(text.to_owned())))
}

/// A number as go-yaml tries the notations: `strconv.ParseInt` and `ParseUint` with base 0, its own
/// pattern for floats, and `0b` and `0o` with a sign.
fn number(text: &str) -> Option<Json> {
    integer(text).or_else(|| float(text)).or_else(|| prefixed(text))
}

fn integer(text: &str) -> Option<Json> {
    let (is_signed, is_negative, unsigned) = match text.as_bytes().first()? {
        b'-' => (true, true, &text[1..]),
        b'+' => (true, false, &text[1..]),
        _ => (false, false, text),
    };
    let (digits, radix) = match unsigned.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&unsigned[2..], 16),
        [b'0', b'b' | b'B', ..] => (&unsigned[2..], 2),
        [b'0', b'o' | b'O', ..] => (&unsigned[2..], 8),
        [b'0', _, ..] => (&unsigned[1..], 8),
        _ => (unsigned, 10),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let value = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let value = if is_negative { -value } else { value };
    // Only a number without a sign may need all 64 bits.
    let fits = !is_signed || i64::try_from(value).is_ok();
    fits.then_some(Json::Integer(value))
}

fn float(text: &str) -> Option<Json> {
    let is_number = |c: char| c.is_ascii_digit() || matches!(c, '.' | '+' | '-' | 'e' | 'E');
    let number = text.parse::<f64>().ok().filter(|_| text.chars().all(is_number))?;
    number.is_finite().then_some(Json::Float(number))
}

fn prefixed(text: &str) -> Option<Json> {
    let parse = |digits: &str, radix| i64::from_str_radix(digits, radix).ok().map(i128::from);
    let value = match text.strip_prefix("0b") {
        Some(digits) => parse(digits, 2),
        None => parse(text.strip_prefix("0o")?, 8),
    };
    value.map(Json::Integer)
}

/// A timestamp as Go's `time.Time` marshals it. The text is one that [`is_timestamp`] accepts.
fn rfc3339(text: &str) -> String {
    let (date, rest) = text.split_at(text.find(['T', 't', ' ']).unwrap_or(text.len()));
    let two = |part: &str| format!("{part:0>2}");
    let mut parts = date.splitn(3, '-');
    let mut part = || parts.next().unwrap_or_default();
    let date = format!("{}-{}-{}", part(), two(part()), two(part()));
    let rest = rest.trim_start_matches(['T', 't', ' ']);
    if rest.is_empty() {
        return format!("{date}T00:00:00Z");
    }
    let (time, zone) = rest.split_at(rest.find(['Z', '+', '-']).unwrap_or(rest.len()));
    let (time, fraction) = match time.find(['.', ',']) {
        Some(point) => (&time[..point], &time[point + 1..]),
        None => (time, ""),
    };
    let time = time.split(':').map(two).collect::<Vec<_>>().join(":");
    // Go keeps nanoseconds, without the zeros at their end.
    let fraction = fraction[..fraction.len().min(9)].trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    let zone = if matches!(zone, "" | "+00:00" | "-00:00") { "Z" } else { zone };
    format!("{date}T{time}{point}{fraction}{zone}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Json {
        value(&Scalar { text: text.to_owned(), is_plain: true, tag: None }).unwrap()
    }

    #[test]
    fn plain_scalars_have_gos_types() {
        for (text, expected) in [
            ("", Json::Null),
            ("~", Json::Null),
            ("True", Json::Bool(true)),
            ("32", Json::Integer(32)),
            ("-7", Json::Integer(-7)),
            ("+7", Json::Integer(7)),
            ("0xFF", Json::Integer(255)),
            ("0b101", Json::Integer(5)),
            ("0o17", Json::Integer(15)),
            ("014", Json::Integer(12)),
            ("1_000", Json::Integer(1000)),
            ("18446744073709551615", Json::Integer(u64::MAX.into())),
            ("99999999999999999999", Json::Float(1e20)),
            ("089", Json::Float(89.0)),
            ("1.2e+3", Json::Float(1200.0)),
            (".5", Json::Float(0.5)),
            ("1.", Json::Float(1.0)),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        for text in ["yes", "no", "on", "12:30:45", "1e999", "v1.0", "nan", "+inf", "0x", "1 2"] {
            assert_eq!(read(text), Json::Text(text.to_owned()));
        }
    }

    #[test]
    fn timestamps_become_texts_in_rfc_3339() {
        for (text, expected) in [
            ("2024-01-02", "2024-01-02T00:00:00Z"),
            ("2024-1-2", "2024-01-02T00:00:00Z"),
            ("2024-01-02 3:4:5", "2024-01-02T03:04:05Z"),
            ("2024-01-02T03:04:05.250Z", "2024-01-02T03:04:05.25Z"),
            ("2024-01-02t03:04:05+01:00", "2024-01-02T03:04:05+01:00"),
            ("2024-01-02T03:04:05+00:00", "2024-01-02T03:04:05Z"),
        ] {
            assert_eq!(read(text), Json::Text(expected.to_owned()));
        }
    }

    #[test]
    fn explicit_types_are_checked() {
        let tagged = |tag: &str, text: &str| {
            value(&Scalar { text: text.to_owned(), is_plain: true, tag: Some(tag.to_owned()) })
        };
        assert_eq!(tagged("str", "12"), Ok(Json::Text("12".to_owned())));
        assert_eq!(tagged("int", "12"), Ok(Json::Integer(12)));
        assert!(tagged("int", "x").is_err() && tagged("timestamp", "x").is_err());
        assert_eq!(tagged("binary", "aGk="), Ok(Json::Text("hi".to_owned())));
        assert!(tagged("binary", "/w==").is_err());
        assert!(value(&Scalar { text: ".inf".into(), is_plain: true, tag: None }).is_err());
    }
}
