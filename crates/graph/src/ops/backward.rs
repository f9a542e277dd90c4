//! What backward passes share: gradients that are computed element by element, and summed where an operand was stretched;
//! gradients that return to where the elements came from.
//!
//! What enters: facts, which gradients are wanted, derivatives of one number. What leaves: a [`Pass`]. Everything runs on the
//! calling thread, in one fixed order, without allocating.

use super::{
    broadcast::steps,
    dispatch::{Tables, physical},
};
use crate::{
    error::OpError,
    op::{Fact, Facts, Io, Kernel, Pass, Want, required},
    tensor::DType,
};
use fewbits_kernels::{
    Threads,
    movement::{Take, Transpose},
    simd::{self, Isa, Simd},
};

/// `to = from` or `to += from`, as wanted.
pub(super) fn put(want: Want, from: &[f32], to: &mut [f32]) {
    match want {
        Want::No => {}
        Want::Write => to.copy_from_slice(from),
        Want::Add => to.iter_mut().zip(from).for_each(|(to, from)| *to += from),
    }
}

/// What is wanted of input 0, where it is the only one that has a gradient.
pub(super) fn of_first(wants: &[Want]) -> Result<Want, OpError> {
    match wants.iter().skip(1).position(|&want| want != Want::No) {
        None => Ok(wants.first().copied().unwrap_or(Want::No)),
        Some(i) => Err(no_gradient(i + 1)),
    }
}

/// The error for a gradient that is wanted but does not exist.
pub(super) fn no_gradient(input: usize) -> OpError {
    OpError::Unsupported(format!("the gradient of input {input}"))
}

/// Whether the first input and output are floats: nothing else has a gradient.
pub(super) fn is_float(ins: Facts, outs: &[Fact]) -> Result<bool, OpError> {
    Ok(required(ins, 0)?.dtype == DType::F32 && outs[0].dtype == DType::F32)
}

/// Where the gradient of output 0 stands among the inputs of a backward kernel.
pub(super) fn gradient_index(ins: Facts, outs: &[Fact]) -> usize {
    ins.len() + outs.len()
}

/// Two operands `a` and `b`, the gradient `dy` of an output, and the gradient `dx` that is wanted: all stretched to one shape and
/// walked together.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    /// Outermost first, never empty. Neighbours that all four walk without a jump are one axis.
    axes: Vec<Axis>,
    /// Whether `dx` is stretched, so that its elements are sums.
    sums: bool,
}

#[derive(Clone, Copy, Debug)]
struct Axis {
    len: usize,
    /// Elements between neighbours in each tensor; 0 repeats one element.
    steps: [usize; 4],
}

impl Walk {
    /// Walks `[a, b, dy, dx]`, which stretch to `shape`.
    pub fn new(shape: &Fact, tensors: [&Fact; 4]) -> Self {
        let steps = tensors.map(|tensor| steps(tensor, shape));
        let mut axes: Vec<Axis> = Vec::new();
        for (axis, &len) in shape.physical_dims().iter().enumerate().filter(|&(_, &len)| len != 1) {
            let inner = Axis { len, steps: [0, 1, 2, 3].map(|t| steps[t][axis]) };
            match axes.last_mut() {
                Some(outer) if (0..4).all(|t| outer.steps[t] == inner.steps[t] * len) => {
                    *outer = Axis { len: outer.len * len, ..inner };
                }
                _ => axes.push(inner),
            }
        }
        let sums = axes.iter().any(|axis| axis.steps[3] == 0);
        if axes.is_empty() {
            axes.push(Axis { len: 1, steps: [0; 4] });
        }
        Walk { axes, sums }
    }

    /// `dx[…] = Σ f(a[…], b[…], dy[…])`, or added to what `dx` holds, as wanted.
    pub fn run<A: Copy>(
        &self,
        (a, b, dy): (&[A], &[f32], &[f32]),
        dx: &mut [f32],
        want: Want,
        f: impl Fn(A, f32, f32) -> f32 + Copy,
    ) {
        match want {
            Want::No => return,
            Want::Write if self.sums => dx.fill(0.0),
            Want::Write | Want::Add => {}
        }
        let (isa, add) = (Isa::best(), self.sums || want == Want::Add);
        for_each_row(&self.axes, [0; 4], &mut |[i, j, k, l], &axis| {
            isa.dispatch(Row { axis, a: &a[i..], b: &b[j..], dy: &dy[k..], dx: &mut dx[l..], add, f });
        });
    }
}

/// Calls `row(first element in each tensor, innermost axis)` for all indices of the outer axes.
fn for_each_row(axes: &[Axis], starts: [usize; 4], row: &mut impl FnMut([usize; 4], &Axis)) {
    match axes {
        [] => {}
        [inner] => row(starts, inner),
        [outer, rest @ ..] => {
            for i in 0..outer.len {
                for_each_row(rest, [0, 1, 2, 3].map(|t| starts[t] + i * outer.steps[t]), row);
            }
        }
    }
}

struct Row<'a, A, F> {
    axis: Axis,
    a: &'a [A],
    b: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
    add: bool,
    f: F,
}

impl<A: Copy, F: Fn(A, f32, f32) -> f32 + Copy> simd::Kernel for Row<'_, A, F> {
    type Output = ();
    /// Plain loops, compiled for each instruction set.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Row { axis: Axis { len: n, steps }, a, b, dy, dx, add, f } = self;
        match steps {
            [1, 1, 1, 1] => {
                let rows = dx[..n].iter_mut().zip(&a[..n]).zip(&b[..n]).zip(&dy[..n]);
                if add {
                    rows.for_each(|(((dx, &a), &b), &dy)| *dx += f(a, b, dy));
                } else {
                    rows.for_each(|(((dx, &a), &b), &dy)| *dx = f(a, b, dy));
                }
            }
            [0, 1, 1, 1] => {
                let (a, rows) = (a[0], dx[..n].iter_mut().zip(&b[..n]).zip(&dy[..n]));
                if add {
                    rows.for_each(|((dx, &b), &dy)| *dx += f(a, b, dy));
                } else {
                    rows.for_each(|((dx, &b), &dy)| *dx = f(a, b, dy));
                }
            }
            [1, 1, 1, 0] => dx[0] += sum(&a[..n], &b[..n], &dy[..n], f),
            [i, j, k, l] => {
                for p in 0..n {
                    let d = f(a[p * i], b[p * j], dy[p * k]);
                    let dx = &mut dx[p * l];
                    *dx = if add { *dx + d } else { d };
                }
            }
        }
    }
}

/// `Σ f(a, b, dy)`: side by side in f32 for some thousand elements, across these in f64.
#[inline(always)]
fn sum<A: Copy>(a: &[A], b: &[f32], dy: &[f32], f: impl Fn(A, f32, f32) -> f32) -> f32 {
    const LANES: usize = 32;
    const BLOCK: usize = 128 * LANES;
    let mut total = 0.0f64;
    for ((a, b), dy) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).zip(dy.chunks(BLOCK)) {
        let mut lanes = [0f32; LANES];
        let ((a, a_rest), (b, b_rest), (dy, dy_rest)) =
            (a.as_chunks::<LANES>(), b.as_chunks::<LANES>(), dy.as_chunks::<LANES>());
        for ((a, b), dy) in a.iter().zip(b).zip(dy) {
            for lane in 0..LANES {
                lanes[lane] += f(a[lane], b[lane], dy[lane]);
            }
        }
        let rest: f64 = a_rest.iter().zip(b_rest).zip(dy_rest).map(|((&a, &b), &dy)| f64::from(f(a, b, dy))).sum();
        total += lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest;
    }
    total as f32
}

/// A tensor that a derivative is computed from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Source {
    /// An input of the node.
    Input(usize),
    /// Its output.
    Output,
    /// The gradient of the output: nothing else is read.
    Gradient,
}

type Part = Box<dyn Fn(&mut Io<'_>) + Send + Sync>;

/// The backward pass of an operator with one output that computes element by element, with broadcasting.
pub(super) struct Elementwise<'a> {
    ins: Facts<'a>,
    outs: &'a [Fact],
    wants: &'a [Want],
    /// The shape that everything stretches to.
    shape: Fact,
    /// The output, with axes by which it stretches to that.
    output: Fact,
    /// Which inputs have a derivative.
    derived: Vec<usize>,
    read: Vec<Source>,
    parts: Vec<Part>,
}

impl<'a> Elementwise<'a> {
    /// A pass without derivatives yet.
    pub fn new(ins: Facts<'a>, outs: &'a [Fact], wants: &'a [Want]) -> Self {
        let (shape, output) = (outs[0].clone(), outs[0].clone());
        Elementwise { ins, outs, wants, shape, output, derived: vec![], read: vec![], parts: vec![] }
    }

    /// The same for an operator that reduces: its output, seen with other axes as `output`, stretches to `shape`.
    pub fn over(self, shape: &Fact, output: Fact) -> Self {
        Elementwise { shape: shape.clone(), output, ..self }
    }

    /// The gradient of `input`: `Σ f(a, b, dy)` over the places to which it is stretched.
    pub fn toward(
        mut self,
        input: usize,
        [a, b]: [Source; 2],
        f: impl Fn(f32, f32, f32) -> f32 + Copy + Send + Sync + 'static,
    ) -> Result<Self, OpError> {
        self.derived.push(input);
        let want = self.wants.get(input).copied().unwrap_or(Want::No);
        if want == Want::No {
            return Ok(self);
        }
        let tensor = |source| match source {
            Source::Input(i) => Ok((i, required(self.ins, i)?)),
            Source::Output => Ok((self.ins.len(), &self.output)),
            Source::Gradient => Ok((gradient_index(self.ins, self.outs), &self.output)),
        };
        let ((i, a_fact), (j, b_fact), (k, dy)) = (tensor(a)?, tensor(b)?, tensor(Source::Gradient)?);
        let walk = Walk::new(&self.shape, [a_fact, b_fact, dy, required(self.ins, input)?]);
        self.parts.push(Box::new(move |io| {
            let tensors = (io.f32(i), io.f32(j), io.f32(k));
            walk.run(tensors, io.out_f32(input), want, f);
        }));
        self.read.extend([a, b]);
        Ok(self)
    }

    /// The finished pass; `None` if the output is no float, an error if another input's gradient is wanted.
    pub fn pass(self) -> Result<Option<Pass>, OpError> {
        if self.outs[0].dtype != DType::F32 {
            return Ok(None);
        }
        let missing = (0..self.wants.len()).find(|i| self.wants[*i] != Want::No && !self.derived.contains(i));
        if let Some(input) = missing {
            return Err(no_gradient(input));
        }
        let parts = self.parts;
        let inputs = self.read.iter().filter_map(|source| if let Source::Input(i) = source { Some(*i) } else { None });
        let pass = Pass::new(Kernel::new(move |io| parts.iter().for_each(|part| part(io))))
            .reading_ins(&inputs.collect::<Vec<_>>());
        Ok(Some(if self.read.contains(&Source::Output) { pass.reading_outs(&[0]) } else { pass }))
    }
}

/// The pass of `y = f(x)`: `dx = derivative(v, dy)`, where `v` is `x` or `y`.
pub(super) fn map(
    ins: Facts,
    outs: &[Fact],
    wants: &[Want],
    v: Source,
    derivative: impl Fn(f32, f32) -> f32 + Copy + Send + Sync + 'static,
) -> Result<Option<Pass>, OpError> {
    Elementwise::new(ins, outs, wants).toward(0, [v, Source::Gradient], move |v, _, dy| derivative(v, dy))?.pass()
}

/// The pass of an operator that copies input 0 to output 0, whatever their dimensions.
pub(super) fn copy(ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
    let (want, gradient) = (of_first(wants)?, gradient_index(ins, outs));
    let kernel = Kernel::new(move |io| put(want, io.f32(gradient), io.out_f32(0)));
    Ok(is_float(ins, outs)?.then(|| Pass::new(kernel)))
}

/// The pass of an operator that picks elements of input 0, seen as `x`, by one index table per logical axis: every gradient is added
/// where its element came from.
pub(super) fn scatter(
    ins: Facts,
    outs: &[Fact],
    wants: &[Want],
    x: &Fact,
    tables: Tables,
) -> Result<Option<Pass>, OpError> {
    const FILL: u32 = u32::MAX;
    let (want, gradient) = (of_first(wants)?, gradient_index(ins, outs));
    if !is_float(ins, outs)? {
        return Ok(None);
    }
    let take = Take::new(&x.physical_dims(), &physical(x.layout, tables));
    let places: Vec<u32> = (0..x.len() as u32).collect();
    let mut origins = vec![FILL; take.out_len()];
    take.run(&Threads::new(1), &places, FILL, &mut origins);
    // Runs of neighbours: where they came from, if from anywhere, and how many there are.
    let mut runs: Vec<(Option<u32>, u32)> = Vec::new();
    for origin in origins {
        let origin = (origin != FILL).then_some(origin);
        match runs.last_mut() {
            Some((None, len)) if origin.is_none() => *len += 1,
            Some((Some(first), len)) if origin == Some(*first + *len) => *len += 1,
            _ => runs.push((origin, 1)),
        }
    }
    Ok(Some(Pass::new(Kernel::new(move |io| {
        let (mut dy, dx) = (io.f32(gradient), io.out_f32(0));
        if want == Want::Write {
            dx.fill(0.0);
        }
        for &(origin, len) in &runs {
            let (from, rest) = dy.split_at(len as usize);
            if let Some(origin) = origin {
                put(Want::Add, from, &mut dx[origin as usize..][..len as usize]);
            }
            dy = rest;
        }
    }))))
}

/// The pass of an operator that permutes input 0, seen with the axes `split`, by `permutation`.
pub(super) fn permute(
    ins: Facts,
    outs: &[Fact],
    wants: &[Want],
    split: &[usize],
    permutation: &[usize],
) -> Result<Option<Pass>, OpError> {
    let moved: Vec<usize> = permutation.iter().map(|&axis| split[axis]).collect();
    let mut inverse = vec![0; permutation.len()];
    permutation.iter().enumerate().for_each(|(to, &from)| inverse[from] = to);
    let back = Transpose::new(&moved, &inverse);
    written(ins, outs, wants, 0, move |threads, dy, dx, _| back.run(threads, dy, dx))
}

/// The pass of an operator whose gradient is computed by `write(threads, dy, dx, scratch)`, which cannot add.
pub(super) fn written(
    ins: Facts,
    outs: &[Fact],
    wants: &[Want],
    scratch: usize,
    write: impl Fn(&Threads, &[f32], &mut [f32], &mut [f32]) + Send + Sync + 'static,
) -> Result<Option<Pass>, OpError> {
    let (want, gradient, len) = (of_first(wants)?, gradient_index(ins, outs), required(ins, 0)?.len());
    let kernel = Kernel::new(move |io| {
        let (threads, dy) = (io.threads, io.f32(gradient));
        let (dx, memory) = io.out_f32_and_scratch(0);
        let (memory, rest) = memory.split_at_mut(scratch);
        match want {
            Want::No => {}
            Want::Write => write(threads, dy, dx, memory),
            Want::Add => {
                let written = &mut rest[..len];
                write(threads, dy, written, memory);
                put(Want::Add, written, dx);
            }
        }
    });
    let scratch = scratch + if want == Want::Add { len } else { 0 };
    Ok(is_float(ins, outs)?.then(|| Pass::new(kernel.with_scratch(scratch))))
}
