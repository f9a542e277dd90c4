use super::*;
use crate::demo;
use crate::progress::Silent;
use fewbits_train::quantizers::Method;
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn published_numbers_bear_out_what_the_papers_claim() {
    let tables = tables();
    assert_eq!(tables.iter().map(|t| t.rows.len()).collect::<Vec<_>>(), [12, 12, 21, 6, 3, 8]);
    for table in tables {
        assert!(!table.claims.is_empty());
        for claim in &table.claims {
            assert_eq!(claim.holds(|row, bits| table.published(row, bits)), Some(true), "{}: {claim}", table.name);
        }
        assert!(fewbits_zoo::find(table.architecture).is_ok() && fewbits_zoo::find(table.proxy).is_ok());
        let mut folders: Vec<String> = table.rows.iter().map(|row| folder_name(&found(row, 0, 0.0))).collect();
        folders.sort();
        folders.dedup();
        assert_eq!(folders.len(), table.rows.len(), "every row has a folder of its own");
    }
}

#[test]
fn intervals_are_trained_at_the_rate_of_their_paper() {
    let effort = Effort { epochs: 1, float_epochs: 1, seeds: 1, limit: None, validation_limit: None, batch: 128 };
    for table in tables() {
        for row in &table.rows {
            let Some(recipe) = plan::row_recipe(row, &effort, 1280, 0) else { continue };
            let qil = matches!(&row.way, Way::Train { method: Method::Qil, .. });
            assert_eq!(recipe.quantizer_rate, if qil { 0.01 } else { 1.0 }, "{}", row.name);
        }
    }
}

#[test]
fn orderings_are_judged_by_their_relations() {
    let claim = Claim {
        quantity: Quantity::Top1,
        bits: (2, 2),
        first: "a",
        rest: &[(Relation::MuchLess, "b"), (Relation::Less, "c"), (Relation::Close, "d")],
    };
    assert_eq!(claim.to_string(), "W2A2 top-1: a ≪ b < c ≈ d");
    let judge = |means: [f64; 4], bits: (u8, u8)| {
        let accuracy = |row: &str| {
            let i = ["a", "b", "c", "d"].iter().position(|name| *name == row)?;
            Some(Accuracy { mean: means[i], spread: Some(-means[i]) })
        };
        claim.holds(|row, asked| accuracy(row).filter(|_| asked == bits))
    };
    for (means, expected) in [
        ([1.0, 2.0, 2.1, 1.2], true),
        ([1.1, 2.0, 2.1, 1.2], false),
        ([1.0, 2.0, 2.0, 1.2], false),
        ([1.0, 2.0, 2.1, 3.1], false),
    ] {
        assert_eq!(judge(means, (2, 2)), Some(expected), "{means:?}");
    }
    assert_eq!(judge([1.0, 2.0, 2.1, 1.2], (4, 4)), None);
    let spread = Claim { quantity: Quantity::Spread, rest: &[(Relation::Less, "b")], ..claim };
    let accuracy = |row: &str, _| Some(Accuracy { mean: 0.0, spread: (row == "b").then_some(1.0) });
    assert_eq!(spread.holds(accuracy), None, "one run has no spread");
}

fn found(row: &Row, seed: u64, top1: f64) -> Run {
    Run {
        row: row.name.into(),
        weights: row.weights,
        activations: row.activations,
        seed,
        fake_top1: top1,
        integer_top1: (seed == 0).then_some(top1),
        not_deployable: None,
        bytes: Some((800, 100)),
        seconds: 1.0,
        recipe: Value::Null,
        command: String::new(),
    }
}

/// A tiny reproduction of `table` on drawn pictures, from initial weights.
fn with_request<R>(table: &Table, out: &Path, seeds: usize, then: impl FnOnce(&Request<'_>) -> R) -> R {
    let data = Arc::new(demo::calibration_set());
    let subject = Subject::of(table, &data, true).unwrap();
    let effort = Effort { epochs: 1, float_epochs: 1, seeds, limit: Some(8), validation_limit: Some(8), batch: 4 };
    let model = Model { path: "proxy.onnx".into(), graph: subject.build(0).unwrap(), grids: None };
    let preprocess = model.preprocess().unwrap().unwrap();
    then(&Request {
        table,
        subject,
        effort,
        model: &model,
        pretrained: false,
        training: &data,
        validation: &data,
        preprocess: &preprocess,
        target: &"ort".parse().unwrap(),
        seed: 0,
        command: "fewbits repro",
        out,
        threads: 2,
    })
}

fn table(name: &str) -> Table {
    tables().into_iter().find(|t| t.name == name).unwrap()
}

#[test]
fn several_runs_have_a_spread_and_missing_ones_are_to_come() {
    let folder = TempDir::new().unwrap();
    let table = table("lsqplus-table5");
    with_request(&table, folder.path(), 2, |request| {
        let mut results = Results::open(folder.path(), request.setup()).unwrap();
        assert_eq!(request.to_come(&results).len(), 12);
        let first = &table.rows[0];
        results.runs.extend([found(first, 0, 60.0), found(first, 1, 62.0)]);
        results.save(folder.path(), &table).unwrap();
        let again = Results::open(folder.path(), request.setup()).unwrap();
        assert_eq!(again, results);
        let to_come = request.to_come(&again);
        assert_eq!(to_come.len(), 10);
        assert!(to_come.iter().all(|(row, _)| (row.name, row.weights) != (first.name, first.weights)));
        let line = &again.lines(&table)[0];
        assert_eq!((line.published, line.runs), ((71.3, Some(2.2)), 2));
        assert_eq!(line.fake, Some((61.0, Some(2f64.sqrt()))));
        assert_eq!((line.integer, line.compression), (None, (8.0, Some(8.0))), "one of the two is not deployed");
        let csv = fs::read_to_string(folder.path().join("results.csv")).unwrap();
        assert_eq!(csv.lines().nth(2), Some("min-max,4,4,1,71.3,2.2,62,,800,100,1.0"));
    });
}

#[test]
fn results_of_another_setup_are_not_mixed() {
    let folder = TempDir::new().unwrap();
    let table = table("lsqplus-table6");
    with_request(&table, folder.path(), 1, |request| {
        let setup = request.setup();
        assert_eq!(setup.here, "10 classes of 32x32, swishnet proxy");
        assert!(setup.proxy);
        Results { setup: setup.clone(), float: None, runs: vec![] }.save(folder.path(), &table).unwrap();
        let other = Results::open(folder.path(), Setup { epochs: 9, ..setup });
        assert!(matches!(other, Err(Error::Usage { .. })), "{other:?}");
        fs::write(folder.path().join("results.json"), "{").unwrap();
        assert!(matches!(Results::open(folder.path(), request.setup()), Err(Error::Io { .. })));
    });
}

#[test]
fn a_reproduction_trains_what_is_missing_and_nothing_twice() {
    let folder = TempDir::new().unwrap();
    let table =
        Table { rows: table("lsqplus-table4").rows.into_iter().skip(8).take(2).collect(), ..table("lsqplus-table4") };
    assert_eq!((table.rows[0].name, table.rows[1].name), ("QIL", "configuration 1"));
    // Of an interrupted probe.
    fs::create_dir(folder.path().join("probe")).unwrap();
    fs::write(folder.path().join("probe/state.safetensors"), "").unwrap();
    with_request(&table, folder.path(), 1, |request| {
        let mut told = Vec::new();
        let results = run(request, &Silent, |event| told.push(format!("{event:?}"))).unwrap();
        assert!(told[0].starts_with("Estimate") && told[1].starts_with("Float") && told.len() == 4, "{told:?}");
        assert!(results.float.is_some() && results.runs.len() == 2);
        let [qil, lsq] = &results.runs[..] else { panic!() };
        assert!(qil.integer_top1.is_none() && qil.not_deployable.is_some());
        assert!(lsq.integer_top1.is_some() && lsq.bytes.is_some_and(|(float, own)| own < float / 4), "{lsq:?}");
        let mut told = 0;
        assert_eq!(run(request, &Silent, |_| told += 1).unwrap(), results);
        assert_eq!(told, 1, "the float network is named, nothing is trained");
    });
}
