//! One server's connection: frames in, frames and descriptors out.
//!
//! Reads what the socket has and never waits; knows no containers.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use sys::socket;

use super::super::proto::{self, Message};

/// What a connection may leave unread before it is closed.
const UNSENT_BYTES_MAX: usize = 8 << 20;

pub struct Connection {
    pub socket: OwnedFd,
    pub input: Vec<u8>,
    pub fds: Vec<OwnedFd>,
    pub output: Vec<u8>,
    pub closed: bool,
}

impl Connection {
    pub fn send(&mut self, message: &Message, fd: Option<&OwnedFd>) {
        let Ok(bytes) = proto::frame(message) else {
            self.closed = true;
            return;
        };
        self.flush();
        if let Some(fd) = fd {
            if !self.output.is_empty() {
                // A server that reads so slowly cannot be given a descriptor in order.
                self.closed = true;
                return;
            }
            match socket::send(self.socket.as_fd(), &bytes, &[fd.as_fd()]) {
                Ok(sent) => self.output.extend_from_slice(&bytes[sent..]),
                Err(_) => self.closed = true,
            }
            return;
        }
        self.output.extend_from_slice(&bytes);
        self.flush();
        if self.output.len() > UNSENT_BYTES_MAX {
            self.closed = true;
        }
    }

    pub fn flush(&mut self) {
        while !self.output.is_empty() {
            match socket::send(self.socket.as_fd(), &self.output, &[]) {
                Ok(sent) => drop(self.output.drain(..sent)),
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
        self.output = Vec::new();
    }
}
