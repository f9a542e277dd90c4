use super::*;
use crate::testing::Random;
use fewbits_graph::{Attr, Attrs, DType, Granularity, Grid, Node, Op, QuantParams, TensorQuant, ValueInfo};
use serde_json::json;

fn graph() -> Graph {
    let conv = Op::from_attrs("Conv", &Attrs::default().with("strides", Attr::Ints(vec![1, 1]))).unwrap();
    let node = |name: &str, op, inputs: &[&str], output: &str| Node {
        name: name.into(),
        op,
        inputs: inputs.iter().map(|s| s.to_string()).collect(),
        outputs: vec![output.into()],
    };
    let value = |name: &str| ValueInfo { name: name.into(), dtype: DType::F32, dims: None };
    Graph {
        nodes: vec![
            node("conv", conv, &["x", "w", "b"], "y"),
            node("relu", Op::from_attrs("Relu", &Attrs::default()).unwrap(), &["y"], "z"),
        ],
        inputs: vec![value("x")],
        outputs: vec![value("z")],
        constants: [
            ("w".to_string(), Arc::new(Tensor::f32(&[2, 1, 1, 1], vec![0.5, -1.0]))),
            ("b".to_string(), Arc::new(Tensor::f32(&[2], vec![0.0, 1.0]))),
        ]
        .into(),
        ..Graph::default()
    }
}

fn plan() -> Plan {
    let mut plan = Plan::new(&graph(), "ort", json!({"scale": 255, "mean": [0.485, 0.456]}));
    let channel = QuantParams::per_channel(Grid::weights(4), 0, vec![0.1, 1.0 / 7.0]);
    let bias = TensorQuant::BiasOf { input: "x".into(), weight: "w".into() };
    let tensor = |scale, zero| TensorQuant::Quantized(QuantParams::per_tensor(Grid::activations(8), scale, zero));
    plan.tensors.0.extend([
        ("x".into(), tensor(1.0 / 3.0, 128)),
        ("w".into(), TensorQuant::Quantized(channel)),
        ("b".into(), bias),
        ("y".into(), TensorQuant::Float),
        ("z".into(), TensorQuant::SameAs("x".into())),
    ]);
    plan.patches.insert("w".into(), Arc::new(Tensor::f32(&[2, 1, 1, 1], vec![0.25, f32::MIN_POSITIVE])));
    let step =
        Step { method: "minmax".into(), config: json!({"samples": 256}), seed: 7, metrics: json!({"sqnr_db": 31.25}) };
    plan.history.push(step);
    plan
}

#[test]
fn a_plan_reads_back_and_is_written_to_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["a.plan.json", "b.plan.json"].map(|name| folder.path().join(name));
    plan().save(&first).unwrap();
    let read = Plan::load(&first).unwrap();
    assert_eq!(read, plan());
    read.check(&graph()).unwrap();
    read.save(&second).unwrap();
    let patches = |path: &Path| stored_patches(path).unwrap();
    for (a, b) in [(first.clone(), second.clone()), (patches(&first), patches(&second))] {
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    let text = fs::read_to_string(&first).unwrap();
    let line = r#"    "x": {"quantized": {"grid": {"bits": 8, "signed": false, "narrow": false}, "granularity": "tensor", "scale": [0.33333334], "zero_point": [128]}},"#;
    assert!(text.lines().any(|l| l == line), "{text}");
}

#[test]
fn an_old_plan_stays_whole_until_the_new_one_is() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [here, there] = folders.each_ref().map(|folder| folder.path().join("a.plan.json"));
    let mut new = plan();
    new.patches.insert("b".into(), Arc::new(Tensor::f32(&[2], vec![3.0, 4.0])));
    plan().save(&here).unwrap();
    new.save(&there).unwrap();
    // A run that was killed between its two files.
    let patches = stored_patches(&there).unwrap();
    fs::copy(&patches, folders[0].path().join(patches.file_name().unwrap())).unwrap();
    assert_eq!(Plan::load(&here).unwrap(), plan());
    let files = || fs::read_dir(folders[0].path()).unwrap().count();
    new.save(&here).unwrap();
    assert_eq!((Plan::load(&here).unwrap(), files()), (new.clone(), 2));
    // Without digits in the name.
    fs::rename(stored_patches(&here).unwrap(), here.with_extension("safetensors")).unwrap();
    assert_eq!(Plan::load(&here).unwrap(), new);
    plan().save(&here).unwrap();
    assert_eq!((Plan::load(&here).unwrap(), files()), (plan(), 2));
    Plan::remove(&here);
    assert_eq!(files(), 0);
}

#[test]
fn scales_read_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.plan.json");
    let mut random = Random::new(1);
    let scale: Vec<f32> = (0..20_000).map(|_| (100.0 * random.uniform() - 80.0).exp2() * random.uniform()).collect();
    let mut plan = Plan::default();
    let params = QuantParams::per_channel(Grid::weights(8), 0, scale);
    plan.tensors.0.insert("w".into(), TensorQuant::Quantized(params));
    plan.save(&path).unwrap();
    assert_eq!(Plan::load(&path).unwrap(), plan);
}

#[test]
fn files_that_are_no_plans_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.plan.json");
    let error = |text: &str| {
        fs::write(&path, text).unwrap();
        Plan::load(&path).unwrap_err()
    };
    assert!(matches!(Plan::load(&folder.path().join("none")), Err(QuantError::File { .. })));
    for text in ["", "no json", "[]", "{}", r#"{"format": "one"}"#, r#"{"format": 1}"#, r#"{"format": 1, "extra": 0}"#]
    {
        assert!(matches!(error(text), QuantError::NotAPlan { .. }), "{text}");
    }
    let newer = error(r#"{"format": 2, "anything": []}"#);
    assert!(newer.to_string().ends_with("has plan format 2, expected 1"), "{newer}");
    assert!(newer.hint().is_some());
    plan().save(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    assert!(matches!(error(&text.replace("0.33333334", "null")), QuantError::NotAPlan { .. }));
    assert!(matches!(error(&text.replace("per", "par").replace("\"seed\"", "\"sead\"")), QuantError::NotAPlan { .. }));
}

#[test]
fn changed_weights_of_another_run_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.plan.json");
    plan().save(&path).unwrap();
    let weights = stored_patches(&path).unwrap();
    let bytes = fs::read(&weights).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    for wrong in [&other[..], &bytes[..bytes.len() - 1], b""] {
        fs::write(&weights, wrong).unwrap();
        let error = Plan::load(&path).unwrap_err();
        assert!(matches!(error, QuantError::Patches { .. }), "{error}");
    }
    fs::remove_file(&weights).unwrap();
    let name = weights.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("a.plan.") && Plan::load(&path).unwrap_err().to_string().contains(name));
    assert!(decode_patches(b"\xff\xff\xff\xff\xff\xff\xff\xff").is_err());
}

#[test]
fn plans_that_do_not_fit_the_model_are_refused() {
    let params = |edit: &dyn Fn(&mut QuantParams)| {
        let mut params = QuantParams::per_channel(Grid::weights(8), 0, vec![0.1, 0.2]);
        edit(&mut params);
        TensorQuant::Quantized(params)
    };
    let length = |p: &mut QuantParams| p.scale.push(1.0);
    let points = |p: &mut QuantParams| p.zero_point.truncate(1);
    let cases = [
        ("w", params(&|p| p.scale[1] = 0.0), "tensor `w` has the scale 0 at 1"),
        ("w", params(&|p| p.scale[0] = -1.0), "tensor `w` has the scale -1 at 0"),
        ("w", params(&|p| p.scale[0] = f32::INFINITY), "tensor `w` has the scale inf"),
        ("w", params(&|p| p.scale[0] = f32::NAN), "tensor `w` has the scale NaN"),
        ("w", params(&|p| p.zero_point[1] = -128), "zero point -128 at 1"),
        ("w", params(&length), "tensor `w` needs 2 scales, the plan has 3"),
        ("w", params(&points), "tensor `w` needs 2 zero points, the plan has 1"),
        ("w", params(&|p| p.granularity = Granularity::Tensor), "needs 1 scales"),
        ("w", params(&|p| p.granularity = Granularity::Channel { axis: 4 }), "shape [2, 1, 1, 1]"),
        ("w", params(&|p| p.granularity = Granularity::Block { axis: 0, size: 0 }), "shape [2, 1, 1, 1]"),
        ("w", params(&|p| p.grid.bits = 0), "tensor `w` has 0 bits"),
        ("w", params(&|p| p.grid.bits = 99), "tensor `w` has 99 bits"),
        ("y", params(&|_| ()), "tensor `y`"),
        ("v", TensorQuant::Float, "the plan names tensor `v`"),
        ("z", TensorQuant::SameAs("z".into()), "tensor `z` shares the grid of `z`"),
        ("b", TensorQuant::BiasOf { input: "y".into(), weight: "w".into() }, "shares the grid of `y`"),
    ];
    for (name, quant, expected) in cases {
        let mut plan = plan();
        plan.tensors.0.insert(name.into(), quant);
        let error = plan.check(&graph()).unwrap_err().to_string();
        assert!(error.contains(expected), "`{error}` does not say `{expected}`");
    }
    let mut plan = plan();
    plan.patches.insert("w".into(), Arc::new(Tensor::f32(&[2], vec![0.0; 2])));
    let error = plan.check(&graph()).unwrap_err().to_string();
    assert_eq!(error, "the plan replaces `w` of float32 [2, 1, 1, 1] by float32 [2]");
}

#[test]
fn the_identity_of_a_model_covers_what_it_computes() {
    let original = model_sha256(&graph());
    assert_eq!(original.len(), 64);
    let mut renamed = graph();
    renamed.name = "other".into();
    renamed.metadata.insert("author".into(), "someone".into());
    renamed.opset = 13;
    assert_eq!(model_sha256(&renamed), original);
    let edits: [fn(&mut Graph); 7] = [
        |g| g.nodes[0].name.push('2'),
        |g| g.nodes[0].op = Op::from_attrs("Conv", &Attrs::default().with("strides", Attr::Ints(vec![2, 1]))).unwrap(),
        |g| g.nodes[1].outputs[0].push('2'),
        |g| g.inputs[0].dims = Some(vec![]),
        |g| g.constants.get_mut("w").map(|w| *w = Arc::new(Tensor::f32(&[2, 1, 1, 1], vec![0.5, -1.0000001]))).unwrap(),
        |g| g.constants.get_mut("b").map(|b| *b = Arc::new(Tensor::f32(&[1, 2], vec![0.0, 1.0]))).unwrap(),
        |g| _ = g.constants.remove("b"),
    ];
    for (i, edit) in edits.iter().enumerate() {
        let mut other = graph();
        edit(&mut other);
        assert_ne!(model_sha256(&other), original, "edit {i}");
        assert!(matches!(plan().check(&other), Err(QuantError::OtherModel { .. })));
    }
}
