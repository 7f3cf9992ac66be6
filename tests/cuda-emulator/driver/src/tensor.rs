//! Tensor maps.

use std::ffi::c_void;

use cuda_emulator::{Swizzle, TensorMap};

use crate::entries;
use crate::error::{Code, Result};
use crate::state::driver;

/// `CUtensorMap`.
#[repr(C, align(64))]
struct Encoded([u8; TensorMap::BYTES]);

/// Bytes of an element of each `CUtensorMapDataType`.
const ELEMENTS: [u32; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4];

/// Swizzles by `CUtensorMapSwizzle`.
const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::Bytes32, Swizzle::Bytes64, Swizzle::Bytes128];

unsafe fn list<T: Copy>(from: *const T, count: usize) -> Result<Vec<T>> {
    if from.is_null() && count != 0 {
        return Err(Code::INVALID_VALUE);
    }
    Ok((0..count).map(|at| from.add(at).read()).collect())
}

entries! {
    fn cuTensorMapEncodeTiled(
        to: *mut Encoded, element: u32, rank: u32, address: *mut c_void, extents: *const u64, strides: *const u64,
        box_extents: *const u32, steps: *const u32, interleave: u32, swizzle: u32, promotion: u32, fill: u32,
    ) {
        if driver()?.machine.architecture().capability.0 < 9 {
            return Err(Code::NOT_SUPPORTED);
        }
        let rank = rank as usize;
        let invalid = to.is_null()
            || !to.is_aligned()
            || !(1..=5).contains(&rank)
            || interleave > 2
            || promotion > 3
            || fill > 1;
        let element_bytes = ELEMENTS.get(element as usize);
        let (Some(element_bytes), Some(swizzle), false) = (element_bytes, SWIZZLES.get(swizzle as usize), invalid)
        else {
            return Err(Code::INVALID_VALUE);
        };
        let steps = list(steps, rank)?;
        if steps.iter().any(|step| !(1..=8).contains(step)) {
            return Err(Code::INVALID_VALUE);
        }
        if interleave != 0 || fill != 0 || steps.iter().any(|step| *step != 1) {
            eprintln!("cuda emulator: tensor maps with an interleave, NaN outside or steps are not supported");
            return Err(Code::NOT_SUPPORTED);
        }
        let map = TensorMap {
            address: address.addr() as u64,
            element_bytes: *element_bytes,
            extents: list(extents, rank)?,
            strides: list(strides, rank - 1)?,
            box_extents: list(box_extents, rank)?,
            swizzle: *swizzle,
        };
        let bytes = map.encode().map_err(|error| {
            eprintln!("cuda emulator: {error}");
            Code::INVALID_VALUE
        })?;
        to.write(Encoded(bytes));
        Ok(())
    }
}
