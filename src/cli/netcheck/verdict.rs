//! What was found, in words, and what follows from it.

use std::io::ErrorKind;

use super::filtering::Filtering;
use super::lending::Lending;
use super::survey::{Delays, Survey};
use crate::proto::punch::{Class, Kind};

/// With whom games will go directly, and what can be done for more of that.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub direct: String,
    /// Empty where nothing is to be done.
    pub advice: &'static str,
}

pub(super) fn verdict(
    class: Option<Class>,
    filtering: Option<Filtering>,
    has_ipv6: bool,
    lending: &Lending,
) -> Verdict {
    if lending.is_of_use() && matches!(class, Some(Class::Steps(_) | Class::Random | Class::Unclear)) {
        let direct = "direct paths will work with almost everybody: the router leads a port to this host when a daemon asks for it";
        return Verdict { direct: direct.to_owned(), advice: "" };
    }
    let direct = match class {
        // Whoever draws his ports can then be let in from any of them.
        Some(Class::Open | Class::Same) if filtering == Some(Filtering::OpenOrAddress) => {
            "direct paths will work with everybody whose network lets UDP out"
        }
        Some(Class::Open | Class::Same) => "direct paths will work with almost everybody",
        Some(Class::Steps(_)) => {
            "direct paths will work with most: your router's next port can be guessed; with others games go through the rendezvous"
        }
        Some(Class::Random) => {
            "direct paths will work with everybody whose router gives one port for all destinations, as most do; with others games \
             go through the rendezvous"
        }
        Some(Class::Blocked) => "UDP is blocked: direct paths over TCP are tried, else games go through the rendezvous",
        Some(Class::Unclear) => "unclear: one answer is missing; games work, if only through the rendezvous",
        None if has_ipv6 => "direct paths will work with everybody who has IPv6, too",
        None => "nothing is known of IPv4; games work, if only through the rendezvous",
    };
    let advice = match class {
        Some(Class::Open | Class::Same) => "",
        Some(Class::Steps(_) | Class::Random) if lending.is_missing() => {
            "let the router open ports for hosts that ask it (UPnP, NAT-PMP or PCP, in its settings), or forward a UDP port of it to \
             this host and see what --udp-port with its number changes here; IPv6 helps with friends who have it, too"
        }
        Some(Class::Steps(_) | Class::Random) if has_ipv6 => {
            "nothing for friends who have IPv6, too; for others, forward a UDP port of the router to this host, and see what \
             --udp-port with its number changes here"
        }
        Some(Class::Steps(_) | Class::Random) => {
            "forward a UDP port of the router to this host, and see what --udp-port with its number changes here; IPv6 \
             helps with friends who have it, too"
        }
        Some(Class::Blocked) => "let UDP out, in the firewall of this host and in the router",
        Some(Class::Unclear) => {
            "try again; where that helps nothing, is the UDP port after the rendezvous' own open there, too?"
        }
        None => "name the rendezvous by its host name or by its IPv4 address, to learn more",
    };
    let besides = match class {
        Some(Class::Steps(_) | Class::Random | Class::Blocked | Class::Unclear) if has_ipv6 => {
            "; over IPv6 direct paths will work with everybody who has it, too"
        }
        _ => "",
    };
    Verdict { direct: format!("{direct}{besides}"), advice }
}

pub(super) fn mapping(survey: &Survey) -> String {
    match survey.class {
        Some(Class::Open) => "no NAT: the outside sees the address that this host has".to_owned(),
        Some(Class::Same) if survey.profile.keeps_ports() => {
            "one port for all destinations, the one that this host has chosen".to_owned()
        }
        Some(Class::Same) => "one port for all destinations".to_owned(),
        Some(Class::Steps(step)) => format!("a new port for each destination, {step} above the one before"),
        Some(Class::Random) => "a new port for each destination, at random".to_owned(),
        Some(Class::Blocked) => "unknown: no answer comes over UDP".to_owned(),
        Some(Class::Unclear) => "unclear: one answer of two has come".to_owned(),
        None => "unknown: the rendezvous was not reached over IPv4".to_owned(),
    }
}

pub(super) fn filtering(survey: &Survey) -> &'static str {
    match survey.filtering {
        Some(Filtering::OpenOrAddress) => {
            "open or address-restricted: lets in any port of an address that was written to"
        }
        Some(Filtering::Port) => "port-restricted: lets in only the addresses and ports that were written to",
        None if survey.class.is_none() => "unknown: the rendezvous was not reached over IPv4",
        None if survey.udp.is_none() => "unknown: no answer comes over UDP",
        None => "unknown: too few answers have come, or the rendezvous does not know this question",
    }
}

/// As a program reads it.
pub(super) fn filtering_word(filtering: Option<Filtering>) -> &'static str {
    match filtering {
        Some(Filtering::OpenOrAddress) => "open_or_address_restricted",
        Some(Filtering::Port) => "port_restricted",
        None => "unknown",
    }
}

/// As a program reads it.
pub(super) fn class_word(class: Option<Class>) -> &'static str {
    match class {
        Some(Class::Open) => "open",
        Some(Class::Same) => "same",
        Some(Class::Steps(_)) => "steps",
        Some(Class::Random) => "random",
        Some(Class::Blocked) => "blocked",
        Some(Class::Unclear) => "unclear",
        None => "unknown",
    }
}

pub(super) fn hairpin(survey: &Survey) -> &'static str {
    match survey.hairpin {
        Some(true) => "works: hosts behind this router reach each other by the public address",
        Some(false) => "no; hosts of one network find each other by their own addresses",
        None if survey.class == Some(Class::Open) => "not needed",
        None => "unknown",
    }
}

pub(super) fn ipv6(survey: &Survey) -> String {
    let answers = survey.profile.of_kind(Kind::Reflexive).any(|address| address.is_ipv6());
    match survey.ipv6 {
        None => "none".to_owned(),
        Some(ip) if answers => format!("{ip}, and the rendezvous answers over it"),
        Some(ip) if survey.rendezvous_has_ipv6 => format!("{ip}, but the rendezvous does not answer over it"),
        Some(ip) => format!("{ip}; the rendezvous has no IPv6 address here to try it with"),
    }
}

/// `fault`: why nothing gets through, if that is known.
pub(super) fn delays(delays: Option<&Delays>, fault: Option<ErrorKind>) -> String {
    let Some(Delays { sent, rtts }) = delays else {
        let why = fault.map(|fault| format!(": {fault}")).unwrap_or_default();
        return format!("does not get through{why}");
    };
    let lost = *sent as usize - rtts.len();
    match spread_ms(rtts) {
        Some([least, median, most]) => {
            format!("works: {median:.1} ms there and back ({least:.1} to {most:.1}), {lost} of {sent} lost")
        }
        None => format!("works, but {lost} of {sent} probes were lost"),
    }
}

/// Least, median and most.
pub(super) fn spread_ms(rtts: &[u64]) -> Option<[f64; 3]> {
    let mut sorted = rtts.to_vec();
    sorted.sort_unstable();
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    Some([least, sorted[sorted.len() / 2], most].map(|us| us as f64 / 1_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_can_do_nothing_better_gets_no_advice_and_all_others_do() {
        let steps = Class::Steps(1);
        for class in [Class::Open, Class::Same, steps, Class::Random, Class::Blocked, Class::Unclear].map(Some) {
            for filtering in [None, Some(Filtering::Port), Some(Filtering::OpenOrAddress)] {
                for has_ipv6 in [false, true] {
                    let verdict = verdict(class, filtering, has_ipv6, &Lending::NotAsked("by this test"));
                    let ends = ["almost everybody", "lets UDP out"];
                    let is_good = ends.iter().any(|end| verdict.direct.ends_with(end));
                    assert_eq!(verdict.advice.is_empty(), is_good, "{verdict:?}");
                }
            }
        }
    }

    #[test]
    fn delays_are_told_with_what_was_lost() {
        assert_eq!(delays(None, None), "does not get through");
        assert_eq!(delays(None, Some(ErrorKind::ConnectionReset)), "does not get through: connection reset");
        assert_eq!(delays(Some(&Delays { sent: 3, rtts: vec![] }), None), "works, but 3 of 3 probes were lost");
        let some = Delays { sent: 4, rtts: vec![61_000, 59_500, 60_000] };
        assert_eq!(delays(Some(&some), None), "works: 60.0 ms there and back (59.5 to 61.0), 1 of 4 lost");
    }
}
