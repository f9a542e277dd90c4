//! The tables: what each paper compares, and how each row is found again.

use crate::{
    methods::{Method, Methods},
    quantize::Ranges,
    search::Strategy,
};
use fewbits_quant::{RangeRule, WeightRule};

/// A published comparison.
#[derive(Clone, Debug)]
pub struct PostTable {
    /// Its name on the command line.
    pub name: &'static str,
    /// The paper.
    pub source: &'static str,
    /// What the paper found, a line each.
    pub published: &'static [&'static str],
    /// In order; baselines first.
    pub rows: Vec<PostRow>,
}

/// How the bits of weights are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitsBy {
    /// All alike.
    Uniform,
    /// By a search within the bytes of uniform bits.
    Search {
        /// The strategy.
        strategy: Strategy,
        /// The method that rounds weights while it searches.
        inside: Option<Method>,
        /// Whether it begins at random.
        cold_start: bool,
    },
}

/// One row.
#[derive(Clone, Debug)]
pub struct PostRow {
    /// What it is called.
    pub name: &'static str,
    /// Whether others are compared with it.
    pub is_baseline: bool,
    /// Bits of weights.
    pub bits: BitsBy,
    /// Ranges of activations.
    pub ranges: Ranges,
    /// Ranges of weights.
    pub weight_rule: WeightRule,
    /// One scale per output channel rather than one per weight.
    pub per_channel: bool,
    /// What is done with these bits.
    pub methods: Methods,
    /// What is done to the network that is searched.
    pub searched_with: Methods,
}

impl Default for PostRow {
    fn default() -> Self {
        PostRow {
            name: "uniform, MSE",
            is_baseline: true,
            bits: BitsBy::Uniform,
            ranges: Ranges::Rule(RangeRule::Mse),
            weight_rule: WeightRule::Mse,
            per_channel: true,
            methods: Methods::List(vec![]),
            searched_with: Methods::List(vec![]),
        }
    }
}

impl PostRow {
    /// Everything of the row that its search depends on, fit for the name of a file.
    pub fn search_key(&self) -> String {
        let PostRow { bits, ranges, weight_rule, per_channel, searched_with, .. } = self;
        let text = format!("{bits:?} {ranges} {weight_rule} {per_channel} {searched_with}");
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
    }
}

fn searched(strategy: Strategy) -> BitsBy {
    BitsBy::Search { strategy, inside: None, cold_start: true }
}

fn uniform(name: &'static str, methods: &[Method]) -> PostRow {
    PostRow { name, methods: Methods::List(methods.to_vec()), ..PostRow::default() }
}

/// What the methods bring without mixed bits.
fn repaired(name: &'static str, methods: &[Method]) -> PostRow {
    PostRow { is_baseline: false, ..uniform(name, methods) }
}

fn mixed(name: &'static str, strategy: Strategy, methods: &[Method]) -> PostRow {
    PostRow { bits: searched(strategy), is_baseline: false, ..uniform(name, methods) }
}

/// Every table of methods without training.
pub fn post_tables() -> Vec<PostTable> {
    vec![zero_point(), mixed_clipping()]
}

fn zero_point() -> PostTable {
    use Method::{
        Aciq, BiasCorrection, Comq, Equalize, Omse, SeqMse, ZeroPoint, ZeroPointDequant, ZeroPointPhase,
        ZeroPointWindow,
    };
    let equalized = |row: PostRow| PostRow { searched_with: Methods::List(vec![Equalize]), ..row };
    PostTable {
        name: "zero-point",
        source: "Chen 2023, mixed precision by similarity of output feature maps, zero points adjusted",
        published: &["ResNet-18 at equal size: +1.7 points", "ResNet-50 at equal size: +3.0 points"],
        rows: vec![
            PostRow {
                ranges: Ranges::Rule(RangeRule::MinMax),
                weight_rule: WeightRule::MinMax,
                ..uniform("uniform, min-max", &[])
            },
            uniform("uniform, MSE", &[]),
            uniform("uniform, ACIQ", &[Aciq]),
            uniform("uniform, OMSE", &[Omse]),
            PostRow { is_baseline: true, ..mixed("ZeroQ-DP", Strategy::Kl, &[]) },
            repaired("uniform + bias correction", &[BiasCorrection]),
            repaired("uniform + COMQ + zero points", &[Comq, ZeroPoint]),
            mixed("OFM mixed precision", Strategy::Ofm, &[]),
            mixed("OFM + zero points", Strategy::Ofm, &[ZeroPoint]),
            mixed("OFM + bias correction", Strategy::Ofm, &[BiasCorrection]),
            mixed("OFM + scales by output error + bias correction", Strategy::Ofm, &[SeqMse, BiasCorrection]),
            mixed("OFM + window shift", Strategy::Ofm, &[ZeroPointWindow]),
            mixed("OFM + window shift + bias correction", Strategy::Ofm, &[ZeroPointWindow, BiasCorrection]),
            mixed("OFM + dequantization shift", Strategy::Ofm, &[ZeroPointDequant]),
            mixed("OFM + dequantization shift + bias correction", Strategy::Ofm, &[ZeroPointDequant, BiasCorrection]),
            mixed("OFM + phase shift", Strategy::Ofm, &[ZeroPointPhase]),
            mixed("OFM + phase shift + bias correction", Strategy::Ofm, &[ZeroPointPhase, BiasCorrection]),
            mixed("OFM + zero points + bias correction", Strategy::Ofm, &[ZeroPoint, BiasCorrection]),
            equalized(mixed("the same, equalized", Strategy::Ofm, &[Equalize, ZeroPoint, BiasCorrection])),
            mixed("OFM + COMQ + zero points", Strategy::Ofm, &[Comq, ZeroPoint]),
        ],
    }
}

fn mixed_clipping() -> PostTable {
    use Method::{BiasCorrection, MixedClipping, MixedClippingNetwork};
    let by_agent = |inside, cold_start| BitsBy::Search { strategy: Strategy::Rl, inside, cold_start };
    PostTable {
        name: "mixed-clipping",
        source: "Huang 2021, bits by reinforcement learning, a clipping rule for each layer",
        published: &[
            "MobileNetV2, 4 bits: +2.7 points over HAQ, +0.3 over ZeroQ",
            "YOLOv3 on COCO, 6 bits: +2.6 mAP over quantization with the same bits in each layer",
        ],
        rows: vec![
            PostRow {
                ranges: Ranges::Rule(RangeRule::MinMax),
                weight_rule: WeightRule::MinMax,
                per_channel: false,
                ..uniform("uniform, one scale per layer", &[])
            },
            uniform("uniform, MSE", &[]),
            PostRow { is_baseline: true, ..mixed("random search", Strategy::Random, &[]) },
            PostRow { is_baseline: true, ..mixed("ZeroQ-DP", Strategy::Kl, &[]) },
            PostRow { is_baseline: true, ..mixed("HAWQ", Strategy::Hessian, &[]) },
            PostRow { is_baseline: true, ..mixed("RL alone (HAQ)", Strategy::Rl, &[]) },
            repaired("uniform + mixed clipping", &[MixedClipping]),
            mixed("RL + bias correction", Strategy::Rl, &[BiasCorrection]),
            mixed("RL + mixed clipping", Strategy::Rl, &[MixedClipping]),
            mixed("RL + mixed clipping by the network", Strategy::Rl, &[MixedClippingNetwork]),
            PostRow {
                bits: by_agent(Some(MixedClipping), true),
                ..mixed("RL with mixed clipping inside", Strategy::Rl, &[MixedClipping])
            },
            PostRow {
                bits: by_agent(None, false),
                ..mixed("RL from sensitivities + mixed clipping", Strategy::Rl, &[MixedClipping])
            },
        ],
    }
}
