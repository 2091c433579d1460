//! Everything around one relay at once.

use super::entra::Entra;
use super::imap::Imap;
use super::odoo::Odoo;
use super::relay::Config;
use super::smtp::Smtp;
use super::tls::Tls;

/// Microsoft and Odoo, all scripted. What is submitted appears in Sent Items.
pub struct World {
    pub tls: Tls,
    pub entra: Entra,
    pub smtp: Smtp,
    pub imap: Imap,
    pub odoo: Odoo,
}

impl World {
    pub async fn start() -> Self {
        let (tls, entra, odoo) = (Tls::new(), Entra::start().await, Odoo::start().await);
        let smtp = Smtp::start(&tls, entra.check()).await;
        let imap = Imap::start(&tls, entra.check()).await;
        smtp.set_hook(imap.sent_items());
        Self { tls, entra, smtp, imap, odoo }
    }

    /// A configuration for this world, without mailboxes, and without pacing, which would slow every test down.
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.microsoft(&self.tls, &self.entra, &self.smtp.endpoint(), &self.imap.endpoint());
        config.odoo(&self.odoo);
        config.raw("delivery", "messages_per_minute", "0");
        config
    }
}
