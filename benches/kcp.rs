//! How much CPU does a stream cost, both ends together, from `write` to `read`, and does a large window make it dearer? The bound
//! is 0.35 s a GB, the same within 10 % for a window of 1,024 segments and for one of 32,768. The `kcp` crate runs beside it, in
//! turns.
//!
//! That is asked twice. A path that holds 450 segments, 100 Mbit/s at 50 ms, under three settings of the window: nothing but the
//! setting differs, so that what grows is what the code does for it (`450 of 32768`). And paths that fill the window, where
//! the memory of what is in flight grows, too.
//!
//! One thread, virtual time in steps of a millisecond: the writer offers what fills 90 % of the path in a round trip, evenly,
//! as a pacer would. CPU is what the kernel counted for the thread; it begins when the path has been
//! filled eight times, so that no memory is new.
//!
//! The network between the ends has a memory, too: a window of 32,768 is 42 MB, more than most caches. A real one does not stand
//! on this machine, so that `away` keeps only the headers of what is under way; `here` keeps it all, and shows what that costs.
//!
//! Not measured: encryption, sockets, anything of the tunnel.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::io;
use std::rc::Rc;

use gateway::proto::kcp::segment::{HEADER_BYTES, Header};
use gateway::proto::kcp::{Buffers, Conversation, Settings, Stamp};

const SEGMENT_BYTES: usize = 1298;
const DATAGRAM_BYTES: usize = SEGMENT_BYTES + HEADER_BYTES;
const ROUNDS: usize = 5;

/// Segments that the path holds, the window, one way in ms, lost datagrams in 1,000.
const CASES: [(u16, u16, u64, u64); 16] = [
    (450, 1024, 25, 0),
    (450, 4096, 25, 0),
    (450, 32768, 25, 0),
    (450, 1024, 25, 10),
    (450, 4096, 25, 10),
    (450, 32768, 25, 10),
    (128, 128, 1, 0),
    (1024, 1024, 10, 0),
    (1024, 1024, 10, 10),
    (4096, 4096, 10, 0),
    (4096, 4096, 10, 10),
    (16384, 16384, 25, 0),
    (16384, 16384, 25, 10),
    (32768, 32768, 50, 0),
    (32768, 32768, 50, 1),
    (32768, 32768, 50, 10),
];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    println!(
        "segments of the path of the window/one way in ms/loss in %: CPU s/GB, least and median of {ROUNDS}; [datagrams a segment]"
    );
    for memory in [Memory::Away, Memory::Here] {
        let cases = CASES.into_iter().map(|case| Case::new(memory, case));
        let is_wanted = |case: &Case| wanted.iter().all(|word| case.name.to_lowercase().contains(&word.to_lowercase()));
        let mut cases: Vec<Case> = cases.filter(is_wanted).collect();
        // One round of all cases after the other: they differ by less than the machine does from minute to minute.
        (0..ROUNDS).for_each(|_| cases.iter_mut().for_each(Case::measure));
        cases.into_iter().for_each(Case::print);
    }
}

struct Case {
    name: String,
    memory: Memory,
    path: u16,
    window: u16,
    delay: u64,
    loss: u64,
    /// Of ours and of the crate: what each round took, and datagrams a segment.
    costs: [Vec<f64>; 2],
    packets: [f64; 2],
}

impl Case {
    fn new(memory: Memory, (path, window, delay, loss): (u16, u16, u64, u64)) -> Self {
        let name = format!("{memory:?} {path} of {window}/{delay}/{}", loss as f64 / 10.0);
        Self { name, memory, path, window, delay, loss, costs: Default::default(), packets: [0.0; 2] }
    }

    fn measure(&mut self) {
        let Self { memory, path, window, delay, loss, .. } = *self;
        let link = || Link::new(memory, delay, loss);
        let mut ours = Run::new(Ours::new(window), Ours::new(window), link(), link(), path, delay);
        let mut theirs = Run::new(Theirs::new(window), Theirs::new(window), link(), link(), path, delay);
        for (at, (cost, sent)) in [ours.measure(), theirs.measure()].into_iter().enumerate() {
            self.costs[at].push(cost);
            self.packets[at] = sent;
        }
    }

    fn print(mut self) {
        self.costs.iter_mut().for_each(|costs| costs.sort_by(f64::total_cmp));
        let [ours, theirs] = self.costs.map(|costs| format!("{:.3} {:.3}", costs[0], costs[ROUNDS / 2]));
        println!("{:29} ours {ours} [{:.3}]   crate {theirs} [{:.3}]", self.name, self.packets[0], self.packets[1]);
    }
}

/// A writer, a reader, and the two ways between them.
struct Run<E> {
    writer: E,
    reader: E,
    there: Link,
    back: Link,
    now_ms: u64,
    /// Bytes that the path holds.
    holds: u64,
    /// Bytes offered in a step.
    rate: u64,
    delivered: u64,
}

impl<E: End> Run<E> {
    fn new(writer: E, reader: E, there: Link, back: Link, path: u16, delay: u64) -> Self {
        let holds = u64::from(path) * SEGMENT_BYTES as u64;
        Self { writer, reader, there, back, now_ms: 0, holds, rate: holds * 9 / 10 / (2 * delay), delivered: 0 }
    }

    /// CPU seconds for a GB, and datagrams for a segment.
    fn measure(&mut self) -> (f64, f64) {
        self.deliver(8 * self.holds);
        let (bytes, sent, cpu) = (self.delivered, self.there.sent, cpu_ns());
        self.deliver(1_000_000_000);
        let bytes = (self.delivered - bytes) as f64;
        let sent = (self.there.sent - sent) as f64;
        ((cpu_ns() - cpu) as f64 / bytes, sent / (bytes / SEGMENT_BYTES as f64))
    }

    fn deliver(&mut self, bytes: u64) {
        let goal = self.delivered + bytes;
        while self.delivered < goal {
            self.now_ms += 1;
            let now = self.now_ms;
            self.back.deliver(now, |datagram| self.writer.input(now, datagram));
            self.there.deliver(now, |datagram| {
                self.reader.input(now, datagram);
                self.delivered += self.reader.read();
            });
            self.writer.write(self.rate, now, &mut self.there);
            self.reader.write(0, now, &mut self.back);
            assert!(self.now_ms < 10_000_000, "nothing arrives");
        }
    }
}

trait End {
    fn input(&mut self, now_ms: u64, datagram: &[u8]);
    /// Writes as many bytes or fewer, and sends what is due.
    fn write(&mut self, bytes: u64, now_ms: u64, link: &mut Link);
    /// Reads everything, and says how much that was.
    fn read(&mut self) -> u64;
}

struct Ours {
    conversation: Conversation,
    buffers: Buffers,
    scratch: Vec<u8>,
    out: Vec<u8>,
}

impl Ours {
    fn new(window: u16) -> Self {
        let settings = Settings {
            segment_bytes: SEGMENT_BYTES,
            send_window: window,
            receive_window: window,
            send_bytes: usize::from(window) * SEGMENT_BYTES,
            ..Settings::default()
        };
        Self {
            conversation: Conversation::new(1, settings),
            buffers: Buffers::new(SEGMENT_BYTES, 2 * usize::from(window)),
            scratch: vec![7; 1 << 16],
            out: Vec::new(),
        }
    }

    fn send(&mut self, now_ms: u64, link: &mut Link) {
        loop {
            link.prepare(&mut self.out);
            if self.conversation.flush(now_ms * 1000, DATAGRAM_BYTES, 0, Stamp::default(), &self.buffers, &mut self.out)
                == 0
            {
                return;
            }
            link.send(now_ms, &mut self.out);
        }
    }
}

impl End for Ours {
    fn input(&mut self, now_ms: u64, datagram: &[u8]) {
        let taken = self.conversation.input(now_ms * 1000, datagram, &mut self.buffers, |_| {});
        assert_eq!(taken, Ok(datagram.len()));
    }

    fn write(&mut self, mut bytes: u64, now_ms: u64, link: &mut Link) {
        while bytes > 0 {
            let piece = self.scratch.len().min(bytes as usize) / SEGMENT_BYTES * SEGMENT_BYTES;
            let written = self.conversation.write(&self.scratch[..piece], &mut self.buffers);
            self.send(now_ms, link);
            if written == 0 {
                return;
            }
            bytes -= written as u64;
        }
        self.send(now_ms, link);
    }

    fn read(&mut self) -> u64 {
        let mut read = 0;
        while self.conversation.readable() > 0 {
            read += self.conversation.read(&mut self.scratch, &mut self.buffers) as u64;
        }
        read
    }
}

/// The `kcp` crate.
struct Theirs {
    kcp: kcp::Kcp<Output>,
    output: Output,
    window: usize,
    scratch: Vec<u8>,
}

/// The crate writes to what it owns: the link stands in here meanwhile.
#[derive(Clone, Default)]
struct Output(Rc<RefCell<Lent>>);

#[derive(Default)]
struct Lent {
    now_ms: u64,
    link: Option<Link>,
    out: Vec<u8>,
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Lent { now_ms, link, out } = &mut *self.0.borrow_mut();
        let Some(link) = link else { return Ok(bytes.len()) };
        link.prepare(out);
        out.extend_from_slice(bytes);
        link.send(*now_ms, out);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Theirs {
    fn new(window: u16) -> Self {
        let output = Output::default();
        let mut kcp = kcp::Kcp::new_stream(1, output.clone());
        kcp.set_nodelay(true, 10, 2, true);
        kcp.set_wndsize(window, window);
        kcp.set_mtu(DATAGRAM_BYTES).expect("a usual size");
        kcp.update(0).expect("it starts");
        Self { kcp, output, window: usize::from(window), scratch: vec![7; 1 << 16] }
    }
}

impl End for Theirs {
    fn input(&mut self, _: u64, datagram: &[u8]) {
        self.kcp.input(datagram).expect("it understands itself");
    }

    fn write(&mut self, mut bytes: u64, now_ms: u64, link: &mut Link) {
        while bytes > 0 && self.kcp.wait_snd() < self.window {
            let piece = self.scratch.len().min(bytes as usize) / SEGMENT_BYTES * SEGMENT_BYTES;
            self.kcp.send(&self.scratch[..piece]).expect("it takes that much");
            bytes -= piece as u64;
            if piece == 0 {
                break;
            }
        }
        let stand_in = Link::new(link.memory, 0, 0);
        let lent = Some(std::mem::replace(link, stand_in));
        let out = Vec::new();
        *self.output.0.borrow_mut() = Lent { now_ms, link: lent, out };
        self.kcp.update(now_ms as u32).expect("it runs");
        *link = self.output.0.borrow_mut().link.take().expect("it was lent");
    }

    fn read(&mut self) -> u64 {
        let mut read = 0;
        while let Ok(length) = self.kcp.recv(&mut self.scratch) {
            read += length as u64;
        }
        read
    }
}

#[derive(Clone, Copy, Debug)]
enum Memory {
    Away,
    Here,
}

/// One way: what is sent arrives `delay` later, or never.
struct Link {
    memory: Memory,
    delay: u64,
    loss: u64,
    rng: u64,
    sent: u64,
    /// When each arrives, and of how many bytes and segments it is.
    queue: VecDeque<(u64, u32, u32)>,
    /// Of `Memory::Here`.
    datagrams: VecDeque<Vec<u8>>,
    free: Vec<Vec<u8>>,
    /// Of `Memory::Away`, and a datagram as it arrives, whose payload was not kept.
    headers: VecDeque<[u8; HEADER_BYTES]>,
    arrival: Vec<u8>,
}

impl Link {
    fn new(memory: Memory, delay: u64, loss: u64) -> Self {
        let (datagrams, free, headers) = (VecDeque::new(), Vec::new(), VecDeque::new());
        let (queue, arrival) = (VecDeque::new(), vec![7; DATAGRAM_BYTES]);
        Self { memory, delay, loss, rng: 1, sent: 0, queue, datagrams, free, headers, arrival }
    }

    /// Gives `out` a place where a datagram can be written.
    fn prepare(&mut self, out: &mut Vec<u8>) {
        if out.capacity() == 0 {
            *out = self.free.pop().unwrap_or_else(|| Vec::with_capacity(DATAGRAM_BYTES));
        }
        out.clear();
    }

    fn send(&mut self, now: u64, out: &mut Vec<u8>) {
        self.sent += 1;
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        if self.rng % 1000 < self.loss {
            return;
        }
        let mut segments = 0;
        match self.memory {
            Memory::Here => self.datagrams.push_back(std::mem::take(out)),
            Memory::Away => segments = self.keep_headers(out),
        }
        self.queue.push_back((now + self.delay, out.len() as u32, segments));
    }

    fn keep_headers(&mut self, mut datagram: &[u8]) -> u32 {
        let mut segments = 0;
        while let Some((header, _, rest)) = Header::decode(datagram) {
            self.headers.push_back(header.encode());
            (segments, datagram) = (segments + 1, rest);
        }
        segments
    }

    fn deliver(&mut self, now: u64, mut input: impl FnMut(&[u8])) {
        while let Some(&(at, length, segments)) = self.queue.front()
            && at <= now
        {
            self.queue.pop_front();
            if let Some(datagram) = self.datagrams.pop_front() {
                input(&datagram);
                self.free.push(datagram);
                continue;
            }
            let mut at = 0;
            for header in self.headers.drain(..segments as usize) {
                self.arrival[at..at + HEADER_BYTES].copy_from_slice(&header);
                at += HEADER_BYTES + u32::from_le_bytes([header[20], header[21], header[22], header[23]]) as usize;
            }
            input(&self.arrival[..length as usize]);
        }
    }
}

/// What this thread has used so far.
fn cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel that counts");
    text.split_whitespace().next().and_then(|word| word.parse().ok()).expect("its first number")
}
