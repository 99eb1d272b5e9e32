//! Keeps the keeper small: it waits for months, and each cache folder has one.
//!
//! Most of its memory is the program itself, which it needed to start. Those pages are in files, so they
//! can be dropped from the process, and come back when they are used. `VmRSS` counts them, and so do people.

#![allow(unsafe_code, reason = "madvise(2) and malloc_trim(3), which no safe interface has")]

use std::ffi::c_void;
use std::ops::Range;

use rustix::mm::Advice;

/// The parts of this process that are nothing but pages of files.
pub(super) struct FilePages(Vec<Range<usize>>);

impl FilePages {
    /// Finds them; none where /proc is not mounted.
    pub(super) fn of_this_process() -> Self {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        Self(plain_parts(&maps))
    }

    /// Drops the pages from this process, and returns the free memory of the heap.
    pub(super) fn give_back(&self) {
        #[cfg(target_env = "gnu")]
        // SAFETY: it takes a number and touches the allocator's free memory only.
        unsafe {
            libc::malloc_trim(0);
        }
        for part in &self.0 {
            let start = std::ptr::with_exposed_provenance_mut::<c_void>(part.start);
            // SAFETY: the pages are those of a file, and nothing has written to them: this process may only
            // read or run them. So the kernel reads the same bytes from the file when they are used again.
            let _ = unsafe { rustix::mm::madvise(start, part.len(), Advice::LinuxDontNeed) };
        }
    }
}

/// The parts of a process in a `smaps` (proc_pid_smaps(5)) that map a file, cannot be written to, and have no
/// page of their own. The linker has written to some parts before it closed them to writing.
fn plain_parts(smaps: &str) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        match first.strip_suffix(':') {
            // `55d0c8a00000-55d0c8a21000 r-xp 00000000 fe:01 1234  /usr/bin/kitfs`
            None => candidate = file_part(first, &mut words),
            Some("Anonymous") => {
                let own_kib = words.next().and_then(|number| number.parse::<u64>().ok());
                parts.extend(candidate.take().filter(|_| own_kib == Some(0)));
            }
            Some(_) => {}
        }
    }
    parts
}

fn file_part<'a>(range: &str, words: &mut impl Iterator<Item = &'a str>) -> Option<Range<usize>> {
    let (start, end) = range.split_once('-')?;
    let number = |text| usize::from_str_radix(text, 16).ok();
    let range = number(start)?..number(end)?;
    let (permissions, path) = (words.next()?, words.nth(3)?);
    (permissions.starts_with("r-") && permissions.ends_with('p') && path.starts_with('/'))
        .then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parts_without_pages_of_their_own_are_dropped() {
        let part = |first: &str, anonymous: &str| {
            format!(
                "{first}\nSize: 4 kB\nRss: 4 kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr mw\n"
            )
        };
        let smaps = [
            part("1000-3000 r--p 00000000 fe:01 12        /usr/bin/kitfs", "0"),
            part("3000-5000 r-xp 00002000 fe:01 12        /usr/bin/kitfs (deleted)", "0"),
            part("5000-6000 r--p 00004000 fe:01 12        /usr/bin/kitfs", "4"),
            part("6000-7000 rw-p 00005000 fe:01 12        /usr/bin/kitfs", "0"),
            part("7000-8000 rw-p 00000000 00:00 0         [heap]", "0"),
            part("8000-9000 r-xp 00000000 00:00 0         [vdso]", "0"),
            part("9000-a000 r--p 00000000 00:00 0", "0"),
            part("a000-b000 r--s 00000000 fe:01 13        /shared", "0"),
            part("nonsense r--p 00000000 fe:01 13         /x", "0"),
        ];
        assert_eq!(plain_parts(&smaps.concat()), [0x1000..0x3000, 0x3000..0x5000]);
        assert!(plain_parts("").is_empty());
    }

    #[test]
    fn this_process_runs_on_without_its_pages() {
        let pages = FilePages::of_this_process();
        assert!(!pages.0.is_empty());
        pages.give_back();
        assert_eq!(format!("{:?}", "alive".to_owned()), "\"alive\"");
    }
}
