//! `smalti show-order` and `smalti show-mask`: pictures of what papers describe in words.

use std::path::Path;
use std::process::ExitCode;

use smalti::attention::{Align, BLOCK, Lengths, Mask, ScalesKind, TILE};
use smalti_models::zoo::SYSTEMS;
use smalti_models::zoo::steps::{Steps, steps};

use super::Failure;
use super::args::{ShowMask, ShowOrder};
use super::picture::{Output, Picture};

type Colour = [u8; 3];

const PAPER: Colour = [255, 255, 255];
/// A cell that no step has reached.
const OPEN: Colour = [233, 236, 239];
/// From the first step to the last: as dark to light as hue by hue, so that it reads in grey too.
const STEPS: [Colour; 6] =
    [[48, 18, 94], [52, 76, 158], [30, 136, 153], [62, 185, 114], [172, 215, 57], [253, 231, 37]];
/// The seen pairs of a tile that needs no bits.
const FULL: Colour = [38, 84, 138];
/// The seen and the hidden pairs of a tile with bits.
const PARTIAL: [Colour; 2] = [[231, 131, 47], [252, 232, 210]];
/// A tile that is never visited.
const SKIPPED: Colour = [240, 242, 244];
/// Between tiles.
const LINE: Colour = [255, 255, 255];

/// Sides of the main picture, about, in pixels.
const SIDE: usize = 768;
/// Small pictures below the order.
const FRAMES: usize = 6;

impl Picture {
    fn blank(width: usize, height: usize) -> Self {
        Self { width, height, rgb: PAPER.repeat(width * height) }
    }

    fn fill(&mut self, [left, top]: [usize; 2], [width, height]: [usize; 2], colour: Colour) {
        for y in top..(top + height).min(self.height) {
            for x in left..(left + width).min(self.width) {
                self.rgb[(y * self.width + x) * 3..][..3].copy_from_slice(&colour);
            }
        }
    }

    /// The cells of a grid as squares, a gap between them.
    fn cells(&mut self, [left, top]: [usize; 2], side: usize, grid: &Steps, colour: impl Fn(usize) -> Colour) {
        let square = side / grid.width;
        let gap = usize::from(square >= 4) + usize::from(square >= 16);
        for (cell, step) in grid.of_cell.iter().enumerate() {
            let [x, y] = [left + cell % grid.width * square, top + cell / grid.width * square];
            self.fill([x, y], [square - gap, square - gap], colour(*step));
        }
    }
}

/// The colour of a step among `all`.
fn of_step(step: usize, all: usize) -> Colour {
    let at = step as f64 / all.saturating_sub(1).max(1) as f64 * (STEPS.len() - 1) as f64;
    let below = (at as usize).min(STEPS.len() - 2);
    let share = at - below as f64;
    let mix = |low: u8, high: u8| (f64::from(low) + (f64::from(high) - f64::from(low)) * share).round() as u8;
    std::array::from_fn(|channel| mix(STEPS[below][channel], STEPS[below + 1][channel]))
}

/// Draws the order of a system: dark cells first, bright ones last; below, what is settled after each sixth.
pub fn order(options: &ShowOrder) -> Result<ExitCode, Failure> {
    let output = Output::reserve("--out", &options.out).map_err(Failure::Input)?;
    let Some(system) = SYSTEMS.iter().find(|system| system.name == options.model) else {
        return Err(Failure::Input(format!("--model {}: expected a system of `smalti models`", options.model)));
    };
    if !(1..=128).contains(&options.grid) {
        return Err(Failure::Input(format!("--grid {}: expected 1 to 128 cells a side", options.grid)));
    }
    let Some(grids) = steps(system.name, options.grid, options.seed) else {
        let reason = "its tokens are not cells of a picture, or its order needs another grid";
        return Err(Failure::Input(format!(
            "{} has no order to show on {} cells a side: {reason}",
            system.name, options.grid
        )));
    };
    let all = grids.iter().flat_map(|grid| &grid.of_cell).max().map_or(0, |last| last + 1);
    let (picture, cells) = (draw_order(&grids, all), grids.iter().map(|grid| grid.of_cell.len()).sum::<usize>());
    write(output, &options.out, &picture)?;
    let path = options.out.display();
    println!("{path}: {}, {cells} cells in {all} steps, dark first ({})", system.name, system.parts);
    Ok(ExitCode::SUCCESS)
}

fn draw_order(grids: &[Steps], all: usize) -> Picture {
    let margin = 16;
    let panels = grids.len();
    // One grid is drawn large; scales side by side in rows of five, all as large as the last.
    let columns = panels.min(5);
    let widest = grids.iter().map(|grid| grid.width).max().unwrap_or(1);
    let side = (SIDE / columns / widest).max(1) * widest;
    let rows = panels.div_ceil(columns);
    let width = columns * (side + margin) + margin;
    let strip = if panels == 1 { (width - margin) / FRAMES - margin } else { 0 };
    let bar = 12;
    let height = rows * (side + margin) + margin + if strip > 0 { strip + margin } else { 0 } + bar + margin;
    let mut picture = Picture::blank(width, height);
    for (index, grid) in grids.iter().enumerate() {
        let at = [margin + index % columns * (side + margin), margin + index / columns * (side + margin)];
        picture.cells(at, side, grid, |step| of_step(step, all));
    }
    let mut top = margin + rows * (side + margin);
    if let ([grid], true) = (grids, strip > 0) {
        for frame in 0..FRAMES {
            let settled = (all * (frame + 1)).div_ceil(FRAMES + 1);
            let at = [margin + frame * (strip + margin), top];
            picture.cells(at, strip, grid, |step| if step < settled { of_step(step, all) } else { OPEN });
        }
        top += strip + margin;
    }
    for x in margin..width - margin {
        let step = (x - margin) * all / (width - 2 * margin).max(1);
        picture.fill([x, top], [1, bar], of_step(step.min(all.saturating_sub(1)), all));
    }
    picture
}

/// Draws a mask: a row per query, a column per key; tiles that are skipped, full, or partly seen.
pub fn mask(options: &ShowMask) -> Result<ExitCode, Failure> {
    let output = Output::reserve("--out", &options.out).map_err(Failure::Input)?;
    let wrong = |reason: String| Failure::Input(format!("--mask {}: {reason}", options.mask));
    let (mask, own) = parse(&options.mask).map_err(wrong)?;
    let q_len = options.queries.or(own).unwrap_or(256);
    let k_len = options.keys.or(own).unwrap_or(q_len);
    if !(1..=MOST).contains(&q_len) || !(1..=MOST).contains(&k_len) {
        return Err(wrong(format!("{q_len} queries and {k_len} keys, expected 1 to {MOST}")));
    }
    let lengths = Lengths { batch: 1, q_len, k_len };
    let compiled = mask.compile(lengths).map_err(|error| wrong(error.to_string()))?;
    let sees: Vec<bool> =
        (0..q_len * k_len).map(|pair| compiled.sees(lengths, 0, pair / k_len, pair % k_len)).collect();

    let pixels = (SIDE / q_len.max(k_len)).max(1);
    let line = 1 + usize::from(pixels >= 6);
    let tiles = [q_len.div_ceil(BLOCK), k_len.div_ceil(TILE)];
    let mut picture = Picture::blank(k_len * pixels + (tiles[1] + 1) * line, q_len * pixels + (tiles[0] + 1) * line);
    let whole = [picture.width, picture.height];
    picture.fill([0, 0], whole, LINE);
    let mut kinds = [0; 3];
    for tile in 0..tiles[0] * tiles[1] {
        let [row, column] = [tile / tiles[1], tile % tiles[1]];
        let queries = row * BLOCK..q_len.min((row + 1) * BLOCK);
        let keys = column * TILE..k_len.min((column + 1) * TILE);
        let pairs = queries.len() * keys.len();
        let seen = queries.clone().flat_map(|query| sees[query * k_len..][keys.clone()].iter()).filter(|sees| **sees);
        let colours = match seen.count() {
            0 => (0, [SKIPPED; 2]),
            seen if seen == pairs => (1, [FULL; 2]),
            _ => (2, PARTIAL),
        };
        kinds[colours.0] += 1;
        for query in queries {
            for key in keys.clone() {
                let colour = colours.1[usize::from(!sees[query * k_len + key])];
                let at = [line + column * line + key * pixels, line + row * line + query * pixels];
                picture.fill(at, [pixels; 2], colour);
            }
        }
    }
    write(output, &options.out, &picture)?;
    let [skipped, full, partial] = kinds;
    let seen = sees.iter().filter(|sees| **sees).count() as f64 / sees.len() as f64;
    println!(
        "{}: {q_len} queries (down) x {k_len} keys (across), tiles of {BLOCK} x {TILE}: {full} full (blue), {partial} \
         partial (orange), {skipped} skipped (grey); {:.1}% of pairs seen, {:.1}% of tiles visited",
        options.out.display(),
        seen * 100.0,
        (full + partial) as f64 / (full + partial + skipped) as f64 * 100.0
    );
    Ok(ExitCode::SUCCESS)
}

/// The most queries or keys that are drawn.
const MOST: usize = 4096;

fn write(output: Output, path: &Path, picture: &Picture) -> Result<(), Failure> {
    let outcome = output.write(|file| picture.write_png(file));
    outcome.map_err(|error| Failure::Work(format!("{}: {error}", path.display())))
}

/// Reads `MASK`, or several with `&` between them; and the length that they imply, if any.
fn parse(text: &str) -> Result<(Mask, Option<usize>), String> {
    let parts = text.split('&').map(|part| parse_one(part.trim())).collect::<Result<Vec<_>, _>>()?;
    let length = parts.iter().find_map(|(_, length)| *length);
    let mut masks: Vec<_> = parts.into_iter().map(|(mask, _)| mask).collect();
    Ok((if masks.len() == 1 { masks.remove(0) } else { Mask::And(masks) }, length))
}

fn parse_one(text: &str) -> Result<(Mask, Option<usize>), String> {
    let (name, numbers) = text.split_once(':').unwrap_or((text, ""));
    let numbers = numbers.split(',').filter(|number| !number.is_empty());
    let numbers = numbers
        .map(|number| match number.trim().parse::<usize>() {
            Ok(number) if number <= MOST => Ok(number),
            _ => Err(format!("\"{number}\" is no number from 0 to {MOST}")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let align = Align::BottomRight;
    let scales = |kind| {
        let tokens: usize = numbers.iter().map(|side| side * side).sum();
        match tokens {
            1..=MOST => Ok((Mask::Scales { patch_nums: numbers.clone(), kind }, Some(tokens))),
            _ => Err(format!("{tokens} tokens in all scales, expected 1 to {MOST}")),
        }
    };
    let grid = |height: usize, width: usize| match height * width {
        cells @ 1..=MOST => Ok(Some(cells)),
        cells => Err(format!("{cells} cells, expected 1 to {MOST}")),
    };
    let expected = |what: &str| Err(format!("{name} takes {what}"));
    match (name, numbers.as_slice()) {
        ("full", []) => Ok((Mask::Full, None)),
        ("causal", []) => Ok((Mask::Causal { align }, None)),
        ("window", &[left]) => Ok((Mask::Window { left, right: 0, align }, None)),
        ("window", &[left, right]) => Ok((Mask::Window { left, right, align }, None)),
        ("window", _) => expected("the keys before and, if not 0, after a query: window:32,32"),
        ("prefix", &[prefix]) => Ok((Mask::Prefix { prefix, align }, None)),
        ("prefix", _) => expected("how many keys all see: prefix:120"),
        ("frames", &[frame]) => Ok((Mask::Frames { frame, align }, None)),
        ("frames", _) => expected("the tokens of a frame: frames:64"),
        ("scales", _) => scales(ScalesKind::BlockCausal),
        ("markov-self", _) => scales(ScalesKind::MarkovSelf),
        ("markov-previous", _) => scales(ScalesKind::MarkovPrevious),
        ("markov", _) => scales(ScalesKind::MarkovPreviousAndSelf),
        ("packed", lengths) => Ok((Mask::packed(lengths, true), Some(lengths.iter().sum()))),
        ("diagonals", &[height, width]) => Ok((Mask::diagonals(&[height, width], 0, true), grid(height, width)?)),
        ("diagonals", _) => expected("the sides of a grid: diagonals:16,16"),
        ("regions", &[height, width, down, across]) => {
            let cells = grid(height, width)?;
            Ok((Mask::regions([height, width], [down, across]), cells))
        }
        ("regions", _) => expected("the sides of a grid and the regions along them: regions:16,16,2,2"),
        ("columns", &[height, width, window]) => {
            let cells = grid(height, width)?;
            Ok((Mask::columns([height, width], window), cells))
        }
        ("columns", _) => expected("the sides of a grid and how far a row is ahead: columns:16,16,4"),
        (system, &[]) => of_system(system),
        _ => Err("is not known; see smalti show-mask --help".to_owned()),
    }
}

/// The mask of a system, and its length.
fn of_system(system: &str) -> Result<(Mask, Option<usize>), String> {
    const SCALES: &str = "1,2,3,4,5,6,8,10,13,16";
    match system {
        "controlar" | "dar" | "dar_diffusion" | "larp" | "llamagen" | "rar" | "spherear" => parse_one("causal"),
        "flexvar" | "hart" | "infinity" | "var" => parse_one(&format!("scales:{SCALES}")),
        "hmar" | "mvar" => parse_one(&format!("markov-self:{SCALES}")),
        "nar" => parse_one("diagonals:16,16"),
        // A quarter of 16 x 16 cells after another.
        "xar" => parse_one("frames:64").map(|(mask, _)| (mask, Some(256))),
        "arinar" | "far" | "mar" | "maskgil" => parse_one("full"),
        "arpg" | "lpd" | "par" | "randar" => {
            // By the step that settles a cell; the cells in raster order.
            let grids = steps(system, 16, 1).unwrap_or_default();
            let ranks: Vec<_> = grids.iter().flat_map(|grid| &grid.of_cell).map(|step| *step as u32).collect();
            Ok((Mask::ranks(&ranks, system == "arpg"), Some(ranks.len())))
        }
        _ => Err("is no mask and no system with one; see smalti show-mask --help".to_owned()),
    }
}
