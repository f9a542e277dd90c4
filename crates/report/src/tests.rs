use crate::*;
use fewbits_graph::Grid;
use fewbits_quant::{Mapping, RangeRule, TensorStats};

/// A name that would be markup in HTML, in an attribute, and in a Markdown table.
const HOSTILE: &str = "</code><script>alert('1')</script>\" onload=\"x|`*_&\n# y";

fn hostile() -> Report {
    let text = || HOSTILE.to_string();
    let mut stats = TensorStats::new();
    stats.observe_image(&[-1.0, 0.0, 0.5, 0.5, 8.0]);
    let grid = Grid::activations(4);
    let params = RangeRule::Percentile(75.0).params(&stats, grid, Mapping::Affine);
    let layer = |runtime, sqnr_db| Layer {
        name: text(),
        op: text(),
        weight_bits: Some(4),
        activation_bits: None,
        runtime,
        reason: text(),
        sqnr_db,
        macs: 10,
        parameters: 5,
    };
    Report {
        title: text(),
        command: text(),
        settings: [(text(), text())].into(),
        model: Model { name: text(), sha256: text(), inputs: vec![text()], outputs: vec![text()], ..Model::default() },
        preparation: vec![text()],
        trials: vec![Trial { rule: text(), sqnr_db: 21.75, chosen: true }],
        steps: vec![
            Step {
                methods: text(),
                before_db: 10.0,
                after_db: 14.5,
                kept: true,
                seconds: 12.0,
                findings: vec!["3 < 4".into()],
            },
            Step { methods: text(), before_db: 14.5, after_db: 13.25, kept: false, seconds: 3.0, findings: vec![] },
            Step { methods: text(), before_db: 14.5, after_db: 13.0, kept: true, seconds: 3.0, findings: vec![] },
        ],
        sensitivity: Some(Sensitivity {
            damage: text(),
            widths: vec![2, 4, 8],
            layers: vec![
                LayerDamage { name: text(), damage: vec![1.0, 0.01, 0.0001], bits: Some(4) },
                LayerDamage { name: text(), damage: vec![0.5, 0.0, 0.0], bits: None },
            ],
        }),
        search: Some(search()),
        training: Some(Training {
            loss: vec![Curve { name: text(), points: vec![(1, 2.5), (2, 0.5), (3, 1.5)] }],
            accuracy: vec![Curve { name: text(), points: vec![(1, 0.25)] }],
            scales: vec![Curve { name: text(), points: vec![(1, 0.01), (2, 0.1), (3, 1.0)] }],
        }),
        accuracy: vec![
            Accuracy { mode: Mode::Float, metric: text(), value: 0.75, samples: 100 },
            Accuracy { mode: Mode::Integer, metric: text(), value: 0.7375, samples: 100 },
        ],
        sizes: vec![Size { convention: text(), float_bytes: 4096, bytes: 1024 }],
        layers: vec![layer(Runtime::Integer, Some(31.25)), layer(Runtime::Float, None)],
        tensors: vec![
            TensorRange::new(HOSTILE, HOSTILE, &stats, &params)
                .with_others(&[RangeRule::MinMax], |rule| rule.range(&stats, grid, Mapping::Affine)),
        ],
        warnings: vec![text()],
        seconds: Some(1.5),
        images: Some(1),
    }
}

/// Sizes and qualities from 100 to 400 bytes; the second candidate is beaten by the third.
fn search() -> Search {
    let candidate = |kind, bytes, value, damage| Candidate { kind, bytes, values: vec![Some(value), damage] };
    let layer = |weights, activations| LayerBits { name: HOSTILE.into(), weights, activations, bytes: 96 };
    Search {
        strategy: HOSTILE.into(),
        budget: HOSTILE.into(),
        kept: true,
        bytes: 200,
        average_bits: 3.875,
        bops: 5_000_000,
        layers: vec![layer(Some(4), Some(8)), layer(Some(2), None)],
        qualities: vec![Quality::Accuracy(HOSTILE.into()), Quality::Damage(HOSTILE.into())],
        candidates: vec![
            candidate(CandidateKind::Tried, 100, 0.25, Some(0.75)),
            candidate(CandidateKind::Uniform(3), 300, 0.5, Some(0.25)),
            candidate(CandidateKind::Found, 200, 0.5, None),
            candidate(CandidateKind::Tried, 400, 0.75, None),
        ],
        rewards: vec![1.0, 0.0, 2.0, 1.5],
    }
}

#[test]
fn a_page_says_what_the_report_holds() {
    let page = hostile().to_html();
    for text in [
        "73.75 %",
        "−1.25 points",
        "1.00 KiB",
        "4.00× smaller",
        "1 of 2",
        "31.2",
        "50.00 % of the MAC",
        "minmax",
        "20 % zeros",
        "21.75",
        "SQNR of the outputs, in 18.0 s",
        "3 &lt; 4</span>",
        "+4.50",
        "−1.25",
        "dropped",
        "kept, though it harms here",
        "which is kept: 200 bytes, 3.875 bits on average, 5.00 M bit operations",
        "<td>3 bits everywhere<td class=\"n\">300",
        "50.00 %",
    ] {
        assert!(page.contains(text), "no `{text}` in {page}");
    }
    let text = hostile().to_markdown();
    for row in [
        "| 4 | – | integer | 31.2 |",
        "| 4.00 KiB | 1.00 KiB | 4.00× |",
        "| 73.75 % | 100 |",
        "; 3 &lt; 4 | 10.00 | 14.50 | 12.0 s | kept |",
        "| 1.0 | 0.010 | 1.0e-4 | 4 |",
        "| found | 200 | 50.00 % |",
    ] {
        assert!(text.contains(row), "no `{row}` in {text}");
    }
}

#[test]
fn nothing_from_a_file_becomes_markup() {
    let page = hostile().to_html();
    assert!(!page.contains("<script") && !page.contains("\" onload"));
    assert!(page.contains("&lt;script&gt;"));
    let text = hostile().to_markdown();
    assert!(!text.contains("<script") && !text.contains("\n# y"));
    // Every row of a table has the cells of its head.
    let cells = |line: &str| line.replace("\\|", "").matches('|').count();
    let rows: Vec<&str> = text.lines().filter(|l| l.starts_with('|')).collect();
    let heads = text.lines().filter(|l| l.starts_with("|--")).count();
    assert_eq!(heads, 11);
    for pair in rows.windows(2).filter(|pair| !text.contains(&format!("{}\n\n", pair[0]))) {
        assert_eq!(cells(pair[0]), cells(pair[1]), "{pair:?}");
    }
}

#[test]
fn the_page_loads_nothing_and_its_elements_are_closed() {
    let page = hostile().to_html();
    assert!(!page.contains("http") && !page.contains("url(") && !page.contains("src=") && !page.contains("@import"));
    for name in ["html", "head", "body", "table", "div", "svg", "figure", "code", "span", "dl", "title", "ul", "p", "b"]
    {
        let open = page.matches(&format!("<{name}>")).count() + page.matches(&format!("<{name} ")).count();
        assert_eq!(open, page.matches(&format!("</{name}>")).count(), "{name}");
    }
}

#[test]
fn clipped_elements_are_drawn_apart_and_every_element_is_drawn() {
    let report = hostile();
    let tensor = &report.tensors[0];
    assert!(tensor.hi < 8.0);
    assert_eq!(tensor.bins.counts.iter().sum::<u64>() + tensor.bins.zeros, 5);
    assert!(tensor.bins.counts.len() <= 96);
    assert!(report.to_html().contains("<path class=\"out\""));
    let mut stats = TensorStats::new();
    stats.observe_image(&[0.0, 1.0, 2.0, 6.0, 6.0]);
    let params = RangeRule::MinMax.params(&stats, Grid::activations(8), Mapping::Affine);
    let whole = Report { tensors: vec![TensorRange::new("relu6", "minmax", &stats, &params)], ..Report::default() };
    assert!(!whole.to_html().contains("<path class=\"out\""), "what is at the end of the range is not clipped");
}

#[test]
fn curves_are_drawn_to_their_axes() {
    let page = hostile().to_html();
    // Heights from 3 to 77: losses in proportion, scales by their logarithms.
    for path in ["M0.0 3.0L130.0 77.0L260.0 40.0", "M130.0 40.0h1", "M0.0 77.0L130.0 40.0L260.0 3.0"] {
        assert!(page.contains(&format!("d=\"{path}\"")), "no `{path}` in {page}");
    }
    assert!(page.contains("trained on 1 images") && page.contains("0.01 → 1.00"), "{page}");
    let mut report = hostile();
    let training = report.training.as_mut().unwrap();
    training.loss[0].points = vec![(1, f64::NAN), (2, 1.0)];
    training.scales[0].points = vec![(1, 0.0), (2, f64::INFINITY)];
    training.accuracy[0].points.clear();
    let page = report.to_html();
    // Pictures leave out what has no place.
    assert!(!["NaN", "Minf", "M0.0 inf"].iter().any(|text| page.contains(text)), "{page}");
    assert!(page.contains("d=\"M130.0 40.0\""), "a point that is left stands in the middle: {page}");
}

#[test]
fn damage_is_coloured_by_its_logarithm_and_chosen_bits_are_framed() {
    let page = hostile().to_html();
    // From 1 to 1e-4 in four decades: 0.01 is half of the way.
    for (damage, opacity) in [("1.0", "0.94"), ("0.010", "0.49"), ("1.0e−4", "0.04"), ("0.50", "0.87"), ("0", "0.04")]
    {
        let cell = page.split("<rect class=\"heat\" fill-opacity=\"").skip(1).find(|cell| {
            let text = cell.split("text-anchor=\"middle\">").nth(1).unwrap();
            text.starts_with(&format!("{damage}<"))
        });
        assert!(cell.unwrap().starts_with(opacity), "{damage}: {cell:?}");
    }
    assert_eq!(page.matches("class=\"chosen\"").count(), 1);
    let mut even = hostile();
    even.sensitivity.as_mut().unwrap().layers.iter_mut().for_each(|layer| layer.damage = vec![0.0, f64::NAN, 0.0]);
    assert!(!even.to_html().contains("NaN"));
}

#[test]
fn the_front_joins_what_is_not_beaten_and_the_best_reward_only_rises() {
    let page = hostile().to_html();
    // 100, 200 and 400 bytes over an axis of 458 units from 54, with a twentieth of the span free at each end; qualities likewise.
    let x = |bytes: f64| 54.0 + 472.0 * (bytes - 85.0) / 330.0;
    let y = |value: f64| 264.0 - 242.0 * (value - 0.225) / 0.55;
    let line = [(100.0, 0.25), (200.0, 0.5), (400.0, 0.75)].map(|(a, b)| format!("{:.1} {:.1}", x(a), y(b))).join("L");
    assert!(page.contains(&format!("d=\"M{line}\"")), "no {line} in {page}");
    // By the other quality two are known.
    let x = |bytes: f64| 54.0 + 472.0 * (bytes - 90.0) / 220.0;
    let line = format!("d=\"M{:.1} ", x(100.0));
    assert!(page.contains(&line), "no {line} in {page}");
    assert_eq!((page.matches("class=\"found\"").count(), page.matches("class=\"mark0\"").count()), (1, 2));
    assert!(
        page.contains("<td class=\"n\">50.00 %<td class=\"n\">–</tr>"),
        "what was not measured is left out: {page}"
    );
    let best = |reward: f64| 264.0 - 242.0 * (reward + 0.1) / 2.2;
    let [first, third, last] = [1.0, 3.0, 4.0].map(|episode: f64| 54.0 + 472.0 * (episode - 0.85) / 3.3);
    let (low, high) = (best(1.0), best(2.0));
    let line = format!("M{first:.1} {low:.1}H{third:.1}V{high:.1}H{last:.1}");
    assert!(page.contains(&format!("d=\"{line}\"")), "no {line} in {page}");
}

#[test]
fn bits_are_as_high_as_they_are_many() {
    let page = hostile().to_html();
    for (class, heights) in [("data", vec!["52.0", "26.0"]), ("second", vec!["104.0"])] {
        let begin = format!("<rect class=\"{class}\"");
        let bars = page.split(&begin).skip(1);
        let height = |bar: &str| bar.split("height=\"").nth(1).unwrap().split('"').next().unwrap().to_string();
        assert_eq!(bars.map(height).collect::<Vec<_>>(), heights, "{class}");
    }
}

#[test]
fn names_of_many_layers_do_not_cover_each_other() {
    for (count, shown) in [(5, 5), (60, 60), (300, 75)] {
        let layer = |i| LayerBits { name: format!("layer{i:03}"), weights: Some(4), activations: Some(8), bytes: 1 };
        let found = Search { layers: (0..count).map(layer).collect(), ..search() };
        let page = Report { search: Some(found), ..Report::default() }.to_html();
        let names: Vec<f64> = page
            .split("transform=\"translate(")
            .skip(1)
            .map(|text| text.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(names.len(), shown);
        assert!(names.windows(2).all(|pair| pair[1] - pair[0] >= 11.0), "{count} layers: {names:?}");
    }
}

#[test]
fn json_reads_back_and_an_empty_report_is_a_page() {
    let report = hostile();
    assert_eq!(serde_json::from_str::<Report>(&report.to_json()).unwrap(), report);
    let empty = Report::default();
    assert!(empty.to_html().ends_with("</html>\n"));
    assert!(empty.to_markdown().starts_with("# "));
    let mut odd = hostile();
    odd.tensors[0].bins = Bins::default();
    odd.tensors[0].lo = f32::MIN;
    odd.tensors[0].hi = f32::INFINITY;
    odd.layers[0].sqnr_db = Some(f64::INFINITY);
    assert!(!odd.to_html().contains("NaN"));
}
