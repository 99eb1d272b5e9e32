//! `mount.fuse.kitfs`: kitfs as the program that mount(8) runs for `mount -t fuse.kitfs REF DIR` and for lines
//! of fstab.
//!
//! ```text
//! mount.fuse.kitfs REF DIR [-sfnv] [-N NAMESPACE] [-o WORDS] [-t TYPE]      (mount(8), "External helpers")
//!   --> kitfs mount --FLAG… -- REF DIR
//! ```
//!
//! The words of `-o` become the flags of `kitfs mount`, so files and variables count here too. kitfs ignores words
//! that mount(8) and systemd use themselves, and words that are true of every kit, such as `ro`.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, Command, CommandFactory};

use super::arguments::Arguments;
use super::error::CliError;
use super::nearest::advice;
use super::output::say;
use crate::control::api::FailureKind;

/// The names under which mount(8) finds the program, and the command that does the same.
const NAMES: [&str; 2] = ["mount.fuse.kitfs", "mount.kitfs"];
const COMMAND: &str = "mount-helper";

/// The types that mount(8) may name.
const TYPES: [&str; 3] = ["fuse", "fuse.kitfs", "kitfs"];

/// Words of mount(8) and systemd that kitfs ignores. Every kit is mounted `ro,nosuid,nodev`, files have the times
/// of the kit, and the kernel checks permissions.
pub(super) const IGNORED: &[&str] = &[
    "_netdev",
    "async",
    "atime",
    "auto",
    "default_permissions",
    "defaults",
    "diratime",
    "dirsync",
    "exec",
    "fail",
    "group",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "nofail",
    "nogroup",
    "noiversion",
    "nolazytime",
    "nomand",
    "noowner",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "ro",
    "rw",
    "silent",
    "strictatime",
    "sync",
    "user",
    "users",
];

/// The beginnings of words with a value that kitfs ignores.
pub(super) const IGNORED_BEGINNINGS: &[&str] =
    &["X-", "comment=", "fsname=", "helper=", "subtype=", "uhelper=", "user=", "x-"];

/// Flags of `kitfs mount` that are no words of `-o`: a mount of mount(8) outlives the command.
const NO_WORDS: &[&str] = &["foreground", "help-all", "json", "replace", "while-pid"];

/// The exit codes of mount(8).
pub(super) const WRONG_CALL: u8 = 1;
const SYSTEM_ERROR: u8 = 2;
const INTERRUPTED: u8 = 8;
const NOT_MOUNTED: u8 = 32;

/// Their meanings, for the manual page.
pub(super) const EXIT_CODES: [(u8, &str); 5] = [
    (0, "success"),
    (WRONG_CALL, "a wrong word or value"),
    (SYSTEM_ERROR, "an error of kitfs itself"),
    (INTERRUPTED, "interrupted from the keyboard"),
    (NOT_MOUNTED, "the kit cannot be mounted"),
];

/// A call by mount(8), as arguments of kitfs.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Call {
    /// `kitfs mount` with flags.
    pub arguments: Vec<OsString>,
    /// Check the words, and do not mount (`mount -f`).
    pub is_fake: bool,
}

/// The call by mount(8); `None` where the program was called by another name.
///
/// # Errors
/// The message for words that kitfs does not know.
pub(super) fn call(arguments: &[OsString]) -> Option<Result<Call, String>> {
    let (name, rest) = arguments.split_first()?;
    let name = Path::new(name).file_name().unwrap_or_default();
    if NAMES.iter().any(|known| name == *known) {
        return Some(translate(rest));
    }
    let (command, rest) = rest.split_first()?;
    (command == COMMAND).then(|| translate(rest))
}

/// The exit code of mount(8) for an error.
pub(super) fn report(error: CliError) -> ExitCode {
    ExitCode::from(match error {
        CliError::OutputClosed => 0,
        CliError::Interrupted => INTERRUPTED,
        CliError::Passed(code) => code,
        CliError::Failure(failure) => {
            say(&failure);
            match failure.kind {
                FailureKind::Usage => WRONG_CALL,
                FailureKind::Internal => SYSTEM_ERROR,
                _ => NOT_MOUNTED,
            }
        }
    })
}

/// Reports a call whose words are wrong.
pub(super) fn report_wrong_call(message: impl std::fmt::Display) -> ExitCode {
    say(message);
    ExitCode::from(WRONG_CALL)
}

/// The arguments of mount(8) beside the kit and the directory.
#[derive(Default)]
struct Given {
    places: Vec<OsString>,
    words: Vec<OsString>,
    is_fake: bool,
    is_sloppy: bool,
    verbose: usize,
}

fn translate(arguments: &[OsString]) -> Result<Call, String> {
    let given = given(arguments)?;
    let [kit, directory] = given.places.as_slice() else {
        return Err("mount(8) gives a kit and a directory: mount -t fuse.kitfs REF DIR".to_owned());
    };
    let mut line: Vec<OsString> = ["kitfs", "mount"].map(OsString::from).into();
    line.extend(std::iter::repeat_n("-v".into(), given.verbose));
    if given.verbose == 0 {
        line.push("--quiet".into());
    }
    line.extend(flags(&given.words, given.is_sloppy)?);
    line.extend(["--".into(), kit.clone(), directory.clone()]);
    Ok(Call { arguments: line, is_fake: given.is_fake })
}

fn given(arguments: &[OsString]) -> Result<Given, String> {
    let mut given = Given::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let letters = match argument.as_bytes() {
            [b'-', letters @ ..] if !letters.is_empty() => letters,
            _ => {
                given.places.push(argument.clone());
                continue;
            }
        };
        for (index, letter) in letters.iter().enumerate() {
            match letter {
                b's' => given.is_sloppy = true,
                b'f' => given.is_fake = true,
                // `-n` does not write mtab, which today is a link to the kernel's table.
                b'n' => {}
                b'v' => given.verbose += 1,
                b'o' | b't' | b'N' => {
                    let value = match &letters[index + 1..] {
                        [] => rest.next().cloned(),
                        value => Some(OsString::from_vec(value.to_vec())),
                    };
                    let option = char::from(*letter);
                    let value = value.ok_or_else(|| format!("-{option} needs a value"))?;
                    match letter {
                        b'o' => given.words.extend(split(value.as_bytes())),
                        b't' if TYPES.iter().any(|known| value == *known) => {}
                        b't' => {
                            return Err(format!(
                                "kitfs mounts no {}: -t fuse.kitfs",
                                value.display()
                            ));
                        }
                        _ => {
                            let message = "kitfs mounts in its own namespace only: run it there with \
                                           nsenter(1), and leave -N out";
                            return Err(message.to_owned());
                        }
                    }
                    break;
                }
                _ => return Err(format!("kitfs has no -{} for mount(8)", char::from(*letter))),
            }
        }
    }
    Ok(given)
}

/// The flags of `kitfs mount` for the words of `-o`.
fn flags(words: &[OsString], is_sloppy: bool) -> Result<Vec<OsString>, String> {
    let command = Arguments::command();
    let mount = command.find_subcommand("mount").expect("there is a command `mount`");
    let mut flags: Vec<OsString> = Vec::new();
    let (mut is_noexec, mut is_rw) = (false, false);
    for word in words {
        match word.as_bytes() {
            b"exec" => is_noexec = false,
            b"noexec" => is_noexec = true,
            b"rw" => is_rw = true,
            b"ro" => is_rw = false,
            _ => {}
        }
        if is_ignored(word) || word == "noexec" {
            continue;
        }
        match flag(&command, mount, word) {
            Ok(flag) => flags.push(flag),
            Err(message) if is_sloppy => say(format_args!("warning: {message}")),
            Err(message) => return Err(message),
        }
    }
    if is_noexec {
        flags.push("--noexec".into());
    }
    let is_overlay = |flag: &OsString| flag.as_bytes().starts_with(b"--overlay");
    if is_rw && !flags.iter().any(is_overlay) {
        say(
            "warning: a kit is mounted read-only; `overlay=UPPER` makes it writable, `ro` spares this word",
        );
    }
    Ok(flags)
}

fn is_ignored(word: &OsStr) -> bool {
    IGNORED.iter().any(|known| word == *known)
        || IGNORED_BEGINNINGS.iter().any(|begin| word.as_bytes().starts_with(begin.as_bytes()))
}

/// The options of kitfs that are words of `-o`.
pub(super) fn word_options<'a>(
    command: &'a Command,
    mount: &'a Command,
) -> impl Iterator<Item = &'a Arg> {
    let all = command.get_arguments().filter(|it| it.is_global_set()).chain(mount.get_arguments());
    all.filter(|it| it.get_long().is_some_and(|name| !NO_WORDS.contains(&name)))
}

/// The flag for a word, such as `--allow-other` for `allow_other`.
fn flag(command: &Command, mount: &Command, word: &OsStr) -> Result<OsString, String> {
    let bytes = word.as_bytes();
    let end = bytes.iter().position(|byte| *byte == b'=').unwrap_or(bytes.len());
    let name = String::from_utf8_lossy(&bytes[..end]).replace('_', "-");
    let shown = word.display();
    match &*name {
        "remount" => {
            let message = "a mount of kitfs cannot be changed: unmount it and mount it again, or put another kit \
                           in its place with `kitfs mount --replace`";
            return Err(message.to_owned());
        }
        "dev" | "suid" => {
            return Err(format!(
                "`{shown}` is not possible: every kit is mounted nosuid and nodev"
            ));
        }
        _ => {}
    }
    let known = || word_options(command, mount).filter_map(Arg::get_long);
    if !known().any(|known| known == name) {
        let all: BTreeSet<_> = known().chain(IGNORED.iter().copied()).chain(["noexec"]).collect();
        let near = advice(&name, all);
        return Err(format!(
            "`{shown}` is no word for a kit in -o{near}; `mount -s` passes over it"
        ));
    }
    let mut flag = OsString::from(format!("--{name}"));
    flag.push(OsStr::from_bytes(&bytes[end..]));
    Ok(flag)
}

/// The words of `-o`. As for mount.fuse3, `\,` is a comma within a word, `\` and three octal digits are a byte, and
/// `\` before another character is that character. As for mount(8), a comma between double quotes belongs to the word.
fn split(text: &[u8]) -> Vec<OsString> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), Vec::new(), false);
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'\\' => match rest {
                [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] => {
                    word.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                    rest = after;
                }
                [next, after @ ..] => {
                    word.push(*next);
                    rest = after;
                }
                [] => word.push(b'\\'),
            },
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => words.push(std::mem::take(&mut word)),
            byte => word.push(*byte),
        }
    }
    words.push(word);
    words.into_iter().filter(|word| !word.is_empty()).map(OsString::from_vec).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn called(words: &[&str]) -> Option<Result<Call, String>> {
        call(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    fn line(words: &[&str]) -> Result<String, String> {
        let call = called(words).expect("this is a call by mount(8)")?;
        let words: Vec<_> = call.arguments.iter().map(|word| word.to_str().unwrap()).collect();
        Ok(words.join(" "))
    }

    #[test]
    fn the_program_is_known_by_its_names() {
        assert_eq!(called(&["kitfs", "mount", "r/e:v1", "/m"]), None);
        assert_eq!(called(&["/usr/bin/kitfs"]), None);
        for words in [
            &["/sbin/mount.fuse.kitfs", "r/e:v1", "/m"][..],
            &["mount.kitfs", "r/e:v1", "/m"],
            &["kitfs", "mount-helper", "r/e:v1", "/m"],
        ] {
            assert_eq!(line(words).unwrap(), "kitfs mount --quiet -- r/e:v1 /m");
        }
    }

    #[test]
    fn words_of_mount_become_flags() {
        let mount = |words: &str| line(&["mount.fuse.kitfs", "r/e:v1", "/m", "-o", words]);
        let flags = |words: &str| {
            let line = mount(words).unwrap();
            line.strip_prefix("kitfs mount --quiet ")
                .unwrap()
                .strip_suffix("-- r/e:v1 /m")
                .unwrap()
                .trim()
                .to_owned()
        };
        assert_eq!(flags("ro,nosuid,nodev,_netdev,nofail,users,x-systemd.automount,user=a"), "");
        assert_eq!(
            flags("ro,allow_other,uid=1000,umask=077"),
            "--allow-other --uid=1000 --umask=077"
        );
        assert_eq!(flags("ro,noexec,exec"), "");
        assert_eq!(flags("ro,exec,noexec"), "--noexec");
        assert_eq!(
            flags("ro,filter=model\\,docs:a,cache-dir=/c"),
            "--filter=model,docs:a --cache-dir=/c"
        );
        assert_eq!(
            flags("ro,filter=\"model,docs\",hydrate=all"),
            "--filter=model,docs --hydrate=all"
        );
        assert_eq!(flags("rw,overlay=/up"), "--overlay=/up");
        for (words, expected) in [
            ("alow_other", "did you mean `allow-other`?"),
            ("noexecc", "did you mean `noexec`?"),
            ("remount,ro", "cannot be changed"),
            ("suid", "nosuid and nodev"),
            ("foreground", "is no word"),
        ] {
            let message = mount(words).unwrap_err();
            assert!(message.contains(expected), "{words}: {message}");
        }
    }

    #[test]
    fn letters_of_mount_are_understood() {
        let call =
            called(&["mount.kitfs", "-svn", "r/e", "-f", "/m", "-t", "fuse.kitfs", "-owhat,ro"]);
        let call = call.unwrap().unwrap();
        assert!(call.is_fake);
        assert_eq!(call.arguments, ["kitfs", "mount", "-v", "--", "r/e", "/m"].map(OsString::from));
        for wrong in
            [&["r/e", "/m", "-t", "nfs"][..], &["r/e"], &["r/e", "/m", "-N", "1"], &["-x"], &["-o"]]
        {
            assert!(
                translate(&wrong.iter().map(OsString::from).collect::<Vec<_>>()).is_err(),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn every_word_of_a_table_is_known_once() {
        assert!(IGNORED.is_sorted() && IGNORED_BEGINNINGS.is_sorted() && NO_WORDS.is_sorted());
        let command = Arguments::command();
        let mount = command.find_subcommand("mount").unwrap();
        let names: Vec<_> = mount.get_arguments().filter_map(Arg::get_long).collect();
        for name in &names {
            assert!(!IGNORED.contains(name), "{name}");
        }
        for name in NO_WORDS.iter().filter(|name| **name != "help-all") {
            assert!(names.contains(name), "{name}");
        }
    }

    proptest! {
        #[test]
        fn escaped_words_are_read_as_they_were_written(
            words in proptest::collection::vec("[a-z=,\\\\\" ]{1,8}", 1..5),
        ) {
            let escaped = |word: &String| {
                word.replace('\\', "\\\\").replace(',', "\\,").replace('"', "\\\"")
            };
            let text: Vec<_> = words.iter().map(escaped).collect();
            let read = split(text.join(",").as_bytes());
            prop_assert_eq!(read, words.iter().map(OsString::from).collect::<Vec<_>>());
        }

        #[test]
        fn no_call_panics(words in proptest::collection::vec("[a-z=,\\\\\"0-9-]{0,8}", 0..6)) {
            let words: Vec<_> = words.iter().map(OsString::from).collect();
            let _ = translate(&words);
        }
    }
}
