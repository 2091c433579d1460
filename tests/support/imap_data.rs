//! Arguments, search keys and fetch items of the scripted IMAP server.

use std::collections::BTreeSet;

use memchr::memmem;

use super::imap::Message;

/// A set of UIDs (RFC 3501 section 9, `sequence-set`).
pub(super) struct Set(Vec<(u32, u32)>, std::ops::RangeInclusive<u32>);

impl Set {
    /// `*` is kept as 0, which is no UID.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| {
            if text == "*" { Some(0) } else { text.parse().ok().filter(|n| *n > 0) }
        };
        text.split(',')
            .map(|part| {
                let (from, to) = part.split_once(':').unwrap_or((part, part));
                Some((number(from)?, number(to)?))
            })
            .collect::<Option<Vec<_>>>()
            .map(|ranges| {
                // Where all the numbers lie, so that a large folder is passed over quickly.
                let ends = || ranges.iter().flat_map(|&(from, to)| [from, to]);
                let highest = if ends().any(|end| end == 0) { u32::MAX } else { ends().max().unwrap_or(0) };
                let span = ends().min().unwrap_or(0)..=highest;
                Self(ranges, span)
            })
    }

    /// `max` is the highest UID there is. A range is meant either way round, so `9:*` holds the last message always.
    pub(super) fn contains(&self, uid: u32, max: u32) -> bool {
        self.1.contains(&uid)
            && self.0.iter().any(|&(from, to)| {
                let (from, to) = (if from == 0 { max } else { from }, if to == 0 { max } else { to });
                (from.min(to)..=from.max(to)).contains(&uid)
            })
    }
}

/// Splits at spaces, outside of quotes and brackets. A quoted string comes out plain, a list with its parentheses.
pub(super) fn arguments(text: &str) -> Vec<String> {
    let (mut all, mut one, mut depth, mut quoted) = (Vec::new(), None::<String>, 0, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter == ' ' && !quoted && depth == 0 {
            all.extend(one.take());
            continue;
        }
        let word = one.get_or_insert_default();
        match letter {
            '\\' if quoted => {
                let escaped = letters.next().unwrap_or_default();
                if depth > 0 {
                    word.push('\\');
                }
                word.push(escaped);
            }
            '"' => {
                quoted = !quoted;
                if depth > 0 {
                    word.push('"');
                }
            }
            _ => {
                if !quoted {
                    depth += i32::from(matches!(letter, '(' | '[')) - i32::from(matches!(letter, ')' | ']'));
                }
                word.push(letter);
            }
        }
    }
    all.extend(one);
    all
}

/// The flags of a list, with the spelling of the standard ones repaired.
pub(super) fn flags(list: &str) -> BTreeSet<String> {
    let list = list.trim_start_matches('(').trim_end_matches(')');
    list.split_whitespace()
        .map(|flag| {
            ["\\Seen", "\\Answered", "\\Flagged", "\\Deleted", "\\Draft"]
                .into_iter()
                .find(|known| known.eq_ignore_ascii_case(flag))
                .unwrap_or(flag)
                .to_owned()
        })
        .collect()
}

/// Whether a message matches all these search keys; `None` for a key that is not known here.
pub(super) fn matches(message: &Message, keys: &[String], max: u32) -> Option<bool> {
    let mut rest = keys;
    let mut all = true;
    while !rest.is_empty() {
        all &= key(message, &mut rest, max)?;
    }
    Some(all)
}

fn key(message: &Message, rest: &mut &[String], max: u32) -> Option<bool> {
    let mut next = || {
        let (first, others) = rest.split_first()?;
        *rest = others;
        Some(first.as_str())
    };
    let word = next()?;
    let has = |flag: &str| message.flags.contains(flag);
    let flag = |name: &str| {
        ["Seen", "Answered", "Flagged", "Deleted", "Draft"]
            .into_iter()
            .find(|f| f.eq_ignore_ascii_case(name))
            .map(|f| has(&format!("\\{f}")))
    };
    let upper = word.to_ascii_uppercase();
    Some(match upper.as_str() {
        "ALL" | "OLD" => true,
        "RECENT" | "NEW" => false,
        "NOT" => !key(message, rest, max)?,
        "OR" => {
            let first = key(message, rest, max)?;
            key(message, rest, max)? | first
        }
        "CHARSET" => next().is_some(),
        "UID" => Set::parse(next()?)?.contains(message.uid, max),
        "KEYWORD" => has(next()?),
        "UNKEYWORD" => !has(next()?),
        "HEADER" => {
            let (name, value) = (next()?, next()?.to_lowercase());
            header_lines(&message.raw).any(|(found, line)| {
                found.eq_ignore_ascii_case(name)
                    && String::from_utf8_lossy(line).to_lowercase().contains(&value)
            })
        }
        "SUBJECT" | "FROM" | "TO" | "CC" | "BCC" => {
            let value = next()?.to_lowercase();
            header_lines(&message.raw).any(|(found, line)| {
                found.eq_ignore_ascii_case(&upper)
                    && String::from_utf8_lossy(line).to_lowercase().contains(&value)
            })
        }
        "LARGER" => message.raw.len() > next()?.parse().ok()?,
        "SMALLER" => message.raw.len() < next()?.parse().ok()?,
        "SINCE" | "SENTSINCE" => date(message) >= jiff::civil::Date::strptime("%d-%b-%Y", next()?).ok()?,
        "BEFORE" | "SENTBEFORE" => date(message) < jiff::civil::Date::strptime("%d-%b-%Y", next()?).ok()?,
        _ if word.starts_with('(') => matches(message, &arguments(&word[1..word.len() - 1]), max)?,
        _ => match upper.strip_prefix("UN").and_then(flag) {
            Some(set) => !set,
            None => flag(&upper)?,
        },
    })
}

fn date(message: &Message) -> jiff::civil::Date {
    message.received.to_zoned(jiff::tz::TimeZone::UTC).date()
}

/// The inside of a FETCH answer; `None` for an item that is not known here. BODY[] sets `\Seen`.
pub(super) fn fetch(message: &mut Message, items: &str, size_error: i64, read_only: bool) -> Option<Vec<u8>> {
    let items = items.strip_prefix('(').and_then(|items| items.strip_suffix(')')).unwrap_or(items);
    let mut items = arguments(items);
    let reads = |item: &String| {
        let upper = item.to_ascii_uppercase();
        upper.starts_with("BODY[") || upper == "RFC822"
    };
    if items.iter().any(reads) && !read_only && message.flags.insert("\\Seen".to_owned()) {
        items.push("FLAGS".to_owned());
    }
    if !items.iter().any(|item| item.eq_ignore_ascii_case("UID")) {
        items.push("UID".to_owned());
    }
    let mut out = Vec::new();
    for item in items {
        if !out.is_empty() {
            out.push(b' ');
        }
        let upper = item.to_ascii_uppercase();
        let plain = match upper.as_str() {
            "UID" => format!("UID {}", message.uid),
            "FLAGS" => format!("FLAGS ({})", message.flags.iter().cloned().collect::<Vec<_>>().join(" ")),
            "RFC822.SIZE" => {
                let size = i64::try_from(message.raw.len()).ok()? + size_error;
                format!("RFC822.SIZE {}", size.max(0))
            }
            "INTERNALDATE" => {
                message.received.strftime("INTERNALDATE \"%d-%b-%Y %H:%M:%S +0000\"").to_string()
            }
            _ => String::new(),
        };
        if !plain.is_empty() {
            out.extend_from_slice(plain.as_bytes());
            continue;
        }
        let (label, bytes) = body(&message.raw, &upper)?;
        out.extend_from_slice(format!("{label} {{{}}}\r\n", bytes.len()).as_bytes());
        out.extend_from_slice(&bytes);
    }
    Some(out)
}

/// A section of the message: its name in the answer, and its bytes.
fn body(raw: &[u8], item: &str) -> Option<(String, Vec<u8>)> {
    if item == "RFC822" {
        return Some(("RFC822".to_owned(), raw.to_vec()));
    }
    let rest = item.strip_prefix("BODY.PEEK[").or_else(|| item.strip_prefix("BODY["))?;
    let (section, partial) = rest.split_once(']')?;
    let end_of_header = memmem::find(raw, b"\r\n\r\n").map_or(raw.len(), |at| at + 4);
    let bytes = match section {
        "" => raw.to_vec(),
        "HEADER" => raw[..end_of_header].to_vec(),
        "TEXT" => raw[end_of_header..].to_vec(),
        _ => {
            let names = section.strip_prefix("HEADER.FIELDS (")?.strip_suffix(')')?;
            let wanted =
                |name: &str| names.split(' ').any(|one| one.trim_matches('"').eq_ignore_ascii_case(name));
            let mut bytes: Vec<u8> = Vec::new();
            for (name, line) in header_lines(raw) {
                if wanted(&name) {
                    bytes.extend_from_slice(line);
                }
            }
            bytes.extend_from_slice(b"\r\n");
            bytes
        }
    };
    let label = format!("BODY[{section}]");
    let Some(partial) = partial.strip_prefix('<').and_then(|partial| partial.strip_suffix('>')) else {
        return Some((label, bytes));
    };
    let (start, length) = partial.split_once('.')?;
    let start: usize = start.parse().ok()?;
    let length: usize = length.parse().ok()?;
    Some((format!("{label}<{start}>"), bytes.into_iter().skip(start).take(length).collect()))
}

/// The fields of the header: each name, and the whole field with its folds and line ends.
pub(super) fn header_lines(raw: &[u8]) -> impl Iterator<Item = (String, &[u8])> {
    let end = memmem::find(raw, b"\r\n\r\n").map_or(raw.len(), |at| at + 2);
    let mut rest = &raw[..end];
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut length = 0;
        loop {
            length += memchr::memchr(b'\n', &rest[length..]).map_or(rest.len() - length, |at| at + 1);
            if !matches!(rest.get(length), Some(b' ' | b'\t')) {
                break;
            }
        }
        let (field, others) = rest.split_at(length);
        rest = others;
        let colon = memchr::memchr(b':', field).unwrap_or(0);
        Some((String::from_utf8_lossy(&field[..colon]).into_owned(), field))
    })
}

/// What a report of a failed delivery is about: the failed message's Message-Id, and the address.
pub(super) fn reported(raw: &[u8]) -> Option<(String, String)> {
    let is_report = |(name, line): (String, &[u8])| {
        name.eq_ignore_ascii_case("content-type") && memmem::find(line, b"multipart/report").is_some()
    };
    if !header_lines(raw).any(is_report) {
        return None;
    }
    let text = String::from_utf8_lossy(raw);
    let recipient = text.split_once("\r\nFinal-Recipient:")?.1.split_once(';')?.1.lines().next()?.trim();
    let quoted = text.split_once("text/rfc822-headers")?.1.to_lowercase();
    let message_id = quoted.split_once("\r\nmessage-id:")?.1.split_once('<')?.1.split_once('>')?.0.to_owned();
    Some((format!("<{message_id}>"), recipient.to_owned()))
}
