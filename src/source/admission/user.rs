//! The user that a request is made for.

/// A user of this machine, by number (uid).
///
/// Each request for bytes carries the users that wait for it, so that users get fair shares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(pub u32);

impl UserId {
    /// The user that this process runs as.
    pub fn of_process() -> Self {
        Self(rustix::process::geteuid().as_raw())
    }
}
