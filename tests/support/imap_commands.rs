//! The commands of the scripted IMAP server that need no more input than their line.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::Ordering;

use super::imap::Folder;
use super::imap_data::{Set, fetch, flags, matches};
use super::imap_session::{Outcome, Selected, Session};

const CAPABILITIES: &str = "IMAP4 IMAP4rev1 AUTH=PLAIN AUTH=XOAUTH2 SASL-IR UIDPLUS MOVE ID UNSELECT CHILDREN IDLE \
                            NAMESPACE LITERAL+";
/// What Exchange keeps; other keywords are dropped.
const FLAGS: &str = r"\Seen \Answered \Flagged \Deleted \Draft $MDNSent";

impl Session {
    /// Everything that needs no more input.
    pub(super) fn execute(&mut self, name: &str, args: &[String]) -> Outcome {
        match name {
            "CAPABILITY" => {
                let dropped = self.shared.dropped.lock().unwrap().clone();
                let words: Vec<_> =
                    CAPABILITIES.split_whitespace().filter(|word| !dropped.contains(*word)).collect();
                self.wire.say(&format!("* CAPABILITY {}", words.join(" ")));
                return Ok(String::new());
            }
            "ID" => {
                self.wire.say(r#"* ID ("name" "Microsoft.Exchange.Imap4.Imap4Server" "version" "15.20")"#);
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
                self.wire.say(&format!("* {name} ({}) \"/\" {quoted}", folder.attributes));
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
        self.wire.say(&format!("* OK [PERMANENTFLAGS ({permanent})] Permanent flags"));
        if let Some(at) = folder.messages.iter().position(|message| !message.flags.contains("\\Seen")) {
            self.wire.say(&format!("* OK [UNSEEN {}] Is the first unseen message", at + 1));
        }
        self.wire.say(&format!("* OK [UIDVALIDITY {}] UIDVALIDITY value", folder.uidvalidity));
        self.wire.say(&format!("* OK [UIDNEXT {}] The next unique identifier value", folder.uidnext));
        let view = folder.messages.iter().map(|message| message.uid).collect();
        self.selected = Some(Selected { folder: folder.name.clone(), read_only, view });
        Ok(if read_only { "[READ-ONLY] EXAMINE completed." } else { "[READ-WRITE] SELECT completed." }
            .to_owned())
    }

    fn status(&mut self, args: &[String]) -> Outcome {
        let name = args.first().cloned().unwrap_or_default();
        let mut store = self.shared.store.lock().unwrap();
        let Some(folder) = store.folder(&self.user, &name) else {
            return Err(format!("NO {name} doesn't exist."));
        };
        let unseen = folder.messages.iter().filter(|message| !message.flags.contains("\\Seen")).count();
        self.wire.say(&format!(
            "* STATUS \"{name}\" (MESSAGES {} RECENT 0 UNSEEN {unseen} UIDNEXT {} UIDVALIDITY {})",
            folder.messages.len(),
            folder.uidnext,
            folder.uidvalidity
        ));
        Ok(String::new())
    }

    /// Tells the client what changed in the folder since it last heard: EXPUNGE and EXISTS.
    pub(super) fn announce(&mut self) {
        let Some(selected) = &mut self.selected else {
            return;
        };
        let mut store = self.shared.store.lock().unwrap();
        let Some(folder) = store.folder(&self.user, &selected.folder) else {
            return;
        };
        let uids: Vec<u32> = folder.messages.iter().map(|message| message.uid).collect();
        if selected.view == uids {
            return;
        }
        let there: HashSet<u32> = uids.iter().copied().collect();
        for at in (0..selected.view.len()).rev() {
            if !there.contains(&selected.view[at]) {
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
        if let Some(folder) = self.shared.store.lock().unwrap().folder(&self.user, &selected.folder) {
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
        let number = |uid: u32| view.binary_search(&uid).map_or(0, |at| at + 1);
        match name {
            "UID FETCH" => {
                let items = args.get(1).ok_or_else(bad)?;
                let size_error = self.shared.size_error.load(Ordering::Relaxed);
                for message in folder.messages.iter_mut().filter(|message| set.contains(message.uid, max)) {
                    let answer = fetch(message, items, size_error, read_only).ok_or_else(bad)?;
                    self.wire.write(format!("* {} FETCH (", number(message.uid)).as_bytes());
                    self.wire.write(&answer);
                    self.wire.say(")");
                }
                Ok("FETCH completed.".to_owned())
            }
            "UID STORE" => {
                let (how, given) =
                    (args.get(1).ok_or_else(bad)?.to_ascii_uppercase(), args.get(2).ok_or_else(bad)?);
                let given =
                    flags(given).into_iter().filter(|flag| FLAGS.split(' ').any(|known| known == flag));
                let given: BTreeSet<String> = given.collect();
                for message in folder.messages.iter_mut().filter(|message| set.contains(message.uid, max)) {
                    match how.as_bytes()[0] {
                        b'+' => message.flags.extend(given.iter().cloned()),
                        b'-' => message.flags.retain(|flag| !given.contains(flag)),
                        _ => message.flags = given.clone(),
                    }
                    if !how.ends_with(".SILENT") {
                        let flags: Vec<_> = message.flags.iter().cloned().collect();
                        let (number, uid) = (number(message.uid), message.uid);
                        self.wire.say(&format!("* {number} FETCH (FLAGS ({}) UID {uid})", flags.join(" ")));
                    }
                }
                self.shared.events.emit(|| format!("imap: {} STORE {}", self.user, args.join(" ")));
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
                    to.push(target.add(message.raw, message.flags, message.received).to_string());
                }
                let code = format!("[COPYUID {} {} {}]", target.uidvalidity, from.join(","), to.join(","));
                let code = if from.is_empty() { String::new() } else { format!("{code} ") };
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
