//! Asks another version of kitfs whether it can go on with this daemon, before this daemon ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::listening::ListenConfig;
use crate::control::VERSION;
use crate::control::api::{Failure, FailureKind};
use crate::keeper::HAND_OVER;
use crate::process::running_time;

/// The option of `kitfs daemon run` for the question. It must keep its meaning for ever.
pub const CAN_TAKE_OVER: &str = "--can-take-over";

/// The answer of a program that can: any other program may end with success, too.
const YES: &str = "kitfs takes over";

/// How long a program may take for its answer: far longer than it needs on a machine that is overloaded.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer of this program to a daemon that hands over by the version `hand_over`.
///
/// # Errors
/// When it is another version than that of this program.
pub fn can_take_over(hand_over: u32) -> Result<&'static str, Failure> {
    if hand_over == HAND_OVER {
        return Ok(YES);
    }
    let message = format!(
        "kitfs {VERSION} knows version {HAND_OVER} of what a daemon hands over, and the running daemon has version \
         {hand_over}: end that daemon and its mounts with `kitfs daemon stop`, and mount again"
    );
    Err(Failure::new(FailureKind::Daemon, message))
}

/// Asks a program whether it can go on with this daemon, and knows the arguments that the next worker gets.
///
/// # Errors
/// When it says no, is no kitfs, or does not answer.
pub(super) async fn ask(program: &Path, listen: Option<&ListenConfig>) -> Result<(), Failure> {
    let refused = |why: &str| {
        let place = program.display();
        let message =
            format!("{place} cannot go on with the daemon, which stays kitfs {VERSION}: {why}");
        Failure::new(FailureKind::Daemon, message)
    };
    if !program.is_absolute() {
        return Err(refused("the path is not absolute"));
    }
    let mut command = Command::new(program);
    command.args(["daemon", "run", CAN_TAKE_OVER]).arg(HAND_OVER.to_string());
    listen.iter().for_each(|listen| listen.pass_on(command.as_std_mut()));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = match running_time::timeout(ANSWER_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(refused(&error.to_string())),
        Err(_) => return Err(refused(&format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
    };
    if output.status.success() && output.stdout.trim_ascii() == YES.as_bytes() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.lines().find_map(|line| line.strip_prefix("kitfs: "));
    Err(refused(words.unwrap_or("it is no kitfs that can do so")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn programs_that_do_not_say_yes_are_refused() {
        for (program, words) in [
            ("/bin/true", "no kitfs"),
            ("/bin/false", "no kitfs"),
            ("/no/such/program", "No such file"),
            ("relative", "not absolute"),
        ] {
            let failure = ask(Path::new(program), None).await.unwrap_err();
            assert!(failure.message.contains(words), "{failure}");
            assert!(failure.message.contains(VERSION), "{failure}");
        }
    }

    #[test]
    fn another_version_of_the_hand_over_is_refused() {
        assert!(can_take_over(HAND_OVER).is_ok());
        let failure = can_take_over(HAND_OVER + 1).unwrap_err();
        assert!(failure.message.contains("version 2"), "{failure}");
    }
}
