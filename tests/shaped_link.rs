//! The promises of the shaped link to tests and measurements. All bounds are far from the expected
//! figures, so that a busy machine changes nothing.

#[path = "support/shaped_link.rs"]
mod shaped_link;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use shaped_link::{Shape, ShapedLink};

/// The time limit of a read: far more than any read needs, so that a hang becomes a failure.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const REQUEST: &[u8] = b"GET /blob HTTP/1.1\r\nHost: here\r\n\r\n";

/// A server that sends `answer` for each request. A request ends with an empty line.
fn server(answer: Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let answer = answer.clone();
            std::thread::spawn(move || {
                let (mut seen, mut byte) = (Vec::new(), [0]);
                while stream.read_exact(&mut byte).is_ok() {
                    seen.push(byte[0]);
                    if seen.ends_with(b"\r\n\r\n") {
                        seen.clear();
                        // Clients of these tests may disconnect early.
                        let _ = stream.write_all(&answer);
                    }
                }
            });
        }
    });
    address
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 7 % 251) as u8).collect()
}

fn connect(link: &ShapedLink) -> TcpStream {
    let stream = TcpStream::connect(link.address()).expect("the link listens");
    stream.set_read_timeout(Some(READ_TIMEOUT)).expect("a timeout can be set");
    stream
}

/// Asks once and reads an answer of `length` bytes.
fn ask(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    stream.write_all(REQUEST).expect("the link takes a request");
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).expect("the answer comes");
    answer
}

#[test]
fn bytes_pass_unchanged_and_are_counted() {
    let answer = pattern(3_000_001);
    let link = ShapedLink::start(server(answer.clone()), Shape::default()).expect("a link");
    let mut stream = connect(&link);
    assert!(ask(&mut stream, answer.len()) == answer, "the answer changed");
    assert!(ask(&mut stream, answer.len()) == answer, "the second answer changed");
    let counts = link.counts();
    assert_eq!((counts.connections, counts.requests), (1, 2));
    assert_eq!(counts.bytes_up, 2 * REQUEST.len() as u64);
    assert_eq!(counts.bytes_down, 2 * answer.len() as u64);
}

#[test]
fn requests_are_counted_in_pieces_of_any_size() {
    let link = ShapedLink::start(server(vec![1]), Shape::default()).expect("a link");
    let mut stream = connect(&link);
    stream.set_nodelay(true).expect("no delay");
    let requests =
        b"GET / HTTP/1.1\r\nA: \r\r\n\r\nHEAD /x HTTP/1.1\r\n\r\nPUT /y HTTP/1.1\r\n\r\n";
    for part in requests.chunks(3) {
        stream.write_all(part).expect("the link takes a request");
        stream.flush().expect("the link takes a request");
    }
    stream.read_exact(&mut [0; 3]).expect("three answers");
    assert_eq!(link.counts().requests, 2, "GET and HEAD count, PUT does not");
}

#[test]
fn a_round_trip_takes_its_time_and_a_new_connection_one_more() {
    let rtt = Duration::from_millis(60);
    let link =
        ShapedLink::start(server(vec![7]), Shape { rtt, ..Shape::default() }).expect("a link");
    let started = Instant::now();
    let mut stream = connect(&link);
    ask(&mut stream, 1);
    assert!(started.elapsed() >= 2 * rtt, "{:?}", started.elapsed());
    let again = Instant::now();
    ask(&mut stream, 1);
    assert!(again.elapsed() >= rtt, "{:?}", again.elapsed());
}

#[test]
fn latency_does_not_multiply_with_pieces() {
    let rtt = Duration::from_millis(500);
    let answer = pattern(20 << 20);
    let link = ShapedLink::start(server(answer.clone()), Shape { rtt, ..Shape::default() });
    let link = link.expect("a link");
    let started = Instant::now();
    assert!(ask(&mut connect(&link), answer.len()) == answer, "the answer changed");
    // 160 pieces of 128 KiB, one after another, would take 80 s.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn the_rate_holds_for_all_connections_together() {
    let answer = pattern(2_000_000);
    let shape = Shape { rate: Some(4_000_000), ..Shape::default() };
    let link = ShapedLink::start(server(answer.clone()), shape).expect("a link");
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| ask(&mut connect(&link), answer.len()));
        }
    });
    let rate = 4_000_000.0 / started.elapsed().as_secs_f64();
    assert!(rate <= 4_000_000.0 * 1.1, "{rate} bytes a second");
}

#[test]
fn the_rate_of_a_connection_holds_for_it_alone() {
    let answer = pattern(1_000_000);
    let shape = Shape { connection_rate: Some(1_000_000), ..Shape::default() };
    let link = ShapedLink::start(server(answer.clone()), shape).expect("a link");
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| ask(&mut connect(&link), answer.len()));
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    assert!((0.9..24.0).contains(&seconds), "32 at 1 s each, side by side, took {seconds} s");
}

#[test]
fn an_idle_time_earns_no_burst() {
    let answer = pattern(400_000);
    let shape = Shape { rate: Some(1_000_000), ..Shape::default() };
    let link = ShapedLink::start(server(answer.clone()), shape).expect("a link");
    let mut stream = connect(&link);
    std::thread::sleep(Duration::from_millis(500));
    let started = Instant::now();
    ask(&mut stream, answer.len());
    assert!(started.elapsed() >= Duration::from_millis(350), "{:?}", started.elapsed());
}

#[test]
fn a_stall_stops_a_connection_for_a_while() {
    let answer = pattern(1_000_000);
    let pause = Duration::from_millis(150);
    let shape = Shape { stall: Some((400_000, pause)), ..Shape::default() };
    let link = ShapedLink::start(server(answer.clone()), shape).expect("a link");
    let started = Instant::now();
    assert!(ask(&mut connect(&link), answer.len()) == answer, "the answer changed");
    assert!(started.elapsed() >= 2 * pause, "{:?}", started.elapsed());
    assert_eq!(link.counts().stalls, 2);
}

#[test]
fn a_reset_comes_after_the_given_number_of_bytes() {
    let answer = pattern(1_000_000);
    let shape = Shape { reset_after: Some(300_000), ..Shape::default() };
    let link = ShapedLink::start(server(answer), shape).expect("a link");
    let mut stream = connect(&link);
    stream.write_all(REQUEST).expect("the link takes a request");
    let mut read = Vec::new();
    let error = stream.read_to_end(&mut read).expect_err("the connection is reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(read.len() <= 300_000, "{} bytes", read.len());
    let counts = link.counts();
    assert_eq!((counts.resets, counts.bytes_down), (1, 300_000));
}

#[test]
fn a_seed_draws_the_same_faults_again() {
    let resets = |seed| {
        let shape = Shape { reset_after: Some(100_000), seed, ..Shape::default() };
        let link = ShapedLink::start(server(pattern(400_000)), shape).expect("a link");
        let mut passed = Vec::new();
        for _ in 0..4 {
            let before = link.counts().bytes_down;
            let mut stream = connect(&link);
            stream.write_all(REQUEST).expect("the link takes a request");
            let mut read = Vec::new();
            let _ = stream.read_to_end(&mut read);
            passed.push(link.counts().bytes_down - before);
        }
        passed
    };
    let (first, other) = (resets(5), resets(6));
    assert_eq!(first, resets(5));
    assert_ne!(first, other);
    assert!(first.iter().all(|bytes| (50_000..150_000).contains(bytes)), "{first:?}");
}

#[test]
fn a_client_that_goes_away_ends_its_connection_only() {
    let answer = pattern(30 << 20);
    let link = ShapedLink::start(server(answer), Shape::default()).expect("a link");
    let mut gone = connect(&link);
    gone.write_all(REQUEST).expect("the link takes a request");
    drop(gone);
    assert_eq!(ask(&mut connect(&link), 1_000), pattern(1_000));
}
