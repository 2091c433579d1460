//! One connection to the scripted SMTP server.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::memmem;
use tokio::net::TcpStream;

use super::entra::uuid;
use super::gauge::Entered;
use super::smtp::{Delivered, Fault, Shared, Step};
use super::wire::Wire;

const HOST: &str = "AM0PR10CA0001.outlook.office365.com";
const EXTENSIONS: [&str; 9] = [
    "SIZE 157286400",
    "PIPELINING",
    "DSN",
    "ENHANCEDSTATUSCODES",
    "AUTH LOGIN XOAUTH2",
    "8BITMIME",
    "BINARYMIME",
    "CHUNKING",
    "SMTPUTF8",
];
const MAX_SIZE: usize = 157_286_400;

/// The connection is over.
struct End;

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self
    }
}

struct Session {
    shared: Arc<Shared>,
    wire: Wire,
    number: u64,
    tls: bool,
    user: String,
    /// Held while authenticated, with its rank among the mailbox's connections.
    login: Option<(Entered, usize)>,
    mail: Option<(String, Vec<String>)>,
    recipients: Vec<String>,
    chunks: Vec<u8>,
}

pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, number: u64) {
    let mut session = Session {
        shared,
        wire: Wire::new(stream),
        number,
        tls: false,
        user: String::new(),
        login: None,
        mail: None,
        recipients: Vec::new(),
        chunks: Vec::new(),
    };
    let _ = session.run().await;
}

impl Session {
    async fn run(&mut self) -> Result<(), End> {
        self.fault(Step::Connect, &[]).await?;
        if !self.fault(Step::Banner, &[]).await? {
            let now = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S +0000");
            self.wire.say(&format!("220 {HOST} Microsoft ESMTP MAIL Service ready at {now}"));
        }
        loop {
            let Some(line) = self.wire.line().await? else {
                return Err(End);
            };
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            if self.shared.recording.load(Ordering::Relaxed) {
                let shown = if verb == "AUTH" { "AUTH" } else { &line };
                self.shared.commands.lock().unwrap().push((self.number, shown.to_owned()));
            }
            match verb.as_str() {
                "EHLO" | "HELO" => self.ehlo(&line).await?,
                "STARTTLS" => self.starttls().await?,
                "AUTH" => self.auth(&line).await?,
                "MAIL" => self.mail(&line).await?,
                "RCPT" => self.rcpt(&line).await?,
                "DATA" => self.data().await?,
                "BDAT" => self.bdat(&line).await?,
                "RSET" => {
                    if !self.fault(Step::Rset, &[]).await? {
                        self.reset();
                        self.wire.say("250 2.0.0 Resetting");
                    }
                }
                "NOOP" => self.wire.say("250 2.0.0 OK"),
                "QUIT" => {
                    self.login = None;
                    if !self.fault(Step::Quit, &[]).await? {
                        self.wire.say("221 2.0.0 Service closing transmission channel");
                    }
                    self.wire.close().await;
                    return Err(End);
                }
                _ => self.wire.say("500 5.3.3 Unrecognized command"),
            }
        }
    }

    /// Plays the fault planned for this step, if any; `true`: in place of the right answer.
    async fn fault(&mut self, step: Step, names: &[&str]) -> Result<bool, End> {
        let user = &self.user;
        let fault = self.shared.script.take(&step, |only| {
            user.eq_ignore_ascii_case(only) || names.iter().any(|name| name.eq_ignore_ascii_case(only))
        });
        match fault {
            Some(fault) => self.play(fault).await,
            None => Ok(false),
        }
    }

    async fn play(&mut self, fault: Fault) -> Result<bool, End> {
        match fault {
            Fault::Reply(text) => {
                self.wire.say(&text);
                if text.starts_with("421") {
                    self.wire.close().await;
                    return Err(End);
                }
            }
            Fault::Garbage => self.wire.write(b"\0\xff\xfe\x80garbage \x1b[2J\r\n"),
            Fault::Cut | Fault::KeepThenCut => return Err(End),
            Fault::Silence | Fault::KeepThenSilence => {
                self.wire.silence().await;
                return Err(End);
            }
            Fault::EndlessLine => {
                self.wire.endless_line().await;
                return Err(End);
            }
        }
        Ok(true)
    }

    fn reset(&mut self) {
        self.mail = None;
        self.recipients.clear();
        self.chunks.clear();
    }

    async fn ehlo(&mut self, line: &str) -> Result<(), End> {
        self.reset();
        let step = if self.tls { Step::EhloTls } else { Step::Ehlo };
        if self.fault(step, &[]).await? {
            return Ok(());
        }
        if line[..4].eq_ignore_ascii_case("HELO") {
            self.wire.say(&format!("250 {HOST} Hello [127.0.0.1]"));
            return Ok(());
        }
        let dropped = self.shared.dropped.lock().unwrap().clone();
        let mut lines = vec![format!("{HOST} Hello [127.0.0.1]")];
        for extension in EXTENSIONS {
            let word = extension.split(' ').next().unwrap_or_default();
            // Exchange offers AUTH only behind TLS, and STARTTLS in its place before it.
            let (word, extension) = match (word, self.tls) {
                ("AUTH", false) => ("STARTTLS", "STARTTLS"),
                _ => (word, extension),
            };
            if !dropped.contains(word) {
                lines.push(extension.to_owned());
            }
        }
        let last = lines.len() - 1;
        for (at, text) in lines.iter().enumerate() {
            self.wire.say(&format!("250{}{text}", if at == last { ' ' } else { '-' }));
        }
        Ok(())
    }

    async fn starttls(&mut self) -> Result<(), End> {
        if self.tls {
            self.wire.say("503 5.5.2 Only one STARTTLS command can be issued per session");
            return Ok(());
        }
        let script = self.shared.script.take(&Step::StartTls, |_| false);
        match script {
            Some(Fault::Reply(text)) if text.starts_with("220") => self.wire.say(&text),
            Some(fault) => return self.play(fault).await.map(|_| ()),
            None => self.wire.say("220 2.0.0 SMTP server ready"),
        }
        self.wire.flush().await?;
        if self.fault(Step::Handshake, &[]).await? {
            self.wire.flush().await?;
            return Err(End);
        }
        let plain = std::mem::replace(&mut self.wire, Wire::new(tokio::io::empty()));
        let tls = self.shared.acceptor.accept(plain.into_io()).await?;
        self.wire = Wire::new(tls);
        self.tls = true;
        self.reset();
        Ok(())
    }

    async fn auth(&mut self, line: &str) -> Result<(), End> {
        let mut words = line.split_whitespace().skip(1);
        let mechanism = words.next().unwrap_or_default().to_ascii_uppercase();
        if !self.tls {
            self.wire.say("504 5.7.4 Unrecognized authentication type");
            return Ok(());
        }
        if self.login.is_some() {
            self.wire.say("503 5.5.2 Already authenticated");
            return Ok(());
        }
        if mechanism != "XOAUTH2" {
            self.wire.say(&format!(
                "535 5.7.139 Authentication unsuccessful, basic authentication is disabled. [{HOST}]"
            ));
            return Ok(());
        }
        let response = match words.next() {
            Some(initial) => initial.to_owned(),
            None => {
                self.wire.say("334 ");
                self.wire.line().await?.ok_or(End)?
            }
        };
        let (user, token) = xoauth2(&response).unwrap_or_default();
        if self.fault(Step::Auth, &[&user]).await? {
            return Ok(());
        }
        let accepted = (self.shared.check)(&user, &token);
        self.shared.events.emit(|| format!("smtp: AUTH {user} -> {accepted}"));
        if accepted {
            self.login = Some(self.shared.connections.enter(&user));
            self.user = user;
            self.wire.say("235 2.7.0 Authentication successful");
            return Ok(());
        }
        if self.shared.generic_failure.load(Ordering::Relaxed) {
            let json = r#"{"status":"400","schemes":"Bearer","scope":"https://outlook.office.com/"}"#;
            self.wire.say(&format!("334 {}", STANDARD.encode(json)));
            self.wire.line().await?.ok_or(End)?;
        }
        let now = jiff::Timestamp::now();
        self.wire.say(&format!("535 5.7.3 Authentication unsuccessful [{HOST} {now} 08DE28A1B2C3D4E5]"));
        Ok(())
    }

    async fn mail(&mut self, line: &str) -> Result<(), End> {
        let (address, params) = path_and_params(line);
        if self.fault(Step::Mail, &[&address]).await? {
            return Ok(());
        }
        let Some((_, rank)) = &self.login else {
            self.wire.say(&format!("530 5.7.57 Client not authenticated to send mail. [{HOST}]"));
            return Ok(());
        };
        let limit = self.shared.limit.load(Ordering::Relaxed);
        if *rank > limit && self.shared.connections.now(&self.user) > limit {
            self.wire.say(&format!(
                "432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending. [{HOST}]"
            ));
            return Ok(());
        }
        if self.mail.is_some() {
            self.wire.say("503 5.5.2 Sender already specified");
        } else if !address.eq_ignore_ascii_case(&self.user) && !self.shared.send_as.load(Ordering::Relaxed) {
            self.wire.say(&format!(
                "550 5.7.60 SMTP; Client does not have permissions to send as this sender, SendAsDenied [{HOST}]"
            ));
        } else {
            self.mail = Some((address, params));
            self.wire.say("250 2.1.0 Sender OK");
        }
        Ok(())
    }

    async fn rcpt(&mut self, line: &str) -> Result<(), End> {
        let (address, _) = path_and_params(line);
        if self.fault(Step::Rcpt, &[&address]).await? {
            return Ok(());
        }
        if self.mail.is_none() {
            self.wire.say("503 5.5.2 Need mail command");
        } else if !address.contains('@') {
            self.wire.say("501 5.1.3 Invalid address");
        } else {
            self.recipients.push(address);
            self.wire.say("250 2.1.5 Recipient OK");
        }
        Ok(())
    }

    async fn data(&mut self) -> Result<(), End> {
        if self.fault(Step::Data, &[]).await? {
            return Ok(());
        }
        if self.mail.is_none() || self.recipients.is_empty() {
            self.wire.say("503 5.5.2 Need rcpt command");
            return Ok(());
        }
        self.wire.say("354 Start mail input; end with <CRLF>.<CRLF>");
        if self.shared.script.pending() > 0 {
            if !self.wire.has_input() && !self.wire.fill().await? {
                return Err(End);
            }
            let user = &self.user;
            match self.shared.script.take(&Step::MidData, |only| user.eq_ignore_ascii_case(only)) {
                Some(Fault::Silence) => std::future::pending().await,
                Some(Fault::Reply(text)) => {
                    self.wire.say(&text);
                    self.wire.close().await;
                    return Err(End);
                }
                Some(fault) => drop(self.play(fault).await?),
                None => {}
            }
        }
        let data = self.wire.dotted().await?.ok_or(End)?;
        self.finish(data).await
    }

    /// BDAT (RFC 3030): chunks of announced length instead of the dot.
    async fn bdat(&mut self, line: &str) -> Result<(), End> {
        let mut words = line.split_whitespace().skip(1);
        let size: usize = words.next().and_then(|n| n.parse().ok()).ok_or(End)?;
        let chunk = self.wire.exact(size).await?.ok_or(End)?;
        if self.mail.is_none() || self.recipients.is_empty() {
            self.wire.say("503 5.5.2 Need rcpt command");
            return Ok(());
        }
        self.chunks.extend_from_slice(&chunk);
        if words.next().is_some_and(|word| word.eq_ignore_ascii_case("LAST")) {
            let data = std::mem::take(&mut self.chunks);
            return self.finish(data).await;
        }
        self.wire.say(&format!("250 2.0.0 {size} octets received"));
        Ok(())
    }

    /// A whole message has come.
    async fn finish(&mut self, data: Vec<u8>) -> Result<(), End> {
        let fault = if self.shared.script.pending() > 0 {
            self.shared.script.take(&Step::AfterDot, |only| {
                self.user.eq_ignore_ascii_case(only)
                    || self.recipients.iter().any(|recipient| recipient.eq_ignore_ascii_case(only))
                    || memmem::find(&data, only.as_bytes()).is_some()
            })
        } else {
            None
        };
        match fault {
            Some(fault @ (Fault::KeepThenCut | Fault::KeepThenSilence)) => {
                self.keep(data);
                self.play(fault).await?;
            }
            Some(fault) => {
                self.reset();
                self.play(fault).await?;
            }
            None if data.len() > MAX_SIZE => {
                self.reset();
                self.wire.say("552 5.3.4 Message size exceeds fixed maximum message size");
            }
            None => {
                self.keep(data);
                self.wire.say(&format!("250 2.0.0 OK <{}@{HOST}> [Hostname={HOST}]", uuid()));
            }
        }
        Ok(())
    }

    fn keep(&mut self, data: Vec<u8>) {
        let (mail_from, mail_params) = self.mail.take().unwrap_or_default();
        let recording = self.shared.recording.load(Ordering::Relaxed);
        let hook = self.shared.hook.lock().unwrap().clone();
        if recording || hook.is_some() {
            let delivered = Delivered {
                mailbox: self.user.clone(),
                mail_from,
                mail_params,
                recipients: std::mem::take(&mut self.recipients),
                data: Arc::new(data),
                at: jiff::Timestamp::now(),
                connection: self.number,
            };
            if let Some(hook) = hook {
                hook(&delivered);
            }
            self.shared.events.emit(|| format!("smtp: {} -> {:?}", delivered.mailbox, delivered.recipients));
            if recording {
                self.shared.delivered.lock().unwrap().push(delivered);
            }
        }
        self.shared.count.fetch_add(1, Ordering::Release);
        self.reset();
    }
}

/// The user and the token inside a SASL XOAUTH2 response.
pub(super) fn xoauth2(response: &str) -> Option<(String, String)> {
    let text = String::from_utf8(STANDARD.decode(response.trim()).ok()?).ok()?;
    let (user, rest) = text.strip_prefix("user=")?.split_once('\u{1}')?;
    let token = rest.strip_prefix("auth=Bearer ")?.strip_suffix("\u{1}\u{1}")?;
    Some((user.to_owned(), token.to_owned()))
}

/// The address between `<` and `>`, and the parameters behind it.
fn path_and_params(line: &str) -> (String, Vec<String>) {
    let rest = line.split_once('<').map_or("", |(_, rest)| rest);
    let (address, params) = rest.split_once('>').unwrap_or((rest, ""));
    (address.to_owned(), params.split_whitespace().map(str::to_owned).collect())
}
