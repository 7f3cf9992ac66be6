//! PTX text: tokens, grammar and types. Nothing here knows what an instruction does.

pub mod lexer;
pub mod parser;
pub mod syntax;
pub mod types;
