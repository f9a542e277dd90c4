use crate::{
    BlockMethod, Draft, MethodError, Walk,
    adaround::AdaRound,
    brecq::Brecq,
    progress::Silent,
    qdrop::QDrop,
    reconstruction::Config,
    testing::{self, Network},
    walk::walk_through,
};
use fewbits_kernels::Threads;
use std::time::{Duration, Instant};

fn learned(network: &Network, method: &dyn BlockMethod, threads: usize) -> Draft {
    learned_within(network, method, threads, usize::MAX)
}

fn learned_within(network: &Network, method: &dyn BlockMethod, threads: usize, memory: usize) -> Draft {
    let samples = testing::images(48, &network.shape);
    let threads = Threads::new(threads);
    let mut walk = Walk::new(network.ground(), &samples, memory, &threads).unwrap();
    let mut draft = network.draft.clone();
    walk_through::<MethodError>(&mut walk, &mut draft, &[method], None, &Silent, |_, _| Ok(())).unwrap();
    draft
}

/// Damage on fresh images with the nearest codes and with what a method learns.
fn damages(network: &Network, draft: &Draft) -> [f64; 2] {
    let fresh = &testing::images(60, &network.shape)[48..];
    [&network.draft, draft].map(|draft| testing::damage(network, draft, fresh))
}

#[test]
fn adaround_brings_four_bit_weights_closer() {
    let network = testing::residual();
    let method = AdaRound::new(Config { iterations: 60, batch: 8, ..Config::default() });
    let [before, after] = damages(&network, &learned(&network, &method, 2));
    assert!(after < 0.6 * before, "{after} instead of {before}");
}

#[test]
fn blocks_with_four_bit_activations_come_closer_whatever_the_number_of_threads() {
    let network = testing::zoo("demo", 4, 4);
    let config = Config { iterations: 60, batch: 8, scales: true, fisher: true, ..Config::default() };
    let brecq = Brecq::new(config.clone());
    let draft = learned(&network, &brecq, 1);
    assert_eq!(draft, learned(&network, &brecq, 3));
    assert!(brecq.findings().iter().all(|line| line.starts_with("blocks: ")), "{:?}", brecq.findings());
    let plain = Brecq::new(Config { fisher: false, ..config.clone() });
    let by_squares = learned(&network, &plain, 2);
    assert_ne!(draft, by_squares, "errors have other weights");
    // Damage is a square, too.
    for (draft, most) in [(draft, 0.9), (by_squares, 0.8)] {
        let [before, after] = damages(&network, &draft);
        assert!(after < most * before, "{after} instead of {before}");
    }
    let qdrop = QDrop::new(Config { drop: 0.5, fisher: false, ..config });
    let [before, after] = damages(&network, &learned(&network, &qdrop, 2));
    assert!(after < 0.9 * before, "{after} instead of {before}");
}

#[test]
fn samples_on_disk_teach_the_same_as_samples_in_memory() {
    let network = testing::zoo("demo", 4, 4);
    let config = Config { iterations: 6, batch: 8, scales: true, drop: 0.5, fisher: true, ..Config::default() };
    let adaround = AdaRound::new(config.clone());
    let brecq = Brecq::new(config.clone());
    let qdrop = QDrop::new(config);
    for method in [&adaround as &dyn BlockMethod, &brecq, &qdrop] {
        let draft = learned(&network, method, 2);
        assert!(draft != network.draft, "{} learned something", method.name());
        assert!(draft == learned_within(&network, method, 1, 5000), "{}", method.name());
    }
}

#[test]
fn a_deadline_cuts_the_steps_and_none_are_made_that_lead_nowhere() {
    let network = testing::zoo("demo", 4, 4);
    let config = |iterations, seconds| {
        let deadline = Some(Instant::now() + Duration::from_secs(seconds));
        Config { iterations, batch: 8, scales: true, deadline, ..Config::default() }
    };
    let learned = |config| learned(&network, &Brecq::new(config), 2);
    assert_eq!(learned(config(60, 0)), network.draft, "there is no time");
    let endless = Config { deadline: None, ..config(60, 0) };
    assert_eq!(learned(config(60, 1_000_000)), learned(endless), "there is time for all");
    let begun = Instant::now();
    let draft = learned(config(1_000_000_000, 3));
    assert!(draft != network.draft && begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
}

/// Keys that differ in low bits only must not give one batch in another order.
#[test]
fn neighbouring_seeds_learn_from_other_samples() {
    let batch = |seed: u64| -> Vec<usize> {
        let mut batch: Vec<usize> = (0..16).map(|i| super::pick(seed, 3, i, 1000)).collect();
        batch.sort_unstable();
        batch
    };
    assert_ne!(batch(0), batch(1));
    assert_eq!(batch(1), batch(1));
}
