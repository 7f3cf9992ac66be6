//! A file per system: its paper, its upstream code, and the parts it combines.

pub mod aim;
pub mod arinar;
pub mod arpg;
pub mod axial;
pub mod captions;
pub mod codes;
pub mod controlar;
pub mod dar;
pub mod dar_diffusion;
pub mod far;
pub mod flexvar;
pub mod hart;
pub mod hmar;
pub mod infinity;
pub mod larp;
pub mod latents;
pub mod llamagen;
pub mod lpd;
pub mod mar;
pub mod maskgil;
pub mod mvar;
pub mod nar;
pub mod par;
pub mod parseq;
pub mod randar;
pub mod rar;
pub mod semaim;
pub mod spherear;
pub mod steps;
mod systems;
pub mod transdiff;
pub mod var;
pub mod xar;

use smalti::{Device, Float};

pub use self::systems::{Runs, SYSTEMS, System};

use self::codes::InDtype;
use self::latents::LatentsInDtype;
use crate::weights::Checkpoint;
use crate::{Error, Generator, Result};

/// The generator of a checkpoint, with its weights on `device`, computing in `T`.
///
/// # Errors
/// [`Error::Request`] if the system is unknown, draws nothing, or draws with a tokenizer that is not there;
/// [`Error::Weights`] with every tensor that does not fit.
pub fn load<T: Float>(checkpoint: &Checkpoint, device: &Device) -> Result<Box<dyn Generator>> {
    let request = |reason: String| Err(Error::Request(format!("{}: {reason}", checkpoint.name())));
    let tokenizer = checkpoint.names().any(|name| name.starts_with("vq.") || name.starts_with("vae."));
    match checkpoint.system() {
        Some("flexvar" | "hmar" | "mvar" | "var") if !tokenizer => request(
            "holds a transformer without its tokenizer, with whose codes it draws: give that file too".to_owned(),
        ),
        Some(system) if SYSTEMS.iter().any(|known| known.name == system && known.runs == Runs::Conform) => {
            request(format!("{system} draws nothing: smalti conform alone runs it"))
        }
        Some("aim") => Ok(Box::new(InDtype::<T, _>::new(aim::Aim::load(checkpoint, device)?))),
        Some("arinar") => Ok(Box::new(LatentsInDtype::<T, _>::new(arinar::Arinar::load(checkpoint, device)?))),
        Some("arpg") => Ok(Box::new(InDtype::<T, _>::new(arpg::Arpg::load(checkpoint, device)?))),
        Some("controlar") => Ok(Box::new(InDtype::<T, _>::new(controlar::ControlAr::load(checkpoint, device)?))),
        Some("dar") => Ok(Box::new(InDtype::<T, _>::new(dar::Dar::load(checkpoint, device)?))),
        Some("dar_diffusion") => {
            Ok(Box::new(InDtype::<T, _>::new(dar_diffusion::DarDiffusion::load(checkpoint, device)?)))
        }
        Some("far") => Ok(Box::new(LatentsInDtype::<T, _>::new(far::Far::load(checkpoint, device)?))),
        Some("flexvar") => Ok(Box::new(flexvar::FlexVar::<T>::load(checkpoint, device)?)),
        Some("hart") => Ok(Box::new(hart::Hart::<T>::load(checkpoint, device)?)),
        Some("hmar") => Ok(Box::new(hmar::Hmar::<T>::load(checkpoint, device)?)),
        Some("infinity") => Ok(Box::new(infinity::Infinity::<T>::load(checkpoint, device)?)),
        Some("larp") => Ok(Box::new(InDtype::<T, _>::new(larp::Larp::load(checkpoint, device)?))),
        Some("llamagen") => Ok(Box::new(InDtype::<T, _>::new(llamagen::LlamaGen::load(checkpoint, device)?))),
        Some("lpd") => Ok(Box::new(InDtype::<T, _>::new(lpd::Lpd::load(checkpoint, device)?))),
        Some("mar") => Ok(Box::new(LatentsInDtype::<T, _>::new(mar::Mar::load(checkpoint, device)?))),
        Some("maskgil") => Ok(Box::new(InDtype::<T, _>::new(maskgil::MaskGil::load(checkpoint, device)?))),
        Some("mvar") => Ok(Box::new(mvar::MVar::<T>::load(checkpoint, device)?)),
        Some("nar") => Ok(Box::new(InDtype::<T, _>::new(nar::Nar::load(checkpoint, device)?))),
        Some("par") => Ok(Box::new(InDtype::<T, _>::new(par::Par::load(checkpoint, device)?))),
        Some("randar") => Ok(Box::new(InDtype::<T, _>::new(randar::RandAr::load(checkpoint, device)?))),
        Some("rar") => Ok(Box::new(InDtype::<T, _>::new(rar::Rar::load(checkpoint, device)?))),
        Some("spherear") => Ok(Box::new(LatentsInDtype::<T, _>::new(spherear::SphereAr::load(checkpoint, device)?))),
        Some("transdiff") => Ok(Box::new(LatentsInDtype::<T, _>::new(transdiff::TransDiff::load(checkpoint, device)?))),
        Some("var") => Ok(Box::new(var::Var::<T>::load(checkpoint, device)?)),
        Some("xar") => Ok(Box::new(LatentsInDtype::<T, _>::new(xar::Xar::load(checkpoint, device)?))),
        Some(other) => request(format!("system \"{other}\" is not known here")),
        None if tokenizer => request("holds a tokenizer without its transformer: give that file too".to_owned()),
        None => request("its tensors have the names of no system that is known here".to_owned()),
    }
}

/// The class names that a checkpoint carries, or numbers.
fn class_names(checkpoint: &Checkpoint, classes: usize) -> Vec<String> {
    let named = checkpoint.metadata("classes").and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
    named.filter(|names| names.len() == classes).unwrap_or_else(|| (0..classes).map(|n| n.to_string()).collect())
}
