//! Takes connections and answers on them, within bounds: slow and many clients cost little, and end.

use crate::health::{SEEN_EVERY, patiently};
use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Connections at the same time; further ones wait in the system's backlog.
const CONNECTIONS: usize = 100;
/// How long a request's head may take, from the connection's begin or from the answer before.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may last, busy or not: longer than any request is worked on.
const CONNECTION: Duration = Duration::from_secs(16 * 60);
/// How long an answer under way may still take once its connection has to end.
const GRACE: Duration = Duration::from_secs(2);
/// Octets of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// Serves until `stop`, then gives the answers under way a moment. A connection on which nobody asks anything does not
/// hold that up.
pub(super) async fn serve(listener: TcpListener, router: watch::Receiver<Router>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            // So that it is seen.
            () = sleep(SEEN_EVERY) => {}
            Some(_) = connections.join_next() => {}
            (place, accepted) = next => match accepted {
                Ok((stream, _)) => {
                    let (router, stop) = (router.clone(), stop.clone());
                    connections.spawn(async move {
                        let _place = place;
                        answer(stream, router, stop).await;
                    });
                }
                // Mostly too many open files; it ends when some connection does.
                Err(error) => {
                    tracing::debug!(%error, "no connection can be accepted");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    while patiently(connections.join_next()).await.is_some() {}
}

/// The requests of one connection. What goes wrong with it is the client's affair.
async fn answer(stream: TcpStream, router: watch::Receiver<Router>, stop: CancellationToken) {
    // Looked up for each request: a proxy may keep its connection for long.
    let service = service_fn(move |request| {
        let router = router.borrow().clone();
        TowerToHyperService::new(router).call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => {}
        () = sleep(CONNECTION) => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(timeout(GRACE, connection).await);
}
