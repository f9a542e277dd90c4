//! Which stages a refinement has.

use super::float_outputs;
use crate::{
    Error,
    methods::{Method, Methods},
    progress::{Progress, Silent},
    quantize::{Settings, output_sqnr},
    stream::Source,
};
use fewbits_graph::{Graph, exec::Mode};
use fewbits_kernels::Threads;
use fewbits_methods::{
    BlockMethod, Draft, Ground, Part,
    aciq::Aciq,
    adaround::AdaRound,
    bias_correction,
    bn_tune::BnTune,
    brecq::Brecq,
    comq::Comq,
    e2e_qp, lapq,
    mixed_clipping::MixedClipping,
    omse::Omse,
    qdrop::QDrop,
    reconstruction,
    seq_mse::SeqMse,
    zero_point::{
        self,
        weights::{Shift, WeightShift},
    },
};
use std::time::Instant;

/// Steps and rate where scales of activations of few bits are learned, which have far to go.
const LONG_STEPS: usize = 2000;
const LONG_RATE: f32 = 3e-3;

/// Most steps of a block where time decides.
const TIMED_ITERATIONS: usize = 2000;
/// By what share of the time blocks are learned: zero points are adjusted in what is left.
const BLOCKS_BY: f64 = 0.9;
/// By what share of it scales for whole weights are searched, which codes are then chosen for.
const SCALES_BY: f64 = 0.4;

/// What is done at once and measured.
pub enum Stage {
    /// Methods that share a walk.
    Walk(Vec<Box<dyn BlockMethod>>),
    /// What is judged by the outputs of the whole network.
    Outputs(ByOutputs),
    /// The whole network.
    Whole(e2e_qp::Config),
}

/// A method that tries grids and measures the outputs.
pub enum ByOutputs {
    /// Clipping rules of weights.
    MixedClipping(MixedClipping),
    /// Scales of weights.
    Lapq(lapq::Config),
    /// Grids of activations.
    ZeroPoint(zero_point::Config),
}

impl ByOutputs {
    /// Changes `draft` by how close to those of `prepared`, which nothing was rescaled in, its outputs on `seen` come: a quarter of the samples
    /// decides, an eighth more has to agree. Returns whether anything was changed.
    ///
    /// # Errors
    /// Those of the data and the network.
    pub fn run(
        &self,
        prepared: &Graph,
        ground: Ground<'_>,
        draft: &mut Draft,
        seen: &Source<'_>,
        pool: &Threads,
        progress: &dyn Progress,
    ) -> Result<bool, Error> {
        let [decide, agree] = [4, 8].map(|share| seen.indices.len().div_ceil(share));
        let [fit, held] = [0..decide, decide..decide + agree].map(|part| -> Result<_, Error> {
            let indices = seen.indices.get(part).unwrap_or(&seen.indices).to_vec();
            let source = Source { indices, ..*seen };
            Ok((float_outputs(prepared, &source, pool.count(), progress)?, source))
        });
        let (fit, held) = (fit?, held?);
        let loss = |draft: &Draft, half: Part| {
            let (references, source) = if half == Part::Fit { &fit } else { &held };
            let mode = Mode::Integer(&draft.grids);
            let db = output_sqnr(&draft.graph, mode, source, references, pool.count(), &Silent)?;
            Ok::<f64, Error>(10f64.powf(-0.1 * db))
        };
        match self {
            ByOutputs::MixedClipping(method) => method.tune(ground, draft, pool, &loss, progress),
            ByOutputs::Lapq(config) => lapq::tune(ground, draft, config, pool, &loss, progress),
            ByOutputs::ZeroPoint(config) => Ok(zero_point::adjust(ground, draft, config, &loss, progress)? > 0),
        }
    }
}

impl Stage {
    /// The stage of `method`, to be over by `deadline`; `None` if it is none of its own.
    pub fn of(method: Method, settings: &Settings, deadline: Option<Instant>) -> Option<Stage> {
        let seed = settings.seed;
        let learned = |config: reconstruction::Config| {
            let iterations = settings.iterations.unwrap_or(config.iterations);
            reconstruction::Config { seed, iterations, ..config }
        };
        let by = |share: f64| deadline.and_then(|end| end.checked_sub(settings.time_budget.mul_f64(1.0 - share)));
        // With a deadline, as many steps as fit.
        let timed = |config: reconstruction::Config| {
            let deadline = by(BLOCKS_BY);
            let iterations = if deadline.is_some() { TIMED_ITERATIONS } else { config.iterations };
            learned(reconstruction::Config { iterations, deadline, ..config })
        };
        let shifted = |shift| -> Box<dyn BlockMethod> {
            Box::new(WeightShift::new(shift, settings.methods.demands(Method::BiasCorrection)))
        };
        let walked: Box<dyn BlockMethod> = match method {
            Method::MixedClipping => Box::new(MixedClipping::default()),
            Method::Aciq => Box::new(Aciq::default()),
            Method::Omse => Box::new(Omse::default()),
            Method::SeqMse => Box::new(SeqMse::default()),
            Method::Comq => Box::new(Comq::default()),
            Method::AdaRound => Box::new(AdaRound::new(learned(AdaRound::default().config))),
            Method::Brecq => Box::new(Brecq::new(learned(Brecq::default().config))),
            Method::QDrop => Box::new(QDrop::new(timed(QDrop::default().config))),
            Method::ZeroPointWindow => shifted(Shift::Window),
            Method::ZeroPointDequant => shifted(Shift::Dequantization),
            Method::ZeroPointPhase => shifted(Shift::Phase),
            Method::BnTune => Box::new(BnTune::default()),
            Method::BiasCorrectionSequential => Box::new(bias_correction::sequential()),
            Method::MixedClippingNetwork => {
                return Some(Stage::Outputs(ByOutputs::MixedClipping(MixedClipping::default())));
            }
            Method::Lapq => {
                let config = lapq::Config { deadline: by(SCALES_BY), ..lapq::Config::default() };
                return Some(Stage::Outputs(ByOutputs::Lapq(config)));
            }
            Method::ZeroPoint => {
                let config = zero_point::Config { deadline, ..zero_point::Config::default() };
                return Some(Stage::Outputs(ByOutputs::ZeroPoint(config)));
            }
            Method::E2eQp => {
                let usual = e2e_qp::Config { seed, deadline, ..Default::default() };
                let config = match settings.policy.has_low_activations() {
                    true => e2e_qp::Config { steps: LONG_STEPS, rate: LONG_RATE, ..usual },
                    false => usual,
                };
                return Some(Stage::Whole(config));
            }
            Method::ZeroqData | Method::Equalize | Method::AbsorbBias => return None,
            Method::BiasCorrection | Method::BiasCorrectionAnalytic => return None,
        };
        Some(Stage::Walk(vec![walked]))
    }

    /// What it must gain to be kept where that is asked. Learning a whole network brings samples held back closer, too, by what they share
    /// with those learned from; other images do not gain by so little.
    pub fn margin_db(&self) -> f64 {
        match self {
            Stage::Whole(_) => 0.5,
            Stage::Walk(_) | Stage::Outputs(_) => 0.0,
        }
    }

    /// What it means if it changed nothing.
    pub fn why_nothing(&self) -> &'static str {
        match self {
            Stage::Whole(_) => "a batch of samples cannot be taken through the network and back",
            Stage::Walk(_) | Stage::Outputs(_) => "nothing was found that other samples confirm",
        }
    }

    /// What its methods decided, a line each.
    pub fn findings(&self) -> Vec<String> {
        match self {
            Stage::Walk(methods) if methods.len() == 1 => methods[0].findings(),
            Stage::Walk(methods) => {
                let of = |m: &dyn BlockMethod| -> Vec<String> {
                    m.findings().into_iter().map(|line| format!("{}: {line}", m.name())).collect()
                };
                methods.iter().flat_map(|m| of(&**m)).collect()
            }
            Stage::Outputs(ByOutputs::MixedClipping(method)) => method.findings(),
            Stage::Outputs(_) | Stage::Whole(_) => vec![],
        }
    }

    /// The methods, in order.
    pub fn name(&self) -> String {
        match self {
            Stage::Walk(methods) => methods.iter().map(|m| m.name()).collect::<Vec<_>>().join(", "),
            Stage::Outputs(ByOutputs::MixedClipping(_)) => Method::MixedClippingNetwork.to_string(),
            Stage::Outputs(ByOutputs::Lapq(_)) => Method::Lapq.to_string(),
            Stage::Outputs(ByOutputs::ZeroPoint(_)) => Method::ZeroPoint.to_string(),
            Stage::Whole(_) => Method::E2eQp.to_string(),
        }
    }
}

/// The stages, one after the other, which stop at `deadline`. Neighbours that walk share a walk where they are asked for; by default
/// each is measured.
pub fn stages(settings: &Settings, deadline: Option<Instant>) -> Vec<Stage> {
    let explores = settings.methods.explore(&settings.policy);
    let chosen: Vec<Method> = match &settings.methods {
        Methods::List(list) if !explores => list.clone(),
        _ if !explores => vec![],
        _ if settings.policy.has_low_activations() => {
            vec![Method::Comq, Method::BnTune, Method::QDrop, Method::ZeroPoint]
        }
        // COMQ keeps the scale where all channels share one.
        _ if !settings.policy.per_channel => vec![Method::Lapq, Method::Comq, Method::BnTune, Method::E2eQp],
        _ => vec![Method::Comq, Method::BnTune, Method::E2eQp],
    };
    let mut stages: Vec<Stage> = Vec::new();
    for stage in chosen.into_iter().filter_map(|method| Stage::of(method, settings, deadline)) {
        match (stages.last_mut(), stage) {
            (Some(Stage::Walk(methods)), Stage::Walk(more)) if !explores => methods.extend(more),
            (_, stage) => stages.push(stage),
        }
    }
    stages
}
