//! Many streams and datagrams between two peers, inside authenticated datagrams.

pub mod pacer;
