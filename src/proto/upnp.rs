//! What is said to a home router that speaks UPnP (Internet Gateway Device), and what it answers:
//!
//! 1. [`search`] asks the neighbourhood for routers (SSDP), and [`Place::of_search`] reads where one describes itself.
//! 2. [`Request::Describe`] fetches that, and [`services`] reads what can map ports, and where.
//! 3. [`Request::Act`] asks for a port, gives it back, or asks for the address outside; [`Answer`] is the outcome (SOAP over HTTP).
//!
//! A router's word is believed for its own address only: whatever names another host leads nowhere. XML is read from its beginning to
//! its end, never as a tree, so it cannot nest too deep. Absent: sockets, and what is wanted when.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::str;

use quick_xml::Reader;
use quick_xml::events::Event;

/// Where routers listen for those who search.
pub const SEARCH_AT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);

/// The longest answer that is read, bytes: a description has 2 to 20 kB.
pub const ANSWER_BYTES_MAX: usize = 128 << 10;

/// Services of a router that are tried: one for each of its connections.
pub const SERVICES_MAX: usize = 4;

/// What routers are asked for by name, old and new.
pub const SEARCHED: [&str; 2] =
    ["urn:schemas-upnp-org:device:InternetGatewayDevice:1", "urn:schemas-upnp-org:device:InternetGatewayDevice:2"];

/// Services that map ports.
const MAPPERS: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// The longest path on a router, bytes.
const PATH_BYTES_MAX: usize = 256;

const HEADERS_MAX: usize = 32;

/// A page of the router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub port: u16,
    path: String,
}

/// Something in the router that maps ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    kind: &'static str,
    pub control: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// UDP, for so many seconds; 0 is for ever.
    Map {
        external: u16,
        internal: SocketAddrV4,
        lease_seconds: u32,
    },
    Unmap {
        external: u16,
    },
    ExternalAddress,
}

#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    Describe,
    Act(&'a Service, Action),
}

/// What the router says to an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done {
        external: Option<Ipv4Addr>,
    },
    /// With UPnP's own code.
    Refused(u16),
}

/// The port belongs to somebody else.
pub const CONFLICT: u16 = 718;
/// It lends for ever or not at all.
pub const ONLY_FOR_EVER: u16 = 725;

#[must_use]
pub fn search(target: &str) -> String {
    format!("M-SEARCH * HTTP/1.1\r\nHOST: {SEARCH_AT}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n")
}

impl Place {
    /// Where the router at `gateway`, which has answered a search, describes itself.
    #[must_use]
    pub fn of_search(answer: &[u8], gateway: Ipv4Addr) -> Option<Self> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        response.parse(answer).ok()?;
        let is_location = |header: &&httparse::Header<'_>| header.name.eq_ignore_ascii_case("location");
        let location = response.headers.iter().find(is_location).filter(|_| response.code == Some(200))?;
        Self::of_url(str::from_utf8(location.value).ok()?.trim(), gateway)
    }

    /// Only of that host, in plain HTTP.
    fn of_url(url: &str, gateway: Ipv4Addr) -> Option<Self> {
        let rest = url.strip_prefix("http://")?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (ip, port) = host.split_once(':').unwrap_or((host, "80"));
        let port = port.parse().ok().filter(|port| *port != 0)?;
        if ip.parse() != Ok(gateway) {
            return None;
        }
        Self::new(port, if path.is_empty() { "/" } else { path })
    }

    /// What a page at `self` means by a reference.
    fn refer(&self, reference: &str, gateway: Ipv4Addr) -> Option<Self> {
        if reference.contains("://") {
            return Self::of_url(reference, gateway);
        }
        let directory = &self.path[..=self.path.rfind('/')?];
        let path = if reference.starts_with('/') { reference.to_owned() } else { [directory, reference].concat() };
        Self::new(self.port, &path)
    }

    /// `None` when the path could be mistaken for more than a path.
    fn new(port: u16, path: &str) -> Option<Self> {
        let is_sound = path.len() <= PATH_BYTES_MAX && path.bytes().all(|byte| byte.is_ascii_graphic());
        is_sound.then(|| Self { port, path: path.to_owned() })
    }
}

/// What maps ports, of the router whose description at `place` this is.
#[must_use]
pub fn services(description: &[u8], place: &Place, gateway: Ipv4Addr) -> Vec<Service> {
    let (mut kind, mut control, mut base) = (None, None, place.clone());
    let mut services = Vec::new();
    read(description, |name, text| match name {
        "URLBase" => base = Place::of_url(text, gateway).unwrap_or_else(|| place.clone()),
        "serviceType" => kind = MAPPERS.into_iter().find(|mapper| *mapper == text),
        "controlURL" => control = base.refer(text, gateway),
        "service" => {
            if let (Some(kind), Some(control)) = (kind.take(), control.take())
                && services.len() < SERVICES_MAX
            {
                services.push(Service { kind, control });
            }
        }
        _ => {}
    });
    services
}

impl Request<'_> {
    /// As it goes to the router's `place`.
    #[must_use]
    pub fn text(&self, place: &Place, gateway: Ipv4Addr) -> String {
        let (verb, headers, body) = match self {
            Self::Describe => ("GET", String::new(), String::new()),
            Self::Act(service, action) => {
                let body = action.body(service.kind);
                let of_body =
                    format!("Content-Type: text/xml; charset=\"utf-8\"\r\nContent-Length: {}\r\n", body.len());
                ("POST", format!("{of_body}SOAPAction: \"{}#{}\"\r\n", service.kind, action.name()), body)
            }
        };
        let Place { port, path } = place;
        format!("{verb} {path} HTTP/1.1\r\nHost: {gateway}:{port}\r\n{headers}Connection: close\r\n\r\n{body}")
    }
}

impl Action {
    fn name(&self) -> &'static str {
        match self {
            Self::Map { .. } => "AddPortMapping",
            Self::Unmap { .. } => "DeletePortMapping",
            Self::ExternalAddress => "GetExternalIPAddress",
        }
    }

    fn body(&self, kind: &str) -> String {
        let name = self.name();
        let key = |external| {
            format!(
                "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort><NewProtocol>UDP</NewProtocol>"
            )
        };
        let arguments = match self {
            Self::Map { external, internal, lease_seconds } => format!(
                "{}<NewInternalPort>{}</NewInternalPort><NewInternalClient>{}</NewInternalClient><NewEnabled>1</NewEnabled>\
                 <NewPortMappingDescription>gateway</NewPortMappingDescription><NewLeaseDuration>{lease_seconds}</NewLeaseDuration>",
                key(external),
                internal.port(),
                internal.ip()
            ),
            Self::Unmap { external } => key(external),
            Self::ExternalAddress => String::new(),
        };
        format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{name} xmlns:u=\"{kind}\">{arguments}\
             </u:{name}></s:Body></s:Envelope>\r\n"
        )
    }
}

impl Answer {
    /// `None`: it is no answer.
    #[must_use]
    pub fn parse(status: u16, body: &[u8]) -> Option<Self> {
        let (mut external, mut code) = (None, None);
        read(body, |name, text| match name {
            "NewExternalIPAddress" => external = text.parse().ok(),
            "errorCode" => code = text.parse().ok(),
            _ => {}
        });
        match status {
            200 => Some(Self::Done { external }),
            _ => code.map(Self::Refused),
        }
    }
}

/// The status and the body of an answer by HTTP. `None` while it is not complete, if nothing more may come it never will be.
#[must_use]
pub fn http_answer(bytes: &[u8], is_all: bool) -> Option<(u16, Vec<u8>)> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(head)) = response.parse(bytes) else { return None };
    let (status, body) = (response.code?, &bytes[head..]);
    let header = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        str::from_utf8(header.value).ok()
    };
    if header("transfer-encoding").is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked")) {
        return Some((status, unchunked(body)?));
    }
    match header("content-length").and_then(|length| length.trim().parse().ok()) {
        Some(length) => Some((status, body.get(..length)?.to_vec())),
        None => is_all.then(|| (status, body.to_vec())),
    }
}

/// `None` while the last chunk is missing.
fn unchunked(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let Ok(httparse::Status::Complete((head, length))) = httparse::parse_chunk_size(bytes) else { return None };
        if length == 0 {
            return Some(body);
        }
        let end = head.checked_add(usize::try_from(length).ok()?)?;
        body.extend_from_slice(bytes.get(head..end)?);
        bytes = bytes.get(end + 2..)?;
    }
}

/// Tells the name and the text of each element where it ends, up to the first mistake.
fn read(xml: &[u8], mut tell: impl FnMut(&str, &str)) {
    let Ok(xml) = str::from_utf8(xml) else { return };
    let mut reader = Reader::from_str(xml);
    let mut text = String::new();
    loop {
        match reader.read_event() {
            Ok(Event::Start(_)) => text.clear(),
            Ok(Event::Text(piece)) => text.push_str(piece.as_ref()),
            Ok(Event::End(end)) => {
                tell(end.local_name().as_ref(), text.trim());
                text.clear();
            }
            Ok(Event::Eof) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);

    fn place(port: u16, path: &str) -> Place {
        Place::new(port, path).expect("it is sound")
    }

    fn described(services_of: &str) -> Vec<Service> {
        let xml = format!("<?xml version=\"1.0\"?><root xmlns=\"urn:x\"><device>{services_of}</device></root>");
        services(xml.as_bytes(), &place(5000, "/igd/root.xml"), ROUTER)
    }

    fn described_at(control: &str) -> Option<Place> {
        let kind = MAPPERS[0];
        let service = format!("<service><serviceType>{kind}</serviceType><controlURL>{control}</controlURL></service>");
        described(&service).pop().map(|service| service.control)
    }

    #[test]
    fn the_router_tells_where_it_describes_itself_and_nobody_else_is_believed() {
        let answer = |url: &str| format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation: {url}\r\n\r\n").into_bytes();
        let found = |url| Place::of_search(&answer(url), ROUTER);
        assert_eq!(found("http://192.168.1.1:5000/root.xml"), Some(place(5000, "/root.xml")));
        assert_eq!(found("http://192.168.1.1"), Some(place(80, "/")));
        for other in [
            "http://192.168.1.2:5000/",
            "http://evil.example/",
            "https://192.168.1.1/",
            "http://192.168.1.1:0/",
            "",
            "x",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
        assert_eq!(Place::of_search(b"NOTIFY * HTTP/1.1\r\n\r\n", ROUTER), None);
    }

    #[test]
    fn a_service_that_maps_is_found_wherever_it_stands_and_others_are_not() {
        let other = "<service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3</controlURL></service>";
        assert_eq!(described(other), []);
        let mapper = format!(
            "{other}<deviceList><device><service><serviceType> {} </serviceType><controlURL>/ctl</controlURL></service></device></deviceList>",
            MAPPERS[1]
        );
        assert_eq!(described(&mapper), [Service { kind: MAPPERS[1], control: place(5000, "/ctl") }]);
    }

    #[test]
    fn control_stays_on_the_router() {
        assert_eq!(described_at("ctl"), Some(place(5000, "/igd/ctl")));
        assert_eq!(described_at("http://192.168.1.1:81/ctl"), Some(place(81, "/ctl")));
        for other in ["http://192.168.1.2/ctl", "http://evil.example/ctl", "/a b", "/a\r\nX: y", "//evil\u{e9}"] {
            assert_eq!(described_at(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_nested_without_end_is_read_to_its_end() {
        let deep = "<a>".repeat(ANSWER_BYTES_MAX / 3);
        assert_eq!(described(&deep), []);
        assert_eq!(Answer::parse(200, deep.as_bytes()), Some(Answer::Done { external: None }));
    }

    #[test]
    fn more_services_than_are_tried_are_left_out() {
        let kind = MAPPERS[0];
        let one = format!("<service><serviceType>{kind}</serviceType><controlURL>/x</controlURL></service>");
        assert_eq!(described(&one.repeat(2 * SERVICES_MAX)).len(), SERVICES_MAX);
    }

    #[test]
    fn a_wish_for_a_port_names_it_the_host_and_the_time() {
        let service = Service { kind: MAPPERS[0], control: place(5000, "/ctl") };
        let internal = SocketAddrV4::new([192, 168, 1, 10].into(), 40_000);
        let map = Action::Map { external: 40_001, internal, lease_seconds: 3_600 };
        let text = Request::Act(&service, map).text(&service.control, ROUTER);
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("POST /ctl HTTP/1.1\r\nHost: 192.168.1.1:5000\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        let mut said = Vec::new();
        read(body.as_bytes(), |name, text| said.push((name.to_owned(), text.to_owned())));
        for (name, value) in [
            ("NewExternalPort", "40001"),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", "40000"),
            ("NewInternalClient", "192.168.1.10"),
            ("NewLeaseDuration", "3600"),
        ] {
            assert!(said.contains(&(name.to_owned(), value.to_owned())), "{name}: {said:?}");
        }
    }

    #[test]
    fn the_outcome_of_an_action_is_an_address_or_a_code() {
        let fault = b"<s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>";
        assert_eq!(Answer::parse(500, fault), Some(Answer::Refused(CONFLICT)));
        let address = b"<u:R><NewExternalIPAddress>203.0.113.7</NewExternalIPAddress></u:R>";
        let external = Some([203, 0, 113, 7].into());
        assert_eq!(Answer::parse(200, address), Some(Answer::Done { external }));
        assert_eq!(Answer::parse(404, b"not found"), None);
    }

    #[test]
    fn an_answer_is_complete_by_its_length_its_last_chunk_or_its_end() {
        let whole = |text: &str| http_answer(text.as_bytes(), false).map(|(status, body)| (status, body.len()));
        assert_eq!(whole("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab"), None);
        assert_eq!(whole("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"), Some((200, 3)));
        let chunked = "HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n";
        assert_eq!(whole(chunked), None);
        assert_eq!(whole(&format!("{chunked}0\r\n\r\n")), Some((500, 3)));
        let huge = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nab";
        assert_eq!(whole(huge), None);
        let endless = b"HTTP/1.0 200 OK\r\n\r\nabc";
        assert_eq!((http_answer(endless, false), http_answer(endless, true)), (None, Some((200, b"abc".to_vec()))));
    }
}
