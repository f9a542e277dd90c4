//! Two slices mixed element by element.

use crate::int::isa::multiversion;

multiversion! {
    /// `out[i]` is `b[i]` with the probability `share / 2³²`, else `a[i]`, as the hash of `i` and `key` says: the same for the same key.
    ///
    /// # Panics
    /// If `a` or `b` is shorter than `out`.
    pub fn mix(a: &[f32], b: &[f32], key: u32, share: u32, out: &mut [f32]) {
        let (a, b) = (&a[..out.len()], &b[..out.len()]);
        for (i, ((out, &a), &b)) in (0u32..).zip(out.iter_mut().zip(a).zip(b)) {
            // Both by all bits or none: a choice between two loads would be made one by one.
            let chosen = u32::from(scrambled(key ^ i) < share).wrapping_neg();
            *out = f32::from_bits(b.to_bits() & chosen | a.to_bits() & !chosen);
        }
    }
}

/// The bits of `x` spread over all bits of the result (the finalizer of MurmurHash3, Appleby 2011): elements do not wait for each other, as
/// they would for a generator.
#[inline(always)]
fn scrambled(mut x: u32) -> u32 {
    x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
    x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
    x ^ x >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_murmur() {
        // fmix32 of SMHasher: 0 stays, and 1 and 2 become these.
        assert_eq!([0, 1, 2].map(scrambled), [0, 0x514e_28b7, 0x30f4_c306]);
    }

    #[test]
    fn as_many_come_from_the_second_slice_as_asked_for() {
        let (a, b) = (vec![1.0; 100_000], vec![2.0; 100_000]);
        for share in [0.0, 0.25, 0.5, 1.0] {
            let mut out = vec![0.0; a.len()];
            mix(&a, &b, 7, (share * f64::from(u32::MAX)) as u32, &mut out);
            let found = out.iter().filter(|x| **x == 2.0).count() as f64 / out.len() as f64;
            assert!((found - share).abs() < 0.01 && out.iter().all(|x| [1.0, 2.0].contains(x)), "{found} of {share}");
        }
        let of = |key| {
            let mut out = [0.0; 64];
            mix(&a, &b, key, 1 << 31, &mut out);
            out
        };
        assert_eq!(of(3), of(3));
        assert_ne!(of(3), of(4));
    }
}
