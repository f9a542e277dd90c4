//! The list of architectures, and how one is built: options are checked, defaults filled in, metadata written.

use crate::{
    demo::demo,
    efficientnet_b0::efficientnet_b0,
    error::ZooError,
    mixnet_s::mixnet_s,
    mobilenet_v2::mobilenet_v2,
    net::{Net, Value},
    resnet::{resnet18, resnet20, resnet50},
    swishnet::swishnet,
    yolov3::{self, yolov3, yolov3_tiny},
};
use fewbits_graph::Graph;

/// What can be chosen; `None` stands for the architecture's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// Number of classes; by default 80 for detectors, else 10 for images up to 64x64 and 1000 for larger ones.
    pub classes: Option<usize>,
    /// Channels, height, width.
    pub input: Option<[usize; 3]>,
    /// Factor of the channels; `mobilenet_v2` only.
    pub width: f32,
    /// Start of the random numbers that the weights come from.
    pub seed: u64,
}

impl Default for Options {
    /// The published network, from seed 0.
    fn default() -> Self {
        Options { classes: None, input: None, width: 1.0, seed: 0 }
    }
}

/// What an architecture is built from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub classes: usize,
    pub width: f32,
    input: [usize; 3],
}

impl Config {
    /// Whether images are so small that the first layers keep their size.
    pub fn small(&self) -> bool {
        self.input[1].max(self.input[2]) <= 64
    }

    /// Stride of layers that halve large images only.
    pub fn early_stride(&self) -> usize {
        if self.small() { 1 } else { 2 }
    }
}

/// An architecture.
#[derive(Clone, Copy, Debug)]
pub struct Architecture {
    /// Its name.
    pub name: &'static str,
    /// The input it was published for: channels, height, width.
    pub input: [usize; 3],
    /// Detectors carry their anchors; classifiers have none.
    anchors: Option<&'static str>,
    layers: fn(&mut Net, Value, &Config) -> Vec<Value>,
}

const IMAGENET: [usize; 3] = [3, 224, 224];
const CIFAR: [usize; 3] = [3, 32, 32];
const COCO: [usize; 3] = [3, 416, 416];

/// Every architecture, by name.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture { name: "demo", input: CIFAR, anchors: None, layers: demo },
    Architecture { name: "efficientnet_b0", input: IMAGENET, anchors: None, layers: efficientnet_b0 },
    Architecture { name: "mixnet_s", input: IMAGENET, anchors: None, layers: mixnet_s },
    Architecture { name: "mobilenet_v2", input: IMAGENET, anchors: None, layers: mobilenet_v2 },
    Architecture { name: "resnet18", input: IMAGENET, anchors: None, layers: resnet18 },
    Architecture { name: "resnet20", input: CIFAR, anchors: None, layers: resnet20 },
    Architecture { name: "resnet50", input: IMAGENET, anchors: None, layers: resnet50 },
    Architecture { name: "swishnet", input: CIFAR, anchors: None, layers: swishnet },
    Architecture { name: "yolov3", input: COCO, anchors: Some(yolov3::ANCHORS), layers: yolov3 },
    Architecture { name: "yolov3_tiny", input: COCO, anchors: Some(yolov3::TINY_ANCHORS), layers: yolov3_tiny },
];

/// The names of all architectures.
pub fn names() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|a| a.name).collect()
}

/// The architecture called `name`.
///
/// # Errors
/// [`ZooError::Unknown`].
pub fn find(name: &str) -> Result<&'static Architecture, ZooError> {
    ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| ZooError::Unknown { name: name.into() })
}

impl Architecture {
    /// The graph, initialised: input `image` `[batch, channels, height, width]`; output `logits` `[batch, classes]`, or
    /// the heads of a detector. The same options give the same graph.
    ///
    /// The metadata hold `architecture`, `preprocess` (for three channels; `imagenet`, `cifar10` for small images, or plain
    /// resizing for detectors) and `anchors` (detectors).
    ///
    /// # Errors
    /// [`ZooError::Input`], [`ZooError::Classes`] and [`ZooError::Width`] for options out of range.
    pub fn build(&self, options: &Options) -> Result<Graph, ZooError> {
        let config = self.config(options)?;
        let (mut net, image) = Net::new(self.name, config.input, options.seed);
        let outputs = (self.layers)(&mut net, image, &config);
        let mut graph = net.finish(&outputs).map_err(|source| ZooError::Graph { architecture: self.name, source })?;
        let [channels, height, width] = config.input;
        let mut note = |key: &str, text: &str| graph.metadata.insert(key.into(), text.into());
        note("architecture", self.name);
        match self.anchors {
            _ if channels != 3 => None,
            Some(_) => note("preprocess", &format!("rgb/255, resize to {height}x{width}")),
            None => note("preprocess", if config.small() { "cifar10" } else { "imagenet" }),
        };
        if let Some(anchors) = self.anchors {
            note("anchors", anchors);
        }
        Ok(graph)
    }

    fn config(&self, options: &Options) -> Result<Config, ZooError> {
        let input = options.input.unwrap_or(self.input);
        let multiple = if self.anchors.is_some() { 32 } else { 1 };
        let sized = |n: &usize| (1..=4096).contains(n);
        if !input.iter().all(sized) || !input[1..].iter().all(|n| n.is_multiple_of(multiple)) {
            return Err(ZooError::Input { architecture: self.name, input, multiple });
        }
        let width = options.width;
        if width != 1.0 && (self.name != "mobilenet_v2" || !(0.1..=4.0).contains(&width)) {
            return Err(ZooError::Width { architecture: self.name, width });
        }
        let mut config = Config { classes: 0, width, input };
        config.classes = options.classes.unwrap_or(match self.anchors {
            Some(_) => 80,
            None if config.small() => 10,
            None => 1000,
        });
        if (1..=65536).contains(&config.classes) { Ok(config) } else { Err(ZooError::Classes(config.classes)) }
    }
}
