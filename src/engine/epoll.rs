//! The twin: the same events from epoll, for hosts that refuse rings (container seccomp profiles, a sysctl).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll as Set, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{EVENTS_PER_TURN, Happened, Readiness, Token};

#[derive(Debug)]
pub(super) struct Epoll {
    set: Set,
    ready: Vec<EpollEvent>,
    /// The kernel waits for times shorter than a millisecond: Linux 5.11. A tunnel sends bulk twice a millisecond and oftener.
    fine: bool,
}

impl Epoll {
    pub(super) fn new() -> io::Result<Self> {
        let set = Set::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Self { set, ready: vec![EpollEvent::empty(); EVENTS_PER_TURN], fine: true })
    }

    pub(super) fn watch(&self, socket: BorrowedFd<'_>, token: Token, interest: u32) -> io::Result<()> {
        let interest = EpollFlags::from_bits_truncate(interest.cast_signed()) | EpollFlags::EPOLLET;
        Ok(self.set.add(socket, EpollEvent::new(interest, token.pack()))?)
    }

    pub(super) fn release(&self, socket: BorrowedFd<'_>) {
        let _ = self.set.delete(socket); // it is watched, or was never
    }

    pub(super) fn wait(&mut self, patience: Duration, happened: &mut Happened) -> io::Result<()> {
        let n = match self.wait_finely(patience) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                self.fine = false; // or forbidden by a seccomp profile that does not know it
                self.wait_coarsely(patience)
            }
            other => other,
        };
        let n = match n {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            other => other?,
        };
        for event in &self.ready[..n] {
            let news = Readiness::from_bits(event.events().bits().cast_unsigned());
            happened.push_ready(Token::unpack(event.data()), news);
        }
        Ok(())
    }

    fn wait_finely(&mut self, patience: Duration) -> io::Result<usize> {
        let whole = patience.subsec_nanos().is_multiple_of(1_000_000);
        if !self.fine || whole {
            return self.wait_coarsely(patience);
        }
        let timeout = libc::timespec {
            tv_sec: patience.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: patience.subsec_nanos().into(),
        };
        let (events, room) = (self.ready.as_mut_ptr(), self.ready.len());
        let no_mask = std::ptr::null::<libc::sigset_t>();
        // SAFETY: `EpollEvent` is an epoll_event and nothing else; the kernel writes at most `room` of them to `events`, reads
        // `timeout`, and no signal mask is given.
        let n = unsafe {
            libc::syscall(libc::SYS_epoll_pwait2, self.set.0.as_raw_fd(), events, room, &raw const timeout, no_mask, 0)
        };
        usize::try_from(n).map_err(|_negative| io::Error::last_os_error())
    }

    fn wait_coarsely(&mut self, patience: Duration) -> io::Result<usize> {
        // Rounded up: a wait that ends early would be repeated until it is over.
        let milliseconds = patience.as_nanos().div_ceil(1_000_000);
        let timeout = EpollTimeout::try_from(milliseconds).unwrap_or(EpollTimeout::MAX);
        Ok(self.set.wait(&mut self.ready, timeout)?)
    }
}
