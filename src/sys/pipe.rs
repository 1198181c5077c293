//! Pipes and `splice(2)`: the kernel's way to move bytes between sockets without copying them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl};

/// The size of a pipe that the kernel gives to anyone below `fs.pipe-user-pages-soft`; above it a pipe has 8 KiB.
pub const PIPE_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipe {
    /// A new pipe of full size.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE`, `ENOMEM`; `EDQUOT` for a pipe that the kernel made small, which is worth less than copying.
    pub fn new() -> io::Result<Self> {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let capacity = fcntl(&read, FcntlArg::F_GETPIPE_SZ)?;
        if usize::try_from(capacity).is_ok_and(|capacity| capacity >= PIPE_BYTES) {
            Ok(Self { read, write })
        } else {
            Err(io::Error::from_raw_os_error(libc::EDQUOT))
        }
    }

    /// Moves what `source` holds into the pipe, which must be empty. `Ok(0)` is the end of the stream, or the mark of urgent
    /// data.
    ///
    /// # Errors
    /// `EAGAIN` from a splice into a pipe does not tell which end stopped us: a 64 KiB pipe is full after 16 segments of one
    /// byte. Into an *empty* pipe it can only be the socket, which is why this is the only way it may be called.
    pub fn fill(&self, source: BorrowedFd<'_>) -> io::Result<usize> {
        splice(source, self.write.as_fd(), usize::from(u16::MAX) + 1)
    }

    /// Moves up to `bytes` bytes of the pipe to `sink`.
    ///
    /// # Errors
    /// `EAGAIN` with bytes in the pipe can only be the sink.
    pub fn drain(&self, sink: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
        splice(self.read.as_fd(), sink, bytes)
    }
}

/// SPLICE_F_NONBLOCK speaks of the pipe only: the socket must be O_NONBLOCK itself, or this sleeps. SPLICE_F_MORE is never
/// set: it holds the last segment of every message back for 200 ms.
fn splice(from: BorrowedFd<'_>, to: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(nix::fcntl::splice(from, None, to, None, bytes, flags)?)
}
