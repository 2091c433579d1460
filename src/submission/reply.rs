//! SMTP replies (RFC 5321 section 4.2) with enhanced status codes (RFC 2034, RFC 3463).

use std::borrow::Cow;
use std::fmt;

/// The longest reply line with its CRLF, in octets (RFC 5321 section 4.5.3.1.5).
const LINE: usize = 512;
/// What a line spends on the code, the enhanced code and the CRLF, at most: `554-5.99.99 ` and CRLF.
const OVERHEAD: usize = 16;

/// One reply, ready to be written. Its text is ASCII without control characters, whatever it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    enhanced: Option<&'static str>,
    lines: Vec<String>,
}

impl Reply {
    /// A reply with an enhanced status code. A long text is folded into several lines; other characters than printable
    /// ASCII become `?`, so that no text can forge a reply of its own.
    pub fn new<'a>(code: u16, enhanced: &'static str, text: impl Into<Cow<'a, str>>) -> Self {
        Self { code, enhanced: Some(enhanced), lines: fold(&text.into()) }
    }

    /// A reply that carries no enhanced status code: the greeting, HELO, and the 3xx replies (RFC 2034 section 4).
    pub fn plain<'a>(code: u16, text: impl Into<Cow<'a, str>>) -> Self {
        Self { code, enhanced: None, lines: fold(&text.into()) }
    }

    /// The reply to EHLO: the server's name and a line per extension.
    pub fn extensions(host: &str, extensions: &[String]) -> Self {
        let lines = std::iter::once(host).chain(extensions.iter().map(String::as_str)).map(clean).collect();
        Self { code: 250, enhanced: None, lines }
    }

    /// The three-digit code.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// Both codes, such as `550 5.7.1`: what logs call `code`.
    pub fn codes(&self) -> String {
        self.enhanced.map_or_else(|| self.code.to_string(), |enhanced| format!("{} {enhanced}", self.code))
    }

    /// The words on one line: what logs call `reply`.
    pub fn text(&self) -> String {
        self.lines.join(" ")
    }

    /// The enhanced status code, such as `5.5.1`.
    pub fn enhanced(&self) -> Option<&'static str> {
        self.enhanced
    }

    /// Whether this is a 4xx or 5xx reply. To Odoo both are final.
    pub fn is_refusal(&self) -> bool {
        self.code >= 400
    }

    /// Appends the reply as it goes over the wire.
    pub fn write(&self, out: &mut Vec<u8>) {
        for (index, line) in self.lines.iter().enumerate() {
            let separator = if index + 1 < self.lines.len() { '-' } else { ' ' };
            out.extend_from_slice(format!("{}{separator}", self.code).as_bytes());
            if let Some(enhanced) = self.enhanced {
                out.extend_from_slice(enhanced.as_bytes());
                out.push(b' ');
            }
            out.extend_from_slice(line.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// On one line, for logs.
impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(enhanced) = self.enhanced {
            write!(f, " {enhanced}")?;
        }
        self.lines.iter().try_for_each(|line| write!(f, " {line}"))
    }
}

fn clean(text: &str) -> String {
    text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect()
}

/// Breaks a text at spaces into lines that keep to the limit. There is always at least one line.
fn fold(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let text = clean(text);
    let mut rest = text.as_str();
    while let Some((head, tail)) = rest.split_at_checked(LINE - OVERHEAD).filter(|(_, tail)| !tail.is_empty())
    {
        let (line, next) = match head.rfind(' ').and_then(|space| rest.split_at_checked(space)) {
            Some((line, next)) if !line.is_empty() => (line, next.trim_start_matches(' ')),
            _ => (head, tail),
        };
        lines.push(line.to_owned());
        rest = next;
    }
    lines.push(rest.to_owned());
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut out = Vec::new();
        reply.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn replies_as_written() {
        assert_eq!(wire(&Reply::new(250, "2.0.0", "Ok")), "250 2.0.0 Ok\r\n");
        assert_eq!(wire(&Reply::plain(334, "")), "334 \r\n");
        let extensions = ["PIPELINING".to_owned(), "SIZE 7".to_owned()];
        assert_eq!(wire(&Reply::extensions("h", &extensions)), "250-h\r\n250-PIPELINING\r\n250 SIZE 7\r\n");
        assert_eq!(wire(&Reply::extensions("h", &[])), "250 h\r\n");
    }

    #[test]
    fn a_text_cannot_forge_a_reply() {
        assert_eq!(wire(&Reply::new(550, "5.0.0", "no\r\n250 yes \u{e9}")), "550 5.0.0 no??250 yes ?\r\n");
    }

    #[test]
    fn a_long_text_is_folded_at_spaces() {
        let reply = Reply::new(550, "5.0.0", "word ".repeat(200).trim_end().to_owned());
        let text = wire(&reply);
        assert_eq!(text.lines().count(), 3);
        assert!(text.starts_with("550-5.0.0 word word"));
        assert!(text.lines().all(|line| line.ends_with("word")));
        assert_eq!(reply.to_string(), format!("550 5.0.0 {}", "word ".repeat(200).trim_end()));
    }

    proptest! {
        #[test]
        fn lines_keep_to_the_limit(text in "[a ]{0,3000}|\\PC{0,700}") {
            let text = wire(&Reply::new(550, "5.0.0", text));
            for line in text.split_inclusive("\r\n") {
                prop_assert!(line.len() <= LINE && line.ends_with("\r\n") && line.starts_with("550"));
            }
        }
    }
}
