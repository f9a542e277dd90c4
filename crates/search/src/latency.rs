//! How long layers take at each width: measured elsewhere, a plain table here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Times of one image on one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatencyTable {
    /// Nanoseconds of everything that is in no row.
    pub rest: u64,
    /// By name of the layer, then by `WEIGHT BITS/INPUT BITS` such as `4/8`: nanoseconds.
    pub layers: BTreeMap<String, BTreeMap<String, u64>>,
}

impl LatencyTable {
    /// Nanoseconds of `layer` at these widths: the least of all rows that are at least as wide, since codes fit wider kernels too.
    /// So times never fall with the width.
    pub fn nanoseconds(&self, layer: &str, weight_bits: u8, input_bits: u8) -> Option<u64> {
        let wide_enough = |(widths, &time): (&String, &u64)| {
            let (weight, input) = widths.split_once('/')?;
            let (weight, input): (u8, u8) = (weight.parse().ok()?, input.parse().ok()?);
            (weight >= weight_bits && input >= input_bits).then_some(time)
        };
        let rows = self.layers.get(layer)?;
        rows.iter().filter_map(wide_enough).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_row_that_is_wide_enough_counts() {
        let rows =
            [("8/8", 80), ("4/8", 40), ("4/4", 20), ("2/8", 90)].map(|(widths, time)| (widths.to_string(), time));
        let table = LatencyTable { rest: 0, layers: BTreeMap::from([("a".to_string(), BTreeMap::from(rows))]) };
        for (weight, input, time) in
            [(8, 8, Some(80)), (5, 2, Some(80)), (4, 4, Some(20)), (3, 5, Some(40)), (2, 8, Some(40)), (9, 8, None)]
        {
            assert_eq!(table.nanoseconds("a", weight, input), time, "{weight}/{input}");
        }
        assert_eq!(table.nanoseconds("b", 4, 4), None);
    }
}
