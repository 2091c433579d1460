use super::*;
use proptest::prelude::*;
use std::process::Command;

const HEADER: &[u8] = b"From: John <john@example.com>\r\nTo: anna@x.test\r\nSubject: Offer\r\n\
    Message-Id: <7-crm.lead@odoo>\r\nReferences: <5@odoo>\r\n\t<6@odoo>\r\n\r\nthe body\r\n";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn original(beginning: &[u8]) -> Original<'_> {
    Original {
        id: QueueId(1_800_000_000_000_000),
        received_at: at(0),
        mail_from: "bounce@example.com",
        message_id: Some("<7-crm.lead@odoo>"),
        beginning,
    }
}

fn refused() -> Failure {
    Failure::new(Class::Message, "550 5.1.1", "User unknown").advise("correct the address")
}

fn report_on(original: &Original<'_>, recipient: &str, failure: Failure) -> String {
    let new = reports(original, &[(recipient.to_owned(), failure)], "example.com", at(60)).unwrap();
    String::from_utf8(new.reports[0].1.to_vec()).unwrap()
}

/// A report's header and its parts, each with its header and its body, by nothing but the boundary.
fn parts(report: &str) -> (&str, Vec<(String, String)>) {
    let (header, rest) = report.split_once("\r\n\r\n").unwrap();
    let boundary = header.split_once("boundary=\"").unwrap().1.split_once('"').unwrap().0;
    let rest = rest.strip_suffix(&format!("\r\n--{boundary}--\r\n")).expect("an end");
    // The blank line between header and body is the first boundary's too.
    let rest = format!("\r\n{rest}");
    let delimiter = format!("\r\n--{boundary}\r\n");
    let mut parts = rest.split(&delimiter);
    assert_eq!(parts.next(), Some(""));
    let apart = |part: &str| {
        let (header, body) = part.split_once("\r\n\r\n").unwrap();
        (header.to_owned(), body.to_owned())
    };
    (header, parts.map(apart).collect())
}

#[test]
fn a_report_reads_as_the_rfcs_have_it() {
    let report = report_on(&original(HEADER), "anna@x.test", refused());
    let boundary = report.split_once("boundary=\"").unwrap().1.split_once('"').unwrap().0.to_owned();
    let expected = "From: Mail Delivery System <MAILER-DAEMON@example.com>\r\n\
        To: bounce@example.com\r\n\
        Subject: Undelivered mail returned to sender\r\n\
        Date: Fri, 15 Jan 2027 08:01:00 -0000\r\n\
        Message-ID: <outlook-relay.HASH@example.com>\r\n\
        In-Reply-To: <7-crm.lead@odoo>\r\n\
        References: <7-crm.lead@odoo>\r\n\
        Auto-Submitted: auto-replied\r\n\
        MIME-Version: 1.0\r\n\
        Content-Transfer-Encoding: 7bit\r\n\
        Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"BOUNDARY\"\r\n\
        \r\n--BOUNDARY\r\n\
        Content-Type: text/plain; charset=utf-8\r\n\
        Content-Transfer-Encoding: 7bit\r\n\r\n\
        The mail to anna@x.test was not delivered.\r\n\r\n\
        Seen: 550 5.1.1 User unknown\r\n\
        It was refused for good: sent again as it is, it will be refused again.\r\n\
        What to do: correct the address\r\n\r\n\
        The mail relay accepted it at Fri, 15 Jan 2027 08:00:00 -0000 as 1K4V3NBG40000.\r\n\
        \r\n--BOUNDARY\r\n\
        Content-Type: message/delivery-status\r\n\
        Content-Transfer-Encoding: 7bit\r\n\r\n\
        Reporting-MTA: dns; example.com\r\n\
        X-Outlook-Relay-Queue-ID: 1K4V3NBG40000\r\n\
        Arrival-Date: Fri, 15 Jan 2027 08:00:00 -0000\r\n\
        \r\n\
        Final-Recipient: rfc822; anna@x.test\r\n\
        Action: failed\r\n\
        Status: 5.1.1\r\n\
        Diagnostic-Code: smtp; 550 5.1.1 User unknown\r\n\
        Last-Attempt-Date: Fri, 15 Jan 2027 08:01:00 -0000\r\n\
        \r\n--BOUNDARY\r\n\
        Content-Type: text/rfc822-headers; charset=utf-8\r\n\
        Content-Transfer-Encoding: 7bit\r\n\r\n\
        From: John <john@example.com>\r\nTo: anna@x.test\r\nSubject: Offer\r\n\
        Message-Id: <7-crm.lead@odoo>\r\nReferences: <5@odoo>\r\n <6@odoo>\r\n\
        \r\n--BOUNDARY--\r\n";
    let hash = report.split_once("<outlook-relay.").unwrap().1.split_once('@').unwrap().0;
    let id = original(HEADER).id.to_string();
    let expected =
        expected.replace("BOUNDARY", &boundary).replace("HASH", hash).replace("1K4V3NBG40000", &id);
    assert_eq!(report, expected);
    assert_eq!(report, report_on(&original(HEADER), "anna@x.test", refused()), "the same each time");
    assert!(!report.contains("the body"));
}

#[test]
fn each_recipient_has_a_report_of_its_own() {
    let failed = [("one@x.test".to_owned(), refused()), ("two@x.test".to_owned(), refused())];
    let new = reports(&original(HEADER), &failed, "example.com", at(60)).unwrap();
    assert_eq!(new.message_id.as_deref(), Some("<7-crm.lead@odoo>"));
    let [(one, about_one), (two, about_two)] = new.reports.as_slice() else { panic!("{new:?}") };
    assert_eq!((one.as_str(), two.as_str()), ("one@x.test", "two@x.test"));
    let texts = [about_one, about_two].map(|raw| String::from_utf8(raw.to_vec()).unwrap());
    assert!(texts[0].contains("rfc822; one@x.test\r\n") && !texts[0].contains("two@x.test"));
    assert!(texts[1].contains("rfc822; two@x.test\r\n") && !texts[1].contains("one@x.test"));
    let ids = texts.map(|text| text.lines().find(|line| line.starts_with("Message-ID")).unwrap().to_owned());
    assert_ne!(ids[0], ids[1]);
}

#[test]
fn there_is_never_a_bounce_about_a_bounce() {
    let failed = [("a@x.test".to_owned(), refused())];
    let told = |mail_from, header: &[u8]| {
        let original = Original { mail_from, ..original(header) };
        reports(&original, &failed, "example.com", at(60)).is_some()
    };
    assert!(!told("", HEADER));
    assert!(!told(" ", HEADER));
    for header in [
        "Content-Type: multipart/report; report-type=delivery-status\r\n\r\n",
        "content-type:\r\n MULTIPART/Report\r\n\r\n",
        "From: MAILER-DAEMON <bounce@x.test>\r\nContent-Type:multipart/report\r\n\r\n",
        "From: \"MAILER-DAEMON\" <Mailer-Daemon@example.com>\r\n\r\n",
    ] {
        assert!(!told("bounce@example.com", header.as_bytes()), "{header}");
    }
    for header in [
        // Notifications are automatic too, and who wrote them wants to know.
        "From: john@example.com\r\nAuto-Submitted: auto-generated\r\n\r\n",
        // Odoo's name for its bounces, but not its address.
        "From: mailer-daemon fan <john@example.com>\r\n\r\n",
        "From: john@example.com\r\nContent-Type: multipart/mixed\r\n\r\nContent-Type: multipart/report\r\n",
        "",
    ] {
        assert!(told("bounce@example.com", header.as_bytes()), "{header}");
    }
    assert!(reports(&original(HEADER), &[], "example.com", at(60)).is_none());
}

#[test]
fn every_failure_has_a_status_and_a_diagnosis() {
    use Class::{Administrator, Consent, Message, Rate, Transient};
    let rows = [
        (Message, "550 5.1.1", "5.1.1", "smtp; 550 5.1.1 said"),
        (Message, "550 5.7.520", "5.7.520", "smtp; 550 5.7.520 said"),
        (Message, "554", "5.0.0", "smtp; 554 said"),
        (Message, "550 5.1", "5.0.0", "smtp; 550 5.1 said"),
        (Message, "550 2.1.1", "5.0.0", "smtp; 550 2.1.1 said"),
        (Message, "550 5.1.1234", "5.0.0", "smtp; 550 5.1.1234 said"),
        (Transient, "451 4.7.500", "4.7.500", "smtp; 451 4.7.500 said"),
        (Transient, "451", "4.4.7", "smtp; 451 said"),
        (Transient, "timeout", "4.4.7", "X-Outlook-Relay; timeout said"),
        (Rate, "554 5.2.252", "5.2.252", "smtp; 554 5.2.252 said"),
        (Consent, "AADSTS700082", "4.4.7", "X-Outlook-Relay; AADSTS700082 said"),
        (Administrator, "535 5.7.139", "5.7.139", "smtp; 535 5.7.139 said"),
        (Message, "too large", "5.0.0", "X-Outlook-Relay; too large said"),
        (Message, "", "5.0.0", "X-Outlook-Relay;  said"),
    ];
    for (class, code, status, diagnosis) in rows {
        let failure = Failure::new(class, code, "said");
        assert_eq!(status_of(&failure), status, "{code}");
        assert_eq!(diagnostic(&failure), diagnosis, "{code}");
        let report = report_on(&original(HEADER), "a@x.test", failure);
        assert!(report.contains("What to do: "), "{report}");
    }
}

#[test]
fn nothing_from_outside_adds_a_line_or_ends_a_part() {
    let boundary = {
        let report = report_on(&original(HEADER), "anna@x.test", refused());
        report.split_once("boundary=\"").unwrap().1.split_once('"').unwrap().0.to_owned()
    };
    let evil = format!("x\r\n\r\n--{boundary}--\r\nBcc: all@x.test\n\rX: y");
    let mut failure = refused();
    failure.code.clone_from(&evil);
    failure.reply.clone_from(&evil);
    failure.advice.clone_from(&evil);
    let header = format!("Subject: {boundary}\r\n --{boundary}--\r\n--{boundary}: x\r\nX: a\rBcc: b\r\n\r\n");
    let original = Original { mail_from: &evil, message_id: Some(&evil), ..original(header.as_bytes()) };
    let new = reports(&original, &[(evil.clone(), failure)], &evil, at(60)).unwrap();
    let report = String::from_utf8(new.reports[0].1.to_vec()).unwrap();
    let (header, parts) = parts(&report);
    assert_eq!(parts.len(), 3);
    assert_eq!(header.lines().filter(|line| line.starts_with("Bcc") || line.starts_with("X:")).count(), 0);
    assert_eq!(parts[1].1.split("\r\n\r\n").count(), 2, "two groups of fields");
    assert!(parts[2].1.contains("X: a Bcc: b\r\n"), "{}", parts[2].1);
}

#[test]
fn the_header_is_quoted_as_far_as_it_goes_and_no_further() {
    let quote = |raw: &str, most, id: Option<&str>| Fields::read(raw.as_bytes()).quote(most, id);
    let rows = [
        ("Subject: a\nTo:b\n\nbody: no\n", "Subject: a\r\nTo:b\r\n"),
        ("Subject: a\r\nnot a field\r\nTo: b\r\n\r\n", "Subject: a\r\n"),
        ("Subject: a\r\nTo: cut of", "Subject: a\r\n"),
        (" folded from nothing\r\nTo: b\r\n\r\n", ""),
        ("Message-Id : <a@b>\r\n\r\n", "Message-Id: <a@b>\r\n"),
        ("Message-Id:\r\n <a@b>\r\n \t\r\nTo: b\r\n\r\n", "Message-Id:\r\n <a@b>\r\nTo: b\r\n"),
        ("Empty:\r\nSubject: \0x\x0b\r\n\r\n", "Empty:\r\nSubject: x\r\n"),
        ("Message-Id: <>\r\nTo: b\r\nMessage-Id: <a@b>\r\n\r\n", "To: b\r\nMessage-Id: <a@b>\r\n"),
        ("Message-Id: odd\r\n <a@b>\r\nTo: b\r\n\r\n", "To: b\r\n"),
        (": no name\r\nTo: b\r\n\r\n", ""),
        ("", ""),
    ];
    for (raw, expected) in rows {
        assert_eq!(quote(raw, 1000, None), expected, "{raw:?}");
    }
    let raw = "To: b\r\nSubject: cut\r\nX: y\r\nMessage-Id: <a@b>\r\n\r\n";
    assert_eq!(quote(raw, 19 + 7, None), "To: b\r\nMessage-Id: <a@b>\r\n");
    assert_eq!(quote("To: b\r\n\r\n", 1000, Some("<a@b>")), "Message-ID: <a@b>\r\nTo: b\r\n");
    assert_eq!(quote(raw, 1000, Some("<other@b>")).matches("Message-I").count(), 1);

    let ids = "<0123456789@example.com> ".repeat(200);
    let folded = quote(&format!("References: {ids}\r\n\r\n"), 100_000, None);
    assert!(folded.lines().all(|line| line.len() < 998), "{folded}");
    let unfolded: Vec<_> = folded.split_once(':').unwrap().1.split_whitespace().collect();
    assert_eq!(unfolded, ids.split_whitespace().collect::<Vec<_>>());
    let solid = quote(&format!("X: {}\r\n\r\n", "ä".repeat(2000)), 100_000, None);
    assert!(solid.lines().all(|line| line.len() < 998));
    assert_eq!(solid.matches('ä').count(), 2000);
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-zäß ;=?<>@\"\\\\.\r\n:-]{0,2000}",
        Just("x\r\n\r\n--=_\r\nBcc: y".to_owned())
    ]
}

fn headers() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        any::<Vec<u8>>(),
        "Message-Id: <[!-~]{0,9}@?[!-~]{0,9}>?".prop_map(String::into_bytes),
        "Message-Id: <[a-z.+=!-]{0,9}@[a-z.+=!-]{0,9}>".prop_map(String::into_bytes),
        "(From|Message-Id|X-[a-z]{1,9}|Content-Type|): ?[ -~]{0,40}".prop_map(String::into_bytes),
        "[ \t]{1,1200}[!-~ ]{0,1500}".prop_map(String::into_bytes),
    ];
    prop::collection::vec(line, 0..12).prop_map(|lines| lines.join(b"\r\n".as_slice()))
}

proptest! {
    #[test]
    fn whatever_comes_in_there_are_three_parts_of_short_lines(
        header in headers(), recipient in texts(), code in texts(), reply in texts(), advice in texts(),
        mail_from in texts(), message_id in proptest::option::of(texts()), domain in texts(),
    ) {
        let mut failure = Failure::new(Class::Message, code, &reply).advise(advice);
        failure.reply = reply;
        let original = Original {
            mail_from: &format!("x{mail_from}"), message_id: message_id.as_deref(), ..original(&header)
        };
        if let Some(new) = reports(&original, &[(recipient, failure)], &domain, at(60)) {
            let report = String::from_utf8(new.reports[0].1.to_vec()).unwrap();
            prop_assert!(report.split("\r\n").all(|line| line.len() < 998 && !line.contains(['\r', '\n', '\0'])));
            let (header, parts) = parts(&report);
            let names: Vec<_> = header.split("\r\n").filter_map(|line| line.split_once(':')).map(|(n, _)| n).collect();
            prop_assert_eq!(&names[..5], ["From", "To", "Subject", "Date", "Message-ID"]);
            prop_assert!((9..=11).contains(&names.len()));
            prop_assert_eq!(parts.len(), 3);
            prop_assert_eq!(parts[1].1.split("\r\n\r\n").count(), 2);
            for line in parts[2].1.split("\r\n").filter(|line| !line.is_empty()) {
                prop_assert!(line.starts_with(' ') || line.contains(':'), "{line:?}");
            }
        }
    }
}

/// What Odoo 16 to 19 do with reports, in Python's own email package: prints what they find.
const AS_ODOO: &str = r#"
import email, email.policy, json, re, sys
from email import message_from_string

def find(raw):
    message = email.message_from_bytes(raw.encode(), policy=email.policy.SMTP)
    walked = list(message.walk())
    assert message.get_content_type() == 'multipart/report', message.get_content_type()
    assert message.get_param('report-type') == 'delivery-status'
    assert len(message.get_payload()) == 3
    assert not any(part.defects for part in walked), [part.defects for part in walked]
    contents = [part.get_content() for part in walked if part.get_content_maintype() != 'multipart']
    status = next(part for part in walked if part.get_content_type() == 'message/delivery-status')
    assert len(status.get_payload()) == 2, status.get_payload()
    bytes(status.get_payload()[0])
    quoted = next(part for part in walked if part.get_content_type() in ('message/rfc822', 'text/rfc822-headers'))
    header = message_from_string(quoted.get_content(), policy=email.policy.SMTP)
    assert header.get_payload() == '', header.get_payload()
    everything = lambda message, name: ' '.join(message.get_all(name, []))
    return {
        'from': everything(message, 'From'),
        'to': everything(message, 'To'),
        'message_id': everything(message, 'Message-Id'),
        'references': everything(message, 'References') + everything(message, 'In-Reply-To'),
        'recipient': everything(status.get_payload()[1], 'Final-Recipient').split(';', 1)[1].strip(),
        'found': re.findall('<[^<>]+>', everything(header, 'Message-Id')),
        'subject': everything(header, 'Subject'),
        'reason': contents[0],
    }

found = []
for number, raw in enumerate(json.load(sys.stdin)):
    try:
        found.append(find(raw))
    except Exception:
        print(number, repr(raw), file=sys.stderr)
        raise
print(json.dumps(found))
"#;

fn as_odoo(reports: &[String]) -> Vec<serde_json::Value> {
    use std::io::Write as _;
    let mut python = Command::new("python3");
    let piped = std::process::Stdio::piped;
    let python = python.args(["-c", AS_ODOO]).stdin(piped()).stdout(piped()).stderr(piped()).spawn();
    let mut python = python.expect("python3");
    let written = serde_json::to_vec(reports).unwrap();
    python.stdin.take().unwrap().write_all(&written).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn odoo_can_read_a_report_whatever_came_in() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let inputs = (
        headers(),
        texts(),
        texts(),
        texts(),
        prop_oneof!["[!-~]{1,40}@[!-~]{1,40}", "[a-zä.+=!-]{1,9}@[a-zä.-]{1,9}"],
        texts(),
    );
    let mut written = Vec::new();
    while written.len() < 300 {
        let (header, recipient, code, reply, mail_from, id) = inputs.new_tree(&mut runner).unwrap().current();
        let mut failure = Failure::new(Class::Message, code, &reply);
        failure.reply = reply;
        let original = Original { mail_from: &mail_from, message_id: Some(&id), ..original(&header) };
        if let Some(new) = reports(&original, &[(recipient, failure)], "example.com", at(60)) {
            written.push(String::from_utf8(new.reports[0].1.to_vec()).unwrap());
        }
    }
    for found in as_odoo(&written) {
        assert_eq!(found["from"], "Mail Delivery System <MAILER-DAEMON@example.com>");
    }
}

#[test]
fn odoo_finds_in_a_report_what_it_looks_for() {
    let rows: [(&str, &[u8], &str, &str); 6] = [
        ("anna@x.test", HEADER, "User unknown", "Offer"),
        ("anna@x.test", HEADER, "Empfänger unbekannt 😊", "Offer"),
        ("élodie@x.test", HEADER, "User unknown", "Offer"),
        (
            "anna@x.test",
            "Subject: Grüße\r\nMessage-ID:\r\n <7-crm.lead@odoo>\r\n\r\n".as_bytes(),
            "no",
            "Grüße",
        ),
        (
            "anna@x.test",
            b"Received: \xff\xfe\r\nSubject: caf\xe9\r\nMessage-Id: <7-crm.lead@odoo>\r\n\r\n",
            "no",
            "caf\u{fffd}",
        ),
        ("anna@x.test", b"", "no", ""),
    ];
    for (recipient, header, reply, subject) in rows {
        let failure = Failure::new(Class::Message, "550 5.1.1", reply);
        let found = as_odoo(&[report_on(&original(header), recipient, failure)]).remove(0);
        assert_eq!(found["from"], "Mail Delivery System <MAILER-DAEMON@example.com>");
        assert_eq!(found["to"], "bounce@example.com");
        assert_eq!(found["recipient"], recipient);
        assert_eq!(found["found"], serde_json::json!(["<7-crm.lead@odoo>"]));
        assert_eq!(found["subject"], subject);
        let reason = found["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("The mail to {recipient} was not delivered.\r\n")), "{reason}");
        assert!(reason.contains(&format!("Seen: 550 5.1.1 {reply}")), "{reason}");
    }
}
