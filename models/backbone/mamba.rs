//! Mamba-2's mixer: a short causal convolution, then a state space recurrence, gated; one group of B and C.
//!
//! Source: Dao and Gu 2024, arXiv:2405.21060, section 7; names from mamba-ssm's `mamba2.py`.

use smalti::activation::{Activation, activation};
use smalti::scan::{SsdParameters, ssd_scan};
use smalti::{Device, Float, Tensor, Weight, copy, elementwise, linear, norm};

use crate::Result;
use crate::decode::concatenate;
use crate::weights::Loader;

/// A mixer's weights.
pub struct Mamba2 {
    heads: usize,
    /// Channels of all heads.
    inner: usize,
    /// Numbers of the state per channel.
    states: usize,
    /// Gate, then `x`, B and C, then the step of each head.
    in_proj: Weight,
    /// `[taps, 1, 1, channels]`, the oldest first.
    taps: Tensor<f32>,
    /// `[1, 1, channels]`.
    conv_bias: Tensor<f32>,
    /// `[1, 1, heads]`.
    step_bias: Tensor<f32>,
    parameters: SsdParameters,
    norm: Tensor<f32>,
    norm_eps: f32,
    out_proj: Weight,
}

/// What a mixer remembers of the places so far.
#[derive(Debug, Clone)]
pub struct MambaState<T: Float> {
    /// `[batch, taps - 1, channels]`: the last inputs of the convolution, the oldest first.
    pub window: Tensor<T>,
    /// `[batch, heads, head_dim, states]`.
    pub state: Tensor<f32>,
}

impl Mamba2 {
    /// Loads the official names under the loader's prefix, for `dim` channels.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn load(loader: &Loader<'_>, dim: usize, norm_eps: f32) -> Result<Self> {
        let (heads, inner) = (loader.length("A_log", 0), loader.length("norm.weight", 0));
        let (channels, count) = (loader.length("conv1d.weight", 0), loader.length("conv1d.weight", 2));
        if channels <= inner || !(channels - inner).is_multiple_of(2) || heads == 0 || !inner.is_multiple_of(heads) {
            let problem =
                format!("has {channels} channels, which do not hold {heads} heads of {inner} in all, B and C");
            loader.note("conv1d.weight", problem);
        }
        let weights = loader.vector("conv1d.weight", &[channels, 1, count])?.reshape(&[channels, count])?;
        let speeds = loader.vector("A_log", &[heads])?.to_vec()?;
        let speeds = speeds.iter().map(|log| (-f64::from(*log).exp()) as f32).collect();
        Ok(Self {
            heads,
            inner,
            states: channels.saturating_sub(inner) / 2,
            in_proj: loader.weight("in_proj.weight", &[inner + channels + heads, dim])?,
            taps: weights.permute(&[1, 0])?.reshape(&[count, 1, 1, channels])?,
            conv_bias: loader.vector("conv1d.bias", &[channels])?.reshape(&[1, 1, channels])?,
            step_bias: loader.vector("dt_bias", &[heads])?.reshape(&[1, 1, heads])?,
            parameters: SsdParameters {
                a: Tensor::from_vec(loader.device(), &[heads], speeds)?,
                d: Some(loader.vector("D", &[heads])?),
            },
            norm: loader.vector("norm.weight", &[inner])?,
            norm_eps,
            out_proj: loader.weight("out_proj.weight", &[dim, inner])?,
        })
    }

    /// The state before the first place.
    ///
    /// # Errors
    /// If the device has no room.
    pub fn start<T: Float>(&self, device: &Device, batch: usize) -> Result<MambaState<T>> {
        let [taps, .., channels] = *self.taps.shape() else { unreachable!("the load shapes it") };
        Ok(MambaState {
            window: Tensor::zeros(device, &[batch, taps.saturating_sub(1), channels])?,
            state: Tensor::zeros(device, &[batch, self.heads, self.inner / self.heads.max(1), self.states])?,
        })
    }

    /// Runs the places of `x` (`[batch, seq, dim]`) after those that the state remembers, which then remembers these.
    ///
    /// # Errors
    /// If shapes do not fit or the device fails.
    pub fn run<T: Float>(&self, x: &Tensor<T>, memory: &mut MambaState<T>) -> Result<Tensor<T>> {
        let (batch, seq) = (x.shape()[0], x.shape()[1]);
        let [taps, .., channels] = *self.taps.shape() else { unreachable!("the load shapes it") };
        let (heads, inner, states) = (self.heads, self.inner, self.states);
        let all = linear::linear(x, &self.in_proj, None)?;
        let gate = activation(&all.narrow(2, 0, inner)?, Activation::Silu)?;

        let window = concatenate(&[&memory.window, &all.narrow(2, inner, channels)?], 1)?;
        let mut h = copy::convert(&self.conv_bias.broadcast(&[batch, seq, channels])?)?;
        for tap in 0..taps {
            let factor = copy::convert(&self.taps.narrow(0, tap, 1)?.reshape(&[1, 1, channels])?)?;
            h = elementwise::add(&h, &elementwise::mul(&window.narrow(1, tap, seq)?, &factor)?)?;
        }
        memory.window = window.narrow(1, seq, taps - 1)?.contiguous()?;
        let h = activation(&h, Activation::Silu)?;

        let heads_of_x = h.narrow(2, 0, inner)?.reshape(&[batch, seq, heads, inner / heads])?;
        let part = |start: usize| h.narrow(2, start, states)?.reshape(&[batch, seq, 1, states]);
        let step = elementwise::add(&all.narrow(2, inner + channels, heads)?, &copy::convert(&self.step_bias)?)?;
        let step = activation(&step, Activation::Softplus)?;
        let (b, c) = (part(inner)?, part(inner + states)?);
        let scanned = ssd_scan(&heads_of_x, &step, &b, &c, &self.parameters, Some(&memory.state))?;
        memory.state = scanned.state;

        let y = elementwise::mul(&scanned.y.reshape(&[batch, seq, inner])?, &gate)?;
        let y = norm::rms_norm(&y, Some(&self.norm), self.norm_eps)?;
        Ok(linear::linear(&y, &self.out_proj, None)?)
    }
}
