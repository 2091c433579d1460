use proptest::prelude::*;

use super::tests::{message_bytes, without};
use super::*;
use jiff::Timestamp;

const TRACE: Trace<'static> = Trace {
    client: Some("[127.0.0.1]"),
    host: "relay.example.com",
    protocol: "ESMTP",
    id: "1K3V9Q0ZB4",
    received_at: Timestamp::UNIX_EPOCH,
    domain: "example.com",
};
/// What stands on top of every message.
const RECEIVED: &str = "Received: from [127.0.0.1] by relay.example.com (outlook-relay) with ESMTP\r\n \
                        id 1K3V9Q0ZB4; Thu, 01 Jan 1970 00:00:00 +0000\r\n";
const DATE: &str = "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n";
const ID: &str = "Message-ID: <1K3V9Q0ZB4@example.com>\r\n";

fn sent(raw: &str, new_from: Option<&str>) -> String {
    String::from_utf8(outbound(raw.as_bytes(), &TRACE, new_from)).unwrap()
}

#[test]
fn what_goes_out_has_its_trace_and_no_secrets() {
    // Each has a Date and a Message-ID.
    let cases = [
        (
            "From: a@x.test\r\nTo: b@x.test\r\n\r\nBcc: body\r\n",
            "From: a@x.test\r\nTo: b@x.test\r\n\r\nBcc: body\r\n",
        ),
        ("Bcc: b@x.test\r\nTo: c@x.test\r\n\r\n", "To: c@x.test\r\n\r\n"),
        (
            "To: a\r\nBCC:\r\n b@x.test,\r\n\tc@x.test\r\nCc: d\r\nbcc : e\r\nResent-BCC: f\r\n\r\nx",
            "To: a\r\nCc: d\r\n\r\nx",
        ),
        (
            "Return-Path: <bounce@x.test>\r\nX-Odoo-Objects: crm.lead-1\r\n\r\n",
            "X-Odoo-Objects: crm.lead-1\r\n\r\n",
        ),
        (
            "X-Bcc: a\r\nBcc-X: b\r\nReturn-Path-X: c\r\n\r\n",
            "X-Bcc: a\r\nBcc-X: b\r\nReturn-Path-X: c\r\n\r\n",
        ),
        (
            "References: <1@x>\r\n <2@x>\r\nReceived: by y\r\n\r\n",
            "References: <1@x>\r\n <2@x>\r\nReceived: by y\r\n\r\n",
        ),
        ("Bcc: a", ""),
    ];
    let known = "Date: Sat, 1 Jan 2000 00:00:00 +0000\r\nMessage-Id: <1@x.test>\r\n";
    for (raw, expected) in cases {
        assert_eq!(sent(&format!("{known}{raw}"), None), format!("{RECEIVED}{known}{expected}"), "{raw:?}");
    }
}

#[test]
fn date_and_message_id_are_added_where_they_are_missing() {
    let cases = [
        ("To: a\r\n\r\nx", format!("{DATE}{ID}To: a\r\n\r\nx")),
        ("DATE: today\r\n\r\nx", format!("{ID}DATE: today\r\n\r\nx")),
        ("message-id: <1@x>\r\n\r\nx", format!("{DATE}message-id: <1@x>\r\n\r\nx")),
        ("Date: \r\nMessage-ID:\r\n \r\nTo: a\r\n\r\nx", format!("{DATE}{ID}To: a\r\n\r\nx")),
        (
            "Date:\r\nDate: today\r\nMessage-ID: 1\r\n\r\n",
            "Date:\r\nDate: today\r\nMessage-ID: 1\r\n\r\n".to_owned(),
        ),
        // No header section: the body must not get into the new one.
        ("", format!("{DATE}{ID}\r\n")),
        ("\r\nDate: body", format!("{DATE}{ID}\r\nDate: body")),
        ("body\r\n", format!("{DATE}{ID}\r\nbody\r\n")),
    ];
    for (raw, expected) in cases {
        assert_eq!(sent(raw, None), format!("{RECEIVED}{expected}"), "{raw:?}");
    }
}

#[test]
fn the_from_is_rewritten_as_ever() {
    let known = "Date: today\r\nMessage-ID: <1@x>\r\n";
    let raw = format!("Bcc: b\r\n{known}FROM: old\r\n more\r\nTo: a\r\nFrom: again\r\n\r\nFrom: body\r\n");
    let expected = format!("{RECEIVED}{known}FROM: \"N\" <n@x.test>\r\nTo: a\r\n\r\nFrom: body\r\n");
    assert_eq!(sent(&raw, Some("\"N\" <n@x.test>")), expected);
    assert_eq!(sent(known, Some("n@x.test")), format!("{RECEIVED}From: n@x.test\r\n{known}"));
    // Bare line feeds stay what they are.
    let expected = format!("{RECEIVED}{DATE}{ID}From: n@x.test\r\nTo: a\r\n\r\nx\r\n").replace('\r', "");
    assert_eq!(sent("To: a\n\nx\n", Some("n@x.test")), expected);
}

#[test]
fn a_trace_cannot_break_the_header() {
    let cases: &[(Trace<'_>, &str)] = &[
        (
            Trace { client: None, ..TRACE },
            "Received: by relay.example.com (outlook-relay) with ESMTP id 1K3V9Q0ZB4;",
        ),
        (Trace { client: Some("x\r\nBcc: y"), ..TRACE }, "Received: by relay.example.com (outlook-relay)"),
        (
            Trace { client: Some("x (outlook-relay"), ..TRACE },
            "Received: by relay.example.com (outlook-relay)",
        ),
        (Trace { client: Some(""), ..TRACE }, "Received: by relay.example.com (outlook-relay)"),
        (
            Trace { host: "höst", ..TRACE },
            "Received: from [127.0.0.1] by localhost (outlook-relay) with ESMTP",
        ),
        (
            Trace { protocol: "", ..TRACE },
            "Received: from [127.0.0.1] by relay.example.com (outlook-relay) with SMTP",
        ),
    ];
    for (trace, expected) in cases {
        let sent = String::from_utf8(outbound(b"To: a\r\n\r\n", trace, None)).unwrap();
        assert!(sent.starts_with(expected), "{sent}");
        assert_eq!(received_ids(sent.as_bytes()), [TRACE.id]);
    }
    assert_eq!(Trace { domain: "müller.test", ..TRACE }.message_id(), "<1K3V9Q0ZB4@relay.example.com>");
    assert_eq!(Trace { domain: "", host: "a b", ..TRACE }.message_id(), "<1K3V9Q0ZB4@localhost>");
    let long = "x".repeat(255);
    let sent = outbound(b"\r\n", &Trace { client: Some(&long), host: &long, domain: &long, ..TRACE }, None);
    assert!(sent.split(|byte| *byte == b'\n').all(|line| line.len() < 998));
}

#[test]
fn ids_are_read_back_from_received_fields_however_they_are_folded() {
    let cases: &[(&str, &[&str])] = &[
        ("Received: by h (outlook-relay) with ESMTP id A1; date", &["A1"]),
        ("Received: from c by h (outlook-relay) with ESMTP id A1; date", &["A1"]),
        (
            "RECEIVED:\r\n\tFROM\r\n c\r\n\tBY\r\n h\r\n\t(outlook-relay)\r\n\tWITH ESMTP\r\n ID\r\n\tA1\r\n ;\r\n date",
            &["A1"],
        ),
        (
            "Received: from c (c.test [192.0.2.1] (a (b) by)) by h (outlook-relay)with ESMTP (TLS) id A1;date",
            &["A1"],
        ),
        ("Received: from c by h\r\n (outlook-relay) id A1", &["A1"]),
        (
            "Received: by h2 (outlook-relay) id B2; d\r\nX: y\r\nReceived: by m id M; d\r\nReceived: by h (outlook-relay) id A1; d",
            &["B2", "A1"],
        ),
        // Another's, or broken.
        ("Received: by h (Postfix) with ESMTP id A1; date", &[]),
        ("Received: from h (outlook-relay) by m (Postfix) with ESMTP id A1; date", &[]),
        ("Received: from by (outlook-relay) id A1; date", &[]),
        ("Received: by h (Outlook-Relay 2) id A1; date", &[]),
        ("Received: by h (outlook-relay) with ESMTP; id A1", &[]),
        ("Received: by h (outlook-relay) with ESMTP id", &[]),
        ("Received: by h (outlook-relay) with ESMTP id (A1); date", &[]),
        ("Received: by h (outlook-relay", &[]),
        ("X-Received: by h (outlook-relay) id A1; date", &[]),
        ("Received:", &[]),
        ("Subject: x\r\n\r\nReceived: by h (outlook-relay) id A1; date", &[]),
    ];
    for (raw, expected) in cases {
        assert_eq!(received_ids(raw.as_bytes()), *expected, "{raw:?}");
    }
}

#[test]
fn huge_messages_take_one_allocation_and_linear_time() {
    let known = "Date: today\r\nMessage-ID: <1@x>\r\n";
    for unit in [
        "Bcc: a\r\n",
        "From: a\r\n",
        "Received: (\r\n",
        "Date: \r\n",
        "Message-ID:\r\n",
        " (\r\n",
        "X: y\r\n",
    ] {
        let raw = format!("{known}{}\r\n{}", unit.repeat(50_000), "body\r\n".repeat(100_000));
        let from = format!("\"{}\" <n@x.test>", "ü".repeat(500));
        let sent = outbound(raw.as_bytes(), &TRACE, Some(&from));
        assert!(sent.capacity() < raw.len() + 4_000, "{unit:?}: {} for {}", sent.capacity(), raw.len());
        assert_eq!(received_ids(&sent), [TRACE.id], "{unit:?}");
    }
    let open = format!("Received: by h {}", "(".repeat(500_000));
    assert_eq!(received_ids(open.as_bytes()), Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_other_byte_is_kept(raw in message_bytes(), from in prop::option::of(any::<String>())) {
        let sent = outbound(&raw, &TRACE, from.as_deref());
        let header = HeaderView::parse(&sent);
        prop_assert_eq!(header.hops(), HeaderView::parse(&raw).hops() + 1);
        prop_assert_eq!(&received_ids(&sent)[..1], [TRACE.id]);
        prop_assert!(header.message_id().is_some());
        for gone in ["Bcc", "Resent-Bcc", "Return-Path"] {
            prop_assert_eq!(header.fields(gone).count(), 0);
        }
        prop_assert!(header.fields("Date").any(|field| !field.text().is_empty()));
        let id = HeaderView::parse(&raw).message_id();
        prop_assert_eq!(header.message_id(), id.or_else(|| Some(TRACE.message_id())));
        if from.is_none() {
            prop_assert_eq!(header.from(), HeaderView::parse(&raw).from());
        }

        // All fields that the relay may touch taken out of both, the rest is the same.
        let touched = ["Received", "Date", "Message-ID", "Bcc", "Resent-Bcc", "Return-Path", "From"];
        let (before, after) = (without(&raw, &touched), without(&sent, &touched));
        let separator = after.len() - before.len();
        prop_assert!(after.ends_with(&before), "{:?}", sent.escape_ascii().to_string());
        prop_assert!(separator == 0 || (separator <= 2 && Fields::new(&raw).next().is_none()));
        // And what was there of them comes in the same order behind what was added.
        let kept = without(&raw, &["Bcc", "Resent-Bcc", "Return-Path"]);
        if from.is_none() && HeaderView::parse(&kept).fields("Date").all(|field| !field.text().is_empty())
            && HeaderView::parse(&kept).fields("Message-ID").all(|field| !field.text().is_empty())
        {
            prop_assert!(sent.ends_with(&kept));
        }
    }

    #[test]
    fn the_id_is_read_back(id in "[0-9A-Z]{1,13}", client in prop::option::of(any::<String>()), host in "[ -~]{0,20}") {
        let trace = Trace { id: &id, client: client.as_deref(), host: &host, ..TRACE };
        let sent = outbound(b"To: a\r\n\r\nx", &trace, None);
        prop_assert_eq!(received_ids(&sent), [id.as_str()]);
        // However it is folded on the way.
        let (header, _) = std::str::from_utf8(&sent).unwrap().split_once("\r\nDate").unwrap();
        let folded = header.replace("\r\n", "").replace(' ', "\r\n\t \r\n\t");
        prop_assert_eq!(received_ids(folded.as_bytes()), [id.as_str()]);
    }

    #[test]
    fn any_received_field_is_read(value in "[ -~()éß;]{0,60}", marked in any::<bool>()) {
        let marker = if marked { "by h (outlook-relay) " } else { "" };
        let found = received_ids(format!("Received: {marker}{value}\r\n\r\n").as_bytes());
        prop_assert!(found.len() <= 1);
    }
}
