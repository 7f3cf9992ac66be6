//! Reference generators as combinations of parts.

mod generator;

pub use generator::{Drawn, Error, Generator, Result, Sampling};
