//! On the zoo's demo network with few bits.

use super::*;
use crate::{progress::Silent, testing, walk::walk_through};
use fewbits_kernels::Threads;

#[test]
fn errors_follow_from_sums() {
    let (f, q) = ([0.3f32, -1.2, 2.0, 0.7], [0.1f32, -0.9, 1.5, 1.1]);
    let mut channel = Channel::default();
    f.iter().zip(&q).for_each(|(f, q)| channel.add(*f, *q));
    let change = Change { factor: 1.3, shift: -0.2 };
    let direct: f64 = f.iter().zip(&q).map(|(f, q)| (1.3 * f64::from(*q) - 0.2 - f64::from(*f)).powi(2)).sum();
    assert!((channel.error(change) - direct).abs() < 1e-9);
}

#[test]
fn channels_get_back_their_mean_and_deviation() {
    let network = testing::zoo("demo", 3, 8);
    let samples = testing::images(8, &network.shape);
    let threads = Threads::new(2);
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let mut draft = network.draft.clone();
    let tune = BnTune { config: Config { guard: false, factors: [0.01, 100.0], ..Config::default() } };
    let (mut seen, mut off_before) = (0, 0);
    while let Some(block) = walk.block().cloned() {
        for layer in &block.layers {
            let channels = biases(&network.graph, &draft, layer).unwrap().len();
            let sums = |draft: &Draft| measure(&walk, draft, layer, channels, false).unwrap().unwrap()[0].clone();
            let before = sums(&draft);
            tune.layer(&walk, &mut draft, layer).unwrap();
            let typical = before.iter().map(|c| c.variances()[0]).sum::<f64>() / channels as f64;
            for (before, after) in before.iter().zip(sums(&draft)) {
                let off = |c: &Channel| {
                    let ([f, q], [a, b]) = (c.means(), c.variances());
                    [(f - q).abs() / typical.sqrt(), (a.sqrt() - b.sqrt()).abs() / typical.sqrt()]
                };
                let [mean, deviation] = off(&after);
                assert!(mean < 0.02, "{}: mean off by {mean} deviations", layer.output);
                let [float, quantized] = before.variances();
                assert!(deviation < 0.02 || float.min(quantized) <= SILENT * typical, "{}: {deviation}", layer.output);
                off_before += usize::from(off(before).iter().any(|off| *off > 0.05));
                seen += 1;
            }
        }
        walk.advance(&draft).unwrap();
    }
    assert!(2 * off_before > seen, "rounding has moved most of {seen} channels, {off_before}");
}

#[test]
fn low_bit_networks_come_closer_whatever_the_number_of_threads() {
    let network = testing::residual();
    let samples = testing::images(24, &network.shape);
    let improved = |threads: usize| {
        let threads = Threads::new(threads);
        let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
        let mut draft = network.draft.clone();
        let tune = BnTune::default();
        walk_through::<MethodError>(&mut walk, &mut draft, &[&tune], None, &Silent, |_, _| Ok(())).unwrap();
        draft
    };
    let draft = improved(1);
    assert_eq!(draft, improved(3));
    let fresh = &testing::images(32, &network.shape)[24..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < 0.8 * before, "{after} instead of {before}");
}
