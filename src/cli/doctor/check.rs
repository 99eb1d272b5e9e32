//! The outcome of a check, and the report of all of them.

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::super::error::CliError;
use super::super::output::{colours_of_stdout, print_line, printable};

/// The subject of a check: its group, and its name in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Subject(pub &'static str, pub &'static str);

/// The outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum Outcome {
    /// The check found no problem.
    Ok,
    /// kitfs works, but slower, with less, or not for long.
    Warn,
    /// kitfs does not work.
    Fail,
    /// Not checked. `found` says why.
    Skip,
}

/// A finished check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(in crate::cli) struct Check {
    pub group: &'static str,
    pub name: &'static str,
    pub outcome: Outcome,
    /// The state that was found.
    pub found: String,
    /// The next step; `None` where nothing has to be done.
    pub advice: Option<String>,
}

impl Subject {
    pub(super) fn ok(self, found: impl Into<String>) -> Check {
        self.check(Outcome::Ok, found, None)
    }

    pub(super) fn warn(self, found: impl Into<String>, advice: impl Into<String>) -> Check {
        self.check(Outcome::Warn, found, Some(advice.into()))
    }

    pub(super) fn fail(self, found: impl Into<String>, advice: impl Into<String>) -> Check {
        self.check(Outcome::Fail, found, Some(advice.into()))
    }

    /// A failure whose message has the next step already.
    pub(super) fn failed(self, message: impl std::fmt::Display) -> Check {
        self.check(Outcome::Fail, message.to_string(), None)
    }

    pub(super) fn skip(self, why: impl Into<String>) -> Check {
        self.check(Outcome::Skip, why, None)
    }

    fn check(self, outcome: Outcome, found: impl Into<String>, advice: Option<String>) -> Check {
        let Self(group, name) = self;
        Check { group, name, outcome, found: found.into(), advice }
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
            Self::Skip => "SKIP",
        }
    }

    fn style(self) -> Style {
        match self {
            Self::Ok => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default().bold(),
            Self::Fail => AnsiColor::Red.on_default().bold(),
            Self::Skip => Style::new().dimmed(),
        }
    }
}

/// The number of checks with an outcome.
pub(in crate::cli) fn count(checks: &[Check], outcome: Outcome) -> usize {
    checks.iter().filter(|check| check.outcome == outcome).count()
}

/// Prints a check, below the name of its group where `is_first_of_group`.
pub(super) fn print(check: &Check, is_first_of_group: bool) -> Result<(), CliError> {
    let style = match colours_of_stdout() {
        true => check.outcome.style(),
        false => Style::new(),
    };
    if is_first_of_group {
        print_line(check.group)?;
    }
    let word = format!("{style}{:<4}{style:#}", check.outcome.word());
    let found = printable(check.found.as_bytes());
    print_line(format_args!("  {word} {:<14} {found}", check.name))?;
    match &check.advice {
        Some(advice) => print_line(format_args!("{:22}-> {}", "", printable(advice.as_bytes()))),
        None => Ok(()),
    }
}

/// All checks as text without colours.
pub(in crate::cli) fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let word = check.outcome.word();
        text += &format!("{word:<4} {}: {}: {}\n", check.group, check.name, check.found);
        if let Some(advice) = &check.advice {
            text += &format!("     -> {advice}\n");
        }
    }
    text
}
