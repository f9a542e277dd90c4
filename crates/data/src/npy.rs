//! numpy's `.npy` format: reading row by row without loading the file, and writing.
//!
//! Source: the NPY format specification (numpy.lib.format), versions 1.0 to 3.0. Only C order is read.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::DataError;

/// Element types that are read and written, all little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// `<f4`
    F32,
    /// `|u1`
    U8,
    /// `<i4`
    I32,
    /// `<i8`
    I64,
}

impl Dtype {
    fn parse(descr: &str) -> Option<Self> {
        Some(match descr {
            "<f4" => Self::F32,
            "|u1" | "<u1" => Self::U8,
            "<i4" => Self::I32,
            "<i8" => Self::I64,
            _ => return None,
        })
    }

    fn descr(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::U8 => "|u1",
            Self::I32 => "<i4",
            Self::I64 => "<i8",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// The elements of an array to be written.
#[derive(Debug, Clone, Copy)]
pub enum Elements<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// Bytes.
    U8(&'a [u8]),
    /// 64-bit integers.
    I64(&'a [i64]),
}

/// Writes one array as `.npy` (version 1.0, or 2.0 for a very long shape).
///
/// Fails with `InvalidInput` if `shape` does not multiply to the number of elements.
pub fn write(writer: &mut impl Write, shape: &[usize], elements: Elements<'_>) -> io::Result<()> {
    let (dtype, len) = match elements {
        Elements::F32(v) => (Dtype::F32, v.len()),
        Elements::U8(v) => (Dtype::U8, v.len()),
        Elements::I64(v) => (Dtype::I64, v.len()),
    };
    if shape.iter().product::<usize>() != len {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("shape {shape:?} does not hold {len} elements"),
        ));
    }
    let dims: String = shape.iter().map(|d| format!("{d}, ")).collect();
    let dims = if shape.len() == 1 { dims.trim_end() } else { dims.trim_end_matches(", ") };
    let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({dims}), }}", dtype.descr());
    let long = header.len() + 1 + 63 > usize::from(u16::MAX);
    let prefix = if long { 12 } else { 10 };
    let padding = (64 - (prefix + header.len() + 1) % 64) % 64;
    header.push_str(&" ".repeat(padding));
    header.push('\n');
    writer.write_all(b"\x93NUMPY")?;
    if long {
        writer.write_all(&[2, 0])?;
        writer.write_all(&(header.len() as u32).to_le_bytes())?;
    } else {
        writer.write_all(&[1, 0])?;
        writer.write_all(&(header.len() as u16).to_le_bytes())?;
    }
    writer.write_all(header.as_bytes())?;
    match elements {
        Elements::U8(v) => writer.write_all(v),
        Elements::F32(v) => v.iter().try_for_each(|x| writer.write_all(&x.to_le_bytes())),
        Elements::I64(v) => v.iter().try_for_each(|x| writer.write_all(&x.to_le_bytes())),
    }
}

/// An array in a file, of which rows (slices along the first axis) are read on demand.
#[derive(Debug)]
pub struct NpyFile {
    path: PathBuf,
    file: Mutex<File>,
    data_start: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Shape; a scalar has an empty one.
    pub shape: Vec<usize>,
}

impl NpyFile {
    /// Opens an `.npy` file and checks that it is as long as its header says.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(|e| DataError::io(path, "read", e))?;
        let len = file.metadata().map_err(|e| DataError::io(path, "read", e))?.len();
        Self::inside(path, file, 0, len)
    }

    /// An array that occupies bytes `start .. start + len` of `file`; `path` serves for messages.
    pub(crate) fn inside(path: &Path, mut file: File, start: u64, len: u64) -> Result<Self, DataError> {
        let malformed = |reason: String| DataError::Malformed { path: path.to_path_buf(), format: "npy", reason };
        let header = (|| -> io::Result<Option<(String, u64)>> {
            file.seek(SeekFrom::Start(start))?;
            let mut reader = Read::by_ref(&mut file).take(len);
            let mut magic = [0u8; 8];
            reader.read_exact(&mut magic)?;
            if &magic[..6] != b"\x93NUMPY" || !(1..=3).contains(&magic[6]) {
                return Ok(None);
            }
            let mut size = [0u8; 4];
            let field = if magic[6] == 1 { 2 } else { 4 };
            reader.read_exact(&mut size[..field])?;
            let size = u64::from(u32::from_le_bytes(size));
            let mut text = Vec::new();
            reader.take(size).read_to_end(&mut text)?;
            Ok((text.len() as u64 == size)
                .then(|| (String::from_utf8_lossy(&text).into_owned(), 8 + field as u64 + size)))
        })();
        let (text, header_len) = match header {
            Ok(Some(found)) => found,
            Ok(None) => return Err(malformed("the header is not one of numpy's".into())),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(DataError::Truncated { path: path.to_path_buf(), needed: 10, found: len });
            }
            Err(e) => return Err(DataError::io(path, "read", e)),
        };
        let header = Header::parse(&text).ok_or_else(|| malformed(format!("header `{}`", text.trim_end())))?;
        let dtype = Dtype::parse(&header.descr).ok_or_else(|| DataError::Dtype {
            path: path.to_path_buf(),
            found: header.descr.clone(),
            wanted: "`<f4` (float32), `|u1` (uint8), `<i4` or `<i8`",
        })?;
        if header.fortran_order {
            return Err(malformed("it is in Fortran order; save `numpy.ascontiguousarray(array)`".into()));
        }
        let bytes = header.shape.iter().try_fold(dtype.size(), |n, &d| n.checked_mul(d));
        let needed = bytes.and_then(|b| (b as u64).checked_add(header_len));
        let needed = needed.ok_or_else(|| malformed(format!("shape {:?} is too large", header.shape)))?;
        if needed > len {
            return Err(DataError::Truncated { path: path.to_path_buf(), needed, found: len });
        }
        Ok(Self {
            path: path.to_path_buf(),
            file: Mutex::new(file),
            data_start: start + header_len,
            dtype,
            shape: header.shape,
        })
    }

    /// Number of rows: the first dimension, or 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of one row.
    pub fn row_len(&self) -> usize {
        // Beside a dimension of 0 the others may be of any size.
        self.shape.iter().skip(1).fold(1, |n, &d| n.saturating_mul(d))
    }

    /// The bytes of `count` rows from row `first`.
    fn bytes(&self, first: usize, count: usize) -> Result<Vec<u8>, DataError> {
        let row = self.row_len() * self.dtype.size();
        let mut bytes = vec![0; row * count];
        let mut file = self.file.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let read = file
            .seek(SeekFrom::Start(self.data_start + (row * first) as u64))
            .and_then(|_| file.read_exact(&mut bytes));
        read.map_err(|e| DataError::io(&self.path, "read", e))?;
        Ok(bytes)
    }

    /// Rows `first .. first + count` of an f32 array.
    pub fn read_f32(&self, first: usize, count: usize) -> Result<Vec<f32>, DataError> {
        self.expect_dtype(self.dtype == Dtype::F32, "float32")?;
        let bytes = self.bytes(first, count)?;
        Ok(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    /// Rows `first .. first + count` of a u8 array.
    pub fn read_u8(&self, first: usize, count: usize) -> Result<Vec<u8>, DataError> {
        self.expect_dtype(self.dtype == Dtype::U8, "uint8")?;
        self.bytes(first, count)
    }

    /// Rows `first .. first + count` of an array of integers of any width.
    pub fn read_integers(&self, first: usize, count: usize) -> Result<Vec<i64>, DataError> {
        self.expect_dtype(self.dtype != Dtype::F32, "int64")?;
        let bytes = self.bytes(first, count)?;
        Ok(match self.dtype {
            Dtype::U8 => bytes.into_iter().map(i64::from).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|&b| i64::from(i32::from_le_bytes(b))).collect(),
            _ => bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect(),
        })
    }

    fn expect_dtype(&self, fits: bool, wanted: &'static str) -> Result<(), DataError> {
        if fits {
            return Ok(());
        }
        Err(DataError::Dtype { path: self.path.clone(), found: self.dtype.descr().into(), wanted })
    }
}

struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Parses the Python literal `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, keys in any order.
    fn parse(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let after = text.split_once(&format!("'{key}'"))?.1;
            Some(after.trim_start().strip_prefix(':')?.trim_start())
        };
        let descr = value("descr")?;
        let descr = match descr.strip_prefix('\'') {
            Some(quoted) => quoted.split_once('\'')?.0.to_owned(),
            None => descr.split_inclusive(']').next()?.to_owned(), // a record type: named in the error
        };
        let order = value("fortran_order")?;
        let fortran_order = order.starts_with("True");
        if !fortran_order && !order.starts_with("False") {
            return None;
        }
        let dims = value("shape")?.strip_prefix('(')?.split_once(')')?.0;
        let dims = dims.split(',').map(str::trim).filter(|d| !d.is_empty());
        let shape = dims.map(|d| d.parse().ok()).collect::<Option<_>>()?;
        Some(Self { descr, fortran_order, shape })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn header_is_what_numpy_writes() {
        let mut bytes = Vec::new();
        write(&mut bytes, &[3], Elements::F32(&[1.0, 2.0, 3.0])).unwrap();
        // numpy.save of the same array: sha of the header text taken from numpy 2.
        assert_eq!(&bytes[10..70], b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }   ");
        assert_eq!(bytes.len(), 128 + 12);
        assert_eq!(&bytes[..10], b"\x93NUMPY\x01\x00\x76\x00");
    }

    #[test]
    fn rows_are_read_back() {
        let values: Vec<f32> = (0..24).map(|x| x as f32 * 0.5).collect();
        let mut bytes = Vec::new();
        write(&mut bytes, &[4, 2, 3], Elements::F32(&values)).unwrap();
        let file = file_with(&bytes);
        let array = NpyFile::open(file.path()).unwrap();
        assert_eq!((array.shape.as_slice(), array.rows(), array.row_len()), (&[4, 2, 3][..], 4, 6));
        assert_eq!(array.read_f32(1, 2).unwrap(), values[6..18]);
        assert!(matches!(array.read_u8(0, 1), Err(DataError::Dtype { .. })));
    }

    #[test]
    fn broken_files_are_errors() {
        let mut good = Vec::new();
        write(&mut good, &[2, 2], Elements::I64(&[1, 2, 3, 4])).unwrap();
        for cut in 0..good.len() {
            assert!(NpyFile::open(file_with(&good[..cut]).path()).is_err(), "cut at {cut}");
        }
        let with_header = |text: &str| {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((text.len() as u16).to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes.extend([0; 64]);
            NpyFile::open(file_with(&bytes).path()).map(|_| ()).unwrap_err().to_string()
        };
        let cases = [
            ("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), }", "`<f8`"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }", "[('a', '<f4')]"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (2,), }", "Fortran"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999999), }", "too large"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "header"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (2000,), }", "too early"),
            ("{'shape': 3}", "header"),
            ("", "header"),
        ];
        for (text, part) in cases {
            let message = with_header(text);
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
