//! The sliding window that convolutions and pools share: its attributes, its padding and how often it fits.
//!
//! What enters: attributes and spatial sizes. What leaves: a [`Frame`], in which one spatial axis is seen as two (height 1).

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
};

/// Where padding comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoPad {
    /// From `pads`.
    #[default]
    NotSet,
    /// Output size `ceil(input / stride)`; the odd one of the padding stands at the end.
    SameUpper,
    /// As `SameUpper`, with the odd one at the start.
    SameLower,
    /// None.
    Valid,
}

/// Attributes of a window, one entry per spatial axis; an empty list stands for ONNX's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Size; a convolution may leave it to the weight.
    pub kernel_shape: Vec<usize>,
    /// Steps between positions, default 1.
    pub strides: Vec<usize>,
    /// Steps between taps, default 1.
    pub dilations: Vec<usize>,
    /// Padding at all starts, then at all ends; default 0.
    pub pads: Vec<usize>,
    /// Overrides `pads` unless [`AutoPad::NotSet`].
    pub auto_pad: AutoPad,
}

/// A window laid over an image of known size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Height and width of the image.
    pub input: [usize; 2],
    /// Taps.
    pub kernel: [usize; 2],
    /// Steps between positions.
    pub stride: [usize; 2],
    /// Steps between taps.
    pub dilation: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
    /// Number of positions.
    pub output: [usize; 2],
}

impl Window {
    /// A square window of side `kernel` with the same stride and padding everywhere.
    pub fn square(kernel: usize, stride: usize, pad: usize) -> Self {
        let [kernel_shape, strides] = [kernel, stride].map(|n| vec![n; 2]);
        Window { kernel_shape, strides, pads: vec![pad; 4], ..Window::default() }
    }

    /// Reads `kernel_shape`, `strides`, `dilations`, `pads` and `auto_pad`.
    pub fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let sizes = |name| attrs.sizes(name).map(Option::unwrap_or_default);
        let auto_pad = match attrs.str("auto_pad")?.as_deref() {
            None | Some("" | "NOTSET") => AutoPad::NotSet,
            Some("SAME_UPPER") => AutoPad::SameUpper,
            Some("SAME_LOWER") => AutoPad::SameLower,
            Some("VALID") => AutoPad::Valid,
            Some(other) => {
                return Err(OpError::Attribute { name: "auto_pad", reason: format!("`{other}` is unknown") });
            }
        };
        Ok(Window {
            kernel_shape: sizes("kernel_shape")?,
            strides: sizes("strides")?,
            dilations: sizes("dilations")?,
            pads: sizes("pads")?,
            auto_pad,
        })
    }

    /// Adds the attributes that are not left to their default.
    pub fn write(&self, mut attrs: Attrs) -> Attrs {
        let lists = [
            ("kernel_shape", &self.kernel_shape),
            ("strides", &self.strides),
            ("dilations", &self.dilations),
            ("pads", &self.pads),
        ];
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            attrs = attrs.with(name, Attr::Ints(list.iter().map(|&v| v as i64).collect()));
        }
        let name = match self.auto_pad {
            AutoPad::NotSet => return attrs,
            AutoPad::SameUpper => "SAME_UPPER",
            AutoPad::SameLower => "SAME_LOWER",
            AutoPad::Valid => "VALID",
        };
        attrs.with("auto_pad", Attr::Str(name.into()))
    }

    /// The window over an image of size `spatial`; `kernel` is the weight's, or `kernel_shape` itself.
    ///
    /// `positions = floor((input + pads - extent) / stride) + 1`, rounded up instead with `ceil_mode`, but never so that a
    /// position starts behind the image and its leading padding.
    pub fn frame(&self, spatial: &[usize], kernel: &[usize], ceil_mode: bool) -> Result<Frame, OpError> {
        let mut frame = self.unpadded(spatial, kernel)?;
        for axis in 0..2 {
            let (input, stride) = (frame.input[axis], frame.stride[axis]);
            let extent = frame.dilation[axis] * (frame.kernel[axis] - 1) + 1;
            let positions = input.div_ceil(stride);
            let same = (positions.max(1) - 1) * stride + extent;
            frame.pad_same(axis, self.auto_pad, same.saturating_sub(input));
            let [start, end] = [frame.pads[axis], frame.pads[axis + 2]];
            let room = (input + start + end).checked_sub(extent).ok_or_else(|| OpError::Shapes {
                what: "padded image and kernel",
                left: vec![input + start + end],
                right: vec![extent],
            })?;
            frame.output[axis] = if ceil_mode { room.div_ceil(stride) } else { room / stride } + 1;
            if ceil_mode && (frame.output[axis] - 1) * stride >= input + start {
                frame.output[axis] -= 1;
            }
        }
        Ok(frame)
    }

    /// The frame with the padding of `pads` and no output size yet.
    pub fn unpadded(&self, spatial: &[usize], kernel: &[usize]) -> Result<Frame, OpError> {
        let rank = spatial.len();
        if !(1..=2).contains(&rank) {
            return Err(OpError::Unsupported(format!("windows over {rank} spatial axes (1 and 2 are)")));
        }
        let list = |name: &'static str, list: &[usize], len: usize, default: usize, least: usize| {
            if list.is_empty() {
                Ok(vec![default; len])
            } else if list.len() != len || list.iter().any(|&v| v < least) {
                Err(OpError::Attribute {
                    name,
                    reason: format!("{list:?} should be {len} numbers, each at least {least}"),
                })
            } else {
                Ok(list.to_vec())
            }
        };
        if kernel.is_empty() {
            return Err(OpError::Attribute { name: "kernel_shape", reason: "is required".into() });
        }
        let kernel = list("kernel_shape", kernel, rank, 1, 1)?;
        let strides = list("strides", &self.strides, rank, 1, 1)?;
        let dilations = list("dilations", &self.dilations, rank, 1, 1)?;
        let pads = list("pads", if self.auto_pad == AutoPad::NotSet { &self.pads } else { &[] }, 2 * rank, 0, 0)?;
        let two = |v: &[usize], first| if let &[b] = v { [first, b] } else { [v[0], v[1]] };
        let ([top, left], [bottom, right]) = (two(&pads[..rank], 0), two(&pads[rank..], 0));
        Ok(Frame {
            input: two(spatial, 1),
            kernel: two(&kernel, 1),
            stride: two(&strides, 1),
            dilation: two(&dilations, 1),
            pads: [top, left, bottom, right],
            output: [0; 2],
        })
    }
}

impl Frame {
    /// Splits `total` padding of `axis` for the `Same` modes; the others keep what they have.
    pub fn pad_same(&mut self, axis: usize, auto_pad: AutoPad, total: usize) {
        let [less, more] = [total / 2, total - total / 2];
        let [start, end] = match auto_pad {
            AutoPad::NotSet | AutoPad::Valid => return,
            AutoPad::SameUpper => [less, more],
            AutoPad::SameLower => [more, less],
        };
        (self.pads[axis], self.pads[axis + 2]) = (start, end);
    }

    /// Image, row and column of the window at `position` of the whole output.
    pub fn place(&self, position: usize) -> [usize; 3] {
        let [h, w] = self.output;
        [position / (h * w), position / w % h, position % w]
    }

    /// Where the taps of the window at `position` of `axis` lie in the image, without those that lie outside.
    pub fn taps(&self, axis: usize, position: usize) -> impl Iterator<Item = usize> + Clone {
        let (first, dilation, pad) = (position * self.stride[axis], self.dilation[axis], self.pads[axis]);
        let size = self.input[axis];
        let tap = move |k: usize| (first + k * dilation).checked_sub(pad).filter(|&i| i < size);
        (0..self.kernel[axis]).filter_map(tap)
    }

    /// How many taps of the window at `position` of `axis` lie inside the padded image.
    pub fn padded_taps(&self, axis: usize, position: usize) -> usize {
        let end = self.pads[axis] + self.input[axis] + self.pads[axis + 2];
        let left = end.saturating_sub(position * self.stride[axis]);
        left.div_ceil(self.dilation[axis]).min(self.kernel[axis])
    }

    /// Output dimensions `[n, channels, …]` with as many spatial axes as the input had.
    pub fn output_dims(&self, n: usize, channels: usize, spatial_rank: usize) -> Vec<usize> {
        [&[n, channels], &self.output[2 - spatial_rank..]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected sizes are those of ONNX Runtime 1.31.1 for MaxPool.
    #[test]
    fn positions_and_padding() {
        let window = |strides: usize, pads: Vec<usize>, auto_pad| Window {
            strides: vec![strides],
            pads,
            auto_pad,
            ..Window::default()
        };
        type Case = (usize, usize, Window, bool, usize, [usize; 2]);
        let cases: [Case; 8] = [
            (7, 3, window(2, vec![0, 0], AutoPad::NotSet), false, 3, [0, 0]),
            (8, 3, window(2, vec![0, 0], AutoPad::NotSet), true, 4, [0, 0]),
            (8, 3, window(2, vec![1, 1], AutoPad::NotSet), false, 4, [1, 1]),
            (4, 2, window(3, vec![0, 1], AutoPad::NotSet), true, 2, [0, 1]),
            (5, 2, window(3, vec![1, 1], AutoPad::NotSet), true, 2, [1, 1]),
            (8, 3, window(2, vec![], AutoPad::SameUpper), false, 4, [0, 1]),
            (8, 3, window(2, vec![], AutoPad::SameLower), false, 4, [1, 0]),
            (8, 3, window(2, vec![9, 9], AutoPad::Valid), false, 3, [0, 0]),
        ];
        for (input, kernel, window, ceil_mode, output, pads) in cases {
            let frame = window.frame(&[input], &[kernel], ceil_mode).expect("the case is valid");
            assert_eq!(frame.output, [1, output], "{input} {kernel} {window:?}");
            assert_eq!([frame.pads[1], frame.pads[3]], pads);
        }
    }

    #[test]
    fn bad_attributes_are_refused() {
        let bad = [
            Window { strides: vec![0], ..Window::default() },
            Window { pads: vec![1], ..Window::default() },
            Window { dilations: vec![9], ..Window::default() },
        ];
        for window in bad {
            assert!(window.frame(&[8], &[3], false).is_err(), "{window:?}");
        }
        assert!(Window::default().frame(&[8, 8, 8], &[3, 3, 3], false).is_err());
        assert!(Window::default().frame(&[8, 8], &[], false).is_err());
    }
}
