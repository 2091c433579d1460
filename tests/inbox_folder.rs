//! What other people do to a watched folder at a real server, while the relay looks away.
#![expect(clippy::indexing_slicing, reason = "test code: a failure here must stop the test")]

use crate::company::{self, NOTIFICATIONS};
use crate::support::client::{ImapClient, message};
use crate::support::dovecot::Dovecot;
use crate::support::odoo::Answer;
use crate::support::relay::{Config, Relay};
use crate::support::script::Rule;
use crate::support::wait::{SOON, until};
use crate::support::world::World;
use std::collections::BTreeMap;
use std::time::Duration;

/// Larger than half of what is fetched together, so that each is fetched alone.
const ALONE: usize = 3 << 19;

struct Company {
    world: World,
    dovecot: Dovecot,
    config: Config,
    relay: Relay,
}

impl Company {
    /// The relay has looked through the folder, and idles.
    async fn start(folder: &str) -> Self {
        let world = World::start().await;
        let dovecot = Dovecot::start(&world.tls, &world.entra).await;
        let mut config = company::config(&world);
        config.text("microsoft", "imap", &dovecot.imap_endpoint());
        config.text("fetch", "poll", "1h");
        // Dovecot does not tell a session that idles in a folder of its end.
        config.text("fetch", "idle", "2s");
        config.raw("fetch", "new_per_sender", "0");
        config.mailbox(NOTIFICATIONS, &[("inbox", "true"), ("folder", &format!("\"{folder}\""))]);
        company::connect(&world, &config).await;
        dovecot.deliver(NOTIFICATIONS, folder, &to_us("first@t"));
        let relay = config.start().await;
        let company = Self { world, dovecot, config, relay };
        company.until_in_odoo(&["first@t"]).await;
        company
    }

    /// Another program that reads the mailbox.
    async fn client(&self) -> ImapClient {
        let token = self.world.entra.access_token(NOTIFICATIONS, 600);
        ImapClient::login(self.dovecot.imap_addr(), &self.world.tls, NOTIFICATIONS, &token).await
    }

    /// How often each Message-Id was pushed, whatever became of it.
    fn pushed(&self) -> BTreeMap<String, usize> {
        let mut pushed = BTreeMap::new();
        for post in self.world.odoo.posts() {
            let id = post.message_id.unwrap_or_default();
            *pushed.entry(id.trim_matches(['<', '>']).to_owned()).or_default() += 1;
        }
        pushed
    }

    /// Waits until all of these were pushed; each was once, and nothing else.
    async fn until_in_odoo(&self, ids: &[&str]) {
        until(SOON, &format!("{ids:?} in Odoo"), || {
            let taken = self.world.odoo.taken();
            ids.iter().all(|id| taken.iter().any(|post| post.message_id == Some(format!("<{id}>"))))
        })
        .await;
        let expected: BTreeMap<_, _> = ids.iter().map(|id| ((*id).to_owned(), 1)).collect();
        assert_eq!(self.pushed(), expected, "{}", self.relay.log().join("\n"));
    }

    /// The inbox's counts: waiting and refused; and whether there is any trouble.
    async fn counts(&self) -> (u64, u64, bool) {
        let told = self.config.cli(&["status", "--json"]).await.stdout;
        let status: serde_json::Value = serde_json::from_str(&told).unwrap();
        let mailboxes = status["mailboxes"].as_array().unwrap();
        let mailbox = mailboxes.iter().find(|mailbox| mailbox["address"] == NOTIFICATIONS).unwrap();
        let count = |name: &str| mailbox["inbox"][name].as_u64().unwrap();
        (count("waiting"), count("refused"), mailbox["troubles"] != serde_json::json!({}))
    }
}

fn to_us(id: &str) -> Vec<u8> {
    message("customer@foreign.test", NOTIFICATIONS, id, "Hi")
}

fn alone(id: &str) -> Vec<u8> {
    let mut raw = to_us(id);
    while raw.len() < ALONE {
        raw.extend_from_slice(b"The quick brown fox jumps over the lazy dog, again and again.\r\n");
    }
    raw
}

#[tokio::test]
async fn what_another_program_reads_first_still_arrives() {
    let mut company = Company::start("INBOX").await;
    let mut client = company.client().await;
    // The relay is slower than everybody else: with its session open, and without any.
    company.relay.signal("STOP");
    for id in ["2@t", "3@t"] {
        company.dovecot.deliver(NOTIFICATIONS, "INBOX", &to_us(id));
    }
    client.cmd("SELECT INBOX").await;
    let read = client.cmd("UID FETCH 2:3 (BODY[])").await;
    assert_eq!(read.untagged.iter().filter(|line| line.contains("\\Seen")).count(), 2, "{read:?}");
    company.relay.signal("CONT");
    company.until_in_odoo(&["first@t", "2@t", "3@t"]).await;

    assert_eq!(company.relay.terminate(SOON).await, Some(0));
    company.dovecot.deliver(NOTIFICATIONS, "INBOX", &to_us("4@t"));
    client.cmd("NOOP").await;
    assert_eq!(client.cmd("UID STORE 4 +FLAGS (\\Seen)").await.status, "OK");
    company.relay = company.config.start().await;
    company.until_in_odoo(&["first@t", "2@t", "3@t", "4@t"]).await;
    assert_eq!(company.counts().await, (0, 0, false));
}

#[tokio::test]
async fn what_is_expunged_between_search_and_fetch_holds_up_nothing() {
    let company = Company::start("INBOX").await;
    let mut client = company.client().await;
    client.cmd("SELECT INBOX").await;
    // The first is pushed, slowly, and the second fetched meanwhile; the third is known, but not fetched yet.
    company.world.odoo.set_delay(Duration::from_secs(1));
    company.relay.signal("STOP");
    let ids = ["2@t", "3@t", "4@t", "5@t"];
    for id in ids {
        company.dovecot.deliver(NOTIFICATIONS, "INBOX", &alone(id));
    }
    company.relay.signal("CONT");
    let calls = || company.world.odoo.calls().iter().filter(|call| call.ends_with("message_process")).count();
    until(SOON, "the push of the first is under way", || calls() == 2).await;
    client.cmd("NOOP").await;
    let found = client.cmd("UID FETCH 4 (BODY.PEEK[HEADER.FIELDS (Message-Id)])").await;
    // In whichever order the server took those that came at once.
    let leaving = found.find("BODY[").unwrap();
    let leaving = ids.into_iter().find(|id| leaving.contains(id)).unwrap();
    client.cmd("UID STORE 4 +FLAGS (\\Deleted)").await;
    assert_eq!(client.cmd("UID EXPUNGE 4").await.status, "OK");
    let mut staying = vec!["first@t"];
    staying.extend(ids.into_iter().filter(|id| *id != leaving));
    company.until_in_odoo(&staying).await;
    company.dovecot.deliver(NOTIFICATIONS, "INBOX", &to_us("6@t"));
    staying.push("6@t");
    company.until_in_odoo(&staying).await;
    until(SOON, "all are marked", || {
        let messages = company.dovecot.messages(NOTIFICATIONS, "INBOX");
        messages.len() == 5 && messages.iter().all(|message| message.flags.contains('S'))
    })
    .await;
    assert_eq!(company.counts().await, (0, 0, false), "{}", company.relay.log().join("\n"));
    assert_eq!(company.relay.count_log("quarantined"), 0);
}

#[tokio::test]
async fn what_is_expunged_while_odoo_refuses_it_is_forgotten() {
    let company = Company::start("INBOX").await;
    company.world.odoo.script(Rule::new((), Answer::NoRoute).always().only("poison@t"));
    company.dovecot.deliver(NOTIFICATIONS, "INBOX", &to_us("poison@t"));
    company.relay.wait_for_log("quarantined").await;
    assert_eq!(company.counts().await.1, 1);
    let mut client = company.client().await;
    client.cmd("SELECT INBOX").await;
    client.cmd("UID STORE 2 +FLAGS (\\Deleted)").await;
    assert_eq!(client.cmd("UID EXPUNGE 2").await.status, "OK");
    company.world.odoo.clear();
    company.config.cli(&["inbox", "retry", "--all"]).await.success();
    company.dovecot.deliver(NOTIFICATIONS, "INBOX", &to_us("next@t"));
    until(SOON, "the next one", || company.pushed().contains_key("next@t")).await;
    until(SOON, "it is not listed any more", || company.relay.count_log("pushed") == 2).await;
    let listed = company.config.cli(&["inbox", "list", "--json"]).await.success();
    assert_eq!(serde_json::from_str::<serde_json::Value>(&listed).unwrap(), serde_json::json!([]));
    assert_eq!(company.pushed()["poison@t"], 1, "not pushed again, for it is gone");
    assert_eq!(company.counts().await, (0, 0, false));
}

#[tokio::test]
async fn a_folder_that_is_deleted_and_made_anew_neither_loses_nor_repeats() {
    let company = Company::start("Anfragen").await;
    let uidvalidity = async |client: &mut ImapClient| {
        let told = client.cmd("STATUS Anfragen (UIDVALIDITY)").await;
        told.find("UIDVALIDITY").unwrap().to_owned()
    };
    let mut client = company.client().await;
    let before = uidvalidity(&mut client).await;
    company.relay.signal("STOP");
    assert_eq!(client.cmd("DELETE Anfragen").await.status, "OK");
    assert_eq!(client.cmd("CREATE Anfragen").await.status, "OK");
    assert_ne!(uidvalidity(&mut client).await, before);
    // One that Odoo has already comes back, unread; one is new; one is new and was read.
    for id in ["first@t", "unread@t", "read@t"] {
        company.dovecot.deliver(NOTIFICATIONS, "Anfragen", &to_us(id));
        client.cmd("SELECT Anfragen").await;
    }
    assert_eq!(client.cmd("UID STORE 3 +FLAGS (\\Seen)").await.status, "OK");
    client.cmd("UNSELECT").await;
    company.relay.signal("CONT");
    company.until_in_odoo(&["first@t", "unread@t", "read@t"]).await;
    company.dovecot.deliver(NOTIFICATIONS, "Anfragen", &to_us("later@t"));
    company.until_in_odoo(&["first@t", "unread@t", "read@t", "later@t"]).await;
    until(SOON, "all are marked", || {
        let messages = company.dovecot.messages(NOTIFICATIONS, "Anfragen");
        messages.len() == 4 && messages.iter().all(|message| message.flags.contains('S'))
    })
    .await;
    assert_eq!(company.counts().await, (0, 0, false), "{}", company.relay.log().join("\n"));
}
