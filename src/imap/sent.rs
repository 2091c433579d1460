//! Finding a message among those that were sent: the folder of sent mail, a search by Message-ID, and the headers of what
//! it finds.

use super::folder_name::{quote, quote_listed};
use super::session::{COMMAND, Error, Folder, Session};
use crate::microsoft::imap_replies::Step;
use async_imap::imap_proto::{
    AttributeValue, MailboxDatum, MessageSection, NameAttribute, Response, SectionPath,
};

/// A Message-ID that is longer is not searched for. RFC 5322 section 2.1.1 ends a line at 998 bytes, and Exchange does not
/// take commands of any length.
const LONGEST_ID: usize = 900;
/// So many folders of sent mail are looked through at most. There is one; servers that were moved may have two.
const MOST_FOLDERS: usize = 4;
/// Headers are fetched from so many messages at a time: bounds what is held in memory.
const AT_A_TIME: usize = 20;
/// So many of the newest messages with one Message-ID are looked at. Odoo sends one mail to many people in as many
/// transactions.
const MOST_HITS: usize = 1000;

/// Whether a Message-ID can be searched for: printable ASCII of a sane length.
pub fn is_searchable(message_id: &str) -> bool {
    (1..=LONGEST_ID).contains(&message_id.len()) && quote(message_id).is_some()
}

impl Session {
    /// The folders of sent mail (RFC 6154, `\Sent`), by their names as the server writes them; empty: it names none.
    ///
    /// # Errors
    /// A list that the server refuses, or a session that is over.
    pub async fn sent_folders(&mut self) -> Result<Vec<String>, Error> {
        let found = self.sent_in("LIST \"\" \"*\"").await?;
        if !found.is_empty() {
            return Ok(found);
        }
        // A server may keep special uses to itself until it is asked (RFC 6154 section 2).
        match self.sent_in("LIST \"\" \"*\" RETURN (SPECIAL-USE)").await {
            // It does not know this way of asking.
            Err(error) if error.is_answer() => Ok(Vec::new()),
            asked => asked,
        }
    }

    async fn sent_in(&mut self, command: &str) -> Result<Vec<String>, Error> {
        let mut folders = Vec::new();
        self.command(Step::List, command, COMMAND, |response| {
            if let Response::MailboxData(MailboxDatum::List(listed)) = response
                && listed.name_attributes.contains(&NameAttribute::Sent)
                && folders.len() < MOST_FOLDERS
            {
                folders.push(listed.name.to_string());
            }
        })
        .await?;
        Ok(folders)
    }

    /// Selects a folder for reading only, by its name as [`Session::sent_folders`] gave it. `None`: the name cannot be
    /// written in a command.
    ///
    /// # Errors
    /// As [`Session::select`].
    pub async fn examine_listed(&mut self, name: &str) -> Result<Option<Folder>, Error> {
        match quote_listed(name) {
            Some(quoted) => self.enter("EXAMINE", &quoted).await.map(Some),
            None => Ok(None),
        }
    }

    /// The UIDs of the messages that were sent with this Message-ID, newest first; none where it [cannot be searched
    /// for](is_searchable).
    ///
    /// # Errors
    /// A search that the server refuses, or a session that is over.
    pub async fn search_message_id(&mut self, message_id: &str) -> Result<Vec<u32>, Error> {
        let Some(quoted) = quote(message_id).filter(|_| is_searchable(message_id)) else {
            return Ok(Vec::new());
        };
        let mut found = self.search(&format!("HEADER Message-ID {quoted}")).await?;
        // Outlook.com puts its own Message-ID in place of the sender's, which it keeps there (chatmail/core#3077).
        match self.search(&format!("HEADER X-Microsoft-Original-Message-ID {quoted}")).await {
            Ok(replaced) => found.extend(replaced),
            // A server that does not search for any field has not replaced the Message-ID either.
            Err(error) if error.is_answer() => {}
            Err(error) => return Err(error),
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.dedup();
        found.truncate(MOST_HITS);
        Ok(found)
    }

    /// Hands the header sections of these messages to `each`, until that says that it has seen enough.
    ///
    /// # Errors
    /// Messages that the server cannot give, or a session that is over.
    pub async fn headers(&mut self, uids: &[u32], mut each: impl FnMut(&[u8]) -> bool) -> Result<(), Error> {
        for some in uids.chunks(AT_A_TIME) {
            let set: Vec<String> = some.iter().map(ToString::to_string).collect();
            let command = format!("UID FETCH {} (UID BODY.PEEK[HEADER])", set.join(","));
            let mut enough = false;
            self.command(Step::Fetch, &command, COMMAND, |response| {
                let Response::Fetch(_, attributes) = response else {
                    return;
                };
                for attribute in attributes {
                    if let AttributeValue::BodySection {
                        section: Some(SectionPath::Full(MessageSection::Header)),
                        data: Some(data),
                        ..
                    } = attribute
                    {
                        enough = enough || each(data);
                    }
                }
            })
            .await?;
            if enough {
                break;
            }
        }
        Ok(())
    }
}
