//! The scripted IMAP server, met by a raw client.

use crate::support::client::{ImapClient, message, xoauth2};
use crate::support::entra::Entra;
use crate::support::imap::{Fault, Imap};
use crate::support::script::Rule;
use crate::support::tls::Tls;
use crate::support::wait::{SOON, until};

const JOHN: &str = "john@example.com";

struct World {
    tls: Tls,
    entra: Entra,
    imap: Imap,
}

async fn world() -> World {
    let (tls, entra) = (Tls::new(), Entra::start().await);
    let imap = Imap::start(&tls, entra.check()).await;
    World { tls, entra, imap }
}

impl World {
    async fn login(&self) -> ImapClient {
        let token = self.entra.access_token(JOHN, 600);
        ImapClient::login(self.imap.addr(), &self.tls, JOHN, &token).await
    }

    fn deliver(&self, id: &str) -> u32 {
        self.imap.deliver(JOHN, "INBOX", &message("a@x.test", JOHN, id, "Grüße"))
    }

    fn seen(&self, uid: u32) -> bool {
        self.imap.flags(JOHN, "INBOX", uid).unwrap().contains("\\Seen")
    }
}

#[tokio::test]
async fn only_a_valid_token_gets_in() {
    let world = world().await;
    let (mut client, greeting) = ImapClient::connect(world.imap.addr(), &world.tls).await;
    assert!(greeting.starts_with("* OK The Microsoft Exchange IMAP4 service is ready."), "{greeting}");
    assert!(client.cmd("CAPABILITY").await.find("AUTH=XOAUTH2").is_some());
    assert_eq!(client.cmd("SELECT INBOX").await.status, "BAD");
    let expired = xoauth2(JOHN, &world.entra.access_token(JOHN, -1));
    let refused = client.cmd(&format!("AUTHENTICATE XOAUTH2 {expired}")).await;
    assert_eq!((refused.status.as_str(), refused.text.as_str()), ("NO", "AUTHENTICATE failed."));
    assert!(refused.untagged.is_empty(), "Exchange refuses at once");
    world.imap.set_generic_failure(true);
    let refused = client.cmd(&format!("AUTHENTICATE XOAUTH2 {expired}")).await;
    assert_eq!((refused.status.as_str(), refused.untagged.len()), ("NO", 1));
    client.start("AUTHENTICATE XOAUTH2").await;
    assert_eq!(client.line().await.unwrap(), "+ ");
    client.say(&xoauth2(JOHN, &world.entra.access_token(JOHN, 60))).await;
    assert!(client.line().await.unwrap().contains("OK AUTHENTICATE completed."));
    assert_eq!(world.imap.connections_now(JOHN), 1);
    assert!(world.imap.commands().iter().all(|(_, line)| !line.contains("XOAUTH2")), "a token was recorded");
    client.cmd("LOGOUT").await;
    assert!(client.line().await.is_none());
}

#[tokio::test]
async fn messages_are_found_read_and_marked() {
    let world = world().await;
    let (one, two) = (world.deliver("one@test"), world.deliver("two@test"));
    let mut client = world.login().await;
    let selected = client.cmd("SELECT INBOX").await;
    assert!(
        selected.find("* 2 EXISTS").is_some() && selected.find("UIDVALIDITY 14").is_some(),
        "{selected:?}"
    );
    assert!(
        selected.find("UIDNEXT 3").is_some() && selected.text.starts_with("[READ-WRITE]"),
        "{selected:?}"
    );

    let fetched = client.cmd("UID FETCH 1:* (UID FLAGS RFC822.SIZE INTERNALDATE BODY.PEEK[])").await;
    let line = fetched.find("one@test").unwrap();
    assert!(line.starts_with("* 1 FETCH (UID 1 FLAGS () RFC822.SIZE "), "{line}");
    assert!(line.contains("\r\n\r\nHello\r\n.a line with a dot\r\n"), "{line}");
    assert!(!world.seen(one), "PEEK has marked the message");
    let fetched = client.cmd("UID FETCH 2 (BODY.PEEK[HEADER.FIELDS (MESSAGE-ID SUBJECT)])").await;
    assert!(fetched.untagged[0].contains("Message-Id: <two@test>\r\nSubject: Grüße\r\n\r\n"), "{fetched:?}");
    client.cmd("UID FETCH 2 BODY[]<0.10>").await;
    assert!(world.seen(two), "BODY[] has not marked the message");

    let found = async |client: &mut ImapClient, keys: &str| {
        let done = client.cmd(&format!("UID SEARCH {keys}")).await;
        assert_eq!(done.status, "OK", "{keys}: {done:?}");
        done.find("* SEARCH").unwrap().strip_prefix("* SEARCH").unwrap().trim().to_owned()
    };
    for (keys, uids) in [
        ("ALL", "1 2"),
        ("UNSEEN", "1"),
        ("NOT SEEN", "1"),
        ("SEEN UID 1:*", "2"),
        ("UID 1:1", "1"),
        ("UID 9:*", "2"),
        ("HEADER Message-Id <one@test>", "1"),
        ("HEADER Message-Id \"<none@test>\"", ""),
        ("OR UNSEEN (SEEN UID 2)", "1 2"),
        ("SINCE 1-Jan-2020", "1 2"),
        ("BEFORE 1-Jan-2020", ""),
    ] {
        assert_eq!(found(&mut client, keys).await, uids, "{keys}");
    }
    assert_eq!(client.cmd("UID SEARCH NONSENSE").await.status, "BAD");

    client.cmd("UID STORE 1 +FLAGS.SILENT (\\seen)").await;
    assert!(world.seen(one));
    let stored = client.cmd("UID STORE 1:2 -FLAGS (\\Seen)").await;
    assert_eq!(stored.untagged, ["* 1 FETCH (FLAGS () UID 1)", "* 2 FETCH (FLAGS () UID 2)"]);
    client.cmd("EXAMINE INBOX").await;
    assert_eq!(client.cmd("UID STORE 1 +FLAGS (\\Seen)").await.status, "NO");
    client.cmd("UID FETCH 1 BODY[]").await;
    assert!(!world.seen(one));
}

#[tokio::test]
async fn messages_move_and_vanish() {
    let world = world().await;
    for id in ["1@t", "2@t", "3@t"] {
        world.deliver(id);
    }
    let mut client = world.login().await;
    assert!(client.cmd("LIST \"\" *").await.find("\\Sent) \"/\" \"Sent Items\"").is_some());
    client.cmd("SELECT {5+}\r\nINBOX").await;
    let moved = client.cmd("UID MOVE 2 \"Deleted Items\"").await;
    assert_eq!(moved.untagged, ["* OK [COPYUID 16 2 1] Moved.", "* 2 EXPUNGE"]);
    assert_eq!(world.imap.messages(JOHN, "Deleted Items").len(), 1);
    assert!(client.cmd("UID COPY 1 Nowhere").await.text.starts_with("[TRYCREATE]"));
    client.cmd("CREATE Nowhere").await;
    assert_eq!(client.cmd("UID COPY 1 Nowhere").await.status, "OK");
    client.cmd("UID STORE 1,3 +FLAGS (\\Deleted)").await;
    assert_eq!(client.cmd("UID EXPUNGE 3").await.untagged, ["* 2 EXPUNGE"]);
    world.imap.remove(JOHN, "INBOX", 1);
    assert_eq!(client.cmd("NOOP").await.untagged, ["* 1 EXPUNGE"]);
    world.deliver("4@t");
    assert_eq!(client.cmd("NOOP").await.untagged, ["* 1 EXISTS"]);
    world.imap.set_uidvalidity(JOHN, "INBOX", 77);
    assert!(client.cmd("SELECT INBOX").await.find("UIDVALIDITY 77").is_some());
    assert_eq!(world.imap.messages(JOHN, "INBOX")[0].uid, 1);
}

#[tokio::test]
async fn idle_announces_what_arrives() {
    let world = world().await;
    let mut client = world.login().await;
    client.cmd("SELECT INBOX").await;
    let tag = client.start("IDLE").await;
    assert!(client.line().await.unwrap().starts_with("+ "));
    until(SOON, "one connection in IDLE", || world.imap.idling(JOHN) == 1).await;
    world.deliver("1@t");
    assert_eq!(client.line().await.unwrap(), "* 1 EXISTS");
    world.imap.say("jane@example.com", "OK for somebody else");
    world.imap.say(JOHN, "OK Still here");
    assert_eq!(client.line().await.unwrap(), "* OK Still here");
    client.say("DONE").await;
    assert_eq!(client.line().await.unwrap(), format!("{tag} OK IDLE completed."));
    assert_eq!(world.imap.idling(JOHN), 0);
    client.start("IDLE").await;
    client.line().await.unwrap();
    world.imap.bye(JOHN, "Session invalidated - AccessTokenExpired");
    assert_eq!(client.line().await.unwrap(), "* BYE Session invalidated - AccessTokenExpired");
    assert!(client.line().await.is_none());
}

#[tokio::test]
async fn faults_happen_at_the_command_they_are_planned_for() {
    let world = world().await;
    let uid = world.deliver("1@t");
    let imap = &world.imap;
    imap.script(
        Rule::new("SELECT", Fault::bad("User is authenticated but not connected.")).times(2).only(JOHN),
    );
    let mut client = world.login().await;
    assert_eq!(client.cmd("SELECT INBOX").await.text, "User is authenticated but not connected.");
    assert_eq!(client.cmd("SELECT INBOX").await.status, "BAD");
    assert_eq!(client.cmd("SELECT INBOX").await.status, "OK");
    imap.fail_next("UID SEARCH", Fault::no("Server Unavailable. 15"));
    assert_eq!(client.cmd("UID SEARCH ALL").await.text, "Server Unavailable. 15");
    imap.fail_next("NOOP", Fault::untagged("OK Request is throttled."));
    assert_eq!(client.cmd("NOOP").await.untagged, ["* OK Request is throttled."]);
    imap.fail_next("UID STORE", Fault::Cut);
    assert!(client.try_cmd("UID STORE 1 +FLAGS (\\Seen)").await.is_none());
    assert!(!world.seen(uid));

    let mut client = world.login().await;
    client.cmd("SELECT INBOX").await;
    imap.fail_next("UID FETCH", Fault::CutMidway);
    assert!(client.try_cmd("UID FETCH 1 BODY.PEEK[]").await.is_none());
    let mut client = world.login().await;
    client.cmd("SELECT INBOX").await;
    imap.fail_next("UID STORE", Fault::CutAfter);
    assert!(client.try_cmd("UID STORE 1 +FLAGS (\\Seen)").await.is_none());
    assert!(world.seen(uid), "the command was done, only its answer lost");

    imap.fail_next("GREETING", Fault::bye("Connection refused"));
    let (mut client, greeting) = ImapClient::connect(imap.addr(), &world.tls).await;
    assert_eq!(greeting, "* BYE Connection refused");
    assert!(client.line().await.is_none());
    assert_eq!(imap.pending(), 0);
    let mut client = world.login().await;
    imap.cut(JOHN);
    assert!(client.line().await.is_none());
}
