//! What `smalti generate` shows of a generation as it goes on: previews and the order of its steps.

use std::path::{Path, PathBuf};

use smalti_models::{Error, Generator, Given, Seen};

use super::picture::{Output, Picture, grid};

/// Previews of tokens that settle cell by cell are so many at most, whatever the number of steps.
const MOST_PREVIEWS: usize = 16;
/// The grey of cells that are still open, in [-1, 1].
const OPEN: f32 = 0.6;

/// Pictures as they are between steps, a file for each.
pub struct Previews {
    folder: PathBuf,
}

impl Previews {
    /// Into a folder, which is made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn into(folder: &Path) -> Result<Self, String> {
        if folder.exists() && !folder.is_dir() {
            return Err(format!("--preview {}: is a file, expected a folder", folder.display()));
        }
        std::fs::create_dir_all(folder).map_err(|error| format!("--preview {}: {error}", folder.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }
}

/// The cells of each picture that each step settled.
#[derive(Default)]
pub struct Trace {
    pictures: Vec<serde_json::Value>,
}

impl Trace {
    /// As JSON; steps are lists of cells, counted row by row, grid after grid, or of places of a sequence.
    pub fn json(self, generator: &dyn Generator, seed: u64) -> serde_json::Value {
        let about = generator.about();
        let mut trace = serde_json::json!({"system": about.system, "seed": seed, "pictures": self.pictures});
        if about.grids.is_empty() {
            trace["sequence"] = about.tokens_per_picture.into();
        } else {
            trace["grids"] = serde_json::json!(about.grids);
        }
        trace
    }
}

/// Watches the generation of one batch.
pub struct Watcher<'a> {
    generator: &'a dyn Generator,
    previews: Option<&'a Previews>,
    given: Option<Given<'a>>,
    /// The number of the batch's first picture in the run.
    first: usize,
    columns: usize,
    /// Of each picture, the cells of each step.
    steps: Vec<Vec<Vec<usize>>>,
    shown: usize,
    /// Tokens that had settled when the last preview was written.
    last: usize,
}

impl<'a> Watcher<'a> {
    /// Of a batch of `count` pictures from number `first` on, shown in rows of `columns`.
    pub fn new(
        generator: &'a dyn Generator,
        previews: Option<&'a Previews>,
        given: Option<Given<'a>>,
        [first, count, columns]: [usize; 3],
    ) -> Self {
        Self { generator, previews, given, first, columns, steps: vec![Vec::new(); count], shown: 0, last: 0 }
    }

    /// Notes a step, and writes a preview if it is time for one: after each scale, or when enough cells have settled.
    ///
    /// # Errors
    /// If a preview cannot be drawn or written.
    pub fn step(&mut self, seen: &Seen<'_>) -> Result<(), Error> {
        self.steps[seen.first..].iter_mut().zip(seen.cells).for_each(|(steps, cells)| steps.push(cells.clone()));
        let Some(previews) = self.previews else { return Ok(()) };
        let in_scales = self.generator.about().grids.len() > 1;
        if !in_scales && (seen.settled - self.last) * MOST_PREVIEWS < seen.all {
            return Ok(());
        }
        let [height, width] = self.generator.about().picture_size;
        let mut pictures = Vec::new();
        for (number, planes) in (seen.pictures)()?.iter_mut().enumerate() {
            self.veil(number, planes, [height, width]);
            // A scale of its own may be smaller.
            let side = (planes.len() / 3).isqrt();
            let size = if planes.len() == 3 * height * width { [height, width] } else { [side; 2] };
            pictures.push(Picture::from_planes(planes, size[0], size[1]));
        }
        if pictures.is_empty() {
            return Ok(());
        }
        self.last = seen.settled;
        self.shown += 1;
        let path = previews.folder.join(format!("{:04}-{:03}.png", self.first, self.shown));
        let written = Output::reserve("--preview", &path)
            .map(|output| output.write(|file| grid(&pictures, self.columns).write_png(file)));
        let failed = |error: std::io::Error| Error::Request(format!("--preview {}: {error}", path.display()));
        written.map_err(Error::Request)?.map_err(failed)
    }

    /// Greys the cells of one grid that are still open; what stays of a given picture is shown as it is.
    fn veil(&self, number: usize, planes: &mut [f32], [height, width]: [usize; 2]) {
        let grids = self.generator.about().grids;
        let plane = height * width;
        if let (&[[rows, columns]], true) = (&grids[..], planes.len() == 3 * plane) {
            let mut open = vec![true; rows * columns];
            self.steps[number].iter().flatten().for_each(|cell| open[*cell] = false);
            // Latents that settle all together have no open cells; a picture that is drawn after others is all open.
            if self.steps.iter().flatten().any(|cells| !cells.is_empty()) {
                for at in 0..plane {
                    if open[at / width * rows / height * columns + at % width * columns / width] {
                        (0..3).for_each(|colour| planes[colour * plane + at] = OPEN);
                    }
                }
            }
        }
        if let Some(given) = self.given.filter(|given| given.planes.len() == planes.len()) {
            let stays = (0..planes.len()).filter(|at| !given.anew[at % plane]);
            stays.for_each(|at| planes[at] = given.planes[at]);
        }
    }

    /// Adds the batch to a trace; `label_of` names a picture's class.
    pub fn trace(self, trace: &mut Trace, labels: &[u32]) {
        let classes = self.generator.about().classes;
        for (number, (steps, label)) in self.steps.iter().zip(labels).enumerate() {
            trace.pictures.push(serde_json::json!({
                "picture": self.first + number, "class": classes.get(*label as usize), "steps": steps,
            }));
        }
    }
}
