//! The machine that the checks look at. Tests give another root folder, and other rights.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use rustix::thread::CapabilitySet;

/// The longest file of /proc, /sys and /etc that is read. /proc/meminfo has some 1.5 KB.
const MOST_BYTES: u64 = 64 * 1024;

/// The rights and limits of this process, and the files around it.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Machine {
    /// The root of the file tree.
    pub root: PathBuf,
    /// The folders in which programs are looked for (`PATH`).
    pub program_folders: Vec<PathBuf>,
    /// Whether this process is root's.
    pub is_root: bool,
    /// Whether it has CAP_SYS_ADMIN.
    pub is_admin: bool,
    /// The release of the kernel, such as `6.12.9-amd64`.
    pub kernel: String,
    pub limits: Limits,
}

/// Limits of this process (getrlimit(2)); `None` for no limit.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cli) struct Limits {
    /// Open files, the hard limit: a daemon raises its own limit up to it.
    pub open_files: Option<u64>,
    /// The size of a file that this process writes.
    pub file_bytes: Option<u64>,
    /// Processes and threads of the user.
    pub processes: Option<u64>,
    /// Locked memory.
    pub locked_bytes: Option<u64>,
    /// The address space.
    pub address_bytes: Option<u64>,
}

impl Machine {
    /// This machine.
    pub(in crate::cli) fn this(program_folders: Vec<PathBuf>) -> Self {
        let capabilities = rustix::thread::capabilities(None);
        Self {
            root: PathBuf::from("/"),
            program_folders,
            is_root: rustix::process::geteuid().is_root(),
            is_admin: capabilities.is_ok_and(|it| it.effective.contains(CapabilitySet::SYS_ADMIN)),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            limits: Limits {
                open_files: getrlimit(Resource::Nofile).maximum,
                file_bytes: getrlimit(Resource::Fsize).current,
                processes: getrlimit(Resource::Nproc).current,
                locked_bytes: getrlimit(Resource::Memlock).current,
                address_bytes: getrlimit(Resource::As).current,
            },
        }
    }

    /// The place of an absolute path.
    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a small file; `None` where it cannot be read.
    pub(in crate::cli) fn read(&self, path: &str) -> Option<String> {
        read_start(&self.at(path), MOST_BYTES)
    }

    /// A number that stands alone in a file; `None` where there is no file or no limit (`max`).
    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    /// The first program of this name.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        self.program_folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }

    /// The version of the kernel, major and minor.
    pub(super) fn kernel_version(&self) -> Option<(u32, u32)> {
        let mut numbers = self.kernel.split(|c: char| !c.is_ascii_digit());
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    }
}

/// The first bytes of a file as text.
fn read_start(path: &Path, bytes: u64) -> Option<String> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(bytes).read_to_end(&mut text).ok()?;
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine without anything, of an ordinary user.
    pub(in crate::cli::doctor) fn bare(root: &Path) -> Machine {
        Machine {
            root: root.to_owned(),
            program_folders: vec![root.join("usr/bin")],
            is_root: false,
            is_admin: false,
            kernel: "6.12.9-amd64".to_owned(),
            limits: Limits::default(),
        }
    }

    #[test]
    fn kernels_have_a_version() {
        let folder = tempfile::tempdir().unwrap();
        let version = |kernel: &str| {
            Machine { kernel: kernel.to_owned(), ..bare(folder.path()) }.kernel_version()
        };
        assert_eq!(version("6.12.9-amd64"), Some((6, 12)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("6.9-rc1"), Some((6, 9)));
        assert_eq!(version("unknown"), None);
    }
}
