//! From numbers to places along an axis, with round numbers to label it.

/// An axis that a few numbers lie on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    from: f64,
    to: f64,
    logarithmic: bool,
}

/// Share of the axis that is left free at each end.
const MARGIN: f64 = 0.05;
/// Numbers this far apart are drawn by their logarithms where that is allowed.
const WIDE: f64 = 8.0;

impl Axis {
    /// An axis for the finite ones of `values`; logarithmic if `positive` numbers are far apart.
    pub(super) fn of(values: impl Iterator<Item = f64>, positive: bool) -> Axis {
        let finite = values.filter(|x| x.is_finite() && (!positive || *x > 0.0));
        let (least, most) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        let logarithmic = positive && most / least > WIDE;
        let (from, to) = match logarithmic {
            true => (least.ln(), most.ln()),
            false if least <= most => (least, most),
            false => (0.0, 1.0),
        };
        // Numbers that are all alike stand in the middle.
        let margin = if to > from { MARGIN * (to - from) } else { 0.5 * from.abs().max(1e-9) };
        Axis { from: from - margin, to: to + margin, logarithmic }
    }

    /// How far along the axis `x` is, 0 to 1.
    pub(super) fn share(self, x: f64) -> Option<f64> {
        let placed = if self.logarithmic { x.ln() } else { x };
        let share = (placed - self.from) / (self.to - self.from);
        share.is_finite().then(|| share.clamp(0.0, 1.0))
    }

    /// About six round numbers on the axis, times `unit`.
    pub(super) fn ticks(self, unit: f64) -> Vec<f64> {
        let (from, to) = (self.from, self.to);
        if self.logarithmic {
            let decades =
                (from / std::f64::consts::LN_10).floor() as i32..=(to / std::f64::consts::LN_10).ceil() as i32;
            let steps: &[f64] = if to - from > 7.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
            let all = decades.flat_map(|decade| steps.iter().map(move |step| step * 10f64.powi(decade)));
            return all.filter(|x| (from..=to).contains(&x.ln())).collect();
        }
        let rough = (to - from) / unit / 6.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|s| s * decade).into_iter().find(|s| *s >= rough).unwrap_or(rough);
        let numbers = (from / unit / step).ceil() as i64..=(to / unit / step).floor() as i64;
        numbers.map(|i| i as f64 * step * unit).collect()
    }
}

/// A tick as it is written: as many decimals as it takes.
pub(super) fn label(x: f64) -> String {
    let text = match x.abs() {
        0.0 => "0".into(),
        1e5.. => format!("{x:.0e}"),
        1e-3.. => format!("{}", (x * 1e6).round() / 1e6),
        _ => format!("{x:.0e}"),
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_on_the_axis() {
        let labels = |axis: Axis, unit: f64| axis.ticks(unit).into_iter().map(|x| label(x / unit)).collect::<Vec<_>>();
        assert_eq!(labels(Axis::of([0.0, 1.0].into_iter(), false), 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        assert_eq!(labels(Axis::of([20480.0, 40960.0].into_iter(), true), 1024.0), ["20", "25", "30", "35", "40"]);
        assert_eq!(
            labels(Axis::of([0.002, 0.2].into_iter(), true), 1.0),
            ["0.002", "0.005", "0.01", "0.02", "0.05", "0.1", "0.2"]
        );
        assert_eq!(labels(Axis::of([1e-6, 1.0].into_iter(), true), 1.0).len(), 7);
        assert_eq!(labels(Axis::of([-3.0, -3.0].into_iter(), false), 1.0)[0], "−4.5");
    }

    #[test]
    fn numbers_have_a_place_and_others_have_none() {
        let axis = Axis::of([1.0, 100.0, f64::NAN, -1.0].into_iter(), true);
        assert_eq!(axis.share(10.0), Some(0.5));
        assert_eq!((axis.share(f64::NAN), axis.share(-1.0)), (None, None));
        assert!(Axis::of(std::iter::empty(), true).share(0.5).is_some());
        assert!(Axis::of([0.0, 0.0].into_iter(), false).share(0.0).is_some());
    }
}
