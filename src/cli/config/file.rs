//! A configuration file: TOML, with the names of options as keys, and a table for each command.
//!
//! ```toml
//! cache-size = "200GiB"      # for every command that has the option
//! [mount]
//! hydrate = "all"            # for one command
//! [daemon.start]
//! idle-exit = "1h"
//! ```
//!
//! The whole file is checked, and each problem is reported with its line. A file that another user could have
//! written is refused, because it may name proxies, certificates and files with passwords.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::catalogue::{Catalogue, Setting};
use super::registries::{self, Section};
use crate::cli::nearest::advice;
use crate::observe::without_user;

/// The largest file that is read. A file with every key has some 10 KiB.
const FILE_LIMIT_BYTES: u64 = 1024 * 1024;

/// A file that was read.
#[derive(Clone, Debug)]
pub(super) struct ConfigFile {
    pub path: PathBuf,
    pub items: Vec<Item>,
    /// The sections for single registries.
    pub sections: Vec<Section>,
}

/// A key with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    /// The words of the command whose table it stands in; none at the top.
    pub table: Vec<String>,
    pub key: String,
    /// The line of the key, from 1 on.
    pub line: usize,
    /// The value, as the flag would take it; several values of a list.
    pub values: Vec<String>,
}

/// A problem of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub path: PathBuf,
    /// The line of the problem; `None` for the whole file.
    pub line: Option<usize>,
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path.display(), self.message),
            None => write!(f, "{}: {}", self.path.display(), self.message),
        }
    }
}

/// Reads a file; `None` where there is none.
///
/// # Errors
/// When the file cannot be read, or another user could have written it.
pub(super) fn read(path: &Path) -> Result<Option<String>, Problem> {
    let problem = |message: String| Problem { path: path.to_owned(), line: None, message };
    // NONBLOCK: opening a FIFO must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        Err(error) => {
            return Err(problem(format!("cannot be read: {}", io::Error::from(error))));
        }
    };
    let unreadable = |error: io::Error| problem(format!("cannot be read: {error}"));
    let status = file.metadata().map_err(unreadable)?;
    if !status.is_file() {
        return Err(problem("is not a file".to_owned()));
    }
    let user = rustix::process::geteuid().as_raw();
    if let Some(reason) = Access::of(&status).distrust(user) {
        return Err(problem(format!("is not used, because the file {reason}")));
    }
    for folder in folders_of(path).map_err(unreadable)? {
        let access = Access::of(&folder.metadata().map_err(unreadable)?);
        if let Some(reason) = access.distrust(user) {
            let folder = folder.display();
            return Err(problem(format!("is not used, because its folder {folder} {reason}")));
        }
    }
    let mut content = Vec::new();
    file.take(FILE_LIMIT_BYTES + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > FILE_LIMIT_BYTES {
        return Err(problem(format!("is larger than {FILE_LIMIT_BYTES} bytes")));
    }
    let text = String::from_utf8(content).map_err(|_| problem("is not UTF-8 text".to_owned()))?;
    Ok(Some(text))
}

/// The folders of a file, and of each link on the way to it.
///
/// # Errors
/// For a link that cannot be read, and for too many links.
fn folders_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    /// As many as the kernel follows (path_resolution(7)).
    const MOST_LINKS: usize = 40;
    let (mut path, mut folders) = (path.to_owned(), Vec::new());
    for _ in 0..=MOST_LINKS {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        let is_link = path.symlink_metadata()?.is_symlink();
        let target = is_link.then(|| std::fs::read_link(&path)).transpose()?;
        path = folder.join(target.clone().unwrap_or_default());
        folders.push(folder);
        if target.is_none() {
            return Ok(folders);
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// The users who may write a file, or make files in a folder.
#[derive(Clone, Copy, Debug)]
struct Access {
    owner: u32,
    mode: u32,
}

impl Access {
    fn of(status: &std::fs::Metadata) -> Self {
        Self { owner: status.uid(), mode: status.mode() }
    }

    /// The reason for which `user` must not trust the file.
    fn distrust(self, user: u32) -> Option<String> {
        /// In a folder with this bit, only the owner of a file can replace the file.
        const STICKY: u32 = 0o1000;
        if self.owner != 0 && self.owner != user {
            return Some(format!(
                "belongs to user {}: only root's files and yours are",
                self.owner
            ));
        }
        let is_sticky = self.mode & STICKY != 0;
        if self.mode & 0o002 != 0 && !is_sticky {
            return Some("can be written by everybody: `chmod o-w` protects it".to_owned());
        }
        // Many systems give each user a group of one, so the group may write a user's file.
        if user == 0 && self.mode & 0o020 != 0 && !is_sticky {
            return Some("can be written by its group: `chmod g-w` protects it".to_owned());
        }
        None
    }
}

/// Reads the keys of a file, and checks each value. A wrong key or value does not hide the next one.
pub(super) fn parse(
    path: &Path,
    text: &str,
    home: Option<&Path>,
    catalogue: &Catalogue,
) -> (ConfigFile, Vec<Problem>) {
    let mut reader = Reader {
        path,
        text,
        home,
        catalogue,
        items: Vec::new(),
        sections: Vec::new(),
        problems: Vec::new(),
    };
    match DeTable::parse(text) {
        Ok(table) => reader.table(&[], table.get_ref()),
        Err(error) => {
            let line = error.span().map(|span| reader.line(span.start));
            let message = format!("is not TOML: {}", error.message());
            reader.problems.push(Problem { path: path.to_owned(), line, message });
        }
    }
    let Reader { items, sections, mut problems, .. } = reader;
    problems.sort_by_key(|problem| problem.line);
    (ConfigFile { path: path.to_owned(), items, sections }, problems)
}

/// Reads one file.
pub(super) struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    home: Option<&'a Path>,
    catalogue: &'a Catalogue,
    items: Vec<Item>,
    pub(super) sections: Vec<Section>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
    }

    pub(super) fn problem(&mut self, offset: usize, message: String) {
        let line = Some(self.line(offset));
        self.problems.push(Problem { path: self.path.to_owned(), line, message });
    }

    fn table(&mut self, words: &[String], table: &DeTable<'_>) {
        for (key, value) in table {
            let (name, place) = (key.get_ref().as_ref(), key.span().start);
            let is_command = self.catalogue.children(words).any(|child| child == name);
            match value.get_ref() {
                DeValue::Table(inner) if words.is_empty() && name == registries::TABLE => {
                    self.registries(inner);
                }
                _ if words.is_empty() && name == registries::TABLE => {
                    let message = "`registry` is a table, such as [registry.\"ghcr.io\"]; the option of `kitfs browse` \
                                   belongs into [browse] and [daemon.start]";
                    self.problem(place, message.to_owned());
                }
                DeValue::Table(inner) if is_command => {
                    let words: Vec<_> = words.iter().cloned().chain([name.to_owned()]).collect();
                    self.table(&words, inner);
                }
                DeValue::Table(_) => {
                    let is_top = words.is_empty();
                    let registries = is_top.then_some(registries::TABLE);
                    let near = advice(name, self.catalogue.children(words).chain(registries));
                    self.problem(
                        place,
                        format!("kitfs has no table `{}`{near}", dotted(words, name)),
                    );
                }
                _ => self.key(words, name, place, value),
            }
        }
    }

    fn key(&mut self, words: &[String], name: &str, place: usize, value: &Spanned<DeValue<'_>>) {
        let key = dotted(words, name);
        let settings: Vec<_> = self.catalogue.with_key(words, name).collect();
        let Some(first) = settings.first() else {
            let names = self.catalogue.keys(words).map(|setting| setting.key.as_str());
            let near = advice(name, names);
            return self.problem(place, format!("kitfs has no key `{key}`{near}"));
        };
        let values = match self.values(first, value) {
            Ok(values) => values,
            Err(reason) => return self.problem(place, format!("`{key}` {reason}")),
        };
        for value in &values {
            let refused =
                settings.iter().find_map(|setting| setting.check(OsStr::new(value)).err());
            if let Some(reason) = refused {
                return self.problem(
                    place,
                    format!("`{key}` cannot be {:?}: {reason}", without_user(value)),
                );
            }
        }
        let line = self.line(place);
        self.items.push(Item { table: words.to_vec(), key: name.to_owned(), line, values });
    }

    fn values(
        &self,
        setting: &Setting,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<String>, &'static str> {
        match value.get_ref() {
            DeValue::Array(values) if setting.is_list() => {
                values.iter().map(|value| self.value(setting, value)).collect()
            }
            DeValue::Array(_) => Err("takes one value, and not a list"),
            _ => Ok(vec![self.value(setting, value)?]),
        }
    }

    /// A value as the flag would take it.
    fn value(
        &self,
        setting: &Setting,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<String, &'static str> {
        match value.get_ref() {
            DeValue::Boolean(value) if setting.is_switch() => Ok(value.to_string()),
            DeValue::Boolean(_) => Err("takes a value, and neither true nor false"),
            _ if setting.is_switch() => Err("is either true or false, without quotes"),
            DeValue::String(text) if setting.is_path() => Ok(self.resolved(text)),
            DeValue::String(text) => Ok(text.as_ref().to_owned()),
            // `022` is no number in TOML, and 18 is not what `0o022` says.
            DeValue::Integer(number) => match (number.radix(), setting.is_octal()) {
                (8, true) => Ok(number.as_str().trim_start_matches("0o").to_owned()),
                (10, false) => Ok(number.as_str().to_owned()),
                (_, true) => Err("is octal: write 0o022 or \"022\""),
                (_, false) => Err("is a decimal number"),
            },
            DeValue::Float(number) => Ok(number.as_str().to_owned()),
            DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                Err("takes text, a number, or true or false")
            }
        }
    }

    /// A path of the file: `~/` is the home, and a relative path begins in the folder of the file.
    pub(super) fn resolved(&self, text: &str) -> String {
        let path = match (text.strip_prefix("~/"), self.home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => self.path.parent().unwrap_or(Path::new("/")).join(text),
        };
        path.to_str().map_or_else(|| text.to_owned(), str::to_owned)
    }
}

/// A key with the tables that it stands in.
pub(super) fn dotted(words: &[String], key: &str) -> String {
    words.iter().map(|word| format!("{word}.")).collect::<String>() + key
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::CommandFactory;
    use proptest::prelude::*;

    use super::*;
    use crate::cli::arguments::Arguments;

    fn parsed(text: &str) -> (Vec<Item>, Vec<String>) {
        let catalogue = Catalogue::of(&Arguments::command());
        let path = Path::new("/etc/kitfs/config.toml");
        let (file, problems) = parse(path, text, Some(Path::new("/home/a")), &catalogue);
        (file.items, problems.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn keys_have_their_table_their_line_and_the_value_of_the_flag() {
        let (items, problems) = parsed(
            "cache-size = '200GiB'\nca-file = ['a.pem', '~/b.pem']\n\n[mount]\nallow-other = true\numask = 0o077\n\
             uid = 1_000\n[daemon.start]\nidle-exit = \"1h\"\ncache-dir = '/data'\n",
        );
        assert_eq!(problems, [""; 0]);
        let found: Vec<_> = items
            .iter()
            .map(|item| (dotted(&item.table, &item.key), item.line, item.values.join("+")))
            .collect();
        let expected = [
            ("cache-size", 1, "200GiB"),
            ("ca-file", 2, "/etc/kitfs/a.pem+/home/a/b.pem"),
            ("mount.allow-other", 5, "true"),
            ("mount.umask", 6, "077"),
            ("mount.uid", 7, "1000"),
            ("daemon.start.idle-exit", 9, "1h"),
            ("daemon.start.cache-dir", 10, "/data"),
        ];
        let expected = expected.map(|(key, line, value)| (key.to_owned(), line, value.to_owned()));
        for one in expected {
            assert!(found.contains(&one), "{one:?} of {found:?}");
        }
    }

    #[test]
    fn each_problem_names_its_line_and_the_nearest_name() {
        for (text, expected) in [
            (
                "\ncache-sise = 1",
                "config.toml:2: kitfs has no key `cache-sise`; did you mean `cache-size`?",
            ),
            (
                "[mount]\nallow_other = true",
                "config.toml:2: kitfs has no key `mount.allow_other`; did you mean `allow-other`?",
            ),
            ("[mont]\na = 1", "config.toml:1: kitfs has no table `mont`; did you mean `mount`?"),
            ("[ls]\nhydrate = 'all'", "config.toml:2: kitfs has no key `ls.hydrate`"),
            ("json = true", "kitfs has no key `json`"),
            (
                "hydrate = 'some'",
                "config.toml:1: `hydrate` cannot be \"some\": the values are all, begun, none",
            ),
            ("[mount]\numask = 18", "`mount.umask` is octal"),
            ("keep-free = 'x'", "config.toml:1: `keep-free` cannot be \"x\": "),
            ("allow-other = 'yes'", "`allow-other` is either true or false"),
            ("allow-other = [true]", "takes one value"),
            ("retries = true", "`retries` takes a value"),
            ("retries = 0x5", "`retries` is a decimal number"),
            ("retries = 1979-05-27", "`retries` takes text"),
            ("a = 1\na = ", "config.toml:2: is not TOML"),
        ] {
            let (_, problems) = parsed(text);
            assert!(problems.iter().any(|it| it.contains(expected)), "{text}: {problems:?}");
        }
        assert_eq!(parsed("one = 1\nhydrate = 'x'\n[two]\n").1.len(), 3);
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let may = |owner, mode, user| Access { owner, mode }.distrust(user).is_none();
        assert!(may(0, 0o644, 0) && may(0, 0o644, 1000) && may(1000, 0o664, 1000));
        assert!(!may(1000, 0o644, 0) && !may(1001, 0o600, 1000));
        assert!(!may(0, 0o664, 0) && !may(1000, 0o666, 1000));
        assert!(may(0, 0o41777, 1000) && may(0, 0o41777, 0));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        assert_eq!(read(&path), Ok(None));
        std::fs::write(&path, "a = 1").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert_eq!(read(&path), Ok(Some("a = 1".to_owned())));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("chmod o-w"));
        assert!(read(folder.path()).unwrap_err().to_string().contains("is not a file"));
    }

    #[test]
    fn a_file_in_a_folder_that_others_can_write_is_refused_behind_links_too() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::write(open.join("config.toml"), "a = 1").unwrap();
        std::fs::set_permissions(open.join("config.toml"), PermissionsExt::from_mode(0o644))
            .unwrap();
        std::os::unix::fs::symlink("open/config.toml", folder.path().join("one")).unwrap();
        std::os::unix::fs::symlink("one", folder.path().join("two")).unwrap();
        // A link in the open folder that leads to a file outside of it.
        std::fs::write(folder.path().join("safe"), "a = 1").unwrap();
        std::fs::set_permissions(folder.path().join("safe"), PermissionsExt::from_mode(0o644))
            .unwrap();
        std::os::unix::fs::symlink("../safe", open.join("back")).unwrap();
        std::os::unix::fs::symlink("open/back", folder.path().join("three")).unwrap();
        let names = ["one", "two", "three", "open/config.toml", "open/back"];
        for (mode, is_used) in [(0o755, true), (0o777, false)] {
            std::fs::set_permissions(&open, PermissionsExt::from_mode(mode)).unwrap();
            for name in names {
                let read = read(&folder.path().join(name));
                assert_eq!(read.is_ok(), is_used, "{name}: {read:?}");
            }
        }
        std::os::unix::fs::symlink("loop", folder.path().join("loop")).unwrap();
        assert!(read(&folder.path().join("loop")).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics_and_none_is_taken_wrongly(text in "[a-z0-9=\\[\\].'\"\n -]{0,80}") {
            let (items, problems) = parsed(&text);
            let is_toml = toml::from_str::<toml::Table>(&text).is_ok();
            prop_assert!(is_toml || !problems.is_empty());
            prop_assert!(items.iter().all(|item| item.line >= 1));
        }
    }
}
