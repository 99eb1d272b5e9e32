//! A shaped link: a TCP proxy that makes loopback behave like a network. It adds latency, limits the
//! rate of all connections together and of each one, stalls and resets connections, and counts bytes
//! and requests. Tests use it for faults, `examples/shaped-link.rs` for measurements.
//!
//! The link does not sleep between writes. Each piece gets a time at which it is due at the other
//! end, and waits for that time in a queue:
//!
//! ```text
//! client --> read --> [ due = now + rtt/2 ] ------------------------------> write --> server
//! client <-- write <- [ due = sent + rtt/2, sent = when the line is free ] <- read <-- server
//!                                    '--- the line: one clock for all, one for each connection
//! ```
//!
//! The clock of the line is the time at which the line will have sent all its bytes. A piece that was
//! ready while the line was busy starts at the clock's time, even if its task wakes up late. So a busy
//! machine makes the link jitter, but never slower. A piece that finds the line idle starts now: an idle
//! time earns no burst. No connection fills the line further ahead than [`AHEAD`]. So a new connection
//! gets its share at once, as with a fair queue in a router.
//!
//! A new connection costs one round trip: the first bytes of a client wait for that time. There is no
//! slow start, no loss, and no limit towards the server (requests are small).
//!
//! The module uses no other module of the tests, so that the example can include it by its path.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, mpsc, oneshot};

/// The most bytes of one read from the server, and so of one turn of a connection on the line: 1 ms at
/// 1 Gbit/s.
const PIECE_BYTES: usize = 128 << 10;
/// The most bytes of one read from the client. Requests are small.
const REQUEST_BYTES: usize = 16 << 10;
/// The most pieces on their way in one direction of a connection: 32 MiB if all are full, enough for
/// 20 ms of 10 Gbit/s. A client that does not read fills the queue, and the sender then waits.
const MOST_UNDER_WAY: usize = 256;
/// The time by which a piece is planned ahead: enough to bridge the wake-up of a task.
const AHEAD: Duration = Duration::from_millis(2);

/// The effect of the link on the bytes that pass.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// The round trip: half of it each way.
    pub rtt: Duration,
    /// The rate towards the clients, in bytes a second, of all connections together.
    pub rate: Option<u64>,
    /// The rate towards the client, in bytes a second, of each connection.
    pub connection_rate: Option<u64>,
    /// Stalls a connection for this time after each so many bytes towards the client.
    pub stall: Option<(u64, Duration)>,
    /// Resets a connection after so many bytes towards the client.
    pub reset_after: Option<u64>,
    /// If not zero, the seed of random distances between stalls and resets: 0.5 to 1.5 times the given
    /// number of bytes.
    pub seed: u64,
}

/// The bytes that have passed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were accepted.
    pub connections: u64,
    /// Heads of GET and HEAD requests.
    pub requests: u64,
    /// Bytes from clients.
    pub bytes_up: u64,
    /// Bytes towards clients.
    pub bytes_down: u64,
    /// Stalls that were made.
    pub stalls: u64,
    /// Connections that were reset on purpose.
    pub resets: u64,
}

/// A running link with a thread of its own. Dropping the value ends it.
pub struct ShapedLink {
    address: SocketAddr,
    counted: Arc<Counted>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counted {
    connections: AtomicU64,
    requests: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    stalls: AtomicU64,
    resets: AtomicU64,
}

/// The state that all connections of a link share.
struct Link {
    shape: Shape,
    to: SocketAddr,
    line: Mutex<Line>,
    counted: Arc<Counted>,
}

/// One direction of a line, with its clock.
struct Line {
    free_at: Instant,
    rate: Option<u64>,
}

struct Piece {
    due: Instant,
    what: What,
}

enum What {
    Bytes(Vec<u8>),
    Reset,
}

impl ShapedLink {
    /// A link from a free port of 127.0.0.1 to `to`.
    pub fn start(to: SocketAddr, shape: Shape) -> io::Result<Self> {
        Self::listen((Ipv4Addr::LOCALHOST, 0).into(), to, shape)
    }

    /// A link from `address` to `to`.
    pub fn listen(address: SocketAddr, to: SocketAddr, shape: Shape) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let counted = Arc::new(Counted::default());
        let line = Mutex::new(Line::new(shape.rate));
        let link = Arc::new(Link { shape, to, line, counted: Arc::clone(&counted) });
        let (stop, stopped) = oneshot::channel();
        // One thread leaves the other processors to the measured programs.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serve = move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = accept(listener, link) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("shaped-link".into()).spawn(serve)?;
        Ok(Self { address, counted, stop: Some(stop), thread: Some(thread) })
    }

    /// The address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bytes that have passed so far.
    pub fn counts(&self) -> Counts {
        let counted = &self.counted;
        Counts {
            connections: counted.connections.load(Relaxed),
            requests: counted.requests.load(Relaxed),
            bytes_up: counted.bytes_up.load(Relaxed),
            bytes_down: counted.bytes_down.load(Relaxed),
            stalls: counted.stalls.load(Relaxed),
            resets: counted.resets.load(Relaxed),
        }
    }
}

impl Drop for ShapedLink {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, link: Arc<Link>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        // A failed accept is a closed connection or a lack of descriptors. Both are temporary.
        let Ok((client, _)) = listener.accept().await else {
            tokio::time::sleep(AHEAD).await;
            continue;
        };
        let number = link.counted.connections.fetch_add(1, Relaxed);
        tokio::spawn(carry(client, Arc::clone(&link), number));
    }
}

/// One connection, from its first byte to its last.
async fn carry(mut client: TcpStream, link: Arc<Link>, number: u64) {
    // If the server refuses, the client's connection ends.
    let opened = Instant::now() + link.shape.rtt;
    let Ok(mut server) = TcpStream::connect(link.to).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let (up, up_pieces) = mpsc::channel(MOST_UNDER_WAY);
        let (down, down_pieces) = mpsc::channel(MOST_UNDER_WAY);
        tokio::try_join!(
            read_requests(from_client, up, &link, opened),
            write(up_pieces, to_server),
            read_answers(from_server, down, &link, number),
            write(down_pieces, to_client),
        )
    };
    if matches!(ended, Err(Ended::Reset)) {
        link.counted.resets.fetch_add(1, Relaxed);
        // A socket that closes with no time to linger is reset.
        let _ = client.set_zero_linger();
    }
}

/// The reason why a connection ends before both sides have closed it.
enum Ended {
    Reset,
    Broken,
}

impl From<io::Error> for Ended {
    fn from(_: io::Error) -> Self {
        Self::Broken
    }
}

async fn read_requests(
    mut client: ReadHalf<'_>,
    pieces: mpsc::Sender<Piece>,
    link: &Link,
    opened: Instant,
) -> Result<(), Ended> {
    let mut heads = Heads::default();
    loop {
        let mut bytes = Vec::with_capacity(REQUEST_BYTES);
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        link.counted.bytes_up.fetch_add(bytes.len() as u64, Relaxed);
        link.counted.requests.fetch_add(heads.count(&bytes), Relaxed);
        let due = Instant::now().max(opened) + link.shape.rtt / 2;
        pieces.send(Piece { due, what: What::Bytes(bytes) }).await.map_err(|_| Ended::Broken)?;
    }
}

async fn read_answers(
    server: ReadHalf<'_>,
    pieces: mpsc::Sender<Piece>,
    link: &Link,
    number: u64,
) -> Result<(), Ended> {
    let mut own = Line::new(link.shape.connection_rate);
    let mut faults = Faults::new(&link.shape, number);
    let mut alarm = Alarm::new()?;
    loop {
        let place = pieces.reserve().await.map_err(|_| Ended::Broken)?;
        server.readable().await?;
        let ready = Instant::now();
        own.wait(&mut alarm).await?;
        // Connections take turns in the order of requests; the holder waits until the line is nearly free.
        let mut line = link.line.lock().await;
        line.wait(&mut alarm).await?;
        let mut bytes = Vec::with_capacity(PIECE_BYTES.min(faults.until_next()));
        let read = match server.try_read_buf(&mut bytes) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.into()),
        };
        let sent = line.send(read, ready).max(own.send(read, ready));
        drop(line);
        if read == 0 {
            return Ok(());
        }
        link.counted.bytes_down.fetch_add(read as u64, Relaxed);
        place.send(Piece { due: sent + link.shape.rtt / 2, what: What::Bytes(bytes) });
        match faults.passed(read as u64) {
            None => {}
            Some(Fault::Stall(pause)) => {
                link.counted.stalls.fetch_add(1, Relaxed);
                own.free_at = sent + pause;
            }
            Some(Fault::Reset) => {
                let last = Piece { due: sent + link.shape.rtt / 2, what: What::Reset };
                pieces.send(last).await.map_err(|_| Ended::Broken)?;
                // The other end of the queue ends the connection.
                std::future::pending::<()>().await;
            }
        }
    }
}

async fn write(mut pieces: mpsc::Receiver<Piece>, mut to: WriteHalf<'_>) -> Result<(), Ended> {
    let mut alarm = Alarm::new()?;
    while let Some(piece) = pieces.recv().await {
        alarm.sleep_until(piece.due).await?;
        match piece.what {
            What::Bytes(bytes) => to.write_all(&bytes).await?,
            What::Reset => return Err(Ended::Reset),
        }
    }
    to.shutdown().await?;
    Ok(())
}

impl Line {
    fn new(rate: Option<u64>) -> Self {
        Self { free_at: Instant::now(), rate }
    }

    /// Waits until the line is nearly free.
    async fn wait(&self, alarm: &mut Alarm) -> io::Result<()> {
        match self.free_at.checked_sub(AHEAD) {
            Some(nearly) => alarm.sleep_until(nearly).await,
            None => Ok(()),
        }
    }

    /// Adds bytes that were ready at `ready`; returns the time at which the last of them is sent.
    fn send(&mut self, bytes: usize, ready: Instant) -> Instant {
        self.free_at = self.free_at.max(ready);
        if let Some(rate) = self.rate {
            let nanos = bytes as u128 * 1_000_000_000 / u128::from(rate.max(1));
            self.free_at += Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4));
        }
        self.free_at
    }
}

enum Fault {
    Stall(Duration),
    Reset,
}

/// The faults of one connection to come, counted in bytes that came down.
struct Faults {
    passed: u64,
    stall: Option<(u64, Duration)>,
    next_stall: u64,
    reset_at: u64,
    random: u64,
}

impl Faults {
    fn new(shape: &Shape, number: u64) -> Self {
        let random = match shape.seed {
            0 => 0,
            seed => seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)).max(1),
        };
        let (stall, next_stall) = (shape.stall, u64::MAX);
        let mut faults = Self { passed: 0, stall, next_stall, reset_at: u64::MAX, random };
        if let Some(distance) = shape.reset_after {
            faults.reset_at = faults.draw(distance);
        }
        if let Some((distance, _)) = stall {
            faults.next_stall = faults.draw(distance);
        }
        faults
    }

    /// A random number near `distance`, at least one byte (splitmix64).
    fn draw(&mut self, distance: u64) -> u64 {
        if self.random == 0 {
            return distance.max(1);
        }
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (distance / 2 + (mixed ^ (mixed >> 31)) % distance.max(1)).max(1)
    }

    /// The number of bytes that may pass before something happens.
    fn until_next(&self) -> usize {
        let next = self.next_stall.min(self.reset_at) - self.passed;
        usize::try_from(next).unwrap_or(usize::MAX)
    }

    fn passed(&mut self, bytes: u64) -> Option<Fault> {
        self.passed += bytes;
        if self.passed >= self.reset_at {
            return Some(Fault::Reset);
        }
        let (distance, pause) = self.stall?;
        if self.passed < self.next_stall {
            return None;
        }
        self.next_stall = self.passed + self.draw(distance);
        Some(Fault::Stall(pause))
    }
}

/// Counts request heads in a stream of requests without bodies.
#[derive(Default)]
struct Heads {
    /// The first bytes of the present head: enough to recognise GET and HEAD.
    start: Vec<u8>,
    /// The part that was seen of the empty line that ends a head.
    end: usize,
}

impl Heads {
    const END: &[u8] = b"\r\n\r\n";
    const START_BYTES: usize = 5;

    /// The number of heads of GET and HEAD requests end in these bytes, which follow the last ones.
    fn count(&mut self, bytes: &[u8]) -> u64 {
        let mut ended = 0;
        for &byte in bytes {
            if self.start.len() < Self::START_BYTES {
                self.start.push(byte);
            }
            self.end = match byte {
                _ if byte == Self::END[self.end] => self.end + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.end == Self::END.len() {
                let asks = self.start.starts_with(b"GET ") || self.start.starts_with(b"HEAD ");
                ended += u64::from(asks);
                *self = Self::default();
            }
        }
        ended
    }
}

/// A timer that wakes within a few microseconds; tokio's own counts in whole milliseconds.
struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    // The replacement of `AsyncFd::new` is unsafe, because some descriptors change while they are
    // watched. An `OwnedFd` does not change.
    #[allow(deprecated, reason = "sound for an OwnedFd")]
    fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        Ok(Self(AsyncFd::new(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?)?))
    }

    async fn sleep_until(&mut self, when: Instant) -> io::Result<()> {
        loop {
            let left = when.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let none = Timespec { tv_sec: 0, tv_nsec: 0 };
            let tv_sec = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
            let it_value = Timespec { tv_sec, tv_nsec: i64::from(left.subsec_nanos()) };
            let spec = Itimerspec { it_interval: none, it_value };
            rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &spec)?;
            let mut rung = self.0.readable().await?;
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.0, &mut count);
            rung.clear_ready();
        }
    }
}
