//! Header blocks of SPDY/3: names and values, compressed with a memory and a dictionary.
//!
//! A block that unpacks to more than its bound is an error.

use std::collections::BTreeMap;
use std::io;

use bytes::BufMut;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::{CONTROL_BYTES_MAX, broken};

pub type Headers = BTreeMap<String, String>;

/// The words that both sides' header compression starts from (SPDY/3, 2.6.10.1).
fn dictionary() -> Vec<u8> {
    const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
        accept-language accept-ranges age allow authorization cache-control connection \
        content-base content-encoding content-language content-length content-location \
        content-md5 content-range content-type date etag expect expires from host if-match \
        if-modified-since if-none-match if-range if-unmodified-since last-modified location \
        max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after \
        server te trailer transfer-encoding upgrade user-agent vary via warning \
        www-authenticate method get status 200\u{1}OK version HTTP/1.1 url public set-cookie \
        keep-alive origin";
    const TAIL: &str = "10010120120220520630030230330430530630740240540640740840941041141241341441\
        5416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 \
        Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
        Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec \
        00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,\
        image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivate\
        max-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split_ascii_whitespace() {
        let word = word.replace('\u{1}', " ");
        out.extend_from_slice(&(word.len() as u32).to_be_bytes());
        out.extend_from_slice(word.as_bytes());
    }
    out.extend_from_slice(TAIL.as_bytes());
    out
}

pub struct Unpacker(Decompress);

impl Unpacker {
    pub fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub fn unpack(&mut self, mut input: &[u8]) -> io::Result<Headers> {
        let mut out: Vec<u8> = Vec::with_capacity(1024);
        loop {
            if out.len() == out.capacity() {
                if out.len() >= CONTROL_BYTES_MAX {
                    return Err(broken("headers are too large"));
                }
                out.reserve(out.capacity());
            }
            let before = (self.0.total_in(), out.len());
            let status = match self.0.decompress_vec(input, &mut out, FlushDecompress::Sync) {
                Ok(status) => status,
                Err(error) if error.needs_dictionary().is_some() => {
                    let used = (self.0.total_in() - before.0) as usize;
                    input = input.get(used..).unwrap_or_default();
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| broken("headers use an unknown dictionary"))?;
                    continue;
                }
                Err(_) => return Err(broken("headers cannot be unpacked")),
            };
            let used = (self.0.total_in() - before.0) as usize;
            input = input.get(used..).unwrap_or_default();
            let stuck = used == 0 && out.len() == before.1 && out.len() < out.capacity();
            if status == Status::StreamEnd
                || stuck
                || (input.is_empty() && out.len() < out.capacity())
            {
                break;
            }
        }
        parse_headers(&out)
    }
}

fn parse_headers(mut block: &[u8]) -> io::Result<Headers> {
    let mut out = Headers::new();
    let count = take_u32(&mut block)?;
    for _ in 0..count {
        let name = take_text(&mut block)?;
        let value = take_text(&mut block)?;
        if name.is_empty() {
            return Err(broken("a header has no name"));
        }
        // Several values are parted by NUL; the first one is what is asked for.
        let value = value.split('\0').next().unwrap_or_default().to_owned();
        out.insert(name.to_ascii_lowercase(), value);
    }
    Ok(out)
}

fn take_u32(block: &mut &[u8]) -> io::Result<u32> {
    let (head, rest) =
        block.split_first_chunk::<4>().ok_or_else(|| broken("headers are cut off"))?;
    *block = rest;
    Ok(u32::from_be_bytes(*head))
}

fn take_text(block: &mut &[u8]) -> io::Result<String> {
    let length = take_u32(block)? as usize;
    let text = block.get(..length).ok_or_else(|| broken("headers are cut off"))?;
    *block = &block[length..];
    String::from_utf8(text.to_vec()).map_err(|_| broken("a header is not text"))
}

pub struct Packer(Compress);

impl Packer {
    pub fn new() -> Self {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&dictionary()).expect("a fresh stream takes a dictionary");
        Self(compress)
    }

    pub fn pack(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut block = Vec::new();
        block.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for text in [name, value] {
                block.put_u32(text.len() as u32);
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(block.len() + 64);
        let mut input = block.as_slice();
        loop {
            let before = self.0.total_in();
            self.0
                .compress_vec(input, &mut out, FlushCompress::Sync)
                .map_err(|_| broken("headers cannot be packed"))?;
            input = &input[(self.0.total_in() - before) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        let bytes = dictionary();
        assert_eq!(bytes.len(), 1423);
        let (mut a, mut b) = (1u32, 0u32);
        for byte in &bytes {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((b << 16) | a, 0xe3c6_a7c2);
    }

    #[test]
    fn headers_survive_packing_and_the_memory_of_the_compression() {
        let (mut packer, mut unpacker) = (Packer::new(), Unpacker::new());
        for round in 0..50 {
            let headers: Headers = [
                ("streamtype".to_owned(), "data".to_owned()),
                ("port".to_owned(), "8080".to_owned()),
                ("requestid".to_owned(), round.to_string()),
                ("long".to_owned(), "x".repeat(round * 100)),
            ]
            .into();
            let packed = packer.pack(&headers).unwrap();
            assert_eq!(unpacker.unpack(&packed).unwrap(), headers);
        }
    }
}
