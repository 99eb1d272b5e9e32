//! `kitfs doctor`, `kitfs logs` and `kitfs bugreport`, as a user runs them: against registries with faults, without a
//! daemon and with one.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

use axum::http::Method;
use serde_json::{Value, json};
use support::golden;
use support::kitfs::{Kitfs, Outcome, kill_and_wait, wait_until};
use support::registry_double::{Access, Fault, Options, RegistryDouble, Rule, Tokens};
use support::registry_process::RegistryProcess;

/// A registry with a golden kit, and its reference.
async fn registry(options: Options) -> (RegistryDouble, String) {
    let registry = RegistryDouble::start(options).await;
    registry.push_layout("org/kit", &golden("article"));
    let reference = registry.reference("org/kit", "v1");
    (registry, reference)
}

/// The checks of `kitfs doctor --json` with these arguments, and the exit code.
fn doctor(kitfs: &Kitfs, arguments: &[&str]) -> (Vec<Value>, Option<i32>) {
    let arguments: Vec<&str> = ["doctor", "--json"].iter().chain(arguments).copied().collect();
    let Outcome { code, stdout, stderr } = kitfs.run(&arguments);
    let report: Value = serde_json::from_slice(&stdout).unwrap_or_else(|_| panic!("{stderr}"));
    (report["checks"].as_array().unwrap().clone(), code)
}

/// The outcome and the words of the last check of this name.
#[track_caller]
fn check(checks: &[Value], group: &str, name: &str) -> (String, String) {
    let is_it = |check: &&Value| check["group"] == group && check["name"] == name;
    let check = checks.iter().rev().find(is_it).unwrap_or_else(|| panic!("{name}: {checks:#?}"));
    let words = format!("{} {}", check["found"].as_str().unwrap(), check["advice"]);
    (check["outcome"].as_str().unwrap().to_owned(), words)
}

#[track_caller]
fn expect(checks: &[Value], name: &str, outcome: &str, words: &str) {
    let (got, found) = check(checks, "Registry", name);
    assert_eq!(got, outcome, "{name}: {found}");
    assert!(found.contains(words), "{name}: {found}");
}

#[test]
fn this_machine_is_checked_without_a_daemon_and_without_a_cache_folder() {
    let kitfs = Kitfs::new();
    let (checks, code) = doctor(&kitfs, &[]);
    for (group, name) in [
        ("Mounting", "FUSE device"),
        ("Mounting", "fusermount3"),
        ("Mounting", "passthrough"),
        ("Limits", "open files"),
        ("Cache", "disk space"),
        ("Daemon", "daemon"),
        ("Network", "authorities"),
        ("Network", "credentials"),
    ] {
        check(&checks, group, name);
    }
    assert!(check(&checks, "Daemon", "daemon").1.contains("none runs"));
    assert!(!kitfs.cache().exists(), "a look makes no folder");
    let fails = checks.iter().any(|check| check["outcome"] == "fail");
    assert_eq!(code, Some(i32::from(fails)));
    let text = kitfs.run(&["doctor"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.starts_with("Mounting\n") && text.contains(" FAIL, "), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours without a terminal");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_registry_gets_ok_for_each_property() {
    let (registry, reference) = registry(Options::default()).await;
    let kitfs = Kitfs::new();
    let (checks, _) = doctor(&kitfs, &[&reference]);
    expect(&checks, "reachability", "ok", "answers");
    expect(&checks, "login", "ok", "not wanted");
    expect(&checks, "clock", "ok", "registry");
    expect(&checks, "kit", "ok", "sha256:");
    expect(&checks, "ranges", "ok", "served");
    expect(&checks, "redirects", "ok", "none");
    expect(&checks, "uploads", "skip", "--uploads");
    let changes =
        registry.requests().iter().filter(|request| request.method != Method::GET).count();
    assert_eq!(changes, 0, "a look changes nothing");
    let (checks, _) = doctor(&kitfs, &[&registry.host()]);
    expect(&checks, "reachability", "ok", "answers");
    expect(&checks, "kit", "skip", "HOST/REPOSITORY");
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_ranges_are_told_from_good_ones() {
    let kitfs = Kitfs::new();
    for (fault, outcome, words) in [
        (Fault::IgnoreRange, "warn", "whole layer"),
        (Fault::ContentRange("bytes 7-9/10".to_owned()), "fail", "Content-Range"),
        (Fault::Short { after_bytes: 1 }, "fail", ""),
        (Fault::Status(503), "fail", "503"),
        (Fault::Status(404), "fail", "not found"),
    ] {
        let (registry, reference) = registry(Options::default()).await;
        registry.script(Rule::on("/blobs/").then(fault.clone()));
        let (checks, code) = doctor(&kitfs, &[&reference]);
        let (got, found) = check(&checks, "Registry", "ranges");
        assert_eq!(got, outcome, "{fault:?}: {found}");
        assert!(found.contains(words), "{fault:?}: {found}");
        assert!(outcome != "fail" || code == Some(1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_are_named_without_their_signatures() {
    let lifetime = std::time::Duration::from_secs(300);
    let options = Options { redirect_for: Some(lifetime), ..Options::default() };
    let (registry, reference) = registry(options).await;
    let outcome = Kitfs::new().run(&["doctor", &reference]);
    let said = String::from_utf8(outcome.stdout).unwrap();
    assert!(said.contains(&registry.storage_host()), "{said}");
    assert!(!said.contains("signature") && !said.contains('?'), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_named_with_their_file_and_without_the_secret() {
    let tokens =
        Tokens { password: Some(("ada".to_owned(), "hunter22".to_owned())), ..Tokens::default() };
    let (registry, reference) =
        registry(Options { access: Access::Bearer(tokens), ..Options::default() }).await;
    let kitfs = Kitfs::new();
    let (checks, code) = doctor(&kitfs, &[&reference]);
    expect(&checks, "kit", "fail", "kit login");
    assert_eq!(code, Some(1));
    assert!(check(&checks, "Network", "credentials").1.contains("none for"));
    let docker = kitfs.folder().join("docker");
    fs::create_dir_all(&docker).unwrap();
    let auths = json!({"auths": {registry.host(): {"username": "ada", "password": "hunter22"}}});
    let file = docker.join("config.json");
    fs::write(&file, auths.to_string()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let mut command = kitfs.command(&["doctor", "--json", &reference]);
    command.env("DOCKER_CONFIG", &docker);
    let outcome = Kitfs::run_command(command);
    let text = String::from_utf8(outcome.stdout).unwrap();
    assert!(!text.contains("hunter22"), "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    let checks = report["checks"].as_array().unwrap();
    expect(checks, "kit", "ok", "sha256:");
    expect(checks, "login", "ok", "");
    let credentials: Vec<_> =
        checks.iter().filter(|check| check["name"] == "credentials").collect();
    let found = credentials[0]["found"].as_str().unwrap();
    assert!(found.contains("`ada`") && found.contains(&*file.to_string_lossy()), "{found}");
    assert_eq!(credentials[1]["advice"], format!("`chmod 600 {}`", file.display()));
}

#[test]
fn a_silent_registry_and_a_closed_port_end_within_the_time_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = silent.local_addr().unwrap().to_string();
    let kitfs = Kitfs::new();
    let (checks, code) = doctor(&kitfs, &[&host, "--timeout", "1"]);
    expect(&checks, "reachability", "fail", "no answer came within 1 s");
    assert_eq!(code, Some(1));
    drop(silent);
    let (checks, _) = doctor(&kitfs, &[&host, "--timeout", "5"]);
    expect(&checks, "reachability", "fail", &host);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_tried_on_request_only_and_taken_back() {
    let (registry, reference) = registry(Options::default()).await;
    let kitfs = Kitfs::new();
    let (checks, _) = doctor(&kitfs, &[&reference, "--uploads"]);
    expect(&checks, "uploads", "ok", "permitted");
    assert_eq!(registry.open_uploads(), 0);
    assert_eq!(registry.bytes_received(), 0);
    registry.script(Rule::on("/uploads/").method(Method::POST).then(Fault::Status(403)));
    let (checks, code) = doctor(&kitfs, &[&reference, "--uploads"]);
    let (outcome, _) = check(&checks, "Registry", "uploads");
    assert_eq!(outcome, "warn");
    assert!(code.is_some());
}

#[test]
fn a_real_registry_passes() {
    let registry = RegistryProcess::start();
    let reference = registry.push(&golden("article"), "v1", "org/kit");
    let (checks, _) = doctor(&Kitfs::new(), &[&reference, "--uploads"]);
    for name in ["reachability", "kit", "ranges", "uploads"] {
        expect(&checks, name, "ok", "");
    }
}

#[test]
fn kits_on_this_machine_and_words_that_are_none_are_told() {
    let kitfs = Kitfs::new();
    let (checks, _) = doctor(&kitfs, &[&support::golden_reference("article")]);
    assert_eq!(check(&checks, "Kit", "kit").0, "ok");
    let (checks, code) = doctor(&kitfs, &["oci:/not/there:v1"]);
    assert_eq!((check(&checks, "Kit", "kit").0.as_str(), code), ("fail", Some(1)));
    kitfs.fail(2, &["doctor", "https://ghcr.io"]);
}

/// The log of an earlier daemon in the background is not that of the daemon that runs.
#[test]
fn a_daemon_in_the_foreground_logs_to_its_standard_error_and_logs_says_so() {
    let kitfs = Kitfs::new();
    fs::create_dir_all(kitfs.cache()).unwrap();
    fs::write(kitfs.cache().join("daemon.log"), "long ago\n").unwrap();
    assert_eq!(kitfs.succeed(&["logs"]), "long ago\n");
    let mut command = kitfs.command(&["daemon", "start", "--foreground"]);
    let mut daemon = command.stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the daemon runs", || kitfs.run(&["daemon", "status"]).code == Some(0));
    let said = kitfs.fail(3, &["logs"]);
    assert!(said.contains("foreground") && !said.contains("long ago"), "{said}");
    kitfs.succeed(&["daemon", "stop"]);
    daemon.wait().unwrap();
    kitfs.succeed(&["daemon", "start"]);
    assert_eq!(kitfs.run(&["logs"]).code, Some(0));
}

#[test]
fn the_log_of_a_daemon_is_shown_and_followed_over_its_rotation() {
    let kitfs = Kitfs::new();
    assert!(kitfs.fail(3, &["logs"]).contains("no daemon has written a log"));
    fs::create_dir_all(kitfs.cache()).unwrap();
    let log = kitfs.cache().join("daemon.log");
    fs::write(&log, "2026-12-01T04:00:00.000001Z  INFO kitfs::a: first\nsecond\n").unwrap();
    assert_eq!(kitfs.succeed(&["logs", "-n", "1"]), "second\n");
    let line = kitfs.succeed(&["logs", "--json"]).lines().next().unwrap().to_owned();
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&line["level"], &line["message"]), (&json!("INFO"), &json!("first")));

    let mut following = Following::start(&kitfs);
    assert_eq!(following.line(), "second");
    let append = |text: &str| {
        use std::io::Write;
        let mut file = fs::File::options().append(true).create(true).open(&log).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    append("third\n");
    assert_eq!(following.line(), "third");
    fs::rename(&log, kitfs.cache().join("daemon.log.1")).unwrap();
    append("fourth\n");
    assert_eq!(following.line(), "fourth");
}

/// A running `kitfs logs -f -n 1`.
struct Following {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Following {
    fn start(kitfs: &Kitfs) -> Self {
        let mut command = kitfs.command(&["logs", "-f", "-n", "1"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A secret, and where it is planted.
const PASSWORD: &str = "planted-password-1";
const TOKEN: &str = "planted-identity-token-2";
const PROXY: &str = "planted-proxy-password-3";
const AWS_KEY: &str = "AKIAPLANTED4PLANTED4";
const AWS_SECRET: &str = "planted/aws+secret5";
const SIGNATURE: &str = "planted-signature-6";
const BEARER: &str = "planted.bearer.token-7";
const PROFILE: &str = "planted-profile-secret-8";
const HEADER: &str = "planted-mirror-header-9";
const URL_PASSWORD: &str = "planted-url-password-10";

#[test]
fn a_report_has_no_secret_that_was_planted_anywhere() {
    let kitfs = Kitfs::new();
    let folder = kitfs.folder().to_owned();
    let (docker, mirrors, aws) = (folder.join("docker"), folder.join("hosts"), folder.join("aws"));
    fs::create_dir_all(&docker).unwrap();
    fs::create_dir_all(mirrors.join("r.example")).unwrap();
    use base64::Engine as _;
    let auth = base64::prelude::BASE64_STANDARD.encode(format!("ada:{PASSWORD}"));
    let auths = json!({"auths": {
        "r.example": {"auth": auth}, "s.example": {"identitytoken": TOKEN},
    }});
    fs::write(docker.join("config.json"), auths.to_string()).unwrap();
    fs::write(
        mirrors.join("r.example/hosts.toml"),
        format!("[host.\"http://m.example\".header]\nx-one = \"{HEADER}\"\n"),
    )
    .unwrap();
    fs::write(&aws, format!("[default]\naws_access_key_id=x\naws_secret_access_key={PROFILE}\n"))
        .unwrap();
    // A log with all of these secrets, which no log of kitfs should have.
    fs::create_dir_all(kitfs.cache()).unwrap();
    let log = format!(
        "GET https://u:{URL_PASSWORD}@r.example/v2/?X-Amz-Signature={SIGNATURE}\n\
         Authorization: Bearer {BEARER}\nmirror sent {HEADER} {PASSWORD} {TOKEN} {auth}\n\
         proxy {PROXY}, keys {AWS_KEY} {AWS_SECRET} {PROFILE}\nthe last line\n"
    );
    fs::write(kitfs.cache().join("daemon.log"), log).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = kitfs.command(arguments);
        command.env("DOCKER_CONFIG", &docker).env("KITFS_REGISTRIES_DIR", &mirrors);
        command.env("AWS_SHARED_CREDENTIALS_FILE", &aws);
        command.env("AWS_ACCESS_KEY_ID", AWS_KEY).env("AWS_SECRET_ACCESS_KEY", AWS_SECRET);
        command.env("HTTPS_PROXY", format!("http://u:{PROXY}@proxy.example:3128"));
        Kitfs::run_command(command)
    };
    let secrets = [
        PASSWORD,
        TOKEN,
        PROXY,
        AWS_KEY,
        AWS_SECRET,
        SIGNATURE,
        BEARER,
        PROFILE,
        HEADER,
        URL_PASSWORD,
        &auth,
    ];
    for with_daemon in [false, true] {
        if with_daemon {
            kitfs.succeed(&["daemon", "start"]);
        }
        let outcome = run(&["bugreport", "-"]);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let report = String::from_utf8(outcome.stdout).unwrap();
        for secret in secrets {
            assert!(!report.contains(secret), "{secret} is in the report:\n{report}");
            assert!(!outcome.stderr.contains(secret), "{secret} is in the messages");
        }
        for part in [
            "Read it before you share it",
            "kitfs doctor",
            "Limits of this process",
            "the last line",
            "AWS_SECRET_ACCESS_KEY",
            "proxy.example:3128",
            "kernel ",
        ] {
            assert!(report.contains(part), "{part} is missing:\n{report}");
        }
        assert_eq!(report.contains("\"worker_pid\""), with_daemon);
    }
    let file = folder.join("report.txt");
    let path = file.to_str().unwrap();
    assert!(run(&["bugreport", path]).stderr.contains("before you share it"));
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(&["bugreport", path]).code, Some(2), "no file is overwritten");
}

#[test]
fn a_daemon_in_the_background_writes_json_on_request() {
    let kitfs = Kitfs::with_options(&["--log-format", "json"]);
    let mut command = kitfs.command(&["daemon", "start"]);
    command.env("KITFS_LOG", "debug");
    assert_eq!(Kitfs::run_command(command).code, Some(0));
    kitfs.succeed(&["daemon", "stop"]);
    let log = fs::read_to_string(kitfs.cache().join("daemon.log")).unwrap();
    let objects = log.lines().filter(|line| serde_json::from_str::<Value>(line).is_ok()).count();
    assert!(objects > 0 && objects == log.lines().count(), "{log}");
}

/// The lines of a log in JSON, each of them an object, without those of the keeper.
#[track_caller]
fn lines_of_workers(log: &Path) -> usize {
    let log = fs::read_to_string(log).unwrap_or_default();
    let objects = log.lines().map(|line| {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}\n{log}"))
    });
    objects.filter(|object| object["target"] != "kitfs::keeper").count()
}

/// The daemon is started in the background, and as a unit of systemd starts it.
#[test]
fn each_worker_of_a_daemon_writes_json_if_the_start_asked_for_it() {
    for is_unit in [false, true] {
        let kitfs = Kitfs::new();
        let log = kitfs.cache().join("daemon.log");
        let (log, service) = match is_unit {
            false => {
                let mut command = kitfs.command(&["daemon", "start", "--log-format", "json"]);
                command.env("KITFS_LOG", "debug");
                assert_eq!(Kitfs::run_command(command).code, Some(0));
                (log, None)
            }
            true => {
                let log = kitfs.folder().join("journal");
                let mut command = kitfs.command(&["daemon", "start", "--foreground"]);
                command.env("KITFS_LOG", "debug").env("KITFS_LOG_FORMAT", "json");
                command.stdin(Stdio::null()).stdout(Stdio::null());
                command.stderr(fs::File::create(&log).unwrap());
                (log, Some(command.spawn().unwrap()))
            }
        };
        wait_until("the daemon", || kitfs.run(&["daemon", "status"]).code == Some(0));
        wait_until("words of the first worker", || lines_of_workers(&log) > 0);
        let (worker, before) = (kitfs.worker_pid(), lines_of_workers(&log));
        kill_and_wait(worker);
        wait_until("the next worker", || kitfs.run(&["daemon", "status"]).code == Some(0));
        assert_ne!(kitfs.worker_pid(), worker);
        wait_until("words of the second worker", || lines_of_workers(&log) > before);
        assert!(fs::read_to_string(&log).unwrap().contains("the worker died"));
        let (worker, before) = (kitfs.worker_pid(), lines_of_workers(&log));
        kitfs.succeed(&["restart"]);
        assert_ne!(kitfs.worker_pid(), worker);
        wait_until("words of the third worker", || lines_of_workers(&log) > before);
        kitfs.succeed(&["daemon", "stop"]);
        service.into_iter().for_each(|mut service| _ = service.wait());
        lines_of_workers(&log);
    }
}
