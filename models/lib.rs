//! Reference generators as combinations of parts.

pub mod backbone;
pub mod conform;
pub mod decode;
mod generator;
pub mod head;
pub mod order;
pub mod tokenizer;
pub mod weights;
pub mod zoo;

pub use generator::{About, Drawn, Error, Generator, Given, Result, Sampling, Seen, Wanted, Watch};
