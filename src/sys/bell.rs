//! How a thread tells a loop that waits for descriptors that there is something for it elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Readable from the first ring on until it is cleared.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`.
    pub fn new() -> io::Result<Self> {
        Ok(Self(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?.into()))
    }

    /// Another handle of the same bell.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn share(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    pub fn ring(&self) {
        let _ = nix::unistd::write(&self.0, &1u64.to_ne_bytes()); // or it has rung so often that no more counts
    }

    pub fn clear(&self) {
        let _ = nix::unistd::read(&self.0, &mut [0; 8]); // or it has not rung
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Bell> for OwnedFd {
    fn from(bell: Bell) -> Self {
        bell.0
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn a_bell_that_was_rung_by_another_handle_is_readable_until_it_is_cleared() {
        let bell = Bell::new().expect("a descriptor");
        let is_readable =
            || poll(&mut [PollFd::new(bell.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).expect("it can be polled");
        assert_eq!(is_readable(), 0);
        let other = bell.share().expect("a descriptor");
        other.ring();
        other.ring();
        assert_eq!(is_readable(), 1);
        bell.clear();
        assert_eq!(is_readable(), 0);
        bell.clear();
    }
}
