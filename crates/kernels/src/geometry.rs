//! The shape of a two-dimensional convolution, shared by the float and the integer kernels.
//!
//! What enters: attributes of a convolution. What leaves: its output size and its cost. It knows no data.

/// What a two-dimensional convolution looks like, apart from the image it is applied to.
///
/// Weights are `[out_channels, in_channels / groups, kernel height, kernel width]` (OIHW); images are NHWC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvGeometry {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Vertical and horizontal step between output positions.
    pub stride: [usize; 2],
    /// Vertical and horizontal step between kernel taps.
    pub dilation: [usize; 2],
    /// Zero rows and columns added at the top, left, bottom and right.
    pub pads: [usize; 4],
    /// Number of groups; divides `in_channels` and `out_channels`.
    pub groups: usize,
}

impl ConvGeometry {
    /// A dense 1×1 convolution of stride 1: a matrix product over positions.
    pub fn pointwise(in_channels: usize, out_channels: usize) -> Self {
        ConvGeometry {
            in_channels,
            out_channels,
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pads: [0; 4],
            groups: 1,
        }
    }

    /// Whether every number makes sense: nothing but pads is zero, and `groups` divides both channel counts.
    pub fn is_valid(&self) -> bool {
        let positive = [self.in_channels, self.out_channels, self.groups];
        let pairs = [self.kernel, self.stride, self.dilation];
        positive.iter().chain(pairs.iter().flatten()).all(|&n| n > 0)
            && self.in_channels.is_multiple_of(self.groups)
            && self.out_channels.is_multiple_of(self.groups)
    }

    /// Height and width of the output for an `h` × `w` input: `floor((size + pads - extent) / stride) + 1` with
    /// `extent = dilation * (kernel - 1) + 1`. `None` if the geometry is not valid or the kernel does not fit.
    pub fn output_size(&self, h: usize, w: usize) -> Option<[usize; 2]> {
        if !self.is_valid() {
            return None;
        }
        let [top, left, bottom, right] = self.pads;
        let axis = |size: usize, pads: usize, i: usize| {
            let extent = self.extent()[i];
            Some((size + pads).checked_sub(extent)? / self.stride[i] + 1)
        };
        Some([axis(h, top + bottom, 0)?, axis(w, left + right, 1)?])
    }

    /// Rows and columns of the input that one output position reaches: `dilation * (kernel - 1) + 1`.
    pub fn extent(&self) -> [usize; 2] {
        [0, 1].map(|i| self.dilation[i] * (self.kernel[i] - 1) + 1)
    }

    /// Input channels that one output channel reads.
    #[inline]
    pub fn group_in(&self) -> usize {
        self.in_channels / self.groups
    }

    /// Output channels of one group.
    #[inline]
    pub fn group_out(&self) -> usize {
        self.out_channels / self.groups
    }

    /// Number of weights.
    pub fn weight_len(&self) -> usize {
        self.out_channels * self.group_in() * self.kernel[0] * self.kernel[1]
    }

    /// One filter per channel: as many groups as input and output channels.
    pub fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.in_channels && self.groups == self.out_channels
    }

    /// A dense 1×1 convolution with stride 1 and no pads: a matrix product over positions.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1] && self.stride == [1, 1] && self.pads == [0; 4] && self.groups == 1
    }

    /// Multiply-accumulates for `n` images of `h` × `w` (0 if the kernel does not fit), padding included.
    pub fn macs(&self, n: usize, h: usize, w: usize) -> u64 {
        self.output_size(h, w).map_or(0, |[oh, ow]| (n * oh * ow) as u64 * self.weight_len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_size_follows_the_onnx_formula() {
        let g = ConvGeometry {
            kernel: [3, 5],
            stride: [2, 1],
            dilation: [1, 2],
            pads: [1, 4, 0, 4],
            ..ConvGeometry::pointwise(4, 6)
        };
        assert_eq!(g.output_size(8, 9), Some([4, 9]));
        assert_eq!(g.macs(2, 8, 9), 2 * 4 * 9 * 6 * 4 * 15);
        assert_eq!(g.output_size(1, 9), None);
    }

    #[test]
    fn geometry_that_cannot_be_is_refused() {
        let g = ConvGeometry::pointwise(4, 6);
        assert_eq!(ConvGeometry { groups: 4, ..g }.output_size(3, 3), None);
        assert_eq!(ConvGeometry { stride: [0, 1], ..g }.output_size(3, 3), None);
        assert!(ConvGeometry { groups: 2, ..g }.is_valid());
    }
}
