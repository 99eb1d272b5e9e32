//! The progress of opening a kit: a bar on a terminal, else a line now and then.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{say, say_waiting};
use crate::control::api::{OpenProgress, PassProgress};

/// The interval of progress lines where no terminal shows a bar. The first line comes after one interval, because
/// most kits are open before.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Shows the progress over the layers of a kit: over the headers of archives, and over all of a compressed layer.
pub(super) struct Opening {
    bar: ProgressBar,
    lines: Lines,
}

/// Lines of progress, at most one in each interval.
pub(super) struct Lines {
    is_terminal: bool,
    last: Instant,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), last: Instant::now() }
    }

    /// Prints a line, if the last line is old enough and no terminal shows a bar.
    pub(super) fn say(&mut self, line: impl FnOnce() -> String) {
        if !self.is_terminal && self.last.elapsed() >= LINE_INTERVAL {
            self.last = Instant::now();
            say(line());
        }
    }
}

impl Opening {
    pub(super) fn new() -> Self {
        Self { bar: bar(), lines: Lines::new() }
    }

    pub(super) fn show(&mut self, progress: OpenProgress) {
        match progress {
            OpenProgress::Passing(progress) => {
                show_pass(&self.bar, progress);
                self.lines.say(|| format!("reading headers: {}", percent(progress)));
            }
            OpenProgress::Waiting(waiting) => self.bar.suspend(|| say_waiting(&waiting)),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The bar alone, for a display with several bars. Invisible unless the standard error is a terminal.
pub(super) fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    // The bar has no bytes, because most bytes of an archive are skipped and not downloaded.
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {percent} % {eta}");
    let style = style.expect("the template is a constant");
    bar.with_style(style.progress_chars("=> ")).with_message("reading headers")
}

/// Moves [`bar`].
pub(super) fn show_pass(bar: &ProgressBar, progress: PassProgress) {
    bar.set_length(progress.total_bytes);
    bar.set_position(progress.passed_bytes);
}

/// The share of the layers that is done.
pub(super) fn percent(progress: PassProgress) -> String {
    let PassProgress { passed_bytes, total_bytes } = progress;
    let share = u128::from(passed_bytes) * 100 / u128::from(total_bytes.max(1));
    format!("{} %", share.min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_in_percent() {
        let of = |passed_bytes, total_bytes| percent(PassProgress { passed_bytes, total_bytes });
        assert_eq!([of(0, 0), of(1, 3), of(3, 3), of(9, 3)], ["0 %", "33 %", "100 %", "100 %"]);
        assert_eq!(of(u64::MAX, u64::MAX), "100 %");
    }

    #[test]
    fn a_line_comes_once_in_each_interval_and_never_on_a_terminal() {
        let mut told = 0;
        let before =
            Instant::now().checked_sub(LINE_INTERVAL).expect("the machine runs for longer");
        let mut lines = Lines { is_terminal: false, last: before };
        for _ in 0..3 {
            lines.say(|| {
                told += 1;
                "line".to_owned()
            });
        }
        assert_eq!(told, 1);
        let mut lines = Lines { is_terminal: true, last: before };
        lines.say(|| unreachable!("a terminal has a bar"));
    }
}
