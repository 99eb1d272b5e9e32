//! Sizes for people, in messages and tables. Pure.

/// Units by which sizes are shown, each 1024 of the one before.
const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/// A size for people: `0 B`, `104.2 KiB`, `1.5 TiB`.
pub fn shown_bytes(bytes: u64) -> String {
    let mut unit = 0;
    let mut size = bytes as f64;
    // A value that would be shown as 1024.0 belongs to the next unit.
    while size >= 1023.95 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{size:.1} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_shown_in_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (106_701, "104.2 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (3 << 39, "1.5 TiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(shown_bytes(bytes), text);
        }
    }
}
