//! Sparse files in PAX archives, which GNU tar describes in extended headers ("Storing Sparse
//! Files", its manual): forms 0.0, 0.1 and 1.0. The archive holds what is not a hole. The form
//! of old GNU archives is the tar library's; here its zeros become holes again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

/// Stretches of data in one file; a file of more is refused.
const STRETCHES_MAX: usize = 1 << 20;
/// Digits of a number in the map of form 1.0, with its newline.
const NUMBER_BYTES_MAX: u64 = 24;
const BLOCK_BYTES: u64 = 512;
/// What is looked at for zeros at once.
const CHUNK_BYTES: usize = 16 << 10;

/// What the extended headers say of a file with holes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Sparse {
    /// Instead of the entry's own, where there is one.
    pub name: Option<Vec<u8>>,
    bytes: u64,
    /// Offset and length; None where they precede the data (form 1.0).
    map: Option<Vec<(u64, u64)>>,
}

fn refuse(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("sparse file: {why}"))
}

fn number(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.trim_end_matches('\n').parse().ok())
        .ok_or_else(|| refuse("a number of its map is malformed"))
}

impl Sparse {
    /// None for a file without holes. `records` are the entry's extended headers in order.
    ///
    /// # Errors
    /// A map that is malformed.
    pub fn of<'a>(records: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> io::Result<Option<Self>> {
        let (mut sparse, mut is_sparse, mut precedes) = (Self::default(), false, false);
        let (mut map, mut offset) = (Vec::new(), None);
        for (key, value) in records {
            let Some(key) = key.strip_prefix(b"GNU.sparse.") else { continue };
            match key {
                b"name" => sparse.name = Some(value.to_vec()),
                b"realsize" | b"size" => (sparse.bytes, is_sparse) = (number(value)?, true),
                b"major" => precedes = number(value)? == 1,
                b"map" => {
                    let numbers =
                        value.split(|byte| *byte == b',').take(2 * STRETCHES_MAX + 1).map(number);
                    let numbers = numbers.collect::<io::Result<Vec<u64>>>()?;
                    map = numbers.chunks(2).map(|it| (it[0], *it.last().unwrap_or(&0))).collect();
                    if numbers.len() % 2 != 0 {
                        return Err(refuse("its map is cut off"));
                    }
                }
                b"offset" => offset = Some(number(value)?),
                b"numbytes" => {
                    let at = offset.take().ok_or_else(|| refuse("its map is malformed"))?;
                    map.push((at, number(value)?));
                }
                _ => {}
            }
            if map.len() > STRETCHES_MAX {
                return Err(refuse("its map is too long"));
            }
        }
        sparse.map = (!precedes).then_some(map);
        Ok(is_sparse.then_some(sparse))
    }

    /// Writes the file with its holes; gives the bytes of its data.
    ///
    /// # Errors
    /// Where the map names what is outside of the file, or the archive ends in it.
    pub fn write(&self, entry: impl Read, file: &mut File) -> io::Result<u64> {
        let mut data = BufReader::new(entry);
        let read;
        let map = match &self.map {
            Some(map) => map,
            None => {
                read = preceding(&mut data)?;
                &read
            }
        };
        let (mut end, mut bytes) = (0, 0);
        for (at, length) in map {
            let next = at.checked_add(*length).filter(|next| *at >= end && *next <= self.bytes);
            end = next.ok_or_else(|| refuse("its map names what is outside of it"))?;
            file.seek(SeekFrom::Start(*at))?;
            if io::copy(&mut data.by_ref().take(*length), file)? != *length {
                return Err(refuse("its data is cut off"));
            }
            bytes += length;
        }
        file.set_len(self.bytes)?;
        file.flush()?;
        Ok(bytes)
    }
}

/// Writes what is read as a file in which blocks of zeros are holes; gives its bytes.
pub fn copy(mut from: impl Read, file: &mut File) -> io::Result<u64> {
    let (mut chunk, mut at) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let length = from.by_ref().take(CHUNK_BYTES as u64).read(&mut chunk)?;
        if length == 0 {
            file.set_len(at)?;
            return Ok(at);
        }
        if chunk[..length].iter().any(|byte| *byte != 0) {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&chunk[..length])?;
        }
        at += length as u64;
    }
}

/// The map of form 1.0: how many stretches, then offset and length of each, a line a number,
/// filled up to a block.
fn preceding(data: &mut impl BufRead) -> io::Result<Vec<(u64, u64)>> {
    let mut read = 0;
    let mut next = || -> io::Result<u64> {
        let mut line = Vec::new();
        read += data.by_ref().take(NUMBER_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
        if !line.ends_with(b"\n") {
            return Err(refuse("a number of its map is malformed"));
        }
        number(&line)
    };
    let count = next()?;
    if count > STRETCHES_MAX as u64 {
        return Err(refuse("its map is too long"));
    }
    let map = (0..count).map(|_| Ok((next()?, next()?))).collect::<io::Result<Vec<_>>>()?;
    let rest = read.next_multiple_of(BLOCK_BYTES) - read;
    io::copy(&mut data.by_ref().take(rest), &mut io::sink())?;
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(records: &[(&str, &str)]) -> io::Result<Option<Sparse>> {
        Sparse::of(records.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes())))
    }

    fn written(sparse: &Sparse, data: &[u8]) -> io::Result<Vec<u8>> {
        let mut file = tempfile::tempfile().unwrap();
        sparse.write(data, &mut file)?;
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    }

    #[test]
    fn all_three_forms_say_the_same_file() {
        assert_eq!(said(&[("path", "x"), ("SCHILY.xattr.user.a", "b")]).unwrap(), None);
        let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")];
        let one = [&one[..], &[("GNU.sparse.name", "f"), ("GNU.sparse.realsize", "9")]].concat();
        let one = said(&one).unwrap().unwrap();
        assert_eq!(one.name.as_deref(), Some(&b"f"[..]));
        let mut data = b"2\n1\n2\n5\n1\n".to_vec();
        data.resize(512, 0);
        data.extend(b"abc");
        let middle = said(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "1,2,5,1")]);
        let oldest = said(&[
            ("GNU.sparse.size", "9"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "1"),
            ("GNU.sparse.numbytes", "2"),
            ("GNU.sparse.offset", "5"),
            ("GNU.sparse.numbytes", "1"),
        ]);
        let wanted = b"\0ab\0\0c\0\0\0";
        assert_eq!(written(&one, &data).unwrap(), wanted);
        assert_eq!(written(&middle.unwrap().unwrap(), b"abc").unwrap(), wanted);
        assert_eq!(written(&oldest.unwrap().unwrap(), b"abc").unwrap(), wanted);
    }

    #[test]
    fn maps_that_lie_are_refused() {
        for map in ["1", "5,1,1,1", "8,2", "18446744073709551615,2", "a,b"] {
            let told = said(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", map)]);
            let refused = told.and_then(|it| written(&it.unwrap(), b"abcdef"));
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidData, "{map}");
        }
        let whole = said(&[("GNU.sparse.size", "9"), ("GNU.sparse.map", "0,9")]).unwrap().unwrap();
        assert_eq!(written(&whole, b"abc").unwrap_err().kind(), io::ErrorKind::InvalidData);
        let one = said(&[("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "9")]);
        let one = one.unwrap().unwrap();
        for data in [&b"99999999\n"[..], b"1\n2", b"", b"1\n000000000000000000000000000000001\n"] {
            assert!(written(&one, data).is_err());
        }
    }
}
