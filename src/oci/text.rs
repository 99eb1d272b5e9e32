//! Text from outside as messages show it.

/// At most `most` characters of `text`, with control characters escaped, so that a name from the
/// network does nothing to a terminal.
pub(super) fn escaped(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for character in text.chars().take(most) {
        match character.is_control() {
            true => shown.extend(character.escape_default()),
            false => shown.push(character),
        }
    }
    shown
}
