//! Runs a schedule: segments one after the other, lanes of images side by side.

use super::{
    Initialize,
    item::ValueId,
    leaves::Leaves,
    normalization::Normalization,
    schedule::{ByImages, Once, Own, Place, Ready, Schedule, Segment, Source, lanes},
};
use crate::op::{Io, Slice, SliceMut};
use fewbits_kernels::Threads;
use std::{
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Buffers of a schedule.
#[derive(Debug)]
pub(super) struct Memory {
    slots: Vec<Vec<f32>>,
    /// For each lane, what it sums up.
    joined: Vec<Vec<f32>>,
    /// For each worker, what lives in a segment only, and scratch memory.
    local: Vec<Mutex<Vec<f32>>>,
    local_len: usize,
}

/// What the caller gives, and slots that are only read.
#[derive(Clone, Copy)]
struct Given<'a> {
    leaves: &'a Leaves,
    inputs: &'a [&'a [f32]],
    output_gradients: &'a [&'a [f32]],
    slots: &'a [Vec<f32>],
}

impl Given<'_> {
    /// All numbers of a place.
    fn all<'a>(&'a self, place: &'a Place, len: usize) -> Slice<'a> {
        match place {
            Place::Input(i) => Slice::F32(self.inputs[*i]),
            Place::OutputGradient(i) => Slice::F32(self.output_gradients[*i]),
            Place::Constant(tensor) => crate::exec::slice(&tensor.data, tensor.len()),
            Place::Parameter(range) => Slice::F32(&self.leaves.values[range.clone()]),
            Place::Statistic(range) => Slice::F32(&self.leaves.statistics[range.clone()]),
            Place::Slot(slot) => Slice::F32(&self.slots[*slot][..len]),
        }
    }

    /// What part `p` of the batch has of a source that the segment does not write.
    fn shared<'a>(&'a self, place: &'a Place, part: usize, len: usize, p: usize) -> Slice<'a> {
        match (self.all(place, len), part) {
            (Slice::F32(all), 1..) => Slice::F32(&all[p * part..][..part]),
            (all, _) => all,
        }
    }
}

impl Memory {
    pub fn new(schedule: &Schedule) -> Self {
        let mut local_len = 0;
        let mut joined_len = 0;
        let mut parts = 0;
        for segment in &schedule.segments {
            if let Segment::ByImages(s) = segment {
                local_len = local_len.max(s.local_len() + s.scratch);
                joined_len = joined_len.max(s.joined_len());
                parts = parts.max(lanes(s.parts).count());
            } else if let Segment::Once(items) = segment {
                local_len = local_len.max(items.iter().map(|i| i.kernel.scratch).max().unwrap_or(0));
            }
        }
        Memory {
            slots: schedule.slots.iter().map(|&len| vec![0.0; len]).collect(),
            joined: vec![vec![0.0; joined_len]; parts],
            local: vec![],
            local_len,
        }
    }

    pub fn bytes(&self) -> usize {
        let slots: usize = self.slots.iter().chain(&self.joined).map(Vec::len).sum();
        (slots + self.local.len() * self.local_len) * size_of::<f32>()
    }

    /// The numbers of a value that is kept.
    pub fn value(&self, schedule: &Schedule, v: ValueId) -> &[f32] {
        match schedule.place(v) {
            Place::Slot(slot) => &self.slots[slot][..schedule.values[v].fact.len()],
            _ => &[],
        }
    }

    pub fn forward(
        &mut self,
        schedule: &Schedule,
        leaves: &mut Leaves,
        inputs: &[&[f32]],
        threads: &Threads,
        initialize: &mut Initialize<'_>,
    ) {
        self.workers(threads);
        for segment in &schedule.segments[..schedule.forward] {
            if let Segment::ByImages(ByImages { stop: Some((name, x, range)), .. }) = segment {
                let given = Given { leaves: &*leaves, inputs, output_gradients: &[], slots: &self.slots };
                let place = schedule.place(*x);
                let x = match given.all(&place, schedule.values[*x].fact.len()) {
                    Slice::F32(x) => x.to_vec(),
                    _ => vec![],
                };
                initialize(name, &x, &mut leaves.values[range.clone()]);
            }
            self.segment(segment, leaves, inputs, &[], threads);
        }
        for ([mean, variance], v, channels) in &schedule.running {
            let all = self.value(schedule, *v);
            let [new_mean, new_variance] = Normalization::running(*channels, all);
            leaves.statistics[mean.range.clone()].copy_from_slice(new_mean);
            leaves.statistics[variance.range.clone()].copy_from_slice(new_variance);
        }
    }

    pub fn backward(
        &mut self,
        schedule: &Schedule,
        leaves: &Leaves,
        inputs: &[&[f32]],
        output_gradients: &[&[f32]],
        gradients: &mut [f32],
        threads: &Threads,
    ) {
        self.workers(threads);
        for segment in &schedule.segments[schedule.forward..] {
            self.segment(segment, leaves, inputs, output_gradients, threads);
        }
        gradients.fill(0.0);
        for (leaf, v) in &schedule.gradients {
            gradients[leaf.range.clone()].copy_from_slice(self.value(schedule, *v));
        }
    }

    fn workers(&mut self, threads: &Threads) {
        while self.local.len() < threads.count() {
            self.local.push(Mutex::new(vec![0.0; self.local_len]));
        }
    }

    fn segment(
        &mut self,
        segment: &Segment,
        leaves: &Leaves,
        inputs: &[&[f32]],
        output_gradients: &[&[f32]],
        threads: &Threads,
    ) {
        // What the segment writes is taken out, so that the rest can be read from all threads.
        let written: Vec<usize> = match segment {
            Segment::ByImages(s) => s.own.iter().filter_map(Own::slot).collect(),
            Segment::Once(items) => items.iter().flat_map(|i| i.outs.iter().flatten().map(|o| o.0)).collect(),
        };
        let mut taken: Vec<(usize, Vec<f32>)> =
            written.into_iter().map(|slot| (slot, std::mem::take(&mut self.slots[slot]))).collect();
        let given = Given { leaves, inputs, output_gradients, slots: &self.slots };
        match segment {
            Segment::ByImages(s) => s.run(&given, &mut taken, &mut self.joined, &self.local, threads),
            Segment::Once(items) => run_once(items, &given, &mut taken, &self.local, threads),
        }
        for (slot, buffer) in taken {
            self.slots[slot] = buffer;
        }
    }
}

impl Own {
    fn slot(&self) -> Option<usize> {
        match self {
            Own::Rows { slot, .. } | Own::Joined { slot, .. } => Some(*slot),
            Own::Local { .. } => None,
        }
    }
}

/// A buffer in a lane: which of its numbers belong to the part at work.
struct Buffer<'a> {
    numbers: &'a mut [f32],
    /// Numbers per part, or 0 for what all parts share.
    part: usize,
}

impl Buffer<'_> {
    /// The numbers of the lane's part `p`, `len` of them.
    fn range(&self, p: usize, len: usize) -> Range<usize> {
        p * self.part..p * self.part + len
    }
}

impl ByImages {
    fn local_len(&self) -> usize {
        self.own.iter().map(|own| if let Own::Local { len } = own { *len } else { 0 }).sum()
    }

    fn joined_len(&self) -> usize {
        self.own.iter().map(|own| if let Own::Joined { len, .. } = own { *len } else { 0 }).sum()
    }

    fn run(
        &self,
        given: &Given<'_>,
        taken: &mut [(usize, Vec<f32>)],
        joined: &mut [Vec<f32>],
        local: &[Mutex<Vec<f32>>],
        threads: &Threads,
    ) {
        let lanes: Vec<Range<usize>> = lanes(self.parts).collect();
        let mut work: Vec<Vec<Buffer<'_>>> = lanes.iter().map(|_| Vec::new()).collect();
        {
            let mut slots = taken.iter_mut();
            let mut sums: Vec<&mut [f32]> = joined[..lanes.len()].iter_mut().map(Vec::as_mut_slice).collect();
            for own in &self.own {
                match *own {
                    Own::Rows { part, .. } => {
                        let (_, buffer) = slots.next().expect("a slot was taken for each buffer");
                        let mut rest = &mut buffer[..];
                        for (lane, buffers) in lanes.iter().zip(&mut work) {
                            let (numbers, behind) = rest.split_at_mut(lane.len() * part);
                            buffers.push(Buffer { numbers, part });
                            rest = behind;
                        }
                    }
                    Own::Joined { len, join, .. } => {
                        slots.next().expect("a slot was taken for each buffer");
                        for (rest, buffers) in sums.iter_mut().zip(&mut work) {
                            let (numbers, behind) = std::mem::take(rest).split_at_mut(len);
                            numbers.fill(join.neutral());
                            buffers.push(Buffer { numbers, part: 0 });
                            *rest = behind;
                        }
                    }
                    // Filled in by the worker.
                    Own::Local { .. } => work.iter_mut().for_each(|b| b.push(Buffer { numbers: &mut [], part: 0 })),
                }
            }
            let work: Vec<Mutex<Vec<Buffer<'_>>>> = work.into_iter().map(Mutex::new).collect();
            let one = Threads::new(1);
            threads.run_with_worker(lanes.len(), |worker, lane| {
                let mut buffers = work[lane].lock().unwrap_or_else(PoisonError::into_inner);
                let mut memory = local[worker].lock().unwrap_or_else(PoisonError::into_inner);
                self.lane(given, lanes[lane].clone(), &mut buffers, &mut memory, &one);
            });
        }
        self.join(taken, &joined[..lanes.len()], threads);
    }

    fn lane(
        &self,
        given: &Given<'_>,
        parts: Range<usize>,
        buffers: &mut [Buffer<'_>],
        memory: &mut [f32],
        one: &Threads,
    ) {
        let mut rest = memory;
        let mut all: Vec<Buffer<'_>> = Vec::with_capacity(buffers.len());
        for (own, buffer) in self.own.iter().zip(buffers) {
            all.push(match own {
                Own::Local { len } => {
                    let (numbers, behind) = rest.split_at_mut(*len);
                    rest = behind;
                    Buffer { numbers, part: 0 }
                }
                _ => Buffer { numbers: &mut *buffer.numbers, part: buffer.part },
            });
        }
        for (p, batch_part) in parts.enumerate() {
            for item in &self.items {
                item.run(given, p, batch_part, &mut all, rest, one);
            }
        }
    }

    /// Joins what the lanes summed up, in their order.
    fn join(&self, taken: &mut [(usize, Vec<f32>)], joined: &[Vec<f32>], threads: &Threads) {
        const CHUNK: usize = 1 << 14;
        let mut from = 0;
        let mut slots = taken.iter_mut();
        for own in &self.own {
            match *own {
                Own::Joined { len, join, .. } => {
                    let (_, total) = slots.next().expect("a slot was taken for each buffer");
                    let chunks: Vec<Mutex<&mut [f32]>> = total[..len].chunks_mut(CHUNK).map(Mutex::new).collect();
                    threads.run(chunks.len(), |c| {
                        let mut chunk = chunks[c].lock().unwrap_or_else(PoisonError::into_inner);
                        let at = from + c * CHUNK;
                        join.rows(&mut chunk, joined, at);
                    });
                    from += len;
                }
                Own::Rows { .. } => drop(slots.next()),
                Own::Local { .. } => {}
            }
        }
    }
}

impl Ready {
    /// Runs the kernel for part `p` of a lane, `batch_part` of the batch.
    fn run(
        &self,
        given: &Given<'_>,
        p: usize,
        batch_part: usize,
        buffers: &mut [Buffer<'_>],
        scratch: &mut [f32],
        one: &Threads,
    ) {
        // What is written is taken out while the rest is read.
        let mut written: Vec<(usize, Range<usize>, &mut [f32])> = Vec::with_capacity(self.outs.len());
        for &(buffer, len) in self.outs.iter().flatten() {
            let range = buffers[buffer].range(p, len);
            written.push((buffer, range, std::mem::take(&mut buffers[buffer].numbers)));
        }
        {
            let mut ins: Vec<Slice<'_>> = Vec::with_capacity(self.ins.len());
            for source in &self.ins {
                ins.push(match source {
                    Source::Absent => Slice::Absent,
                    Source::Own { buffer, part } => {
                        let buffer = &buffers[*buffer];
                        Slice::F32(&buffer.numbers[buffer.range(p, *part)])
                    }
                    Source::Shared { place, part, len } => given.shared(place, *part, *len, batch_part),
                });
            }
            let mut next = written.iter_mut();
            let mut outs: Vec<SliceMut<'_>> = Vec::with_capacity(self.outs.len());
            for out in &self.outs {
                outs.push(match out {
                    None => SliceMut::F32(&mut []),
                    Some(_) => {
                        let (_, range, numbers) = next.next().expect("one buffer per output");
                        SliceMut::F32(&mut numbers[range.clone()])
                    }
                });
            }
            self.kernel.run(&mut Io { threads: one, ins: &ins, outs: &mut outs, scratch });
        }
        for (buffer, _, numbers) in written {
            buffers[buffer].numbers = numbers;
        }
    }
}

/// Runs items that do not depend on each other: one with all threads, several side by side.
fn run_once(
    items: &[Once],
    given: &Given<'_>,
    taken: &mut [(usize, Vec<f32>)],
    local: &[Mutex<Vec<f32>>],
    threads: &Threads,
) {
    let one = Threads::new(1);
    let mut buffers = taken.iter_mut();
    let work: Vec<Mutex<Vec<&mut Vec<f32>>>> = items
        .iter()
        .map(|item| {
            let mut own = |_| buffers.next().map(|(_, buffer)| buffer).expect("a slot was taken for each output");
            Mutex::new(item.outs.iter().flatten().map(&mut own).collect())
        })
        .collect();
    threads.run_with_worker(items.len(), |worker, i| {
        let item = &items[i];
        let mut own = work[i].lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = local[worker].lock().unwrap_or_else(PoisonError::into_inner);
        let mut ins: Vec<Slice<'_>> = Vec::with_capacity(item.ins.len());
        for source in &item.ins {
            ins.push(match source {
                Source::Shared { place, len, .. } => given.all(place, *len),
                Source::Absent | Source::Own { .. } => Slice::Absent,
            });
        }
        let mut next = own.iter_mut();
        let mut outs: Vec<SliceMut<'_>> = Vec::with_capacity(item.outs.len());
        for out in &item.outs {
            outs.push(match out {
                None => SliceMut::F32(&mut []),
                Some((_, len)) => SliceMut::F32(&mut next.next().expect("one buffer per output")[..*len]),
            });
        }
        let threads = if items.len() == 1 { threads } else { &one };
        item.kernel.run(&mut Io { threads, ins: &ins, outs: &mut outs, scratch: &mut scratch });
    });
}
