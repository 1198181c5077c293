//! Which backends may be reached at all, whatever a line says: it bounds what a leaked secret is worth.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::tunnel::ServiceName;

/// `CIDR[:port[-port]]`, or a single address; IPv6 with ports in brackets or with its prefix length: `[2001:db8::/32]:443`.
/// Without ports: all of them. `provider:name` is a service behind the rendezvous, `provider:*` all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule(Covered);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Covered {
    Network(IpNet, RangeInclusive<u16>),
    Service(ServiceName),
    AllServices,
}

/// A denied address stays denied; when anything is allowed by name, nothing else is. Default: everything is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    pub allow: Vec<Rule>,
    pub deny: Vec<Rule>,
}

impl Policy {
    /// Whether `address`, the one that is really connected to, may be reached.
    #[must_use]
    pub fn permits(&self, address: SocketAddr) -> bool {
        self.judge(|rule| match &rule.0 {
            Covered::Network(network, ports) => {
                network.contains(&address.ip().to_canonical()) && ports.contains(&address.port())
            }
            Covered::Service(_) | Covered::AllServices => false,
        })
    }

    /// Whether a service behind the rendezvous may be reached. Who allows addresses alone, allows none.
    #[must_use]
    pub fn permits_service(&self, service: ServiceName) -> bool {
        self.judge(|rule| match &rule.0 {
            Covered::Network(..) => false,
            Covered::Service(name) => *name == service,
            Covered::AllServices => true,
        })
    }

    fn judge(&self, covers: impl Fn(&Rule) -> bool) -> bool {
        !self.deny.iter().any(&covers) && (self.allow.is_empty() || self.allow.iter().any(&covers))
    }
}

/// Not a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRule;

impl FromStr for Rule {
    type Err = BadRule;

    fn from_str(text: &str) -> Result<Self, BadRule> {
        if let Some(service) = text.strip_prefix(PROVIDER) {
            let named = || ServiceName::new(service).map(Covered::Service).map_err(|_no_name| BadRule);
            return if service == "*" { Ok(Self(Covered::AllServices)) } else { named().map(Self) };
        }
        let (network, ports) = split(text).ok_or(BadRule)?;
        let network = match network.parse::<IpNet>() {
            Ok(network) => network.trunc(),
            Err(_no_prefix) => network.parse::<IpAddr>().map_err(|_no_address| BadRule)?.into(),
        };
        let ports = match ports {
            None => 0..=u16::MAX,
            Some(ports) => {
                let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
                first.parse().map_err(|_no_port| BadRule)?..=last.parse().map_err(|_no_port| BadRule)?
            }
        };
        if ports.is_empty() { Err(BadRule) } else { Ok(Self(Covered::Network(network, ports))) }
    }
}

/// What stands before a service.
const PROVIDER: &str = "provider:";

/// Network and ports of a rule.
fn split(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(inner) = text.strip_prefix('[') {
        let (network, rest) = inner.split_once(']')?;
        return if rest.is_empty() { Some((network, None)) } else { Some((network, Some(rest.strip_prefix(':')?))) };
    }
    // A colon behind the prefix length, or the only one, can but part the ports off.
    let from = text.find('/').unwrap_or(0);
    let single = text.matches(':').count() == 1;
    match text[from..].find(':') {
        Some(at) if from > 0 || single => Some((&text[..from + at], Some(&text[from + at + 1..]))),
        _ => Some((text, None)),
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (network, ports) = match &self.0 {
            Covered::Network(network, ports) => (network, ports),
            Covered::Service(service) => return write!(f, "{PROVIDER}{service}"),
            Covered::AllServices => return write!(f, "{PROVIDER}*"),
        };
        write!(f, "{network}")?;
        match (ports.start(), ports.end()) {
            (0, &u16::MAX) => Ok(()),
            (first, last) if first == last => write!(f, ":{first}"),
            (first, last) => write!(f, ":{first}-{last}"),
        }
    }
}

impl std::fmt::Display for BadRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not CIDR, CIDR:port, CIDR:port-port, provider:NAME or provider:*")
    }
}

impl std::error::Error for BadRule {}

impl TryFrom<String> for Rule {
    type Error = BadRule;

    fn try_from(text: String) -> Result<Self, BadRule> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> Self {
        rule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let rules = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("a rule")).collect();
        Policy { allow: rules(allow), deny: rules(deny) }
    }

    fn permits(policy: &Policy, address: &str) -> bool {
        policy.permits(address.parse().expect("an address"))
    }

    #[test]
    fn without_rules_everything_may_be_reached() {
        assert!(permits(&Policy::default(), "127.0.0.1:1"));
        assert!(permits(&Policy::default(), "[2001:db8::1]:1"));
    }

    #[test]
    fn with_an_allow_rule_only_what_it_names_may_be_reached() {
        let policy = policy(&["10.0.0.0/8:1024-65535", "2001:db8::/32:443", "192.0.2.7"], &[]);
        for (address, permitted) in [
            ("10.1.2.3:1024", true),
            ("10.1.2.3:1023", false),
            ("11.1.2.3:1024", false),
            ("[2001:db8::9]:443", true),
            ("[2001:db8::9]:444", false),
            ("192.0.2.7:9", true),
            ("192.0.2.8:9", false),
        ] {
            assert_eq!(permits(&policy, address), permitted, "{address}");
        }
    }

    #[test]
    fn services_are_allowed_and_denied_as_addresses_are() {
        for (allow, deny, permitted) in [
            (&[][..], &[][..], true),
            (&[], &["provider:game"], false),
            (&[], &["provider:*"], false),
            (&[], &["provider:other", "0.0.0.0/0"], true),
            (&["10.0.0.0/8"], &[], false),
            (&["provider:other"], &[], false),
            (&["10.0.0.0/8", "provider:game"], &[], true),
            (&["provider:*"], &[], true),
            (&["provider:*"], &["provider:game"], false),
        ] {
            let service = ServiceName::new("game").expect("a name");
            assert_eq!(policy(allow, deny).permits_service(service), permitted, "{allow:?} {deny:?}");
        }
        assert!(!permits(&policy(&["provider:*"], &[]), "10.0.0.1:1"));
        assert!(permits(&policy(&[], &["provider:*"]), "10.0.0.1:1"));
    }

    #[test]
    fn a_deny_rule_beats_an_allow_rule() {
        let policy = policy(&["10.0.0.0/8"], &["10.0.0.1:22"]);
        assert!(permits(&policy, "10.0.0.1:23"));
        assert!(!permits(&policy, "10.0.0.1:22"));
    }

    #[test]
    fn an_ipv4_rule_covers_that_address_in_ipv6_clothes() {
        assert!(!permits(&policy(&[], &["127.0.0.0/8"]), "[::ffff:127.0.0.1]:80"));
    }

    #[test]
    fn a_rule_is_shown_as_it_is_read() {
        for (typed, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3/8:80", "10.0.0.0/8:80"),
            ("10.0.0.1:1-2", "10.0.0.1/32:1-2"),
            ("::1", "::1/128"),
            ("[::1]:80", "::1/128:80"),
            ("[2001:db8::/32]", "2001:db8::/32"),
            ("provider:game", "provider:game"),
            ("provider:*", "provider:*"),
        ] {
            let rule: Rule = typed.parse().expect("a rule");
            assert_eq!(rule.to_string(), shown);
            assert_eq!(shown.parse(), Ok(rule));
        }
        for text in [
            "",
            "provider:",
            "provider:a b",
            "10.0.0.0/33",
            "10.0.0.0/8:",
            "10.0.0.0/8:2-1",
            "10.0.0.0/8:65536",
            "[::1",
            "[::1]80",
            "name:80",
        ] {
            assert_eq!(text.parse::<Rule>(), Err(BadRule), "{text:?}");
        }
    }
}
