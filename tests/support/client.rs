//! Raw clients for dialogues, byte by byte: SMTP and IMAP.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tls::Tls;
use super::wire::{Wire, stuff};

/// No server of a test may take longer for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The initial response of XOAUTH2, in base64.
pub fn xoauth2(user: &str, token: &str) -> String {
    STANDARD.encode(format!("user={user}\u{1}auth=Bearer {token}\u{1}\u{1}"))
}

/// A reply of one or more lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    /// Without the codes, parted by line breaks.
    pub text: String,
}

/// A raw SMTP client.
pub struct SmtpClient {
    wire: Wire,
}

impl SmtpClient {
    /// Connects, and gives the banner too.
    pub async fn connect(addr: SocketAddr) -> (Self, Reply) {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self { wire: Wire::new(stream) };
        let banner = client.reply().await.expect("a banner");
        (client, banner)
    }

    /// Connected and greeted with EHLO, by a server that may be away; `None`: it is.
    pub async fn try_connect(addr: SocketAddr) -> Option<Self> {
        let stream = TcpStream::connect(addr).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let mut client = Self { wire: Wire::new(stream) };
        client.reply().await?;
        client.try_cmd("ehlo [127.0.0.1]").await?;
        Some(client)
    }

    /// Connected, greeted with EHLO, upgraded by STARTTLS, greeted again.
    pub async fn connect_tls(addr: SocketAddr, tls: &Tls) -> Self {
        let (mut client, banner) = Self::connect(addr).await;
        assert_eq!(banner.code, 220, "{banner:?}");
        assert_eq!(client.cmd("EHLO test.localhost").await.code, 250);
        assert_eq!(client.cmd("STARTTLS").await.code, 220);
        let mut client = client.upgrade(tls).await;
        assert_eq!(client.cmd("EHLO test.localhost").await.code, 250);
        client
    }

    /// The TLS handshake after STARTTLS.
    pub async fn upgrade(self, tls: &Tls) -> Self {
        Self { wire: Wire::new(tls.connect(self.wire.into_io()).await) }
    }

    /// Sends a line (CRLF is added) and reads the reply.
    ///
    /// # Panics
    /// If the connection ends instead.
    pub async fn cmd(&mut self, line: &str) -> Reply {
        self.try_cmd(line).await.unwrap_or_else(|| panic!("connection closed instead of a reply to {line:?}"))
    }

    /// [`Self::cmd`], with `None` for a connection that has ended.
    pub async fn try_cmd(&mut self, line: &str) -> Option<Reply> {
        self.wire.say(line);
        self.reply().await
    }

    /// Sends bytes as they are.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.wire.write(bytes);
        self.wire.flush().await.unwrap();
    }

    /// The next reply; `None` when the connection has ended.
    pub async fn reply(&mut self) -> Option<Reply> {
        let mut text = String::new();
        loop {
            let line = timeout(PATIENCE, self.wire.line()).await.expect("a reply in time").ok()??;
            let code = line.get(..3).and_then(|code| code.parse().ok());
            let code = code.unwrap_or_else(|| panic!("not a reply: {line:?}"));
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(line.get(4..).unwrap_or_default());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Some(Reply { code, text });
            }
        }
    }

    /// One transaction, as Odoo sends it; the first reply that is not positive ends it, and is given.
    pub async fn send(&mut self, from: &str, recipients: &[&str], message: &[u8]) -> Reply {
        self.try_send(from, recipients, message).await.expect("a reply")
    }

    /// The same with a server that may go away at any moment; `None`: it did.
    pub async fn try_send(&mut self, from: &str, recipients: &[&str], message: &[u8]) -> Option<Reply> {
        let mut commands = vec![format!("mail FROM:<{from}> size={}", message.len())];
        commands.extend(recipients.iter().map(|recipient| format!("rcpt TO:<{recipient}>")));
        for command in commands {
            let reply = self.try_cmd(&command).await?;
            if reply.code != 250 {
                return Some(reply);
            }
        }
        let reply = self.try_cmd("data").await?;
        if reply.code != 354 {
            return Some(reply);
        }
        self.wire.write(&stuff(message));
        self.reply().await
    }
}

/// Connects to a server without TLS (the relay's listener), says EHLO, sends one message, and gives the reply.
pub async fn send(addr: SocketAddr, from: &str, recipients: &[&str], message: &[u8]) -> Reply {
    let (mut client, banner) = SmtpClient::connect(addr).await;
    if banner.code != 220 {
        return banner;
    }
    client.cmd("ehlo [127.0.0.1]").await;
    let reply = client.send(from, recipients, message).await;
    client.try_cmd("quit").await;
    reply
}

/// A small message with a Message-Id, as Odoo would send it.
pub fn message(from: &str, to: &str, id: &str, subject: &str) -> Vec<u8> {
    format!(
        "From: {from}\r\nTo: {to}\r\nMessage-Id: <{id}>\r\nSubject: {subject}\r\n\
         Date: Fri, 20 Nov 2026 10:00:00 +0000\r\nMIME-Version: 1.0\r\n\
         Content-Type: text/plain; charset=utf-8\r\n\r\nHello\r\n.a line with a dot\r\n"
    )
    .into_bytes()
}

/// The outcome of an IMAP command.
#[derive(Clone, Debug)]
pub struct Tagged {
    /// `OK`, `NO` or `BAD`.
    pub status: String,
    pub text: String,
    /// The untagged lines, literals inline.
    pub untagged: Vec<String>,
}

impl Tagged {
    /// The first untagged line that contains `part`.
    pub fn find(&self, part: &str) -> Option<&str> {
        self.untagged.iter().map(String::as_str).find(|line| line.contains(part))
    }
}

/// A raw IMAP client over TLS.
pub struct ImapClient {
    wire: Wire,
    tag: u32,
}

impl ImapClient {
    /// Connects, and gives the greeting too.
    pub async fn connect(addr: SocketAddr, tls: &Tls) -> (Self, String) {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self { wire: Wire::new(tls.connect(stream).await), tag: 0 };
        let greeting = client.line().await.expect("a greeting");
        (client, greeting)
    }

    /// Connected and authenticated.
    pub async fn login(addr: SocketAddr, tls: &Tls, user: &str, token: &str) -> Self {
        let (mut client, _) = Self::connect(addr, tls).await;
        let done = client.cmd(&format!("AUTHENTICATE XOAUTH2 {}", xoauth2(user, token))).await;
        assert_eq!(done.status, "OK", "{done:?}");
        client
    }

    /// Sends a command, and reads up to its tagged line. A continuation request with a challenge (a refused token) is
    /// answered with an empty line.
    ///
    /// # Panics
    /// If the connection ends before.
    pub async fn cmd(&mut self, command: &str) -> Tagged {
        self.try_cmd(command)
            .await
            .unwrap_or_else(|| panic!("connection closed instead of an answer to {command:?}"))
    }

    /// [`Self::cmd`], with `None` for a connection that has ended.
    pub async fn try_cmd(&mut self, command: &str) -> Option<Tagged> {
        let tag = self.start(command).await;
        let mut untagged = Vec::new();
        loop {
            let line = self.line().await?;
            if line.starts_with("+ ") && command.starts_with("AUTHENTICATE") {
                self.say("").await;
            }
            if let Some(rest) = line.strip_prefix(&format!("{tag} ")) {
                let (status, text) = rest.split_once(' ').unwrap_or((rest, ""));
                return Some(Tagged { status: status.to_owned(), text: text.to_owned(), untagged });
            }
            untagged.push(line);
        }
    }

    /// Sends a command with a new tag, and gives the tag.
    pub async fn start(&mut self, command: &str) -> String {
        self.tag += 1;
        let tag = format!("a{}", self.tag);
        self.say(&format!("{tag} {command}")).await;
        tag
    }

    /// Sends a line as it is.
    pub async fn say(&mut self, line: &str) {
        self.wire.say(line);
        // A server that has hung up shows at the next read.
        let _ = self.wire.flush().await;
    }

    /// The next line, with its literals; `None` when the connection has ended.
    pub async fn line(&mut self) -> Option<String> {
        let mut whole = String::new();
        loop {
            let line = timeout(PATIENCE, self.wire.line()).await.expect("an answer in time").ok()??;
            whole.push_str(&line);
            let literal = line.strip_suffix('}').and_then(|line| line.rsplit_once('{'));
            let Some(n) = literal.and_then(|(_, n)| n.parse().ok()) else {
                return Some(whole);
            };
            whole.push_str("\r\n");
            let bytes = timeout(PATIENCE, self.wire.exact(n)).await.expect("a literal in time").ok()??;
            whole.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
}
