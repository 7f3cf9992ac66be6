//! A file per system: its paper, its upstream code, and the parts it combines.

pub mod arpg;
pub mod codes;
pub mod llamagen;
pub mod lpd;
pub mod nar;
pub mod par;
pub mod randar;
pub mod rar;
pub mod var;

use smalti::{Device, Float};

use self::codes::InDtype;
use crate::weights::Checkpoint;
use crate::{Error, Generator, Result};

/// Which system a checkpoint belongs to: its own note, else the names of its tensors.
#[must_use]
pub fn system(checkpoint: &Checkpoint) -> Option<&str> {
    checkpoint.metadata("system").or_else(|| {
        let has = |name: &str| checkpoint.names().any(|tensor| tensor.ends_with(name));
        match () {
            () if has("layers.cross_dec.0.attn.to_q.weight") => Some("arpg"),
            () if has("target_aware_pos_embed") => Some("rar"),
            () if has("pos_instruct_embeddings") => Some("randar"),
            () if has("z_proj_ln.weight") && has("token_emb.weight") => Some("lpd"),
            () if has("medusa_output.weight") || has("output_D.weight") => Some("nar"),
            () if has("spe_tok_embeddings.special_embeddings.weight") => Some("par"),
            () if has("tok_embeddings.weight") => Some("llamagen"),
            () if has("pos_1LC") => Some("var"),
            () => None,
        }
    })
}

/// The generator of a checkpoint, with its weights on `device`, computing in `T`.
///
/// # Errors
/// [`Error::Request`] if the system is unknown; [`Error::Weights`] with every tensor that does not fit.
pub fn load<T: Float>(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Generator>> {
    match system(checkpoint) {
        Some("arpg") => Ok(Box::new(InDtype::<T, _>::new(arpg::Arpg::load(checkpoint, device)?))),
        Some("llamagen") => Ok(Box::new(llamagen::LlamaGen::<T>::load(checkpoint, device)?)),
        Some("lpd") => Ok(Box::new(InDtype::<T, _>::new(lpd::Lpd::load(checkpoint, device)?))),
        Some("nar") => Ok(Box::new(InDtype::<T, _>::new(nar::Nar::load(checkpoint, device)?))),
        Some("par") => Ok(Box::new(InDtype::<T, _>::new(par::Par::load(checkpoint, device)?))),
        Some("randar") => Ok(Box::new(InDtype::<T, _>::new(randar::RandAr::load(checkpoint, device)?))),
        Some("rar") => Ok(Box::new(InDtype::<T, _>::new(rar::Rar::load(checkpoint, device)?))),
        Some("var") => Ok(Box::new(var::Var::<T>::load(checkpoint, device)?)),
        Some(other) => Err(Error::Request(format!("{}: system \"{other}\" is not known here", checkpoint.name()))),
        None => Err(Error::Request(format!("{}: neither LlamaGen's nor VAR's tensor names", checkpoint.name()))),
    }
}

/// The class names that a checkpoint carries, or numbers.
fn class_names(checkpoint: &Checkpoint, classes: usize) -> Vec<String> {
    let named = checkpoint.metadata("classes").and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
    named.filter(|names| names.len() == classes).unwrap_or_else(|| (0..classes).map(|n| n.to_string()).collect())
}
