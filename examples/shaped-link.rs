//! The shaped link as a program: a TCP proxy with a latency, a rate and faults, that counts what
//! passes. `scripts/bench.sh` measures through it.
//!
//! ```sh
//! cargo run --release --example shaped-link -- --to 127.0.0.1:5000 --rtt-ms 20 --rate 1Gbit
//! ```
//!
//! It prints the address it listens at, and what it counted, as a line of JSON, when it is
//! interrupted.

#[path = "../tests/support/shaped_link.rs"]
#[allow(dead_code, reason = "tests use the rest of it")]
mod shaped_link;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use shaped_link::{Shape, ShapedLink};
use tokio::signal::unix::{SignalKind, signal};

/// Forwards TCP connections over a link that has a latency, a rate and faults.
#[derive(Parser)]
#[command(name = "shaped-link")]
struct Arguments {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the connections go
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// The round trip in milliseconds; a new connection costs one
    #[arg(long, default_value_t = 0.0)]
    rtt_ms: f64,
    /// The rate towards clients of all connections together, such as 1Gbit or 20MB (a second)
    #[arg(long, value_parser = parse_rate)]
    rate: Option<u64>,
    /// The same of each connection
    #[arg(long, value_parser = parse_rate)]
    connection_rate: Option<u64>,
    /// Stall a connection each time it has brought down so many bytes
    #[arg(long, value_name = "BYTES", requires = "stall_ms")]
    stall_every: Option<u64>,
    /// How long a stall lasts
    #[arg(long, value_name = "MILLISECONDS", requires = "stall_every")]
    stall_ms: Option<u64>,
    /// Reset a connection when it has brought down so many bytes
    #[arg(long, value_name = "BYTES")]
    reset_after: Option<u64>,
    /// Draw the distances of stalls and resets around what was said; 0 takes them as they are
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write what was counted to this file too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    let pause = Duration::from_millis(arguments.stall_ms.unwrap_or(0));
    let shape = Shape {
        rtt: Duration::try_from_secs_f64(arguments.rtt_ms / 1000.0)
            .map_err(|error| std::io::Error::other(format!("--rtt-ms: {error}")))?,
        rate: arguments.rate,
        connection_rate: arguments.connection_rate,
        stall: arguments.stall_every.map(|bytes| (bytes, pause)),
        reset_after: arguments.reset_after,
        seed: arguments.seed,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let link = runtime.block_on(async {
        // Before the address is printed: who reads it may interrupt at once.
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut terminated = signal(SignalKind::terminate())?;
        let link = ShapedLink::listen(arguments.listen, arguments.to, shape)?;
        println!("{}", link.address());
        std::io::stdout().flush()?;
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
        Ok::<_, std::io::Error>(link)
    })?;
    let counts = link.counts();
    let report = serde_json::json!({
        "connections": counts.connections,
        "requests": counts.requests,
        "bytes_up": counts.bytes_up,
        "bytes_down": counts.bytes_down,
        "stalls": counts.stalls,
        "resets": counts.resets,
    });
    println!("{report}");
    if let Some(file) = arguments.report {
        std::fs::write(file, report.to_string())?;
    }
    Ok(())
}

/// A rate in bytes a second: `1Gbit`, `100Mbit`, `20MB`, or a plain number of bytes.
fn parse_rate(text: &str) -> Result<u64, String> {
    let digits = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no rate"))?;
    let (times, over) = match unit {
        "Gbit" => (1_000_000_000, 8),
        "Mbit" => (1_000_000, 8),
        "kbit" => (1_000, 8),
        "GB" => (1_000_000_000, 1),
        "MB" => (1_000_000, 1),
        "kB" => (1_000, 1),
        "" => (1, 1),
        _ => return Err(format!("{unit:?} is none of Gbit, Mbit, kbit, GB, MB and kB")),
    };
    match number.checked_mul(times).map(|it| it / over) {
        None | Some(0) => Err(format!("{text:?} is out of range")),
        Some(rate) => Ok(rate),
    }
}
