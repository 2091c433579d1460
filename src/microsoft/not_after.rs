//! When a certificate ends: just enough of X.509 (RFC 5280 section 4.1) to find `notAfter`. Only to warn people ahead, so
//! a certificate that is not understood has no end.

use jiff::civil::{Date, date};

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]`, which a certificate's version is wrapped in.
const VERSION: u8 = 0xa0;

/// The day (UTC) on which a DER certificate ends.
pub(super) fn of(certificate: &[u8]) -> Option<Date> {
    let (body, _) = expect(SEQUENCE, certificate)?;
    let (mut fields, _) = expect(SEQUENCE, body)?;
    if let Some((_, rest)) = expect(VERSION, fields) {
        fields = rest;
    }
    // The serial number, the signature's algorithm, the issuer.
    for _ in 0..3 {
        (_, _, fields) = element(fields)?;
    }
    let (validity, _) = expect(SEQUENCE, fields)?;
    let (_, _, validity) = element(validity)?;
    let (tag, text, _) = element(validity)?;
    let digits = std::str::from_utf8(text).ok()?;
    let (year, rest) = match tag {
        // Two digits mean 1950 to 2049 (section 4.1.2.5.1).
        UTC_TIME => {
            let (year, rest) = digits.split_at_checked(2)?;
            let year: i16 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = digits.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let (month, day) = (rest.get(..2)?.parse().ok()?, rest.get(2..4)?.parse().ok()?);
    Date::new(year, month, day).ok().filter(|&end| end > date(1950, 1, 1))
}

/// The contents of the first element, if it has this tag, and what follows it.
fn expect(tag: u8, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (found, contents, rest) = element(bytes)?;
    (found == tag).then_some((contents, rest))
}

/// The first element in DER (X.690 section 8.1): its tag, its contents, and what follows it.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first & 0x80 != 0 {
        // The length of the length; a certificate of 4 GiB is none.
        let count = usize::from(first & 0x7f);
        let (digits, after) = rest.split_at_checked(count).filter(|_| (1..=4).contains(&count))?;
        length = digits.iter().fold(0, |length, &digit| (length << 8) | usize::from(digit));
        rest = after;
    }
    let (contents, rest) = rest.split_at_checked(length)?;
    Some((tag, contents, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn certificate(year: i32) -> Vec<u8> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(year, 11, 20);
        parameters.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_end_is_found_in_either_form() {
        assert_eq!(of(&certificate(2027)), Some(date(2027, 11, 20)));
        assert_eq!(of(&certificate(2051)), Some(date(2051, 11, 20)), "GeneralizedTime");
    }

    #[test]
    fn a_broken_certificate_has_no_end_and_does_no_harm() {
        let whole = certificate(2027);
        for length in 0..whole.len() {
            assert_eq!(of(&whole[..length]), None, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_crash_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = of(&bytes);
        }
    }
}
