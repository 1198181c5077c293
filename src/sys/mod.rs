//! The kernel, thinly: each function is one or two system calls, with the ambiguities of their answers written down.

pub mod bell;
pub mod clock;
pub mod control;
pub mod network;
pub mod pipe;
pub mod process;
pub mod socket;
pub mod udp;
