//! Quantizers and lookups made of other ops.

use super::{Metric, Nearest, nearest, table_of};
use crate::{Backend, Error, Float, Result, Tensor, Weight, attention, copy, elementwise, embedding, linear};

/// What [`grouped`] gives.
#[derive(Debug, Clone)]
pub struct Grouped<T: Float> {
    /// The codes side by side, `[.., groups * dim]`.
    pub y: Tensor<T>,
    /// `[.., groups]`.
    pub indices: Tensor<u32>,
    /// Squared distances, `[.., groups]`.
    pub distances: Tensor<f32>,
}

/// What [`residual`] gives.
#[derive(Debug, Clone)]
pub struct Residual<T: Float> {
    /// The sum of the stages' codes, `[.., dim]`.
    pub y: Tensor<T>,
    /// `[.., stages]`.
    pub indices: Tensor<u32>,
    /// Squared distances, `[.., stages]`: what each stage leaves over.
    pub distances: Tensor<f32>,
}

/// Product quantization: each group of channels by its own nearest code.
///
/// | operand     | shape                                            | element        | layout     |
/// |-------------|--------------------------------------------------|----------------|------------|
/// | `x`         | `[.., groups * dim]`                             | f32, f16, bf16 | any        |
/// | `codebooks` | `[groups, codes, dim]`, or `[1, codes, dim]` for all | f32, f16, bf16 | any    |
/// | returned    | see [`Grouped`]                                  |                | contiguous |
///
/// # Errors
/// [`Error::Shape`] if the channels are not groups of `dim`, or the codebooks not one or one each; as [`nearest`].
///
/// # Source
/// Jegou et al. 2011, doi:10.1109/TPAMI.2010.57, section II.
pub fn grouped<T: Float>(x: &Tensor<T>, codebooks: &Weight) -> Result<Grouped<T>> {
    const OP: &str = "vq::grouped";
    let (Some((&channels, outer)), &[books, codes, dim]) = (x.shape().split_last(), codebooks.shape()) else {
        return Err(Error::shape(OP, "codebooks", codebooks.shape(), "[groups or 1, codes, dim]"));
    };
    let groups = channels.checked_div(dim).unwrap_or(0);
    if groups == 0 || groups * dim != channels || (books != groups && books != 1) {
        let expected = format!("[groups or 1, codes, dim] with {channels} channels in groups of dim");
        return Err(Error::shape(OP, "codebooks", codebooks.shape(), expected));
    }
    let table = table_of(OP, codebooks)?;
    let parts = x.reshape(&[outer, &[groups, dim]].concat())?;
    let book: Weight = if books == 1 { table.reshape(&[codes, dim])?.into() } else { table.into() };
    let Nearest { indices, distances } = nearest(&parts, &book, Metric::L2, 1)?;
    let shape = [outer, &[groups]].concat();
    let indices = indices.reshape(&shape)?;
    let y = lookup(&book, &indices, false)?.reshape(x.shape())?;
    Ok(Grouped { y, indices, distances: distances.reshape(&shape)? })
}

/// Residual quantization: each stage quantizes what the stages before it left over.
///
/// | operand     | shape                                                | element        | layout     |
/// |-------------|------------------------------------------------------|----------------|------------|
/// | `x`         | `[.., dim]`                                          | f32, f16, bf16 | any        |
/// | `codebooks` | `[stages, codes, dim]`, or `[1, codes, dim]` for all | f32, f16, bf16 | any        |
/// | returned    | see [`Residual`]                                     |                | contiguous |
///
/// What is left over stays in f32.
///
/// # Errors
/// [`Error::Shape`] if the codebooks are not one or one for each of `stages`; as [`nearest`].
///
/// # Source
/// Lee et al. 2022, arXiv:2203.01941, section 3.1.
pub fn residual<T: Float>(x: &Tensor<T>, codebooks: &Weight, stages: usize) -> Result<Residual<T>> {
    fn with<T: Float, W: Float>(x: &Tensor<T>, codebooks: &Weight, stages: usize) -> Result<Residual<T>> {
        const OP: &str = "vq::residual";
        let (Some((_, outer)), &[books, codes, dim]) = (x.shape().split_last(), codebooks.shape()) else {
            return Err(Error::shape(OP, "codebooks", codebooks.shape(), "[stages or 1, codes, dim]"));
        };
        if books != stages && books != 1 {
            let expected = format!("[{stages} or 1, codes, dim]");
            return Err(Error::shape(OP, "codebooks", codebooks.shape(), expected));
        }
        let table = table_of(OP, codebooks)?;
        let mut rest: Tensor<W> = copy::convert(x)?;
        let mut sum = Tensor::<W>::zeros(x.device(), x.shape())?;
        let each = [outer, &[stages]].concat();
        let mut indices = Tensor::zeros(x.device(), &each)?;
        let mut distances = Tensor::zeros(x.device(), &each)?;
        for stage in 0..stages {
            let book = table.narrow(0, if books == 1 { 0 } else { stage }, 1)?.reshape(&[codes, dim])?.into();
            let found = nearest(&rest, &book, Metric::L2, 1)?;
            let code: Tensor<W> = lookup(&book, &found.indices.reshape(outer)?, false)?;
            rest = elementwise::scale_add(&rest, 1.0, &code, -1.0)?;
            sum = elementwise::add(&sum, &code)?;
            copy::copy_into_slice(&found.indices, &mut indices, outer.len(), stage)?;
            copy::copy_into_slice(&found.distances, &mut distances, outer.len(), stage)?;
        }
        Ok(Residual { y: copy::convert(&sum)?, indices, distances })
    }
    match x.device().backend() {
        Backend::Reference => with::<T, f64>(x, codebooks, stages),
        _ => with::<T, f32>(x, codebooks, stages),
    }
}

/// The codes of indices.
///
/// | operand     | shape                                     | element        | layout     |
/// |-------------|-------------------------------------------|----------------|------------|
/// | `codebook`  | `[codes, dim]`, or `[groups, codes, dim]` | any            | any        |
/// | `indices`   | `[..]`, or `[.., groups]`                 | u32            | any        |
/// | returned    | `[.., dim]`, or `[.., groups, dim]`       | f32, f16, bf16 | contiguous |
///
/// `normalise`: each code is divided by its length, or by `1e-12` if that is larger, in f32.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit; as [`embedding::embedding`] for an index that has no code.
pub fn lookup<T: Float>(codebook: &Weight, indices: &Tensor<u32>, normalise: bool) -> Result<Tensor<T>> {
    const OP: &str = "lookup";
    fn wide<T: Float, W: Float>(codebook: &Weight, indices: &Tensor<u32>) -> Result<Tensor<T>> {
        copy::convert(&attention::l2_normalise(&lookup::<W>(codebook, indices, false)?)?)
    }
    if normalise {
        return match indices.device().backend() {
            Backend::Reference => wide::<T, f64>(codebook, indices),
            _ => wide::<T, f32>(codebook, indices),
        };
    }
    let &[groups, codes, dim] = codebook.shape() else { return embedding::embedding(codebook, indices) };
    let Some((_, outer)) = indices.shape().split_last().filter(|(last, _)| **last == groups) else {
        return Err(Error::shape(OP, "indices", indices.shape(), format!("[.., {groups}]: one for each group")));
    };
    // In f32, whose rows lie apart whatever their length.
    let table = table_of(OP, codebook)?;
    let mut y = Tensor::<f32>::zeros(indices.device(), &[outer, &[groups, dim]].concat())?;
    for group in 0..groups {
        let book = table.narrow(0, group, 1)?.reshape(&[codes, dim])?.into();
        let own: Tensor<f32> = embedding::embedding(&book, &indices.narrow(outer.len(), group, 1)?)?;
        copy::copy_into_slice(&own, &mut y, outer.len(), group)?;
    }
    copy::convert(&y)
}

/// A mixture of all codes, the nearer the more.
///
/// `y = sum over i of p[i] codebook[i]` with `p = softmax over i of -|x - codebook[i]|² / temperature`.
///
/// | operand    | shape          | element        | layout     |
/// |------------|----------------|----------------|------------|
/// | `x`        | `[.., dim]`    | f32, f16, bf16 | any        |
/// | `codebook` | `[codes, dim]` | f32, f16, bf16 | any        |
/// | returned   | as `x`         | as `x`         | contiguous |
///
/// It is attention to the codes, with `2 / temperature` for a scale and `-|codebook[i]|² / temperature` for a bias, so no
/// matrix of weights is written. (A mixture by weights that are at hand is [`linear::matmul`].)
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit or `dim` is above [`attention::MAX_HEAD_DIM`]; [`Error::Value`] if the
/// temperature is not a finite number above 0.
///
/// # Source
/// Kou et al. 2024, arXiv:2412.00127, section 3.2.
pub fn soft_lookup<T: Float>(x: &Tensor<T>, codebook: &Weight, temperature: f32) -> Result<Tensor<T>> {
    fn with<T: Float, W: Float>(x: &Tensor<T>, codebook: &Weight, temperature: f32) -> Result<Tensor<T>> {
        const OP: &str = "soft_lookup";
        let (Some((&dim, outer)), &[codes, code_dim]) = (x.shape().split_last(), codebook.shape()) else {
            return Err(Error::shape(OP, "codebook", codebook.shape(), "[codes, dim]"));
        };
        if dim != code_dim || codes == 0 {
            let expected = format!("[at least 1, {dim}], as x is {:?}", x.shape());
            return Err(Error::shape(OP, "codebook", codebook.shape(), expected));
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(Error::value(OP, "temperature", temperature, "a finite number above 0"));
        }
        let table = table_of(OP, codebook)?;
        let squares = row_sums(&elementwise::mul(&table, &table)?)?;
        let bias = elementwise::scale_add(&squares, -1.0 / temperature, &squares, 0.0)?;
        let vectors: usize = outer.iter().product();
        let q = copy::convert::<T, W>(x)?.reshape(&[1, 1, vectors, dim])?;
        let k = copy::convert::<f32, W>(&table)?.reshape(&[1, 1, codes, dim])?;
        let options = attention::Options::new(2.0 / temperature).bias(bias.reshape(&[1, codes])?);
        let y = attention::attention(&q, &k, &k, &options)?.y;
        copy::convert(&y.reshape(x.shape())?)
    }
    match x.device().backend() {
        Backend::Reference => with::<T, f64>(x, codebook, temperature),
        _ => with::<T, f32>(x, codebook, temperature),
    }
}

/// Squared distances of vectors to what became of them: `[..]` from two of `[.., dim]`, computed in f32.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ or have no axis; [`Error::Place`] if a device differs.
///
/// # Source
/// Van den Oord et al. 2017, arXiv:1711.00937, the last term of equation 3, for each vector.
pub fn commitment<T: Float>(x: &Tensor<T>, y: &Tensor<T>) -> Result<Tensor<f32>> {
    fn with<T: Float, W: Float>(x: &Tensor<T>, y: &Tensor<T>) -> Result<Tensor<f32>> {
        let difference: Tensor<W> = elementwise::scale_add(&copy::convert(x)?, 1.0, &copy::convert(y)?, -1.0)?;
        copy::convert(&row_sums(&elementwise::mul(&difference, &difference)?)?)
    }
    match x.device().backend() {
        Backend::Reference => with::<T, f64>(x, y),
        _ => with::<T, f32>(x, y),
    }
}

/// `[..]` from `[.., channels]`.
fn row_sums<T: Float>(x: &Tensor<T>) -> Result<Tensor<T>> {
    let Some((&channels, outer)) = x.shape().split_last() else {
        return Err(Error::shape("commitment", "x", x.shape(), "at least one axis"));
    };
    let ones = Tensor::from_vec(x.device(), &[1, channels], vec![1.0f32; channels])?.into();
    linear::linear(x, &ones, None)?.reshape(outer)
}
