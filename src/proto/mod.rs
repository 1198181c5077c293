//! What the gateway decides, without socket, clock, file, thread or unsafe: bytes and times come in as arguments.

pub mod evp_bytes_to_key;
pub mod http;
pub mod kcp;
pub mod kcptun;
pub mod line;
pub mod path;
pub mod policy;
pub mod proxy_header;
pub mod punch;
pub mod rendezvous;
pub mod status;
pub mod target;
pub mod timers;
pub mod token;
pub mod tunnel;
pub mod upnp;
