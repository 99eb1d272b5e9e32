//! Patterns in the paths of kits (glob(7)): `kitfs cp 'REF/weights/*.safetensors' .`.
//!
//! ```text
//! *       any characters of a name      ?    one character      [a-z], [!a-z]   one of these, none of these
//! **      any number of folders         \    takes the next character as it is
//! ```
//!
//! Only a pattern that begins with a point matches a name that begins with a point. A path that exists in the kit
//! is no pattern, whatever characters it has. Pure but for [`expand`].

use super::error::CliError;
use super::output::printable;
use crate::control::api::{FailureKind, RawPath};
use crate::daemon::OpenKit;

/// The most steps of the match of one name. A name has at most 255 bytes, and each star may try each place.
const MOST_STEPS: usize = 1 << 16;

/// The paths of a kit that a path or pattern names, in the order of the kit.
///
/// # Errors
/// Fails where a pattern matches nothing.
pub(super) async fn expand(kit: &OpenKit, path: &RawPath) -> Result<Vec<RawPath>, CliError> {
    if !has_wildcards(&path.0) || kit.list(path.clone(), false).await.is_ok() {
        return Ok(vec![path.clone()]);
    }
    let (base, pattern) = split(&path.0);
    // Without a list of the folder there is nothing to match. The error of the list names the folder.
    let listing =
        kit.list(RawPath(base.to_vec()), pattern.contains(&b'/') || is_deep(pattern)).await?;
    let skip = if base.is_empty() { 0 } else { base.len() + 1 };
    let below = listing.below.into_iter().map(|entry| entry.path);
    let matching: Vec<_> = below
        .filter(|path| path.0.get(skip..).is_some_and(|rest| matches(pattern, rest)))
        .collect();
    match matching.is_empty() {
        false => Ok(matching),
        true => {
            let message = format!("no path of the kit matches `{}`", printable(&path.0));
            Err(CliError::new(FailureKind::NotFound, message))
        }
    }
}

/// Whether a path may be a pattern.
pub(super) fn has_wildcards(path: &[u8]) -> bool {
    path.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

/// The leading folders without wildcards, and the rest.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let wildcard = path.iter().position(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'));
    let slash = path[..wildcard.unwrap_or(path.len())].iter().rposition(|&byte| byte == b'/');
    match slash {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn is_deep(pattern: &[u8]) -> bool {
    pattern.split(|&byte| byte == b'/').any(|name| name == b"**")
}

/// Whether a pattern matches a whole path.
fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let patterns: Vec<&[u8]> =
        pattern.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).collect();
    let names: Vec<&[u8]> = path.split(|&byte| byte == b'/').collect();
    // Whether the patterns so far match the first N names: one row of a table, so that no pattern takes long.
    let mut reached = vec![false; names.len() + 1];
    reached[0] = true;
    for pattern in patterns {
        let mut next = vec![false; names.len() + 1];
        let is_any = pattern == b"**";
        for at in 0..=names.len() {
            let from_before = at > 0
                && match is_any {
                    true => next[at - 1] && !names[at - 1].starts_with(b"."),
                    false => reached[at - 1] && matches_name(pattern, names[at - 1]),
                };
            next[at] = from_before || is_any && reached[at];
        }
        reached = next;
    }
    reached[names.len()]
}

/// Whether a pattern without slashes matches a whole name.
fn matches_name(pattern: &[u8], name: &[u8]) -> bool {
    if name.starts_with(b".") && !pattern.starts_with(b".") && !pattern.starts_with(b"\\.") {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // The place behind the last star, and the place in the name where it was tried.
    let mut star: Option<(usize, usize)> = None;
    for _ in 0..MOST_STEPS {
        if n == name.len() && pattern[p..].iter().all(|&byte| byte == b'*') {
            return true;
        }
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            star = Some((p, n));
            continue;
        }
        let step = (n < name.len()).then(|| one(&pattern[p..], &name[n..])).flatten();
        match (step, star) {
            (Some((pattern, bytes)), _) => (p, n) = (p + pattern, n + bytes),
            (None, Some((behind, from))) if from < name.len() => {
                star = Some((behind, from + 1));
                (p, n) = (behind, from + 1);
            }
            (None, _) => return false,
        }
    }
    false
}

/// Matches one character: the lengths of its pattern and of the character.
fn one(pattern: &[u8], name: &[u8]) -> Option<(usize, usize)> {
    let (character, length) = first_character(name);
    match pattern {
        [b'?', ..] => Some((1, length)),
        [b'\\', rest @ ..] if !rest.is_empty() => {
            let (wanted, bytes) = first_character(rest);
            (wanted == character).then_some((1 + bytes, length))
        }
        [b'[', ..] => match class(pattern, character) {
            Some((end, true)) => Some((end, length)),
            Some((_, false)) => None,
            // A bracket that nothing closes is itself.
            None => (name[0] == b'[').then_some((1, 1)),
        },
        [] => None,
        pattern => {
            let (wanted, bytes) = first_character(pattern);
            (wanted == character).then_some((bytes, length))
        }
    }
}

/// The first character, or a byte that is no UTF-8 as a number above all characters; and its length.
fn first_character(bytes: &[u8]) -> (u32, usize) {
    let start = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(start) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&start[..error.valid_up_to()]).unwrap_or_default(),
    };
    match valid.chars().next() {
        Some(character) => (character.into(), character.len_utf8()),
        None => (u32::from(char::MAX) + 1 + u32::from(bytes[0]), 1),
    }
}

/// The length of the class at the start of a pattern, and whether it has the character. `None` where it does not
/// end.
fn class(pattern: &[u8], character: u32) -> Option<(usize, bool)> {
    let is_negated = matches!(pattern.get(1), Some(b'!' | b'^'));
    let mut at = 1 + usize::from(is_negated);
    let (mut has_it, mut is_first) = (false, true);
    loop {
        match pattern.get(at)? {
            b']' if !is_first => return Some((at + 1, has_it != is_negated)),
            _ => {}
        }
        is_first = false;
        let (low, length) = element(pattern.get(at..)?)?;
        at += length;
        let is_range = pattern.get(at) == Some(&b'-') && pattern.get(at + 1) != Some(&b']');
        let high = match is_range {
            true => {
                let (high, length) = element(pattern.get(at + 1..)?)?;
                at += 1 + length;
                high
            }
            false => low,
        };
        has_it |= (low..=high).contains(&character);
    }
}

/// A character of a class, and the length of its text.
fn element(text: &[u8]) -> Option<(u32, usize)> {
    match text {
        [] => None,
        [b'\\', rest @ ..] if !rest.is_empty() => {
            let (character, length) = first_character(rest);
            Some((character, length + 1))
        }
        text => Some(first_character(text)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("*.py", "a.py", true)]
    #[case("*.py", "a/b.py", false)]
    #[case("*.py", ".a.py", false)]
    #[case(".*.py", ".a.py", true)]
    #[case("**/*.py", "a/b/c.py", true)]
    #[case("**/*.py", "c.py", true)]
    #[case("a/**", "a/b/c", true)]
    #[case("**", "a/b", true)]
    #[case("**", "a/.b", false)]
    #[case("a?c", "abc", true)]
    #[case("a?c", "aäc", true)]
    #[case("a?c", "ac", false)]
    #[case("[a-c]x", "bx", true)]
    #[case("[!a-c]x", "bx", false)]
    #[case("[^a-c]x", "dx", true)]
    #[case("[]a]", "]", true)]
    #[case("[a-]", "-", true)]
    #[case("[ä-ö]", "ö", true)]
    #[case("[a", "[a", true)]
    #[case("\\*", "*", true)]
    #[case("\\*", "a", false)]
    #[case("*a*b*", "xaybz", true)]
    #[case("*a*b*", "xbyaz", false)]
    #[case("", "a", false)]
    fn patterns_match_as_in_a_shell(
        #[case] pattern: &str,
        #[case] path: &str,
        #[case] expected: bool,
    ) {
        assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected);
    }

    #[test]
    fn a_pattern_begins_at_the_folder_before_its_first_wildcard() {
        assert_eq!(split(b"a/b*/c"), (&b"a"[..], &b"b*/c"[..]));
        assert_eq!(split(b"*"), (&b""[..], &b"*"[..]));
        assert_eq!(split(b"a/b/[c]"), (&b"a/b"[..], &b"[c]"[..]));
    }

    proptest! {
        #[test]
        fn every_escaped_name_matches_itself_alone(
            name in proptest::collection::vec(1u8..=255, 1..20),
            other in proptest::collection::vec(1u8..=255, 1..20),
        ) {
            prop_assume!(!name.contains(&b'/') && !other.contains(&b'/'));
            let escaped: Vec<u8> = name.iter().flat_map(|&byte| match byte.is_ascii() {
                true => vec![b'\\', byte],
                false => vec![byte],
            }).collect();
            prop_assert!(matches(&escaped, &name));
            prop_assert_eq!(matches(&escaped, &other), name == other);
        }

        #[test]
        fn a_star_in_the_place_of_any_part_still_matches(
            name in "[a-zä]{1,12}",
            from in any::<prop::sample::Index>(),
            to in any::<prop::sample::Index>(),
        ) {
            let bounds: Vec<usize> =
                (0..=name.len()).filter(|&at| name.is_char_boundary(at)).collect();
            let (from, to) = (bounds[from.index(bounds.len())], bounds[to.index(bounds.len())]);
            let (from, to) = (from.min(to), from.max(to));
            let pattern = format!("{}*{}", &name[..from], &name[to..]);
            prop_assert!(matches(pattern.as_bytes(), name.as_bytes()), "{}", pattern);
        }

        #[test]
        fn no_pattern_panics_or_takes_long(
            pattern in "[*?\\[\\]!\\\\a./-]{0,40}",
            path in "[a./]{0,60}",
        ) {
            let _ = matches(pattern.as_bytes(), path.as_bytes());
        }
    }
}
