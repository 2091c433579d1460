//! Between the relay and a server: delays what passes, and counts how often the client has to wait for the server.

use crate::support::server::Server;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// The proxy at a free port of 127.0.0.1.
pub(crate) struct Proxy {
    server: Server,
    turns: Arc<AtomicUsize>,
}

impl Proxy {
    /// Passes everything on to a server; each round trip takes `delay` longer.
    pub(crate) async fn start(to: SocketAddr, delay: Duration) -> Self {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&turns);
        let server = Server::start(move |client, _| {
            let turns = Arc::clone(&counted);
            async move {
                let Ok(server) = TcpStream::connect(to).await else { return };
                drop(server.set_nodelay(true));
                let served = Arc::new(AtomicBool::new(true));
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let (asks, answers) = (Arc::clone(&served), served);
                let ask = move || {
                    if asks.swap(false, Ordering::SeqCst) {
                        turns.fetch_add(1, Ordering::SeqCst);
                    }
                };
                let answer = move || answers.store(true, Ordering::SeqCst);
                tokio::join!(
                    pass(from_client, to_server, delay / 2, ask),
                    pass(from_server, to_client, delay / 2, answer)
                );
            }
        })
        .await;
        Self { server, turns }
    }

    /// For the key `imap`.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// How often a client said something after the server had: round trips, those of TLS included.
    pub(crate) fn turns(&self) -> usize {
        self.turns.load(Ordering::SeqCst)
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    delay: Duration,
    each: impl Fn(),
) {
    // What is on its way is bounded, as on a real line.
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    let reading = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            each();
            let some = buffer.get(..length).unwrap_or_default().to_vec();
            if send.send((Instant::now() + delay, some)).await.is_err() {
                return;
            }
        }
        drop(send);
    };
    let writing = async {
        while let Some((at, bytes)) = receive.recv().await {
            // The timer is late by a millisecond or two, which nobody asked for.
            if !delay.is_zero() {
                sleep_until(at).await;
            }
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        drop(to.shutdown().await);
    };
    tokio::join!(reading, writing);
}
