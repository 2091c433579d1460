//! A submission service that costs next to nothing, so that it is not what limits: a thread for each connection, STARTTLS,
//! any credentials. It looks at each message and forgets it.

use crate::Result;
use crate::mail::{END, Mails, message_id};
use memchr::{memchr, memmem};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// So much is read at a time.
const BLOCK: usize = 256 * 1024;

/// The service, until the process ends.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    /// How often each Message-ID came.
    ids: HashMap<Vec<u8>, u32>,
    twice: usize,
    damaged: usize,
    last: Option<Instant>,
}

impl Seen {
    /// Notes a message by its Message-ID; `None`: it is damaged.
    fn note(&mut self, id: Option<&[u8]>) {
        self.last = Some(Instant::now());
        match id {
            Some(id) => {
                let count = self.ids.entry(id.to_vec()).or_default();
                *count += 1;
                self.twice += usize::from(*count == 2);
            }
            None => self.damaged += 1,
        }
    }
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
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.twice > 0 || seen.damaged > 0 {
                return Err(format!("{} messages came twice, {} damaged", seen.twice, seen.damaged).into());
            }
            if seen.ids.len() == messages {
                return seen.last.ok_or_else(|| "nothing came".into());
            }
            if begun.elapsed() > deadline {
                return Err(format!("{} of {messages} messages came", seen.ids.len()).into());
            }
            drop(seen);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Forgets what it saw.
    pub(crate) fn forget(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::default();
    }
}

/// rustls reads a record's worth at most; this asks the kernel for all there is.
struct Ahead(BufReader<TcpStream>);

impl Read for Ahead {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Ahead {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.get_mut().write(bytes)
    }

    fn write_vectored(&mut self, bytes: &[std::io::IoSlice<'_>]) -> std::io::Result<usize> {
        self.0.get_mut().write_vectored(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, mails: &Mails, seen: &Mutex<Seen>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut plain = BufReader::with_capacity(BLOCK, stream);
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
    session(StreamOwned::new(ServerConnection::new(tls)?, Ahead(plain)), mails, seen)
}

/// What follows STARTTLS, with the extensions of Exchange Online.
fn session(stream: impl Read + Write, mails: &Mails, seen: &Mutex<Seen>) -> Result<()> {
    let mut talk = Talk { stream, input: vec![0; BLOCK], from: 0, to: 0, replies: Vec::new() };
    while let Some(line) = talk.until(b"\n")? {
        let reply: &[u8] = match talk.input[line].get(..4).unwrap_or_default() {
            b"EHLO" => {
                b"250-bench\r\n250-SIZE 157286400\r\n250-PIPELINING\r\n250-ENHANCEDSTATUSCODES\r\n\
                  250-AUTH PLAIN XOAUTH2\r\n250-8BITMIME\r\n250 CHUNKING\r\n"
            }
            b"AUTH" => b"235 2.7.0 signed in\r\n",
            b"QUIT" => {
                talk.replies.extend_from_slice(b"221 2.0.0 bye\r\n");
                return talk.answer();
            }
            b"DATA" => {
                talk.replies.extend_from_slice(b"354 go ahead\r\n");
                let Some(message) = talk.until(END)? else {
                    return Ok(());
                };
                let message = &talk.input[message];
                let (id, is_intact) = (message_id(message), mails.is_intact(message));
                seen.lock().unwrap_or_else(PoisonError::into_inner).note(id.filter(|_| is_intact));
                b"250 2.0.0 OK <1@bench> [Hostname=bench] Queued mail for delivery\r\n"
            }
            _ => b"250 2.1.0 fine\r\n",
        };
        talk.replies.extend_from_slice(reply);
    }
    Ok(())
}

/// A connection that is read in blocks, and answered when all that came is.
struct Talk<S> {
    stream: S,
    /// What came and is not yet taken lies from `from` to `to`.
    input: Vec<u8>,
    from: usize,
    to: usize,
    replies: Vec<u8>,
}

impl<S: Read + Write> Talk<S> {
    /// Where in the input lies what comes up to this end, and with it; `None`: the client hung up.
    fn until(&mut self, end: &[u8]) -> Result<Option<Range<usize>>> {
        let mut searched = self.from;
        loop {
            let rest = &self.input[searched..self.to];
            let found = if let [byte] = end { memchr(*byte, rest) } else { memmem::find(rest, end) };
            if let Some(at) = found {
                let taken = self.from..searched + at + end.len();
                self.from = taken.end;
                return Ok(Some(taken));
            }
            searched = self.to.saturating_sub(end.len()).max(self.from);
            self.answer()?;
            if self.from > 0 {
                self.input.copy_within(self.from..self.to, 0);
                (searched, self.to, self.from) = (searched - self.from, self.to - self.from, 0);
            }
            if self.to == self.input.len() {
                self.input.resize(2 * self.to, 0);
            }
            let read = self.stream.read(&mut self.input[self.to..])?;
            if read == 0 {
                return Ok(None);
            }
            self.to += read;
        }
    }

    /// Replies to pipelined commands leave together.
    fn answer(&mut self) -> Result<()> {
        if !self.replies.is_empty() {
            self.stream.write_all(&self.replies)?;
            self.replies.clear();
        }
        Ok(())
    }
}
