//! Each kind of entry, and the refused ones.

use super::*;

#[test]
fn old_and_gnu_types_are_understood() {
    let old = |kind: u8, name: &[u8], size: u64| {
        block(kind, name, size, |header| header.as_mut_bytes()[257..].fill(0))
    };
    assert_eq!(one(&[&old(0, b"a", 3), &padded(b"abc")]).kind, file(512, 3));
    assert_eq!(one(&[&old(0, b"a/", 0)]).kind, MemberKind::Directory);
    assert_eq!(one(&[&old(0, b"a/", 3)]).kind, MemberKind::Directory);
    assert_eq!(one(&[&entry(b'0', b"a/", b"")]).kind, MemberKind::Directory);
    assert_eq!(one(&[&entry(b'7', b"a/", b"")]).kind, MemberKind::Directory);
    assert_eq!(one(&[&entry(b'7', b"a", b"abc")]).kind, file(512, 3));
    assert_eq!(one(&[&entry(b'0', b"code/../x", b"")]).path, MemberPath::parse(b"x").ok());
    let long = [b"dir/".repeat(60), b"x\0".to_vec()].concat();
    let member = one(&[&entry(b'L', b"././@LongLink", &long), &entry(b'0', b"cut", b"ab")]);
    assert_eq!(path_of(&member), &long[..long.len() - 1]);
    let member = one(&[&entry(b'K', b"././@LongLink", b"to\0"), &link(b'2', b"a", b"cut")]);
    assert_eq!(member.kind, MemberKind::Symlink(b"to".as_slice().into()));
}

#[test]
fn the_root_is_skipped_and_special_bits_are_masked() {
    let setuid = block(b'0', b"./a", 0, |header| header.set_mode(0o7755));
    let toc = scan(&[entry(b'5', b"./", b""), entry(b'5', b".", b""), setuid].concat(), 99, false);
    let toc = toc.unwrap();
    assert_eq!((toc.members.len(), toc.members[0].mode), (1, 0o755));
    assert!(toc.warnings.is_empty());
}

#[test]
fn global_records_hold_until_they_are_overruled() {
    let archive = [
        entry(b'g', b"global", &[pax("mtime", b"1350244992.9"), pax("comment", b"c")].concat()),
        entry(b'0', b"a", b""),
        entry(b'x', b"own", &pax("mtime", b"1350244993")),
        entry(b'0', b"b", b""),
        entry(b'x', b"own", &pax("mtime", b"")),
        entry(b'0', b"c", b""),
        entry(b'0', b"d", b""),
    ];
    let toc = scan(&archive.concat(), 512, false).unwrap();
    let times: Vec<_> = toc.members.iter().map(|member| member.mtime).collect();
    let global = Mtime::new(1_350_244_992, 900_000_000);
    assert_eq!(times, [global, Mtime::new(1_350_244_993, 0), None, global]);
}

#[test]
fn hard_links_share_the_bytes_of_the_name_they_give() {
    let archive = [
        entry(b'0', b"a", b"old"),
        entry(b'0', b"./a", b"newer"),
        link(b'1', b"b", b"a"),
        link(b'2', b"s", b"to"),
        link(b'1', b"c", b"./b"),
        link(b'1', b"d", b"s"),
    ];
    let toc = scan(&archive.concat(), 512, true).unwrap();
    let kinds: Vec<&MemberKind> = toc.members.iter().map(|member| &member.kind).collect();
    assert_eq!(kinds[2], kinds[1]);
    assert_eq!(kinds[4], kinds[1]);
    assert_eq!(kinds[5], kinds[3]);
}

#[test]
fn a_hard_link_without_an_earlier_file_is_passed_over() {
    let archive = [
        entry(b'5', b"dir", b""),
        link(b'1', b"to-directory", b"dir"),
        link(b'1', b"to-later", b"later"),
        entry(b'0', b"later", b"x"),
        link(b'1', b"to-nothing", b"missing"),
        link(b'1', b"to-root", b"./"),
    ];
    let toc = scan(&archive.concat(), 512, true).unwrap();
    let paths: Vec<_> = toc.members.iter().map(path_of).collect();
    assert_eq!(paths, [&b"dir"[..], b"later"]);
    assert_eq!(toc.warnings.len(), 4);
    assert_eq!(
        toc.warnings[1],
        "`to-later` is a hard link to `later`, which is no earlier file: passed over"
    );
}

/// POSIX.1-1988 wanted sizes of hard links ignored, pax lets them have content.
#[test]
fn content_of_hard_links_and_old_directories_is_found_out() {
    let sized = |kind: u8, name: &[u8], size: u64| {
        block(kind, name, size, |header| header.as_old_mut().linkname[..1].copy_from_slice(b"a"))
    };
    let (first, last) = (entry(b'0', b"a", b"abc"), entry(b'0', b"z", b"xyz"));
    let pax_only = entry(b'x', b"", &pax("comment", b"c"));
    let body = padded(&[b'b'; 600]);
    for (link, has_body, is_pax) in [
        (sized(b'1', b"l", 600), false, false),
        (sized(b'1', b"l", 600), true, false),
        (sized(b'1', b"l", 600), true, true),
        (sized(b'0', b"l/", 600), false, false),
        (sized(b'0', b"l/", 600), true, false),
    ] {
        let mut archive = first.clone();
        if is_pax {
            archive.extend(&pax_only);
        }
        archive.extend(link);
        if has_body {
            archive.extend(&body);
        }
        archive.extend(&last);
        for (piece, jumps) in [(512, true), (1, false), (700, false)] {
            let toc = scan(&archive, piece, jumps).unwrap();
            let paths: Vec<_> = toc.members.iter().map(path_of).collect();
            assert_eq!(paths, [&b"a"[..], b"l", b"z"]);
            assert_eq!(content(&archive, &toc.members[2]), b"xyz");
            assert!(toc.warnings.is_empty());
        }
    }
    // Its target is not in the archive, so its own content counts.
    let archive = [pax_only, sized(b'1', b"l", 600), body].concat();
    let member = one(&[&archive]);
    assert_eq!(content(&archive, &member), [b'b'; 600]);
}

#[test]
fn a_leading_slash_is_left_out_with_a_warning() {
    let archive = [
        entry(b'5', b"/", b""),
        entry(b'0', b"//etc/hosts", b"x"),
        link(b'1', b"l", b"/etc/hosts"),
    ];
    let toc = scan(&archive.concat(), 512, true).unwrap();
    let paths: Vec<_> = toc.members.iter().map(path_of).collect();
    assert_eq!(paths, [&b"etc/hosts"[..], b"l"]);
    assert_eq!(toc.members[0].kind, toc.members[1].kind);
    let warning = "the leading `/` of 3 entries is left out, `/` is the first of them";
    assert_eq!(toc.warnings, [warning]);
    let toc = scan(&entry(b'0', b"/a", b""), 512, true).unwrap();
    assert_eq!(toc.warnings, ["the leading `/` of `/a` is left out"]);
}

#[test]
fn types_of_tapes_and_of_other_tools_leave_the_rest_alone() {
    let archive = [
        entry(b'V', b"label", b""),
        entry(b'D', b"dumped/", b"Yname\0\0"),
        entry(b'M', b"continued", b"the rest"),
        entry(b'N', b"names", b"Rename a to b\n"),
        entry(b'A', b"acl", b"user::rwx"),
        entry(b'X', b"solaris", &pax("path", b"named")),
        entry(b'0', b"cut", b"x"),
        entry(b'g', b"volume", &pax("GNU.volume.filename", b"part")),
        entry(b'0', b"GNUFileParts.1/part.2", b"its rest"),
        entry(b'0', b"last", b"y"),
    ];
    let toc = scan(&archive.concat(), 512, true).unwrap();
    let paths: Vec<_> = toc.members.iter().map(path_of).collect();
    assert_eq!(paths, [&b"dumped"[..], b"named", b"last"]);
    assert_eq!(toc.members[0].kind, MemberKind::Directory);
    assert_eq!(toc.warnings.len(), 3);
    assert_eq!(toc.warnings[0], "`continued` is continued from another volume: passed over");
}

#[test]
fn entries_that_no_tree_shows_are_passed_over_with_bounded_warnings() {
    let mut archive = entry(b'6', b"fi\x1bfo", b"");
    for _ in 0..40 {
        archive.extend(entry(b'3', b"dev", b""));
    }
    archive.extend(entry(b'0', b"", b"x"));
    let toc = scan(&archive, 512, true).unwrap();
    assert_eq!(toc.members, []);
    assert_eq!(toc.warnings.len(), WARNINGS_LIMIT + 1);
    assert_eq!(toc.warnings[0], "`fi\\u{1b}fo` is a FIFO: passed over");
    assert_eq!(toc.warnings[WARNINGS_LIMIT], "26 more entries were passed over");
}

/// POSIX.1-2024, pax, "ustar Interchange Format": "any other value … as a regular file".
#[test]
fn entries_of_unknown_types_are_files() {
    let archive = [entry(b'Z', b"odd", b"content"), entry(b'0', b"a", b"x")].concat();
    let toc = scan(&archive, 512, true).unwrap();
    assert_eq!(content(&archive, &toc.members[0]), b"content");
    assert_eq!(toc.warnings, ["`odd` has the unknown type `Z`: shown as a file"]);
    let many: Vec<u8> = (0..40).flat_map(|_| entry(b'Z', b"odd", b"")).collect();
    let toc = scan(&many, 512, true).unwrap();
    assert_eq!(toc.warnings[WARNINGS_LIMIT], "24 more entries of unknown types are shown as files");
}

#[rstest]
#[case(
    entry(b'0', b"a/../../b", b""),
    "entry `a/../../b` (header at byte 0): its name cannot be used: it leaves the kit's root"
)]
#[case(entry(b'0', b"/../b", b""), "leaves the kit's root")]
#[case(entry(b'0', b"a/..", b""), "names the kit's root")]
#[case(link(b'1', b"a", b"../b"), "it is a hard link to `../b`, and it leaves the kit's root")]
#[case([entry(b'x', b"", &pax("path", b"a\0b")), entry(b'0', b"a", b"")].concat(), "NUL")]
#[case([entry(b'x', b"", &pax("path", &[b'n'; 300])), entry(b'0', b"a", b"")].concat(), "too long")]
#[case([entry(b'x', b"", &pax("size", b"1e9")), entry(b'0', b"a", b"")].concat(), "`1e9`")]
#[case([entry(b'x', b"", &pax("size", b"18446744073709551615")), entry(b'0', b"a", b"")].concat(), "impossible")]
#[case([entry(b'x', b"", &pax("size", b"9223372036854775807")), entry(b'0', b"a", b"")].concat(), "impossible")]
#[case(link(b'2', b"a", b""), "without a target")]
#[case(entry(b'x', b"", b"nonsense"), "extended header at byte 512")]
#[case(block(b'x', b"", 1 << 25, |_| {}), "16777216 are the limit")]
#[case(entry(b'x', b"", &pax("path", b"a")), "their entry is missing")]
#[case(vec![1; 512], "not a tar header")]
#[case(entry(b'0', b"a", b"abc")[..514].to_vec(), "ends inside the content of `a`: 1 bytes are missing")]
#[case(entry(b'0', b"a", b"abc")[..100].to_vec(), "ends inside the header at byte 0: 412 bytes")]
#[case(entry(b'x', b"", &pax("path", b"a"))[..515].to_vec(), "ends inside the header at byte 512: 6 bytes")]
fn faults_name_the_entry_and_the_place(#[case] archive: Vec<u8>, #[case] words: &str) {
    let error = fault(&[&archive]);
    assert!(error.contains(words), "{error}");
}
