//! A grid of pictures as a PNG file, written whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::Path;

/// White pixels between pictures.
const GAP: usize = 4;

/// A picture of 8-bit RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// Row by row, three bytes a pixel.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// From planes `[3, height, width]` in [-1, 1], as the tokenizers give them; what lies outside is clamped.
    pub fn from_planes(planes: &[f32], height: usize, width: usize) -> Self {
        let plane = height * width;
        let byte = |value: f32| ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8;
        let rgb = (0..plane).flat_map(|at| (0..3).map(move |colour| byte(planes[colour * plane + at]))).collect();
        Self { width, height, rgb }
    }
}

/// The pictures side by side, in rows of `columns`; all have the size of the first.
pub fn grid(pictures: &[Picture], columns: usize) -> Picture {
    let (width, height) = pictures.first().map_or((0, 0), |picture| (picture.width, picture.height));
    let columns = columns.clamp(1, pictures.len().max(1));
    let rows = pictures.len().div_ceil(columns);
    let (step_x, step_y) = (width + GAP, height + GAP);
    let (whole_width, whole_height) = (columns * step_x + GAP, rows * step_y + GAP);
    let mut rgb = vec![255; whole_width * whole_height * 3];
    for (index, picture) in pictures.iter().enumerate() {
        let (left, top) = (GAP + index % columns * step_x, GAP + index / columns * step_y);
        for (y, row) in picture.rgb.chunks(width * 3).enumerate() {
            let start = ((top + y) * whole_width + left) * 3;
            rgb[start..start + row.len()].copy_from_slice(row);
        }
    }
    Picture { width: whole_width, height: whole_height, rgb }
}

/// A place for a file, taken before the work: what is written appears under `path` all at once.
pub struct Output {
    file: tempfile::NamedTempFile,
    path: std::path::PathBuf,
}

impl Output {
    /// # Errors
    /// If `path` is a folder, or its folder is missing or not writable.
    pub fn reserve(path: &Path) -> Result<Self, String> {
        let wrong = |reason: &dyn std::fmt::Display| format!("--out {}: {reason}", path.display());
        if path.is_dir() {
            return Err(wrong(&"is a folder"));
        }
        if path.file_name().is_none() {
            return Err(wrong(&"names no file"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".smalti-").suffix(".png");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder).map_err(|error| wrong(&error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes the picture and puts it in its place.
    pub fn write(mut self, picture: &Picture) -> io::Result<()> {
        let size = |pixels: usize| u32::try_from(pixels).map_err(|_| io::Error::other("more than 2^32 pixels wide"));
        {
            let mut encoder =
                png::Encoder::new(BufWriter::new(self.file.as_file_mut()), size(picture.width)?, size(picture.height)?);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&picture.rgb)?;
            writer.finish()?;
        }
        self.file.as_file_mut().flush()?;
        self.file.persist(&self.path)?;
        Ok(())
    }
}
