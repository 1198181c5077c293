//! The rendezvous: where providers and visitors behind NATs meet, and through which they reach each other at once.
//!
//! A peer has a tunnel to the rendezvous, under a secret that both know, to the service [`SERVICE`]. On its first stream the
//! two say what [`wire`] tells; its datagrams are what peers send each other through the rendezvous, each under the number of
//! its flow. What is in them is sealed end to end: the rendezvous counts bytes and reads none.
//!
//! 1. A provider registers its services; a visitor connects a flow to one of them ([`client`]).
//! 2. The rendezvous pairs them ([`registry`]): the visitor hears it, the provider hears of it by the first datagram of a flow
//!    with a new number.
//! 3. What one sends under its number, the other gets under its own ([`registry::Registry::route`]).
//! 4. When the provider is gone the visitor's flow waits until there is a provider again. When the rendezvous itself is gone,
//!    all peers come back and say all of it again: nothing is kept.
//!
//! A rendezvous can also be a hub: players who have nothing but the game reach a provider through it. For each of them it asks
//! the provider for a connection of its own ([`data`]), a few of them in advance ([`hub`]).
//!
//! Deliberately absent: sockets; how a peer proves its key (`proto::tunnel` does); how two peers find a direct path.

pub mod client;
pub mod data;
pub mod hub;
pub mod meter;
pub mod registry;
pub mod wire;

/// What a rendezvous provides to everybody who knows one of its secrets. No other service's name begins with a dot.
pub const SERVICE: &str = ".rendezvous";
