//! `kitfs top`: what a daemon does now.
//!
//! ```text
//! every second: status, work, activity --> Sample --rates (pure)--> View --draw--> terminal
//! keys, signals --------------------------------------'
//! ```
//!
//! The terminal is restored when [`Terminal`] is dropped: at the end, at an error and at a signal. A hook does it
//! when the program panics.

mod draw;
mod rates;

use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::durations::parse_seconds;
use super::error::CliError;
use super::settings::Settings;
use crate::control::api::{ActivityRequest, Failure, FailureKind, WorkRequest};
use crate::daemon::Backend;
use rates::{Model, Sample};

/// The time between two looks for a key. After each, the thread checks whether the program ends.
const KEY_POLL: Duration = Duration::from_millis(100);

/// How long a daemon may be silent before the screen says so.
const SILENCE: Duration = Duration::from_secs(3);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Keys:
  q, Esc          end
  s, Left, Right  sort the mounts by another column
  r               sort in the other direction
  Up, Down        move in the table of mounts
  p, Space        pause, continue

Rates are those between the last two looks. Readers are the processes that had
to wait for bytes in the last minute. Reads that the kernel answers by itself
(its own memory, passthrough) are not counted.")]
pub(super) struct Arguments {
    /// Seconds between two looks.
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds, default_value = "1")]
    interval: u64,
    /// The daemon of all users.
    #[arg(long)]
    system: bool,
}

pub(super) async fn run(settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        return Err(CliError::usage(
            "`kitfs top` needs a terminal; `kitfs status --watch` prints into files and pipes",
        ));
    }
    let mut daemon = Arc::new(find(settings, arguments.system).await?);
    let mut model = Model::new(!settings.is_utf8());
    // The first sample comes before the terminal changes, so that a failure is an ordinary message.
    model.add(sample(&daemon).await?);
    let mut terminal = Terminal::new()?;
    let mut keys = keys();
    let mut ticks = tokio::time::interval(Duration::from_secs(arguments.interval));
    // After a pause, one sample is taken and not one for each tick that was missed.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let look = async |daemon: Arc<Backend>| -> Result<_, CliError> {
        Ok(match sample(&daemon).await {
            Ok(sample) => (daemon, Ok(sample)),
            // A daemon that was replaced has other processes.
            Err(failure) => (Arc::new(find(settings, arguments.system).await?), Err(failure)),
        })
    };
    let mut looking: Option<Looking<'_>> = None;
    let mut silence = tokio::time::interval(SILENCE);
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [mut interrupt, mut terminate, mut hangup] = kinds.map(signal);
    let (interrupt, terminate, hangup) = (interrupt.as_mut(), terminate.as_mut(), hangup.as_mut());
    let (Ok(interrupt), Ok(terminate), Ok(hangup)) = (interrupt, terminate, hangup) else {
        return Err(CliError::internal("signals cannot be received"));
    };
    loop {
        terminal.0.draw(|frame| draw::draw(frame, &model))?;
        tokio::select! {
            _ = ticks.tick(), if !model.is_paused && looking.is_none() => {
                looking = Some(Box::pin(look(daemon.clone())));
                silence.reset();
            }
            looked = answer(&mut looking) => {
                looking = None;
                let (found, sample) = looked?;
                daemon = found;
                match sample {
                    Ok(sample) => model.add(sample),
                    Err(failure) => model.failure = Some(failure.message),
                }
            }
            _ = silence.tick(), if looking.is_some() => {
                model.failure = Some("the daemon does not answer".to_owned());
            }
            key = keys.recv() => match key {
                Some(Input::Key(key)) => if model.press(key) { return Ok(()) },
                // The next draw has the new size.
                Some(Input::Resized) => {}
                None => return Ok(()),
            },
            _ = interrupt.recv() => return Err(CliError::Interrupted),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
    }
}

/// A look at the daemon that is under way: the daemon for the next look, and the sample.
type Looking<'a> =
    Pin<Box<dyn Future<Output = Result<(Arc<Backend>, Result<Sample, Failure>), CliError>> + 'a>>;

/// The outcome of the look that is under way; never, where there is none.
async fn answer<T>(looking: &mut Option<Pin<Box<dyn Future<Output = T> + '_>>>) -> T {
    match looking {
        Some(looking) => looking.await,
        None => std::future::pending().await,
    }
}

/// The daemon that is watched. Fails if it does not run.
async fn find(settings: &Settings, is_system: bool) -> Result<Backend, CliError> {
    let daemon = match is_system {
        true => Backend::of_system(&settings.runtime_folder()).await?,
        false => Backend::running(&settings.daemon()?).await?,
    };
    daemon.ok_or_else(|| {
        let message = "no daemon runs, so there is nothing to watch; `kitfs mount` starts one";
        CliError::new(FailureKind::Daemon, message)
    })
}

async fn sample(daemon: &Backend) -> Result<Sample, Failure> {
    let requests = (daemon.status(), daemon.ask(WorkRequest {}), daemon.ask(ActivityRequest {}));
    let (status, work, activity) = tokio::join!(requests.0, requests.1, requests.2);
    let activity = match activity {
        Ok(activity) => Some(activity),
        // Only root may see the hosts and reads of all users of the system daemon.
        Err(failure) if failure.kind == FailureKind::Unauthorized => None,
        Err(failure) => return Err(failure),
    };
    Ok(Sample { at: Instant::now(), status: status?, work: work?, activity })
}

/// The terminal in raw mode, on its other screen.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn new() -> Result<Self, CliError> {
        Ok(Self(ratatui::try_init()?))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = ratatui::try_restore();
    }
}

/// An event of the terminal.
enum Input {
    Key(KeyCode),
    Resized,
}

/// Reads keys, on a thread of its own: the terminal has no asynchronous reads. The thread ends soon after the receiver
/// is dropped.
fn keys() -> mpsc::Receiver<Input> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            let input = match event::poll(KEY_POLL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let input = match input {
                Ok(Event::Key(key)) if key.kind == KeyEventKind::Release => continue,
                Ok(Event::Key(key))
                    if key.modifiers.contains(KeyModifiers::CONTROL)
                        && key.code == KeyCode::Char('c') =>
                {
                    Input::Key(KeyCode::Esc)
                }
                Ok(Event::Key(key)) => Input::Key(key.code),
                Ok(Event::Resize(..)) => Input::Resized,
                Ok(_) => continue,
                // The terminal is gone.
                Err(_) => return,
            };
            if sender.blocking_send(input).is_err() {
                return;
            }
        }
    });
    receiver
}
