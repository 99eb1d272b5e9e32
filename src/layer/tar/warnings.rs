//! What a user should know about an archive: bounded in number, with names.

use crate::layer::StreamOffset;
use crate::layer::member_path::shown;

/// Warnings of one kind that are kept: enough to see what kind of thing it is.
pub(super) const WARNINGS_LIMIT: usize = 16;

/// Collects warnings while an archive is scanned.
#[derive(Default)]
pub(super) struct Warnings {
    passed_over: Listed,
    unknown_types: Listed,
    slashes: u64,
    first_slash: Option<String>,
}

/// What lies behind the first end marker of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behind {
    /// Further archives, which were read.
    Archives,
    /// Bytes that are no archive, from this offset on.
    Garbage(StreamOffset),
    /// What follows this offset, where more zeros lie than any tape has.
    Unread(StreamOffset),
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

    /// All warnings. `end` is where the first end marker starts, where something lies behind it.
    pub(super) fn finish(
        self,
        end: Option<(StreamOffset, Behind)>,
        stream_bytes: u64,
    ) -> Vec<String> {
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
        all.extend(end.and_then(|(end, behind)| behind_the_end(end, behind, stream_bytes)));
        all
    }
}

fn behind_the_end(end: StreamOffset, behind: Behind, stream_bytes: u64) -> Option<String> {
    let bytes = |from: StreamOffset| stream_bytes.saturating_sub(from.get());
    match behind {
        Behind::Archives => Some(format!(
            "the archive ends at byte {}, and another one follows: the {} bytes behind the end are read \
             too, which GNU tar does with --ignore-zeros only",
            end.get(),
            bytes(end)
        )),
        Behind::Garbage(from) => Some(format!(
            "{} bytes behind the end of the archive, from byte {} on, are no archive and left out",
            bytes(from),
            from.get()
        )),
        Behind::Unread(from) if bytes(from) == 0 => None,
        Behind::Unread(from) => Some(format!(
            "the archive ends at byte {}: the last {} bytes lie behind more zeros than any tape has, \
             and are not looked at",
            end.get(),
            bytes(from)
        )),
    }
}
