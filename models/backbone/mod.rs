//! The blocks of the transformers.

pub mod adaln;
pub mod llama;
