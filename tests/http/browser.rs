//! The page in a browser, where there is one. `scripts/test.sh` says when there is none.

mod in_chromium {
    use std::fs;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    use crate::Served;
    use crate::support::golden_reference;

    /// Far longer than a page takes, so that a hang becomes a failure.
    const TIMEOUT: Duration = Duration::from_secs(60);

    /// Has the browser look at a page, with further options. Returns its output, and what it has to complain about.
    fn browse(home: &Path, options: &[&str], url: &str) -> (String, String) {
        let (output, errors) = (home.join("output"), home.join("errors"));
        let mut child = Command::new("chromium")
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--hide-scrollbars", "--no-first-run", "--disable-background-networking"])
            .args(["--enable-logging=stderr", "--v=0", "--virtual-time-budget=2000"])
            .arg(format!("--user-data-dir={}", home.join("profile").display()))
            .args(options)
            .arg(url)
            .env("HOME", home)
            .stdin(Stdio::null())
            .stdout(fs::File::create(&output).unwrap())
            .stderr(fs::File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the browser does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
        let read = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        (read(output), read(errors))
    }

    /// The width and height of a PNG picture.
    fn size_of(png: &[u8]) -> (u32, u32) {
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        let number = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        (number(16), number(20))
    }

    #[test]
    fn the_page_is_drawn_in_light_and_dark() {
        let served = Served::new();
        let mountpoint = served.kitfs.mount(&golden_reference("article"), &[]);
        fs::read(mountpoint.join("Kitfile")).unwrap();
        let home = served.kitfs.folder().join("browser");
        fs::create_dir(&home).unwrap();
        let url = format!("http://{}/", served.server);
        let (page, complaints) = browse(&home, &["--dump-dom"], &url);
        assert!(
            page.contains(mountpoint.file_name().unwrap().to_str().unwrap()),
            "{page}{complaints}"
        );
        // The policy of the page lets the browser load all that the page asks for.
        assert!(!complaints.contains("CONSOLE"), "{complaints}");
        let mut pictures = Vec::new();
        for scheme in ["1", "0"] {
            let file = home.join(format!("page-{scheme}.png"));
            let options = [
                format!("--screenshot={}", file.display()),
                format!("--blink-settings=preferredColorScheme={scheme}"),
                "--window-size=390,900".to_owned(),
            ];
            browse(&home, &options.each_ref().map(String::as_str), &url);
            let picture = fs::read(file).unwrap();
            assert_eq!(size_of(&picture), (390, 900));
            assert!(picture.len() > 10_000, "an empty page has {} bytes", picture.len());
            pictures.push(picture);
        }
        assert!(pictures[0] != pictures[1], "dark is light");
    }
}
