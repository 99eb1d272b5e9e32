//! The commands that need no mount, as a user runs them: their output, and their failures.
//!
//! Most tests run twice: with a daemon that owns the cache, and without one. A user sees no
//! difference.

mod support;

use std::ffi::OsStr;
use std::fs;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Stdio;
use std::sync::Arc;

use serde_json::Value;
use support::kit_builder::{Kit, Layer};
use support::kitfs::Kitfs;
use support::registry_double::{Access, Options, RegistryDouble};
use support::tree::Tree;
use support::{golden, golden_reference, hostile};
use tempfile::TempDir;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Runs a test without a daemon, and with one.
fn either_way(test: impl Fn(&Kitfs)) {
    let alone = Kitfs::new();
    test(&alone);
    alone.fail(9, &["daemon", "status"]);
    let served = Kitfs::new();
    served.succeed(&["daemon", "start"]);
    let pid = served.daemon_pid();
    test(&served);
    assert_eq!(served.daemon_pid(), pid, "another daemon took over");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the golden kits have plain names")
}

#[test]
fn the_help_names_every_command() {
    let kitfs = Kitfs::new();
    let help = kitfs.succeed(&["--help"]);
    snapbox::assert_data_eq!(help, snapbox::file!["snapshots/help.txt"]);
}

/// Every command, and the commands below it.
const COMMANDS: &[&str] = &[
    "mount",
    "browse",
    "umount",
    "overlay",
    "overlay ls",
    "overlay diff",
    "overlay reset",
    "status",
    "top",
    "map",
    "explain",
    "ps",
    "inspect",
    "restart",
    "daemon",
    "daemon start",
    "daemon stop",
    "daemon status",
    "doctor",
    "logs",
    "bugreport",
    "ls",
    "cat",
    "cp",
    "diff",
    "push",
    "copy",
    "tag",
    "info",
    "list",
    "log",
    "cache",
    "cache ls",
    "cache rm",
    "cache clear",
    "cache verify",
    "serve",
    "run",
    "warm",
    "pack",
    "trace",
    "trace record",
    "trace show",
    "config",
    "config show",
    "config path",
    "config check",
    "completions",
    "man",
    "help",
];

/// The help of a command on a terminal of 80 columns.
fn help_of(kitfs: &Kitfs, command: &str, flag: &str) -> String {
    let arguments: Vec<&str> = command.split(' ').chain([flag]).collect();
    let mut command = kitfs.command(&arguments);
    command.env("COLUMNS", "80");
    let outcome = Kitfs::run_command(command);
    assert_eq!(outcome.code, Some(0), "{arguments:?}: {}", outcome.stderr);
    String::from_utf8(outcome.stdout).unwrap()
}

#[test]
fn every_command_has_help_and_a_manual_page() {
    let kitfs = Kitfs::new();
    for command in COMMANDS.iter().filter(|command| **command != "help") {
        assert!(help_of(&kitfs, command, "--help").contains("Usage: kitfs"), "{command}");
        let words: Vec<&str> = ["help"].into_iter().chain(command.split(' ')).collect();
        assert!(kitfs.succeed(&words).contains(&format!("Usage: kitfs {command}")));
        let words: Vec<&str> = ["man"].into_iter().chain(command.split(' ')).collect();
        let name = format!("kitfs\\-{}", command.replace(' ', "\\-"));
        assert!(kitfs.succeed(&words).contains(&name), "{command}");
    }
    assert!(kitfs.succeed(&["completions", "bash"]).contains("--keep-free"));
    assert_eq!(kitfs.succeed(&["help"]), kitfs.succeed(&["--help"]));
    kitfs.fail(2, &["man", "nonsense"]);
    kitfs.fail(2, &["man", "cache", "nonsense"]);
    assert_eq!(kitfs.run(&["help", "nonsense"]).code, Some(2));
}

#[test]
fn the_manual_pages_of_all_commands_are_written_to_a_folder() {
    let kitfs = Kitfs::new();
    let share = kitfs.folder().join("share");
    let folder = share.join("man1");
    kitfs.succeed(&[OsStr::new("man"), "--all".as_ref(), share.as_os_str()]);
    for (name, section) in [("kitfs-config.toml", 5), ("mount.fuse.kitfs", 8)] {
        let file = share.join(format!("man{section}/{name}.{section}"));
        let page = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(page.contains(&format!(".TH {name} {section} ")), "{page}");
        assert_eq!(page, kitfs.succeed(&["man", name]), "{name}");
    }
    for command in COMMANDS.iter().filter(|command| **command != "help") {
        let words: Vec<&str> = ["man"].into_iter().chain(command.split(' ')).collect();
        let file = folder.join(format!("kitfs-{}.1", command.replace(' ', "-")));
        let page = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{command}: {error}"));
        assert_eq!(page, kitfs.succeed(&words), "{command}");
    }
    assert_eq!(fs::read_to_string(folder.join("kitfs.1")).unwrap(), kitfs.succeed(&["man"]));
    let hidden = folder.join("kitfs-daemon-keep.1");
    assert!(!hidden.exists(), "a command that kitfs itself calls");
    let file = kitfs.folder().join("file");
    fs::write(&file, "").unwrap();
    let failed = kitfs.fail(2, &[OsStr::new("man"), "--all".as_ref(), file.as_os_str()]);
    assert!(failed.contains("cannot write") && failed.contains("file"), "{failed}");
}

#[test]
fn completions_are_installed_for_the_users_shell() {
    let kitfs = Kitfs::new();
    let install = |shell: &str, arguments: &[&str]| {
        let mut command = kitfs.command(arguments);
        command.env("SHELL", shell);
        Kitfs::run_command(command)
    };
    let home = kitfs.folder().join("home");
    for (shell, file) in [
        ("bash", ".local/share/bash-completion/completions/kitfs"),
        ("zsh", ".local/share/zsh/site-functions/_kitfs"),
        ("fish", ".config/fish/completions/kitfs.fish"),
        ("elvish", ".config/elvish/lib/kitfs.elv"),
    ] {
        // Twice: the second one replaces the file.
        for _ in 0..2 {
            let outcome = install(&format!("/usr/bin/{shell}"), &["completions", "--install"]);
            assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
            let words = String::from_utf8(outcome.stdout).unwrap();
            assert!(words.contains(file) && words.lines().count() >= 2, "{words}");
        }
        let written = fs::read_to_string(home.join(file)).unwrap();
        assert_eq!(written, kitfs.succeed(&["completions", shell]));
        let names = fs::read_dir(home.join(file).parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1, "no temporary file stays");
    }
    let unknown = install("/bin/dash", &["completions", "--install"]);
    assert_eq!(unknown.code, Some(2), "{}", unknown.stderr);
    assert!(unknown.stderr.contains("/bin/dash"), "{}", unknown.stderr);
    assert_eq!(install("/bin/dash", &["completions", "--install", "fish"]).code, Some(0));
    assert_eq!(install("/bin/bash", &["completions"]).code, Some(2), "a shell to print for");
}

#[test]
fn help_fits_two_screens() {
    let kitfs = Kitfs::new();
    for command in COMMANDS.iter().filter(|command| **command != "help") {
        let help = help_of(&kitfs, command, "--help");
        assert!(help.lines().count() <= 48, "{command} has {} lines", help.lines().count());
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{command}: {line}");
        }
    }
}

#[test]
fn options_for_few_people_are_in_help_all_and_in_the_manual_page() {
    let kitfs = Kitfs::new();
    let (common, all) =
        (help_of(&kitfs, "mount", "--help"), help_of(&kitfs, "mount", "--help-all"));
    let manual = kitfs.succeed(&["man", "mount"]).replace("\\-", "-");
    for option in ["--umask", "--trace", "--proxy", "--registries-dir", "--keep-free"] {
        assert!(!common.contains(option), "{option}");
        assert!(all.contains(option) && manual.contains(option), "{option}");
    }
    assert!(common.contains("--help-all") && common.contains("--filter"));
    for line in common.lines().filter(|line| line.trim_start().starts_with('-')) {
        assert!(all.contains(line.split("  ").find(|part| part.contains("--")).unwrap()), "{line}");
    }
    // After `--`, `--help-all` is part of a file name.
    assert!(kitfs.fail(3, &["ls", "--", "oci:--help-all"]).contains("--help-all"));
}

#[test]
fn ls_cat_and_cp_agree_with_kit_unpack() {
    either_way(|kitfs| {
        for name in ["article", "comp-gzip", "legacy-article", "modelpack-raw", "yaml"] {
            let reference = golden_reference(name);
            let listed = kitfs.json(&["ls", "-R", "--json", &reference]);
            let listed: Vec<_> = listed.as_array().unwrap().iter().map(path).collect();
            let golden = Tree::golden(name);
            let mut expected: Vec<_> = golden.0.keys().map(|path| text(path)).collect();
            let mut sorted = listed.clone();
            expected.retain(|path| !path.is_empty());
            expected.sort_unstable();
            sorted.sort_unstable();
            assert_eq!(sorted, expected, "{name}");

            let copy = kitfs.folder().join(format!("copy-{name}"));
            kitfs.succeed(&["cp", "-r", &reference, copy.to_str().unwrap()]);
            Tree::read(&copy).assert_equals(&golden, name);

            let file = listed.iter().find(|path| copy.join(path).is_file()).unwrap();
            let printed = kitfs.run(&["cat", &format!("{reference}/{file}")]);
            assert_eq!(printed.stdout, fs::read(copy.join(file)).unwrap(), "{name} {file}");
        }
    });
}

fn path(entry: &Value) -> &str {
    entry["path"].as_str().expect("entries have paths")
}

#[test]
fn ls_shows_what_ls_shows() {
    let folder = TempDir::new().unwrap();
    // The kit builder dates raw layers.
    let dated = Kit::modelkit().with(Layer::raw("model", "w.bin", 0o640, &[7; 300]));
    let dated = dated.write(folder.path(), "v1").reference;
    either_way(|kitfs| {
        let long = kitfs.succeed(&["ls", "-l", &format!("{dated}/w.bin")]);
        assert_eq!(long, "-rw-r----- 300 2024-05-29 16:26 w.bin\n");
        let reference = golden_reference("article");
        let long = kitfs.succeed(&["ls", "-l", &format!("{reference}/src")]);
        // This file has no date of its own: the date of its first sight is between these columns.
        let columns = |line: &str| -> Vec<String> {
            let columns = line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            [&columns[..2], &columns[4..]].concat()
        };
        let lines: Vec<_> = long.lines().map(columns).collect();
        assert_eq!(lines, [["drwxr-xr-x", "0", "lib"], ["-rwxr-xr-x", "3023", "train.py"]]);
        assert_eq!(
            kitfs.succeed(&["ls", &format!("{reference}//src/lib")]),
            "__init__.py\nutil.py\n"
        );
        assert_eq!(kitfs.succeed(&["ls", &format!("{reference}/Kitfile")]), "Kitfile\n");
    });
}

#[test]
fn info_and_list_describe_a_kit() {
    either_way(|kitfs| {
        let info = kitfs.json(&["info", "--json", &golden_reference("article")]);
        assert_eq!(info["family"], "ModelKit");
        let roles: Vec<_> = info["layers"].as_array().unwrap().iter().map(|l| &l["role"]).collect();
        assert_eq!(roles, ["model", "code", "dataset"]);
        let kitfile = kitfs.succeed(&["cat", &format!("{}/Kitfile", golden_reference("article"))]);
        assert_eq!(info["kitfile"].as_str().unwrap(), kitfile);
        assert!(kitfs.succeed(&["info", &golden_reference("article")]).starts_with(&kitfile));

        let tags = kitfs.json(&["list", "--json", &format!("oci:{}", golden("article").display())]);
        assert_eq!(tags[0]["tag"], "v1");
        assert_eq!(tags[0]["digest"], info["digest"]);
        assert_eq!(tags[0]["name"], "AIProjectName");
    });
}

#[test]
fn a_layout_is_found_relative_to_the_callers_folder() {
    either_way(|kitfs| {
        let link = kitfs.folder().join("kit");
        let _ = fs::remove_file(&link);
        symlink(golden("article"), link).unwrap();
        assert!(kitfs.succeed(&["ls", "oci:kit"]).contains("models"));
        assert_eq!(kitfs.succeed(&["ls", "oci:kit/src"]), "lib\ntrain.py\n");
    });
}

#[test]
fn wrong_paths_and_references_fail_with_their_names() {
    either_way(|kitfs| {
        let reference = golden_reference("article");
        for (code, path, word) in [
            (3, "nope", "nope"),
            (2, "a/../Kitfile", ".."),
            (2, "src", "directory"),
            (3, "Kitfile/x", "Kitfile"),
        ] {
            let said = kitfs.fail(code, &["cat", &format!("{reference}/{path}")]);
            assert!(said.contains(word), "{said}");
        }
        assert!(kitfs.fail(2, &["ls", "UPPER/case:v1"]).contains("UPPER"));
        let said = kitfs.fail(3, &["ls", "oci:missing:v1"]);
        assert!(said.contains("missing") && said.contains("the folder was not found"), "{said}");
        let unknown_tag = format!("oci:{}:v9", golden("article").display());
        assert!(kitfs.fail(3, &["info", &unknown_tag]).contains("v9"));
        let nobody = ["ls", "--retries", "0", "127.0.0.1:1/org/kit:v1"];
        assert!(kitfs.fail(5, &nobody).contains("127.0.0.1:1"));
        kitfs.fail(7, &["umount", kitfs.folder().to_str().unwrap()]);
    });
}

#[test]
fn broken_kits_are_refused_as_bad_content() {
    let folder = TempDir::new().unwrap();
    let broken = |name: &str, kit: Kit| kit.write(&folder.path().join(name), "v1").reference;
    let stream = |stream| Kit::modelkit().with(Layer::of_stream("model", "model", stream));
    let conflict = Kit::modelkit()
        .with(Layer::tar("model", "model").file("model", 0o644, b"a file"))
        .with(Layer::tar("code", "model/x").file("model/x", 0o644, b"below it"));
    let references = [
        broken("kitfile", Kit::modelkit().with_config(b"{\"manifestVersion\": [}")),
        broken("truncated", stream(hostile::truncated())),
        broken("corrupt", stream(hostile::corrupt())),
        broken("hostile", stream(hostile::named(b"../../etc/passwd"))),
        broken("conflict", conflict),
    ];
    either_way(|kitfs| {
        for reference in &references {
            let said = kitfs.fail(6, &["ls", reference]);
            assert!(said.contains(reference.as_str()), "{said}");
        }
    });
}

#[test]
fn an_archive_in_which_a_folder_replaces_a_file_is_shown_with_a_warning() {
    let folder = TempDir::new().unwrap();
    let layer = Layer::of_stream("model", "model", hostile::file_and_directory());
    let written = Kit::modelkit().with(layer).write(folder.path(), "v1");
    either_way(|kitfs| {
        let run = kitfs.run(&["ls", "-R", &written.reference]);
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        let warning = format!(
            "warning: model `model` ({}): `model` is a file and then a folder: the folder counts",
            &written.layers[0].0[..19]
        );
        assert!(run.stderr.contains(&warning), "{}", run.stderr);
    });
}

#[test]
fn holes_of_a_file_are_printed_and_copied_as_holes() {
    let folder = TempDir::new().unwrap();
    let mut content = vec![0; 20 << 20];
    content[5_000_000..5_000_100].fill(7);
    let runs = vec![5_000_000..5_000_050, 5_000_050..5_000_100];
    let layer = Layer::tar("dataset", "d").sparse_file("d/image", 0o640, &content, runs);
    let written = Kit::modelkit().with(layer).write(folder.path(), "v1");
    either_way(|kitfs| {
        let reference = format!("{}/d/image", written.reference);
        assert!(kitfs.run(&["cat", &reference]).stdout == content);
        kitfs.succeed(&["cp", &reference, "copy"]);
        let copy = kitfs.folder().join("copy");
        assert!(fs::read(&copy).unwrap() == content);
        let on_disk = fs::metadata(&copy).unwrap().blocks() * 512;
        assert!(on_disk < 8 << 20, "{on_disk} bytes on disk");
        let warmed = kitfs.succeed(&["warm", &written.reference]);
        assert!(warmed.contains("every layer confirmed"), "{warmed}");
        assert!(!warmed.contains("20.0 MiB"), "{warmed}");
    });
}

#[test]
fn bytes_that_are_not_what_their_digest_says_leave_no_file_behind() {
    let folder = TempDir::new().unwrap();
    let layer = Layer::raw("model", "model.bin", 0o644, &[7; 300_000]);
    let written = Kit::modelkit().with(layer).write(folder.path(), "v1");
    let blob = written.blob(&written.layers[0].0);
    let mut bytes = fs::read(&blob).unwrap();
    bytes[1000] ^= 1;
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, bytes).unwrap();
    either_way(|kitfs| {
        let reference = format!("{}/model.bin", written.reference);
        // The command has printed all bytes before the digest is known, and waits for the digest.
        assert_eq!(kitfs.run(&["cat", &reference]).code, Some(6));
        let said = kitfs.fail(6, &["cp", &reference, "copy.bin"]);
        assert!(said.contains("poisoned") && said.lines().count() == 1, "{said}");
        let left = fs::read_dir(kitfs.folder()).unwrap().map(|entry| entry.unwrap().file_name());
        let left: Vec<_> = left.filter(|name| name != "cache" && name != "home").collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

/// The wrong byte is in the second file of its layer. The first file of the layer must not stay either.
#[test]
fn cp_leaves_no_file_of_a_layer_that_is_not_what_its_digest_says() {
    let folder = TempDir::new().unwrap();
    let (first, second) = (&[7; 300_000], &[8; 300_000]);
    let wrong = Layer::tar("dataset", "sets");
    let wrong = wrong.file("sets/a.bin", 0o644, first).file("sets/b.bin", 0o644, second);
    let right = Layer::tar("code", "code").file("code/run.py", 0o644, b"run");
    let written = Kit::modelkit().with(right).with(wrong).write(folder.path(), "v1");
    let blob = written.blob(&written.layers[1].0);
    let mut bytes = fs::read(&blob).unwrap();
    let at = bytes.iter().rposition(|&byte| byte == 8).unwrap();
    bytes[at] = 9;
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, bytes).unwrap();
    either_way(|kitfs| {
        let said = kitfs.fail(6, &["cp", "-r", &written.reference, "copy"]);
        assert!(said.contains("poisoned"), "{said}");
        let copy = kitfs.folder().join("copy");
        assert_eq!(fs::read(copy.join("code/run.py")).unwrap(), b"run");
        assert_eq!(fs::read_dir(copy.join("sets")).unwrap().count(), 0);
    });
}

#[test]
fn cp_follows_the_rules_of_cp() {
    either_way(|kitfs| {
        let reference = golden_reference("article");
        let at = |name: &str| kitfs.folder().join(name);
        fs::create_dir(at("there")).unwrap();
        kitfs.succeed(&["cp", &format!("{reference}/src/train.py"), "there"]);
        assert_eq!(fs::metadata(at("there/train.py")).unwrap().permissions().mode() & 0o777, 0o755);
        kitfs.succeed(&["cp", "-r", &format!("{reference}/src"), "there"]);
        assert!(at("there/src/lib/util.py").is_file());
        kitfs.fail(2, &["cp", &format!("{reference}/src"), "there"]);
        fs::create_dir_all(at("other/train.py")).unwrap();
        kitfs.fail(2, &["cp", &format!("{reference}/src/train.py"), "other"]);
        // A directory that exists keeps its mode, also when a whole kit is copied into it.
        fs::create_dir(at("private")).unwrap();
        fs::set_permissions(at("private"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink(at("private"), at("link")).unwrap();
        kitfs.succeed(&["cp", "-r", &reference, "link"]);
        assert!(at("private/src/train.py").is_file());
        assert_eq!(fs::metadata(at("private")).unwrap().permissions().mode() & 0o777, 0o700);
        // `cp` does not write through a link in the destination.
        fs::create_dir_all(at("trap")).unwrap();
        fs::create_dir_all(at("outside")).unwrap();
        symlink(at("outside"), at("trap/src")).unwrap();
        kitfs.fail(2, &["cp", "-r", &reference, "trap"]);
        assert_eq!(fs::read_dir(at("outside")).unwrap().count(), 0);
    });
}

#[test]
fn several_sources_and_patterns_are_copied_into_a_directory() {
    let files = Layer::tar("code", ".")
        .directory("src", 0o755)
        .file("src/a.py", 0o644, b"a")
        .file("src/b.py", 0o644, b"bb")
        .file("src/.hidden.py", 0o644, b"h")
        .file("src/deep.d/c.py", 0o644, b"c")
        .file("other/a.py", 0o644, b"other")
        .file("[x].txt", 0o644, b"x");
    let folder = TempDir::new().unwrap();
    let written = Kit::modelkit().with(files).write(folder.path(), "v1");
    let reference = format!("oci:{}:v1", written.folder.display());
    let at = |path: &str| format!("{reference}/{path}");
    either_way(|kitfs| {
        let to = kitfs.folder().join("to");
        let content = |name: &str| fs::read_to_string(to.join(name)).ok();
        let copy = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|path| at(path)).collect();
            let mut arguments = vec!["cp"];
            arguments.extend(paths.iter().map(String::as_str));
            arguments.push("to");
            kitfs.run(&arguments)
        };
        let outcome = copy(&["src/a.py", "src/b.py"]);
        assert_eq!(outcome.code, Some(2));
        assert!(outcome.stderr.contains("no such directory"), "{}", outcome.stderr);
        fs::create_dir(&to).unwrap();
        assert_eq!(copy(&["src/*.py"]).code, Some(0));
        assert_eq!((content("a.py"), content("b.py")), (Some("a".into()), Some("bb".into())));
        assert!(content(".hidden.py").is_none(), "a star takes no hidden file");
        assert_eq!(
            copy(&["**/c.py", "[x].txt"]).code,
            Some(0),
            "a name is a name, brackets or not"
        );
        assert_eq!((content("c.py"), content("[x].txt")), (Some("c".into()), Some("x".into())));
        // The others are copied though one is not there, and though one would replace another.
        let outcome = copy(&["no/such", "src/a.py", "other/a.py", "src"]);
        assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
        for words in ["no/such", "just copied", "-r"] {
            assert!(outcome.stderr.contains(words), "{words}: {}", outcome.stderr);
        }
        assert_eq!(content("a.py"), Some("a".into()));
        assert!(kitfs.fail(3, &["cp", &at("*.none"), "to"]).contains("matches `*.none`"));
        let printed = kitfs.succeed(&["cat", &at("src/?.py"), &at("other/a.py")]);
        assert_eq!(printed, "abbother");
        let names = kitfs.succeed(&["ls", &at("src/[ab].py")]);
        assert_eq!(names, "src/a.py\nsrc/b.py\n");
        let long = kitfs.succeed(&["ls", "-lh", &at("other"), &at("src/a.py")]);
        let lines: Vec<&str> = long.lines().collect();
        assert!(lines[0].ends_with(" src/a.py"), "files come first: {long}");
        assert_eq!(lines[1..3], ["", "other:"]);
        assert!(lines[3].starts_with("-rw-r--r-- 5 ") && lines[3].ends_with(" a.py"), "{long}");
        let json = kitfs.json(&["ls", "--json", &at("other"), &at("src/a.py")]);
        assert_eq!(json.as_array().unwrap().len(), 2);
    });
}

#[test]
fn a_closed_pipe_is_no_error() {
    let kitfs = Kitfs::new();
    let mut command = kitfs.command(&["ls", "-R", &golden_reference("small5k")]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_message_that_cannot_be_written_changes_nothing() {
    let kitfs = Kitfs::new();
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = kitfs.command(&["ls", "oci:missing:v1"]);
    assert_eq!(command.stderr(full()).status().unwrap().code(), Some(3));

    // A daemon whose log is on a full disk goes on, although every line of the log is lost.
    let mut command = kitfs.command(&["daemon", "run"]);
    command.env("KITFS_LOG", "trace").stdout(Stdio::null()).stderr(full());
    let mut daemon = command.spawn().unwrap();
    support::kitfs::wait_until("the daemon", || {
        assert_eq!(daemon.try_wait().unwrap(), None, "the daemon has ended");
        kitfs.run(&["daemon", "status"]).code == Some(0)
    });
    assert!(kitfs.succeed(&["ls", &golden_reference("article")]).contains("models"));
    kitfs.succeed(&["daemon", "stop"]);
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn a_kit_and_a_directory_in_the_wrong_order_are_noticed() {
    let kitfs = Kitfs::new();
    let place = kitfs.mountpoint("mnt");
    let said = kitfs.fail(2, &["mount", place.to_str().unwrap(), "ghcr.io/org/model:v1"]);
    let advice = format!("`kitfs mount ghcr.io/org/model:v1 {}`", place.display());
    assert!(said.contains(&advice), "{said}");
}

#[test]
fn without_a_daemon_nothing_is_mounted() {
    let kitfs = Kitfs::new();
    // Mounts of other daemons on this machine are listed too.
    let mounts = kitfs.json(&["status", "--json"]);
    let own = kitfs.cache();
    let is_own = |mount: &Value| mount["cache_folder"].as_str() == own.to_str();
    assert!(!mounts.as_array().unwrap().iter().any(is_own), "{mounts}");
    assert!(!kitfs.succeed(&["status"]).contains(kitfs.folder().to_str().unwrap()));
    assert!(!kitfs.cache().exists(), "looking makes no cache");
}

#[test]
fn cached_layers_can_be_listed_checked_and_removed() {
    either_way(|kitfs| {
        let reference = golden_reference("article");
        assert_eq!(kitfs.run(&["cat", &format!("{reference}/models/model.h5")]).code, Some(0));
        let layers = kitfs.json(&["cache", "ls", "--json"]);
        assert_eq!(layers.as_array().unwrap().len(), 3);
        assert_eq!(layers[0]["references"][0], reference);
        kitfs.succeed(&["cache", "verify"]);
        let verified = kitfs.json(&["cache", "verify", "--json"]);
        assert_eq!(verified["layers"].as_array().unwrap().len(), 3);
        assert!(verified["checked_bytes"].as_u64().unwrap() > 100_000, "{verified}");
        kitfs.fail(3, &["cache", "rm", "ghcr.io/no/such:v1"]);
        kitfs.succeed(&["cache", "rm", layers[0]["digest"].as_str().unwrap()]);
        kitfs.succeed(&["cache", "rm", &reference]);
        // A layer is still in use for a moment while its digest is computed.
        support::kitfs::wait_until("an empty cache", || {
            kitfs.succeed(&["cache", "clear"]);
            kitfs.json(&["cache", "ls", "--json"]) == Value::Array(Vec::new())
        });
    });
}

#[test]
fn a_tag_behind_a_served_folder_is_named() {
    let kitfs = Kitfs::new();
    let said = kitfs.fail(2, &["serve", &golden_reference("article")]);
    assert!(said.contains("`v1`") && said.contains("golden/article"), "{said}");
}

#[test]
fn an_unusable_cache_folder_is_named() {
    let kitfs = Kitfs::new();
    fs::write(kitfs.folder().join("file"), "").unwrap();
    let said = kitfs.fail(8, &["ls", "--cache-dir", "file/cache", &golden_reference("article")]);
    assert!(said.contains("file/cache"), "{said}");
    fs::remove_file(kitfs.folder().join("file")).unwrap();

    fs::create_dir_all(kitfs.cache()).unwrap();
    let lock = fs::File::options().create(true).append(true).open(kitfs.cache().join("lock"));
    let lock = lock.unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let said = kitfs.fail(8, &["ls", &golden_reference("article")]);
    assert!(said.contains(kitfs.cache().to_str().unwrap()), "{said}");
}

/// As in a container from scratch.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_authorities_is_told_what_it_lacks() {
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let tls = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .unwrap();
    let registry =
        RegistryDouble::start(Options { tls: Some(Arc::new(tls)), ..Options::default() }).await;
    registry.push_layout("org/kit", &golden("article"));
    let kitfs = Kitfs::new();
    let empty = kitfs.folder().join("empty");
    fs::create_dir(&empty).unwrap();
    let ca_file = kitfs.folder().join("ca.pem");
    fs::write(&ca_file, certified.cert.pem()).unwrap();
    let list = |options: &[&str]| {
        let reference = registry.reference("org/kit", "v1");
        let mut command = kitfs.command(&[&["ls", &reference][..], options].concat());
        command.env("SSL_CERT_DIR", &empty).env("SSL_CERT_FILE", empty.join("missing"));
        Kitfs::run_command(command)
    };
    let refused = list(&[]);
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    for words in ["no authorities", "ca-certificates", "--ca-file", "SSL_CERT_FILE"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    let listed = list(&["--ca-file", ca_file.to_str().unwrap()]);
    assert_eq!(listed.code, Some(0), "{}", listed.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_password_is_asked_with_kits_credentials() {
    let access = Access::Basic { username: "ada".into(), password: "secret".into() };
    let registry = RegistryDouble::start(Options { access, ..Options::default() }).await;
    registry.push_layout("org/article", &golden("article"));
    let reference = registry.reference("org/article", "v1");
    let kitfs = Kitfs::new();
    let said = kitfs.fail(4, &["ls", &reference]);
    assert!(said.contains(&registry.host()) && !said.contains("secret"), "{said}");

    // base64 of `ada:secret`.
    let credentials =
        format!(r#"{{"auths":{{"{}":{{"auth":"YWRhOnNlY3JldA=="}}}}}}"#, registry.host());
    fs::create_dir_all(kitfs.folder().join("kitops")).unwrap();
    fs::write(kitfs.folder().join("kitops/credentials.json"), credentials).unwrap();
    assert!(kitfs.succeed(&["ls", "--config", "kitops", &reference]).contains("models"));
    let tls = ["ls", "--config", "kitops", "--tls-verify", "false", &reference];
    assert!(kitfs.succeed(&tls).contains("models"));
    assert!(
        kitfs
            .fail(3, &["ls", "--config", "kitops", &registry.reference("org/article", "v9")])
            .contains("v9")
    );
}

/// A user's configuration file.
fn configure(kitfs: &Kitfs, text: &str) -> std::path::PathBuf {
    let folder = kitfs.folder().join("home/.config/kitfs");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("config.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    path
}

#[test]
fn flags_win_over_variables_and_variables_over_files() {
    let kitfs = Kitfs::new();
    let path = configure(
        &kitfs,
        "cache-size = '3GiB'\n[ls]\nno-remote = true\n[daemon.start]\ncache-size = '5GiB'\n",
    );
    let shown = |key: &str, variables: &[(&str, &str)], flags: &[&str]| {
        let mut command = kitfs.command(&[&["config", "show", "--json", key], flags].concat());
        command.envs(variables.iter().copied());
        let outcome = Kitfs::run_command(command);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let rows: Vec<Value> = serde_json::from_slice(&outcome.stdout).unwrap();
        let row = rows.into_iter().find(|row| row["key"] == key).unwrap();
        (row["value"].clone(), row["origin"].as_str().unwrap().to_owned(), row)
    };
    let (value, origin, row) = shown("cache-size", &[], &[]);
    assert_eq!((value.as_str(), &*origin), (Some("3GiB"), "file"));
    assert_eq!((row["file"].as_str(), row["line"].as_u64()), (path.to_str(), Some(1)));
    assert_eq!(shown("daemon.start.cache-size", &[], &[]).0, "5GiB");
    let variable = [("KITFS_CACHE_SIZE", "4GiB")];
    let (value, origin, row) = shown("cache-size", &variable, &[]);
    assert_eq!((value.as_str(), &*origin), (Some("4GiB"), "variable"));
    assert_eq!(row["variable"], "KITFS_CACHE_SIZE");
    let (value, origin, _) = shown("cache-size", &variable, &["--cache-size", "5GiB"]);
    assert_eq!((value.as_str(), &*origin), (Some("5GiB"), "flag"));
    let (value, origin, _) = shown("keep-free", &[], &[]);
    assert_eq!((value.as_str(), &*origin), (Some("1GiB"), "default"));
    assert_eq!(shown("ls.no-remote", &[], &[]).0, true);
    assert_eq!(shown("no-remote", &[], &[]).0, false);
}

#[test]
fn a_file_sets_what_a_daemon_is_started_with() {
    let kitfs = Kitfs::new();
    configure(
        &kitfs,
        "cache-size = '3GiB'\n[daemon]\nidle-exit = '2h'\n[daemon.start]\nkeep-free = 1048576\n",
    );
    kitfs.succeed(&["daemon", "start"]);
    let status = kitfs.json(&["daemon", "status", "--json"]);
    assert_eq!(status["cache_capacity_bytes"], 3u64 << 30);
    assert_eq!(status["cache_keep_free_bytes"], 1 << 20);
    assert_eq!(status["idle_exit_seconds"], 7200);
    // The daemon keeps its values, whatever the file becomes: here for a while a wrong one.
    let worker = kitfs.worker_pid();
    configure(&kitfs, "cache-size = 'wrong'");
    support::kitfs::signal(worker, rustix::process::Signal::KILL);
    configure(&kitfs, "cache-size = '4GiB'");
    support::kitfs::wait_until("another worker", || {
        let outcome = kitfs.run(&["daemon", "status", "--json"]);
        let status: Value = serde_json::from_slice(&outcome.stdout).unwrap_or_default();
        status["worker_pid"].as_u64().is_some_and(|pid| pid != u64::from(worker))
    });
    let status = kitfs.json(&["daemon", "status", "--json"]);
    assert_eq!(status["cache_capacity_bytes"], 3u64 << 30);
}

#[test]
fn wrong_files_and_variables_are_refused_by_commands_that_nobody_needs_in_trouble() {
    let kitfs = Kitfs::new();
    let path = configure(&kitfs, "\ncache-sise = 1\nhydrate = 'some'\n");
    let said = kitfs.fail(2, &["status"]);
    let place = path.to_str().unwrap();
    assert!(
        said.contains(&format!(
            "{place}:2: kitfs has no key `cache-sise`; did you mean `cache-size`?"
        )),
        "{said}"
    );
    assert!(said.contains(&format!("{place}:3: `hydrate` cannot be \"some\"")), "{said}");
    let empty = kitfs.mountpoint("empty");
    let said = kitfs.run(&["umount", empty.to_str().unwrap()]);
    assert!(said.stderr.contains("warning:") && said.code != Some(2), "{}", said.stderr);
    let doctor = kitfs.run(&["doctor", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let is_told = |check: &&serde_json::Value| check["name"] == "configuration files";
    let told: Vec<_> = checks.iter().filter(is_told).collect();
    assert!(told.len() == 2 && told[0]["outcome"] == "fail", "{told:?}");
    for (code, words) in [
        (Some(3), &["logs"][..]),
        (Some(0), &["daemon", "stop"]),
        (Some(9), &["daemon", "status"]),
        (Some(0), &["bugreport", "-"]),
        (Some(0), &["completions", "bash"]),
    ] {
        let ended = kitfs.run(words);
        assert_eq!(ended.code, code, "{words:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("warning: ") && ended.stderr.contains("cache-sise"),
            "{words:?}"
        );
    }
    kitfs.fail(2, &["config", "check"]);
    assert!(kitfs.succeed(&["config", "path"]).contains(&format!("{place}\n")));
    assert!(kitfs.run(&["config", "show"]).code == Some(0));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(kitfs.fail(2, &["status"]).contains("can be written by everybody"));
    fs::remove_file(&path).unwrap();
    assert_eq!(kitfs.run(&["status"]).code, Some(0));
    let with = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = kitfs.command(arguments);
        command.env(name, value);
        Kitfs::run_command(command)
    };
    let said = with("KITFS_MEMORY", "1MiB", &["status"]);
    assert!(said.code == Some(2) && said.stderr.contains("KITFS_MEMORY"), "{}", said.stderr);
    let said = with("KITFS_CONFIG", "missing.toml", &["status"]);
    assert!(
        said.code == Some(2) && said.stderr.contains("KITFS_CONFIG names it"),
        "{}",
        said.stderr
    );
    assert_eq!(with("KITFS_CONFIG", "/dev/null", &["status"]).code, Some(0));
    let said = with("KITFS_CACHESIZE", "1GiB", &["config", "check"]);
    assert!(
        said.stderr.contains("`KITFS_CACHESIZE`; did you mean `KITFS_CACHE_SIZE`?"),
        "{}",
        said.stderr
    );
    assert_eq!(said.code, Some(0));
}

#[test]
fn a_switch_of_a_file_is_switched_off_by_its_flag() {
    let kitfs = Kitfs::new();
    configure(&kitfs, "prefer-local = true\nlabel = ['a=b']\n");
    let reference = golden_reference("article");
    // A layout has no labels, and is in no local storage of kit.
    let said = kitfs.fail(2, &["info", &reference]);
    assert!(said.contains("label"), "{said}");
    configure(&kitfs, "prefer-local = true\n");
    kitfs.succeed(&["info", "--prefer-local=false", &reference]);
    kitfs.succeed(&["info", &reference]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_section_of_a_file_gives_a_registry_mirrors_and_credentials() {
    let access = Access::Basic { username: "ada".into(), password: "secret".into() };
    let registry = RegistryDouble::start(Options { access, ..Options::default() }).await;
    registry.push_layout("org/article", &golden("article"));
    let kitfs = Kitfs::new();
    let file = kitfs.folder().join("home/.config/kitfs/auth.json");
    let section = |host: &str, rest: &str| format!("[registry.\"{host}\"]\n{rest}\n");
    let mirror = format!("mirror = 'http://{}'", registry.host());
    let path = configure(
        &kitfs,
        &(section("*.far.example", &mirror)
            + &section(&registry.host(), "credentials-file = 'auth.json'")),
    );
    let list = ["ls", "kits.far.example/org/article:v1"];
    // A mirror that cannot be used is passed over, and nobody has the name of the registry itself.
    assert!(kitfs.fail(5, &list).contains("auth.json: is not there"));
    // base64 of `ada:secret`.
    let credentials =
        format!(r#"{{"auths":{{"{}":{{"auth":"YWRhOnNlY3JldA=="}}}}}}"#, registry.host());
    fs::write(&file, credentials).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(kitfs.fail(5, &list).contains("every user can read its passwords"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(kitfs.succeed(&list).contains("models"));
    let rows = kitfs.json(&["config", "show", "--json", "registry"]);
    let row = rows
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["key"] == "registry.\"*.far.example\".mirror");
    let row = row.unwrap_or_else(|| panic!("{rows}"));
    assert_eq!((row["file"].as_str(), row["line"].as_u64()), (path.to_str(), Some(2)));
    // A mount of a daemon has what its command was given.
    let place = kitfs.mount("kits.far.example/org/article:v1", &[]);
    configure(&kitfs, "");
    assert!(place.join("Kitfile").exists());
    kitfs.unmount(&place);
}
