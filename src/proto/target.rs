//! Where a line leads: `IPv4:port`, `[IPv6]:port`, `name:port`, `provider:service` or `provider:service:port`, and nothing else.
//!
//! The grammar is strict since it is the last of the checks that tell a genuine plaintext from noise: 16 random bytes pass it
//! once in 2^32 tries. No leading zeros (`017` is octal elsewhere), no short forms (`127.1`), no zone, no trailing byte.
//!
//! A provider's ports are counted from 1, and the first need not be said. `provider:7777` is port 7777 of a host that is called
//! provider: a service whose name is a port's number is named with its port, `provider:7777:1`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::tunnel::ServiceName;

/// The longest name and label, bytes (RFC 1035, section 2.3.4, less the root and the length bytes).
pub const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Target {
    Address(SocketAddr),
    Name {
        host: String,
        port: u16,
    },
    /// A service behind a rendezvous.
    Provider(Provided),
}

/// A port of a service, as its provider counts them. In a line they are those for TCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Provided {
    pub service: ServiceName,
    /// From 0.
    pub port: u8,
}

/// Not a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadTarget;

impl Target {
    /// # Errors
    /// Anything outside the grammar.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadTarget> {
        let text = std::str::from_utf8(bytes).map_err(|_not_text| BadTarget)?;
        if let Some(provided) = text.strip_prefix(PROVIDER).filter(|behind| parse_port(behind).is_err()) {
            return Provided::parse(provided).map(Self::Provider);
        }
        let (host, port) = text.rsplit_once(':').ok_or(BadTarget)?;
        let port = parse_port(port)?;
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(BadTarget)?;
            let ip: Ipv6Addr = inner.parse().map_err(|_not_ipv6| BadTarget)?;
            // An IPv4 address in IPv6 clothes is that IPv4 address: policy must see it as such.
            return Ok(Self::Address(SocketAddr::new(IpAddr::V6(ip).to_canonical(), port)));
        }
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self::Address(SocketAddr::new(ip.into(), port)));
        }
        if is_name(host) { Ok(Self::Name { host: host.to_owned(), port }) } else { Err(BadTarget) }
    }
}

/// What stands before a service.
const PROVIDER: &str = "provider:";

impl Provided {
    /// `service` or `service:port`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, BadTarget> {
        let (name, port) = text.split_once(':').unwrap_or((text, "1"));
        let port = u8::try_from(parse_port(port)?).ok().and_then(|port| port.checked_sub(1)).ok_or(BadTarget)?;
        // Names that begin with a dot are the rendezvous' own.
        let service = ServiceName::new(name).ok().filter(|_| !name.starts_with('.')).ok_or(BadTarget)?;
        Ok(Self { service, port })
    }
}

impl std::fmt::Display for Provided {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            0 if parse_port(self.service.as_str()).is_err() => write!(f, "{}", self.service),
            port => write!(f, "{}:{}", self.service, u16::from(port) + 1),
        }
    }
}

fn parse_port(text: &str) -> Result<u16, BadTarget> {
    let decimal = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !decimal || (text.len() > 1 && text.starts_with('0')) {
        return Err(BadTarget);
    }
    text.parse().map_err(|_too_large| BadTarget)
}

/// Letters, digits and hyphens. The last label may not be a number: `127.1` and `0x7f000001` are addresses to some resolvers.
fn is_name(host: &str) -> bool {
    let label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x") || last.starts_with("0X");
    host.len() <= NAME_BYTES_MAX && host.split('.').all(label) && !number
}

impl Target {
    /// Tells targets apart in a log without naming them: the first 32 bits of the SHA-256 of its text, in hex.
    #[must_use]
    pub fn hash(&self) -> String {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.to_string()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Target {
    type Error = BadTarget;

    fn try_from(text: String) -> Result<Self, BadTarget> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl FromStr for Target {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, BadTarget> {
        Self::parse(text.as_bytes())
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
            Self::Provider(provided) => write!(f, "{PROVIDER}{provided}"),
        }
    }
}

impl std::fmt::Display for BadTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not IPv4:port, [IPv6]:port, name:port or provider:service")
    }
}

impl std::error::Error for BadTarget {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_and_names_are_targets() {
        let label = "a".repeat(63);
        for text in [
            "127.0.0.1:62863",
            "0.0.0.0:0",
            "255.255.255.255:65535",
            "[::1]:80",
            "[2001:db8::1]:443",
            "localhost:1",
            "game-1.example.com:7777",
            "1st.example:80",
            "7days:80",
            "xn--bcher-kva.example:80",
            &format!("{label}.{label}.{label}.{}:65535", &label[..61]),
            "provider:game",
            "provider:Game_1.eu-west",
            "provider:game:2",
            "provider:game:255",
            "provider:7777:1",
            "provider:7777",
            "providers:80",
        ] {
            assert_eq!(Target::parse(text.as_bytes()).map(|target| target.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_an_ipv4_address() {
        assert_eq!(Target::parse(b"[::ffff:127.0.0.1]:80"), Target::parse(b"127.0.0.1:80"));
    }

    #[test]
    fn a_service_is_told_from_a_host_that_is_called_provider() {
        let provided = |service: &str, port| {
            Ok(Target::Provider(Provided { service: ServiceName::new(service).expect("a name"), port }))
        };
        let host = |port| Ok(Target::Name { host: "provider".into(), port });
        for (text, target) in [
            ("provider:game", provided("game", 0)),
            ("provider:game:1", provided("game", 0)),
            ("provider:game:9", provided("game", 8)),
            ("provider:80", host(80)),
            ("provider:080", provided("080", 0)),
            ("provider:65536", provided("65536", 0)),
            ("provider:80:1", provided("80", 0)),
        ] {
            assert_eq!(Target::parse(text.as_bytes()), target, "{text}");
        }
    }

    #[test]
    fn everything_else_is_not() {
        let label = "a".repeat(64);
        let long = format!("{}:80", ["abcdefgh"; 29].join("."));
        for text in [
            "",
            ":",
            ":80",
            "1.2.3.4",
            "1.2.3.4:",
            "1.2.3.4:65536",
            "1.2.3.4:080",
            "1.2.3.4:+80",
            "1.2.3.4:-1",
            "1.2.3.4:8 0",
            "1.2.3.4:80 ",
            " 1.2.3.4:80",
            "1.2.3.4:80\n",
            "1.2.3.4:80\0",
            "127.1:80",
            "2130706433:80",
            "0177.0.0.1:80",
            "01.2.3.4:80",
            "0x7f.1:80",
            "0x7f000001:80",
            "1.2.3.256:80",
            "1.2.3:80",
            "1.2.3.4.5:80",
            "::1:80",
            "[::1]",
            "[::1]80",
            "[::1:80",
            "::1]:80",
            "[]:80",
            "[fe80::1%eth0]:80",
            "[1.2.3.4]:80",
            "a..b:80",
            ".a:80",
            "a.:80",
            "-a:80",
            "a-:80",
            "a_b:80",
            "a b:80",
            "exämple:80",
            "http://a:80",
            "a/b:80",
            "user@a:80",
            "provider:",
            "provider",
            "provider:game:",
            "provider:game:0",
            "provider:game:01",
            "provider:game:256",
            "provider:game:65536",
            "provider:game:1:1",
            "provider:game:x",
            "provider::1",
            "provider:.rendezvous",
            "provider:a b",
            "provider:a/b",
            "provider: game",
            "provider:game\n",
            "Provider:game",
            "xprovider:game",
            &format!("provider:{}", "a".repeat(65)),
            &format!("{label}:80"),
            &long,
        ] {
            assert_eq!(Target::parse(text.as_bytes()), Err(BadTarget), "{text:?}");
        }
        assert_eq!(Target::parse(b"\xff\xfe:80"), Err(BadTarget));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(octets: [u8; 4], groups: [u16; 8], port: u16) {
            for ip in [IpAddr::from(octets), IpAddr::from(groups).to_canonical()] {
                let target = Target::Address(SocketAddr::new(ip, port));
                prop_assert_eq!(Target::parse(target.to_string().as_bytes()), Ok(target));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _ = Target::parse(&bytes);
        }
    }
}
