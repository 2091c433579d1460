//! The parameters behind the path of MAIL and RCPT (RFC 5321 section 4.1.2).

use super::data;
use super::reply::Reply;

/// Checks the parameters of MAIL; returns whether SMTPUTF8 is among them. `limit`: the largest message, in octets.
///
/// BODY is checked and forgotten: whether a message holds 8-bit bytes is seen from the message, as Odoo sends them
/// without BODY.
///
/// # Errors
/// The refusal.
pub fn of_mail(parameters: &str, limit: u64) -> Result<bool, Reply> {
    let mut smtputf8 = false;
    let mut seen = Vec::new();
    for (keyword, value) in split(parameters) {
        let keyword = keyword.to_ascii_uppercase();
        match (keyword.as_str(), value) {
            ("SIZE", Some(size)) if !size.is_empty() && size.bytes().all(|byte| byte.is_ascii_digit()) => {
                // A number that does not even fit is too large as well.
                if size.parse::<u64>().map_or(true, |size| size > limit) {
                    return Err(data::too_large(limit));
                }
            }
            ("BODY", Some(body)) if body.eq_ignore_ascii_case("7BIT") => {}
            ("BODY", Some(body)) if body.eq_ignore_ascii_case("8BITMIME") => {}
            ("SMTPUTF8", None) => smtputf8 = true,
            // Who is said to have submitted the message first (RFC 4954 section 5): nobody is trusted with it.
            ("AUTH", Some(_)) => {}
            ("SIZE" | "BODY" | "SMTPUTF8" | "AUTH", _) => {
                return Err(Reply::new(501, "5.5.4", format!("The value of {keyword} is wrong")));
            }
            _ => return Err(unknown(&keyword)),
        }
        if seen.contains(&keyword) {
            return Err(Reply::new(501, "5.5.4", format!("{keyword} is given twice")));
        }
        seen.push(keyword);
    }
    Ok(smtputf8)
}

/// RCPT has no parameters here: DSN (RFC 3461) is not offered.
///
/// # Errors
/// The refusal.
pub fn of_rcpt(parameters: &str) -> Result<(), Reply> {
    split(parameters).next().map_or(Ok(()), |(keyword, _)| Err(unknown(keyword)))
}

/// Keyword and value of each parameter.
fn split(parameters: &str) -> impl Iterator<Item = (&str, Option<&str>)> {
    parameters.split(' ').filter(|parameter| !parameter.is_empty()).map(|parameter| {
        parameter.split_once('=').map_or((parameter, None), |(keyword, value)| (keyword, Some(value)))
    })
}

fn unknown(keyword: &str) -> Reply {
    Reply::new(555, "5.5.4", format!("Unknown parameter {keyword}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_split() {
        let parameters: Vec<_> = split("  SIZE=7 SMTPUTF8  BODY=8BITMIME X=a=b ").collect();
        assert_eq!(
            parameters,
            [("SIZE", Some("7")), ("SMTPUTF8", None), ("BODY", Some("8BITMIME")), ("X", Some("a=b"))]
        );
        assert_eq!(split("").count(), 0);
    }
}
