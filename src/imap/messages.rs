//! What is done to the messages of a folder, many at a time: sizes, contents, marks, moves.

use super::folder_name;
use super::session::{COMMAND, Error, Session};
use super::watch::Capabilities;
use crate::failure::Failure;
use crate::microsoft::imap_replies::{self, Status, Step};
use async_imap::imap_proto::{AttributeValue, Response};
use jiff::Timestamp;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

/// How long fetching messages may take.
const BODIES: Duration = Duration::from_secs(300);
/// So many messages are named in one command at most: Exchange does not take commands of any length.
const AT_A_TIME: usize = 200;

/// What the server told, by UID: `None` where it told of the message, but not what was asked for. A message that is
/// missing is no longer there, most likely.
pub type Told<T> = HashMap<u32, Option<T>>;

/// How a message lies in its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lying {
    /// Its UID.
    pub uid: u32,
    /// Whether it is marked as read.
    pub seen: bool,
    /// When it arrived (INTERNALDATE); `None`: the server says nothing that makes sense.
    pub received_at: Option<Timestamp>,
}

impl Session {
    /// The sizes of messages in bytes, which Exchange only estimates.
    ///
    /// # Errors
    /// Messages that the server cannot give, or a session that is over.
    pub async fn sizes(&mut self, uids: &[u32]) -> Result<Told<u64>, Error> {
        self.ask(uids, "RFC822.SIZE", COMMAND, |attribute| match attribute {
            AttributeValue::Rfc822Size(number) => Some(u64::from(*number)),
            _ => None,
        })
        .await
    }

    /// The bytes of messages, leaving them unread. All are held in memory at once.
    ///
    /// # Errors
    /// Messages that the server cannot give, or a session that is over.
    pub async fn bodies(&mut self, uids: &[u32]) -> Result<Told<Vec<u8>>, Error> {
        self.ask(uids, "BODY.PEEK[]", BODIES, |attribute| match attribute {
            AttributeValue::BodySection { section: None, data: Some(data), .. } => Some(data.to_vec()),
            _ => None,
        })
        .await
    }

    /// How messages lie in the folder.
    ///
    /// # Errors
    /// Messages that the server cannot give, or a session that is over.
    pub async fn lying(&mut self, uids: &[u32]) -> Result<Vec<Lying>, Error> {
        let mut found = Vec::new();
        for some in uids.chunks(AT_A_TIME) {
            let command = format!("UID FETCH {} (UID FLAGS INTERNALDATE)", set(some));
            self.command(Step::Fetch, &command, COMMAND, |response| {
                let Some((uid, attributes)) = of_one(some, response) else {
                    return;
                };
                let mut lying = Lying { uid, seen: false, received_at: None };
                for attribute in attributes {
                    match attribute {
                        AttributeValue::Flags(flags) => {
                            lying.seen |= flags.iter().any(|flag| flag.eq_ignore_ascii_case("\\Seen"));
                        }
                        AttributeValue::InternalDate(date) => lying.received_at = internal_date(date),
                        _ => {}
                    }
                }
                found.push(lying);
            })
            .await?;
        }
        Ok(found)
    }

    async fn ask<T>(
        &mut self,
        uids: &[u32],
        what: &str,
        limit: Duration,
        pick: impl Fn(&AttributeValue<'_>) -> Option<T>,
    ) -> Result<Told<T>, Error> {
        let mut told = Told::new();
        for some in uids.chunks(AT_A_TIME) {
            let command = format!("UID FETCH {} (UID {what})", set(some));
            self.command(Step::Fetch, &command, limit, |response| {
                if let Some((uid, attributes)) = of_one(some, response) {
                    let picked = attributes.iter().find_map(&pick);
                    let entry = told.entry(uid).or_insert(None);
                    *entry = picked.or(entry.take());
                }
            })
            .await?;
        }
        Ok(told)
    }

    /// Which of these messages are still in the folder.
    ///
    /// # Errors
    /// A search that the server refuses, or a session that is over.
    pub async fn present(&mut self, uids: &[u32]) -> Result<Vec<u32>, Error> {
        let mut found = Vec::new();
        for some in uids.chunks(AT_A_TIME) {
            found.extend(self.search(&format!("UID {}", set(some))).await?);
        }
        found.retain(|uid| uids.contains(uid));
        Ok(found)
    }

    /// Why a message cannot be had that the server tells of, but not `what` was asked for: it is not gone.
    pub fn withheld(&self, what: &str) -> Failure {
        let text = format!("the server tells of the message, but not {what}");
        let failure = imap_replies::judge(Step::Fetch, Status::No, &text, self.mailbox.as_str());
        Failure { code: "odd answer".to_owned(), ..failure }
    }

    /// Marks messages as read. That some are gone is no error.
    ///
    /// # Errors
    /// A folder that may only be read, or a session that is over.
    pub async fn mark_seen(&mut self, uids: &[u32]) -> Result<(), Error> {
        self.store(uids, "\\Seen").await
    }

    /// Moves messages to another folder, which is made if it is not there. That some are gone is no error.
    ///
    /// # Errors
    /// A folder that may only be read or not be written to, or a session that is over.
    pub async fn move_to(&mut self, uids: &[u32], folder: &str, able: Capabilities) -> Result<(), Error> {
        let folder = folder_name::encode(folder);
        // RFC 6851; without it, RFC 3501 has no other way than a copy.
        let verb = if able.moves { "MOVE" } else { "COPY" };
        for some in uids.chunks(AT_A_TIME) {
            let command = format!("UID {verb} {} {folder}", set(some));
            match self.command(Step::Move, &command, COMMAND, |_| ()).await {
                // RFC 9051 section 6.4.7: TRYCREATE. Exchange does not always say it.
                Err(Error::Refused(_)) => {
                    let made = self.command(Step::Move, &format!("CREATE {folder}"), COMMAND, |_| ()).await;
                    made?;
                    self.command(Step::Move, &command, COMMAND, |_| ()).await?;
                }
                moved => moved?,
            }
            if !able.moves {
                self.delete(some, able).await?;
            }
        }
        Ok(())
    }

    /// Deletes messages. Where the server can only expunge a folder as a whole, they stay, flagged `\Deleted`: others may
    /// have flagged messages of their own.
    ///
    /// # Errors
    /// A folder that may only be read, or a session that is over.
    pub async fn delete(&mut self, uids: &[u32], able: Capabilities) -> Result<(), Error> {
        self.store(uids, "\\Seen \\Deleted").await?;
        for some in uids.chunks(AT_A_TIME).filter(|_| able.uidplus) {
            // RFC 4315 section 2.1.
            let command = format!("UID EXPUNGE {}", set(some));
            self.command(Step::Move, &command, COMMAND, |_| ()).await?;
        }
        Ok(())
    }

    async fn store(&mut self, uids: &[u32], flags: &str) -> Result<(), Error> {
        for some in uids.chunks(AT_A_TIME) {
            let command = format!("UID STORE {} +FLAGS.SILENT ({flags})", set(some));
            self.command(Step::Store, &command, COMMAND, |_| ()).await?;
        }
        Ok(())
    }
}

/// What a response says of one of the messages that were asked for: the server may tell of others at any time.
fn of_one<'r, 'd>(asked: &[u32], response: &'r Response<'d>) -> Option<(u32, &'r [AttributeValue<'d>])> {
    let Response::Fetch(_, attributes) = response else {
        return None;
    };
    let uid = attributes.iter().find_map(|attribute| match attribute {
        AttributeValue::Uid(uid) => Some(*uid),
        _ => None,
    })?;
    asked.contains(&uid).then_some((uid, attributes.as_slice()))
}

/// A `sequence-set` (RFC 9051 section 9) of these UIDs and no other.
pub(super) fn set(uids: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = uids;
    while let Some((&first, _)) = rest.split_first() {
        let follows = |(at, uid): &(usize, &u32)| u64::from(**uid) == u64::from(first) + (*at as u64);
        let length = rest.iter().enumerate().take_while(follows).count();
        let (run, others) = rest.split_at_checked(length).unwrap_or((rest, &[]));
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a String cannot fail.
        let _ = match run {
            [first, .., last] => write!(text, "{comma}{first}:{last}"),
            _ => write!(text, "{comma}{first}"),
        };
        rest = others;
    }
    text
}

/// `date-time` (RFC 9051 section 9), like ` 7-Jul-2026 02:44:25 -0700`.
fn internal_date(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    let day = text.find('-')?;
    let padded = format!("{:0>2}{}", text.get(..day)?, text.get(day..)?);
    Timestamp::strptime("%d-%b-%Y %H:%M:%S %z", padded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sets_name_the_uids_and_no_other() {
        let rows: [(&[u32], &str); 6] = [
            (&[], ""),
            (&[7], "7"),
            (&[7, 8], "7:8"),
            (&[1, 2, 3, 7, 9, 10], "1:3,7,9:10"),
            (&[3, 2, 1], "3,2,1"),
            (&[u32::MAX - 1, u32::MAX], "4294967294:4294967295"),
        ];
        for (uids, expected) in rows {
            assert_eq!(set(uids), expected);
        }
    }

    #[test]
    fn dates_are_read_whatever_their_zone() {
        let rows = [
            ("17-Jul-1996 02:44:25 -0700", Some("1996-07-17T09:44:25Z")),
            (" 7-Jul-2026 02:44:25 +0000", Some("2026-07-07T02:44:25Z")),
            ("7-Jul-2026 02:44:25 +0200", Some("2026-07-07T00:44:25Z")),
            ("yesterday", None),
            ("", None),
        ];
        for (text, expected) in rows {
            assert_eq!(internal_date(text).map(|at| at.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_date_does_harm(text in any::<String>()) {
            internal_date(&text);
        }
    }
}
