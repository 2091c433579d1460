//! Exchange Online's IMAP, scripted: the handle a test holds, and the mailboxes behind it.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{broadcast, watch};
use tokio_rustls::TlsAcceptor;

use super::entra::TokenCheck;
use super::events::Events;
use super::gauge::Gauge;
use super::imap_session;
use super::script::{Rule, Script};
use super::server::Server;
use super::smtp::Hook;
use super::tls::Tls;

/// What goes wrong, in place of a command or around it.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Tagged NO with this text.
    No(String),
    /// Tagged BAD with this text.
    Bad(String),
    /// `* BYE` with this text, and the end of the connection.
    Bye(String),
    /// This untagged line (without `* `) first, then the right answer.
    Untagged(String),
    /// The connection is lost, the command not done.
    Cut,
    /// The command is done, but the connection is lost before any of its answer.
    CutAfter,
    /// The command is done, but only half of its answer comes.
    CutMidway,
    /// No answer, the command not done, until the client gives up.
    Silence,
    /// The command is answered, and from then on nothing comes any more: a dead connection that looks alive.
    SilenceAfter,
    /// An IDLE is accepted, and ended at once by the server, with this tagged text.
    Ended(String),
    /// Bytes that are no IMAP, and then the right answer.
    Garbage,
    /// A line that never ends.
    EndlessLine,
}

impl Fault {
    pub fn no(text: &str) -> Self {
        Self::No(text.to_owned())
    }

    pub fn bad(text: &str) -> Self {
        Self::Bad(text.to_owned())
    }

    pub fn ended(text: &str) -> Self {
        Self::Ended(text.to_owned())
    }

    pub fn bye(text: &str) -> Self {
        Self::Bye(text.to_owned())
    }

    pub fn untagged(text: &str) -> Self {
        Self::Untagged(text.to_owned())
    }
}

/// One message in a folder.
#[derive(Clone, Debug)]
pub struct Message {
    pub uid: u32,
    /// As sent: `\Seen`, …
    pub flags: BTreeSet<String>,
    pub raw: Arc<Vec<u8>>,
    /// INTERNALDATE.
    pub received: jiff::Timestamp,
}

#[derive(Clone)]
pub(super) struct Folder {
    pub(super) name: String,
    /// Of LIST: `\HasNoChildren \Sent`.
    pub(super) attributes: String,
    pub(super) uidvalidity: u32,
    pub(super) uidnext: u32,
    pub(super) messages: Vec<Message>,
}

impl Folder {
    fn new(name: &str, attributes: &str, uidvalidity: u32) -> Self {
        Self {
            name: name.to_owned(),
            attributes: format!("\\HasNoChildren {attributes}").trim_end().to_owned(),
            uidvalidity,
            uidnext: 1,
            messages: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        raw: Arc<Vec<u8>>,
        flags: BTreeSet<String>,
        received: jiff::Timestamp,
    ) -> u32 {
        let uid = self.uidnext;
        self.uidnext += 1;
        self.messages.push(Message { uid, flags, raw, received });
        uid
    }
}

/// The folders of every mailbox, by lower-case address.
#[derive(Default)]
pub(super) struct Store(HashMap<String, Vec<Folder>>);

impl Store {
    /// A mailbox, made with Exchange's usual folders at first sight.
    pub(super) fn mailbox(&mut self, mailbox: &str) -> &mut Vec<Folder> {
        self.0.entry(mailbox.to_lowercase()).or_insert_with(|| {
            vec![
                Folder::new("INBOX", "\\Marked", 14),
                Folder::new("Sent Items", "\\Sent", 15),
                Folder::new("Deleted Items", "\\Trash", 16),
                Folder::new("Drafts", "\\Drafts", 17),
                Folder::new("Junk Email", "\\Junk", 18),
            ]
        })
    }

    pub(super) fn folder(&mut self, mailbox: &str, name: &str) -> Option<&mut Folder> {
        self.mailbox(mailbox).iter_mut().find(|folder| {
            folder.name == name || (folder.name == "INBOX" && name.eq_ignore_ascii_case("INBOX"))
        })
    }
}

/// What a test does to the connections of a mailbox.
#[derive(Clone)]
pub(super) enum Control {
    Say(String),
    Bye(String),
    Cut,
}

pub(super) struct Shared {
    pub(super) acceptor: TlsAcceptor,
    pub(super) check: TokenCheck,
    pub(super) script: Script<&'static str, Fault>,
    pub(super) store: Mutex<Store>,
    /// Counts the changes to the store, to wake those in IDLE.
    pub(super) version: watch::Sender<u64>,
    pub(super) control: broadcast::Sender<(String, Control)>,
    pub(super) commands: Mutex<Vec<(u64, String)>>,
    pub(super) connections: Gauge,
    pub(super) dropped: Mutex<BTreeSet<String>>,
    pub(super) generic_failure: AtomicBool,
    pub(super) exists_before_idle: AtomicBool,
    pub(super) size_error: AtomicI64,
    pub(super) events: Events,
}

impl Shared {
    pub(super) fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }
}

/// The server at a free port of 127.0.0.1, with TLS from the first byte.
pub struct Imap {
    /// For outages: `down` and `up`.
    pub server: Server,
    shared: Arc<Shared>,
}

impl Imap {
    /// `check` decides on tokens, see [`super::entra::Entra::check`].
    pub async fn start(tls: &Tls, check: TokenCheck) -> Self {
        let shared = Arc::new(Shared {
            acceptor: tls.acceptor(),
            check,
            script: Script::default(),
            store: Mutex::default(),
            version: watch::Sender::new(0),
            control: broadcast::Sender::new(1024),
            commands: Mutex::default(),
            connections: Gauge::default(),
            dropped: Mutex::default(),
            generic_failure: AtomicBool::new(false),
            exists_before_idle: AtomicBool::new(false),
            size_error: AtomicI64::new(0),
            events: Events::default(),
        });
        let world = Arc::clone(&shared);
        let server = Server::start(move |stream, number| {
            let world = Arc::clone(&world);
            async move {
                let _total = world.connections.enter("");
                imap_session::serve(Arc::clone(&world), stream, number).await;
            }
        })
        .await;
        Self { server, shared }
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// For the key `imap`, with the name the certificate is for.
    pub fn endpoint(&self) -> String {
        format!("localhost:{}", self.addr().port())
    }

    /// A new, unread message; gives its UID. The folder is made if it is missing.
    pub fn deliver(&self, mailbox: &str, folder: &str, raw: &[u8]) -> u32 {
        deliver(&self.shared, mailbox, folder, Arc::new(raw.to_vec()), &[])
    }

    /// The messages of a folder, by UID.
    pub fn messages(&self, mailbox: &str, folder: &str) -> Vec<Message> {
        let mut store = self.shared.store.lock().unwrap();
        store.folder(mailbox, folder).map(|folder| folder.messages.clone()).unwrap_or_default()
    }

    /// The flags of a message; `None` if it is not there.
    pub fn flags(&self, mailbox: &str, folder: &str, uid: u32) -> Option<BTreeSet<String>> {
        self.messages(mailbox, folder)
            .into_iter()
            .find(|message| message.uid == uid)
            .map(|message| message.flags)
    }

    /// Sets the flags from outside, as a person in Outlook does.
    pub fn set_flags(&self, mailbox: &str, folder: &str, uid: u32, flags: &[&str]) {
        self.change(mailbox, folder, |folder| {
            for message in folder.messages.iter_mut().filter(|message| message.uid == uid) {
                message.flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
            }
        });
    }

    /// Another INTERNALDATE.
    pub fn set_received(&self, mailbox: &str, folder: &str, uid: u32, received: jiff::Timestamp) {
        self.change(mailbox, folder, |folder| {
            for message in folder.messages.iter_mut().filter(|message| message.uid == uid) {
                message.received = received;
            }
        });
    }

    /// So many messages at once, each of another Message-Id; every second UID is of none, as in a folder that people tidy.
    pub fn fill(&self, mailbox: &str, folder: &str, count: usize, raw: impl Fn(usize) -> Vec<u8>) {
        let received = jiff::Timestamp::now();
        self.change(mailbox, folder, |folder| {
            for number in 0..count {
                folder.add(Arc::new(raw(number)), BTreeSet::new(), received);
                folder.uidnext += 1;
            }
        });
    }

    /// Takes a message out from outside.
    pub fn remove(&self, mailbox: &str, folder: &str, uid: u32) {
        self.change(mailbox, folder, |folder| folder.messages.retain(|message| message.uid != uid));
    }

    /// A folder's UIDVALIDITY.
    pub fn uidvalidity(&self, mailbox: &str, folder: &str) -> u32 {
        self.shared.store.lock().unwrap().folder(mailbox, folder).unwrap().uidvalidity
    }

    /// A new UIDVALIDITY: the messages get new UIDs, from 1.
    pub fn set_uidvalidity(&self, mailbox: &str, folder: &str, uidvalidity: u32) {
        self.change(mailbox, folder, |folder| {
            folder.uidvalidity = uidvalidity;
            folder.uidnext = 1;
            for message in &mut folder.messages {
                message.uid = folder.uidnext;
                folder.uidnext += 1;
            }
        });
    }

    /// A folder more; `attributes` of LIST, such as `\Sent`, or nothing.
    pub fn add_folder(&self, mailbox: &str, name: &str, attributes: &str) {
        let mut store = self.shared.store.lock().unwrap();
        let folders = store.mailbox(mailbox);
        let uidvalidity = 14 + u32::try_from(folders.len()).unwrap();
        folders.push(Folder::new(name, attributes, uidvalidity));
    }

    /// A folder less.
    pub fn remove_folder(&self, mailbox: &str, name: &str) {
        self.shared.store.lock().unwrap().mailbox(mailbox).retain(|folder| folder.name != name);
    }

    /// For [`super::smtp::Smtp::set_hook`]: every submission is filed in Sent Items of the mailbox, read, as Exchange
    /// does.
    pub fn sent_items(&self) -> Hook {
        let shared = Arc::clone(&self.shared);
        Arc::new(move |sent| {
            deliver(&shared, &sent.mailbox, "Sent Items", Arc::clone(&sent.data), &["\\Seen"]);
        })
    }

    /// Plans a fault at a command: `"SELECT"`, `"UID FETCH"`, …, or at `"GREETING"`. `only` compares with the mailbox,
    /// or looks for the text in the command's arguments.
    pub fn script(&self, rule: Rule<&'static str, Fault>) {
        self.shared.script.add(rule);
    }

    /// Plans a fault that happens once.
    pub fn fail_next(&self, command: &'static str, fault: Fault) {
        self.script(Rule::new(command, fault));
    }

    /// Faults still to come.
    pub fn pending(&self) -> usize {
        self.shared.script.pending()
    }

    /// Forgets every planned fault.
    pub fn clear(&self) {
        self.shared.script.clear();
    }

    /// Sends an untagged line (without `* `) to every connection of the mailbox, now.
    pub fn say(&self, mailbox: &str, line: &str) {
        self.control(mailbox, Control::Say(line.to_owned()));
    }

    /// Ends every connection of the mailbox with `* BYE`.
    pub fn bye(&self, mailbox: &str, text: &str) {
        self.control(mailbox, Control::Bye(text.to_owned()));
    }

    /// Cuts every connection of the mailbox.
    pub fn cut(&self, mailbox: &str) {
        self.control(mailbox, Control::Cut);
    }

    /// The commands seen, without tags, with the number of their connection; AUTHENTICATE without what follows it.
    pub fn commands(&self) -> Vec<(u64, String)> {
        self.shared.commands.lock().unwrap().clone()
    }

    /// Connections ever made.
    pub fn connections(&self) -> usize {
        self.shared.connections.total("")
    }

    /// Connections now authenticated as this mailbox; "" stands for all, authenticated or not.
    pub fn connections_now(&self, mailbox: &str) -> usize {
        self.shared.connections.now(mailbox)
    }

    /// Connections of this mailbox that are in IDLE now.
    pub fn idling(&self, mailbox: &str) -> usize {
        self.shared.connections.now(&format!("idle {mailbox}"))
    }

    /// Takes a word out of CAPABILITY.
    pub fn drop_capability(&self, word: &str) {
        self.shared.dropped.lock().unwrap().insert(word.to_ascii_uppercase());
    }

    /// `true`: a wrong token is answered with `+` and JSON, and only then with NO, as servers other than Exchange do.
    pub fn set_generic_failure(&self, on: bool) {
        self.shared.generic_failure.store(on, Ordering::Relaxed);
    }

    /// `true`: IDLE announces EXISTS before its `+`, as Exchange sometimes does.
    pub fn set_exists_before_idle(&self, on: bool) {
        self.shared.exists_before_idle.store(on, Ordering::Relaxed);
    }

    /// RFC822.SIZE is off by this many bytes, as Exchange's is when it only estimates it.
    pub fn set_size_error(&self, bytes: i64) {
        self.shared.size_error.store(bytes, Ordering::Relaxed);
    }

    pub fn events(&self) -> &Events {
        &self.shared.events
    }

    fn control(&self, mailbox: &str, control: Control) {
        let _ = self.shared.control.send((mailbox.to_lowercase(), control));
    }

    fn change(&self, mailbox: &str, folder: &str, change: impl FnOnce(&mut Folder)) {
        if let Some(folder) = self.shared.store.lock().unwrap().folder(mailbox, folder) {
            change(folder);
        }
        self.shared.changed();
    }
}

fn deliver(shared: &Shared, mailbox: &str, folder: &str, raw: Arc<Vec<u8>>, flags: &[&str]) -> u32 {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let uid = {
        let mut store = shared.store.lock().unwrap();
        if store.folder(mailbox, folder).is_none() {
            store.mailbox(mailbox).push(Folder::new(folder, "", 99));
        }
        store.folder(mailbox, folder).unwrap().add(raw, flags, jiff::Timestamp::now())
    };
    shared.changed();
    shared.events.emit(|| format!("imap: {mailbox} {folder} has message {uid}"));
    uid
}
