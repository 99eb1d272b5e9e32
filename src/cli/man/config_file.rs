//! kitfs-config.toml(5): the configuration files. docs/configuration.md explains more, and has the same tables.

use clap::CommandFactory;

use super::roff_page::RoffPage;
use crate::cli::arguments::Arguments;
use crate::cli::config::{Catalogue, KeyHelp, REGISTRY_KEYS, SectionKeyHelp};

pub(super) const NAME: &str = "kitfs-config.toml";
pub(super) const SECTION: &str = "5";

/// The most commands that an entry names. An option of more commands is for all that read a registry.
const MOST_COMMANDS: usize = 5;

const EXAMPLE: &str = "\
# /etc/kitfs/config.toml
cache-size = \"200GiB\"            # counts for every command
ca-file = [\"corp-ca.pem\"]        # relative to the folder of this file

[mount]                          # counts for kitfs mount
hydrate = \"all\"

[registry.\"ghcr.io\"]
mirror = [\"https://mirror.corp.example/ghcr\"]";

/// The page in roff.
pub(super) fn page() -> String {
    let mut page = RoffPage::new(NAME, SECTION, "configuration files of kitfs");
    page.section("DESCRIPTION")
        .text(
            "Every long option of kitfs(1) that is not for one run has a key of the same name. A key at the top of the \
             file counts for every command that has the option. A key in a table counts for one command: `[mount]`, or \
             `[daemon.start]` for `kitfs daemon start`.",
        )
        .text(
            "A flag wins over a variable (`KITFS_CACHE_SIZE` for `cache-size`), a variable over the files, and the file \
             of the user over the file of the machine. `kitfs config show` says where each value comes from, and \
             `kitfs config check` names every wrong key and value.",
        )
        .text(
            "Text, sizes and times are strings, and switches are `true` or `false`. Options that may be repeated take \
             lists. A path may begin with `~/`; other paths that are not absolute begin in the folder of the file. A \
             file that others may write is refused.",
        );
    page.section("FILES")
        .item(
            "~/.config/kitfs/config.toml",
            "",
            "the file of the user, below `$XDG_CONFIG_HOME` where that is set",
        )
        .item("/etc/kitfs/config.toml", "", "the file of the machine")
        .item("$KITFS_CONFIG", "", "names the only file that counts; `/dev/null` for none");
    page.section("EXAMPLE").example(EXAMPLE);
    page.section("KEYS");
    for key in Catalogue::of(&Arguments::command()).key_help() {
        page.item(&key.key, "", &explained(&key));
    }
    page.section("KEYS OF A REGISTRY").text(
        "A table `[registry.\"HOST[:PORT]\"]`, or `[registry.\"*.DOMAIN\"]` for all registries below a domain, sets what \
         holds for one registry. For each key by itself, the most specific table counts.",
    );
    for SectionKeyHelp { name, value, meaning } in REGISTRY_KEYS {
        page.item(name, "", &format!("{meaning}. Value: {value}."));
    }
    page.section("SEE ALSO").text("kitfs(1), kitfs-config(1), mount.fuse.kitfs(8)");
    page.finish()
}

fn explained(key: &KeyHelp) -> String {
    let KeyHelp { commands, defaults, meaning, .. } = key;
    let mut text = format!("{meaning}.");
    if !defaults.is_empty() {
        text += &format!(" Default: {}.", defaults.join(" or "));
    }
    match commands.len() {
        0 => {}
        1..=MOST_COMMANDS => text += &format!(" Of `kitfs {}`.", commands.join("`, `kitfs ")),
        _ => text += " Of many commands.",
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_key() {
        let page = page();
        let has = |name: &str| {
            let term = format!(".TP\n\\fB{}\\fR", name.replace('-', "\\-"));
            assert!(page.contains(&term), "{name}:\n{page}");
        };
        let keys = Catalogue::of(&Arguments::command()).key_help();
        assert!(keys.len() > 40, "{} keys", keys.len());
        keys.iter().for_each(|key| has(&key.key));
        REGISTRY_KEYS.iter().for_each(|key| has(key.name));
    }
}
