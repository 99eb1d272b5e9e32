//! `kitfs serve oci:FOLDER`.

use std::net::SocketAddr;
use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};

use super::error::CliError;
use super::output::print_line;
use super::settings::{Settings, absolute};
use crate::control::api::FailureKind;
use crate::serve::{Registry, ServeError};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Everybody who can connect can read all kits: listen on 127.0.0.1, or behind a
proxy that checks its clients.

Example:
  kitfs serve oci:./kits --listen 127.0.0.1:5000
  kitfs mount 127.0.0.1:5000/article:v1 /models")]
pub(super) struct Arguments {
    /// An OCI image layout folder, or a folder that holds some.
    #[arg(value_name = "oci:FOLDER")]
    folder: String,
    /// The address to listen on; port 0 means any free port.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,
}

pub(super) async fn run(_settings: &Settings, arguments: Arguments) -> Result<(), CliError> {
    let folder = arguments.folder.strip_prefix("oci:").unwrap_or(&arguments.folder);
    if let Some((whole, tag)) = folder.rsplit_once([':', '@'])
        && !Path::new(folder).exists()
        && Path::new(whole).is_dir()
    {
        let message = format!(
            "`{tag}` names one kit, and kitfs serves all kits of a folder: kitfs serve oci:{whole}"
        );
        return Err(CliError::usage(message));
    }
    let registry = Registry::bind(absolute(Path::new(folder))?, arguments.listen).await;
    let registry = registry.map_err(|error| {
        let kind = match &error {
            ServeError::Folder(_) => FailureKind::NotFound,
            ServeError::Listen { .. } => FailureKind::Unavailable,
        };
        CliError::new(kind, error.to_string())
    })?;
    print_line(format_args!("serving on http://{}", registry.address()))?;
    for reference in registry.references() {
        print_line(reference)?;
    }
    let served = registry.run(interrupted()?).await;
    served.map_err(|error| CliError::new(FailureKind::Unavailable, error.to_string()))
}

/// Completes at the first SIGINT or SIGTERM.
fn interrupted() -> Result<impl Future<Output = ()> + Send + 'static, CliError> {
    let signal = |kind| signal(kind).map_err(|error| CliError::internal(error.to_string()));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
