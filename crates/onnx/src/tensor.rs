//! `TensorProto` ⇄ [`Tensor`]: every data field, raw bytes and external files.

use crate::{
    error::{OnnxError, TensorError},
    proto::{EXTERNAL, TensorProto, data_type as ty},
};
use fewbits_graph::{DType, Data, Tensor};
use prost::Message;
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path},
};

/// Reads an encoded `TensorProto`, such as the `.pb` files of the ONNX node tests.
///
/// # Errors
/// [`OnnxError::Decode`] or [`OnnxError::Tensor`].
pub fn tensor_from_proto_bytes(bytes: &[u8]) -> Result<Tensor, OnnxError> {
    let proto = TensorProto::decode(bytes).map_err(OnnxError::Decode)?;
    let name = proto.name.clone().unwrap_or_default();
    decode(proto, None).map_err(OnnxError::tensor(&name))
}

/// Number of the ONNX `TensorProto.DataType`.
pub(crate) fn type_code(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => ty::FLOAT,
        DType::I64 => ty::INT64,
        DType::I32 => ty::INT32,
        DType::U8 => ty::UINT8,
        DType::I8 => ty::INT8,
        DType::Bool => ty::BOOL,
        DType::Raw(code) => code,
    }
}

/// The element type with the ONNX number `code`.
pub(crate) fn dtype_of(code: i32) -> DType {
    match code {
        ty::FLOAT => DType::F32,
        ty::INT64 => DType::I64,
        ty::INT32 => DType::I32,
        ty::UINT8 => DType::U8,
        ty::INT8 => DType::I8,
        ty::BOOL => DType::Bool,
        code => DType::Raw(code),
    }
}

/// Width of one element.
fn element_bits(data_type: i32) -> Option<usize> {
    Some(match data_type {
        ty::UINT2 | ty::INT2 => 2,
        ty::UINT4 | ty::INT4 | ty::FLOAT4E2M1 => 4,
        ty::UINT8 | ty::INT8 | ty::BOOL | ty::FLOAT8E4M3FN..=ty::FLOAT8E5M2FNUZ | ty::FLOAT8E8M0 => 8,
        ty::UINT16 | ty::INT16 | ty::FLOAT16 | ty::BFLOAT16 => 16,
        ty::FLOAT | ty::INT32 | ty::UINT32 => 32,
        ty::INT64 | ty::UINT64 | ty::DOUBLE | ty::COMPLEX64 => 64,
        ty::COMPLEX128 => 128,
        _ => return None,
    })
}

/// The tensor, its data taken from wherever the message keeps them. `base` is the folder of external files.
pub(crate) fn decode(mut proto: TensorProto, base: Option<&Path>) -> Result<Tensor, TensorError> {
    let data_type = proto.data_type.unwrap_or_default();
    let bits = element_bits(data_type).ok_or(TensorError::DataType(data_type))?;
    let too_large = || TensorError::Dims(proto.dims.clone());
    let dims: Option<Vec<usize>> = proto.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let dims = dims.ok_or_else(too_large)?;
    // The product leaves out zeros, so that no partial product of other code can overflow either.
    let product = dims.iter().filter(|&&d| d > 0).try_fold(bits, |n, &d| n.checked_mul(d));
    product.filter(|&n| n <= isize::MAX as usize).ok_or_else(too_large)?;
    let len: usize = dims.iter().product();
    let num_bytes = (len * bits).div_ceil(8);
    let wrong = |expected, found, unit| Err(TensorError::Length { dims: dims.clone(), expected, found, unit });

    let bytes = if proto.data_location == Some(EXTERNAL) {
        read_external(&proto, num_bytes, base)?
    } else {
        match proto.raw_data.take() {
            Some(raw) if !raw.is_empty() => raw,
            _ => {
                let (found, data) = typed_fields(&mut proto, data_type)?;
                // Sub-byte types keep several elements in one entry.
                let entries = if bits < 8 { num_bytes } else { len };
                let entries = if matches!(data_type, ty::COMPLEX64 | ty::COMPLEX128) { 2 * len } else { entries };
                if found != entries {
                    return wrong(entries, found, "values");
                }
                return Ok(Tensor { dims, data });
            }
        }
    };
    if bytes.len() != num_bytes {
        return wrong(num_bytes, bytes.len(), "bytes");
    }
    Ok(Tensor { dims, data: from_bytes(data_type, bytes) })
}

/// Data of the typed fields, and how many entries there were.
fn typed_fields(proto: &mut TensorProto, data_type: i32) -> Result<(usize, Data), TensorError> {
    let ints = std::mem::take(&mut proto.int32_data);
    let raw = |bytes| Data::Raw { data_type, bytes };
    let narrow = |v: &i32| -> Result<u8, TensorError> {
        let fits = if data_type == ty::INT8 { i8::try_from(*v).is_ok() } else { u8::try_from(*v).is_ok() };
        if fits { Ok(v.to_le_bytes()[0]) } else { Err(TensorError::Value(*v)) }
    };
    Ok(match data_type {
        ty::FLOAT => {
            let data = std::mem::take(&mut proto.float_data);
            (data.len(), Data::F32(data))
        }
        ty::INT64 => {
            let data = std::mem::take(&mut proto.int64_data);
            (data.len(), Data::I64(data))
        }
        ty::INT32 => (ints.len(), Data::I32(ints)),
        ty::UINT8 | ty::INT8 | ty::BOOL => {
            let bytes = ints.iter().map(narrow).collect::<Result<Vec<u8>, _>>()?;
            (bytes.len(), from_bytes(data_type, bytes))
        }
        ty::UINT16 | ty::INT16 | ty::FLOAT16 | ty::BFLOAT16 => {
            (ints.len(), raw(ints.iter().flat_map(|v| [v.to_le_bytes()[0], v.to_le_bytes()[1]]).collect()))
        }
        ty::COMPLEX64 => (proto.float_data.len(), raw(proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect())),
        ty::DOUBLE | ty::COMPLEX128 => {
            (proto.double_data.len(), raw(proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect()))
        }
        ty::UINT32 => {
            let low = |v: &u64| [v.to_le_bytes()[0], v.to_le_bytes()[1], v.to_le_bytes()[2], v.to_le_bytes()[3]];
            (proto.uint64_data.len(), raw(proto.uint64_data.iter().flat_map(low).collect()))
        }
        ty::UINT64 => (proto.uint64_data.len(), raw(proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect())),
        _ => (ints.len(), raw(ints.iter().map(|v| v.to_le_bytes()[0]).collect())),
    })
}

/// Elements from little-endian bytes; a remainder shorter than an element is dropped.
fn from_bytes(data_type: i32, bytes: Vec<u8>) -> Data {
    macro_rules! words {
        ($ty:ty, $n:literal) => {
            bytes.as_chunks::<$n>().0.iter().map(|&b| <$ty>::from_le_bytes(b)).collect()
        };
    }
    match data_type {
        ty::FLOAT => Data::F32(words!(f32, 4)),
        ty::INT64 => Data::I64(words!(i64, 8)),
        ty::INT32 => Data::I32(words!(i32, 4)),
        ty::UINT8 => Data::U8(bytes),
        ty::INT8 => Data::I8(bytes.into_iter().map(|b| b as i8).collect()),
        ty::BOOL => Data::Bool(bytes.into_iter().map(|b| b != 0).collect()),
        data_type => Data::Raw { data_type, bytes },
    }
}

/// A tensor of doubles or 16-bit floats as one of `float32`; doubles are rounded to the nearest.
pub(crate) fn narrowed(tensor: &Tensor) -> Option<Tensor> {
    let Data::Raw { data_type, bytes } = &tensor.data else { return None };
    let halves = || bytes.as_chunks::<2>().0.iter().map(|&b| u16::from_le_bytes(b));
    let values: Vec<f32> = match *data_type {
        ty::DOUBLE => bytes.as_chunks::<8>().0.iter().map(|&b| f64::from_le_bytes(b) as f32).collect(),
        ty::FLOAT16 => halves().map(half).collect(),
        ty::BFLOAT16 => halves().map(|b| f32::from_bits(u32::from(b) << 16)).collect(),
        _ => return None,
    };
    Some(Tensor::f32(&tensor.dims, values))
}

/// The number of an IEEE half: sign, 5 bits of exponent, 10 of fraction.
fn half(bits: u16) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    let size = match exponent {
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        0 => fraction * 2f32.powi(-24),
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -size } else { size }
}

/// Little-endian bytes as `raw_data` holds them.
pub(crate) fn to_bytes(data: &Data) -> Vec<u8> {
    match data {
        Data::F32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::I64(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::I32(v) => v.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Data::U8(v) => v.clone(),
        Data::I8(v) => v.iter().map(|&x| x as u8).collect(),
        Data::Bool(v) => v.iter().map(|&x| x.into()).collect(),
        Data::Raw { bytes, .. } => bytes.clone(),
    }
}

/// The message of a tensor, its data in `raw_data`.
pub(crate) fn encode(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        dims: tensor.dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(type_code(tensor.dtype())),
        name: (!name.is_empty()).then(|| name.to_string()),
        raw_data: Some(to_bytes(&tensor.data)),
        ..TensorProto::default()
    }
}

/// The `num_bytes` bytes of a tensor that lie in another file. The file must be inside `base`.
fn read_external(proto: &TensorProto, num_bytes: usize, base: Option<&Path>) -> Result<Vec<u8>, TensorError> {
    let entry = |key: &str| proto.external_data.iter().find(|e| e.key() == key).map(|e| e.value());
    let location = entry("location").unwrap_or_default();
    let bad = |reason| TensorError::External { location: location.to_string(), reason };
    let number = |key| match entry(key).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| bad("offset or length is not a number")),
    };
    let relative = Path::new(location);
    if location.is_empty() || !relative.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        return Err(bad("the location must be a path inside the folder of the model"));
    }
    let base = base.ok_or_else(|| bad("the model was not read from a file, so its folder is unknown"))?;
    if let Some(length) = number("length")?
        && length != num_bytes as u64
    {
        return Err(bad("the length differs from what the dimensions need"));
    }
    let path = base.join(relative);
    let read = || -> std::io::Result<Vec<u8>> {
        let offset = number("offset").ok().flatten().unwrap_or(0);
        let mut file = File::open(&path)?;
        let available = file.metadata()?.len().saturating_sub(offset);
        if available < num_bytes as u64 {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file is too short"));
        }
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; num_bytes];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    number("offset")?;
    read().map_err(|source| TensorError::ExternalRead { path: path.clone(), source })
}
