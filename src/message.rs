//! stub
/// stub
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Envelope {
    pub mail_from: String,
    pub recipients: Vec<String>,
    pub smtputf8: bool,
}
