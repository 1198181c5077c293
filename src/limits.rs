//! Every bound and time-out, with its unit and its reason. What a protocol fixes lies beside its protocol in [`crate::proto`].

use std::time::Duration;

/// Time a client has for its whole line, not for each read. Default of `--handshake-timeout`.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Time one attempt to reach a backend may take, name look-up included. The ancestor's default of `--timeout`.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// Attempts in all. The ancestor's default of `--retry`.
pub const DIAL_ATTEMPTS: u32 = 1;

/// The most attempts that may be asked for: with the longest time-out they still end within a day.
pub const DIAL_ATTEMPTS_MAX: u32 = 100;

/// Head start of one address of a name over the next (RFC 8305, section 5, recommends 250 ms).
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);

/// Addresses of one name that are tried; further ones are left out.
pub const DIAL_ADDRESSES_MAX: usize = 8;

/// Pause before a socket is asked for again when the process or the host had none left.
pub const SHORTAGE_PAUSE: Duration = Duration::from_millis(50);

/// A game without a byte in either direction ends after this. Default of `--idle-timeout`. Dead peers are found much
/// earlier, by keep-alive; this ends what is alive and forgotten.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(2 * 3600);

/// The same when one side has already ended its half. Default of `--half-closed-timeout`.
pub const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(300);

/// Time a refused client has to take its answer and to end, before the connection is cut.
pub const LINGER_TIMEOUT: Duration = Duration::from_secs(2);

/// Unread input of a refused client that is thrown away, bytes; more than a client sends by mistake.
pub const LINGER_BYTES_MAX: usize = 1 << 20;

/// Silence before the first keep-alive probe, and between probes: a dead player is noticed within two minutes.
pub const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
pub const KEEPALIVE_PROBES: u32 = 4;

/// Age at which a game's backend socket gets its keep-alive: most connections that are only tried out never come to it.
pub const SETTLING: Duration = Duration::from_secs(2);

/// Data that stays unacknowledged, or a window that stays shut, for so long means a dead peer. Long enough for a player
/// whose machine slept or whose Wi-Fi changed; the kernel's own answer is fifteen minutes.
pub const USER_TIMEOUT: Duration = Duration::from_secs(120);

/// Connections that may wait in the queue of a listening socket. The kernel cuts it to `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// Pause of accepting when descriptors or memory ran out: ten tries a second, no spin.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The most bytes one read takes on the copy path. The ancestor's default of `--buffer`.
pub const BUFFER_BYTES: usize = 16 * 1024;
pub const BUFFER_BYTES_MIN: usize = 4 * 1024;
pub const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// Pipes a worker may own. An unprivileged user has 1,024 full-sized ones over all processes. A pipe is borrowed only while
/// bytes are in flight, so 64 serve thousands of connections, unless as many readers are slower than their writers: further
/// streams are copied then.
pub const PIPES_MAX: usize = 64;

/// Descriptors a worker keeps back for everything that is not a game: rings, pipes, logs, name look-ups.
pub const DESCRIPTORS_RESERVED: u64 = 64 + 2 * PIPES_MAX as u64;

/// How often a provider tries to get a UDP port that is taken, and the pause between: half a second in all.
pub const PORT_TRIES: usize = 26;
pub const PORT_PAUSE: Duration = Duration::from_millis(20);

/// A worker with room for fewer connections than this says so at start: hardly anybody means it.
pub const CONNECTIONS_FEW: usize = 1000;

/// The most workers that may be asked for.
pub const WORKERS_MAX: usize = 256;

/// A worker says that it lives so often, and is replaced after so long a silence.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
pub const HEARTBEAT_PATIENCE: Duration = Duration::from_secs(10);

/// A worker that lived so long has started well: its successor starts at once. One that dies earlier is replaced after a
/// pause that doubles up to the second.
pub const WORKER_SETTLED: Duration = Duration::from_secs(5);
pub const RESTART_PAUSE_MIN: Duration = Duration::from_millis(50);
pub const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Time a worker has to report that it accepts; after it the start has failed.
pub const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A secret of fewer bytes draws a warning: whoever holds one token can try passphrases at leisure.
pub const SECRET_BYTES_WEAK: usize = 16;

/// The most bytes of a secret, and the most secrets at once: each one costs every line two more decryptions.
pub const SECRET_BYTES_MAX: usize = 1023; // what `openssl -pass file:` reads of a line
pub const SECRETS_MAX: usize = 16;

/// Rules of each kind that policy may have: with more, the message that carries them to a worker would not fit.
pub const RULES_MAX: usize = 1024;

/// The longest message between supervisor and worker, bytes; the kernel's default bound for one is 212,992.
pub const MESSAGE_BYTES_MAX: usize = 192 * 1024;

/// Peers that a worker tells of when it is asked: they fit into a message even if each needs 600 bytes.
pub const PEERS_SHOWN_MAX: usize = 256;

/// Questions to the page of figures at a time, further ones wait; and the time for each, and for a worker to tell what it knows.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;
pub const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);
pub const ADMIN_PATIENCE: Duration = Duration::from_secs(2);

/// Time a worker that was told to stop has before it is killed.
pub const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Addresses a daemon may listen on; their sockets must fit into one message to a worker.
pub const ADDRESSES_MAX: usize = 32;

/// Services of a daemon at one end of tunnels, and ports of a service: far more than a host has games.
pub const SERVICES_MAX: usize = 32;
pub const SERVICE_PORTS_MAX: usize = 64;

/// Time a player's connection waits for the tunnel before it is reset: a player who sees nothing for longer has given up.
pub const TUNNEL_WAIT: Duration = Duration::from_secs(10);

/// One attempt to reach a provider: with questions repeated after 250 ms, doubling, it asks each address five times.
pub const REACH_TIMEOUT: Duration = Duration::from_secs(8);

/// Pause between attempts, doubling from the first to the second: a provider that is back is found within the minute, and at
/// once when a player comes.
pub const REACH_PAUSE_MIN: Duration = Duration::from_secs(1);
pub const REACH_PAUSE_MAX: Duration = Duration::from_secs(30);

/// A service that refuses its players is logged so often: enough to be seen by whoever looks, whatever players do.
pub const REFUSAL_TOLD_PAUSE: Duration = Duration::from_secs(60);

/// An attempt this old is begun anew when a player comes: its next question may be seconds away, and the name may lead
/// elsewhere by now. Not sooner, or many players would leave no attempt the time to succeed.
pub const REACH_STALE: Duration = Duration::from_secs(3);

/// A peer that has not answered for so long what it was asked may have been restarted, and knows nothing of the tunnel: a new
/// one is tried beside it. Several times the longest round trip on earth, lost datagrams included.
pub const PEER_SUSPECT: Duration = Duration::from_secs(3);

/// What is sent so soon after the peer was heard may be acknowledgements and reports, which nobody answers.
pub const PEER_GRACE: Duration = Duration::from_secs(1);

/// The same for a rendezvous, which has nothing else to do than to answer: several round trips.
pub const VIA_SUSPECT: Duration = Duration::from_secs(2);

/// Pause before a flow that the rendezvous has refused is asked for again.
pub const FLOW_PAUSE: Duration = Duration::from_secs(30);

/// Rounds of punching at once: each has some sockets, up to 260 behind the worst of NATs, and takes a few seconds.
pub const ROUNDS_MAX: usize = 8;

/// From the first word about a change of addresses or routes until they are looked at: several come at once.
pub const NETWORK_PAUSE: Duration = Duration::from_millis(100);

/// Players of UDP games of a daemon, and how long a silent one is remembered: games send several datagrams a second, and NATs
/// forget a mapping that is silent for 30 to 300 s.
pub const SESSIONS_MAX: usize = 4096;
pub const SESSION_IDLE: Duration = Duration::from_secs(120);

/// The same while there are too many of them, and while the daemon drains: this long nobody who plays is silent.
pub const SESSION_IDLE_SHORT: Duration = Duration::from_secs(10);

/// Of the players who come to an exposed port: those of one address, behind which may be a whole party. A host alone cannot take all
/// places.
pub const PLAYERS_OF_HOST_MAX: usize = 256;

/// TCP connections that carry tunnels: a peer has one or two. A rendezvous has one for each of its peers, and room of its own.
pub const LINKS_MAX: usize = 64;

/// A worker of a rendezvous: peers, which have a TCP connection each; what it keeps of one peer's control messages, bytes; and
/// streams, of which one carries them while others are being refused.
pub const RENDEZVOUS_PEERS_MAX: usize = 16_384;
pub const RENDEZVOUS_BUFFER_BYTES: usize = 1 << 20;
pub const RENDEZVOUS_STREAMS_MAX: usize = 4;

/// Addresses a rendezvous is found at, one for each family and network; and workers that share it: their sockets, and those by
/// which they pass connections to each other, must fit into one message to a worker.
pub const RENDEZVOUS_ADDRESSES_MAX: usize = 8;
pub const RENDEZVOUS_WORKERS_MAX: usize = 64; // a bit each in 64

/// How often another free port is tried when the one after it is taken.
pub const PORT_PAIR_TRIES: usize = 32;

/// Handshakes that a worker of a rendezvous answers in a second: a thousand peers that come back at once are there two seconds
/// later, and a tenth of the processor is what recorded offers can take.
pub const RENDEZVOUS_HANDSHAKES: u64 = 500;

/// Connections that have not proved to be a peer's, or half of the room for peers, if that is less; over it the one that has
/// waited longest goes, or, of a source that has an eighth of them, one of its own. Whoever opens many and says nothing has to
/// do so from many addresses, and so many in each round trip of a peer, to keep it out.
pub const STRANGERS_MAX: usize = 1024;

/// Connections of all providers that wait for players at a worker of a rendezvous: a crowd's for more than a hundred of them.
pub const READY_ALL_MAX: usize = 4096;

/// Connections that a provider keeps open for players: more than a rendezvous asks for in advance, and a crowd's beside them.
pub const RESERVED_MAX: usize = 512;

/// How long one waits for its player: longer than the rendezvous keeps it.
pub const RESERVED_TIMEOUT: Duration = Duration::from_secs(120);

/// Connections that are tried for one player: one that was ready may be dead without anybody knowing.
pub const FETCH_TRIES: u32 = 3;

/// Ports that a daemon may expose: their sockets must fit into one message to a worker, beside those of its other addresses.
pub const EXPOSED_MAX: usize = 64;

/// Pause before a full UDP socket is asked again whether it has room. Its 4 MiB, each millisecond, are 32 Gbit/s.
pub const SEND_PAUSE: Duration = Duration::from_millis(1);
