//! The power fails under load: whatever got its 250 is on the disk, and whatever had its outcome recorded is not there to
//! be sent again. A shim under the relay writes down each write and each sync; from that come the disks that a power cut
//! could have left at any moment: with what was synced and nothing else, or with whatever else the disk happened to have
//! written. OUTLOOK_RELAY_POWER_CUTS=1000 for more of them than a test run has time for, OUTLOOK_RELAY_SEED=7 for others.
#![expect(clippy::panic, clippy::indexing_slicing, reason = "test code: a failure here must stop the test")]

mod journal;

use crate::company::{self, JANE, JOHN, NOTIFICATIONS};
use crate::support::client::{SmtpClient, message};
use crate::support::imap::Imap;
use crate::support::relay::Config;
use crate::support::smtp::{Delivered, Smtp};
use crate::support::wait::until;
use crate::support::world::World;
use journal::{Deed, Disk, Entry, Honesty};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const SESSIONS: usize = 4;
const EACH: usize = 200;
/// So many moments at which the power fails, besides those around the checkpoints.
const CUTS: usize = 24;
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the journal was when something had surely happened.
type Moments = BTreeMap<String, u64>;

/// What the world outside saw of a relay at work, and what that did to its disk.
struct Run {
    world: World,
    folder: TempDir,
    /// Everything that the relay did to its folder, from `before` on.
    entries: Vec<Entry>,
    before: PathBuf,
    /// Got a 250; by Message-Id, as the next two.
    accepted: Moments,
    /// The relay says that it is sent.
    settled: Moments,
    /// Microsoft has it.
    taken: Vec<(u64, Delivered)>,
}

fn store(config: &mut Config, folder: &Path) {
    config.text("store", "url", &format!("sqlite://{}", folder.join("relay.db").display()));
}

/// Small and larger ones.
fn mail(from: &str, id: &str, number: usize) -> Vec<u8> {
    let mut mail = message(from, "a@x.test", id, "Hi");
    let line = format!("{id} 0123456789 0123456789 0123456789 0123456789 0123456789\r\n");
    mail.extend(line.as_bytes().repeat([2, 200, 20, 400][number % 4]));
    mail
}

fn id_of(text: &str) -> Option<String> {
    let (_, rest) = text.split_once("Message-Id: <")?;
    Some(rest.split_once('>')?.0.to_owned())
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// John's mail goes out as it comes in; Jane has not consented, and hers stays.
async fn work() -> Run {
    let world = World::start().await;
    let folder = TempDir::new().unwrap();
    let root = folder.path().canonicalize().unwrap();
    let (at, before, path) = (root.join("store"), root.join("before"), root.join("journal"));
    std::fs::create_dir(&at).unwrap();
    let mut config = company::config(&world);
    store(&mut config, &at);
    for mailbox in [JOHN, NOTIFICATIONS] {
        config.connect(mailbox, &world.entra.add_mailbox(mailbox)).await.success();
    }
    copy(&at, &before);

    let length = {
        let path = path.clone();
        move || std::fs::metadata(&path).unwrap().len()
    };
    let taken = Arc::new(Mutex::new(Vec::new()));
    let (take, now) = (taken.clone(), length.clone());
    world.smtp.set_hook(Arc::new(move |mail| take.lock().unwrap().push((now(), mail.clone()))));
    config.env("LD_PRELOAD", journal::shim(&root).to_str().unwrap());
    config.env("POWER_CUT_FOLDER", at.to_str().unwrap());
    config.env("POWER_CUT_JOURNAL", path.to_str().unwrap());
    let mut relay = config.start().await;

    let settled = Arc::new(Mutex::new(Moments::new()));
    let (settle, now, mut lines) = (settled.clone(), length.clone(), relay.events().subscribe());
    let listening = tokio::spawn(async move {
        while let Ok(line) = lines.recv().await {
            let id = line.contains(" sent ").then(|| line.split(['"', '<', '>', '=', ' ']));
            let id = id.and_then(|mut words| words.find(|word| word.ends_with("@cut")).map(str::to_owned));
            if let Some(id) = id {
                settle.lock().unwrap().entry(id).or_insert_with(&now);
            }
        }
    });
    let sessions: Vec<_> = (0..SESSIONS)
        .map(|session| {
            let (submission, now) = (config.submission, length.clone());
            tokio::spawn(async move {
                let mut accepted = Moments::new();
                let mut client = SmtpClient::try_connect(submission).await.unwrap();
                for number in 0..EACH {
                    let id = format!("{session}-{number}@cut");
                    let from = if number % 3 == 0 { JANE } else { JOHN };
                    let reply =
                        client.send("bounce@example.com", &["a@x.test"], &mail(from, &id, number)).await;
                    assert_eq!(reply.code, 250, "{reply:?}");
                    accepted.insert(id, now());
                }
                accepted
            })
        })
        .collect();
    let mut accepted = Moments::new();
    for session in sessions {
        accepted.extend(session.await.unwrap());
    }
    let johns = SESSIONS * (0..EACH).filter(|number| number % 3 != 0).count();
    until(PATIENCE, "John's mail", || settled.lock().unwrap().len() == johns).await;
    // In order: the store is tidied up, and its log removed.
    assert_eq!(relay.terminate(PATIENCE).await, Some(0));
    drop(relay);
    listening.abort();
    let entries = journal::read(&path);
    let (taken, settled) = (taken.lock().unwrap().clone(), settled.lock().unwrap().clone());
    Run { world, folder, entries, before, accepted, settled, taken }
}

impl Run {
    /// Moments at which the power fails, each as a number of entries: around every checkpoint's syncs, and at random.
    fn moments(&self, random: &mut StdRng) -> BTreeSet<usize> {
        let cuts = std::env::var("OUTLOOK_RELAY_POWER_CUTS").map_or(CUTS, |cuts| cuts.parse().unwrap());
        let mut moments: BTreeSet<usize> =
            (0..cuts).map(|_| random.random_range(1..=self.entries.len())).collect();
        let checkpoints: Vec<usize> = self.checkpoints().collect();
        for &at in checkpoints.iter().take(4).chain(checkpoints.last()) {
            // Before the database is synced, behind that, and once the log has begun anew.
            moments.extend([at, at + 1, (at + 4).min(self.entries.len())]);
        }
        moments.extend(self.answered(random));
        moments.insert(self.entries.len());
        moments
    }

    /// Moments right behind a 250, and behind a line that tells of a mail sent.
    fn answered(&self, random: &mut StdRng) -> BTreeSet<usize> {
        let picked = [&self.accepted, &self.settled].map(|moments| {
            let all: Vec<u64> = moments.values().copied().collect();
            [(); 8].map(|()| all[random.random_range(0..all.len())])
        });
        let behind = |length: u64| self.entries.partition_point(|entry| entry.end <= length);
        picked.into_iter().flatten().map(behind).collect()
    }

    /// The syncs of the database itself.
    fn checkpoints(&self) -> impl Iterator<Item = usize> {
        let of = |entry: &Entry| entry.file == "relay.db" && matches!(entry.deed, Deed::Sync);
        self.entries.iter().enumerate().filter(move |(_, entry)| of(entry)).map(|(at, _)| at)
    }

    /// The Message-Ids of what was done at a moment.
    fn done(moments: &Moments, at: u64) -> BTreeSet<&String> {
        moments.iter().filter(|(_, since)| **since <= at).map(|(id, _)| id).collect()
    }

    fn taken(&self, at: u64) -> BTreeSet<String> {
        let taken = self.taken.iter().filter(|(since, _)| *since <= at);
        taken.filter_map(|(_, mail)| id_of(&mail.text())).collect()
    }

    /// What is wrong with a store that a power cut left when the journal was so long.
    async fn wrong(&self, config: &Config, at: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let checked = config.cli(&["store", "check"]).await;
        if checked.code != Some(0) {
            wrong.push(format!("store check: {checked:?}"));
        }
        let listed = config.cli(&["queue", "list", "--json"]).await;
        let Ok(listed) = serde_json::from_str::<Vec<serde_json::Value>>(&listed.stdout) else {
            wrong.push(format!("queue list: {listed:?}"));
            return wrong;
        };
        let id = |mail: &serde_json::Value| {
            mail["message_id"].as_str().unwrap().trim_matches(['<', '>']).to_owned()
        };
        let queued: BTreeSet<String> = listed.iter().map(id).collect();
        let taken = self.taken(at);
        let lost = Self::done(&self.accepted, at);
        let lost = lost.into_iter().filter(|id| !queued.contains(*id) && !taken.contains(*id));
        wrong.extend(lost.map(|id| format!("{id} got its 250 and is lost")));
        let again = Self::done(&self.settled, at).into_iter().filter(|id| queued.contains(*id));
        wrong.extend(again.map(|id| format!("{id} was recorded as sent and would be sent again")));
        wrong
    }

    /// Lets the power fail at all these moments; gives what is wrong afterwards.
    async fn fail_at(&self, moments: &BTreeSet<usize>, honesty: Honesty, seed: Option<u64>) -> Vec<String> {
        let mut disk = Disk::new(&self.before, honesty);
        let mut wrong = Vec::new();
        let mut config = company::config(&self.world);
        for (number, entry) in self.entries.iter().enumerate() {
            disk.happen(entry);
            let behind = number + 1;
            if moments.contains(&behind) {
                let cut = TempDir::new_in(self.folder.path()).unwrap();
                store(&mut config, cut.path());
                disk.cut(cut.path(), seed.map(|seed| seed ^ behind as u64));
                let found = self.wrong(&config, entry.end).await;
                wrong.extend(
                    found.into_iter().map(|what| format!("behind entry {behind}, seed {seed:?}: {what}")),
                );
            }
        }
        wrong
    }

    /// The power fails at a moment and comes back: all of John's mail is with Microsoft in the end, each once.
    async fn come_back(&self, moment: usize, seed: Option<u64>) {
        let mut disk = Disk::new(&self.before, Honesty::Honest);
        self.entries.iter().take(moment).for_each(|entry| disk.happen(entry));
        let at = self.entries[moment - 1].end;
        let cut = TempDir::new_in(self.folder.path()).unwrap();
        disk.cut(cut.path(), seed);
        // Microsoft with what it had then.
        let smtp = Smtp::start(&self.world.tls, self.world.entra.check()).await;
        let imap = Imap::start(&self.world.tls, self.world.entra.check()).await;
        let file = imap.sent_items();
        self.taken.iter().filter(|(since, _)| *since <= at).for_each(|(_, mail)| file(mail));
        smtp.set_hook(file);
        let mut config = company::config(&self.world);
        config.text("microsoft", "smtp", &smtp.endpoint());
        config.text("microsoft", "imap", &imap.endpoint());
        config.text("delivery", "sent_delay", "0s");
        store(&mut config, cut.path());
        let _relay = config.start().await;
        let end = tokio::time::Instant::now() + PATIENCE;
        while company::queue(&config).await.iter().any(|mail| mail["mailbox"] == JOHN) {
            assert!(tokio::time::Instant::now() < end, "John's mail is still queued");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let before = self.taken(at);
        let mut arrived = before.clone();
        for mail in smtp.delivered() {
            let id = id_of(&mail.text()).unwrap();
            assert!(arrived.insert(id.clone()), "behind entry {moment}, seed {seed:?}: {id} arrived twice");
            let (session, number) = id.strip_suffix("@cut").unwrap().split_once('-').unwrap();
            let sent =
                mail_text(&self::mail(JOHN, &format!("{session}-{number}@cut"), number.parse().unwrap()));
            assert!(mail.text().ends_with(&sent), "{id} is not what it was");
        }
        let jane =
            |id: &str| id.split(['-', '@']).nth(1).unwrap().parse::<usize>().unwrap().is_multiple_of(3);
        let accepted = Self::done(&self.accepted, at);
        let lost: Vec<&String> =
            accepted.into_iter().filter(|id| !jane(id) && !arrived.contains(*id)).collect();
        assert!(lost.is_empty(), "behind entry {moment}, seed {seed:?}: never arrived: {lost:?}");
    }
}

/// The body, which goes out as it came in.
fn mail_text(mail: &[u8]) -> String {
    let text = String::from_utf8(mail.to_vec()).unwrap();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::print_stdout, reason = "the figures of a long run")]
async fn nothing_is_lost_or_sent_twice_when_the_power_fails() {
    let seed = std::env::var("OUTLOOK_RELAY_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut random = StdRng::seed_from_u64(seed);
    let run = work().await;
    let checkpoints = run.checkpoints().count();
    assert!(checkpoints > 3, "the log began anew {checkpoints} times only");
    let moments = run.moments(&mut random);

    println!(
        "{} writes and syncs, {checkpoints} checkpoints, {} mails, {} power cuts, each in two ways",
        run.entries.len(),
        run.accepted.len(),
        moments.len()
    );
    assert_eq!(run.fail_at(&moments, Honesty::Honest, None).await, Vec::<String>::new());
    assert_eq!(run.fail_at(&moments, Honesty::Honest, Some(seed)).await, Vec::<String>::new());
    // All this proves something only if it sees a disk that does not do what it is told.
    let missing = run.fail_at(&run.answered(&mut random), Honesty::OneBehind, None).await;
    assert!(missing.iter().any(|what| what.contains("is lost")), "{missing:?}");
    let last = BTreeSet::from([run.entries.len()]);
    assert_ne!(run.fail_at(&last, Honesty::LogOnly, None).await, Vec::<String>::new());

    let moments: Vec<usize> = moments.into_iter().collect();
    for share in 1..=4 {
        let moment = moments[(moments.len() - 1) * share / 4];
        run.come_back(moment, (share % 2 == 0).then_some(seed)).await;
    }
}
