//! Warnings about an archive: bounded in number, with names.

use crate::layer::member_path::shown;

/// Warnings of one kind that are kept: enough to see the kind of archive.
pub(super) const WARNINGS_LIMIT: usize = 16;

/// Collects warnings while an archive is scanned.
#[derive(Default)]
pub(super) struct Warnings {
    passed_over: Listed,
    unknown_types: Listed,
    slashes: u64,
    first_slash: Option<String>,
}

#[derive(Default)]
struct Listed {
    kept: Vec<String>,
    more: usize,
}

impl Listed {
    fn push(&mut self, warning: impl FnOnce() -> String) {
        match self.kept.len() < WARNINGS_LIMIT {
            true => self.kept.push(warning()),
            false => self.more += 1,
        }
    }

    fn finish(self, all: &mut Vec<String>, what_more: &str) {
        all.extend(self.kept);
        if self.more > 0 {
            all.push(format!("{} more {what_more}", self.more));
        }
    }
}

impl Warnings {
    /// An entry has no place in a tree.
    pub(super) fn passed_over(&mut self, name: &[u8], what: &str) {
        self.passed_over.push(|| format!("`{}` is {what}: passed over", shown(name)));
    }

    /// A hard link names nothing that came before it.
    pub(super) fn missing_target(&mut self, name: &[u8], target: &str) {
        self.passed_over.push(|| {
            let name = shown(name);
            format!("`{name}` is a hard link to `{target}`, which is no earlier file: passed over")
        });
    }

    /// An entry of an unknown type is shown as a file.
    pub(super) fn unknown_type(&mut self, name: &[u8], flag: char) {
        let flag = flag.escape_default();
        let warning =
            || format!("`{}` has the unknown type `{flag}`: shown as a file", shown(name));
        self.unknown_types.push(warning);
    }

    /// A leading `/` was taken off.
    pub(super) fn slash(&mut self, name: &[u8]) {
        self.slashes += 1;
        self.first_slash.get_or_insert_with(|| shown(name));
    }

    /// All warnings.
    pub(super) fn finish(self) -> Vec<String> {
        let mut all = Vec::new();
        self.passed_over.finish(&mut all, "entries were passed over");
        self.unknown_types.finish(&mut all, "entries of unknown types are shown as files");
        if let Some(first) = self.first_slash {
            all.push(match self.slashes {
                1 => format!("the leading `/` of `{first}` is left out"),
                count => format!(
                    "the leading `/` of {count} entries is left out, `{first}` is the first of them"
                ),
            });
        }
        all
    }
}
