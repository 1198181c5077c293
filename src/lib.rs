//! `gateway`: a player's client sends one encrypted line that names a backend, gets `200`, and plays.
//!
//! The map, each module using only what stands to its right (`tests/tidy.rs` holds it to that):
//!
//! ```text
//! main > cli > config > supervisor > worker > udp > tcp > {names, proto, engine} > sys        limits, log: for all
//! ```
//!
//! * [`cli`]: what was typed, one file a verb. [`config`]: what is needed, checked.
//! * [`supervisor`]: owns the listening sockets, the pid file and the workers; forwards no byte.
//! * [`worker`]: one process, one thread, one runtime, one data ring.
//! * [`tcp`]: a connection's life: accept, handshake, dial, relay.
//! * [`udp`]: a packet's life: the tunnels of visitors and providers, and the rendezvous where they meet.
//! * [`names`]: addresses of host names.
//! * [`proto`]: decides: line, token, target, policy, answers, timers, KCP, tunnel, paths, punching, rendezvous, kcptun. No socket,
//!   no clock, no file.
//! * [`engine`]: readiness from a ring or its epoll twin, and the pump that moves bytes. No policy.
//! * [`sys`]: the kernel, thinly. With `engine` the only place for `unsafe`.

pub mod cli;
pub mod config;
#[expect(unsafe_code, reason = "rings and descriptors")]
pub mod engine;
pub mod limits;
pub mod log;
pub mod names;
pub mod proto;
pub mod supervisor;
#[expect(unsafe_code, reason = "system calls")]
pub mod sys;
pub mod tcp;
pub mod udp;
pub mod worker;
