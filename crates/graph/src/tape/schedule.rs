//! Items cut into segments, and every value given its place.
//!
//! Consecutive items that go image by image are one segment, until an item needs a sum over the whole batch. What lives inside
//! one segment only is kept for the images at work; what is read later is kept for the batch. Buffers are shared by values that
//! are not alive together.

mod book;

use super::{
    item::{Home, Item, Join, Value, ValueId},
    leaves::Leaf,
    record::Record,
};
use crate::{
    error::GraphError,
    exec::memory::{self, Lifetime},
    graph::Graph,
    op::Kernel,
    tensor::{DType, Tensor},
};
use book::{Book, Cut, Span};
use std::{collections::HashMap, ops::Range, sync::Arc};

/// Most lanes that images are dealt to. More would let more threads work, and cost memory for sums.
const LANES: usize = 8;
/// Numbers that the images at work may touch in a segment, so that they stay in the second-level cache.
const CACHED: usize = 192 * 1024;
/// Buffers begin at multiples of this many numbers.
const ALIGNMENT: usize = 16;

/// Where a kernel finds an input.
#[derive(Clone, Debug)]
pub(super) enum Source {
    Absent,
    /// A buffer that the segment writes: its number, and how many numbers the images at work have.
    Own {
        buffer: usize,
        part: usize,
    },
    /// One that it only reads; `part` is 0 for what has no rows.
    Shared {
        place: Place,
        part: usize,
        len: usize,
    },
}

/// Where a value is kept.
#[derive(Clone, Debug)]
pub(super) enum Place {
    Input(usize),
    OutputGradient(usize),
    Constant(Arc<Tensor>),
    Parameter(Range<usize>),
    Statistic(Range<usize>),
    Slot(usize),
}

/// A kernel call, made ready.
#[derive(Debug)]
pub(super) struct Ready {
    pub kernel: Kernel,
    pub ins: Vec<Source>,
    /// Buffers of the segment, with the length that the images at work have.
    pub outs: Vec<Option<(usize, usize)>>,
}

/// A buffer that a segment writes.
#[derive(Clone, Debug)]
pub(super) enum Own {
    /// Rows of the batch: a slot, and numbers per part.
    Rows { slot: usize, part: usize },
    /// Joined over lanes at the end.
    Joined { slot: usize, len: usize, join: Join },
    /// Alive for the images at work only.
    Local { len: usize },
}

/// Items that run one after the other on a few images, for all images side by side.
#[derive(Debug)]
pub(super) struct ByImages {
    /// How many parts of the batch there are.
    pub parts: usize,
    pub items: Vec<Ready>,
    pub own: Vec<Own>,
    pub scratch: usize,
    /// The tensor whose quantizer is set before.
    pub stop: Option<(String, ValueId, Range<usize>)>,
}

/// An item that runs once; it writes whole slots.
#[derive(Debug)]
pub(super) struct Once {
    pub kernel: Kernel,
    pub ins: Vec<Source>,
    /// Slots with lengths.
    pub outs: Vec<Option<(usize, usize)>>,
}

#[derive(Debug)]
pub(super) enum Segment {
    ByImages(ByImages),
    /// Items that do not depend on each other.
    Once(Vec<Once>),
}

/// A step, planned.
#[derive(Debug)]
pub(super) struct Schedule {
    pub segments: Vec<Segment>,
    /// How many segments belong to the forward pass.
    pub forward: usize,
    /// Lengths of the slots.
    pub slots: Vec<usize>,
    pub values: Vec<Value>,
    /// Slot of each made value.
    homes: HashMap<ValueId, usize>,
    pub outputs: Vec<ValueId>,
    pub input_gradients: Vec<Option<ValueId>>,
    pub gradients: Vec<(Leaf, ValueId)>,
    pub running: Vec<([Leaf; 2], ValueId, usize)>,
    pub ranges: Vec<(String, ValueId)>,
}

impl Schedule {
    pub fn new(graph: &Graph, mut record: Record) -> Result<Self, GraphError> {
        let values = std::mem::take(&mut record.values);
        let book = Book { values, images: record.images };
        let mut cuts = book.waves(std::mem::take(&mut record.prologue));
        cuts.extend(book.cut(std::mem::take(&mut record.forward)));
        let forward = cuts.len();
        cuts.extend(book.cut(std::mem::take(&mut record.backward)));
        cuts.extend(book.waves(std::mem::take(&mut record.epilogue)));
        let kept: Vec<ValueId> = record
            .outputs
            .iter()
            .copied()
            .chain(record.input_gradients.iter().flatten().copied())
            .chain(record.gradients.iter().map(|(_, v)| *v))
            .chain(record.running.iter().map(|(_, v, _)| *v))
            .chain(record.ranges.iter().map(|(_, v)| *v))
            .map(|v| book.resolve(v))
            .collect();
        let spans = book.spans(&cuts, &kept);
        let (slots, homes) = book.assign(&spans);
        let place = Places { book: &book, spans: &spans, homes: &homes };
        let mut segments = Vec::new();
        for cut in cuts {
            let segment = match cut {
                Cut::ByImages(items) => place.by_images(items).map(Segment::ByImages),
                Cut::Once(items) => {
                    items.into_iter().map(|item| place.once(item)).collect::<Result<_, _>>().map(Segment::Once)
                }
            };
            segments.push(segment.map_err(|(node, source)| match node {
                Some(node) => GraphError::at(&graph.nodes[node], |_| None, source),
                None => GraphError::NoTensor(source.to_string()),
            })?);
        }
        let Record { outputs, input_gradients, gradients, running, ranges, .. } = record;
        Ok(Schedule {
            segments,
            forward,
            slots,
            values: book.values,
            homes,
            outputs,
            input_gradients,
            gradients,
            running,
            ranges,
        })
    }

    /// Where a value is kept once its segment is through.
    pub fn place(&self, mut v: ValueId) -> Place {
        while let Home::Alias(of) = self.values[v].home {
            v = of;
        }
        place_of(v, &self.values, &self.homes)
    }
}

fn place_of(v: ValueId, values: &[Value], homes: &HashMap<ValueId, usize>) -> Place {
    match &values[v].home {
        Home::Input(i) => Place::Input(*i),
        Home::OutputGradient(i) => Place::OutputGradient(*i),
        Home::Constant(tensor) => Place::Constant(tensor.clone()),
        Home::Parameter(range) => Place::Parameter(range.clone()),
        Home::Statistic(range) => Place::Statistic(range.clone()),
        Home::Made | Home::Joined(_) => Place::Slot(homes[&v]),
        Home::Alias(_) => unreachable!("aliases are resolved"),
    }
}

struct Places<'a> {
    book: &'a Book,
    spans: &'a HashMap<ValueId, Span>,
    homes: &'a HashMap<ValueId, usize>,
}

type Refusal = (Option<usize>, crate::error::OpError);

impl Places<'_> {
    fn by_images(&self, items: Vec<Item>) -> Result<ByImages, Refusal> {
        let book = self.book;
        let mut touched: Vec<ValueId> =
            items.iter().flat_map(|item| book.reads(item).chain(book.writes(item))).collect();
        touched.sort_unstable();
        touched.dedup();
        let rows = touched.iter().any(|&v| book.values[v].rows);
        let per_image: usize = touched.iter().filter(|&&v| book.values[v].rows).map(|&v| book.row_len(v)).sum();
        let images = if rows { images_at_work(book.images, per_image) } else { book.images };
        let part = |v: ValueId| book.row_len(v) * images;
        let mut own: Vec<Own> = Vec::new();
        let mut numbers: HashMap<ValueId, usize> = HashMap::new();
        self.locals(&items, &part, &mut own, &mut numbers);
        for v in items.iter().flat_map(|item| book.writes(item)) {
            if numbers.contains_key(&v) {
                continue;
            }
            let slot = self.homes[&v];
            numbers.insert(v, own.len());
            own.push(match book.values[v].home {
                Home::Joined(join) => Own::Joined { slot, len: book.values[v].fact.len(), join },
                _ => Own::Rows { slot, part: part(v) },
            });
        }
        let stop = items[0].stop.clone().map(|name| {
            let x = book.resolve(items[0].ins[0].expect("a quantizer has an input"));
            let parameters = book.resolve(items[0].ins[1].expect("a quantizer has parameters"));
            match &book.values[parameters].home {
                Home::Parameter(range) => (name, x, range.clone()),
                _ => unreachable!("a quantizer's numbers are parameters"),
            }
        });
        let mut ready = Vec::new();
        let mut scratch = 0;
        for item in items {
            let kernel = (item.build)(images).map_err(|source| (item.node, source))?;
            scratch = scratch.max(kernel.scratch);
            let source = |v: &Option<ValueId>| match v.map(|v| book.resolve(v)) {
                None => Source::Absent,
                Some(v) => match numbers.get(&v) {
                    Some(&buffer) => Source::Own { buffer, part: part(v) },
                    None => self.shared(v, part(v)),
                },
            };
            let out = |v: &Option<ValueId>| {
                let v = book.resolve((*v)?);
                let len = if book.values[v].rows { part(v) } else { book.values[v].fact.len() };
                Some((numbers[&v], len))
            };
            ready.push(Ready {
                kernel,
                ins: item.ins.iter().map(source).collect(),
                outs: item.outs.iter().map(out).collect(),
            });
        }
        Ok(ByImages { parts: book.images / images, items: ready, own, scratch, stop })
    }

    /// Buffers for what lives in this segment only.
    fn locals(
        &self,
        items: &[Item],
        part: &dyn Fn(ValueId) -> usize,
        own: &mut Vec<Own>,
        numbers: &mut HashMap<ValueId, usize>,
    ) {
        let book = self.book;
        let mut lives: Vec<(ValueId, Lifetime)> = Vec::new();
        for (at, item) in items.iter().enumerate() {
            for v in book.reads(item).chain(book.writes(item)).filter(|&v| book.is_local(v, self.spans)) {
                match lives.iter_mut().find(|(known, _)| *known == v) {
                    Some((_, life)) => life.last = at,
                    None => lives.push((v, Lifetime { dtype: DType::F32, len: part(v), first: at, last: at })),
                }
            }
        }
        let lifetimes: Vec<Lifetime> = lives.iter().map(|(_, life)| life.clone()).collect();
        let (slots, homes) = memory::assign(&lifetimes);
        own.extend(slots.iter().map(|slot| Own::Local { len: slot.len.next_multiple_of(ALIGNMENT) }));
        numbers.extend(lives.iter().zip(homes).map(|((v, _), home)| (*v, home)));
    }

    fn shared(&self, v: ValueId, part: usize) -> Source {
        let value = &self.book.values[v];
        let part = if value.rows { part } else { 0 };
        Source::Shared { place: place_of(v, &self.book.values, self.homes), part, len: value.fact.len() }
    }

    fn once(&self, item: Item) -> Result<Once, Refusal> {
        let book = self.book;
        let kernel = (item.build)(book.images).map_err(|source| (item.node, source))?;
        let source = |v: &Option<ValueId>| match v.map(|v| book.resolve(v)) {
            None => Source::Absent,
            Some(v) => match self.shared(v, 0) {
                Source::Shared { place, len, .. } => Source::Shared { place, part: 0, len },
                other => other,
            },
        };
        let out = |v: &Option<ValueId>| {
            let v = book.resolve((*v)?);
            Some((self.homes[&v], book.values[v].fact.len()))
        };
        Ok(Once { kernel, ins: item.ins.iter().map(source).collect(), outs: item.outs.iter().map(out).collect() })
    }
}

/// How many images are computed at a time: a divisor of the batch, as many as stay in the cache, leaving a part for each lane.
fn images_at_work(batch: usize, per_image: usize) -> usize {
    let most = (CACHED / per_image.max(1)).clamp(1, (batch / LANES).max(1));
    (1..=most).rev().find(|n| batch.is_multiple_of(*n)).unwrap_or(1)
}

/// The parts that each lane computes, in order.
pub(super) fn lanes(parts: usize) -> impl Iterator<Item = Range<usize>> {
    let lanes = parts.min(LANES);
    (0..lanes).map(move |lane| lane * parts / lanes..(lane + 1) * parts / lanes)
}
