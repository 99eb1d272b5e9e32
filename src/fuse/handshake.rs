//! Answers the kernel's first request (INIT).
//!
//! Until the answer, the kernel sends no other request, and every program that looks at the mount waits.
//! So this module must not look at any path: a path through the new mount would wait for itself.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::connection::Connection;
use super::passthrough::Passthrough;
use super::wire::REQUEST_BYTES;
use super::wire::init::{Features, Offer};

/// How long the kernel may take to send INIT. It sends INIT when it mounts.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Answers INIT, and returns the flags that kernel and daemon have agreed on.
///
/// # Errors
/// When the kernel sends nothing or another request, or its protocol is too old.
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
