//! Where the tests find real models and ONNX Runtime. Both are optional; a test that goes without says so.
#![expect(clippy::print_stderr, reason = "a skipped test must be seen")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The ONNX files of `FEWBITS_DATA` (default `../shared/data` beside the checkout).
pub fn models() -> Vec<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("FEWBITS_DATA").map_or(beside, PathBuf::from).join("models");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no models in {}; set FEWBITS_DATA", folder.display());
        return Vec::new();
    };
    let mut models: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    models
}

/// Runs a script of this folder with Python (`FEWBITS_PYTHON`, default `python3`); `false` if Python has no ONNX Runtime.
pub fn python(script: &str, args: &[&str]) -> bool {
    let program = std::env::var("FEWBITS_PYTHON").unwrap_or("python3".into());
    if !Command::new(&program).args(["-c", "import onnx, onnxruntime"]).output().is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED: {program} has no onnx and onnxruntime; set FEWBITS_PYTHON");
        return false;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script);
    let output = Command::new(&program).arg(script).args(args).output().expect("Python ran a moment ago");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    true
}
