//! The data ring: one multishot poll per socket.
//!
//! Kernel rules that shaped it:
//! * A poll holds its file: closing the descriptor neither sends FIN nor frees the port while the poll lives. So every watch
//!   is removed, and callers end or reset a socket themselves before they let it go.
//! * Removing a poll that is firing at that moment answers EALREADY: it is removed again.
//! * A multishot request whose completion found no room ends, which its missing MORE flag tells: it is armed again.
//! * A poll that was woken once tells what its waker named, and whoever brings a byte names POLLPRI. One that was woken more
//!   often looks for itself, and finds POLLOUT too unless the socket is full. Urgent data wakes twice: once for its mark, once
//!   for the bytes.
//! * With DEFER_TASKRUN nothing happens outside our own `io_uring_enter`; a flag in the ring says when there is work for one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use super::{EVENTS_PER_TURN, Happened, Kind, Readiness, Token};

/// Requests per submission. A full queue is submitted early, so this bounds nothing else.
const SUBMISSIONS: u32 = 1024;

/// Completions the ring holds: two sockets a connection tell one each per turn. The kernel keeps what does not fit on a list
/// and hands it over later, at some cost, so the upper bound (1 MiB of ring) is safe too.
const COMPLETIONS_MIN: u32 = 4096;
const COMPLETIONS_MAX: u32 = 65536;

/// Pieces of work that the kernel does in one call at most, unless it is asked to wait for more (since Linux 6.13).
const BATCH: u32 = 20;

/// What the three low bits of `user_data` say.
const OP_WATCH: u64 = 0;
const OP_FORGET: u64 = 1;
const OP_MASK: u64 = 7;

pub(super) struct Uring {
    ring: IoUring,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").finish_non_exhaustive()
    }
}

impl Uring {
    /// Whether this host allows such a ring.
    pub(super) fn probe(kind: Kind) -> io::Result<()> {
        build(kind, 8, 16).map(drop)
    }

    pub(super) fn new(kind: Kind, sockets: usize) -> io::Result<Self> {
        let completions = u32::try_from(2 * sockets).unwrap_or(u32::MAX).clamp(COMPLETIONS_MIN, COMPLETIONS_MAX);
        Ok(Self { ring: build(kind, SUBMISSIONS, completions.next_power_of_two())? })
    }

    pub(super) fn watch(&mut self, socket: BorrowedFd<'_>, token: Token, interest: u32) -> io::Result<()> {
        let poll = opcode::PollAdd::new(types::Fd(socket.as_raw_fd()), interest).multi(true);
        self.push(poll.build().user_data(token.pack() | OP_WATCH))
    }

    pub(super) fn forget(&mut self, socket: OwnedFd, token: Token) {
        self.remove_watch(token.pack() | OP_WATCH);
        // The request above is known by its user data: the number of the descriptor may be given away at once.
        drop(socket);
    }

    pub(super) fn release(&mut self, token: Token) {
        self.remove_watch(token.pack() | OP_WATCH);
    }

    fn remove_watch(&mut self, watch: u64) {
        let remove = opcode::PollRemove::new(watch).build().flags(Flags::SKIP_SUCCESS);
        if let Err(error) = self.push(remove.user_data(watch | OP_FORGET)) {
            tracing::error!(%error, "a closed socket stays watched");
        }
    }

    pub(super) fn wait(&mut self, patience: Duration, happened: &mut Happened) -> io::Result<()> {
        if patience.is_zero() || !self.ring.completion().is_empty() {
            // Who does not wait is busy, and asks until everything has been told: the kernel tells little at a time.
            while self.look(happened)? >= BATCH && happened.len() < EVENTS_PER_TURN {}
        } else {
            let patience = types::Timespec::from(patience);
            tolerate(self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&patience)))?;
            self.take(happened);
        }
        Ok(())
    }

    /// Submits, and takes what has happened without waiting; returns how much that was.
    fn look(&mut self, happened: &mut Happened) -> io::Result<u32> {
        let requests = u32::try_from(self.ring.submission().len()).unwrap_or(SUBMISSIONS);
        // SAFETY: the queue holds `requests` requests, see `push`, and no signal mask is given. (The crate's `submit` leaves
        // GETEVENTS out when a flag says that nothing is to be done, and the flag does not speak of leftovers.)
        let entered =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(requests, 0, EnterFlags::GETEVENTS.bits(), None) };
        tolerate(entered)?;
        Ok(self.take(happened))
    }

    fn take(&mut self, happened: &mut Happened) -> u32 {
        let mut taken = 0;
        loop {
            let Some(completion) = self.ring.completion().next() else { return taken };
            self.complete(&completion, happened);
            taken += 1;
        }
    }

    fn complete(&mut self, completion: &cqueue::Entry, happened: &mut Happened) {
        let (token, more) = (Token::unpack(completion.user_data()), cqueue::more(completion.flags()));
        let result = completion.result();
        match completion.user_data() & OP_MASK {
            OP_WATCH if result == -libc::ECANCELED => {} // forgotten
            OP_WATCH => {
                // A poll that failed, for want of memory, is told as a failed socket: its owner finds out or closes it.
                let bits = u32::try_from(result).unwrap_or(libc::POLLERR as u32);
                let mut news = Readiness::from_bits(bits);
                news.perhaps_urgent = news.urgent && !news.writable;
                news.urgent &= news.writable;
                happened.push_ready(token, news);
                if !more {
                    happened.push_disarmed(token);
                }
            }
            OP_FORGET if result == -libc::EALREADY => self.remove_watch(token.pack() | OP_WATCH),
            _ => {} // OP_FORGET; ENOENT: the poll had ended by itself
        }
    }

    fn push(&mut self, request: squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: none of our requests names memory, and the descriptor is open now: the kernel takes its own reference
            // when it reads the request, which is before the descriptor is closed (`forget` closes sockets whose watch it
            // removes, by user data).
            if unsafe { self.ring.submission().push(&request) }.is_ok() {
                return Ok(());
            }
            let before = self.ring.submission().len();
            tolerate(self.ring.submit())?;
            if self.ring.submission().len() == before {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
        }
    }
}

/// Errors that pass. EBUSY: completions must be taken first, which is what comes next. EAGAIN: short of memory, tried next
/// turn. ETIME: nothing happened.
fn tolerate(entered: io::Result<usize>) -> io::Result<()> {
    match entered {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN | libc::ETIME)) => {
            Ok(())
        }
        other => other.map(drop),
    }
}

fn build(kind: Kind, submissions: u32, completions: u32) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_taskrun_flag().setup_cqsize(completions).setup_clamp();
    match kind {
        Kind::UringDeferred => builder.setup_single_issuer().setup_defer_taskrun(),
        _ => builder.setup_coop_taskrun(),
    };
    builder.build(submissions)
}
