//! Talks UPnP with the default gateway: finds it by SSDP, and asks it by HTTP. Blocks, with a deadline for everything.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::router::Fault;
use crate::proto::upnp::{self, Action, Answer, Place, Request, Service};
use crate::sys::clock;

/// How long the router may take to answer a search: it chooses a moment within one second.
const SEARCH_TIME: Duration = Duration::from_millis(1_500);

/// And each question: slow routers write flash meanwhile.
const REQUEST_TIME: Duration = Duration::from_secs(3);

/// Ports that are tried when others have them, and the least of those that are drawn.
const PORTS_TRIED: usize = 4;
const PORT_DRAWN_MIN: u16 = 0x8000;

/// A mapping by UPnP.
#[derive(Debug)]
pub(super) struct Mapped {
    gateway: Ipv4Addr,
    internal: SocketAddrV4,
    service: Service,
    pub external: SocketAddrV4,
}

impl Mapped {
    pub(super) fn new(gateway: Ipv4Addr, internal: SocketAddrV4, lease_seconds: u32) -> Result<Self, Fault> {
        let place = search(gateway, *internal.ip())?;
        let (_, description) = exchange(gateway, &place, Request::Describe)?;
        let mut fault = Fault::Silent;
        for service in upnp::services(&description, &place, gateway) {
            match Self::by(gateway, internal, service, lease_seconds) {
                Ok(mapped) => return Ok(mapped),
                Err(why) => fault = why,
            }
        }
        Err(fault)
    }

    fn by(gateway: Ipv4Addr, internal: SocketAddrV4, service: Service, lease_seconds: u32) -> Result<Self, Fault> {
        let ip = external_ip(gateway, &service)?;
        let mut port = internal.port();
        for _ in 0..PORTS_TRIED {
            match map(gateway, &service, port, internal, lease_seconds)? {
                Answer::Done { .. } => {
                    return Ok(Self { gateway, internal, service, external: SocketAddrV4::new(ip, port) });
                }
                Answer::Refused(upnp::CONFLICT) => port = draw_port()?,
                Answer::Refused(_) => return Err(Fault::Refused),
            }
        }
        Err(Fault::Refused)
    }

    pub(super) fn renew(&mut self, lease_seconds: u32) -> Result<(), Fault> {
        self.external.set_ip(external_ip(self.gateway, &self.service)?);
        match map(self.gateway, &self.service, self.external.port(), self.internal, lease_seconds)? {
            Answer::Done { .. } => Ok(()),
            Answer::Refused(_) => Err(Fault::Refused),
        }
    }

    /// Or the router forgets it in time.
    pub(super) fn release(&self) {
        let _ = act(self.gateway, &self.service, Action::Unmap { external: self.external.port() });
    }
}

/// Asks for a port; once more for ever where the router knows nothing else.
fn map(
    gateway: Ipv4Addr,
    service: &Service,
    external: u16,
    internal: SocketAddrV4,
    lease_seconds: u32,
) -> Result<Answer, Fault> {
    let map = |lease_seconds| act(gateway, service, Action::Map { external, internal, lease_seconds });
    match map(lease_seconds)? {
        Answer::Refused(upnp::ONLY_FOR_EVER) => map(0),
        answer => Ok(answer),
    }
}

fn external_ip(gateway: Ipv4Addr, service: &Service) -> Result<Ipv4Addr, Fault> {
    match act(gateway, service, Action::ExternalAddress)? {
        Answer::Done { external: Some(ip) } if !ip.is_unspecified() => Ok(ip),
        Answer::Done { .. } | Answer::Refused(_) => Err(Fault::Refused),
    }
}

fn draw_port() -> Result<u16, Fault> {
    let mut drawn = [0; 2];
    getrandom::fill(&mut drawn).map_err(|_no_randomness| Fault::Refused)?;
    Ok(PORT_DRAWN_MIN | u16::from_ne_bytes(drawn))
}

/// Asks the neighbourhood and the gateway itself; only what the gateway answers counts.
fn search(gateway: Ipv4Addr, local: Ipv4Addr) -> Result<Place, Fault> {
    let socket = UdpSocket::bind((local, 0))?;
    for target in upnp::SEARCHED {
        let question = upnp::search(target);
        // One of them is enough.
        let sent = [upnp::SEARCH_AT, SocketAddrV4::new(gateway, upnp::SEARCH_AT.port())]
            .map(|to| socket.send_to(question.as_bytes(), to).is_ok());
        if sent == [false, false] {
            return Err(Fault::Silent);
        }
    }
    let deadline = clock::now() + SEARCH_TIME;
    let mut buffer = [0; 2048];
    loop {
        socket.set_read_timeout(Some(left_until(deadline)?))?;
        let (n, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue, // nobody searches there
            Err(error) => return Err(error.into()),
        };
        if from.ip() == gateway
            && let Some(place) = Place::of_search(&buffer[..n], gateway)
        {
            return Ok(place);
        }
    }
}

fn act(gateway: Ipv4Addr, service: &Service, action: Action) -> Result<Answer, Fault> {
    let (status, body) = exchange(gateway, &service.control, Request::Act(service, action))?;
    Answer::parse(status, &body).ok_or(Fault::Refused)
}

/// One question and its answer.
fn exchange(gateway: Ipv4Addr, place: &Place, request: Request<'_>) -> Result<(u16, Vec<u8>), Fault> {
    let deadline = clock::now() + REQUEST_TIME;
    let mut stream = TcpStream::connect_timeout(&(gateway, place.port).into(), REQUEST_TIME)?;
    stream.set_write_timeout(Some(left_until(deadline)?))?;
    stream.write_all(request.text(place, gateway).as_bytes())?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        stream.set_read_timeout(Some(left_until(deadline)?))?;
        let n = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..n]);
        if let Some(whole) = upnp::http_answer(&answer, n == 0) {
            return Ok(whole);
        }
        if n == 0 || answer.len() > upnp::ANSWER_BYTES_MAX {
            return Err(Fault::Refused);
        }
    }
}

fn left_until(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(clock::now());
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}
