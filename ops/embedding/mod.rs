//! Rows of a learned table.

#[cfg(feature = "cpu")]
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod reference;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::device::Handle;
use crate::{Error, Float, Result, Tensor, Weight};

/// Looks up a row of `table` for each id.
///
/// `y[.., c] = table[ids[..], c]`
///
/// | operand  | shape                 | element              | layout     |
/// |----------|-----------------------|----------------------|------------|
/// | `table`  | `[entries, channels]` | f32, f16, bf16, int8 | any        |
/// | `ids`    | `[..]`                | u32                  | any        |
/// | returned | `[.., channels]`      | f32, f16, bf16       | contiguous |
///
/// An id that is not in the table is an error where ids can be read without waiting, on the reference and the CPU.
/// On a GPU its row is zeros.
///
/// # Errors
/// [`Error::Shape`] if `table` has not two axes; [`Error::Value`] for an id that is not in the table, on host
/// devices; [`Error::Place`] if the operands are on different devices.
///
/// # Source
/// As `torch.nn.functional.embedding`.
pub fn embedding<T: Float>(table: &Weight, ids: &Tensor<u32>) -> Result<Tensor<T>> {
    const OP: &str = "embedding";
    let &[entries, channels] = table.shape() else {
        return Err(Error::shape(OP, "table", table.shape(), "two axes: entries and channels"));
    };
    table.device().check_same(OP, "ids", ids.device())?;
    let table = table.contiguous()?;
    let ids = ids.contiguous()?;
    let mut y = Tensor::empty(ids.device(), &[ids.shape(), &[channels]].concat())?;
    match ids.device().handle() {
        Handle::Reference => {
            check_ids(OP, &ids, entries)?;
            reference::embedding(&table, ids.host(), y.host_mut());
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            check_ids(OP, &ids, entries)?;
            cpu::embedding(cpu, &table, ids.host(), y.host_mut());
        }
        #[cfg(feature = "cuda")]
        Handle::Cuda(cuda) => {
            let (values, scale) = table.cuda_operands();
            cuda::embedding(&cuda.stream(), ids.cuda_operand(), values, scale, y.cuda_operand())?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(gpu) => {
            let (values, scale) = crate::linear::wgpu::operands(&table);
            gpu.record(|recorder| wgpu::embedding(recorder, ids.operand(), values, scale, y.operand()))?;
        }
    }
    Ok(y)
}

/// That every id is in the table.
fn check_ids(op: &'static str, ids: &Tensor<u32>, entries: usize) -> Result<()> {
    let ids = ids.host().as_slice().expect("contiguous");
    match ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= entries)) {
        Some(id) => Err(Error::value(op, "an id", id, format!("less than {entries}, the entries of the table"))),
        None => Ok(()),
    }
}
