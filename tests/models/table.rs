//! The table of `smalti models`, column by column, against what each system does with weights.

mod parts;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use safetensors::{Dtype, tensor::TensorView};
use smalti::Device;
use smalti_models::weights::Checkpoint;
use smalti_models::zoo::captions::CaptionFeatures;
use smalti_models::zoo::{Runs, SYSTEMS, System};
use smalti_models::{Drawn, Error, Generator, Given, Sampling, zoo};

use parts::Part;

/// A system's network, with a tokenizer where there is one of its kind.
struct Whole {
    system: &'static str,
    parts: &'static [Part<'static>],
    config: &'static [(&'static str, &'static str)],
}

/// LlamaGen's tokenizer, with 64 codes.
const LLAMAGENS: Part<'_> =
    Part::new("llamagen_c2i", "w.vq.", "vq.").resized(&[("vq.quantize.embedding.weight", 96, 64)]);
/// MAR's autoencoder, of 4 channels and of 16.
const MARS: Part<'_> = Part::new("mar_nocfg", "w.vae.", "vae.");
const MARS_OF_16: Part<'_> = MARS.resized(&[
    ("vae.decoder.conv_in.weight", 4, 16),
    ("vae.post_quant_conv", 4, 16),
    ("vae.encoder.conv_out", 8, 32),
    ("vae.quant_conv", 8, 32),
]);
/// What is around VAR's codes, for 16 channels.
const VARS_OF_16: [Part<'_>; 4] = [
    Part::new("var_l2", "w.vae.decoder.", "vae.decoder.").resized(&[("vae.decoder.conv_in.weight", 8, 16)]),
    Part::new("var_l2", "w.vae.encoder.", "vae.encoder.").resized(&[("vae.encoder.conv_out", 8, 16)]),
    Part::new("var_l2", "w.vae.post_quant_conv.", "vae.post_quant_conv.").resized(&[("", 8, 16)]),
    Part::new("var_l2", "w.vae.quant_conv.", "vae.quant_conv.").resized(&[("", 8, 16)]),
];
/// LlamaGen's encoder and decoder, for 48 channels between them and the codes.
const LLAMAGENS_OF_48: [Part<'_>; 2] = [
    Part::new("llamagen_c2i", "w.vq.decoder.", "vq.decoder.").resized(&[("vq.decoder.conv_in.weight", 16, 48)]),
    Part::new("llamagen_c2i", "w.vq.encoder.", "vq.encoder.").resized(&[("vq.encoder.conv_out", 16, 48)]),
];

const fn whole(system: &'static str, parts: &'static [Part<'static>]) -> Whole {
    Whole { system, parts, config: &[] }
}

/// All weights of a dump.
const fn of(dump: &'static str) -> Part<'static> {
    Part::new(dump, "w.", "")
}

/// Every kind of checkpoint that a system knows.
const KINDS: &[Whole] = &[
    whole("aim", &[of("aim_plain"), LLAMAGENS]),
    whole("arinar", &[of("arinar_gmm"), MARS]),
    whole("arpg", &[of("arpg_arccos"), LLAMAGENS]),
    whole("controlar", &[of("controlar_c2i"), LLAMAGENS]),
    whole("controlar", &[of("controlar_t2i"), LLAMAGENS]),
    whole("dar", &[of("dar_small"), LLAMAGENS]),
    whole("dar_diffusion", &[of("dar_diffusion_gpt"), Part::new("dar_diffusion_tokenizer", "w.", "vq.")]),
    whole("far", &[of("far_mask"), MARS_OF_16]),
    whole("flexvar", &[of("flexvar_var_cfg"), LLAMAGENS_OF_48[0], LLAMAGENS_OF_48[1]]),
    whole("hart", &[of("hart_plain"), VARS_OF_16[0], VARS_OF_16[1], VARS_OF_16[2], VARS_OF_16[3]]),
    // Of encoders only MAR's is as coarse as HMAR's decoder there.
    whole(
        "hmar",
        &[
            of("hmar_l2"),
            Part::new("mar_nocfg", "w.vae.encoder.", "vae.encoder."),
            Part::new("var_l2", "w.vae.quant_conv.", "vae.quant_conv."),
        ],
    ),
    whole("infinity", &[of("infinity_plain")]),
    Whole {
        system: "larp",
        parts: &[
            of("larp_ar_class").resized(&[("tok_embeddings", 96, 64), ("output", 96, 64)]),
            Part::new("larp_tokenizer", "w.", "vq."),
        ],
        config: &[("max_seq_len", "12")],
    },
    whole("larp", &[of("larp_ar_frames")]),
    whole("llamagen", &[of("llamagen_c2i")]),
    whole("llamagen", &[of("llamagen_t2i")]),
    whole("lpd", &[of("lpd_linear"), LLAMAGENS]),
    whole("mar", &[of("mar_nocfg")]),
    whole("maskgil", &[of("maskgil_linear"), LLAMAGENS]),
    whole("mvar", &[of("mvar_l2"), VARS_OF_16[0], VARS_OF_16[1], VARS_OF_16[2], VARS_OF_16[3]]),
    whole("nar", &[of("nar_c2i"), LLAMAGENS]),
    Whole {
        system: "nar",
        parts: &[of("nar_video").resized(&[("abs_pe", 19, 13)]), Part::new("larp_tokenizer", "w.", "vq.")],
        config: &[("latent_shape", "[3, 2, 2]")],
    },
    whole("par", &[of("par_four"), LLAMAGENS]),
    whole("randar", &[of("randar_parallel"), LLAMAGENS]),
    whole("rar", &[of("rar_pow"), Part::new("rar_vqgan", "w.", "vq.")]),
    whole("spherear", &[of("spherear_linear")]),
    whole("transdiff", &[of("transdiff_mrar"), MARS]),
    whole("var", &[of("var_l2")]),
    whole("xar", &[of("xar_sde"), MARS_OF_16]),
];

/// What was seen of a system, over its kinds of checkpoints.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    class: bool,
    captions: bool,
    control: bool,
    /// It continues frames, which `generate` has no way to give.
    frames: bool,
    pictures: bool,
    inpaint: bool,
    outpaint: bool,
    edit: bool,
    resolution: bool,
    video: bool,
    drafts: bool,
}

fn file_of(folder: &Path, whole: &Whole) -> std::path::PathBuf {
    parts::weights(folder, whole.parts, whole.config)
}

fn load(file: &Path, system: &str) -> Box<dyn Generator> {
    let checkpoint = Checkpoint::open_as(Some(system), &[file]).expect("weights");
    zoo::load::<f32>(&checkpoint, &Device::cpu()).unwrap_or_else(|error| panic!("{system}: {error}"))
}

/// Made-up features of three captions.
fn captions(folder: &Path, channels: usize) -> CaptionFeatures {
    let value = |at: usize| f64::from(smalti::rng::word(1, at as u64, 0, 0, 0)) / f64::from(u32::MAX) * 8.0 - 4.0;
    let values: Vec<u8> = (0..3 * 5 * channels).flat_map(|at| (value(at) as f32).to_le_bytes()).collect();
    let features = TensorView::new(Dtype::F32, vec![3, 5, channels], &values).expect("as many bytes");
    let file = folder.join("captions.safetensors");
    safetensors::serialize_to_file([("features", features)], None, &file).expect("room");
    CaptionFeatures::read(&Checkpoint::open(&file).expect("a file")).expect("features")
}

fn draw(generator: &dyn Generator, label: u32, seed: u64) -> Result<Drawn, Error> {
    let sampling = Sampling { seed, ..generator.about().sampling };
    generator.draw(&[label], 0, &sampling, &mut |_, _| ControlFlow::Continue(()))
}

/// Of the last grid, the code or the latents of each cell.
fn cells(drawn: &Drawn, grid: [usize; 2]) -> Vec<Vec<f32>> {
    let count = grid[0] * grid[1];
    match drawn.tokens.first() {
        Some(tokens) => tokens[tokens.len() - count..].iter().map(|token| vec![*token as f32]).collect(),
        None => (0..count).map(|cell| drawn.latents[0][cell..].iter().step_by(count).copied().collect()).collect(),
    }
}

/// Whether it draws the cells of a given picture anew that `anew` names, by row and column, and keeps the others; and
/// whether another class makes other cells of them.
fn fills(generator: &dyn Generator, anew: impl Fn(usize, usize) -> bool) -> [bool; 2] {
    let about = generator.about();
    let [height, width] = about.picture_size;
    let [rows, columns] = *about.grids.last().unwrap_or(&[1, 1]);
    let planes: Vec<_> = (0..3 * height * width).map(|at| (at * 7 % 251) as f32 / 125.5 - 1.0).collect();
    let pixels = (0..height * width).map(|at| anew(at / width * rows / height, at % width * columns / width));
    let pixels: Vec<_> = pixels.collect();
    let given = Given { planes: &planes, anew: &pixels };
    let fill = |label: u32, seed: u64| {
        let sampling = Sampling { seed, ..about.sampling };
        match generator.fill(given, &[label], 0, &sampling, &mut |_, _| ControlFlow::Continue(())) {
            Ok(drawn) => Some(cells(&drawn, [rows, columns])),
            // Another refusal would tell of the test's checkpoint, not of the system.
            Err(Error::Request(reason)) if reason.contains("draws whole pictures only") => None,
            Err(error) => panic!("{}: {error}", about.system),
        }
    };
    let Some(one) = fill(1, 1) else {
        assert!(!generator.can_fill(), "{}", about.system);
        return [false; 2];
    };
    assert!(generator.can_fill(), "{}", about.system);
    let [other_seed, other_class] = [(1, 2), (2, 1)].map(|(label, seed)| fill(label, seed).expect("as before"));
    let differ = |other: &[Vec<f32>], wanted: bool| {
        let of_cells = (0..rows * columns).filter(|cell| anew(cell / columns, cell % columns) == wanted);
        of_cells.into_iter().any(|cell| one[cell] != other[cell])
    };
    [
        differ(&other_seed, true) && !differ(&other_seed, false),
        differ(&other_class, true) && !differ(&other_class, false),
    ]
}

fn observe(folder: &Path, whole: &Whole, seen: &mut Seen) {
    let file = file_of(folder, whole);
    let mut generator = load(&file, whole.system);
    if let Some([height, width]) = generator.control_size() {
        seen.control = true;
        generator.use_control(&vec![0.3; 3 * height * width]).expect("a picture of this size");
    }
    let by_class = !generator.about().classes.is_empty();
    for channels in [24, 128] {
        seen.captions |= generator.use_captions(captions(folder, channels)).is_ok();
    }
    if generator.about().classes.is_empty() {
        let refused = draw(generator.as_ref(), 0, 1).expect_err("nothing to ask it with");
        assert!(refused.to_string().contains("continues frames"), "{}: {refused}", whole.system);
        seen.frames = true;
        return;
    }
    let drawn = |label: u32, seed: u64| draw(generator.as_ref(), label, seed).expect("a picture");
    let one = drawn(1, 1);
    // Small networks may draw the same for two labels, but not with every seed.
    assert!((1..9).any(|seed| drawn(1, seed) != drawn(2, seed)), "{}: what it is asked with", whole.system);
    seen.class |= by_class;
    let about = generator.about();
    seen.video |= about.frames > 1;
    if about.has_tokenizer {
        let [height, width] = about.picture_size;
        assert_eq!(one.planes[0].len(), 3 * height * width, "{}: a picture", whole.system);
        assert!(width % about.frames == 0, "{}: frames", whole.system);
        seen.pictures = true;
        // A hole, and all around one.
        let inside = |row: usize, column: usize| (1..3).contains(&row) && (1..3).contains(&column);
        let [inpaint, edit] = fills(generator.as_ref(), inside);
        let [outpaint, _] = fills(generator.as_ref(), |row, column| !inside(row, column));
        seen.inpaint |= inpaint;
        seen.edit |= edit;
        seen.outpaint |= outpaint;
    }
    seen.drafts |= generator.use_decoder("sjd", None).is_ok();
    let [rows, _] = *generator.about().grids.last().unwrap_or(&[1, 1]);
    if generator.use_grids(&[2 * rows]).is_ok() {
        draw(generator.as_ref(), 1, 1).expect("a larger picture");
        assert_eq!(generator.about().grids.last(), Some(&[2 * rows; 2]), "{}", whole.system);
        seen.resolution = true;
    }
}

/// What a line of the table says, as the program prints it.
fn said(line: &serde_json::Value) -> Seen {
    let column = |name: &str| line[name].as_str().expect("text");
    let (condition, also) = (column("condition"), column("also"));
    let does = |what: &str| also.split(", ").any(|said| said == what);
    Seen {
        class: condition.contains("class"),
        captions: condition.contains("caption features"),
        control: condition.contains("control picture"),
        frames: condition.contains("frames"),
        pictures: column("runs") == "pictures",
        inpaint: does("inpaint"),
        outpaint: does("outpaint"),
        edit: does("edit"),
        resolution: does("resolution"),
        video: does("video"),
        drafts: does("drafts"),
    }
}

/// The table by the names of its systems.
fn table() -> BTreeMap<String, serde_json::Value> {
    let output = Command::new(env!("CARGO_BIN_EXE_smalti")).args(["models", "--json"]).output().expect("it starts");
    let lines: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("a list");
    lines.into_iter().map(|line| (line["name"].as_str().expect("a name").to_owned(), line)).collect()
}

#[test]
fn the_table_says_what_each_system_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut wrong = Vec::new();
    for (name, line) in table() {
        let runs = line["runs"].as_str().expect("text");
        let kinds: Vec<_> = KINDS.iter().filter(|kind| kind.system == name).collect();
        assert_eq!(kinds.is_empty(), !matches!(runs, "pictures" | "tokens"), "{name} draws {runs}");
        let mut seen = Seen::default();
        kinds.into_iter().for_each(|kind| observe(folder.path(), kind, &mut seen));
        if matches!(runs, "pictures" | "tokens") && said(&line) != seen {
            wrong.push(format!("{name}: the table says {:?}, seen {seen:?}", said(&line)));
        } else if !matches!(runs, "pictures" | "tokens") {
            assert_eq!(line["also"], "", "{name} draws nothing");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_table_says_which_weights_are_known() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut wrong, table) = (Vec::new(), table());
    for kind in KINDS {
        // As published, without a tokenizer in the same file.
        let file = parts::weights(folder.path(), &kind.parts[..1], kind.config);
        let told = Checkpoint::open_all(&[&file]).expect("weights").system() == Some(kind.system);
        let expected: &[&str] = match (smalti_models::weights::embedded(kind.system).is_some(), told) {
            (true, true) => &["in the program"],
            (false, true) => &["official names"],
            _ => &["with --model", "names are ours"],
        };
        let weights = table[kind.system]["weights"].as_str().expect("text");
        if !expected.contains(&weights) {
            wrong.push(format!("{}: {weights}, expected {expected:?}", kind.system));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for System { name, runs, .. } in SYSTEMS {
        let weights = match runs {
            Runs::Conform => "of dumps",
            Runs::Decoder => "its network's",
            _ => continue,
        };
        assert_eq!(table[*name]["weights"], weights, "{name}");
    }
}

#[test]
fn the_table_names_the_papers_of_the_modules() {
    let models = Path::new(env!("CARGO_MANIFEST_DIR"));
    let decoders = ["decode/cascade.rs", "decode/speculative.rs"];
    for (name, line) in table() {
        let paper = line["paper"].as_str().expect("text");
        let own = models.join(format!("zoo/{name}.rs"));
        let files = if own.exists() { vec![own] } else { decoders.map(|file| models.join(file)).to_vec() };
        let says = |file: &std::path::PathBuf| std::fs::read_to_string(file).expect("a module").contains(paper);
        assert!(files.iter().any(says), "{name}: {paper} is not in {files:?}");
    }
}

/// Systems that test drafts on another one's network, which the table lists as decoders, are names of `--decoder`.
#[test]
fn the_table_lists_the_decoders_of_generate() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = parts::weights(folder.path(), &[of("llamagen_c2i")], &[]);
    let takes = |name: &str| load(&file, "llamagen").use_decoder(name, None).is_ok();
    for (name, line) in table() {
        assert_eq!(takes(&name), line["runs"] == "decoder", "{name}");
    }
}

/// Networks with the lengths of the published ones where these decide how many passes there are, and no word of how many
/// in their configurations.
const PUBLISHED: &[Whole] = &[
    Whole {
        system: "aim",
        parts: &[of("aim_plain").resized(&[("mamba.backbone.embeddings.position_embeddings", 17, 257)])],
        config: &[("num_tokens", "256")],
    },
    Whole {
        system: "arinar",
        parts: &[of("arinar_gmm").resized(&[
            ("encoder_pos", 13, 260),
            ("decoder_pos", 13, 260),
            ("diffusion_pos", 9, 256),
        ])],
        config: &[("side", "16"), ("num_iter", "null")],
    },
    Whole { system: "arpg", parts: &[of("arpg_cosine")], config: &[("block_size", "256"), ("num_iter", "null")] },
    Whole {
        system: "controlar",
        parts: &[of("controlar_c2i").resized(&[("adapter.model.embeddings.position_embeddings", 17, 257)])],
        config: &[("block_size", "256"), ("tokens_h", "16"), ("tokens_w", "16")],
    },
    Whole { system: "dar", parts: &[of("dar_small")], config: &[("block_size", "256")] },
    Whole { system: "dar_diffusion", parts: &[of("dar_diffusion_gpt")], config: &[("block_size", "256")] },
    Whole { system: "far", parts: &[of("far_mask")], config: &[("levels", "null")] },
    Whole { system: "far", parts: &[of("far_nomask")], config: &[("levels", "null")] },
    Whole { system: "flexvar", parts: &[of("flexvar_var_cfg")], config: &[("schedule", "null")] },
    Whole {
        system: "hart",
        parts: &[of("hart_plain")],
        config: &[("patch_nums", "null"), ("num_sampling_steps", "2")],
    },
    Whole {
        system: "hmar",
        parts: &[of("hmar_l2").resized(&[("hmar.lvl_embed", 4, 10), ("hmar.pos_1LC", 30, 680)])],
        config: &[("patch_nums", "null"), ("mask_schedule", "null")],
    },
    Whole { system: "infinity", parts: &[of("infinity_plain")], config: &[("scales", "null"), ("vae_scales", "null")] },
    Whole {
        system: "larp",
        parts: &[of("larp_ar_class").resized(&[("abs_pe", 16, 1024)])],
        config: &[("max_seq_len", "null")],
    },
    Whole {
        system: "llamagen",
        parts: &[Part::new("llamagen_c2i", "w.gpt.", "gpt.")],
        config: &[("block_size", "256")],
    },
    Whole {
        system: "lpd",
        parts: &[of("lpd_linear").resized(&[("pos_embed", 17, 257)])],
        config: &[("grid", "16"), ("group_sizes", "null")],
    },
    Whole {
        system: "mar",
        parts: &[Part::new("mar_nocfg", "w.mar.", "mar.").resized(&[
            ("mar.encoder_pos", 19, 259),
            ("mar.decoder_pos", 19, 259),
            ("mar.diffusion_pos", 16, 256),
        ])],
        config: &[("side", "16"), ("num_iter", "null")],
    },
    Whole { system: "maskgil", parts: &[of("maskgil_linear")], config: &[("block_size", "256"), ("step", "null")] },
    Whole {
        system: "mvar",
        parts: &[
            of("mvar_l2").resized(&[("mvar.lvl_embed", 4, 10), ("mvar.pos_1LC", 30, 680)]),
            VARS_OF_16[0],
            VARS_OF_16[2],
        ],
        config: &[("patch_nums", "null")],
    },
    Whole { system: "nar", parts: &[of("nar_c2i")], config: &[("block_size", "256")] },
    Whole { system: "par", parts: &[of("par_four")], config: &[("block_size", "576"), ("grid", "24")] },
    Whole {
        system: "randar",
        parts: &[of("randar_parallel")],
        config: &[("block_size", "256"), ("num_inference_steps", "null")],
    },
    Whole {
        system: "rar",
        parts: &[of("rar_pow").resized(&[
            ("pos_embed", 1040, 1280),
            ("target_aware_pos_embed", 1040, 1280),
            ("timesteps_embeddings", 116, 356),
        ])],
        config: &[("image_seq_len", "256")],
    },
    Whole {
        system: "spherear",
        parts: &[of("spherear_linear").resized(&[("pos_for_diff", 16, 256)])],
        config: &[("resolution", "32")],
    },
    Whole { system: "transdiff", parts: &[of("transdiff_one")], config: &[] },
    Whole { system: "transdiff", parts: &[of("transdiff_mrar")], config: &[] },
    Whole {
        system: "var",
        parts: &[of("var_l2").resized(&[("var.lvl_embed", 4, 10), ("var.pos_1LC", 30, 680)])],
        config: &[("patch_nums", "null")],
    },
    Whole { system: "xar", parts: &[of("xar_sde")], config: &[("num_steps", "null")] },
];

/// The numbers of a text.
fn numbers(text: &str) -> Vec<usize> {
    let digits = text.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    digits.map(|digits| digits.parse().expect("a number")).collect()
}

#[test]
fn the_table_says_how_many_passes_a_picture_takes() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut wrong, table) = (Vec::new(), table());
    for (name, line) in table.iter().filter(|(_, line)| matches!(line["runs"].as_str(), Some("pictures" | "tokens"))) {
        let (mut passes, mut places) = (BTreeSet::new(), BTreeSet::new());
        for kind in PUBLISHED.iter().filter(|kind| kind.system == name) {
            let file = file_of(folder.path(), kind);
            let mut generator = load(&file, name);
            if let Some([height, width]) = generator.control_size() {
                generator.use_control(&vec![0.3; 3 * height * width]).expect("a picture of this size");
            }
            for channels in [24, 128] {
                let _others = generator.use_captions(captions(folder.path(), channels));
            }
            let mut steps = 0;
            let sampling = Sampling { seed: 1, ..generator.about().sampling };
            let count = &mut |_: usize, _: usize| {
                steps += 1;
                ControlFlow::Continue(())
            };
            generator.draw(&[0], 0, &sampling, count).unwrap_or_else(|error| panic!("{name}: {error}"));
            // Each cell but the last is read once more, without noise.
            passes.insert(if name == "xar" { steps + 3 } else { steps });
            places.insert(generator.about().tokens_per_picture);
        }
        let text = line["passes"].as_str().expect("text");
        let (said, of) = text.split_once(" of ").unwrap_or((text.split(" for ").next().expect("text"), ""));
        let said: BTreeSet<_> = numbers(said).into_iter().collect();
        let of_places = of.strip_prefix("n = ").map(|of| numbers(of)[0]);
        if said != passes || of_places.is_some_and(|of| !places.contains(&of)) {
            wrong.push(format!("{name}: the table says {text}, seen {passes:?} of {places:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
