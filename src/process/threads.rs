//! The threads of other processes, by /proc.

/// The status of a thread of any process, as proc_pid_status(5) has it. Empty where this process cannot see the
/// thread, as in another PID namespace.
pub fn status_of(thread: u32) -> String {
    std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default()
}

/// The process of a thread; the thread itself where /proc does not tell.
pub fn process_of(thread: u32) -> u32 {
    let status = status_of(thread);
    let process = status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok());
    process.unwrap_or(thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_of_a_process_have_one_number() {
        let thread = || rustix::thread::gettid().as_raw_pid().unsigned_abs();
        let other = std::thread::spawn(move || process_of(thread())).join().unwrap();
        assert_eq!((process_of(thread()), other), (std::process::id(), std::process::id()));
        assert_eq!(process_of(0), 0);
    }
}
