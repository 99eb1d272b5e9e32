//! Counts the commands that a daemon answers, because an idle daemon ends.

use std::sync::Arc;

use parking_lot::Mutex;

/// Counts commands. Before the daemon ends, it waits until none is open, and admits no further one.
#[derive(Debug, Default)]
pub struct Activity(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Connections that are open now.
    open: usize,
    /// Connections that have begun so far.
    begun: u64,
    is_closed: bool,
}

/// The number of commands that have begun, at a moment without an open one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet(u64);

/// A command or an HTTP request that is being answered.
#[derive(Debug)]
pub struct Answering(Arc<Activity>);

impl Activity {
    /// Admits a command; `None` when the daemon is about to end.
    pub fn begin(self: &Arc<Self>) -> Option<Answering> {
        let mut state = self.0.lock();
        if state.is_closed {
            return None;
        }
        state.open += 1;
        state.begun += 1;
        Some(Answering(self.clone()))
    }

    /// The present moment, if no command is being answered.
    pub fn quiet(&self) -> Option<Quiet> {
        let state = self.0.lock();
        (state.open == 0).then_some(Quiet(state.begun))
    }

    /// Admits no further command, unless one has begun since `quiet`. Returns whether it admits none from now on.
    pub fn close(&self, quiet: Quiet) -> bool {
        let mut state = self.0.lock();
        state.is_closed |= state.open == 0 && state.begun == quiet.0;
        state.is_closed
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.lock().open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_has_begun_keeps_the_daemon_open() {
        let activity = Arc::new(Activity::default());
        let quiet = activity.quiet().unwrap();
        let first = activity.begin().unwrap();
        assert!(activity.quiet().is_none() && !activity.close(quiet));
        drop(first);
        assert!(!activity.close(quiet), "a command has begun and ended since");
        let quiet = activity.quiet().unwrap();
        assert!(activity.close(quiet));
        assert!(activity.begin().is_none());
    }

    #[test]
    fn of_a_command_and_an_end_at_the_same_moment_one_wins() {
        for _ in 0..200 {
            let activity = Arc::new(Activity::default());
            let quiet = activity.quiet().unwrap();
            let (command, is_closed) = std::thread::scope(|scope| {
                let command = scope.spawn(|| activity.begin());
                let is_closed = activity.close(quiet);
                (command.join().unwrap(), is_closed)
            });
            assert_ne!(command.is_some(), is_closed);
        }
    }
}
