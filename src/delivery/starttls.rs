//! From a TCP connection to an encrypted one, by STARTTLS (RFC 3207).
//!
//! lettre's own STARTTLS keeps what arrived in plain text before the handshake and takes it for the answer to a later
//! command (CVE-2011-0411 is the classic case); so this is done here, and lettre only sees the encrypted connection.

use super::client::Target;
use super::fault::{Fault, silent, timed};
use super::wire::{LONGEST_LINE, MOST_LINES, invalid};
use crate::failure::{Class, Failure, chain};
use crate::microsoft::smtp_replies::{Reply, Step};
use lettre::transport::smtp::extension::ClientId;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;
use tokio_rustls::rustls::pki_types::ServerName;

/// Encrypts the connection (RFC 3207): greeting, EHLO, STARTTLS, handshake.
pub(super) async fn encrypt(
    tcp: TcpStream,
    hello: &ClientId,
    target: Target<'_>,
) -> Result<TlsStream<TcpStream>, Fault> {
    let limit = target.timeouts.greeting;
    let mut plain = BufReader::new(tcp);
    expect(limit, "the greeting", 220, &mut plain).await?;
    timed(limit, "EHLO", plain.write_all(format!("EHLO {hello}\r\n").as_bytes())).await?;
    let offered = expect(limit, "EHLO", 250, &mut plain).await?;
    if !offered.iter().any(|line| line.trim().eq_ignore_ascii_case("STARTTLS")) {
        let failure = Failure::new(Class::Administrator, "no STARTTLS", "the server does not offer STARTTLS");
        let advice = "check that [microsoft] smtp names Microsoft's submission service, and that no firewall on the way \
                      strips STARTTLS; nothing is ever sent unencrypted";
        return Err(Fault::Failed(failure.advise(advice)));
    }
    timed(limit, "STARTTLS", plain.write_all(b"STARTTLS\r\n")).await?;
    expect(limit, "STARTTLS", 220, &mut plain).await?;
    if !plain.buffer().is_empty() {
        let failure = Failure::new(
            Class::Administrator,
            "STARTTLS injection",
            "more came in plain text after the reply to STARTTLS",
        );
        let advice = "something on the way to Microsoft tampers with the connection: find the firewall or proxy that does";
        return Err(Fault::Failed(failure.advise(advice)));
    }
    let name = ServerName::try_from(target.server.host.clone()).map_err(|_| {
        let reply = format!("{} is no name for a certificate", target.server.host);
        Fault::Failed(Failure::new(Class::Administrator, "name", reply).advise("correct [microsoft] smtp"))
    })?;
    let connector = TlsConnector::from(target.tls.clone());
    match timeout(limit, Box::pin(connector.connect(name, plain.into_inner()))).await {
        Err(_) => Err(silent("the TLS handshake", limit)),
        Ok(Err(error)) => Err(Fault::Failed(handshake(&error))),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// A reply in plain text that must have this code.
async fn expect(
    limit: Duration,
    what: &'static str,
    code: u16,
    plain: &mut BufReader<TcpStream>,
) -> Result<Vec<String>, Fault> {
    let (seen, lines) = timed(limit, what, read_reply(plain)).await?;
    let reply = Reply::new(seen, &lines.join(" "));
    match seen {
        seen if seen == code => Ok(lines),
        400.. => Err(Fault::Refused(Step::Greeting, reply)),
        _ => {
            let text = format!("{what} was answered with {reply}");
            Err(Fault::Failed(Failure::new(Class::Transient, "protocol", text)))
        }
    }
}

/// A certificate that is not trusted stays so; other trouble with TLS may pass.
fn handshake(error: &std::io::Error) -> Failure {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    if matches!(cause, Some(rustls::Error::InvalidCertificate(_))) {
        return Failure::new(Class::Administrator, "certificate", chain(error)).advise(
            "the server's certificate is not trusted: a proxy that inspects TLS needs its root in [microsoft] ca_file; \
             else check the server's name and this machine's clock",
        );
    }
    Failure::new(Class::Transient, "TLS", chain(error))
}

/// How the relay names itself: by its address, having no name that Microsoft could look up (RFC 5321 section 4.1.4).
pub(super) fn hello(tcp: &TcpStream) -> ClientId {
    match tcp.local_addr().map(|address| address.ip()) {
        Ok(IpAddr::V4(ip)) => ClientId::Ipv4(ip),
        Ok(IpAddr::V6(ip)) => ClientId::Ipv6(ip),
        Err(_) => ClientId::default(),
    }
}

/// Reads one reply in plain text: its code and its lines (RFC 5321 section 4.2.1).
///
/// # Errors
/// Those of the connection; [`ErrorKind::InvalidData`] where it is no SMTP reply, or an endless one.
async fn read_reply(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<(u16, Vec<String>)> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::with_capacity(128);
        let limit = u64::try_from(LONGEST_LINE).unwrap_or(u64::MAX);
        reader.take(limit).read_until(b'\n', &mut line).await?;
        if line.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let text = line.strip_suffix(b"\r\n").ok_or_else(|| invalid("no line of SMTP"))?;
        let text = String::from_utf8_lossy(text);
        let (code, rest) = text.split_at_checked(3).ok_or_else(|| invalid("no SMTP reply"))?;
        let code: u16 = code.parse().map_err(|_| invalid("no SMTP reply"))?;
        if !(200..600).contains(&code) || lines.len() >= MOST_LINES {
            return Err(invalid("no SMTP reply"));
        }
        let last = !rest.starts_with('-');
        lines.push(rest.get(1..).unwrap_or_default().to_owned());
        if last {
            return Ok((code, lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[tokio::test]
    async fn plain_replies_are_bounded() {
        let read = async |bytes: &[u8]| {
            let mut reader = bytes;
            read_reply(&mut reader).await
        };
        assert_eq!(read(b"250-a\r\n250 b\r\n").await.unwrap(), (250, vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(read(b"220\r\n").await.unwrap(), (220, vec![String::new()]));
        let table: [&[u8]; 8] = [
            b"",
            b"250-a\r\n",
            b"hello there\r\n",
            b"25\r\n",
            b"150 x\r\n",
            b"250 x\n",
            &[b'2'; 5000],
            &b"250-x\r\n".repeat(5000),
        ];
        for bytes in table {
            assert!(read(bytes).await.is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes: Vec<u8>) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            drop(runtime.block_on(read_reply(&mut bytes.as_slice())));
        }
    }
}
