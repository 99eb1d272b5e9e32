//! Files with holes, in the four forms of GNU tar and in star's.

use super::*;

/// A sparse file: data and holes by turns, in units.
#[derive(Clone, Debug)]
struct Sparse {
    content: Vec<u8>,
    /// The ranges of data.
    runs: Vec<Range<usize>>,
}

impl Sparse {
    fn data(&self) -> Vec<u8> {
        self.runs.iter().flat_map(|run| self.content[run.clone()].to_vec()).collect()
    }
}

fn sparse() -> impl Strategy<Value = Sparse> {
    let parts = prop::collection::vec((any::<bool>(), 1..400usize), 0..60);
    (parts, any::<u8>()).prop_map(|(parts, byte)| {
        let (mut content, mut runs) = (Vec::new(), Vec::new());
        for (is_data, bytes) in parts {
            if is_data {
                runs.push(content.len()..content.len() + bytes);
            }
            let value = if is_data { byte | 1 } else { 0 };
            content.resize(content.len() + bytes, value);
        }
        Sparse { content, runs }
    })
}

fn octal(number: usize) -> Vec<u8> {
    format!("{number:011o}\0").into_bytes()
}

/// As GNU tar wrote it before PAX: fields in the header, then blocks of 21 runs.
fn in_header(file: &Sparse) -> Vec<u8> {
    let data = file.data();
    let fields: Vec<Vec<u8>> =
        file.runs.iter().map(|run| [octal(run.start), octal(run.len())].concat()).collect();
    let (first, rest) = fields.split_at(fields.len().min(4));
    let mut blocks = Vec::new();
    for piece in rest.chunks(21) {
        let mut block = piece.concat();
        block.resize(504, 0);
        block.push(u8::from((blocks.len() / 512 + 1) * 21 < rest.len()));
        block.resize(512, 0);
        blocks.extend(block);
    }
    let header = block(b'S', b"f", data.len() as u64, |header| {
        let bytes = header.as_mut_bytes();
        bytes[257..265].copy_from_slice(b"ustar  \0");
        bytes[386..386 + first.concat().len()].copy_from_slice(&first.concat());
        bytes[482] = u8::from(!rest.is_empty());
        bytes[483..495].copy_from_slice(&octal(file.content.len()));
    });
    [header, blocks, padded(&data)].concat()
}

/// As star wrote it: the same at other places.
fn in_star_header(file: &Sparse) -> Vec<u8> {
    let mut archive = in_header(file);
    let gnu = archive[386..495].to_vec();
    archive[345..512].fill(0);
    archive[257..265].copy_from_slice(b"ustar\x0000");
    archive[355] = gnu[96];
    archive[356..452].copy_from_slice(&gnu[..96]);
    archive[452..464].copy_from_slice(&gnu[97..]);
    archive[508..512].copy_from_slice(b"tar\0");
    let header = tar::Header::from_byte_slice(&archive[..512]).clone();
    let mut header = header;
    header.set_cksum();
    archive[..512].copy_from_slice(header.as_bytes());
    archive
}

fn in_records(file: &Sparse, records: &[(&str, String)], before: &[u8]) -> Vec<u8> {
    let mut all = pax("GNU.sparse.name", b"f");
    all.extend(pax("path", b"GNUSparseFile.1/f"));
    all.extend(records.iter().flat_map(|(key, value)| pax(key, value.as_bytes())));
    let content = [before, &file.data()].concat();
    [entry(b'x', b"", &all), entry(b'0', b"GNUSparseFile.1/f", &content)].concat()
}

fn in_pax_0_0(file: &Sparse) -> Vec<u8> {
    let mut records = vec![("GNU.sparse.size", file.content.len().to_string())];
    for run in &file.runs {
        records.push(("GNU.sparse.offset", run.start.to_string()));
        records.push(("GNU.sparse.numbytes", run.len().to_string()));
    }
    in_records(file, &records, b"")
}

fn in_pax_0_1(file: &Sparse) -> Vec<u8> {
    let map: Vec<String> =
        file.runs.iter().map(|run| format!("{},{}", run.start, run.len())).collect();
    let size = file.content.len().to_string();
    in_records(file, &[("GNU.sparse.size", size), ("GNU.sparse.map", map.join(","))], b"")
}

fn in_pax_1_0(file: &Sparse) -> Vec<u8> {
    let mut map = format!("{}\n", file.runs.len());
    for run in &file.runs {
        map += &format!("{}\n{}\n", run.start, run.len());
    }
    let records = [
        ("GNU.sparse.major", "1".to_owned()),
        ("GNU.sparse.minor", "0".to_owned()),
        ("GNU.sparse.realsize", file.content.len().to_string()),
    ];
    in_records(file, &records, &padded(map.as_bytes()))
}

proptest! {
    #[test]
    fn sparse_files_are_read_with_their_holes(file in sparse(), piece_bytes in 1..2000usize) {
        for write in [in_header, in_star_header, in_pax_0_0, in_pax_0_1, in_pax_1_0] {
            let archive = [write(&file), entry(b'0', b"z", b"last")].concat();
            let toc = scan(&archive, piece_bytes, false).unwrap();
            prop_assert_eq!(&scan(&archive, piece_bytes, true).unwrap(), &toc);
            prop_assert_eq!(toc.members.iter().map(path_of).collect::<Vec<_>>(), [b"f", b"z"]);
            prop_assert_eq!(&content(&archive, &toc.members[0]), &file.content);
            let extents = toc.members[0].kind.extents().unwrap();
            prop_assert_eq!(extents.stored_bytes(), file.data().len() as u64);
            prop_assert_eq!(&content(&archive, &toc.members[1]), b"last");
        }
    }

    #[test]
    fn damaged_sparse_files_never_panic(
        file in sparse(), damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        for write in [in_header, in_pax_0_0, in_pax_0_1, in_pax_1_0] {
            let mut archive = write(&file);
            for (place, byte) in &damage {
                let place = place.index(archive.len());
                archive[place] = *byte;
            }
            if let Ok(toc) = scan(&archive, 700, false) {
                for member in toc.members.iter().filter(|member| member.kind.extents().is_some()) {
                    prop_assert!(stored(member).end <= archive.len());
                }
            }
        }
    }
}

#[test]
fn hard_links_share_the_holes() {
    let file = Sparse {
        content: [vec![0; 1000], vec![1; 24]].concat(),
        runs: vec![1000..1012, 1012..1024],
    };
    let archive = [in_pax_1_0(&file), link(b'1', b"l", b"f")].concat();
    let toc = scan(&archive, 512, true).unwrap();
    assert_eq!(toc.members[0].kind, toc.members[1].kind);
}

#[test]
fn wrong_maps_are_named() {
    let file = Sparse { content: vec![1; 100], runs: vec![10..20, 40..50] };
    let swapped = Sparse { runs: vec![40..50, 10..20], ..file.clone() };
    let error = fault(&[&in_header(&swapped)]);
    assert!(error.contains("`f`") && error.contains("not in order"), "{error}");
    let short = Sparse { content: vec![1; 45], ..file.clone() };
    let beyond = [("GNU.sparse.size", "45".to_owned()), ("GNU.sparse.map", "10,10,40,10".into())];
    let error = fault(&[&in_records(&Sparse { runs: vec![0..10, 10..20], ..short }, &beyond, b"")]);
    assert!(error.contains("beyond its end"), "{error}");
    let other = [("GNU.sparse.size", "100".to_owned()), ("GNU.sparse.map", "10,10".into())];
    let error = fault(&[&in_records(&file, &other, b"")]);
    assert!(error.contains("its data has 10 bytes, and 20 are stored"), "{error}");
    let mut long = in_pax_1_0(&file);
    let end = long.len() - 1024;
    long[end..end + 3].copy_from_slice(b"99\n");
    assert!(fault(&[&long]).contains("the sparse file `f`"), "{}", fault(&[&long]));
    let cut =
        in_header(&Sparse { content: vec![1; 100], runs: (0..90).map(|at| at..at + 1).collect() });
    let error = fault(&[&cut[..1024 + 100]]);
    assert!(error.contains("ends inside"), "{error}");
}
