//! XML-RPC as a server needs it: calls read in one pass, answers written as Odoo writes them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use memchr::{memchr, memmem};

/// A value of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Int(i64),
    Bool(bool),
    Double(f64),
    Text(String),
    /// `<base64>`, decoded.
    Bytes(Vec<u8>),
    Nil,
    Array(Vec<Value>),
    Struct(Vec<(String, Value)>),
}

impl Value {
    /// The text of a string.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The elements of an array.
    pub fn array(&self) -> &[Self] {
        if let Self::Array(values) = self { values } else { &[] }
    }

    /// A member of a struct.
    pub fn member(&self, name: &str) -> Option<&Self> {
        let Self::Struct(members) = self else { return None };
        members.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// What Odoo takes as the bytes of a message: binary data, or the UTF-8 of a string.
    pub fn bytes(&self) -> Option<Vec<u8>> {
        match self {
            Self::Bytes(bytes) => Some(bytes.clone()),
            Self::Text(text) => Some(text.clone().into_bytes()),
            _ => None,
        }
    }
}

/// A method call: its name and parameters; `None` if it is not well-formed.
pub fn parse_call(xml: &[u8]) -> Option<(String, Vec<Value>)> {
    let mut reader = Reader { rest: xml, depth: 0 };
    reader.expect("methodCall")?;
    reader.expect("methodName")?;
    let (name, _) = reader.tag()?;
    let name = unescape(name)?;
    let mut params = Vec::new();
    if reader.tag()?.1 == "params" {
        while reader.tag()?.1 == "param" {
            params.push(reader.value()?);
            reader.expect("/param")?;
        }
    }
    Some((name, params))
}

/// The answer to a call, with this value as XML: `<int>7</int>`.
pub fn response(value: &str) -> String {
    format!(
        "<?xml version='1.0'?>\n<methodResponse>\n<params>\n<param>\n<value>{value}</value>\n</param>\n</params>\n\
         </methodResponse>\n"
    )
}

/// A result as XML.
pub fn element(value: &Value) -> String {
    match value {
        Value::Int(value) => format!("<int>{value}</int>"),
        Value::Bool(value) => format!("<boolean>{}</boolean>", u8::from(*value)),
        Value::Text(text) => format!("<string>{text}</string>"),
        Value::Array(values) => {
            let values: String =
                values.iter().map(|value| format!("<value>{}</value>", element(value))).collect();
            format!("<array><data>{values}</data></array>")
        }
        Value::Struct(members) => {
            let member = |(name, value): &(String, Value)| {
                format!("<member><name>{name}</name><value>{}</value></member>", element(value))
            };
            format!("<struct>{}</struct>", members.iter().map(member).collect::<String>())
        }
        other => panic!("never returned: {other:?}"),
    }
}

/// A fault.
pub fn fault(code: i64, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<?xml version='1.0'?>\n<methodResponse>\n<fault>\n<value><struct>\n<member>\n<name>faultCode</name>\n\
         <value><int>{code}</int></value>\n</member>\n<member>\n<name>faultString</name>\n\
         <value><string>{text}</string></value>\n</member>\n</struct></value>\n</fault>\n</methodResponse>\n"
    )
}

struct Reader<'a> {
    rest: &'a [u8],
    depth: usize,
}

impl<'a> Reader<'a> {
    /// The text before the next tag, and the tag's name (`/` in front of an end, behind an empty one).
    fn tag(&mut self) -> Option<(&'a [u8], &'a str)> {
        loop {
            let start = memchr(b'<', self.rest)?;
            let (text, tag) = (&self.rest[..start], &self.rest[start + 1..]);
            if tag.starts_with(b"!--") {
                self.rest = &tag[memmem::find(tag, b"-->")? + 3..];
                continue;
            }
            let end = memchr(b'>', tag)?;
            self.rest = &tag[end + 1..];
            if !tag.starts_with(b"?") {
                return Some((text, std::str::from_utf8(&tag[..end]).ok()?.trim_end()));
            }
        }
    }

    fn expect(&mut self, name: &str) -> Option<()> {
        (self.tag()?.1 == name).then_some(())
    }

    fn value(&mut self) -> Option<Value> {
        match self.tag()?.1 {
            "value" => self.inside(),
            "value/" => Some(Value::Text(String::new())),
            _ => None,
        }
    }

    /// Between `<value>` and `</value>`.
    fn inside(&mut self) -> Option<Value> {
        self.depth += 1;
        if self.depth > 64 {
            return None;
        }
        let (bare, tag) = self.tag()?;
        let value = match tag {
            "/value" => {
                self.depth -= 1;
                return Some(Value::Text(unescape(bare)?));
            }
            "nil/" => Value::Nil,
            "string/" => Value::Text(String::new()),
            "base64/" => Value::Bytes(Vec::new()),
            "array" => {
                let mut values = Vec::new();
                if self.tag()?.1 == "data" {
                    loop {
                        match self.tag()?.1 {
                            "value" => values.push(self.inside()?),
                            "value/" => values.push(Value::Text(String::new())),
                            "/data" => break,
                            _ => return None,
                        }
                    }
                }
                self.expect("/array")?;
                Value::Array(values)
            }
            "struct/" => Value::Struct(Vec::new()),
            "struct" => {
                let mut members = Vec::new();
                while self.tag()?.1 == "member" {
                    self.expect("name")?;
                    let name = unescape(self.tag()?.0)?;
                    members.push((name, self.value()?));
                    self.expect("/member")?;
                }
                Value::Struct(members)
            }
            scalar => {
                let (text, end) = self.tag()?;
                if end.strip_prefix('/') != Some(scalar) {
                    return None;
                }
                match scalar {
                    "int" | "i4" | "i8" => Value::Int(unescape(text)?.trim().parse().ok()?),
                    "boolean" => Value::Bool(text.trim_ascii() == b"1"),
                    "double" => Value::Double(unescape(text)?.trim().parse().ok()?),
                    "string" => Value::Text(unescape(text)?),
                    "nil" => Value::Nil,
                    "base64" => Value::Bytes(unbase64(text.trim_ascii())?),
                    _ => return None,
                }
            }
        };
        self.depth -= 1;
        self.expect("/value")?;
        Some(value)
    }
}

/// With line breaks inside or without, which is the quick way for a large message.
fn unbase64(text: &[u8]) -> Option<Vec<u8>> {
    let folded = || text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>();
    STANDARD.decode(text).or_else(|_| STANDARD.decode(folded())).ok()
}

fn unescape(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, entity)) = rest.split_once('&') {
        out.push_str(before);
        let (name, after) = entity.split_once(';')?;
        out.push(match name {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let number = name.strip_prefix('#')?;
                let code = match number.strip_prefix('x') {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => number.parse().ok()?,
                };
                char::from_u32(code)?
            }
        });
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}
