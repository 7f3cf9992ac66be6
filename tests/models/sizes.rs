//! Every system at other sizes than its dumps have: another grid, another depth, on every device against the reference.
//!
//! A case takes a dump, changes the lengths of some axes, adds a layer to some stacks, and notes the new sizes in the
//! configuration. What fills longer axes is what was there, over and over; permutations lose the numbers that are too
//! large. Nobody has run such a model elsewhere: it is the same code on the reference, in f64, that tells what is right.

mod resized;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use smalti::Device;
use smalti_models::conform;
use smalti_models::weights::Checkpoint;

use resized::Stored;

struct Case {
    dump: &'static str,
    /// Keys of the configuration and their new values.
    config: &'static [(&'static str, &'static str)],
    /// Axes of this length, of tensors whose names start so, and their new length.
    lengths: &'static [(&'static str, usize, usize)],
    /// Stacks that get one more layer, a copy of their last: what stands before its number.
    deeper: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        dump: "aim_plain",
        config: &[("num_tokens", "9")],
        lengths: &[("in.", 16, 9), ("w.mamba.backbone.embeddings.position_embeddings", 17, 10)],
        deeper: &["w.mamba.backbone.layers."],
    },
    // One step settles every cell, so that its draws are those of the first. At the dump's guidance of 3 one of these rows
    // passes where the flow is so steep that weights an ulp off move the f64 reference itself by 2e-2.
    Case {
        dump: "arinar_flow",
        config: &[("side", "2"), ("num_iter", "1"), ("cfg", "1.5")],
        lengths: &[
            ("in.noise.000", 2, 8),
            ("in.plain_flow_x", 72, 32),
            ("in.plain_time", 72, 32),
            ("in.", 9, 4),
            ("w.encoder_pos", 13, 8),
            ("w.decoder_pos", 13, 8),
            ("w.diffusion_pos", 9, 4),
        ],
        deeper: &["w.encoder_blocks.", "w.decoder_blocks.", "w.arhead.blocks.", "w.arhead.net.res_blocks."],
    },
    Case {
        dump: "arinar_gmm_nocfg",
        config: &[("side", "3"), ("num_iter", "1")],
        lengths: &[
            ("in.noise.000", 2, 18),
            ("in.uniform.000", 2, 18),
            ("in.order", 16, 9),
            ("in.plain", 16, 9),
            ("w.encoder_pos", 22, 15),
            ("w.decoder_pos", 22, 15),
            ("w.diffusion_pos", 16, 9),
        ],
        deeper: &["w.encoder_blocks.", "w.decoder_blocks.", "w.arhead.blocks."],
    },
    Case {
        dump: "arpg_cosine",
        config: &[("block_size", "9")],
        lengths: &[("in.", 25, 9)],
        deeper: &["w.layers.cross_dec."],
    },
    Case {
        dump: "axial_small",
        config: &[("img_height", "3"), ("img_width", "3"), ("num_inner_layers", "3")],
        lengths: &[("in.", 4, 3), ("w.", 4, 3)],
        deeper: &["w.ar_decoder.transformer2d.inner_row_"],
    },
    // Control comes in at each third of the blocks.
    Case {
        dump: "controlar_c2i",
        config: &[("block_size", "9")],
        lengths: &[
            ("in.control_image", 64, 48),
            ("in.tokens", 16, 9),
            ("in.uniforms", 16, 9),
            ("w.adapter.model.embeddings.position_embeddings", 17, 10),
        ],
        deeper: &["w.adapter.model.encoder.layer.", "w.layers.", "w.layers.", "w.layers."],
    },
    Case {
        dump: "dar_diffusion_gpt",
        config: &[("block_size", "9")],
        lengths: &[("in.", 16, 9)],
        deeper: &["w.layers."],
    },
    Case {
        dump: "dar_diffusion_tokenizer",
        config: &[
            ("sampling_resolution", "24"),
            ("num_all_queries", "12"),
            ("num_query_groups", "4"),
            ("queries_per_step", "3"),
            ("num_denoising_steps", "6"),
        ],
        lengths: &[("in.", 32, 24)],
        deeper: &["w.encoder_layers.", "w.decoder_layers.", "w.diff_decoder.net.blocks."],
    },
    Case { dump: "dar_small", config: &[("block_size", "9")], lengths: &[("in.", 16, 9)], deeper: &["w.layers."] },
    Case {
        dump: "far_mask",
        config: &[("levels", "[0, 2, 3, 7]")],
        lengths: &[
            ("in.noise", 11, 4),
            ("in.head", 64, 20),
            ("in.", 256, 25),
            ("w.encoder_pos", 260, 29),
            ("w.decoder_pos", 260, 29),
            ("w.diffusion_pos", 256, 25),
        ],
        deeper: &["w.encoder_blocks.", "w.decoder_blocks."],
    },
    Case {
        dump: "flexvar_var_cfg",
        config: &[("schedule", "[1, 3]")],
        lengths: &[("in.uniforms", 30, 10), ("in.teacher_input", 29, 9), ("in.feature", 4, 3)],
        deeper: &["w.var.blocks."],
    },
    Case {
        dump: "hart_plain",
        config: &[("patch_nums", "[1, 3]")],
        lengths: &[
            ("in.feature", 4, 3),
            ("in.greedy_noise", 32, 18),
            ("in.greedy_noise", 64, 36),
            ("in.sampled_noise", 32, 18),
            ("in.sampled_noise", 64, 36),
            ("in.sampled_uniforms", 30, 10),
            ("in.teacher_input", 29, 9),
            ("in.orders", 16, 9),
        ],
        deeper: &["w.hart.blocks.", "w.hart.diffloss.net.res_blocks."],
    },
    Case {
        dump: "hmar_l2",
        config: &[("patch_nums", "[1, 3]"), ("mask_schedule", "[[1], [2, 3, 4]]")],
        lengths: &[
            ("in.mask_cells", 19, 3),
            ("in.tokens", 30, 10),
            ("in.uniforms", 61, 37),
            ("w.hmar.lvl_embed", 4, 2),
            ("w.hmar.pos_1LC", 30, 10),
        ],
        deeper: &["w.hmar.base_blocks.", "w.hmar.ns_blocks.", "w.hmar.mask_blocks."],
    },
    Case {
        dump: "infinity_plain",
        config: &[
            ("scales", "[[1, 1, 1], [1, 3, 3]]"),
            ("vae_scales", "[[1, 1, 1], [1, 3, 3]]"),
            ("cfg_list", "[2.0, 3.0]"),
            ("tau_list", "[1.0, 0.9]"),
            ("flip_layers", "1"),
        ],
        lengths: &[
            ("in.feature", 4, 3),
            ("in.flip_strengths", 3, 1),
            ("in.flip_uniforms", 14, 1),
            ("in.uniforms", 30, 10),
        ],
        deeper: &["w.block_chunks."],
    },
    Case {
        dump: "larp_ar_class",
        config: &[("max_seq_len", "9")],
        lengths: &[("in.tokens", 15, 8), ("in.uniforms", 16, 9), ("w.abs_pe", 16, 9)],
        deeper: &["w.layers."],
    },
    Case {
        dump: "larp_tokenizer",
        config: &[("input_size", "24"), ("frame_num", "2")],
        lengths: &[
            ("in.video", 16, 24),
            ("in.video", 4, 2),
            ("in.uniforms", 12, 7),
            ("w.encoder_latent_query_embed", 12, 7),
        ],
        deeper: &["w.encoder.blocks.", "w.decoder.blocks."],
    },
    Case {
        dump: "llamagen_t2i",
        config: &[("block_size", "9"), ("cls_token_num", "5")],
        lengths: &[("in.caption", 6, 5), ("w.gpt.cls_embedding.uncond_embedding", 6, 5)],
        deeper: &["w.gpt.layers."],
    },
    Case {
        dump: "lpd_constant",
        config: &[("grid", "3"), ("group_sizes", "[1, 3, 5]"), ("teacher_group_sizes", "[2, 3, 4]")],
        lengths: &[("in.", 25, 9), ("w.pos_embed", 26, 10)],
        deeper: &["w.blocks."],
    },
    Case {
        dump: "mar_nocfg",
        config: &[],
        lengths: &[
            ("in.head", 16, 9),
            ("in.order", 16, 9),
            ("in.plain", 16, 9),
            ("w.mar.encoder_pos", 19, 12),
            ("w.mar.decoder_pos", 19, 12),
            ("w.mar.diffusion_pos", 16, 9),
        ],
        deeper: &["w.mar.encoder_blocks.", "w.mar.diffloss.net.res_blocks."],
    },
    Case {
        dump: "maskgil_warm_up",
        config: &[("block_size", "9")],
        lengths: &[("in.", 25, 9)],
        deeper: &["w.layers."],
    },
    Case {
        dump: "mvar_l2",
        config: &[("patch_nums", "[1, 3]")],
        lengths: &[
            ("in.feature", 4, 3),
            ("in.mamba_x", 30, 10),
            ("in.teacher_input", 29, 9),
            ("in.uniforms", 30, 10),
            ("w.mvar.lvl_embed", 4, 2),
            ("w.mvar.pos_1LC", 30, 10),
        ],
        deeper: &["w.mvar.blocks."],
    },
    Case { dump: "nar_c2i", config: &[("block_size", "9")], lengths: &[("in.", 16, 9)], deeper: &["w.layers."] },
    Case {
        dump: "par_four",
        config: &[("block_size", "36"), ("grid", "6")],
        lengths: &[("in.", 16, 36)],
        deeper: &["w.layers."],
    },
    Case {
        dump: "parseq_short",
        config: &[("img_size", "[8, 12]")],
        lengths: &[("in.image", 16, 12), ("w.encoder.pos_embed", 8, 6)],
        deeper: &["w.encoder.blocks."],
    },
    Case { dump: "randar_serial", config: &[("block_size", "4")], lengths: &[("in.", 9, 4)], deeper: &["w.layers."] },
    Case {
        dump: "rar_pow",
        config: &[("image_seq_len", "9")],
        lengths: &[
            ("in.", 16, 9),
            ("w.pos_embed", 1040, 1033),
            ("w.target_aware_pos_embed", 1040, 1033),
            ("w.timesteps_embeddings", 116, 109),
        ],
        deeper: &["w.blocks."],
    },
    Case {
        dump: "semaim_small",
        config: &[("img_size", "20")],
        lengths: &[("in.image", 24, 20), ("in.keys", 36, 25), ("in.uniforms", 36, 25), ("w.pos_embed", 37, 26)],
        deeper: &["w.blocks."],
    },
    Case { dump: "sjd_speculative", config: &[("block_size", "9")], lengths: &[], deeper: &["w.layers."] },
    Case {
        dump: "spherear_constant",
        config: &[("resolution", "4")],
        lengths: &[("in.image", 6, 4), ("in.", 9, 4), ("w.pos_for_diff", 9, 4)],
        deeper: &["w.layers."],
    },
    Case {
        dump: "transdiff_one",
        config: &[("grid", "5")],
        lengths: &[
            ("in.", 256, 25),
            ("w.encoder_pos", 272, 41),
            ("w.diffusion_pos", 256, 25),
            ("w.diffdecoder.net.diffusion_pos", 256, 25),
        ],
        deeper: &["w.encoder_blocks.", "w.diffdecoder.net.res_blocks."],
    },
    Case {
        dump: "var_l2",
        config: &[("patch_nums", "[1, 3]")],
        lengths: &[
            ("in.image", 64, 48),
            ("in.teacher_input", 29, 9),
            ("w.var.lvl_embed", 4, 2),
            ("w.var.pos_1LC", 30, 10),
        ],
        deeper: &["w.var.blocks."],
    },
    Case {
        dump: "xar_sde",
        config: &[("num_steps", "4")],
        lengths: &[
            ("in.noise", 64, 9),
            ("in.plain_x", 256, 36),
            ("w.encoder_pos", 256, 36),
            ("w.decoder_pos", 256, 36),
        ],
        deeper: &["w.encoder_blocks.", "w.decoder_blocks."],
    },
];

impl Case {
    fn checkpoint(&self) -> Checkpoint {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/dumps/models/{}.safetensors", self.dump));
        let whole = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut notes =
            SafeTensors::read_metadata(&whole).expect("whole").1.metadata().clone().expect("a dump's notes");
        let file = SafeTensors::deserialize(&whole).expect("whole");
        let mut tensors: BTreeMap<String, Stored> = file
            .iter()
            .filter(|(name, _)| !name.starts_with("out."))
            .map(|(name, tensor)| (name.to_owned(), Stored::from(tensor)))
            .collect();
        for (start, before, after) in self.lengths {
            let named: Vec<_> = tensors.iter_mut().filter(|(name, _)| name.starts_with(start)).collect();
            assert!(named.iter().any(|(_, tensor)| tensor.shape.contains(before)), "{}: {start} {before}", self.dump);
            named.into_iter().for_each(|(_, tensor)| *tensor = tensor.resized(*before, *after));
        }
        for stack in self.deeper {
            let number = |name: &str| {
                let digits = name.strip_prefix(stack)?;
                digits[..digits.find(|c: char| !c.is_ascii_digit())?].parse::<usize>().ok()
            };
            let last = tensors.keys().filter_map(|name| number(name)).max();
            let last = last.unwrap_or_else(|| panic!("{}: no {stack}", self.dump));
            let of_last = tensors.iter().filter(|(name, _)| number(name) == Some(last));
            let copies: Vec<_> = of_last
                .map(|(name, tensor)| {
                    (name.replacen(&format!("{stack}{last}"), &format!("{stack}{}", last + 1), 1), tensor.clone())
                })
                .collect();
            tensors.extend(copies);
        }
        let mut config: serde_json::Value = serde_json::from_str(&notes["config"]).expect("JSON");
        for (key, value) in self.config {
            config[*key] = serde_json::from_str(value).expect("JSON");
        }
        notes.insert("config".to_owned(), config.to_string());
        let views = tensors.iter().map(|(name, tensor)| {
            let view =
                TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("as long as its shape");
            (name.as_str(), view)
        });
        let bytes = safetensors::serialize(views, Some(notes)).expect("as before");
        Checkpoint::from_bytes(&format!("{} at other sizes", self.dump), Cow::Owned(bytes)).expect("as before")
    }
}

fn agree(device: &Device) {
    let mut departures = Vec::new();
    for case in CASES {
        match conform::against_reference(&case.checkpoint(), device) {
            Ok(report) => {
                assert!(!report.outcomes.is_empty(), "{}: nothing was compared", case.dump);
                for outcome in report.outcomes.iter().filter(|outcome| !outcome.agrees) {
                    departures.push(format!(
                        "{} {device} {} {:?}: error {:e}, allowed {:e}, first at {:?}",
                        case.dump, outcome.output, outcome.shape, outcome.max_abs, outcome.allowed, outcome.first
                    ));
                }
            }
            Err(error) => departures.push(format!("{} {device}: {error}", case.dump)),
        }
    }
    assert!(departures.is_empty(), "{}", departures.join("\n"));
}

/// A GPU, software or not. Where `SMALTI_REQUIRE` does not name it, its absence is printed.
fn gpu(id: &str) -> Option<Device> {
    match Device::open(id) {
        Ok(device) => Some(device),
        Err(reason) => {
            let required = std::env::var("SMALTI_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == id), "SMALTI_REQUIRE names {id}: {reason}");
            println!("SKIPPED on {id}: {reason}");
            None
        }
    }
}

#[test]
fn systems_at_other_sizes_agree_with_the_reference_on_the_cpu() {
    agree(&Device::cpu());
}

#[test]
fn systems_at_other_sizes_agree_with_the_reference_on_wgpu() {
    if let Some(device) = gpu("wgpu") {
        agree(&device);
    }
}

#[test]
fn systems_at_other_sizes_agree_with_the_reference_on_cuda() {
    if let Some(device) = gpu("cuda") {
        agree(&device);
    }
}
