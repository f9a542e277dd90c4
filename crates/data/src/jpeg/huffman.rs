//! Huffman codes and the bits they are read from.

use super::JpegError;

const FAST_BITS: u32 = 9;

/// A Huffman table: short codes by lookup, long ones by comparing with the largest code of each length.
pub(super) struct Table {
    /// For the next `FAST_BITS` bits: length (0: longer) and symbol.
    fast: [(u8, u8); 1 << FAST_BITS],
    /// For each length, the first code after those of that length, aligned to 16 bits.
    limit: [u32; 17],
    /// For each length, what to add to a code to get the position of its symbol.
    offset: [i32; 17],
    symbols: Vec<u8>,
}

impl Table {
    /// From the number of codes of each length 1…16, and the symbols in order. `None` if the codes do not fit.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut table =
            Self { fast: [(0, 0); 1 << FAST_BITS], limit: [0; 17], offset: [0; 17], symbols: symbols.to_vec() };
        let (mut code, mut position) = (0u32, 0usize);
        for (length, &count) in (1u32..).zip(counts) {
            table.offset[length as usize] = position as i32 - code as i32;
            for _ in 0..count {
                if code >> length != 0 {
                    return None;
                }
                if length <= FAST_BITS {
                    let first = (code << (FAST_BITS - length)) as usize;
                    table.fast[first..first + (1 << (FAST_BITS - length))].fill((length as u8, symbols[position]));
                }
                code += 1;
                position += 1;
            }
            table.limit[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Some(table)
    }
}

/// Reads bits of one scan; stops at a marker.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    buffer: u64,
    /// Valid bits in `buffer`, at its top. Beyond the end of the data zeros are appended.
    count: u32,
    /// How many of them are such zeros.
    invented: u32,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, buffer: 0, count: 0, invented: 0 }
    }

    /// Bytes taken so far; a marker that stopped the reading comes at or after this position.
    pub fn position(&self) -> usize {
        self.at
    }

    fn fill(&mut self) {
        while self.count <= 56 {
            let byte = match self.bytes.get(self.at..) {
                Some(&[0xff, 0, ..]) => {
                    self.at += 2;
                    0xff
                }
                Some(&[0xff, 0xff, ..]) => {
                    self.at += 1;
                    continue;
                }
                Some(&[byte, ..]) if byte != 0xff => {
                    self.at += 1;
                    byte
                }
                _ => {
                    self.invented += 8;
                    0
                }
            };
            self.buffer |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
    }

    /// Removes `n` bits that are there.
    fn drop(&mut self, n: u32) -> Result<(), JpegError> {
        self.buffer <<= n;
        self.count -= n;
        if self.count < self.invented { Err(JpegError::Truncated) } else { Ok(()) }
    }

    /// The next `n` bits, at most 16.
    pub fn take(&mut self, n: u32) -> Result<i32, JpegError> {
        if n == 0 {
            return Ok(0);
        }
        if self.count < n {
            self.fill();
        }
        let value = (self.buffer >> (64 - n)) as i32;
        self.drop(n)?;
        Ok(value)
    }

    /// An `n`-bit value whose first half of codes stands for negative numbers (T.81 `EXTEND`).
    pub fn take_signed(&mut self, n: u32) -> Result<i32, JpegError> {
        let value = self.take(n)?;
        Ok(if n > 0 && value >> (n - 1) == 0 { value - (1 << n) + 1 } else { value })
    }

    /// The next symbol.
    pub fn symbol(&mut self, table: &Table) -> Result<u8, JpegError> {
        if self.count < 16 {
            self.fill();
        }
        let (length, symbol) = table.fast[(self.buffer >> (64 - FAST_BITS)) as usize];
        if length > 0 {
            self.drop(length.into())?;
            return Ok(symbol);
        }
        let code = (self.buffer >> 48) as u32;
        let length = (1..=16).find(|&l| code < table.limit[l as usize]).ok_or(JpegError::Corrupt("data"))?;
        let position = (code >> (16 - length)) as i32 + table.offset[length as usize];
        self.drop(length)?;
        usize::try_from(position).ok().and_then(|p| table.symbols.get(p)).copied().ok_or(JpegError::Corrupt("data"))
    }

    /// Skips to the restart marker that must come next, and behind it.
    pub fn restart(&mut self) -> Result<(), JpegError> {
        let (marker, after) = super::next_marker(self.bytes, self.at).ok_or(JpegError::Truncated)?;
        if !(0xd0..=0xd7).contains(&marker) {
            return Err(JpegError::Truncated);
        }
        *self = Self { bytes: self.bytes, at: after, buffer: 0, count: 0, invented: 0 };
        Ok(())
    }
}
