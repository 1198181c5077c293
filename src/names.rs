//! Addresses of host names, found without holding anybody up: `/etc/hosts` first, then the system's name servers, asked by
//! tasks of the runtime. Both files are read again when they have changed.

use std::cell::RefCell;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::{limits, sys};

const FILES: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// The files are looked at for changes at most so often.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// When one family has answered, the other has so long to do so (RFC 8305, section 3): a name server that swallows the
/// questions for IPv6 must not cost a player the connect time-out.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// While a question is under way, the runtime has a turn so often, for the timers that only it knows.
pub const RUNTIME_PAUSE: Duration = Duration::from_millis(5);

const FAMILIES: [RecordType; 2] = [RecordType::A, RecordType::AAAA];

/// The answer to one question. No address: there is none, or nobody could tell.
#[derive(Debug)]
pub struct Found<K> {
    pub asker: K,
    pub addresses: Vec<IpAddr>,
}

/// `K` names who asks, in the answer.
pub struct Names<K> {
    answers: mpsc::UnboundedSender<Found<K>>, // one question an asker: as bounded as those are
    sources: RefCell<Option<Sources>>,
    /// Questions under way, and answers that nobody has taken yet.
    asked: Arc<AtomicUsize>,
}

/// What the files say.
#[derive(Clone)]
struct Sources {
    hosts: Arc<Hosts>,
    servers: TokioResolver,
    changed: [Option<SystemTime>; FILES.len()],
    looked: Instant,
}

impl<K> std::fmt::Debug for Names<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl<K: Send + 'static> Names<K> {
    /// Answers come out of the second value.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Found<K>>) {
        let (answers, found) = mpsc::unbounded_channel();
        (Self { answers, sources: RefCell::default(), asked: Arc::default() }, found)
    }

    /// Asks for the addresses of `host`. Whoever asked may be gone when the answer comes; after `within` none comes.
    pub fn ask(&self, asker: K, host: &str, within: Duration) {
        self.asked.fetch_add(1, Relaxed);
        let answer = move |addresses| Found { asker, addresses };
        // Failures to send: nobody listens when the worker ends.
        let (Ok(name), Ok(sources)) = (Name::from_ascii(host), self.sources()) else {
            let _ = self.answers.send(answer(Vec::new()));
            return;
        };
        let addresses = sources.in_hosts(&name);
        if !addresses.is_empty() {
            let _ = self.answers.send(answer(addresses));
            return;
        }
        let (answers, asked) = (self.answers.clone(), self.asked.clone());
        tokio::spawn(async move {
            match tokio::time::timeout(within, ask_servers(sources.servers, name)).await {
                Ok(addresses) => drop(answers.send(answer(addresses))),
                Err(_too_slow) => drop(asked.fetch_sub(1, Relaxed)),
            }
        });
    }

    pub fn note_answer(&self) {
        self.asked.fetch_sub(1, Relaxed);
    }

    /// True while the runtime has a question under way, so that its tasks and timers need turns.
    #[must_use]
    pub fn asking(&self) -> bool {
        self.asked.load(Relaxed) > 0
    }

    fn sources(&self) -> Result<Sources, NetError> {
        let now = sys::clock::now();
        let mut known = self.sources.borrow_mut();
        if let Some(sources) = known.as_mut() {
            if now < sources.looked + LOOK_PAUSE {
                return Ok(sources.clone());
            }
            sources.looked = now;
            if sources.changed == FILES.map(changed) {
                return Ok(sources.clone());
            }
        }
        let changed = FILES.map(changed);
        Ok(known.insert(Sources { hosts: Arc::new(read_hosts()), servers: servers()?, changed, looked: now }).clone())
    }
}

impl Sources {
    fn in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        let found =
            FAMILIES.iter().filter_map(|family| self.hosts.lookup_static_host(&Query::query(name.clone(), *family)));
        found.flat_map(|lookup| addresses(&lookup)).collect()
    }
}

/// Asks for both families at once, and does not wait for the slower one when the other has something.
async fn ask_servers(servers: TokioResolver, name: Name) -> Vec<IpAddr> {
    let mut asked = JoinSet::new();
    for family in FAMILIES {
        let (servers, name) = (servers.clone(), name.clone());
        asked.spawn(async move { servers.lookup(name, family).await.map(|lookup| addresses(&lookup)) });
    }
    let mut found = Vec::new();
    loop {
        let next = if found.is_empty() {
            asked.join_next().await
        } else {
            tokio::time::timeout(RESOLUTION_DELAY, asked.join_next()).await.ok().flatten()
        };
        match next {
            Some(Ok(Ok(addresses))) => found.extend(addresses),
            Some(_no_such_record) => {}
            None => return found,
        }
    }
}

fn addresses(lookup: &hickory_resolver::lookup::Lookup) -> Vec<IpAddr> {
    lookup.answers().iter().filter_map(|record| record.data.ip_addr()).map(|ip| ip.to_canonical()).collect()
}

/// Addresses with the families in turn, so that a family that leads nowhere costs one head start only; the first few of many.
pub fn alternate(addresses: Vec<IpAddr>) -> impl Iterator<Item = IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|ip| ip.is_ipv6() == first_is_v6);
    let rounds = first.len().max(second.len());
    (0..rounds)
        .flat_map(move |round| [first.get(round).copied(), second.get(round).copied()])
        .flatten()
        .take(limits::DIAL_ADDRESSES_MAX)
}

fn read_hosts() -> Hosts {
    let mut hosts = Hosts::default();
    // A host without that file, or with one that cannot be read, has no such names.
    let _ = fs::File::open(FILES[0]).and_then(|file| hosts.read_hosts_conf(file));
    hosts
}

fn servers() -> Result<TokioResolver, NetError> {
    let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_no_name_servers| {
        let none = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
        TokioResolver::builder_with_config(none, TokioRuntimeProvider::default())
    });
    builder.options_mut().use_hosts_file = ResolveHosts::Never; // read here, before anybody is asked
    builder.build()
}

fn changed(path: &str) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_of_a_name_take_turns() {
        let ips = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an IP")).collect::<Vec<IpAddr>>();
        let found = ips(&["::1", "::2", "::3", "10.0.0.1"]);
        assert_eq!(alternate(found).collect::<Vec<_>>(), ips(&["::1", "10.0.0.1", "::2", "::3"]));
        assert_eq!(alternate(ips(&["10.0.0.1"])).collect::<Vec<_>>(), ips(&["10.0.0.1"]));
        assert_eq!(alternate(vec![IpAddr::from([127, 0, 0, 1]); 20]).count(), limits::DIAL_ADDRESSES_MAX);
    }
}
