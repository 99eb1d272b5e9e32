//! Every form in which a server, or a proxy before it, may answer a request for a range: each byte
//! that is read is right, or there is an error, and nothing hangs.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use kitfs::oci::{BlobId, BlobOffset, Digest};
use kitfs::source::{Repository, SourceError, Urgency};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::setup::{client_with, content, open_at, read};
use crate::wire::{Ask, Reply, Then, Wire, chunked};

/// Bytes of the blob: some chunks of an answer, and no round number.
const SIZE: usize = 20_011;

/// Longer than anything here takes that does not hang.
const HANG: Duration = Duration::from_secs(60);

/// How the end of a body is told.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Length,
    Chunks,
    Close,
}

/// A form of an answer. A request without a range asks for all of the blob.
#[derive(Clone, Debug)]
enum Form {
    /// 206 of exactly the range.
    Exact(Ending),
    /// 206 that does not know how large the blob is.
    UnknownTotal(Ending),
    /// 206 of only so many of the first bytes; the whole where no range was asked for.
    Start(usize, Ending),
    /// 200 and the whole blob.
    Whole(Ending),
    /// 200 with the Content-Range that was asked for, and these bytes.
    PartAs200(Ending),
    /// The head names an encoding, and the bytes are not encoded.
    Label(&'static str),
    /// 103 first.
    Hints,
    /// 206 of other bytes than those asked for: so many later.
    Later(usize),
    /// 206 of more than was asked: it begins so much earlier.
    Earlier(usize),
    /// 206 of a blob of another size.
    OtherTotal,
    /// 206 without a Content-Range.
    Nameless(Ending),
    /// 206 with this Content-Range.
    Named(&'static str),
    /// 206 with the right Content-Range and another one.
    TwoRanges,
    /// 206 of several parts.
    Multipart,
    /// 200 with the part in the body, which no header says.
    SecretPart(Ending),
    /// 200 with this Content-Range, and the part in the body.
    PartAs200Named(&'static str),
    /// The body is encoded.
    Encoded { name: &'static str, whole: bool, ending: Ending },
    /// The body is encoded within its chunks.
    EncodedChunks,
    /// 416.
    Unsatisfied(&'static str),
    /// An error, with or without a body.
    Status(u16),
    /// The right head, and only so many bytes of the body.
    Cut(usize, Ending),
    /// The right head, and bytes behind the end.
    Long,
    /// The right head with another length than the body's.
    OtherLength(isize),
    /// Two lengths.
    TwoLengths,
    /// The connection ends.
    Gone,
    /// Bytes that are not HTTP.
    Noise,
}

fn ending() -> impl Strategy<Value = Ending> {
    prop::sample::select(vec![Ending::Length, Ending::Chunks, Ending::Close])
}

/// Forms of a server that sends ranges, and may break off.
fn ranged() -> impl Strategy<Value = Form> {
    prop_oneof![
        ending().prop_map(Form::Exact),
        ending().prop_map(Form::UnknownTotal),
        ((100usize..SIZE), ending()).prop_map(|(length, ending)| Form::Start(length, ending)),
        ending().prop_map(Form::PartAs200),
        ((100usize..SIZE), ending()).prop_map(|(length, ending)| Form::Cut(length, ending)),
    ]
}

/// Forms that HTTP allows, or that proxies are known for, and that leave no doubt.
fn whole_or_ranged() -> impl Strategy<Value = Form> {
    prop_oneof![
        ending().prop_map(Form::Exact),
        ending().prop_map(Form::UnknownTotal),
        ((100usize..SIZE), ending()).prop_map(|(length, ending)| Form::Start(length, ending)),
        ending().prop_map(Form::Whole),
        ending().prop_map(Form::PartAs200),
        prop::sample::select(vec!["gzip", "x-gzip", "identity", "aws-chunked"])
            .prop_map(Form::Label),
        Just(Form::Hints),
    ]
}

/// Forms that are to be refused, or that may fail.
fn dubious() -> impl Strategy<Value = Form> {
    let named = vec![
        "bytes 0-0/1",
        "bytes */20011",
        "bytes 0-20010",
        "bytes=0-20010/20011",
        "items 0-9/20011",
        "none",
        "",
        "bytes 18446744073709551615-18446744073709551615/*",
    ];
    prop_oneof![
        ((1usize..4), ending()).prop_map(|(length, ending)| Form::Start(length, ending)),
        (1usize..300).prop_map(Form::Later),
        (1usize..300).prop_map(Form::Earlier),
        Just(Form::OtherTotal),
        ending().prop_map(Form::Nameless),
        prop::sample::select(named.clone()).prop_map(Form::Named),
        Just(Form::TwoRanges),
        Just(Form::Multipart),
        ending().prop_map(Form::SecretPart),
        prop::sample::select(named).prop_map(Form::PartAs200Named),
        (prop::sample::select(vec!["gzip", "br", "zstd", "deflate"]), any::<bool>(), ending())
            .prop_map(|(name, whole, ending)| Form::Encoded { name, whole, ending }),
        Just(Form::EncodedChunks),
        prop::sample::select(vec!["bytes */20011", "bytes */5", "nothing"])
            .prop_map(Form::Unsatisfied),
        prop::sample::select(vec![204u16, 203, 304, 400, 404, 500, 502]).prop_map(Form::Status),
        ((0usize..100), ending()).prop_map(|(length, ending)| Form::Cut(length, ending)),
        Just(Form::Long),
        prop_oneof![-9isize..0, 1isize..9].prop_map(Form::OtherLength),
        Just(Form::TwoLengths),
        Just(Form::Gone),
        Just(Form::Noise),
    ]
}

impl Form {
    fn answer(&self, blob: &[u8], ask: &Ask) -> Reply {
        let asked = ask.range().map(|(first, last)| first..last.min(SIZE - 1) + 1);
        let range = asked.clone().unwrap_or(0..SIZE);
        let of = |range: &Range<usize>| &blob[range.clone()];
        let named = |range: &Range<usize>| {
            format!("Content-Range: bytes {}-{}/{SIZE}", range.start, range.end - 1)
        };
        let status = if asked.is_some() { 206 } else { 200 };
        let exact: Vec<String> = asked.iter().map(&named).collect();
        let exact: Vec<&str> = exact.iter().map(String::as_str).collect();
        match self {
            Self::Exact(ending) => ended(status, &exact, of(&range), *ending),
            Self::UnknownTotal(ending) => {
                let unknown = named(&range).replace(&format!("/{SIZE}"), "/*");
                ended(206, &[&unknown], of(&range), *ending)
            }
            Self::Start(_, ending) if asked.is_none() => ended(200, &[], blob, *ending),
            Self::Start(length, ending) => {
                let start = range.start..range.end.min(range.start + length);
                ended(206, &[&named(&start)], of(&start), *ending)
            }
            Self::Whole(ending) => ended(200, &[], blob, *ending),
            Self::PartAs200(ending) => ended(200, &[&named(&range)], of(&range), *ending),
            Self::Label(name) => {
                let label = format!("Content-Encoding: {name}");
                let headers = [&exact[..], &[&label]].concat();
                ended(status, &headers, of(&range), Ending::Length)
            }
            Self::Hints => {
                let reply = ended(status, &exact, of(&range), Ending::Length);
                let hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n";
                Reply { bytes: [&hints[..], &reply.bytes].concat(), ..reply }
            }
            Self::Later(bytes) => {
                let start = (range.start + bytes).min(SIZE - 1);
                let later = start..(range.end + bytes).min(SIZE);
                ended(206, &[&named(&later)], of(&later), Ending::Length)
            }
            Self::Earlier(bytes) => {
                let earlier = range.start.saturating_sub(*bytes)..range.end;
                ended(206, &[&named(&earlier)], of(&earlier), Ending::Length)
            }
            Self::OtherTotal => {
                let other = named(&range).replace(&format!("/{SIZE}"), "/99999");
                ended(206, &[&other], of(&range), Ending::Length)
            }
            Self::Nameless(ending) => ended(206, &[], of(&range), *ending),
            Self::Named(text) => {
                let name = format!("Content-Range: {text}");
                ended(206, &[&name], of(&range), Ending::Length)
            }
            Self::TwoRanges => {
                let other = "Content-Range: bytes 0-0/20011";
                ended(206, &[&named(&range), other], of(&range), Ending::Length)
            }
            Self::Multipart => {
                let parts = [b"--X\r\n".as_slice(), of(&range), b"\r\n--X--\r\n"].concat();
                let kind = "Content-Type: multipart/byteranges; boundary=X";
                ended(206, &[kind], &parts, Ending::Length)
            }
            Self::SecretPart(ending) => ended(200, &[], of(&range), *ending),
            Self::PartAs200Named(text) => {
                let name = format!("Content-Range: {text}");
                ended(200, &[&name], of(&range), Ending::Chunks)
            }
            Self::Encoded { name, whole, ending } => {
                let body = if *whole { blob } else { of(&range) };
                let coded: Vec<u8> = body.iter().step_by(3).map(|byte| !byte).collect();
                let label = format!("Content-Encoding: {name}");
                let (status, range) = if *whole { (200, &[][..]) } else { (status, &exact[..]) };
                ended(status, &[range, &[&label]].concat(), &coded, *ending)
            }
            Self::EncodedChunks => {
                let coded: Vec<u8> = of(&range).iter().map(|byte| !byte).collect();
                let headers = [&exact[..], &["Transfer-Encoding: gzip, chunked"]].concat();
                Reply::raw(status, &headers, &chunked(&coded, true))
            }
            Self::Unsatisfied(text) => {
                let name = format!("Content-Range: {text}");
                ended(416, &[&name], b"no", Ending::Length)
            }
            Self::Status(status) => match status {
                204 | 304 => Reply::raw(*status, &[], b""),
                _ => ended(*status, &[], of(&range), Ending::Length),
            },
            Self::Cut(length, ending) => {
                let body = of(&range);
                let came = &body[..(*length).min(body.len())];
                let whole = format!("Content-Length: {}", body.len());
                let reply = match ending {
                    Ending::Length => Reply::raw(status, &[&exact[..], &[&whole]].concat(), came),
                    Ending::Chunks => {
                        let headers = [&exact[..], &["Transfer-Encoding: chunked"]].concat();
                        Reply::raw(status, &headers, &chunked(came, came.len() == body.len()))
                    }
                    Ending::Close => ended(status, &exact, came, Ending::Close),
                };
                reply.then(Then::Close)
            }
            Self::Long => {
                let body = [of(&range), b"and more"].concat();
                ended(status, &exact, &body, Ending::Chunks)
            }
            Self::OtherLength(more) => {
                let length = range.len().saturating_add_signed(*more);
                let length = format!("Content-Length: {length}");
                let reply = Reply::raw(status, &[&exact[..], &[&length]].concat(), of(&range));
                reply.then(Then::Close)
            }
            Self::TwoLengths => {
                let headers = [&exact[..], &["Content-Length: 1", "Content-Length: 2"]].concat();
                Reply::raw(status, &headers, of(&range)).then(Then::Close)
            }
            Self::Gone => Reply::default().then(Then::Close),
            Self::Noise => {
                Reply { bytes: of(&range).to_vec(), ..Reply::default() }.then(Then::Close)
            }
        }
    }
}

fn ended(status: u16, headers: &[&str], body: &[u8], ending: Ending) -> Reply {
    match ending {
        Ending::Length => Reply::new(status, headers, body),
        Ending::Chunks => {
            let headers = [headers, &["Transfer-Encoding: chunked"]].concat();
            Reply::raw(status, &headers, &chunked(body, true))
        }
        Ending::Close => {
            let headers = [headers, &["Connection: close"]].concat();
            Reply::raw(status, &headers, body).then(Then::Close)
        }
    }
}

/// Answers in these forms, one after the other and then from the first again.
async fn registry(forms: Vec<Form>) -> Wire {
    let (blob, turn) = (content(SIZE), AtomicUsize::new(0));
    Wire::start(move |ask| {
        let turn = turn.fetch_add(1, Ordering::SeqCst);
        forms[turn % forms.len()].answer(&blob, ask)
    })
    .await
}

/// Reads a range and compares each piece at once: bytes before an error must be right, too.
async fn read_and_compare(
    repository: &Arc<dyn Repository>,
    range: Range<u64>,
) -> Result<(), SourceError> {
    let blob = content(SIZE);
    let id = BlobId { digest: Digest::of(&blob), size: SIZE as u64 };
    let mut stream =
        repository.open(id, BlobOffset::of(range.clone()), Urgency::on_demand()).await?;
    let yields = stream.range.start.get()..stream.range.end.get();
    assert!(yields.start <= range.start && range.end <= yields.end, "{yields:?} for {range:?}");
    let mut at = yields.start as usize;
    while let Some(piece) = stream.bytes.next().await {
        let piece = piece?;
        let end = at + piece.len();
        assert!(end as u64 <= yields.end && piece == blob[at..end], "wrong bytes at {at}");
        at = end;
    }
    assert_eq!(at as u64, yields.end, "it ended early without an error");
    Ok(())
}

/// Reads some ranges from a registry that answers in these forms.
async fn try_forms(
    client: &Arc<kitfs::source::registry::RegistryClient>,
    forms: Vec<Form>,
    ranges: &[Range<u64>],
) -> Vec<Result<(), SourceError>> {
    let wire = registry(forms).await;
    let repository = crate::setup::repository(client, &wire.host());
    let mut outcomes = Vec::new();
    for range in ranges {
        let outcome = tokio::time::timeout(HANG, read_and_compare(&repository, range.clone()));
        outcomes.push(outcome.await.expect("it does not hang"));
    }
    outcomes
}

fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
    let range = (0..SIZE as u64)
        .prop_flat_map(|start| (start + 1..=SIZE as u64).prop_map(move |end| start..end));
    prop::collection::vec(prop_oneof![3 => range, 1 => Just(0..SIZE as u64)], 1..4)
}

/// Runs a property with one client and one runtime, whose making takes longer than a case.
fn check<S: Strategy<Value = (Vec<Form>, Vec<Range<u64>>)>>(
    forms: S,
    holds: impl Fn(&[Result<(), SourceError>]) -> Result<(), TestCaseError>,
) where
    S::Value: std::fmt::Debug,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = client_with(|config| {
        config.timing.backoff_min = Duration::from_micros(100);
        config.timing.backoff_max = Duration::from_millis(1);
        // Each break of a body may be followed by others, and none of the forms passes by waiting.
        config.timing.resumes = 300;
    });
    let mut runner =
        TestRunner::new(Config { cases: 300, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&forms, |(forms, ranges)| {
        let outcomes = runtime.block_on(try_forms(&client, forms, &ranges));
        holds(&outcomes)
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_byte_is_right_or_an_error_whatever_the_form_of_the_answers() {
    let forms = prop_oneof![ranged(), whole_or_ranged(), dubious()];
    let forms = prop::collection::vec(forms, 1..5);
    check((forms, ranges()), |outcomes| {
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            prop_assert!(error.to_string().contains("127.0.0.1"), "{}", error);
        }
        Ok(())
    });
}

#[test]
fn answers_that_leave_no_doubt_are_read_whatever_their_form() {
    let forms = prop_oneof![
        prop::collection::vec(ranged(), 1..5),
        prop::collection::vec(whole_or_ranged(), 1..5),
    ];
    check((forms, ranges()), |outcomes| {
        prop_assert!(outcomes.iter().all(Result::is_ok), "{:?}", outcomes);
        Ok(())
    });
}

fn id() -> BlobId {
    BlobId { digest: Digest::of(&content(SIZE)), size: SIZE as u64 }
}

#[tokio::test]
async fn a_200_with_the_content_range_that_was_asked_is_the_part() {
    for ending in [Ending::Length, Ending::Chunks, Ending::Close] {
        let wire = registry(vec![Form::PartAs200(ending)]).await;
        let (range, bytes) = read(&open_at(&wire.host()), id(), 5000..9000).await.unwrap();
        assert_eq!((range, bytes), (5000..9000, content(SIZE)[5000..9000].to_vec()));
        assert_eq!(wire.asked().len(), 1);
    }
}

#[tokio::test]
async fn an_answer_with_the_start_of_a_range_is_taken_and_the_rest_is_asked_for() {
    let wire = registry(vec![Form::Start(1500, Ending::Length)]).await;
    let (range, bytes) = read(&open_at(&wire.host()), id(), 5000..9000).await.unwrap();
    assert_eq!((range, bytes), (5000..9000, content(SIZE)[5000..9000].to_vec()));
    let asked: Vec<_> = wire.asked().iter().map(|ask| ask.range().unwrap()).collect();
    assert_eq!(asked, [(5000, 8999), (6500, 8999), (8000, 8999)]);
}

#[tokio::test]
async fn a_server_that_sends_byte_by_byte_is_given_up() {
    let wire = registry(vec![Form::Start(1, Ending::Length)]).await;
    let repository = open_at(&wire.host());
    let error = read(&repository, id(), 0..SIZE as u64 - 1).await.map(drop).unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("65 answers"), "{error}");
    // A few bytes are worth a few answers.
    assert_eq!(read(&repository, id(), 7..27).await.unwrap().1, content(SIZE)[7..27]);
}

#[tokio::test]
async fn a_200_that_may_be_the_part_or_the_whole_is_asked_for_without_a_range() {
    for form in [Form::SecretPart(Ending::Chunks), Form::Whole(Ending::Chunks)] {
        let wire = registry(vec![form, Form::Whole(Ending::Chunks)]).await;
        let (range, bytes) = read(&open_at(&wire.host()), id(), 5000..9000).await.unwrap();
        assert_eq!((range, bytes), (0..SIZE as u64, content(SIZE)));
        let asked: Vec<_> = wire.asked().iter().map(Ask::range).collect();
        assert_eq!(asked, [Some((5000, 8999)), None]);
    }
}

#[tokio::test]
async fn every_request_asks_for_bytes_as_they_are() {
    let wire = registry(vec![Form::Exact(Ending::Length)]).await;
    read(&open_at(&wire.host()), id(), 5000..9000).await.unwrap();
    assert_eq!(wire.asked()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn an_encoded_body_is_refused_and_its_encoding_named() {
    for whole in [false, true] {
        let form = Form::Encoded { name: "gzip", whole, ending: Ending::Chunks };
        let wire = registry(vec![form]).await;
        let read = read(&open_at(&wire.host()), id(), 5000..9000).await;
        let error = read.map(drop).unwrap_err();
        assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
        assert!(error.to_string().contains("encoding `gzip`"), "{error}");
    }
}

/// A registry whose documents are encoded, or only said to be.
async fn documents(label: &'static str, is_encoded: bool) -> Wire {
    Wire::start(move |ask| {
        let document = match ask.target.contains("/tags/") {
            true => r#"{"name":"org/model","tags":["v1"]}"#,
            false => r#"{"schemaVersion":2,"layers":null}"#,
        };
        let body: Vec<u8> = match is_encoded {
            true => document.bytes().map(|byte| !byte).collect(),
            false => document.into(),
        };
        Reply::new(200, &[&format!("Content-Encoding: {label}")], body)
    })
    .await
}

#[tokio::test]
async fn encoded_documents_are_refused_and_a_label_alone_passes() {
    for label in ["gzip", "br"] {
        let wire = documents(label, false).await;
        let repository = open_at(&wire.host());
        repository.manifest(None).await.unwrap();
        assert_eq!(repository.tags().await.unwrap(), ["v1"]);

        let wire = documents(label, true).await;
        let repository = open_at(&wire.host());
        let errors =
            [repository.manifest(None).await.unwrap_err(), repository.tags().await.unwrap_err()];
        for error in errors {
            let message = error.to_string();
            assert!(message.contains(&format!("encoding `{label}`")), "{message}");
        }
    }
}

#[tokio::test]
async fn an_encoded_token_is_refused_and_not_quoted() {
    for is_encoded in [false, true] {
        let wire = Wire::start(move |ask| match ask.header("authorization") {
            _ if ask.target.starts_with("/token") => {
                let token = br#"{"token":"t"}"#;
                let body = token.map(|byte| if is_encoded { !byte } else { byte });
                Reply::new(200, &["Content-Encoding: gzip"], body)
            }
            Some("Bearer t") => Reply::new(200, &[], r#"{"schemaVersion":2}"#),
            _ => {
                let realm = format!("realm=\"http://{}/token\"", ask.host());
                Reply::new(401, &[&format!("WWW-Authenticate: Bearer {realm}")], "")
            }
        })
        .await;
        let answer = open_at(&wire.host()).manifest(None).await.map(drop);
        assert_eq!(answer.is_err(), is_encoded, "{answer:?}");
        if let Err(error) = answer {
            assert!(error.to_string().contains("the token came in the encoding `gzip`"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_login_page_in_the_place_of_a_document_is_named() {
    for headers in [&["Content-Type: text/html; charset=utf-8"][..], &[]] {
        let page = "<!DOCTYPE html><html><title>Sign in</title></html>";
        let wire = Wire::start(move |_| Reply::new(200, headers, page)).await;
        let repository = open_at(&wire.host());
        let errors =
            [repository.manifest(None).await.unwrap_err(), repository.tags().await.unwrap_err()];
        for error in errors {
            assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
            assert!(error.to_string().contains("a web page came"), "{error}");
        }
    }
}
