//! The kernels of a laid quantizer: an activation as a whole, a weight group by group.

use super::Laid;
use crate::op::{Io, Kernel};

/// `y = Q(x)`. Inputs: x, parameters.
pub(super) fn activation_forward(laid: &Laid) -> Kernel {
    let quantizer = laid.quantizer.clone();
    Kernel::new(move |io| {
        let (x, parameters) = (io.f32(0), io.f32(1));
        quantizer.forward(parameters, x, io.out_f32(0));
    })
}

/// Inputs: x, parameters, ∂Q(x). Output ∂x; adds to output 1, ∂parameters.
pub(super) fn activation_backward(laid: &Laid) -> Kernel {
    let quantizer = laid.quantizer.clone();
    Kernel::new(move |io: &mut Io<'_>| {
        let (x, parameters, dy) = (io.f32(0), io.f32(1), io.f32(2));
        let mut sums = vec![0.0; quantizer.learned()];
        quantizer.backward(parameters, x, dy, io.out_f32(0), &mut sums);
        io.out_f32(1).iter_mut().zip(sums).for_each(|(total, sum)| *total += sum as f32);
    })
}

/// `y = Q(w)`, group by group. Inputs: w, parameters.
pub(super) fn weight_forward(laid: &Laid, dims: &[usize]) -> Kernel {
    let (laid, groups) = (laid.clone(), Groups::new(laid, dims));
    Kernel::new(move |io: &mut Io<'_>| {
        let (x, parameters) = (io.f32(0), io.f32(1));
        let (mut own, mut inside, mut outside) = groups.buffers(&laid);
        for g in 0..laid.groups {
            groups.gather(g, x, &mut inside);
            laid.numbers(g, parameters, &inside, &mut own);
            laid.quantizer.forward(&own, &inside, &mut outside);
            groups.scatter(g, &outside, io.out_f32(0));
        }
    })
}

/// Inputs: w, parameters, ∂Q(w). Outputs: ∂w, ∂parameters.
pub(super) fn weight_backward(laid: &Laid, dims: &[usize]) -> Kernel {
    let (laid, groups) = (laid.clone(), Groups::new(laid, dims));
    Kernel::new(move |io: &mut Io<'_>| {
        let (x, parameters, dy) = (io.f32(0), io.f32(1), io.f32(2));
        let (mut own, mut inside, mut outside) = groups.buffers(&laid);
        let mut dx = vec![0.0; inside.len()];
        let learned = laid.quantizer.learned();
        for g in 0..laid.groups {
            groups.gather(g, x, &mut inside);
            groups.gather(g, dy, &mut outside);
            laid.numbers(g, parameters, &inside, &mut own);
            let mut sums = vec![0.0; learned];
            laid.quantizer.backward(&own, &inside, &outside, &mut dx, &mut sums);
            groups.scatter(g, &dx, io.out_f32(0));
            let d_parameters = &mut io.out_f32(1)[g * learned..][..learned];
            d_parameters.iter_mut().zip(sums).for_each(|(d, sum)| *d = sum as f32);
        }
    })
}

impl Laid {
    /// Learned, then derived numbers of group `g`.
    fn numbers(&self, g: usize, parameters: &[f32], x: &[f32], own: &mut [f32]) {
        let learned = self.quantizer.learned();
        let (first, rest) = own.split_at_mut(learned);
        first.copy_from_slice(&parameters[g * learned..][..learned]);
        self.quantizer.derive(x, rest);
    }

    /// The quantized values of the weight `x` of dimensions `dims`.
    pub fn apply(&self, parameters: &[f32], dims: &[usize], x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        let mut outs = [crate::op::SliceMut::F32(&mut y)];
        let ins = [crate::op::Slice::F32(x), crate::op::Slice::F32(parameters)];
        let threads = fewbits_kernels::Threads::new(1);
        weight_forward(self, dims).run(&mut Io { threads: &threads, ins: &ins, outs: &mut outs, scratch: &mut [] });
        y
    }
}

/// The elements of a weight that share parameters: those with the same index along one axis.
struct Groups {
    groups: usize,
    /// Products of the axes before and behind.
    outer: usize,
    inner: usize,
}

impl Groups {
    fn new(laid: &Laid, dims: &[usize]) -> Self {
        let whole = laid.groups == 1;
        let len: usize = dims.iter().product();
        match whole {
            true => Groups { groups: 1, outer: 1, inner: len },
            false => Groups {
                groups: laid.groups,
                outer: dims[..laid.axis].iter().product(),
                inner: dims[laid.axis + 1..].iter().product(),
            },
        }
    }

    fn buffers(&self, laid: &Laid) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let numbers = laid.quantizer.learned() + laid.quantizer.derived();
        let len = self.outer * self.inner;
        (vec![0.0; numbers], vec![0.0; len], vec![0.0; len])
    }

    fn gather(&self, g: usize, x: &[f32], group: &mut [f32]) {
        for (o, to) in group.chunks_exact_mut(self.inner.max(1)).enumerate() {
            to.copy_from_slice(&x[(o * self.groups + g) * self.inner..][..self.inner]);
        }
    }

    fn scatter(&self, g: usize, group: &[f32], y: &mut [f32]) {
        for (o, from) in group.chunks_exact(self.inner.max(1)).enumerate() {
            y[(o * self.groups + g) * self.inner..][..self.inner].copy_from_slice(from);
        }
    }
}
