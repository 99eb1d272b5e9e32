//! The dates and the use of a certificate (RFC 5280, 4.1.2.5 and 4.2.1.12), which rustls does not report. Pure.
//!
//! ```text
//! Certificate    = SEQUENCE { TBSCertificate, … }
//! TBSCertificate = SEQUENCE { [0] version?, serial, algorithm, issuer, Validity, subject, key,
//!                             [1]?, [2]?, [3] extensions? }
//! Validity       = SEQUENCE { notBefore, notAfter }         UTCTime or GeneralizedTime
//! ```
//!
//! The reader walks over DER and skips unknown elements. It checks no signature.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// Tags of DER elements (X.690).
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;

/// `id-ce-extKeyUsage`, 2.5.29.37.
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// `anyExtendedKeyUsage`, 2.5.29.37.0.
const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
/// `id-kp-serverAuth`, 1.3.6.1.5.5.7.3.1.
const SERVER: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

/// The dates and the use of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Statement {
    pub(super) not_before: Timestamp,
    pub(super) not_after: Timestamp,
    /// Whether a TLS server may use the certificate: it names that use, or no use at all.
    pub(super) is_for_servers: bool,
}

impl Statement {
    /// Reads a certificate in DER; `None` for other bytes.
    pub(super) fn read(certificate: &[u8]) -> Option<Self> {
        let mut certificate = Der(Der(certificate).next_as(SEQUENCE)?);
        let mut tbs = Der(certificate.next_as(SEQUENCE)?);
        tbs.skip(VERSION);
        tbs.next_as(INTEGER)?;
        tbs.next_as(SEQUENCE)?;
        tbs.next_as(SEQUENCE)?;
        let mut validity = Der(tbs.next_as(SEQUENCE)?);
        let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
        let is_for_servers = loop {
            match tbs.next() {
                None => break true,
                Some((EXTENSIONS, extensions)) => break may_serve(extensions)?,
                Some(_) => {}
            }
        };
        Some(Self { not_before, not_after, is_for_servers })
    }
}

/// Whether extensions let a TLS server use the certificate.
fn may_serve(extensions: &[u8]) -> Option<bool> {
    let mut extensions = Der(Der(extensions).next_as(SEQUENCE)?);
    while let Some((SEQUENCE, extension)) = extensions.next() {
        let mut extension = Der(extension);
        let name = extension.next_as(OBJECT_IDENTIFIER)?;
        extension.skip(BOOLEAN); // Whether it is critical.
        let value = extension.next_as(OCTET_STRING)?;
        if name == EXTENDED_KEY_USAGE {
            let mut usages = Der(Der(value).next_as(SEQUENCE)?);
            while let Some((OBJECT_IDENTIFIER, usage)) = usages.next() {
                if usage == SERVER || usage == ANY_USAGE {
                    return Some(true);
                }
            }
            return Some(false);
        }
    }
    Some(true)
}

/// A time as RFC 5280 has it: in UTC, to the second, with two digits of the year until 2049.
fn time((tag, text): (u8, &[u8])) -> Option<Timestamp> {
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 13) => {
            let year = number(&text[..2])?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALIZED_TIME, 15) => (number(&text[..4])?, &text[4..]),
        _ => return None,
    };
    let (digits, zone) = rest.split_at(10);
    let mut pairs = digits.chunks_exact(2).map(|pair| number(pair)?.try_into().ok());
    let mut next = || pairs.next().flatten();
    let (month, day): (i8, i8) = (next()?, next()?);
    let (hour, minute, second): (i8, i8, i8) = (next()?, next()?, next()?);
    let is_valid = zone == b"Z" && (1..=12).contains(&month) && (1..=31).contains(&day);
    let is_valid = is_valid && hour < 24 && minute < 60 && second < 60;
    let date = is_valid.then(|| Date::new(year, month, day).ok()).flatten()?;
    let time = date.at(hour, minute, second, 0);
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

fn number(digits: &[u8]) -> Option<i16> {
    let text = std::str::from_utf8(digits).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Elements one after the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element's tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // The number of bytes that follow with the length; no certificate has 4 GiB.
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
                (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The next element's content, if it has this tag.
    fn next_as(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(own, _)| *own == tag).map(|(_, content)| content)
    }

    /// Skips the next element if it has this tag.
    fn skip(&mut self, tag: u8) {
        if self.0.first() == Some(&tag) {
            self.next();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};

    use super::*;

    fn certificate(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["r.example".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_dates_are_read_in_both_forms() {
        // RFC 5280 has two digits for the year until 2049.
        for (years, expected) in [
            ((1999, 2049), ("1999-02-03T00:00:00Z", "2049-02-03T00:00:00Z")),
            ((2050, 4096), ("2050-02-03T00:00:00Z", "4096-02-03T00:00:00Z")),
        ] {
            let der = certificate(|params| {
                params.not_before = date_time_ymd(years.0, 2, 3);
                params.not_after = date_time_ymd(years.1, 2, 3);
            });
            let statement = Statement::read(&der).unwrap();
            assert_eq!(
                (statement.not_before, statement.not_after),
                (at(expected.0), at(expected.1))
            );
            assert!(statement.is_for_servers, "it names no use");
        }
    }

    #[test]
    fn the_uses_are_read() {
        use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
        for (usages, is_for_servers) in [
            (vec![ServerAuth], true),
            (vec![ClientAuth, ServerAuth], true),
            (vec![CodeSigning, Any], true),
            (vec![ClientAuth], false),
        ] {
            let der = certificate(|params| params.extended_key_usages = usages.clone());
            assert_eq!(Statement::read(&der).unwrap().is_for_servers, is_for_servers, "{usages:?}");
        }
    }

    #[test]
    fn odd_times_are_no_times() {
        for odd in
            ["991332000000Z", "990231000000Z", "9902030000Z", "990203000000+", "99020300000xZ"]
        {
            assert_eq!(time((UTC_TIME, odd.as_bytes())), None, "{odd}");
        }
        assert_eq!(time((GENERALIZED_TIME, b"20260203040506Z")), Some(at("2026-02-03T04:05:06Z")));
        assert_eq!(time((INTEGER, b"20260203040506Z")), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Statement::read(&bytes);
        }

        #[test]
        fn a_damaged_certificate_is_survived(at in 0usize..400, byte in any::<u8>(), cut in 0usize..500) {
            let mut der = certificate(|_| ());
            let index = at % der.len();
            der[index] = byte;
            let _ = Statement::read(&der);
            let _ = Statement::read(&der[..cut.min(der.len())]);
        }
    }
}
