//! `gateway.pid`: the process ids of all live supervisors of a directory, one a line, so that `kill $(cat gateway.pid)` stops
//! them all.
//!
//! Each change is made under a lock on the file and put in place by a rename, so that nobody ever reads half of it. Whoever
//! waited for the lock of a file that has been replaced meanwhile starts again. A file that is not plainly a pid file of ours
//! (a link, a FIFO, another user's, other text) is left alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

use super::{Error, PROCESS_NAME};
use crate::sys;

/// Longer files are not ours: this holds a thousand supervisors.
const FILE_BYTES_MAX: u64 = 8 * 1024;

/// Our line in the file, for as long as this lives.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
}

impl PidFile {
    pub(super) fn register(path: PathBuf) -> Result<Self, Error> {
        let path = std::path::absolute(path)?;
        match change(&path, |pids| pids.push(own_pid())) {
            Ok(()) => Ok(Self { path }),
            Err(problem) => Err(Error::PidFile { path, problem }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(problem) = change(&self.path, |_| {}) {
            tracing::warn!(problem, "the pid file keeps our line");
        }
    }
}

fn own_pid() -> i32 {
    std::process::id().cast_signed()
}

/// Puts the live ones of the others' pids into the file, and what `add` adds. An empty file is removed.
fn change(path: &Path, add: impl Fn(&mut Vec<i32>)) -> Result<(), String> {
    loop {
        let (file, created) = open(path)?;
        let file = lock(file)?;
        if !is_still_at(&file, path) {
            continue; // replaced while we waited
        }
        let mut pids = if created { Vec::new() } else { read(&file)? };
        pids.retain(|pid| *pid != own_pid() && sys::process::is_running(*pid, &PROCESS_NAME.to_string_lossy()));
        add(&mut pids);
        let done = if pids.is_empty() { fs::remove_file(path) } else { replace(path, &pids) };
        return done.map_err(|error| format!("cannot write it: {error}"));
    }
}

/// Takes the lock. We hold it for a moment only; somebody who keeps it, as anybody who may read the file can, must not keep us
/// from starting or ending.
fn lock(mut file: File) -> Result<Flock<File>, String> {
    let until = sys::clock::now() + LOCK_PATIENCE;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, Errno::EWOULDBLOCK | Errno::EINTR)) if sys::clock::now() < until => file = unlocked,
            Err((_, errno)) => return Err(format!("cannot lock it: {errno}")),
        }
        std::thread::park_timeout(LOCK_PAUSE);
    }
}

const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Opens the file, or makes it. Never follows a link, never waits for a FIFO.
fn open(path: &Path) -> Result<(File, bool), String> {
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    loop {
        let made =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).custom_flags(flags).open(path);
        match made {
            Ok(file) => return Ok((file, true)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(format!("cannot create it: {error}")),
        }
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => return Ok((file, false)),
            Err(error) if error.kind() == ErrorKind::NotFound => {} // removed between the two
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err("it is a symbolic link".to_owned()),
            Err(error) => return Err(format!("cannot open it: {error}")),
        }
    }
}

fn is_still_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let (here, there) = (file.metadata().map(identity), fs::symlink_metadata(path).map(identity));
    matches!((here, there), (Ok(here), Ok(there)) if here == there)
}

fn read(mut file: &File) -> Result<Vec<i32>, String> {
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a regular file".to_owned());
    }
    if metadata.nlink() != 1 {
        return Err("it has other names (hard links)".to_owned());
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err("it belongs to another user".to_owned());
    }
    let mut text = String::new();
    let foreign = || "it holds something else than process ids".to_owned();
    if metadata.len() > FILE_BYTES_MAX || file.read_to_string(&mut text).is_err() {
        return Err(foreign());
    }
    text.split_whitespace().map(|pid| pid.parse().ok().filter(|pid| *pid > 0).ok_or_else(foreign)).collect()
}

fn replace(path: &Path, pids: &[i32]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", own_pid()));
    let temporary = PathBuf::from(name);
    let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
    let _ = fs::remove_file(&temporary); // of a former process with our pid
    let written = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&temporary);
    let done = written.and_then(|mut file| file.write_all(text.as_bytes())).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_added_and_taken_away_with_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gateway.pid");
        let registered = PidFile::register(path.clone()).expect("it is ours");
        assert_eq!(fs::read_to_string(&path).expect("it is there"), format!("{}\n", own_pid()));
        drop(registered);
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn the_lines_of_the_dead_go_and_other_text_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gateway.pid");
        fs::write(&path, "999999999\n").expect("it is written");
        drop(PidFile::register(path.clone()).expect("the dead do not hold it"));
        assert!(!path.exists());
        for text in ["root:x:0:0", "12 34 x", "-1", "0", "\u{fffd}"] {
            fs::write(&path, text).expect("it is written");
            assert!(PidFile::register(path.clone()).is_err(), "{text:?}");
            assert_eq!(fs::read_to_string(&path).expect("it is there"), text);
        }
    }

    #[test]
    fn many_at_once_lose_no_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gateway.pid");
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || {
                    (0..50).for_each(|_| change(&path, |pids| pids.push(own_pid())).expect("ours"))
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(fs::read_to_string(&path).expect("it is there"), format!("{}\n", own_pid()));
        assert_eq!(fs::read_dir(directory.path()).expect("it is there").count(), 1, "no temporary file is left");
    }
}
