//! Two days of 500 mailboxes with the tokens' real lifetimes, in virtual time: the schedule, the keepers, the requests
//! and the store are the daemon's own. The timers' clock stands still while anything is under way, so that all that is
//! told here of rates and moments is so at any speed of the machine.

use super::bed::{CONSENT, address, http, mailbox, store, stored};
use super::scripted::{Answer, Endpoint};
use super::*;
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

const MAILBOXES: usize = 500;
const HOUR: Duration = Duration::from_secs(3600);
const TWO_DAYS: Duration = Duration::from_secs(48 * 3600);
/// The endpoint is out of order from then …
const DOWN: Duration = Duration::from_secs(23 * 3600);
/// … until then: as long as the longest tokens live.
const UP: Duration = Duration::from_secs(24 * 3600 + 1800);
/// What is due within a step happens at its end.
const STEP: Duration = Duration::from_secs(1);
/// At the start, which is spread over so long, …
const START: Duration = Duration::from_secs(21);
/// … there are at most so many requests in any second: 25 on average.
const MOST_AT_START: usize = 64;
/// And in any second after that, also while the endpoint is out of order and right after: two on average at the worst.
const MOST_A_SECOND: usize = 20;
/// Tries of a mailbox in the outage: one when its token is due, seven while the back-off grows (for 182 s at least),
/// and then one in 240 s at the most often.
const MOST_TRIES: usize = 1 + 7 + (5400 - 182) / 240;
/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Seconds: an hour to an hour and a half, as Microsoft's.
fn lifetime(number: usize) -> u64 {
    3600 + (number as u64 * 7919) % 1801
}

fn new_tokens(number: usize) -> Answer {
    Answer::tokens(number, lifetime(number))
}

fn out_of_order(_: usize) -> Answer {
    Answer::Http(503, "content-type: text/html\r\n", "<html>".to_owned())
}

/// The timers' clock only moves where it is told to: tokio moves it by itself where all tasks wait, unless a blocking
/// one runs. That ends with what is returned; or after ten minutes, so that what hangs runs into its timeout.
fn stop_the_clock() -> std::sync::mpsc::Sender<()> {
    let (end, ended) = std::sync::mpsc::channel();
    tokio::task::spawn_blocking(move || ended.recv_timeout(Duration::from_secs(600)));
    tokio::time::pause();
    end
}

/// A request, and which mailbox's it is.
struct Refresh {
    at: Duration,
    number: usize,
}

impl Refresh {
    fn fails(&self) -> bool {
        (DOWN..UP).contains(&self.at)
    }
}

/// Each mailbox's requests in order. Every one of them carries the token that the mailbox got last.
fn by_mailbox(
    endpoint: &Endpoint,
    began: Instant,
) -> (HashMap<String, Vec<Refresh>>, HashMap<String, String>) {
    let script = endpoint.script.lock().unwrap();
    let mut owner: HashMap<String, String> = (0..MAILBOXES).map(|n| (first_token(n), name(n))).collect();
    let mut refreshes: HashMap<String, Vec<Refresh>> = HashMap::new();
    for ((index, form), time) in script.requests.iter().enumerate().zip(&script.times) {
        let refresh = Refresh { at: *time - began, number: index + 1 };
        // What was replaced is nobody's any more.
        let mailbox = owner.remove(&form["refresh_token"]).unwrap();
        let next = if refresh.fails() {
            form["refresh_token"].clone()
        } else {
            format!("refresh-{}-secret", index + 1)
        };
        owner.insert(next, mailbox.clone());
        refreshes.entry(mailbox).or_default().push(refresh);
    }
    (refreshes, owner.into_iter().map(|(token, mailbox)| (mailbox, token)).collect())
}

fn name(number: usize) -> String {
    format!("m{number}@contoso.com")
}

fn first_token(number: usize) -> String {
    format!("refresh-m{number}-secret")
}

#[tokio::test]
async fn two_days_with_an_outage_lose_no_token_and_make_no_storm() {
    let endpoint = Endpoint::start().await;
    endpoint.script.lock().unwrap().otherwise = new_tokens;
    let folder = tempfile::tempdir().unwrap();
    let (store, writer) = store(folder.path(), None).await;
    tokio::spawn(writer.run());
    for n in 0..MAILBOXES {
        store.keep_token(&address(&name(n)), stored(&first_token(n), CONSENT)).await.unwrap();
    }
    let mailboxes: Vec<_> = (0..MAILBOXES).map(|n| mailbox(&name(n), &endpoint, |_| ())).collect();
    let clock = stop_the_clock();
    let began = Instant::now();
    let (tokens, keepers) = Tokens::new(&mailboxes, store.clone(), http()).await.unwrap();
    let soft = CancellationToken::new();
    let in_flight = keepers[0].in_flight.clone();
    let keepers: Vec<_> = keepers.into_iter().map(|keeper| tokio::spawn(keeper.run(soft.clone()))).collect();

    while began.elapsed() < TWO_DAYS {
        tokio::time::advance(STEP).await;
        // Those whose time has come take a permit, or wait for one.
        for _ in 0..3 {
            yield_now().await;
        }
        // And those are done.
        drop(in_flight.acquire_many(MOST_IN_FLIGHT as u32).await.unwrap());
        let at = began.elapsed();
        if at <= START || at.as_secs().is_multiple_of(600) {
            // As the daemon does when the store has changed.
            tokens.reload().await.unwrap();
        }
        let is_down = (DOWN..UP).contains(&(at + STEP));
        endpoint.script.lock().unwrap().otherwise = if is_down { out_of_order } else { new_tokens };
    }
    soft.cancel();
    for keeper in keepers {
        keeper.await.unwrap();
    }

    let (refreshes, newest) = by_mailbox(&endpoint, began);
    assert_eq!(refreshes.len(), MAILBOXES);
    for (name, token) in &newest {
        let kept = store.token(&address(name)).await.unwrap().unwrap();
        assert_eq!(kept.refresh_token.expose_secret(), token, "{name}: the newest token is on disk");
    }
    for (name, refreshes) in &refreshes {
        is_regular(name, refreshes);
    }
    let script = endpoint.script.lock().unwrap();
    assert!(script.most_in_flight <= MOST_IN_FLIGHT);
    let mut seconds: HashMap<Instant, usize> = HashMap::new();
    script.times.iter().for_each(|&time| *seconds.entry(time).or_default() += 1);
    for (time, count) in seconds {
        let at = time - began;
        let most = if at <= START { MOST_AT_START } else { MOST_A_SECOND };
        assert!(count <= most, "{count} requests in the second until {at:?}");
    }
    drop(clock);
}

/// A mailbox's requests: one in each token's life, ten to fifteen minutes before its end; in the outage no more than the
/// back-off lets through, and soon after it the first one that succeeds.
fn is_regular(name: &str, refreshes: &[Refresh]) {
    assert!(refreshes[0].at <= START, "{name}: {:?}", refreshes[0].at);
    let tries = refreshes.iter().filter(|refresh| refresh.fails()).count();
    assert!((1..=MOST_TRIES).contains(&tries), "{name}: {tries} tries in the outage");
    for pair in refreshes.windows(2) {
        let (at, gap) = (pair[0].at, pair[1].at - pair[0].at);
        if pair[0].fails() {
            assert!(gap <= LONGEST_WAIT + STEP, "{name}: {gap:?} until the next try after {at:?}");
            continue;
        }
        let lifetime = Duration::from_secs(lifetime(pair[0].number));
        let (earliest, latest) = (lifetime - HOUR / 4, lifetime - HOUR / 6);
        assert!(
            (earliest..=latest + STEP).contains(&gap),
            "{name}: refreshed {gap:?} after {at:?}, of {lifetime:?}"
        );
    }
    let last = refreshes.last().unwrap();
    assert!(last.at + HOUR + HOUR / 2 > TWO_DAYS, "{name}: not since {:?}", last.at);
}
