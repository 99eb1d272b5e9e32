//! The kernel's INIT, answered while the mount is made.
//!
//! The kernel sends nothing else before it has the answer, and every program that looks at the mount
//! waits for it. So nothing here looks at a path: one that leads through the new mount would wait for
//! itself.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::connection::Connection;
use super::passthrough::Passthrough;
use super::wire::REQUEST_BYTES;
use super::wire::init::{Features, Offer};

/// How long the kernel may take to begin. It does so when it mounts.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Answers the kernel's INIT; says what was taken of its offer.
///
/// # Errors
/// When the kernel says nothing, something else, or has a protocol that is too old.
pub(super) fn shake_hands(
    connection: &Arc<Connection>,
    passthrough: &Passthrough,
) -> io::Result<Features> {
    let deadline = Instant::now() + TIMEOUT;
    let mut buffer = [0; REQUEST_BYTES];
    loop {
        let request = match connection.receive(&mut buffer) {
            Ok(request) => request,
            Err(Errno::AGAIN | Errno::INTR) => {
                wait_for_request(connection, deadline)?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let offer = Offer::decode(request).map_err(io::Error::other)?;
        let is_offered = offer.features.has(Features::PASSTHROUGH);
        let taken = offer.taken(passthrough.is_wanted_of(is_offered));
        connection.reply_to(offer.unique).data(&offer.answer(taken));
        if !offer.is_too_new() {
            return Ok(taken);
        }
    }
}

/// Waits until the kernel has a request.
fn wait_for_request(connection: &Connection, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = rustix::time::Timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut descriptors = [PollFd::new(connection, PollFlags::IN)];
    match poll(&mut descriptors, Some(&timeout)) {
        Ok(0) => {
            let seconds = TIMEOUT.as_secs();
            Err(io::Error::other(format!("the kernel said nothing for {seconds} s")))
        }
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
