//! The daemon with 500 mailboxes whose tokens live for seconds instead of an hour, with outages of the token endpoint;
//! and Microsoft's clock five minutes off.
//!
//! The two days themselves, with the tokens' real lifetimes, pass in virtual time in `src/tokens/soak.rs`. Here is what
//! only the process shows: its memory, its log, its requests on the wire, and what is on disk after a kill.

use crate::company::{self, JOHN};
use crate::support::client::message;
use crate::support::entra::{Answer, CLIENT_ID, Entra, TokenRequest, uuid};
use crate::support::http;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::wait::{SOON, eventually, until};
use crate::support::wire::Wire;
use crate::support::world::World;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use outlook_relay::store::{Store, StoredToken};
use secrecy::ExposeSecret;
use serde_json::json;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const MAILBOXES: usize = 500;
/// Refreshes of every mailbox before the last outage, at least: those that come first at the start make several more.
const ROUNDS: usize = 4;
/// The first refreshes are spread over 20 s by chance: that none of 500 falls into the last quarter does not happen.
const SPREAD: Duration = Duration::from_secs(15);
/// Seconds. A token is refreshed after six to seven tenths of that: 1.8 s at the earliest.
const EXPIRES_IN: i64 = 3;
const EARLIEST: Duration = Duration::from_millis(1800);
/// What the endpoint takes to answer: requests that are under way together are then seen together.
const ANSWER_TIME: Duration = Duration::from_millis(20);
/// At most so many requests at a time, over all mailboxes. With the answer's time that is the most a second: 8 / 20 ms
/// = 400 here, 8 / 200 ms = 40 with Microsoft's usual 200 ms.
const MOST_IN_FLIGHT: usize = 8;
/// The shortest waits between a mailbox's tries in an outage: 1, 2, 5, 10, 30, 60, 120, 300 s, each up to a fifth shorter by chance.
const BACK_OFF: [Duration; 8] = [
    Duration::from_millis(800),
    Duration::from_millis(1600),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(24),
    Duration::from_secs(48),
    Duration::from_secs(96),
    Duration::from_secs(240),
];
/// After everybody's first refresh the memory grows by less than this part of itself.
const MOST_GROWTH: u64 = 10;
/// Two minutes for what takes seconds on an idle machine: only ever spent on failure.
const PATIENCE: Duration = Duration::from_secs(120);

fn names() -> Vec<String> {
    (0..MAILBOXES).map(|n| format!("user{n}@example.com")).collect()
}

/// Everybody has consented. Through the library: 500 commands would take longer than the soak itself.
pub(crate) async fn consent(config: &Config, entra: &Entra, names: &[String]) {
    let loaded = outlook_relay::config::Config::load(&config.write()).unwrap();
    let (store, writer) = Store::open(&loaded.store).await.unwrap();
    let writer = tokio::spawn(writer.run());
    let keep = loaded.mailboxes.iter().zip(names).map(|(mailbox, name)| {
        let token = StoredToken {
            tenant: mailbox.microsoft.tenant.clone(),
            client_id: CLIENT_ID.to_owned(),
            refresh_token: entra.add_mailbox(name).into(),
            consented_at: outlook_relay::clock::now(),
            refreshed_at: None,
        };
        let store = store.clone();
        async move { store.keep_token(&mailbox.address, token).await.unwrap() }
    });
    for kept in keep {
        kept.await;
    }
    store.close().await;
    writer.await.unwrap();
}

/// The newest refresh tokens as the store holds them, once nobody uses it any more.
async fn stored(config: &Config) -> HashMap<String, String> {
    let loaded = outlook_relay::config::Config::load(&config.write()).unwrap();
    let (store, writer) = Store::open(&loaded.store).await.unwrap();
    let writer = tokio::spawn(writer.run());
    let mut tokens = HashMap::new();
    for mailbox in &loaded.mailboxes {
        let token = store.token(&mailbox.address).await.unwrap().unwrap();
        tokens.insert(mailbox.address.to_string(), token.refresh_token.expose_secret().to_owned());
    }
    store.close().await;
    writer.await.unwrap();
    tokens
}

/// How many lines with this each mailbox has in the log: those with the fewest and with the most.
fn lines(relay: &Relay, event: &str, names: &[String]) -> (usize, usize) {
    let mut counts: HashMap<&str, usize> = names.iter().map(|name| (name.as_str(), 0)).collect();
    let log = relay.log();
    for line in log.iter().filter(|line| line.contains(event)) {
        let mailbox = field(line, "mailbox").unwrap();
        *counts.get_mut(mailbox).unwrap() += 1;
    }
    (*counts.values().min().unwrap(), *counts.values().max().unwrap())
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(&format!(" {name}="))?;
    rest.split(' ').next()
}

/// Waits until every mailbox has so many lines of this event.
async fn everybody(relay: &Relay, event: &str, count: usize, names: &[String]) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (fewest, _) = lines(relay, event, names);
        if fewest >= count {
            return;
        }
        assert!(Instant::now() < end, "{event}: {fewest} of {count}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Resident memory of the process, in KiB.
fn resident(relay: &Relay) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.pid().unwrap())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What knocked while the endpoint was away.
#[derive(Default)]
struct Knocks {
    /// Per refresh token.
    tries: HashMap<String, usize>,
    now: usize,
    most: usize,
}

/// The outage of this number: the endpoint is gone until every mailbox was turned away `tries` times: connections are taken, and closed without an
/// answer. Returns once it is back, with the number of requests before it was; from then on tokens live for `lifetime`
/// seconds. In the moment it goes, an answer with a new token may get lost: until everybody has refreshed again the old
/// ones work, as Microsoft's do.
async fn outage(
    relay: &Relay,
    entra: &Entra,
    names: &[String],
    (number, tries): (usize, usize),
    lifetime: i64,
) -> usize {
    entra.set_old_tokens_work(true);
    let began = Instant::now();
    entra.server.down().await;
    // Not before: who got a long-lived one in the last moment would not try at all.
    entra.set_expires_in(lifetime);
    let listener = eventually(SOON, "the port", || {
        let listener = std::net::TcpListener::bind(entra.server.addr()).map_err(|error| error.to_string())?;
        listener.set_nonblocking(true).unwrap();
        Ok::<_, String>(TcpListener::from_std(listener).unwrap())
    })
    .await;
    let knocks = Arc::new(Mutex::new(Knocks::default()));
    let seen = knocks.clone();
    let away = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = seen.clone();
            tokio::spawn(async move {
                let mut wire = Wire::new(stream);
                let Ok(Some(request)) = http::read_request(&mut wire).await else { return };
                let form = url::form_urlencoded::parse(&request.body);
                let token = form.into_owned().find(|(key, _)| key == "refresh_token").unwrap().1;
                {
                    let mut seen = seen.lock().unwrap();
                    *seen.tries.entry(token).or_default() += 1;
                    seen.now += 1;
                    seen.most = seen.most.max(seen.now);
                }
                tokio::time::sleep(ANSWER_TIME).await;
                // Before the client can know of it.
                seen.lock().unwrap().now -= 1;
            });
        }
    });
    until(PATIENCE, "tries of every mailbox", || {
        let knocks = knocks.lock().unwrap();
        knocks.tries.len() >= MAILBOXES && knocks.tries.values().all(|&count| count >= tries)
    })
    .await;
    everybody(relay, "token failed", number, names).await;
    away.abort();
    let _ = away.await;
    let lasted = began.elapsed();
    let (most_tries, most_at_once) = {
        let knocks = knocks.lock().unwrap();
        (knocks.tries.values().max().copied().unwrap(), knocks.most)
    };
    // The first try is due at once, each other one after its wait.
    let mut waited = Duration::ZERO;
    let allowed = 1 + BACK_OFF
        .iter()
        .take_while(|&&wait| {
            waited += wait;
            waited <= lasted
        })
        .count();
    assert!(most_tries <= allowed, "{most_tries} tries of one mailbox in {lasted:?}, at most {allowed}");
    assert!(most_at_once <= MOST_IN_FLIGHT, "{most_at_once} tries at a time");
    // While it is down nothing is added.
    let before = entra.requests().len();
    entra.server.up().await;
    before
}

/// No more than [`MOST_IN_FLIGHT`] in any stretch as long as an answer takes. Each request is under way for at least
/// that long, so this holds at any speed of the machine.
fn is_no_flood(requests: &[TokenRequest]) {
    for window in requests.windows(MOST_IN_FLIGHT + 1) {
        let (first, last) = (window.first().unwrap().at, window.last().unwrap().at);
        let apart = last.duration_since(first).as_millis();
        // A millisecond for the clock, which is not the one of the timers.
        assert!(apart + 1 >= 20, "{} requests within {apart} ms", window.len());
    }
}

fn count_by<'a>(keys: impl Iterator<Item = &'a str>) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    keys.for_each(|key| *counts.entry(key).or_default() += 1);
    counts
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_mailboxes_lose_no_token_in_outages_and_make_no_storm() {
    let names = names();
    let world = World::start().await;
    let entra = &world.entra;
    entra.set_expires_in(EXPIRES_IN);
    entra.set_delay(ANSWER_TIME);
    // Harsher than Microsoft: a token that was replaced is dead at once.
    entra.set_old_tokens_work(false);
    let mut config = world.config();
    names.iter().for_each(|name| config.mailbox(name, &[]));
    consent(&config, entra, &names).await;

    let began = Instant::now();
    let mut relay = config.start().await;
    everybody(&relay, "token refreshed", 1, &names).await;
    assert_eq!(relay.count_log("token failed"), 0);
    let memory = resident(&relay);

    let first = outage(&relay, entra, &names, (1, 2), EXPIRES_IN).await;
    everybody(&relay, "mailbox recovered", 1, &names).await;
    entra.set_old_tokens_work(false);
    everybody(&relay, "token refreshed", ROUNDS, &names).await;
    let lasted = began.elapsed();
    let (_, most) = lines(&relay, "token refreshed", &names);
    let allowed = 1 + usize::try_from(lasted.as_millis() / EARLIEST.as_millis()).unwrap();
    assert!(most <= allowed, "{most} refreshes of one mailbox in {lasted:?}, at most {allowed}");

    // Afterwards the tokens live for an hour: each mailbox needs one refresh, and makes no other.
    let second = outage(&relay, entra, &names, (2, 1), 3600).await;
    everybody(&relay, "mailbox recovered", 2, &names).await;
    let growth = resident(&relay).saturating_sub(memory);
    assert!(growth < memory / MOST_GROWTH, "memory grew by {growth} KiB from {memory} KiB");

    let requests = entra.requests();
    let mut mailboxes = HashSet::new();
    let firsts: Vec<_> = requests
        .iter()
        .filter(|request| mailboxes.insert(request.mailbox.as_deref()))
        .map(|it| it.at)
        .collect();
    let spread = firsts[MAILBOXES - 1].duration_since(firsts[0]).unsigned_abs();
    assert!(spread > SPREAD, "all first refreshes within {spread:?}");
    assert_eq!(requests.len() - second, MAILBOXES, "one request of each mailbox right after an outage");
    let after = count_by(requests[second..].iter().map(|request| request.mailbox.as_deref().unwrap()));
    assert_eq!(after.len(), MAILBOXES);
    for requests in [&requests[..first], &requests[first..second], &requests[second..]] {
        is_no_flood(requests);
    }
    for name in &names {
        assert_eq!(entra.max_in_flight(name), 1, "{name}");
    }
    // A token is used once. Again only those whose answer an outage swallowed: what was in flight as it began.
    let used = count_by(requests.iter().map(|request| request.refresh_token.as_deref().unwrap()));
    let again = used.values().map(|count| count - 1).sum::<usize>();
    assert!(again <= 2 * MOST_IN_FLIGHT, "{again} tokens were used again");
    assert_eq!(
        lines(&relay, "token failed", &names),
        (2, 2),
        "a line for each outage, and none for each try"
    );
    assert_eq!(lines(&relay, "mailbox recovered", &names), (2, 2));

    relay.kill9().await;
    let stored = stored(&config).await;
    for name in &names {
        assert_eq!(
            entra.refresh_token(name).as_ref(),
            stored.get(name),
            "{name}: the newest token is on disk"
        );
    }
}

/// An answer of a Microsoft whose clock is `skew` seconds ahead of ours (negative: behind), in all that shows it.
fn skewed(entra: &Entra, refresh_token: &str, expires_in: i64, skew: i64) -> Answer {
    let there = Timestamp::from_second(outlook_relay::clock::now().as_second() + skew).unwrap();
    let issued = there.as_second();
    let claims = json!({
        "aud": "https://outlook.office.com",
        "iat": issued,
        "nbf": issued,
        "exp": issued + expires_in,
        "upn": JOHN,
        "idtyp": "user",
        "jti": uuid(),
    });
    let header = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"HS256"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, entra.signing_key()), signed.as_bytes());
    let answer = json!({
        "token_type": "Bearer",
        "expires_in": expires_in,
        "access_token": format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)),
        "refresh_token": refresh_token,
    });
    Answer::json(200, &answer).header("Date", &there.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string())
}

/// Only `expires_in` counts: neither the JWT's iat, nbf and exp nor the answer's Date. A token of an hour is used at
/// once, is taken to expire by our clock, and is not refreshed again; one of three seconds is refreshed in time,
/// though by its exp it was dead five minutes ago, or lives for five more.
#[tokio::test]
async fn microsofts_clock_may_be_five_minutes_off() {
    for skew in [-300, 300] {
        let world = World::start().await;
        let entra = &world.entra;
        let config = company::config(&world);
        company::connect(&world, &config).await;
        let token = entra.refresh_token(JOHN).unwrap();

        let before = outlook_relay::clock::now().as_second();
        entra.script(Rule::new((), skewed(entra, &token, 3600, skew)).always().only(JOHN));
        let mut relay = config.start().await;
        relay.send("bounce@example.com", &["a@x.test"], &message(JOHN, "a@x.test", "skew@t", "Hi")).await;
        until(SOON, "the mail", || world.smtp.count() == 1).await;
        let log = relay.log();
        let line = log.iter().find(|line| line.contains("token refreshed") && line.contains(JOHN)).unwrap();
        let expires_at: Timestamp = field(line, "expires_at").unwrap().parse().unwrap();
        let got_at = expires_at.as_second() - 3600;
        assert!((before..=outlook_relay::clock::now().as_second()).contains(&got_at), "skew {skew}: {line}");
        assert_eq!(entra.refreshes(JOHN), 1, "skew {skew}");
        assert_eq!(config.cli(&["status"]).await.code, Some(0), "skew {skew}");
        assert_eq!(relay.count_log("token failed"), 0);
        relay.kill9().await;

        entra.clear();
        entra.script(Rule::new((), skewed(entra, &token, EXPIRES_IN, skew)).always().only(JOHN));
        let began = Instant::now();
        let relay = config.start().await;
        until(SOON, "refreshes", || entra.refreshes(JOHN) >= 4).await;
        let allowed = 1 + began.elapsed().as_millis() / EARLIEST.as_millis();
        assert!((entra.refreshes(JOHN) - 1) as u128 <= allowed, "skew {skew}: refreshed again and again");
        assert_eq!(relay.count_log("token failed"), 0);
    }
}
