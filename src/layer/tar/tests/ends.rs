//! The end of an archive, and the bytes behind it.

use super::*;

fn warnings(archive: &[u8]) -> Vec<String> {
    let toc = scan(archive, 512, true).unwrap();
    assert_eq!(scan(archive, 333, false).unwrap(), toc);
    toc.warnings
}

#[test]
fn an_archive_may_end_with_any_number_of_zero_blocks() {
    for zeros in [0, 512, 1024, 10 * 1024, 2 * ZEROS_LIMIT_BYTES as usize] {
        let archive = [entry(b'0', b"a", b"x"), vec![0; zeros]].concat();
        let toc = scan(&archive, 4096, true).unwrap();
        assert_eq!(toc.members.len(), 1);
        let is_unread = zeros as u64 > ZEROS_LIMIT_BYTES;
        assert_eq!(toc.warnings.len(), usize::from(is_unread), "{:?}", toc.warnings);
    }
    for empty in [0, 512, 1024] {
        assert_eq!(scan(&vec![0; empty], 1, false).unwrap().members, []);
    }
}

#[test]
fn archives_behind_one_another_are_all_read() {
    let archive = |name: &[u8]| [entry(b'0', name, name), vec![0; 1024]].concat();
    let padded = [archive(b"b"), vec![0; 8192]].concat();
    let all = [archive(b"a"), padded, archive(b"c")].concat();
    let toc = scan(&all, 512, true).unwrap();
    assert_eq!(toc.members.iter().map(path_of).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    assert_eq!(content(&all, &toc.members[2]), b"c");
    let bytes = all.len() - 1024;
    assert_eq!(
        warnings(&all),
        [format!(
            "the archive ends at byte 1024, and another one follows: the {bytes} bytes behind the end are \
             read too, which GNU tar does with --ignore-zeros only"
        )]
    );
    // A lone zero block ends an archive too.
    let all = [entry(b'0', b"a", b""), vec![0; 512], entry(b'0', b"b", b"")].concat();
    assert_eq!(scan(&all, 100, false).unwrap().members.len(), 2);
    assert!(warnings(&all)[0].contains("byte 512"));
}

#[test]
fn global_records_end_with_their_archive() {
    let global = entry(b'g', b"", &pax("mtime", b"1350244992"));
    let all = [global, entry(b'0', b"a", b""), vec![0; 1024], entry(b'0', b"b", b"")].concat();
    let toc = scan(&all, 512, false).unwrap();
    let mtimes: Vec<_> = toc.members.iter().map(|member| member.mtime).collect();
    assert_eq!(mtimes, [Mtime::new(1_350_244_992, 0), None]);
}

#[test]
fn bytes_behind_the_end_that_are_no_archive_are_left_out_with_a_warning() {
    let archive = [entry(b'0', b"a", b"x"), vec![0; 1024], vec![7; 3000]].concat();
    assert_eq!(scan(&archive, 100, false).unwrap().members.len(), 1);
    assert_eq!(
        warnings(&archive),
        [
            "3000 bytes behind the end of the archive, from byte 2048 on, are no archive and left out"
        ]
    );
    let archive = [entry(b'0', b"a", b"x"), vec![0; 1024], b"short".to_vec()].concat();
    assert_eq!(
        warnings(&archive),
        ["5 bytes behind the end of the archive, from byte 2048 on, are no archive and left out"]
    );
    let archive = [entry(b'0', b"a", b"x"), vec![0; 1030]].concat();
    assert_eq!(warnings(&archive), [""; 0]);
    // Behind more zeros than any tape has, nothing is looked for.
    let zeros = ZEROS_LIMIT_BYTES as usize;
    let archive = [entry(b'0', b"a", b""), vec![0; zeros], entry(b'0', b"b", b"")].concat();
    assert_eq!(scan(&archive, 4096, true).unwrap().members.len(), 1);
    assert!(warnings(&archive)[0].contains("last 512 bytes"), "{:?}", warnings(&archive));
}

#[test]
fn compressed_archives_are_named() {
    for (start, tool) in
        [(&b"\x1f\x8b\x08"[..], "gzip"), (b"BZh9", "bzip2"), (b"PK\x03\x04", "zip")]
    {
        for bytes in [100, 2000] {
            let mut archive = start.to_vec();
            archive.resize(bytes, 7);
            let error = fault(&[&archive]);
            assert!(error.contains(&format!("compressed with {tool}")), "{error}");
        }
    }
}

#[test]
fn an_archive_must_be_shown_to_its_end() {
    let error = Scanner::new().finish(1024).unwrap_err();
    assert!(error.to_string().contains("byte 0 of 1024"), "{error}");
    let records = entry(b'x', b"", &pax("path", b"a"));
    let error = fault(&[&records, &[0; 1024]]);
    assert!(error.contains("their entry is missing"), "{error}");
}
