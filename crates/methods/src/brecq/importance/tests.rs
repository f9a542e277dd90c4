use super::*;
use crate::testing;
use fewbits_graph::exec::{Executor, Mode};

/// The probe at a linear loss: `⟨B·z, f(x)⟩` has the gradient `Jᵀ·B·z`.
#[test]
fn gradients_are_those_of_finite_differences() {
    let network = testing::residual();
    let samples = testing::images(3, &network.shape);
    let threads = Threads::new(2);
    let walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let rest = walk.rest().unwrap();
    let config = Config { input_gradients: true, ..Config::default() };
    let mut leaves = Leaves::new(&rest, &BTreeMap::new());
    let live = walk.live(1).unwrap();
    let shapes: Vec<Vec<usize>> = live.iter().map(|t| t.dims.clone()).collect();
    let mut tape = Tape::compile(&rest, &leaves, &shapes, &config).unwrap();
    let dims = [&network.facts[&rest.outputs[0].name].dims[..]];
    let gradient = toward_inputs((&mut tape, &mut leaves), &live, &dims, 5).remove(0);

    let mut executor = Executor::new(&rest, Mode::Float, &threads);
    let mut outputs = |moved: Vec<f32>| executor.run(&[Tensor::f32(&live[0].dims, moved)]).unwrap().remove(0);
    let here = live[0].as_f32().unwrap();
    let target = outputs(here.to_vec());
    let mut place = 0;
    let probe = Weighting::of(&[vec![target.clone()]])[0].curvature(target.as_f32().unwrap(), || {
        place += 1;
        if pick(5, place, 1, 2) == 0 { 1.0 } else { -1.0 }
    });
    let mut loss = |moved: Vec<f32>| -> f64 {
        outputs(moved).as_f32().unwrap().iter().zip(&probe).map(|(a, b)| f64::from(a * b)).sum()
    };
    // Along the gradient itself and across it.
    let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
    assert!(norm > 0.0 && live.len() == 1);
    let across: Vec<f32> = (0..here.len()).map(|i| if pick(1, i, 0, 2) == 0 { 0.02 } else { -0.02 }).collect();
    for direction in [gradient.iter().map(|g| g / norm).collect(), across] {
        let step = 0.01;
        let moved = |by: f32| here.iter().zip(&direction).map(|(x, d)| x + by * d).collect();
        let expected = (loss(moved(step)) - loss(moved(-step))) / f64::from(2.0 * step);
        let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
        assert!((found - expected).abs() < 0.02 * f64::from(norm), "{found}, not {expected}, of {norm}");
    }
}

#[test]
fn every_sample_has_a_mean_of_one_and_the_last_block_none() {
    let network = testing::residual();
    let samples = testing::images(6, &network.shape);
    let threads = [1, 3].map(Threads::new);
    let mut walks = [0, 1].map(|i| Walk::new(network.ground(), &samples, [usize::MAX, 1000][i], &threads[i]).unwrap());
    while let Some(names) = walks[0].block().map(|block| block.outputs.clone()) {
        let is_last = walks[0].position().0 + 1 == walks[0].position().1;
        let [one, other] = [0, 1].map(|i| Weighed::of(&walks[i], &names, 0).unwrap());
        assert_eq!(one.is_none(), is_last);
        for sample in 0..if is_last { 0 } else { 6 } {
            let found = one.as_ref().unwrap().importance(sample).unwrap();
            assert_eq!(found, other.as_ref().unwrap().importance(sample).unwrap());
            let shares = found[0].as_f32().unwrap();
            let mean = shares.iter().sum::<f32>() / shares.len() as f32;
            assert!((mean - 1.0).abs() < 1e-3, "{mean}");
            assert!(shares.iter().any(|share| *share > 1.5), "they differ");
        }
        drop((one, other));
        walks.iter_mut().for_each(|walk| walk.advance(&network.draft).unwrap());
    }
}
