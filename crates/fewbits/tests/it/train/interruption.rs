//! Trainings that are killed and go on: to the same bytes, under the same settings, and never wiped out.

use super::{SHORT, Studio};
use crate::program;
use fewbits_demo::images::TRAIN_SEED;
use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Kills the program once it has written a checkpoint after `since`, and a little later. Returns whether it was still running.
fn kill_after_checkpoint(mut child: Child, state: &Path, since: Option<Vec<u8>>, later: Duration) -> bool {
    while std::fs::read(state).ok() == since {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(later);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

impl Studio {
    /// Starts a training into the folder `out` for each of `later`, and kills it so many milliseconds after a checkpoint. Returns how many
    /// were still running.
    fn kill(&self, out: &str, more: &[&str], later: &[u64]) -> usize {
        let (model, out) = (self.desk.path("demo.onnx"), self.desk.path(out));
        let args = self.args(&model, &out, more);
        let state = Path::new(&out).join("state.safetensors");
        let mut kills = 0;
        for later in later {
            let mut command = Command::new(env!("CARGO_BIN_EXE_fewbits"));
            let child = command.args(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            let before = std::fs::read(&state).ok();
            kills += usize::from(kill_after_checkpoint(child, &state, before, Duration::from_millis(*later)));
        }
        kills
    }
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    let studio = Studio::new(320, 48);
    let recipe = [
        "--activations",
        "4",
        "--epochs",
        "3",
        "--batch",
        "32",
        "--weights",
        "4",
        "--ema",
        "0.9",
        "--progressive",
        "8",
    ];
    studio.train("whole", &recipe);
    for every in ["3", "200"] {
        let resumed = [&recipe[..], &["--checkpoint-every", every, "--resume"]].concat();
        let kills = studio.kill(every, &resumed, &[0, 37, 5, 90]);
        assert!(kills >= 2, "{kills} kills");
        studio.train(every, &resumed);
        studio.assert_same("whole", every);
    }
    let report = studio.desk.path("whole.html");
    studio.train("whole", &[&recipe[..], &["--resume", "--report", &report]].concat());
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.contains(">training loss, "), "epochs before the run went on are drawn");
}

/// What a run begins with is computed again when it goes on: channels are scaled by the same factors, and learn at the same rates.
#[test]
fn a_killed_run_of_equalized_channels_goes_on_to_the_same_bytes() {
    let studio = Studio::new(160, 48);
    let flags = ["--method", "lsq-bn", "--granularity", "tensor", "--weights", "4"];
    let recipe = [&["--epochs", "2", "--batch", "32"], &flags[..]].concat();
    studio.train("whole", &recipe);
    studio.train("plain", &[&recipe[..], &["--no-equalize"]].concat());
    let [whole, plain] =
        ["whole", "plain"].map(|out| std::fs::read(studio.desk.path(&format!("{out}/float.onnx"))).unwrap());
    assert!(whole != plain, "nothing was equalized");
    let resumed = [&recipe[..], &["--checkpoint-every", "3", "--resume"]].concat();
    let kills = studio.kill("killed", &resumed, &[0, 5]);
    assert!(kills >= 1, "{kills} kills");
    studio.train("killed", &resumed);
    studio.assert_same("whole", "killed");
}

#[test]
fn an_interrupted_run_is_not_wiped_out() {
    let studio = Studio::new(64, 16);
    let recipe = [&SHORT[..], &["--method", "lsq"]].concat();
    let (model, out) = (studio.desk.path("demo.onnx"), studio.desk.path("run"));
    let train = |model: &str, more: &[&str]| program(&studio.args(model, &out, &[&recipe[..], more].concat()));
    studio.train("run", &recipe);
    let before = studio.results("run");
    let error = |output: std::process::Output| {
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let own = error(train(&studio.desk.path("run/float.onnx"), &[]));
    assert!(own.contains("would be replaced") && own.contains("\nhint: "), "{own}");
    assert_eq!(train(&model, &[]).status.code(), Some(0), "a finished run may be begun anew");
    assert!(studio.results("run") == before);
    // What a run leaves that is interrupted behind its last checkpoint.
    for file in ["summary.json", "float.onnx", "plan.json", "model.onnx"] {
        std::fs::remove_file(studio.desk.path(&format!("run/{file}"))).unwrap();
    }
    let refused = error(train(&model, &[]));
    assert!(refused.contains("not finished") && refused.contains("--resume to go on, or --overwrite"), "{refused}");
    assert_eq!(train(&model, &["--resume"]).status.code(), Some(0));
    assert!(studio.results("run") == before);
    std::fs::remove_file(studio.desk.path("run/summary.json")).unwrap();
    assert_eq!(train(&model, &["--overwrite"]).status.code(), Some(0));
    assert!(studio.results("run") == before);
}

#[test]
fn a_run_goes_on_only_under_the_same_settings() {
    let studio = Studio::new(32, 16);
    let recipe = ["--epochs", "1", "--batch", "16"];
    studio.train("run", &recipe);
    let before = studio.results("run");
    let (model, out) = (studio.desk.path("demo.onnx"), studio.desk.path("run"));
    let again = |more: &[&str]| program(&studio.args(&model, &out, &[&recipe[..], &["--resume"], more].concat()));
    let changes =
        [["--weights", "3"], ["--augment", "none"], ["--target", "generic"], ["--seed", "1"], ["--method", "lsq"]];
    for other in changes {
        let output = again(&other);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{other:?}: {error}");
        assert!(error.contains("other settings") && error.contains("\nhint: "), "{other:?}: {error}");
    }
    assert!(studio.results("run") == before, "the earlier run was changed");
    // Nothing but a change is refused, and recomputing is none.
    for same in [&[][..], &["--recompute"]] {
        assert_eq!(again(same).status.code(), Some(0), "{same:?}");
        assert!(studio.results("run") == before, "{same:?}");
    }
    // As many images with other labels are other data.
    studio.desk.draw("train", TRAIN_SEED, 32, &[0, 1, 2, 3, 4]);
    assert_eq!(again(&[]).status.code(), Some(2));
}
