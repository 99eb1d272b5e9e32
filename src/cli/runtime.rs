//! The runtime of a command, and its number of threads.
//!
//! A container or a service may limit the number of threads (`--pids-limit`, `TasksMax`, `ulimit -u`).
//! tokio panics when it cannot start its threads, and waits for ever for a thread that it cannot start
//! later. So this module first counts the threads that can start.

use std::io;
use std::sync::mpsc;

use tokio::runtime::Runtime;

use super::error::CliError;
use crate::process::limits::MORE_PROCESSES;

/// The most threads that run tasks. Hashing and decoding have threads of their own, so more cores
/// gain nothing here.
const MOST_WORKERS: usize = 16;
/// Further threads: for blocking work and for the kernel's requests.
const OTHERS: usize = 8;
/// The fewest further threads with which every command works.
const LEAST_OTHERS: usize = 3;

/// Runs a command that needs the network or the control socket.
pub(super) fn block_on<T>(
    command: impl Future<Output = Result<T, CliError>>,
) -> Result<T, CliError> {
    runtime()?.block_on(command)
}

fn runtime() -> Result<Runtime, CliError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = cores.min(MOST_WORKERS);
    let (startable, error) = startable(wanted + OTHERS);
    let workers = match workers(wanted, startable) {
        Some(workers) => workers,
        None => {
            let why = error.map_or_else(String::new, |error| format!(" ({error})"));
            return Err(CliError::internal(format!(
                "only {startable} threads can be started{why}, and kitfs needs {}: {MORE_PROCESSES}",
                1 + LEAST_OTHERS
            )));
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    runtime.map_err(|error| CliError::internal(format!("cannot start threads: {error}")))
}

/// The number of workers to start of `wanted` when `startable` threads can start in all; `None` when they
/// are too few.
fn workers(wanted: usize, startable: usize) -> Option<usize> {
    let left = startable.checked_sub(OTHERS).filter(|&left| left > 0);
    match left {
        Some(left) => Some(left.min(wanted)),
        None => (startable > LEAST_OTHERS).then_some(1),
    }
}

/// Counts the threads that can run at the same time, up to `wanted`. Returns the error that stopped the
/// count, too.
fn startable(wanted: usize) -> (usize, Option<io::Error>) {
    // Each thread waits until its sender is dropped, so all of them run at the same time.
    let mut running = Vec::with_capacity(wanted);
    let mut failure = None;
    while running.len() < wanted && failure.is_none() {
        let (end, ended) = mpsc::channel::<()>();
        match std::thread::Builder::new().spawn(move || _ = ended.recv()) {
            Ok(thread) => running.push((end, thread)),
            Err(error) => failure = Some(error),
        }
    }
    let count = running.len();
    for (end, thread) in running {
        drop(end);
        // The thread does nothing that could panic.
        let _ = thread.join();
    }
    (count, failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_leave_threads_to_others() {
        for (wanted, startable, expected) in [
            (4, 12, Some(4)),
            (4, 10, Some(2)),
            (4, 9, Some(1)),
            (4, 8, Some(1)),
            (4, 4, Some(1)),
            (4, 3, None),
            (16, 0, None),
        ] {
            assert_eq!(workers(wanted, startable), expected, "{startable} of {wanted}");
        }
    }

    #[test]
    fn threads_are_counted() {
        assert_eq!(startable(5).0, 5);
    }
}
