//! Numbers and times for people. Pure.

use crate::observe::shown_bytes;

/// A rate: `12.3 MiB/s`.
pub(super) fn rate(bytes_per_second: f64) -> String {
    let text = shown_bytes(bytes_per_second.max(0.0) as u64);
    format!("{}/s", text.replace(".0 ", " "))
}

/// A time that a read took: `40 µs`, `2.5 ms`, `1 s`.
pub(super) fn latency(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 1_000.0 => (us, "µs"),
        us if us < 1_000_000.0 => (us / 1_000.0, "ms"),
        us => (us / 1_000_000.0, "s"),
    };
    let text = format!("{value:.1}");
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

/// A time since an event: `12 s`, `5 min`, `3 h 20 min`, `4 d 3 h`.
pub(super) fn duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..60 => format!("{} s", seconds.max(0)),
        60..3600 => format!("{minutes} min"),
        3600..86_400 => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A share in percent. Only the whole is 100 %, and only nothing is 0 %.
pub(super) fn percent(part: u64, whole: u64) -> String {
    match whole {
        0 => "–".to_owned(),
        _ if part >= whole => "100 %".to_owned(),
        _ => {
            let percent = part as f64 * 100.0 / whole as f64;
            match percent {
                0.0 => "0 %".to_owned(),
                percent if percent < 1.0 => "<1 %".to_owned(),
                percent => format!("{} %", percent as u64),
            }
        }
    }
}

/// Text without control characters, which a page cannot show.
pub(super) fn shown(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([1536.0, 5_242_880.0].map(rate), ["1.5 KiB/s", "5 MiB/s"]);
        assert_eq!([10.0, 2_500.0, 5_000_000.0].map(latency), ["10 µs", "2.5 ms", "5 s"]);
        assert_eq!(
            [-3, 59, 60, 7_260, 90_000].map(duration),
            ["0 s", "59 s", "1 min", "2 h 1 min", "1 d 1 h"]
        );
        assert_eq!(percent(0, 10), "0 %");
        assert_eq!(percent(1, 1_000), "<1 %");
        assert_eq!(percent(999, 1_000), "99 %");
        assert_eq!([percent(7, 7), percent(0, 0)], ["100 %", "–"]);
        assert_eq!(shown("a\u{1b}[1m\nb"), "a\u{fffd}[1m\u{fffd}b");
    }
}
