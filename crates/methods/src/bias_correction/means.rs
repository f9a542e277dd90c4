//! Means per channel, real and rounded.

/// Sums per channel of a tensor whose channels are the fastest axis, before and after rounding to a grid.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChannelMeans {
    count: f64,
    real: Vec<f64>,
    rounded: Vec<f64>,
}

/// `E[x]` and `E[Q(x)]` for each channel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InputMeans {
    /// `E[x]`.
    pub real: Vec<f64>,
    /// `E[Q(x)]`.
    pub rounded: Vec<f64>,
}

/// Places summed in f32 before the sums move on to f64.
const BLOCK: usize = 64;

impl ChannelMeans {
    /// Sums of `values`, places of `channels` numbers each, and of the same numbers `rounded`.
    pub fn of(channels: usize, values: &[f32], rounded: &[f32]) -> Self {
        let channels = channels.max(1);
        ChannelMeans {
            count: (values.len() / channels) as f64,
            real: sums(channels, values),
            rounded: sums(channels, rounded),
        }
    }

    /// Adds the sums of another part of the data.
    pub fn add(&mut self, other: &ChannelMeans) {
        if self.real.is_empty() {
            *self = other.clone();
            return;
        }
        self.count += other.count;
        self.real.iter_mut().zip(&other.real).for_each(|(a, b)| *a += b);
        self.rounded.iter_mut().zip(&other.rounded).for_each(|(a, b)| *a += b);
    }

    /// The means.
    pub fn means(&self) -> InputMeans {
        let mean = |sums: &[f64]| sums.iter().map(|s| s / self.count.max(1.0)).collect();
        InputMeans { real: mean(&self.real), rounded: mean(&self.rounded) }
    }
}

fn sums(channels: usize, values: &[f32]) -> Vec<f64> {
    let mut total = vec![0f64; channels];
    let mut partial = vec![0f32; channels];
    for block in values.chunks(BLOCK * channels) {
        partial.fill(0.0);
        for place in block.chunks_exact(channels) {
            partial.iter_mut().zip(place).for_each(|(sum, x)| *sum += x);
        }
        total.iter_mut().zip(&partial).for_each(|(sum, &p)| *sum += f64::from(p));
    }
    total
}
