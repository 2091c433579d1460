//! Bodies with bytes that their Content-Transfer-Encoding does not allow, decoded as Python's email package does it.

use memchr::memchr;
use std::borrow::Cow;

/// What a body decodes to.
pub(super) enum Body<'a> {
    /// These octets.
    Octets(Cow<'a, [u8]>),
    /// The same as this, which is ASCII, under the same encoding.
    Encoded(Vec<u8>),
}

/// Decodes a body; `encoding` is in lower case. What is no encoding, or cannot be decoded, is the body itself.
pub(super) fn decoded<'a>(encoding: &str, body: &'a [u8]) -> Body<'a> {
    match encoding {
        "quoted-printable" => Body::Octets(Cow::Owned(quoted_printable(body))),
        "base64" => Body::Octets(base64(body)),
        "x-uuencode" | "uuencode" | "uue" | "x-uue" if is_uuencoded(body) => {
            // A tilde is as wrong there.
            let ascii = |byte: &u8| if byte.is_ascii() { *byte } else { b'~' };
            Body::Encoded(body.iter().map(ascii).collect())
        }
        _ => Body::Octets(Cow::Borrowed(body)),
    }
}

/// As `binascii.a2b_qp`: what is wrong stands for itself.
fn quoted_printable(body: &[u8]) -> Vec<u8> {
    let mut octets = Vec::with_capacity(body.len());
    let mut rest = body;
    while let Some(at) = memchr(b'=', rest) {
        octets.extend_from_slice(rest.get(..at).unwrap_or_default());
        let behind = rest.get(at + 1..).unwrap_or_default();
        let taken = match behind {
            [] => 0,
            [b'\n' | b'\r', ..] => memchr(b'\n', behind).map_or(behind.len(), |end| end + 1),
            [b'=', ..] => {
                octets.push(b'=');
                1
            }
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                octets.push(hex(*high) << 4 | hex(*low));
                2
            }
            _ => {
                octets.push(b'=');
                0
            }
        };
        rest = behind.get(taken..).unwrap_or_default();
    }
    octets.extend_from_slice(rest);
    octets
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// As `binascii.a2b_base64`: foreign characters are skipped, padding ends it. If nothing can be made of it, it is the
/// body itself without its line ends.
fn base64(body: &[u8]) -> Cow<'_, [u8]> {
    let mut octets = Vec::with_capacity(body.len() / 4 * 3 + 3);
    let (mut bits, mut place, mut pads) = (0_u32, 0, 0);
    for &byte in body {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' if place >= 2 => {
                pads += 1;
                if place + pads >= 4 {
                    return Cow::Owned(octets);
                }
                continue;
            }
            _ => continue,
        };
        pads = 0;
        bits = (bits << 6 | u32::from(value)) & 0xff_ffff;
        if place > 0 {
            // Six bits came to the 6, 4 or 2 that were left.
            octets.push(u8::try_from(bits >> (6 - 2 * place) & 0xff).unwrap_or_default());
        }
        place = (place + 1) % 4;
    }
    if place == 1 {
        return Cow::Owned(body.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect());
    }
    Cow::Owned(octets)
}

/// Whether Python decodes it as uuencoded data: from a line "begin" on there is no empty one before "end". Anything else
/// it leaves as it is.
fn is_uuencoded(body: &[u8]) -> bool {
    let body = body.strip_suffix(b"\n").unwrap_or(body);
    let mut lines = body.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let begins = |line: &[u8]| {
        let mode = line.strip_prefix(b"begin ").and_then(|rest| rest.split(|&byte| byte == b' ').next());
        mode.is_some_and(|mode| !mode.is_empty() && mode.iter().all(|digit| matches!(digit, b'0'..=b'7')))
    };
    lines.any(begins) && !lines.take_while(|line| line.trim_ascii() != b"end").any(<[u8]>::is_empty)
}
