//! What stands in a packet, one frame after the other up to its end. Network order, except inside segments.
//!
//! ```text
//! 0 padding     zeros, up to the end
//! 1 segments    KCP segments, up to the end; of conversation 0 (control) and of streams
//! 2 datagram    session u32 | port u8 | length u16 | bytes
//! 3 datagram    session u32 | port u8 | length u16 | address of the player | bytes
//! 4 piece       message u16 | index u8 | count u8 | length u16 | bytes: of a frame that is too long for one packet
//! 5 challenge   token 8: to be sent back to where it came from
//! 6 response    token 8
//! 7 report      highest u48 | received u48 | gaps u32: of the packets of this session that we sent
//! 8 MTU probe   size u16: of this datagram
//! 9 MTU arrived size u16
//! 10 close      reason u8
//! 11 probe      token 8: to be sent back, as a response, to where it came from
//! 12 observe    token 8 | 19 zeros: as long as the longest answer
//! 13 observed   token 8 | address from which that came
//! 14 abandoned  the way before this one is dead: what was sent on it is to be sent again
//! 15 observe elsewhere  token 8 | 47 zeros: to be answered by the other port, in a datagram no longer than this frame
//!
//! address       4 | IPv4 4 | port u16,  or  6 | IPv6 16 | port u16
//! ```
//!
//! A packet of nothing but 0, 6, 11, 12, 13 and 15 is *probing*: it says nothing about where the peer wants its packets, and none of
//! the reports counts it, as most of those that look for a way through a NAT are lost by design.

use std::net::{IpAddr, SocketAddr};

use super::wire::{Malformed, OVERHEAD_BYTES};

/// Bytes of a frame of segments before the first of them.
pub const SEGMENTS_HEAD: usize = 1;

/// Bytes of a piece before what it carries.
pub const PIECE_HEAD: usize = 7;

/// Bytes of the longest datagram frame around its datagram: player's address, IPv6.
pub const DATAGRAM_HEAD_MAX: usize = 8 + 19;

pub type Token = [u8; 8];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    Segments(&'a [u8]),
    Datagram(Datagram<'a>),
    Piece(Piece<'a>),
    Challenge(Token),
    Response(Token),
    Report(Report),
    MtuProbe(u16),
    MtuArrived(u16),
    Close(u8),
    Probe(Token),
    Observe(Token),
    Observed(Token, SocketAddr),
    Abandoned,
    ObserveElsewhere(Token),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub session: u32,
    pub port: u8,
    pub player: Option<SocketAddr>,
    pub bytes: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which frame it is of.
    pub message: u16,
    /// From 0 to below `count`. All pieces but the last have the same length.
    pub index: u8,
    pub count: u8,
    pub bytes: &'a [u8],
}

/// What one end has seen of the other's packets since the session began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The highest number.
    pub highest: u64,
    pub received: u64,
    /// How often numbers were left out, one after the other counted once.
    pub gaps: u32,
}

const PADDING: u8 = 0;
const SEGMENTS: u8 = 1;
const DATAGRAM: u8 = 2;
const DATAGRAM_OF_PLAYER: u8 = 3;
const PIECE: u8 = 4;
const CHALLENGE: u8 = 5;
const RESPONSE: u8 = 6;
const REPORT: u8 = 7;
const MTU_PROBE: u8 = 8;
const MTU_ARRIVED: u8 = 9;
const CLOSE: u8 = 10;
const PROBE: u8 = 11;
const OBSERVE: u8 = 12;
const OBSERVED: u8 = 13;
const ABANDONED: u8 = 14;
const OBSERVE_ELSEWHERE: u8 = 15;

/// Of the longest address. A question that is to be answered with one brings as many bytes.
const ADDRESS_BYTES_MAX: usize = 19;

/// The same for an answer that cannot share a datagram with others: the question pays for that, too.
const DATAGRAM_OF_ADDRESS_BYTES_MAX: usize = ADDRESS_BYTES_MAX + OVERHEAD_BYTES;

/// Whether a packet only looks for ways to the peer.
pub fn is_probing(packet: &[u8]) -> bool {
    use Frame::{Observe, ObserveElsewhere, Observed, Probe, Response};
    let mut frames = Frames::of(packet);
    frames.all(|frame| matches!(frame, Ok(Probe(_) | Observe(_) | ObserveElsewhere(_) | Observed(..) | Response(_))))
}

/// Whether a packet has something of streams or datagrams, if only news of them.
pub fn is_traffic(packet: &[u8]) -> bool {
    use Frame::{Datagram, Piece, Report, Segments};
    Frames::of(packet).any(|frame| matches!(frame, Ok(Segments(_) | Datagram(_) | Piece(_) | Report(_))))
}

/// The frames of a packet. Ends after the first that is malformed.
#[derive(Debug)]
pub struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    pub fn of(packet: &'a [u8]) -> Self {
        Self(packet)
    }

    fn parse(&mut self, kind: u8) -> Result<Frame<'a>, Malformed> {
        let rest = &mut self.0;
        Ok(match kind {
            SEGMENTS => Frame::Segments(std::mem::take(rest)),
            DATAGRAM | DATAGRAM_OF_PLAYER => Frame::Datagram(Datagram::parse(kind, rest)?),
            PIECE => Frame::Piece(Piece::parse(rest)?),
            CHALLENGE => Frame::Challenge(array(rest)?),
            RESPONSE => Frame::Response(array(rest)?),
            REPORT => Frame::Report(Report::parse(rest)?),
            MTU_PROBE => Frame::MtuProbe(u16::from_be_bytes(array(rest)?)),
            MTU_ARRIVED => Frame::MtuArrived(u16::from_be_bytes(array(rest)?)),
            CLOSE => Frame::Close(u8::from_be_bytes(array(rest)?)),
            PROBE => Frame::Probe(array(rest)?),
            OBSERVE => Frame::Observe(question::<ADDRESS_BYTES_MAX>(rest)?),
            OBSERVE_ELSEWHERE => Frame::ObserveElsewhere(question::<DATAGRAM_OF_ADDRESS_BYTES_MAX>(rest)?),
            OBSERVED => Frame::Observed(array(rest)?, parse_address(rest)?),
            ABANDONED => Frame::Abandoned,
            _ => return Err(Malformed),
        })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&kind, rest) = self.0.split_first()?;
        if kind == PADDING {
            self.0 = &[];
            return None;
        }
        self.0 = rest;
        let frame = self.parse(kind);
        if frame.is_err() {
            self.0 = &[];
        }
        Some(frame)
    }
}

impl Frame<'_> {
    pub fn emit(&self, out: &mut Vec<u8>) {
        match self {
            Self::Segments(segments) => {
                begin_segments(out);
                out.extend_from_slice(segments);
            }
            Self::Datagram(datagram) => datagram.emit(out),
            Self::Piece(piece) => piece.emit(out),
            Self::Challenge(token) => emit(CHALLENGE, token, out),
            Self::Response(token) => emit(RESPONSE, token, out),
            Self::Report(report) => report.emit(out),
            Self::MtuProbe(size) => emit(MTU_PROBE, &size.to_be_bytes(), out),
            Self::MtuArrived(size) => emit(MTU_ARRIVED, &size.to_be_bytes(), out),
            Self::Close(reason) => emit(CLOSE, &[*reason], out),
            Self::Probe(token) => emit(PROBE, token, out),
            Self::Observe(token) => {
                emit(OBSERVE, token, out);
                out.extend_from_slice(&[0; ADDRESS_BYTES_MAX]);
            }
            Self::Observed(token, address) => {
                emit(OBSERVED, token, out);
                emit_address(*address, out);
            }
            Self::Abandoned => out.push(ABANDONED),
            Self::ObserveElsewhere(token) => {
                emit(OBSERVE_ELSEWHERE, token, out);
                out.extend_from_slice(&[0; DATAGRAM_OF_ADDRESS_BYTES_MAX]);
            }
        }
    }
}

/// Segments follow, up to the end of the packet.
pub fn begin_segments(out: &mut Vec<u8>) {
    out.push(SEGMENTS);
}

impl<'a> Datagram<'a> {
    fn parse(kind: u8, rest: &mut &'a [u8]) -> Result<Self, Malformed> {
        let session = u32::from_be_bytes(array(rest)?);
        let [port] = array(rest)?;
        let length = u16::from_be_bytes(array(rest)?);
        let player = if kind == DATAGRAM_OF_PLAYER { Some(parse_address(rest)?) } else { None };
        Ok(Self { session, port, player, bytes: take(rest, usize::from(length))? })
    }

    /// Bytes that [`Self::emit`] appends.
    pub fn frame_bytes(length: usize, player: Option<SocketAddr>) -> usize {
        8 + player.map_or(0, |player| if player.is_ipv4() { 7 } else { 19 }) + length
    }

    /// Everything but the bytes, of which there are `length`.
    pub fn emit_head(session: u32, port: u8, player: Option<SocketAddr>, length: u16, out: &mut Vec<u8>) {
        out.push(if player.is_some() { DATAGRAM_OF_PLAYER } else { DATAGRAM });
        out.extend_from_slice(&session.to_be_bytes());
        out.push(port);
        out.extend_from_slice(&length.to_be_bytes());
        if let Some(player) = player {
            emit_address(player, out);
        }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        debug_assert!(self.bytes.len() <= usize::from(u16::MAX));
        Self::emit_head(self.session, self.port, self.player, self.bytes.len() as u16, out);
        out.extend_from_slice(self.bytes);
    }
}

impl<'a> Piece<'a> {
    fn parse(rest: &mut &'a [u8]) -> Result<Self, Malformed> {
        let message = u16::from_be_bytes(array(rest)?);
        let [index, count] = array(rest)?;
        let length = u16::from_be_bytes(array(rest)?);
        let bytes = take(rest, usize::from(length))?;
        if index < count { Ok(Self { message, index, count, bytes }) } else { Err(Malformed) }
    }

    fn emit(&self, out: &mut Vec<u8>) {
        debug_assert!(self.bytes.len() <= usize::from(u16::MAX));
        emit(PIECE, &self.message.to_be_bytes(), out);
        out.extend_from_slice(&[self.index, self.count]);
        out.extend_from_slice(&(self.bytes.len() as u16).to_be_bytes());
        out.extend_from_slice(self.bytes);
    }
}

impl Report {
    fn parse(rest: &mut &[u8]) -> Result<Self, Malformed> {
        let (highest, received) = (parse_u48(rest)?, parse_u48(rest)?);
        Ok(Self { highest, received, gaps: u32::from_be_bytes(array(rest)?) })
    }

    fn emit(&self, out: &mut Vec<u8>) {
        emit(REPORT, &self.highest.to_be_bytes()[2..], out);
        out.extend_from_slice(&self.received.to_be_bytes()[2..]);
        out.extend_from_slice(&self.gaps.to_be_bytes());
    }
}

fn emit(kind: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(bytes);
}

/// As in a datagram of a player and in the preamble of a stream.
pub fn emit_address(address: SocketAddr, out: &mut Vec<u8>) {
    match address.ip() {
        IpAddr::V4(ip) => emit(4, &ip.octets(), out),
        IpAddr::V6(ip) => emit(6, &ip.octets(), out),
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

pub fn parse_address(rest: &mut &[u8]) -> Result<SocketAddr, Malformed> {
    let ip = match array(rest)? {
        [4] => IpAddr::from(array::<4>(rest)?),
        [6] => IpAddr::from(array::<16>(rest)?),
        _ => return Err(Malformed),
    };
    Ok(SocketAddr::new(ip, u16::from_be_bytes(array(rest)?)))
}

/// Address kind 0 stands for none.
pub fn parse_optional_address(rest: &mut &[u8]) -> Result<Option<SocketAddr>, Malformed> {
    if let Some((0, after)) = rest.split_first() {
        *rest = after;
        return Ok(None);
    }
    parse_address(rest).map(Some)
}

fn parse_u48(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let bytes: [u8; 6] = array(rest)?;
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A token, and behind it zeros, so that the answer is no longer.
fn question<const ZEROS: usize>(rest: &mut &[u8]) -> Result<Token, Malformed> {
    let token = array(rest)?;
    if array(rest)? == [0; ZEROS] { Ok(token) } else { Err(Malformed) }
}

fn array<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(Malformed)?;
    *rest = tail;
    Ok(*head)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], Malformed> {
    let (head, tail) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = tail;
    Ok(head)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn players() -> [Option<SocketAddr>; 3] {
        [None, "203.0.113.7:4242".parse().ok(), "[2001:db8::7]:65535".parse().ok()]
    }

    #[test]
    fn every_frame_is_read_as_it_was_written() {
        let report = Report { highest: (1 << 48) - 1, received: 1 << 40, gaps: u32::MAX };
        let mut frames = vec![
            Frame::Piece(Piece { message: 7, index: 1, count: 2, bytes: b"piece" }),
            Frame::Challenge(*b"a token!"),
            Frame::Response(*b"its echo"),
            Frame::Report(report),
            Frame::MtuProbe(1452),
            Frame::MtuArrived(1452),
            Frame::Close(3),
            Frame::Probe(*b"to there"),
            Frame::Observe(*b"who am I"),
            Frame::Abandoned,
            Frame::ObserveElsewhere(*b"not here"),
        ];
        frames.extend(players().into_iter().flatten().map(|address| Frame::Observed(*b"who am I", address)));
        for player in players() {
            frames.push(Frame::Datagram(Datagram { session: 1 << 31, port: 9, player, bytes: b"to arms" }));
        }
        frames.push(Frame::Segments(b"the rest"));
        let mut packet = Vec::new();
        for frame in &frames {
            let before = packet.len();
            frame.emit(&mut packet);
            if let Frame::Datagram(Datagram { player, bytes, .. }) = frame {
                assert_eq!(packet.len() - before, Datagram::frame_bytes(bytes.len(), *player));
            }
        }
        assert_eq!(Frames::of(&packet).map(Result::unwrap).collect::<Vec<_>>(), frames);
    }

    #[test]
    fn a_report_stands_as_documented() {
        let mut packet = Vec::new();
        Frame::Report(Report { highest: 0x0102_0304_0506, received: 7, gaps: 8 }).emit(&mut packet);
        assert_eq!(packet, [7, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 7, 0, 0, 0, 8]);
    }

    #[test]
    fn padding_ends_a_packet() {
        let mut packet = Vec::new();
        Frame::MtuProbe(1350).emit(&mut packet);
        packet.resize(100, 0);
        assert_eq!(Frames::of(&packet).collect::<Vec<_>>(), [Ok(Frame::MtuProbe(1350))]);
    }

    #[test]
    fn a_frame_that_is_cut_short_is_malformed_and_the_last() {
        for player in players() {
            let mut packet = Vec::new();
            Frame::Datagram(Datagram { session: 1, port: 2, player, bytes: b"abc" }).emit(&mut packet);
            for length in 1..packet.len() {
                let frames: Vec<_> = Frames::of(&packet[..length]).collect();
                assert_eq!(frames, [Err(Malformed)], "{length} bytes");
            }
        }
    }

    #[test]
    fn an_address_that_was_asked_for_is_told_in_no_more_bytes_than_the_question_had() {
        let (mut question, mut answer) = (Vec::new(), Vec::new());
        Frame::Observe(*b"who am I").emit(&mut question);
        let longest = SocketAddr::from(([0xffff; 8], u16::MAX));
        Frame::Observed(*b"who am I", longest).emit(&mut answer);
        assert_eq!(answer.len(), question.len());
        let mut elsewhere = Vec::new();
        Frame::ObserveElsewhere(*b"who am I").emit(&mut elsewhere);
        assert_eq!(elsewhere.len(), answer.len() + OVERHEAD_BYTES, "that answer has a datagram of its own");
        for question in [question, elsewhere] {
            for length in 1..question.len() {
                assert_eq!(Frames::of(&question[..length]).collect::<Vec<_>>(), [Err(Malformed)], "{length} bytes");
            }
        }
    }

    #[test]
    fn a_packet_is_probing_when_all_of_it_is() {
        let packet = |frames: &[Frame<'_>]| {
            let mut packet = Vec::new();
            frames.iter().for_each(|frame| frame.emit(&mut packet));
            packet
        };
        let probing =
            [Frame::Probe([1; 8]), Frame::Response([2; 8]), Frame::Observe([3; 8]), Frame::ObserveElsewhere([6; 8])];
        assert!(is_probing(&packet(&probing)));
        assert!(is_probing(&[packet(&probing), vec![0; 9]].concat()));
        assert!(is_probing(&packet(&[Frame::Observed([4; 8], ([127, 0, 0, 1], 9).into())])));
        for other in [Frame::Challenge([5; 8]), Frame::Abandoned, Frame::Segments(b""), Frame::Close(0)] {
            assert!(!is_probing(&packet(&[probing[0], other])), "{other:?}");
        }
        assert!(!is_probing(&[255]) && !is_probing(&[PROBE, 0]), "what is not known may say anything");
    }

    #[test]
    fn an_address_may_be_left_out_of_a_preamble() {
        for player in players() {
            let mut bytes = Vec::new();
            match player {
                Some(player) => emit_address(player, &mut bytes),
                None => bytes.push(0),
            }
            bytes.push(77);
            let mut rest = &bytes[..];
            assert_eq!((parse_optional_address(&mut rest), rest), (Ok(player), &[77][..]));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_is_read_is_written_the_same(mut bytes: Vec<u8>, kind in 0..17u8) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let mut again = Vec::new();
            let mut whole = true;
            for frame in Frames::of(&bytes) {
                match frame {
                    Ok(frame) => frame.emit(&mut again),
                    Err(Malformed) => whole = false,
                }
            }
            prop_assert!(bytes.starts_with(&again));
            let padded = bytes.get(again.len()) == Some(&PADDING);
            prop_assert_eq!(bytes.len() == again.len(), whole && !padded);
        }
    }
}
