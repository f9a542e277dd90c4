//! A refinement under way, on disk, so that a killed run can go on.
//!
//! `OUT.partial.plan.json` is an ordinary plan of the best network so far: it can be exported as it is. `OUT.partial.next.plan.json`
//! is the network that the step under way has reached; its last history entry says where that is.

use crate::{Error, refine::Step};
use fewbits_graph::Graph;
use fewbits_methods::Draft;
use fewbits_quant::{self as quant, Plan};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Time between two writes within a step.
const PAUSE: Duration = Duration::from_secs(10);

/// Where a refinement stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Every setting, the seed, the data and the samples; a run goes on under the same only.
    pub settings: Value,
    /// Steps that are done.
    pub done: Vec<Step>,
    /// How close the best network is, dB.
    pub best_db: f64,
    /// Blocks that the step under way has done.
    pub blocks: usize,
    /// What its methods decided on these, a line each.
    pub findings: Vec<String>,
    /// How long it took so far.
    pub seconds: f64,
    /// How long all took, from the first command on.
    #[serde(default)]
    pub spent: f64,
}

/// The files.
#[derive(Debug)]
pub struct Partial<'a> {
    output: &'a Path,
    prepared: &'a Graph,
    start: Plan,
    written: Instant,
}

impl<'a> Partial<'a> {
    /// Files beside `output`, for drafts of the network `prepared`; `start` is the plan that refinement begins with.
    pub fn new(output: &'a Path, prepared: &'a Graph, start: Plan) -> Self {
        Partial { output, prepared, start, written: Instant::now() }
    }

    fn path(&self, what: &str) -> PathBuf {
        self.output.with_extension(what)
    }

    /// Writes the best network, and the one that a step has reached, if the last time was long ago or `now`.
    ///
    /// # Errors
    /// [`Error::Quant`] if a file cannot be written.
    pub fn write(&mut self, best: &Draft, next: &Draft, mark: &Mark, now: bool) -> Result<(), Error> {
        if !now && self.written.elapsed() < PAUSE {
            return Ok(());
        }
        self.plan(best, None).save(&self.path("partial.plan.json"))?;
        // The mark is written last: it speaks of what is there.
        self.plan(next, Some(mark)).save(&self.path("partial.next.plan.json"))?;
        self.written = Instant::now();
        Ok(())
    }

    fn plan(&self, draft: &Draft, mark: Option<&Mark>) -> Plan {
        let (tensors, patches) = (draft.grids.clone(), draft.patches(self.prepared));
        let mut plan = Plan { tensors, patches, ..self.start.clone() };
        plan.history.extend(mark.map(|mark| quant::Step {
            method: "partial".into(),
            config: serde_json::to_value(mark).expect("numbers and names are valid JSON"),
            ..quant::Step::default()
        }));
        plan
    }

    /// The best network, the one under way, and where it stands, if there is a refinement of the same network under the same settings.
    /// `start` is what refinement begins with.
    ///
    /// # Errors
    /// [`Error::Quant`] if a file is there and cannot be read.
    pub fn read(&self, start: &Draft, settings: &Value) -> Result<Option<(Draft, Draft, Mark)>, Error> {
        let (best, next) = (self.path("partial.plan.json"), self.path("partial.next.plan.json"));
        if !best.exists() || !next.exists() {
            return Ok(None);
        }
        let (best, next) = (Plan::load(&best)?, Plan::load(&next)?);
        let mark = next.history.last().and_then(|step| serde_json::from_value::<Mark>(step.config.clone()).ok());
        let Some(mark) = mark.filter(|mark| mark.settings == *settings) else { return Ok(None) };
        best.check(self.prepared)?;
        next.check(self.prepared)?;
        let draft = |plan: Plan| {
            let mut draft = Draft { grids: plan.tensors, ..start.clone() };
            draft.graph.constants.extend(plan.patches);
            draft
        };
        Ok(Some((draft(best), draft(next), mark)))
    }

    /// Removes the files; the run is over.
    pub fn remove(&self) {
        Plan::remove(&self.path("partial.plan.json"));
        Plan::remove(&self.path("partial.next.plan.json"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo;
    use fewbits_graph::{Grids, Tensor, passes};
    use serde_json::json;
    use std::{fs, sync::Arc};

    #[test]
    fn what_is_written_is_read_under_the_same_settings_only() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("out.onnx");
        let (prepared, _) = passes::prepare(&demo::model().unwrap().graph).unwrap();
        let start = Draft { graph: prepared.clone(), grids: Grids::default() };
        let mut next = start.clone();
        let (name, old) = prepared.constants.iter().find(|(_, t)| t.as_f32().is_some_and(|v| v.len() > 1)).unwrap();
        next.set_constant(name, Tensor::f32(&old.dims, vec![0.5; old.len()]));
        let mark = Mark { settings: json!({"seed": 1}), best_db: 3.5, blocks: 2, ..Mark::default() };
        let mut partial = Partial::new(&output, &prepared, Plan::new(&prepared, "ort", Value::Null));
        assert_eq!(partial.read(&start, &mark.settings).unwrap(), None);
        partial.write(&start, &next, &mark, true).unwrap();
        assert_eq!(partial.read(&start, &mark.settings).unwrap(), Some((start.clone(), next, mark)));
        assert_eq!(partial.read(&start, &json!({"seed": 2})).unwrap(), None);
        // Of another network.
        let mut other = partial.plan(&start, None);
        other.patches.insert(name.clone(), Arc::new(Tensor::f32(&[1], vec![0.5])));
        other.save(&partial.path("partial.plan.json")).unwrap();
        assert!(partial.read(&start, &json!({"seed": 1})).is_err());
        partial.remove();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
