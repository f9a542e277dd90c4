//! The range with the least expected squared error.
//!
//! *When it helps*: nearly always; the default. It balances clipping against rounding, so it matters most below 8 bits.
//! *When it fails*: a few large elements decide the output, such as box coordinates; they weigh no more than others here.
//!
//! Both ends are searched independently: first a grid of ends shrunken by powers of 0.7, then neighbours of the best at ever smaller
//! distances. Each candidate is judged on the very scale and zero point that it leads to, since rounding the zero point shifts
//! the range. Source: the MSE search of OMSE and BRECQ, which shrink both ends together.

use super::{Mapping, Moments, Range};
use fewbits_graph::Grid;

/// Ratio of neighbouring candidates of the first search, and how many there are for each end: down to 1 % of the range.
const COARSE_RATIO: f64 = 0.7;
const COARSE_STEPS: i32 = 13;
/// The second search ends when neighbouring candidates are closer than this factor.
const FINEST_RATIO: f64 = 0.995;

pub(super) fn range(moments: &Moments, seen: Range, grid: Grid, mapping: Mapping) -> Range {
    let (qmin, qmax) = (grid.qmin(), grid.qmax());
    let error = |range: Range| {
        let (scale, zero_point) = range.scale_and_zero_point(grid, mapping);
        moments.error(scale, zero_point, qmin, qmax)
    };
    // An end that is zero stays there; a symmetric grid has one end only.
    let both_ends = seen.lo < 0.0 && seen.hi > 0.0 && mapping == Mapping::Affine;
    let shrunk = |lo: f64, hi: f64| Range { lo: seen.lo * lo.min(1.0), hi: seen.hi * hi.min(1.0) };

    let (mut best, mut least) = ((1.0, 1.0), error(seen));
    let mut try_shares = |best: &mut (f64, f64), lo: f64, hi: f64| {
        let found = error(shrunk(lo, hi));
        let better = found < least;
        if better {
            (*best, least) = ((lo.min(1.0), hi.min(1.0)), found);
        }
        better
    };
    for i in 0..COARSE_STEPS {
        for j in if both_ends { 0..COARSE_STEPS } else { i..i + 1 } {
            try_shares(&mut best, COARSE_RATIO.powi(i), COARSE_RATIO.powi(j));
        }
    }
    let mut ratio = COARSE_RATIO.sqrt();
    while ratio < FINEST_RATIO {
        let (lo, hi) = best;
        let (down, up) = (ratio, 1.0 / ratio);
        let together = try_shares(&mut best, lo * down, hi * down) | try_shares(&mut best, lo * up, hi * up);
        let apart = both_ends
            && [(down, 1.0), (up, 1.0), (1.0, down), (1.0, up), (down, up), (up, down)]
                .into_iter()
                .fold(false, |any, (l, h)| try_shares(&mut best, lo * l, hi * h) | any);
        if !(together || apart) {
            ratio = ratio.sqrt();
        }
    }
    shrunk(best.0, best.1)
}
