//! One file for each form in which data come; each turns a path into file names and labels, or into readable records.

pub mod array;
pub mod cifar;
pub mod coco;
pub mod csv;
pub mod folder;
