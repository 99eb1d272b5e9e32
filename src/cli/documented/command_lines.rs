//! Each command line of kitfs in a page or in `--help` parses: its command and its flags exist.

use std::ffi::OsString;
use std::fs;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Parser};

use super::super::arguments::Arguments;
use super::super::kit_habits;
use super::{pages, root};

/// Programs whose arguments may be the word `kitfs` without running it.
const NAME_IT: [&str; 8] =
    ["groupadd", "usermod", "cd", "cargo", "ls", "apt-get", "systemctl", "pip"];

/// A command with the grammar of mount(8), which never reaches clap.
const OF_MOUNT: &str = "mount-helper";

/// A command line of a text.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    words: Vec<String>,
    /// The text only mentions the command, and may leave arguments out.
    is_mention: bool,
}

#[test]
fn every_command_line_of_the_pages_parses() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in pages() {
        let text = fs::read_to_string(&path).expect("the page is text");
        let path = path.strip_prefix(root()).expect("below the root").display();
        for line in lines_of_page(&text) {
            count += 1;
            // A build without traces refuses the option, and says so.
            let needs_traces = line.words.iter().any(|word| word == "--otlp");
            if needs_traces && !cfg!(feature = "otlp") {
                continue;
            }
            if let Err(reason) = parse(&line) {
                wrong.push(format!("{path}: {}\n    {reason}", line.words.join(" ")));
            }
        }
    }
    assert!(count > 200, "only {count} command lines found");
    assert!(wrong.is_empty(), "command lines that kitfs refuses:\n{}", wrong.join("\n"));
}

#[test]
fn every_example_of_the_help_parses() {
    let mut wrong = Vec::new();
    let mut open = vec![Arguments::command()];
    let mut count = 0;
    while let Some(command) = open.pop() {
        for words in examples(&command) {
            count += 1;
            let line = Line { words, is_mention: false };
            if let Err(reason) = parse(&line) {
                wrong.push(format!("{}: {reason}", line.words.join(" ")));
            }
        }
        open.extend(command.get_subcommands().cloned());
    }
    assert!(count > 30, "only {count} examples found");
    assert!(wrong.is_empty(), "examples that kitfs refuses:\n{}", wrong.join("\n"));
}

#[test]
fn command_lines_are_found_and_wrong_ones_refused() {
    let page = "Run `kitfs mount --no-such`, or\n`kitfs\nstatus` twice.\n\n```sh\nA=1 kitfs ls REF \\\n  -l | wc  # kitfs no\n\
                sh -c 'kitfs cat REF/a && true' >/bin/kitfs 2>&1\ngroupadd kitfs\n```\n\n```console\n$ kitfs status\nkitfs said so\n```\n";
    let lines = lines_of_page(page);
    let texts: Vec<_> = lines.iter().map(|line| line.words.join(" ")).collect();
    let expected = [
        "kitfs mount --no-such",
        "kitfs status",
        "kitfs ls REF -l",
        "kitfs cat REF/a",
        "kitfs status",
    ];
    assert_eq!(texts, expected);
    let faults: Vec<_> = lines.iter().map(|line| parse(line).is_err()).collect();
    assert_eq!(faults, [true, false, false, false, false]);
    for (text, is_right) in [
        ("kitfs mount --while-pid PID REF DIR", true),
        ("kitfs mount --while-pid x REF DIR", false),
        ("kitfs nothing", false),
        ("kitfs mount REF", false),
    ] {
        let line = Line { words: words_of(text), is_mention: false };
        assert_eq!(parse(&line).is_ok(), is_right, "{text}");
    }
    let mention = Line { words: words_of("kitfs mount --replace"), is_mention: true };
    assert_eq!(parse(&mention), Ok(()));
}

/// The command lines in code blocks and in code within text.
fn lines_of_page(page: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut block: Option<(&str, String)> = None;
    let mut text = String::new();
    for line in page.lines() {
        let fence = line.trim_start().strip_prefix("```");
        match (&mut block, fence) {
            (None, Some(language)) => {
                lines.extend(mentions(&text));
                text.clear();
                block = Some((language, String::new()));
            }
            (None, None) => text = format!("{text}{line}\n"),
            (Some((language, content)), Some(_)) => {
                lines.extend(lines_of_block(language, content));
                block = None;
            }
            (Some((_, content)), None) => *content = format!("{content}{line}\n"),
        }
    }
    lines.extend(mentions(&text));
    lines
}

/// The command lines of running text: code that begins with `kitfs`.
fn mentions(text: &str) -> Vec<Line> {
    // A paragraph without its closing mark must not change the meaning of marks in the next one.
    let paragraphs = text.split("\n\n");
    let code = paragraphs.flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
    let code = code.filter(|code| code.starts_with("kitfs ") || code.starts_with("kitfs\n"));
    code.map(|code| Line { words: words_of(code), is_mention: true }).collect()
}

/// The words of a command in running text, where `|` separates choices.
fn words_of(code: &str) -> Vec<String> {
    let words = code.split_whitespace().filter(|word| !word.starts_with('…'));
    words.map(|word| word.split('|').next().unwrap_or_default().to_owned()).collect()
}

fn lines_of_block(language: &str, content: &str) -> Vec<Line> {
    let content = content.replace("\\\n", " ");
    let script = match language {
        "sh" | "bash" => content,
        "console" => {
            let typed = content.lines().filter_map(|line| line.strip_prefix("$ "));
            typed.collect::<Vec<_>>().join("\n")
        }
        "ini" => {
            let started = content.lines().filter_map(|line| line.strip_prefix("ExecStart="));
            started.collect::<Vec<_>>().join("\n")
        }
        _ => return Vec::new(),
    };
    commands_of_script(&script)
}

fn commands_of_script(script: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for words in simple_commands(script) {
        let inner = words.iter().filter(|word| word.contains(char::is_whitespace));
        let inner: Vec<_> = inner.flat_map(|word| commands_of_script(word)).collect();
        let names_it = words.first().is_some_and(|first| NAME_IT.contains(&first.as_str()));
        let is_kitfs = |word: &String| word == "kitfs" || word.ends_with("/kitfs");
        if let (Some(at), false) = (words.iter().position(is_kitfs), names_it) {
            lines.push(Line { words: words[at..].to_vec(), is_mention: false });
        }
        lines.extend(inner);
    }
    lines
}

/// The words of each command of a shell script, without redirections and comments.
fn simple_commands(script: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut characters = script.chars().peekable();
    let mut quote = None;
    let mut finish = |word: &mut Option<String>, ends: bool| {
        let command = commands.last_mut().expect("there is one");
        command.extend(word.take());
        if ends && !command.is_empty() {
            commands.push(Vec::new());
        }
    };
    while let Some(next) = characters.next() {
        match (next, quote) {
            (mark, Some(open)) if mark == open => quote = None,
            (other, Some(_)) => word.get_or_insert_default().push(other),
            ('\'' | '"', None) => {
                quote = Some(next);
                word.get_or_insert_default();
            }
            ('\\', None) => word.get_or_insert_default().extend(characters.next()),
            ('#', None) if word.is_none() => {
                while characters.next_if(|it| *it != '\n').is_some() {}
            }
            ('\n' | '|' | '&' | ';' | '(' | ')', None) => finish(&mut word, true),
            // The file of a redirection becomes a command of its own, and is dropped at the end.
            ('>' | '<', None) => {
                finish(&mut word, true);
                word = Some(">".to_owned());
            }
            (blank, None) if blank.is_whitespace() => finish(&mut word, false),
            (other, None) => word.get_or_insert_default().push(other),
        }
    }
    finish(&mut word, true);
    commands.retain(|command| command.first().is_some_and(|first| !first.starts_with('>')));
    commands
}

/// The examples below the help of a command. An explanation follows after several blanks.
fn examples(command: &Command) -> Vec<Vec<String>> {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("  kitfs "));
    let code = lines.map(|line| line.trim().split("   ").next().unwrap_or_default().to_owned());
    code.flat_map(|code| commands_of_script(&code)).map(|line| line.words).collect()
}

/// Fails with the reason of clap.
fn parse(line: &Line) -> Result<(), String> {
    if line.words.get(1).is_some_and(|word| word == OF_MOUNT) {
        return Ok(());
    }
    let bare = |word: &String| word.trim_matches(['[', ']']).trim_end_matches('…').to_owned();
    let words = line.words.iter().map(bare).filter(|word| !word.is_empty());
    let words = kit_habits::translate(words.map(OsString::from));
    let Err(error) = Arguments::try_parse_from(words) else { return Ok(()) };
    let is_fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => line.is_mention,
        // `kitfs COMMAND --help-all`
        ErrorKind::InvalidSubcommand => match error.get(ContextKind::InvalidSubcommand) {
            Some(ContextValue::String(name)) => line.is_mention && is_placeholder(name),
            _ => false,
        },
        // A flag at the end of a mention, without its value; or a value such as PID.
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            match error.get(ContextKind::InvalidValue) {
                Some(ContextValue::String(value)) if value.is_empty() => line.is_mention,
                Some(ContextValue::String(value)) => is_placeholder(value),
                _ => false,
            }
        }
        _ => false,
    };
    if is_fine {
        Ok(())
    } else {
        Err(error.to_string().lines().next().unwrap_or_default().to_owned())
    }
}

/// `true` for a value that stands for others, such as `TIME` or `ADDRESS:PORT`.
fn is_placeholder(value: &str) -> bool {
    value.starts_with(|it: char| it.is_ascii_uppercase())
        && value.chars().all(|it| it.is_ascii_uppercase() || it.is_ascii_punctuation())
}
