use super::*;
use crate::progress::Silent;
use crate::{
    demo, export,
    methods::{METHODS, Methods},
    quantize::{Ranges, quantize},
};
use fewbits_data::{Dataset, OpenOptions, Preprocess};
use fewbits_methods::MethodError;
use fewbits_quant::{Plan, RangeRule, calibrate::Policy, target::Target};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The demo network and images to calibrate on.
struct Desk {
    model: Model,
    preprocess: Preprocess,
    dataset: Dataset,
}

impl Desk {
    fn new() -> Self {
        let model = demo::model().unwrap();
        Desk { preprocess: model.preprocess().unwrap().unwrap(), model, dataset: demo::calibration_set() }
    }

    fn quantize(&self, samples: usize, settings: &Settings, progress: &dyn Progress) -> Quantized {
        let Desk { model, preprocess, dataset } = self;
        let source = Source { dataset, preprocess, indices: dataset.first(Some(samples)) };
        quantize(model, &source, settings, 1, progress).unwrap()
    }
}

/// Ends the run where a method begins.
struct KilledAt(&'static str);

impl Progress for KilledAt {
    fn begin(&self, what: &str, _total: usize) {
        assert_ne!(what, self.0, "killed");
    }
    fn step(&self) {}
    fn end(&self) {}
}

#[test]
fn a_killed_run_leaves_a_plan_that_can_be_exported_and_goes_on_with_what_it_found() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new();
    let target: Target = "ort".parse().unwrap();
    let settings = Settings {
        ranges: Ranges::Rule(RangeRule::MinMax),
        methods: "mixed-clipping,zero-point".parse().unwrap(),
        partial: Some(folder.path().join("out.onnx")),
        resume: true,
        ..Settings::new(target.clone(), Policy::new(4, 8, 8))
    };
    let run = |progress: &dyn Progress| desk.quantize(4, &settings, progress);
    catch_unwind(AssertUnwindSafe(|| run(&KilledAt("zero-point")))).unwrap_err();

    let [best, next] =
        ["partial.plan.json", "partial.next.plan.json"].map(|name| folder.path().join("out").with_extension(name));
    assert_eq!(Plan::load(&best).unwrap().target, target.name);
    let planned = plan::apply(&desk.model, &best).unwrap();
    assert_eq!(planned.preprocess().unwrap(), Some(desk.preprocess.clone()));
    let grids = planned.grids.as_ref().unwrap();
    let qdq = export::qdq(&planned.graph, grids, &target, &json!(null), Some(&desk.preprocess)).unwrap();
    assert!(export::write(&folder.path().join("best.onnx"), &qdq).unwrap() > 10_000);

    // As if it had been killed within the first step, six blocks later.
    let mut plan = Plan::load(&next).unwrap();
    let mark = &mut plan.history.last_mut().unwrap().config;
    let done: Step = serde_json::from_value(mark["done"][0].clone()).unwrap();
    assert!(done.findings.len() > 10 && done.seconds > 0.0, "{done:?}");
    (mark["done"], mark["blocks"]) = (json!([]), json!(6));
    (mark["findings"], mark["seconds"]) = (json!(["of six blocks"]), json!(1000.0));
    plan.save(&next).unwrap();
    let steps = run(&Silent).steps;
    assert!(steps[0].findings[0] == "of six blocks" && steps[0].seconds > 1000.0, "{:?}", steps[0]);
    assert_eq!(done.findings.last(), steps[0].findings.last());
    assert!((2..done.findings.len()).contains(&steps[0].findings.len()), "{} findings", steps[0].findings.len());
    assert!(!best.exists() && !next.exists());
}

/// With one scale for all channels, the first layer's first one a hundred times as large as it was.
#[test]
fn a_step_says_which_warning_it_answers_to() {
    let mut desk = Desk::new();
    let graph = &mut desk.model.graph;
    let weight = graph.nodes.iter().find(|node| node.op.name() == "Conv").unwrap().inputs[1].clone();
    let old = graph.constants[&weight].clone();
    let first = old.len() / old.dims[0];
    let towering = old.as_f32().unwrap().iter().enumerate().map(|(i, w)| if i < first { 100.0 * w } else { *w });
    graph.constants.insert(weight, std::sync::Arc::new(Tensor::f32(&old.dims, towering.collect())));
    let answers = |per_channel: bool| {
        let policy = Policy { per_channel, ..Policy::new(8, 8, 8) };
        let settings = Settings { methods: Methods::Basic, ..Settings::new("ort".parse().unwrap(), policy) };
        let steps = desk.quantize(4, &settings, &Silent).steps;
        let equalized = steps.into_iter().find(|step| step.methods == "equalize").unwrap();
        equalized.findings.iter().any(|line| line.starts_with("against outlier_channel: "))
    };
    assert_eq!([true, false].map(answers), [false, true]);
}

#[test]
fn methods_that_refine_have_a_stage_and_others_none() {
    let settings = Settings::new("ort".parse().unwrap(), Policy::new(4, 8, 8));
    for (method, name) in METHODS {
        assert_eq!(Stage::of(*method, &settings, None).is_some(), method.refines(), "{name}");
    }
}

/// A budget is one, however often the run is killed.
#[test]
fn what_a_killed_run_took_counts() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::new();
    let settings = Settings {
        ranges: Ranges::Rule(RangeRule::MinMax),
        methods: Methods::Auto,
        time_budget: Duration::from_secs(10_000),
        partial: Some(folder.path().join("out.onnx")),
        resume: true,
        ..Settings::new("ort".parse().unwrap(), Policy::new(4, 8, 8))
    };
    let run = |progress: &dyn Progress| desk.quantize(16, &settings, progress);
    catch_unwind(AssertUnwindSafe(|| run(&KilledAt("e2e-qp")))).unwrap_err();
    let next = folder.path().join("out.partial.next.plan.json");
    let mut plan = Plan::load(&next).unwrap();
    let mark = &mut plan.history.last_mut().unwrap().config;
    let spent = mark["spent"].as_f64().unwrap();
    let of_steps = mark["done"].as_array().unwrap().iter().map(|step| step["seconds"].as_f64().unwrap()).sum::<f64>();
    assert!(of_steps > 0.0 && spent > of_steps && spent < 1000.0, "{spent} s, {of_steps} in steps");
    mark["spent"] = json!(10_001.0);
    let done = mark["done"].as_array().unwrap().len();
    plan.save(&next).unwrap();
    let steps = run(&Silent).steps;
    let refined = steps.iter().filter(|step| ["comq", "bn-tune", "e2e-qp"].contains(&&*step.methods)).count();
    assert_eq!((done, refined), (2, 2), "{steps:?}");

    // A step that was half through is judged as it is.
    plan.history.last_mut().unwrap().config["done"] = json!([]);
    plan.history.last_mut().unwrap().config["blocks"] = json!(1);
    plan.save(&next).unwrap();
    Plan::load(&next).unwrap().save(&folder.path().join("out.partial.plan.json")).unwrap();
    let steps = run(&Silent).steps;
    let refined: Vec<&str> =
        steps.iter().map(|step| &*step.methods).filter(|name| *name != "bias-correction").collect();
    assert_eq!(refined.last(), Some(&"comq"), "{steps:?}");
}

#[test]
fn scales_are_searched_before_codes_where_channels_share_one() {
    let target: Target = "ort".parse().unwrap();
    let names = |activation_bits: u8, per_channel: bool| {
        let policy = Policy { per_channel, ..Policy::new(4, activation_bits, 8) };
        let settings = Settings { methods: Methods::Auto, ..Settings::new(target.clone(), policy) };
        stages(&settings, None).iter().map(Stage::name).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(8, true), "comq bn-tune e2e-qp");
    assert_eq!(names(8, false), "lapq comq bn-tune e2e-qp");
    assert_eq!(names(4, true), "comq bn-tune qdrop zero-point");
}

/// Each step begins where the one before it ended.
#[test]
fn steps_that_reshape_go_on_from_what_was_kept() {
    let desk = Desk::new();
    let settings = Settings::new("ort".parse().unwrap(), Policy::new(8, 8, 8));
    let steps = desk.quantize(16, &settings, &Silent).steps;
    let reshaping: Vec<&Step> = steps.iter().filter(|step| step.methods != "bias-correction").collect();
    assert!(reshaping.len() > 1, "{steps:?}");
    for pair in reshaping.windows(2) {
        let left = if pair[0].kept { pair[0].after_db } else { pair[0].before_db };
        assert_eq!(pair[1].before_db, left, "{steps:?}");
    }
}

#[test]
fn samples_that_are_held_back_are_whole_runs_that_methods_do_not_see() {
    let dataset = demo::calibration_set();
    let preprocess = demo::model().unwrap().preprocess().unwrap().unwrap();
    // Samples, images of a run, samples seen and held back.
    for (samples, batch, expected) in [
        (64, 1, [56, 8]),
        (40, 1, [35, 5]),
        (50, 16, [32, 16]),
        (64, 4, [56, 8]),
        (10, 1, [10, 10]),
        (20, 16, [16, 16]),
    ] {
        let source = Source { dataset: &dataset, preprocess: &preprocess, indices: (0..samples).collect() };
        let (seen, held) = split(&source, batch);
        assert_eq!([seen.indices.len(), held.indices.len()], expected, "{samples} in runs of {batch}");
        let both = seen.indices.iter().any(|i| held.indices.contains(i));
        assert_eq!(both, seen.indices == held.indices, "{samples} in runs of {batch}");
    }
}

#[test]
fn samples_of_different_sizes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, width) in [("a.png", 4), ("b.png", 4), ("c.png", 6)] {
        image::RgbImage::new(width, 4).save(folder.path().join(name)).unwrap();
    }
    let dataset = Dataset::open(folder.path(), &OpenOptions::default()).unwrap();
    let source = Source { dataset: &dataset, preprocess: &Preprocess::default(), indices: vec![0, 1, 2] };
    let runs = Runs::of(&source, &Graph::default());
    assert!(runs.inputs(0).is_ok() && runs.inputs(1).is_ok());
    let error = Error::from(MethodError::Sample { sample: 2, source: runs.inputs(2).unwrap_err() });
    assert!(error.hint().unwrap().contains("--resize-to"), "{error}");
}
