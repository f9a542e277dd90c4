//! Searches on the demo network.

use super::*;
use crate::{demo, methods::Method, progress::Silent, quantize::Ranges, stream::outputs};
use fewbits_graph::{Graph, exec::Mode};
use fewbits_quant::{RangeRule, calibrate::Policy};
use fewbits_search::Level;
use std::sync::Mutex;

fn searched_as(
    strategy: Strategy,
    budgets: &[Budget],
    asked: impl Fn(&mut Settings),
) -> Result<(Found, Quantized), Error> {
    searched_with(Methods::List(vec![]), &Silent, Settings::new(strategy, budgets.to_vec()), asked)
}

fn searched_with(
    methods: Methods,
    progress: &dyn Progress,
    search: Settings,
    asked: impl Fn(&mut Settings),
) -> Result<(Found, Quantized), Error> {
    let model = demo::model().unwrap();
    let preprocess = model.preprocess().unwrap().unwrap();
    let dataset = demo::calibration_set();
    let source = Source { dataset: &dataset, preprocess: &preprocess, indices: dataset.spread(16) };
    let mut settings = quantize::Settings {
        ranges: Ranges::Rule(RangeRule::MinMax),
        methods,
        time_budget: Duration::ZERO,
        ..quantize::Settings::new("ort".parse().unwrap(), Policy::new(8, 8, 8))
    };
    let mut search = Settings { samples: 8, ..search };
    asked(&mut search);
    super::search(&model, &source, &mut settings, &search, 2, progress)
}

fn searched(budget: Budget, asked: impl Fn(&mut Settings)) -> Result<(Found, Quantized), Error> {
    searched_as(Strategy::Ofm, &[budget], asked)
}

#[test]
fn every_allocator_keeps_the_bytes_and_does_less_damage_than_uniform_bits() {
    let (alike, _) = searched(Budget::AvgBits(4.0), |asked| asked.widths = vec![4, 8]).unwrap();
    assert!(alike.layers.iter().all(|row| row.bits == if row.edge { 8 } else { 4 }), "nothing else fits");
    for allocator in [Allocator::Knapsack, Allocator::Greedy, Allocator::GreedyRemeasured, Allocator::Ilp] {
        let within = Budget::Size(alike.bytes);
        let (found, quantized) =
            searched(within, |asked| (asked.allocator, asked.patience) = (Some(allocator), 2)).unwrap();
        let Quantized { graph, grids, placement, .. } = &quantized;
        assert_eq!(found.bytes, packed(graph, grids, placement), "the exported file has the same bytes");
        assert!(found.kept && found.bytes <= alike.bytes, "{allocator}: {}", found.bytes);
        let unused = if matches!(allocator, Allocator::Knapsack | Allocator::Ilp) { 200 } else { 2000 };
        assert!(alike.bytes - found.bytes < unused, "{allocator}: {} of {}", found.bytes, alike.bytes);
        let bits = |row: &Row| grids.params(&row.weight).map(|params| params.grid.bits);
        assert!(found.layers.iter().all(|row| bits(row) == Some(row.bits) && (!row.edge || row.bits == 8)));
        let (uniform, damage) = found.uniform.unwrap();
        assert_eq!(uniform, 4);
        assert!(found.damage < damage, "{allocator}: {} against {damage}", found.damage);
        let front = found.front();
        assert!(front.windows(2).all(|pair| pair[0].bytes < pair[1].bytes && pair[0].damage > pair[1].damage));
    }
}

#[test]
fn every_strategy_keeps_the_budget_and_is_no_worse_than_uniform_bits() {
    use Strategy::{Evolution, Greedy, Hessian, Kl, Random, Rl};
    for strategy in [Kl, Hessian, Greedy, Rl, Evolution, Random] {
        // On all samples, so that none is measured again.
        let asked = |asked: &mut Settings| (asked.evaluations, asked.samples) = (12, 16);
        let (found, _) = searched_as(strategy, &[Budget::AvgBits(3.0)], asked).unwrap();
        assert!(found.kept && found.average_bits <= 3.0, "{strategy}: {}", found.average_bits);
        let (bits, damage) = found.uniform.unwrap();
        assert!(bits == 3 && found.damage <= damage, "{strategy}: {} against {damage}", found.damage);
        let front: Vec<Bits> = found.front().into_iter().map(Point::bits).collect();
        let pictured = |point: &Point| matches!(point.sort, Sort::Uniform(_)) || front.contains(&point.bits());
        assert!(found.points.iter().all(|point| point.agreement.is_some() == pictured(point)), "{strategy}");
        let tried = found.history.len();
        assert!(!strategy.is_sampling() || (12..=14).contains(&tried), "{strategy}: {tried} assignments");
    }
}

/// Of many assignments the one with the least damage on one sample is seldom the best.
#[test]
fn the_best_on_few_samples_have_to_prove_themselves_on_all() {
    let asked = |asked: &mut Settings| (asked.evaluations, asked.samples) = (60, 1);
    let (found, quantized) = searched_as(Strategy::Random, &[Budget::AvgBits(4.0)], asked).unwrap();
    let tried = found.points.iter().filter(|point| point.sort == Sort::Tried);
    let lucky = tried.min_by(|a, b| a.damage.total_cmp(&b.damage)).unwrap();
    assert!(found.damage > lucky.damage, "no other choice was made");
    let (model, dataset) = (demo::model().unwrap(), demo::calibration_set());
    let preprocess = model.preprocess().unwrap().unwrap();
    let source = Source { dataset: &dataset, preprocess: &preprocess, indices: dataset.spread(16) };
    let mut settings = quantize::Settings {
        ranges: Ranges::Rule(RangeRule::MinMax),
        methods: Methods::List(vec![]),
        ..quantize::Settings::new("ort".parse().unwrap(), Policy::new(8, 8, 8))
    };
    settings.policy.weight_bits_of = lucky.weights.clone();
    let other = quantize(&model, &source, &settings, 2, &Silent).unwrap();
    let closeness = |quantized: &Quantized| {
        let mut references = vec![];
        let mut keep = |seen: crate::stream::Seen| {
            references.push(seen.outputs);
            Ok(())
        };
        outputs(&quantized.float, Mode::Float, &source, 2, &Silent, &mut keep).unwrap();
        let mode = Mode::Integer(&quantized.grids);
        quantize::output_sqnr(&quantized.graph, mode, &source, &references, 2, &Silent).unwrap()
    };
    let (chosen, lucky) = (closeness(&quantized), closeness(&other));
    assert!(chosen > lucky, "{chosen} dB against {lucky} dB");
}

#[test]
fn a_search_that_was_killed_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.search.jsonl");
    let run = |resume: bool| {
        let asked = |asked: &mut Settings| {
            (asked.evaluations, asked.journal, asked.resume) = (10, Some(path.clone()), resume);
        };
        searched_as(Strategy::Evolution, &[Budget::AvgBits(4.0)], asked).unwrap().0
    };
    let whole = run(false);
    let text = std::fs::read_to_string(&path).unwrap();
    let torn: Vec<&str> = text.lines().take(6).collect();
    std::fs::write(&path, torn.join("\n") + "\n[[1,").unwrap();
    let resumed = run(true);
    assert_eq!((&resumed.layers, &resumed.history), (&whole.layers, &whole.history));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn inputs_of_layers_get_bits_too() {
    let (wide, _) = searched(Budget::AvgBits(4.0), |_| ()).unwrap();
    let budgets = [Budget::Bops(0.7 * wide.bops as f64), Budget::AvgBits(5.0)];
    let (found, quantized) = searched_as(Strategy::Ofm, &budgets, |asked| asked.input_widths = vec![4, 6, 8]).unwrap();
    assert!(found.kept && found.budgets.len() == 2, "{:?}", found.budgets);
    let searched: Vec<u8> = found.layers.iter().filter(|row| !row.edge).map(|row| row.input_bits).collect();
    assert!(searched.iter().any(|&bits| bits < 8) && searched.iter().all(|bits| [4, 6, 8].contains(bits)));
    let node = |row: &Row| quantized.graph.nodes.iter().find(|node| node.name == row.layer).unwrap();
    for row in &found.layers {
        assert_eq!(quantized.grids.params(&node(row).inputs[0]).unwrap().grid.bits, row.input_bits, "{}", row.layer);
    }
}

#[test]
fn the_smallest_network_within_a_drop_is_found() {
    let (found, _) = searched_as(Strategy::Ofm, &[], |asked| asked.max_drop = Some(0.0)).unwrap();
    let (less, _) = searched_as(Strategy::Ofm, &[], |asked| asked.max_drop = Some(60.0)).unwrap();
    assert!(found.kept && less.bytes < found.bytes && found.average_bits < 8.0, "{} {}", less.bytes, found.bytes);
    assert!(found.budgets[0].actual == 0.0 && less.budgets[0].actual <= 60.0, "{:?} {:?}", found.budgets, less.budgets);
    let asked = |asked: &mut Settings| (asked.max_drop, asked.widths) = (Some(0.0), vec![2]);
    let (narrow, _) = searched_as(Strategy::Ofm, &[], asked).unwrap();
    assert!(!narrow.kept && narrow.budgets[0].actual > 0.0, "two bits change classes: {:?}", narrow.budgets);
}

#[test]
fn other_budgets_are_kept_and_impossible_ones_give_the_smallest_network() {
    let (found, _) = searched(Budget::AvgBits(3.0), |_| ()).unwrap();
    assert!(found.kept && found.average_bits <= 3.0 && found.average_bits > 2.9);
    let (less, _) = searched(Budget::Bops(0.8 * found.bops as f64), |asked| asked.level = Some(Level::Local)).unwrap();
    assert!(less.kept && less.bops < found.bops);
    let (smallest, _) = searched(Budget::Size(1000), |_| ()).unwrap();
    assert!(!smallest.kept && smallest.layers.iter().all(|row| row.edge || row.bits == 2));
    let error = searched(Budget::Latency(0.001), |_| ()).unwrap_err();
    assert!(error.to_string().contains("latency") && error.hint().is_some());
}

#[test]
fn the_drop_is_that_of_the_integers_that_are_returned() {
    let asked = |asked: &mut Settings| (asked.max_drop, asked.evaluations, asked.samples) = (Some(20.0), 1, 16);
    let (found, quantized) = searched_as(Strategy::Random, &[], asked).unwrap();
    let (model, dataset) = (demo::model().unwrap(), demo::calibration_set());
    let preprocess = model.preprocess().unwrap().unwrap();
    let source = Source { dataset: &dataset, preprocess: &preprocess, indices: dataset.spread(16) };
    let classes = |graph: &Graph, mode: Mode<'_>| {
        let mut classes = vec![];
        outputs(graph, mode, &source, 1, &Silent, |seen| {
            let scores = seen.outputs[0].as_f32().unwrap();
            classes.push((0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b])));
            Ok(())
        })
        .unwrap();
        classes
    };
    let integer = classes(&quantized.graph, Mode::Integer(&quantized.grids));
    let pairs = classes(&quantized.float, Mode::Float).into_iter().zip(integer);
    let changed = 100.0 * pairs.filter(|(float, rounded)| float != rounded).count() as f64 / 16.0;
    assert_eq!((found.budgets[0].actual, found.kept), (changed, true));
    assert_eq!(found.agreement, Some(1.0 - 0.01 * changed));
}

#[test]
fn something_that_fits_is_returned_where_trials_end_before_anything_does() {
    let widths = |asked: &mut Settings| (asked.widths, asked.input_widths) = (vec![4, 8], vec![2, 4, 8]);
    let (wide, _) = searched_as(Strategy::Ofm, &[Budget::AvgBits(4.0)], |asked| asked.widths = vec![4, 8]).unwrap();
    // Weights of 4 bits and inputs of fewer than 4.
    let budget = [Budget::Bops(0.4 * wide.bops as f64)];
    let (found, _) = searched_as(Strategy::Greedy, &budget, |asked| {
        widths(asked);
        asked.evaluations = 1;
    })
    .unwrap();
    assert!(found.kept && found.uniform.is_none(), "{:?}", found.budgets);
}

/// What was begun.
#[derive(Default)]
struct Begun(Mutex<Vec<String>>);

impl Progress for Begun {
    fn begin(&self, what: &str, _total: usize) {
        self.0.lock().unwrap().push(what.into());
    }
    fn step(&self) {}
    fn end(&self) {}
}

#[test]
fn the_network_that_is_searched_is_reshaped_as_the_final_one_and_refined_once() {
    let count = |begun: &Begun, what: &str| begun.0.lock().unwrap().iter().filter(|begun| *begun == what).count();
    let search = || Settings { patience: 0, ..Settings::new(Strategy::Ofm, vec![Budget::AvgBits(4.0)]) };
    let begun = Begun::default();
    searched_with(Methods::List(vec![Method::Equalize, Method::Omse]), &begun, search(), |_| ()).unwrap();
    assert_eq!(count(&begun, "omse"), 1, "{:?}", begun.0);
    // To reshape, to tell what that brought, and for the ranges of the network that is searched and of the final one.
    assert_eq!(count(&begun, "calibrating"), 1 + 2 + 2, "{:?}", begun.0);
}
