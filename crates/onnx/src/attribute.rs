//! `AttributeProto` ⇄ [`Attr`]. What Fewbits does not look into (sub-graphs, sparse tensors …) stays encoded.

use crate::{
    error::OnnxError,
    proto::{AttributeProto, attribute_type as kind},
    tensor,
};
use fewbits_graph::{Attr, Attrs};
use prost::Message;
use std::path::Path;

/// All attributes of a node.
pub(crate) fn decode_all(list: Vec<AttributeProto>, base: Option<&Path>) -> Result<Attrs, OnnxError> {
    let mut attrs = Attrs::default();
    for mut proto in list {
        let name = proto.name.take().unwrap_or_default();
        let value = decode(&name, proto, base)?;
        attrs.0.insert(name, value);
    }
    Ok(attrs)
}

fn decode(name: &str, mut proto: AttributeProto, base: Option<&Path>) -> Result<Attr, OnnxError> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let known = match proto.r#type.filter(|&k| k != 0).unwrap_or_else(|| guess_kind(&proto)) {
        kind::FLOAT => Some(Attr::Float(proto.f())),
        kind::INT => Some(Attr::Int(proto.i())),
        kind::STRING => text(proto.s()).map(Attr::Str),
        kind::FLOATS => Some(Attr::Floats(std::mem::take(&mut proto.floats))),
        kind::INTS => Some(Attr::Ints(std::mem::take(&mut proto.ints))),
        kind::STRINGS => proto.strings.iter().map(|s| text(s)).collect::<Option<Vec<_>>>().map(Attr::Strs),
        kind::TENSOR if proto.t.as_ref().is_some_and(|t| t.data_type != Some(crate::proto::data_type::STRING)) => {
            let value = tensor::decode(proto.t.take().unwrap_or_default(), base).map_err(OnnxError::tensor(name))?;
            Some(Attr::Tensor(value))
        }
        _ => None,
    };
    Ok(known.unwrap_or_else(|| {
        proto.name = Some(name.to_string());
        Attr::Encoded(proto.encode_to_vec())
    }))
}

/// Files of the first IR versions leave the type out: the field that is set tells it.
fn guess_kind(proto: &AttributeProto) -> i32 {
    let set = [
        (proto.f.is_some(), kind::FLOAT),
        (proto.i.is_some(), kind::INT),
        (proto.s.is_some(), kind::STRING),
        (proto.t.is_some(), kind::TENSOR),
        (proto.g.is_some(), kind::GRAPH),
        (!proto.floats.is_empty(), kind::FLOATS),
        (!proto.ints.is_empty(), kind::INTS),
        (!proto.strings.is_empty(), kind::STRINGS),
    ];
    set.iter().find(|(is_set, _)| *is_set).map_or(0, |&(_, kind)| kind)
}

/// All attributes of a node, sorted by name.
pub(crate) fn encode_all(attrs: &Attrs) -> Result<Vec<AttributeProto>, OnnxError> {
    attrs.0.iter().map(|(name, value)| encode(name, value)).collect()
}

fn encode(name: &str, value: &Attr) -> Result<AttributeProto, OnnxError> {
    let mut proto = AttributeProto { name: Some(name.to_string()), ..AttributeProto::default() };
    let kind = match value {
        Attr::Int(v) => {
            proto.i = Some(*v);
            kind::INT
        }
        Attr::Float(v) => {
            proto.f = Some(*v);
            kind::FLOAT
        }
        Attr::Str(v) => {
            proto.s = Some(v.clone().into_bytes());
            kind::STRING
        }
        Attr::Ints(v) => {
            proto.ints = v.clone();
            kind::INTS
        }
        Attr::Floats(v) => {
            proto.floats = v.clone();
            kind::FLOATS
        }
        Attr::Strs(v) => {
            proto.strings = v.iter().map(|s| s.clone().into_bytes()).collect();
            kind::STRINGS
        }
        Attr::Tensor(v) => {
            proto.t = Some(tensor::encode("", v));
            kind::TENSOR
        }
        Attr::Encoded(bytes) => return AttributeProto::decode(&bytes[..]).map_err(OnnxError::Decode),
    };
    proto.r#type = Some(kind);
    Ok(proto)
}
