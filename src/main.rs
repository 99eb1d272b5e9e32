//! Parses the command line, calls [`kitfs::cli`] and maps errors to exit codes; nothing else.

fn main() -> std::process::ExitCode {
    kitfs::cli::main()
}
