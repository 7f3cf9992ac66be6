//! Features of captions, for systems that draw from texts.
//!
//! The file is long because it is where features from outside are held against what a system expects, and because some
//! systems want padding after a caption and others before it; its tests are here too.

use smalti::{Device, Dtype, Float, Tensor};

use crate::weights::Checkpoint;
use crate::{Error, Result};

/// What a text encoder made of some captions. The encoder itself is not here.
#[derive(Debug, Clone)]
pub struct CaptionFeatures {
    /// `[captions, rows, channels]`.
    values: Vec<f32>,
    rows: usize,
    channels: usize,
    /// How many of its first rows are a caption's own; the others are padding.
    lengths: Vec<usize>,
}

impl CaptionFeatures {
    /// Reads `features` (`[captions, rows, channels]`, floats) and, where captions are shorter, `lengths` (`[captions]`,
    /// 32-bit integers): how many of its first rows are a caption's own.
    ///
    /// # Errors
    /// [`Error::Weights`] if they are not there, or not of these shapes.
    pub fn read(file: &Checkpoint) -> Result<Self> {
        let wrong = |reason: String| Error::Weights(format!("{}: {reason}", file.name()));
        let &[captions, rows, channels] = file.shape("features").unwrap_or(&[]) else {
            let got = file.shape("features");
            return Err(wrong(format!("\"features\" has shape {got:?}, expected [captions, rows, channels]")));
        };
        let lengths: Vec<usize> = match (file.shape("lengths"), file.dtype("lengths")) {
            (None, _) => vec![rows; captions],
            (_, Some(Dtype::U32)) => file.elements::<u32>("lengths")?.iter().map(|length| *length as usize).collect(),
            _ => {
                let lengths = file.elements::<i32>("lengths")?;
                lengths.iter().map(|length| usize::try_from(*length).unwrap_or(0)).collect()
            }
        };
        if lengths.len() != captions || lengths.iter().any(|length| !(1..=rows).contains(length)) {
            return Err(wrong(format!("\"lengths\" is {lengths:?}, expected {captions} numbers from 1 to {rows}")));
        }
        let values = file.floats("features")?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(wrong("\"features\" holds NaN or infinity".to_owned()));
        }
        Ok(Self { values, rows, channels, lengths })
    }

    /// Itself, if the rows of a caption are at most so many and have so many channels: that is seen when captions are given,
    /// not in the middle of the work.
    ///
    /// # Errors
    /// [`Error::Request`] if they do not fit.
    pub(super) fn fitting(&self, most_rows: Option<usize>, channels: usize) -> Result<&Self> {
        if let Some(most) = most_rows.filter(|most| *most < self.rows) {
            return Err(Error::Request(format!("captions of {} rows, expected at most {most}", self.rows)));
        }
        if channels != self.channels {
            let message = format!("features of {} channels, expected {channels}", self.channels);
            return Err(Error::Request(message));
        }
        Ok(self)
    }

    /// What a system was given, which cannot draw without.
    ///
    /// # Errors
    /// [`Error::Request`] if that is nothing.
    pub(super) fn given<'a>(system: &str, captions: Option<&'a Self>) -> Result<&'a Self> {
        let missing = || Error::Request(format!("{system} draws from features of captions, which were not given"));
        captions.ok_or_else(missing)
    }

    /// A name for each caption: its number.
    pub(super) fn names(&self) -> Vec<String> {
        (0..self.lengths.len()).map(|number| number.to_string()).collect()
    }

    /// Rows of each caption, padding included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The picked captions' own rows, then padding, `[picked, rows, channels]`, and the length of each.
    ///
    /// # Errors
    /// [`Error::Request`] if there is no such caption or a row has not so many `channels`; [`Error::Op`] if the device
    /// has no room.
    pub fn first<T: Float>(&self, device: &Device, picked: &[u32], channels: usize) -> Result<(Tensor<T>, Vec<usize>)> {
        let lengths = picked.iter().map(|caption| self.length(*caption)).collect::<Result<_>>()?;
        Ok((self.arranged(device, picked, self.rows, channels, |_| 0)?, lengths))
    }

    /// The picked captions' own rows after all padding, `[picked, rows, channels]`, and which rows they are, 1 or 0.
    ///
    /// # Errors
    /// As [`CaptionFeatures::first`]; [`Error::Request`] if captions have more than `rows` rows.
    pub fn last<T: Float>(
        &self,
        device: &Device,
        picked: &[u32],
        [rows, channels]: [usize; 2],
    ) -> Result<(Tensor<T>, Vec<f32>)> {
        self.fitting(Some(rows), channels)?;
        let lengths = picked.iter().map(|caption| self.length(*caption)).collect::<Result<Vec<_>>>()?;
        let own = lengths.iter().flat_map(|length| (0..rows).map(move |row| f32::from(u8::from(row + length >= rows))));
        let own = own.collect();
        Ok((self.arranged(device, picked, rows, channels, |length| rows - length)?, own))
    }

    fn length(&self, caption: u32) -> Result<usize> {
        let missing = || Error::Request(format!("caption {caption}, expected 0 to {}", self.lengths.len() - 1));
        self.lengths.get(caption as usize).copied().ok_or_else(missing)
    }

    /// Rows of each picked caption, its own starting at `start` of its length, turned around the end; zeros are added.
    fn arranged<T: Float>(
        &self,
        device: &Device,
        picked: &[u32],
        rows: usize,
        channels: usize,
        start: impl Fn(usize) -> usize,
    ) -> Result<Tensor<T>> {
        self.fitting(None, channels)?;
        let mut values = vec![T::from_f32(0.0); picked.len() * rows * channels];
        for (to, caption) in values.chunks_mut((rows * channels).max(1)).zip(picked) {
            let from = &self.values[*caption as usize * self.rows * channels..][..self.rows * channels];
            let start = start(self.lengths[*caption as usize]);
            for (row, from) in from.chunks(channels).enumerate() {
                let at = (start + row) % rows * channels;
                to[at..at + channels].iter_mut().zip(from).for_each(|(to, from)| *to = T::from_f32(*from));
            }
        }
        Ok(Tensor::from_vec(device, &[picked.len(), rows, channels], values)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> CaptionFeatures {
        CaptionFeatures {
            values: (1..=12).map(|value| value as f32).collect(),
            rows: 3,
            channels: 2,
            lengths: vec![3, 1],
        }
    }

    #[test]
    fn padding_comes_after_or_before_a_captions_own_rows() {
        let (device, features) = (Device::cpu(), features());
        let (first, lengths) = features.first::<f32>(&device, &[1, 0], 2).unwrap();
        assert_eq!(first.to_vec().unwrap(), [7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(lengths, [1, 3]);
        let (last, own) = features.last::<f32>(&device, &[1], [4, 2]).unwrap();
        // Padding turns around the end, as the official programs move it.
        assert_eq!(last.to_vec().unwrap(), [9.0, 10.0, 11.0, 12.0, 0.0, 0.0, 7.0, 8.0]);
        assert_eq!(own, [0.0, 0.0, 0.0, 1.0]);
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (device, features) = (Device::cpu(), features());
        assert!(matches!(features.first::<f32>(&device, &[2], 2), Err(Error::Request(_))));
        assert!(matches!(features.first::<f32>(&device, &[0], 3), Err(Error::Request(_))));
        assert!(matches!(features.last::<f32>(&device, &[0], [2, 2]), Err(Error::Request(_))));
    }
}
