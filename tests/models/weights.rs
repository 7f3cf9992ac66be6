//! Files of weights: official names in every form, and what is refused.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use smalti::{Device, Dtype, bf16, f16};
use smalti_models::weights::{Checkpoint, names_tell};
use smalti_models::{Drawn, Error, Generator, zoo};

/// Elements of the storage that the tensors of one file share.
const POOL: usize = 12_800;

fn checkpoint(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/checkpoints").join(name)
}

/// The transformer and the tokenizer of a family in one of PyTorch's forms.
fn pair(family: &str, form: &str) -> [PathBuf; 2] {
    let names = if family == "llamagen" { ["gpt", "vq"] } else { ["var", "vae"] };
    let extension = if family == "llamagen" { "pt" } else { "pth" };
    names.map(|name| checkpoint(&format!("{name}_{form}.{extension}")))
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// A tensor as a safetensors file holds it.
#[derive(Clone)]
struct Dense {
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// What `make.py`'s formula gives a tensor with this official name.
fn formula(name: &str, dtype: Dtype, shape: &[usize]) -> Dense {
    let count: usize = shape.iter().product();
    let offset = name.bytes().map(usize::from).sum::<usize>() * 31 % (POOL - count + 1);
    let value = |place: usize| ((place * 7919 % 251) as f32 - 125.0) / 256.0;
    let mut bytes = Vec::new();
    for index in 0..count {
        let place = match shape {
            &[rows, columns] if offset % 2 == 1 => index % columns * rows + index / columns,
            _ => index,
        };
        match dtype {
            Dtype::F16 => bytes.extend(f16::from_f32(value(offset + place)).to_le_bytes()),
            _ => bytes.extend(bf16::from_f32(value(offset + place)).to_le_bytes()),
        }
    }
    let dtype = if dtype == Dtype::F16 { safetensors::Dtype::F16 } else { safetensors::Dtype::BF16 };
    Dense { dtype, shape: shape.to_vec(), bytes }
}

/// The model of two PyTorch files, from names and shapes alone.
fn dense(files: &[PathBuf; 2]) -> BTreeMap<String, Dense> {
    let opened = Checkpoint::open_all(files).expect("the files of this repository");
    let tensors = opened.names().filter_map(|name| {
        // Buffers that no inference reads are in f32 or i64.
        let dtype = opened.dtype(name).filter(|dtype| matches!(dtype, Dtype::F16 | Dtype::Bf16))?;
        let (_, official) = name.split_once('.').expect("a prefix");
        Some((name.to_owned(), formula(official, dtype, opened.shape(name)?)))
    });
    tensors.collect()
}

fn write(path: &Path, tensors: &BTreeMap<String, Dense>) {
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("as many bytes as the shape"))
    });
    safetensors::serialize_to_file(views, None, path).expect("room for a checkpoint");
}

fn load(files: &[impl AsRef<Path>], device: &Device) -> Result<Box<dyn Generator>, Error> {
    zoo::load::<f32>(&Checkpoint::open_all(files)?, device)
}

#[test]
fn names_as_they_are_published_get_the_prefixes_of_here() {
    let folder = folder();
    let path = folder.path().join("weights.safetensors");
    for (dump, prefix) in [
        ("aim_plain", "mamba."),
        ("controlar_t2i", ""),
        ("dar_diffusion_tokenizer", "vq."),
        ("hart_plain", "hart."),
        ("infinity_patchify", ""),
        ("larp_tokenizer", "vq."),
        ("mvar_l2", "mvar."),
        ("transdiff_mrar", ""),
    ] {
        let dump = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/dumps/models/{dump}.safetensors"));
        let bytes = std::fs::read(&dump).expect("a dump");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a dump");
        // A dump of a tokenizer alone has its names without a prefix, and they tell no system.
        let alone = prefix == "vq.";
        let own = |name: &str| {
            let name = name.strip_prefix("w.")?;
            Some(if alone { name } else { name.strip_prefix(prefix)? }.to_owned())
        };
        let system = Checkpoint::open(&dump).expect("a dump").metadata("system").filter(|_| !alone).map(str::to_owned);
        for nested in ["", "module."] {
            let weights = tensors.iter().filter_map(|(name, tensor)| Some((format!("{nested}{}", own(name)?), tensor)));
            safetensors::serialize_to_file(weights, None, &path).expect("room");
            let opened = Checkpoint::open_all(&[&path]).expect("a file of safetensors");
            assert_eq!(opened.system().map(str::to_owned), system);
            let mut expected: Vec<_> =
                tensors.names().into_iter().filter_map(own).map(|own| format!("{prefix}{own}")).collect();
            expected.sort();
            assert!(opened.names().eq(expected.iter().map(String::as_str)), "{}", dump.display());
        }
    }
}

fn draw(generator: &dyn Generator) -> Result<Drawn, Error> {
    let sampling = smalti_models::Sampling { seed: 3, ..generator.about().sampling };
    generator.draw(&[7, 2], 0, &sampling, &mut |_, _| ControlFlow::Continue(()))
}

/// Why a model cannot be loaded.
fn refused(files: &[impl AsRef<Path>]) -> String {
    match load(files, &Device::cpu()) {
        Ok(_) => panic!("{:?} was loaded", files.iter().map(AsRef::as_ref).collect::<Vec<_>>()),
        Err(error @ (Error::Weights(_) | Error::Request(_))) => error.to_string(),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn official_files_of_pytorch_draw_what_the_same_weights_draw_as_safetensors() {
    let folder = folder();
    for family in ["llamagen", "var"] {
        for form in ["zip", "legacy"] {
            let files = pair(family, form);
            let plain = folder.path().join(format!("{family}_{form}.safetensors"));
            write(&plain, &dense(&files));
            let [of_pytorch, of_safetensors] =
                [load(&files, &Device::cpu()), load(&[&plain], &Device::cpu())].map(|generator| {
                    let generator = generator.expect("official names");
                    assert_eq!(generator.about().system, family);
                    draw(generator.as_ref()).expect("finite weights")
                });
            assert_eq!(of_pytorch, of_safetensors, "{family}, {form}");
            let plane = &of_pytorch.planes[0];
            assert!(plane.iter().any(|pixel| pixel != &plane[0]), "{family}, {form}: a picture of one colour");
        }
    }
}

#[test]
fn sizes_come_from_the_file() {
    let [gpt, vq] = pair("llamagen", "zip");
    let generator = load(&[&vq, &gpt], &Device::cpu()).expect("either order");
    assert_eq!((generator.about().classes.len(), generator.about().tokens_per_picture), (10, 256));
    assert_eq!(generator.about().picture_size, [32, 32]);
    let generator = load(&pair("var", "legacy"), &Device::cpu()).expect("official names");
    assert_eq!((generator.about().classes.len(), generator.about().tokens_per_picture), (10, 680));

    let mut checkpoint = Checkpoint::open_all(&[gpt, vq]).expect("official names");
    checkpoint.assume("block_size", 24 * 24).expect("the files do not say");
    assert_eq!(zoo::load::<f32>(&checkpoint, &Device::cpu()).expect("a larger grid").about().picture_size, [48, 48]);
    checkpoint.assume("block_size", 25).expect_err("said already");
}

#[test]
fn half_a_model_says_what_is_missing() {
    for (family, form) in [("llamagen", "legacy"), ("var", "zip")] {
        let [transformer, tokenizer] = pair(family, form);
        if family == "var" {
            assert!(refused(&[&transformer]).contains("without its tokenizer"));
        } else {
            let generator = load(&[&transformer], &Device::cpu()).expect("a model that draws tokens");
            assert!(!generator.about().has_tokenizer);
        }
        assert!(refused(&[&tokenizer]).contains("without its transformer"));
        assert!(refused(&[&tokenizer, &tokenizer]).contains("is in"), "the same file twice");
    }
}

#[test]
fn a_pickle_that_calls_a_function_is_refused_and_nothing_runs() {
    for form in ["zip", "legacy"] {
        let message = refused(&[checkpoint(&format!("call_{form}.pt"))]);
        assert!(message.contains("posix.system") && message.contains("refused"), "{message}");
    }
    // As the whole file, without a container.
    let folder = folder();
    let path = folder.path().join("plain.pt");
    std::fs::write(&path, b"\x80\x02cposix\nsystem\nX\x15\0\0\0touch smalti-was-here\x85R.").unwrap();
    assert!(refused(&[&path]).contains("posix.system"));
    assert!(!Path::new("smalti-was-here").exists());
}

#[test]
fn a_damaged_pytorch_file_is_an_error_and_no_panic() {
    let folder = folder();
    let path = folder.path().join("damaged.pt");
    for form in ["zip", "legacy"] {
        let [gpt, vq] = pair("llamagen", form);
        let whole = std::fs::read(&gpt).expect("a file of this repository");
        for length in [0, 1, 8, 9, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let message = refused(&[&path, &vq]);
            assert!(message.contains("damaged.pt"), "{form}, cut at {length}: {message}");
        }
        // Any byte may be wrong: in the directory, in the pickle, in a value.
        for at in (0..whole.len()).step_by(whole.len() / 97) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0xff;
            std::fs::write(&path, &bytes).unwrap();
            if let Ok(generator) = load(&[&path, &vq], &Device::cpu()) {
                assert_eq!(generator.about().system, "llamagen");
            }
        }
    }
}

#[test]
fn everything_that_does_not_fit_is_listed_at_once() {
    let folder = folder();
    let path = folder.path().join("wrong.safetensors");
    for (family, missing, extra, bias) in [
        ("llamagen", "gpt.layers.1.attention.wo.weight", "gpt.layers.1.attention.bias", "vq.decoder.conv_in.bias"),
        ("var", "var.blocks.1.attn.v_bias", "var.blocks.0.attn.k_bias", "vae.quant_conv.bias"),
    ] {
        let mut tensors = dense(&pair(family, "zip"));
        let kernel =
            if family == "llamagen" { "vq.encoder.mid.0.conv1.weight" } else { "vae.decoder.mid.block_2.conv1.weight" };
        let removed = tensors.remove(missing).expect("an official name");
        tensors.insert(extra.to_owned(), removed);
        let reshaped = tensors.get_mut(kernel).expect("an official name");
        reshaped.shape = vec![32, 8, 6, 6];
        let not_finite = tensors.get_mut(bias).expect("an official name");
        not_finite.bytes[..2].copy_from_slice(&f16::NAN.to_le_bytes());
        let table = if family == "llamagen" { "vq.quantize.embedding.weight" } else { "vae.quantize.embedding.weight" };
        let integers = tensors.get_mut(table).expect("an official name");
        integers.dtype = safetensors::Dtype::I16;
        write(&path, &tensors);
        let message = refused(&[&path]);
        for part in [
            "5 things do not fit".to_owned(),
            format!("\"{missing}\" is missing"),
            format!("\"{extra}\" is unexpected"),
            format!("\"{kernel}\" has shape [32, 8, 6, 6], expected [32, 32, 3, 3]"),
            format!("\"{bias}\" holds NaN or infinity"),
            format!("\"{table}\" does not hold floats"),
        ] {
            assert!(message.contains(&part), "{part}: not in\n{message}");
        }
    }
}

#[test]
fn sizes_beyond_memory_are_errors() {
    let folder = folder();
    let path = folder.path().join("absurd.safetensors");
    let header = |tensors: &str, config: &str| {
        let header = format!(r#"{{"__metadata__":{{"config":"{config}"}},{tensors}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::write(&path, bytes).unwrap();
        refused(&[&path])
    };
    let tensor =
        |name: &str, shape: &str| format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}"#);
    // The count of elements overflows; or is 0 with lengths that make other tensors absurd.
    assert!(header(&tensor("pos_1LC", "[4294967296,4294967296,2]"), "").contains("absurd.safetensors"));
    for name in ["tok_embeddings.weight", "pos_1LC", "word_embed.weight", "layers.99999999999.attention.wqkv.weight"] {
        for shape in ["[1099511627776,0]", "[0,1099511627776]", "[0]", "[]", "[1,680,0]"] {
            let rest = tensor("quantize.embedding.weight", "[0,8]");
            let mark = tensor("decoder.mid.0.conv1.weight", "[0]");
            header(&format!("{},{rest},{mark}", tensor(name, shape)), "{}");
        }
    }
    // Hyper-parameters that no model has.
    let mut tensors = dense(&pair("var", "zip"));
    tensors.extend(dense(&pair("llamagen", "zip")));
    for (system, config) in [
        ("llamagen", r#"{"block_size":99999999999999}"#),
        ("llamagen", r#"{"block_size":0}"#),
        ("llamagen", r#"{"n_head":0}"#),
        ("llamagen", r#"{"n_head":18446744073709551615}"#),
        ("llamagen", r#"{"n_kv_head":7}"#),
        ("llamagen", r#"{"num_classes":99999999999999}"#),
        ("llamagen", r#"{"norm_groups":0}"#),
        ("var", r#"{"patch_nums":[]}"#),
        ("var", r#"{"patch_nums":[18446744073709551615,1]}"#),
        ("var", r#"{"patch_nums":[1,2,16]}"#),
        ("var", r#"{"heads":3}"#),
        ("var", r#"{"num_classes":11}"#),
        ("var", r#"{"norm_groups":5}"#),
        ("var", "nonsense"),
    ] {
        let views = tensors.iter().map(|(name, tensor)| {
            (name, TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).expect("as many bytes"))
        });
        let keep = |name: &str| match system {
            "llamagen" => name.starts_with("gpt.") || name.starts_with("vq."),
            _ => name.starts_with("var.") || name.starts_with("vae."),
        };
        let notes = [("system", system), ("config", config)].map(|(key, note)| (key.to_owned(), note.to_owned()));
        let views = views.filter(|(name, _)| keep(name));
        safetensors::serialize_to_file(views, Some(notes.into_iter().collect()), &path).expect("room");
        let message = refused(&[&path]);
        assert!(message.contains("absurd.safetensors"), "{config}: {message}");
    }
}

#[test]
fn systems_are_known_by_the_names_of_their_tensors() {
    let folder = folder();
    let dumps = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/dumps/models")).expect("dumps");
    for dump in dumps.map(|entry| entry.expect("an entry").path()) {
        let bytes = std::fs::read(&dump).expect("a dump");
        let noted = Checkpoint::open(&dump).expect("a dump");
        let Ok(held) = noted.under("w.") else { continue };
        // A tokenizer alone tells no system.
        let has = |part: &str| held.names().any(|name| name.contains(part));
        let transformer = (has("layers.") || has("blocks.")) && !has("bottleneck.");
        if !transformer || !noted.metadata("system").and_then(names_tell).unwrap_or(false) {
            continue;
        }
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("a dump");
        let weights = tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("w.")?, tensor)));
        let path = folder.path().join("weights.safetensors");
        safetensors::serialize_to_file(weights, None, &path).expect("room");
        let unnoted = Checkpoint::open_all(&[&path]).expect("as the dump");
        assert_eq!(unnoted.system(), noted.metadata("system"), "{}", dump.display());
        assert!(unnoted.names().eq(held.names()), "{}", dump.display());
    }
}
