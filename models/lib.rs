//! Reference generators as combinations of parts.

pub mod backbone;
mod generator;
pub mod tokenizer;
pub mod weights;
pub mod zoo;

pub use generator::{Drawn, Error, Generator, Result, Sampling};
