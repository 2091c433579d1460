//! A listener on loopback whose connections end with it, and which can go away and come back on the same port.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// Stops, with all its connections, when dropped.
pub struct Server {
    addr: SocketAddr,
    wanted: watch::Sender<bool>,
    is: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Listens on a free port of 127.0.0.1; `handle` gets each connection and its number, from 1.
    pub async fn start<H, F>(handle: H) -> Self
    where
        H: Fn(TcpStream, u64) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (wanted, want) = watch::channel(true);
        let (state, is) = watch::channel(true);
        let task = tokio::spawn(accept(listener, handle, want, state));
        Self { addr, wanted, is, task }
    }

    /// Where it listens, or listened.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes the port and every connection: from now on connections are refused.
    pub async fn down(&self) {
        self.wanted.send(false).unwrap();
        self.is.clone().wait_for(|up| !up).await.unwrap();
    }

    /// Listens again on the same port.
    pub async fn up(&self) {
        self.wanted.send(true).unwrap();
        self.is.clone().wait_for(|up| *up).await.unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept<H, F>(
    listener: TcpListener,
    handle: H,
    mut want: watch::Receiver<bool>,
    state: watch::Sender<bool>,
) where
    H: Fn(TcpStream, u64) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let addr = listener.local_addr().unwrap();
    let mut listener = listener;
    let mut number = 0;
    loop {
        let mut connections = JoinSet::new();
        while *want.borrow_and_update() {
            tokio::select! {
                changed = want.changed() => if changed.is_err() { return },
                accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                    number += 1;
                    let _ = stream.set_nodelay(true);
                    connections.spawn(handle(stream, number));
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        connections.shutdown().await;
        let _ = state.send(false);
        if want.wait_for(|up| *up).await.is_err() {
            return;
        }
        listener = loop {
            match TcpListener::bind(addr).await {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let _ = state.send(true);
    }
}

/// Ports of 127.0.0.1 that were free a moment ago, for programs that cannot be given port 0. They lie below those that
/// Linux gives to port 0 and to outgoing connections, so that none of the many here takes one before the program does.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| {
        std::iter::repeat_with(|| rand::random_range(20_000..32_000_u16))
            .find_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok())
            .unwrap()
    });
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
