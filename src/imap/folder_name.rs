//! Folder names on the wire: modified UTF-7 (RFC 3501 section 5.1.3), in quotes (section 4.3).

use base64::Engine as _;
use base64::alphabet::IMAP_MUTF7;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};

/// Base64 with a comma in place of the slash, without padding.
const MODIFIED: GeneralPurpose = GeneralPurpose::new(&IMAP_MUTF7, NO_PAD);

/// A folder's name as a command takes it: encoded and quoted. Control characters, line ends among them, are encoded
/// too, so no name can end the command.
pub(super) fn encode(name: &str) -> String {
    let mut encoded = String::with_capacity(name.len() + 2);
    let mut shifted: Vec<u8> = Vec::new();
    encoded.push('"');
    for c in name.chars() {
        if !(' '..='~').contains(&c) {
            let mut units = [0; 2];
            shifted.extend(c.encode_utf16(&mut units).iter().flat_map(|unit| unit.to_be_bytes()));
            continue;
        }
        shift_back(&mut encoded, &mut shifted);
        match c {
            '&' => encoded.push_str("&-"),
            '"' | '\\' => encoded.extend(['\\', c]),
            _ => encoded.push(c),
        }
    }
    shift_back(&mut encoded, &mut shifted);
    encoded.push('"');
    encoded
}

/// A name as LIST gave it, which is encoded already, as a command takes it; `None`: it cannot be written in one. The
/// parser of responses leaves the escapes of a quoted name in place.
pub(super) fn quote_listed(name: &str) -> Option<String> {
    let plain = name.replace("\\\"", "\"").replace("\\\\", "\\");
    quote(&plain)
}

/// A quoted string (RFC 9051 section 4.3); `None`: the text is not printable ASCII.
pub(super) fn quote(text: &str) -> Option<String> {
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    printable.then(|| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Writes what was collected between `&` and `-`.
fn shift_back(encoded: &mut String, shifted: &mut Vec<u8>) {
    if !shifted.is_empty() {
        encoded.push('&');
        MODIFIED.encode_string(&shifted, encoded);
        encoded.push('-');
        shifted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_encoded_as_the_rfc_does() {
        let rows = [
            ("INBOX", "\"INBOX\""),
            ("Sent Items", "\"Sent Items\""),
            ("~peter/mail/台北/日本語", "\"~peter/mail/&U,BTFw-/&ZeVnLIqe-\""),
            ("Gelöschte Elemente", "\"Gel&APY-schte Elemente\""),
            ("R&D", "\"R&-D\""),
            ("ä&ö", "\"&AOQ-&-&APY-\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("📬", "\"&2D3c7A-\""),
            ("a\r\nb", "\"a&AA0ACg-b\""),
            ("", "\"\""),
        ];
        for (name, wire) in rows {
            assert_eq!(encode(name), wire, "{name}");
        }
    }

    #[test]
    fn a_listed_name_goes_back_as_it_came() {
        let rows = [
            ("Sent Items", Some("\"Sent Items\"")),
            ("Gesendete &AOQ-", Some("\"Gesendete &AOQ-\"")),
            (r#"a\"b\\c"#, Some(r#""a\"b\\c""#)),
            ("a\r\nb", None),
            ("Gesendet\u{e4}", None),
        ];
        for (name, wire) in rows {
            assert_eq!(quote_listed(name).as_deref(), wire, "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_out_of_its_quotes(text in "[ -~]{0,20}") {
            let wire = quote(&text).unwrap();
            let inner = wire[1..wire.len() - 1].replace("\\\\", "").replace("\\\"", "");
            prop_assert!(!inner.contains('"') && !inner.contains('\\'));
        }

        #[test]
        fn no_name_breaks_out_of_its_quotes(name in any::<String>()) {
            let wire = encode(&name);
            prop_assert!(wire.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let inner = wire[1..wire.len() - 1].replace("\\\\", "").replace("\\\"", "");
            prop_assert!(!inner.contains('"') && !inner.contains('\\'));
        }
    }
}
