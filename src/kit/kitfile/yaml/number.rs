//! Numbers as Go's `strconv.FormatFloat(number, 'g', -1, 64)` writes them.
//!
//! The shortest digits that read back as the same float. An exponent below -4 or above 5 is
//! written, with at least two digits: `131072`, but `1e+06`.

/// Writes a finite number.
pub(super) fn shortest(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (mantissa, exponent) =
        scientific.split_once('e').expect("a finite float in scientific notation has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is an integer");
    if (-4..6).contains(&exponent) {
        // `Display` writes the same shortest digits, and never an exponent.
        return number.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_written_as_go_writes_them() {
        for (number, expected) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (131072.0, "131072"),
            (999999.0, "999999"),
            (1e6, "1e+06"),
            (-2e6, "-2e+06"),
            (1234567.0, "1.234567e+06"),
            (123456.7, "123456.7"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.00012, "0.00012"),
            (1e21, "1e+21"),
            (1e100, "1e+100"),
            (5e-324, "5e-324"),
            (9007199254740993.0, "9.007199254740992e+15"),
            (std::f64::consts::PI, "3.141592653589793"),
        ] {
            assert_eq!(shortest(number), expected);
        }
    }

    proptest! {
        #[test]
        fn a_number_reads_back_as_itself(number in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL) {
            prop_assert_eq!(shortest(number).parse::<f64>().unwrap(), number);
        }
    }
}
