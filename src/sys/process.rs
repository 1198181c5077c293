//! Processes: names, limits, and what must not leave one.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Sets the name that `ps -o comm` shows; the pid file knows a supervisor by it.
///
/// # Errors
/// None that is known.
pub fn set_name(name: &std::ffi::CStr) -> io::Result<()> {
    Ok(nix::sys::prctl::set_name(name)?)
}

/// No core dump, and no other process of the same user reads this memory.
///
/// # Errors
/// None that is known.
pub fn seal_memory() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// Raises the limit of open descriptors as far as it goes and tells where it is.
///
/// # Errors
/// None that is known.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => Ok(hard),
        Err(_) => Ok(soft),
    }
}

/// Overwrites every occurrence of `secret` in the argument vector and the environment this process was started with, which
/// `ps` and `/proc` show to others. Only for a process that has one thread yet.
///
/// # Errors
/// When `/proc/self/stat` cannot be read or understood.
pub fn wipe_from_start_block(secret: &[u8]) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The command name is in brackets and may hold spaces. Counted from 1 as in proc(5), the first field behind it is 3.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let field = |number: usize| -> io::Result<usize> {
        let value = fields.get(number - 3).and_then(|field| field.parse().ok());
        value.ok_or_else(|| io::Error::other("/proc/self/stat has an unknown form"))
    };
    const ARG_START: usize = 48; // then arg_end, env_start, env_end
    for (start, end) in [(field(ARG_START)?, field(ARG_START + 1)?), (field(ARG_START + 2)?, field(ARG_START + 3)?)] {
        if start == 0 || end <= start || secret.is_empty() {
            continue;
        }
        // SAFETY: the kernel placed argv and environ at these addresses, writable, for the life of the process. This thread
        // is the only one, and holds no reference into them.
        let block = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) };
        let mut from = 0;
        while let Some(found) = block[from..].windows(secret.len()).position(|window| window == secret) {
            block[from + found..from + found + secret.len()].fill(b'*');
            from += found + secret.len();
        }
    }
    Ok(())
}

/// True when the process lives and is named `name`.
#[must_use]
pub fn is_running(pid: i32, name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
}

/// Number of processors this process may use.
#[must_use]
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Takes a descriptor that the kernel has just given to us.
pub(crate) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: callers pass what accept4, recvmsg or a completion returned to them alone, once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
