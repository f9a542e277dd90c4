//! Maps and binary operations over whole tensors.
//!
//! What enters: slices, of which the second operand may be one number or one number per channel (NHWC: the last dimension).
//! What leaves: as many numbers as the first operand has. Each number depends on its own operands only.

use super::Shared;
use super::activation::Activation;
use crate::Threads;
use crate::simd::{Isa, Kernel, Simd};

/// Numbers in a task: large enough to be worth a thread, small enough to balance.
const TASK_LEN: usize = 16 * 1024;

/// Writes `function(x)` to `y`.
///
/// # Panics
/// If the lengths differ.
pub fn map(threads: &Threads, function: Activation, x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "a map keeps the length");
    let isa = Isa::best();
    parts(threads, y, 1, |start, y| function.map(isa, &x[start..start + y.len()], y));
}

/// Replaces `x` by `function(x)`.
pub fn map_in_place(threads: &Threads, function: Activation, x: &mut [f32]) {
    let isa = Isa::best();
    parts(threads, x, 1, |_, x| function.apply(isa, x));
}

/// An arithmetic operation of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `b - a`
    ReverseSub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// `b / a`
    ReverseDiv,
}

impl Function2 for Binary {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32 {
        match self {
            Binary::Add => s.add(a, b),
            Binary::Sub => s.sub(a, b),
            Binary::ReverseSub => s.sub(b, a),
            Binary::Mul => s.mul(a, b),
            Binary::Div => s.div(a, b),
            Binary::ReverseDiv => s.div(b, a),
        }
    }
}

/// `y = operation(a, b)` where `b` is as long as `a`, or one number, or one number per channel (`a` is then `[.., b.len()]`).
///
/// # Panics
/// If `y` is not as long as `a`, or the length of `b` does not divide it.
pub fn binary(threads: &Threads, operation: Binary, a: &[f32], b: &[f32], y: &mut [f32]) {
    assert_eq!(a.len(), y.len(), "the output is as long as the first operand");
    zip(threads, operation, Source::Slice(a), b, y);
}

/// `a = operation(a, b)`, as [`binary`].
///
/// # Panics
/// If the length of `b` does not divide that of `a`.
pub fn binary_in_place(threads: &Threads, operation: Binary, a: &mut [f32], b: &[f32]) {
    zip(threads, operation, Source::Output, b, a);
}

/// `y = x < 0 ? slope * x : x` with one slope for all or one per channel.
///
/// # Panics
/// If `y` is not as long as `x`, or the length of `slope` does not divide it.
pub fn prelu(threads: &Threads, x: &[f32], slope: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "the output is as long as the input");
    zip(threads, Prelu, Source::Slice(x), slope, y);
}

#[derive(Clone, Copy)]
struct Prelu;

impl Function2 for Prelu {
    #[inline(always)]
    fn at<S: Simd>(self, s: S, x: S::F32, slope: S::F32) -> S::F32 {
        s.select_lt(x, s.splat(0.0), s.mul(x, slope), x)
    }
}

/// `y = x * scale + shift` per channel, rounded after each step: a BatchNormalization whose statistics are folded.
///
/// # Panics
/// If the lengths of `scale` and `shift` differ or do not divide that of `x`, or `y` is not as long as `x`.
pub fn scale_shift(threads: &Threads, x: &[f32], scale: &[f32], shift: &[f32], y: &mut [f32]) {
    assert_eq!(scale.len(), shift.len(), "one scale and one shift per channel");
    binary(threads, Binary::Mul, x, scale, y);
    binary_in_place(threads, Binary::Add, y, shift);
}

/// A function of two vectors. Implementations are `#[inline(always)]`.
trait Function2: Copy + Send + Sync {
    fn at<S: Simd>(self, s: S, a: S::F32, b: S::F32) -> S::F32;
}

/// Where the first operand is.
#[derive(Clone, Copy)]
enum Source<'a> {
    Slice(&'a [f32]),
    /// What the output holds.
    Output,
}

fn zip<F: Function2>(threads: &Threads, f: F, a: Source, b: &[f32], y: &mut [f32]) {
    if y.is_empty() {
        return;
    }
    assert!(!b.is_empty() && y.len().is_multiple_of(b.len()), "the second operand repeats without a rest");
    let isa = Isa::best();
    let unit = if b.len() == y.len() { 1 } else { b.len() };
    parts(threads, y, unit, |start, y| {
        let a = match a {
            Source::Slice(a) => a[start..].as_ptr(),
            Source::Output => y.as_ptr(),
        };
        let (len, to) = (y.len(), y.as_mut_ptr());
        if b.len() == 1 || unit == 1 {
            let b = if b.len() == 1 { b } else { &b[start..start + len] };
            isa.dispatch(Zip { f, len, a, b, y: to, period: len });
        } else {
            isa.dispatch(Zip { f, len, a, b, y: to, period: unit });
        }
    });
}

/// Rows of `period` numbers, each combined with `b`: as many numbers as a row, or one.
struct Zip<'a, F> {
    f: F,
    len: usize,
    a: *const f32,
    b: &'a [f32],
    y: *mut f32,
    period: usize,
}

impl<F: Function2> Kernel for Zip<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let one = self.b.len() == 1;
        let constant = s.splat(self.b[0]);
        let whole = self.period - self.period % S::LANES;
        let rest = self.period - whole;
        for row in (0..self.len).step_by(self.period) {
            // SAFETY: `a` and `y` hold `len` numbers, a multiple of the period, and `b` a period or one number. Where `a` and
            // `y` are one place, each number is read before it is written.
            unsafe {
                let (a, y) = (self.a.add(row), self.y.add(row));
                for i in (0..whole).step_by(S::LANES) {
                    let b = if one { constant } else { s.load(self.b.as_ptr().add(i)) };
                    s.store(y.add(i), self.f.at(s, s.load(a.add(i)), b));
                }
                if rest > 0 {
                    let b = if one { constant } else { s.load_head(self.b.as_ptr().add(whole), rest) };
                    s.store_head(y.add(whole), rest, self.f.at(s, s.load_head(a.add(whole), rest), b));
                }
            }
        }
    }
}

/// Calls `task(start, part)` for consecutive parts of `y`, whose starts are multiples of `unit`.
pub(super) fn parts(threads: &Threads, y: &mut [f32], unit: usize, task: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let step = TASK_LEN.div_ceil(unit) * unit;
    let len = y.len();
    let y = Shared(y.as_mut_ptr());
    threads.run(len.div_ceil(step), |i| {
        let start = i * step;
        // SAFETY: the parts lie within `y` and do not overlap.
        task(start, unsafe { std::slice::from_raw_parts_mut(y.get().add(start), step.min(len - start)) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_repeat_over_channels() {
        let threads = Threads::new(2);
        type Plain = fn(f32, f32) -> f32;
        let operations: [(Binary, Plain); 6] = [
            (Binary::Add, |a, b| a + b),
            (Binary::Sub, |a, b| a - b),
            (Binary::ReverseSub, |a, b| b - a),
            (Binary::Mul, |a, b| a * b),
            (Binary::Div, |a, b| a / b),
            (Binary::ReverseDiv, |a, b| b / a),
        ];
        for (rows, channels) in [(1, 1), (3, 7), (5, 16), (2000, 35)] {
            let a: Vec<f32> = (0..rows * channels).map(|i| (i % 23) as f32 - 11.5).collect();
            for b_len in [1, channels, rows * channels] {
                let b: Vec<f32> = (0..b_len).map(|i| (i % 19) as f32 * 0.3 + 0.1).collect();
                for (operation, plain) in operations {
                    let expected: Vec<f32> = a.iter().enumerate().map(|(i, &a)| plain(a, b[i % b_len])).collect();
                    let mut y = vec![0.0; a.len()];
                    binary(&threads, operation, &a, &b, &mut y);
                    assert_eq!(y, expected, "{operation:?} {rows} × {channels} with {b_len}");
                    y.copy_from_slice(&a);
                    binary_in_place(&threads, operation, &mut y, &b);
                    assert_eq!(y, expected, "{operation:?} in place");
                }
                let mut y = vec![0.0; a.len()];
                prelu(&threads, &a, &b, &mut y);
                assert!(y.iter().enumerate().all(|(i, &y)| y == if a[i] < 0.0 { a[i] * b[i % b_len] } else { a[i] }));
                scale_shift(&threads, &a, &b, &b, &mut y);
                assert!(y.iter().enumerate().all(|(i, &y)| y == a[i] * b[i % b_len] + b[i % b_len]));
            }
        }
    }

    #[test]
    fn maps_cover_all_parts() {
        let threads = Threads::new(3);
        let x: Vec<f32> = (0..TASK_LEN * 2 + 5).map(|i| i as f32 - 20_000.0).collect();
        let mut y = vec![f32::NAN; x.len()];
        map(&threads, Activation::LeakyRelu { alpha: 0.5 }, &x, &mut y);
        assert!(x.iter().zip(&y).all(|(&x, &y)| y == if x < 0.0 { x / 2.0 } else { x }));
        map_in_place(&threads, Activation::Clamp { min: -1.0, max: 3.0 }, &mut y);
        assert!(x.iter().zip(&y).all(|(&x, &y)| y == (x / 2.0).max(x).clamp(-1.0, 3.0)));
        map(&threads, Activation::Identity, &x, &mut y);
        assert_eq!(x, y);
    }
}
