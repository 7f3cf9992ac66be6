//! `smalti generate`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use smalti::{Backend, Device, bf16, f16};
use smalti_models::decode::Guided;
use smalti_models::weights::Checkpoint;
use smalti_models::zoo::captions::CaptionFeatures;
use smalti_models::{Drawn, Error, Generator, Given, Sampling, Seen, Wanted, zoo};

use super::args::{DtypeOption, Generate, Model, Shard};
use super::picture::{Output, Picture, grid};
use super::watch::{Previews, Trace, Watcher};
use super::{Failure, interrupted};

/// Pictures of one batch: enough to share the reading of weights, few enough to fit small devices.
const BATCH: usize = 10;
/// Beyond this a run should be split with `--shard`.
const MOST_PICTURES: usize = 10_000;

/// Draws the pictures and writes them.
pub fn run(options: &Generate) -> Result<ExitCode, Failure> {
    if !(1..=MOST_PICTURES).contains(&options.count) {
        return Err(Failure::Input(format!("--count {}: expected 1 to {MOST_PICTURES}", options.count)));
    }
    let reserve = |option: &str, path: &Path| Output::reserve(option, path).map_err(Failure::Input);
    let named = options.out.as_deref().map(|path| reserve("--out", path)).transpose()?;
    let traced = options.trace.as_deref().map(|path| reserve("--trace", path)).transpose()?;
    let previews = options.preview.as_deref().map(Previews::into).transpose().map_err(Failure::Input)?;
    let device = open_device(options)?;
    let checkpoint = open_weights(&options.model)?;
    let mut generator = load(&checkpoint, &device, options.dtype)?;
    if let Some(decoder) = &options.decoder {
        let second = options.draft.as_deref().map(Checkpoint::open).transpose();
        let second = second.map_err(|error| Failure::Input(format!("--draft: {error}")))?;
        let taken = generator.use_decoder(decoder, second.as_ref());
        taken.map_err(|error| Failure::Input(format!("--decoder: {error}")))?;
    }
    let guided = Guided::named(&options.guidance).and_then(|guided| generator.use_guidance(guided));
    guided.map_err(|error| Failure::Input(format!("--guidance {}: {error}", options.guidance)))?;
    let sides = &options.model.grid;
    if !(sides.is_empty() || sides.len() == 1 && generator.about().system == "llamagen") {
        generator.use_grids(sides).map_err(|error| Failure::Input(format!("--grid: {error}")))?;
    }
    ask(generator.as_mut(), options)?;
    if previews.is_some() && !generator.about().has_tokenizer {
        let what = format!("{} holds no tokenizer, without which there are no pictures", checkpoint.name());
        return Err(Failure::Input(format!("--preview: {what}")));
    }
    let default = PathBuf::from(if generator.about().has_tokenizer { "smalti.png" } else { "smalti.safetensors" });
    let path = options.out.as_ref().unwrap_or(&default);
    let output = named.map_or_else(|| reserve("--out", path), Ok)?;
    let sampling = sampling(generator.as_ref(), options)?;
    let labels = labels(generator.about().classes, &options.classes)?;

    let pictures = options.shard.unwrap_or(Shard { index: 1, parts: 1 }).of(options.count);
    if pictures.is_empty() {
        return Err(Failure::Input(format!("--shard: this part of {} pictures is empty", options.count)));
    }
    let per_picture = generator.about().tokens_per_picture;
    let bar = progress_bar(pictures.len() * per_picture, options.json);
    let started = Instant::now();
    let (mut drawn, mut each, mut trace) = (Drawn::default(), Vec::new(), Trace::default());
    let [height, width] = generator.about().picture_size;
    let given = match (&options.image, &options.mask) {
        (Some(_), Some(_)) if !generator.can_fill() => {
            let what = format!("{} draws whole pictures only, or its encoder is not there", generator.about().system);
            return Err(Failure::Input(format!("--image: {what}")));
        }
        (Some(image), Some(mask)) => Some(read_given(image, mask, [height, width]).map_err(Failure::Input)?),
        _ => None,
    };
    let label_of = |picture: usize| labels[picture % labels.len()];
    let columns = match pictures.len() {
        few if few <= labels.len() => (few as f64).sqrt().ceil() as usize,
        // A column per class, so that a class reads downwards.
        _ => labels.len(),
    };
    for first in pictures.clone().step_by(BATCH) {
        let batch = first..(first + BATCH).min(pictures.end);
        let labels: Vec<_> = batch.map(label_of).collect();
        let settled = (first - pictures.start) * per_picture;
        let part = given.as_ref().map(|(planes, anew)| Given { planes, anew });
        let mut watcher = Watcher::new(generator.as_ref(), previews.as_ref(), part, [first, labels.len(), columns]);
        let mut watch = |seen: Seen<'_>| {
            bar.set_position((settled + seen.settled) as u64);
            if interrupted() { Err(Error::Interrupted) } else { watcher.step(&seen) }
        };
        let wanted = Wanted { labels: &labels, first_picture: first as u64, sampling: &sampling, given: part };
        let result = generator.draw_watched(wanted, &mut watch);
        let mut result = result.map_err(work_error)?;
        watcher.trace(&mut trace, &labels);
        if let Some((planes, anew)) = &given {
            for drawn in &mut result.planes {
                let stays = |at: usize| !anew[at % anew.len()];
                drawn.iter_mut().enumerate().filter(|(at, _)| stays(*at)).for_each(|(at, value)| *value = planes[at]);
            }
        }
        drawn.tokens.append(&mut result.tokens);
        drawn.latents.append(&mut result.latents);
        drawn.latent_shape = result.latent_shape;
        each.extend(result.planes.iter().map(|planes| Picture::from_planes(planes, height, width)));
    }
    bar.finish_and_clear();
    let seconds = started.elapsed().as_secs_f64();
    if interrupted() {
        return Err(Failure::Interrupted);
    }
    let written = if generator.about().has_tokenizer {
        output.write(|file| grid(&each, columns).write_png(file))
    } else {
        let of_pictures: Vec<_> = pictures.clone().map(label_of).collect();
        let bytes = undecoded(&drawn, &of_pictures, generator.about().system, &sampling, pictures.start);
        bytes.and_then(|bytes| output.write(|file| file.write_all(&bytes)))
    };
    written.map_err(|error| Failure::Work(format!("{}: {error}", path.display())))?;
    if let Some(output) = traced {
        let text = trace.json(generator.as_ref(), options.seed).to_string();
        let written = output.write(|file| file.write_all(text.as_bytes()));
        written.map_err(|error| Failure::Work(format!("--trace: {error}")))?;
    }
    let kind = match (generator.about().has_tokenizer, drawn.latents.is_empty()) {
        (true, _) => "pictures",
        (false, true) => "tokens",
        (false, false) => "latents",
    };
    report(options, path, &checkpoint, generator.as_ref(), &device, &sampling, kind, pictures.len(), seconds);
    Ok(ExitCode::SUCCESS)
}

/// Gives the generator what it draws from besides classes.
fn ask(generator: &mut dyn Generator, options: &Generate) -> Result<(), Failure> {
    if let Some(path) = &options.captions {
        let captions = Checkpoint::open(path).and_then(|file| CaptionFeatures::read(&file));
        let taken = captions.and_then(|captions| generator.use_captions(captions));
        taken.map_err(|error| Failure::Input(format!("--captions: {error}")))?;
    }
    let system = generator.about().system;
    match (&options.control, generator.control_size()) {
        (Some(path), Some(size)) => {
            let planes = Picture::read_png(path).and_then(|picture| picture.planes(size)).map_err(Failure::Input)?;
            generator.use_control(&planes).map_err(|error| Failure::Input(format!("--control: {error}")))
        }
        (None, Some(_)) => Err(Failure::Input(format!("{system} draws under a control picture: give --control PNG"))),
        (Some(_), None) => Err(Failure::Input(format!("--control: {system} takes no control picture"))),
        (None, None) => Ok(()),
    }
}

/// A picture in the model's size, and which of its pixels are drawn anew.
fn read_given(image: &Path, mask: &Path, size: [usize; 2]) -> Result<(Vec<f32>, Vec<bool>), String> {
    let planes = Picture::read_png(image)?.planes(size)?;
    let mask = Picture::read_png(mask)?.planes(size)?;
    let plane = size[0] * size[1];
    let anew: Vec<_> = (0..plane).map(|at| mask[at] + mask[plane + at] + mask[2 * plane + at] > 0.0).collect();
    if !anew.contains(&true) {
        return Err("--mask: nothing is bright, so that nothing is to be drawn".to_owned());
    }
    Ok((planes, anew))
}

/// What pictures would be decoded from, as safetensors: `tokens`, `latents` or both, and the class of each picture.
fn undecoded(
    drawn: &Drawn,
    labels: &[u32],
    system: &str,
    sampling: &Sampling,
    first_picture: usize,
) -> std::io::Result<Vec<u8>> {
    use safetensors::{Dtype, tensor::TensorView};
    let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let pictures = labels.len();
    let numbers_of = numbers(labels);
    let mut tensors = vec![("labels", TensorView::new(Dtype::U32, vec![pictures], &numbers_of))];
    let tokens = numbers(&drawn.tokens.concat());
    if !tokens.is_empty() {
        let shape = vec![pictures, tokens.len() / 4 / pictures.max(1)];
        tensors.push(("tokens", TensorView::new(Dtype::U32, shape, &tokens)));
    }
    let latents: Vec<u8> = drawn.latents.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    if !latents.is_empty() {
        let shape = [&[pictures], &drawn.latent_shape[..]].concat();
        tensors.push(("latents", TensorView::new(Dtype::F32, shape, &latents)));
    }
    let sound = |(name, tensor): (&'static str, Result<_, _>)| Ok((name, tensor.map_err(std::io::Error::other)?));
    let tensors = tensors.into_iter().map(sound).collect::<std::io::Result<Vec<_>>>()?;
    let notes = [
        ("system", system.to_owned()),
        ("seed", sampling.seed.to_string()),
        ("first_picture", first_picture.to_string()),
        ("cfg", sampling.cfg.to_string()),
        ("temperature", sampling.temperature.to_string()),
        ("top_k", sampling.top_k.to_string()),
        ("top_p", sampling.top_p.to_string()),
    ];
    let notes = notes.map(|(key, note)| (key.to_owned(), note)).into_iter().collect();
    safetensors::serialize(tensors, Some(notes)).map_err(std::io::Error::other)
}

fn report(
    options: &Generate,
    path: &Path,
    checkpoint: &Checkpoint,
    generator: &dyn Generator,
    device: &Device,
    sampling: &Sampling,
    kind: &str,
    pictures: usize,
    seconds: f64,
) {
    let tokens = pictures * generator.about().tokens_per_picture;
    let tokens_per_second = tokens as f64 / seconds;
    if options.json {
        let report = serde_json::json!({
            "path": path, "kind": kind, "system": generator.about().system, "device": device.to_string(), "seed": options.seed,
            "pictures": pictures, "frames": generator.about().frames, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens_per_second,
            "cfg": sampling.cfg, "temperature": sampling.temperature, "top_k": sampling.top_k,
            "top_p": sampling.top_p,
        });
        println!("{report}");
    } else {
        let what = match kind {
            "pictures" => format!("{pictures} pictures"),
            kind => format!("{kind} of {pictures} pictures, for {} holds no tokenizer", checkpoint.name()),
        };
        println!(
            "{}: {what}, {} on {device}, seed {}, {seconds:.1} s, {tokens_per_second:.0} tokens/s",
            path.display(),
            generator.about().system,
            options.seed
        );
    }
}

/// The weights named on the command line, or those in the program.
pub fn open_weights(options: &Model) -> Result<Checkpoint, Failure> {
    let input = |error: Error| Failure::Input(error.to_string());
    let mut files = options.weights.clone();
    let model = options.model.as_deref();
    let system = model.filter(|model| zoo::SYSTEMS.iter().any(|system| system.name == *model));
    match model {
        Some(file) if system.is_none() && Path::new(file).is_file() => files.insert(0, PathBuf::from(file)),
        Some(other) if system.is_none() => {
            return Err(Failure::Input(format!(
                "--model {other}: expected llamagen, var, a system of `smalti models` or an existing file"
            )));
        }
        _ => {}
    }
    let mut checkpoint = if files.is_empty() {
        let name = system.unwrap_or("llamagen");
        smalti_models::weights::embedded(name).ok_or_else(|| {
            Failure::Input(format!("--model {name}: the program carries llamagen and var, give --weights FILE"))
        })?
    } else {
        Checkpoint::open_as(system, &files).map_err(input)?
    };
    // Its rotary table is made for one grid; other systems are asked when they are loaded.
    if let ([grid], Some("llamagen")) = (options.grid.as_slice(), checkpoint.system()) {
        let places =
            grid.checked_mul(*grid).ok_or_else(|| Failure::Input(format!("--grid {grid}: too many tokens")))?;
        checkpoint.assume("block_size", places).map_err(input)?;
    }
    Ok(checkpoint)
}

fn open_device(options: &Generate) -> Result<Device, Failure> {
    let device = match options.device.as_deref() {
        Some("cpu") => Device::cpu_with_threads(options.threads),
        Some(id) => Device::open(id),
        None => {
            let best = Device::best();
            if best.backend() == Backend::Cpu { Device::cpu_with_threads(options.threads) } else { Ok(best) }
        }
    };
    device.map_err(|error| Failure::Input(error.to_string()))
}

/// The generator in the element type asked for; the reference computes in f64.
pub fn load(checkpoint: &Checkpoint, device: &Device, dtype: DtypeOption) -> Result<Box<dyn Generator>, Failure> {
    let loaded = match (device.backend(), dtype) {
        (Backend::Reference, _) => zoo::load::<f64>(checkpoint, device),
        (_, DtypeOption::F32) => zoo::load::<f32>(checkpoint, device),
        (_, DtypeOption::F16) => zoo::load::<f16>(checkpoint, device),
        (_, DtypeOption::Bf16) => zoo::load::<bf16>(checkpoint, device),
    };
    loaded.map_err(|error| match error {
        Error::Op(error) => Failure::Work(error.to_string()),
        other => Failure::Input(other.to_string()),
    })
}

fn work_error(error: Error) -> Failure {
    match error {
        Error::Interrupted => Failure::Interrupted,
        other => Failure::Work(other.to_string()),
    }
}

/// The model's own settings, changed by the options, all within their ranges.
fn sampling(generator: &dyn Generator, options: &Generate) -> Result<Sampling, Failure> {
    let own = generator.about().sampling;
    let sampling = Sampling {
        cfg: options.cfg.unwrap_or(own.cfg),
        temperature: options.temperature.unwrap_or(own.temperature),
        top_k: options.top_k.unwrap_or(own.top_k),
        top_p: options.top_p.unwrap_or(own.top_p),
        seed: options.seed,
    };
    let wrong = |option: &str, value: f32, expected: &str| {
        Err(Failure::Input(format!("--{option} {value}: expected {expected}")))
    };
    if !sampling.cfg.is_finite() {
        return wrong("cfg", sampling.cfg, "a finite number");
    }
    if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
        return wrong("temperature", sampling.temperature, "0 (always the likeliest) or more");
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return wrong("top-p", sampling.top_p, "more than 0 and at most 1");
    }
    Ok(sampling)
}

/// The labels that the pictures go round.
fn labels(classes: &[String], wanted: &[String]) -> Result<Vec<u32>, Failure> {
    if classes.is_empty() {
        return Err(Failure::Input(
            "these weights draw from text: give the features of captions with --captions FILE".to_owned(),
        ));
    }
    if wanted.is_empty() {
        return Ok((0..).take(classes.len()).collect());
    }
    wanted
        .iter()
        .map(|wanted| {
            let by_name = classes.iter().position(|class| class.eq_ignore_ascii_case(wanted));
            let by_number = || wanted.parse().ok().filter(|number| *number < classes.len());
            let label = by_name.or_else(by_number).and_then(|label| u32::try_from(label).ok());
            label.ok_or_else(|| {
                let near = nearest(classes, wanted).join(", ");
                let last = classes.len().saturating_sub(1);
                Failure::Input(format!("--class {wanted}: no such class; did you mean {near}? (or 0 to {last})"))
            })
        })
        .collect()
}

/// The three class names that take the fewest edits to reach.
fn nearest<'a>(classes: &'a [String], wanted: &str) -> Vec<&'a str> {
    let mut ranked: Vec<_> = classes.iter().map(|class| (edits(class, wanted), class.as_str())).collect();
    ranked.sort_by_key(|(distance, _)| *distance);
    ranked.into_iter().take(3).map(|(_, class)| class).collect()
}

/// Levenshtein's distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<_> = b.to_lowercase().chars().collect();
    let mut row: Vec<_> = (0..=b.len()).collect();
    for (i, from) in a.to_lowercase().chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn progress_bar(tokens: usize, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} tokens, {per_sec}, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(tokens as u64).with_style(style)
}
