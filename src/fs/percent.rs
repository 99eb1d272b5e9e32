//! Percent-encoding of paths, for JSON and other places that need UTF-8.

/// Writes a path as text: `%`, control bytes and bytes that are not UTF-8 become `%XX`.
pub fn percent_encoded(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '%' | '\0'..='\x1f' | '\x7f' => {
                    text += &format!("%{:02X}", u32::from(character));
                }
                _ => text.push(character),
            }
        }
        for byte in chunk.invalid() {
            text += &format!("%{byte:02X}");
        }
    }
    text
}

/// Reads a path back from text; `None` where a `%` is not followed by two hexadecimal digits.
pub fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let hex = rest.split_off(..2)?;
        // `from_str_radix` alone would accept a sign.
        if !hex.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        bytes.push(u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()?);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_path_comes_back(path in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(percent_decoded(&percent_encoded(&path)), Some(path));
        }
    }

    #[test]
    fn malformed_text_is_refused() {
        for text in ["%", "%4", "%zz", "%+1", "a%"] {
            assert_eq!(percent_decoded(text), None, "{text}");
        }
    }
}
