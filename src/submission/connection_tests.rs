use std::sync::Arc;

use super::*;

fn incoming(budget: &Arc<Budget>, idle: u64, left: u64) -> Incoming<'_> {
    let [idle, left, stalled] = [idle, left, 10].map(Duration::from_secs);
    Incoming { budget, idle, left, stalled, share: budget.share() }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_is_given_up() {
    let (_client, server) = tokio::io::duplex(10);
    let mut connection = Connection::new(server);
    connection.write(&Reply::new(250, "2.0.0", "more than ten bytes")).await.unwrap();
    let begun = Instant::now();
    assert!(connection.flush().await.is_err());
    assert_eq!(begun.elapsed().as_secs(), WRITE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_drips_has_a_time_and_a_pause_has_another() {
    for (pause, ended_after) in [(1, 600), (59, 600), (61, 60)] {
        let (mut client, server) = tokio::io::duplex(1000);
        let dripping = tokio::spawn(async move {
            loop {
                sleep(Duration::from_secs(pause)).await;
                if client.write_all(b"a").await.is_err() {
                    break;
                }
            }
        });
        let begun = Instant::now();
        let budget = Budget::new(1000);
        let read = Connection::new(server).message(1000, &mut incoming(&budget, 60, 600)).await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), ended_after, "a byte every {pause} seconds");
        dripping.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn time_spent_waiting_for_memory_is_not_the_clients() {
    let budget = Budget::new(100);
    // One holds the whole budget, one is past it.
    let (mut whole, mut past) = (budget.share(), budget.share());
    whole.grow(64 * 1024).await;
    past.grow(64 * 1024).await;
    whole.grow(100).await;
    past.grow(1).await;
    let (mut client, server) = tokio::io::duplex(1000);
    client.write_all(b"a line\r\n").await.unwrap();
    let reading = async {
        let mut incoming = incoming(&budget, 60, 60);
        incoming.share.grow(64 * 1024).await;
        let read = Connection::new(server).message(1000, &mut incoming).await;
        (read.unwrap().unwrap(), incoming.left)
    };
    let others = async {
        sleep(Duration::from_secs(3_000)).await;
        drop(whole);
        sleep(Duration::from_secs(20)).await;
        client.write_all(b".\r\n").await.unwrap();
    };
    let ((message, left), ()) = tokio::join!(reading, others);
    assert_eq!((message.as_ref(), left.as_secs()), (b"a line\r\n".as_ref(), 40));
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_short_while_others_wait_for_memory() {
    let budget = Budget::new(10);
    let (_client, server) = tokio::io::duplex(1000);
    let waiting = async {
        sleep(Duration::from_secs(100)).await;
        let _waiting = budget.pressure.wait();
        pending::<()>().await;
    };
    let begun = Instant::now();
    let mut connection = Connection::new(server);
    let mut incoming = incoming(&budget, 300, 600);
    tokio::select! {
        read = connection.message(1000, &mut incoming) => {
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        }
        () = waiting => {}
    }
    assert_eq!(begun.elapsed().as_secs(), 110);
}

#[tokio::test]
async fn what_a_message_needed_is_not_kept() {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    let mut connection = Connection::new(server);
    client.write_all(&[b"a".repeat(100_000), b"\r\n.\r\n".to_vec()].concat()).await.unwrap();
    let budget = Budget::new(1 << 20);
    connection.message(1 << 20, &mut incoming(&budget, 60, 60)).await.unwrap().unwrap();
    client.write_all(b"NOOP\r\n").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    connection.more(Patience { deadline, pressure: None }).await.unwrap();
    assert_eq!(connection.line(100), Some(Line::Complete(b"NOOP"[..].into())));
    connection.input = BytesMut::new();
    client.write_all(b"N").await.unwrap();
    connection.more(Patience { deadline, pressure: None }).await.unwrap();
    assert!(connection.input.capacity() <= COMMANDS, "{}", connection.input.capacity());
}
