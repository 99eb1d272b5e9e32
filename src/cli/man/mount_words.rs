//! mount.fuse.kitfs(8): kitfs as the helper of mount(8). docs/fstab.md explains more.

use clap::{Arg, Command};

use super::roff_page::RoffPage;
use crate::cli::mount_helper::{EXIT_CODES, IGNORED, IGNORED_BEGINNINGS, word_options};

pub(super) const NAME: &str = "mount.fuse.kitfs";
pub(super) const SECTION: &str = "8";

/// Words that have a meaning for kitfs though no option of `kitfs mount` has their name, or though they are ignored
/// beside others.
const OWN_WORDS: [(&str, &str); 4] = [
    (
        "ro",
        "a kit is read-only. Without `ro` and `overlay`, kitfs says so and mounts the kit read-only",
    ),
    ("exec", "the modes of the files decide whether programs run from the mount; the default"),
    ("nosuid", "always so, and so is `nodev`; `suid` and `dev` are errors"),
    ("remount", "an error: unmount and mount again, or use `kitfs mount --replace`"),
];

const EXAMPLE: &str = "\
mount -t fuse.kitfs -o ro,allow_other ghcr.io/org/model:v1 /models

# /etc/fstab
ghcr.io/org/model:v1  /models  fuse.kitfs  ro,allow_other,_netdev,nofail                 0  0
ghcr.io/org/data:v2   /data    fuse.kitfs  ro,allow_other,_netdev,x-systemd.automount    0  0";

/// The page in roff. `command` is the whole command line.
pub(super) fn page(command: &Command) -> String {
    let mut page = RoffPage::new(NAME, SECTION, "mount a kit with mount(8) and fstab(5)");
    page.section("SYNOPSIS")
        .text("`mount -t fuse.kitfs` [`-o` WORDS] REF DIRECTORY")
        .text("`mount.fuse.kitfs` REF DIRECTORY [`-sfnv`] [`-o` WORDS] [`-t` TYPE]");
    page.section("DESCRIPTION").text(
        "mount(8) runs this program for the type `fuse.kitfs`. The program turns the words of `-o` into the flags of \
         `kitfs mount`. It returns when the files can be listed, and a daemon serves the mount. Values of \
         kitfs-config.toml(5) count too.",
    );
    page.section("OPTIONS")
        .item("-o", " WORDS", "words with commas between them; see below")
        .item("-s", "", "warn of unknown words, and pass over them")
        .item("-f", "", "check the words, and mount nothing")
        .item("-n", "", "ignored: the kernel has the table of mounts")
        .item("-v", "", "write more to the log")
        .item("-t", " TYPE", "`fuse.kitfs`, `kitfs` or `fuse`")
        .item("-N", " NAMESPACE", "an error: run kitfs in that namespace, with nsenter(1)");
    page.section("WORDS").text(
        "Write `\\,` for a comma within a word, or put the value in double quotes. In fstab, a blank is `\\040`. `_` counts \
         as `-`, so `allow_other` is `allow-other`.",
    );
    for (word, meaning) in OWN_WORDS {
        page.item(word, "", meaning);
    }
    let mount = command.find_subcommand("mount").expect("there is a command `mount`");
    let mut options: Vec<_> = word_options(command, mount).collect();
    options.sort_by_key(|option| option.get_long());
    // A command line that was built has the options of every command in `mount` too.
    options.dedup_by_key(|option| option.get_long());
    for option in options {
        let (name, value) = (option.get_long().unwrap_or_default(), value_of(option));
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        page.item(name, &value, help.trim_end_matches('.'));
    }
    let beginnings = IGNORED_BEGINNINGS.iter().map(|word| format!("`{word}`"));
    let words = IGNORED.iter().map(|word| format!("`{word}`"));
    page.section("IGNORED WORDS")
        .text("mount(8) and systemd use these words themselves, or the words hold for every kit:")
        .text(&words.collect::<Vec<_>>().join(", "))
        .text("Words that begin so are ignored too:")
        .text(&beginnings.collect::<Vec<_>>().join(", "));
    page.section("EXIT STATUS");
    for (code, meaning) in EXIT_CODES {
        page.item(&code.to_string(), "", meaning);
    }
    page.section("EXAMPLES").example(EXAMPLE);
    page.section("SEE ALSO")
        .text("kitfs-mount(1), kitfs-config.toml(5), mount(8), fstab(5), systemd.mount(5)");
    page.finish()
}

/// The value of an option: `=SIZE`, `[=PATH]`, or nothing for a switch.
fn value_of(option: &Arg) -> String {
    let names = option.get_value_names().unwrap_or_default();
    match (option.get_action().takes_values(), names) {
        (true, [name, ..]) if option.get_num_args().is_some_and(|it| it.min_values() == 0) => {
            format!("[={name}]")
        }
        (true, [name, ..]) => format!("={name}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory;

    use super::*;
    use crate::cli::arguments::Arguments;

    #[test]
    fn the_page_has_every_word() {
        let mut command = Arguments::command();
        command.build();
        let page = page(&command);
        let mount = command.find_subcommand("mount").unwrap();
        let words: Vec<_> = word_options(&command, mount).filter_map(Arg::get_long).collect();
        assert!(words.len() > 20, "{words:?}");
        let own = OWN_WORDS.iter().map(|(word, _)| *word);
        let all: BTreeSet<_> = words.into_iter().chain(own).collect();
        for word in all {
            let term = format!(".TP\n\\fB{}\\fR", word.replace('-', "\\-"));
            let terms = |end: &str| page.matches(&format!("{term}{end}")).count();
            assert_eq!(terms("\n") + terms("\\fI"), 1, "{word}:\n{page}");
        }
        for word in IGNORED.iter().chain(IGNORED_BEGINNINGS) {
            let term = format!("\\fB{}\\fR", word.replace('-', "\\-"));
            assert!(page.contains(&term), "{word}:\n{page}");
        }
        for (code, meaning) in EXIT_CODES {
            assert!(page.contains(&format!(".TP\n\\fB{code}\\fR\n{meaning}")), "{code}:\n{page}");
        }
    }
}
