//! The mailboxes at work: for each a keeper of its token, a worker that delivers, and, where its inbox is watched, one that
//! fetches. A reload stops those of the mailboxes that left or changed, and starts those that are new or changed; all
//! others never notice.

use crate::address::Address;
use crate::delivery::{self, Worker};
use crate::fetch::{Inbox, Room};
use crate::health::SILENCE;
use crate::mailbox::{self, Mailbox};
use crate::odoo::{self, Gateway};
use crate::reports::Reporter;
use crate::routing::Routes;
use crate::store::{self, Store};
use crate::tasks::{Part, Tasks};
use crate::tokens::{Keeper, Tokens};
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{RwLock, watch};
use tokio_rustls::rustls::ClientConfig;

/// What every mailbox needs.
#[derive(Clone)]
pub struct Supply {
    /// Where mail is kept.
    pub store: Store,
    /// Whom to trust.
    pub tls: Arc<ClientConfig>,
    /// For tokens.
    pub http: reqwest::Client,
    /// Which mailbox a From goes out through.
    pub routes: Arc<RwLock<Routes>>,
    /// Odoo's settings.
    pub odoo: odoo::Config,
    /// Odoo's mail gateway.
    pub gateway: Option<Gateway>,
}

/// All mailboxes.
pub struct Fleet {
    tokens: Tokens,
    /// For what all inboxes have in hand.
    room: Room,
    /// In the configuration's order.
    members: Vec<Member>,
    /// Stopped, but not at their end: each still finishes what it has in hand.
    leaving: Vec<Member>,
}

/// A mailbox and its tasks.
struct Member {
    mailbox: Arc<Mailbox>,
    status: watch::Receiver<delivery::Status>,
    /// The keeper alone: the next one must have this one's refresh token, and needs nothing else of it.
    keeper: Part,
    /// Worker and inbox.
    work: Part,
}

impl Member {
    fn stop(&self) {
        self.keeper.stop();
        self.work.stop();
    }

    fn has_ended(&self) -> bool {
        self.keeper.has_ended() && self.work.has_ended()
    }
}

/// How many mailboxes a change was about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// New ones.
    pub added: usize,
    /// Those that left.
    pub removed: usize,
    /// Those that were started anew.
    pub changed: usize,
}

impl Fleet {
    /// No mailbox yet.
    ///
    /// # Errors
    /// The store's.
    pub async fn new(store: Store, http: reqwest::Client) -> Result<Self, store::Error> {
        let (tokens, _) = Tokens::new(&[], store, http).await?;
        Ok(Self { tokens, room: Room::default(), members: Vec::new(), leaving: Vec::new() })
    }

    /// Makes these its mailboxes; `anew`: those that did not change are started anew as well. Waits for none that stops: who
    /// takes the place of another waits for that one by itself.
    ///
    /// # Errors
    /// The store's; then nothing has changed.
    pub async fn set(
        &mut self,
        tasks: &mut Tasks,
        supply: &Supply,
        mailboxes: &[mailbox::Config],
        anew: bool,
    ) -> Result<Changes, store::Error> {
        let stays = |config: &&mailbox::Config| {
            !anew && self.members.iter().any(|member| member.mailbox.config == **config)
        };
        let fresh: Vec<_> = mailboxes.iter().filter(|config| !stays(config)).cloned().collect();
        let fresh: Vec<_> = fresh.into_iter().map(Mailbox::new).collect();
        let keepers = self.tokens.add(&fresh, &supply.http).await?;
        // From here on nothing fails.
        let mut keepers: HashMap<Address, Keeper> =
            keepers.into_iter().map(|keeper| (keeper.mailbox().address().clone(), keeper)).collect();
        let mut before: HashMap<Address, Member> =
            self.members.drain(..).map(|member| (member.mailbox.address().clone(), member)).collect();
        let mut changes = Changes::default();
        for config in mailboxes {
            let former = before.remove(&config.address);
            let member = match (keepers.remove(&config.address), former) {
                (None, Some(member)) => member,
                (Some(keeper), former) => {
                    match former {
                        Some(former) => {
                            changes.changed += 1;
                            former.stop();
                            self.leaving.push(former);
                        }
                        None => changes.added += 1,
                    }
                    self.start(tasks, supply, keeper)
                }
                // Each has either.
                (None, None) => continue,
            };
            self.members.push(member);
        }
        for former in before.into_values() {
            changes.removed += 1;
            former.stop();
            self.leaving.push(former);
        }
        Ok(changes)
    }

    /// Starts a mailbox's tasks. Each begins when those of the same mailbox that leaves have ended: they wait in turn for
    /// those before them.
    fn start(&self, tasks: &mut Tasks, supply: &Supply, keeper: Keeper) -> Member {
        let mailbox = keeper.mailbox().clone();
        let Supply { store, tls, routes, odoo, gateway, .. } = supply;
        let former = self.leaving.iter().rev().find(|member| member.mailbox.address() == mailbox.address());
        let (former_keeper, former) =
            (former.map(|member| member.keeper.clone()), former.map(|member| member.work.clone()));

        let part = tasks.part();
        let soft = part.soft.clone();
        tasks.start("tokens", mailbox.address(), &part, SILENCE, async move {
            wait_for(former_keeper).await;
            keeper.run(soft).await;
            Ok(())
        });
        let keeper = part;

        let work = tasks.part();
        let mut worker =
            Worker::new(mailbox.clone(), store.clone(), self.tokens.clone(), tls.clone(), routes.clone());
        if let Some(reporter) = Reporter::new(store.clone(), odoo, mailbox.address()) {
            worker.report_with(reporter);
        }
        let status = worker.status();
        let (soft, hard, before) = (work.soft.clone(), tasks.hard.clone(), former.clone());
        tasks.start("delivery", mailbox.address(), &work, SILENCE, async move {
            wait_for(before).await;
            worker.run(soft, hard).await;
            Ok(())
        });
        if let Some(gateway) = gateway.clone().filter(|_| mailbox.config.inbox) {
            let (store, tokens, tls) = (store.clone(), self.tokens.clone(), tls.clone());
            let inbox = Inbox::new(mailbox.clone(), store, tokens, gateway, tls, self.room.clone());
            let soft = work.early.clone();
            let feeding = tasks.feeding.track_future(async move {
                wait_for(former).await;
                inbox.run(soft).await;
                Ok(())
            });
            tasks.start("fetch", mailbox.address(), &work, SILENCE, feeding);
        }
        Member { mailbox, status, keeper, work }
    }

    /// Forgets those that have left. Whether there was one whose mailbox is not among the mailboxes any more.
    pub fn tidy(&mut self) -> bool {
        let (gone, leaving) = std::mem::take(&mut self.leaving).into_iter().partition(Member::has_ended);
        self.leaving = leaving;
        let mut left = false;
        for Member { mailbox, .. } in Vec::into_iter(gone) {
            if !self.known().contains(mailbox.address()) {
                self.tokens.remove(mailbox.address());
                left = true;
            }
        }
        left
    }

    /// The mailboxes, and those that still have something in hand.
    pub fn known(&self) -> Vec<Address> {
        self.members.iter().chain(&self.leaving).map(|member| member.mailbox.address().clone()).collect()
    }

    /// The mailboxes, in the configuration's order.
    pub fn mailboxes(&self) -> Arc<[Arc<Mailbox>]> {
        self.members.iter().map(|member| member.mailbox.clone()).collect()
    }

    /// What their workers do.
    pub fn sending(&self) -> HashMap<Address, watch::Receiver<delivery::Status>> {
        self.members.iter().map(|member| (member.mailbox.address().clone(), member.status.clone())).collect()
    }

    /// Their tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }
}

async fn wait_for(former: Option<Part>) {
    if let Some(former) = former {
        former.ended().await;
    }
}
