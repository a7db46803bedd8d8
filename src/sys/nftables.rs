//! Rules of nf_tables, written into one batch that the kernel takes whole or not at all.
//!
//! Touches only the table that a batch names. What the rules say is the caller's matter.

pub mod expr;

use crate::netlink::{Error, Message, Result, Socket, as_be64, attribute, attributes};
pub use expr::{Expr, Verdict};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENTS: u16 = SUBSYSTEM | 14;

/// Elements in one message; an attribute holds 64 KiB and an element takes up to 300 bytes.
const ELEMENTS_PER_MESSAGE: usize = 200;
/// Longer comments are cut.
const COMMENT_BYTES_MAX: usize = 100;

const FLAG_MAP: u32 = 0x08;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_DYNAMIC: u32 = 0x20;
const VERDICT_TYPE: u32 = 0xffff_ff00;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Ipv4 => libc::AF_INET as u8,
            Self::Ipv6 => libc::AF_INET6 as u8,
        }
    }
}

/// Where a base chain is called.
#[derive(Debug, Clone, Copy)]
pub struct Base {
    /// "nat" or "filter".
    pub kind: &'static str,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

/// The type of one field of a key, as `nft` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Ipv4,
    Ipv6,
    Protocol,
    Port,
    Mark,
}

impl Field {
    fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Mark => 19,
        }
    }

    /// With padding to whole registers.
    fn bytes(self) -> u32 {
        if self == Self::Ipv6 { 16 } else { 4 }
    }
}

fn type_of(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |sum, field| (sum << 6) | field.number())
}

fn bytes_of(fields: &[Field]) -> u32 {
    fields.iter().map(|field| field.bytes()).sum()
}

#[derive(Debug, Clone, Copy)]
pub enum Holds<'a> {
    /// A plain set.
    Nothing,
    Verdicts,
    Values(&'a [Field]),
}

/// A set or a map.
#[derive(Debug, Clone, Copy)]
pub struct Set<'a> {
    pub name: &'a str,
    pub key: &'a [Field],
    pub holds: Holds<'a>,
    /// Packets may add elements, up to this many, each with a timeout of its own.
    pub dynamic: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Nothing,
    Verdict(Verdict),
    Bytes(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    pub value: Value,
    pub comment: String,
    /// Lifetime and what is left of it, in milliseconds.
    pub timeout: Option<(u64, u64)>,
}

/// Changes to one table that happen together.
pub struct Batch {
    family: Family,
    table: String,
    messages: Vec<Message>,
    sets: u32,
}

fn body(family: Family) -> [u8; 4] {
    [family.number(), 0, 0, 0]
}

impl Batch {
    pub fn new(family: Family, table: &str) -> Self {
        let begin = Message::new(BATCH_BEGIN, 0, "begin", &[0, 0, 0, 10]);
        Self { family, table: table.to_string(), messages: vec![begin], sets: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.messages.len() == 1
    }

    fn push(&mut self, kind: u16, flags: i32, what: String) -> &mut Message {
        self.messages.push(Message::new(kind, flags, what, &body(self.family)));
        let last = self.messages.len() - 1;
        let message = &mut self.messages[last];
        message.attr_str(1, &self.table);
        message
    }

    pub fn add_table(&mut self) -> &mut Self {
        self.push(NEW_TABLE, libc::NLM_F_CREATE, "add the table".into());
        self
    }

    pub fn delete_table(&mut self) -> &mut Self {
        self.push(DELETE_TABLE, 0, "delete the table".into());
        self
    }

    pub fn add_chain(&mut self, name: &str) -> &mut Self {
        self.push(NEW_CHAIN, libc::NLM_F_CREATE, format!("add chain {name}")).attr_str(3, name);
        self
    }

    pub fn add_base_chain(&mut self, name: &str, base: Base) -> &mut Self {
        self.push(NEW_CHAIN, libc::NLM_F_CREATE, format!("add chain {name}"))
            .attr_str(3, name)
            .nest(4, |hook| {
                hook.attr_be32(1, base.hook as u32).attr_be32(2, base.priority as u32);
            })
            .attr_be32(5, libc::NF_ACCEPT as u32)
            .attr_str(7, base.kind);
        self
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        self.push(DELETE_RULE, 0, format!("flush chain {name}")).attr_str(2, name);
        self
    }

    /// Appends a rule.
    pub fn add_rule(&mut self, chain: &str, expressions: &[Expr<'_>]) -> &mut Self {
        let family = self.family;
        let flags = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        self.push(NEW_RULE, flags, format!("add rule to {chain}")).attr_str(2, chain).nest(
            4,
            |list| {
                for expression in expressions {
                    expression.write(list, family);
                }
            },
        );
        self
    }

    pub fn add_set(&mut self, set: &Set<'_>) -> &mut Self {
        self.sets += 1;
        let id = self.sets;
        let mut flags = 0;
        if !matches!(set.holds, Holds::Nothing) {
            flags |= FLAG_MAP;
        }
        if set.dynamic.is_some() {
            flags |= FLAG_TIMEOUT | FLAG_DYNAMIC;
        }
        let message = self.push(NEW_SET, libc::NLM_F_CREATE, format!("add set {}", set.name));
        message
            .attr_str(2, set.name)
            .attr_be32(3, flags)
            .attr_be32(4, type_of(set.key))
            .attr_be32(5, bytes_of(set.key));
        match set.holds {
            Holds::Nothing => {}
            Holds::Verdicts => {
                message.attr_be32(6, VERDICT_TYPE).attr_be32(7, 0);
            }
            Holds::Values(fields) => {
                message.attr_be32(6, type_of(fields)).attr_be32(7, bytes_of(fields));
            }
        }
        if let Some(size) = set.dynamic {
            message.nest(9, |desc| {
                desc.attr_be32(1, size);
            });
        }
        message.attr_be32(10, id);
        self
    }

    pub fn add_elements(&mut self, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(NEW_ELEMENTS, set, elements, "add to")
    }

    /// Only the keys count. A key that is not there fails the batch.
    pub fn delete_elements(&mut self, set: &str, elements: &[Element]) -> &mut Self {
        self.elements(DELETE_ELEMENTS, set, elements, "delete from")
    }

    fn elements(&mut self, kind: u16, set: &str, elements: &[Element], verb: &str) -> &mut Self {
        let delete = kind == DELETE_ELEMENTS;
        let flags = if delete { 0 } else { libc::NLM_F_CREATE };
        for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
            let what = match part {
                [one] if !one.comment.is_empty() => format!("{verb} {set}: {}", one.comment),
                _ => format!("{verb} {set}"),
            };
            self.push(kind, flags, what).attr_str(2, set).nest(3, |list| {
                for element in part {
                    list.nest(1, |item| write_element(item, element, delete));
                }
            });
        }
        self
    }

    /// Makes the changes. On an error nothing has changed; the error names the message that
    /// the kernel refused first.
    pub fn commit(self) -> Result<()> {
        match self.is_empty() {
            true => Ok(()),
            false => self.commit_through(&mut Writer::open()?),
        }
    }

    /// As `commit`, for those who change a table often.
    pub fn commit_through(mut self, writer: &mut Writer) -> Result<()> {
        if self.is_empty() {
            return Ok(());
        }
        self.messages.push(Message::new(BATCH_END, 0, "commit", &[0, 0, 0, 10]));
        let what = format!("change table {}", self.table);
        writer.0.transact(&what, self.messages)
    }
}

/// A connection to nf_tables that stays. Closing one makes the kernel clear away what was
/// deleted before, and waits for that: some milliseconds.
#[derive(Debug)]
pub struct Writer(Socket);

impl Writer {
    pub fn open() -> Result<Self> {
        Socket::open(libc::NETLINK_NETFILTER).map(Self)
    }
}

fn write_element(item: &mut Message, element: &Element, key_only: bool) {
    item.nest(1, |key| {
        key.attr(1, &element.key);
    });
    if key_only {
        return;
    }
    match &element.value {
        Value::Nothing => {}
        Value::Verdict(verdict) => {
            item.nest(2, |data| verdict.write(data));
        }
        Value::Bytes(bytes) => {
            item.nest(2, |data| {
                data.attr(1, bytes);
            });
        }
    }
    if let Some((timeout, left)) = element.timeout {
        item.attr_be64(4, timeout).attr_be64(5, left);
    }
    if !element.comment.is_empty() {
        let mut end = element.comment.len().min(COMMENT_BYTES_MAX);
        while !element.comment.is_char_boundary(end) {
            end -= 1;
        }
        let text = &element.comment.as_bytes()[..end];
        // Type 0 (comment), length with the NUL, text.
        let mut data = vec![0, text.len() as u8 + 1];
        data.extend_from_slice(text);
        data.push(0);
        item.attr(6, &data);
    }
}

/// Whether the table exists.
pub fn exists(family: Family, table: &str) -> Result<bool> {
    let mut message = Message::new(GET_TABLE, 0, format!("look up table {table}"), &body(family));
    message.attr_str(1, table);
    match Socket::open(libc::NETLINK_NETFILTER)?.request(message) {
        Ok(_) => Ok(true),
        Err(err) if err.is_missing() => Ok(false),
        Err(err) => Err(err),
    }
}

/// Reads the elements of a map of values. A map that does not exist is empty.
pub fn elements(family: Family, table: &str, set: &str) -> Result<Vec<Element>> {
    let mut message = Message::new(GET_ELEMENTS, 0, format!("read {set}"), &body(family));
    message.attr_str(1, table).attr_str(2, set);
    let read: Result<Vec<Vec<Element>>> =
        Socket::open(libc::NETLINK_NETFILTER)?.dump(&message, |payload| {
            let list = attribute(payload.get(4..)?, 3)?;
            Some(attributes(list).filter_map(|(_, item)| parse_element(item)).collect())
        });
    match read {
        Ok(parts) => Ok(parts.into_iter().flatten().collect()),
        Err(err) if err.is_missing() => Ok(Vec::new()),
        Err(err) => Err(err),
    }
}

fn parse_element(item: &[u8]) -> Option<Element> {
    let mut element =
        Element { key: Vec::new(), value: Value::Nothing, comment: String::new(), timeout: None };
    let (mut timeout, mut left) = (None, None);
    for (kind, value) in attributes(item) {
        match kind {
            1 => element.key = attribute(value, 1)?.to_vec(),
            2 => {
                if let Some(bytes) = attribute(value, 1) {
                    element.value = Value::Bytes(bytes.to_vec());
                }
            }
            4 => timeout = as_be64(value),
            5 => left = as_be64(value),
            _ => {}
        }
    }
    element.timeout = timeout.zip(left);
    Some(element)
}

/// Takes a table away. Safe to repeat.
pub fn delete_table(family: Family, table: &str) -> Result<()> {
    let mut batch = Batch::new(family, table);
    batch.delete_table();
    match batch.commit() {
        Err(err) if Error::is_missing(&err) => Ok(()),
        other => other,
    }
}
