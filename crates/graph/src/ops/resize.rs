//! Resize: other sizes along some axes, by nearest neighbour, linear or cubic interpolation.

use crate::{
    attrs::{Attr, Attrs},
    error::OpError,
    op::{
        Activation, Fact, Facts, Kernel, Layout, LayoutRule, OpDef, OpFile, OutRule, Pass, QuantRule, Role, Sample,
        Want, check_axes, expect_dtype, known, known_ints, normal_axis, optional, required,
    },
    ops::{backward, dispatch, samples::sample},
    tensor::{DType, Tensor},
};
use fewbits_kernels::{
    float::{self, ResizeAxis},
    interpolate::{Interpolate, Taps},
};

/// How values between elements are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResizeMode {
    /// By the nearest element.
    Nearest,
    /// By a line through the two neighbours.
    Linear,
    /// By a cubic through the four neighbours.
    Cubic,
}

/// `y[p] = x(q(p))` along each resized axis. Inputs: x, roi (unused), scales or sizes; one number for each axis of `axes`.
///
/// The attributes are kept as ONNX names them, where they are words.
#[derive(Clone, Debug, PartialEq)]
pub struct Resize {
    /// Interpolation.
    pub mode: ResizeMode,
    /// `coordinate_transformation_mode`: which point of the input belongs to an output position.
    pub coordinates: String,
    /// `nearest_mode`: which neighbour is the nearest.
    pub nearest: String,
    /// `keep_aspect_ratio_policy`, for sizes.
    pub policy: String,
    /// Resized axes; empty stands for all.
    pub axes: Vec<i64>,
    /// Coefficient of the cubic.
    pub cubic_coeff_a: f32,
    /// Whether cubic weights outside the image are left out.
    pub exclude_outside: bool,
}

/// One resized axis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    len: usize,
    out: usize,
    scale: f32,
}

impl Resize {
    /// Each logical axis; `None` where nothing changes.
    fn lines(&self, ins: Facts) -> Result<Vec<Option<Line>>, OpError> {
        let dims = &required(ins, 0)?.dims;
        let axes: Vec<usize> = match &self.axes[..] {
            [] => (0..dims.len()).collect(),
            axes => axes.iter().map(|&a| normal_axis(a, dims.len())).collect::<Result<_, _>>()?,
        };
        let given = |index: usize| optional(ins, index).is_some_and(|f| !f.is_empty());
        let misfit =
            |found| OpError::Shapes { what: "axes and scales or sizes", left: axes.clone(), right: vec![found] };
        let mut lines = vec![None; dims.len()];
        if given(2) {
            let scales = known(ins, 2)?;
            let found = OpError::DType { index: 2, expected: DType::F32, found: scales.dtype() };
            let scales = scales.as_f32().ok_or(found)?;
            if scales.len() != axes.len() || scales.iter().any(|s| !(s.is_finite() && *s > 0.0)) {
                return Err(misfit(scales.len()));
            }
            for (&axis, &scale) in axes.iter().zip(scales) {
                let len = dims[axis];
                lines[axis] = Some(Line { len, out: (len as f32 * scale) as usize, scale });
            }
        } else if given(3) {
            let sizes = known_ints(ins, 3)?;
            if sizes.len() != axes.len() || sizes.iter().any(|&s| s < 1 || s > i64::from(i32::MAX)) {
                return Err(misfit(sizes.len()));
            }
            let ratio = |(&axis, &size): (&usize, &i64)| size as f32 / dims[axis] as f32;
            let ratios = axes.iter().zip(&sizes).map(ratio);
            let common = match self.policy.as_str() {
                "not_larger" => ratios.reduce(f32::min),
                "not_smaller" => ratios.reduce(f32::max),
                _ => None,
            };
            for (&axis, &size) in axes.iter().zip(&sizes) {
                let len = dims[axis];
                let out = common.map_or(size as usize, |scale| (len as f32 * scale).round() as usize);
                lines[axis] = Some(Line { len, out, scale: common.unwrap_or(out as f32 / len as f32) });
            }
        } else {
            return Err(OpError::MissingInput { index: 2 });
        }
        let out = |(line, &len): (&Option<Line>, &usize)| line.map_or(len, |line| line.out);
        check_axes(&lines.iter().zip(dims).map(out).collect::<Vec<_>>())?;
        Ok(lines.into_iter().map(|l| l.filter(|l| l.scale != 1.0 || l.len != l.out)).collect())
    }

    /// The point of the input that belongs to output position `p`; f32 arithmetic as in ONNX Runtime.
    fn coordinate(&self, line: Line, p: usize) -> f32 {
        let (p, len, out, scale) = (p as f32, line.len as f32, line.out as f32, line.scale);
        match self.coordinates.as_str() {
            "asymmetric" => p / scale,
            "align_corners" if line.out == 1 => 0.0,
            "align_corners" => p * (len - 1.0) / (out - 1.0),
            "pytorch_half_pixel" if line.out == 1 => 0.0,
            "tf_half_pixel_for_nn" => (p + 0.5) / scale,
            "half_pixel_symmetric" => {
                let adjustment = out / (scale * len);
                len / 2.0 * (1.0 - adjustment) + (p + 0.5) / scale - 0.5
            }
            _ => (p + 0.5) / scale - 0.5,
        }
    }

    fn nearest(&self, line: Line) -> Vec<usize> {
        let pick = |x: f32| match self.nearest.as_str() {
            "floor" => x.floor(),
            "ceil" => x.ceil(),
            "round_prefer_ceil" => (x + 0.5).floor(),
            _ => (x - 0.5).ceil(),
        };
        (0..line.out).map(|p| (pick(self.coordinate(line, p)).max(0.0) as usize).min(line.len - 1)).collect()
    }

    fn linear(&self, line: Line) -> ResizeAxis {
        let mut axis = ResizeAxis::default();
        for p in 0..line.out {
            let x = self.coordinate(line, p).clamp(0.0, (line.len - 1) as f32);
            let lo = x as usize;
            let hi = (lo + 1).min(line.len - 1);
            axis.lo.push(lo);
            axis.hi.push(hi);
            // At the border ONNX Runtime adds two halves of one pixel, which rounds differently from the whole.
            axis.weight.push(if lo == hi { 0.5 } else { x - lo as f32 });
        }
        axis
    }

    fn taps(&self, line: Line) -> Taps {
        if self.mode == ResizeMode::Nearest {
            return Taps(self.nearest(line).into_iter().map(|i| vec![(i, 1.0)]).collect());
        }
        if self.mode == ResizeMode::Linear {
            let ResizeAxis { lo, hi, weight } = self.linear(line);
            let pair = |((lo, hi), w): ((usize, usize), f32)| vec![(lo, 1.0 - w), (hi, w)];
            return Taps(lo.into_iter().zip(hi).zip(weight).map(pair).collect());
        }
        let a = self.cubic_coeff_a;
        // Keys' cubic at distance d.
        let weight = |d: f32| match d {
            d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
            d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
            _ => 0.0,
        };
        let position = |p: usize| {
            let x = self.coordinate(line, p);
            let around = (-1..=2).map(|i| (x.floor() as i64 + i, weight((x - (x.floor() + i as f32)).abs())));
            let inside = |i: i64| (0..line.len as i64).contains(&i);
            let used: Vec<(i64, f32)> = around.filter(|&(i, _)| !self.exclude_outside || inside(i)).collect();
            let sum: f32 = if self.exclude_outside { used.iter().map(|&(_, w)| w).sum() } else { 1.0 };
            used.into_iter().map(|(i, w)| (i.clamp(0, line.len as i64 - 1) as usize, w / sum)).collect()
        };
        Taps((0..line.out).map(position).collect())
    }
}

/// For each of `len` inputs, the outputs that it takes part in.
fn transposed(len: usize, taps: &Taps) -> Taps {
    let mut back = vec![vec![]; len];
    for (output, taps) in taps.0.iter().enumerate() {
        taps.iter().for_each(|&(input, weight)| back[input].push((output, weight)));
    }
    Taps(back)
}

impl OpDef for Resize {
    fn attrs(&self) -> Attrs {
        let mode = match self.mode {
            ResizeMode::Nearest => "nearest",
            ResizeMode::Linear => "linear",
            ResizeMode::Cubic => "cubic",
        };
        let attrs = Attrs::default()
            .with("mode", Attr::Str(mode.into()))
            .with("coordinate_transformation_mode", Attr::Str(self.coordinates.clone()))
            .with("nearest_mode", Attr::Str(self.nearest.clone()))
            .with("keep_aspect_ratio_policy", Attr::Str(self.policy.clone()))
            .with("cubic_coeff_a", Attr::Float(self.cubic_coeff_a))
            .with("exclude_outside", Attr::Int(self.exclude_outside.into()));
        if self.axes.is_empty() { attrs } else { attrs.with("axes", Attr::Ints(self.axes.clone())) }
    }

    fn infer(&self, ins: Facts) -> Result<Vec<Fact>, OpError> {
        let x = required(ins, 0)?;
        if self.mode != ResizeMode::Nearest {
            expect_dtype(ins, 0, DType::F32)?;
        }
        let lines = self.lines(ins)?;
        let dims: Vec<usize> = x.dims.iter().zip(lines).map(|(&d, line)| line.map_or(d, |l| l.out)).collect();
        Ok(vec![Fact::new(x.dtype, &dims)])
    }

    fn layout(&self) -> LayoutRule {
        LayoutRule::Any
    }

    fn build(&self, ins: Facts, outs: &[Fact]) -> Result<Kernel, OpError> {
        let (x, lines) = (required(ins, 0)?, self.lines(ins)?);
        if self.mode == ResizeMode::Nearest || x.is_empty() {
            let table = |line: Option<Line>| line.filter(|l| l.len > 0).map(|l| self.nearest(l));
            return dispatch::take(x, lines.into_iter().map(table).collect(), None);
        }
        if let (ResizeMode::Linear, Layout::ChannelsLast, [None, None, rows, columns]) =
            (self.mode, x.layout, &lines[..])
        {
            let axis = |line: &Option<Line>, len: usize| match line {
                Some(line) => self.linear(*line),
                None => self.linear(Line { len, out: len, scale: 1.0 }),
            };
            let [n, c, h, w] = [0, 1, 2, 3].map(|i| x.dims[i]);
            let (rows, columns) = (axis(rows, h), axis(columns, w));
            return Ok(Kernel::new(move |io| {
                let (threads, x) = (io.threads, io.f32(0));
                float::resize(threads, [n, h, w, c], x, &rows, &columns, io.out_f32(0));
            }));
        }
        let mut taps = vec![None; lines.len()];
        for (axis, line) in lines.into_iter().enumerate() {
            taps[outs[0].layout.physical_axis(axis, x.dims.len())] = line.map(|l| self.taps(l));
        }
        let interpolate = Interpolate::new(&x.physical_dims(), taps);
        let scratch = interpolate.scratch_len();
        Ok(Kernel::new(move |io| {
            let (threads, x) = (io.threads, io.f32(0));
            let (y, scratch) = io.out_f32_and_scratch(0);
            interpolate.run(threads, x, y, scratch);
        })
        .with_scratch(scratch))
    }

    /// Each input gets from every output that it took part in, with the same weight: an interpolation in the other direction.
    fn build_backward(&self, ins: Facts, outs: &[Fact], wants: &[Want]) -> Result<Option<Pass>, OpError> {
        let (x, lines) = (required(ins, 0)?, self.lines(ins)?);
        let mut taps = vec![None; lines.len()];
        for (axis, line) in lines.into_iter().enumerate() {
            taps[x.layout.physical_axis(axis, x.dims.len())] =
                line.filter(|l| l.len > 0).map(|l| transposed(l.len, &self.taps(l)));
        }
        let interpolate = Interpolate::new(&outs[0].physical_dims(), taps);
        let scratch = interpolate.scratch_len();
        let back = move |threads: &_, dy: &[f32], dx: &mut [f32], scratch: &mut [f32]| {
            interpolate.run(threads, dy, dx, scratch);
        };
        backward::written(ins, outs, wants, scratch, back)
    }

    fn build_integer(&self, ins: Facts, outs: &[Fact], clamp: Activation) -> Result<Option<Kernel>, OpError> {
        if self.mode == ResizeMode::Nearest { dispatch::move_codes(self, ins, outs, clamp) } else { Ok(None) }
    }

    fn quant_rule(&self) -> QuantRule {
        match self.mode {
            ResizeMode::Nearest => QuantRule::movement(),
            _ => QuantRule { inputs: vec![Role::Data, Role::Other], output: OutRule::Own },
        }
    }
}

impl OpFile for Resize {
    const NAME: &'static str = "Resize";

    fn from_attrs(attrs: &Attrs) -> Result<Self, OpError> {
        let word = |name: &'static str, default: &str, allowed: &[&str]| {
            let word = attrs.str(name)?.unwrap_or_else(|| default.into());
            let known = allowed.contains(&word.as_str());
            if known { Ok(word) } else { Err(OpError::Unsupported(format!("Resize with {name} `{word}`"))) }
        };
        let transformations = [
            "half_pixel",
            "half_pixel_symmetric",
            "pytorch_half_pixel",
            "align_corners",
            "asymmetric",
            "tf_half_pixel_for_nn",
        ];
        if attrs.int("antialias")?.unwrap_or(0) != 0 {
            return Err(OpError::Unsupported("Resize with antialias".into()));
        }
        Ok(Resize {
            mode: match word("mode", "nearest", &["nearest", "linear", "cubic"])?.as_str() {
                "linear" => ResizeMode::Linear,
                "cubic" => ResizeMode::Cubic,
                _ => ResizeMode::Nearest,
            },
            coordinates: word("coordinate_transformation_mode", "half_pixel", &transformations)?,
            nearest: word(
                "nearest_mode",
                "round_prefer_floor",
                &["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"],
            )?,
            policy: word("keep_aspect_ratio_policy", "stretch", &["stretch", "not_larger", "not_smaller"])?,
            axes: attrs.ints("axes")?.unwrap_or_default(),
            cubic_coeff_a: attrs.float("cubic_coeff_a")?.unwrap_or(-0.75),
            exclude_outside: attrs.int("exclude_outside")?.unwrap_or(0) != 0,
        })
    }

    fn samples() -> Vec<Sample> {
        let resize = |mode, coordinates: &str, nearest: &str| Resize {
            mode,
            coordinates: coordinates.into(),
            nearest: nearest.into(),
            policy: "stretch".into(),
            axes: vec![],
            cubic_coeff_a: -0.75,
            exclude_outside: false,
        };
        let scaled = |op: Resize, scales: &[f32]| {
            let mut sample = sample(op, &[&[1, 3, 4, 5]]);
            sample.inputs.extend([None, Some(Tensor::f32(&[scales.len()], scales.to_vec()))]);
            sample
        };
        let sized = |op: Resize, sizes: &[i64]| {
            let mut sample = sample(op, &[&[1, 3, 4, 5]]);
            sample.inputs.extend([None, None, Some(Tensor::i64(&[sizes.len()], sizes.to_vec()))]);
            sample
        };
        use ResizeMode::{Cubic, Linear, Nearest};
        let [half, floor] = ["half_pixel", "round_prefer_floor"];
        let spatial = |op: Resize| Resize { axes: vec![2, -1], ..op };
        let kept = |policy: &str| Resize { policy: policy.into(), axes: vec![2, 3], ..resize(Nearest, half, floor) };
        vec![
            scaled(resize(Nearest, "asymmetric", "floor"), &[1.0, 1.0, 2.0, 2.0]),
            scaled(resize(Nearest, half, floor), &[1.0, 1.0, 1.5, 0.6]),
            sized(resize(Nearest, half, "ceil"), &[1, 3, 7, 8]),
            sized(resize(Nearest, "align_corners", "round_prefer_ceil"), &[1, 3, 7, 3]),
            sized(spatial(resize(Nearest, "pytorch_half_pixel", floor)), &[9, 1]),
            sized(kept("not_larger"), &[9, 8]),
            sized(kept("not_smaller"), &[9, 8]),
            scaled(resize(Linear, half, floor), &[1.0, 1.0, 2.0, 2.0]),
            scaled(spatial(resize(Linear, "half_pixel_symmetric", floor)), &[2.3, 0.7]),
            sized(resize(Linear, "align_corners", floor), &[1, 3, 7, 9]),
            sized(resize(Linear, "pytorch_half_pixel", floor), &[1, 3, 1, 3]),
            sized(resize(Linear, "asymmetric", floor), &[1, 3, 4, 9]),
            scaled(resize(Cubic, half, floor), &[1.0, 1.0, 2.0, 1.5]),
            scaled(Resize { exclude_outside: true, ..resize(Cubic, half, floor) }, &[1.0, 1.0, 0.8, 2.0]),
        ]
    }
}
