//! The table of LSQ-BN: learned scales on weights into which batch normalization is folded, beside what it is measured against.
//!
//! Not in the paper: rows with folded weights begin with equalized channels, without which one scale for all rounds most of them to zero.

use super::table::{
    Accuracy, Claim, Quantity,
    Relation::{Close, Less},
    Row, Table, Way,
};
use fewbits_train::{
    quantizers::{Method, Settings},
    recipe::Fold,
};

/// The table.
pub fn table() -> Table {
    let trained = |method, fold| Way::Train { method, settings: Box::new(Settings::default()), fold };
    let methods = [
        ("LSQ-BN", trained(Method::LsqBn, Fold::Corrected), [72.3, 69.8]),
        ("PTQ", Way::Quantize, [68.7, 67.2]),
        ("QAT", trained(Method::Qat, Fold::Corrected), [70.9, 62.0]),
        ("LSQ", trained(Method::Lsq, Fold::None), [72.9, 70.3]),
    ];
    let mut rows = Vec::new();
    for (name, way, means) in methods {
        for (weights, mean) in [8, 4].into_iter().zip(means) {
            let published = Accuracy { mean, spread: None };
            rows.push(Row { name, weights, activations: 8, published, way: way.clone() });
        }
    }
    let chains: [(&'static str, &'static [_]); 3] =
        [("PTQ", &[(Less, "LSQ-BN")]), ("QAT", &[(Less, "LSQ-BN")]), ("LSQ-BN", &[(Close, "LSQ")])];
    let mut claims = Vec::new();
    for bits in [(8, 8), (4, 8)] {
        claims.extend(chains.map(|(first, rest)| Claim { quantity: Quantity::Top1, bits, first, rest }));
    }
    Table {
        name: "lsq-bn-table4",
        source: "LSQ-BN (Nie, Li and Su 2022), table 4",
        network: "MobileNetV2",
        architecture: "mobilenet_v2",
        proxy: "mobilenet_v2",
        float: 72.5,
        seeds: 1,
        sizes: true,
        rows,
        claims,
    }
}
