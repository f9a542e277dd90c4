//! Integer kernels equal ONNX Runtime's on every element of `golden/int_ops.bin`, which `golden/int_ops.py` made.

use fewbits_kernels::Threads;
use fewbits_kernels::geometry::ConvGeometry;
use fewbits_kernels::int::elementwise::{Affine, QAdd, QMul};
use fewbits_kernels::int::lookup::Table;
use fewbits_kernels::int::pool::{PoolShape, Window, average_pool, global_average_pool, max_pool};
use fewbits_kernels::int::quantize::{GridParams, quantize};
use fewbits_kernels::int::softmax::QSoftmax;
use fewbits_kernels::int::{Isa, PackedQConv};

/// One case: its operator and its arrays, each of one of four kinds.
struct Record {
    name: String,
    arrays: Vec<(u32, &'static [u8])>,
}

impl Record {
    fn u8(&self, i: usize) -> &'static [u8] {
        assert_eq!(self.arrays[i].0, 0);
        self.arrays[i].1
    }

    fn i8(&self, i: usize) -> Vec<i8> {
        assert_eq!(self.arrays[i].0, 1);
        self.arrays[i].1.iter().map(|&b| b as i8).collect()
    }

    fn i32(&self, i: usize) -> Vec<i32> {
        assert_eq!(self.arrays[i].0, 2);
        self.arrays[i].1.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b)).collect()
    }

    fn f32(&self, i: usize) -> Vec<f32> {
        assert_eq!(self.arrays[i].0, 3);
        self.arrays[i].1.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
    }

    fn shape(&self, i: usize) -> Vec<usize> {
        self.i32(i).into_iter().map(|v| v as usize).collect()
    }
}

/// All records of the given operators; there must be some of each.
fn records(names: &[&str]) -> Vec<Record> {
    fn take(bytes: &mut &'static [u8], n: usize) -> &'static [u8] {
        let (head, tail) = bytes.split_at(n);
        *bytes = tail;
        head
    }
    fn number(bytes: &mut &'static [u8]) -> u32 {
        u32::from_le_bytes(*take(bytes, 4).as_array().unwrap())
    }
    let mut bytes: &'static [u8] = include_bytes!("../golden/int_ops.bin");
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let len = number(&mut bytes) as usize;
        let name = String::from_utf8(take(&mut bytes, len).to_vec()).unwrap();
        let arrays = (0..number(&mut bytes)).map(|_| {
            let (kind, len) = (number(&mut bytes), number(&mut bytes) as usize);
            (kind, take(&mut bytes, if kind < 2 { len } else { 4 * len }))
        });
        let arrays = arrays.collect();
        records.push(Record { name, arrays });
    }
    for name in names {
        assert!(records.iter().any(|r| r.name == *name), "no record of {name}");
    }
    records.into_iter().filter(|r| names.contains(&r.name.as_str())).collect()
}

fn grid(scale: f32, zero: f32) -> GridParams {
    GridParams::u8(scale, zero as i32)
}

#[test]
fn quantize_linear() {
    for r in records(&["quantize"]) {
        let (p, x) = (r.f32(0), r.f32(1));
        let mut y = vec![0; x.len()];
        quantize(&x, &grid(p[0], p[1]), &mut y);
        assert_eq!(y, r.u8(2));
    }
}

#[test]
fn add_and_mul() {
    for r in records(&["Add", "Mul"]) {
        let (p, a, b) = (r.f32(0), r.u8(1), r.u8(2));
        let affine = |i: usize| Affine { scale: p[i], zero: p[i + 1] as u8 };
        let mut y = vec![0; a.len()];
        match (r.name.as_str(), b) {
            ("Add", &[b]) => QAdd::new(affine(0), affine(2), affine(4)).run_scalar(a, b, &mut y),
            ("Add", b) => QAdd::new(affine(0), affine(2), affine(4)).run(a, b, &mut y),
            (_, &[b]) => QMul::new(affine(0), affine(2), affine(4)).run_scalar(a, b, &mut y),
            (_, b) => QMul::new(affine(0), affine(2), affine(4)).run(a, b, &mut y),
        }
        assert_eq!(y, r.u8(3), "{} {p:?}", r.name);
    }
}

#[test]
fn tables() {
    for r in records(&["Sigmoid", "LeakyRelu", "Concat"]) {
        let p = r.f32(0);
        let (x, y) = (grid(p[0], p[1]), grid(p[2], p[3]));
        let table = match r.name.as_str() {
            "Sigmoid" => Table::sigmoid(&x, &y),
            "LeakyRelu" => Table::leaky_relu(&x, &y, p[4]),
            _ => Table::requantize(&x, &y),
        };
        assert_eq!(table.values(), r.u8(1), "{} {p:?}", r.name);
    }
}

#[test]
fn pools() {
    let threads = Threads::new(2);
    for r in records(&["GlobalAveragePool", "MaxPool", "AveragePool"]) {
        let (p, s, x) = (r.f32(0), r.shape(1), r.u8(2));
        let (x_grid, y_grid) = (grid(p[0], p[1]), grid(p[2], p[3]));
        let mut y = vec![0; r.u8(3).len()];
        if r.name == "GlobalAveragePool" {
            global_average_pool(s[0], s[1], x, &x_grid, &mut y, &y_grid);
        } else {
            let shape = PoolShape { n: s[0], input: [s[1], s[2]], output: [s[3], s[4]], channels: s[5] };
            let pads = [s[10], s[11], s[12], s[13]];
            let window = Window { kernel: [s[6], s[7]], stride: [s[8], s[9]], dilation: [1, 1], pads };
            match r.name.as_str() {
                "MaxPool" => max_pool(&threads, &shape, &window, x, &mut y),
                _ => average_pool(&threads, &shape, &window, s[14] == 1, x, &x_grid, &mut y, &y_grid),
            }
        }
        assert_eq!(y, r.u8(3), "{} {s:?}", r.name);
    }
}

#[test]
fn softmax() {
    for r in records(&["Softmax"]) {
        let (p, x) = (r.f32(0), r.u8(1));
        let mut y = vec![0; x.len()];
        QSoftmax::new(x.len() / 3, p[0], p[1], p[2] as u8).run(x, &mut y);
        assert_eq!(y, r.u8(2), "{p:?}");
    }
}

#[test]
fn convolutions_and_products() {
    let threads = Threads::new(2);
    for r in records(&["Conv", "Gemm", "GemmToFloat"]) {
        let (s, p, w_scale, bias, x) = (r.shape(0), r.f32(1), r.f32(2), r.i32(4), r.u8(5));
        let (shape, geometry, weights) = if r.name == "Conv" {
            let geometry = ConvGeometry {
                in_channels: s[3],
                out_channels: s[4],
                kernel: [s[5], s[6]],
                stride: [s[7], s[8]],
                dilation: [s[9], s[10]],
                pads: [s[11], s[12], s[13], s[14]],
                groups: s[15],
            };
            ([s[0], s[1], s[2]], geometry, r.i8(3))
        } else {
            let matrix = r.i8(3);
            let transposed = (0..s[1] * s[2]).map(|i| matrix[i % s[1] * s[2] + i / s[1]]).collect();
            ([s[0], 1, 1], ConvGeometry::pointwise(s[1], s[2]), transposed)
        };
        let scales: Vec<f32> = w_scale.iter().map(|w| p[0] * w).collect();
        let multipliers: Vec<f32> = scales.iter().map(|s| s / p[2]).collect();
        for isa in Isa::available() {
            let conv = PackedQConv::with_isa(&geometry, &weights, isa);
            let mut scratch = vec![0; conv.scratch_len(shape)];
            if r.name == "GemmToFloat" {
                let expected = r.f32(6);
                let mut y = vec![0.0; expected.len()];
                conv.run_to_f32(&threads, shape, x, &conv.rescale(p[1] as u8, &bias, &scales), &mut y, &mut scratch);
                assert_eq!(y, expected, "{isa:?} {s:?}");
            } else {
                let requantize = conv.requantize(p[1] as u8, &bias, &multipliers, p[3] as i32, [0, 255]);
                let mut y = vec![0; r.u8(6).len()];
                conv.run(&threads, shape, x, &requantize, &mut y, &mut scratch);
                assert_eq!(y, r.u8(6), "{isa:?} {} {s:?}", r.name);
            }
        }
    }
}
