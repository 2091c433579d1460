//! One connection to the scripted IMAP server (RFC 3501, with IDLE, MOVE, UIDPLUS and XOAUTH2).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;

use super::gauge::Entered;
use super::imap::{Control, Fault, Folder, Shared};
use super::imap_data::{Set, arguments, fetch, flags, matches};
use super::smtp_session::xoauth2;
use super::wire::Wire;

const CAPABILITIES: &str = "IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS MOVE ID UNSELECT CHILDREN IDLE \
                            NAMESPACE LITERAL+";
/// What Exchange keeps; other keywords are dropped.
const FLAGS: &str = r"\Seen \Answered \Flagged \Deleted \Draft $MDNSent";
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
type Outcome = Result<String, String>;

struct Selected {
    folder: String,
    read_only: bool,
    /// The UIDs the client knows of; their places are the sequence numbers.
    view: Vec<u32>,
}

struct Session {
    shared: Arc<Shared>,
    wire: Wire,
    number: u64,
    user: String,
    login: Option<Entered>,
    selected: Option<Selected>,
    /// The tag of the IDLE that is going on.
    idle: Option<(String, Entered)>,
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
            self.wire
                .say("* OK The Microsoft Exchange IMAP4 service is ready. [QQBNADAAUABSADEAMAA=]");
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
            self.wire.say(&format!(
                "{tag} {}",
                if done {
                    "OK IDLE completed."
                } else {
                    "BAD Expected DONE."
                }
            ));
            return Ok(());
        }
        while let Some((start, literal)) = literal(&line) {
            if !literal.1 {
                self.wire.say("+ Ready for additional command text.");
            }
            let bytes = self.wire.exact(literal.0).await?.ok_or(End)?;
            let text = String::from_utf8_lossy(&bytes)
                .replace('\\', "\\\\")
                .replace('"', "\\\"");
            let rest = self.wire.line().await?.ok_or(End)?;
            line = format!("{}\"{text}\"{rest}", &line[..start]);
        }
        let (tag, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let upper = rest.to_ascii_uppercase();
        let name = COMMANDS.into_iter().find(|name| {
            upper == **name
                || upper
                    .strip_prefix(*name)
                    .is_some_and(|args| args.starts_with(' '))
        });
        let shown = if upper.starts_with("AUTH") || upper.starts_with("LOGIN") {
            rest.split(' ').next().unwrap_or_default()
        } else {
            rest
        };
        self.shared
            .commands
            .lock()
            .unwrap()
            .push((self.number, shown.to_owned()));
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
                self.wire
                    .say("* BYE Microsoft Exchange Server IMAP4 server signing off.");
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
        let fault = self.shared.script.take(&name, |only| {
            user.eq_ignore_ascii_case(only) || args.contains(only)
        });
        let Some(fault) = fault else {
            return Ok((false, None));
        };
        self.shared
            .events
            .emit(|| format!("imap: {user} {name} -> {fault:?}"));
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
            Fault::CutAfter | Fault::CutMidway | Fault::SilenceAfter => return Ok((false, Some(fault))),
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
        self.shared
            .events
            .emit(|| format!("imap: AUTHENTICATE {user} -> {accepted}"));
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

    /// Everything that needs no more input.
    fn execute(&mut self, name: &str, args: &[String]) -> Outcome {
        match name {
            "CAPABILITY" => {
                let dropped = self.shared.dropped.lock().unwrap().clone();
                let words: Vec<_> = CAPABILITIES
                    .split_whitespace()
                    .filter(|word| !dropped.contains(*word))
                    .collect();
                self.wire.say(&format!("* CAPABILITY {}", words.join(" ")));
                return Ok(String::new());
            }
            "ID" => {
                self.wire
                    .say(r#"* ID ("name" "Microsoft.Exchange.Imap4.Imap4Server" "version" "15.20")"#);
                return Ok(String::new());
            }
            "NOOP" => {
                self.announce();
                return Ok(String::new());
            }
            _ if self.login.is_none() => return Err("BAD Command received in Invalid state.".to_owned()),
            "NAMESPACE" => self.wire.say(r#"* NAMESPACE (("" "/")) NIL NIL"#),
            "LIST" | "LSUB" => self.list(name, args),
            "CREATE" => {
                let mut store = self.shared.store.lock().unwrap();
                let name = args.first().cloned().unwrap_or_default();
                if store.folder(&self.user, &name).is_some() {
                    return Err("NO Mailbox already exists.".to_owned());
                }
                let uidvalidity = 50 + u32::try_from(store.mailbox(&self.user).len()).unwrap();
                let attributes = "\\HasNoChildren".to_owned();
                store.mailbox(&self.user).push(Folder {
                    name,
                    attributes,
                    uidvalidity,
                    uidnext: 1,
                    messages: Vec::new(),
                });
            }
            "SELECT" | "EXAMINE" => return self.select(args, name == "EXAMINE"),
            "STATUS" => return self.status(args),
            "SUBSCRIBE" | "UNSUBSCRIBE" | "CHECK" => {}
            _ if self.selected.is_none() => return Err("BAD Command received in Invalid state.".to_owned()),
            "CLOSE" | "UNSELECT" => {
                if name == "CLOSE" {
                    self.expunge(None);
                }
                self.selected = None;
            }
            "EXPUNGE" => self.expunge(None),
            _ => {
                self.announce();
                return self.uid(name, args);
            }
        }
        Ok(String::new())
    }

    fn list(&mut self, name: &str, args: &[String]) {
        let pattern = args.get(1).map(String::as_str).unwrap_or_default();
        let mut store = self.shared.store.lock().unwrap();
        for folder in store.mailbox(&self.user) {
            if pattern == "*" || pattern == "%" || pattern == folder.name {
                let quoted = if folder.name.contains(' ') {
                    format!("\"{}\"", folder.name)
                } else {
                    folder.name.clone()
                };
                self.wire
                    .say(&format!("* {name} ({}) \"/\" {quoted}", folder.attributes));
            }
        }
    }

    fn select(&mut self, args: &[String], read_only: bool) -> Outcome {
        self.selected = None;
        let name = args.first().cloned().unwrap_or_default();
        let mut store = self.shared.store.lock().unwrap();
        let Some(folder) = store.folder(&self.user, &name) else {
            return Err(format!("NO {name} doesn't exist."));
        };
        self.wire.say(&format!("* {} EXISTS", folder.messages.len()));
        self.wire.say("* 0 RECENT");
        self.wire.say(&format!("* FLAGS ({FLAGS})"));
        let permanent = if read_only { "" } else { FLAGS };
        self.wire
            .say(&format!("* OK [PERMANENTFLAGS ({permanent})] Permanent flags"));
        if let Some(at) = folder
            .messages
            .iter()
            .position(|message| !message.flags.contains("\\Seen"))
        {
            self.wire
                .say(&format!("* OK [UNSEEN {}] Is the first unseen message", at + 1));
        }
        self.wire.say(&format!(
            "* OK [UIDVALIDITY {}] UIDVALIDITY value",
            folder.uidvalidity
        ));
        self.wire.say(&format!(
            "* OK [UIDNEXT {}] The next unique identifier value",
            folder.uidnext
        ));
        let view = folder.messages.iter().map(|message| message.uid).collect();
        self.selected = Some(Selected {
            folder: folder.name.clone(),
            read_only,
            view,
        });
        Ok(if read_only {
            "[READ-ONLY] EXAMINE completed."
        } else {
            "[READ-WRITE] SELECT completed."
        }
        .to_owned())
    }

    fn status(&mut self, args: &[String]) -> Outcome {
        let name = args.first().cloned().unwrap_or_default();
        let mut store = self.shared.store.lock().unwrap();
        let Some(folder) = store.folder(&self.user, &name) else {
            return Err(format!("NO {name} doesn't exist."));
        };
        let unseen = folder
            .messages
            .iter()
            .filter(|message| !message.flags.contains("\\Seen"))
            .count();
        self.wire.say(&format!(
            "* STATUS \"{name}\" (MESSAGES {} RECENT 0 UNSEEN {unseen} UIDNEXT {} UIDVALIDITY {})",
            folder.messages.len(),
            folder.uidnext,
            folder.uidvalidity
        ));
        Ok(String::new())
    }

    /// Tells the client what changed in the folder since it last heard: EXPUNGE and EXISTS.
    fn announce(&mut self) {
        let Some(selected) = &mut self.selected else {
            return;
        };
        let mut store = self.shared.store.lock().unwrap();
        let Some(folder) = store.folder(&self.user, &selected.folder) else {
            return;
        };
        let uids: Vec<u32> = folder.messages.iter().map(|message| message.uid).collect();
        for at in (0..selected.view.len()).rev() {
            if !uids.contains(&selected.view[at]) {
                selected.view.remove(at);
                self.wire.say(&format!("* {} EXPUNGE", at + 1));
            }
        }
        if selected.view.len() < uids.len() {
            self.wire.say(&format!("* {} EXISTS", uids.len()));
            selected.view = uids;
        }
    }

    /// Removes what is flagged `\Deleted`, of these UIDs only if they are given.
    fn expunge(&mut self, set: Option<&Set>) {
        let Some(selected) = self.selected.as_ref().filter(|selected| !selected.read_only) else {
            return;
        };
        if let Some(folder) = self
            .shared
            .store
            .lock()
            .unwrap()
            .folder(&self.user, &selected.folder)
        {
            let max = folder.uidnext.saturating_sub(1);
            folder.messages.retain(|message| {
                !message.flags.contains("\\Deleted") || set.is_some_and(|set| !set.contains(message.uid, max))
            });
        }
        self.shared.changed();
        self.announce();
    }

    /// The UID commands, in a selected folder.
    fn uid(&mut self, name: &str, args: &[String]) -> Outcome {
        let Some(selected) = &self.selected else {
            return Err("BAD Command received in Invalid state.".to_owned());
        };
        let bad = || "BAD Command Argument Error. 11".to_owned();
        let mut store = self.shared.store.lock().unwrap();
        let (view, read_only, source) = (selected.view.clone(), selected.read_only, selected.folder.clone());
        let Some(folder) = store.folder(&self.user, &source) else {
            return Err("NO The mailbox no longer exists.".to_owned());
        };
        let max = folder.messages.last().map_or(0, |message| message.uid);
        if name == "UID SEARCH" {
            let mut found = String::new();
            for message in &folder.messages {
                if matches(message, args, max).ok_or_else(bad)? {
                    found.push_str(&format!(" {}", message.uid));
                }
            }
            self.wire.say(&format!("* SEARCH{found}"));
            return Ok("SEARCH completed.".to_owned());
        }
        let set = args.first().and_then(|set| Set::parse(set)).ok_or_else(bad)?;
        if read_only && !matches!(name, "UID FETCH" | "UID COPY") {
            return Err("NO Command not allowed in a read-only mailbox.".to_owned());
        }
        let number = |uid: u32| view.iter().position(|known| *known == uid).map_or(0, |at| at + 1);
        match name {
            "UID FETCH" => {
                let items = args.get(1).ok_or_else(bad)?;
                let size_error = self.shared.size_error.load(Ordering::Relaxed);
                for message in folder
                    .messages
                    .iter_mut()
                    .filter(|message| set.contains(message.uid, max))
                {
                    let answer = fetch(message, items, size_error, read_only).ok_or_else(bad)?;
                    self.wire
                        .write(format!("* {} FETCH (", number(message.uid)).as_bytes());
                    self.wire.write(&answer);
                    self.wire.say(")");
                }
                Ok("FETCH completed.".to_owned())
            }
            "UID STORE" => {
                let (how, given) = (
                    args.get(1).ok_or_else(bad)?.to_ascii_uppercase(),
                    args.get(2).ok_or_else(bad)?,
                );
                let given = flags(given)
                    .into_iter()
                    .filter(|flag| FLAGS.split(' ').any(|known| known == flag));
                let given: std::collections::BTreeSet<String> = given.collect();
                for message in folder
                    .messages
                    .iter_mut()
                    .filter(|message| set.contains(message.uid, max))
                {
                    match how.as_bytes()[0] {
                        b'+' => message.flags.extend(given.iter().cloned()),
                        b'-' => message.flags.retain(|flag| !given.contains(flag)),
                        _ => message.flags = given.clone(),
                    }
                    if !how.ends_with(".SILENT") {
                        let flags: Vec<_> = message.flags.iter().cloned().collect();
                        let (number, uid) = (number(message.uid), message.uid);
                        self.wire.say(&format!(
                            "* {number} FETCH (FLAGS ({}) UID {uid})",
                            flags.join(" ")
                        ));
                    }
                }
                self.shared
                    .events
                    .emit(|| format!("imap: {} STORE {}", self.user, args.join(" ")));
                Ok("STORE completed.".to_owned())
            }
            "UID COPY" | "UID MOVE" => {
                let moved: Vec<_> = folder
                    .messages
                    .iter()
                    .filter(|message| set.contains(message.uid, max))
                    .cloned()
                    .collect();
                let target = args.get(1).ok_or_else(bad)?;
                let Some(target) = store.folder(&self.user, target) else {
                    return Err("NO [TRYCREATE] The destination mailbox doesn't exist.".to_owned());
                };
                let (mut from, mut to) = (Vec::new(), Vec::new());
                for message in moved {
                    from.push(message.uid.to_string());
                    to.push(
                        target
                            .add(message.raw, message.flags, message.received)
                            .to_string(),
                    );
                }
                let code = format!(
                    "[COPYUID {} {} {}]",
                    target.uidvalidity,
                    from.join(","),
                    to.join(",")
                );
                let code = if from.is_empty() {
                    String::new()
                } else {
                    format!("{code} ")
                };
                if name == "UID MOVE" {
                    if !code.is_empty() {
                        self.wire.say(&format!("* OK {code}Moved."));
                    }
                    let folder = store.folder(&self.user, &source).ok_or_else(bad)?;
                    folder.messages.retain(|message| !set.contains(message.uid, max));
                }
                drop(store);
                self.shared.changed();
                self.announce();
                Ok(if name == "UID MOVE" {
                    "MOVE completed.".to_owned()
                } else {
                    format!("{code}COPY completed.")
                })
            }
            "UID EXPUNGE" => {
                drop(store);
                self.expunge(Some(&set));
                Ok("EXPUNGE completed.".to_owned())
            }
            _ => Err(bad()),
        }
    }
}

/// The literal a line ends with: where it starts, its length, and whether the client goes on by itself (LITERAL+).
fn literal(line: &str) -> Option<(usize, (usize, bool))> {
    let start = line.rfind('{')?;
    let inside = line[start + 1..].strip_suffix('}')?;
    let (digits, plus) = inside
        .strip_suffix('+')
        .map_or((inside, false), |digits| (digits, true));
    Some((start, (digits.parse().ok()?, plus)))
}
