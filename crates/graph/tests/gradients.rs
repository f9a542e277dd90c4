//! Every backward pass of the registry against finite differences of its operator's forward kernel, in every memory order, written
//! and added; and every training form of a forward kernel against the ordinary one.

mod memory;

use fewbits_graph::{
    DType, Data, OpError, Tensor,
    op::{Fact, Io, Kernel, Layout, Op, Pass, Sample, Slice, Want},
    ops::{Clip, Max, MaxPool, REGISTRY, ReduceMax, Relu, window::Window},
};
use fewbits_kernels::Threads;
use memory::{indexed, lay_out, slice, slice_mut, stored, unwritten};
use std::{fmt::Write as _, sync::Arc};

/// Operators without a derivative, and why.
const UNDIFFERENTIABLE: &[(&str, &str)] = &[
    ("And", TRUTH),
    ("Or", TRUTH),
    ("Not", TRUTH),
    ("ArgMax", "its output is an index"),
    ("LRN", "found in networks that nobody trains any more"),
    ("Equal", TRUTH),
    ("Greater", TRUTH),
    ("GreaterOrEqual", TRUTH),
    ("Less", TRUTH),
    ("LessOrEqual", TRUTH),
    ("Ceil", STEPS),
    ("Floor", STEPS),
    ("Round", STEPS),
    ("QuantizeLinear", STEPS),
    ("DequantizeLinear", "its input is codes"),
    ("Range", "its inputs are known ahead"),
    ("Shape", "its output does not depend on the elements"),
    ("ConstantOfShape", "its input is a shape"),
];
const TRUTH: &str = "its output is a truth value";
const STEPS: &str = "flat but for jumps";

/// Float inputs that configure their operator and have no gradient.
const CONFIGURATION: &[(&str, &[usize])] = &[
    ("BatchNormalization", &[3, 4]),
    ("Clip", &[1, 2]),
    ("Dropout", &[1]),
    ("Pad", &[2]),
    ("Pow", &[1]),
    ("Resize", &[1, 2]),
];

/// Operators with kinks: they are tried on numbers that keep away from 0, from bounds and from each other.
const KINKED: &str = "Relu LeakyRelu PRelu HardSigmoid HardSwish Elu Clip Abs MaxPool GlobalMaxPool ReduceL2 ReduceMax ReduceMin Min Max";

/// Operators that are tried on positive numbers.
const POSITIVE: &str = "Log Sqrt Reciprocal Div Pow";

/// A sample made ready to run.
struct Trial {
    op: Op,
    facts: Vec<Option<Fact>>,
    outs: Vec<Fact>,
    /// In the order of memory.
    ins: Vec<Option<Tensor>>,
    /// Gradients of the outputs; `None` of those that are no floats.
    gradients: Vec<Option<Tensor>>,
    /// Which inputs should have gradients.
    variable: Vec<bool>,
}

impl Trial {
    /// `None` if nothing in the sample is differentiable or the operator does not work in `layout`.
    fn new(name: &str, sample: &Sample, layout: Layout) -> Option<Trial> {
        let float = |t: &Option<Tensor>| t.as_ref().is_some_and(|t| t.dtype() == DType::F32);
        let fixed = CONFIGURATION.iter().find(|(op, _)| *op == name).map_or(&[][..], |(_, inputs)| inputs);
        let variable: Vec<bool> =
            sample.inputs.iter().enumerate().map(|(i, t)| float(t) && !fixed.contains(&i)).collect();
        let fact = |(tensor, &variable): (&Option<Tensor>, &bool)| {
            let tensor = tensor.as_ref()?;
            Some(if variable { Fact::new(DType::F32, &tensor.dims) } else { Fact::constant(Arc::new(tensor.clone())) })
        };
        let mut facts: Vec<_> = sample.inputs.iter().zip(&variable).map(fact).collect();
        let refs: Vec<_> = facts.iter().map(Option::as_ref).collect();
        let mut outs = sample.op.def().infer(&refs).ok()?;
        let fits = lay_out(&sample.op, &mut facts, &mut outs, layout);
        if !fits || !variable.contains(&true) || outs[0].dtype != DType::F32 {
            return None;
        }
        let ins = sample.inputs.iter().zip(&facts).map(|(t, fact)| Some(stored(t.as_ref()?, fact.as_ref()?))).collect();
        let gradient = |out: &Fact| {
            let dy = (0..out.len() as u32).map(|i| (hash(i) % 17) as f32 / 8.0 - 1.0).collect();
            (out.dtype == DType::F32).then(|| Tensor::f32(&out.physical_dims(), dy))
        };
        let gradients = outs.iter().map(gradient).collect();
        Some(Trial { op: sample.op.clone(), facts, outs, ins, gradients, variable })
    }

    fn refs(&self) -> Vec<Option<&Fact>> {
        self.facts.iter().map(Option::as_ref).collect()
    }

    fn slices(&self) -> Vec<Slice<'_>> {
        self.ins.iter().map(|t| t.as_ref().map_or(Slice::Absent, slice)).collect()
    }

    /// The form of the parameters that the pass asks for; parameters are the variable inputs but the first.
    fn packed(&self, pass: &Pass) -> Option<Tensor> {
        let packing = pass.packing.as_ref()?;
        let mut ins = self.slices();
        (0..ins.len()).filter(|&i| i == 0 || !self.variable[i]).for_each(|i| ins[i] = Slice::Absent);
        let mut form = [Tensor::f32(&[packing.len], vec![f32::NAN; packing.len])];
        run(&packing.kernel, 1, &ins, &mut form);
        let [form] = form;
        Some(form)
    }

    fn forward(&self) -> Result<Vec<Tensor>, OpError> {
        let mut outs: Vec<_> = self.outs.iter().map(unwritten).collect();
        run(&self.op.def().build(&self.refs(), &self.outs)?, 1, &self.slices(), &mut outs);
        Ok(outs)
    }

    /// `∂ Σ outputs · gradients / ∂ input`, by differences of the fourth order with step `step`.
    fn differences(&mut self, input: usize, step: f32) -> Result<Vec<f64>, OpError> {
        let kernel = self.op.def().build(&self.refs(), &self.outs)?;
        let mut outs: Vec<_> = self.outs.iter().map(unwritten).collect();
        let at = |trial: &mut Trial, i: usize, x: f32, outs: &mut Vec<Tensor>| {
            floats_mut(trial.ins[input].as_mut().expect("variable inputs are there"))[i] = x;
            run(&kernel, 1, &trial.slices(), outs);
            let weighted = |(y, dy): (&Tensor, &Option<Tensor>)| {
                let pairs = y.as_f32()?.iter().zip(dy.as_ref()?.as_f32()?);
                Some(pairs.map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum::<f64>())
            };
            outs.iter().zip(&trial.gradients).filter_map(weighted).sum::<f64>()
        };
        let x = self.ins[input].as_ref().and_then(Tensor::as_f32).expect("variable inputs are floats").to_vec();
        let mut derivatives = Vec::new();
        for (i, &x) in x.iter().enumerate() {
            let [a, b, c, d] = [1.0, -1.0, 2.0, -2.0].map(|k| at(self, i, x + k * step, &mut outs));
            derivatives.push((8.0 * (a - b) - (c - d)) / (12.0 * f64::from(step)));
            at(self, i, x, &mut outs);
        }
        Ok(derivatives)
    }

    /// The gradients of the inputs by the backward pass, in the order of memory; wanted ones start as `before`. `None` if there is
    /// no pass.
    fn backward(&self, wants: &[Want], before: f32) -> Result<Option<Vec<Tensor>>, OpError> {
        let Some(pass) = self.op.def().build_backward(&self.refs(), &self.outs, wants)? else { return Ok(None) };
        let (packed, ys) = (self.packed(&pass), self.forward()?);
        let mut ins = self.slices();
        let read = |reads: &[bool], i: usize| reads.get(i).copied().unwrap_or(false);
        (0..ins.len()).filter(|&i| !read(&pass.reads_ins, i)).for_each(|i| ins[i] = Slice::Absent);
        ins.extend(
            ys.iter().enumerate().map(|(i, y)| if read(&pass.reads_outs, i) { slice(y) } else { Slice::Absent }),
        );
        ins.extend(self.gradients.iter().map(|dy| dy.as_ref().map_or(Slice::Absent, slice)));
        ins.extend(packed.iter().map(slice));
        let buffer = |(i, fact): (usize, &Option<Fact>)| match (&pass.gradient, wants[i]) {
            (_, Want::No) => Tensor::f32(&[0], vec![]),
            (Some(form), want) if form.input == i => {
                Tensor::f32(&[form.len], vec![if want == Want::Add { 0.0 } else { f32::NAN }; form.len])
            }
            _ => {
                let fact = fact.as_ref().expect("wanted inputs are there");
                Tensor::f32(&fact.physical_dims(), vec![before; fact.len()])
            }
        };
        let compute = |threads| {
            let mut dx: Vec<_> = self.facts.iter().enumerate().map(buffer).collect();
            run(&pass.kernel, threads, &ins, &mut dx);
            if let Some(form) = &pass.gradient {
                let fact = self.facts[form.input].as_ref().expect("parameters are there");
                let mut own = [unwritten(fact)];
                run(&form.kernel, 1, &[slice(&dx[form.input])], &mut own);
                let [own] = own;
                dx[form.input] = own;
                if wants[form.input] == Want::Add {
                    floats_mut(&mut dx[form.input]).iter_mut().for_each(|v| *v += before);
                }
            }
            dx
        };
        let dx = compute(1);
        assert_eq!(format!("{dx:?}"), format!("{:?}", compute(3)), "the number of threads changes the result");
        Ok(Some(dx))
    }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    let (mut failures, mut tried) = (String::new(), Vec::new());
    for (name, index, sample) in indexed().chain(extra()) {
        if UNDIFFERENTIABLE.iter().any(|(op, _)| *op == name) {
            continue;
        }
        for layout in [Layout::Plain, Layout::ChannelsLast] {
            let Some(mut trial) = Trial::new(&name, &prepared(&name, &sample), layout) else { continue };
            tried.push(name.clone());
            if let Err(e) = compare(&name, &mut trial) {
                let _ = writeln!(failures, "{name} {index} {layout:?}: {e}");
            }
        }
    }
    for (name, _) in REGISTRY {
        let known = UNDIFFERENTIABLE.iter().any(|(op, _)| op == name) || tried.iter().any(|op| op == name);
        assert!(known, "{name} has no sample on floats");
    }
    assert!(failures.is_empty(), "{failures}");
}

/// Each input alone, written and added, then all together.
fn compare(name: &str, trial: &mut Trial) -> Result<(), String> {
    let text = |e: OpError| e.to_string();
    let step = if listed(KINKED, name) { 1.0 / 256.0 } else { 1.0 / 16.0 };
    let variable: Vec<usize> = (0..trial.variable.len()).filter(|&i| trial.variable[i]).collect();
    let mut expected = vec![vec![]; trial.variable.len()];
    for &input in &variable {
        expected[input] = trial.differences(input, step).map_err(text)?;
    }
    let alone = variable.iter().map(|&input| vec![input]);
    for wanted in alone.chain([variable.clone()]) {
        for (want, before) in [(Want::Write, f32::NAN), (Want::Add, 0.75)] {
            let wants: Vec<_> =
                (0..trial.facts.len()).map(|i| if wanted.contains(&i) { want } else { Want::No }).collect();
            let got = trial.backward(&wants, before).map_err(text)?.ok_or("no backward pass")?;
            for &input in &wanted {
                let start = if want == Want::Add { f64::from(before) } else { 0.0 };
                let got = got[input].as_f32().expect("gradients are floats");
                assert_eq!(got.len(), expected[input].len());
                for (i, (&got, &derivative)) in got.iter().zip(&expected[input]).enumerate() {
                    let error = (f64::from(got) - start - derivative).abs();
                    if error.is_nan() || error > 5e-4 * derivative.abs().max(1.0) {
                        let got = f64::from(got) - start;
                        return Err(format!("{want:?} of input {input}: element {i} is {got}, not {derivative}"));
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn operators_without_a_derivative_say_so() {
    for (name, _) in UNDIFFERENTIABLE {
        assert!(REGISTRY.iter().any(|(op, _)| op == name), "{name} is no operator");
    }
    for (name, index, sample) in indexed() {
        let facts: Vec<_> = sample.inputs.iter().map(|t| t.clone().map(|t| Fact::constant(Arc::new(t)))).collect();
        let refs: Vec<_> = facts.iter().map(Option::as_ref).collect();
        let outs = sample.op.def().infer(&refs).expect("samples have shapes");
        let mut wants = vec![Want::No; refs.len()];
        wants[0] = Want::Write;
        let pass = sample.op.def().build_backward(&refs, &outs, &wants);
        let without = UNDIFFERENTIABLE.iter().any(|(op, _)| *op == name);
        if without || outs[0].dtype != DType::F32 {
            assert!(matches!(pass, Ok(None)), "{name} {index}: {pass:?}");
        }
    }
}

#[test]
fn the_gradient_of_a_configuration_is_refused() {
    let mut refused = Vec::new();
    for (name, _, sample) in indexed() {
        let Some((_, inputs)) = CONFIGURATION.iter().find(|(op, _)| *op == name) else { continue };
        let Some(trial) = Trial::new(&name, &sample, Layout::Plain) else { continue };
        for &input in inputs.iter().filter(|&&i| sample.inputs.get(i).is_some_and(Option::is_some)) {
            let mut wants = vec![Want::No; sample.inputs.len()];
            wants[input] = Want::Write;
            let pass = trial.op.def().build_backward(&trial.refs(), &trial.outs, &wants);
            assert!(matches!(pass, Err(OpError::Unsupported(_))), "{name}: {pass:?}");
            refused.push(name.clone());
        }
    }
    refused.dedup();
    assert_eq!(refused.len(), CONFIGURATION.len(), "{refused:?}");
}

#[test]
fn training_computes_what_inference_does() {
    for (name, index, sample) in indexed() {
        for layout in [Layout::Plain, Layout::ChannelsLast] {
            let Some(trial) = Trial::new(&name, &sample, layout) else { continue };
            let pass = trial.op.def().build_training(&trial.refs(), &trial.outs).expect("samples can be trained");
            let packed = trial.packed(&pass);
            let ins: Vec<_> = trial.slices().into_iter().chain(packed.iter().map(slice)).collect();
            let mut outs: Vec<_> = trial.outs.iter().map(unwritten).collect();
            run(&pass.kernel, 1, &ins, &mut outs);
            for (got, expected) in outs.iter().zip(trial.forward().expect("samples run")) {
                let (Some(got), Some(expected)) = (got.as_f32(), expected.as_f32()) else { continue };
                let near =
                    |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0) || (a.is_nan() && b.is_nan());
                assert!(got.iter().zip(expected).all(near), "{name} {index} {layout:?}: {got:?} {expected:?}");
            }
        }
    }
}

#[test]
fn ties_go_where_the_documents_say() {
    let one = |op: Op, x: &[f32]| Sample { op, inputs: vec![Some(Tensor::f32(&[1, 1, x.len()], x.to_vec()))] };
    let bound = |v| Some(Tensor::f32(&[], vec![v]));
    let mut clip = one(Clip.into(), &[0.0, 3.0, 6.0]);
    clip.inputs.extend([bound(0.0), bound(6.0)]);
    let mut max = one(Max.into(), &[1.0, 2.0, 3.0]);
    max.inputs.push(Some(Tensor::f32(&[1, 1, 3], vec![1.0, 1.0, 4.0])));
    let window = Window { kernel_shape: vec![3], ..Window::default() };
    let pool = MaxPool { window, ceil_mode: false, column_major: false };
    let reduce = ReduceMax { keep_dims: true, noop_with_empty_axes: false };
    let cases: [(&str, Sample, &[f32]); 5] = [
        ("Relu", one(Relu {}.into(), &[-1.0, 0.0, 1.0]), &[0.0, 0.0, 1.0]),
        ("Clip", clip, &[0.0, 1.0, 0.0]),
        ("Max", max, &[0.5, 1.0, 0.0]),
        ("MaxPool", one(pool.into(), &[2.0, 5.0, 5.0]), &[0.0, 1.0, 0.0]),
        ("ReduceMax", one(reduce.into(), &[2.0, 5.0, 5.0]), &[0.0, 0.5, 0.5]),
    ];
    for (name, sample, expected) in cases {
        let layout = if name == "MaxPool" { Layout::ChannelsLast } else { Layout::Plain };
        let mut trial = Trial::new(name, &sample, layout).expect("the case has a gradient");
        let ones = |dy: &mut Tensor| floats_mut(dy).fill(1.0);
        trial.gradients.iter_mut().flatten().for_each(ones);
        let wants: Vec<_> = (0..sample.inputs.len()).map(|i| if i == 0 { Want::Write } else { Want::No }).collect();
        let dx = trial.backward(&wants, f32::NAN).expect("the case is supported").expect("there is a pass");
        assert_eq!(dx[0].as_f32(), Some(expected), "{name}");
    }
}

/// Samples beyond the registry's, with indices from 100 on.
fn extra() -> impl Iterator<Item = (String, usize, Sample)> {
    let tensor = |dims: &[usize], seed: u32| {
        let value = |i: u32| (hash(i + 1000 * seed) % 256) as f32 / 64.0 - 2.0;
        Some(Tensor::f32(dims, (0..dims.iter().product::<usize>() as u32).map(value).collect()))
    };
    use fewbits_graph::ops::{Add, BatchNormalization, Cast, Div, GlobalMaxPool, Mul, PRelu, Softmax};
    let of =
        |op: Op, dims: &[&[usize]]| Sample { op, inputs: dims.iter().zip(1..).map(|(d, s)| tensor(d, s)).collect() };
    // Rows that are longer than the parts that sums are cut into, gates of a squeeze-and-excitation block, vectors on both sides.
    let samples = [
        of(Mul.into(), &[&[2, 35, 3, 2], &[2, 35, 1, 1]]),
        of(Mul.into(), &[&[2, 1, 1, 5], &[1, 3, 4, 1]]),
        of(Mul.into(), &[&[300], &[1]]),
        of(Add.into(), &[&[1, 3, 1, 1], &[1, 1, 1, 7]]),
        of(Div.into(), &[&[2, 3, 2, 2], &[2, 3, 1, 1]]),
        of(PRelu.into(), &[&[2, 3, 2, 2], &[2, 3, 2, 2]]),
        of(Softmax { axis: 0 }.into(), &[&[3, 2, 2]]),
        of(GlobalMaxPool.into(), &[&[2, 35, 1, 3]]),
        of(BatchNormalization { epsilon: 4.5, momentum: 0.9 }.into(), &[&[2, 35, 1, 2], &[35], &[35], &[35], &[35]]),
        of(Cast { to: DType::F32 }.into(), &[&[2, 3, 2]]),
    ];
    samples.into_iter().enumerate().map(|(i, sample)| (sample.op.name().to_string(), 100 + i, sample))
}

/// `sample` on numbers at which its operator has a derivative.
fn prepared(name: &str, sample: &Sample) -> Sample {
    let mut sample = sample.clone();
    let inputs = sample.inputs.iter_mut().take(if name == "Clip" { 1 } else { usize::MAX }).enumerate();
    for (seed, tensor) in inputs.filter_map(|(i, tensor)| Some((i, tensor.as_mut()?))) {
        if tensor.dtype() != DType::F32 {
            continue;
        }
        let x = floats_mut(tensor);
        if listed(KINKED, name) {
            // A sixteenth from each other; a fiftieth from multiples of that, where most kinks are, and from another input.
            let mut order: Vec<usize> = (0..x.len()).collect();
            order.sort_by_key(|&i| hash(i as u32));
            let offset = if seed == 0 { 0.625 } else { 0.25 };
            order
                .iter()
                .enumerate()
                .for_each(|(rank, &i)| x[i] = (rank as f32 - (order.len() / 2) as f32 + offset) / 16.0);
        } else if listed(POSITIVE, name) && !(name == "Pow" && seed == 1) {
            x.iter_mut().for_each(|x| *x = x.abs() + 1.0);
        }
    }
    sample
}

fn listed(list: &str, name: &str) -> bool {
    list.split(' ').any(|listed| listed == name)
}

fn hash(i: u32) -> u32 {
    let i = (i + 1).wrapping_mul(0x9E37_79B9);
    (i ^ i >> 15).wrapping_mul(0x2C1B_3C6D) >> 16
}

fn floats_mut(tensor: &mut Tensor) -> &mut [f32] {
    match &mut tensor.data {
        Data::F32(x) => x,
        other => panic!("{other:?} are no floats"),
    }
}

fn run(kernel: &Kernel, threads: usize, ins: &[Slice<'_>], outs: &mut [Tensor]) {
    let mut slices: Vec<_> = outs.iter_mut().map(slice_mut).collect();
    let mut scratch = vec![f32::NAN; kernel.scratch];
    kernel.run(&mut Io { threads: &Threads::new(threads), ins, outs: &mut slices, scratch: &mut scratch });
}
