//! The paths of MAIL and RCPT (RFC 5321 section 4.1.2; RFC 6531 section 3.3 for UTF-8).

/// The longest address that any server takes, in octets: local part 64, domain 255 (RFC 5321 section 4.5.3.1). The two
/// are not limited one by one, since bounce addresses with long local parts do exist.
const ADDRESS: usize = 64 + 1 + 255;

/// A path split off the front of an argument: the address in it (`""` for `<>`) and the parameters behind it.
#[derive(Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// Without brackets and source route, otherwise as given.
    pub address: &'a str,
    /// What follows the closing bracket.
    pub parameters: &'a str,
}

impl<'a> Path<'a> {
    /// Reads `<address> parameters`. Source routes are ignored (RFC 5321 section 4.1.1.3). Spaces in front are
    /// tolerated, since real servers do and clients rely on it. `None`: not a path.
    pub fn parse(argument: &'a str) -> Option<Self> {
        let text = argument.trim_start_matches(' ').strip_prefix('<')?;
        if let Some(parameters) = text.strip_prefix('>') {
            return Self { address: "", parameters }.checked();
        }
        let text = if text.starts_with('@') {
            let (route, text) = text.split_once(':')?;
            let is_route = route.split(',').all(|hop| hop.strip_prefix('@').is_some_and(is_domain));
            is_route.then_some(text)?
        } else {
            text
        };
        let local = local_part(text)?;
        let (domain, parameters) = text.get(local..)?.strip_prefix('@')?.split_once('>')?;
        let address = text.get(..local + 1 + domain.len())?;
        if !is_domain(domain) || address.len() > ADDRESS {
            return None;
        }
        Self { address, parameters }.checked()
    }

    fn checked(self) -> Option<Self> {
        (self.parameters.is_empty() || self.parameters.starts_with(' ')).then_some(self)
    }
}

/// The length of the local part at the front of `text`: a dot-string or a quoted string.
fn local_part(text: &str) -> Option<usize> {
    match text.strip_prefix('"') {
        Some(quoted) => quoted_string(quoted),
        None => {
            let (local, _) = text.split_once('@')?;
            local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext)).then_some(local.len())
        }
    }
}

/// The length of a quoted string with both quotes; `text` begins behind the first. A backslash takes any character.
fn quoted_string(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if c.is_control() => return None,
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 2),
            _ => {}
        }
    }
    None
}

fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || is_utf8_text(c)
}

fn is_utf8_text(c: char) -> bool {
    !c.is_ascii() && !c.is_control() && !c.is_whitespace()
}

/// A domain name, or an address literal such as `[192.0.2.1]`.
pub(super) fn is_domain(domain: &str) -> bool {
    if let Some(literal) = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return !literal.is_empty()
            && literal.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-'));
    }
    domain.len() <= 255 && domain.split('.').all(is_label)
}

/// Underscores are no host name's, but mail domains with them exist and take mail.
fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.chars().count())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || is_utf8_text(c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths() {
        let long_local = format!("<{}@example.com>", "a".repeat(200));
        let too_long = format!("<{}@example.com>", "a".repeat(320));
        let long_label = format!("<a@{}.com>", "b".repeat(64));
        let table: &[(&str, Option<&str>)] = &[
            ("<>", Some("")),
            ("  <>", Some("")),
            ("<a@example.com>", Some("a@example.com")),
            (" <a@example.com>", Some("a@example.com")),
            ("<a@example.com> SIZE=1", Some("a@example.com")),
            ("<A.B+c=d!#$%&'*/?^_`{|}~-@Example.COM>", Some("A.B+c=d!#$%&'*/?^_`{|}~-@Example.COM")),
            ("<a@localhost>", Some("a@localhost")),
            ("<a@[192.0.2.1]>", Some("a@[192.0.2.1]")),
            ("<a@[IPv6:2001:db8::1]>", Some("a@[IPv6:2001:db8::1]")),
            (r#"<"a b"@example.com>"#, Some(r#""a b"@example.com"#)),
            (r#"<"a@b>c"@example.com>"#, Some(r#""a@b>c"@example.com"#)),
            (r#"<"a\"b\\"@example.com>"#, Some(r#""a\"b\\"@example.com"#)),
            (r#"<""@example.com>"#, Some(r#"""@example.com"#)),
            ("<@one.test,@two.test:a@example.com>", Some("a@example.com")),
            ("<@one.test:a@example.com>", Some("a@example.com")),
            ("<söze@exämple.com>", Some("söze@exämple.com")),
            (&long_local, long_local.get(1..long_local.len() - 1)),
            (&too_long, None),
            (&long_label, None),
            ("", None),
            ("a@example.com", None),
            ("<a@example.com", None),
            ("a@example.com>", None),
            ("<a>", None),
            ("<postmaster>", None),
            ("<@example.com>", None),
            ("<a@>", None),
            ("<a@example.com>SIZE=1", None),
            ("<>SIZE=1", None),
            ("<a b@example.com>", None),
            ("<.a@example.com>", None),
            ("<a.@example.com>", None),
            ("<a..b@example.com>", None),
            ("<a@b@example.com>", None),
            ("<a@example..com>", None),
            ("<a@example.com.>", None),
            ("<a@.example.com>", None),
            ("<a@-example.com>", None),
            ("<a@example-.com>", None),
            ("<a@exa mple.com>", None),
            ("<a@[]>", None),
            ("<a@[192.0.2.1>", None),
            (r#"<"a@example.com>"#, None),
            (r#"<"a\"@example.com>"#, None),
            (r#"<"a"b@example.com>"#, None),
            ("<<a@example.com>>", None),
            ("<@one.test a@example.com>", None),
            ("<@one.test,two.test:a@example.com>", None),
            ("<a\u{85}b@example.com>", None),
            ("<a\u{a0}b@example.com>", None),
            ("<Ann <a@example.com>>", None),
        ];
        for (argument, address) in table {
            assert_eq!(Path::parse(argument).map(|path| path.address), *address, "argument {argument:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(argument in r#"[<>@."\\a,: =\[\]é-]{0,40}|\PC{0,60}"#) {
            if let Some(path) = Path::parse(&argument) {
                prop_assert!(argument.contains(path.address) && argument.ends_with(path.parameters));
            }
        }
    }
}
