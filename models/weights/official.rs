//! The state dicts that authors publish, found in a file by the names of their tensors.

use std::collections::BTreeMap;

use super::Stored;

/// A state dict, known by names that it alone has. A second name is there for a file that lacks the first, so that it
/// is the missing tensor that is reported.
struct StateDict {
    /// Whose transformer it is; none for a tokenizer.
    system: Option<&'static str>,
    /// Whether the names are those of another system too, so that only the user can tell.
    shared: bool,
    /// What its names are put behind here.
    prefix: &'static str,
    marks: [&'static str; 2],
}

/// Of two that could be at one place the first is: some have all names of another and more.
const STATE_DICTS: [StateDict; 28] = [
    transformer("arpg", "", ["layers.cross_dec.0.attn.to_q.weight", "layers.cross_dec.0.attn.to_k.weight"]),
    transformer("rar", "", ["target_aware_pos_embed", "timesteps_embeddings"]),
    transformer("randar", "", ["pos_instruct_embeddings", "pos_instruct_embeddings"]),
    transformer("far", "", ["diffloss.net.index_cond_embed.weight", "diffloss.net.index_cond_embed.bias"]),
    transformer("xar", "", ["decoder_blocks.0.mlp.fc1_g.weight", "decoder_blocks.0.mlp.fc1_x.weight"]),
    transformer("transdiff", "", ["diffdecoder.net.input_proj.weight", "diffdecoder.net.cond_embed.weight"]),
    transformer("arinar", "", ["arhead.start_token", "arhead.input_proj.weight"]),
    transformer("hart", "hart.", ["context_embed.weight", "blocks.0.attn.qkv_proj.weight"]),
    transformer("mar", "mar.", ["diffloss.net.cond_embed.weight", "encoder_pos_embed_learned"]),
    transformer("lpd", "", ["z_proj_ln.weight", "z_proj_ln.bias"]),
    transformer("nar", "", ["medusa_output.weight", "output_D.weight"]),
    transformer("par", "", ["spe_tok_embeddings.special_embeddings.weight", "spe_tok_embeddings.weight"]),
    transformer("larp", "", ["abs_pe", "abs_pe"]),
    transformer("maskgil", "", ["tok_emb.weight", "tok_emb.weight"]),
    transformer("hmar", "hmar.", ["word_embed_bias", "mask_blocks.0.attn.mat_qkv.weight"]),
    transformer("spherear", "", ["pos_for_diff.weight", "head.net.cond_embed.weight"]),
    transformer("aim", "mamba.", ["backbone.layers.0.mixer.A_log", "backbone.cls_embed.embedding_table.weight"]),
    transformer("controlar", "", ["adapter_mlp.fc1.weight", "condition_mlp.cap_proj.fc1.weight"]),
    transformer("infinity", "", ["text_proj_for_sos.ca.mat_q", "text_proj_for_ca.0.weight"]),
    shared("dar_diffusion", "", ["tok_embeddings.weight", "layers.0.attention.wqkv.weight"]),
    transformer("llamagen", "gpt.", ["tok_embeddings.weight", "layers.0.attention.wqkv.weight"]),
    transformer("mvar", "mvar.", ["blocks.0.mamba.A_log", "blocks.0.mamba.dt_bias"]),
    shared("flexvar", "var.", ["pos_1LC", "blocks.0.attn.mat_qkv.weight"]),
    transformer("var", "var.", ["pos_1LC", "blocks.0.attn.mat_qkv.weight"]),
    tokenizer("vq.", ["decoder.mid.0.conv1.weight", "encoder.mid.0.conv1.weight"]),
    tokenizer("vq.", ["bottleneck.regularizer.embedding.weight", "encoder_latent_query_embed"]),
    tokenizer("vq.", ["diff_decoder.net.conv_in.weight", "decoder_embedding.weight"]),
    tokenizer("vae.", ["decoder.mid.block_1.conv1.weight", "encoder.mid.block_1.conv1.weight"]),
];

const fn transformer(system: &'static str, prefix: &'static str, marks: [&'static str; 2]) -> StateDict {
    StateDict { system: Some(system), shared: false, prefix, marks }
}

const fn shared(system: &'static str, prefix: &'static str, marks: [&'static str; 2]) -> StateDict {
    StateDict { shared: true, ..transformer(system, prefix, marks) }
}

const fn tokenizer(prefix: &'static str, marks: [&'static str; 2]) -> StateDict {
    StateDict { system: None, shared: false, prefix, marks }
}

/// Keys under which a state dict is nested, in the order in which the official programs look for them.
const KEYS: [&str; 3] = ["model.", "module.", "state_dict."];

impl StateDict {
    /// What stands before the official names in this file, if it holds this state dict.
    fn place<'a>(&self, names: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
        let places = |mark: &'static str| {
            names
                .clone()
                .filter_map(move |name| name.strip_suffix(mark))
                .filter(|place| place.is_empty() || place.ends_with('.'))
        };
        // An average of the weights comes last: the official programs take it only when told to.
        let rank = |place: &&str| match KEYS.iter().position(|key| key == place) {
            _ if place.is_empty() || *place == self.prefix => 0,
            Some(index) => 1 + index,
            None if !place.contains("ema") => 1 + KEYS.len(),
            None => 2 + KEYS.len(),
        };
        self.marks.iter().find_map(|mark| places(mark).min_by_key(rank))
    }
}

/// The system whose transformer has such names.
pub(super) fn system(tensors: &BTreeMap<String, Stored>) -> Option<&'static str> {
    let held = |dict: &&StateDict| dict.place(tensors.keys().map(String::as_str)).is_some();
    STATE_DICTS.iter().filter(|dict| dict.system.is_some() && !dict.shared).find(held)?.system
}

/// See [`super::names_tell`].
pub(super) fn names_tell(system: &str) -> Option<bool> {
    STATE_DICTS.iter().find(|dict| dict.system == Some(system)).map(|dict| !dict.shared)
}

/// The tensors with each state dict's names behind its prefix, of transformers only that of `system` if it is given.
/// Beside nested state dicts nothing else is kept.
pub(super) fn prefixed(tensors: BTreeMap<String, Stored>, system: Option<&str>) -> BTreeMap<String, Stored> {
    let wanted = |dict: &&StateDict| match system {
        Some(_) => dict.system.is_none() || dict.system == system,
        None => !dict.shared,
    };
    let mut places: Vec<(&str, String)> = Vec::new();
    // ARINAR's head is built of VAR's blocks: what a transformer holds is not another one.
    let mut transformer = None;
    for dict in STATE_DICTS.iter().filter(wanted) {
        if dict.system.is_some() && transformer.is_some() {
            continue;
        }
        if let Some(place) = dict.place(tensors.keys().map(String::as_str))
            && !places.iter().any(|(_, taken)| taken == place)
        {
            places.push((dict.prefix, place.to_owned()));
            transformer = transformer.or(dict.system);
        }
    }
    // A name belongs to the innermost place that it is in.
    places.sort_by_key(|(_, place)| std::cmp::Reverse(place.len()));
    let nested = places.iter().any(|(prefix, place)| !place.is_empty() && place != prefix);
    let renamed = tensors.into_iter().filter_map(|(name, stored)| {
        let inside = places.iter().find_map(|(prefix, place)| Some((prefix, name.strip_prefix(place.as_str())?)));
        match inside {
            Some((prefix, own)) => Some((format!("{prefix}{own}"), stored)),
            None if nested => None,
            None => Some((name, stored)),
        }
    });
    renamed.collect()
}
