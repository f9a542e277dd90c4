//! Max pooling that also tells where each maximum was. Plain loops: no trained classifier or detector spends time here.

use crate::float::PoolGeometry;

/// Pools `x: [n, h, w, c]` to `y` and `indices`, both `[n, out[0], out[1], c]`. An index counts elements in the order N, C, H, W
/// (N, C, W, H with `column_major`); the first of equals wins. A window without any element gives `-inf` and -1.
///
/// # Panics
/// If a slice is shorter than its shape.
pub fn max_pool_with_indices(
    geometry: &PoolGeometry,
    [h, w, c]: [usize; 3],
    [oh, ow]: [usize; 2],
    column_major: bool,
    x: &[f32],
    y: &mut [f32],
    indices: &mut [i64],
) {
    let taps = |axis: usize, position: usize, size: usize| {
        let first = position * geometry.stride[axis];
        let tap = move |k: usize| (first + k * geometry.dilation[axis]).checked_sub(geometry.pads[axis]);
        (0..geometry.kernel[axis]).filter_map(tap).filter(move |&i| i < size)
    };
    for (i, (y, index)) in y.iter_mut().zip(indices).enumerate() {
        let (pixel, channel) = (i / c, i % c);
        let image = pixel / (oh * ow);
        (*y, *index) = (f32::NEG_INFINITY, -1);
        for row in taps(0, pixel / ow % oh, h) {
            for column in taps(1, pixel % ow, w) {
                let value = x[((image * h + row) * w + column) * c + channel];
                if value > *y {
                    let place = if column_major { column * h + row } else { row * w + column };
                    (*y, *index) = (value, ((image * c + channel) * h * w + place) as i64);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rising_images_have_their_maxima_at_the_bottom_right() {
        let geometry = PoolGeometry { kernel: [2, 2], stride: [1, 1], dilation: [1, 1], pads: [0; 4] };
        let x: Vec<f32> = (0..2 * 9 * 5).map(|i| i as f32).collect();
        let (mut y, mut indices) = (vec![0.0; 40], vec![0; 40]);
        max_pool_with_indices(&geometry, [3, 3, 5], [2, 2], false, &x, &mut y, &mut indices);
        // Image 1, channel 3, bottom right window: the last of its 9 pixels.
        assert_eq!((y[38], indices[38]), (45.0 + 8.0 * 5.0 + 3.0, (5 + 3) * 9 + 8));
        max_pool_with_indices(&geometry, [3, 3, 5], [2, 2], true, &x, &mut y, &mut indices);
        // Image 0, channel 0, top right window: row 1, column 2.
        assert_eq!(indices[5], 2 * 3 + 1);
    }
}
