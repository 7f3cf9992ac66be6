//! Reference generators as combinations of parts.
