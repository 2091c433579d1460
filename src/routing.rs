//! stub
#![allow(missing_docs)]
use crate::address::Address;
#[derive(serde::Serialize, serde::Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    Address,
    Domain,
    NotificationsAddress,
    NotificationsDomain,
    Unfiltered,
    First,
}
impl Rule {
    pub fn as_str(self) -> &'static str {
        "address"
    }
}
impl std::str::FromStr for Rule {
    type Err = ();
    fn from_str(_: &str) -> Result<Self, ()> {
        Ok(Self::Address)
    }
}
pub struct Candidate {
    pub mailbox: Address,
    pub sequence: i64,
    pub filter: Option<String>,
}
pub fn notifications_address(f: Option<&str>, d: Option<&str>) -> Option<Address> {
    Address::normalise(&format!("{}@{}", f?, d?))
}
