//! The little of D-Bus that is needed to hear of a shutdown from logind, and to delay it.
//!
//! Speaks to the system bus over its socket (D-Bus Specification 0.43: "Authentication
//! Protocol", "Message Format"). Little-endian only; what is not understood is skipped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::UnixStream;

/// logind sends far less; more ends the connection.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// What the bus gets to answer a call.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
const SIGNAL: u8 = 4;

/// A value in a message's body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value<'a> {
    Text(&'a str),
    Number(i32),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub serial: u32,
    pub reply_to: u32,
    pub interface: String,
    pub member: String,
    pub signature: String,
    pub body: Vec<u8>,
}

impl Message {
    pub fn is_signal(&self, interface: &str, member: &str) -> bool {
        self.kind == SIGNAL && self.interface == interface && self.member == member
    }

    /// A body that is one truth value.
    pub fn truth(&self) -> Option<bool> {
        (self.signature == "b").then(|| Some(number(&self.body, 0)? != 0))?
    }

    /// A body that is a variant of a 64-bit number.
    fn variant_number(&self) -> Option<u64> {
        if self.signature != "v" || self.body.get(..3)? != [1, b't', 0] {
            return None;
        }
        Some(u64::from_le_bytes(self.body.get(8..16)?.try_into().ok()?))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    pad(out, 4);
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
    out.push(0);
}

/// A method call as it goes over the socket.
pub fn call(
    serial: u32,
    (destination, path, interface, member): (&str, &str, &str, &str),
    arguments: &[Value<'_>],
) -> Vec<u8> {
    let mut body = Vec::new();
    let mut signature = String::new();
    for argument in arguments {
        match argument {
            Value::Text(text) => {
                signature.push('s');
                put_text(&mut body, text);
            }
            Value::Number(number) => {
                signature.push('i');
                pad(&mut body, 4);
                body.extend(number.to_le_bytes());
            }
        }
    }
    let mut fields = Vec::new();
    let texts = [(1, 'o', path), (2, 's', interface), (3, 's', member), (6, 's', destination)];
    for (code, kind, text) in texts {
        pad(&mut fields, 8);
        fields.extend([code, 1, kind as u8, 0]);
        put_text(&mut fields, text);
    }
    if !signature.is_empty() {
        pad(&mut fields, 8);
        fields.extend([8, 1, b'g', 0, signature.len() as u8]);
        fields.extend(signature.as_bytes());
        fields.push(0);
    }
    let mut out = vec![b'l', CALL, 0, 1];
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(serial.to_le_bytes());
    out.extend((fields.len() as u32).to_le_bytes());
    out.extend(fields);
    pad(&mut out, 8);
    out.extend(body);
    out
}

/// Takes the first whole message out of what has arrived.
///
/// # Errors
/// What is no message of this protocol, or too long.
pub fn take(bytes: &mut Vec<u8>) -> io::Result<Option<Message>> {
    let refuse = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    if bytes.len() < 16 {
        return Ok(None);
    }
    if bytes[0] != b'l' {
        return Err(refuse("the bus does not speak little-endian"));
    }
    let at = |offset| number(bytes, offset).unwrap_or(0) as usize;
    let (body, fields) = (at(4), at(12));
    if body > MESSAGE_BYTES_MAX || fields > MESSAGE_BYTES_MAX {
        return Err(refuse("a message of the bus is too long"));
    }
    let begin = (16 + fields).next_multiple_of(8);
    if bytes.len() < begin + body {
        return Ok(None);
    }
    let mut out =
        Message { kind: bytes[1], serial: number(bytes, 8).unwrap_or(0), ..Message::default() };
    read_fields(&bytes[..16 + fields], &mut out)
        .ok_or_else(|| refuse("a header makes no sense"))?;
    out.body = bytes[begin..begin + body].to_vec();
    bytes.drain(..begin + body);
    Ok(Some(out))
}

fn read_fields(header: &[u8], out: &mut Message) -> Option<()> {
    let mut at = 16;
    while at < header.len() {
        at = at.next_multiple_of(8);
        if at >= header.len() {
            break;
        }
        let (code, length) = (*header.get(at)?, *header.get(at + 1)?);
        // All fields of the specification have types of one letter.
        if length != 1 {
            return None;
        }
        let kind = *header.get(at + 2)?;
        at += 4;
        let text = |from: usize, length: usize| -> Option<String> {
            Some(String::from_utf8_lossy(header.get(from..from.checked_add(length)?)?).into_owned())
        };
        match kind {
            b'u' => {
                let value = number(header, at)?;
                at += 4;
                if code == 5 {
                    out.reply_to = value;
                }
            }
            b's' | b'o' => {
                let length = number(header, at)? as usize;
                let value = text(at + 4, length)?;
                at += 4 + length + 1;
                match code {
                    2 => out.interface = value,
                    3 => out.member = value,
                    _ => {}
                }
            }
            b'g' => {
                let length = usize::from(*header.get(at)?);
                out.signature = text(at + 1, length)?;
                at += 1 + length + 1;
            }
            _ => return None,
        }
    }
    Some(())
}

pub struct Bus {
    socket: UnixStream,
    serial: u32,
    input: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    /// Signals that came while an answer was waited for.
    signals: VecDeque<Message>,
}

const LOGIND: (&str, &str) = ("org.freedesktop.login1", "/org/freedesktop/login1");
pub const MANAGER: &str = "org.freedesktop.login1.Manager";

impl Bus {
    /// Connects and introduces itself.
    ///
    /// # Errors
    /// Where there is no bus, or it does not let us in.
    pub async fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path).await?;
        let mut bus = Self {
            socket,
            serial: 0,
            input: Vec::new(),
            fds: VecDeque::new(),
            signals: VecDeque::new(),
        };
        let user: String = rustix::process::getuid()
            .as_raw()
            .to_string()
            .bytes()
            .map(|b| format!("{b:02x}"))
            .collect();
        bus.say(format!("\0AUTH EXTERNAL {user}\r\n").as_bytes(), "OK").await?;
        bus.say(b"NEGOTIATE_UNIX_FD\r\n", "AGREE_UNIX_FD").await?;
        bus.write(b"BEGIN\r\n").await?;
        let own = "org.freedesktop.DBus";
        bus.call((own, "/org/freedesktop/DBus", own, "Hello"), &[]).await?;
        let rule = format!("type='signal',interface='{MANAGER}',member='PrepareForShutdown'");
        let about = (own, "/org/freedesktop/DBus", own, "AddMatch");
        bus.call(about, &[Value::Text(&rule)]).await?;
        Ok(bus)
    }

    async fn say(&mut self, line: &[u8], want: &str) -> io::Result<()> {
        self.write(line).await?;
        let answer = async {
            loop {
                if let Some(end) = self.input.windows(2).position(|pair| pair == b"\r\n") {
                    let line: Vec<u8> = self.input.drain(..end + 2).collect();
                    return Ok(String::from_utf8_lossy(&line).into_owned());
                }
                self.read().await?;
            }
        };
        let answer: io::Result<String> = in_time(answer).await;
        let answer = answer?;
        if answer.starts_with(want) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the bus says {answer:?}")))
    }

    /// How long logind waits for those who delay a shutdown.
    pub async fn delay_max(&mut self) -> io::Result<Duration> {
        let (name, path) = LOGIND;
        let about = (name, path, "org.freedesktop.DBus.Properties", "Get");
        let arguments = [Value::Text(MANAGER), Value::Text("InhibitDelayMaxUSec")];
        let answer = self.call(about, &arguments).await?;
        let micros = answer.variant_number().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "logind's InhibitDelayMaxUSec is no number")
        })?;
        Ok(Duration::from_micros(micros))
    }

    /// Makes logind read its configuration again.
    pub async fn reload_logind(&mut self) -> io::Result<()> {
        const HANGUP: i32 = 1;
        let manager = "org.freedesktop.systemd1.Manager";
        let about = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", manager, "KillUnit");
        let arguments =
            [Value::Text("systemd-logind.service"), Value::Text("all"), Value::Number(HANGUP)];
        self.call(about, &arguments).await.map(drop)
    }

    /// Delays a shutdown until what is returned is closed.
    pub async fn inhibit(&mut self) -> io::Result<OwnedFd> {
        let (name, path) = LOGIND;
        let why = ["shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay"];
        self.call((name, path, MANAGER, "Inhibit"), &why.map(Value::Text)).await?;
        self.fds.pop_front().ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "logind gave no descriptor to hold")
        })
    }

    async fn call(
        &mut self,
        about: (&str, &str, &str, &str),
        arguments: &[Value<'_>],
    ) -> io::Result<Message> {
        self.serial += 1;
        let serial = self.serial;
        self.write(&call(serial, about, arguments)).await?;
        let answer = async {
            loop {
                let message = self.message().await?;
                match message.kind {
                    RETURN if message.reply_to == serial => return Ok(message),
                    ERROR if message.reply_to == serial => {
                        let text = message.body.get(4..).unwrap_or_default();
                        let text = String::from_utf8_lossy(text);
                        let text = text.trim_end_matches('\0');
                        return Err(io::Error::other(format!("{}: {text}", about.3)));
                    }
                    SIGNAL => self.signals.push_back(message),
                    _ => {}
                }
            }
        };
        in_time(answer).await
    }

    /// The next signal.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn signal(&mut self) -> io::Result<Message> {
        loop {
            if let Some(held) = self.signals.pop_front() {
                return Ok(held);
            }
            let message = self.message().await?;
            if message.kind == SIGNAL {
                return Ok(message);
            }
        }
    }

    async fn message(&mut self) -> io::Result<Message> {
        loop {
            if let Some(message) = take(&mut self.input)? {
                return Ok(message);
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        loop {
            self.socket.readable().await?;
            let (mut buffer, mut fds) = ([0; 4096], Vec::new());
            let outcome = self.socket.try_io(Interest::READABLE, || {
                sys::socket::receive(self.socket.as_fd(), &mut buffer, &mut fds)
            });
            self.fds.extend(fds);
            match outcome {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    self.input.extend_from_slice(&buffer[..length]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        use tokio::io::AsyncWriteExt;
        in_time(self.socket.write_all(bytes)).await
    }
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(ANSWER_PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the bus does not answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_and_come_whole() {
        let about = ("org.x", "/org/x", "org.x.Manager", "Do");
        let sent = call(7, about, &[Value::Text("abc"), Value::Number(1)]);
        assert_eq!(sent.len() % 4, 0);
        for cut in 0..sent.len() {
            assert_eq!(take(&mut sent[..cut].to_vec()).unwrap(), None, "{cut}");
        }
        let mut two = [sent.clone(), sent].concat();
        let read = take(&mut two).unwrap().unwrap();
        assert_eq!((read.kind, read.serial, read.signature.as_str()), (CALL, 7, "si"));
        assert_eq!((read.interface.as_str(), read.member.as_str()), ("org.x.Manager", "Do"));
        assert_eq!(read.body, b"\x03\0\0\0abc\0\x01\0\0\0");
        assert_eq!(take(&mut two).unwrap(), Some(read));
        assert!(two.is_empty());
        let mut big = b"B\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        assert!(take(&mut big).is_err());
        let mut long = b"l\x04\0\x01\xff\xff\xff\x7f\0\0\0\0\0\0\0\0".to_vec();
        assert!(take(&mut long).is_err());
        let mut nonsense = b"l\x04\0\x01\0\0\0\0\0\0\0\0\x08\0\0\0\x01\x05ooooo\0".to_vec();
        assert!(take(&mut nonsense).is_err());
    }

    #[test]
    fn bodies_are_read_by_their_signature() {
        let message = |signature: &str, body: &[u8]| Message {
            signature: signature.into(),
            body: body.to_vec(),
            ..Message::default()
        };
        assert_eq!(message("b", &[1, 0, 0, 0]).truth(), Some(true));
        assert_eq!(message("b", &[0, 0, 0, 0]).truth(), Some(false));
        assert_eq!(message("b", &[1]).truth(), None);
        assert_eq!(message("s", &[1, 0, 0, 0]).truth(), None);
        let body = [&[1, b't', 0, 0, 0, 0, 0, 0][..], &5_000_000u64.to_le_bytes()].concat();
        assert_eq!(message("v", &body).variant_number(), Some(5_000_000));
        assert_eq!(message("v", &body[..12]).variant_number(), None);
    }
}
