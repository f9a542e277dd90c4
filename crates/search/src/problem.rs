//! Budgets and sensitivities as numbers: which width for each weight and each layer input, at what cost, with what damage.

use crate::{Budget, InputDamage, LatencyTable, LayerDamage, SearchError, Sensitivity};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a width is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The weight of a layer.
    Weight,
    /// A tensor that layers multiply. All of them read it at one width.
    Input,
}

/// Bits by name of the tensor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    /// Of weights.
    pub weights: BTreeMap<String, u8>,
    /// Of inputs of layers.
    pub inputs: BTreeMap<String, u8>,
}

/// A tensor whose width is chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The tensor.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Widths that it may have, ascending; one if it is given.
    pub widths: Vec<u8>,
    /// What each damages.
    pub damage: Vec<f64>,
}

/// A cost that depends on the width of one item or of two.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// The item.
    pub item: usize,
    /// The other one.
    pub other: Option<usize>,
    /// By choice of the item; with another, `[choices of item, choices of other]`.
    pub cost: Vec<u64>,
}

/// One budget.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The budget as it was asked for.
    pub budget: Budget,
    /// The most that the terms may add up to.
    pub most: u64,
    /// Units of the terms in one unit of the budget.
    pub unit: f64,
    /// What is spent beside the terms.
    pub rest: u64,
    /// What is spent.
    pub terms: Vec<Term>,
}

impl Limit {
    fn new(budget: Budget, unit: f64, rest: u64, terms: Vec<Term>) -> Self {
        // 4.35 bits of 100 weights are 435, not 434.99….
        let most = ((budget.amount() * unit * (1.0 + 1e-12)) as u64).saturating_sub(rest);
        Limit { budget, most, unit, rest, terms }
    }

    /// The budget that terms of this cost just keep.
    pub fn stated(&self, cost: u64) -> Budget {
        self.budget.with_amount((cost + self.rest) as f64 / self.unit)
    }
}

/// Choose one width for each item so that every limit is kept and the damages add up to as little as possible.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// What is chosen, in graph order: the input of a layer behind its weight, as the layers come.
    pub items: Vec<Item>,
    /// The budgets.
    pub limits: Vec<Limit>,
}

/// What is given beside sensitivities and budgets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Given<'a> {
    /// Bits that first and last layers keep, weights and inputs.
    pub edge_bits: Option<u8>,
    /// Bytes of the network but for the weights of the sensitivities (`cost::packed` less theirs).
    pub rest: u64,
    /// Times of layers, for a latency budget.
    pub latency: Option<&'a LatencyTable>,
}

impl Problem {
    /// The choice of widths of `sensitivity` under all of `budgets`.
    ///
    /// # Errors
    /// [`SearchError::NoLatency`] if a budget is of time and there is no table, or
    /// the table lacks a layer.
    pub fn new(sensitivity: &Sensitivity, budgets: &[Budget], given: Given<'_>) -> Result<Self, SearchError> {
        let mut items = vec![];
        let mut places = vec![];
        let mut input_places: BTreeMap<&str, usize> = BTreeMap::new();
        for layer in &sensitivity.layers {
            places.push(items.len());
            items.push(weight_item(sensitivity, layer, given.edge_bits));
            let input = sensitivity.inputs.iter().find(|input| input.tensor == layer.input);
            if let Some(input) = input.filter(|input| !input_places.contains_key(input.tensor.as_str())) {
                input_places.insert(&input.tensor, items.len());
                items.push(input_item(sensitivity, input, given.edge_bits));
            }
        }
        let scene = Scene { sensitivity, items: &items, places: &places, input_places: &input_places, given };
        let limits: Vec<Limit> = budgets.iter().map(|&budget| scene.limit(budget)).collect::<Result<_, _>>()?;
        Ok(Problem { items, limits })
    }

    /// Whether anything fits.
    ///
    /// # Errors
    /// [`SearchError::Infeasible`] for the first budget that even the narrowest widths break.
    pub fn check(&self) -> Result<(), SearchError> {
        let least = vec![0; self.items.len()];
        for (i, limit) in self.limits.iter().enumerate() {
            let cost = self.cost(i, &least);
            if cost > limit.most {
                return Err(SearchError::Infeasible { budget: limit.budget, least: limit.stated(cost) });
            }
        }
        Ok(())
    }

    /// What `choices` cost together, of the budget number `limit`.
    pub fn cost(&self, limit: usize, choices: &[usize]) -> u64 {
        let of = |term: &Term| match term.other {
            None => term.cost[choices[term.item]],
            Some(other) => term.cost[choices[term.item] * self.items[other].widths.len() + choices[other]],
        };
        self.limits[limit].terms.iter().map(of).sum()
    }

    /// Whether `choices` keep every budget.
    pub fn fits(&self, choices: &[usize]) -> bool {
        (0..self.limits.len()).all(|limit| self.cost(limit, choices) <= self.limits[limit].most)
    }

    /// By how much `choices` exceed the budgets, as shares of them, added up. 0 if all are kept.
    pub fn excess(&self, choices: &[usize]) -> f64 {
        let over = |limit: usize| {
            let most = self.limits[limit].most;
            self.cost(limit, choices).saturating_sub(most) as f64 / most.max(1) as f64
        };
        (0..self.limits.len()).map(over).sum()
    }

    /// The one budget as costs by item and choice and the most that they may add up to, if there is one budget only and no two items
    /// share a term.
    pub fn separable(&self) -> Option<(Vec<Vec<u64>>, u64)> {
        let [limit] = &self.limits[..] else { return None };
        let mut costs: Vec<Vec<u64>> = self.items.iter().map(|item| vec![0; item.widths.len()]).collect();
        for term in &limit.terms {
            if term.other.is_some() {
                return None;
            }
            costs[term.item].iter_mut().zip(&term.cost).for_each(|(sum, cost)| *sum += cost);
        }
        Some((costs, limit.most))
    }

    /// What `choices` damage together, if damages add up.
    pub fn damage(&self, choices: &[usize]) -> f64 {
        self.items.iter().zip(choices).map(|(item, &c)| item.damage[c]).sum()
    }

    /// The widest width of every item.
    pub fn widest(&self) -> Vec<usize> {
        self.items.iter().map(|item| item.widths.len() - 1).collect()
    }

    /// `bits` for every item that may have them; the nearest width below for the others, or their only one.
    pub fn uniform(&self, bits: u8) -> Vec<usize> {
        let choice = |item: &Item| item.widths.iter().rposition(|&width| width <= bits).unwrap_or(0);
        self.items.iter().map(choice).collect()
    }

    /// `choices` as bits by name of the tensor.
    pub fn bits(&self, choices: &[usize]) -> Bits {
        let of_kind = |kind: Kind| {
            let named = self.items.iter().zip(choices).filter(|(item, _)| item.kind == kind);
            named.map(|(item, &c)| (item.name.clone(), item.widths[c])).collect()
        };
        Bits { weights: of_kind(Kind::Weight), inputs: of_kind(Kind::Input) }
    }
}

fn weight_item(sensitivity: &Sensitivity, layer: &LayerDamage, edge_bits: Option<u8>) -> Item {
    let (widths, damage) = match edge_bits.filter(|_| layer.edge) {
        Some(bits) => (vec![bits], vec![layer.damage_at(&sensitivity.widths, bits)]),
        None => (sensitivity.widths.clone(), layer.damage.clone()),
    };
    Item { name: layer.weight.clone(), kind: Kind::Weight, widths, damage }
}

fn input_item(sensitivity: &Sensitivity, input: &InputDamage, edge_bits: Option<u8>) -> Item {
    let (widths, damage) = match edge_bits.filter(|_| input.edge) {
        Some(bits) => (vec![bits], vec![0.0]),
        None => (sensitivity.input_widths.clone(), input.damage.clone()),
    };
    Item { name: input.tensor.clone(), kind: Kind::Input, widths, damage }
}

/// What limits are made of.
struct Scene<'a> {
    sensitivity: &'a Sensitivity,
    items: &'a [Item],
    /// The weight of each layer among the items.
    places: &'a [usize],
    /// Inputs among the items.
    input_places: &'a BTreeMap<&'a str, usize>,
    given: Given<'a>,
}

impl Scene<'_> {
    fn limit(&self, budget: Budget) -> Result<Limit, SearchError> {
        let layers = || self.sensitivity.layers.iter().zip(self.places);
        let alone = |cost: &dyn Fn(&LayerDamage, u8) -> u64| -> Vec<Term> {
            let term = |(layer, &item): (&LayerDamage, &usize)| {
                let cost = self.items[item].widths.iter().map(|&bits| cost(layer, bits)).collect();
                Term { item, other: None, cost }
            };
            layers().map(term).collect()
        };
        Ok(match budget {
            Budget::Size(_) => Limit::new(budget, 1.0, self.given.rest, alone(&LayerDamage::bytes_at)),
            Budget::AvgBits(_) => {
                let counted = |layer: &LayerDamage| if self.counts(layer) { layer.elements } else { 0 };
                let terms = alone(&|layer, bits| counted(layer) * u64::from(bits));
                Limit::new(budget, self.elements() as f64, 0, terms)
            }
            Budget::Bops(_) => {
                let term = |(layer, &item): (&LayerDamage, &usize)| {
                    self.term(layer, item, |weight, input| Ok(layer.macs * u64::from(weight) * u64::from(input)))
                };
                Limit::new(budget, 1.0, 0, layers().map(term).collect::<Result<_, _>>()?)
            }
            Budget::Latency(_) => {
                let table = self.given.latency.ok_or(SearchError::NoLatency { layer: None })?;
                let term = |(layer, &item): (&LayerDamage, &usize)| {
                    self.term(layer, item, |weight, input| {
                        let no_row = || SearchError::NoLatency { layer: Some(layer.layer.clone()) };
                        table.nanoseconds(&layer.layer, weight, input).ok_or_else(no_row)
                    })
                };
                Limit::new(budget, 1e9, table.rest, layers().map(term).collect::<Result<_, _>>()?)
            }
        })
    }

    /// A cost that depends on the widths of a layer's weight and its input.
    fn term(
        &self,
        layer: &LayerDamage,
        item: usize,
        cost: impl Fn(u8, u8) -> Result<u64, SearchError>,
    ) -> Result<Term, SearchError> {
        let other = self.input_places.get(layer.input.as_str()).copied();
        let inputs = other.map_or(vec![layer.input_bits], |other| self.items[other].widths.clone());
        let pairs = self.items[item].widths.iter().flat_map(|&weight| inputs.iter().map(move |&input| (weight, input)));
        let cost = pairs.map(|(weight, input)| cost(weight, input)).collect::<Result<_, _>>()?;
        Ok(Term { item, other, cost })
    }

    /// Whether the bits of the weight of `layer` are chosen, so that they count for the mean.
    fn counts(&self, layer: &LayerDamage) -> bool {
        self.given.edge_bits.is_none() || !layer.edge
    }

    fn elements(&self) -> u64 {
        self.sensitivity
            .layers
            .iter()
            .filter(|layer| self.counts(layer))
            .map(|layer| layer.elements)
            .sum::<u64>()
            .max(1)
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
            input: if edge { "image" } else { "x" }.into(),
            edge,
            elements: 10 * rows,
            rows,
            scales: rows,
            macs: 1000 * rows,
            input_bits: 8,
            damage: vec![1.0, 0.1, 0.001],
        };
        Sensitivity {
            metric: Some(Metric::Snr),
            level: Level::Network,
            widths: vec![2, 4, 8],
            layers: vec![layer("first", 3, true), layer("a", 8, false), layer("b", 4, false)],
            input_widths: vec![],
            inputs: vec![],
        }
    }

    fn problem(budget: Budget, edge_bits: Option<u8>) -> Result<Problem, SearchError> {
        Problem::new(&sensitivity(), &[budget], Given { edge_bits, rest: 50, latency: None })
    }

    #[test]
    fn each_budget_counts_what_it_says() {
        // Rows of ten weights: 3 bytes at 2 bits, 5 at 4, 10 at 8, and 4 for the scale.
        let size = problem(Budget::Size(200), Some(8)).unwrap();
        let (costs, most) = size.separable().unwrap();
        assert_eq!((most, &size.items[0].widths, &costs[0]), (150, &vec![8], &vec![3 * 14]));
        assert_eq!(costs[1], [8 * 7, 8 * 9, 8 * 14]);
        let bits = problem(Budget::AvgBits(4.0), Some(8)).unwrap();
        assert_eq!((bits.limits[0].most, bits.cost(0, &[0, 1, 1]), bits.cost(0, &[0, 2, 0])), (480, 480, 640 + 80));
        let all = problem(Budget::AvgBits(4.0), None).unwrap();
        assert_eq!((all.limits[0].most, all.cost(0, &[1, 1, 1])), (600, 600));
        let bops = problem(Budget::Bops(1e6), Some(8)).unwrap();
        assert_eq!(bops.cost(0, &[0, 0, 1]), 8 * (3000 * 8 + 8000 * 2 + 4000 * 4));
        let weights = BTreeMap::from([("first.w".into(), 8), ("a.w".into(), 2), ("b.w".into(), 4)]);
        assert_eq!(bops.bits(&[0, 0, 1]), Bits { weights, inputs: BTreeMap::new() });
    }

    #[test]
    fn layers_that_read_one_input_share_its_width() {
        let input = InputDamage { tensor: "x".into(), edge: false, damage: vec![0.5, 0.0] };
        let table = Sensitivity { input_widths: vec![4, 8], inputs: vec![input], ..sensitivity() };
        let budgets = [Budget::Bops(1e6), Budget::AvgBits(4.0)];
        let problem = Problem::new(&table, &budgets, Given { edge_bits: Some(8), ..Given::default() }).unwrap();
        let kinds: Vec<Kind> = problem.items.iter().map(|item| item.kind).collect();
        assert_eq!(kinds, [Kind::Weight, Kind::Weight, Kind::Input, Kind::Weight]);
        assert_eq!(problem.cost(0, &[0, 1, 0, 2]), 3000 * 64 + 8000 * 4 * 4 + 4000 * 8 * 4);
        assert_eq!(problem.bits(&[0, 1, 0, 2]).inputs, BTreeMap::from([("x".into(), 4)]));
        assert!(problem.separable().is_none());
        assert!(problem.fits(&[0, 1, 0, 0]) && !problem.fits(&[0, 2, 1, 2]));
        assert_eq!(problem.excess(&[0, 1, 0, 2]), 160.0 / 480.0);
        assert_eq!(problem.uniform(5), [0, 1, 0, 1]);
    }

    #[test]
    fn times_come_from_the_table() {
        let row = |ns: u64| BTreeMap::from([("8/8".to_string(), ns), ("4/8".into(), ns / 2), ("2/8".into(), ns / 4)]);
        let layers = BTreeMap::from([("first".to_string(), row(400)), ("a".into(), row(800)), ("b".into(), row(80))]);
        let table = LatencyTable { rest: 100, layers };
        let given = Given { edge_bits: Some(8), rest: 0, latency: Some(&table) };
        let problem = Problem::new(&sensitivity(), &[Budget::Latency(1e-6)], given).unwrap();
        assert_eq!((problem.limits[0].most, problem.cost(0, &[0, 1, 2])), (900, 400 + 400 + 80));
        let error = Problem::new(&sensitivity(), &[Budget::Latency(1e-9)], given).unwrap().check().unwrap_err();
        assert!(error.to_string().contains("latency=720ns"), "{error}");
        let without = Problem::new(&sensitivity(), &[Budget::Latency(1.0)], Given::default()).unwrap_err();
        assert!(without.hint().unwrap().contains("--latency-table"));
    }

    #[test]
    fn the_least_that_is_needed_is_told() {
        let error = problem(Budget::Size(100), Some(8)).unwrap().check().unwrap_err();
        assert!(error.to_string().ends_with("size=176B"), "{error}");
        for budget in [Budget::Size(10), Budget::AvgBits(1.9), Budget::Bops(1e3)] {
            assert!(problem(budget, None).unwrap().check().is_err());
        }
        assert!(problem(Budget::Size(176), Some(8)).unwrap().check().is_ok());
    }
}
