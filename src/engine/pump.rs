//! Moves the bytes of one direction, from a source socket to a sink socket.
//!
//! Small messages are copied: read into the worker's shared buffer, sent on at once. What the sink refuses is kept, and
//! nothing more is read until the sink has taken it: a slow reader stops its own writer. A direction that fills the buffer
//! several times in a row is bulk and is spliced through a borrowed pipe, which costs a third; one that stops doing so goes
//! back. Reading and writing go on until a socket would block, since readiness is told once; a budget bounds each turn.
//! Deliberately absent: the other direction, half-close, resets and deadlines. See tcp::relay.

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;

use super::{Pipes, Readiness};
use crate::limits;
use crate::sys::pipe::{PIPE_BYTES, Pipe};
use crate::sys::socket;

/// Bytes a direction may move before the others have their turn: a pipe full, about 10 µs of splicing. More at a time was not
/// cheaper.
const TURN_BYTES: usize = PIPE_BYTES;

/// The same while pipes are scarce: what is copied from two thousand sockets in turn comes from cold memory each time.
const TURN_BYTES_WITHOUT_PIPES: usize = 4 * PIPE_BYTES;

/// Reads in a row that must fill the buffer before a direction counts as bulk.
const FULL_READS: u8 = 3;

/// A spliced wake-up that moves less than this would have been cheaper copied; so many in a row end the splicing. The
/// cross-over was measured at 4 to 8 KiB a read.
const SMALL_WAKE_BYTES: usize = 8 * 1024;
const SMALL_WAKES: u8 = 8;

/// What all pumps of a worker share: one buffer, since a pump uses it only within a call, and the pipes.
#[derive(Debug)]
pub struct Shared {
    pub buffer: Box<[u8]>,
    /// The most bytes of one read while a direction does not count as bulk.
    small: usize,
    pub pipes: Pipes,
}

impl Shared {
    #[must_use]
    pub fn new(buffer_bytes: usize) -> Self {
        let mut new = Self { buffer: Box::default(), small: 0, pipes: Pipes::new(limits::PIPES_MAX) };
        new.resize(buffer_bytes);
        new
    }

    /// Bulk without a pipe is read in larger pieces: 16 KiB cost half as much again.
    pub fn resize(&mut self, buffer_bytes: usize) {
        self.buffer = vec![0; buffer_bytes.max(PIPE_BYTES)].into();
        self.small = buffer_bytes;
    }
}

#[derive(Debug, Default)]
pub struct Pump {
    /// Bytes that were read and that the sink has refused: at most a buffer full. Empty while a pipe is in use.
    kept: Vec<u8>,
    mode: Mode,
    source_ended: bool,
    /// The last wake-up brought nothing: perhaps it spoke of urgent data, and came before it.
    doubtful: bool,
    /// Bytes moved in all.
    pub moved: u64,
}

#[derive(Debug)]
enum Mode {
    Copy { full_reads: u8 },
    Splice { small_wakes: u8, pipe: Option<(Pipe, usize)> },
}

impl Default for Mode {
    fn default() -> Self {
        Self::Copy { full_reads: 0 }
    }
}

/// Why a pump stopped.
#[derive(Debug)]
pub enum Outcome {
    /// The source has no more bytes for now.
    SourceDry,
    /// The sink takes no more bytes for now.
    SinkFull,
    /// The source has ended and the sink has every byte.
    Ended,
    /// There is more to do; it is the others' turn.
    BudgetSpent,
    SourceFailed(io::Error),
    SinkFailed(io::Error),
}

impl Pump {
    /// A pump that delivers `first` before anything it reads.
    #[must_use]
    pub fn with_first(first: Vec<u8>) -> Self {
        Self { kept: first, ..Self::default() }
    }

    /// True when bytes have been taken from the source that the sink does not have yet.
    #[must_use]
    pub fn holds_bytes(&self) -> bool {
        !self.kept.is_empty() || matches!(self.mode, Mode::Splice { pipe: Some(_), .. })
    }

    /// True while the direction counts as bulk.
    #[must_use]
    pub fn splices(&self) -> bool {
        matches!(self.mode, Mode::Splice { .. })
    }

    /// Moves bytes until a socket would block, the source ends or the budget is spent. `news` is what is known of the source.
    pub fn run(
        &mut self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        news: Readiness,
        shared: &mut Shared,
    ) -> Outcome {
        let before = self.moved;
        // A short read means a dry source, unless an end or an urgent mark stands behind it.
        let more = news.ended || news.urgent || self.doubtful;
        let budget = if shared.pipes.are_scarce() { TURN_BYTES_WITHOUT_PIPES } else { TURN_BYTES };
        let outcome = loop {
            let stop = match &self.mode {
                Mode::Copy { .. } => self.copy(source, sink, more, shared.small, shared),
                Mode::Splice { .. } => self.splice(source, sink, more, shared),
            };
            if let Some(outcome) = stop {
                break outcome;
            }
            if self.moved - before >= budget as u64 {
                break Outcome::BudgetSpent;
            }
        };
        self.doubtful = self.moved == before && matches!(outcome, Outcome::SourceDry);
        self.count_small_wake((self.moved - before) as usize, shared);
        outcome
    }

    /// One read of at most `bytes` and one send.
    fn copy(
        &mut self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        more: bool,
        bytes: usize,
        shared: &mut Shared,
    ) -> Option<Outcome> {
        if !self.kept.is_empty() {
            let sent = match socket::send(sink, &self.kept) {
                Ok(sent) => sent,
                Err(error) => return Some(stop(error, Outcome::SinkFull, Outcome::SinkFailed)),
            };
            self.moved += sent as u64;
            if sent < self.kept.len() {
                self.kept.drain(..sent);
                return Some(Outcome::SinkFull);
            }
            self.kept = Vec::new(); // gives the memory back
        }
        if self.source_ended {
            return Some(Outcome::Ended);
        }
        let read = match socket::receive(source, &mut shared.buffer[..bytes]) {
            Ok(0) => {
                self.source_ended = true;
                return Some(Outcome::Ended);
            }
            Ok(read) => read,
            Err(error) => return Some(stop(error, Outcome::SourceDry, Outcome::SourceFailed)),
        };
        let sent = match socket::send(sink, &shared.buffer[..read]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Some(Outcome::SinkFailed(error)),
        };
        self.moved += sent as u64;
        if sent < read {
            self.kept = shared.buffer[sent..read].to_vec();
            return Some(Outcome::SinkFull);
        }
        let full = read == bytes;
        if let Mode::Copy { full_reads } = &mut self.mode {
            *full_reads = if full { *full_reads + 1 } else { 0 };
            if *full_reads == FULL_READS {
                self.mode = Mode::Splice { small_wakes: 0, pipe: None };
            }
        }
        if full || more { None } else { Some(Outcome::SourceDry) }
    }

    /// One pipe full, or a large copy when there is no pipe to be had. The pipe is filled only when it is empty: then EAGAIN speaks of the source alone.
    fn splice(
        &mut self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        more: bool,
        shared: &mut Shared,
    ) -> Option<Outcome> {
        let Mode::Splice { pipe: place, .. } = &mut self.mode else { return None };
        if place.is_none() && self.kept.is_empty() {
            *place = shared.pipes.borrow().map(|pipe| (pipe, 0));
        }
        let Some((pipe, mut held)) = place.take() else {
            return self.copy(source, sink, more, shared.buffer.len(), shared);
        };
        if held == 0 {
            match pipe.fill(source) {
                Ok(0) => {
                    // The end, or the mark of urgent data: reading tells.
                    shared.pipes.give_back(pipe);
                    self.mode = Mode::default();
                    return None;
                }
                Ok(filled) => held = filled,
                Err(error) => {
                    shared.pipes.give_back(pipe);
                    // Asked each time: of urgent data may have been told before it came, or while older bytes held the pipe.
                    if socket::is_at_mark(source) {
                        self.mode = Mode::default();
                        return None;
                    }
                    return Some(stop(error, Outcome::SourceDry, Outcome::SourceFailed));
                }
            }
        }
        while held > 0 {
            // A drain that moves nothing must not be tried for ever; the kernel is not known to do that.
            match pipe.drain(sink, held).and_then(|n| if n == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(n) }) {
                Ok(drained) => {
                    held -= drained;
                    self.moved += drained as u64;
                }
                Err(error) => {
                    *place = Some((pipe, held));
                    return Some(stop(error, Outcome::SinkFull, Outcome::SinkFailed));
                }
            }
        }
        *place = Some((pipe, 0));
        None
    }

    fn count_small_wake(&mut self, moved: usize, shared: &mut Shared) {
        let Mode::Splice { small_wakes, pipe } = &mut self.mode else { return };
        if let Some((empty, 0)) = pipe.take_if(|(_, held)| *held == 0) {
            shared.pipes.give_back(empty);
        }
        *small_wakes = if moved < SMALL_WAKE_BYTES { small_wakes.saturating_add(1) } else { 0 };
        if *small_wakes >= SMALL_WAKES && pipe.is_none() {
            self.mode = Mode::default();
        }
    }

    /// Lets go of what is shared. A pipe with bytes in it is closed.
    pub fn release(&mut self, shared: &mut Shared) {
        if let Mode::Splice { pipe, .. } = &mut self.mode
            && let Some((pipe, _)) = pipe.take()
        {
            shared.pipes.close(pipe);
        }
    }
}

/// What an error means: wait, or fail.
fn stop(error: io::Error, wait: Outcome, fail: fn(io::Error) -> Outcome) -> Outcome {
    if error.kind() == ErrorKind::WouldBlock { wait } else { fail(error) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::thread;

    use super::*;

    #[test]
    fn bulk_arrives_whole_with_a_pipe_and_without() {
        const BYTES: usize = 8 << 20;
        for pipes in [0, 1] {
            let (mut writer, source) = pair();
            let (sink, mut reader) = pair();
            for end in [&source, &sink] {
                end.set_nonblocking(true).expect("it is a socket");
            }
            let bytes: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
            let mut shared = Shared::new(limits::BUFFER_BYTES);
            shared.pipes = Pipes::new(pipes);
            let got = thread::scope(|scope| {
                scope.spawn(|| {
                    writer.write_all(&bytes).expect("it is sent");
                    writer.shutdown(Shutdown::Write).expect("it ends");
                });
                let reading = scope.spawn(|| {
                    let mut got = Vec::new();
                    reader.read_to_end(&mut got).expect("it is read");
                    got
                });
                let (mut pump, mut heavy) = (Pump::default(), false);
                loop {
                    match pump.run(source.as_fd(), sink.as_fd(), Readiness::default(), &mut shared) {
                        Outcome::Ended => break,
                        Outcome::SourceDry | Outcome::SinkFull | Outcome::BudgetSpent => thread::yield_now(),
                        failed => panic!("{failed:?}"),
                    }
                    heavy |= pump.splices();
                }
                assert!(heavy, "this was bulk");
                assert_eq!(pump.moved, BYTES as u64);
                sink.shutdown(Shutdown::Write).expect("it ends");
                reading.join().expect("it has read")
            });
            assert!(got == bytes, "{pipes} pipes");
        }
    }

    #[test]
    fn an_urgent_byte_that_came_while_bytes_waited_in_the_pipe_is_moved_as_well() {
        let (mut writer, source) = pair();
        let (sink, mut reader) = pair();
        for end in [&writer, &source, &sink, &reader] {
            end.set_nonblocking(true).expect("it is a socket");
        }
        socket::prepare(source.as_fd()).expect("it is a TCP socket");
        let (mut pump, mut shared, mut sent) = (Pump::default(), Shared::new(limits::BUFFER_BYTES), 0);
        let bytes = [b'A'; PIPE_BYTES];
        while !(pump.splices() && pump.holds_bytes()) {
            // No more at a time than one fill takes, so that nothing is left in the source when the sink is full.
            let piece = if pump.splices() { 10_000 } else { bytes.len() };
            sent += writer.write(&bytes[..piece]).unwrap_or(0);
            pump.run(source.as_fd(), sink.as_fd(), Readiness::default(), &mut shared);
        }
        sent += socket2::SockRef::from(&writer).send_out_of_band(b"B").expect("an urgent byte is sent");
        // Told once; what has not been moved when the source is said to be dry stays there.
        let news = Readiness { readable: true, urgent: true, ..Readiness::default() };
        loop {
            while matches!(reader.read(&mut [0; PIPE_BYTES]), Ok(1..)) {}
            match pump.run(source.as_fd(), sink.as_fd(), news, &mut shared) {
                Outcome::SourceDry => break,
                Outcome::SinkFull | Outcome::BudgetSpent => {}
                failed => panic!("{failed:?}"),
            }
        }
        assert_eq!(pump.moved, sent as u64);
    }

    /// The two ends of a connection.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let client = TcpStream::connect(listener.local_addr().expect("it is bound")).expect("it is reached");
        let (server, _) = listener.accept().expect("it came");
        (client, server)
    }
}
