//! The inbox loop's decisions, without any I/O: which messages to look for and enter, and how long to wait.

use crate::clock;
use crate::failure::{Class, Failure};
use crate::imap::Folder;
use crate::store::Mark;
use std::time::Duration;

/// Which messages of a folder are new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The unread ones: the folder is seen for the first time, or its UIDs count anew.
    Unread,
    /// Those above this UID.
    Above(u32),
}

impl Look {
    /// What to look for in a folder that was looked through up to `mark`.
    pub fn new(mark: Option<Mark>, folder: Folder) -> Self {
        match mark {
            Some(mark) if mark.uidvalidity == folder.uidvalidity => Self::Above(mark.uid),
            // RFC 9051 section 2.3.1.1: with another UIDVALIDITY no UID means what it meant.
            _ => Self::Unread,
        }
    }

    /// The key of UID SEARCH (RFC 9051 section 6.4.4).
    pub fn search(self) -> String {
        match self {
            Self::Unread => "UNSEEN".to_owned(),
            Self::Above(uid) => format!("UID {}:*", uid.saturating_add(1)),
        }
    }

    /// What to enter of what the search `found`: the new mark, and the UIDs in order.
    pub fn enter(self, folder: Folder, mut found: Vec<u32>) -> (Mark, Vec<u32>) {
        found.sort_unstable();
        found.dedup();
        let uid = match self {
            Self::Unread => folder.uidnext.saturating_sub(1),
            Self::Above(mark) => {
                // `n:*` always finds the last message, even where that lies below n.
                found.retain(|&uid| uid > mark);
                found.last().copied().unwrap_or(mark)
            }
        };
        let mark = Mark { uidvalidity: folder.uidvalidity, uid };
        (mark, found)
    }
}

const SECOND: u64 = 1;
const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

/// How long to wait after the nth failure in a row (`times` from 1): 1, 2, 5, 10, 30 s, 1, 2, 5 min, then every 5 min.
const PASSING: [u64; 8] =
    [SECOND, 2 * SECOND, 5 * SECOND, 10 * SECOND, 30 * SECOND, MINUTE, 2 * MINUTE, 5 * MINUTE];

/// The same where a person has to act, or the service asked for fewer requests: 1, 2, 5 min, then every 10 min.
const LASTING: [u64; 4] = [MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE];

/// How long a refused message waits after its nth try: 5, 15 min, 1, 3 h, then every 6 h.
const REFUSED: [u64; 5] = [5 * MINUTE, 15 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR];

/// How long a mailbox waits after the nth failure in a row; longer if the peer said so.
pub fn back_off(failure: &Failure, times: u32) -> Duration {
    let schedule: &[u64] = match failure.class {
        Class::Transient | Class::Message => &PASSING,
        Class::Rate | Class::Consent | Class::Administrator => &LASTING,
    };
    clock::nth(schedule, times).max(failure.retry_after.unwrap_or_default())
}

/// How long a refused message waits after its nth try.
pub fn refused_again_after(tries: u32) -> Duration {
    clock::nth(&REFUSED, tries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn folder(uidvalidity: u32, uidnext: u32) -> Folder {
        Folder { uidvalidity, uidnext }
    }

    fn mark(uidvalidity: u32, uid: u32) -> Mark {
        Mark { uidvalidity, uid }
    }

    #[test]
    fn what_is_new_follows_from_the_mark() {
        type Row = (&'static str, Option<Mark>, Folder, &'static str, Vec<u32>, Mark, Vec<u32>);
        let rows: [Row; 9] = [
            ("first start", None, folder(1, 8), "UNSEEN", vec![7, 3], mark(1, 7), vec![3, 7]),
            ("first start, nothing unread", None, folder(1, 8), "UNSEEN", vec![], mark(1, 7), vec![]),
            ("first start, empty folder", None, folder(1, 1), "UNSEEN", vec![], mark(1, 0), vec![]),
            (
                "one came between SELECT and SEARCH",
                None,
                folder(1, 8),
                "UNSEEN",
                vec![8],
                mark(1, 7),
                vec![8],
            ),
            ("next poll", Some(mark(1, 7)), folder(1, 10), "UID 8:*", vec![9, 8], mark(1, 9), vec![8, 9]),
            (
                "next poll, nothing new",
                Some(mark(1, 7)),
                folder(1, 8),
                "UID 8:*",
                vec![7],
                mark(1, 7),
                vec![],
            ),
            (
                "next poll, folder emptied",
                Some(mark(1, 7)),
                folder(1, 8),
                "UID 8:*",
                vec![],
                mark(1, 7),
                vec![],
            ),
            ("UIDs count anew", Some(mark(1, 7)), folder(2, 4), "UNSEEN", vec![1, 3], mark(2, 3), vec![1, 3]),
            ("named twice", Some(mark(1, 1)), folder(1, 4), "UID 2:*", vec![3, 2, 3], mark(1, 3), vec![2, 3]),
        ];
        for (what, known, folder, search, found, new_mark, entered) in rows {
            let look = Look::new(known, folder);
            assert_eq!(look.search(), search, "{what}");
            assert_eq!(look.enter(folder, found), (new_mark, entered), "{what}");
        }
    }

    #[test]
    fn the_last_possible_uid_does_no_harm() {
        let look = Look::Above(u32::MAX);
        assert_eq!(look.search(), "UID 4294967295:*");
        assert_eq!(look.enter(folder(1, u32::MAX), vec![u32::MAX]), (mark(1, u32::MAX), vec![]));
    }

    proptest! {
        #[test]
        fn the_mark_never_goes_back_and_nothing_below_it_is_entered(at in any::<u32>(), found in any::<Vec<u32>>()) {
            let (new, entered) = Look::Above(at).enter(folder(1, 1), found.clone());
            prop_assert!(new.uid >= at);
            prop_assert!(entered.iter().all(|&uid| uid > at && uid <= new.uid));
            prop_assert!(found.iter().all(|uid| *uid <= at || entered.contains(uid)));
        }
    }

    #[test]
    fn waits_grow_and_end() {
        let passing = Failure::new(Class::Transient, "c", "r");
        let waits: Vec<_> = (1..=9).map(|times| back_off(&passing, times).as_secs()).collect();
        assert_eq!(waits, [1, 2, 5, 10, 30, 60, 120, 300, 300]);
        let severe = Failure::new(Class::Administrator, "c", "r");
        let waits: Vec<_> = (1..=5).map(|times| back_off(&severe, times).as_secs()).collect();
        assert_eq!(waits, [60, 120, 300, 600, 600]);
        assert_eq!(back_off(&passing.wait(Duration::from_secs(299)), 1).as_secs(), 299);
        let waits: Vec<_> = (0..=6).map(|tries| refused_again_after(tries).as_secs()).collect();
        assert_eq!(waits, [300, 300, 900, 3600, 10800, 21600, 21600]);
        assert_eq!(refused_again_after(u32::MAX).as_secs(), 21600);
    }
}
