//! The methods by name, and the pair of quantizers that each means.

use super::*;
use std::{fmt, str::FromStr, sync::Arc};

/// A way to train a quantized network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `lsq`: learned step sizes.
    Lsq,
    /// `lsq+`: learned step sizes, and offsets of activations.
    LsqPlus,
    /// `lsq-bn`: LSQ's quantizers on weights into which normalisation is folded.
    LsqBn,
    /// `pact`: PACT activations; DoReFa weights, or SAWB's.
    Pact,
    /// `dsq`: differentiable soft quantization.
    Dsq,
    /// `qil`: learned intervals.
    Qil,
    /// `dorefa`: DoReFa-Net.
    DoReFa,
    /// `tqt`: learned thresholds, scales that are powers of two.
    Tqt,
    /// `sawb`: SAWB weights and PACT activations (PACT-SAWB).
    Sawb,
    /// `qat`: ranges observed by moving averages.
    Qat,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 10] = [
        Method::Lsq,
        Method::LsqPlus,
        Method::LsqBn,
        Method::Pact,
        Method::Dsq,
        Method::Qil,
        Method::DoReFa,
        Method::Tqt,
        Method::Sawb,
        Method::Qat,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Lsq => "lsq",
            Method::LsqPlus => "lsq+",
            Method::LsqBn => "lsq-bn",
            Method::Pact => "pact",
            Method::Dsq => "dsq",
            Method::Qil => "qil",
            Method::DoReFa => "dorefa",
            Method::Tqt => "tqt",
            Method::Sawb => "sawb",
            Method::Qat => "qat",
        }
    }

    /// What the learning rate is multiplied with for the numbers of quantizers, unless it is said otherwise: QIL's paper trains
    /// intervals at 0.01 of it.
    pub fn quantizer_rate(self) -> f64 {
        if self == Method::Qil { 0.01 } else { 1.0 }
    }

    /// Whether activations have a zero point whatever their signs are.
    pub fn has_zero_points(self) -> bool {
        matches!(self, Method::Dsq | Method::Qat)
    }

    /// Whether activations have a form that integer kernels compute.
    pub fn is_deployable(self) -> bool {
        self != Method::Qil
    }

    /// `Err` unless the method quantizes to `bits` bits.
    fn check(self, tensor: &'static str, bits: u8) -> Result<(), QuantizerError> {
        let fits = (2..=8).contains(&bits);
        if fits { Ok(()) } else { Err(QuantizerError::Bits { method: self.name(), tensor, bits }) }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = QuantizerError;

    fn from_str(text: &str) -> Result<Self, QuantizerError> {
        let found = Method::ALL.into_iter().find(|method| method.name() == text);
        found.ok_or_else(|| QuantizerError::UnknownMethod { text: text.into() })
    }
}

/// The quantizer of a weight, or of each channel of one, with `count` elements.
///
/// # Errors
/// For widths that the method has no rule for: beyond 2–8 bits, and 6 and 7 bits for SAWB.
pub fn weight_quantizer(
    method: Method,
    bits: u8,
    settings: &Settings,
    count: usize,
) -> Result<Arc<dyn Deployable>, QuantizerError> {
    method.check("weights", bits)?;
    let start = match (method, settings.weight_start) {
        (Method::LsqPlus, init::Start::Method) if bits < 8 => init::Start::LsqPlus(init::Stat::Signed),
        (_, start) => start,
    };
    Ok(match method {
        Method::Lsq | Method::LsqPlus | Method::LsqBn => Arc::new(Lsq::symmetric(bits, true, count, start)),
        Method::Sawb => Arc::new(Sawb::new(bits)?),
        Method::Pact if settings.pact_weights == PactWeights::Sawb => Arc::new(Sawb::new(bits)?),
        Method::Pact | Method::DoReFa => Arc::new(DoReFaWeights::new(bits, settings.keep_magnitude)),
        Method::Dsq => Arc::new(DsqWeights::new(bits, settings.dsq_alpha, settings.learn_dsq_alpha)),
        Method::Qil => Arc::new(Qil::weights(bits, settings.learn_gamma, settings.keep_magnitude)),
        Method::Tqt => Arc::new(Tqt::weights(bits)),
        Method::Qat => Arc::new(StepRange::new(bits)),
    })
}

/// The quantizer of an activation that has `count` elements in each image. LSQ takes codes without sign unless elements have
/// [`Signs::Both`]; the methods with a lower end of their own ignore `signs`.
///
/// # Errors
/// For widths other than 2–8 bits.
pub fn activation_quantizer(
    method: Method,
    bits: u8,
    signs: Signs,
    settings: &Settings,
    count: usize,
) -> Result<Arc<dyn Deployable>, QuantizerError> {
    method.check("activations", bits)?;
    let signed = signs == Signs::Both;
    let count = count.saturating_mul(settings.counted_images.max(1));
    // Behind a Relu most elements are zeros, and LSQ's `2·mean|x|/√high` would clip what is left of them.
    let start = match settings.activation_start {
        init::Start::Method | init::Start::LsqPlus(_) => init::Start::Mse,
        start => start,
    };
    let (offset, snapped) = (settings.offset, settings.snapped);
    let symmetric = |signed| Lsq::symmetric(bits, signed, count, start);
    let asymmetric = |codes_signed| match offset {
        // Without an offset, codes without sign can only serve what has none.
        Offset::None => symmetric(codes_signed || signed),
        offset => Lsq::with_offset(bits, codes_signed, offset, snapped, count, start),
    };
    Ok(match method {
        Method::Lsq | Method::LsqBn => Arc::new(symmetric(signed)),
        Method::LsqPlus => Arc::new(match settings.configuration {
            Configuration::UnsignedSymmetric => symmetric(signed),
            Configuration::SignedSymmetric => symmetric(true),
            Configuration::SignedAsymmetric => asymmetric(true),
            Configuration::UnsignedAsymmetric => asymmetric(false),
        }),
        Method::Pact | Method::Sawb => Arc::new(Pact::new(bits, signed, settings.pact_alpha, start)),
        Method::Dsq => {
            Arc::new(DsqActivations::new(bits, settings.dsq_alpha, settings.learn_dsq_alpha, snapped, start))
        }
        Method::Qil => Arc::new(Qil::activations(bits, signed, settings.keep_magnitude)),
        Method::DoReFa => Arc::new(DoReFaActivations::new(bits, signed)),
        Method::Tqt => Arc::new(Tqt::activations(bits, signed)),
        Method::Qat => Arc::new(MovingAverage::new(bits, settings.delay, settings.decay)),
    })
}

#[cfg(test)]
mod tests {
    use super::testing::{normal, run};
    use super::*;

    /// Every quantizer there is at a width, offsets snapped and not.
    fn all(bits: u8) -> Vec<Arc<dyn Deployable>> {
        let mut found = Vec::new();
        for method in Method::ALL {
            for (snapped, configuration) in [(false, "1"), (false, "4"), (true, "2"), (true, "3"), (true, "4")] {
                let configuration = configuration.parse().unwrap();
                let settings =
                    Settings { snapped, configuration, learn_gamma: snapped, delay: 1, ..Settings::default() };
                found.extend(weight_quantizer(method, bits, &settings, 100));
                for signs in [Signs::Positive, Signs::Lobe, Signs::Both] {
                    found.push(activation_quantizer(method, bits, signs, &settings, 100).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn without_an_offset_codes_have_the_signs_of_the_elements() {
        for signs in [Signs::Positive, Signs::Lobe, Signs::Both] {
            let grid = |configuration: &str, offset| {
                let configuration = configuration.parse().unwrap();
                let settings = Settings { configuration, offset, ..Settings::default() };
                let quantizer = activation_quantizer(Method::LsqPlus, 3, signs, &settings, 9).unwrap();
                quantizer.grid(&quantizer.initial(&[-1.0, 2.0])).unwrap().0
            };
            assert_eq!(grid("4", Offset::None), grid("1", Offset::Learned), "{signs:?}");
            assert!(grid("3", Offset::None).signed);
        }
    }

    #[test]
    fn names_and_widths_are_checked() {
        for method in Method::ALL {
            assert_eq!(method.to_string().parse(), Ok(method));
            for bits in [0, 1, 9, 32] {
                assert!(weight_quantizer(method, bits, &Settings::default(), 1).is_err());
                assert!(activation_quantizer(method, bits, Signs::Both, &Settings::default(), 1).is_err());
            }
        }
        assert!("adaround".parse::<Method>().is_err());
        for number in ["1", "2", "3", "4"] {
            assert_eq!(number.parse::<Configuration>().unwrap().to_string(), number);
        }
    }

    #[test]
    fn starting_parameters_quantize_reasonably() {
        let x = normal(3000, 0.5);
        let mut y = vec![0.0; x.len()];
        let energy: f32 = x.iter().map(|x| x * x).sum();
        for (bits, share) in [(2, 1.0), (4, 0.57), (8, 0.52)] {
            for q in all(bits) {
                let parameters = q.initial(&x);
                assert_eq!(parameters.len(), q.learned() + q.derived(), "{q:?}");
                q.forward(&parameters, &x, &mut y);
                // An unsigned grid loses the negative half.
                let error: f32 = x.iter().zip(&y).map(|(x, y)| (x - y).powi(2)).sum();
                assert!(error < share * energy, "{q:?} {parameters:?}: {}", error / energy);
                let mut projected = parameters.clone();
                q.project(&mut projected);
                assert_eq!(projected, parameters, "{q:?} starts where it is defined");
            }
        }
    }

    #[test]
    fn degenerate_inputs_leave_everything_finite() {
        let cases: [&[f32]; 6] = [&[], &[0.0; 6], &[2.5; 6], &[-1e-3], &[1e-40, 0.0], &[f32::NAN, f32::INFINITY, 1.0]];
        for q in [2, 4, 8].into_iter().flat_map(all) {
            for x in cases {
                let parameters = q.initial(x);
                assert!(parameters.iter().all(|p| p.is_finite()), "{q:?} {parameters:?} of {x:?}");
                let (y, dx, sums) = run(&*q, &parameters, x, &vec![1.0; x.len()]);
                if x.iter().all(|x| x.is_finite()) {
                    assert!(y.iter().chain(&dx).all(|v| v.is_finite()), "{q:?}: {y:?} {dx:?} of {x:?}");
                    assert!(sums.iter().all(|v| v.is_finite()), "{q:?}: {sums:?} of {x:?}");
                }
                if let Ok((grid, scale, zero_point)) = q.grid(&parameters) {
                    assert!(scale.is_normal() && scale > 0.0 && (grid.qmin()..=grid.qmax()).contains(&zero_point));
                }
            }
        }
    }

    #[test]
    fn any_step_is_projected_to_something_usable() {
        let numbers = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -3.0, 0.0, 1e-30, 1e38];
        let x = normal(64, 1.0);
        for q in [2, 8].into_iter().flat_map(all) {
            for (i, number) in numbers.iter().enumerate() {
                let mut parameters = q.initial(&x);
                let learned = q.learned();
                for (k, p) in parameters[..learned].iter_mut().enumerate() {
                    *p = if k == 0 { *number } else { numbers[(i + k) % numbers.len()] };
                }
                q.project(&mut parameters[..learned]);
                assert!(parameters.iter().all(|p| p.is_finite()), "{q:?} {parameters:?}");
                let (y, _, _) = run(&*q, &parameters, &x, &x);
                assert!(y.iter().all(|y| y.is_finite()), "{q:?} {parameters:?}");
                if let Ok((_, scale, _)) = q.grid(&parameters) {
                    assert!(scale.is_normal() && scale > 0.0, "{q:?} {parameters:?}");
                }
            }
        }
    }
}
