//! Image resizing that equals Pillow's: 8-bit RGB enters, 8-bit RGB leaves.

use crate::Image;

/// Fraction bits of a weight: 8 bits of pixel and 2 bits of headroom leave 22 of 32.
const PRECISION: u32 = 22;

/// Antialiased bilinear resize, equal bit for bit to Pillow's `image.resize((width, height), Image.BILINEAR)`
/// (test `resize_equals_pillow`).
///
/// Two separable passes, each rounded to 8 bits: horizontal first, or vertical first if more than twice as many rows as
/// columns go (Pillow 13; before it, always horizontal first, which differs by 1 in places). Output `o` of a line of `n_in` to `n_out`
/// pixels is centred at `c = (o + 0.5)·s`, `s = n_in/n_out`, and weighs input `i` by the triangle
/// `max(0, 1 − |i + 0.5 − c| / max(s, 1))`, normalised to sum 1, then rounded to 22 fraction bits.
/// A pass that would keep the size is left out. Source: Pillow `ImagingResample` (facts, not code). A size of 0 counts as 1.
pub fn resize_bilinear(image: &Image, width: usize, height: usize) -> Image {
    let (width, height) = (width.max(1), height.max(1));
    let horizontal = |image: &Image| if width == image.width { image.clone() } else { resize_rows(image, width) };
    let vertical = |image: &Image| if height == image.height { image.clone() } else { resize_columns(image, height) };
    let lost_rows = image.height as i64 - height as i64;
    let lost_columns = image.width as i64 - width as i64;
    if lost_rows > 0 && lost_rows > 2 * lost_columns {
        horizontal(&vertical(image))
    } else {
        vertical(&horizontal(image))
    }
}

fn resize_rows(image: &Image, width: usize) -> Image {
    let weights = Weights::triangle(image.width, width);
    let mut rgb = Vec::with_capacity(width * image.height * 3);
    for row in image.rgb.chunks_exact(image.width * 3) {
        for (first, taps) in weights.iter() {
            let mut sum = [1i32 << (PRECISION - 1); 3];
            for (pixel, &tap) in row[first * 3..].as_chunks::<3>().0.iter().zip(taps) {
                for (sum, &value) in sum.iter_mut().zip(pixel) {
                    *sum += i32::from(value) * tap;
                }
            }
            rgb.extend(sum.map(to_u8));
        }
    }
    Image { width, height: image.height, rgb }
}

fn resize_columns(image: &Image, height: usize) -> Image {
    let weights = Weights::triangle(image.height, height);
    let row_len = image.width * 3;
    let mut rgb = Vec::with_capacity(row_len * height);
    let mut sums = vec![0i32; row_len];
    for (first, taps) in weights.iter() {
        sums.fill(1 << (PRECISION - 1));
        for (row, &tap) in image.rgb[first * row_len..].chunks_exact(row_len).zip(taps) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += i32::from(value) * tap;
            }
        }
        rgb.extend(sums.iter().map(|&sum| to_u8(sum)));
    }
    Image { width: image.width, height, rgb }
}

fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// For every output position the first input position and the fixed-point weights from there on.
struct Weights {
    spans: Vec<(usize, std::ops::Range<usize>)>,
    taps: Vec<i32>,
}

impl Weights {
    fn triangle(n_in: usize, n_out: usize) -> Self {
        let scale = n_in as f64 / n_out as f64;
        let support = scale.max(1.0);
        let inv_support = 1.0 / support;
        let (mut spans, mut taps) = (Vec::with_capacity(n_out), Vec::new());
        for o in 0..n_out {
            let centre = (o as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(n_in);
            let weight = |i: usize| (1.0 - ((i as f64 - centre + 0.5) * inv_support).abs()).max(0.0);
            let total: f64 = (first..last).map(weight).sum();
            let start = taps.len();
            taps.extend((first..last).map(|i| (0.5 + weight(i) / total * f64::from(1 << PRECISION)) as i32));
            spans.push((first, start..taps.len()));
        }
        Self { spans, taps }
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.spans.iter().map(|(first, range)| (*first, &self.taps[range.clone()]))
    }
}
