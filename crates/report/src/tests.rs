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
    ] {
        assert!(page.contains(text), "no `{text}` in {page}");
    }
    let text = hostile().to_markdown();
    for row in ["| 4 | – | integer | 31.2 |", "| 4.00 KiB | 1.00 KiB | 4.00× |", "| 73.75 % | 100 |"] {
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
    assert_eq!(heads, 7);
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
