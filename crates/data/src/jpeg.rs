//! JPEG decoding with the pixels of libjpeg-turbo's defaults (exact integer transform, smooth chroma upsampling), which
//! are those of Pillow, OpenCV and torchvision: bytes enter, RGB leaves.
//!
//! Other pure decoders differ from libjpeg in a sixth of all values, which is enough to turn single predictions.
//! Read are Huffman-coded 8-bit files, sequential or progressive, of one or three components: the rest is left to others.
//! Source: ITU-T T.81; the transform and filters are those published with libjpeg (facts and formulas, not code).

mod colour;
mod huffman;
mod idct;
mod scan;

use huffman::Table;

use crate::Image;

/// Position in the block of the `k`-th coefficient of the file.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21,
    28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54,
    47, 55, 62, 63,
];

/// Larger images are refused, as Pillow refuses them: a few garbled bytes must not demand gigabytes.
const MAX_PIXELS: usize = 178_956_970;

/// Why a file does not decode.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum JpegError {
    #[error("the JPEG data end too early")]
    Truncated,
    #[error("the JPEG {0} is corrupt")]
    Corrupt(&'static str),
    #[error("{0}x{1} pixels are too many")]
    TooLarge(usize, usize),
}

/// One colour component: its place in the frame and its coefficients.
struct Component {
    id: u8,
    /// Sampling factors.
    h: usize,
    v: usize,
    quant_index: usize,
    /// The quantization table, as it stood when the component's first scan began.
    quant: Option<[u16; 64]>,
    /// Samples that matter: the image size times the component's share of the sampling, rounded up.
    width: usize,
    height: usize,
    /// Blocks in memory: whole MCUs.
    blocks_wide: usize,
    blocks_high: usize,
    coefficients: Vec<[i16; 64]>,
}

struct Frame {
    width: usize,
    height: usize,
    progressive: bool,
    max_h: usize,
    max_v: usize,
    mcus_wide: usize,
    mcus_high: usize,
    components: Vec<Component>,
}

/// Tables and flags that segments set and scans use.
#[derive(Default)]
struct State {
    quant: [Option<[u16; 64]>; 4],
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    restart_interval: usize,
    jfif: bool,
    adobe_transform: Option<u8>,
}

/// Decodes a JPEG file. `Ok(None)`: a valid file of a kind not read here (arithmetic coding, 12 bits, four components …).
pub(crate) fn decode(bytes: &[u8]) -> Result<Option<Image>, JpegError> {
    let mut state = State::default();
    let mut frame: Option<Frame> = None;
    let mut at = 2;
    let mut ended = false;
    while let Some((marker, after)) = next_marker(bytes, at) {
        at = after;
        match marker {
            0xd8 | 0x01 | 0xd0..=0xd7 => continue,
            0xd9 => {
                ended = true;
                break;
            }
            _ => {}
        }
        let length = bytes.get(at..at + 2).ok_or(JpegError::Truncated)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let body = bytes.get(at + 2..at + length.max(2)).ok_or(JpegError::Truncated)?;
        at += length.max(2);
        match marker {
            0xc0..=0xc2 => {
                if frame.is_some() {
                    return Err(JpegError::Corrupt("header"));
                }
                match Frame::parse(body, marker == 0xc2)? {
                    Some(parsed) => frame = Some(parsed),
                    None => return Ok(None),
                }
            }
            0xc4 => state.huffman_tables(body)?,
            0xc3 | 0xc5..=0xcf => return Ok(None),
            0xda => {
                let frame = frame.as_mut().ok_or(JpegError::Corrupt("header"))?;
                at += scan::decode(frame, &state, body, &bytes[at..])?;
            }
            0xdb => state.quant_tables(body)?,
            0xdd => {
                let interval = body.get(..2).ok_or(JpegError::Truncated)?;
                state.restart_interval = usize::from(u16::from_be_bytes([interval[0], interval[1]]));
            }
            0xe0 => state.jfif |= body.starts_with(b"JFIF\0"),
            0xee if body.starts_with(b"Adobe") => state.adobe_transform = body.get(11).copied(),
            _ => {}
        }
    }
    let frame = frame.ok_or(JpegError::Truncated)?;
    // A progressive file is complete only at its end marker; a sequential one when every component was there.
    if frame.components.iter().any(|c| c.quant.is_none()) || (frame.progressive && !ended) {
        return Err(JpegError::Truncated);
    }
    let is_rgb = state.is_rgb(&frame);
    Ok(Some(colour::assemble(frame, is_rgb)))
}

/// The next marker at or after `at`, and the position after it. Bytes in between are skipped, as libjpeg does.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == 0xff)?;
        match bytes.get(at + 1)? {
            0x00 => at += 2,
            0xff => at += 1,
            &marker => return Some((marker, at + 2)),
        }
    }
}

impl Frame {
    fn parse(body: &[u8], progressive: bool) -> Result<Option<Self>, JpegError> {
        let &[precision, h1, h0, w1, w0, count, ref rest @ ..] = body else { return Err(JpegError::Truncated) };
        let (width, height) = (usize::from(u16::from_be_bytes([w1, w0])), usize::from(u16::from_be_bytes([h1, h0])));
        if precision != 8 || !matches!(count, 1 | 3) || height == 0 {
            return Ok(None);
        }
        if width == 0 || rest.len() < usize::from(count) * 3 {
            return Err(JpegError::Corrupt("header"));
        }
        if width * height > MAX_PIXELS {
            return Err(JpegError::TooLarge(width, height));
        }
        let entries = || rest.as_chunks::<3>().0.iter().take(count.into());
        let factors = |e: &[u8; 3]| (usize::from(e[1] >> 4), usize::from(e[1] & 15));
        if entries().any(|e| !(1..=4).contains(&factors(e).0) || !(1..=4).contains(&factors(e).1) || e[2] > 3) {
            return Err(JpegError::Corrupt("header"));
        }
        let max_h = entries().map(|e| factors(e).0).max().unwrap_or(1);
        let max_v = entries().map(|e| factors(e).1).max().unwrap_or(1);
        if entries().any(|e| max_h % factors(e).0 != 0 || max_v % factors(e).1 != 0) {
            return Ok(None);
        }
        let (mcus_wide, mcus_high) = (width.div_ceil(8 * max_h), height.div_ceil(8 * max_v));
        let component = |e: &[u8; 3]| {
            let (h, v) = factors(e);
            let (blocks_wide, blocks_high) = (mcus_wide * h, mcus_high * v);
            Component {
                id: e[0],
                h,
                v,
                quant_index: e[2].into(),
                quant: None,
                width: (width * h).div_ceil(max_h),
                height: (height * v).div_ceil(max_v),
                blocks_wide,
                blocks_high,
                coefficients: vec![[0; 64]; blocks_wide * blocks_high],
            }
        };
        let components = entries().map(component).collect();
        Ok(Some(Self { width, height, progressive, max_h, max_v, mcus_wide, mcus_high, components }))
    }
}

impl State {
    fn quant_tables(&mut self, mut body: &[u8]) -> Result<(), JpegError> {
        while let Some((&head, rest)) = body.split_first() {
            let size = if head >> 4 == 0 { 1 } else { 2 };
            let values = rest.get(..64 * size).ok_or(JpegError::Truncated)?;
            let slot = self.quant.get_mut(usize::from(head & 15)).ok_or(JpegError::Corrupt("quantization table"))?;
            let mut table = [0; 64];
            for (value, &place) in values.chunks_exact(size).zip(&ZIGZAG) {
                table[usize::from(place)] = value.iter().fold(0, |n, &b| n << 8 | u16::from(b));
            }
            *slot = Some(table);
            body = &rest[64 * size..];
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut body: &[u8]) -> Result<(), JpegError> {
        while let Some((&head, rest)) = body.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>().ok_or(JpegError::Truncated)?;
            let total = counts.iter().map(|&c| usize::from(c)).sum();
            let symbols = rest.get(..total).ok_or(JpegError::Truncated)?;
            let kind = if head >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let slot = kind.get_mut(usize::from(head & 15)).ok_or(JpegError::Corrupt("Huffman table"))?;
            *slot = Some(Table::new(counts, symbols).ok_or(JpegError::Corrupt("Huffman table"))?);
            body = &rest[total..];
        }
        Ok(())
    }

    /// Whether three components are red, green and blue instead of luma and chroma: libjpeg's rules.
    fn is_rgb(&self, frame: &Frame) -> bool {
        let ids: Vec<u8> = frame.components.iter().map(|c| c.id).collect();
        match self.adobe_transform {
            _ if self.jfif => false,
            Some(transform) => transform == 0,
            None => ids == *b"RGB",
        }
    }
}
