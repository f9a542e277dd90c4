//! What tests look for outside the repository: real models and images, and Python with ONNX Runtime. Both are optional, and a
//! test that goes without says so. And what several rooms are held to: [`anchors`].
#![expect(clippy::print_stderr, reason = "a skipped test must be seen")]

pub mod anchors;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The folder of real models and images: `FEWBITS_DATA`, else `../shared/data` beside the checkout. `None`, with a message, if there
/// is none.
pub fn data() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let folder = std::env::var_os("FEWBITS_DATA").map_or(beside, PathBuf::from);
    if folder.join("models").is_dir() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no models in {}; set FEWBITS_DATA", folder.display());
    None
}

/// The ONNX files of [`data`], sorted.
pub fn models() -> Vec<PathBuf> {
    let Some(entries) = data().and_then(|d| std::fs::read_dir(d.join("models")).ok()) else { return Vec::new() };
    let mut models: Vec<_> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    models.retain(|path| path.extension().is_some_and(|e| e == "onnx"));
    models.sort();
    models
}

/// Runs a Python script that needs `requirements.txt`, and returns what it printed; `None`, with a message, if there is no Python
/// that has them.
///
/// # Panics
/// If the script fails: the test that runs it has failed.
pub fn python(script: impl AsRef<Path>, args: &[&str]) -> Option<String> {
    let output =
        Command::new(interpreter()?).arg(script.as_ref()).args(args).output().expect("Python ran a moment ago");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {args:?}: {error}", script.as_ref().display());
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// `FEWBITS_PYTHON`, else an environment in `target/python`, made on first use.
fn interpreter() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let found = std::env::var_os("FEWBITS_PYTHON").map(PathBuf::from).or_else(environment);
            let found =
                found.filter(|python| succeeds(Command::new(python).args(["-c", "import onnx, onnxruntime, PIL"])));
            if found.is_none() {
                eprintln!(
                    "SKIPPED: no Python 3 in which onnx, onnxruntime and pillow can be installed; set FEWBITS_PYTHON"
                );
            }
            found
        })
        .as_deref()
}

fn environment() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("target/python");
    let python = folder.join("bin/python");
    std::fs::create_dir_all(root.join("target")).ok()?;
    // One test binary installs, the others wait.
    let lock = File::create(root.join("target/python.lock")).ok()?;
    lock.lock().ok()?;
    let done = folder.join("installed");
    if !done.exists() {
        let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("requirements.txt");
        let installed = succeeds(Command::new("python3").args(["-m", "venv"]).arg(&folder))
            && succeeds(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements));
        if !installed {
            return None;
        }
        File::create(done).ok()?;
    }
    Some(python)
}

fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}
