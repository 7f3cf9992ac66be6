//! What stands for a peer in a build without it.

use smalti::Float;

use crate::{Operand, Rival};

/// None.
pub(crate) fn name() -> Option<String> {
    None
}

/// None.
#[cfg(not(feature = "burn"))]
pub(crate) fn adapter() -> Option<&'static str> {
    None
}

/// None.
#[must_use]
pub fn attention<T: Float>(_: &[Operand<'_, T>; 3], _: f32, _: bool) -> Vec<Rival<'static>> {
    Vec::new()
}

/// None.
#[must_use]
pub fn linear<T: Float>(_: &[Operand<'_, T>; 2], _: usize) -> Vec<Rival<'static>> {
    Vec::new()
}

/// None.
#[must_use]
pub fn norm<T: Float>(_: &'static str, _: &Operand<'_, T>) -> Vec<Rival<'static>> {
    Vec::new()
}

/// None.
#[must_use]
pub fn nearest<T: Float>(_: &[Operand<'_, T>; 2]) -> Vec<Rival<'static>> {
    Vec::new()
}

/// None.
#[must_use]
pub fn argmax<T: Float>(_: &Operand<'_, T>) -> Vec<Rival<'static>> {
    Vec::new()
}
