//! The first line of a client, as far as it has arrived.
//!
//! 1. Bytes are collected until a newline; a carriage return before it is dropped. No newline in time or in bounds: refused.
//! 2. The line is opened. If that succeeds the client goes on at once, and what followed the newline is for the backend.
//! 3. If not, the refusal waits for a fixed time after the newline, whatever was wrong and however long it took to find out.
//! 4. `openssl enc -a` wraps its output at 64 columns. A line of exactly 64 characters that does not open is therefore joined
//!    with the next one, if that one arrives while the refusal waits.
//!
//! Deliberately absent: what opening means. The caller brings it along.

use std::time::{Duration, Instant};

use super::status::Refusal;

/// The longest line, bytes, without its terminator. A target of 253 + 6 bytes makes a token of 384; the rest is room for
/// tokens that say more.
pub const LINE_BYTES_MAX: usize = 1024;

/// Where `openssl enc -a` wraps, characters.
pub const WRAP_COLUMNS: usize = 64;

/// A wrong line is refused so long after it was complete: longer than any work on it can take, so that the time of the answer
/// says nothing about what was wrong.
pub const VERDICT_DELAY: Duration = Duration::from_millis(20);

/// Room for the longest line, with the terminators of a wrapped one and some bytes behind it. What does not fit stays in the
/// socket.
pub const COLLECTED_BYTES_MAX: usize = 2 * LINE_BYTES_MAX;

const _: () = assert!(COLLECTED_BYTES_MAX >= LINE_BYTES_MAX + 2 * LINE_BYTES_MAX.div_ceil(WRAP_COLUMNS));

#[derive(Debug)]
pub struct Line {
    bytes: Vec<u8>,
    /// Where the line that is being collected starts.
    start: usize,
    /// Where the search for its newline goes on.
    searched: usize,
    deadline: Instant,
    wrong: Option<Wrong>,
}

/// Complete, and not opened.
#[derive(Debug)]
struct Wrong {
    due: Instant,
    /// The lines so far, when another one may still complete them.
    joined: Option<Vec<u8>>,
}

#[derive(Debug)]
pub enum Progress<T> {
    /// Nothing to do before more bytes, the end of the stream, or this time.
    WaitUntil(Instant),
    /// The line opened at this time. `early` came behind it and is for the backend.
    Opened {
        target: T,
        early: Vec<u8>,
        completed: Instant,
    },
    Refused(Refusal),
}

impl Line {
    /// A line that must be complete by `deadline`.
    #[must_use]
    pub fn new(deadline: Instant) -> Self {
        Self { bytes: Vec::new(), start: 0, searched: 0, deadline, wrong: None }
    }

    /// How many bytes may be handed over now. At 0, stop reading.
    #[must_use]
    pub fn room(&self) -> usize {
        COLLECTED_BYTES_MAX - self.bytes.len()
    }

    /// Takes the next bytes of the stream, at most [`Self::room`]. `open` judges a complete line.
    pub fn handle_bytes<T>(&mut self, now: Instant, bytes: &[u8], open: impl Fn(&[u8]) -> Option<T>) -> Progress<T> {
        self.bytes.extend_from_slice(bytes);
        while self.may_go_on() {
            let Some(newline) = self.bytes[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.bytes.len();
                break;
            };
            let newline = self.searched + newline;
            let line = without_return(&self.bytes[self.start..newline]);
            if self.wrong.is_none() && line.len() > LINE_BYTES_MAX {
                return Progress::Refused(Refusal::LineTooLong);
            }
            let wrapped = line.len() == WRAP_COLUMNS;
            let token = match self.wrong.take().and_then(|wrong| wrong.joined) {
                None => line.to_vec(),
                Some(joined) => [&joined, line].concat(),
            };
            if token.len() <= LINE_BYTES_MAX
                && let Some(target) = open(&token)
            {
                return Progress::Opened { target, early: self.bytes.split_off(newline + 1), completed: now };
            }
            self.wrong = Some(Wrong { due: now + VERDICT_DELAY, joined: wrapped.then_some(token) });
            (self.start, self.searched) = (newline + 1, newline + 1);
        }
        let line = &self.bytes[self.start..];
        if self.wrong.is_none() && without_return(line).len() > LINE_BYTES_MAX {
            return Progress::Refused(Refusal::LineTooLong);
        }
        self.handle_timeout(now)
    }

    /// The client has ended its half of the stream.
    pub fn handle_end<T>(&mut self, now: Instant) -> Progress<T> {
        if self.wrong.is_none() { Progress::Refused(Refusal::LineCutShort) } else { self.handle_timeout(now) }
    }

    pub fn handle_timeout<T>(&mut self, now: Instant) -> Progress<T> {
        match &self.wrong {
            Some(wrong) if wrong.due <= now => Progress::Refused(Refusal::LineWrong),
            Some(wrong) => Progress::WaitUntil(wrong.due),
            None if self.deadline <= now => Progress::Refused(Refusal::LineLate),
            None => Progress::WaitUntil(self.deadline),
        }
    }

    /// Whether another line can change the verdict.
    fn may_go_on(&self) -> bool {
        self.wrong.as_ref().is_none_or(|wrong| wrong.joined.is_some())
    }
}

fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    /// A line in fast motion: opens exactly the tokens it is given.
    struct Client {
        line: Line,
        opens: Vec<u8>,
        start: Instant,
        now: Instant,
        end: Option<Progress<()>>,
    }

    impl Client {
        fn new(opens: &[u8]) -> Self {
            let start = clock::now();
            let line = Line::new(start + Duration::from_secs(10));
            Self { line, opens: opens.to_vec(), start, now: start, end: None }
        }

        fn note(&mut self, progress: Progress<()>) {
            if !matches!(progress, Progress::WaitUntil(_)) {
                self.end.get_or_insert(progress);
            }
        }

        fn sends(mut self, bytes: &[u8]) -> Self {
            for part in bytes.chunks(self.line.room().max(1)) {
                if self.end.is_none() {
                    let progress = self.line.handle_bytes(self.now, part, |token| (token == self.opens).then_some(()));
                    self.note(progress);
                }
            }
            self
        }

        fn ends(mut self) -> Self {
            let progress = self.line.handle_end(self.now);
            self.note(progress);
            self
        }

        fn waits(mut self, milliseconds: u64) -> Self {
            self.now += Duration::from_millis(milliseconds);
            let progress = self.line.handle_timeout(self.now);
            self.note(progress);
            self
        }

        /// What came of it: the early data, or the name of the refusal and its time.
        fn verdict(self) -> String {
            let after = self.now - self.start;
            match self.end {
                None => "nothing".into(),
                Some(Progress::Opened { early, .. }) => format!("opened, early {:?}", String::from_utf8_lossy(&early)),
                Some(Progress::Refused(refusal)) => format!("{refusal:?} after {after:?}"),
                Some(Progress::WaitUntil(_)) => unreachable!("not kept"),
            }
        }
    }

    #[test]
    fn a_line_opens_at_its_newline_and_what_follows_is_early_data() {
        assert_eq!(Client::new(b"token").sends(b"token\n").verdict(), r#"opened, early """#);
        assert_eq!(Client::new(b"token").sends(b"token\nhello\n").verdict(), r#"opened, early "hello\n""#);
        assert_eq!(
            Client::new(b"token").sends(b"tok").sends(b"en\r").sends(b"\nhi").verdict(),
            r#"opened, early "hi""#
        );
        assert_eq!(Client::new(b"token").sends(b"token").verdict(), "nothing");
    }

    #[test]
    fn a_wrong_line_is_refused_twenty_milliseconds_after_it_was_complete() {
        assert_eq!(Client::new(b"token").sends(b"abc\n").waits(19).verdict(), "nothing");
        assert_eq!(Client::new(b"token").sends(b"abc\n").waits(20).verdict(), "LineWrong after 20ms");
        assert_eq!(Client::new(b"token").sends(b"abc\n").ends().waits(20).verdict(), "LineWrong after 20ms");
        assert_eq!(Client::new(b"token").sends(b"\n").waits(20).verdict(), "LineWrong after 20ms");
        assert_eq!(Client::new(b"token").sends(b"abc\ntoken\n").waits(20).verdict(), "LineWrong after 20ms");
        let late = Client::new(b"token").waits(9_999).sends(b"abc\n").waits(5);
        assert_eq!(late.waits(15).verdict(), "LineWrong after 10.019s");
    }

    #[test]
    fn no_complete_line_is_a_bad_request() {
        assert_eq!(Client::new(b"token").ends().verdict(), "LineCutShort after 0ns");
        assert_eq!(Client::new(b"token").sends(b"token").ends().verdict(), "LineCutShort after 0ns");
        assert_eq!(Client::new(b"token").sends(b"token").waits(9_999).verdict(), "nothing");
        assert_eq!(Client::new(b"token").sends(b"token").waits(10_000).verdict(), "LineLate after 10s");
    }

    #[test]
    fn a_line_of_1024_bytes_is_read_and_no_longer_one() {
        let line = [b'x'; LINE_BYTES_MAX];
        for terminator in [&b"\n"[..], b"\r\n"] {
            let client = Client::new(&line).sends(&line).sends(terminator);
            assert_eq!(client.verdict(), r#"opened, early """#);
        }
        let over = [&line[..], b"x"].concat();
        assert_eq!(Client::new(&over).sends(&over).sends(b"\n").verdict(), "LineTooLong after 0ns");
        assert_eq!(Client::new(&over).sends(&over).verdict(), "LineTooLong after 0ns");
        assert_eq!(Client::new(&line).sends(&line).sends(b"\r").verdict(), "nothing");
    }

    #[test]
    fn a_wrapped_token_is_joined_while_its_refusal_waits() {
        let (head, middle) = ([b'h'; 64], [b'm'; 64]);
        let token = [&head[..], &middle, b"tail"].concat();
        let lines = [&head[..], b"\n", &middle, b"\r\n", b"tail\nearly"].concat();
        assert_eq!(Client::new(&token).sends(&lines).verdict(), r#"opened, early "early""#);
        for cut in 0..lines.len() {
            let client = Client::new(&token).sends(&lines[..cut]).waits(19).sends(&lines[cut..]);
            assert!(client.verdict().starts_with("opened"), "cut at {cut}");
        }
        let client = Client::new(&token).sends(&lines[..65]).waits(20).sends(&lines[65..]);
        assert_eq!(client.verdict(), "LineWrong after 20ms");
    }

    #[test]
    fn a_wrong_token_of_64_characters_is_refused_without_another_line() {
        let line = [[b'x'; 64].as_slice(), b"\n"].concat();
        assert_eq!(Client::new(b"token").sends(&line).waits(20).verdict(), "LineWrong after 20ms");
        assert_eq!(Client::new(b"token").sends(&line).ends().waits(20).verdict(), "LineWrong after 20ms");
        assert_eq!(Client::new(b"token").sends(&line).sends(b"abc").waits(20).verdict(), "LineWrong after 20ms");
        assert_eq!(
            Client::new(b"token").sends(&line).waits(5).sends(b"abc\n").waits(20).verdict(),
            "LineWrong after 25ms"
        );
        assert_eq!(Client::new(b"token").sends(&line).sends(&[b'y'; 4096]).waits(20).verdict(), "LineWrong after 20ms");
    }

    #[test]
    fn wrapped_lines_have_the_same_bound() {
        let lines = [[b'x'; 64].as_slice(), b"\n"].concat().repeat(16);
        let token = [b'x'; 1024];
        assert_eq!(Client::new(&token).sends(&lines).verdict(), r#"opened, early """#);
        let over = [&lines[..], b"y\n"].concat();
        let token = [&token[..], b"y"].concat();
        assert_eq!(Client::new(&token).sends(&over).waits(20).verdict(), "LineWrong after 20ms");
    }
}
