//! Which model a plan belongs to.

use fewbits_graph::{Attr, DType, Data, Graph, Tensor, ValueInfo};
use sha2::{Digest, Sha256};

/// SHA-256 over everything that decides what a graph computes and what its tensors are called: inputs, outputs, nodes with their
/// operators and attributes, and every constant bit for bit. The graph's name, its operator-set versions and its metadata are not
/// part of it.
///
/// The hash is over the prepared graph, so that a change of the passes that prepare it makes old plans invalid: their tensors may
/// be other tensors now.
pub fn model_sha256(graph: &Graph) -> String {
    let mut writer = Writer(Sha256::new());
    writer.list(&graph.inputs, Writer::value_info);
    writer.list(&graph.outputs, Writer::value_info);
    writer.list(&graph.nodes, |w, node| {
        w.text(&node.name);
        w.text(node.op.name());
        w.list(node.op.def().attrs().0, |w, (name, attr)| {
            w.text(&name);
            w.attr(&attr);
        });
        w.list(&node.inputs, |w, name| w.text(name));
        w.list(&node.outputs, |w, name| w.text(name));
    });
    writer.list(&graph.constants, |w, (name, tensor)| {
        w.text(name);
        w.tensor(tensor);
    });
    super::hex(&writer.0.finalize())
}

/// Feeds values to the hash so that different values are different bytes: everything has a known or a stated length.
struct Writer(Sha256);

impl Writer {
    fn number(&mut self, n: u64) {
        self.0.update(n.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.update(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn list<T>(
        &mut self,
        items: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
        write: impl Fn(&mut Self, T),
    ) {
        let items = items.into_iter();
        self.number(items.len() as u64);
        items.for_each(|item| write(self, item));
    }

    /// Little-endian elements, a few thousand at a time.
    fn elements<T: Copy, const N: usize>(&mut self, elements: &[T], bytes: impl Fn(T) -> [u8; N]) {
        self.number(elements.len() as u64);
        for part in elements.chunks(4096) {
            self.0.update(part.iter().flat_map(|&x| bytes(x)).collect::<Vec<u8>>());
        }
    }

    fn dtype(&mut self, dtype: DType) {
        self.text(&dtype.to_string());
    }

    fn value_info(&mut self, info: &ValueInfo) {
        self.text(&info.name);
        self.dtype(info.dtype);
        self.number(info.dims.is_some().into());
        self.list(info.dims.iter().flatten().collect::<Vec<_>>(), |w, dim| w.text(&dim.to_string()));
    }

    fn attr(&mut self, attr: &Attr) {
        match attr {
            Attr::Int(v) => {
                self.text("int");
                self.0.update(v.to_le_bytes());
            }
            Attr::Float(v) => {
                self.text("float");
                self.0.update(v.to_le_bytes());
            }
            Attr::Str(v) => {
                self.text("string");
                self.text(v);
            }
            Attr::Ints(v) => {
                self.text("ints");
                self.elements(v, i64::to_le_bytes);
            }
            Attr::Floats(v) => {
                self.text("floats");
                self.elements(v, f32::to_le_bytes);
            }
            Attr::Strs(v) => {
                self.text("strings");
                self.list(v, |w, text| w.text(text));
            }
            Attr::Tensor(v) => {
                self.text("tensor");
                self.tensor(v);
            }
            Attr::Encoded(v) => {
                self.text("encoded");
                self.bytes(v);
            }
        }
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.dtype(tensor.dtype());
        self.list(&tensor.dims, |w, &d| w.number(d as u64));
        match &tensor.data {
            Data::F32(v) => self.elements(v, f32::to_le_bytes),
            Data::I64(v) => self.elements(v, i64::to_le_bytes),
            Data::I32(v) => self.elements(v, i32::to_le_bytes),
            Data::U8(v) => self.bytes(v),
            Data::I8(v) => self.elements(v, i8::to_le_bytes),
            Data::Bool(v) => self.elements(v, |b| [u8::from(b)]),
            Data::Raw { bytes, .. } => self.bytes(bytes),
        }
    }
}
