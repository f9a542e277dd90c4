//! What is remembered of a tensor over the calibration images, whatever range rule will be applied.
//!
//! What enters: the elements of a tensor, one image at a time. What leaves: [`Stats`], a few dozen kilobytes for each tensor
//! however many images there were. This room knows no graph and no grid.
//!
//! Extremes, sums and counts cover every element. The histogram covers every element of tensors with up to
//! [`SAMPLES_PER_IMAGE`] of them; of larger ones it takes every `k`-th, where `k` has no factor in common with the number of
//! elements, hence with no dimension of the tensor either, so that all channels and all places are met equally. The first
//! place moves from image to image. The result depends on nothing but the images and their order.

mod histogram;

pub use histogram::{Histogram, MAX_BINS};

use fewbits_kernels::moments::{Moments, channel_moments, moments};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most elements of one tensor and image that enter the histogram.
pub const SAMPLES_PER_IMAGE: usize = 4096;

/// Weight of the past in the moving average of per-image extremes.
const MOVING_AVERAGE_DECAY: f64 = 0.9;

/// Statistics by tensor name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stats(pub BTreeMap<String, TensorStats>);

/// Statistics of one tensor. Numbers that are not finite are counted in `non_finite` and left out of everything else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TensorStats {
    /// Images seen.
    pub images: u64,
    /// Finite elements seen.
    pub count: u64,
    /// Infinities and NaN seen.
    pub non_finite: u64,
    /// Smallest element; 0 before the first.
    pub min: f32,
    /// Largest element; 0 before the first.
    pub max: f32,
    /// Sum of the elements.
    pub sum: f64,
    /// Sum of their squares.
    pub sum_of_squares: f64,
    /// Sum over the images of each image's smallest element.
    pub sum_of_image_min: f64,
    /// Sum over the images of each image's largest element.
    pub sum_of_image_max: f64,
    /// Moving average of each image's smallest element: `0.9·old + 0.1·new`, starting with the first image.
    pub moving_min: f64,
    /// Moving average of each image's largest element.
    pub moving_max: f64,
    /// Distribution of the elements.
    pub histogram: Histogram,
    /// The same with each element counted as often as its channel matters to the layers behind; empty if that is not known.
    pub weighted: Histogram,
    /// By channel, if asked for.
    pub channels: Option<ChannelStats>,
}

/// Statistics of each channel.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ChannelStats {
    /// Elements seen of each channel.
    pub count: u64,
    /// Sum of each channel's elements.
    pub sum: Vec<f64>,
    /// Sum of their magnitudes.
    pub magnitudes: Vec<f64>,
    /// Sum of their squares.
    pub squares: Vec<f64>,
    /// Smallest element of each channel.
    pub min: Vec<f32>,
    /// Largest element of each channel.
    pub max: Vec<f32>,
}

impl Stats {
    /// Adds one image's elements to the statistics of `name`.
    pub fn observe_image(&mut self, name: &str, values: &[f32]) {
        match self.0.get_mut(name) {
            Some(stats) => stats.observe_image(values),
            None => self.0.entry(name.into()).or_default().observe_image(values),
        }
    }
}

impl TensorStats {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing seen yet; also keeps statistics by channel. Images must then have the channels as their fastest axis.
    pub fn with_channels(channels: usize) -> Self {
        let [sum, magnitudes, squares] = [(); 3].map(|()| vec![0.0; channels]);
        let [min, max] = [(); 2].map(|()| vec![0.0; channels]);
        let channels = ChannelStats { count: 0, sum, magnitudes, squares, min, max };
        TensorStats { channels: Some(channels), ..Self::default() }
    }

    /// Mean of all elements.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// Standard deviation of all elements.
    pub fn std(&self) -> f64 {
        (self.sum_of_squares / self.count.max(1) as f64 - self.mean().powi(2)).max(0.0).sqrt()
    }

    /// Mean distance of the elements from their mean, `E|x − E x|`, from the histogram with each bin's numbers at its middle.
    pub fn mean_abs_deviation(&self) -> f64 {
        let (histogram, mean) = (&self.histogram, self.mean());
        let middle = |k: usize| (histogram.edge(k) + 0.5 * histogram.width() - mean).abs();
        let bins = histogram.counts.iter().enumerate().map(|(k, &c)| c as f64 * middle(k));
        (bins.sum::<f64>() + histogram.zeros as f64 * mean.abs()) / histogram.total().max(1) as f64
    }

    /// Adds one image: its elements in any order, the same order for every image.
    pub fn observe_image(&mut self, values: &[f32]) {
        let channels = self.channels.as_ref().map(|c| ChannelStats::of(values, c.sum.len()));
        self.add(&ImageStats::of(values, self.images, &[]).with_channels(channels));
    }

    /// Adds one image that was looked at elsewhere. Images are added in their order.
    pub fn add(&mut self, image: &ImageStats) {
        self.histogram.add(&image.samples, image.sums.min, image.sums.max);
        self.weighted.add_weighted(&image.samples, &image.weights, image.sums.min, image.sums.max);
        self.non_finite += image.non_finite;
        if image.sums.count > 0 {
            self.add_image(&image.sums);
        }
        if let Some(channels) = &image.channels {
            self.channels.get_or_insert_default().add(channels);
        }
        self.images += 1;
    }

    fn add_image(&mut self, image: &Sums) {
        let first = self.count == 0;
        let (min, max) = (f64::from(image.min), f64::from(image.max));
        self.min = if first { image.min } else { self.min.min(image.min) };
        self.max = if first { image.max } else { self.max.max(image.max) };
        let moved = |old: f64, new: f64| {
            if first { new } else { MOVING_AVERAGE_DECAY * old + (1.0 - MOVING_AVERAGE_DECAY) * new }
        };
        self.moving_min = moved(self.moving_min, min);
        self.moving_max = moved(self.moving_max, max);
        self.sum_of_image_min += min;
        self.sum_of_image_max += max;
        self.count += image.count;
        self.sum += image.sum;
        self.sum_of_squares += image.squares;
    }
}

/// What one image adds to [`TensorStats`]: the costly part of [`TensorStats::observe_image`], for any thread to do.
#[derive(Debug, Default)]
pub struct ImageStats {
    sums: Sums,
    non_finite: u64,
    samples: Vec<f32>,
    /// One for each sample, or none.
    weights: Vec<u32>,
    channels: Option<ChannelStats>,
}

impl ImageStats {
    /// Looks at the elements of image number `image` (from 0). `weights` says how often an element of each channel counts in the
    /// weighted histogram; the channels are then the fastest axis. It may be empty.
    pub fn of(values: &[f32], image: u64, weights: &[u32]) -> Self {
        let mut seen = ImageStats::default();
        let stride = sampling_stride(values.len(), SAMPLES_PER_IMAGE);
        // Multiples of the golden ratio, taken modulo 1, spread evenly whatever their number.
        let turn = image.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let mut next = (turn as usize * stride) >> 32;
        seen.samples.reserve(values.len() / stride + 1);
        for (i, chunk) in values.chunks(CHUNK).enumerate() {
            // Sampling here finds the chunk in the cache.
            while let Some(&x) = chunk.get(next - i * CHUNK) {
                seen.samples.push(x);
                if !weights.is_empty() {
                    seen.weights.push(weights[next % weights.len()]);
                }
                next += stride;
            }
            seen.sums.add(chunk);
        }
        seen.non_finite = values.len() as u64 - seen.sums.count;
        seen
    }

    /// The same with statistics by channel, if there are any.
    pub fn with_channels(self, channels: Option<ChannelStats>) -> Self {
        ImageStats { channels, ..self }
    }
}

impl ChannelStats {
    /// Mean of each channel.
    pub fn mean(&self) -> Vec<f64> {
        self.sum.iter().map(|s| s / self.count.max(1) as f64).collect()
    }

    /// Largest magnitude of each channel.
    pub fn largest(&self) -> Vec<f32> {
        self.min.iter().zip(&self.max).map(|(lo, hi)| lo.abs().max(hi.abs())).collect()
    }

    /// Statistics of `values`, places of `channels` numbers each. Sums are in f32 over 64 places at a time, in f64 beyond.
    pub fn of(values: &[f32], channels: usize) -> Self {
        let Some(first) = values.get(..channels).filter(|_| channels > 0) else { return Self::default() };
        let (mut min, mut max) = (first.to_vec(), first.to_vec());
        let mut sums = [(); 3].map(|()| vec![0.0; channels]);
        let mut partial = [(); 3].map(|()| vec![0f32; channels]);
        for block in values.chunks(64 * channels) {
            partial.iter_mut().for_each(|partial| partial.fill(0.0));
            channel_moments(block, partial.each_mut().map(Vec::as_mut_slice), &mut min, &mut max);
            for (sum, p) in sums.iter_mut().flatten().zip(partial.iter().flatten()) {
                *sum += f64::from(*p);
            }
        }
        let [sum, magnitudes, squares] = sums;
        ChannelStats { count: (values.len() / channels) as u64, sum, magnitudes, squares, min, max }
    }

    /// Statistics of `values`, one plane of equal size after the other for each channel.
    pub fn of_planes(values: &[f32], channels: usize) -> Self {
        let size = (values.len() / channels.max(1)).max(1);
        let mut stats = ChannelStats { count: size as u64, ..Self::default() };
        for plane in values.chunks_exact(size) {
            let part = ChannelStats::of(plane, 1);
            stats.sum.extend(part.sum);
            stats.magnitudes.extend(part.magnitudes);
            stats.squares.extend(part.squares);
            stats.min.extend(part.min);
            stats.max.extend(part.max);
        }
        stats
    }

    /// Adds the statistics of other data of the same channels.
    fn add(&mut self, other: &ChannelStats) {
        if self.count == 0 {
            self.clone_from(other);
            return;
        }
        self.count += other.count;
        let sums = [(&mut self.sum, &other.sum), (&mut self.magnitudes, &other.magnitudes)];
        for (own, other) in sums.into_iter().chain([(&mut self.squares, &other.squares)]) {
            own.iter_mut().zip(other).for_each(|(a, b)| *a += b);
        }
        self.min.iter_mut().zip(&other.min).for_each(|(a, b)| *a = a.min(*b));
        self.max.iter_mut().zip(&other.max).for_each(|(a, b)| *a = a.max(*b));
    }
}

/// The smallest stride that leaves at most `most` of `len` elements and has no factor in common with `len`, hence with no dimension
/// of the tensor: all channels and all places are met equally.
pub fn sampling_stride(len: usize, most: usize) -> usize {
    let coprime = |stride: &usize| {
        let (mut a, mut b) = (len, *stride);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    let least = len.div_ceil(most);
    if least <= 1 { 1 } else { (least..).find(coprime).unwrap_or(least) }
}

/// Elements summed in f32 before the sums move on to f64, and looked at while they are in the cache.
const CHUNK: usize = 4096;

/// Sums and extremes of the finite numbers of one image.
#[derive(Debug, Default)]
struct Sums {
    count: u64,
    min: f32,
    max: f32,
    sum: f64,
    squares: f64,
}

impl Sums {
    fn add(&mut self, chunk: &[f32]) {
        let Some(sums) = Sums::fast(chunk).or_else(|| Sums::finite(chunk)) else { return };
        let first = self.count == 0;
        self.min = if first { sums.min } else { self.min.min(sums.min) };
        self.max = if first { sums.max } else { self.max.max(sums.max) };
        self.count += sums.count;
        self.sum += sums.sum;
        self.squares += sums.squares;
    }

    /// `None` if a number, or the sum of the squares in f32, is not finite.
    fn fast(chunk: &[f32]) -> Option<Self> {
        let mut found = Moments::default();
        moments(chunk, &mut found);
        let Moments { min, max, sum, squares } = found;
        (!chunk.is_empty() && squares.is_finite()).then_some(Sums { count: chunk.len() as u64, min, max, sum, squares })
    }

    /// The same over the finite numbers alone; `None` if there are none.
    fn finite(chunk: &[f32]) -> Option<Self> {
        let finite = || chunk.iter().copied().filter(|x| x.is_finite());
        let wide = || finite().map(f64::from);
        Some(Sums {
            count: finite().count() as u64,
            min: finite().reduce(f32::min)?,
            max: finite().reduce(f32::max)?,
            sum: wide().sum(),
            squares: wide().map(|x| x * x).sum(),
        })
    }
}

#[cfg(test)]
mod tests;
