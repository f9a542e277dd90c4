//! The tables of LSQ+ (Bhalgat et al., CVPR Workshops 2020, arXiv 2004.09576).

use super::table::{
    Accuracy, Claim, Quantity,
    Relation::{Close, Less, MuchLess},
    Row, Table, Way,
};
use fewbits_train::{
    quantizers::{
        Configuration, Method, Offset, Settings,
        init::{Start, Stat},
    },
    recipe::Fold,
};

const CONFIGURATIONS: [(&str, Configuration); 4] = [
    ("configuration 1", Configuration::UnsignedSymmetric),
    ("configuration 2", Configuration::SignedSymmetric),
    ("configuration 3", Configuration::SignedAsymmetric),
    ("configuration 4", Configuration::UnsignedAsymmetric),
];
/// Weights and activations of tables 2 to 4.
const WIDTHS: [u8; 3] = [2, 3, 4];

fn row(name: &'static str, bits: u8, mean: f64, spread: Option<f64>, method: Method, settings: Settings) -> Row {
    let way = Way::Train { method, settings: Box::new(settings), fold: Fold::None };
    Row { name, weights: bits, activations: bits, published: Accuracy { mean, spread }, way }
}

/// Rows of the four configurations, with what the paper found at each width.
fn configurations(published: [[f64; 3]; 4]) -> Vec<Row> {
    let mut rows = Vec::new();
    for ((name, configuration), means) in CONFIGURATIONS.into_iter().zip(published) {
        for (bits, mean) in WIDTHS.into_iter().zip(means) {
            let settings = Settings { configuration, ..Settings::default() };
            rows.push(row(name, bits, mean, None, Method::LsqPlus, settings));
        }
    }
    rows
}

fn claims(first: &'static str, rest: &'static [(super::table::Relation, &'static str)]) -> Vec<Claim> {
    WIDTHS.map(|bits| Claim { quantity: Quantity::Top1, bits: (bits, bits), first, rest }).into()
}

fn swish(name: &'static str, source: &'static str, published: [[f64; 3]; 4]) -> Table {
    Table {
        name,
        source,
        network: "",
        architecture: "",
        proxy: "swishnet",
        float: 0.0,
        seeds: 1,
        sizes: false,
        rows: configurations(published),
        claims: claims(
            "configuration 2",
            &[(MuchLess, "configuration 1"), (Less, "configuration 3"), (Close, "configuration 4")],
        ),
    }
}

/// The tables.
pub fn tables() -> Vec<Table> {
    vec![table2(), table3(), table4(), table5(), table6()]
}

fn table2() -> Table {
    let published = [[43.5, 67.5, 71.9], [23.7, 54.8, 68.8], [49.1, 69.9, 73.5], [48.7, 69.3, 73.8]];
    let table = swish("lsqplus-table2", "LSQ+ (Bhalgat et al. 2020), table 2", published);
    Table { network: "EfficientNet-B0", architecture: "efficientnet_b0", float: 76.1, ..table }
}

fn table3() -> Table {
    let published = [[39.9, 64.3, 70.4], [23.4, 62.1, 67.2], [42.5, 66.7, 71.6], [42.8, 66.1, 71.7]];
    let table = swish("lsqplus-table3", "LSQ+ (Bhalgat et al. 2020), table 3", published);
    Table { network: "MixNet-S", architecture: "mixnet_s", float: 75.9, ..table }
}

fn table4() -> Table {
    let others = [
        ("PACT", Method::Pact, [64.4, 68.1, 69.2]),
        ("DSQ", Method::Dsq, [65.2, 68.7, 69.6]),
        ("QIL", Method::Qil, [65.7, 69.2, 70.1]),
    ];
    let mut rows = Vec::new();
    for (name, method, means) in others {
        let own = WIDTHS.into_iter().zip(means);
        rows.extend(own.map(|(bits, mean)| row(name, bits, mean, None, method, Settings::default())));
    }
    rows.extend(configurations([[66.7, 69.4, 70.7], [64.7, 66.1, 69.2], [66.7, 69.4, 70.7], [66.8, 69.3, 70.8]]));
    let mut all =
        claims("configuration 2", &[(Less, "configuration 1"), (Close, "configuration 3"), (Close, "configuration 4")]);
    all.extend(claims("PACT", &[(Less, "DSQ"), (Less, "QIL"), (Less, "configuration 4")]));
    Table {
        name: "lsqplus-table4",
        source: "LSQ+ (Bhalgat et al. 2020), table 4",
        network: "ResNet-18",
        architecture: "resnet18",
        proxy: "resnet20",
        float: 70.1,
        seeds: 1,
        sizes: false,
        rows,
        claims: all,
    }
}

fn table5() -> Table {
    let starts = [
        ("min-max", Start::MinMax, [(71.3, 2.2), (43.8, 4.7)]),
        ("LSQ", Start::Lsq, [(72.0, 1.6), (44.4, 2.9)]),
        ("LSQ+", Start::LsqPlus(Stat::Signed), [(73.0, 0.9), (46.8, 1.9)]),
    ];
    let mut rows = Vec::new();
    for (name, start, published) in starts {
        for (bits, (mean, spread)) in [4, 2].into_iter().zip(published) {
            let settings = Settings { weight_start: start, activation_start: start, ..Settings::default() };
            rows.push(row(name, bits, mean, Some(spread), Method::LsqPlus, settings));
        }
    }
    let mut claims = Vec::new();
    for bits in [(4, 4), (2, 2)] {
        let claim = |quantity, first, rest| Claim { quantity, bits, first, rest };
        claims.push(claim(Quantity::Top1, "min-max", &[(Less, "LSQ"), (Less, "LSQ+")]));
        claims.push(claim(Quantity::Spread, "LSQ+", &[(Less, "LSQ"), (Less, "min-max")]));
    }
    Table { name: "lsqplus-table5", source: "LSQ+ (Bhalgat et al. 2020), table 5", seeds: 5, rows, claims, ..table2() }
}

fn table6() -> Table {
    let offsets = [
        ("no offset", Offset::None, 71.9),
        ("offset at the minimum", Offset::FixedAtMinimum, 72.5),
        ("learned offset", Offset::Learned, 73.8),
    ];
    let rows = offsets.map(|(name, offset, mean)| {
        row(name, 4, mean, None, Method::LsqPlus, Settings { offset, ..Settings::default() })
    });
    let rest = &[(Less, "offset at the minimum"), (Less, "learned offset")];
    Table {
        name: "lsqplus-table6",
        source: "LSQ+ (Bhalgat et al. 2020), table 6",
        rows: rows.into(),
        claims: vec![Claim { quantity: Quantity::Top1, bits: (4, 4), first: "no offset", rest }],
        ..table2()
    }
}
