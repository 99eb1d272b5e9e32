//! The known word that a mistyped word was meant to be.

/// The candidate that differs least from `typed`; `None` where none is near.
///
/// A third of the characters may differ: `cach-size` is near `cache-size`, and `colour` is near nothing.
pub(super) fn nearest<'a>(
    typed: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let plain = |word: &str| word.to_lowercase().replace('_', "-");
    let typed = plain(typed);
    let most = (typed.chars().count() / 3).max(1);
    let distance = |candidate: &str| strsim::osa_distance(&typed, &plain(candidate));
    let near = candidates.into_iter().map(|candidate| (distance(candidate), candidate));
    near.filter(|(distance, _)| *distance <= most).min().map(|(_, candidate)| candidate)
}

/// The advice for a mistyped word: `; did you mean …?`, or nothing.
pub(super) fn advice<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(typed, candidates) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_found_and_a_far_one_is_not() {
        let words = ["cache-size", "cache-dir", "uid", "gid"];
        assert_eq!(nearest("cach_size", words), Some("cache-size"));
        assert_eq!(nearest("CACHE_DIR", words), Some("cache-dir"));
        assert_eq!(nearest("uidd", words), Some("uid"));
        assert_eq!(nearest("colour", words), None);
        assert_eq!(nearest("KITFS_UIDD", ["KITFS_GID", "KITFS_UID"]), Some("KITFS_UID"));
        assert_eq!(advice("hid", words), "; did you mean `gid`?");
        assert_eq!(advice("", words), "");
    }
}
