//! Official names and shapes of the weights that the families draw with.

use std::collections::BTreeMap;

use crate::generators::{LLAMAGEN_B, Shape};

/// Names and shapes of weights.
pub(crate) type Tensors = BTreeMap<String, Vec<usize>>;

/// Of the systems whose tokens are latents or scales here: smaller than LlamaGen-B, for they run more often or longer.
pub(crate) const DIM: usize = 256;
/// Blocks of each of two stacks, where there are two.
const LAYERS: usize = 2;
/// Values of a latent.
const CHANNELS: usize = 16;
/// Places of a picture, and class vectors before them.
const PLACES: usize = 256;
const BUFFER: usize = 64;

/// LlamaGen's names, without a prefix.
pub(crate) fn llama() -> Tensors {
    let own = |(name, shape): (String, Vec<usize>)| (name.trim_start_matches("gpt.").to_owned(), shape);
    LLAMAGEN_B.tensors().into_iter().map(own).collect()
}

pub(crate) fn with(mut tensors: Tensors, more: &[(&str, &[usize])]) -> Tensors {
    tensors.extend(more.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())));
    tensors
}

/// A layer's weight and bias, or a norm's where it has no inputs.
fn layer(tensors: &mut Tensors, name: &str, outputs: usize, inputs: Option<usize>) {
    let shape = [outputs].into_iter().chain(inputs).collect();
    tensors.insert(format!("{name}.weight"), shape);
    tensors.insert(format!("{name}.bias"), vec![outputs]);
}

/// A block of a ViT.
fn vit_block(tensors: &mut Tensors, at: &str, dim: usize) {
    ["norm1", "norm2"].iter().for_each(|name| layer(tensors, &format!("{at}.{name}"), dim, None));
    let shapes =
        [("attn.qkv", 3 * dim, dim), ("attn.proj", dim, dim), ("mlp.fc1", 4 * dim, dim), ("mlp.fc2", dim, 4 * dim)];
    for (name, outputs, inputs) in shapes {
        layer(tensors, &format!("{at}.{name}"), outputs, Some(inputs));
    }
}

/// ARPG's names: half of the blocks take tokens in, the others ask for cells.
pub(crate) fn arpg() -> Tensors {
    let Shape { dim, layers, hidden, vocabulary, .. } = LLAMAGEN_B;
    let mut tensors = with(
        Tensors::new(),
        &[
            ("embeddings.weight", &[vocabulary + 1003, dim]),
            ("layers.norm.weight", &[dim]),
            ("layers.to_k.weight", &[dim, dim]),
            ("layers.to_v.weight", &[dim, dim]),
            ("norm.weight", &[dim]),
            ("head.weight", &[vocabulary, dim]),
        ],
    );
    for layer in 0..layers {
        let (kind, index) = (["self_dec", "cross_dec"][layer % 2], layer / 2);
        let square: &[&str] = if layer % 2 == 0 { &["to_q", "to_k", "to_v", "proj"] } else { &["to_q", "proj"] };
        let mut add = |name: &str, shape: &[usize]| {
            tensors.insert(format!("layers.{kind}.{index}.{name}.weight"), shape.to_vec());
        };
        square.iter().for_each(|name| add(&format!("attn.{name}"), &[dim, dim]));
        ["attn_norm", "ffn_norm"].iter().for_each(|name| add(name, &[dim]));
        ["ffn.w1", "ffn.w3"].iter().for_each(|name| add(name, &[hidden, dim]));
        add("ffn.w2", &[dim, hidden]);
    }
    tensors
}

/// LPD's names.
pub(crate) fn lpd() -> Tensors {
    let Shape { dim, layers, vocabulary, .. } = LLAMAGEN_B;
    let mut tensors = with(
        Tensors::new(),
        &[
            ("class_emb.weight", &[1000, dim]),
            ("fake_latent", &[1, dim]),
            ("token_emb.weight", &[vocabulary, dim]),
            ("mask_token", &[1, 1, dim]),
            ("pos_embed", &[1, 257, dim]),
            ("head.weight", &[vocabulary, dim]),
        ],
    );
    ["z_proj_ln", "norm"].iter().for_each(|name| layer(&mut tensors, name, dim, None));
    (0..layers).for_each(|block| vit_block(&mut tensors, &format!("blocks.{block}"), dim));
    tensors
}

/// What MAR's names share with TransDiff's: classes, positions, and the encoder over latents of `values` values.
fn encoder(values: usize, masks: usize) -> Tensors {
    let mut tensors = with(
        Tensors::new(),
        &[
            ("class_emb.weight", &[1000, DIM]),
            ("fake_latent", &[1, DIM]),
            ("mask_token", &[1, masks, DIM]),
            ("encoder_pos_embed_learned", &[1, BUFFER + PLACES, DIM]),
            ("diffusion_pos_embed_learned", &[1, PLACES, DIM]),
        ],
    );
    layer(&mut tensors, "z_proj", DIM, Some(values));
    ["z_proj_ln", "encoder_norm"].iter().for_each(|name| layer(&mut tensors, name, DIM, None));
    (0..LAYERS).for_each(|block| vit_block(&mut tensors, &format!("encoder_blocks.{block}"), DIM));
    tensors
}

/// MAR's names without their prefix, which are FAR's but for what tells its head the level.
pub(crate) fn far() -> Tensors {
    let mut tensors = with(encoder(CHANNELS, 1), &[("decoder_pos_embed_learned", &[1, BUFFER + PLACES, DIM])]);
    layer(&mut tensors, "decoder_norm", DIM, None);
    layer(&mut tensors, "decoder_embed", DIM, Some(DIM));
    (0..LAYERS).for_each(|block| vit_block(&mut tensors, &format!("decoder_blocks.{block}"), DIM));
    let head = [
        ("cond_embed", DIM, DIM),
        ("index_cond_embed", DIM, 1),
        ("input_proj", DIM, CHANNELS),
        ("time_embed.mlp.0", DIM, 256),
        ("time_embed.mlp.2", DIM, DIM),
        ("final_layer.adaLN_modulation.1", 2 * DIM, DIM),
        ("final_layer.linear", 2 * CHANNELS, DIM),
    ];
    for (name, outputs, inputs) in head {
        layer(&mut tensors, &format!("diffloss.net.{name}"), outputs, Some(inputs));
    }
    for block in 0..3 {
        let at = format!("diffloss.net.res_blocks.{block}");
        layer(&mut tensors, &format!("{at}.in_ln"), DIM, None);
        for (name, outputs) in [("adaLN_modulation.1", 3 * DIM), ("mlp.0", DIM), ("mlp.2", DIM)] {
            layer(&mut tensors, &format!("{at}.{name}"), outputs, Some(DIM));
        }
    }
    tensors
}

/// MAR's names.
pub(crate) fn mar() -> Tensors {
    let own = far().into_iter().filter(|(name, _)| !name.contains("index_cond_embed"));
    own.map(|(name, shape)| (format!("mar.{name}"), shape)).collect()
}

/// TransDiff's names, for one round or for four that each draw a quarter of the conditions.
pub(crate) fn transdiff(rounds: usize) -> Tensors {
    let (values, masks) = if rounds == 1 { (CHANNELS, 1) } else { (4 * CHANNELS, PLACES / rounds) };
    let mut tensors = with(
        encoder(values, masks),
        &[
            ("diffdecoder.net.diffusion_pos_embed_learned", &[1, PLACES, DIM]),
            ("diffdecoder.net.final_layer.scale_shift_table", &[1, 2, DIM]),
        ],
    );
    let net = [
        ("cond_embed", DIM, DIM),
        ("input_proj", DIM, CHANNELS),
        ("final_layer.linear", CHANNELS, DIM),
        ("time_embed.time_embedder.linear_1", DIM, 256),
        ("time_embed.time_embedder.linear_2", DIM, DIM),
        ("time_embed.time_proj", 6 * DIM, DIM),
    ];
    for (name, outputs, inputs) in net {
        layer(&mut tensors, &format!("diffdecoder.net.{name}"), outputs, Some(inputs));
    }
    for block in 0..LAYERS {
        let at = format!("diffdecoder.net.res_blocks.{block}");
        tensors.insert(format!("{at}.scale_shift_table"), vec![1, 6, DIM]);
        ["norm1", "norm2", "norm3"].iter().for_each(|name| layer(&mut tensors, &format!("{at}.{name}"), DIM, None));
        let square = ["attn1.proj", "attn2.proj", "attn2.wq", "attn2.wk", "attn2.wv"];
        square.iter().for_each(|name| layer(&mut tensors, &format!("{at}.{name}"), DIM, Some(DIM)));
        for (name, outputs, inputs) in
            [("attn1.qkv", 3 * DIM, DIM), ("mlp.fc1", 4 * DIM, DIM), ("mlp.fc2", DIM, 4 * DIM)]
        {
            layer(&mut tensors, &format!("{at}.{name}"), outputs, Some(inputs));
        }
    }
    tensors
}

/// xAR's names.
pub(crate) fn xar() -> Tensors {
    let hidden = 8 * DIM / 3;
    let mut tensors = with(Tensors::new(), &[("class_emb.weight", &[1001, DIM]), ("z_proj_ln.weight", &[DIM])]);
    let outer = [
        ("z_proj", DIM, CHANNELS),
        ("pred", CHANNELS, DIM),
        ("decoder_embed", DIM, DIM),
        ("time_embed.mlp.0", DIM, 256),
        ("time_embed.mlp.2", DIM, DIM),
    ];
    for (name, outputs, inputs) in outer {
        layer(&mut tensors, name, outputs, Some(inputs));
    }
    for stack in ["encoder", "decoder"] {
        tensors.insert(format!("{stack}_norm.weight"), vec![DIM]);
        tensors.insert(format!("{stack}_pos_embed_learned"), vec![1, PLACES, DIM]);
        let shapes = [
            ("ada_lin.1", 6 * DIM, DIM),
            ("attn.qkv", 3 * DIM, DIM),
            ("attn.proj", DIM, DIM),
            ("mlp.fc1_g", hidden, DIM),
            ("mlp.fc1_x", hidden, DIM),
            ("mlp.fc2", DIM, hidden),
        ];
        for (block, (name, outputs, inputs)) in (0..LAYERS).flat_map(|block| shapes.map(|shape| (block, shape))) {
            layer(&mut tensors, &format!("{stack}_blocks.{block}.{name}"), outputs, Some(inputs));
        }
    }
    tensors
}

/// AiM-B's names: twice as many layers as LlamaGen-B, each a mixer alone.
pub(crate) fn aim() -> Tensors {
    let Shape { dim, layers, vocabulary, .. } = LLAMAGEN_B;
    let mut tensors = with(
        Tensors::new(),
        &[
            ("cls_embed.embedding_table.weight", &[1001, dim]),
            ("embeddings.position_embeddings.weight", &[257, dim]),
            ("embeddings.word_embeddings.weight", &[vocabulary, dim]),
            ("final_layer.norm_final.weight", &[dim]),
            ("norm_f.weight", &[dim]),
        ],
    );
    layer(&mut tensors, "final_layer.adaLN_modulation.1", 2 * dim, Some(dim));
    for block in 0..2 * layers {
        let at = format!("layers.{block}");
        layer(&mut tensors, &format!("{at}.adaLN_modulation.1"), 3 * dim, Some(dim));
        tensors.insert(format!("{at}.norm.weight"), vec![dim]);
        mixer(&mut tensors, &format!("{at}.mixer"), dim, 128);
    }
    tensors.into_iter().map(|(name, shape)| (format!("mamba.backbone.{name}"), shape)).collect()
}

/// FlexVAR's names: the blocks with their quantiser, without the tokenizer's convolutions.
pub(crate) fn flexvar() -> Tensors {
    let (vocabulary, code) = (4096, 32);
    let mut tensors = with(
        Tensors::new(),
        &[
            ("var.class_emb.weight", &[1001, DIM]),
            ("var.pos_1LC", &[1, DIM, 32, 32]),
            ("var.pos_start", &[1, 1, DIM]),
            ("vq.quantize.embedding.weight", &[vocabulary, code]),
            ("vq.quant_conv.weight", &[code, code, 1, 1]),
            ("vq.quant_conv.bias", &[code]),
            ("vq.post_quant_conv.weight", &[code, code, 1, 1]),
            ("vq.post_quant_conv.bias", &[code]),
        ],
    );
    scale_blocks(&mut tensors, "var", [vocabulary, code], 6);
    tensors
}

/// What VAR's kin share: codes in and out, and blocks of so many modulations.
fn scale_blocks(tensors: &mut Tensors, system: &str, [vocabulary, code]: [usize; 2], modulations: usize) {
    layer(tensors, &format!("{system}.word_embed"), DIM, Some(code));
    layer(tensors, &format!("{system}.head"), vocabulary, Some(DIM));
    layer(tensors, &format!("{system}.head_nm.ada_lin.1"), 2 * DIM, Some(DIM));
    for block in 0..2 * LAYERS {
        let at = format!("{system}.blocks.{block}");
        let shapes = [
            ("ada_lin.1", modulations * DIM, DIM),
            ("attn.proj", DIM, DIM),
            ("ffn.fc1", 4 * DIM, DIM),
            ("ffn.fc2", DIM, 4 * DIM),
        ];
        for (name, outputs, inputs) in shapes {
            layer(tensors, &format!("{at}.{name}"), outputs, Some(inputs));
        }
        tensors.insert(format!("{at}.attn.mat_qkv.weight"), vec![3 * DIM, DIM]);
        ["q_bias", "v_bias"].iter().for_each(|name| {
            tensors.insert(format!("{at}.attn.{name}"), vec![DIM]);
        });
        tensors.insert(format!("{at}.attn.scale_mul_1H11"), vec![1, DIM / 64, 1, 1]);
    }
}

/// VAR's names with its quantiser, without the tokenizer's convolutions.
pub(crate) fn var() -> Tensors {
    let mut tensors = scales("var");
    scale_blocks(&mut tensors, "var", [4096, 32], 6);
    tensors
}

/// M-VAR's: each block has a mixer and its modulations too.
pub(crate) fn mvar() -> Tensors {
    let mut tensors = scales("mvar");
    scale_blocks(&mut tensors, "mvar", [4096, 32], 9);
    (0..2 * LAYERS).for_each(|block| mixer(&mut tensors, &format!("mvar.blocks.{block}.mamba"), DIM, 64));
    tensors
}

/// Classes, positions and codes of VAR's kin, which are asked for the scales of 256 pixels.
fn scales(system: &str) -> Tensors {
    let tables = [
        ("class_emb.weight", vec![1001, DIM]),
        ("lvl_embed.weight", vec![10, DIM]),
        ("pos_1LC", vec![1, 680, DIM]),
        ("pos_start", vec![1, 1, DIM]),
    ];
    let mut tensors: Tensors = tables.into_iter().map(|(name, shape)| (format!("{system}.{name}"), shape)).collect();
    tensors.insert("vae.quantize.embedding.weight".to_owned(), vec![4096, 32]);
    for index in 0..4 {
        let at = format!("vae.quantize.quant_resi.qresi_ls.{index}");
        tensors.insert(format!("{at}.weight"), vec![32, 32, 3, 3]);
        tensors.insert(format!("{at}.bias"), vec![32]);
    }
    tensors
}

/// A Mamba-2 mixer of so many numbers per channel.
fn mixer(tensors: &mut Tensors, at: &str, dim: usize, state: usize) {
    let inner = 2 * dim;
    let heads = inner / 64;
    let own: [(&str, &[usize]); 8] = [
        ("A_log", &[heads]),
        ("D", &[heads]),
        ("dt_bias", &[heads]),
        ("conv1d.bias", &[inner + 2 * state]),
        ("conv1d.weight", &[inner + 2 * state, 1, 4]),
        ("in_proj.weight", &[2 * inner + 2 * state + heads, dim]),
        ("norm.weight", &[inner]),
        ("out_proj.weight", &[dim, inner]),
    ];
    tensors.extend(own.iter().map(|(name, shape)| (format!("{at}.{name}"), shape.to_vec())));
}
