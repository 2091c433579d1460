use proptest::prelude::*;

use super::*;

fn from_of(raw: &[u8]) -> Option<String> {
    HeaderView::parse(raw).from()
}

/// The value of a From field, after it has been read.
fn read(value: &str) -> String {
    from_of(format!("From: {value}\r\n\r\n").as_bytes()).unwrap()
}

#[test]
fn from_is_unfolded_and_decoded() {
    let cases = [
        ("eve@x.test", "eve@x.test"),
        ("  \"Eve\"\r\n <eve@x.test>  ", "\"Eve\" <eve@x.test>"),
        ("Jürgen <eve@x.test>", "Jürgen <eve@x.test>"),
        ("=?iso-8859-1?q?J=FCrgen?= <eve@x.test>", "\"Jürgen\" <eve@x.test>"),
        ("=?ISO-8859-1*de?Q?J=fcrgen_M?= <eve@x.test>", "\"Jürgen M\" <eve@x.test>"),
        ("=?windows-1252?Q?=80?= <eve@x.test>", "\"€\" <eve@x.test>"),
        ("=?us-ascii?q?Eve?= <eve@x.test>", "\"Eve\" <eve@x.test>"),
        ("=?utf-8?b?SsO8cmdlbg==?= <eve@x.test>", "\"Jürgen\" <eve@x.test>"),
        // Careless base64: no padding.
        ("=?utf-8?B?SsO8cmdlbg?= <eve@x.test>", "\"Jürgen\" <eve@x.test>"),
        // White space between words does not count, and a character may be cut in two.
        ("=?utf-8?q?J=C3?=\r\n =?utf-8?q?=BCrgen?=\r\n <eve@x.test>", "\"Jürgen\" <eve@x.test>"),
        ("=?utf-8?q?a?= =?iso-8859-1?q?=FC?= b <eve@x.test>", "\"aü\" b <eve@x.test>"),
        // What a word says cannot change who the sender is.
        ("=?utf-8?q?M=C3=BCller=2C_J=22?= <eve@x.test>", "\"Müller, J\\\"\" <eve@x.test>"),
        ("=?utf-8?q?ceo=40corp.test?= <eve@x.test>", "\"ceo@corp.test\" <eve@x.test>"),
        ("=?utf-8?q?=3Cceo=40corp.test=3E?= <eve@x.test>", "\"<ceo@corp.test>\" <eve@x.test>"),
        ("=?utf-8?q?a=0D=0ABcc:_b?= <eve@x.test>", "\"a  Bcc: b\" <eve@x.test>"),
        // In quoted strings, where they should not be, and in comments, where they may.
        ("\"=?utf-8?q?J=C3=BC=22?= x\" <eve@x.test>", "\"Jü\\\" x\" <eve@x.test>"),
        ("eve@x.test (=?utf-8?q?J=C3=BC=29?=)", "eve@x.test (Jü\\))"),
        // Not a word: unknown charset or encoding, broken, in the middle of an atom, in an address.
        ("=?koi8-r?q?=C1?= <eve@x.test>", "=?koi8-r?q?=C1?= <eve@x.test>"),
        ("=?utf-8?x?a?= <eve@x.test>", "=?utf-8?x?a?= <eve@x.test>"),
        ("=?utf-8?q?=C?= <eve@x.test>", "=?utf-8?q?=C?= <eve@x.test>"),
        ("=?utf-8?b?!?= <eve@x.test>", "=?utf-8?b?!?= <eve@x.test>"),
        ("=?utf-8?q?a <eve@x.test>", "=?utf-8?q?a <eve@x.test>"),
        ("a=?utf-8?q?b?= <eve@x.test>", "a=?utf-8?q?b?= <eve@x.test>"),
        ("=?utf-8?q?eve?=@x.test", "=?utf-8?q?eve?=@x.test"),
        ("<=?utf-8?q?eve?=@x.test>", "<=?utf-8?q?eve?=@x.test>"),
        ("", ""),
    ];
    for (value, expected) in cases {
        assert_eq!(read(value), expected, "{value:?}");
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_windows_1252() {
    assert_eq!(from_of(b"From: J\xfcrgen \x80 <a@b.c>\r\n\r\n").unwrap(), "Jürgen € <a@b.c>");
}

#[test]
fn fields_are_found_wherever_the_header_section_ends() {
    let cases: &[(&[u8], Option<&str>)] = &[
        (b"", None),
        (b"\r\n", None),
        (b"\r\nFrom: body@x.test\r\n", None),
        (b"Subject: x\r\n\r\nFrom: body@x.test\r\n", None),
        (b"Subject: x\n\nFrom: body@x.test\n", None),
        (b"Subject: x\r\nno field\r\nFrom: body@x.test\r\n", None),
        (b" folded\r\nFrom: body@x.test\r\n", None),
        (b"From body@x.test Mon Jan 1 00:00:00\r\nFrom: body@x.test\r\n", None),
        (b"X-From: a@b.c\r\nFrom-X: a@b.c\r\nFro: a@b.c\r\n\r\n", None),
        (b"From: a@b.c", Some("a@b.c")),
        (b"fROM \t: a@b.c\n\nbody", Some("a@b.c")),
        (b"From:\r\n\t \r\n a@b.c\r\nTo: x\r\n", Some("a@b.c")),
        (b"From: a@b.c\r\nTo: x\r\nFROM: d@e.f\r\n\r\n", Some("a@b.c, d@e.f")),
        (b"From: a\x00\x0b@b.c\r\n\r\n", Some("a  @b.c")),
    ];
    for (raw, expected) in cases {
        assert_eq!(from_of(raw).as_deref(), *expected, "{}", raw.escape_ascii());
    }
}

#[test]
fn message_id_comes_with_its_brackets() {
    for (raw, expected) in [
        ("Message-Id: <a@b>\r\n\r\n", Some("<a@b>")),
        ("MESSAGE-ID:\r\n <a@b> (comment)\r\n", Some("<a@b>")),
        ("Message-ID: a@b\r\n", Some("a@b")),
        ("Message-ID: a> <\r\n", Some("a> <")),
        ("Message-ID: <1@b>\r\nMessage-ID: <2@b>\r\n", Some("<1@b>")),
        ("Message-ID: \r\n\r\n", None),
        ("Subject: x\r\n\r\nMessage-ID: <a@b>\r\n", None),
    ] {
        assert_eq!(HeaderView::parse(raw.as_bytes()).message_id().as_deref(), expected, "{raw:?}");
    }
}

#[test]
fn trace_fields_are_counted() {
    for (raw, expected) in [
        ("", 0),
        ("Received: a\r\nX: y\r\nRECEIVED:\r\n b\r\n\r\nReceived: body\r\n", 2),
        ("X-Received: a\r\n\r\n", 0),
    ] {
        assert_eq!(HeaderView::parse(raw.as_bytes()).hops(), expected, "{raw:?}");
    }
}

#[test]
fn reports_on_messages_are_known_by_any_of_their_marks() {
    for (raw, expected) in [
        ("Content-Type: multipart/report; report-type=delivery-status; boundary=x\r\n\r\n", true),
        ("content-type:\r\n Multipart/Report ;\r\n boundary=x\r\n\r\n", true),
        ("Content-Type: multipart/mixed; x=multipart/report\r\n\r\n", false),
        ("Content-Type: multipart/reports\r\n\r\n", false),
        ("Return-Path: <>\r\n\r\n", true),
        ("Return-Path:\r\n < >\r\n\r\n", true),
        ("Return-Path: <bounce@x.test>\r\n\r\n", false),
        ("Return-Path:\r\n\r\n", false),
        ("From: \"MAILER-DAEMON\" <bounce@x.test>\r\n\r\n", true),
        ("From: Mailer-Daemon@x.test\r\n\r\n", true),
        ("From: Mailer <john@x.test>\r\n\r\n", false),
        ("Subject: x\r\n\r\nContent-Type: multipart/report\r\n", false),
        ("", false),
    ] {
        assert_eq!(HeaderView::parse(raw.as_bytes()).is_delivery_report(), expected, "{raw:?}");
    }
}

#[test]
fn a_bounce_is_told_from_receipts_and_answers() {
    let report = "multipart/report; boundary=x; Report-Type";
    for (raw, expected) in [
        (format!("Content-Type: {report}=delivery-status\r\n\r\n"), true),
        (format!("Content-Type: {report}=\"delivery-status\"\r\nReturn-Path: <>\r\n\r\n"), true),
        (format!("Content-Type: {report}=disposition-notification\r\nReturn-Path: <>\r\n\r\n"), false),
        (format!("Content-Type: {report} =\r\n\tdelivery-status\r\n\r\n"), true),
        ("Content-Type: multipart/report\r\n\r\n".to_owned(), false),
        ("Content-Type: text/plain\r\nReturn-Path: <>\r\n\r\n".to_owned(), true),
        ("Return-Path: <>\r\nAuto-Submitted: Auto-Replied; x\r\n\r\n".to_owned(), false),
        ("Return-Path: <>\r\nAuto-Submitted: auto-generated\r\n\r\n".to_owned(), true),
        ("From: MAILER-DAEMON@x.test\r\n\r\n".to_owned(), true),
        ("From: a@x.test\r\n\r\nReturn-Path: <>\r\n".to_owned(), false),
    ] {
        assert_eq!(HeaderView::parse(raw.as_bytes()).is_bounce(), expected, "{raw:?}");
    }
}

#[test]
fn recipients_are_those_of_to_cc_and_bcc() {
    let raw = "To: =?utf-8?q?J=C3=BC=2C?= <B@X.test>,\r\n a@x.test\r\nTO: team: c@x.test, \"d@y.test\" <d@x.test>;\r\n\
               Cc: a@x.test\r\nBcc: e@x.test\r\nResent-To: f@x.test\r\nX-To: g@x.test\r\n\r\nTo: h@x.test\r\n";
    let recipients = HeaderView::parse(raw.as_bytes()).recipients();
    let recipients: Vec<_> = recipients.iter().map(Address::as_str).collect();
    assert_eq!(recipients, ["a@x.test", "b@x.test", "c@x.test", "d@x.test", "e@x.test"]);
    assert_eq!(HeaderView::parse(b"To: undisclosed-recipients:;\r\n\r\n").recipients().len(), 0);
}

#[test]
fn any_high_byte_makes_a_message_8_bit() {
    assert!(!HeaderView::parse(b"From: a\r\n\r\nx").is_8bit());
    assert!(HeaderView::parse("From: ä\r\n\r\nx".as_bytes()).is_8bit());
    assert!(HeaderView::parse(b"From: a\r\n\r\n\xff").is_8bit());
}

#[test]
fn only_the_from_is_replaced() {
    let cases: &[(&[u8], &[u8])] = &[
        (
            b"To: x\r\nFROM: old\r\nCc: y\r\n\r\nFrom: b\r\n",
            b"To: x\r\nFROM: <new>\r\nCc: y\r\n\r\nFrom: b\r\n",
        ),
        (b"From:old\r\n folded\r\n\tmore\r\nTo: x\r\n\r\n", b"From: <new>\r\nTo: x\r\n\r\n"),
        (b"From : 1\nTo: x\nfrom: 2\n more\nCc: y\nFROM: 3\n\nb", b"From: <new>\nTo: x\nCc: y\n\nb"),
        (b"To: x\r\nFrom: old", b"To: x\r\nFrom: <new>"),
        // Absent.
        (b"To: x\r\n\r\nbody\r\n", b"From: <new>\r\nTo: x\r\n\r\nbody\r\n"),
        (b"To: x\n\nbody\n", b"From: <new>\nTo: x\n\nbody\n"),
        (b"To: x", b"From: <new>\r\nTo: x"),
        (b"\r\nbody", b"From: <new>\r\n\r\nbody"),
        (b"\nbody", b"From: <new>\n\nbody"),
        // No header section at all: the body must not get into it.
        (b"", b"From: <new>\r\n\r\n"),
        (b" body\r\n", b"From: <new>\r\n\r\n body\r\n"),
        (b"body\n", b"From: <new>\n\nbody\n"),
    ];
    for (raw, expected) in cases {
        let expected = expected.escape_ascii().to_string().replace("<new>", "n@x.test");
        assert_eq!(with_from(raw, "n@x.test").escape_ascii().to_string(), expected, "{}", raw.escape_ascii());
    }
}

#[test]
fn the_new_from_is_encoded_and_folded() {
    let long = "Müller ".repeat(20);
    let cases = [
        ("\"Eve\" <n@x.test>", "From: \"Eve\" <n@x.test>\r\n"),
        ("\"Jürgen\" <n@x.test>", "From: =?utf-8?b?SsO8cmdlbg==?= <n@x.test>\r\n"),
        ("a@x.test, \"B\" <b@x.test>", "From: a@x.test, \"B\" <b@x.test>\r\n"),
        ("invalid", "From: invalid\r\n"),
        ("ungültig", "From: =?utf-8?b?dW5nw7xsdGln?=\r\n"),
        // An address has no encoded form.
        ("\"J\" <jörg@x.test>", "From: \"J\" <jörg@x.test>\r\n"),
        // Looks like an encoded word, and would be read as one.
        ("\"=?utf-8?q?a?=\" <n@x.test>", "From: =?utf-8?b?PT91dGYtOD9xP2E/PQ==?= <n@x.test>\r\n"),
        (
            "\"a\r\nBcc: b@x.test\r\n\r\nbody\u{85}\" <n@x.test>",
            "From: \"a  Bcc: b@x.test    body \" <n@x.test>\r\n",
        ),
        ("\"a\" <a@x.test>\r\nBcc: b", "From: \"a\" <a@x.test>\r\n"),
    ];
    for (from, expected) in cases {
        assert_eq!(
            String::from_utf8(with_from(b"\r\n", from)).unwrap(),
            format!("{expected}\r\n"),
            "{from:?}"
        );
    }
    let folded = with_from(b"From: x\r\n\r\n", &format!("\"{long}\" <n@x.test>"));
    let folded = String::from_utf8(folded).unwrap();
    assert!(folded.lines().count() > 3 && folded.lines().all(|line| line.len() <= 82), "{folded}");
    assert_eq!(from_of(folded.as_bytes()).unwrap(), format!("\"{long}\" <n@x.test>"));
}

/// Each takes minutes if the scan is quadratic.
#[test]
fn huge_header_sections_take_linear_time() {
    for unit in
        ["From: a\r\n", "X: y\r\n", "From: =?", "From: =?a?q?", "From: =?utf-8?q?a?= ", " \r\n", "(", "\"=?"]
    {
        let raw = format!("From: x\r\n {}", unit.repeat(50_000));
        with_from(raw.as_bytes(), &from_of(raw.as_bytes()).unwrap());
    }
    let raw = "From: a\r\n".repeat(50_000);
    assert_eq!(with_from(raw.as_bytes(), "b"), b"From: b\r\n");
}

/// Fragments that are likelier than random bytes to make a header section.
pub(super) fn message_bytes() -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        "(From|fRoM|To|Message-ID|Bcc|Resent-bcc|RETURN-PATH|Date|Received|X-Odoo-Objects)[ ]?:[ -~]{0,8}"
            .prop_map(String::into_bytes),
        prop::sample::select(vec![
            "\r\n",
            "\n",
            "\r",
            " ",
            "\t",
            "\r\n ",
            "\r\n\r\n",
            "=?utf-8?q?",
            "?=",
            "\"",
            "<a@b>"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..5),
    ];
    prop::collection::vec(fragment, 0..16).prop_map(|fragments| fragments.concat())
}

/// The message without certain fields, found line by line instead of by the scan under test.
pub(super) fn without(raw: &[u8], fields: &[&str]) -> Vec<u8> {
    let (mut kept, mut in_header, mut dropping) = (Vec::new(), true, None);
    for line in raw.split_inclusive(|byte| *byte == b'\n') {
        let continues = dropping.is_some() && matches!(line[0], b' ' | b'\t');
        if in_header && !continues {
            let name = line.split(|byte| *byte == b':').next().unwrap().trim_ascii_end();
            in_header =
                line.contains(&b':') && !name.is_empty() && name.iter().all(|byte| (33..127).contains(byte));
            let is_named = |field: &&str| name.eq_ignore_ascii_case(field.as_bytes());
            dropping = in_header.then(|| fields.iter().any(is_named));
        }
        if !(in_header && dropping == Some(true)) {
            kept.extend_from_slice(line);
        }
    }
    kept
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_byte_but_the_from_is_kept(raw in message_bytes(), from in any::<String>()) {
        let rewritten = with_from(&raw, &from);
        let (before, after) = (without(&raw, &["From"]), without(&rewritten, &["From"]));
        // A separator is added where there was no header section.
        let added = after.len() - before.len();
        prop_assert!(after.ends_with(&before), "{:?}", rewritten.escape_ascii().to_string());
        prop_assert!(added == 0 || (matches!(&after[..added], b"\r\n" | b"\n") && Fields::new(&raw).next().is_none()));
        prop_assert_eq!(with_from(&rewritten, &from), rewritten);
    }

    #[test]
    fn the_from_reads_back(raw in message_bytes(), name in "\\PC{0,60}", local in "[a-z0-9+._-]{1,20}") {
        let from = list::format(&name, &format!("{local}@x.test"));
        let rewritten = with_from(&raw, &from);
        prop_assert_eq!(from_of(&rewritten), Some(from));
        let message_id = HeaderView::parse(&raw).message_id();
        prop_assert_eq!(HeaderView::parse(&rewritten).message_id(), message_id);
    }

    #[test]
    fn a_new_from_is_one_folded_field(from in prop_oneof![any::<String>(), "[a@.\" <é]{0,3000}"]) {
        let rewritten = with_from(b"\r\n", &from);
        let field = rewritten.strip_suffix(b"\r\n\r\n").unwrap();
        for (count, line) in field.split(|byte| *byte == b'\n').enumerate() {
            prop_assert!(line.len() <= 999, "with its CR, a line has {} octets", line.len());
            prop_assert!(count == 0 || line.starts_with(b" "));
        }
        let carriage_returns = field.iter().filter(|byte| **byte == b'\r').count();
        prop_assert_eq!(carriage_returns, field.windows(3).filter(|bytes| bytes == b"\r\n ").count());
    }

    #[test]
    fn any_bytes_are_read(raw in prop_oneof![message_bytes(), prop::collection::vec(any::<u8>(), 0..200)]) {
        let view = HeaderView::parse(&raw);
        let text = [view.from(), view.message_id()].into_iter().flatten().collect::<String>();
        prop_assert!(!text.contains(char::is_control));
        view.recipients();
        view.is_delivery_report();
        view.is_bounce();
        prop_assert!(view.hops() <= raw.len());
        prop_assert_eq!(view.is_8bit(), raw.iter().any(|byte| *byte >= 0x80));
    }
}
