//! Netlink by hand: a socket, a message that is being written, attributes that are read.
//!
//! Everything is synchronous: the kernel answers a request before the send returns, so a
//! call takes microseconds. Speaks for the network namespace of the thread that opened
//! the socket. Does not listen to notifications.

pub mod conntrack;
pub mod route;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::{check, check_int, own};

/// Replies are read in pieces of this size; the kernel packs dumps into at most 32 KiB.
const READ_BYTES: usize = 64 * 1024;
/// A dump that a concurrent change tore is read again at most so often.
const DUMP_RETRIES_MAX: u32 = 8;
/// The kernel answers at once; without any answer for so long the request has failed.
const ANSWER_SECONDS: i64 = 5;

const HEADER_BYTES: usize = 16;
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// What was asked of the kernel, and why it refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}{note}")]
pub struct Error {
    pub what: String,
    /// The kernel's own words, where it has any.
    note: String,
    #[source]
    source: io::Error,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(what: impl Into<String>, source: io::Error) -> Self {
        Self { what: what.into(), note: String::new(), source }
    }

    pub fn code(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(0)
    }

    /// What was named does not exist.
    pub fn is_missing(&self) -> bool {
        matches!(self.code(), libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL)
    }

    pub fn is_existing(&self) -> bool {
        self.code() == libc::EEXIST
    }
}

impl From<Error> for io::Error {
    fn from(err: Error) -> Self {
        Self::new(err.source.kind(), err)
    }
}

/// Treats "it is not there" as success, for removals that may be repeated.
pub fn ignore_missing(result: Result<()>) -> Result<()> {
    match result {
        Err(err) if err.is_missing() => Ok(()),
        other => other,
    }
}

/// One request while it is written.
#[derive(Debug, Clone)]
pub struct Message {
    bytes: Vec<u8>,
    what: String,
}

impl Message {
    /// `what` names the request in errors. `body` is the fixed part before attributes.
    pub fn new(kind: u16, flags: i32, what: impl Into<String>, body: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        let mut message = Self { bytes, what: what.into() };
        message.raw(body);
        message
    }

    /// Appends bytes and pads to four.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
    }

    pub fn attr(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = u16::try_from(value.len() + 4).expect("attributes are shorter than 64 KiB");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
        self
    }

    /// A string with its NUL byte.
    pub fn attr_str(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    pub fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Most of netfilter's numbers are big-endian.
    pub fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn attr_be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.attr(kind, &value.to_be_bytes())
    }

    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        inner(self);
        let length = u16::try_from(self.bytes.len() - start)
            .expect("nested attributes are shorter than 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn add_flags(&mut self, flags: i32) {
        let now = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags as u16;
        self.bytes[6..8].copy_from_slice(&now.to_ne_bytes());
    }

    fn seal(&mut self, sequence: u32) -> &[u8] {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// Walks attributes; stops at the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

pub fn as_u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(0..4)?.try_into().ok()?))
}

pub fn as_be16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.get(0..2)?.try_into().ok()?))
}

pub fn as_be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.get(0..8)?.try_into().ok()?))
}

pub fn as_text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

fn header(bytes: &[u8]) -> Option<Header> {
    let length = as_u32(bytes)? as usize;
    if length < HEADER_BYTES || length > bytes.len() {
        return None;
    }
    Some(Header {
        length,
        kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
        flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
        sequence: as_u32(bytes.get(8..12)?)?,
    })
}

/// Splits what was received into messages: header and payload.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    std::iter::from_fn(move || {
        let header = header(bytes)?;
        let payload = &bytes[HEADER_BYTES..header.length];
        bytes = bytes.get(header.length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    })
}

/// The error number of an answer (0 is an acknowledgement) and the kernel's words.
fn verdict(header: &Header, payload: &[u8]) -> (i32, String) {
    let code = as_u32(payload).map_or(libc::EPROTO, |code| -(code as i32));
    let mut note = String::new();
    if header.flags & libc::NLM_F_ACK_TLVS as u16 != 0 {
        // The echoed header follows the code; its payload does too unless it was capped.
        let echoed = payload.get(4..8).and_then(as_u32).unwrap_or(16) as usize;
        let capped = header.flags & libc::NLM_F_CAPPED as u16 != 0;
        let skip = 4 + if capped { HEADER_BYTES } else { echoed.next_multiple_of(4) };
        if let Some(text) = payload.get(skip..).and_then(|rest| attribute(rest, 1)) {
            note = format!(" ({})", as_text(text));
        }
    }
    (code, note)
}

/// A netlink socket. Requests on it are answered one after the other.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// `protocol` is for example `libc::NETLINK_ROUTE`.
    pub fn open(protocol: i32) -> Result<Self> {
        Self::try_open(protocol).map_err(|err| Error::new("open a netlink socket", err))
    }

    fn try_open(protocol: i32) -> io::Result<Self> {
        // SAFETY: plain numbers.
        let fd = own(unsafe {
            libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol)
        }
        .into())?;
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            set_option(&fd, libc::SOL_NETLINK, option, 1i32)?;
        }
        let patience = libc::timeval { tv_sec: ANSWER_SECONDS as _, tv_usec: 0 };
        set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, patience)?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; READ_BYTES] })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer is ours and as long as we say.
        check(unsafe {
            libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) as libc::c_long
        })
        .map(drop)
    }

    fn receive(&mut self, flags: i32) -> io::Result<usize> {
        loop {
            // SAFETY: the buffer is ours and as long as we say.
            let answer = check(unsafe {
                libc::recv(
                    self.fd.as_raw_fd(),
                    self.buffer.as_mut_ptr().cast(),
                    self.buffer.len(),
                    flags,
                ) as libc::c_long
            });
            match answer {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(|length| length as usize),
            }
        }
    }

    /// Sends one request and waits for the kernel's word. Gives the payloads it sent.
    pub fn request(&mut self, mut message: Message) -> Result<Vec<Vec<u8>>> {
        message.add_flags(libc::NLM_F_ACK);
        let sequence = self.next_sequence();
        let what = std::mem::take(&mut message.what);
        let sent = self.send(message.seal(sequence));
        sent.map_err(|err| Error::new(&what, err))?;
        let mut answers = Vec::new();
        loop {
            let length = self.receive(0).map_err(|err| Error::new(&what, err))?;
            for (header, payload) in messages(&self.buffer[..length]) {
                if header.sequence != sequence {
                    continue;
                }
                if i32::from(header.kind) != libc::NLMSG_ERROR {
                    answers.push(payload.to_vec());
                    continue;
                }
                return match verdict(&header, payload) {
                    (0, _) => Ok(answers),
                    (code, note) => {
                        let source = io::Error::from_raw_os_error(code);
                        Err(Error { what, note, source })
                    }
                };
            }
        }
    }

    /// Like [`Socket::request`] for callers that want no answer.
    pub fn execute(&mut self, message: Message) -> Result<()> {
        self.request(message).map(drop)
    }

    /// Reads a whole table of the kernel's, calling `each` with every payload. A table that
    /// changed meanwhile is read again, so `restart` is told to forget.
    pub fn dump<T>(
        &mut self,
        message: &Message,
        mut each: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let mut retries = 0;
        loop {
            let (found, torn) = self.dump_once(message.clone(), &mut each)?;
            retries += 1;
            if !torn || retries > DUMP_RETRIES_MAX {
                return Ok(found);
            }
        }
    }

    fn dump_once<T>(
        &mut self,
        mut message: Message,
        each: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<(Vec<T>, bool)> {
        message.add_flags(libc::NLM_F_DUMP);
        let sequence = self.next_sequence();
        let what = std::mem::take(&mut message.what);
        let sent = self.send(message.seal(sequence));
        sent.map_err(|err| Error::new(&what, err))?;
        let (mut found, mut torn) = (Vec::new(), false);
        loop {
            let length = self.receive(0).map_err(|err| Error::new(&what, err))?;
            for (header, payload) in messages(&self.buffer[..length]) {
                if header.sequence != sequence {
                    continue;
                }
                torn |= header.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(header.kind) {
                    libc::NLMSG_DONE => return Ok((found, torn)),
                    libc::NLMSG_ERROR => {
                        let (code, note) = verdict(&header, payload);
                        let source = io::Error::from_raw_os_error(code);
                        return Err(Error { what, note, source });
                    }
                    _ => found.extend(each(payload)),
                }
            }
        }
    }

    /// Sends messages as one piece and collects what the kernel has to say about them. Only
    /// for families that work a batch off inside the send (nf_tables).
    pub(crate) fn transact(&mut self, what: &str, mut batch: Vec<Message>) -> Result<()> {
        let fail = |err| Error::new(what, err);
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(batch.len() as u32);
        // The last message before the closing one asks for an answer, so that silence is not
        // mistaken for success.
        let count = batch.len();
        if let Some(last) = count.checked_sub(2).and_then(|at| batch.get_mut(at)) {
            last.add_flags(libc::NLM_F_ACK);
        }
        let mut bytes = Vec::with_capacity(batch.iter().map(Message::len).sum());
        for (offset, message) in batch.iter_mut().enumerate() {
            bytes.extend_from_slice(message.seal(first.wrapping_add(offset as u32)));
        }
        let room = i32::try_from(bytes.len() + 64 * 1024).unwrap_or(i32::MAX);
        set_option(&self.fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, room).map_err(fail)?;
        self.send(&bytes).map_err(fail)?;
        let mut acknowledged = false;
        let mut failed: Option<Error> = None;
        loop {
            let length = match self.receive(libc::MSG_DONTWAIT) {
                Ok(length) => length,
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => break,
                Err(err) => return Err(fail(err)),
            };
            for (header, payload) in messages(&self.buffer[..length]) {
                let offset = header.sequence.wrapping_sub(first) as usize;
                if i32::from(header.kind) != libc::NLMSG_ERROR || offset >= count {
                    continue;
                }
                match verdict(&header, payload) {
                    (0, _) => acknowledged |= offset + 2 == count,
                    (code, note) if failed.is_none() => {
                        let message = &batch[offset].what;
                        failed = Some(Error {
                            what: format!("{what}: {message}"),
                            note,
                            source: io::Error::from_raw_os_error(code),
                        });
                    }
                    _ => {}
                }
            }
        }
        match failed {
            Some(err) => Err(err),
            None if acknowledged || count <= 2 => Ok(()),
            None => Err(fail(io::Error::other("the kernel did not answer the batch"))),
        }
    }
}

fn set_option<T>(fd: &OwnedFd, level: i32, option: i32, value: T) -> io::Result<()> {
    // SAFETY: the value lives until the call returns and is as long as we say.
    check_int(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_do_not_fit_end_the_walk() {
        let mut message = Message::new(1, 0, "test", &[]);
        message.attr_str(3, "abc").nest(4, |inner| {
            inner.attr_u32(1, 7);
        });
        let body = &message.bytes[HEADER_BYTES..];
        assert_eq!(as_text(attribute(body, 3).unwrap()), "abc");
        assert_eq!(as_u32(attribute(attribute(body, 4).unwrap(), 1).unwrap()), Some(7));
        for cut in 0..body.len() {
            assert!(attributes(&body[..cut]).count() <= 2);
        }
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0, "a length of zero does not loop");
    }
}
