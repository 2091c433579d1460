//! The SMTP session: any bytes of a client, in the order in which the listener handles them. No reply may break out of its
//! lines, and nothing is taken without a sender and a recipient.
#![no_main]

use bytes::{Buf, BytesMut};
use libfuzzer_sys::fuzz_target;
use outlook_relay::submission::data::DataReader;
use outlook_relay::submission::lines::{Line, LineReader};
use outlook_relay::submission::reply::Reply;
use outlook_relay::submission::session::{Action, Offer, Part, Session};
use outlook_relay::submission::users::User;
use std::sync::Arc;

fn offer(input: &[u8]) -> Offer {
    let choice = input.first().copied().unwrap_or_default();
    let user = || User { name: "odoo".into(), password: "secret".to_owned().into(), senders: None, mailbox: None };
    Offer {
        host: "relay".into(),
        max_message_size: 1000,
        max_recipients: 3,
        users: if choice & 1 == 0 { Vec::new() } else { vec![Arc::new(user())] },
        tls: choice & 2 != 0,
    }
}

fn check(reply: &Reply) {
    let mut wire = Vec::new();
    reply.write(&mut wire);
    let code = reply.code().to_string();
    assert!((200..600).contains(&reply.code()) && wire.ends_with(b"\r\n") && wire.is_ascii());
    for line in wire.strip_suffix(b"\r\n").unwrap().split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        assert!(line.starts_with(code.as_bytes()) && line.len() <= 510 && !line.contains(&b'\r'));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut session = Session::new(Arc::new(offer(input)), true);
    let (mut lines, mut buffer) = (LineReader::default(), BytesMut::from(input.get(1..).unwrap_or_default()));
    check(&session.greeting());
    while let Some(line) = lines.next(&mut buffer, session.line_limit()) {
        let action = match line {
            Line::Complete(line) => session.line(&line),
            Line::TooLong => session.long_line(),
            Line::BareLineFeed => session.bare_line_feed(),
            Line::Endless => return,
        };
        check(action.reply());
        match action {
            Action::Reply(_) => {}
            Action::ReadData(_, envelope) => {
                assert!((1..=3).contains(&envelope.recipients.len()));
                match DataReader::new(1000).feed(&buffer) {
                    Some(end) => buffer.advance(end.used),
                    None => return,
                }
            }
            Action::ReadChunk(_, chunk) => {
                if let Part::Last(envelope) = chunk.part {
                    assert!((1..=3).contains(&envelope.recipients.len()));
                }
                match usize::try_from(chunk.size) {
                    Ok(size) if size <= buffer.len() => buffer.advance(size),
                    _ => return,
                }
            }
            Action::StartTls(_) => session.encrypted(),
            Action::Close(_) => return,
        }
    }
});
