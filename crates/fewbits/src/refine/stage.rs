//! Which stages a refinement has.

use crate::{
    methods::{Method, Methods},
    quantize::Settings,
};
use fewbits_methods::{
    BlockMethod, aciq::Aciq, adaround::AdaRound, bn_tune::BnTune, brecq::Brecq, comq::Comq, e2e_qp,
    mixed_clipping::MixedClipping, omse::Omse, qdrop::QDrop, reconstruction, seq_mse::SeqMse, zero_point,
};

/// What is done at once and measured.
pub enum Stage {
    /// Methods that share a walk.
    Walk(Vec<Box<dyn BlockMethod>>),
    /// Grids of activations.
    Grids(zero_point::Config),
    /// The whole network.
    Whole(e2e_qp::Config),
}

impl Stage {
    fn of(method: Method, settings: &Settings) -> Option<Stage> {
        let seed = settings.seed;
        let learned = |config: reconstruction::Config| {
            let iterations = settings.iterations.unwrap_or(config.iterations);
            reconstruction::Config { seed, iterations, ..config }
        };
        let walked: Box<dyn BlockMethod> = match method {
            Method::MixedClipping => Box::new(MixedClipping::default()),
            Method::Aciq => Box::new(Aciq::default()),
            Method::Omse => Box::new(Omse),
            Method::SeqMse => Box::new(SeqMse::default()),
            Method::Comq => Box::new(Comq::default()),
            Method::AdaRound => Box::new(AdaRound { config: learned(AdaRound::default().config) }),
            Method::Brecq => Box::new(Brecq { config: learned(Brecq::default().config) }),
            Method::QDrop => Box::new(QDrop { config: learned(QDrop::default().config) }),
            Method::BnTune => Box::new(BnTune::default()),
            Method::ZeroPoint => return Some(Stage::Grids(zero_point::Config::default())),
            Method::E2eQp => return Some(Stage::Whole(e2e_qp::Config { seed, ..e2e_qp::Config::default() })),
            Method::ZeroqData | Method::Equalize | Method::BiasCorrection => return None,
        };
        Some(Stage::Walk(vec![walked]))
    }

    /// What its methods decided, a line each.
    pub fn findings(&self) -> Vec<String> {
        match self {
            Stage::Walk(methods) => methods.iter().flat_map(|m| m.findings()).collect(),
            Stage::Grids(_) | Stage::Whole(_) => vec![],
        }
    }

    /// The methods, in order.
    pub fn name(&self) -> String {
        match self {
            Stage::Walk(methods) => methods.iter().map(|m| m.name()).collect::<Vec<_>>().join(", "),
            Stage::Grids(_) => Method::ZeroPoint.to_string(),
            Stage::Whole(_) => Method::E2eQp.to_string(),
        }
    }
}

/// The stages, one after the other. Neighbours that walk share a walk where they are asked for; by default each is measured.
pub fn stages(settings: &Settings) -> Vec<Stage> {
    let explores = settings.methods.explores(&settings.policy);
    let chosen: Vec<Method> = match &settings.methods {
        Methods::Auto if !explores => vec![],
        Methods::Auto if settings.policy.has_low_activations() => vec![Method::Comq, Method::ZeroPoint, Method::E2eQp],
        Methods::Auto => vec![Method::Comq, Method::E2eQp],
        Methods::List(list) => list.clone(),
    };
    let mut stages: Vec<Stage> = Vec::new();
    for stage in chosen.into_iter().filter_map(|method| Stage::of(method, settings)) {
        match (stages.last_mut(), stage) {
            (Some(Stage::Walk(methods)), Stage::Walk(more)) if settings.methods != Methods::Auto => {
                methods.extend(more)
            }
            (_, stage) => stages.push(stage),
        }
    }
    stages
}
