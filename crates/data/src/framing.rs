//! Where a prepared image lies over the original: sizes and [`Preprocess`] enter, the way back from its pixels leaves.
//! It must not know what is found in images.

use crate::{
    Preprocess, Resize,
    preprocess::{half_to_even, letterbox_margins, letterbox_ratio},
};

/// `prepared = original · factor + offset`, in pixels, for x and y.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Framing {
    /// How much larger things are in the prepared image.
    pub factor: [f64; 2],
    /// Where the original's top left corner is.
    pub offset: [f64; 2],
}

impl Framing {
    /// Of an original of `(width, height)` under `preprocess`.
    ///
    /// A letterbox in the corner has one factor, `min(W/w, H/h)`, as YOLOX has it; else factors are quotients of the whole sizes in
    /// pixels, as Darknet has them.
    pub fn of(preprocess: &Preprocess, original: (usize, usize)) -> Self {
        let original = (original.0.max(1), original.1.max(1));
        let resized = preprocess.resized_size(original);
        let mut factor = [resized.0 as f64 / original.0 as f64, resized.1 as f64 / original.1 as f64];
        let (mut offset, mut framed) = ([0.0; 2], resized);
        if let Resize::Letterbox { height, width, centred, .. } = preprocess.resize {
            framed = (width, height);
            if centred {
                let (left, top) = letterbox_margins(resized, framed);
                offset = [left as f64, top as f64];
            } else {
                factor = [letterbox_ratio(original, framed); 2];
            }
        }
        if let Some(crop) = preprocess.crop {
            for (offset, side) in offset.iter_mut().zip([framed.0, framed.1]) {
                *offset -= half_to_even(side.saturating_sub(crop)) as f64;
            }
        }
        Self { factor, offset }
    }

    /// Left, top, right, bottom in the prepared image, in pixels of the original.
    pub fn to_original(&self, corners: [f64; 4]) -> [f64; 4] {
        std::array::from_fn(|i| (corners[i] - self.offset[i % 2]) / self.factor[i % 2])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_corner_of_the_original_comes_back() {
        let letterbox = |centred| Resize::Letterbox { height: 64, width: 64, fill: 0, centred };
        let cases = [
            (Resize::Keep, None, [10.0, 20.0]),
            (Resize::Keep, Some(40), [10.0 - 30.0, 20.0 - 5.0]),
            (Resize::Exact { height: 100, width: 50 }, None, [5.0, 40.0]),
            (Resize::Shorter(25), None, [5.0, 10.0]),
            (Resize::Shorter(25), Some(25), [5.0 - 12.0, 10.0]),
            (letterbox(false), None, [6.4, 12.8]),
            (letterbox(true), None, [6.4, 16.0 + 12.8]),
        ];
        for (resize, crop, [x, y]) in cases {
            let framing = Framing::of(&Preprocess { resize, crop, ..Preprocess::default() }, (100, 50));
            let back = framing.to_original([x, y, x, y]);
            let apart = back.iter().zip([10.0, 20.0, 10.0, 20.0]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 1e-12, "{resize:?} {crop:?}: {back:?}");
        }
    }
}
