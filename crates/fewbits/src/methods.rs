//! The post-training methods by name, and which of them a quantization uses.

use fewbits_quant::calibrate::Policy;
use std::{fmt, str::FromStr};

/// A method of `fewbits quantize --method`. The order is that in which they are applied, but for bias correction, which comes with the ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// No data: images made from the statistics of BatchNormalizations.
    ZeroqData,
    /// Ranges of channels made alike by moving factors from layer to layer; outputs scaled.
    Equalize,
    /// What channels always exceed, moved to the biases behind them.
    AbsorbBias,
    /// For each layer the clipping rule of least output error at its bits.
    MixedClipping,
    /// The same by the outputs of the whole network.
    MixedClippingNetwork,
    /// Weights clipped by their distribution, their deviations and the means of outputs brought back.
    Aciq,
    /// Scales of weights of least squared weight error.
    Omse,
    /// Scales of weights by the loss of the whole network.
    Lapq,
    /// Scales of weights of least output error, from twenty for each channel.
    SeqMse,
    /// Codes and scales of least output error, one coordinate after the other.
    Comq,
    /// Windows of weights shifted by codes. Not deployable in integers.
    ZeroPointWindow,
    /// Codes of weights read with another zero point. Not deployable in integers.
    ZeroPointDequant,
    /// Weights rounded and read with a fractional zero point. Not deployable in integers.
    ZeroPointPhase,
    /// Means and deviations of channels brought back.
    BnTune,
    /// Up or down for each weight, learned layer by layer.
    AdaRound,
    /// Roundings learned block by block.
    Brecq,
    /// The same with activations rounded at random.
    QDrop,
    /// Zero points and scales of activations, by what the outputs say.
    ZeroPoint,
    /// Scales and biases of the whole network learned against the float outputs.
    E2eQp,
    /// The mean that rounding adds to each channel, taken off the bias: all layers at once.
    BiasCorrection,
    /// The same with means that follow from BatchNormalizations, where there are any.
    BiasCorrectionAnalytic,
    /// The same layer by layer, each with inputs as the quantized layers before it make them.
    BiasCorrectionSequential,
}

/// Every method with its name.
pub const METHODS: &[(Method, &str)] = &[
    (Method::ZeroqData, "zeroq-data"),
    (Method::Equalize, "equalize"),
    (Method::AbsorbBias, "absorb-bias"),
    (Method::MixedClipping, "mixed-clipping"),
    (Method::MixedClippingNetwork, "mixed-clipping-network"),
    (Method::Aciq, "aciq"),
    (Method::Omse, "omse"),
    (Method::Lapq, "lapq"),
    (Method::SeqMse, "seq-mse"),
    (Method::Comq, "comq"),
    (Method::ZeroPointWindow, "zero-point-window"),
    (Method::ZeroPointDequant, "zero-point-dequant"),
    (Method::ZeroPointPhase, "zero-point-phase"),
    (Method::BnTune, "bn-tune"),
    (Method::AdaRound, "adaround"),
    (Method::Brecq, "brecq"),
    (Method::QDrop, "qdrop"),
    (Method::ZeroPoint, "zero-point"),
    (Method::E2eQp, "e2e-qp"),
    (Method::BiasCorrection, "bias-correction"),
    (Method::BiasCorrectionAnalytic, "bias-correction-analytic"),
    (Method::BiasCorrectionSequential, "bias-correction-sequential"),
];

/// The names, as a sentence lists them.
pub fn names() -> String {
    METHODS.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
}

impl Method {
    /// Whether it learns from samples once ranges are chosen.
    pub(crate) fn refines(self) -> bool {
        use Method::{AbsorbBias, BiasCorrection, BiasCorrectionAnalytic, Equalize, ZeroqData};
        !matches!(self, ZeroqData | Equalize | AbsorbBias | BiasCorrection | BiasCorrectionAnalytic)
    }

    /// Whether it begins with the float weights and leaves scales of its own choice.
    fn chooses_scales(self) -> bool {
        use Method::{Aciq, Lapq, MixedClipping, MixedClippingNetwork, Omse, SeqMse};
        matches!(self, MixedClipping | MixedClippingNetwork | Aciq | Omse | Lapq | SeqMse)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = METHODS.iter().find(|(method, _)| method == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = METHODS.iter().find(|(_, name)| *name == text);
        found
            .map(|(method, _)| *method)
            .ok_or_else(|| format!("`{text}` is no method; there are basic, auto, none, {}", names()))
    }
}

/// Which methods are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Methods {
    /// Output scaling, equalization, absorption of biases and bias correction, where it is measured that they bring the outputs closer.
    Basic,
    /// Codes, scales and biases too, each step kept by what it gains on samples that it has not seen.
    Auto,
    /// These, in the order of [`Method`].
    List(Vec<Method>),
}

impl Methods {
    /// What is done if nothing is asked for: plain rounding to 8 bits needs little repair, to fewer all there is.
    pub fn by_default(policy: &Policy) -> Methods {
        if policy.is_low() { Methods::Auto } else { Methods::Basic }
    }

    /// Whether `method` is to be applied whatever it brings.
    pub fn demands(&self, method: Method) -> bool {
        matches!(self, Methods::List(list) if list.contains(&method))
    }

    /// Whether `method` is applied, or tried.
    pub fn allows(&self, method: Method) -> bool {
        self.are_measured() || self.demands(method)
    }

    /// Whether integer kernels compute what comes of it.
    pub fn deployable(&self) -> bool {
        use Method::{ZeroPointDequant, ZeroPointPhase, ZeroPointWindow};
        ![ZeroPointWindow, ZeroPointDequant, ZeroPointPhase].iter().any(|method| self.demands(*method))
    }

    /// Those in the list that round weights, or give them scales, of their own.
    pub fn rounding(&self) -> Vec<Method> {
        use Method::{AdaRound, Brecq, Comq, E2eQp, QDrop, ZeroPointDequant, ZeroPointPhase, ZeroPointWindow};
        let others = [Comq, ZeroPointWindow, ZeroPointDequant, ZeroPointPhase, AdaRound, Brecq, QDrop, E2eQp];
        let Methods::List(list) = self else { return vec![] };
        list.iter().copied().filter(|method| method.chooses_scales() || others.contains(method)).collect()
    }

    /// Whether what is done depends on a measurement.
    pub fn are_measured(&self) -> bool {
        matches!(self, Methods::Basic | Methods::Auto) || self.ask_for_data_only()
    }

    /// Whether anything is learned from samples once ranges are chosen, at the bits of `policy`.
    pub fn refine(&self, policy: &Policy) -> bool {
        self.explore(policy) || matches!(self, Methods::List(list) if list.iter().any(|method| method.refines()))
    }

    /// Whether codes, scales and biases are looked for, at the bits of `policy`.
    pub fn explore(&self, policy: &Policy) -> bool {
        *self == Methods::Auto || self.ask_for_data_only() && Methods::by_default(policy) == Methods::Auto
    }

    /// Data alone, made by `zeroq-data`, ask for no other methods.
    fn ask_for_data_only(&self) -> bool {
        matches!(self, Methods::List(list) if list[..] == [Method::ZeroqData])
    }
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Methods::Basic => f.write_str("basic"),
            Methods::Auto => f.write_str("auto"),
            Methods::List(list) if list.is_empty() => f.write_str("none"),
            Methods::List(list) => {
                let names: Vec<String> = list.iter().map(Method::to_string).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl FromStr for Methods {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "basic" => Ok(Methods::Basic),
            "auto" => Ok(Methods::Auto),
            "none" => Ok(Methods::List(vec![])),
            _ => {
                if let Some(word) = text.split(',').find(|word| matches!(*word, "basic" | "auto" | "none")) {
                    return Err(format!("`{word}` stands alone; it is no part of a list"));
                }
                let mut list = text.split(',').map(str::parse).collect::<Result<Vec<Method>, _>>()?;
                list.sort();
                list.dedup();
                if [Method::BiasCorrection, Method::BiasCorrectionAnalytic].iter().all(|method| list.contains(method)) {
                    return Err("bias-correction and bias-correction-analytic take the same means off: take one".into());
                }
                let scales: Vec<String> = list.iter().filter(|m| m.chooses_scales()).map(Method::to_string).collect();
                match scales.len() {
                    0 | 1 => Ok(Methods::List(list)),
                    _ => {
                        Err(format!("{} choose the same scales of weights, each anew: take one", scales.join(" and ")))
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_are_applied_in_one_order() {
        for (method, name) in METHODS {
            assert_eq!((method.to_string().as_str(), name.parse()), (*name, Ok(*method)));
        }
        let methods: Methods = "bias-correction,equalize,equalize".parse().unwrap();
        assert_eq!(methods.to_string(), "equalize,bias-correction");
        // As `auto` goes: means come back before roundings are learned, which are then left alone.
        let methods: Methods = "zero-point,qdrop,bn-tune,comq".parse().unwrap();
        assert_eq!(methods.to_string(), "comq,bn-tune,qdrop,zero-point");
        assert_eq!(["basic", "auto"].map(str::parse), [Ok(Methods::Basic), Ok(Methods::Auto)]);
        assert_eq!([8, 4].map(|bits| Methods::by_default(&Policy::new(bits, 8, 8))), [Methods::Basic, Methods::Auto]);
        assert_eq!("none".parse::<Methods>().unwrap().to_string(), "none");
        assert!(Methods::Auto.deployable() && methods.deployable());
        assert!(!"comq,zero-point-phase".parse::<Methods>().unwrap().deployable());
        assert!("bias-correction-analytic,bias-correction".parse::<Methods>().unwrap_err().contains("take one"));
        assert_eq!("equalize,comq,omse,bn-tune".parse::<Methods>().unwrap().rounding(), [Method::Omse, Method::Comq]);
        assert!("mixed-clipping,omse".parse::<Methods>().unwrap_err().contains("mixed-clipping and omse"));
        assert!("basic,comq".parse::<Methods>().unwrap_err().contains("stands alone"));
        assert!("adarond".parse::<Methods>().unwrap_err().contains("adarond"));
    }
}
