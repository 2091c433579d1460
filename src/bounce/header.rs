//! The header section of the message that failed, as a report quotes it: valid fields only, in UTF-8, in lines that
//! every parser takes.

/// The longest line that is written, in bytes: less than the 998 of RFC 5322 section 2.1.1.
pub(super) const LONGEST_LINE: usize = 900;

/// The longest name of a field that is quoted, in bytes.
const LONGEST_NAME: usize = 100;

/// What Odoo finds the message by comes first where not everything fits.
const FIRST: [&str; 4] = ["message-id", "x-odoo-message-id", "references", "in-reply-to"];

/// The fields of a header section.
pub(super) struct Fields(Vec<Field>);

struct Field {
    /// In lower case.
    name: String,
    /// As it is quoted, with its name and the end of its last line.
    text: String,
    /// Where the value begins in `text`.
    value: usize,
}

impl Field {
    fn value(&self) -> &str {
        self.text.get(self.value..).unwrap_or_default()
    }
}

impl Fields {
    /// Reads up to the first line that is empty, that can be no field, or that has no end: only a message that was cut
    /// has one.
    pub(super) fn read(message: &[u8]) -> Self {
        let mut fields: Vec<Field> = Vec::new();
        for line in message.split_inclusive(|&byte| byte == b'\n') {
            let Some(line) = line.strip_suffix(b"\n") else {
                break;
            };
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
            if line.is_empty() {
                break;
            }
            let text = line.replace(|c: char| c.is_control() && c != '\t', " ");
            if text.starts_with([' ', '\t']) {
                let Some(field) = fields.last_mut() else {
                    break;
                };
                // Some parsers take a blank line that is folded for the end of the section.
                if !text.trim().is_empty() {
                    fold(&mut field.text, &text);
                }
                continue;
            }
            let Some((name, value)) = text.split_once(':') else {
                break;
            };
            let name = name.trim_end();
            if name.is_empty()
                || name.len() > LONGEST_NAME
                || !name.bytes().all(|byte| byte.is_ascii_graphic())
            {
                break;
            }
            let mut text = format!("{name}:");
            let start = text.len();
            fold(&mut text, value.trim_end());
            fields.push(Field { name: name.to_ascii_lowercase(), text, value: start });
        }
        // Python's email package, and so Odoo, fails at some odd ones.
        fields.retain(|field| field.name != "message-id" || is_message_id(field.value().trim()));
        Self(fields)
    }

    /// The values of the fields of this name, given in lower case.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |field| field.name == name).map(Field::value)
    }

    /// The fields in their order, as many whole ones as fit into `most` bytes. `message_id` stands in for a field that
    /// is not there.
    pub(super) fn quote(&self, most: usize, message_id: Option<&str>) -> String {
        let mut left = most;
        let mut fits = vec![false; self.0.len()];
        let is_first = |field: &Field| FIRST.contains(&field.name.as_str());
        for (field, fits) in self.0.iter().zip(&mut fits).filter(|(field, _)| is_first(field)) {
            *fits = field.text.len() <= left;
            left -= if *fits { field.text.len() } else { 0 };
        }
        // What lies behind one that does not fit is cut off as a whole: nobody should wonder what lay between.
        for (field, fits) in self.0.iter().zip(&mut fits).filter(|(field, _)| !is_first(field)) {
            *fits = field.text.len() <= left;
            left = if *fits { left - field.text.len() } else { 0 };
        }
        let mut text = String::with_capacity(most - left);
        let is_absent = self.values("message-id").next().is_none();
        if let Some(message_id) = message_id.filter(|id| is_absent && is_message_id(id)) {
            text.push_str("Message-ID:");
            fold(&mut text, &format!(" {message_id}"));
        }
        self.0.iter().zip(fits).filter(|(_, fits)| *fits).for_each(|(field, _)| text.push_str(&field.text));
        text
    }
}

/// Appends a line, in several where it is too long, folded at white space where it has any (RFC 5322 section 2.2.3).
fn fold(text: &mut String, line: &str) {
    // The name is on the first one.
    const MOST: usize = LONGEST_LINE - LONGEST_NAME - 1;
    let mut rest = line.trim();
    if line.starts_with([' ', '\t']) {
        text.push(' ');
    }
    while rest.len() >= MOST {
        let most = cut(rest, MOST - 1);
        let (head, tail) = most
            .rfind([' ', '\t'])
            .and_then(|at| rest.split_at_checked(at))
            .or_else(|| rest.split_at_checked(most.len()))
            .unwrap_or((rest, ""));
        text.push_str(head.trim_end());
        text.push_str("\r\n ");
        rest = tail.trim_start();
    }
    text.push_str(rest);
    text.push_str("\r\n");
}

/// Whether a text is one msg-id of RFC 5322 section 3.6.4, without its obsolete forms.
pub(super) fn is_message_id(text: &str) -> bool {
    let inside = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    text.is_ascii() && inside.is_some_and(is_plain_address)
}

/// Whether a text is two rows of atoms (RFC 5322 section 3.2.3, RFC 6532) around an `@`, and so holds nothing that a
/// parser could take for something else.
pub(super) fn is_plain_address(text: &str) -> bool {
    let is_atom = |c: char| c.is_alphanumeric() || "!#$%&'*+-/=?^_`{|}~.".contains(c);
    let is_atoms = |text: &str| !text.is_empty() && text.chars().all(is_atom);
    let sides = text.split_once('@');
    text.len() < LONGEST_LINE / 2 && sides.is_some_and(|(left, right)| is_atoms(left) && is_atoms(right))
}

/// The beginning of a text, of at most so many bytes.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
    text.get(..end).unwrap_or_default()
}

/// A text from outside that stands in a line of ours: without control characters, and short enough.
pub(super) fn plain(text: &str) -> String {
    cut(text.replace(char::is_control, " ").trim(), LONGEST_LINE / 2).to_owned()
}
