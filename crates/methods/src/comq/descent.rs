//! Coordinate descent on `J(q) = v (G + λI) vᵀ + 2 v·t`, `v = s q − w`, over integer codes `q` within bounds.

use crate::moments::Group;
use fewbits_kernels::float::vectors::{axpy, dot};

/// The problem of one output channel. Codes are whole numbers in f32.
pub struct Descent<'a> {
    gram: &'a [f32],
    cross: Vec<f32>,
    wanted: &'a [f32],
    /// `(G + λI) w`
    image: Vec<f32>,
    /// `G_kk + λ`
    energy: Vec<f32>,
    ridge: f32,
    /// Coordinates with the largest energy first.
    order: Vec<usize>,
    bounds: [f32; 2],
}

/// Codes, their scale, and half the gradient of `J` there.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// `q`
    pub codes: Vec<f32>,
    /// `s`
    pub scale: f32,
    slope: Vec<f32>,
}

/// The nearest codes.
pub fn codes_of(row: &[f32], scale: f32, [low, high]: [f32; 2]) -> Vec<f32> {
    row.iter().map(|w| (w / scale).round_ties_even().clamp(low, high)).collect()
}

impl<'a> Descent<'a> {
    /// `ridge` is relative to the mean energy of an input, `trust` the part of `t` that counts.
    pub fn new(group: &'a Group, output: usize, wanted: &'a [f32], [ridge, trust]: [f32; 2], bounds: [f32; 2]) -> Self {
        let k = wanted.len();
        let diagonal: Vec<f32> = (0..k).map(|i| group.gram[i * k + i].max(0.0)).collect();
        let mean = diagonal.iter().sum::<f32>() / k.max(1) as f32;
        let ridge = (ridge * mean).max(f32::MIN_POSITIVE);
        let energy: Vec<f32> = diagonal.iter().map(|d| d + ridge).collect();
        let mut order: Vec<usize> = (0..k).collect();
        order.sort_by(|&a, &b| energy[b].total_cmp(&energy[a]).then(a.cmp(&b)));
        let image = (0..k).map(|i| dot(&group.gram[i * k..][..k], wanted) + ridge * wanted[i]).collect();
        let cross = group.cross[output * k..][..k].iter().map(|t| trust * t).collect();
        Descent { gram: &group.gram, cross, wanted, image, energy, ridge, order, bounds }
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.gram[i * self.wanted.len()..][..self.wanted.len()]
    }

    /// Moves coordinate `i` of `v` by `step`.
    fn shift(&self, slope: &mut [f32], i: usize, step: f32) {
        axpy(step, self.row(i), slope);
        slope[i] += self.ridge * step;
    }

    /// The point at `codes`.
    pub fn at(&self, codes: Vec<f32>, scale: f32) -> Point {
        let mut slope = self.cross.clone();
        for (i, (q, w)) in codes.iter().zip(self.wanted).enumerate() {
            self.shift(&mut slope, i, q * scale - w);
        }
        Point { codes, scale, slope }
    }

    /// `J`.
    pub fn error(&self, point: &Point) -> f64 {
        let v = point.codes.iter().zip(self.wanted).map(|(q, w)| q * point.scale - w);
        // v (G + λI) v + 2 v·t = v·(slope + t)
        v.zip(point.slope.iter().zip(&self.cross))
            .map(|(v, (g, t))| f64::from(v) * (f64::from(*g) + f64::from(*t)))
            .sum()
    }

    /// Fixes one coordinate after the other; those behind make up for the error so far.
    pub fn feed_back(&self, scale: f32) -> Point {
        let mut codes = vec![0.0; self.wanted.len()];
        let mut slope = self.cross.clone();
        for &i in &self.order {
            let best = self.wanted[i] - slope[i] / self.energy[i];
            codes[i] = (best / scale).round_ties_even().clamp(self.bounds[0], self.bounds[1]);
            self.shift(&mut slope, i, codes[i] * scale - self.wanted[i]);
        }
        Point { codes, scale, slope }
    }

    /// Changes codes one by one to the best there is for each, until nothing changes.
    pub fn descend(&self, point: &mut Point, rounds: usize) {
        for _ in 0..rounds {
            let mut changed = false;
            for &i in &self.order {
                let best = point.codes[i] - point.slope[i] / (self.energy[i] * point.scale);
                let code = best.round_ties_even().clamp(self.bounds[0], self.bounds[1]);
                if code != point.codes[i] {
                    self.shift(&mut point.slope, i, (code - point.codes[i]) * point.scale);
                    point.codes[i] = code;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
    }

    /// The same codes with the scale of least `J`, `s = q·((G + λI) w − t) / q (G + λI) q`.
    pub fn rescale(&self, point: &Point) -> Option<Point> {
        let q = &point.codes;
        // (G + λI) q = (slope − t + (G + λI) w) / s
        let image_of_codes = |i: usize| (point.slope[i] - self.cross[i] + self.image[i]) / point.scale;
        let sum = |f: &dyn Fn(usize) -> f32| (0..q.len()).map(|i| f64::from(q[i]) * f64::from(f(i))).sum::<f64>();
        let (product, square) = (sum(&|i| self.image[i] - self.cross[i]), sum(&image_of_codes));
        let scale = (product / square) as f32;
        let slope = |i: usize| scale * image_of_codes(i) - self.image[i] + self.cross[i];
        let usable = square > 0.0 && scale.is_normal() && scale > 0.0;
        usable.then(|| Point { slope: (0..q.len()).map(slope).collect(), scale, codes: q.clone() })
    }
}
