//! Reading and writing address lists (RFC 5322 section 3.4) the way Odoo does.
//!
//! Odoo reads addresses with Python's lenient `email.utils.getaddresses` and mends two kinds of broken input on top.
//! Which mailbox a message takes hangs on what is found here, so the reader gives what theirs gives even for malformed
//! text. Unlike theirs it never recurses (nested comments and groups cannot exhaust the stack) and takes linear time.

/// The characters of RFC 5322's `specials` that end an atom.
fn is_special(c: char) -> bool {
    matches!(c, '(' | ')' | '<' | '>' | '@' | ',' | ':' | ';' | '.' | '"' | '[' | ']')
}

fn is_folding(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn ends_atom(c: char) -> bool {
    is_special(c) || is_folding(c)
}

/// A dot is allowed in a display name (RFC 5322 obs-phrase).
fn ends_phrase_word(c: char) -> bool {
    c != '.' && ends_atom(c)
}

/// Every mailbox in `text` as display name and addr-spec: Odoo's `email_split_tuples`.
pub(crate) fn mailboxes(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<_> = addresses(text).into_iter().filter(|(_, spec)| spec.contains('@')).collect();
    // `foo@bar@example.com` is read as `@example.com`: look for anything shaped like an address instead.
    if found.iter().any(|(_, spec)| spec.starts_with('@')) {
        let shaped = address_shaped(text);
        if !shaped.is_empty() {
            found = shaped.into_iter().map(|spec| (String::new(), spec.to_owned())).collect();
        }
    }
    found.into_iter().map(split_at_spaces).collect()
}

/// `Sales Team sales@example.com`, a name without angle brackets, is read as one addr-spec with spaces in it: take the
/// words without an `@` as the name.
fn split_at_spaces((name, spec): (String, String)) -> (String, String) {
    if !name.is_empty() || !spec.contains(' ') {
        return (name, spec);
    }
    let parts = addresses(&spec.replace(' ', ","));
    let Some((_, address)) = parts.iter().rfind(|(_, part)| part.contains('@')) else {
        return (name, spec);
    };
    let words: Vec<_> = parts
        .iter()
        .map(|(_, part)| part.as_str())
        .filter(|part| !part.is_empty() && !part.contains('@'))
        .collect();
    (words.join(" "), address.clone())
}

/// The display name and addr-spec as Odoo's `formataddr` writes them, before any encoding for transport.
pub(crate) fn format(name: &str, spec: &str) -> String {
    if name.is_empty() { spec.to_owned() } else { format!("{} <{spec}>", quote(name)) }
}

/// RFC 5322 section 3.2.4, quoted-string.
pub(crate) fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The substrings that match Odoo's `email_re`: `[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,63}`.
fn address_shaped(text: &str) -> Vec<&str> {
    let in_local = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '%' | '+' | '-');
    let in_domain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('@') {
        let local = before.len() - before.trim_end_matches(in_local).len();
        let run = after.len() - after.trim_start_matches(in_domain).len();
        match domain_length(after.get(..run).unwrap_or_default()) {
            Some(length) if local > 0 => {
                let end = before.len() + 1 + length;
                found.extend(rest.get(before.len() - local..end));
                rest = rest.get(end..).unwrap_or_default();
            }
            _ => rest = after,
        }
    }
    found
}

/// How much of `run` a greedy `[a-zA-Z0-9.-]+\.[a-zA-Z]{2,63}` takes.
fn domain_length(run: &str) -> Option<usize> {
    let mut letters = 0;
    for (at, byte) in run.bytes().enumerate().rev() {
        if byte == b'.' && letters >= 2 && at > 0 {
            return Some(at + 1 + letters.min(63));
        }
        letters = if byte.is_ascii_alphabetic() { letters + 1 } else { 0 };
    }
    None
}

/// Python's `email.utils.getaddresses`, not strict: pairs of display name and addr-spec. What cannot be read gives an
/// empty pair, and a lone word gives an addr-spec without `@`.
pub(crate) fn addresses(text: &str) -> Vec<(String, String)> {
    let mut reader = Reader { text, at: 0, comments: Vec::new() };
    let mut found = Vec::new();
    // How deep the reader is in groups (`name: a, b;`), and what had been found before the outermost one.
    let (mut depth, mut before_group) = (0_usize, 0);
    while reader.peek().is_some() {
        if depth > 0 {
            reader.skip_space();
            match reader.peek() {
                None => break,
                Some(';') => {
                    reader.bump();
                    depth -= 1;
                    reader.finish();
                    if depth == 0 && found.len() == before_group {
                        found.push(Default::default());
                    }
                    continue;
                }
                Some(_) => {}
            }
        }
        match reader.member() {
            Member::Mailbox(name, spec) => found.push((name, spec)),
            Member::GroupStart => {
                if depth == 0 {
                    before_group = found.len();
                }
                depth += 1;
                continue;
            }
            Member::Nothing if depth == 0 => found.push(Default::default()),
            Member::Nothing => {}
        }
        reader.finish();
    }
    if depth > 0 && found.len() == before_group {
        found.push(Default::default());
    }
    found
}

/// What stands at one place of an address list.
enum Member {
    Mailbox(String, String),
    GroupStart,
    Nothing,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// The comments of the member being read; they become a part of its name.
    comments: Vec<String>,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) {
        self.at += self.peek().map_or(0, char::len_utf8);
    }

    fn member(&mut self) -> Member {
        self.comments.clear();
        self.skip_space();
        let start = self.at;
        let words = self.phrase();
        self.skip_space();
        match self.peek() {
            Some('.' | '@') => {
                // A bare addr-spec: read it again as one. Its comments count twice, as they do in Python.
                self.at = start;
                let spec = self.addr_spec();
                Member::Mailbox(self.comments.join(" "), spec)
            }
            Some(':') => {
                self.bump();
                Member::GroupStart
            }
            Some('<') => {
                let spec = self.angle_addr();
                let mut name = words.join(" ");
                if !self.comments.is_empty() {
                    name = format!("{name} ({})", self.comments.join(" "));
                }
                Member::Mailbox(name, spec)
            }
            next => match words.into_iter().next() {
                Some(word) => Member::Mailbox(self.comments.join(" "), word),
                None => {
                    if next.is_some_and(is_special) {
                        self.bump();
                    }
                    Member::Nothing
                }
            },
        }
    }

    /// After a member: white space and one comma.
    fn finish(&mut self) {
        self.skip_space();
        if self.peek() == Some(',') {
            self.bump();
        }
    }

    /// Skips white space and comments, and gives the white space without its line breaks.
    fn skip_space(&mut self) -> String {
        let mut space = String::new();
        while let Some(c) = self.peek() {
            match c {
                '(' => self.comment(),
                ' ' | '\t' => {
                    space.push(c);
                    self.bump();
                }
                '\r' | '\n' => self.bump(),
                _ => break,
            }
        }
        space
    }

    fn phrase(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        while let Some(c) = self.peek() {
            match c {
                '"' => words.push(self.delimited('"')),
                '(' => self.comment(),
                c if is_folding(c) => self.bump(),
                c if ends_phrase_word(c) => break,
                _ => words.push(self.until(ends_phrase_word).to_owned()),
            }
        }
        words
    }

    /// `<addr-spec>`, with an obsolete route (`@a,@b:`) skipped.
    fn angle_addr(&mut self) -> String {
        self.bump();
        self.skip_space();
        while let Some(c) = self.peek() {
            match c {
                '>' => {
                    self.bump();
                    break;
                }
                '@' => {
                    self.bump();
                    self.skip_space();
                    if self.peek().is_some() {
                        self.domain();
                    }
                }
                ':' => self.bump(),
                _ => {
                    let spec = self.addr_spec();
                    self.bump();
                    return spec;
                }
            }
            self.skip_space();
        }
        String::new()
    }

    /// Empty if there is an `@` without a domain behind it. Without an `@` only the local part comes back.
    fn addr_spec(&mut self) -> String {
        let mut spec = String::new();
        self.skip_space();
        let mut space = String::new();
        while let Some(c) = self.peek() {
            match c {
                '.' => {
                    spec.push('.');
                    self.bump();
                    self.skip_space();
                    space.clear();
                    continue;
                }
                '"' => {
                    spec.push_str(&space);
                    spec.push_str(&quote(&self.delimited('"')));
                }
                c if ends_atom(c) => {
                    space.clear();
                    break;
                }
                _ => {
                    spec.push_str(&space);
                    spec.push_str(self.until(ends_atom));
                }
            }
            space = self.skip_space();
        }
        spec.push_str(&space);
        if self.peek() != Some('@') {
            return spec;
        }
        self.bump();
        self.skip_space();
        let domain = self.domain();
        if domain.is_empty() { domain } else { format!("{spec}@{domain}") }
    }

    /// Empty for a domain with a second `@` behind it: neither half can be trusted.
    fn domain(&mut self) -> String {
        let mut domain = String::new();
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.bump(),
                '(' => self.comment(),
                '[' => {
                    domain.push('[');
                    domain.push_str(&self.delimited(']'));
                    domain.push(']');
                }
                '.' => {
                    domain.push('.');
                    self.bump();
                }
                '@' => return String::new(),
                c if ends_atom(c) => break,
                _ => domain.push_str(self.until(ends_atom)),
            }
        }
        domain
    }

    /// The text between the delimiter here and `end` (or a CR, or the end of the text), with quoted pairs resolved.
    fn delimited(&mut self, end: char) -> String {
        self.nested(None, end)
    }

    /// A comment, whose nested comments lose their parentheses.
    fn comment(&mut self) {
        let content = self.nested(Some('('), ')');
        self.comments.push(content);
    }

    /// From the delimiter here to the `end` that belongs to it; each `start` in between takes an `end` of its own.
    fn nested(&mut self, start: Option<char>, end: char) -> String {
        self.bump();
        let mut depth = 1_usize;
        let mut content = String::new();
        let mut quoted = false;
        while let Some(c) = self.peek() {
            self.bump();
            match c {
                c if quoted => {
                    content.push(c);
                    quoted = false;
                }
                '\\' => quoted = true,
                c if Some(c) == start => depth += 1,
                c if c == end || c == '\r' => {
                    depth -= 1;
                    if depth == 0 {
                        break;
                    }
                }
                c => content.push(c),
            }
        }
        content
    }

    fn until(&mut self, end: fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(end).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }
}
