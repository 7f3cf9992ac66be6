//! The library's one error type.

use crate::Dtype;

/// What went wrong, named so that the caller can find the operand.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand's shape does not fit the op or the other operands.
    #[error("{op}: {operand} has shape {got:?}, expected {expected}")]
    Shape {
        /// The op that was called.
        op: &'static str,
        /// The operand's name in the op's documentation.
        operand: &'static str,
        /// The shape that came.
        got: Vec<usize>,
        /// What was expected, and why.
        expected: String,
    },
    /// An operand has an element type that the op or the device does not take.
    #[error("{op}: {operand} holds {got}, expected {expected}")]
    Dtype {
        /// The op that was called.
        op: &'static str,
        /// The operand's name in the op's documentation.
        operand: &'static str,
        /// The element type that came.
        got: Dtype,
        /// What was expected, and why.
        expected: String,
    },
    /// An option or a value is outside its legal range.
    #[error("{op}: {operand} is {got}, expected {expected}")]
    Value {
        /// The op that was called.
        op: &'static str,
        /// The operand's or option's name in the op's documentation.
        operand: &'static str,
        /// The value that came.
        got: String,
        /// What was expected, and why.
        expected: String,
    },
    /// Two operands live on different devices; nothing is copied behind the caller's back.
    #[error("{op}: {operand} is on {got}, expected {expected}, where the other operands are")]
    Place {
        /// The op that was called.
        op: &'static str,
        /// The operand's name in the op's documentation.
        operand: &'static str,
        /// The device it is on.
        got: String,
        /// The device of the other operands.
        expected: String,
    },
    /// A device that was asked for is not there.
    #[error("device {device} is not available: {reason}")]
    Unavailable {
        /// The device's id, as `wgpu:1`.
        device: String,
        /// Why, in the driver's or the loader's words.
        reason: String,
    },
    /// A device failed, was lost or ran out of memory.
    #[error("device {device} failed in {during}: {reason}")]
    Device {
        /// The device's id, as `wgpu:1`.
        device: String,
        /// What was being done.
        during: String,
        /// The driver's words.
        reason: String,
    },
}

/// [`std::result::Result`] with this library's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Shape`].
    pub(crate) fn shape(op: &'static str, operand: &'static str, got: &[usize], expected: impl Into<String>) -> Self {
        Self::Shape { op, operand, got: got.to_vec(), expected: expected.into() }
    }

    /// An [`Error::Value`].
    pub(crate) fn value(
        op: &'static str,
        operand: &'static str,
        got: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Value { op, operand, got: got.to_string(), expected: expected.into() }
    }
}
