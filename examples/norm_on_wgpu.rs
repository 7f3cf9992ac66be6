//! The same op on a GPU: `cargo run --features wgpu --example norm_on_wgpu`.
//!
//! Ops only record; the work is submitted, and waited for, when the result is read.

use smalti::{Device, Result, Tensor, norm};

fn main() -> Result<()> {
    // A software adapter will do here; `Device::best()` would never choose one.
    let device = Device::wgpu(0)?;
    let x = Tensor::from_slice(&device, &[2, 4], &[1.0f32, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0])?;
    let weight = Tensor::from_slice(&device, &[4], &[1.0f32; 4])?;
    let y = norm::rms_norm(&x, Some(&weight), 1e-5)?;
    for row in y.to_vec()?.chunks(4) {
        println!("{row:.4?}");
    }
    Ok(())
}
