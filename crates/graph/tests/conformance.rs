//! Every operator of the registry, on its own samples: attributes survive a round trip, inferred shapes are the actual ones,
//! every memory order and every choice of constants gives ONNX Runtime's numbers, and integer kernels agree with float ones.
//!
//! `golden/operators.txt` holds ONNX Runtime's outputs; `golden/operators.py` says how it is made.

mod memory;

use fewbits_graph::{
    Attr, Attrs, DType, Data, Grid, OpError, QuantParams, Tensor,
    op::{Activation, Fact, Io, Kernel, Layout, LayoutRule, Op, Role, Sample, Slice},
    ops::REGISTRY,
};
use fewbits_kernels::Threads;
use memory::{indexed, lay_out, permuted, slice, slice_mut, stored, to_memory, unwritten};
use std::{collections::BTreeMap, fmt::Write as _, sync::Arc};

/// Which inputs the operator knows ahead.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    All,
    AllButFirst,
    Nothing,
}

/// Samples whose integer result is another number than the float one, in ONNX Runtime as here.
const OTHERWISE: &[(&str, usize, &str)] =
    &[("AveragePool", 1, "QLinearAveragePool counts taps behind the padding as zeros"), ("AveragePool", 3, "as above")];

#[test]
fn attributes_survive_a_round_trip() {
    for (name, sample) in samples() {
        let read = Op::from_attrs(&name, &sample.op.def().attrs());
        assert_eq!(read.as_ref(), Ok(&sample.op), "{name}");
        assert_eq!(sample.op.name(), name);
    }
}

#[test]
fn every_operator_has_samples() {
    for (name, samples) in REGISTRY {
        assert!(!samples().is_empty(), "{name}");
    }
}

#[test]
fn results_are_those_of_onnx_runtime() {
    let golden = golden();
    let mut failures = String::new();
    let mut runs = 0;
    for (name, index, sample) in indexed() {
        let Some(expected) = golden.get(&(name.clone(), index)) else {
            let _ = writeln!(failures, "{name} {index}: no golden output");
            continue;
        };
        for known in [Known::All, Known::AllButFirst, Known::Nothing] {
            for layout in [Layout::Plain, Layout::ChannelsLast] {
                let got = match run(&sample, known, layout) {
                    Ok(Some(got)) => got,
                    Ok(None) => continue,
                    Err(OpError::NotConstant { .. }) if known != Known::All => continue,
                    Err(e) => {
                        let _ = writeln!(failures, "{name} {index} {known:?} {layout:?}: {e}");
                        continue;
                    }
                };
                runs += 1;
                for (got, expected) in got.iter().zip(expected) {
                    if let Some(reason) = difference(got, expected) {
                        let _ = writeln!(failures, "{name} {index} {known:?} {layout:?}: {reason}");
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(runs > 2 * golden.len(), "{runs} runs");
}

#[test]
fn integer_kernels_agree_with_float_ones() {
    let mut tried = Vec::new();
    for (name, index, sample) in indexed() {
        if OTHERWISE.iter().any(|&(op, i, _)| op == name && i == index) {
            continue;
        }
        if let Some(worst) = integer_error(&sample) {
            assert!(worst <= 1, "{name} {index}: {worst} codes apart");
            tried.push(name);
        }
    }
    tried.dedup();
    let due = "AveragePool Clip Conv Gemm GlobalAveragePool LeakyRelu MatMul MaxPool Relu Sigmoid Add Mul";
    for name in due.split(' ') {
        assert!(tried.iter().any(|t| t == name), "{name} has no integer kernel");
    }
}

/// Writes the samples as text for `golden/operators.py` to the path in `FEWBITS_SAMPLES`.
#[test]
#[ignore = "writes a file; for remaking the golden outputs"]
fn write_samples() {
    let path = std::env::var("FEWBITS_SAMPLES").expect("FEWBITS_SAMPLES names a file");
    let mut text = String::new();
    for (name, index, sample) in indexed() {
        let _ = writeln!(text, "node {name} {index}");
        for (attr, value) in sample.op.def().attrs().0 {
            let _ = match value {
                Attr::Int(v) => writeln!(text, "attr {attr} int {v}"),
                Attr::Float(v) => writeln!(text, "attr {attr} float {v}"),
                Attr::Str(v) => writeln!(text, "attr {attr} str {v}"),
                Attr::Ints(v) => writeln!(text, "attr {attr} ints {}", words(&v)),
                Attr::Floats(v) => writeln!(text, "attr {attr} floats {}", words(&v)),
                Attr::Strs(v) => writeln!(text, "attr {attr} strs {}", words(&v)),
                Attr::Tensor(t) => writeln!(text, "attr {attr} tensor {}", described(&t)),
                Attr::Encoded(_) => panic!("{name}: samples have no encoded attributes"),
            };
        }
        for input in &sample.inputs {
            let _ = match input {
                Some(tensor) => writeln!(text, "input {}", described(tensor)),
                None => writeln!(text, "absent"),
            };
        }
    }
    std::fs::write(path, text).expect("the path is writable");
}

fn samples() -> impl Iterator<Item = (String, Sample)> {
    indexed().map(|(name, _, sample)| (name, sample))
}

/// The outputs of `sample` in plain order, computed in `layout`; `None` if the operator does not work in it.
fn run(sample: &Sample, known: Known, layout: Layout) -> Result<Option<Vec<Tensor>>, OpError> {
    let op = sample.op.def();
    let fact = |(i, tensor): (usize, &Option<Tensor>)| {
        let tensor = tensor.as_ref()?;
        let constant = known == Known::All || (known == Known::AllButFirst && i > 0);
        Some(if constant { Fact::constant(Arc::new(tensor.clone())) } else { Fact::new(tensor.dtype(), &tensor.dims) })
    };
    let mut facts: Vec<_> = sample.inputs.iter().enumerate().map(fact).collect();
    let mut outs = op.infer(&facts.iter().map(Option::as_ref).collect::<Vec<_>>())?;
    if !lay_out(&sample.op, &mut facts, &mut outs, layout) {
        return Ok(None);
    }
    let refs: Vec<_> = facts.iter().map(Option::as_ref).collect();
    let kernel = op.build(&refs, &outs)?;
    let ins: Vec<_> =
        sample.inputs.iter().zip(&facts).map(|(t, fact)| Some(stored(t.as_ref()?, fact.as_ref()?))).collect();
    let outputs = execute(&kernel, &ins, &outs);
    Ok(Some(outputs.into_iter().zip(&outs).map(|(t, fact)| from_memory(t, fact)).collect()))
}

/// Runs a kernel twice, with one thread and with three, and demands the same bits.
fn execute(kernel: &Kernel, ins: &[Option<Tensor>], outs: &[Fact]) -> Vec<Tensor> {
    let ins: Vec<_> = ins.iter().map(|t| t.as_ref().map_or(Slice::Absent, slice)).collect();
    let compute = |threads: usize| {
        let mut outputs: Vec<_> = outs.iter().map(unwritten).collect();
        let mut slices: Vec<_> = outputs.iter_mut().map(slice_mut).collect();
        let mut scratch = vec![f32::NAN; kernel.scratch];
        kernel.run(&mut Io { threads: &Threads::new(threads), ins: &ins, outs: &mut slices, scratch: &mut scratch });
        outputs
    };
    let outputs = compute(1);
    assert_eq!(format!("{outputs:?}"), format!("{:?}", compute(3)), "the number of threads changes the result");
    outputs
}

/// How many codes the integer kernel of `sample` is away from the quantized result of the float kernel, at most.
/// `None` without an integer kernel.
fn integer_error(sample: &Sample) -> Option<i32> {
    let op = sample.op.def();
    let rule = op.quant_rule();
    let floats = sample.inputs.iter().flatten().all(|t| t.dtype() == DType::F32);
    if !floats || sample.inputs.first()?.as_ref()?.dims.is_empty() {
        return None;
    }
    let params = |t: &Tensor| {
        let bound = t.as_f32()?.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        Some(QuantParams::per_tensor(Grid::activations(8), bound / 127.0, 128))
    };
    let scaled = |t: &Tensor, bits| {
        let params = params(t)?;
        let scale = params.scale[0];
        let codes = t.as_f32()?.iter().map(|v| ((v / scale).round_ties_even() as i32).clamp(-128, 127));
        let codes: Vec<i32> = codes.collect();
        let real = Tensor::f32(&t.dims, codes.iter().map(|&q| q as f32 * scale).collect());
        let grid = if bits == 8 { params } else { QuantParams::per_tensor(Grid::weights(8), scale, 0) };
        Some((real, Tensor::u8(&t.dims, codes.iter().map(|q| (q + 128) as u8).collect()), grid))
    };
    // Float results for inputs that lie on their grids.
    let mut on_grid = sample.clone();
    let mut codes: Vec<Option<Tensor>> = Vec::new();
    let mut facts: Vec<Option<Fact>> = Vec::new();
    for (i, input) in sample.inputs.iter().enumerate() {
        let Some(tensor) = input else {
            codes.push(None);
            facts.push(None);
            continue;
        };
        match rule.role(i) {
            Role::Data => {
                let (real, code, grid) = scaled(tensor, 8)?;
                facts.push(Some(Fact { grid: Some(grid), ..Fact::new(DType::U8, &tensor.dims) }));
                on_grid.inputs[i] = Some(real);
                codes.push(Some(code));
            }
            Role::Weight { .. } => {
                let (real, _, grid) = scaled(tensor, 7)?;
                facts.push(Some(Fact { grid: Some(grid), ..Fact::constant(Arc::new(real.clone())) }));
                on_grid.inputs[i] = Some(real.clone());
                codes.push(Some(real));
            }
            Role::Bias | Role::Other => {
                facts.push(Some(Fact::constant(Arc::new(tensor.clone()))));
                codes.push(Some(tensor.clone()));
            }
        }
    }
    let layout = if op.layout() == LayoutRule::ChannelsLast { Layout::ChannelsLast } else { Layout::Plain };
    let float = run(&on_grid, Known::AllButFirst, layout).ok()??.swap_remove(0);
    let moves = rule.output == fewbits_graph::op::OutRule::SameAsInput;
    let out_params = if moves { facts[0].as_ref()?.grid.clone()? } else { params(&float)? };
    let (scale, zero_point) = out_params.tensor_params()?;
    let out = Fact { grid: Some(out_params), layout, ..Fact::new(DType::U8, &float.dims) };
    if let Some(fact) = facts[0].as_mut() {
        fact.layout = layout;
    }
    let refs: Vec<_> = facts.iter().map(Option::as_ref).collect();
    let kernel = op.build_integer(&refs, std::slice::from_ref(&out), Activation::Identity).ok()??;
    codes[0] = codes[0].as_ref().map(|t| to_memory(t, layout));
    let got = from_memory(execute(&kernel, &codes, std::slice::from_ref(&out)).swap_remove(0), &out);
    let quantized = |v: f32| ((v / scale).round_ties_even() as i32 + zero_point).clamp(0, 255);
    let pairs = got.as_u8()?.iter().zip(float.as_f32()?);
    pairs.map(|(&q, &v)| (i32::from(q) - quantized(v)).abs()).max()
}

/// Why two tensors differ; floats may by 1e-5, absolutely or relatively.
fn difference(got: &Tensor, expected: &Tensor) -> Option<String> {
    if got.dims != expected.dims || got.dtype() != expected.dtype() {
        return Some(format!("{} {:?} should be {} {:?}", got.dtype(), got.dims, expected.dtype(), expected.dims));
    }
    let wrong = match (&got.data, &expected.data) {
        (Data::F32(a), Data::F32(b)) => {
            let near =
                |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= 1e-5 * b.abs().max(1.0) || (a.is_nan() && b.is_nan());
            a.iter()
                .zip(b)
                .position(|pair| !near(pair))
                .map(|i| format!("element {i} is {} and should be {}", a[i], b[i]))
        }
        (a, b) => (a != b).then(|| format!("{a:?} should be {b:?}")),
    };
    wrong.filter(|_| !got.is_empty())
}

fn golden() -> BTreeMap<(String, usize), Vec<Tensor>> {
    let mut outputs: BTreeMap<_, Vec<Tensor>> = BTreeMap::new();
    for line in include_str!("golden/operators.txt").lines() {
        let mut words = line.split(' ');
        let mut word = || words.next().expect("a line is: operator, index, type, dimensions, elements");
        let (name, index, dtype) = (word().to_string(), word().parse().expect("a number"), word());
        let dims: Vec<usize> =
            word().split(',').filter(|d| !d.is_empty()).map(|d| d.parse().expect("a size")).collect();
        fn all<T: std::str::FromStr>(text: &str) -> Vec<T> {
            let element = |e: &str| e.parse().ok().expect("an element of the line's type");
            text.split(',').filter(|e| !e.is_empty()).map(element).collect()
        }
        let elements = word();
        let data = match dtype {
            "f32" => Data::F32(all(elements)),
            "i64" => Data::I64(all(elements)),
            "i32" => Data::I32(all(elements)),
            "u8" => Data::U8(all(elements)),
            "i8" => Data::I8(all(elements)),
            "bool" => Data::Bool(all(elements)),
            other => panic!("type {other} in the golden file"),
        };
        outputs.entry((name, index)).or_default().push(Tensor { dims, data });
    }
    outputs
}

fn words<T: ToString>(values: &[T]) -> String {
    values.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// Type, dimensions and elements, separated by blanks.
fn described(tensor: &Tensor) -> String {
    let (dtype, elements) = match &tensor.data {
        Data::F32(v) => ("f32", words(v)),
        Data::I64(v) => ("i64", words(v)),
        Data::I32(v) => ("i32", words(v)),
        Data::U8(v) => ("u8", words(v)),
        Data::I8(v) => ("i8", words(v)),
        Data::Bool(v) => ("bool", words(v)),
        Data::Raw { data_type, bytes } => return format!("raw{data_type} {} {}", words(&tensor.dims), words(bytes)),
    };
    format!("{dtype} {} {elements}", words(&tensor.dims))
}

fn from_memory(tensor: Tensor, fact: &Fact) -> Tensor {
    let rank = fact.dims.len();
    if fact.layout == Layout::Plain || rank < 3 {
        return Tensor { dims: fact.dims.clone(), data: tensor.data };
    }
    let back: Vec<usize> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    permuted(&tensor, &back)
}

#[test]
fn attributes_of_the_wrong_type_are_refused() {
    let wrong = Attrs::default().with("strides", Attr::Float(1.0));
    assert!(matches!(Op::from_attrs("Conv", &wrong), Err(OpError::Attribute { name: "strides", .. })));
    assert!(Op::from_attrs("Conv", &Attrs::default().with("group", Attr::Int(0))).is_err());
    assert!(Op::from_attrs("MaxPool", &Attrs::default().with("pads", Attr::Ints(vec![-1, 0]))).is_err());
}
