//! Powell's method: a minimum of a function of several numbers, without gradients.
//!
//! What enters: a function and a place. What leaves: a place where it is lower. One line after the other is searched; the way that a sweep
//! went as a whole becomes a line in place of the one that brought most, if that is likely to help (Powell 1964; the test is that of
//! Press et al., "Numerical Recipes", §10.7).

/// How it searches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Powell {
    /// Sweeps over all lines.
    pub sweeps: usize,
    /// Distance at which a line is probed on both sides, along its largest component; halved when a sweep goes less far.
    pub step: f64,
}

impl Powell {
    /// Moves `place`, where `f` is `value`, to a lower one, and returns the value there. `f` is called three times for each line; once
    /// `is_over`, no further line is searched.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn minimise<E>(
        &self,
        f: &mut dyn FnMut(&[f64]) -> Result<f64, E>,
        place: &mut Vec<f64>,
        mut value: f64,
        is_over: &dyn Fn() -> bool,
    ) -> Result<f64, E> {
        let count = place.len();
        let unit = |axis: usize| (0..count).map(|i| f64::from(i == axis)).collect();
        let mut lines: Vec<Vec<f64>> = (0..count).map(unit).collect();
        let mut step = self.step;
        for _ in 0..self.sweeps {
            let (start, before) = (place.clone(), value);
            let mut most = (0.0, 0);
            for (i, line) in lines.iter().enumerate() {
                if is_over() {
                    return Ok(value);
                }
                let lower = search(f, place, value, line, step)?;
                if value - lower > most.0 {
                    most = (value - lower, i);
                }
                value = lower;
            }
            if is_over() {
                return Ok(value);
            }
            let way: Vec<f64> = place.iter().zip(&start).map(|(now, then)| now - then).collect();
            let length = way.iter().fold(0.0, |most: f64, part| most.max(part.abs()));
            if length < step {
                step *= 0.5;
            }
            if count < 2 || length == 0.0 {
                continue;
            }
            let farther = f(&along(place, &way, 1.0))?;
            let bend = 2.0 * (before - 2.0 * value + farther) * (before - value - most.0).powi(2);
            if farther < before && bend < most.0 * (before - farther).powi(2) {
                let line: Vec<f64> = way.iter().map(|part| part / length).collect();
                value = search(f, place, value, &line, step)?;
                lines.remove(most.1);
                lines.push(line);
            }
        }
        Ok(value)
    }
}

/// How far beyond its probes a parabola is believed.
const MOST_STEPS: f64 = 3.0;

/// Moves to the best of two probes, `step` to either side, and the vertex of the parabola through them.
fn search<E>(
    f: &mut dyn FnMut(&[f64]) -> Result<f64, E>,
    place: &mut Vec<f64>,
    value: f64,
    line: &[f64],
    step: f64,
) -> Result<f64, E> {
    let (behind, ahead) = (f(&along(place, line, -step))?, f(&along(place, line, step))?);
    let curvature = behind - 2.0 * value + ahead;
    let mut found = vec![(-step, behind), (step, ahead)];
    if curvature > 0.0 {
        let vertex = (0.5 * step * (behind - ahead) / curvature).clamp(-MOST_STEPS * step, MOST_STEPS * step);
        found.push((vertex, f(&along(place, line, vertex))?));
    }
    let (distance, value) = found.into_iter().fold((0.0, value), |best, one| if one.1 < best.1 { one } else { best });
    *place = along(place, line, distance);
    Ok(value)
}

fn along(place: &[f64], line: &[f64], distance: f64) -> Vec<f64> {
    place.iter().zip(line).map(|(at, part)| at + distance * part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, convert::Infallible};

    fn minimum(f: impl Fn(&[f64]) -> f64, start: &[f64], powell: Powell) -> Vec<f64> {
        let mut place = start.to_vec();
        let mut calls = |x: &[f64]| Ok::<f64, Infallible>(f(x));
        let Ok(value) = powell.minimise(&mut calls, &mut place, f(start), &|| false);
        assert_eq!(value, f(&place));
        place
    }

    /// A narrow valley across the axes, where one axis after the other gets 4 % closer in a sweep.
    #[test]
    fn a_quadratic_valley_is_left_in_a_few_sweeps() {
        let f = |x: &[f64]| 100.0 * (x[0] + x[1] - 3.0).powi(2) + (x[0] - x[1] + 1.0).powi(2) + (x[2] - x[0]).powi(2);
        let found = minimum(f, &[0.0, 0.0, 0.0], Powell { sweeps: 8, step: 1.0 });
        for (x, expected) in found.iter().zip([1.0, 2.0, 1.0]) {
            assert!((x - expected).abs() < 1e-6, "{found:?}");
        }
    }

    #[test]
    fn a_valley_that_is_no_parabola_is_left_too() {
        let f = |x: &[f64]| (x[0] + x[1]).exp() - 2.0 * (x[0] + x[1]) + (x[0] - x[1]).cosh();
        let found = minimum(f, &[-1.2, 1.0], Powell { sweeps: 20, step: 0.5 });
        let expected = 0.5 * 2f64.ln();
        assert!(found.iter().all(|x| (x - expected).abs() < 1e-4), "{found:?}");
    }

    #[test]
    fn what_is_over_moves_no_further() {
        let calls = Cell::new(0);
        let mut f = |x: &[f64]| {
            calls.set(calls.get() + 1);
            Ok::<f64, Infallible>(x.iter().map(|x| x * x).sum())
        };
        let mut place = vec![1.0; 3];
        let Ok(value) = Powell { sweeps: 9, step: 0.5 }.minimise(&mut f, &mut place, 3.0, &|| calls.get() >= 3);
        assert_eq!((place, value, calls.get()), (vec![0.0, 1.0, 1.0], 2.0, 3));
        calls.set(0);
        let mut place = vec![1.0; 3];
        let Ok(_) = Powell { sweeps: 9, step: 0.5 }.minimise(&mut f, &mut place, 3.0, &|| calls.get() >= 9);
        assert_eq!(calls.get(), 9, "nor along the way of the sweep");
    }

    #[test]
    fn a_place_without_a_better_one_is_kept() {
        assert_eq!(minimum(|x| x[0].abs() + x[1].abs(), &[0.0, 0.0], Powell { sweeps: 3, step: 0.5 }), [0.0, 0.0]);
        assert!(minimum(|_| 1.0, &[], Powell { sweeps: 3, step: 0.5 }).is_empty());
    }
}
