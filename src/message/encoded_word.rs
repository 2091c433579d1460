//! Encoded words: text that is not ASCII in header fields (RFC 2047).

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::address::list;

/// Base64 as careless senders write it: with or without padding.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The octets of text in one encoded word: in base64 they are 60 characters, and with `=?utf-8?b?` and `?=` around
/// them 72, under the limit of 75 (RFC 2047 section 2).
const OCTETS_A_WORD: usize = 45;

/// `text` as encoded words, each whole in itself (no character is cut in two).
pub(super) fn encode(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut chunk = String::new();
    for c in text.chars() {
        if chunk.len() + c.len_utf8() > OCTETS_A_WORD {
            words.push(word(&chunk));
            chunk.clear();
        }
        chunk.push(c);
    }
    if !chunk.is_empty() {
        words.push(word(&chunk));
    }
    words
}

fn word(text: &str) -> String {
    format!("=?utf-8?b?{}?=", STANDARD.encode(text))
}

/// Where in a list of mailboxes a word stands: it decides how the decoded text is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Phrase,
    Quoted,
    /// With how deep it is nested.
    Comment(usize),
    Address,
}

/// The unfolded text of a From field with its encoded words decoded.
///
/// Words stand in a phrase, a comment or (wrongly, but often) a quoted string. What they say is quoted, so it cannot
/// change how the list is read. In an address they are not decoded (RFC 2047 section 5), nor are words in an unknown
/// charset or encoding.
pub(super) fn decode(text: &str) -> String {
    let mut decoded = String::with_capacity(text.len());
    let mut place = Place::Phrase;
    let mut rest = text;
    let mut at_word_start = true;
    while let Some(c) = rest.chars().next() {
        let may_decode = place != Place::Address && (at_word_start || place != Place::Phrase);
        if may_decode && let Some((run, behind)) = decode_run(rest, place) {
            match place {
                Place::Comment(_) => decoded.push_str(&escape_comment(&run)),
                Place::Quoted => decoded.push_str(&run.replace('\\', "\\\\").replace('"', "\\\"")),
                Place::Phrase | Place::Address => decoded.push_str(&list::quote(&run)),
            }
            rest = behind;
            at_word_start = false;
            continue;
        }
        decoded.push(c);
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
        at_word_start = matches!(c, ' ' | ',' | ':' | ';' | '>' | ')' | '"');
        place = match (place, c) {
            (Place::Quoted | Place::Comment(_), '\\') => {
                // A quoted pair: the next character loses its meaning.
                if let Some(next) = rest.chars().next() {
                    decoded.push(next);
                    rest = rest.get(next.len_utf8()..).unwrap_or_default();
                }
                place
            }
            (Place::Phrase, '"') => Place::Quoted,
            (Place::Phrase, '<') => Place::Address,
            (Place::Phrase, '(') => Place::Comment(1),
            (Place::Comment(depth), '(') => Place::Comment(depth + 1),
            (Place::Comment(depth), ')') if depth > 1 => Place::Comment(depth - 1),
            (Place::Quoted, '"') | (Place::Address, '>') | (Place::Comment(_), ')') => Place::Phrase,
            _ => place,
        };
    }
    decoded
}

fn escape_comment(text: &str) -> String {
    text.replace('\\', "\\\\").replace('(', "\\(").replace(')', "\\)")
}

/// The encoded words at the beginning of `text` and what stands behind them. White space between words does not count
/// (RFC 2047 section 6.2). Octets are joined before the charset is applied: many senders cut characters in two.
fn decode_run(text: &str, place: Place) -> Option<(String, &str)> {
    let mut octets: Vec<u8> = Vec::new();
    let mut charset: Option<Charset> = None;
    let mut decoded = String::new();
    let mut behind = text;
    while let Some((word, after)) = parse_word(if charset.is_none() { behind } else { behind.trim_start() }) {
        let ends = place != Place::Phrase
            || after.is_empty()
            || after.starts_with("=?")
            || after.starts_with([' ', '<', ',', ':', ';', '"', '(']);
        if !ends {
            break;
        }
        if let Some(before) = charset.filter(|before| *before != word.charset) {
            decoded.push_str(&before.decode(&std::mem::take(&mut octets)));
        }
        charset = Some(word.charset);
        octets.extend(word.octets);
        behind = after;
    }
    decoded.push_str(&charset?.decode(&octets));
    Some((decoded.replace(char::is_control, " "), behind))
}

struct Word {
    charset: Charset,
    octets: Vec<u8>,
}

/// `=?charset?encoding?text?=` at the beginning of `text`.
fn parse_word(text: &str) -> Option<(Word, &str)> {
    let mut parts = text.strip_prefix("=?")?.splitn(4, '?');
    let (charset, encoding, content, behind) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let octets = match encoding {
        "b" | "B" => LENIENT.decode(content.trim()).ok()?,
        "q" | "Q" => quoted_printable(content)?,
        _ => return None,
    };
    Some((Word { charset: Charset::named(charset)?, octets }, behind.strip_prefix('=')?))
}

/// The Q encoding (RFC 2047 section 4.2).
fn quoted_printable(content: &str) -> Option<Vec<u8>> {
    let mut octets = Vec::with_capacity(content.len());
    let mut bytes = content.bytes();
    while let Some(byte) = bytes.next() {
        octets.push(match byte {
            b'_' => b' ',
            b'=' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            byte => byte,
        });
    }
    Some(octets)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Charset {
    /// And US-ASCII, which is a part of it.
    Utf8,
    /// And ISO 8859-1, which has control characters where this has letters: mail and web software reads it so.
    Windows1252,
}

impl Charset {
    fn named(name: &str) -> Option<Self> {
        // A language may follow the charset (RFC 2231 section 5).
        let name = name.split('*').next().unwrap_or_default();
        match name.to_ascii_lowercase().as_str() {
            "utf-8" | "utf8" | "us-ascii" | "ascii" => Some(Self::Utf8),
            "iso-8859-1" | "iso8859-1" | "latin1" | "latin-1" | "windows-1252" | "cp1252" => {
                Some(Self::Windows1252)
            }
            _ => None,
        }
    }

    fn decode(self, octets: &[u8]) -> String {
        match self {
            Self::Utf8 => String::from_utf8_lossy(octets).into_owned(),
            Self::Windows1252 => windows_1252(octets),
        }
    }
}

/// Octets in windows-1252 as text. The five that it leaves free become U+FFFD.
pub(super) fn windows_1252(octets: &[u8]) -> String {
    const FROM_0X80: [char; 32] = [
        '€', '\u{fffd}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{fffd}', 'Ž', '\u{fffd}',
        '\u{fffd}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{fffd}', 'ž', 'Ÿ',
    ];
    let decode = |byte: u8| match byte {
        0x80..=0x9f => FROM_0X80.get(usize::from(byte) - 0x80).copied().unwrap_or('\u{fffd}'),
        _ => char::from(byte),
    };
    octets.iter().copied().map(decode).collect()
}
