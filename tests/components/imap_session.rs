//! The IMAP session.

use crate::support::client::message;
use crate::support::entra::Entra;
use crate::support::imap::{Fault, Imap};
use crate::support::tls::Tls;
use outlook_relay::address::Address;
use outlook_relay::failure::{Class, Failure};
use outlook_relay::imap::{Error, Session};
use outlook_relay::units::HostPort;

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
    async fn open(&self, token: &str) -> Result<Session, Failure> {
        let endpoint = HostPort { host: "localhost".to_owned(), port: self.imap.addr().port() };
        let tls = outlook_relay::tls::client(Some(&self.tls.ca_file())).unwrap();
        Session::open(&endpoint, tls, &Address::normalise(JOHN).unwrap(), token).await
    }

    async fn ready(&self) -> Session {
        self.open(&self.entra.access_token(JOHN, 600)).await.unwrap()
    }

    fn deliver(&self, id: &str) -> u32 {
        self.imap.deliver(JOHN, "INBOX", &message("a@x.test", JOHN, id, "Grüße"))
    }
}

#[tokio::test]
async fn a_folder_is_read_without_marking_and_marked_without_reading() {
    let world = world().await;
    let raw = message("a@x.test", JOHN, "1@x.test", "Grüße");
    let first = world.imap.deliver(JOHN, "INBOX", &raw);
    let second = world.deliver("2@x.test");
    let mut session = world.ready().await;
    let folder = session.select("INBOX").await.unwrap();
    assert_eq!(folder.uidnext, second + 1);
    assert_eq!(session.search("UNSEEN").await.unwrap(), [first, second]);
    assert_eq!(session.search("UID 99:*").await.unwrap(), [second], "the last one is always found");
    assert_eq!(session.sizes(&[first, second]).await.unwrap()[&first], Some(raw.len() as u64));
    assert_eq!(session.bodies(&[second, first]).await.unwrap()[&first].as_ref(), Some(&raw));
    assert_eq!(session.search("UNSEEN").await.unwrap(), [first, second]);
    session.mark_seen(&[first]).await.unwrap();
    assert_eq!(session.search("UNSEEN").await.unwrap(), [second]);
    assert!(session.sizes(&[77]).await.unwrap().is_empty());
    assert!(session.bodies(&[77]).await.unwrap().is_empty());
    assert_eq!(session.present(&[first, 77]).await.unwrap(), [first]);
    session.mark_seen(&[77]).await.unwrap();
    session.logout().await;
    assert_eq!(world.imap.commands().last().unwrap().1, "LOGOUT");
}

#[tokio::test]
async fn folders_with_any_name_are_found() {
    let world = world().await;
    world.imap.add_folder(JOHN, "Gel&APY-schte R&-D", "");
    let mut session = world.ready().await;
    session.select("Gelöschte R&D").await.unwrap();
    assert!(session.select("Gel&APY-schte R&-D").await.is_err());
}

#[tokio::test]
async fn a_refused_login_is_known_by_its_code() {
    let world = world().await;
    let expired = world.entra.access_token(JOHN, -1);
    for generic in [false, true] {
        world.imap.set_generic_failure(generic);
        let failure = world.open(&expired).await.map(drop).unwrap_err();
        assert_eq!(
            (failure.class, failure.code.as_str(), failure.reply.as_str()),
            (Class::Administrator, "AUTHENTICATE failed", "AUTHENTICATE failed.")
        );
        assert!(!format!("{failure:?}").contains(&expired));
    }
}

#[tokio::test]
async fn a_server_that_is_not_ready_or_not_trusted_is_said() {
    let world = world().await;
    let token = world.entra.access_token(JOHN, 600);
    let rows = [
        (Fault::bye("Server Unavailable. 15"), Class::Transient, "IMAP BYE"),
        (Fault::Cut, Class::Transient, "cut"),
        (Fault::Garbage, Class::Transient, "odd answer"),
    ];
    for (fault, class, code) in rows {
        world.imap.fail_next("GREETING", fault);
        let failure = world.open(&token).await.map(drop).unwrap_err();
        assert_eq!((failure.class, failure.code.as_str()), (class, code));
    }
    let other = World { tls: Tls::new(), ..world };
    let failure = other.open(&token).await.map(drop).unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Administrator, "TLS"), "{failure}");
    other.imap.server.down().await;
    let failure = other.open(&token).await.map(drop).unwrap_err();
    assert_eq!((failure.class, failure.code.as_str()), (Class::Transient, "connect"));
}

#[tokio::test]
async fn no_and_bad_are_errors_and_never_empty_results() {
    let world = world().await;
    let uid = world.deliver("1@x.test");
    let mut session = world.ready().await;
    session.select("INBOX").await.unwrap();
    world.imap.fail_next(
        "UID SEARCH",
        Fault::no("Request is throttled. Suggested Backoff Time: 2000 milliseconds"),
    );
    let error = session.search("ALL").await.unwrap_err();
    assert!(matches!(&error, Error::Lost(failure) if failure.class == Class::Rate), "{error:?}");
    world.imap.fail_next("UID FETCH", Fault::no("The message could not be converted."));
    let error = session.bodies(&[uid]).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(failure) if failure.class == Class::Message), "{error:?}");
    world.imap.fail_next("UID STORE", Fault::no("read-only"));
    let error = session.mark_seen(&[uid]).await.unwrap_err();
    assert!(matches!(&error, Error::Refused(failure) if failure.class == Class::Administrator), "{error:?}");
    assert!(session.bodies(&[uid]).await.unwrap()[&uid].is_some(), "the session goes on");
    let error = session.select("Nowhere").await.unwrap_err();
    assert!(matches!(&error, Error::Refused(failure) if failure.advice.contains("`folder`")), "{error:?}");
    world.imap.fail_next("SELECT", Fault::bad("User is authenticated but not connected."));
    let error = session.select("INBOX").await.unwrap_err();
    assert!(matches!(&error, Error::Lost(failure) if failure.code == "not connected"), "{error:?}");
}

#[tokio::test]
async fn a_lost_session_is_told_from_an_empty_folder() {
    let world = world().await;
    let uid = world.deliver("1@x.test");
    let rows = [
        (Fault::bye("Session invalidated - AccessTokenExpired"), "AccessTokenExpired"),
        (Fault::Cut, "cut"),
        (Fault::CutMidway, "cut"),
        (Fault::Garbage, "odd answer"),
    ];
    for (fault, code) in rows {
        let mut session = world.ready().await;
        session.select("INBOX").await.unwrap();
        world.imap.fail_next("UID FETCH", fault.clone());
        let error = session.bodies(&[uid]).await.unwrap_err();
        assert!(matches!(&error, Error::Lost(failure) if failure.code == code), "{fault:?}: {error:?}");
    }
}

#[tokio::test]
async fn an_answer_that_would_break_the_parser_does_no_harm() {
    let world = world().await;
    let mut session = world.ready().await;
    world.imap.fail_next("SELECT", Fault::untagged("OK [ALERT]ü"));
    session.select("INBOX").await.unwrap();
}

#[tokio::test]
async fn a_message_that_is_withheld_is_not_taken_for_gone() {
    let world = world().await;
    let mut session = world.ready().await;
    session.select("INBOX").await.unwrap();
    // Of a message that is not there, so that nothing else is said of it.
    world.imap.fail_next("UID FETCH", Fault::untagged("1 FETCH (UID 77)"));
    assert_eq!(session.sizes(&[77]).await.unwrap(), [(77, None)].into());
    world.imap.fail_next("UID FETCH", Fault::untagged("1 FETCH (UID 77 BODY[] NIL)"));
    assert_eq!(session.bodies(&[77]).await.unwrap(), [(77, None)].into());
}

#[tokio::test]
async fn talk_of_other_messages_is_not_taken_for_the_answer() {
    let world = world().await;
    let uid = world.deliver("1@x.test");
    let mut session = world.ready().await;
    session.select("INBOX").await.unwrap();
    world.imap.fail_next("UID FETCH", Fault::untagged("7 FETCH (UID 99 RFC822.SIZE 5)"));
    let told = session.sizes(&[uid]).await.unwrap();
    assert_eq!(told.keys().collect::<Vec<_>>(), [&uid]);
    assert_ne!(told[&uid], Some(5));
}

#[tokio::test]
async fn a_sent_message_is_found_by_its_id_and_stays_as_it_is() {
    let world = world().await;
    world.imap.remove_folder(JOHN, "Sent Items");
    let mut session = world.ready().await;
    assert_eq!(session.sent_folders().await.unwrap(), [""; 0]);
    world.imap.script(
        crate::support::script::Rule::new("LIST", Fault::bad("Command Argument Error. 11")).only("RETURN"),
    );
    assert_eq!(session.sent_folders().await.unwrap(), [""; 0], "it does not know that way of asking");
    let odd = r#"Sent "mine" &AOQ-"#;
    world.imap.add_folder(JOHN, "Gesendet &AOQ-", "\\Sent");
    let folders = session.sent_folders().await.unwrap();
    assert_eq!(folders, ["Gesendet &AOQ-"]);
    let odd_id = r#"a"b\c@x.test"#;
    let first = world.imap.deliver(JOHN, &folders[0], &message("a@x.test", JOHN, odd_id, odd));
    let second = world.imap.deliver(JOHN, &folders[0], &message("a@x.test", JOHN, odd_id, "again"));
    world.imap.deliver(JOHN, &folders[0], &message("a@x.test", JOHN, "other@x.test", "other"));
    assert!(session.examine_listed(&folders[0]).await.unwrap().is_some());
    let found = session.search_message_id(&format!("<{odd_id}>")).await.unwrap();
    assert_eq!(found, [second, first], "the newest first");
    let replaced = b"Message-ID: <new@outlook.com>\r\nX-Microsoft-Original-Message-ID: <old@x.test>\r\n\r\n";
    let third = world.imap.deliver(JOHN, &folders[0], replaced);
    assert_eq!(session.search_message_id("<old@x.test>").await.unwrap(), [third]);
    let odd_field = crate::support::script::Rule::new("UID SEARCH", Fault::bad("Command Argument Error. 11"));
    world.imap.script(odd_field.only("X-Microsoft"));
    assert_eq!(session.search_message_id(&format!("<{odd_id}>")).await.unwrap(), [second, first]);
    assert_eq!(session.search_message_id("<none@x.test>").await.unwrap(), [0; 0]);
    assert_eq!(session.search_message_id("<\u{fc}@x.test>").await.unwrap(), [0; 0], "cannot be searched for");
    assert_eq!(session.search_message_id("a\r\n1 LOGOUT").await.unwrap(), [0; 0], "nor can this");
    let mut seen = Vec::new();
    let each = |header: &[u8]| {
        seen.push(String::from_utf8_lossy(header).into_owned());
        false
    };
    session.headers(&found, each).await.unwrap();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|header| header.contains(odd_id) && header.ends_with("\r\n\r\n")), "{seen:?}");
    let mut count = 0;
    let uids: Vec<u32> = std::iter::repeat_n(found.clone(), 30).flatten().collect();
    session
        .headers(&uids, |_| {
            count += 1;
            true
        })
        .await
        .unwrap();
    assert_eq!(count, 1, "enough is enough");
    assert!(!world.imap.flags(JOHN, &folders[0], first).unwrap().contains("\\Seen"));
}
