use super::*;
use crate::{
    Part,
    clipping::with_scales,
    moments::{Left, Shape},
    progress::Silent,
    testing,
    walk::walk_through,
};
use fewbits_quant::ranges::Prior;
use std::convert::Infallible;

fn clipped(network: &testing::Network, config: Config, threads: usize) -> (Draft, Vec<Choice>) {
    let (samples, threads) = (testing::images(48, &network.shape), Threads::new(threads));
    let mut walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let mut draft = network.draft.clone();
    let method = MixedClipping { config, ..MixedClipping::default() };
    walk_through::<MethodError>(&mut walk, &mut draft, &[&method], None, &Silent, |_, _| Ok(())).unwrap();
    (draft, method.choices())
}

#[test]
fn layers_get_different_rules_whatever_the_number_of_threads() {
    let network = testing::zoo("demo", 3, 8);
    let (draft, choices) = clipped(&network, Config::default(), 1);
    assert_eq!((draft.clone(), choices.clone()), clipped(&network, Config::default(), 3));
    assert!(choices.iter().any(|c| c.clip != choices[0].clip), "{choices:?}");
    assert_eq!(choices.len(), crate::layers(&network.graph, &network.placement).len());
    let fresh = &testing::images(60, &network.shape)[48..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < 0.8 * before, "{after} instead of {before}");
}

#[test]
fn the_chosen_rule_has_the_least_output_error_of_all() {
    let network = testing::residual();
    let (samples, threads) = (testing::images(16, &network.shape), Threads::new(2));
    let walk = Walk::new(network.ground(), &samples, usize::MAX, &threads).unwrap();
    let method = MixedClipping::default();
    let mut draft = network.draft.clone();
    round_layers(&walk, &mut draft, &Left::default(), |weights, moments, _| {
        let (clip, best) = method.choose(weights, moments, &threads).unwrap();
        let error = |rounded: &Rounded| -> f64 {
            let k = weights.shape.inputs;
            // The definition, element by element.
            (0..weights.shape.channels())
                .map(|c| {
                    let gram = &moments.held[c / weights.shape.outputs].gram;
                    let v = |i: usize| f64::from(rounded.rows[c * k + i] - weights.rows[c * k + i]);
                    let row = |i: usize| (0..k).map(|j| f64::from(gram[i * k + j]) * v(j)).sum::<f64>() * v(i);
                    (0..k).map(row).sum::<f64>()
                })
                .sum()
        };
        assert!(moments.held[0].rows > 0);
        for other in CLIPS {
            let clips = weights.clips(other, &threads);
            let scale = (0..).zip(&clips).map(|(g, c)| weights.scale(g, *c)).collect();
            let rounded = weights.rounded(scale);
            assert!(error(&best) <= error(&rounded) * (1.0 + 1e-4), "{clip} and not {other}");
        }
        best
    })
    .unwrap();
}

/// Coordinate descent by definition: each layer in order, every rule tried on the whole network.
#[test]
fn by_the_network_each_layer_gets_the_rule_of_least_loss() {
    let network = testing::zoo("demo", 3, 8);
    let images = testing::images(24, &network.shape);
    let loss = |draft: &Draft, half: Part| -> Result<f64, Infallible> {
        let part = if half == Part::Fit { &images[..8] } else { &images[8..16] };
        Ok(testing::damage(&network, draft, part))
    };
    let clips = vec![Clip::Max, Clip::Lp(2.0), Clip::Aciq(Prior::Gauss)];
    let tuned = |threads: usize| {
        let method = MixedClipping { config: Config { clips: clips.clone() }, ..MixedClipping::default() };
        let mut draft = network.draft.clone();
        let Ok(kept) = method.tune(network.ground(), &mut draft, &Threads::new(threads), &loss, &Silent);
        assert!(kept);
        (draft, method.choices())
    };
    let (draft, choices) = tuned(1);
    assert_eq!((draft.clone(), choices.clone()), tuned(3));
    assert!(choices.iter().any(|c| c.clip != choices[0].clip), "{choices:?}");
    let threads = Threads::new(2);
    let layers = crate::layers(&network.graph, &network.placement);
    let shapes = Shape::all(network.ground(), &layers);
    let weights = Weights::all(network.ground(), &network.draft, &layers, &shapes);
    let mut scales: Vec<Vec<f32>> = weights.iter().map(|w| w.params.scale.clone()).collect();
    for (i, choice) in choices.iter().enumerate() {
        let with = |clip: Clip| {
            let mut scales = scales.clone();
            scales[i] = weights[i].scales(clip, &threads).unwrap();
            loss(&with_scales(network.ground(), &network.draft, &weights, &scales), Part::Fit).unwrap()
        };
        let least = clips.iter().map(|clip| with(*clip)).fold(f64::MAX, f64::min);
        assert_eq!(with(choice.clip), least, "{choice}");
        scales[i] = weights[i].scales(choice.clip, &threads).unwrap();
    }
    let fresh = &images[16..];
    let (before, after) = (testing::damage(&network, &network.draft, fresh), testing::damage(&network, &draft, fresh));
    assert!(after < before, "{after} instead of {before}");
}

/// Samples that did not choose have the last word.
#[test]
fn what_other_samples_do_not_confirm_is_not_kept() {
    let network = testing::residual();
    let images = testing::images(4, &network.shape);
    let loss = |draft: &Draft, half: Part| -> Result<f64, Infallible> {
        let damage = testing::damage(&network, draft, &images);
        Ok(if half == Part::Fit { damage } else { -damage })
    };
    let (method, mut draft) = (MixedClipping::default(), network.draft.clone());
    let Ok(kept) = method.tune(network.ground(), &mut draft, &Threads::new(2), &loss, &Silent);
    assert!(!kept && draft == network.draft && method.choices().is_empty());
}
