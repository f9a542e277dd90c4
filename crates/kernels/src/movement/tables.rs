//! Index tables: for each place along one axis of the output, the place along that axis of the input.
//!
//! What enters: the length of an axis and what is done to it. What leaves: a table for [`Take`](super::Take).

use super::FILL;

/// What stands outside the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PadMode {
    /// A given value.
    Constant,
    /// The input mirrored, its border not repeated: `c b | a b c | b a`.
    Reflect,
    /// The border: `a a | a b c | c c`.
    Edge,
    /// The input again: `b c | a b c | a b`.
    Wrap,
}

/// `start, start + step, …`: `count` indices. All must lie within the axis.
pub fn slice(start: usize, step: isize, count: usize) -> Vec<usize> {
    (0..count as isize).map(|i| start.wrapping_add_signed(i * step)).collect()
}

/// An axis of `len` elements with `before` and `after` more; negative numbers cut off (`before + len + after >= 0`). Places
/// outside hold [`FILL`] in [`PadMode::Constant`]. As in numpy and ONNX Runtime, cuts come before mirrors: what is cut off
/// does not come back. Reflection repeats to and fro when it reaches further than the axis; an axis of which nothing is left
/// has only fill.
pub fn pad(len: usize, before: isize, after: isize, mode: PadMode) -> Vec<usize> {
    let len = len as isize;
    let (first, end) = ((-before).max(0).min(len), (len + after.min(0)).max(0));
    let left = end - first;
    let place = |i: isize| {
        // Position within what the cuts leave.
        let i = i - first;
        let inside = match mode {
            _ if left <= 0 => return FILL,
            PadMode::Constant if !(0..left).contains(&i) => return FILL,
            PadMode::Constant => i,
            PadMode::Edge => i.clamp(0, left - 1),
            PadMode::Wrap => i.rem_euclid(left),
            PadMode::Reflect if left == 1 => 0,
            PadMode::Reflect => {
                let i = i.rem_euclid(2 * (left - 1));
                i.min(2 * (left - 1) - i)
            }
        };
        (first + inside) as usize
    };
    (-before..len + after).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_equal_numpy() {
        // numpy.pad(numpy.arange(3), (4, 5), mode)
        assert_eq!(pad(3, 4, 5, PadMode::Reflect), [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1]);
        assert_eq!(pad(3, 4, 5, PadMode::Edge), [0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(pad(3, 4, 5, PadMode::Wrap), [2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]);
        assert_eq!(pad(3, 1, 2, PadMode::Constant), [FILL, 0, 1, 2, FILL, FILL]);
        assert_eq!(pad(1, 1, 2, PadMode::Reflect), [0, 0, 0, 0]);
        // Cut one in front, pad two behind: numpy.pad(numpy.arange(1, 4), (0, 2), mode) + …
        assert_eq!(pad(4, -1, 2, PadMode::Reflect), [1, 2, 3, 2, 1]);
        assert_eq!(pad(4, -1, 2, PadMode::Wrap), [1, 2, 3, 1, 2]);
        assert_eq!(pad(4, -3, -1, PadMode::Constant), []);
        assert_eq!(pad(2, -3, 3, PadMode::Constant), [FILL, FILL]);
        assert_eq!(pad(0, 1, 1, PadMode::Constant), [FILL, FILL]);
        assert_eq!(slice(5, -2, 3), [5, 3, 1]);
        assert_eq!(slice(0, 1, 0), []);
    }
}
