//! The plan: the quantization of one model, in a file that a person can read.
//!
//! What enters: grids by tensor name, changed weights, and how they came about. What leaves: `NAME.plan.json`, with the changed
//! weights, if there are any, in `NAME.plan.DIGITS.safetensors` beside it; the digits begin their sha256. Equal plans are equal
//! bytes: keys are sorted, and numbers are the shortest that read back bit for bit. Scales by channel stay in the JSON, on the one
//! line that each tensor has: a plan is then a single file for most methods, and two plans can be compared with `diff`.

mod check;
mod identity;
mod json;

pub use identity::model_sha256;

use crate::error::QuantError;
use fewbits_graph::{Graph, Grids, Tensor};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Version of the file format.
pub const FORMAT: u64 = 1;

/// The quantization of one model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Identity of the prepared float graph; see [`model_sha256`].
    pub model_sha256: String,
    /// Name of the target that placed the grids.
    pub target: String,
    /// How images become the model's input.
    pub preprocess: Value,
    /// What each tensor is quantized to.
    pub tensors: Grids,
    /// Constants that take the place of the graph's, in full.
    pub patches: BTreeMap<String, Arc<Tensor>>,
    /// What was done, in order.
    pub history: Vec<Step>,
}

/// One stage that a plan went through.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Every setting, defaults included.
    pub config: Value,
    /// What it was called.
    pub method: String,
    /// What it measured.
    pub metrics: Value,
    /// Seed of its random numbers.
    pub seed: u64,
}

/// The JSON file. Fields in the order of their names.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanFile {
    format: u64,
    history: Vec<Step>,
    model_sha256: String,
    patches: Vec<String>,
    /// Of the whole safetensors file, so that one of another run is not taken for it.
    patches_sha256: Option<String>,
    preprocess: Value,
    target: String,
    tensors: Grids,
}

#[derive(Deserialize)]
struct Header {
    format: u64,
}

impl Plan {
    /// A plan for `graph` in which everything is still float.
    pub fn new(graph: &Graph, target: &str, preprocess: Value) -> Self {
        Plan { model_sha256: model_sha256(graph), target: target.into(), preprocess, ..Plan::default() }
    }

    /// Writes the plan to `path`, and its changed weights beside it. At any time there is either the old plan or the new one, whole.
    ///
    /// # Errors
    /// [`QuantError::File`]; [`QuantError::NotFloat`] if a changed constant is not a float tensor.
    pub fn save(&self, path: &Path) -> Result<(), QuantError> {
        let old = stored_patches(path);
        let (mut new, mut patches_sha256) = (None, None);
        if !self.patches.is_empty() {
            let bytes = encode_patches(&self.patches)?;
            let sha256 = hex(&Sha256::digest(&bytes));
            let file = patches_path(path, &sha256);
            replace_file(&file, &bytes)?;
            (new, patches_sha256) = (Some(file), Some(sha256));
        }
        let file = PlanFile {
            format: FORMAT,
            history: self.history.clone(),
            model_sha256: self.model_sha256.clone(),
            patches: self.patches.keys().cloned().collect(),
            patches_sha256,
            preprocess: self.preprocess.clone(),
            target: self.target.clone(),
            tensors: self.tensors.clone(),
        };
        let bytes = json::to_vec(&file).map_err(|e| file_error("write", path)(e.into()))?;
        replace_file(path, &bytes)?;
        if let Some(old) = old.filter(|old| new.as_ref() != Some(old)) {
            // Nothing names it any more.
            let _ = fs::remove_file(old);
        }
        Ok(())
    }

    /// Removes the plan at `path` and its changed weights, as far as they are there.
    pub fn remove(path: &Path) {
        for file in stored_patches(path).into_iter().chain([path.into()]) {
            // A file that cannot be removed harms nobody.
            let _ = fs::remove_file(file);
        }
    }

    /// Reads a plan and its changed weights.
    ///
    /// # Errors
    /// [`QuantError::File`], [`QuantError::NotAPlan`], [`QuantError::PlanFormat`] or [`QuantError::Patches`]. Whether the plan
    /// fits a model is for [`Plan::check`] to say.
    pub fn load(path: &Path) -> Result<Self, QuantError> {
        let bytes = fs::read(path).map_err(file_error("read", path))?;
        let not_a_plan = |source| QuantError::NotAPlan { path: path.into(), source };
        let header: Header = serde_json::from_slice(&bytes).map_err(not_a_plan)?;
        if header.format != FORMAT {
            return Err(QuantError::PlanFormat { path: path.into(), found: header.format });
        }
        let file: PlanFile = serde_json::from_slice(&bytes).map_err(not_a_plan)?;
        let mut patches = BTreeMap::new();
        if !file.patches.is_empty() {
            let sha256 = file.patches_sha256.unwrap_or_default();
            let path = existing_patches(path, &sha256);
            let bytes = fs::read(&path).map_err(file_error("read", &path))?;
            let wrong = |reason: String| QuantError::Patches { path: path.clone(), reason };
            if sha256 != hex(&Sha256::digest(&bytes)) {
                return Err(wrong("its sha256 is not the one that the plan names".into()));
            }
            patches = decode_patches(&bytes).map_err(wrong)?;
            if !patches.keys().eq(&file.patches) {
                return Err(wrong("it holds other tensors".into()));
            }
        }
        let PlanFile { history, model_sha256, preprocess, target, tensors, .. } = file;
        Ok(Plan { model_sha256, target, preprocess, tensors, patches, history })
    }
}

/// `a.plan.json` → `a.plan.0123456789ab.safetensors`.
fn patches_path(path: &Path, sha256: &str) -> PathBuf {
    let digits: String = sha256.chars().filter(char::is_ascii_hexdigit).take(12).collect();
    path.with_extension(format!("{digits}.safetensors"))
}

/// The same, or `a.plan.safetensors` if only that is there.
fn existing_patches(path: &Path, sha256: &str) -> PathBuf {
    let (named, plain) = (patches_path(path, sha256), path.with_extension("safetensors"));
    if !named.exists() && plain.exists() { plain } else { named }
}

/// The changed weights that the plan at `path` names, if one is there.
fn stored_patches(path: &Path) -> Option<PathBuf> {
    let file: PlanFile = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some(existing_patches(path, &file.patches_sha256?))
}

fn encode_patches(patches: &BTreeMap<String, Arc<Tensor>>) -> Result<Vec<u8>, QuantError> {
    let mut list = Vec::new();
    for (name, tensor) in patches {
        let values =
            tensor.as_f32().ok_or_else(|| QuantError::NotFloat { tensor: name.clone(), dtype: tensor.dtype() })?;
        list.push((name, &tensor.dims, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()));
    }
    let views = list.iter().map(|(name, dims, bytes)| {
        let view = TensorView::new(Dtype::F32, dims.to_vec(), bytes);
        (name, view.expect("four bytes were written for each element"))
    });
    Ok(safetensors::serialize(views, None).expect("names, shapes and offsets come from tensors"))
}

fn decode_patches(bytes: &[u8]) -> Result<BTreeMap<String, Arc<Tensor>>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|e| e.to_string())?;
    let tensor = |(name, view): (String, TensorView<'_>)| {
        if view.dtype() != Dtype::F32 {
            return Err(format!("tensor `{name}` is {:?}, expected F32", view.dtype()));
        }
        let values = view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        Ok((name, Arc::new(Tensor::f32(view.shape(), values))))
    };
    file.tensors().into_iter().map(tensor).collect()
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QuantError {
    move |source| QuantError::File { action, path: path.into(), source }
}

fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), QuantError> {
    fewbits_files::replace(path, bytes).map_err(file_error("write", path))
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
