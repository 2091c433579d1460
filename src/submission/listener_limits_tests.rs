use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::tests::{Client, Relay, WIRE, config};
use super::{Clients, Config};
use crate::submission::limits::Limits;

const SHORT: Duration = Duration::from_millis(500);
/// No limit that a test could run into.
const LONG: Duration = Duration::from_secs(3_600);

fn limited(change: impl FnOnce(&mut Limits)) -> Config {
    let mut config = config();
    change(&mut config.limits);
    config
}

#[tokio::test]
async fn too_many_connections_wait_for_a_place() {
    let relay = Relay::start(limited(|limits| limits.sessions = 3)).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(relay.connect().await);
    }
    let mut waiting = Client::new(TcpStream::connect(relay.address()).await.unwrap());
    let greeting = timeout(Duration::from_millis(100), waiting.stream.fill_buf()).await;
    assert!(greeting.is_err(), "greeted without a place");
    assert!(clients[0].ask("QUIT").await.starts_with("221 "));
    assert_eq!(waiting.hear().await, "220 outlook-relay ESMTP");
}

#[tokio::test]
async fn who_is_idle_makes_room_for_who_waits() {
    let relay = Relay::start(limited(|limits| (limits.sessions, limits.stalled) = (2, SHORT))).await;
    let mut busy = relay.greeted().await;
    assert!(busy.ask("MAIL FROM:<>").await.starts_with("250 "));
    let mut idle = relay.greeted().await;
    let mut waiting = Client::new(TcpStream::connect(relay.address()).await.unwrap());
    assert_eq!(waiting.hear().await, "220 outlook-relay ESMTP");
    assert!(idle.hear().await.starts_with("421 4.4.2 "));
    assert!(busy.ask("RCPT TO:<b@x.test>").await.starts_with("250 "), "a begun message is waited for");
}

#[test]
fn one_address_gets_so_many_sessions_and_this_machine_any_number() {
    let clients = Clients::new(2);
    let [near, dressed, far, other] = ["127.0.0.1:1", "[::ffff:192.0.2.1]:1", "192.0.2.1:2", "192.0.2.2:1"]
        .map(|peer| peer.parse().unwrap());
    let inside: Vec<_> = (0..10).map(|_| clients.enter(&near)).collect();
    assert!(inside.iter().all(Option::is_some));
    let first = clients.enter(&dressed).unwrap();
    let second = clients.enter(&far).unwrap();
    assert!(clients.enter(&far).is_none());
    assert!(clients.enter(&other).is_some());
    drop(first);
    assert!(clients.enter(&far).is_some());
    drop(second);
    assert!(clients.sessions.lock().unwrap().is_empty(), "an address without sessions takes no memory");
}

#[tokio::test]
async fn recipients_are_counted() {
    let relay = Relay::start(limited(|limits| limits.recipients = 100)).await;
    let mut client = relay.greeted().await;
    client.ask("MAIL FROM:<>").await;
    for _ in 0..100 {
        assert!(client.ask("RCPT TO:<b@x.test>").await.starts_with("250 "));
    }
    assert!(client.ask("RCPT TO:<b@x.test>").await.starts_with("452 4.5.3 More than 100 recipients"));
    assert!(client.ask("DATA").await.starts_with("354 "));
}

#[tokio::test]
async fn who_says_nothing_or_drips_is_let_go() {
    let relay = Relay::start(limited(|limits| limits.idle = SHORT)).await;
    let mut client = relay.greeted().await;
    assert!(client.hear().await.starts_with("421 4.4.2 Nothing came"));
    assert!(client.is_closed().await);
    let mut client = relay.greeted().await;
    let (mut read, mut write) = tokio::io::split(client.stream.into_inner());
    let dripping = tokio::spawn(async move {
        while write.write_all(b"a").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    });
    let mut last = Vec::new();
    // The connection may end in a reset: something dripped after it was closed.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut last).await;
    assert!(last.starts_with(b"421 4.4.2 "), "{last:?}");
    dripping.await.unwrap();
    client = relay.greeted().await;
    client.begin().await;
    client.send(b"From: ann@example.com\r\n").await;
    assert!(client.hear().await.starts_with("421 4.4.2 "));
    assert_eq!(relay.queue().await.len(), 0);
}

#[tokio::test]
async fn a_message_has_its_time_however_it_comes() {
    let limits = limited(|limits| (limits.message, limits.idle) = (SHORT, LONG));
    let relay = Relay::start(limits).await;
    for begin in ["DATA\r\n", "BDAT 1000\r\n", "BDAT 1\r\na", "BDAT 1000 LAST\r\n"] {
        let mut client = relay.greeted().await;
        client.send(format!("MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\n{begin}").as_bytes()).await;
        let (mut read, mut write) = tokio::io::split(client.stream.into_inner());
        let dripping = tokio::spawn(async move {
            // Within a chunk these are text, between chunks a command that does not end.
            while write.write_all(b"a").await.is_ok() {
                tokio::time::sleep(SHORT / 20).await;
            }
        });
        let mut heard = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut heard).await;
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.contains("421 4.4.2 "), "{begin:?}: {heard}");
        dripping.await.unwrap();
    }
    assert_eq!(relay.queue().await.len(), 0);
}

#[tokio::test]
async fn a_session_has_its_time_but_the_message_in_hand_is_finished() {
    let relay = Relay::start(limited(|limits| limits.session = 2 * SHORT)).await;
    let mut sending = relay.greeted().await;
    sending.begin().await;
    let mut busy = relay.greeted().await;
    let last = loop {
        let reply = busy.ask("NOOP").await;
        if reply != "250 2.0.0 Ok" {
            break reply;
        }
    };
    assert!(last.starts_with("421 4.4.2 The session takes too long"), "{last}");
    sending.send(WIRE.as_bytes()).await;
    assert!(sending.hear().await.starts_with("250 2.0.0 "));
    assert!(sending.hear().await.starts_with("421 4.4.2 The session takes too long"));
}

/// Most of a message of 200 kB, in as many clients as there are.
async fn stalled(relay: &Relay, count: usize) -> Vec<Client<TcpStream>> {
    let mut clients = Vec::new();
    for number in 0..count {
        let mut client = relay.greeted().await;
        let begin = ["DATA\r\n", "BDAT 200000\r\n"][number % 2];
        client.send(format!("MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\n{begin}").as_bytes()).await;
        let piece = [b"From: ann@example.com\r\n\r\n".to_vec(), vec![b'a'; 150_000]].concat();
        // Once the budget is spent, the rest of it waits in the sockets.
        let _ = timeout(SHORT, client.send(&piece)).await;
        clients.push(client);
    }
    clients
}

#[tokio::test]
async fn clients_that_stall_with_half_a_message_do_not_block_others_for_ever() {
    // They are freed by the time of a message, and sooner as others wait.
    for (message, stalled_for) in [(4 * SHORT, LONG), (LONG, SHORT)] {
        let mut config = limited(|limits| {
            (limits.memory, limits.message, limits.stalled) = (400_000, message, stalled_for);
        });
        config.max_message_size = 1_000_000;
        let relay = Relay::start(config).await;
        let _stalled = stalled(&relay, 4).await;
        let large = format!("From: ann@example.com\r\n\r\n{}\r\n.\r\n", "a".repeat(900_000));
        let honest = (0..4).map(|_| async { relay.greeted().await.mail(&large).await });
        for reply in join_all(honest).await {
            assert!(reply.starts_with("250 "), "{reply}");
        }
        assert_eq!(relay.queue().await.len(), 4);
    }
}

#[tokio::test]
async fn many_large_messages_at_a_time_all_arrive_within_little_memory() {
    let mut config = limited(|limits| limits.memory = 1 << 20);
    config.max_message_size = 1_000_000;
    let relay = Relay::start(config).await;
    let large = format!("From: ann@example.com\r\n\r\n{}\r\n.\r\n", "a".repeat(900_000));
    let large = &large;
    let senders = (0..40).map(|number| {
        let relay = &relay;
        async move {
            let mut client = relay.greeted().await;
            if number % 2 == 0 {
                return client.mail(large).await;
            }
            let message = large.trim_end_matches(".\r\n");
            client
                .send(
                    format!("MAIL FROM:<>\r\nRCPT TO:<b@x.test>\r\nBDAT {} LAST\r\n{message}", message.len())
                        .as_bytes(),
                )
                .await;
            client.hear().await;
            client.hear().await;
            client.hear().await
        }
    });
    for reply in join_all(senders).await {
        assert!(reply.starts_with("250 2.0.0 Ok: queued"), "{reply}");
    }
    assert_eq!(relay.queue().await.len(), 40);
}
