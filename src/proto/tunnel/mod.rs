//! The tunnel: many streams and datagrams between two peers, inside authenticated UDP datagrams.
//!
//! [`wire`] knows layouts, [`keys`] where keys come from, [`handshake`] makes a [`seal::Session`] of a secret that both ends
//! have, which then seals and opens packets.

pub mod handshake;
pub mod keys;
mod packet_key;
pub mod random;
mod replay;
pub mod seal;
pub mod wire;
