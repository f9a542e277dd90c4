//! Assigns every tensor of a program to a buffer, once: tensors that are not alive at the same time share one.

use crate::tensor::{DType, Data};

/// A value that lives in a buffer from step `first` to step `last`, both included.
#[derive(Clone, Debug)]
pub(crate) struct Lifetime {
    pub dtype: DType,
    pub len: usize,
    pub first: usize,
    pub last: usize,
}

/// Type and size of one buffer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Slot {
    pub dtype: DType,
    pub len: usize,
}

impl Slot {
    /// A zeroed buffer of this type and size.
    pub fn allocate(&self) -> Data {
        match self.dtype {
            DType::I64 => Data::I64(vec![0; self.len]),
            DType::I32 => Data::I32(vec![0; self.len]),
            DType::U8 => Data::U8(vec![0; self.len]),
            DType::I8 => Data::I8(vec![0; self.len]),
            DType::Bool => Data::Bool(vec![false; self.len]),
            DType::F32 | DType::Raw(_) => Data::F32(vec![0.0; self.len]),
        }
    }
}

impl Slot {
    /// Size of the buffer.
    pub fn bytes(&self) -> usize {
        self.len
            * match self.dtype {
                DType::I64 => 8,
                DType::F32 | DType::I32 | DType::Raw(_) => 4,
                DType::U8 | DType::I8 | DType::Bool => 1,
            }
    }
}

/// The buffers, and for each value the index of its buffer. Best fit in order of first use: the smallest free buffer that
/// is large enough, else the largest free one, grown. `values` are ordered by `first`.
pub(crate) fn assign(values: &[Lifetime]) -> (Vec<Slot>, Vec<usize>) {
    let mut slots: Vec<Slot> = Vec::new();
    let mut busy_until: Vec<usize> = Vec::new();
    let mut homes = Vec::with_capacity(values.len());
    for value in values {
        let free = (0..slots.len()).filter(|&s| busy_until[s] < value.first && slots[s].dtype == value.dtype);
        // Large enough sorts before too small; then the closest size.
        let home = free.min_by_key(|&s| (slots[s].len < value.len, slots[s].len.abs_diff(value.len)));
        let home = home.unwrap_or_else(|| {
            slots.push(Slot { dtype: value.dtype, len: 0 });
            busy_until.push(0);
            slots.len() - 1
        });
        slots[home].len = slots[home].len.max(value.len);
        busy_until[home] = value.last;
        homes.push(home);
    }
    (slots, homes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_alive_together_never_share() {
        let value = |len, first, last| Lifetime { dtype: DType::F32, len, first, last };
        let values =
            [value(10, 0, 1), value(4, 1, 2), value(8, 2, 3), value(12, 3, 5), value(3, 4, 5), value(10, 6, 6)];
        let (slots, homes) = assign(&values);
        for (i, a) in values.iter().enumerate() {
            assert!(slots[homes[i]].len >= a.len);
            for (j, b) in values.iter().enumerate().skip(i + 1) {
                let together = a.first <= b.last && b.first <= a.last;
                assert!(!together || homes[i] != homes[j], "values {i} and {j} share buffer {}", homes[i]);
            }
        }
        assert_eq!(slots.len(), 2, "a chain needs two buffers");
    }

    #[test]
    fn types_never_share() {
        let float = Lifetime { dtype: DType::F32, len: 4, first: 0, last: 0 };
        let codes = Lifetime { dtype: DType::U8, first: 1, last: 1, ..float.clone() };
        assert_eq!(assign(&[float, codes]).1, [0, 1]);
    }
}
