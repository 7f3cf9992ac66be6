//! Pixels to codes and back.

pub mod autoencoder;
pub mod bits;
pub mod flow;
pub mod kl;
pub mod maskgit;
pub mod multi_scale;
pub mod spherical;
pub mod video;
pub mod vq;
