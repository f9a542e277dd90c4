//! The block that mobile architectures are made of: widen, filter each channel, narrow (Sandler et al. 2018, section 3.3).

use crate::net::{Act, Convolution, Net, Value};

/// One block.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// Channels of the output.
    pub out: usize,
    /// Factor of the channels between; at 1 there is no convolution that widens.
    pub expansion: usize,
    /// Sides of the depthwise kernels.
    pub kernels: &'a [usize],
    /// Stride of the depthwise convolution.
    pub stride: usize,
    /// After widening and after filtering; narrowing is linear.
    pub act: Act,
    /// Channels inside squeeze-and-excitation; 0: there is none.
    pub squeezed: usize,
    /// Groups of the convolutions that widen and narrow.
    pub groups: [usize; 2],
}

impl Net {
    /// The block, with a shortcut where input and output have the same shape.
    pub fn inverted_residual(&mut self, name: &str, x: &Value, block: Block) -> Value {
        let [widen, narrow] = block.groups;
        let mut y = x.clone();
        if block.expansion > 1 {
            let pointwise = Convolution::new(x.channels * block.expansion, 1).groups(widen);
            y = self.conv_bn_act(&format!("{name}.expand"), x, pointwise, block.act);
        }
        let depthwise = format!("{name}.depthwise");
        y = self.mixed_depthwise(&depthwise, &y, block.kernels, block.stride);
        y = self.batch_norm(&format!("{depthwise}.bn"), &y);
        y = self.activation(&depthwise, &y, block.act);
        if block.squeezed > 0 {
            y = self.squeeze_excite(&format!("{name}.se"), &y, block.squeezed, block.act);
        }
        y = self.conv_bn(&format!("{name}.project"), &y, Convolution::new(block.out, 1).groups(narrow));
        if block.stride == 1 && block.out == x.channels { self.add(&format!("{name}.add"), x, &y) } else { y }
    }
}
