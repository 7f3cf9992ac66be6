//! Every op on every backend against its f64 reference, one module per family.

mod attention;
mod common;
mod copy;
mod kernels;
mod norm;
mod rope;
