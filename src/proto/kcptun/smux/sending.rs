//! What is sent: frames of one stream after the other, a few kilobytes each.

use super::frame::{Command, Header, UPDATE_BYTES};
use super::stream::Half;
use super::{Mux, OUTGOING_BYTES_MAX, StreamId, WINDOW_BYTES_MIN};
use crate::proto::kcptun::Event;

/// Payload of a frame, and so what a stream sends at its turn. As much as kcptun takes from its sockets at a time.
const TURN_BYTES: usize = 4 << 10;

impl Mux {
    /// Shows the peer that we live, even if nothing else is sent.
    pub fn show_life(&mut self) {
        self.owes_sign_of_life = true;
    }

    #[must_use]
    pub fn has_to_send(&self) -> bool {
        self.owes_sign_of_life || !self.endings.is_empty() || !self.turns.is_empty()
    }

    /// Gives the stream a turn, if it has something to send and does not wait for one yet.
    pub(super) fn queue(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.is_queued && stream.has_to_send()) {
            stream.is_queued = true;
            self.turns.begin(id);
        }
    }

    /// Appends frames until there are about `bytes`, or there is nothing to send.
    pub fn write_frames(&mut self, bytes: usize, out: &mut Vec<u8>) {
        let end = out.len() + bytes;
        if std::mem::take(&mut self.owes_sign_of_life) {
            self.append(Command::Nothing, 0, 0, out);
        }
        while out.len() < end
            && let Some(id) = self.endings.pop_front()
        {
            self.append(Command::Finish, id, 0, out);
        }
        while out.len() < end
            && let Some(id) = self.turns.next()
        {
            self.serve(id, out);
        }
    }

    /// One stream's turn.
    fn serve(&mut self, id: u32, out: &mut Vec<u8>) {
        self.append_small(id, out);
        self.append_payload(id, out);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.owes_finish() {
            stream.ours = Half::Finished;
            stream.is_queued = false;
            self.append(Command::Finish, id, 0, out);
            self.forget_if_over(id);
            return;
        }
        stream.is_queued = stream.has_to_send();
        if stream.is_queued {
            self.turns.go_on(id);
        }
    }

    fn append_small(&mut self, id: u32, out: &mut Vec<u8>) {
        let owes_update = self.streams.get(&id).is_some_and(|stream| stream.owes_update);
        let window = if owes_update { self.window(id) } else { 0 };
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let opens = std::mem::take(&mut stream.owes_open);
        let update = owes_update.then(|| stream.update(window));
        if opens {
            self.append(Command::Open, id, 0, out);
        }
        if let Some(update) = update {
            self.append(Command::Update, id, UPDATE_BYTES, out);
            out.extend_from_slice(&update.encode());
        }
    }

    /// Bytes that the stream may keep unread: half of what the others neither keep nor were promised, so that readers that stop do
    /// not hold up the others. Streams that are read from all the time come to equal shares by that. Looks at all of them,
    /// once in half a window, which is 8 KiB at least.
    fn window(&self, id: u32) -> u32 {
        let others = self.streams.iter().filter(|(other, _)| **other != id);
        let reserved = others.map(|(_, stream)| stream.reserved()).sum();
        let share = u32::try_from(self.limits.unread_bytes.saturating_sub(reserved) / 2).unwrap_or(u32::MAX);
        share.max(WINDOW_BYTES_MIN).min(self.limits.stream_unread_bytes)
    }

    fn append_payload(&mut self, id: u32, out: &mut Vec<u8>) {
        let length = self.streams.get(&id).map_or(0, |stream| stream.sendable().min(TURN_BYTES));
        if length == 0 {
            return;
        }
        self.append(Command::Push, id, length, out);
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.send(length, out);
        self.outgoing -= length;
        let is_half_empty = stream.outgoing.len() <= OUTGOING_BYTES_MAX / 2;
        if is_half_empty && stream.ours == Half::Open && std::mem::take(&mut stream.wants_room) {
            self.events.push_back(Event::Writable(StreamId(id)));
        }
    }

    fn append(&self, command: Command, stream: u32, length: usize, out: &mut Vec<u8>) {
        let header = Header { version: self.version, command, length: length as u16, stream }; // At most a turn's bytes.
        out.extend_from_slice(&header.encode());
    }
}
