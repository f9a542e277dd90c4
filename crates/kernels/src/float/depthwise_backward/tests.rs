use super::*;

/// Numbers between -1 and 1 that repeat after a long while.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Calls `visit(output, tap, input)` with the pixels and the tap of every product, images, rows, columns and taps in order.
fn products(g: &ConvGeometry, [n, h, w]: [usize; 3], mut visit: impl FnMut(usize, usize, usize)) {
    let [oh, ow] = g.output_size(h, w).expect("cases fit");
    for output in 0..n * oh * ow {
        let (image, oy, ox) = (output / (oh * ow), output / ow % oh, output % ow);
        for tap in 0..g.kernel[0] * g.kernel[1] {
            let iy = (oy * g.stride[0] + tap / g.kernel[1] * g.dilation[0]).wrapping_sub(g.pads[0]);
            let ix = (ox * g.stride[1] + tap % g.kernel[1] * g.dilation[1]).wrapping_sub(g.pads[1]);
            if iy < h && ix < w {
                visit(output, tap, (image * h + iy) * w + ix);
            }
        }
    }
}

fn check(g: ConvGeometry, shape: [usize; 3]) {
    let channels = g.out_channels;
    let [oh, ow] = g.output_size(shape[1], shape[2]).expect("cases fit");
    let pixels = shape.iter().product::<usize>();
    let (x, dy) = (numbers(pixels * channels, 1), numbers(shape[0] * oh * ow * channels, 2));
    let weights = numbers(g.weight_len(), 3);
    let taps = g.weight_len() / channels;
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weights.len()]);
    products(&g, shape, |output, tap, input| {
        for c in 0..channels {
            let dy = f64::from(dy[output * channels + c]);
            dx[input * channels + c] += dy * f64::from(weights[c * taps + tap]);
            dw[c * taps + tap] += dy * f64::from(x[input * channels + c]);
        }
    });
    let mut bits: Option<[Vec<f32>; 2]> = None;
    for isa in Isa::available() {
        let case = format!("{g:?} {shape:?} {isa:?}");
        let close = |found: &[f32], expected: &[f64], before: f64| {
            let wrong =
                found.iter().zip(expected).position(|(&f, e)| f.is_nan() || (f64::from(f) - e - before).abs() > 2e-5);
            assert_eq!(wrong, None, "{case}");
        };
        let plan = DepthwiseBackward::for_isa(isa, &g);
        let mut packed = vec![f32::NAN; plan.packed_len()];
        plan.pack(&weights, &mut packed);
        let mut found = vec![f32::NAN; x.len()];
        plan.input_gradient(shape, &packed, &dy, false, &mut found);
        close(&found, &dx, 0.0);
        let mut added = vec![0.5; x.len()];
        plan.input_gradient(shape, &packed, &dy, true, &mut added);
        close(&added, &dx, 0.5);
        let mut form = vec![0.25; packed.len()];
        plan.weight_gradient(shape, &x, &dy, &mut form);
        let mut unpacked = vec![f32::NAN; form.len()];
        plan.unpack(&form, &mut unpacked);
        close(&unpacked, &dw, 0.25);
        let found = [found, unpacked];
        assert_eq!(&found, bits.get_or_insert_with(|| found.clone()), "{case}");
    }
}

fn square(k: usize, stride: usize, channels: usize) -> ConvGeometry {
    ConvGeometry {
        kernel: [k; 2],
        stride: [stride; 2],
        pads: [k / 2; 4],
        groups: channels,
        ..ConvGeometry::pointwise(channels, channels)
    }
}

#[test]
fn square_kernels_equal_the_plain_loop() {
    for k in [1, 3, 5, 7, 9, 11, 17] {
        for stride in [1, 2] {
            for (channels, size) in [(2, 5), (16, 14), (24, 7), (35, 9)] {
                check(square(k, stride, channels), [2, size, size]);
            }
            check(square(k, stride, 8), [1, 13, 31]);
        }
    }
}

#[test]
fn odd_geometry_equals_the_plain_loop() {
    for channels in [3, 17] {
        for (kernel, stride, dilation, pads) in [
            ([3, 3], [1, 1], [2, 2], [2, 2, 2, 2]),
            ([3, 3], [2, 2], [1, 1], [0, 0, 1, 1]),
            ([3, 3], [2, 2], [2, 2], [1, 2, 3, 2]),
            ([5, 2], [1, 3], [1, 2], [4, 0, 0, 3]),
            ([1, 7], [3, 2], [1, 3], [0, 9, 0, 8]),
            ([2, 2], [4, 6], [1, 4], [0, 0, 0, 0]),
            ([3, 3], [1, 1], [1, 1], [4, 5, 4, 5]),
        ] {
            let g = ConvGeometry { kernel, stride, dilation, pads, ..square(1, 1, channels) };
            check(g, [1, 12, 17]);
            check(g, [2, 9, 20]);
        }
    }
}

#[test]
fn pixels_that_no_tap_reads_have_no_gradient() {
    let g = ConvGeometry { stride: [2; 2], ..square(1, 1, 4) };
    let plan = DepthwiseBackward::new(&g);
    let mut dx = [f32::NAN; 36];
    plan.input_gradient([1, 3, 3], &[2.0; 4], &[1.0; 16], false, &mut dx);
    let expected = |i: usize| if [i / 12, i / 4 % 3].contains(&1) { 0.0 } else { 2.0 };
    assert!(dx.iter().enumerate().all(|(i, &dx)| dx == expected(i)));
}
