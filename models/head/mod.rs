//! What a position's output means, where it is more than a softmax over codes.

pub mod diffusion;
pub mod features;
pub mod flow;
pub mod mixture;
pub mod mlp;
