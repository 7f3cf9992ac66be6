//! A grid of pictures as a PNG file; files that are written whole or not at all.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use smalti::{Device, Tensor, resize};

/// The largest picture that is read.
const MOST_BYTES: usize = 256 << 20;

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

    /// Reads a PNG of any colour type; what is transparent is white.
    ///
    /// # Errors
    /// If the file cannot be read, is no PNG, or is absurdly large.
    pub fn read_png(path: &Path) -> Result<Self, String> {
        let wrong = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
        let file = std::fs::File::open(path).map_err(|error| wrong(&error))?;
        let mut decoder = png::Decoder::new(io::BufReader::new(file));
        decoder.set_transformations(png::Transformations::normalize_to_color8() | png::Transformations::ALPHA);
        let mut reader = decoder.read_info().map_err(|error| wrong(&error))?;
        let bytes = reader.output_buffer_size().filter(|bytes| *bytes <= MOST_BYTES);
        let mut pixels = vec![0; bytes.ok_or_else(|| wrong(&"is larger than 256 MiB"))?];
        let info = reader.next_frame(&mut pixels).map_err(|error| wrong(&error))?;
        let channels = info.color_type.samples();
        let rgb = pixels[..info.buffer_size()].chunks(channels).flat_map(|pixel| {
            let alpha = u32::from(pixel[channels - 1]);
            let over_white = move |value: u8| ((u32::from(value) * alpha + 255 * (255 - alpha)) / 255) as u8;
            (0..3).map(move |channel| over_white(pixel[if channels < 3 { 0 } else { channel }]))
        });
        Ok(Self { width: info.width as usize, height: info.height as usize, rgb: rgb.collect() })
    }

    /// Planes `[3, height, width]` in [-1, 1] of another size: averages of what each pixel covers.
    ///
    /// # Errors
    /// If the picture has no pixels.
    pub fn planes(&self, size: [usize; 2]) -> Result<Vec<f32>, String> {
        let plane = self.width * self.height;
        let values = (0..3 * plane).map(|at| f32::from(self.rgb[at % plane * 3 + at / plane]) / 127.5 - 1.0).collect();
        let whole = Tensor::from_vec(&Device::cpu(), &[1, 3, self.height, self.width], values);
        let mode = resize::Mode::Area;
        let resized = whole.and_then(|whole| resize::resize::<f32>(&whole, size, mode)?.to_vec());
        resized.map_err(|error| error.to_string())
    }

    /// Writes it as PNG.
    pub fn write_png(&self, file: &mut dyn Write) -> io::Result<()> {
        let size = |pixels: usize| u32::try_from(pixels).map_err(|_| io::Error::other("more than 2^32 pixels wide"));
        let mut encoder = png::Encoder::new(file, size(self.width)?, size(self.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&self.rgb)?;
        writer.finish()?;
        Ok(())
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
    /// For what `option` names.
    ///
    /// # Errors
    /// If `path` is a folder, or its folder is missing or not writable.
    pub fn reserve(option: &str, path: &Path) -> Result<Self, String> {
        let wrong = |reason: &dyn std::fmt::Display| format!("{option} {}: {reason}", path.display());
        if path.is_dir() {
            return Err(wrong(&"is a folder"));
        }
        if path.file_name().is_none() {
            return Err(wrong(&"names no file"));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".smalti-").suffix(".part");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            builder.permissions(std::fs::Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(folder).map_err(|error| wrong(&error))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes the contents and puts the file in its place.
    pub fn write(mut self, contents: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut file = BufWriter::new(self.file.as_file_mut());
        contents(&mut file)?;
        file.flush()?;
        drop(file);
        self.file.persist(&self.path)?;
        Ok(())
    }
}
