//! The thread that deals with the router, since that blocks: asks once, renews, gives the port back at the end.
//!
//! There is one for each daemon that needs it. Orders and news go through channels, and a bell tells the loop of news. The loop waits
//! for nothing here but, at the very end and for a moment, for the port to be given back.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use super::router::{Granted, Router};
use crate::proto::punch::Lease;
use crate::sys::bell::Bell;
use crate::sys::clock;

/// News that the loop has not heard yet: there is one in many minutes.
const NEWS_MAX: usize = 8;

/// How long the loop waits at its end for the port to be given back: PCP and NAT-PMP take a round trip in the house, UPnP ten.
const FAREWELL: Duration = Duration::from_millis(700);

/// When a router that has granted a port and does no more is asked again, in µs: it may have been replaced.
const AFTER_LOSS_US: u64 = 300_000_000;

/// Longer than any daemon lives, in µs.
const FAR_US: u64 = 1 << 50;

/// The loop's handle of the thread.
#[derive(Debug)]
pub(super) struct Clerk {
    /// Each means: ask again.
    orders: SyncSender<()>,
    /// What the router grants now.
    news: Receiver<Option<Granted>>,
    pub bell: Bell,
}

impl Clerk {
    /// Asks for that port.
    pub(super) fn hire(port: u16) -> io::Result<Self> {
        let (orders, ordered) = mpsc::sync_channel(1);
        let (told, news) = mpsc::sync_channel(NEWS_MAX);
        let bell = Bell::new()?;
        let desk = Desk { told, bell: bell.share()?, last: None };
        let errand = Errand { port, origin: clock::now(), router: None, lease: None, due: 0, desk };
        thread::Builder::new().name("port mapping".to_owned()).spawn(move || errand.run(&ordered))?;
        Ok(Self { orders, news, bell })
    }

    pub(super) fn poll(&self) -> Option<Option<Granted>> {
        self.news.try_recv().ok()
    }

    /// The network may be another one.
    pub(super) fn ask_again(&self) {
        let _ = self.orders.try_send(()); // or it is about to
    }

    /// Has the port given back. The bell remains, to be let go by the engine.
    pub(super) fn dismiss(self) -> OwnedFd {
        drop(self.orders);
        let deadline = clock::now() + FAREWELL;
        while self.news.recv_timeout(deadline.saturating_duration_since(clock::now())).is_ok() {}
        self.bell.into()
    }
}

/// The thread's end of the channel for news.
struct Desk {
    told: SyncSender<Option<Granted>>,
    bell: Bell,
    /// What the loop knows. `None`: nothing yet.
    last: Option<Option<Granted>>,
}

impl Desk {
    /// Tells what is other than before.
    fn tell(&mut self, news: Option<Granted>) {
        let is_same = |last: Option<Granted>| last.map(|of| of.external) == news.map(|of| of.external);
        if !self.last.is_some_and(is_same) {
            self.last = Some(news);
            let _ = self.told.send(news); // or the loop has ended
            self.bell.ring();
        }
    }
}

/// What the thread knows.
struct Errand {
    port: u16,
    origin: Instant,
    router: Option<Router>,
    lease: Option<Lease>,
    /// When something is to be done, in µs.
    due: u64,
    desk: Desk,
}

impl Errand {
    /// Until the loop has no more orders.
    fn run(mut self, orders: &Receiver<()>) {
        loop {
            let wait = Duration::from_micros(self.due.saturating_sub(self.now()));
            match orders.recv_timeout(wait) {
                Ok(()) => self.look_again(),
                Err(RecvTimeoutError::Timeout) => self.step(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(router) = &mut self.router {
            router.release();
        }
    }

    fn now(&self) -> u64 {
        u64::try_from((clock::now() - self.origin).as_micros()).unwrap_or(FAR_US)
    }

    fn step(&mut self) {
        match self.lease {
            Some(lease) => self.renew(lease),
            None => self.ask(),
        }
    }

    /// The same router is asked for the same port; of another one nothing is known.
    fn look_again(&mut self) {
        let router = Router::of_this_host(self.port);
        match (&self.router, self.lease) {
            (Some(before), Some(lease)) if router.as_ref().is_some_and(|now| now.is_same(before)) => self.renew(lease),
            _ => self.ask(),
        }
    }

    fn ask(&mut self) {
        self.due = FAR_US;
        self.lease = None;
        self.router = Router::of_this_host(self.port);
        let outcomes = self.router.as_mut().map(Router::ask);
        tracing::debug!(?outcomes, "asked the router for a port");
        let granted = outcomes.into_iter().flatten().find_map(|(_, outcome)| outcome?.ok());
        if let Some(granted) = granted {
            self.keep(granted);
        }
        self.desk.tell(granted);
    }

    fn renew(&mut self, lease: Lease) {
        match self.router.as_mut().map(Router::renew) {
            Some(Ok(granted)) => {
                self.keep(granted);
                self.desk.tell(Some(granted));
            }
            fault => {
                tracing::debug!(?fault, "the router has not renewed the port");
                self.lease = lease.after_failure(self.now());
                self.due = self.lease.map_or(self.now() + AFTER_LOSS_US, |lease| lease.renew_at());
                if self.lease.is_none() {
                    self.desk.tell(None);
                }
            }
        }
    }

    fn keep(&mut self, granted: Granted) {
        let lease = Lease::new(self.now(), u64::try_from(granted.lease.as_micros()).unwrap_or(FAR_US));
        (self.lease, self.due) = (Some(lease), lease.renew_at());
    }
}
