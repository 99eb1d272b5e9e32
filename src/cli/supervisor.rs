//! Words for a supervisor such as systemd (sd_notify(3)). Without one, they go nowhere.

use sd_notify::NotifyState;

/// Says that the daemon or the mount is ready, for services with `Type=notify`.
pub(super) fn notify_ready() {
    notify(&NotifyState::Ready, "the daemon is ready");
}

/// Says that the daemon works, for services with `WatchdogSec=`.
pub(super) fn notify_alive() {
    notify(&NotifyState::Watchdog, "the daemon works");
}

fn notify(state: &NotifyState<'_>, words: &str) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "cannot tell systemd that {words}");
    }
}
