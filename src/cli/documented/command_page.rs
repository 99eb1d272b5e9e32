//! docs/commands.md: every command with its arguments and options.
//!
//! The test writes the page when the variable SNAPSHOTS is `overwrite`, as the other snapshot tests do.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use clap::{Arg, Command, CommandFactory};

use super::super::arguments::Arguments;
use super::super::help::{MORE_CACHE_OPTIONS, MORE_NETWORK_OPTIONS};
use super::root;

/// Headings of options that many commands share. The page has these options once, at its end.
const SHARED: [&str; 4] =
    ["Network options", MORE_NETWORK_OPTIONS, "Cache options", MORE_CACHE_OPTIONS];

const INTRODUCTION: &str = "\
# Commands

Every command of kitfs with its arguments and options. `kitfs help COMMAND` prints the common ones, and `kitfs COMMAND
--help-all` all of them.

This page is generated from the command line's definition: `SNAPSHOTS=overwrite cargo test --lib command_page` writes it.
";

#[test]
fn the_page_has_the_commands_of_the_command_line() {
    let path = root().join("docs/commands.md");
    let generated = page();
    if std::env::var_os("SNAPSHOTS").is_some_and(|value| value == "overwrite") {
        fs::write(&path, &generated).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(generated.lines()).find(|(written, now)| written != now);
    assert!(
        written == generated,
        "docs/commands.md is not what the command line says; to write it anew: \
         SNAPSHOTS=overwrite cargo test --lib command_page\nfirst difference: {differs:?}"
    );
}

#[test]
fn text_is_escaped_outside_of_code_only() {
    assert_eq!(escaped("a <B> `<C>|*` *d"), "a \\<B> `<C>|*` \\*d");
}

fn page() -> String {
    let mut command = Arguments::command();
    command.build();
    let mut page = INTRODUCTION.to_owned();
    let mut shared = Vec::new();
    add_command(&mut page, &command, &mut shared);
    add_shared(&mut page, &command, &shared);
    page
}

/// Adds a command and the commands below it. `kitfs` itself has no section of its own.
fn add_command<'a>(page: &mut String, command: &'a Command, shared: &mut Vec<&'a Arg>) {
    let below = command.get_subcommands();
    let below: Vec<_> = below.filter(|it| !it.is_hide_set() && it.get_name() != "help").collect();
    let name = command.get_bin_name().unwrap_or("kitfs");
    if name != "kitfs" {
        add_section(page, name, command, shared);
    }
    for command in below {
        add_command(page, command, shared);
    }
}

fn add_section<'a>(page: &mut String, name: &str, command: &'a Command, shared: &mut Vec<&'a Arg>) {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").replace(['<', '>'], "");
    write!(page, "\n## {name}\n\n{}.\n\n```text\n{usage}\n```\n", escaped(&about)).unwrap();
    let own = command.get_arguments().filter(|it| !it.is_global_set() && is_shown(it));
    let (shared_here, own): (Vec<_>, Vec<_>) = own.partition(|it| is_shared(it));
    if !own.is_empty() {
        page.push('\n');
    }
    for argument in own {
        add_argument(page, argument);
    }
    if !shared_here.is_empty() {
        page.push_str("\nAnd the [network options](#network-options).\n");
    }
    shared.extend(shared_here);
    if let Some(text) = command.get_after_help() {
        write!(page, "\n```text\n{}\n```\n", text.to_string().trim_end()).unwrap();
    }
}

/// Adds the options that many commands have.
fn add_shared(page: &mut String, command: &Command, shared: &[&Arg]) {
    let global = command.get_arguments().filter(|it| it.is_global_set() && is_shown(it));
    let (cache, every): (Vec<_>, Vec<_>) = global.partition(|it| is_shared(it));
    page.push_str("\n## Options of every command\n\n");
    let mut seen = BTreeSet::new();
    for argument in every.into_iter().chain(cache) {
        seen.insert(argument.get_id());
        add_argument(page, argument);
    }
    page.push_str("\n## Network options\n\n");
    for argument in shared {
        if seen.insert(argument.get_id()) {
            add_argument(page, argument);
        }
    }
}

fn add_argument(page: &mut String, argument: &Arg) {
    let short = argument.get_short().map(|short| format!("-{short}, ")).unwrap_or_default();
    let form = argument.to_string().replace(['<', '>'], "");
    let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
    let help = escaped(help.trim_end_matches('.'));
    write!(page, "- `{short}{form}`: {help}").unwrap();
    let takes_value = argument.get_action().takes_values();
    let values = argument.get_possible_values();
    let values = values.iter().filter(|it| !it.is_hide_set()).map(|it| it.get_name());
    let values: Vec<_> = values.collect();
    let shows_values = !argument.is_hide_possible_values_set();
    if shows_values && takes_value && !values.is_empty() && values != ["true", "false"] {
        write!(page, " (`{}`)", values.join("`, `")).unwrap();
    }
    let defaults: Vec<_> = argument.get_default_values().iter().map(|it| it.display()).collect();
    if let (true, [default]) = (takes_value, &defaults[..]) {
        write!(page, " [default: {default}]").unwrap();
    }
    page.push_str(".\n");
}

fn is_shown(argument: &Arg) -> bool {
    !argument.is_hide_set() && argument.get_id() != "help" && argument.get_id() != "version"
}

fn is_shared(argument: &Arg) -> bool {
    argument.get_help_heading().is_some_and(|heading| SHARED.contains(&heading))
}

/// Text of `--help` as Markdown.
fn escaped(text: &str) -> String {
    let parts = text.split('`').enumerate().map(|(index, part)| match index % 2 {
        0 => part.replace('<', "\\<").replace('*', "\\*"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("`")
}
