use proptest::prelude::*;

use super::*;

const LIMIT: usize = 1 << 20;

/// A message, or why it was refused, and what is left behind it.
type Read = (Result<Vec<u8>, Flaw>, Vec<u8>);

/// The stream in one chunk: the message and what is left behind it.
fn read(stream: &[u8]) -> Option<Read> {
    read_in_chunks(&[stream], LIMIT)
}

fn read_in_chunks(chunks: &[&[u8]], limit: usize) -> Option<Read> {
    let mut reader = DataReader::new(limit);
    for (index, chunk) in chunks.iter().enumerate() {
        if let Some(end) = reader.feed(chunk) {
            let mut left = chunk[end.used..].to_vec();
            left.extend(chunks[index + 1..].concat());
            return Some((end.message.map(|message| message.to_vec()), left));
        }
    }
    None
}

/// What a client does to a message before it sends it (RFC 5321 section 4.5.2).
fn stuff(message: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    let mut line_start = true;
    for (index, &byte) in message.iter().enumerate() {
        if line_start && byte == b'.' {
            stream.push(b'.');
        }
        stream.push(byte);
        line_start = byte == b'\n' && index > 0 && message[index - 1] == b'\r';
    }
    stream.extend_from_slice(b".\r\n");
    stream
}

#[test]
fn messages_are_read_and_unstuffed() {
    let table: &[(&str, &str)] = &[
        ("Subject: a\r\n\r\nb\r\n.\r\n", "Subject: a\r\n\r\nb\r\n"),
        (".\r\n", ""),
        ("\r\n.\r\n", "\r\n"),
        ("..\r\n.\r\n", ".\r\n"),
        ("..first\r\n.\r\n", ".first\r\n"),
        (".first\r\n.\r\n", "first\r\n"),
        ("a\r\n...\r\n.\r\n", "a\r\n..\r\n"),
        ("a\r\n..\r\n.b\r\n.\r\n", "a\r\n.\r\nb\r\n"),
        ("a.\r\n.\r\n", "a.\r\n"),
        ("a\r\n. \r\n.\r\n", "a\r\n \r\n"),
    ];
    for (stream, message) in table {
        assert_eq!(
            read(stream.as_bytes()),
            Some((Ok(message.as_bytes().to_vec()), Vec::new())),
            "stream {stream:?}"
        );
    }
}

#[test]
fn what_follows_the_message_is_left_for_the_session() {
    assert_eq!(
        read(b"a\r\n.\r\nMAIL FROM:<>\r\n"),
        Some((Ok(b"a\r\n".to_vec()), b"MAIL FROM:<>\r\n".to_vec()))
    );
    assert_eq!(read(b".\r\n.\r\n"), Some((Ok(Vec::new()), b".\r\n".to_vec())));
}

#[test]
fn a_stream_without_the_end_never_ends() {
    for stream in ["", "a", "a\r\n", "a\r\n.", "a\r\n.\r", "a\r\n..\r\n", "a.\r\n", ".", ".\r"] {
        assert_eq!(read(stream.as_bytes()), None, "stream {stream:?}");
    }
}

#[test]
fn a_smuggled_end_does_not_end_the_message_and_has_it_refused() {
    let ends = [
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r\n",
        "\n.\n",
        "\r\n.\r",
        "\r.\r",
        "\r\n\x00.\r\n",
        "\r\n.\x00\r\n",
        "\n\r.\r\n",
        "\r\n.\r\r\n",
        "\n.\r",
        "\r.\n",
        "\r\r.\r\n",
    ];
    for end in ends {
        let stream = format!("a{end}MAIL FROM:<evil@example.com>\r\nb");
        assert_eq!(read(stream.as_bytes()), None, "ended by {end:?}");
        let stream = format!("{stream}\r\n.\r\nQUIT\r\n");
        let (message, left) = read(stream.as_bytes()).unwrap();
        assert!(message.is_err(), "taken with {end:?}");
        assert_eq!(left, b"QUIT\r\n", "ended early by {end:?}");
    }
}

#[test]
fn the_first_flaw_is_named() {
    let table: &[(&str, Flaw)] = &[
        ("a\nb\r\n.\r\n", Flaw::BareLf),
        ("\n\r\n.\r\n", Flaw::BareLf),
        (".\n\r\n.\r\n", Flaw::BareLf),
        ("a\rb\r\n.\r\n", Flaw::BareCr),
        ("a\r\r\n.\r\n", Flaw::BareCr),
        (".\rb\r\n.\r\n", Flaw::BareCr),
        ("a\x00b\r\n.\r\n", Flaw::Nul),
        ("a\x00b\n\r\n.\r\n", Flaw::Nul),
        ("a\n\x00\r\n.\r\n", Flaw::BareLf),
    ];
    for (stream, flaw) in table {
        assert_eq!(read(stream.as_bytes()), Some((Err(*flaw), Vec::new())), "stream {stream:?}");
    }
}

#[test]
fn the_limit_counts_octets_without_stuffing_and_the_rest_is_swallowed() {
    let at = |limit| read_in_chunks(&[b"..2345\r\n.\r\nNOOP\r\n"], limit).unwrap();
    assert_eq!(at(7), (Ok(b".2345\r\n".to_vec()), b"NOOP\r\n".to_vec()));
    assert_eq!(at(6), (Err(Flaw::TooLarge), b"NOOP\r\n".to_vec()));
    assert_eq!(at(0), (Err(Flaw::TooLarge), b"NOOP\r\n".to_vec()));
}

#[test]
fn memory_is_given_back_once_the_limit_is_passed() {
    let mut reader = DataReader::new(1000);
    assert!(reader.feed(&[b'a'; 1000]).is_none());
    assert!(reader.content.octets.capacity() <= 2000);
    for _ in 0..100 {
        assert!(reader.feed(&[b'a'; 1000]).is_none());
        assert_eq!(reader.content.octets.capacity(), 0);
    }
    assert_eq!(reader.feed(b"\r\n.\r\n").unwrap().message, Err(Flaw::TooLarge));
}

#[test]
fn memory_grows_by_doubling_and_no_further_than_the_limit() {
    let mut content = Content::new(1000);
    let mut taken = Vec::new();
    for _ in 0..11 {
        let growth = content.growth(100);
        content.grow(growth);
        content.keep(&[b'a'; 100]);
        taken.push(growth);
        assert!(content.octets.capacity() <= 1000);
    }
    assert_eq!(taken, [100, 100, 200, 0, 400, 0, 0, 0, 200, 0, 0]);
    assert_eq!(content.flaw(), Some(Flaw::TooLarge));
    assert_eq!(content.growth(100), 0);
}

#[test]
fn lines_of_any_length_are_taken() {
    let mut message = vec![b'x'; 100_000];
    message.extend_from_slice(b"\r\n");
    assert_eq!(read(&stuff(&message)), Some((Ok(message), Vec::new())));
}

#[test]
fn refusals_say_what_to_do() {
    let text = |flaw: Flaw| flaw.reply(1000).to_string();
    assert!(text(Flaw::BareLf).starts_with("554 5.6.0 The message holds a bare LF"));
    assert!(text(Flaw::BareCr).starts_with("554 5.6.0 The message holds a bare CR"));
    assert!(text(Flaw::Nul).starts_with("554 5.6.0 The message holds a NUL"));
    assert!(text(Flaw::TooLarge).starts_with("552 5.3.4 The message is larger than 1000 bytes"));
}

/// Bytes in which the bytes that matter are frequent.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        4 => Just(b'\r'), 4 => Just(b'\n'), 4 => Just(b'.'), 3 => Just(b'a'), 1 => Just(0), 1 => any::<u8>()
    ];
    proptest::collection::vec(byte, 0..60)
}

/// Lines that end in CRLF and hold neither CR, LF nor NUL.
fn clean() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(b'.'), 3 => Just(b'a'), 1 => 1u8..=255]
        .prop_filter("line ends are added below", |byte| !matches!(byte, b'\r' | b'\n'));
    proptest::collection::vec(proptest::collection::vec(byte, 0..8), 0..12)
        .prop_map(|lines| lines.into_iter().flat_map(|line| [line, b"\r\n".to_vec()].concat()).collect())
}

proptest! {
    #[test]
    fn any_split_into_chunks_gives_the_same(stream in hostile(), cuts in proptest::collection::vec(1usize..9, 0..60), limit in 0usize..40) {
        let mut chunks = Vec::new();
        let mut rest = stream.as_slice();
        for cut in cuts {
            let (chunk, behind) = rest.split_at(cut.min(rest.len()));
            chunks.push(chunk);
            rest = behind;
        }
        chunks.push(rest);
        prop_assert_eq!(read_in_chunks(&chunks, limit), read_in_chunks(&[&stream], limit));
    }

    #[test]
    fn unstuffing_undoes_stuffing(message in clean()) {
        prop_assert_eq!(read(&stuff(&message)), Some((Ok(message), Vec::new())));
    }

    #[test]
    fn the_end_is_the_first_crlf_dot_crlf(stream in hostile()) {
        // A CRLF in front stands for the one that ended the DATA command.
        let whole = [b"\r\n", stream.as_slice()].concat();
        let end = memchr::memmem::find(&whole, b"\r\n.\r\n").map(|at| at + 3);
        prop_assert_eq!(read(&stream).map(|(_, left)| stream.len() - left.len()), end);
    }

    #[test]
    fn only_clean_messages_are_taken(stream in hostile()) {
        if let Some((Ok(message), _)) = read(&stream) {
            let text: Vec<u8> = String::from_utf8_lossy(&message).replace("\r\n", "").into_bytes();
            prop_assert!(!text.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0)));
        }
    }
}
