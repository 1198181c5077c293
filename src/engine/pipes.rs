//! The pipes of a worker. A direction borrows one while bytes are in flight and gives it back empty.

use crate::sys::pipe::Pipe;

/// Requests that are declined after the kernel has declined one, before it is asked again. It takes 30 µs to do so; copying
/// what one request stands for takes as long.
const DECLINED: u32 = 1000;

/// Pipes at rest, and how many there are in all: at `max` nobody gets another one, and copies instead.
#[derive(Debug)]
pub struct Pipes {
    at_rest: Vec<Pipe>,
    alive: usize,
    max: usize,
    /// Requests still to be declined unasked.
    declined: u32,
}

impl Pipes {
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { at_rest: Vec::new(), alive: 0, max, declined: 0 }
    }

    /// An empty pipe, or `None` when there is none to be had: the bound is reached, descriptors have run out, or this user
    /// has so many pipes that the kernel makes small ones.
    pub(super) fn borrow(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.at_rest.pop() {
            return Some(pipe);
        }
        if self.alive >= self.max {
            return None;
        }
        if self.declined > 0 {
            self.declined -= 1;
            return None;
        }
        match Pipe::new() {
            Ok(pipe) => {
                self.alive += 1;
                Some(pipe)
            }
            Err(_scarce) => {
                self.declined = DECLINED;
                None
            }
        }
    }

    /// The kernel has declined one lately, or all are in use.
    pub(super) fn are_scarce(&self) -> bool {
        self.declined > 0 || (self.at_rest.is_empty() && self.alive >= self.max)
    }

    /// Takes an empty pipe back.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.at_rest.push(pipe);
    }

    /// Closes a pipe that still holds bytes: the next borrower must not meet them.
    pub(super) fn close(&mut self, pipe: Pipe) {
        drop(pipe);
        self.alive -= 1;
    }
}
