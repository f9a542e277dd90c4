//! Every fast path equals the plain twin, for every instruction set of this machine and any number of threads.

use super::*;
use crate::int::reference;

/// A small linear congruential generator: enough to fill operands, the same on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as u32) % n
    }
}

fn geometry(channels: [usize; 2], kernel: [usize; 2], pads: [usize; 4]) -> ConvGeometry {
    ConvGeometry { kernel, pads, ..ConvGeometry::pointwise(channels[0], channels[1]) }
}

fn check(g: &ConvGeometry, shape: [usize; 3], rng: &mut Random) {
    let [n, h, w] = shape;
    let [oh, ow] = g.output_size(h, w).unwrap();
    // Extreme values often: they show 16-bit saturation.
    let x: Vec<u8> = (0..n * h * w * g.in_channels).map(|_| (rng.below(384) as i32 - 64).clamp(0, 255) as u8).collect();
    let weights: Vec<i8> = (0..g.weight_len()).map(|_| (rng.below(384) as i32 - 192).clamp(-128, 127) as i8).collect();
    let bias: Vec<i32> = (0..g.out_channels).map(|_| rng.below(20_001) as i32 - 10_000).collect();
    let x_zero = rng.below(256) as u8;
    let y_zero = rng.below(256) as i32;
    let grid = if rng.below(3) == 0 { [10, 200] } else { [0, 255] };
    let spread = 40.0 / (g.weight_len() as f32 / g.out_channels as f32).sqrt() / 5000.0;
    let multipliers: Vec<f32> = (0..g.out_channels).map(|_| spread * (1.0 + rng.below(1000) as f32 / 300.0)).collect();

    let wide: Vec<i32> = weights.iter().map(|&w| i32::from(w)).collect();
    let mut acc = vec![0; n * oh * ow * g.out_channels];
    reference::conv_sums(g, shape, &x, x_zero, &wide, &[0], &bias, &mut acc);
    let mut expected = vec![0; acc.len()];
    reference::requantize(&acc, &multipliers, y_zero, grid[0], grid[1], &mut expected);
    let expected_f32: Vec<f32> =
        acc.iter().enumerate().map(|(i, &a)| a as f32 * multipliers[i % multipliers.len()]).collect();

    for isa in Isa::available() {
        let conv = PackedQConv::with_isa(g, &weights, isa);
        let requantize = conv.requantize(x_zero, &bias, &multipliers, y_zero, grid);
        let mut scratch = vec![0; conv.scratch_len(shape)];
        for threads in [1, 3] {
            let mut y = vec![77; expected.len()];
            conv.run(&Threads::new(threads), shape, &x, &requantize, &mut y, &mut scratch);
            assert_eq!(y, expected, "{isa:?} {g:?} {shape:?}");
        }
        let mut y = vec![0.0; expected.len()];
        conv.run_to_f32(&Threads::new(1), shape, &x, &requantize, &mut y, &mut scratch);
        assert_eq!(y, expected_f32, "{isa:?} {g:?} {shape:?}");
    }
}

#[test]
fn dense_convolutions_equal_the_reference() {
    let rng = &mut Random(1);
    for (channels, kernel, pads, shape) in [
        ([3, 16], [3, 3], [1, 1, 1, 1], [2, 9, 11]),
        ([3, 32], [3, 3], [0, 0, 1, 1], [1, 12, 12]),
        ([4, 4], [1, 1], [0; 4], [1, 1, 1]),
        ([5, 7], [1, 1], [0; 4], [3, 5, 7]),
        ([16, 96], [1, 1], [0; 4], [1, 14, 14]),
        ([24, 33], [1, 1], [0, 2, 1, 0], [1, 4, 5]),
        ([13, 65], [3, 2], [2, 0, 1, 3], [1, 7, 7]),
        ([8, 130], [5, 5], [2, 2, 2, 2], [1, 6, 6]),
        ([70, 50], [3, 3], [1, 1, 1, 1], [1, 7, 7]),
        ([33, 20], [3, 3], [0; 4], [2, 3, 3]),
    ] {
        check(&geometry(channels, kernel, pads), shape, rng);
        check(&ConvGeometry { stride: [2, 2], ..geometry(channels, kernel, pads) }, shape, rng);
    }
    check(&ConvGeometry { dilation: [2, 3], ..geometry([6, 18], [3, 3], [2, 3, 2, 3]) }, [1, 9, 12], rng);
    check(&ConvGeometry { stride: [3, 1], dilation: [1, 2], ..geometry([8, 8], [2, 3], [0; 4]) }, [1, 9, 12], rng);
}

#[test]
fn grouped_and_depthwise_convolutions_equal_the_reference() {
    let rng = &mut Random(2);
    for channels in [2, 16, 24, 32, 35, 64, 96, 130] {
        for (kernel, pads, stride) in
            [([3, 3], [1; 4], 1), ([3, 3], [0, 0, 1, 1], 2), ([5, 5], [2; 4], 1), ([2, 4], [0; 4], 1)]
        {
            let g = geometry([channels, channels], kernel, pads);
            check(&ConvGeometry { groups: channels, stride: [stride; 2], ..g }, [1, 8, 7], rng);
        }
        let g = geometry([channels, channels], [3, 3], [2; 4]);
        check(&ConvGeometry { groups: channels, dilation: [2, 2], ..g }, [2, 6, 5], rng);
    }
    // Rows longer than the line of columns that a fast kernel keeps, and kernels wider than it.
    for (channels, stride, dilation, width) in [(65, 1, 1, 150), (20, 2, 1, 149), (33, 3, 2, 200), (70, 1, 33, 90)] {
        let g = geometry([channels, channels], [5, 3], [2, 1, 2, 1]);
        check(
            &ConvGeometry { groups: channels, stride: [1, stride], dilation: [1, dilation], ..g },
            [1, 4, width],
            rng,
        );
    }
    for (channels, groups) in [([12, 18], 3), ([8, 40], 2), ([6, 12], 6), ([64, 64], 4), ([10, 5], 5)] {
        check(&ConvGeometry { groups, ..geometry(channels, [3, 3], [1; 4]) }, [2, 6, 7], rng);
        check(&ConvGeometry { groups, ..geometry(channels, [1, 1], [0; 4]) }, [1, 5, 3], rng);
    }
}

#[test]
fn matrix_products_equal_the_reference() {
    let rng = &mut Random(3);
    for (inputs, outputs, rows) in [(1, 1, 1), (37, 10, 1), (1280, 100, 1), (64, 1000, 1), (130, 17, 29), (512, 64, 8)]
    {
        check(&ConvGeometry::pointwise(inputs, outputs), [rows, 1, 1], rng);
    }
    let matrix = [1, 2, 3, 4, 5, 6];
    let conv = PackedQConv::from_matrix(2, 3, &matrix);
    let rescale = conv.rescale(1, &[10, 0, -10], &[1.0, 0.5, 2.0]);
    let mut y = [0.0; 3];
    conv.run_to_f32(&Threads::new(1), [1, 1, 1], &[3, 0], &rescale, &mut y, &mut vec![0; conv.scratch_len([1, 1, 1])]);
    // (3 - 1) * row 0 + (0 - 1) * row 1 + bias, times the multiplier.
    assert_eq!(y, [8.0, -0.5, -20.0]);
}

#[test]
fn large_values_saturate_instead_of_wrapping() {
    let g = ConvGeometry::pointwise(64, 20);
    for isa in Isa::available() {
        for (weight, expected) in [(127, 255), (-127, 0)] {
            let conv = PackedQConv::with_isa(&g, &[weight; 64 * 20], isa);
            let requantize = conv.requantize(0, &[0; 20], &[1e6; 20], 100, [0, 255]);
            let mut y = [1; 20];
            conv.run(&Threads::new(1), [1, 1, 1], &[255; 64], &requantize, &mut y, &mut []);
            assert_eq!(y, [expected; 20], "{isa:?}");
        }
    }
}
