use super::*;
use proptest::prelude::*;

#[test]
fn what_is_utf8_already_is_not_touched() {
    for raw in ["", "Subject: Grüße\r\n\r\nschön\0\r\n", "\u{feff}no: field"] {
        assert!(matches!(text(raw.as_bytes()), Cow::Borrowed(same) if same == raw));
    }
}

#[test]
fn only_what_must_change_does() {
    let rows: [(&[u8], &str); 7] = [
        (
            b"Subject: x\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\n\xe9\r\n",
            "Subject: x\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: base64\r\n\r\n6Q0K\r\n",
        ),
        // The encoding keeps its place.
        (
            b"content-transfer-encoding:\r\n 8bit\r\nTo: a@x.test\r\n\r\n\xe9",
            "Content-Transfer-Encoding: base64\r\nTo: a@x.test\r\n\r\n6Q==\r\n",
        ),
        (
            b"Content-Transfer-Encoding: quoted-printable\r\n\r\n=E9\xe9",
            "Content-Transfer-Encoding: base64\r\n\r\n6ek=\r\n",
        ),
        // A header as Python reads it.
        (b"Subject: \xe9\xc3\xa9\r\n\r\n7 bit\r\n", "Subject: \u{fffd}\u{e9}\r\n\r\n7 bit\r\n"),
        (b"Subject: =?iso-8859-1?Q?\xe9=E8_x?= y\r\n\r\n", "Subject: =?iso-8859-1?Q?=E9=E8_x?= y\r\n\r\n"),
        // Of a multipart, the one part.
        (
            b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nA: b\r\n\r\n7 bit\r\n--b\r\n\r\n\xe9\r\n--b--\r\n",
            "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nA: b\r\n\r\n7 bit\r\n--b\r\n\
             Content-Transfer-Encoding: base64\r\n\r\n6Q==\r\n--b--\r\n",
        ),
        (b"\xe9", "Content-Transfer-Encoding: base64\r\n\r\n6Q==\r\n"),
    ];
    for (raw, expected) in rows {
        assert_eq!(text(raw), expected, "{}", raw.escape_ascii());
    }
}

#[test]
fn a_boundary_that_nobody_reads_alike_keeps_the_structure() {
    let raw =
        b"Content-Type: multipart/mixed; boundary*0=a; boundary*1=b\r\n\r\n--ab\r\n\r\n\xe9\r\n--ab--\r\n";
    assert_eq!(text(raw), String::from_utf8_lossy(raw));
}

#[test]
fn nothing_is_too_deep_or_too_long() {
    let nested = |depth: usize| {
        let open: String = (0..depth)
            .map(|n| format!("Content-Type: multipart/mixed; boundary=b{n}\r\n\r\n--b{n}\r\n"))
            .collect();
        [open.as_bytes(), b"\r\n\xe9\r\n"].concat()
    };
    assert!(text(&nested(60)).is_ascii());
    for raw in [nested(20_000), "Content-Type: message/rfc822\r\n\r\n".repeat(100_000).into_bytes()] {
        let raw = [&raw[..], b"\r\n\xe9\r\n"].concat();
        assert!(text(&raw).len() < 2 * raw.len());
    }
    let long =
        [&b"Subject: \xe9"[..], &b"=?a?q?".repeat(100_000), b"\r\n\r\n", &vec![0xe9; 1 << 20]].concat();
    assert!(text(&long).len() < 2 * long.len());
}

proptest! {
    #[test]
    fn any_bytes_become_text_once(raw in any::<Vec<u8>>()) {
        let once = text(&raw);
        prop_assert_eq!(text(once.as_bytes()), once.as_ref());
        prop_assert!(once.len() <= 3 * raw.len() + 100);
    }

    #[test]
    fn under_a_7_bit_header_the_result_is_7_bit(
        name in "[!-9;-~]{1,20}", value in "[ -~]{0,60}", body in any::<Vec<u8>>()
    ) {
        let raw = [format!("X{name}: {value}\r\n\r\n").as_bytes(), &body, b"\xff"].concat();
        prop_assert!(text(&raw).is_ascii());
    }

    #[test]
    fn a_body_is_the_same_octets(body in any::<Vec<u8>>()) {
        let body = [&body[..], b"\xff"].concat();
        let raw = [b"\r\n", &body[..]].concat();
        let written = text(&raw);
        let (head, encoded) = written.split_once("\r\n\r\n").unwrap();
        prop_assert_eq!(head, "Content-Transfer-Encoding: base64");
        prop_assert_eq!(STANDARD.decode(encoded.replace("\r\n", "")).unwrap(), body);
    }
}
