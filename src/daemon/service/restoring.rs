//! Makes mounts again that died with their daemon, from the journal.
//!
//! ```text
//! a mount of this boot, dead in the tree   made again when a daemon starts
//! a mount of an earlier boot, or parked    made again when a command asks (`daemon start --restore`)
//! something else is at its place           left alone
//! ```

use std::cmp::Reverse;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinSet, spawn_blocking};

use super::super::failure::panicked;
use super::super::journal::{Entry, Found, Journal, NoEntry};
use super::super::kits::pinned_request;
use super::super::mounting;
use super::Service;
use super::mounting::Wanted;
use crate::control::api::{Failure, FailureKind, RestoreReport, Unrestored};
use crate::fuse::{Answer, Occupant, occupant, unmount_other};
use crate::process::running_time;

/// How long a daemon that starts may take for dead mounts before it answers with those that it has.
const RESTORED_AFTER: Duration = Duration::from_secs(5);

/// How long to wait before a mount is tried again whose registry is away: the first pause, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The next step for an entry of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Restore,
    /// A command has to ask for it.
    Wait,
    /// Its mount is gone, or will never be made again.
    Forget(Option<String>),
    /// It stays, and is not made again now.
    Leave(String),
}

/// The outcome of a try.
enum Tried {
    Restored(PathBuf),
    Waits(Unrestored),
    Failed(Unrestored),
}

impl Service {
    /// Makes dead mounts of this boot again, when the process starts. Returns when they are there, or had their
    /// time.
    pub(in crate::daemon) async fn restore_dead(self: &Arc<Self>) {
        let this = self.clone();
        let restoring = tokio::spawn(async move { this.restore(false).await });
        if let Ok(Ok(report)) = running_time::timeout(RESTORED_AFTER, restoring).await {
            for mountpoint in &report.restored {
                tracing::warn!(mountpoint = %mountpoint.display(), "mounted again: its daemon was killed");
            }
        }
        self.has_restored.send_replace(true);
    }

    /// Makes mounts of the journal again; with `is_asked` also those of an earlier boot, and those that a signal
    /// has ended with their daemon.
    pub(super) async fn restore(self: &Arc<Self>, is_asked: bool) -> RestoreReport {
        let mut report = RestoreReport::default();
        let Some(journal) = self.keeping.journal() else { return report };
        // Two commands at once must not make one mount twice.
        let _alone = self.restoring.lock().await;
        let mut tries = JoinSet::new();
        // The newest first: a version that was replacing another one had the same place.
        let mut left = journal.left();
        left.sort_by_key(|found| Reverse(found.entry.as_ref().map_or(0, |entry| entry.mounted_at)));
        let mut tried = HashSet::new();
        for found in left {
            let mountpoint = found.mountpoint();
            // A task tries this one again and again. A second try at the same time would find its place taken.
            if let Some(reason) = self.waiting.lock().get(&found.name).cloned() {
                report.waiting.push(Unrestored { mountpoint, reason });
                continue;
            }
            let there = occupant_of(&found).await;
            let words = match judge(&found, journal.boot(), journal.view(), there, is_asked) {
                Verdict::Restore if !tried.insert(mountpoint.clone()) => {
                    journal.forget(&found);
                    continue;
                }
                Verdict::Restore => {
                    let this = self.clone();
                    tries.spawn(async move { this.try_to_restore(found).await });
                    continue;
                }
                Verdict::Wait => continue,
                Verdict::Forget(words) => {
                    journal.forget(&found);
                    words
                }
                Verdict::Leave(words) => Some(words),
            };
            let Some(reason) = words else { continue };
            tracing::warn!(mountpoint = %mountpoint.display(), reason, "not mounted again");
            report.failed.push(Unrestored { mountpoint, reason });
        }
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok(Some(Tried::Restored(mountpoint))) => report.restored.push(mountpoint),
                Ok(Some(Tried::Waits(waits))) => report.waiting.push(waits),
                Ok(Some(Tried::Failed(failed))) => report.failed.push(failed),
                Ok(None) => {}
                Err(error) => tracing::error!(%error, "making a mount again failed"),
            }
        }
        report.restored.sort();
        report
    }

    async fn try_to_restore(self: Arc<Self>, found: Found) -> Option<Tried> {
        let entry = found.entry.clone().ok()?;
        let mountpoint = entry.description.mountpoint.clone();
        let failure = match self.make_again(&entry).await {
            Ok(()) => return Some(Tried::Restored(mountpoint)),
            Err(failure) => failure,
        };
        let place = mountpoint.display().to_string();
        let left_out: Vec<_> = entry.left_out.iter().map(|secret| secret.words()).collect();
        let reason = match left_out.is_empty() {
            true => failure.message.clone(),
            false => format!(
                "{}; kitfs does not store {}, so mount it again by its command",
                failure.message,
                left_out.join(" and ")
            ),
        };
        if matches!(failure.kind, FailureKind::Unavailable | FailureKind::Unauthorized) {
            tracing::warn!(mountpoint = place, reason, "a mount waits for its kit");
            self.waiting.lock().insert(found.name.clone(), reason.clone());
            let later = self.restoring_later.clone();
            later.spawn(async move {
                self.restore_patiently(&found).await;
                self.waiting.lock().remove(&found.name);
            });
            return Some(Tried::Waits(Unrestored { mountpoint, reason }));
        }
        tracing::error!(mountpoint = place, reason, "not mounted again");
        take_away_dead(&entry).await;
        Some(Tried::Failed(Unrestored { mountpoint, reason }))
    }

    /// Tries again until the mount is made, its entry is forgotten, or nothing helps.
    async fn restore_patiently(self: &Arc<Self>, found: &Found) {
        let (Some(journal), Ok(entry)) = (self.keeping.journal(), &found.entry) else { return };
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop_requested() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
            if !is_left(&journal, found) {
                return;
            }
            // The user may have unmounted the dead mount, or mounted something else there.
            match judge(found, journal.boot(), journal.view(), occupant_of(found).await, true) {
                Verdict::Restore => {}
                Verdict::Forget(_) => return journal.forget(found),
                Verdict::Wait | Verdict::Leave(_) => return,
            }
            let mountpoint = entry.description.mountpoint.display();
            match self.make_again(entry).await {
                Ok(()) => return tracing::info!(%mountpoint, "mounted again"),
                Err(failure)
                    if matches!(
                        failure.kind,
                        FailureKind::Unavailable | FailureKind::Unauthorized
                    ) =>
                {
                    tracing::debug!(%mountpoint, %failure, "a mount waits for its kit");
                }
                Err(failure) => {
                    tracing::error!(%mountpoint, %failure, "not mounted again");
                    return take_away_dead(entry).await;
                }
            }
        }
    }

    /// Mounts the kit of an entry by its digest. The kit is loaded first: a program must not take an empty
    /// directory for it.
    async fn make_again(self: &Arc<Self>, entry: &Entry) -> Result<(), Failure> {
        let mut description = entry.description.clone();
        // A replay that was begun is not resumed.
        description.trace = None;
        let kit = match &description.browse {
            Some(_) => None,
            None => {
                let pinned = pinned_request(&description.kit, entry.pinned.clone());
                Some(self.open(&pinned, &|_| {}).await?)
            }
        };
        let mut options = mounting::options(self.cache.folder(), &description);
        options.child_limits = self.child_limits;
        let mut mountpoint = mounting::prepare(&options).await?;
        mountpoint.was_made_by(&entry.place);
        let wanted = Wanted { kit, description, mountpoint, options };
        self.attach_and_serve(wanted, false).await.map(drop)
    }

    /// Waits until dead mounts are made again, or had their time.
    pub(super) async fn restored(&self) {
        let mut has_restored = self.has_restored.subscribe();
        // An error says that the service is gone.
        let _ = has_restored.wait_for(|is_over| *is_over).await;
    }
}

fn is_left(journal: &Journal, found: &Found) -> bool {
    journal.left().iter().any(|left| left.name == found.name)
}

/// Takes the dead mount of an entry out of the tree: a program that looks at it would get an error for ever.
async fn take_away_dead(entry: &Entry) {
    let path = entry.place.path().to_owned();
    let take_away = move || {
        if matches!(occupant(&path), Ok(Occupant::Kit(Answer::Dead)))
            && let Err(error) = unmount_other(&path, true)
        {
            tracing::warn!(%error, "a dead mount stays");
        }
    };
    let _ = spawn_blocking(take_away).await;
}

async fn occupant_of(found: &Found) -> Occupant {
    let Ok(entry) = &found.entry else { return Occupant::Other };
    let path = entry.place.path().to_owned();
    let there = spawn_blocking(move || occupant(&path)).await.map_err(panicked);
    // Without the kernel's table, nothing is touched.
    there.ok().and_then(Result::ok).unwrap_or(Occupant::Other)
}

fn judge(found: &Found, boot: &str, view: &str, there: Occupant, is_asked: bool) -> Verdict {
    let entry = match &found.entry {
        Ok(entry) => entry,
        Err(NoEntry::OtherVersion(version)) => {
            let words = format!(
                "its entry in the journal is of version {version}, which this kitfs does not know: mount it \
                 again by its command"
            );
            return if is_asked { Verdict::Leave(words) } else { Verdict::Wait };
        }
        Err(NoEntry::Damaged(why)) => {
            let words = format!("its entry in the journal is damaged ({why}) and was removed");
            return Verdict::Forget(Some(words));
        }
    };
    let is_of_now = entry.boot == boot && !found.is_parked;
    let taken = |by: &str| Some(format!("{by} is mounted there now"));
    match there {
        Occupant::Kit(Answer::Dead) if is_of_now && entry.view != view => {
            Verdict::Leave("its daemon saw another part of the file tree".to_owned())
        }
        Occupant::Kit(Answer::Dead) if is_of_now => Verdict::Restore,
        // A program has unmounted it.
        Occupant::Nothing if is_of_now => Verdict::Forget(None),
        Occupant::Kit(_) if is_of_now => Verdict::Forget(taken("another kit")),
        Occupant::Other if is_of_now => Verdict::Forget(taken("something else")),
        _ if !is_asked => Verdict::Wait,
        Occupant::Nothing | Occupant::Kit(Answer::Dead) => Verdict::Restore,
        Occupant::Kit(_) => Verdict::Leave(taken("another kit").unwrap_or_default()),
        Occupant::Other => Verdict::Leave(taken("something else").unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::journal::example;
    use super::*;

    const NOW: &str = "00112233445566778899aabbccddeeff";
    const VIEW: &str = "mnt:[4026531841] 1:2";

    fn found(is_parked: bool) -> Found {
        Found { name: "0123456789abcdef".to_owned(), is_parked, entry: Ok(example()) }
    }

    fn dead() -> Occupant {
        Occupant::Kit(Answer::Dead)
    }

    fn alive() -> Vec<Occupant> {
        vec![
            Occupant::Kit(Answer::Silent),
            Occupant::Kit(Answer::Daemon("{}".to_owned())),
            Occupant::Other,
        ]
    }

    #[test]
    fn dead_mounts_of_this_boot_are_made_again_without_being_asked_for() {
        for is_asked in [false, true] {
            let judge = |there| judge(&found(false), NOW, VIEW, there, is_asked);
            assert_eq!(judge(dead()), Verdict::Restore);
            assert_eq!(judge(Occupant::Nothing), Verdict::Forget(None));
            for there in alive() {
                assert!(matches!(judge(there), Verdict::Forget(Some(_))));
            }
        }
    }

    #[test]
    fn mounts_of_an_earlier_boot_and_parked_mounts_are_made_again_when_asked_for() {
        for (found, boot) in
            [(found(false), "another"), (found(true), NOW), (found(true), "another")]
        {
            let judge = |there, is_asked| judge(&found, boot, VIEW, there, is_asked);
            for there in [alive(), vec![Occupant::Nothing, dead()]].concat() {
                assert_eq!(judge(there, false), Verdict::Wait);
            }
            assert_eq!(judge(Occupant::Nothing, true), Verdict::Restore);
            assert_eq!(judge(dead(), true), Verdict::Restore);
            for there in alive() {
                assert!(matches!(judge(there, true), Verdict::Leave(_)));
            }
        }
    }

    #[test]
    fn mounts_in_another_part_of_the_tree_and_of_another_version_are_left_alone() {
        assert!(matches!(judge(&found(false), NOW, "elsewhere", dead(), true), Verdict::Leave(_)));
        let mut newer = found(false);
        newer.entry = Err(NoEntry::OtherVersion(2));
        assert_eq!(judge(&newer, NOW, VIEW, dead(), false), Verdict::Wait);
        assert!(matches!(judge(&newer, NOW, VIEW, dead(), true), Verdict::Leave(_)));
        newer.entry = Err(NoEntry::Damaged("cut".to_owned()));
        assert!(matches!(judge(&newer, NOW, VIEW, dead(), false), Verdict::Forget(Some(_))));
    }
}
