use super::*;
use fewbits_train::loss::Loss;
use std::sync::Mutex;

/// Totals of what begins, and steps made.
#[derive(Default)]
struct Steps(Mutex<(Vec<usize>, usize)>);

impl Progress for Steps {
    fn begin(&self, _what: &str, total: usize) {
        self.0.lock().unwrap().0.push(total);
    }

    fn step(&self) {
        self.0.lock().unwrap().1 += 1;
    }

    fn end(&self) {}
}

fn folder<'a>(out: &Path, progress: &'a dyn Progress) -> Folder<'a> {
    Folder::at(out, 0, 10, progress)
}

fn epoch(epoch: usize) -> EpochReport {
    let scales = vec![("a".to_string(), 0.1 + epoch as f32), ("b".to_string(), 1e-9)];
    EpochReport { epoch, loss: 1.0, training_top1: 50.0, top1: 40.0, scales, best: false, not_final: None }
}

#[test]
fn a_run_that_goes_on_knows_seconds_and_scales_of_before() {
    let out = tempfile::tempdir().unwrap();
    let steps = Steps::default();
    let mut first = folder(out.path(), &steps);
    first.begin(0).unwrap();
    // As if the epochs had taken 100 seconds each.
    for number in 0..3 {
        first.seconds_before += 100.0;
        first.epoch(&epoch(number)).unwrap();
    }
    let mut second = folder(out.path(), &steps);
    // The last checkpoint is of the middle of the third epoch.
    second.begin(25).unwrap();
    assert!((200.0..201.0).contains(&second.seconds_before), "{}", second.seconds_before);
    assert_eq!(second.rows, first.rows[..2]);
    let loss = Loss { total: 1.0, labels: 1.0, teacher: 0.0, hits: 1 };
    for step in 25..30 {
        second.step(&StepReport { step, steps: 30, epoch: 2, loss, images: 4, learning_rate: 0.1 }).unwrap();
    }
    second.epoch(&epoch(2)).unwrap();
    assert_eq!(*steps.0.lock().unwrap(), (vec![5], 5), "steps of before say nothing of the time left");
    assert_eq!(second.rows, first.rows);
    let text = fs::read_to_string(out.path().join(EPOCHS)).unwrap();
    let seconds: Vec<f64> = text.lines().filter_map(row).map(|(_, seconds)| seconds).collect();
    assert!(seconds.len() == 3 && (200.0..202.0).contains(&seconds[2]), "{seconds:?}");
}

#[test]
fn results_of_an_earlier_run_go_when_one_begins() {
    let out = tempfile::tempdir().unwrap();
    let path = |name: &str| out.path().join(name);
    let steps = Steps::default();
    assert!(!folder(out.path(), &steps).is_unfinished());
    for name in [STATE, SCALES, PLAN, MODEL, "notes.txt"] {
        fs::write(path(name), "").unwrap();
    }
    assert!(folder(out.path(), &steps).is_unfinished());
    fs::write(path(FLOAT), "").unwrap();
    assert!(folder(out.path(), &steps).is_unfinished(), "it may be somebody else's");
    fs::write(path(SUMMARY), "{\"count\": 3}").unwrap();
    assert!(folder(out.path(), &steps).is_unfinished(), "so may this");
    fs::write(path(SUMMARY), "{\"settings\": {\"fewbits\": \"0.1.0\"}}").unwrap();
    assert!(!folder(out.path(), &steps).is_unfinished());
    assert!(is_result(out.path(), &path(FLOAT)) && !is_result(out.path(), &path("notes.txt")));
    assert!(!is_result(out.path(), &path("nowhere")));
    folder(out.path(), &steps).begin(0).unwrap();
    let mut left: Vec<_> = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, [EPOCHS, "notes.txt", STEPS]);
    // What a folder holds that no run has been in is not touched.
    let other = tempfile::tempdir().unwrap();
    for name in [PLAN, MODEL, FLOAT] {
        fs::write(other.path().join(name), "mine").unwrap();
    }
    folder(other.path(), &steps).begin(0).unwrap();
    assert!([PLAN, MODEL, FLOAT].iter().all(|name| fs::read(other.path().join(name)).unwrap() == b"mine"));
}
