//! What the steps of a generation tell is what was drawn: previews and traces are made of it.

use smalti::{Device, Tensor};
use smalti_models::decode::speculative::Speculation;
use smalti_models::decode::{Random, Sampler, Step, Steps, watched};
use smalti_models::weights::Checkpoint;
use smalti_models::zoo::codes::{DrawsCodes, WantedCodes};
use smalti_models::{Result, Sampling, zoo};

/// That the tokens of all steps, put into the cells that these name, are the picture's, by the system's own decoder and,
/// where the network is causal, by tested drafts.
fn steps_name_their_cells<M: DrawsCodes>(dump: &str, load: impl FnOnce(&Checkpoint, &Device) -> Result<M>) {
    let path = format!("{}/../tests/dumps/models/{dump}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let weights = Checkpoint::open(path.as_ref()).and_then(|dump| dump.under("w.")).expect("weights");
    let mut model = load(&weights, &Device::cpu()).expect("a model");
    if let Some([height, width]) = model.control_size() {
        model.use_control(&vec![0.5; 3 * height * width]).expect("a picture of this size");
    }
    let places = model.codes().places();
    let drafts = |(tokens, vocabulary)| Speculation::named("sjd", places, vocabulary, tokens, None, false);
    let drafts = model.drafted().map(drafts).transpose().expect("a decoder");
    for decoder in [None].into_iter().chain(drafts.as_ref().map(Some)) {
        // Drafts are tested for one picture.
        let labels = if decoder.is_some() { &[1][..] } else { &[1, 3] };
        let sampling = Sampling { cfg: 2.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 5 };
        let sampler = Sampler::new(sampling, Random::Philox { first_picture: 0 }, places);
        let mut of_cells = vec![u32::MAX; labels.len() * places];
        let each = |step: Step<'_, f32>| {
            let count = step.tokens.shape()[1];
            for (picture, tokens) in step.tokens.to_vec()?.chunks(count).enumerate() {
                let cells = step.cells.of(picture, count);
                assert_eq!(cells.len(), count, "{dump}: a cell for each token of a step");
                cells.iter().zip(tokens).for_each(|(cell, token)| of_cells[picture * places + cell] = *token);
            }
            Ok(())
        };
        let wanted = WantedCodes { labels, known: &[], sampler: &sampler, decoder };
        let generate = |steps: Steps<'_, f32>| -> Result<Tensor<u32>> { model.generate(wanted, steps) };
        let drawn = watched(each, generate).expect("pictures").to_vec().expect("the device works");
        assert!(drawn.iter().any(|token| *token != drawn[0]), "{dump}: tokens that tell cells apart");
        assert_eq!(of_cells, drawn, "{dump}, drafts tested: {}", decoder.is_some());
    }
}

#[test]
fn every_step_names_the_cells_of_its_tokens() {
    steps_name_their_cells("aim_plain", zoo::aim::Aim::load);
    steps_name_their_cells("arpg_cosine", zoo::arpg::Arpg::load);
    steps_name_their_cells("controlar_c2i", zoo::controlar::ControlAr::load);
    steps_name_their_cells("dar_small", zoo::dar::Dar::load);
    steps_name_their_cells("dar_diffusion_gpt", zoo::dar_diffusion::DarDiffusion::load);
    steps_name_their_cells("larp_ar_class", zoo::larp::Larp::load);
    steps_name_their_cells("llamagen_c2i", zoo::llamagen::LlamaGen::load);
    steps_name_their_cells("lpd_linear", zoo::lpd::Lpd::load);
    steps_name_their_cells("maskgil_warm_up", zoo::maskgil::MaskGil::load);
    steps_name_their_cells("nar_c2i", zoo::nar::Nar::load);
    steps_name_their_cells("nar_video", zoo::nar::Nar::load);
    steps_name_their_cells("par_four", zoo::par::Par::load);
    steps_name_their_cells("randar_parallel", zoo::randar::RandAr::load);
    steps_name_their_cells("rar_pow", zoo::rar::Rar::load);
}
