//! stub
use serde::{Deserialize, Serialize};
/// stub
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Address(String);
impl Address {
    /// stub
    pub fn normalise(text: &str) -> Option<Self> {
        text.contains('@').then(|| Self(text.to_ascii_lowercase()))
    }
    /// stub
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
