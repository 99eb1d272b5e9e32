//! `.kitignore`: the patterns that keep files out of a kit, as kit reads them.
//!
//! kit uses moby's pattern matcher, which Docker uses for `.dockerignore`. A pattern matches a path or any of
//! its parents; of several patterns the last match counts; `!` before a pattern takes files back. Moby
//! translates a pattern into a regular expression of Go, and its habits follow from that: `**` behind a
//! name is a plain prefix, `^` anchors, and `[a-z]` is a class. This module matches the same paths without
//! regular expressions. A pattern whose meaning depends on Go's dialect (`\d`, `[[:alpha:]]`) is refused.

mod pattern;

use self::pattern::Pattern;
use super::shown;

/// The file with the patterns.
pub const IGNORE_FILE: &str = ".kitignore";
/// The names of the Kitfile, in the order in which kit looks for them.
pub const KITFILE_NAMES: [&str; 3] = ["Kitfile", "kitfile", ".kitfile"];

/// The largest `.kitignore`, in bytes. Real ones have some lines.
pub const IGNORE_FILE_LIMIT_BYTES: u64 = 1024 * 1024;
/// The longest line. Go's line reader, which kit uses, refuses longer ones.
const LINE_LIMIT_BYTES: usize = 64 * 1024;
/// The most patterns. Each file is compared with each of them.
const PATTERNS_LIMIT: usize = 4096;

/// The patterns of a folder.
#[derive(Clone, Debug)]
pub struct IgnoreRules {
    patterns: Vec<Pattern>,
    /// The line and the cleaned path of each pattern of the file; built-in ones come behind.
    lines: Vec<(usize, Vec<u8>)>,
}

/// The fault of a `.kitignore`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{IGNORE_FILE}, line {line}: {reason}")]
pub struct IgnoreError {
    line: usize,
    reason: String,
}

impl IgnoreRules {
    /// Parses a `.kitignore`. The Kitfile's names and `.kitignore` itself are always ignored, at the root
    /// only.
    ///
    /// # Errors
    /// Fails if a pattern is malformed, or there are too many.
    pub fn parse(text: &[u8]) -> Result<Self, IgnoreError> {
        let (mut patterns, mut lines) = (Vec::new(), Vec::new());
        let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let failed = |reason: String| IgnoreError { line: index + 1, reason };
            if line.len() >= LINE_LIMIT_BYTES {
                return Err(failed("the line is longer than 64 KiB".to_owned()));
            }
            let Some((is_exclusion, name)) = cleaned(line.strip_suffix(b"\r").unwrap_or(line))
            else {
                continue;
            };
            if patterns.len() == PATTERNS_LIMIT {
                return Err(failed(format!("it has more than {PATTERNS_LIMIT} patterns")));
            }
            let pattern = Pattern::parse(&name, is_exclusion).map_err(|reason| {
                failed(format!("`{}`: {reason}", shown(&String::from_utf8_lossy(&name))))
            })?;
            patterns.push(pattern);
            lines.push((index + 1, name));
        }
        for name in KITFILE_NAMES.into_iter().chain([IGNORE_FILE]) {
            let pattern = Pattern::parse(name.as_bytes(), false);
            patterns.push(pattern.expect("a name without wildcards is a pattern"));
        }
        Ok(Self { patterns, lines })
    }

    /// A warning for each pattern of the file that matches none of the paths. A pattern below an ignored folder
    /// gets no warning, because the paths in that folder are not known.
    pub fn warnings<'a>(&self, paths: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
        let mut unmatched: Vec<usize> = (0..self.lines.len()).collect();
        for path in paths {
            if unmatched.is_empty() {
                break;
            }
            unmatched.retain(|&index| !is_self_or_parent(&self.patterns[index], path));
        }
        let lies_below_ignored = |text: &[u8]| {
            let slashes = text.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            slashes.into_iter().any(|(at, _)| self.ignores(&text[..at]))
        };
        let told = unmatched.into_iter().map(|index| &self.lines[index]);
        told.filter(|(_, text)| !lies_below_ignored(text))
            .map(|(line, text)| {
                let text = shown(&String::from_utf8_lossy(text));
                format!("{IGNORE_FILE}, line {line}: `{text}` matches nothing")
            })
            .collect()
    }

    /// Whether the patterns keep a path out. The path is relative, clean, and has `/` between its components.
    pub fn ignores(&self, path: &[u8]) -> bool {
        let mut is_ignored = false;
        for pattern in &self.patterns {
            if pattern.is_exclusion == is_ignored && is_self_or_parent(pattern, path) {
                is_ignored = !pattern.is_exclusion;
            }
        }
        is_ignored
    }

    /// Whether a pattern takes files back. Ignored directories must be searched then.
    pub fn has_exclusions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.is_exclusion)
    }
}

/// Whether a pattern matches the path or one of its parents.
fn is_self_or_parent(pattern: &Pattern, path: &[u8]) -> bool {
    let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
    pattern.matches(path) || slashes.into_iter().any(|(at, _)| pattern.matches(&path[..at]))
}

/// The pattern of a line: whether it takes files back, and the cleaned path. `None` for an empty line and
/// a comment.
fn cleaned(line: &[u8]) -> Option<(bool, Vec<u8>)> {
    if line.starts_with(b"#") {
        return None;
    }
    let line = trimmed(line);
    let (is_exclusion, name) = match line.strip_prefix(b"!") {
        Some(name) => (true, trimmed(name)),
        None => (false, line),
    };
    if name.is_empty() {
        // A lone `!` stays a pattern, which is malformed.
        return is_exclusion.then(|| (true, Vec::new()));
    }
    let name = clean_path(name);
    let name = match name.strip_prefix(b"/") {
        Some(rest) if !rest.is_empty() => rest.to_vec(),
        _ => name,
    };
    // moby cleans each pattern again, and looks for a `!` in front again.
    match name.strip_prefix(b"!") {
        Some(rest) if !is_exclusion => Some((true, rest.to_vec())),
        _ => Some((is_exclusion, name)),
    }
}

/// The text without white space around it (Go's `strings.TrimSpace`).
pub(in crate::kit) fn trimmed(text: &[u8]) -> &[u8] {
    let is_space = |c: char| c.is_whitespace() && c != '\u{1c}' && c != '\u{1f}';
    match std::str::from_utf8(text) {
        Ok(text) => text.trim_matches(is_space).as_bytes(),
        Err(_) => text.trim_ascii(),
    }
}

/// The shortest equal path (Go's `filepath.Clean`): `.` for nothing, `..` kept where it leaves the start.
pub(in crate::kit) fn clean_path(path: &[u8]) -> Vec<u8> {
    let is_rooted = path.starts_with(b"/");
    let mut components: Vec<&[u8]> = Vec::new();
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => match components.last() {
                Some(&last) if last != b".." => drop(components.pop()),
                _ if is_rooted => {}
                _ => components.push(component),
            },
            _ => components.push(component),
        }
    }
    let joined = components.join(&b'/');
    match (is_rooted, joined.is_empty()) {
        (true, _) => [b"/", joined.as_slice()].concat(),
        (false, true) => b".".to_vec(),
        (false, false) => joined,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(lines: &str) -> IgnoreRules {
        IgnoreRules::parse(lines.as_bytes()).unwrap()
    }

    #[test]
    fn patterns_that_match_nothing_are_told_with_their_line() {
        let rules = rules("*.tmp\n# words\nno/such\n!keep.tmp\nbuild\nbuild/*.o\n");
        let paths = ["a.tmp", "build", "c/d"].map(str::as_bytes);
        let expected = [
            ".kitignore, line 3: `no/such` matches nothing",
            ".kitignore, line 4: `keep.tmp` matches nothing",
        ];
        assert_eq!(rules.warnings(paths.into_iter()), expected);
        let paths = ["a.tmp", "keep.tmp", "no/such/x", "build"].map(str::as_bytes);
        assert!(rules.warnings(paths.into_iter()).is_empty());
    }

    #[test]
    fn patterns_match_paths_and_all_below() {
        for (lines, ignored, kept) in [
            ("*.log", &["a.log", "a.log/x"][..], &["b/a.log", "a.txt"][..]),
            ("**/*.log", &["a.log", "b/c/a.log", "a.log/x"], &["a.logs"]),
            ("**/cache", &["cache", "a/cache", "a/cache/x"], &["acache", "caches"]),
            ("**", &["a", "a/b"], &[]),
            ("data/**", &["data/a", "data/a/b"], &["data", "database"]),
            ("data**", &["data", "database", "data/a"], &["adata"]),
            ("a/**/b", &["a/b", "a/x/b", "a/x/y/b/c"], &["a/xb", "ab"]),
            ("a/*/b", &["a/x/b"], &["a/b", "a/x/y/b"]),
            ("a?c", &["abc", "a\u{e9}c"], &["ac", "a/c", "abbc"]),
            ("[a-c]x", &["ax", "cx"], &["dx", "-x"]),
            ("[^a-c]x", &["dx", "/x"], &["ax"]),
            ("a.c", &["a.c"], &["abc"]),
            ("a+(b)|c", &["a+(b)|c"], &["ab"]),
            ("a\\*", &["a*"], &["ab"]),
            ("/top", &["top", "top/x"], &["a/top"]),
            ("dir/", &["dir", "dir/x"], &[]),
            ("./a/../b", &["b"], &["a"]),
            ("  spaced  ", &["spaced"], &[]),
            ("# comment\n\n", &[], &["# comment", "a"]),
            ("\u{feff}a", &["a"], &[]),
            ("a\r\nb", &["a", "b"], &[]),
        ] {
            let rules = rules(lines);
            for path in ignored {
                assert!(rules.ignores(path.as_bytes()), "{lines:?} ignores {path}");
            }
            for path in kept {
                assert!(!rules.ignores(path.as_bytes()), "{lines:?} keeps {path}");
            }
        }
    }

    #[test]
    fn the_last_match_counts() {
        let rules = rules("code/dir\n!code/dir/keep.txt\n! code/other\ncode/other/x");
        assert!(rules.ignores(b"code/dir") && rules.ignores(b"code/dir/a"));
        assert!(!rules.ignores(b"code/dir/keep.txt") && !rules.ignores(b"code/other"));
        assert!(rules.ignores(b"code/other/x"));
        assert!(rules.has_exclusions());
        assert!(!self::rules("a").has_exclusions());
    }

    #[test]
    fn the_kitfile_is_ignored_at_the_root_only_and_cannot_be_taken_back() {
        let rules = rules("!Kitfile\n!.kitignore");
        for name in ["Kitfile", "kitfile", ".kitfile", ".kitignore"] {
            assert!(rules.ignores(name.as_bytes()), "{name}");
            assert!(!rules.ignores(format!("code/{name}").as_bytes()), "{name}");
        }
    }

    #[test]
    fn malformed_patterns_are_named_with_their_line() {
        for (lines, words) in [
            ("a\n!", "line 2"),
            ("[", "class"),
            ("[]", "class"),
            ("[a", "class"),
            ("[z-a]", "class"),
            ("a\\", "backslash"),
            ("\\d", "backslash"),
            ("[\\d]", "backslash"),
            ("[[:alpha:]]", "class"),
            ("[*]", "class"),
            (&"a".repeat(70_000), "64 KiB"),
            (&"a\n".repeat(5_000), "4096"),
        ] {
            let error = IgnoreRules::parse(lines.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words), "{lines:.20}: {error}");
        }
    }

    #[test]
    fn a_pattern_with_many_stars_costs_no_more_than_the_product_of_lengths() {
        let rules = rules(&format!("{}b", "*a".repeat(500)));
        assert!(!rules.ignores(&b"a".repeat(4000)));
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, expected) in [
            ("", "."),
            (".", "."),
            ("a/", "a"),
            ("./a//b/.", "a/b"),
            ("a/../b", "b"),
            ("a/..", "."),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("/..", "/"),
            ("/../a", "/a"),
            ("a..b", "a..b"),
        ] {
            assert_eq!(clean_path(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }

    proptest! {
        #[test]
        fn any_file_is_parsed_and_any_path_compared(
            text in prop::collection::vec(prop::sample::select(b"ab*?[]^-!\\/.# \n\xc3\xa9\xff".to_vec()), 0..40),
            path in prop::collection::vec(prop::sample::select(b"ab/.-\xc3\xa9\xff".to_vec()), 0..20),
        ) {
            if let Ok(rules) = IgnoreRules::parse(&text) {
                rules.ignores(&path);
            }
        }

        #[test]
        fn a_plain_name_matches_itself_and_all_below(
            name in "[a-z]{1,4}(/[a-z]{1,4}){0,2}", other in "[a-z]{1,4}(/[a-z]{1,4}){0,3}",
        ) {
            let is_below = other == name || other.starts_with(&format!("{name}/"));
            prop_assert_eq!(rules(&name).ignores(other.as_bytes()), is_below);
            let nowhere = rules(&format!("{name}\n!{name}"));
            prop_assert!(!nowhere.ignores(other.as_bytes()));
        }

        /// A pattern with one `*` for a run of characters of a component matches that path.
        #[test]
        fn a_star_stands_for_any_run_within_a_component(
            before in "[a-z/]{0,5}", hidden in "[a-z]{1,5}", after in "[a-z/]{0,5}",
        ) {
            let path = clean_path(format!("x{before}{hidden}{after}x").as_bytes());
            let pattern = clean_path(format!("x{before}*{after}x").as_bytes());
            let rules = IgnoreRules::parse(&pattern).unwrap();
            prop_assert!(rules.ignores(&path));
        }
    }
}
