//! The natural order in which go-yaml writes the keys of a map.
//!
//! Runs of digits compare as numbers. Other characters come before letters (behind a digit: the
//! other way round). Letters compare by their code points: `""`, `9`, `10`, `Beta`, `alpha`. Go has
//! Unicode tables of letters. The standard library's alphabetic characters also include some
//! combining marks, and digits here are ASCII. No real key shows the difference.

use std::cmp::Ordering;

/// Sorts keys.
///
/// A merge sort of our own. Go's order is not proven to be total, and the keys come from the
/// network. The standard library's sorts may panic at an order that is not total.
pub(super) fn sort(keys: Vec<&str>) -> Vec<&str> {
    let mut runs: Vec<Vec<&str>> = keys.into_iter().map(|key| vec![key]).collect();
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut pairs = runs.into_iter();
        while let Some(left) = pairs.next() {
            merged.push(match pairs.next() {
                Some(right) => merge(left, right),
                None => left,
            });
        }
        runs = merged;
    }
    runs.pop().unwrap_or_default()
}

fn merge<'a>(left: Vec<&'a str>, right: Vec<&'a str>) -> Vec<&'a str> {
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let first = if compare(b, a) == Ordering::Less { &mut right } else { &mut left };
        merged.extend(first.next());
    }
    merged.extend(left);
    merged.extend(right);
    merged
}

fn compare(a: &str, b: &str) -> Ordering {
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
    let start: usize = same.map(|(a, _)| a.len_utf8()).sum();
    let behind_digit = a[..start].ends_with(|c: char| c.is_ascii_digit());
    let (Some(x), Some(y)) = (a[start..].chars().next(), b[start..].chars().next()) else {
        return a.len().cmp(&b.len());
    };
    match (x.is_alphabetic(), y.is_alphabetic()) {
        (true, true) => x.cmp(&y),
        (true, false) if behind_digit => Ordering::Less,
        (true, false) => Ordering::Greater,
        (false, true) if behind_digit => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => compare_numbers(a, b, start).then(x.cmp(&y)),
    }
}

/// Compares the digits from `start` on, by value and then by their count.
///
/// Zeros that go on with a number count: behind `1`, `00` is more than `0`.
fn compare_numbers(a: &str, b: &str, start: usize) -> Ordering {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let before = a[..start].bytes().rev().take_while(u8::is_ascii_digit);
    let any_zero = [a, b].iter().any(|text| text[start..].starts_with('0'));
    let goes_on = any_zero && before.into_iter().any(|digit| digit != b'0');
    let value = |digits: &str| {
        let add = |sum: i64, digit: u8| sum.wrapping_mul(10).wrapping_add(i64::from(digit - b'0'));
        digits.bytes().fold(i64::from(goes_on), add)
    };
    let (x, y) = (&a[start..][..digits(&a[start..])], &b[start..][..digits(&b[start..])]);
    value(x).cmp(&value(y)).then(x.len().cmp(&y.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_in_gos_natural_order() {
        let expected = vec![
            "", "1", "2", "9", "10", "010", "Beta", "a b", "a1", "a1b", "a1.5", "a2", "a10", "ab",
            "alpha", "b", "é",
        ];
        let mut shuffled = expected.clone();
        shuffled.reverse();
        shuffled.swap(2, 9);
        assert_eq!(sort(shuffled), expected);
    }

    proptest! {
        #[test]
        fn every_key_stays_whatever_the_order_is(keys in prop::collection::vec("[a-c0-3.é_]{0,6}", 0..40)) {
            let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
            let mut sorted = sort(expected.clone());
            sorted.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(sorted, expected);
        }

        #[test]
        fn letters_alone_are_sorted_by_code_point(keys in prop::collection::vec("[a-zA-Z]{0,4}", 0..40)) {
            let mut expected: Vec<&str> = keys.iter().map(String::as_str).collect();
            let sorted = sort(expected.clone());
            expected.sort();
            prop_assert_eq!(sorted, expected);
        }
    }
}
