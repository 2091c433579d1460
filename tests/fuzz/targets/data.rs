//! The reader of DATA: a message ends at the first `CRLF.CRLF` and nowhere else, however its bytes come; what it takes holds
//! no bare CR or LF, and survives the way on with its dots stuffed. The first byte says into which pieces the rest falls.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outlook_relay::submission::chunks::ChunkReader;
use outlook_relay::submission::data::{DataReader, Flaw};

const LIMIT: usize = 2048;

/// What a message is, and how many bytes of the input belong to it.
type Read = Option<(usize, Result<Vec<u8>, Flaw>)>;

fn read(input: &[u8], piece: usize) -> Read {
    let mut reader = DataReader::new(LIMIT);
    let mut before = 0;
    for chunk in input.chunks(piece.max(1)) {
        if let Some(end) = reader.feed(chunk) {
            return Some((before + end.used, end.message.map(|message| message.to_vec())));
        }
        before += chunk.len();
    }
    None
}

/// Where the message ends, the plain way.
fn end(input: &[u8]) -> Option<usize> {
    if input.starts_with(b".\r\n") {
        return Some(3);
    }
    input.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 5)
}

fn stuffed(message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    for line in message.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    wire.extend_from_slice(b".\r\n");
    wire
}

fuzz_target!(|input: &[u8]| {
    let Some((&piece, input)) = input.split_first() else {
        return;
    };
    let whole = read(input, input.len());
    assert_eq!(whole, read(input, usize::from(piece)));
    assert_eq!(whole.as_ref().map(|(used, _)| *used), end(input));
    let Some((_, Ok(message))) = whole else {
        return;
    };
    assert!(message.len() <= LIMIT);
    let wire = stuffed(&message);
    assert_eq!(read(&wire, usize::from(piece)), Some((wire.len(), Ok(message.clone()))));
    let mut chunks = ChunkReader::new(LIMIT);
    for chunk in message.chunks(usize::from(piece).max(1)) {
        chunks.feed(chunk);
    }
    assert_eq!(chunks.finish().map(|taken| taken.to_vec()), Ok(message));
});
