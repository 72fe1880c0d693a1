//! A file of any length with a header, checksummed piece by piece: what snapshots and backups are kept in.
//!
//! | part | bytes |
//! | --- | --- |
//! | magic | 8: which kind of file |
//! | format | 4, and every number after it little-endian |
//! | header | length (4), JSON, CRC-32C of everything so far (4) |
//! | pieces | length (4, at most [`MAX_PIECE_BYTES`]), CRC-32C of number and bytes (4), bytes |
//! | end | length 0 (4), bytes of all pieces (8), CRC-32C of all their bytes (4), of the two before (4) |
//!
//! Reading needs memory for one piece. A file that is cut, damaged or followed by anything is refused, at the
//! latest at its end: what was read until then must not be used before.

use std::io::{self, ErrorKind, Read, Write};

use thiserror::Error;

/// Version of the container that is written. Every older one is read.
pub const FORMAT: u32 = 2;
/// Bytes of one piece, at most.
pub const MAX_PIECE_BYTES: usize = 256 * 1024;
/// Bytes of a header, at most.
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Why a file is not believed.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ContainerError {
    #[error("it is no {what}")]
    Other { what: &'static str },
    #[error(
        "it has format {found}, this release reads up to {FORMAT}: use the release that wrote it, or a later one"
    )]
    Newer { found: u32 },
    #[error("its header has {bytes} bytes, at most {MAX_HEADER_BYTES} are allowed")]
    HeaderTooLarge { bytes: usize },
    #[error("its header's checksum is wrong")]
    Header,
    #[error("piece {number} has {bytes} bytes, at most {MAX_PIECE_BYTES} are allowed")]
    PieceTooLarge { number: u64, bytes: usize },
    #[error("the checksum of piece {number} is wrong")]
    Piece { number: u64 },
    #[error("its end says {said} bytes, but {found} are there, or their checksum is wrong")]
    End { said: u64, found: u64 },
    #[error("something follows its end")]
    Trailing,
    #[error("it is cut: it ends in {part}")]
    Cut { part: &'static str },
    #[error("{0}")]
    Io(io::Error),
}

/// A kind of file.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its first bytes.
    pub magic: [u8; 8],
    /// What a person calls it.
    pub name: &'static str,
}

/// Writes a file. [`Writer::finish`] must be called: without its end the file is cut.
#[derive(Debug)]
pub struct Writer<W> {
    inner: W,
    piece: Vec<u8>,
    number: u64,
    total: u64,
    sum: u32,
}

impl<W: Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// Those of the inner writer, or a header that is too large.
    pub fn new(mut inner: W, kind: Kind, header: &[u8]) -> io::Result<Self> {
        if header.len() > MAX_HEADER_BYTES {
            return Err(io::Error::other(ContainerError::HeaderTooLarge { bytes: header.len() }));
        }
        let mut bytes = Vec::with_capacity(header.len() + 20);
        bytes.extend(kind.magic);
        bytes.extend(FORMAT.to_le_bytes());
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(header);
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        inner.write_all(&bytes)?;
        Ok(Self { inner, piece: Vec::with_capacity(MAX_PIECE_BYTES), number: 0, total: 0, sum: 0 })
    }

    /// Writes the end, and gives back the inner writer with the number of bytes in the pieces.
    ///
    /// # Errors
    /// Those of the inner writer.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.put()?;
        let mut end = Vec::with_capacity(20);
        end.extend(0u32.to_le_bytes());
        end.extend(self.total.to_le_bytes());
        end.extend(self.sum.to_le_bytes());
        end.extend(crc32c::crc32c(&end[4..]).to_le_bytes());
        self.inner.write_all(&end)?;
        self.inner.flush()?;
        Ok((self.inner, self.total))
    }

    fn put(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.inner.write_all(&(self.piece.len() as u32).to_le_bytes())?;
        self.inner.write_all(&piece_sum(self.number, &self.piece).to_le_bytes())?;
        self.inner.write_all(&self.piece)?;
        self.number += 1;
        self.total += self.piece.len() as u64;
        self.sum = crc32c::crc32c_append(self.sum, &self.piece);
        self.piece.clear();
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let take = bytes.len().min(MAX_PIECE_BYTES - self.piece.len());
        self.piece.extend_from_slice(&bytes[..take]);
        if self.piece.len() == MAX_PIECE_BYTES {
            self.put()?;
        }
        Ok(take)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads a file, checking as it goes.
#[derive(Debug)]
pub struct Reader<R> {
    inner: R,
    piece: Vec<u8>,
    at: usize,
    number: u64,
    total: u64,
    sum: u32,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// It is another kind of file, newer, cut or damaged.
    pub fn open(mut inner: R, kind: Kind) -> Result<(Self, Vec<u8>), ContainerError> {
        let mut start = [0; 16];
        fill(&mut inner, &mut start, "its header")?;
        if start[..8] != kind.magic {
            return Err(ContainerError::Other { what: kind.name });
        }
        let (format, length) = (word(&start, 8), word(&start, 12) as usize);
        if format > FORMAT {
            return Err(ContainerError::Newer { found: format });
        }
        if length > MAX_HEADER_BYTES {
            return Err(ContainerError::HeaderTooLarge { bytes: length });
        }
        let mut rest = vec![0; length + 4];
        fill(&mut inner, &mut rest, "its header")?;
        let (header, sum) = rest.split_at(length);
        if crc32c::crc32c_append(crc32c::crc32c(&start), header) != word(sum, 0) {
            return Err(ContainerError::Header);
        }
        let header = header.to_vec();
        Ok((Self { inner, piece: Vec::new(), at: 0, number: 0, total: 0, sum: 0, ended: false }, header))
    }

    /// Everything that is left, once it has been checked to the end; `most` bytes of it at most.
    ///
    /// # Errors
    /// The file is cut or damaged, or has more bytes.
    pub fn rest(mut self, most: u64) -> Result<Vec<u8>, ContainerError> {
        let mut bytes = Vec::new();
        while self.next_piece()? {
            if (bytes.len() + self.piece.len()) as u64 > most {
                return Err(ContainerError::Io(io::Error::other(format!("it has more than {most} bytes"))));
            }
            bytes.extend_from_slice(&self.piece);
        }
        Ok(bytes)
    }

    /// Whether there was another one.
    fn next_piece(&mut self) -> Result<bool, ContainerError> {
        if self.ended {
            return Ok(false);
        }
        let mut length = [0; 4];
        fill(&mut self.inner, &mut length, "the middle")?;
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 {
            return self.end().map(|()| false);
        }
        if length > MAX_PIECE_BYTES {
            return Err(ContainerError::PieceTooLarge { number: self.number, bytes: length });
        }
        let mut sum = [0; 4];
        fill(&mut self.inner, &mut sum, "the middle")?;
        self.piece.resize(length, 0);
        fill(&mut self.inner, &mut self.piece, "the middle")?;
        if piece_sum(self.number, &self.piece) != u32::from_le_bytes(sum) {
            return Err(ContainerError::Piece { number: self.number });
        }
        self.at = 0;
        self.number += 1;
        self.total += length as u64;
        self.sum = crc32c::crc32c_append(self.sum, &self.piece);
        Ok(true)
    }

    fn end(&mut self) -> Result<(), ContainerError> {
        let mut end = [0; 16];
        fill(&mut self.inner, &mut end, "its end")?;
        let said = u64::from(word(&end, 0)) | u64::from(word(&end, 4)) << 32;
        let good = crc32c::crc32c(&end[..12]) == word(&end, 12);
        if !good || said != self.total || word(&end, 8) != self.sum {
            return Err(ContainerError::End { said, found: self.total });
        }
        let mut more = [0];
        if self.inner.read(&mut more).map_err(ContainerError::Io)? != 0 {
            return Err(ContainerError::Trailing);
        }
        (self.ended, self.at) = (true, 0);
        self.piece.clear();
        Ok(())
    }
}

/// An error here is a [`ContainerError`] in an [`io::Error`].
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() && !self.next_piece().map_err(io::Error::other)? {
            return Ok(0);
        }
        let take = buffer.len().min(self.piece.len() - self.at);
        buffer[..take].copy_from_slice(&self.piece[self.at..self.at + take]);
        self.at += take;
        Ok(take)
    }
}

fn piece_sum(number: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&number.to_le_bytes()), bytes)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn fill(inner: &mut impl Read, buffer: &mut [u8], part: &'static str) -> Result<(), ContainerError> {
    inner.read_exact(buffer).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => ContainerError::Cut { part },
        _ => ContainerError::Io(error),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIND: Kind = Kind { magic: *b"isthtest", name: "test" };

    fn written(header: &[u8], bytes: &[u8]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), KIND, header).expect("memory");
        writer.write_all(bytes).expect("memory");
        writer.finish().expect("memory").0
    }

    fn read(file: &[u8]) -> Result<(Vec<u8>, Vec<u8>), ContainerError> {
        let (reader, header) = Reader::open(file, KIND)?;
        Ok((header, reader.rest(u64::MAX)?))
    }

    #[test]
    fn any_length_is_read_back() {
        for length in [0, 1, MAX_PIECE_BYTES - 1, MAX_PIECE_BYTES, MAX_PIECE_BYTES + 1, 3 * MAX_PIECE_BYTES] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let file = written(b"{}", &bytes);
            assert_eq!(read(&file).expect("whole"), (b"{}".to_vec(), bytes.clone()));
            let (mut reader, _) = Reader::open(&file[..], KIND).expect("whole");
            let mut piecewise = Vec::new();
            reader.read_to_end(&mut piecewise).expect("whole");
            assert_eq!(piecewise, bytes);
        }
    }

    #[test]
    fn every_flipped_bit_every_cut_and_every_addition_is_found() {
        let file = written(b"{\"a\":1}", b"some bytes");
        for at in 0..file.len() {
            let mut bad = file.clone();
            bad[at] ^= 4;
            assert!(read(&bad).is_err(), "byte {at}");
            assert!(read(&file[..at]).is_err(), "cut at {at}");
        }
        let mut longer = file.clone();
        longer.push(0);
        assert!(matches!(read(&longer), Err(ContainerError::Trailing)));
    }

    #[test]
    fn a_newer_format_another_kind_and_huge_lengths_are_refused_before_anything_is_allocated() {
        let mut file = written(b"{}", b"x");
        file[8] = 3;
        assert!(matches!(read(&file), Err(ContainerError::Newer { found: 3 })));
        assert!(matches!(read(b"isthbest00000000"), Err(ContainerError::Other { what: "test" })));
        let mut huge = b"isthtest\x02\0\0\0".to_vec();
        huge.extend([0xff; 4]);
        assert!(matches!(read(&huge), Err(ContainerError::HeaderTooLarge { .. })));
        let mut piece = written(b"{}", b"");
        let end = piece.len() - 20;
        piece[end..end + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read(&piece), Err(ContainerError::PieceTooLarge { number: 0, .. })));
        let (reader, _) =
            Reader::open(&written(b"", b"four")[..], KIND).map(|(r, h)| (r.number, h)).expect("whole");
        assert_eq!(reader, 0);
    }

    #[test]
    fn more_bytes_than_wanted_are_refused() {
        let file = written(b"", &[7; 1000]);
        let (reader, _) = Reader::open(&file[..], KIND).expect("whole");
        assert!(reader.rest(999).is_err());
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_reading_ends(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut file = KIND.magic.to_vec();
            file.extend([2, 0, 0, 0]);
            file.extend(bytes);
            let _ = read(&file);
        }
    }
}
