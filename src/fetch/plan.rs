//! The inbox loop's decisions, without any I/O: which messages to look for and enter, and how long to wait.

use crate::clock;
use crate::failure::{Class, Failure};
use crate::imap::{Folder, Lying};
use crate::store::Mark;
use jiff::Timestamp;
use std::time::Duration;

/// Which messages of a folder are new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The unread ones: the mailbox is looked at for the first time.
    Unread,
    /// The unread ones, and those that arrived since then, read or not: UIDs no longer tell, but everything before is in
    /// the ledger.
    Since(Timestamp),
    /// Those above this UID.
    Above(u32),
}

/// What a look has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The new mark.
    pub mark: Mark,
    /// What is to be entered, in order.
    pub uids: Vec<u32>,
    /// Whether there were messages beyond the folder's UIDNEXT: they came just now, or their UIDs are none.
    pub beyond: bool,
}

/// The clocks of the mail server and of this machine may differ by so much.
const CLOCKS: Duration = Duration::from_secs(15 * 60);
/// A message that counts as new by the day on which it came into the folder was not written longer before. (A mailbox that
/// was moved to another server may hold years of mail that came into it today.)
const WRITTEN: Duration = Duration::from_secs(7 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Look {
    /// What to look for in a folder that was looked through up to `mark`; the ledger knows everything that the mailbox got
    /// until `sure_until`.
    pub fn new(mark: Option<Mark>, folder: Folder, sure_until: Option<Timestamp>) -> Self {
        match (mark, sure_until) {
            // A mark that no message can have reached was set by a UID that was none.
            (Some(mark), _) if mark.uidvalidity == folder.uidvalidity && mark.uid < folder.uidnext => {
                Self::Above(mark.uid)
            }
            // RFC 9051 section 2.3.1.1: with another UIDVALIDITY no UID means what it meant. Another folder is watched
            // where the old one was renamed, mostly.
            (_, Some(then)) => Self::Since(then),
            (_, None) => Self::Unread,
        }
    }

    /// The keys of UID SEARCH (RFC 9051 section 6.4.4), one after the other, in a folder with this UIDNEXT.
    pub fn searches(self, uidnext: u32) -> Vec<String> {
        let (from, key) = match self {
            Self::Unread => (1, "UNSEEN".to_owned()),
            Self::Since(then) => {
                // By whole days, of a time zone that only the server knows.
                let day = |at: Timestamp| at.strftime("%d-%b-%Y").to_string();
                let came = clock::before(then, CLOCKS + DAY);
                let written = clock::before(came, WRITTEN);
                (1, format!("OR UNSEEN (SINCE {} SENTSINCE {})", day(came), day(written)))
            }
            Self::Above(uid) => (uid.saturating_add(1), String::new()),
        };
        match ranges(from, uidnext) {
            all if all.len() == 1 && from == 1 && !key.is_empty() => vec![key],
            ranges => ranges.iter().map(|range| format!("UID {range} {key}").trim_end().to_owned()).collect(),
        }
    }

    /// What to enter of what the search `found`.
    pub fn enter(self, folder: Folder, mut found: Vec<u32>) -> Found {
        found.sort_unstable();
        found.dedup();
        let before = found.len();
        // RFC 9051 section 2.3.1.1: every UID there is lies below UIDNEXT. The mark must never pass it.
        found.retain(|&uid| uid < folder.uidnext);
        let beyond = found.len() < before;
        let uid = match self {
            Self::Unread | Self::Since(_) => folder.uidnext.saturating_sub(1),
            Self::Above(mark) => {
                // `n:*` always finds the last message, even where that lies below n.
                found.retain(|&uid| uid > mark);
                found.last().copied().unwrap_or(mark)
            }
        };
        Found { mark: Mark { uidvalidity: folder.uidvalidity, uid }, uids: found, beyond }
    }
}

/// So many UIDs are searched at a time, of which each may be found: an answer has a bound, whatever the folder's size.
pub const PORTION: u32 = 20_000;
/// A folder is not searched in more portions: one with so many UIDs has few messages, mostly.
const PORTIONS: u32 = 1000;

/// All UIDs from one on, as `seq-range`s (RFC 9051 section 9) for one search each. The last has no end: UIDNEXT may be
/// higher by now.
pub fn ranges(from: u32, uidnext: u32) -> Vec<String> {
    let portion = PORTION.max(uidnext.saturating_sub(from).div_ceil(PORTIONS));
    let mut ranges = Vec::new();
    let mut from = from;
    while let Some(next) = from.checked_add(portion).filter(|&next| next < uidnext) {
        ranges.push(format!("{from}:{}", next - 1));
        from = next;
    }
    ranges.push(format!("{from}:*"));
    ranges
}

/// What of the messages that [`Look::Since`] found is to be entered: what is unread, and what came since `then`. Of whom the
/// server does not say when it came, the ledger knows whether it was pushed.
pub fn missed(lying: &[Lying], then: Timestamp) -> Vec<u32> {
    let from = clock::before(then, CLOCKS);
    let is_missed = |message: &&Lying| !message.seen || message.received_at.is_none_or(|at| at >= from);
    lying.iter().filter(is_missed).map(|message| message.uid).collect()
}

/// Odoo's loop guard counts the records that a sender began within two hours, and drops what comes after the twentieth.
pub const GUARD: Duration = Duration::from_secs(120 * 60);

/// When a sender's next message may be pushed whose messages were `pushed` within the last two hours, oldest first;
/// `None`: now. `most` of them may be; 0: any number.
pub fn next_of_sender(pushed: &[Timestamp], most: u32, now: Timestamp) -> Option<Timestamp> {
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let over = pushed.len().checked_sub(most).filter(|_| most > 0)?;
    // A push that a clock showed before it was set back lies in the future: it holds up nothing for longer either.
    pushed.get(over).map(|&at| clock::after(at.min(now), GUARD)).filter(|&at| at > now)
}

/// Messages fetched together, at most.
const GROUP: usize = 50;
/// Bytes of messages fetched together, at most. One that is larger is fetched alone.
pub const GROUP_BYTES: u64 = 2 << 20;

/// Parts messages into groups that are fetched together, in order, by their sizes in bytes; the groups' lengths.
pub fn groups(sizes: &[u64]) -> Vec<usize> {
    let mut groups = Vec::new();
    let (mut length, mut bytes) = (0, 0_u64);
    for &size in sizes {
        if length > 0 && (length == GROUP || bytes.saturating_add(size) > GROUP_BYTES) {
            groups.push(length);
            (length, bytes) = (0, 0);
        }
        length += 1;
        bytes = bytes.saturating_add(size);
    }
    if length > 0 {
        groups.push(length);
    }
    groups
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

    /// A second of the morning of 21 November 2026, from 9 o'clock on.
    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_251_600 + second).unwrap()
    }

    const SINCE: &str = "OR UNSEEN (SINCE 20-Nov-2026 SENTSINCE 13-Nov-2026)";

    #[test]
    fn what_is_new_follows_from_the_mark() {
        type Row = (&'static str, Option<Mark>, Folder, &'static str, Vec<u32>, Mark, Vec<u32>);
        let rows: [Row; 12] = [
            ("first start", None, folder(1, 8), "UNSEEN", vec![7, 3], mark(1, 7), vec![3, 7]),
            ("first start, nothing unread", None, folder(1, 8), "UNSEEN", vec![], mark(1, 7), vec![]),
            ("first start, empty folder", None, folder(1, 1), "UNSEEN", vec![], mark(1, 0), vec![]),
            ("one came between SELECT and SEARCH", None, folder(1, 8), "UNSEEN", vec![8], mark(1, 7), vec![]),
            (
                "a UID that is none",
                Some(mark(1, 7)),
                folder(1, 10),
                "UID 8:*",
                vec![9, u32::MAX],
                mark(1, 9),
                vec![9],
            ),
            (
                "the mark was set by a UID that is none",
                Some(mark(1, u32::MAX)),
                folder(1, 10),
                SINCE,
                vec![9],
                mark(1, 9),
                vec![9],
            ),
            ("another folder", None, folder(7, 10), SINCE, vec![9], mark(7, 9), vec![9]),
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
            ("UIDs count anew", Some(mark(1, 7)), folder(2, 4), SINCE, vec![1, 3], mark(2, 3), vec![1, 3]),
            ("named twice", Some(mark(1, 1)), folder(1, 4), "UID 2:*", vec![3, 2, 3], mark(1, 3), vec![2, 3]),
        ];
        for (what, known, folder, search, found, new_mark, entered) in rows {
            let sure = (search == SINCE || known.is_some()).then(|| at(0));
            let look = Look::new(known, folder, sure);
            assert_eq!(look.searches(folder.uidnext), [search], "{what}");
            let beyond = found.iter().any(|&uid| uid >= folder.uidnext);
            let expected = Found { mark: new_mark, uids: entered, beyond };
            assert_eq!(look.enter(folder, found), expected, "{what}");
        }
    }

    #[test]
    fn a_large_folder_is_searched_in_portions() {
        assert_eq!(Look::Unread.searches(20_001), ["UNSEEN"]);
        assert_eq!(Look::Unread.searches(20_002), ["UID 1:20000 UNSEEN", "UID 20001:* UNSEEN"]);
        let above = Look::Above(99);
        assert_eq!(above.searches(20_100), ["UID 100:*"]);
        assert_eq!(above.searches(50_000), ["UID 100:20099", "UID 20100:40099", "UID 40100:*"]);
        assert_eq!(Look::Unread.searches(u32::MAX).len(), 1000, "even where UIDs are odd");
        assert_eq!(ranges(u32::MAX, u32::MAX), ["4294967295:*"]);
        assert_eq!(ranges(7, 3), ["7:*"]);
    }

    #[test]
    fn what_came_while_uids_did_not_tell_is_missed() {
        let lying = |uid, seen, received_at| Lying { uid, seen, received_at };
        let hour = 3600;
        let found = [
            lying(1, true, Some(at(-hour))),
            lying(2, false, Some(at(-hour))),
            lying(3, true, Some(at(-600))),
            lying(4, true, Some(at(hour))),
            lying(5, true, None),
        ];
        assert_eq!(missed(&found, at(0)), [2, 3, 4, 5]);
    }

    #[test]
    fn a_sender_stays_under_the_loop_guard() {
        let times = |seconds: &[i64]| seconds.iter().map(|&second| at(second)).collect::<Vec<_>>();
        let next = |pushed: &[i64], most| next_of_sender(&times(pushed), most, at(100));
        assert_eq!(next(&[], 2), None);
        assert_eq!(next(&[0], 2), None);
        assert_eq!(next(&[0, 50], 2), Some(at(7200)));
        assert_eq!(next(&[0, 50, 60], 2), Some(at(7250)), "more than allowed: after a change of the setting");
        assert_eq!(next(&[-7200, 50], 2), None);
        assert_eq!(next(&[0; 100], 0), None);
    }

    #[test]
    fn small_messages_are_fetched_together() {
        assert_eq!(groups(&[]), [0; 0]);
        assert_eq!(groups(&[1; 120]), [50, 50, 20]);
        assert_eq!(groups(&[1 << 20, 1 << 20, 1, 100 << 20, 1, 1]), [2, 1, 1, 2]);
        assert_eq!(groups(&[u64::MAX, u64::MAX]), [1, 1]);
    }

    #[test]
    fn the_last_possible_uid_does_no_harm() {
        let look = Look::Above(u32::MAX);
        assert_eq!(look.searches(u32::MAX), ["UID 4294967295:*"]);
        let found = look.enter(folder(1, u32::MAX), vec![u32::MAX]);
        assert_eq!((found.mark, found.uids), (mark(1, u32::MAX), vec![]));
    }

    proptest! {
        #[test]
        fn the_mark_never_goes_back_and_never_passes_uidnext(
            at in 0..u32::MAX,
            more in any::<u32>(),
            found in any::<Vec<u32>>(),
        ) {
            let folder = folder(1, at.saturating_add(more).max(at + 1));
            let Found { mark, uids, beyond } = Look::Above(at).enter(folder, found.clone());
            prop_assert!(mark.uid >= at && mark.uid < folder.uidnext);
            prop_assert!(uids.iter().all(|&uid| uid > at && uid <= mark.uid));
            prop_assert!(found.iter().all(|uid| *uid <= at || *uid >= folder.uidnext || uids.contains(uid)));
            prop_assert_eq!(beyond, found.iter().any(|&uid| uid >= folder.uidnext));
        }

        #[test]
        fn every_message_is_in_one_group(sizes in any::<Vec<u64>>()) {
            prop_assert_eq!(groups(&sizes).iter().sum::<usize>(), sizes.len());
        }
    }

    #[test]
    fn no_sender_waits_for_longer_than_the_guard() {
        let in_a_day = clock::after(at(0), DAY);
        assert_eq!(next_of_sender(&[in_a_day], 1, at(0)), Some(clock::after(at(0), GUARD)));
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
