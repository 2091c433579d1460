//! A message as text is the same message: Python's email package, which Odoo reads mail with, finds the same parts.

use super::gateway::gateway;
use crate::support::odoo::Odoo;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use outlook_relay::message::text;
use outlook_relay::odoo::{Intake, Protocol};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::path::Path;
use tokio::io::AsyncWriteExt;

/// In what the messages differ from what `text` makes of them.
async fn differences(messages: &[(String, Vec<u8>)]) -> Vec<String> {
    let rows: Vec<_> =
        messages.iter().map(|(name, raw)| (name, STANDARD.encode(raw), text(raw).into_owned())).collect();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/same_parts.py");
    let mut python = tokio::process::Command::new("python3")
        .arg(script)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    let input = serde_json::to_vec(&rows).unwrap();
    let (written, output) = tokio::join!(
        async move {
            let written = stdin.write_all(&input).await;
            drop(stdin);
            written
        },
        python.wait_with_output()
    );
    let output = output.unwrap();
    assert!(output.status.success(), "the script failed");
    written.unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

fn mail(fields: &str, body: &[u8]) -> Vec<u8> {
    [fields.as_bytes(), b"\r\n", body].concat()
}

/// Latin-1: the characters up to U+00FF as one byte each.
fn latin(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(c).unwrap()).collect()
}

/// What mailboxes really hold.
fn corpus() -> Vec<(String, Vec<u8>)> {
    const TEXT: &str = "Content-Type: text/plain; charset=iso-8859-1\r\n";
    let binary: Vec<u8> = (0..=255).cycle().take(3000).collect();
    let tnef = [&[0x78, 0x9f, 0x3e, 0x22, 0, 0, 1][..], &binary].concat();
    let nested = latin(
        "Subject: Grüße\r\nContent-Type: multipart/mixed; boundary=\"outer\"\r\n\r\nPräambel\r\n--outer\r\n\
         Content-Type: multipart/alternative; boundary=inner\r\n\r\n--inner\r\n\
         Content-Type: text/plain; charset=windows-1252\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n\
         --inner\r\nContent-Type: text/html; charset=windows-1252\r\n\r\n<p>Grüße</p>\r\n--inner--\r\n\r\n--outer\r\n\
         Content-Type: message/rfc822\r\nContent-Transfer-Encoding: 8bit\r\n\r\nFrom: J\u{fc}rgen <j@x.test>\r\n\
         Subject: =?iso-8859-1?Q?Gr\u{fc}\u{df}e?= x\r\nContent-Type: multipart/mixed; boundary=third\r\n\r\n\
         --third\r\n\r\nschön\r\n--third\r\nContent-Disposition: attachment; filename=\"Maß.pdf\"\r\n\
         Content-Transfer-Encoding: binary\r\n\r\n\u{ff}\u{0}\u{1}\r\n\r\n--third--\r\nNachspann ß\r\n\
         --outer--\r\nEpilög\r\n",
    );
    let headers: String = (0..5000).map(|n| format!("X-Long-{n}: ä {}\r\n", "x".repeat(100))).collect();
    let status = "Content-Type: multipart/report; report-type=delivery-status; boundary=r\r\n\r\n--r\r\n\r\nunzustellbar: \
                  für\r\n--r\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; m\r\n\r\n\
                  Final-Recipient: rfc822; a@x.test\r\nDiagnostic-Code: smtp; 550 ungültig\r\n\r\n--r\r\n\
                  Content-Type: text/rfc822-headers\r\n\r\nMessage-ID: <1@x.test>\r\nSubject: ä\r\n\r\n--r--\r\n";
    let part = |fields: &str, body: &[u8]| {
        let head = format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n{fields}\r\n");
        [head.as_bytes(), body, b"\r\n--b\r\n\r\nlast \xe9\r\n--b--\r\n"].concat()
    };
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("latin-1", mail(TEXT, &latin("Grüße\r\n"))),
        ("no charset", mail("Content-Type: text/plain\r\n", b"Gr\xfc\xdfe")),
        ("a charset that does not exist", mail("Content-Type: text/plain; charset=x-unknown\r\n", b"\xe9\r\n")),
        ("UTF-8 that is not", mail("Content-Type: text/plain; charset=utf-8\r\n", b"\xc3\xa9 \xe9\r\n")),
        ("Shift-JIS", mail("Content-Type: text/plain; charset=shift_jis\r\n", b"\x93\xfa\x96\x7b\x8c\xea\r\n")),
        ("GB2312, lone surrogates in UTF-8", mail("Content-Type: text/html; charset=gb2312\r\n", b"\xed\xa0\x80\xc4\xe3")),
        ("UTF-16", mail("Content-Type: text/plain; charset=utf-16\r\n", b"\xff\xfea\x00\r\x00\n\x00\xe9\x00")),
        ("nested", nested),
        ("winmail.dat", part("Content-Type: application/ms-tnef; name=\"winmail.dat\"\r\nContent-Disposition: attachment; filename=\"winmail.dat\"\r\n", &tnef)),
        ("winmail.dat, binary", part("Content-Type: application/ms-tnef\r\nContent-Transfer-Encoding: BINARY\r\n", &tnef)),
        ("no header at all", b"\r\nGr\xfc\xdfe\r\n".to_vec()),
        ("nothing but bytes", vec![0xe9]),
        ("a body at once", b"Gr\xfc\xdfe: no\r\nno field\r\n".to_vec()),
        ("a body at once, behind fields", b"A: \xe9\r\nno field \xe9\r\n\r\nmore\r\n".to_vec()),
        ("no blank line", b"A: b\r\nC: \xe9".to_vec()),
        ("NUL", mail("Subject: a\0b\r\n", b"a\0\xe9\0\r\n")),
        ("huge header", mail(&headers, b"\xe9\r\n")),
        ("a long header", mail(&format!("Subject: {}\r\n", "é ".repeat(20_000)), b"\xe9\r\n")),
        ("latin-1 header", [&latin("From: \"Müller, Jürgen\" <j@x.test>\r\nTo: Zoë <z@x.test>\r\nSubject: Grüße aus Köln\r\n")[..], b"\r\n\xe9"].concat()),
        ("a header cut in a character", b"Subject: a\xc3\r\n \xa9b\r\n\r\n\xe9".to_vec()),
        ("encoded words with bytes", latin("Subject: =?iso-8859-1?q?Gr\u{fc}=DFe?= =?utf-8?b?w6\u{e9}k=?= =?x?q?\u{e9}?=\r\n\r\n\u{e9}")),
        ("quoted-printable with bytes", mail("Content-Transfer-Encoding: Quoted-Printable\r\n", b"a=\xe9==\xe9=E9=4\xe9=\r\n\xe9 =\r\xe9\nx==E9 = \r\n=")),
        ("base64 with bytes", mail("Content-Transfer-Encoding: base64\r\n", b"R3L8\xe93/5\r\nQ\xe9Q==\r\nR3L8\r\n")),
        ("base64 that lies", mail("Content-Transfer-Encoding: base64\r\n", b"\xc4 plain text\r\nwith a line\r\n")),
        ("base64 of impossible length", mail("Content-Transfer-Encoding: base64\r\n", b"R3L8\xe9\r\nR\r\n")),
        ("7bit that lies", mail("Content-Transfer-Encoding: 7bit\r\n", b"\xe9\r\n")),
        ("an encoding that does not exist", mail("Content-Transfer-Encoding: x-gzip\r\n", b"\xe9\r\n")),
        ("an odd encoding", mail("Content-Transfer-Encoding: base64 (really)\r\n", b"\xe9\r\n")),
        ("two encodings", mail("Content-Transfer-Encoding:\r\n 8bit\r\nContent-Transfer-Encoding: base64\r\n", b"\xe9\r\n")),
        ("uuencode", mail("Content-Transfer-Encoding: x-uuencode\r\n", b"f\xfcr dich\r\nbegin 644 a.txt\r\n#0V%T\r\n \r\nend\r\n\xe9\r\n")),
        ("uuencode without an end", mail("Content-Transfer-Encoding: uuencode\r\n", b"begin 644 \xe9.txt\r\n#0V%T\r\n")),
        ("uuencode inside text", mail("", b"f\xfcr dich\r\nbegin 644 a.txt\r\n#0V%T\r\n`\r\nend\r\n")),
        ("delivery report", latin(status)),
        ("digest", b"Content-Type: multipart/digest; boundary=d\r\n\r\n--d\r\n\r\nSubject: \xe9\r\n\r\n\xe9\r\n--d--\r\n".to_vec()),
        ("no boundary", mail("Content-Type: multipart/mixed\r\n", b"--b\r\n\r\n\xe9\r\n--b--\r\n")),
        ("another boundary", mail("Content-Type: multipart/mixed; boundary=c\r\n", b"--b\r\n\r\n\xe9\r\n--b--\r\n")),
        ("only the closing boundary", mail("Content-Type: multipart/mixed; boundary=b\r\n", b"\xe9\r\n--b--\r\nend \xe9\r\n")),
        ("no closing boundary", mail("Content-Type: multipart/mixed; boundary=b\r\n", b"--b\r\n\r\n\xe9\r\n--b\r\n\r\n\xe8\r\n")),
        ("a boundary that is a prefix", mail("Content-Type: multipart/mixed; boundary=b\r\n", b"--b \t\r\n\r\n--bb\r\n\xe9\r\n--b-\r\n--b--\r\n")),
        ("a boundary with a byte", mail("Content-Type: multipart/mixed; boundary=\"\u{fffd}b\"\r\n", b"--\xef\xbf\xbdb\r\n\r\n\xe9\r\n--\xef\xbf\xbdb--\r\n")),
        ("odd boundaries", mail("Content-Type: multipart/mixed; x=\"a;b\\\"; boundary=no\"; boundary = \"a\\\"b \" (c)\r\n", b"--a\"b\r\n\r\n\xe9\r\n--a\"b--\r\n")),
        ("a boundary cut at its equals sign", mail("Content-Type: multipart/mixed; boundary=--=_x\r\n", b"----\r\n\r\n\xe9\r\n------\r\n")),
        ("an inner part ended by the outer boundary", latin("Content-Type: multipart/mixed; boundary=o\r\n\r\n--o\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\né\r\n--o\r\n\r\nè\r\n--o--\r\n")),
        ("the same boundary twice", latin("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\né\r\n--b--\r\nè\r\n--b--\r\n")),
        ("delimiters without parts", latin("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n--b\r\n--b--\r\n\r\né\r\n--b--\r\nè\r\n")),
        ("lone CR and LF", b"Subject: a\rContent-Type: multipart/mixed; boundary=b\n\r--b\rA: \xe9\n\n\xe9\r--b\n\r\xe8\n--b--".to_vec()),
        ("From lines", b"From a@x.test Mon\r\nSubject: x\r\nFrom b@x.test\r\nX: y\r\nFrom c@x.test\r\n\r\n\xe9\r\n".to_vec()),
        ("a continuation first", b" folded\r\nSubject: x\r\n\r\n\xe9\r\n".to_vec()),
        ("a space before the colon", b"Subject: x\r\nContent-Type : text/html\r\n\r\n\xe9\r\n".to_vec()),
        ("no field name", b": x\r\nSubject: x\r\n\r\n\xe9\r\n".to_vec()),
        ("a message in base64", latin("Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\nSGk=\r\né\r\n")),
        ("text/xml", mail("Content-Type: text/xml\r\n", b"<a>\xe9</a>")),
        ("file names", part("Content-Disposition: attachment; filename*=iso-8859-1''Gr%FC%DFe.txt; x=\"\u{e9}\"\r\n", b"\xe9")),
        ("very deep", latin(&format!("{}\r\né\r\n", "Content-Type: message/rfc822\r\n\r\n".repeat(40)))),
        ("UTF-8", mail(TEXT, "Grüße\r\n".as_bytes())),
    ];
    rows.into_iter().map(|(name, raw)| (name.to_owned(), raw)).collect()
}

#[tokio::test]
async fn python_reads_the_same_in_odd_mails() {
    let corpus = corpus();
    assert_eq!(differences(&corpus).await, Vec::<String>::new());
    let damaged: Vec<_> = corpus
        .iter()
        .filter(|(_, raw)| std::str::from_utf8(raw).is_err())
        .map(|(name, raw)| (name.clone(), String::from_utf8_lossy(raw).into_owned()))
        .collect();
    assert!(damaged.len() > 50, "{}", damaged.len());
}

#[tokio::test]
async fn odd_mails_are_pushed_byte_for_byte_over_xmlrpc_and_as_their_text_over_json() {
    for protocol in [Protocol::XmlRpc, Protocol::Json2] {
        let odoo = Odoo::start().await;
        let gateway = gateway(&odoo, |config| config.protocol = protocol);
        for (name, raw) in corpus() {
            gateway.push(&raw, &Intake::default(), &name).await.unwrap();
            let expected = match protocol {
                Protocol::XmlRpc => raw,
                Protocol::Json2 => text(&raw).into_owned().into_bytes(),
            };
            assert!(*odoo.posts().last().unwrap().raw == expected, "{name}, {protocol:?}");
        }
    }
}

/// Lines that mean something to whoever takes mails apart, in any order.
fn lines() -> impl Strategy<Value = Vec<u8>> {
    let pieces: Vec<&'static [u8]> = vec![
        b"Content-Type: multipart/mixed; boundary=a",
        b"Content-Type: multipart/mixed; boundary=\"b\"",
        b"Content-Type: multipart/digest; boundary=a",
        b"Content-Type: message/rfc822",
        b"Content-Type: text/html",
        b"Content-Type: text/plain; charset=iso-8859-1",
        b"content-type: text/plain; name=\"\xe9\"",
        b"--a",
        b"--b",
        b"--a--",
        b"--b--",
        b"--a ",
        b"Content-Transfer-Encoding: base64",
        b"Content-Transfer-Encoding: quoted-printable",
        b"Content-Transfer-Encoding: 8bit",
        b"Subject: \xe9 =?latin1?q?\xe9?=",
        b"",
        b"",
        b"",
        b"\xe9",
        b"\xe9\xc3\xa9",
        b"=E9=\xe9=",
        b"SGk\xe9",
        b"SGk=",
        b" folded \xe9",
        b"From x",
        b": \xe9",
        b"x\0y",
        b"\xe9: x",
    ];
    let ends: Vec<&'static [u8]> = vec![b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"];
    let line = (prop::sample::select(pieces), prop::sample::select(ends));
    prop::collection::vec(line, 1..30)
        .prop_map(|lines| lines.into_iter().flat_map(|(line, end)| [line, end].concat()).collect())
}

#[tokio::test]
async fn python_reads_the_same_in_whatever_lines_make() {
    let mut runner = TestRunner::deterministic();
    let messages: Vec<_> = (0..3000)
        .map(|number| (number.to_string(), lines().new_tree(&mut runner).unwrap().current()))
        .collect();
    let wrong = differences(&messages).await;
    let shown: Vec<_> = wrong
        .iter()
        .take(3)
        .map(|line| {
            let number: usize = line.split(':').next().unwrap().parse().unwrap();
            (line, messages[number].1.escape_ascii().to_string(), text(&messages[number].1))
        })
        .collect();
    assert_eq!(wrong.len(), 0, "{shown:#?}");
}
