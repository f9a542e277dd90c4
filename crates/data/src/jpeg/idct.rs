//! The inverse cosine transform of one block, in libjpeg's exact integer form (`ISLOW`).

use std::num::Wrapping;

/// Fraction bits of the constants, and extra bits kept between the passes.
const CONST_BITS: usize = 13;
const PASS_BITS: usize = 2;

/// Coefficients (row by row) times the quantization table → samples 0…255.
///
/// The factorisation of Loeffler, Ligtenberg and Moschytz with 12 multiplications, in 32-bit integers: columns first,
/// rounded to 2 extra bits, then rows. Equal to libjpeg's `jpeg_idct_islow` (test `jpeg_equals_pillow`). Arithmetic wraps, so
/// that no content of a file can overflow it.
pub(super) fn inverse(coefficients: &[i16; 64], quant: &[u16; 64]) -> [u8; 64] {
    let mut work = [Wrapping(0i32); 64];
    for column in 0..8 {
        let at = |row: usize| {
            let i = row * 8 + column;
            Wrapping(i32::from(coefficients[i])) * Wrapping(i32::from(quant[i]))
        };
        if (1..8).all(|row| coefficients[row * 8 + column] == 0) {
            let value = at(0) << PASS_BITS;
            (0..8).for_each(|row| work[row * 8 + column] = value);
            continue;
        }
        let line = transform(std::array::from_fn(at), CONST_BITS - PASS_BITS);
        (0..8).for_each(|row| work[row * 8 + column] = line[row]);
    }
    let mut samples = [0; 64];
    for (line, out) in work.as_chunks::<8>().0.iter().zip(samples.as_chunks_mut::<8>().0) {
        *out = transform(*line, CONST_BITS + PASS_BITS + 3).map(|v| (v + Wrapping(128)).0.clamp(0, 255) as u8);
    }
    samples
}

/// One line of eight, divided by `2^shift` with rounding.
fn transform(x: [Wrapping<i32>; 8], shift: usize) -> [Wrapping<i32>; 8] {
    let c = Wrapping::<i32>;
    // Even coefficients.
    let z = (x[2] + x[6]) * c(4433);
    let (e2, e3) = (z - x[6] * c(15137), z + x[2] * c(6270));
    let (e0, e1) = ((x[0] + x[4]) << CONST_BITS, (x[0] - x[4]) << CONST_BITS);
    let even = [e0 + e3, e1 + e2, e1 - e2, e0 - e3];
    // Odd coefficients.
    let z5 = (x[7] + x[3] + x[5] + x[1]) * c(9633);
    let z1 = (x[7] + x[1]) * c(-7373);
    let z2 = (x[5] + x[3]) * c(-20995);
    let z3 = (x[7] + x[3]) * c(-16069) + z5;
    let z4 = (x[5] + x[1]) * c(-3196) + z5;
    let odd =
        [x[1] * c(12299) + z1 + z4, x[3] * c(25172) + z2 + z3, x[5] * c(16819) + z2 + z4, x[7] * c(2446) + z1 + z3];
    let round = c(1) << (shift - 1);
    std::array::from_fn(|i| {
        let sum = if i < 4 { even[i] + odd[i] } else { even[7 - i] - odd[7 - i] };
        (sum + round) >> shift
    })
}
