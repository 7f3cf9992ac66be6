//! What each instruction computes, against truth that owes nothing to the emulator: exact integer arithmetic, the
//! host's IEEE arithmetic, plain products. Operands: every 16-bit value, every pair of 8-bit values, and for wider
//! ones the edges of the type with each other, and random bits.

mod bulk;
mod compare;
mod convert;
mod exact;
mod float;
mod harness;
mod integer;
mod logic;
mod matrix;
mod mbarrier;
mod memory;
mod warp;
mod warpgroup;
