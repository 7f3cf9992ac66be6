//! The blocks of the transformers.

pub mod adaln;
pub mod condition;
pub mod llama;
pub mod mamba;
pub mod masked;
pub mod trunk;
pub mod vit;
