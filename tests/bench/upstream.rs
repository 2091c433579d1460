//! A submission service that costs next to nothing, so that it is not what limits: a thread for each connection, STARTTLS,
//! any credentials. It looks at each message and forgets it.

use crate::Result;
use crate::mail::{Mails, message_id};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The service, until the process ends.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// How often each Message-ID came.
    ids: HashMap<Vec<u8>, u32>,
    damaged: usize,
}

impl Upstream {
    pub(crate) fn start(tls: Arc<ServerConfig>, mails: Arc<Mails>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (address, seen) = (listener.local_addr()?, Arc::<Mutex<Seen>>::default());
        let kept = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (tls, mails, seen) = (tls.clone(), mails.clone(), seen.clone());
                // A client that hangs up shows in what is missing.
                std::thread::spawn(move || drop(serve(stream, tls, &mails, &seen)));
            }
        });
        Ok(Self { address, seen: kept })
    }

    /// How many messages came so far.
    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).ids.len()
    }

    /// Waits for so many messages, each once and intact; returns the moment of the last.
    pub(crate) fn wait_for(&self, messages: usize, deadline: Duration) -> Result<Instant> {
        let begun = Instant::now();
        loop {
            let now = Instant::now();
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let twice = seen.ids.values().filter(|&&count| count > 1).count();
            if twice > 0 || seen.damaged > 0 {
                return Err(format!("{twice} messages came twice, {} damaged", seen.damaged).into());
            }
            if seen.ids.len() == messages {
                return Ok(now);
            }
            if now.duration_since(begun) > deadline {
                return Err(format!("{} of {messages} messages came", seen.ids.len()).into());
            }
            drop(seen);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Forgets what it saw.
    pub(crate) fn forget(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::default();
    }
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, mails: &Mails, seen: &Mutex<Seen>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut plain = BufReader::new(stream);
    plain.get_mut().write_all(b"220 bench ESMTP\r\n")?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if plain.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.starts_with(b"STARTTLS") {
            break;
        }
        plain.get_mut().write_all(b"250-bench\r\n250-STARTTLS\r\n250 8BITMIME\r\n")?;
    }
    plain.get_mut().write_all(b"220 go ahead\r\n")?;
    let stream = StreamOwned::new(ServerConnection::new(tls)?, plain.into_inner());
    session(BufReader::with_capacity(64 * 1024, stream), mails, seen)
}

/// What follows STARTTLS, with the extensions of Exchange Online.
fn session(mut stream: BufReader<impl Read + Write>, mails: &Mails, seen: &Mutex<Seen>) -> Result<()> {
    let (mut line, mut message) = (Vec::new(), Vec::new());
    loop {
        line.clear();
        if stream.read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let reply: &[u8] = match line.get(..4).unwrap_or_default() {
            b"EHLO" => {
                b"250-bench\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n\
                  250-AUTH PLAIN XOAUTH2\r\n250-8BITMIME\r\n250 CHUNKING\r\n"
            }
            b"AUTH" => b"235 2.7.0 signed in\r\n",
            b"DATA" => b"354 go ahead\r\n",
            b"QUIT" => {
                stream.get_mut().write_all(b"221 2.0.0 bye\r\n")?;
                return Ok(());
            }
            _ => b"250 2.1.0 fine\r\n",
        };
        let data = line.starts_with(b"DATA");
        // Replies to pipelined commands leave together.
        stream.get_mut().write_all(reply)?;
        if data {
            message.clear();
            while !message.ends_with(b"\r\n.\r\n") {
                if stream.read_until(b'\n', &mut message)? == 0 {
                    return Ok(());
                }
            }
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            match message_id(&message) {
                Some(id) if mails.is_intact(&message) => *seen.ids.entry(id.to_vec()).or_default() += 1,
                _ => seen.damaged += 1,
            }
            drop(seen);
            stream
                .get_mut()
                .write_all(b"250 2.0.0 OK <1@bench> [Hostname=bench] Queued mail for delivery\r\n")?;
        }
    }
}
