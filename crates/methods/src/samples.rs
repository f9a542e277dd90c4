//! Samples as methods see them: prepared inputs of the network, by number.

use fewbits_graph::Tensor;
use std::error::Error;

/// The inputs of the network, run by run. A run holds as many samples as the network's batch size if that is fixed, else one.
pub trait Samples: Sync {
    /// How many runs there are.
    fn count(&self) -> usize;

    /// The inputs of run `i`, in the order of the graph's inputs.
    ///
    /// # Errors
    /// Whatever keeps a sample from being read.
    fn inputs(&self, i: usize) -> Result<Vec<Tensor>, Box<dyn Error + Send + Sync>>;
}

impl Samples for Vec<Vec<Tensor>> {
    fn count(&self) -> usize {
        Vec::len(self)
    }

    fn inputs(&self, i: usize) -> Result<Vec<Tensor>, Box<dyn Error + Send + Sync>> {
        Ok(self[i].clone())
    }
}

/// Of how many runs methods hold one back to judge by.
pub(crate) const HELD_BACK: usize = 8;

/// Whether run `i` is held back.
pub(crate) fn is_held(i: usize) -> bool {
    i % HELD_BACK == HELD_BACK - 1
}

/// Samples and their mirror images: left and right change places in every input of four dimensions. What is learned from a few hundred
/// images does better on others if it is learned from these too. A run and its mirror image are both held back, or neither; so the last few
/// of a number that is no multiple of 8 have none, unless there are fewer than 8 in all.
pub struct Mirrored<'a>(pub &'a dyn Samples);

impl Mirrored<'_> {
    /// How many runs stand side by side before their mirror images.
    fn together(&self) -> usize {
        self.0.count().clamp(1, HELD_BACK)
    }

    /// The run that run `i` is made of, and whether it is mirrored: eight, the same mirrored, the next eight.
    fn origin(&self, i: usize) -> (usize, bool) {
        let together = self.together();
        let start = i / (2 * together) * together;
        let place = i - 2 * start;
        (start + place % together, place >= together)
    }
}

impl Samples for Mirrored<'_> {
    fn count(&self) -> usize {
        let (count, together) = (self.0.count(), self.together());
        count + count / together * together
    }

    fn inputs(&self, i: usize) -> Result<Vec<Tensor>, Box<dyn Error + Send + Sync>> {
        let (run, mirrored) = self.origin(i);
        let mut inputs = self.0.inputs(run)?;
        if mirrored {
            inputs.iter_mut().for_each(|tensor| *tensor = mirror(tensor));
        }
        Ok(inputs)
    }
}

/// `[N, C, H, W]` with left and right exchanged; anything else as it is.
pub(crate) fn mirror(tensor: &Tensor) -> Tensor {
    match (&tensor.dims[..], tensor.as_f32()) {
        (&[.., width], Some(values)) if tensor.dims.len() == 4 => {
            let rows = values.chunks(width.max(1));
            Tensor::f32(&tensor.dims, rows.flat_map(|row| row.iter().rev().copied()).collect())
        }
        _ => tensor.clone(),
    }
}

/// Which samples a loss is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Those that decide.
    Fit,
    /// Others, which have a say whether to keep it.
    Held,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_there_twice_and_held_back_twice() {
        for count in [1, 5, 8, 11, 24] {
            let image = |i: usize| vec![Tensor::f32(&[1, 1, 1, 2], vec![i as f32, -1.0])];
            let samples: Vec<_> = (0..count).map(image).collect();
            let mirrored = Mirrored(&samples);
            let of = |i: usize| mirrored.inputs(i).unwrap()[0].as_f32().unwrap().to_vec();
            let mut all: Vec<Vec<f32>> = (0..mirrored.count()).map(of).collect();
            let agrees = (0..mirrored.count()).all(|i| is_held(i) == is_held(mirrored.origin(i).0));
            assert!(agrees || count < HELD_BACK, "{count}");
            all.sort_by(|a, b| a.partial_cmp(b).unwrap());
            let twice = if count < HELD_BACK { count } else { count / HELD_BACK * HELD_BACK };
            let mut expected: Vec<Vec<f32>> = (0..count).map(|i| vec![i as f32, -1.0]).collect();
            expected.extend((0..twice).map(|i| vec![-1.0, i as f32]));
            expected.sort_by(|a, b| a.partial_cmp(b).unwrap());
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn rows_are_turned_round() {
        let image = Tensor::f32(&[1, 2, 2, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        assert_eq!(mirror(&image), Tensor::f32(&[1, 2, 2, 2], vec![2.0, 1.0, 4.0, 3.0, 6.0, 5.0, 8.0, 7.0]));
        let vector = Tensor::f32(&[1, 2], vec![1.0, 2.0]);
        assert_eq!(mirror(&vector), vector);
    }
}
