//! Addresses of host names, found without holding anybody up: the system's name servers and `/etc/hosts`, asked by tasks of
//! the runtime. Both files are read again when they have changed.

use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::sync::mpsc;

use super::Key;
use crate::sys;

/// The files are looked at for changes at most so often.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// The answer to one question. No address: there is none, or nobody could tell.
#[derive(Debug)]
pub struct Found {
    pub(super) key: Key,
    pub(super) addresses: Vec<IpAddr>,
}

#[derive(Debug)]
pub struct Names {
    answers: mpsc::UnboundedSender<Found>, // one question a connection: as bounded as those are
    resolver: Rc<RefCell<Option<Cached>>>,
}

struct Cached {
    resolver: TokioResolver,
    changed: [Option<SystemTime>; FILES.len()],
    looked: Instant,
}

impl std::fmt::Debug for Cached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cached").field("changed", &self.changed).finish_non_exhaustive()
    }
}

impl Names {
    /// Answers come out of the second value.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Found>) {
        let (answers, found) = mpsc::unbounded_channel();
        (Self { answers, resolver: Rc::default() }, found)
    }

    /// Asks for the addresses of `host`. The answer comes within the resolver's own time-out; whoever asked may be gone then.
    pub(super) fn ask(&self, key: Key, host: String, within: Duration) {
        let (answers, resolver) = (self.answers.clone(), self.resolver());
        tokio::spawn(async move {
            let lookup = async { resolver.ok()?.lookup_ip(host).await.ok() };
            let addresses = match tokio::time::timeout(within, lookup).await {
                Ok(Some(found)) => found.iter().map(|ip| ip.to_canonical()).collect(),
                Ok(None) => Vec::new(),
                Err(_too_slow) => return, // the attempt ends by its own time-out
            };
            let _ = answers.send(Found { key, addresses }); // nobody listens when the worker ends
        });
    }

    fn resolver(&self) -> Result<TokioResolver, hickory_resolver::net::NetError> {
        let now = sys::clock::now();
        let mut cached = self.resolver.borrow_mut();
        if let Some(cached) = cached.as_mut() {
            if now < cached.looked + LOOK_PAUSE {
                return Ok(cached.resolver.clone());
            }
            cached.looked = now;
            if cached.changed == FILES.map(changed) {
                return Ok(cached.resolver.clone());
            }
        }
        let changed = FILES.map(changed);
        let resolver = build()?;
        *cached = Some(Cached { resolver: resolver.clone(), changed, looked: now });
        Ok(resolver)
    }
}

fn build() -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = TokioResolver::builder_tokio().or_else(|_no_name_servers| {
        // A host without resolv.conf still has its hosts file.
        let config = hickory_resolver::config::ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        Ok::<_, hickory_resolver::net::NetError>(TokioResolver::builder_with_config(
            config,
            TokioRuntimeProvider::default(),
        ))
    })?;
    builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    builder.build()
}

fn changed(path: impl AsRef<Path>) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}
