//! Processes: names, limits, and what must not leave one.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// Overwrites the value of an argument, `--name value` or `--name=value`, where `ps` and `/proc` show it.
///
/// # Errors
/// When `/proc/self/stat` cannot be read or understood.
pub fn wipe_argument(name: &str, value: &str) -> io::Result<()> {
    let joined = format!("{name}={value}");
    in_start_block(ARG_START, |argument| match argument {
        _ if argument == value.as_bytes() => 0,
        _ if argument == joined.as_bytes() => name.len() + 1,
        _ => argument.len(),
    })
}

/// Overwrites the value of a variable in the environment this process was started with. It reads as asterisks from then on.
///
/// # Errors
/// As [`wipe_argument`].
pub fn wipe_variable(name: &str) -> io::Result<()> {
    let start = format!("{name}=");
    in_start_block(
        ENV_START,
        |variable| if variable.starts_with(start.as_bytes()) { start.len() } else { variable.len() },
    )
}

/// Fields of /proc/self/stat, counted from 1 as in proc(5); the next one is the end of the same block.
const ARG_START: usize = 48;
const ENV_START: usize = 50;

/// Overwrites each string of a block from where `keep` says. Only for a process that has one thread yet.
fn in_start_block(field: usize, keep: impl Fn(&[u8]) -> usize) -> io::Result<()> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The command name is in brackets and may hold spaces and brackets. The first field behind it is the third.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(field - 3);
    let mut address = || fields.next().and_then(|field| field.parse::<usize>().ok());
    let (Some(start @ 1..), Some(end)) = (address(), address()) else {
        return Err(io::Error::other("/proc/self/stat has an unknown form"));
    };
    // SAFETY: the kernel placed this block here, writable, for the life of the process. This thread is the only one, and
    // holds no reference into it.
    let block = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end.saturating_sub(start)) };
    for string in block.split_mut(|byte| *byte == 0) {
        let from = keep(string).min(string.len());
        string[from..].fill(b'*');
    }
    Ok(())
}

/// True when the process lives and is named `name`.
#[must_use]
pub fn is_running(pid: i32, name: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
}

/// The epoll set of this process with the lowest number: that of its runtime, when asked before anybody has made another one.
/// The runtime does not hand it out; the kernel tells it apart by what it answers to a change of something it does not watch.
///
/// # Errors
/// `ENOENT` when there is none.
pub fn poll_set() -> io::Result<OwnedFd> {
    let stranger = nix::sys::eventfd::EventFd::new()?;
    let number = (3..POLL_SET_MAX).find(|number| {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: `event` outlives the call, which changes nothing: the set does not know this descriptor.
        let answer = unsafe { libc::epoll_ctl(*number, libc::EPOLL_CTL_MOD, stranger.as_raw_fd(), &raw mut event) };
        answer == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::ENOENT)
    });
    let number = number.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
    // SAFETY: it was open a moment ago, and this thread has closed nothing since; the borrow ends with this line.
    unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()
}

/// A runtime is among the first things a process opens.
const POLL_SET_MAX: RawFd = 256;

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

/// Whether this processor has instructions for AES and for the multiplication that GCM needs.
#[must_use]
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}
