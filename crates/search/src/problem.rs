//! A budget and sensitivities as numbers: which width for each weight, at what cost, with what damage.

use crate::{Budget, LayerDamage, SearchError, Sensitivity};
use std::collections::BTreeMap;

/// One weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Widths that it may have, ascending.
    pub widths: Vec<u8>,
    /// What each costs.
    pub cost: Vec<u64>,
    /// What each damages.
    pub damage: Vec<f64>,
}

/// Choose one width for each item so that the costs add up to no more than the limit and the damages to as little as possible.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// The weights.
    pub items: Vec<Item>,
    /// The most that all of them may cost.
    pub limit: u64,
}

impl Problem {
    /// The choice of widths of `sensitivity` under `budget`. First and last layers keep `edge_bits` if given. `rest` is what the network
    /// takes but for the weights of `sensitivity` (`cost::packed` less their bytes), in bytes.
    ///
    /// # Errors
    /// [`SearchError::Infeasible`] if nothing fits.
    pub fn new(
        sensitivity: &Sensitivity,
        budget: Budget,
        edge_bits: Option<u8>,
        rest: u64,
    ) -> Result<Self, SearchError> {
        let item = |layer: &LayerDamage| {
            let pinned = edge_bits.filter(|_| layer.edge);
            let (widths, damage) = match pinned {
                Some(bits) => (vec![bits], vec![layer.damage_at(&sensitivity.widths, bits)]),
                None => (sensitivity.widths.clone(), layer.damage.clone()),
            };
            let cost = |&bits: &u8| match budget {
                Budget::Size(_) => layer.bytes_at(bits),
                Budget::AvgBits(_) if pinned.is_some() => 0,
                Budget::AvgBits(_) => layer.elements * u64::from(bits),
                Budget::Bops(_) => layer.macs * u64::from(bits) * u64::from(layer.input_bits),
            };
            Item { cost: widths.iter().map(cost).collect(), widths, damage }
        };
        let chosen = |layer: &&LayerDamage| edge_bits.is_none() || !layer.edge;
        let elements: u64 = sensitivity.layers.iter().filter(chosen).map(|layer| layer.elements).sum();
        let items: Vec<Item> = sensitivity.layers.iter().map(item).collect();
        let least: u64 = items.iter().filter_map(|item| item.cost.iter().min()).sum();
        let (limit, least_budget) = match budget {
            Budget::Size(bytes) => (bytes.checked_sub(rest), Budget::Size(least + rest)),
            Budget::AvgBits(bits) => {
                (Some((bits * elements as f64) as u64), Budget::AvgBits(least as f64 / elements.max(1) as f64))
            }
            Budget::Bops(bops) => (Some(bops as u64), Budget::Bops(least as f64)),
        };
        match limit {
            Some(limit) if least <= limit => Ok(Problem { items, limit }),
            _ => Err(SearchError::Infeasible { budget, least: least_budget }),
        }
    }

    /// What `choices` cost together.
    pub fn cost(&self, choices: &[usize]) -> u64 {
        self.items.iter().zip(choices).map(|(item, &c)| item.cost[c]).sum()
    }

    /// What `choices` damage together, if damages add up.
    pub fn damage(&self, choices: &[usize]) -> f64 {
        self.items.iter().zip(choices).map(|(item, &c)| item.damage[c]).sum()
    }

    /// The widest width of every item.
    pub fn widest(&self) -> Vec<usize> {
        self.items.iter().map(|item| item.widths.len() - 1).collect()
    }

    /// `choices` as bits by weight name; `sensitivity` is what the problem was made of.
    pub fn bits(&self, choices: &[usize], sensitivity: &Sensitivity) -> BTreeMap<String, u8> {
        let named = sensitivity.layers.iter().zip(&self.items).zip(choices);
        named.map(|((layer, item), &c)| (layer.weight.clone(), item.widths[c])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Level, Metric};

    fn sensitivity() -> Sensitivity {
        let layer = |name: &str, rows: u64, edge: bool| LayerDamage {
            layer: name.into(),
            weight: format!("{name}.w"),
            edge,
            elements: 10 * rows,
            rows,
            scales: rows,
            macs: 1000 * rows,
            input_bits: 8,
            damage: vec![1.0, 0.1, 0.001],
        };
        Sensitivity {
            metric: Metric::Snr,
            level: Level::Network,
            samples: 1,
            widths: vec![2, 4, 8],
            layers: vec![layer("first", 3, true), layer("a", 8, false), layer("b", 4, false)],
        }
    }

    #[test]
    fn each_budget_counts_what_it_says() {
        let table = sensitivity();
        // Rows of ten weights: 3 bytes at 2 bits, 5 at 4, 10 at 8, and 4 for the scale.
        let size = Problem::new(&table, Budget::Size(200), Some(8), 50).unwrap();
        assert_eq!(size.limit, 150);
        assert_eq!(size.items[0], Item { widths: vec![8], cost: vec![3 * 14], damage: vec![0.001] });
        assert_eq!(size.items[1].cost, [8 * 7, 8 * 9, 8 * 14]);
        let bits = Problem::new(&table, Budget::AvgBits(4.0), Some(8), 50).unwrap();
        assert_eq!((bits.limit, bits.cost(&[0, 1, 1]), bits.cost(&[0, 2, 0])), (480, 480, 640 + 80));
        let all = Problem::new(&table, Budget::AvgBits(4.0), None, 50).unwrap();
        assert_eq!((all.limit, all.cost(&[1, 1, 1])), (600, 600));
        let bops = Problem::new(&table, Budget::Bops(1e6), Some(8), 50).unwrap();
        assert_eq!(bops.cost(&[0, 0, 1]), 8 * (3000 * 8 + 8000 * 2 + 4000 * 4));
        let named = bops.bits(&[0, 0, 1], &table);
        assert_eq!(named, BTreeMap::from([("first.w".into(), 8), ("a.w".into(), 2), ("b.w".into(), 4)]));
    }

    #[test]
    fn the_least_that_is_needed_is_told() {
        let error = Problem::new(&sensitivity(), Budget::Size(100), Some(8), 50).unwrap_err();
        assert!(error.to_string().ends_with("size=176B"), "{error}");
        for budget in [Budget::Size(10), Budget::AvgBits(1.9), Budget::Bops(1e3)] {
            assert!(Problem::new(&sensitivity(), budget, None, 50).is_err());
        }
        assert!(Problem::new(&sensitivity(), Budget::Size(176), Some(8), 50).is_ok());
    }
}
