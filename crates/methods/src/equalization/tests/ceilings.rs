//! Channels below a ceiling, which a ReLU6 or another Clip puts on them.

use super::*;

/// The network with Clip 0…6 for LeakyRelu, and a channel that reaches 6.
fn clipped() -> Graph {
    let mut graph = network();
    for (name, value) in [("least", 0.0), ("most", 6.0)] {
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(&[], vec![value])));
    }
    graph.nodes[1].op = Op::from_attrs("Clip", &Attrs::default()).unwrap();
    graph.nodes[1].inputs = ["c1", "least", "most"].map(String::from).to_vec();
    graph
}

#[test]
fn channels_below_a_ceiling_are_raised_to_it() {
    let graph = clipped();
    let (before, stats) = run(&graph);
    let reach = |stats: &Stats| stats.0["r1"].channels.as_ref().unwrap().largest();
    assert!(reach(&stats)[2] == 6.0 && reach(&stats)[0] < 0.1, "{:?}", reach(&stats));
    let mut equalized = graph.clone();
    equalized.constants.extend(equalize(&graph, &stats, Config::default()).patches);
    let (after, equal_stats) = run(&equalized);
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
    }
    for (channel, reach) in reach(&equal_stats).into_iter().enumerate() {
        let wanted = if channel == 2 { 6.0 } else { 6.0 / MARGIN as f32 };
        assert!((reach - wanted).abs() < 1e-3, "channel {channel} reaches {reach}, not {wanted}");
    }
    // A dense reader shares with its weights, within the same limits.
    let used = reach(&stats).into_iter().map(|a| MARGIN * f64::from(a) / 6.0).collect::<Vec<_>>();
    let weight = [0.5, 1.0, 2.0, 0.1];
    let shared = below_ceilings(&reach(&stats), &used, &weight, false).unwrap();
    assert!((shared[0] - (used[0] * 4.0).sqrt()).abs() < 1e-9 && shared[2] == 1.0, "{shared:?}");
    assert!(shared.iter().zip(&used).all(|(s, u)| *s <= 1.0 && *s >= u.min(1.0)), "{shared:?}");
}

#[test]
fn with_one_scale_what_stays_below_a_ceiling_may_become_smaller() {
    let mut graph = clipped();
    // Channel 1 counts for little behind the Clip.
    for (name, axis) in [("w2", 0), ("w3", 1)] {
        let faint = scaled(&graph.constants[name], axis, 4, &|c| if c == 1 { 0.01 } else { 1.0 }).unwrap();
        graph.constants.insert(name.into(), Arc::new(faint));
    }
    let (before, stats) = run(&graph);
    let done = equalize(&graph, &stats, Config { per_channel: false, ..Config::default() });
    let (factors, patches) = (done.factors(&graph), done.patches);
    assert!(factors["c1"][1] < 0.7 && factors["c1"][2] == 1.0 && factors["c1"][0] > 2.0, "{:?}", factors["c1"]);
    let mut equalized = graph.clone();
    equalized.constants.extend(patches);
    for (a, b) in before.iter().zip(run(&equalized).0) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
    }
}

#[test]
fn with_one_scale_what_comes_near_a_ceiling_is_left_alone() {
    let mut graph = clipped();
    let used = |stats: &Stats| MARGIN * f64::from(stats.0["r1"].channels.as_ref().unwrap().largest()[1]);
    let ceiling = 1.1 * used(&run(&graph).1) / MARGIN;
    graph.constants.insert("most".into(), Arc::new(Tensor::f32(&[], vec![ceiling as f32])));
    let faint = scaled(&graph.constants["w3"], 1, 4, &|c| if c == 1 { 1e-4 } else { 1.0 }).unwrap();
    graph.constants.insert("w3".into(), Arc::new(faint));
    let done = equalize(&graph, &run(&graph).1, Config { per_channel: false, ..Config::default() });
    let factors = done.factors(&graph);
    assert_eq!(factors["c1"][1], 1.0, "it came to 0.9 of it, and may go beyond");
}

/// A ceiling in front of pooling limits as one in front of a layer does.
#[test]
fn scales_below_a_ceiling_go_through_pooling() {
    let mut graph = classifier("GlobalAveragePool", Attrs::default(), 1);
    for (name, value) in [("least", 0.0), ("most", 6.0)] {
        graph.constants.insert(name.into(), Arc::new(Tensor::f32(&[], vec![value])));
    }
    graph.nodes[1].op = Op::from_attrs("Clip", &Attrs::default()).unwrap();
    graph.nodes[1].inputs = ["c1", "least", "most"].map(String::from).to_vec();
    let (before, stats) = run_observing(&graph, &["r1", "f", "h"]);
    let mut equalized = graph.clone();
    equalized.constants.extend(equalize(&graph, &stats, Config::default()).patches);
    assert_ne!(graph.constants["w1"], equalized.constants["w1"]);
    let (after, equal_stats) = run_observing(&equalized, &["r1", "f", "h"]);
    for (a, b) in before.iter().zip(&after) {
        assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} became {b}");
    }
    let [old, new] = [&stats, &equal_stats].map(|stats| stats.0["r1"].channels.as_ref().unwrap().largest());
    // The channel that meets the ceiling stays, none falls, and some rise.
    assert!(old[2] == 6.0 && new[2] == 6.0 && new.iter().zip(&old).all(|(new, old)| new >= old), "{old:?} {new:?}");
    assert!(new[0] > 2.0 * old[0], "{old:?} {new:?}");
    // Of what is clipped unseen nothing is known.
    let mut unseen = stats;
    unseen.0.remove("r1");
    assert!(!equalize(&graph, &unseen, Config::default()).patches.contains_key("w1"));
}
