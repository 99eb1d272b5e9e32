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

/// The name of a process's command, at most 15 bytes (proc_pid_comm(5)). Empty where /proc does not tell.
pub fn command_of(process: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    name.trim_end_matches('\n').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_name_of_its_command() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // The child has the name of this process until it runs its program.
        while command_of(child.id()) != "sleep" {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(command_of(child.id()), "");
    }

    #[test]
    fn threads_of_a_process_have_one_number() {
        let thread = || rustix::thread::gettid().as_raw_pid().unsigned_abs();
        let other = std::thread::spawn(move || process_of(thread())).join().unwrap();
        assert_eq!((process_of(thread()), other), (std::process::id(), std::process::id()));
        assert_eq!(process_of(0), 0);
    }
}
