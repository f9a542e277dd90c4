//! Drawn pictures of ten kinds. A seed and an index enter; 32×32 RGB pixels and their class leave.
//!
//! Every picture is one shape of random colour, place, size, turn and stretch on a shaded background, partly covered by
//! bars, then blurred, dimmed and made noisy. Nothing is stored: picture `index` of stream `seed` is drawn on demand.
//!
//! Pixels are the same on every platform: all arithmetic is `f32` addition, subtraction, multiplication, division and
//! `floor`, which IEEE 754 rounds in exactly one way; there is no sine and no square root. This module knows no model.

/// Height and width of a picture, in pixels.
pub const SIDE: usize = 32;

/// Bytes of one picture, in the order height, width, channel (red, green, blue).
pub const BYTES: usize = SIDE * SIDE * 3;

/// Names of the classes. They are sorted, so folders named after them keep the class indices.
pub const CLASS_NAMES: [&str; 10] =
    ["arrow", "checkerboard", "crescent", "cross", "disc", "ring", "square", "star", "stripes", "triangle"];

/// Stream that the weights of [`crate::MODEL`] were trained on.
pub const TRAIN_SEED: u64 = 1;

/// Stream for calibration: the model has not seen it.
pub const CALIBRATION_SEED: u64 = 2;

/// Stream for measuring accuracy: neither training nor calibration has seen it.
pub const TEST_SEED: u64 = 3;

/// Draws picture `index` of stream `seed`, and tells its class.
///
/// The class is `index % 10`, so any run of ten consecutive pictures holds each class once.
pub fn image(seed: u64, index: u64) -> ([u8; BYTES], usize) {
    let class = (index % CLASS_NAMES.len() as u64) as usize;
    let mut random = Random::new(seed, index);
    let mut canvas = background(&mut random);
    let placement = Placement::new(&mut random);
    let ink = ink(&canvas, &mut random);
    paint(&mut canvas, &placement, ink, |x, y| inside(class, x, y));
    cover(&mut canvas, &mut random);
    for _ in 0..random.below(3) {
        blur(&mut canvas);
    }
    (develop(&canvas, &mut random), class)
}

type Colour = [f32; 3];
/// Colours in 0…255, one per pixel, row by row.
type Canvas = [Colour; SIDE * SIDE];

/// Whether the point (x, y) belongs to the shape of `class`. Shapes live in the square −1…1, y pointing down.
fn inside(class: usize, x: f32, y: f32) -> bool {
    let radius_squared = x * x + y * y;
    let chessboard_distance = x.abs().max(y.abs());
    let is_even = |v: f32| (v * 0.5).floor() * 2.0 == v;
    match CLASS_NAMES[class] {
        "arrow" => (y.abs() <= 0.22 && (-0.95..0.3).contains(&x)) || (x >= 0.1 && x + 1.2 * y.abs() <= 0.95),
        "checkerboard" => chessboard_distance <= 0.85 && is_even((x * 2.35).floor() + (y * 2.35).floor()),
        "crescent" => radius_squared <= 0.81 && (x - 0.45) * (x - 0.45) + y * y > 0.49,
        "cross" => chessboard_distance <= 0.9 && x.abs().min(y.abs()) <= 0.27,
        "disc" => radius_squared <= 0.72,
        "ring" => (0.27..=0.81).contains(&radius_squared),
        "square" => chessboard_distance <= 0.75,
        // A pentagram: the points that lie on the inner side of at least four of its five lines.
        "star" => half_planes(&PENTAGON, 0.36, x, y) >= 4,
        "stripes" => chessboard_distance <= 0.85 && is_even((x * 2.95 + 0.5).floor()),
        _ => half_planes(&TRIANGLE, 0.5, x, y) == 3,
    }
}

/// Unit normals of the sides of a regular pentagon and of a regular triangle.
const PENTAGON: [(f32, f32); 5] = [
    (0.0, 1.0),
    (0.951_056_5, 0.309_017),
    (0.587_785_24, -0.809_017),
    (-0.587_785_24, -0.809_017),
    (-0.951_056_5, 0.309_017),
];
const TRIANGLE: [(f32, f32); 3] = [(0.0, 1.0), (0.866_025_4, -0.5), (-0.866_025_4, -0.5)];

/// How many of the half planes `normal · (x, y) ≤ distance` hold the point.
fn half_planes(normals: &[(f32, f32)], distance: f32, x: f32, y: f32) -> usize {
    normals.iter().filter(|(a, b)| a * x + b * y <= distance).count()
}

/// Where a shape lies: its centre in pixels, and the linear map from pixels to the square −1…1.
struct Placement {
    centre: (f32, f32),
    to_shape: [[f32; 2]; 2],
}

impl Placement {
    fn new(random: &mut Random) -> Self {
        let radius = random.between(7.5, 13.5);
        let stretch = random.between(0.8, 1.25);
        let (cos, sin) = random.direction();
        let slack = 16.0 - 0.8 * radius;
        let centre = (16.0 + random.between(-slack, slack), 16.0 + random.between(-slack, slack));
        let (across, down) = (stretch / radius, 1.0 / (stretch * radius));
        Self { centre, to_shape: [[cos * across, sin * across], [-sin * down, cos * down]] }
    }

    fn to_shape(&self, x: f32, y: f32) -> (f32, f32) {
        let (dx, dy) = (x - self.centre.0, y - self.centre.1);
        let [row_x, row_y] = self.to_shape;
        (row_x[0] * dx + row_x[1] * dy, row_y[0] * dx + row_y[1] * dy)
    }
}

/// A gradient between two colours in a random direction, with a coarse texture over it.
fn background(random: &mut Random) -> Canvas {
    let (from, to) = (random.colour(), random.colour());
    let (cos, sin) = random.direction();
    let roughness = random.between(0.0, 28.0);
    let lattice: [[f32; 9]; 9] =
        std::array::from_fn(|_| std::array::from_fn(|_| random.between(-roughness, roughness)));
    std::array::from_fn(|pixel| {
        let (x, y) = (pixel % SIDE, pixel / SIDE);
        let across = 0.5 + ((x as f32 - 15.5) * cos + (y as f32 - 15.5) * sin) / 45.0;
        // The texture is bilinear between lattice points four pixels apart.
        let (row, column, u, v) = (y / 4, x / 4, (x % 4) as f32 / 4.0, (y % 4) as f32 / 4.0);
        let above = mix(lattice[row][column], lattice[row][column + 1], u);
        let below = mix(lattice[row + 1][column], lattice[row + 1][column + 1], u);
        let texture = mix(above, below, v);
        std::array::from_fn(|c| mix(from[c], to[c], across) + texture)
    })
}

/// A colour that differs from the background's mean by at least 80 of 255 in some channel.
fn ink(canvas: &Canvas, random: &mut Random) -> Colour {
    let mean: Colour =
        std::array::from_fn(|c| canvas.iter().map(|colour| colour[c]).sum::<f32>() / canvas.len() as f32);
    loop {
        let colour = random.colour();
        if (0..3).any(|c| (colour[c] - mean[c]).abs() >= 80.0) {
            return colour;
        }
    }
}

/// Paints the points for which `inside` holds, with soft edges from 3×3 samples in each pixel.
fn paint(canvas: &mut Canvas, placement: &Placement, ink: Colour, inside: impl Fn(f32, f32) -> bool) {
    for (pixel, colour) in canvas.iter_mut().enumerate() {
        let corner = ((pixel % SIDE) as f32, (pixel / SIDE) as f32);
        let hit = |sample: &u32| {
            let (dx, dy) = ((2 * (sample % 3) + 1) as f32 / 6.0, (2 * (sample / 3) + 1) as f32 / 6.0);
            let (x, y) = placement.to_shape(corner.0 + dx, corner.1 + dy);
            inside(x, y)
        };
        let coverage = (0..9).filter(hit).count() as f32 / 9.0;
        *colour = std::array::from_fn(|c| mix(colour[c], ink[c], coverage));
    }
}

/// Lays up to two thin bars of random colour over the picture.
fn cover(canvas: &mut Canvas, random: &mut Random) {
    for _ in 0..random.below(3) {
        let (placement, colour) = (Placement::new(random), random.colour());
        let (length, width) = (random.between(0.3, 1.2), random.between(0.06, 0.16));
        paint(canvas, &placement, colour, |x, y| x.abs() <= length && y.abs() <= width);
    }
}

/// Averages each pixel with its neighbours, with weights 1-2-1 along rows and columns; the border repeats.
fn blur(canvas: &mut Canvas) {
    for step in [1, SIDE] {
        let sharp = *canvas;
        for (pixel, colour) in canvas.iter_mut().enumerate() {
            let position = pixel / step % SIDE;
            let before = if position == 0 { pixel } else { pixel - step };
            let after = if position == SIDE - 1 { pixel } else { pixel + step };
            *colour = std::array::from_fn(|c| 0.25 * (sharp[before][c] + 2.0 * sharp[pixel][c] + sharp[after][c]));
        }
    }
}

/// Applies contrast, brightness and noise, and rounds to bytes.
fn develop(canvas: &Canvas, random: &mut Random) -> [u8; BYTES] {
    let (contrast, brightness) = (random.between(0.6, 1.1), random.between(-30.0, 30.0));
    let noise = random.between(2.0, 18.0);
    let mut bytes = [0; BYTES];
    for (byte, value) in bytes.iter_mut().zip(canvas.as_flattened()) {
        // A sum of three uniform numbers is close to a normal one, with standard deviation `noise`.
        let grain = noise * (random.between(-1.0, 1.0) + random.between(-1.0, 1.0) + random.between(-1.0, 1.0));
        // `as` saturates at 0 and 255.
        *byte = (128.0 + contrast * (value - 128.0) + brightness + grain + 0.5).floor() as u8;
    }
    bytes
}

fn mix(from: f32, to: f32, amount: f32) -> f32 {
    from + (to - from) * amount
}

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    /// The generator of one picture: streams and pictures start at unrelated states.
    fn new(seed: u64, index: u64) -> Self {
        let stream = Self(seed).next();
        Self(Self(stream ^ index).next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `low..high`, from 24 random bits.
    fn between(&mut self, low: f32, high: f32) -> f32 {
        mix(low, high, (self.next() >> 40) as f32 / 16_777_216.0)
    }

    /// Uniform in `0..limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn colour(&mut self) -> Colour {
        std::array::from_fn(|_| self.between(0.0, 255.0))
    }

    /// The cosine and sine of a random angle, by the rational form of the circle.
    fn direction(&mut self) -> (f32, f32) {
        let t = self.between(-1.0, 1.0);
        let sign = if self.below(2) == 0 { 1.0 } else { -1.0 };
        let scale = sign / (1.0 + t * t);
        (scale * (1.0 - t * t), scale * 2.0 * t)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FNV-1a of the first hundred test pictures: the pixels may not change, since the stored weights were trained on them.
    #[test]
    fn pixels_are_pinned() {
        let hash = (0..100)
            .flat_map(|index| image(TEST_SEED, index).0)
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        assert_eq!(format!("{hash:016x}"), "a982cf0b943bcab0");
    }

    #[test]
    fn classes_are_balanced_and_sorted() {
        let mut counts = [0; CLASS_NAMES.len()];
        (0..200).for_each(|index| counts[image(TEST_SEED, index).1] += 1);
        assert_eq!(counts, [20; 10]);
        assert!(CLASS_NAMES.is_sorted());
    }

    #[test]
    fn streams_do_not_share_pictures() {
        let seeds = [TRAIN_SEED, CALIBRATION_SEED, TEST_SEED];
        let pictures: std::collections::HashSet<_> =
            seeds.into_iter().flat_map(|seed| (0..100).map(move |index| image(seed, index).0)).collect();
        assert_eq!(pictures.len(), 300);
    }

    #[test]
    fn pictures_are_not_flat() {
        for index in 0..100 {
            let (pixels, _) = image(CALIBRATION_SEED, index);
            let (darkest, brightest) = (pixels.iter().min(), pixels.iter().max());
            assert!(
                brightest.zip(darkest).is_some_and(|(b, d)| b - d >= 40),
                "picture {index}: {darkest:?} {brightest:?}"
            );
        }
    }

    /// Areas have closed forms; the lattice of samples finds them to 1 %.
    #[test]
    fn shapes_have_their_areas() {
        use std::f32::consts::PI;
        let cases = [
            ("disc", 0.72 * PI),
            ("ring", 0.54 * PI),
            ("square", 2.25),
            ("cross", 2.0 * 1.8 * 0.54 - 0.54 * 0.54),
            ("triangle", 0.75 * 3_f32.sqrt()),
        ];
        for (name, expected) in cases {
            let class = CLASS_NAMES.binary_search(&name).expect("the names are sorted");
            let at = |i: usize| (i as f32 + 0.5) / 200.0 - 1.0;
            let hits = (0..400 * 400).filter(|i| inside(class, at(i % 400), at(i / 400))).count();
            let area = hits as f32 / 40_000.0;
            assert!((area / expected - 1.0).abs() < 0.01, "{name}: {area}, expected {expected}");
        }
    }
}
