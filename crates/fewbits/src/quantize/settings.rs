//! What is asked of a quantization.

use super::Reshaped;
use crate::{methods::Methods, refine::stages};
use fewbits_quant::{QuantError, RangeRule, calibrate::Policy, target::Target};
use std::{collections::BTreeSet, fmt, path::PathBuf, str::FromStr, time::Duration};

/// How activation ranges are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ranges {
    /// Every rule of [`CANDIDATES`] is tried on calibration samples; the one whose outputs come closest to the float network's wins.
    Auto,
    /// One rule.
    Rule(RangeRule),
}

/// The rules that [`Ranges::Auto`] tries.
pub const CANDIDATES: &[RangeRule] = &[
    RangeRule::MinMax,
    RangeRule::Percentile(99.999),
    RangeRule::Percentile(99.99),
    RangeRule::Mse,
    RangeRule::OutputMse,
    RangeRule::MeanMinMax,
];

/// Bits of weights at which plain rounding breaks networks.
const BREAKING_BITS: u8 = 4;
/// Default of [`Settings::time_budget`].
pub const TIME_BUDGET: Duration = Duration::from_secs(600);
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ranges::Auto => f.write_str("auto"),
            Ranges::Rule(rule) => rule.fmt(f),
        }
    }
}

impl FromStr for Ranges {
    type Err = QuantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" { Ok(Ranges::Auto) } else { text.parse().map(Ranges::Rule) }
    }
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The runtime that the result is for.
    pub target: Target,
    /// Bits and weight rules.
    pub policy: Policy,
    /// Activation ranges.
    pub ranges: Ranges,
    /// What may be done to weights, scales and biases.
    pub methods: Methods,
    /// Nodes that take no part.
    pub keep_float: BTreeSet<String>,
    /// Time after which [`Methods::Auto`] goes no further: a step under way ends with what it has.
    pub time_budget: Duration,
    /// Steps for each layer or block whose rounding is learned, if not the method's own default.
    pub iterations: Option<usize>,
    /// Whether methods that learn from images see them mirrored, too; prepared arrays are taken as they are.
    pub mirrors: bool,
    /// Seed of everything random.
    pub seed: u64,
    /// The file that is made, for long steps to leave their state beside.
    pub partial: Option<PathBuf>,
    /// Go on from that state, if there is one.
    pub resume: bool,
    /// Weights reshaped before, which are taken as they are.
    pub reshaped: Option<Reshaped>,
}

impl Settings {
    /// The bits that ranges and reshaped weights are judged at. Where methods are to repair weights that plain rounding breaks, they are
    /// judged with weights of 8 bits: a broken network ranks nothing but noise.
    pub(super) fn judged_policy(&self) -> Policy {
        let breaks = self.policy.least_weight_bits() <= BREAKING_BITS && !stages(self, None).is_empty();
        if breaks { self.policy.with_weights_from(8) } else { self.policy.clone() }
    }

    /// Everything by default but `target` and `policy`.
    pub fn new(target: Target, policy: Policy) -> Self {
        Settings {
            target,
            methods: Methods::by_default(&policy),
            policy,
            ranges: Ranges::Auto,
            keep_float: BTreeSet::new(),
            time_budget: TIME_BUDGET,
            iterations: None,
            mirrors: true,
            seed: 0,
            partial: None,
            resume: false,
            reshaped: None,
        }
    }
}
