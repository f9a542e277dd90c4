//! How far two signals are apart.

use fewbits_methods::classes;
use fewbits_search::similarity::divergence;

/// Two signals compared: signal-to-quantization-noise ratio, `10·log10(Σ x² / Σ (x − y)²)`, cosine, largest difference; sums in f64.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sqnr {
    signal: f64,
    other: f64,
    product: f64,
    noise: f64,
    largest: f64,
}

/// What two identical signals get, and the most that is ever reported.
const CEILING_DB: f64 = 200.0;

impl Sqnr {
    /// The signal `x` and its approximation `y`.
    pub fn of(x: &[f32], y: &[f32]) -> Self {
        let mut sums = Sqnr::default();
        x.iter().zip(y).for_each(|(x, y)| sums.push(*x, *y));
        sums
    }

    /// Adds an element.
    pub fn push(&mut self, x: f32, y: f32) {
        let (x, y) = (f64::from(x), f64::from(y));
        // Equal infinities have no distance.
        let apart = if x == y { 0.0 } else { x - y };
        self.signal += x * x;
        self.other += y * y;
        self.product += x * y;
        self.noise += apart * apart;
        self.largest = if apart.is_nan() { f64::INFINITY } else { self.largest.max(apart.abs()) };
    }

    /// Adds more elements of the same signals.
    pub fn add(&mut self, more: &Sqnr) {
        self.signal += more.signal;
        self.other += more.other;
        self.product += more.product;
        self.noise += more.noise;
        self.largest = self.largest.max(more.largest);
    }

    /// The larger of both signals' powers.
    pub fn power(&self) -> f64 {
        self.signal.max(self.other)
    }

    /// The positive factor on `x` that brings it closest to `y`, `Σxy / Σx²`, if there is one and both powers are above `least`.
    pub fn gain(&self, least: f64) -> Option<f64> {
        let gain = self.product / self.signal;
        (self.signal > least && self.other > least && gain > 0.0 && gain.is_finite()).then_some(gain)
    }

    /// The same with `x` multiplied by `factor`, but for the largest difference, which is not known any more.
    pub fn scaled(&self, factor: f64) -> Self {
        if factor == 1.0 {
            return *self;
        }
        let (signal, product) = (self.signal * factor * factor, self.product * factor);
        let noise = signal - 2.0 * product + self.other;
        // Rounding may bring it below zero; what is not a number stays so.
        Sqnr { signal, product, noise: if noise < 0.0 { 0.0 } else { noise }, ..*self }
    }

    /// Whether no element differs.
    pub fn is_exact(&self) -> bool {
        self.noise == 0.0
    }

    /// SQNR in dB, at most 200; −200 if the approximation is not finite.
    pub fn db(&self) -> f64 {
        decibels(self.signal, self.noise)
    }

    /// Noise power over signal power.
    pub fn relative_noise(&self) -> f64 {
        10f64.powf(-0.1 * self.db())
    }

    /// Cosine of the angle between the signals; 1 if both are zero.
    pub fn cosine(&self) -> f64 {
        let norm = self.signal.sqrt() * self.other.sqrt();
        if norm > 0.0 { self.product / norm } else { f64::from(self.signal == self.other) }
    }

    /// Largest difference of two elements; infinite if one of them is NaN.
    pub fn max_abs_diff(&self) -> f64 {
        self.largest
    }
}

impl std::iter::Sum for Sqnr {
    fn sum<I: Iterator<Item = Sqnr>>(parts: I) -> Sqnr {
        let mut total = Sqnr::default();
        parts.for_each(|part| total.add(&part));
        total
    }
}

/// SQNR of an output whose channels mean different things, each channel counting the same:
/// `10·log10(1 / mean_c(noise_c / variance_c))`, so that box offsets of ±1 are not drowned by class scores of −20. Of class scores
/// ([`classes`]) only differences matter, and those of likely classes most: there the noise is the mean Kullback-Leibler
/// divergence of `softmax(x)` from `softmax(y)`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BalancedSqnr {
    channels: Vec<Channel>,
    /// Sum of divergences, and of how many samples.
    divergence: [f64; 2],
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Channel {
    count: f64,
    sum: f64,
    squares: f64,
    noise: f64,
}

impl BalancedSqnr {
    /// Adds the signal `x` of shape `dims` and its approximation `y`. Channels are axis 1 of four axes, the shorter of the last two of
    /// three (cells × values), and there is one for anything else.
    pub fn add(&mut self, dims: &[usize], x: &[f32], y: &[f32]) {
        if let Some(classes) = classes(dims) {
            let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
            for (x, y) in x.chunks_exact(classes).zip(y.chunks_exact(classes)) {
                self.divergence = [self.divergence[0] + divergence(&wide(x), &wide(y)), self.divergence[1] + 1.0];
            }
            return;
        }
        let (channels, inner) = match *dims {
            [_, c, h, w] => (c, h * w),
            [_, a, b] if a < b => (a, b),
            [_, _, b] => (b, 1),
            _ => (1, 1),
        };
        self.channels.resize(self.channels.len().max(channels), Channel::default());
        for (i, (&x, &y)) in x.iter().zip(y).enumerate() {
            let (x, y) = (f64::from(x), f64::from(y));
            let channel = &mut self.channels[i / inner.max(1) % channels.max(1)];
            channel.count += 1.0;
            channel.sum += x;
            channel.squares += x * x;
            channel.noise += (x - y) * (x - y);
        }
    }

    /// Adds what another one has seen of the same output.
    pub fn merge(&mut self, more: &BalancedSqnr) {
        self.channels.resize(self.channels.len().max(more.channels.len()), Channel::default());
        for (sum, more) in self.channels.iter_mut().zip(&more.channels) {
            sum.count += more.count;
            sum.sum += more.sum;
            sum.squares += more.squares;
            sum.noise += more.noise;
        }
        self.divergence = [0, 1].map(|i| self.divergence[i] + more.divergence[i]);
    }

    /// Sum over the channels of noise by variance, and how many channels there are. A channel that never moves does not count.
    fn shares(&self) -> (f64, f64) {
        let share = |c: &Channel| {
            let variance = c.squares - c.sum * c.sum / c.count.max(1.0);
            (variance > 1e-12 * c.squares.max(1e-30)).then(|| c.noise / variance)
        };
        if self.divergence[1] > 0.0 {
            return (self.divergence[0] / self.divergence[1], 1.0);
        }
        self.channels.iter().filter_map(share).fold((0.0, 0.0), |(sum, n), s| (sum + s, n + 1.0))
    }

    /// The figure over all channels of several outputs, in dB, at most 200; −200 if an approximation is not finite.
    pub fn db(outputs: &[BalancedSqnr]) -> f64 {
        let (sum, count) = outputs.iter().map(BalancedSqnr::shares).fold((0.0, 0.0), |(a, b), (c, d)| (a + c, b + d));
        decibels(count, sum)
    }
}

/// `10·log10(signal / noise)` within ±200: no noise is 200, noise that is not a number −200.
fn decibels(signal: f64, noise: f64) -> f64 {
    match 10.0 * (signal / noise).log10() {
        _ if noise == 0.0 => CEILING_DB,
        db if db.is_nan() => -CEILING_DB,
        db => db.clamp(-CEILING_DB, CEILING_DB),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_amplitude_is_twenty_decibels() {
        let mut sqnr = Sqnr::of(&[1.0], &[1.1]);
        sqnr.add(&Sqnr::of(&[-2.0, 4.0], &[-2.2, 4.4]));
        assert!((sqnr.db() - 20.0).abs() < 1e-4);
        assert!((sqnr.relative_noise() - 0.01).abs() < 1e-6);
        assert!((sqnr.cosine() - 1.0).abs() < 1e-12);
        assert!((sqnr.max_abs_diff() - 0.4).abs() < 1e-6);
    }

    #[test]
    fn equal_signals_reach_the_ceiling_and_nan_the_floor() {
        let equal = Sqnr::of(&[1.0, f32::INFINITY], &[1.0, f32::INFINITY]);
        assert_eq!((equal.db(), equal.max_abs_diff(), equal.is_exact()), (200.0, 0.0, true));
        let broken = Sqnr::of(&[1.0], &[f32::NAN]);
        assert_eq!((broken.db(), broken.max_abs_diff()), (-200.0, f64::INFINITY));
    }

    #[test]
    fn a_scaled_signal_is_compared_on_its_scale() {
        let sqnr = Sqnr::of(&[1.0, 2.0, -2.0], &[3.0, 6.0, -6.3]);
        let gain = sqnr.gain(0.0).unwrap();
        let (expected, noise) =
            ((3.0 + 12.0 + 12.6) / 9.0, |f: f64| (f - 3.0).powi(2) + (2.0 * f - 6.0).powi(2) + (2.0 * f - 6.3).powi(2));
        assert!((gain - expected).abs() < 1e-6);
        assert!((sqnr.scaled(gain).noise - noise(gain)).abs() < 1e-5 && noise(gain) < noise(3.0));
        assert_eq!((sqnr.gain(100.0), Sqnr::of(&[1.0], &[-1.0]).gain(0.0)), (None, None));
        assert_eq!(Sqnr::of(&[1.0, 1.0], &[2.0, f32::NAN]).scaled(2.0).db(), -200.0);
    }

    #[test]
    fn class_scores_are_compared_as_distributions() {
        let db = |x: &[f32], y: &[f32]| {
            let mut balanced = BalancedSqnr::default();
            balanced.add(&[1, x.len()], x, y);
            BalancedSqnr::db(&[balanced])
        };
        assert!(db(&[1.0, 2.0, 3.0], &[6.0, 7.0, 8.0]) > 100.0, "a constant on all scores changes nothing");
        // The softmax of (0, ln 3) is (1/4, 3/4).
        let divergence = 0.25 * (0.25f64 / 0.5).ln() + 0.75 * (0.75f64 / 0.5).ln();
        assert!((db(&[0.0, 3f32.ln()], &[0.0, 0.0]) + 10.0 * divergence.log10()).abs() < 1e-4);
        assert!((db(&[0.25, 0.75], &[0.5, 0.5]) + 10.0 * divergence.log10()).abs() < 1e-4);
    }

    #[test]
    fn old_classifiers_are_classifiers() {
        let [mut old, mut new] = [BalancedSqnr::default(), BalancedSqnr::default()];
        old.add(&[1, 3, 1, 1], &[1.0, 2.0, 3.0], &[1.5, 2.0, 2.0]);
        new.add(&[1, 3], &[1.0, 2.0, 3.0], &[1.5, 2.0, 2.0]);
        assert_eq!(old, new);
    }

    #[test]
    fn every_channel_counts_the_same() {
        // Channel 0 spans ±100 with noise 1, channel 1 spans ±1 with noise 0.1: 40 dB and 20 dB.
        let x = [100.0, -100.0, 1.0, -1.0];
        let y = [101.0, -99.0, 1.1, -0.9];
        let mut balanced = BalancedSqnr::default();
        balanced.add(&[1, 2, 1, 2], &x, &y);
        let expected = 10.0 * (2.0f64 / (1e-4 + 1e-2)).log10();
        assert!((BalancedSqnr::db(&[balanced]) - expected).abs() < 1e-4);
        let mut cells = BalancedSqnr::default();
        cells.add(&[1, 2, 1], &x[..2], &y[..2]);
        assert!((BalancedSqnr::db(&[cells]) - 40.0).abs() < 1e-4);
    }
}
