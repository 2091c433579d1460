//! stub
#![allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: Vec<std::net::SocketAddr>,
}
impl Config {
    pub fn read(s: &mut crate::section::Section<'_>) -> Self {
        Self {
            listen: s.get_or("listen", vec![]),
        }
    }
}
