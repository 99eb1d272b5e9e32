//! Parses and prints sizes.

/// Parses a size in bytes: `1048576`, `200GiB`, `200G` (the same), `1.5TiB`, `200GB` (decimal).
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: write bytes or 500MiB, 200GiB, 1.5TiB");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = factor(unit.trim_start()).ok_or_else(wrong)?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    // Integers, because a float loses the last digits of a size near 2^64. Nine digits of a fraction
    // are enough for a billionth.
    if number.is_empty() || number.ends_with('.') || fraction.len() > 9 {
        return Err(wrong());
    }
    let whole: u128 =
        if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| wrong())?.into() };
    let scale = 10u128.pow(fraction.len() as u32);
    let fraction: u128 =
        if fraction.is_empty() { 0 } else { fraction.parse::<u64>().map_err(|_| wrong())?.into() };
    let bytes = (whole * scale + fraction) * u128::from(factor) / scale;
    u64::try_from(bytes).map_err(|_| format!("`{text}` is more than 2^64 bytes"))
}

fn factor(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let (base, letter) = match unit.as_bytes() {
        [] | [b'b'] => return Some(1),
        [letter] | [letter, b'i'] | [letter, b'i', b'b'] => (1024u64, *letter),
        [letter, b'b'] => (1000, *letter),
        _ => return None,
    };
    let power = match letter {
        b'k' => 1,
        b'm' => 2,
        b'g' => 3,
        b't' => 4,
        b'p' => 5,
        _ => return None,
    };
    Some(base.pow(power))
}

/// Prints a size for people: `0 B`, `104.2 KiB`, `1.5 TiB`.
pub(super) use crate::observe::shown_bytes as show;

/// Prints how many bytes are in the cache, and how many of them are unchecked.
pub(super) fn show_resident(resident_bytes: u64, unchecked_bytes: u64) -> String {
    let resident = show(resident_bytes);
    match unchecked_bytes {
        0 => resident,
        all if all >= resident_bytes => format!("{resident} unchecked"),
        some => format!("{resident}, {} unchecked", show(some)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_parsed_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("1048576", 1 << 20),
            ("200GiB", 200 << 30),
            ("200G", 200 << 30),
            ("200g", 200 << 30),
            ("200GB", 200_000_000_000),
            ("1.5TiB", 3 << 39),
            ("1.5 TiB", 3 << 39),
            (".5K", 512),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "-1", "1..5G", "1.G", "1Q", "1GiBs", "0x10", "16777216PiB", "1e9"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn unchecked_bytes_are_shown_beside_resident_bytes() {
        assert_eq!(show_resident(0, 0), "0 B");
        assert_eq!(show_resident(2048, 2048), "2.0 KiB unchecked");
        assert_eq!(show_resident(2048, 512), "2.0 KiB, 512 B unchecked");
    }

    proptest! {
        #[test]
        fn bytes_are_taken_exactly_and_nothing_panics(bytes: u64, text in "[0-9.]{0,24}[A-Za-z ]{0,4}") {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(bytes));
            let _ = parse(&text);
        }
    }
}
