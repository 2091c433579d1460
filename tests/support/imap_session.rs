//! One connection to the scripted IMAP server (RFC 3501, with IDLE, MOVE, UIDPLUS and XOAUTH2).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;

use super::gauge::Entered;
use super::imap::{Control, Fault, Shared};
use super::imap_data::arguments;
use super::smtp_session::xoauth2;
use super::wire::Wire;

const COMMANDS: [&str; 27] = [
    "AUTHENTICATE",
    "CAPABILITY",
    "CHECK",
    "CLOSE",
    "CREATE",
    "EXAMINE",
    "EXPUNGE",
    "ID",
    "IDLE",
    "LIST",
    "LOGIN",
    "LOGOUT",
    "LSUB",
    "NAMESPACE",
    "NOOP",
    "SELECT",
    "STATUS",
    "SUBSCRIBE",
    "UID COPY",
    "UID EXPUNGE",
    "UID FETCH",
    "UID MOVE",
    "UID SEARCH",
    "UID STORE",
    "UNSELECT",
    "UNSUBSCRIBE",
    "STARTTLS",
];

/// The connection is over.
struct End;

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// How a command ended: the tagged line without its tag.
pub(super) type Outcome = Result<String, String>;

pub(super) struct Selected {
    pub(super) folder: String,
    pub(super) read_only: bool,
    /// The UIDs the client knows of; their places are the sequence numbers.
    pub(super) view: Vec<u32>,
}

pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) wire: Wire,
    pub(super) number: u64,
    pub(super) user: String,
    pub(super) login: Option<Entered>,
    pub(super) selected: Option<Selected>,
    /// The tag of the IDLE that is going on.
    pub(super) idle: Option<(String, Entered)>,
}

pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream, number: u64) {
    let Ok(stream) = shared.acceptor.accept(stream).await else {
        return;
    };
    let mut session = Session {
        shared,
        wire: Wire::new(stream),
        number,
        user: String::new(),
        login: None,
        selected: None,
        idle: None,
    };
    let _ = session.run().await;
}

impl Session {
    async fn run(&mut self) -> Result<(), End> {
        let mut control = self.shared.control.subscribe();
        let mut version = self.shared.version.subscribe();
        let greeting = self.before("*", "GREETING", "").await?;
        if !greeting.0 {
            self.wire.say("* OK The Microsoft Exchange IMAP4 service is ready. [QQBNADAAUABSADEAMAA=]");
        }
        self.after(greeting.1).await?;
        loop {
            self.wire.flush().await?;
            let idling = self.idle.is_some();
            tokio::select! {
                line = self.wire.line() => {
                    let line = line?.ok_or(End)?;
                    self.command(line).await?;
                }
                told = control.recv() => match told {
                    Ok((mailbox, _)) if mailbox != self.user.to_lowercase() => {}
                    Ok((_, Control::Say(line))) => self.wire.say(&format!("* {line}")),
                    Ok((_, Control::Bye(text))) => return self.bye(&text).await,
                    Ok((_, Control::Cut)) | Err(RecvError::Closed) => return Err(End),
                    Err(RecvError::Lagged(_)) => {}
                },
                _ = version.changed(), if idling => self.announce(),
            }
        }
    }

    async fn bye(&mut self, text: &str) -> Result<(), End> {
        self.wire.say(&format!("* BYE {text}"));
        self.wire.close().await;
        Err(End)
    }

    async fn command(&mut self, mut line: String) -> Result<(), End> {
        if let Some((tag, _entered)) = self.idle.take() {
            self.announce();
            let done = line.eq_ignore_ascii_case("DONE");
            self.wire
                .say(&format!("{tag} {}", if done { "OK IDLE completed." } else { "BAD Expected DONE." }));
            return Ok(());
        }
        while let Some((start, literal)) = literal(&line) {
            if !literal.1 {
                self.wire.say("+ Ready for additional command text.");
            }
            let bytes = self.wire.exact(literal.0).await?.ok_or(End)?;
            let text = String::from_utf8_lossy(&bytes).replace('\\', "\\\\").replace('"', "\\\"");
            let rest = self.wire.line().await?.ok_or(End)?;
            line = format!("{}\"{text}\"{rest}", &line[..start]);
        }
        let (tag, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let upper = rest.to_ascii_uppercase();
        let name = COMMANDS.into_iter().find(|name| {
            upper == **name || upper.strip_prefix(*name).is_some_and(|args| args.starts_with(' '))
        });
        let shown = if upper.starts_with("AUTH") || upper.starts_with("LOGIN") {
            rest.split(' ').next().unwrap_or_default()
        } else {
            rest
        };
        self.shared.commands.lock().unwrap().push((self.number, shown.to_owned()));
        let Some(name) = name else {
            self.wire.say(&format!("{tag} BAD Command Error. 10"));
            return Ok(());
        };
        let args = rest.get(name.len() + 1..).unwrap_or_default();
        let (handled, rest_of_fault) = self.before(tag, name, args).await?;
        if handled {
            return Ok(());
        }
        let outcome = match name {
            "AUTHENTICATE" => self.authenticate(args).await?,
            "LOGOUT" => {
                self.wire.say("* BYE Microsoft Exchange Server IMAP4 server signing off.");
                self.wire.say(&format!("{tag} OK LOGOUT completed."));
                self.wire.close().await;
                return Err(End);
            }
            "IDLE" if self.selected.is_some() => {
                if self.shared.exists_before_idle.load(Ordering::Relaxed) {
                    self.announce();
                }
                self.wire.say("+ IDLE accepted, awaiting DONE command.");
                self.announce();
                let (entered, _) = self.shared.connections.enter(&format!("idle {}", self.user));
                self.idle = Some((tag.to_owned(), entered));
                return self.after(rest_of_fault).await;
            }
            _ => self.execute(name, &arguments(args)),
        };
        let line = match outcome {
            Ok(text) if text.starts_with('[') || !text.is_empty() => format!("{tag} OK {text}"),
            Ok(_) => format!("{tag} OK {name} completed."),
            Err(text) => format!("{tag} {text}"),
        };
        self.wire.say(&line);
        self.after(rest_of_fault).await
    }

    /// Plays what of a planned fault comes before the command: whether that was all, and else the fault again.
    async fn before(
        &mut self,
        tag: &str,
        name: &'static str,
        args: &str,
    ) -> Result<(bool, Option<Fault>), End> {
        let user = &self.user;
        let fault =
            self.shared.script.take(&name, |only| user.eq_ignore_ascii_case(only) || args.contains(only));
        let Some(fault) = fault else {
            return Ok((false, None));
        };
        self.shared.events.emit(|| format!("imap: {user} {name} -> {fault:?}"));
        match &fault {
            Fault::No(text) => self.wire.say(&format!("{tag} NO {text}")),
            Fault::Bad(text) => self.wire.say(&format!("{tag} BAD {text}")),
            Fault::Bye(text) => return self.bye(text).await.map(|()| (true, None)),
            Fault::Cut => return Err(End),
            Fault::Silence => {
                self.wire.silence().await;
                return Err(End);
            }
            Fault::EndlessLine => {
                self.wire.endless_line().await;
                return Err(End);
            }
            Fault::Untagged(text) => {
                self.wire.say(&format!("* {text}"));
                return Ok((false, None));
            }
            Fault::Garbage => {
                self.wire.write(b"\0\xff\xfe)garbage (\x1b[2J {9\r\n");
                return Ok((false, None));
            }
            Fault::CutAfter | Fault::CutMidway | Fault::SilenceAfter | Fault::Ended(_) => {
                return Ok((false, Some(fault)));
            }
        }
        Ok((true, None))
    }

    /// Plays what of a fault comes after the command.
    async fn after(&mut self, fault: Option<Fault>) -> Result<(), End> {
        match fault {
            None => Ok(()),
            Some(Fault::SilenceAfter) => {
                self.wire.flush().await?;
                self.wire.silence().await;
                Err(End)
            }
            Some(Fault::CutMidway) => {
                let queued = self.wire.queued();
                queued.truncate(queued.len() / 2);
                self.wire.flush().await?;
                Err(End)
            }
            Some(Fault::Ended(text)) => {
                if let Some((tag, _entered)) = self.idle.take() {
                    self.wire.say(&format!("{tag} {text}"));
                }
                Ok(())
            }
            Some(_) => Err(End),
        }
    }

    async fn authenticate(&mut self, args: &str) -> Result<Outcome, End> {
        let mut words = args.split_whitespace();
        if !words.next().unwrap_or_default().eq_ignore_ascii_case("XOAUTH2") {
            return Ok(Err("NO AUTHENTICATE failed.".to_owned()));
        }
        if self.login.is_some() {
            return Ok(Err("BAD Command received in Invalid state.".to_owned()));
        }
        let response = match words.next() {
            Some(initial) => initial.to_owned(),
            None => {
                self.wire.say("+ ");
                self.wire.line().await?.ok_or(End)?
            }
        };
        let (user, token) = xoauth2(&response).unwrap_or_default();
        let accepted = (self.shared.check)(&user, &token);
        self.shared.events.emit(|| format!("imap: AUTHENTICATE {user} -> {accepted}"));
        if accepted {
            self.login = Some(self.shared.connections.enter(&user).0);
            self.user = user;
            return Ok(Ok("AUTHENTICATE completed.".to_owned()));
        }
        if self.shared.generic_failure.load(Ordering::Relaxed) {
            let json = r#"{"status":"400","schemes":"Bearer","scope":"https://outlook.office.com/"}"#;
            self.wire.say(&format!("+ {}", STANDARD.encode(json)));
            self.wire.line().await?.ok_or(End)?;
        }
        Ok(Err("NO AUTHENTICATE failed.".to_owned()))
    }
}

/// The literal a line ends with: where it starts, its length, and whether the client goes on by itself (LITERAL+).
fn literal(line: &str) -> Option<(usize, (usize, bool))> {
    let start = line.rfind('{')?;
    let inside = line[start + 1..].strip_suffix('}')?;
    let (digits, plus) = inside.strip_suffix('+').map_or((inside, false), |digits| (digits, true));
    Some((start, (digits.parse().ok()?, plus)))
}
