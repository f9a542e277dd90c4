//! Numbers as people write them: quantities enter, short texts leave.

/// `3.34 MiB`; binary units.
pub(crate) fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        1048576.0.. => format!("{} MiB", digits(n / 1048576.0)),
        1024.0.. => format!("{} KiB", digits(n / 1024.0)),
        _ => format!("{n} B"),
    }
}

/// `1,715,000`: every digit.
pub(crate) fn exact(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&[u8]> = digits.as_bytes().rchunks(3).rev().collect();
    groups.iter().map(|group| String::from_utf8_lossy(group)).collect::<Vec<_>>().join(",")
}

/// `300.8 M`; decimal units.
pub(crate) fn count(n: u64) -> String {
    let n = n as f64;
    match n {
        1e9.. => format!("{} G", digits(n / 1e9)),
        1e6.. => format!("{} M", digits(n / 1e6)),
        1e3.. => format!("{} k", digits(n / 1e3)),
        _ => format!("{n}"),
    }
}

/// Three or four significant digits.
pub(crate) fn digits(x: f64) -> String {
    match x.abs() {
        100.0.. => format!("{x:.1}"),
        10.0.. => format!("{x:.1}"),
        0.01.. => format!("{x:.2}"),
        0.0 => "0".into(),
        _ => format!("{x:.1e}"),
    }
}

/// This many digits that count: `0.0376` or `4.20e-4` for 3.
pub(crate) fn significant(x: f64, digits: usize) -> String {
    let decade = x.abs().log10().floor();
    match x.abs() {
        0.0 => "0".into(),
        1e-3..1e6 => format!("{x:.*}", (digits as f64 - 1.0 - decade).max(0.0) as usize),
        _ => format!("{x:.*e}", digits - 1),
    }
}

/// `71.88 %`.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// `4.0×` smaller.
pub(crate) fn ratio(before: u64, after: u64) -> String {
    format!("{:.2}×", before as f64 / after.max(1) as f64)
}

/// A width, or a dash.
pub(crate) fn bits(bits: Option<u8>) -> String {
    bits.map_or("–".into(), |b| b.to_string())
}

/// Decibels, or a dash.
pub(crate) fn decibels(x: Option<f64>) -> String {
    x.map_or("–".into(), |x| format!("{x:.1}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_short() {
        let found = [
            bytes(999),
            bytes(14_019_488),
            bytes(2048),
            count(300_774_272),
            count(3_504_872),
            count(17),
            digits(0.00042),
        ];
        assert_eq!(found, ["999 B", "13.4 MiB", "2.00 KiB", "300.8 M", "3.50 M", "17", "4.2e-4"]);
        assert_eq!([0, 999, 1000, 1_715_000].map(exact), ["0", "999", "1,000", "1,715,000"]);
        let found = [0.037_61, 0.004_2, 1.0, 12.34, 0.000_42, 0.0, 2e6].map(|x| significant(x, 3));
        assert_eq!(found, ["0.0376", "0.00420", "1.00", "12.3", "4.20e-4", "0", "2.00e6"]);
        assert_eq!([percent(0.71876), ratio(400, 100), ratio(1, 0)], ["71.88 %", "4.00×", "1.00×"]);
    }
}
