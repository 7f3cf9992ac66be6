//! Tables of cosines and sines: from frequencies and positions, or from any angles.

use super::OP;
use crate::{Device, Error, Float, Layout, Result, Tensor};

/// What rows without a position hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NullRows {
    /// Cosine 1, sine 0: what is turned by it stays as it is.
    Identity,
    /// Cosine 0, sine 0: what is turned by it becomes 0.
    Zero,
}

/// How frequencies change so that a grid of `factor` times the side that was trained fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Extrapolation {
    /// All are divided by the factor.
    Linear,
    /// `theta` grows, so that the slowest is divided by the factor and the fastest stays.
    Ntk,
    /// Those that turn more than a quarter of the trained side stay, those that turn less than once are divided by
    /// the factor, and between the two it goes linearly.
    ByParts {
        /// The side that was trained, more than 4.
        original: usize,
    },
}

/// For each pair of channels the axis of the position that turns it, and its angle per unit of that axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Frequencies {
    axes: usize,
    pairs: Vec<(usize, f64)>,
}

impl Frequencies {
    /// One axis: pair `j` turns by `theta^(-2 j / rotary_dim)`.
    ///
    /// # Errors
    /// [`Error::Value`] if `rotary_dim` is odd or 0, or `theta` is not a finite number above 0.
    ///
    /// # Source
    /// Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    pub fn one_d(rotary_dim: usize, theta: f32) -> Result<Self> {
        Self::per_axis(&[rotary_dim], theta)
    }

    /// Axis `a` owns the next `split[a] / 2` pairs; its pair `i` turns by `theta^(-2 i / split[a])`.
    ///
    /// # Errors
    /// [`Error::Value`] if `split` is empty or holds an odd number or 0, or `theta` is not a finite number above 0.
    pub fn per_axis(split: &[usize], theta: f32) -> Result<Self> {
        check_theta(theta)?;
        if split.is_empty() {
            return Err(Error::value(OP, "split", "empty", "at least one axis"));
        }
        let mut pairs = Vec::new();
        for (axis, &channels) in split.iter().enumerate() {
            check_channels("split", channels, 2)?;
            pairs.extend(geometric(channels, f64::from(theta)).map(|frequency| (axis, frequency)));
        }
        Ok(Self { axes: split.len(), pairs })
    }

    /// One row of frequencies for all axes: pair `j` turns by `factors[a] theta^(-j / pairs)` with
    /// `a = axis_of_pair[j]`. [`spread`] gives axes that alternate, [`sections`] axes one after another.
    ///
    /// # Errors
    /// [`Error::Value`] if `axis_of_pair` is empty or names an axis without a factor, or a number is not finite.
    ///
    /// # Source
    /// Yuan et al. 2025, arXiv:2507.08801 (MM-RoPE); Wang et al. 2024, arXiv:2409.12191 (sections).
    pub fn shared(axis_of_pair: &[usize], factors: &[f32], theta: f32) -> Result<Self> {
        check_theta(theta)?;
        if axis_of_pair.is_empty() {
            return Err(Error::value(OP, "axis_of_pair", "empty", "at least one pair"));
        }
        if let Some(factor) = factors.iter().find(|factor| !factor.is_finite()) {
            return Err(Error::value(OP, "factors", factor, "finite numbers"));
        }
        let frequencies = geometric(2 * axis_of_pair.len(), f64::from(theta));
        let pairs = axis_of_pair.iter().zip(frequencies).map(|(&axis, frequency)| {
            let factor = factors.get(axis);
            let factor = factor.ok_or_else(|| Error::value(OP, "axis_of_pair", axis, "an axis that has a factor"))?;
            Ok((axis, f64::from(*factor) * frequency))
        });
        Ok(Self { axes: factors.len(), pairs: pairs.collect::<Result<_>>()? })
    }

    /// Axes that share the channels evenly, each with the frequencies of a grid `factor` times as large as trained.
    ///
    /// # Errors
    /// [`Error::Value`] if `head_dim` is not a multiple of twice the axes, a factor or `theta` is not a finite number
    /// above 0, an axis has but one pair ([`Extrapolation::Ntk`]), or the trained side is at most 4
    /// ([`Extrapolation::ByParts`]).
    ///
    /// # Source
    /// Chen et al. 2023, arXiv:2306.15595 (linear); Peng et al. 2023, arXiv:2309.00071, sections 3.1 and 3.2 (the
    /// others).
    pub fn extrapolated(
        axes: usize,
        head_dim: usize,
        theta: f32,
        factor: f32,
        extrapolation: Extrapolation,
    ) -> Result<Self> {
        check_theta(theta)?;
        check_channels("head_dim", head_dim, 2 * axes.max(1))?;
        if !(factor.is_finite() && factor > 0.0) {
            return Err(Error::value(OP, "factor", factor, "a finite number above 0"));
        }
        let channels = head_dim / axes.max(1);
        let (theta, factor) = (f64::from(theta), f64::from(factor));
        let frequencies: Vec<f64> = match extrapolation {
            Extrapolation::Linear => geometric(channels, theta).map(|frequency| frequency / factor).collect(),
            Extrapolation::Ntk if channels > 2 => {
                let exponent = channels as f64 / (channels as f64 - 2.0);
                geometric(channels, theta * factor.powf(exponent)).collect()
            }
            Extrapolation::Ntk => return Err(Error::value(OP, "head_dim", head_dim, "more than one pair per axis")),
            Extrapolation::ByParts { original } if original > 4 => {
                let part = |frequency: f64| {
                    let turns = original as f64 * frequency / std::f64::consts::TAU;
                    let kept = ((turns - 1.0) / (original as f64 / 4.0 - 1.0)).clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                geometric(channels, theta).map(part).collect()
            }
            Extrapolation::ByParts { original } => return Err(Error::value(OP, "original", original, "more than 4")),
        };
        let pairs = (0..axes).flat_map(|axis| frequencies.iter().map(move |frequency| (axis, *frequency)));
        Ok(Self { axes, pairs: pairs.collect() })
    }

    /// How many coordinates a position has.
    #[must_use]
    pub fn axes(&self) -> usize {
        self.axes
    }

    /// How many pairs they turn.
    #[must_use]
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }
}

/// The pattern of axes repeated until `pairs` pairs have one, as MM-RoPE spreads time, row and column over all
/// frequencies.
#[must_use]
pub fn spread(pattern: &[usize], pairs: usize) -> Vec<usize> {
    pattern.iter().copied().cycle().take(pairs).collect()
}

/// Axis `a` for `pairs[a]` pairs, one axis after another.
#[must_use]
pub fn sections(pairs: &[usize]) -> Vec<usize> {
    pairs.iter().enumerate().flat_map(|(axis, pairs)| std::iter::repeat_n(axis, *pairs)).collect()
}

/// Where tokens stand: a coordinate per axis, of any real value. All batch entries share them, or each has its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Positions {
    batch: Option<usize>,
    axes: usize,
    values: Vec<f64>,
}

impl Positions {
    /// The same for all batch entries: `values` is `[tokens, axes]`, row by row.
    ///
    /// # Errors
    /// [`Error::Value`] if the values are not whole rows, or one is not finite.
    pub fn new(axes: usize, values: Vec<f64>) -> Result<Self> {
        Self { batch: None, axes, values }.checked()
    }

    /// Of its own for each of `batch` entries: `values` is `[batch, tokens, axes]`.
    ///
    /// # Errors
    /// As [`Positions::new`].
    pub fn per_batch(batch: usize, axes: usize, values: Vec<f64>) -> Result<Self> {
        Self { batch: Some(batch), axes, values }.checked()
    }

    fn checked(self) -> Result<Self> {
        let rows = self.axes * self.batch.unwrap_or(1);
        if rows == 0 || !self.values.len().is_multiple_of(rows) {
            return Err(Error::value(OP, "positions", self.values.len(), format!("a multiple of {rows} coordinates")));
        }
        match self.values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::value(OP, "positions", value, "finite coordinates")),
            None => Ok(self),
        }
    }

    /// `start`, `start + 1`, .. on one axis.
    #[must_use]
    pub fn line(start: usize, count: usize) -> Self {
        Self { batch: None, axes: 1, values: (start..start + count).map(|position| position as f64).collect() }
    }

    /// The cells of a grid in row-major order: an axis per length, the last the fastest (time, row, column).
    #[must_use]
    pub fn grid(lengths: &[usize]) -> Self {
        let cells: usize = lengths.iter().product();
        let coordinate =
            |cell: usize, axis: usize| cell / lengths[axis + 1..].iter().product::<usize>() % lengths[axis];
        let values = (0..cells).flat_map(|cell| (0..lengths.len()).map(move |axis| coordinate(cell, axis) as f64));
        Self { batch: None, axes: lengths.len(), values: values.collect() }
    }

    /// Four axes: row and column of each cell in the order of generation, then those of the cell that follows; the
    /// last is followed by itself.
    ///
    /// # Source
    /// The direction-aware positions of diagonal generation (DAR).
    #[must_use]
    pub fn directed(order: &[[usize; 2]]) -> Self {
        let next = order.iter().skip(1).chain(order.last());
        let values = order.iter().zip(next).flat_map(|(here, next)| [here[0], here[1], next[0], next[1]]);
        Self { batch: None, axes: 4, values: values.map(|coordinate| coordinate as f64).collect() }
    }
}

/// Cosines and sines, a row per position and a column per pair of channels.
#[derive(Debug, Clone)]
pub struct Table {
    /// `[positions, pairs]`, or `[batch, positions, pairs]` if each batch entry has its own.
    pub cos: Tensor<f32>,
    /// As `cos`.
    pub sin: Tensor<f32>,
}

impl Table {
    /// A row per position of these frequencies.
    ///
    /// # Errors
    /// [`Error::Value`] if the two differ in their axes; [`Error::Device`] if the device has no room.
    pub fn new(device: &Device, frequencies: &Frequencies, positions: &Positions) -> Result<Self> {
        if positions.axes != frequencies.axes {
            return Err(Error::value(OP, "positions", positions.axes, format!("{} axes", frequencies.axes)));
        }
        let rows = positions.values.len() / positions.axes;
        let table = Self::from_angles(device, rows, frequencies.pairs(), |row, pair| {
            let (axis, frequency) = frequencies.pairs[pair];
            positions.values[row * positions.axes + axis] * frequency
        })?;
        let Some(batch) = positions.batch else { return Ok(table) };
        let shape = [batch, rows / batch, frequencies.pairs()];
        Ok(Self { cos: table.cos.reshape(&shape)?, sin: table.sin.reshape(&shape)? })
    }

    /// Positions from 0 on, on one axis.
    ///
    /// # Errors
    /// As [`Frequencies::one_d`]; [`Error::Device`] if the device has no room.
    pub fn one_d(device: &Device, positions: usize, head_dim: usize, theta: f32) -> Result<Self> {
        Self::new(device, &Frequencies::one_d(head_dim, theta)?, &Positions::line(0, positions))
    }

    /// A row per cell of a grid, line by line. The first half of the pairs turn by the cell's row, the second by its
    /// column: pair `i` of a half by `theta^(-2 i / (head_dim / 2))` times that.
    ///
    /// # Errors
    /// [`Error::Value`] if `head_dim` is not a multiple of 4, `theta` is not a finite number above 0, or the cells
    /// are too many; [`Error::Device`] if the device has no room.
    pub fn grid(device: &Device, height: usize, width: usize, head_dim: usize, theta: f32) -> Result<Self> {
        check_channels("head_dim", head_dim, 4)?;
        let frequencies = Frequencies::per_axis(&[head_dim / 2; 2], theta)?;
        let cells = height.checked_mul(width).filter(|cells| *cells < isize::MAX as usize / 16);
        cells.ok_or_else(|| Error::value(OP, "height", height, "a count of cells that fits memory"))?;
        Self::new(device, &frequencies, &Positions::grid(&[height, width]))
    }

    /// Any table: `angle` takes a position and a pair. Cosines and sines are computed in f64.
    ///
    /// # Errors
    /// [`Error::Device`] if the device has no room.
    pub fn from_angles(
        device: &Device,
        positions: usize,
        pairs: usize,
        angle: impl Fn(usize, usize) -> f64,
    ) -> Result<Self> {
        let elements = Layout::contiguous(&[positions, pairs])?.elements();
        let angles: Vec<f64> = (0..elements).map(|index| angle(index / pairs, index % pairs)).collect();
        let rounded = |value: fn(f64) -> f64| angles.iter().map(|angle| f32::from_f64(value(*angle))).collect();
        Ok(Self {
            cos: Tensor::from_vec(device, &[positions, pairs], rounded(f64::cos))?,
            sin: Tensor::from_vec(device, &[positions, pairs], rounded(f64::sin))?,
        })
    }

    /// With `rows` rows for tokens without a position before all others (of each batch entry).
    ///
    /// # Errors
    /// [`Error::Shape`] if the table has neither two axes nor three; [`Error::Device`] if the device has no room.
    pub fn with_null_rows(self, rows: usize, kind: NullRows) -> Result<Self> {
        let shape = self.cos.shape();
        let (batch, positions, pairs) = match *shape {
            [positions, pairs] => (1, positions, pairs),
            [batch, positions, pairs] => (batch, positions, pairs),
            _ => return Err(Error::shape(OP, "cos", shape, "[positions, pairs] or [batch, positions, pairs]")),
        };
        let mut longer_shape = shape.to_vec();
        longer_shape[shape.len() - 2] = rows + positions;
        let longer = |table: &Tensor<f32>, fill: f32| {
            let values = table.to_vec()?;
            let mut all = Vec::with_capacity(batch * (rows + positions) * pairs);
            for entry in 0..batch {
                all.resize(all.len() + rows * pairs, fill);
                all.extend(&values[entry * positions * pairs..][..positions * pairs]);
            }
            Tensor::from_vec(table.device(), &longer_shape, all)
        };
        let fill = match kind {
            NullRows::Identity => 1.0,
            NullRows::Zero => 0.0,
        };
        Ok(Self { cos: longer(&self.cos, fill)?, sin: longer(&self.sin, 0.0)? })
    }

    /// How many positions it has, null rows included.
    #[must_use]
    pub fn positions(&self) -> usize {
        self.cos.shape().iter().rev().nth(1).copied().unwrap_or(0)
    }
}

fn check_channels(operand: &'static str, channels: usize, multiple: usize) -> Result<()> {
    if channels == 0 || !channels.is_multiple_of(multiple) {
        return Err(Error::value(OP, operand, channels, format!("a multiple of {multiple} above 0")));
    }
    Ok(())
}

fn check_theta(theta: f32) -> Result<()> {
    if !(theta.is_finite() && theta > 0.0) {
        return Err(Error::value(OP, "theta", theta, "a finite number above 0"));
    }
    Ok(())
}

/// `theta^(-2 j / channels)` for each of the `channels / 2` pairs.
fn geometric(channels: usize, theta: f64) -> impl Iterator<Item = f64> {
    (0..channels / 2).map(move |j| theta.powf(-2.0 * j as f64 / channels as f64))
}
