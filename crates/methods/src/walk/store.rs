//! Tensors of many samples, by name: in memory up to a limit, beyond it in temporary files.

use crate::MethodError;
use fewbits_graph::Tensor;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Float tensors of `samples` samples.
#[derive(Debug)]
pub struct Store {
    samples: usize,
    limit: usize,
    held: AtomicUsize,
    shelves: BTreeMap<String, Mutex<Shelf>>,
}

/// One tensor, all samples.
#[derive(Debug)]
struct Shelf {
    slots: Vec<Slot>,
    /// Tensors one behind the other.
    file: Option<File>,
    end: u64,
}

#[derive(Clone, Debug)]
enum Slot {
    Empty,
    Memory(Arc<Tensor>),
    Disk { offset: u64, dims: Vec<usize> },
}

impl Store {
    /// An empty store that keeps up to `limit` bytes in memory.
    pub fn new(samples: usize, limit: usize) -> Self {
        Store { samples, limit, held: AtomicUsize::new(0), shelves: BTreeMap::new() }
    }

    /// Makes room for the tensor `name`.
    pub fn open(&mut self, name: &str) {
        let shelf = Shelf { slots: vec![Slot::Empty; self.samples], file: None, end: 0 };
        self.shelves.insert(name.into(), Mutex::new(shelf));
    }

    /// Whether there is room for `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.shelves.contains_key(name)
    }

    /// Drops every tensor whose name is not `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.shelves.retain(|name, shelf| {
            let keep = wanted(name);
            if !keep {
                let slots = &shelf.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()).slots;
                let bytes = slots.iter().map(|s| if let Slot::Memory(t) = s { 4 * t.len() } else { 0 }).sum();
                self.held.fetch_sub(bytes, Ordering::Relaxed);
            }
            keep
        });
    }

    /// Keeps `tensor` as `name` of `sample`; the name must be open.
    ///
    /// # Errors
    /// [`MethodError::Spill`].
    pub fn put(&self, name: &str, sample: usize, tensor: Tensor) -> Result<(), MethodError> {
        let Some(shelf) = self.shelves.get(name) else { return Ok(()) };
        let bytes = 4 * tensor.len();
        let fits = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.limit;
        let mut shelf = shelf.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shelf.slots[sample] = match tensor.as_f32() {
            Some(values) if !fits => {
                self.held.fetch_sub(bytes, Ordering::Relaxed);
                let offset = shelf.append(values).map_err(self.spill("write"))?;
                Slot::Disk { offset, dims: tensor.dims.clone() }
            }
            _ => Slot::Memory(Arc::new(tensor)),
        };
        Ok(())
    }

    /// The tensor `name` of `sample`.
    ///
    /// # Errors
    /// [`MethodError::Spill`].
    pub fn get(&self, name: &str, sample: usize) -> Result<Arc<Tensor>, MethodError> {
        let shelf = self.shelves.get(name).expect("a block's inputs are opened before it is entered");
        let mut shelf = shelf.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match shelf.slots[sample].clone() {
            Slot::Memory(tensor) => Ok(tensor),
            Slot::Disk { offset, dims } => {
                let values = shelf.read(offset, dims.iter().product()).map_err(self.spill("read"))?;
                Ok(Arc::new(Tensor::f32(&dims, values)))
            }
            Slot::Empty => unreachable!("every sample is put before it is read"),
        }
    }

    fn spill(&self, action: &'static str) -> impl FnOnce(io::Error) -> MethodError {
        let samples = self.samples;
        move |source| MethodError::Spill { action, samples, source }
    }
}

impl Shelf {
    fn append(&mut self, values: &[f32]) -> io::Result<u64> {
        if self.file.is_none() {
            self.file = Some(tempfile::tempfile()?);
        }
        let (file, offset) = (self.file.as_mut().expect("it was just made"), self.end);
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&bytes)?;
        self.end += bytes.len() as u64;
        Ok(offset)
    }

    fn read(&mut self, offset: u64, len: usize) -> io::Result<Vec<f32>> {
        let file = self.file.as_mut().ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; 4 * len];
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_come_back_from_memory_and_from_disk() {
        let mut store = Store::new(4, 40);
        store.open("a");
        let tensor = |i: usize| Tensor::f32(&[1, 5], (0..5).map(|x| (x * i) as f32 - 0.5).collect());
        for i in [2, 0, 3, 1] {
            store.put("a", i, tensor(i)).unwrap();
        }
        assert_eq!(store.held.load(Ordering::Relaxed), 40, "two tensors of 20 bytes fit");
        for i in 0..4 {
            assert_eq!(*store.get("a", i).unwrap(), tensor(i));
        }
        store.retain(|name| name != "a");
        assert_eq!(store.held.load(Ordering::Relaxed), 0);
    }
}
