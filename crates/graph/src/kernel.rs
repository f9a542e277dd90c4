//! What runs: a computation made ready for known shapes, and the memory it is given.

use fewbits_kernels::Threads;
use std::fmt::Debug;

/// The elements of a tensor at run time, in memory order.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each variant is named after its DType")]
pub enum Slice<'a> {
    F32(&'a [f32]),
    I64(&'a [i64]),
    I32(&'a [i32]),
    U8(&'a [u8]),
    I8(&'a [i8]),
    Bool(&'a [bool]),
    /// An optional input that is not there.
    Absent,
}

/// The elements of an output at run time.
#[derive(Debug)]
#[expect(missing_docs, reason = "each variant is named after its DType")]
pub enum SliceMut<'a> {
    F32(&'a mut [f32]),
    I64(&'a mut [i64]),
    I32(&'a mut [i32]),
    U8(&'a mut [u8]),
    I8(&'a mut [i8]),
    Bool(&'a mut [bool]),
}

/// What a kernel gets when it runs: its inputs, its outputs, scratch memory of the size it asked for, and the threads.
/// The typed accessors return empty slices on a type mismatch, which the executor's facts rule out.
#[derive(Debug)]
pub struct Io<'a> {
    /// Worker threads.
    pub threads: &'a Threads,
    /// One per node input, plus a fused residual at the end if there is one.
    pub ins: &'a [Slice<'a>],
    /// One per node output.
    pub outs: &'a mut [SliceMut<'a>],
    /// Scratch memory, at least [`Kernel::scratch`] elements long.
    pub scratch: &'a mut [f32],
}

macro_rules! io {
    ($($variant:ident $ty:ty, $get:ident, $out:ident;)*) => {
        impl<'a> Io<'a> {
            $(
                #[doc = concat!("Input `i` as `", stringify!($ty), "`.")]
                pub fn $get(&self, i: usize) -> &'a [$ty] {
                    match self.ins.get(i) { Some(Slice::$variant(s)) => s, _ => &[] }
                }
                #[doc = concat!("Output `i` as `", stringify!($ty), "`.")]
                pub fn $out(&mut self, i: usize) -> &mut [$ty] {
                    match self.outs.get_mut(i) { Some(SliceMut::$variant(s)) => s, _ => &mut [] }
                }
            )*
        }
    };
}
io! {
    F32 f32, f32, out_f32;
    I64 i64, i64, out_i64;
    I32 i32, i32, out_i32;
    U8 u8, u8, out_u8;
    I8 i8, i8, out_i8;
    Bool bool, bool, out_bool;
}

impl Io<'_> {
    /// Output `i` as `f32`, and the scratch memory.
    pub fn out_f32_and_scratch(&mut self, i: usize) -> (&mut [f32], &mut [f32]) {
        match self.outs.get_mut(i) {
            Some(SliceMut::F32(s)) => (s, self.scratch),
            _ => (&mut [], self.scratch),
        }
    }

    /// Output `i` as `u8`, and the scratch memory.
    pub fn out_u8_and_scratch(&mut self, i: usize) -> (&mut [u8], &mut [f32]) {
        match self.outs.get_mut(i) {
            Some(SliceMut::U8(s)) => (s, self.scratch),
            _ => (&mut [], self.scratch),
        }
    }
}

type RunFn = dyn Fn(&mut Io<'_>) + Send + Sync;

/// An operator made ready for known shapes: checks, index arithmetic and weight packing are done.
pub struct Kernel {
    run: Box<RunFn>,
    /// How many `f32` elements of scratch memory a run needs.
    pub scratch: usize,
}

impl Kernel {
    /// A kernel without scratch memory.
    pub fn new(run: impl Fn(&mut Io<'_>) + Send + Sync + 'static) -> Self {
        Kernel { run: Box::new(run), scratch: 0 }
    }

    /// The same kernel with `scratch` `f32` elements of scratch memory.
    pub fn with_scratch(self, scratch: usize) -> Self {
        Kernel { scratch, ..self }
    }

    /// Computes the outputs.
    pub fn run(&self, io: &mut Io<'_>) {
        (self.run)(io);
    }
}

impl Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernel(scratch {})", self.scratch)
    }
}

/// One direction of a node in training, where parameters change from run to run.
#[derive(Debug)]
pub struct Pass {
    /// The computation on some images of a batch.
    pub kernel: Kernel,
    /// Which of the node's inputs the kernel reads (backward passes; forward passes read all).
    pub reads_ins: Vec<bool>,
    /// Which of the node's outputs a backward kernel reads.
    pub reads_outs: Vec<bool>,
    /// What is done once per change of the parameters.
    pub packing: Option<Packing>,
    /// The form in which a backward kernel adds up the gradient of one parameter, where that is not the parameter's own.
    pub gradient: Option<Unpacking>,
}

/// Parameters brought into the form that a kernel reads. Its kernel gets the node's inputs of which only parameters are there
/// (the others are absent) and writes output 0; the result becomes the last input of the pass's kernel.
#[derive(Debug)]
pub struct Packing {
    /// Makes the form.
    pub kernel: Kernel,
    /// Its length.
    pub len: usize,
}

/// A gradient brought from the form in which it was added up into the parameter's own: input 0 to output 0.
#[derive(Debug)]
pub struct Unpacking {
    /// The parameter: which input of the node.
    pub input: usize,
    /// Length of the form that the backward kernel adds to.
    pub len: usize,
    /// Writes the parameter's gradient.
    pub kernel: Kernel,
}

impl Pass {
    /// A backward pass that reads none of the node's inputs and outputs, only gradients.
    pub fn new(kernel: Kernel) -> Self {
        Pass { kernel, reads_ins: vec![], reads_outs: vec![], packing: None, gradient: None }
    }

    /// The same pass, reading the node's inputs `ins` too.
    pub fn reading_ins(mut self, ins: &[usize]) -> Self {
        self.reads_ins = (0..=ins.iter().copied().max().unwrap_or(0)).map(|i| ins.contains(&i)).collect();
        self
    }

    /// The same pass, reading the node's outputs `outs` too.
    pub fn reading_outs(mut self, outs: &[usize]) -> Self {
        self.reads_outs = (0..=outs.iter().copied().max().unwrap_or(0)).map(|i| outs.contains(&i)).collect();
        self
    }
}
