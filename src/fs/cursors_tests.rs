use proptest::prelude::*;

use super::*;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const READ: u64 = 128 * KIB;
const REQUEST: u64 = 4 * MIB;
const SIZE: u64 = 4096 * MIB;

/// A file, or one after another; what was asked of it beforehand, and what came for nothing.
struct File {
    cursors: Cursors,
    number: u32,
    size: u64,
    asked: Vec<Range<u64>>,
    is_asked: Vec<bool>,
    read_beforehand: u64,
    read_bytes: u64,
}

impl File {
    fn new(size: u64) -> Self {
        let is_asked = vec![false; size.div_ceil(4 * KIB) as usize];
        Self {
            cursors: Cursors::new(Arc::default()),
            number: 1,
            size,
            asked: Vec::new(),
            is_asked,
            read_beforehand: 0,
            read_bytes: 0,
        }
    }

    fn read(&mut self, start: u64, bytes: u64) {
        let range = start..(start + bytes).min(self.size);
        self.read_bytes += range.end - range.start;
        if self.is_asked[(start / (4 * KIB)) as usize] {
            self.read_beforehand += range.end - range.start;
        }
        let Ahead { window, block, strides, .. } =
            self.cursors.observe(self.number, range, self.size, REQUEST);
        let strides = strides.iter().flat_map(Strides::ranges);
        for ahead in window.into_iter().chain(block).chain(strides) {
            assert!(!ahead.is_empty() && ahead.end <= self.size, "{ahead:?}");
            for page in ahead.start / (4 * KIB)..ahead.end / (4 * KIB) {
                self.is_asked[page as usize] = true;
            }
            self.asked.push(ahead);
        }
    }

    fn read_on(&mut self, range: Range<u64>) {
        for start in range.step_by(READ as usize) {
            self.read(start, READ);
        }
    }

    fn asked_bytes(&self) -> u64 {
        self.asked.iter().map(|range| range.end - range.start).sum()
    }

    fn share_beforehand(&self) -> f64 {
        self.read_beforehand as f64 / self.read_bytes as f64
    }
}

#[test]
fn a_single_read_fetches_nothing_beyond_itself() {
    let mut file = File::new(SIZE);
    file.read(0, READ);
    assert_eq!(file.asked, []);
}

#[test]
fn random_reads_fetch_next_to_nothing_beyond_themselves() {
    let mut file = File::new(SIZE);
    let mut at = 1u64;
    for _ in 0..5_000 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        file.read((at >> 20) % (SIZE / (4 * KIB)) * 4 * KIB, 4 * KIB);
    }
    // A few lie next to each other by chance.
    let chunks = 5_000 * 256 * KIB;
    assert!(file.asked_bytes() < chunks / 10, "{} bytes", file.asked_bytes());
}

#[test]
fn a_stream_that_turns_behind_a_touch_goes_on() {
    let mut file = File::new(SIZE);
    let touch = SIZE - 100 * MIB;
    file.read(touch, READ);
    file.read(touch + 4 * READ, READ);
    // Down to the touch, and then up: that was no block's end.
    file.read(touch + READ / 2, 7 * READ / 2);
    file.read(touch + 5 * READ, READ);
    file.asked.clear();
    file.read(touch + 6 * READ, READ);
    assert!(file.asked.iter().any(|range| range.start == touch + 7 * READ), "{:?}", file.asked);
}

#[test]
fn reading_the_same_place_again_fetches_nothing() {
    let mut file = File::new(SIZE);
    for _ in 0..1_000 {
        file.read(0, 4 * KIB);
    }
    assert_eq!(file.asked, []);
}

#[test]
fn the_window_of_a_stream_grows_to_its_limit_in_few_large_steps() {
    let mut file = File::new(SIZE);
    file.read_on(0..2048 * MIB);
    assert_eq!(file.asked[0], READ * 2..2 * MIB);
    let last = file.asked.last().unwrap();
    assert!(last.end - 2048 * MIB > 48 * MIB, "{last:?}");
    assert!(last.end - last.start >= 16 * MIB, "{last:?}");
    assert!(file.asked.len() < 200, "{} times", file.asked.len());
    assert!(file.share_beforehand() > 0.999);
}

#[test]
fn a_fast_line_is_asked_less_often() {
    let asked = |request_bytes| {
        let mut cursors = Cursors::new(Arc::default());
        let reads = (0..100 * MIB).step_by(READ as usize);
        let windows = reads.map(|at| cursors.observe(1, at..at + READ, SIZE, request_bytes));
        windows.filter(|ahead| ahead.window.is_some()).count()
    };
    let (fast, usual) = (asked(16 * MIB), asked(4 * MIB));
    assert!(fast * 3 < usual, "{fast} {usual}");
}

#[test]
fn a_stream_that_stops_has_fetched_at_most_a_fifth_for_nothing() {
    for read_mib in [20, 21, 50, 100, 500] {
        let mut file = File::new(SIZE);
        file.read_on(0..read_mib * MIB);
        let end = file.asked.last().unwrap().end;
        assert!(end <= read_mib * MIB * 6 / 5, "{end} after {read_mib} MiB");
    }
}

#[test]
fn the_end_of_a_file_is_fetched_with_the_window_that_reaches_it() {
    let mut file = File::new(MIB + 1);
    file.read_on(0..MIB / 2);
    assert_eq!(file.asked.last().unwrap().end, MIB + 1);
}

#[test]
fn sixteen_streams_in_turns_are_all_recognised() {
    let mut file = File::new(SIZE);
    for step in 0..512 {
        for stream in 0..16 {
            file.read(stream * 256 * MIB + step * READ, READ);
        }
    }
    assert!(file.share_beforehand() > 0.99, "{}", file.share_beforehand());
}

#[test]
fn a_seek_does_not_end_a_stream() {
    let mut file = File::new(SIZE);
    file.read_on(0..100 * MIB);
    file.read(3000 * MIB, READ);
    file.read(50 * MIB, READ);
    let before = file.asked.len();
    file.read_on(100 * MIB..130 * MIB);
    assert!(file.asked.len() > before);
    assert!(file.asked[before].start >= 100 * MIB);
    assert!(file.share_beforehand() > 0.98);
}

#[test]
fn requests_of_one_stream_may_arrive_out_of_order() {
    let mut file = File::new(SIZE);
    for first in (0..512).step_by(4) {
        for read in [0, 2, 1, 3] {
            file.read((first + read) * READ, READ);
        }
    }
    assert!(file.share_beforehand() > 0.98, "{}", file.share_beforehand());
}

#[test]
fn blocks_in_any_order_are_fetched_ahead_from_the_third_on_and_not_beyond_their_ends() {
    let block = 64 * MIB;
    let mut file = File::new(SIZE);
    // An order in which no block follows the one before it.
    let order: Vec<u64> = (0..64).map(|index| index * 27 % 64).collect();
    for &index in &order[..8] {
        file.read_on(index * block..(index + 1) * block);
    }
    assert!(file.share_beforehand() > 0.98, "{}", file.share_beforehand());
    let begun = file.read_beforehand;
    file.read(order[8] * block, READ);
    assert_eq!(file.read_beforehand, begun, "nothing says which block is next");
    let ahead = file.asked.last().unwrap();
    assert_eq!(*ahead, order[8] * block + READ..order[8] * block + READ + 32 * MIB);
    // The first two overshoot by a fifth each, and the window of the ninth is asked for.
    assert!(file.asked_bytes() <= 8 * block + 64 * MIB, "{} bytes", file.asked_bytes());
}

#[test]
fn a_stream_that_goes_backward_is_a_stream() {
    let mut file = File::new(SIZE);
    for index in 1..=2048 {
        file.read(SIZE - index * 68 * KIB, 68 * KIB);
    }
    assert!(file.share_beforehand() > 0.99, "{}", file.share_beforehand());
    assert!(file.asked_bytes() <= file.read_bytes * 6 / 5 + MIB, "{}", file.asked_bytes());
}

/// As glibc copies blocks out of a mapped file: its first bytes, and then from its end down.
#[test]
fn blocks_that_are_copied_backward_are_fetched_ahead() {
    let block = 64 * MIB;
    let mut file = File::new(SIZE);
    for index in (0..64).map(|index| index * 27 % 64).take(16) {
        let (start, end) = (index * block, (index + 1) * block);
        file.read(start.saturating_sub(64 * KIB), READ);
        (1..=block / (64 * KIB)).for_each(|step| file.read(end - step * 64 * KIB, 64 * KIB));
    }
    assert!(file.share_beforehand() > 0.98, "{}", file.share_beforehand());
    // The first two overshoot by a fifth each; then only what the first touch is followed by.
    let most = 16 * block + 2 * block / 5 + 16 * MIB;
    assert!(file.asked_bytes() <= most, "{} MiB", file.asked_bytes() / MIB);
}

/// The same, where the pages around the first touch are not read again.
#[test]
fn from_the_second_block_on_the_first_touch_says_where_its_copy_will_begin() {
    let (block, touch, step) = (64 * MIB, 128 * KIB, 64 * KIB);
    let mut file = File::new(SIZE);
    for (at, index) in (0..64).map(|index| index * 27 % 64 + 1).take(4).enumerate() {
        let start = index * block;
        file.asked.clear();
        file.read(start - touch, 2 * touch);
        let end = start + block + touch - step;
        match at {
            0 => assert!(file.asked.is_empty()),
            _ => {
                assert_eq!(file.asked.len(), 1, "block {at}");
                assert_eq!(file.asked[0], end - 16 * MIB..end, "block {at}");
            }
        }
        let reads = (end - start - touch) / step;
        (1..=reads).for_each(|read| file.read(end - read * step, step));
    }
    assert!(file.asked_bytes() <= 66 * MIB, "{} MiB for a block", file.asked_bytes() / MIB);
}

#[test]
fn the_first_stream_of_a_file_runs_as_far_as_those_before_it() {
    let mut file = File::new(SIZE);
    let run = 40 * MIB;
    for number in 1..6 {
        (file.number, file.read_bytes, file.read_beforehand) = (number, 0, 0);
        file.asked.clear();
        file.is_asked.fill(false);
        file.read_on(100 * MIB..100 * MIB + run);
        if number > 1 {
            assert_eq!(file.asked[0], 100 * MIB + READ..132 * MIB + READ);
            assert_eq!(file.read_bytes - file.read_beforehand, READ);
            assert_eq!(file.asked_bytes(), run - READ, "and no further");
        }
    }
}

#[test]
fn what_is_expected_is_a_quarter_of_a_second_of_the_line() {
    for (request_bytes, expected) in [(MIB, 8 * MIB), (4 * MIB, 32 * MIB), (32 * MIB, 32 * MIB)] {
        let mut cursors = Cursors::new(Arc::default());
        for start in (0..40 * MIB).step_by(READ as usize) {
            cursors.observe(1, start..start + READ, SIZE, request_bytes);
        }
        let window = cursors.observe(2, 0..READ, SIZE, request_bytes).window;
        assert_eq!(window, Some(READ..READ + expected), "{request_bytes}");
    }
}

#[test]
fn a_file_that_is_read_otherwise_is_expected_once() {
    let mut file = File::new(SIZE);
    for number in 1..5 {
        file.number = number;
        file.read_on(0..20 * MIB);
    }
    file.asked.clear();
    for number in 5..50 {
        file.number = number;
        (0..20).for_each(|index| file.read((index * 7919) % 4096 * MIB, 4 * KIB));
    }
    assert!(file.asked_bytes() <= MOST_EXPECTED_BYTES, "{} MiB", file.asked_bytes() / MIB);
}

#[test]
fn pieces_of_a_window_come_downward_and_grow() {
    let pieces: Vec<_> = downward(84 * MIB..100 * MIB, 100 * MIB + 64 * KIB).collect();
    assert_eq!(pieces[0], 99 * MIB..100 * MIB);
    assert!(pieces.windows(2).all(|two| two[1].end == two[0].start), "{pieces:?}");
    assert_eq!(pieces.last().unwrap().start, 84 * MIB);
    assert!(pieces.len() < 10, "{pieces:?}");
    assert_eq!(downward(5..5, 9).next(), None);
    assert_eq!(downward(0..1, 9).next(), Some(0..1));
}

#[test]
fn reads_at_equal_distances_are_fetched_before_they_come() {
    let mut file = File::new(SIZE);
    for index in 0..500 {
        file.read(index * 7 * MIB, 64 * KIB);
    }
    assert!(file.share_beforehand() > 0.99, "{}", file.share_beforehand());
    assert!(file.asked_bytes() <= (500 + MOST_STRIDES) * 64 * KIB);
}

#[test]
fn the_number_of_files_and_cursors_is_bounded() {
    let mut cursors = Cursors::new(Arc::default());
    for file in 0..10_000 {
        cursors.observe(file, 0..1, 10, REQUEST);
    }
    for index in 0..10_000 {
        cursors.observe(1, index * 10 * MIB..index * 10 * MIB + 1, u64::MAX, REQUEST);
    }
    assert_eq!(cursors.files.len(), MOST_FILES.get());
    assert_eq!(cursors.files.get(&1).unwrap().cursors.len(), MOST_CURSORS);
}

proptest! {
    #[test]
    fn ranges_lie_within_the_file_and_within_their_bounds(
        size in 1..u64::MAX,
        reads in prop::collection::vec((any::<u64>(), 1..1024 * KIB), 1..200),
        request_bytes in 0..256 * MIB,
    ) {
        let mut cursors = Cursors::new(Arc::default());
        for (start, bytes) in reads {
            let start = start % size;
            let range = start..start.saturating_add(bytes).min(size);
            let ahead = cursors.observe(1, range.clone(), size, request_bytes);
            let Ahead { window, block, strides, run } = ahead;
            prop_assert!(run.is_empty() || run.end == range.end);
            if let Some(window) = window {
                prop_assert!(!window.is_empty() && window.end <= size);
                prop_assert!(window.start >= range.end || window.end <= range.start);
                prop_assert!(window.end - window.start <= MOST_WINDOW_BYTES);
            }
            for ahead in strides.iter().flat_map(Strides::ranges).chain(block) {
                prop_assert!(!ahead.is_empty() && ahead.end <= size);
            }
        }
    }

    #[test]
    fn a_stream_is_told_every_byte_after_its_second_read_once(
        size in 1..64 * MIB, step in 1..1024 * KIB,
    ) {
        let mut cursors = Cursors::new(Arc::default());
        let (mut told, mut at) = (0, 0);
        while at < size {
            let end = (at + step).min(size);
            if let Some(ahead) = cursors.observe(1, at..end, size, REQUEST).window {
                prop_assert!(ahead.start == told.max(end));
                told = ahead.end;
            }
            at = end;
        }
        prop_assert!(told == size || size <= 2 * step);
    }
}

/// A file that is mapped: pages stay, and a fault of one reads those around it that are not there.
struct Mapped {
    file: File,
    is_resident: Vec<bool>,
}

impl Mapped {
    const PAGE: u64 = 4 * KIB;
    const AROUND: u64 = 128 * KIB;

    fn new(size: u64) -> Self {
        Self { file: File::new(size), is_resident: vec![false; (size / Self::PAGE) as usize] }
    }

    fn touch(&mut self, at: u64) {
        let page = at / Self::PAGE;
        if self.is_resident[page as usize] {
            return;
        }
        let around = Self::AROUND / Self::PAGE;
        let last = (page + around).min(self.is_resident.len() as u64);
        let mut run: Option<Range<u64>> = None;
        for page in page.saturating_sub(around)..=last {
            let is_wanted = page < last && !self.is_resident[page as usize];
            match (&mut run, is_wanted) {
                (Some(run), true) => run.end = page + 1,
                (None, true) => run = Some(page..page + 1),
                (Some(read), false) => {
                    let read = std::mem::replace(read, 0..0);
                    run = None;
                    self.file.read(read.start * Self::PAGE, (read.end - read.start) * Self::PAGE);
                    (read.start..read.end).for_each(|it| self.is_resident[it as usize] = true);
                }
                (None, false) => {}
            }
        }
    }

    /// As glibc's memmove copies to a place behind it.
    fn copy(&mut self, block: Range<u64>) {
        self.touch(block.start);
        (block.start / Self::PAGE..block.end / Self::PAGE).rev().for_each(|page| {
            self.touch(page * Self::PAGE);
        });
    }
}

#[test]
fn mapped_blocks_in_shuffled_order_are_fetched_ahead() {
    let block = 64 * MIB;
    let mut mapped = Mapped::new(2048 * MIB);
    let order = [
        26, 17, 11, 10, 28, 1, 5, 4, 7, 16, 9, 19, 30, 13, 22, 0, 21, 29, 6, 12, 20, 23, 14, 15, 3,
        31, 2, 24, 25, 27, 18, 8,
    ];
    for index in order {
        let before = mapped.file.read_bytes - mapped.file.read_beforehand;
        mapped.copy(index * block..(index + 1) * block);
        let waited = mapped.file.read_bytes - mapped.file.read_beforehand - before;
        // The first block tells nothing beforehand, and where the neighbours of a block were read
        // its first bytes are not touched.
        let most = if index == order[0] { MIB } else { 640 * KIB };
        assert!(waited <= most, "block {index}: {} KiB were waited for", waited / KIB);
    }
    // With what is resident already and asked for again, because neighbours were touched.
    let asked_mib = mapped.file.asked_bytes() / MIB;
    assert!(asked_mib < 2048 + 256, "{asked_mib} MiB");
}

#[test]
fn single_reads_after_mapped_blocks_fetch_little_beyond_themselves() {
    let block = 64 * MIB;
    let mut mapped = Mapped::new(4096 * MIB);
    for index in [9, 3, 7, 1, 5] {
        mapped.copy(index * block..(index + 1) * block);
    }
    mapped.file.asked.clear();
    (12..60).for_each(|index| mapped.touch(index * block + 8 * MIB + index * index * 4 * KIB));
    let most = u64::from(MOST_UNANSWERED) * MOST_EXPECTED_BYTES + 48 * FIRST_BACKWARD_BYTES;
    assert!(mapped.file.asked_bytes() <= most, "{} MiB", mapped.file.asked_bytes() / MIB);
}
