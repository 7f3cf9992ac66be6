//! One op on the CPU: `cargo run --example norm_on_cpu`.

use smalti::{Device, Result, Tensor, norm};

fn main() -> Result<()> {
    let device = Device::cpu();
    let x = Tensor::from_slice(&device, &[2, 4], &[1.0f32, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0])?;
    let weight = Tensor::from_slice(&device, &[4], &[1.0f32; 4])?;
    let y = norm::rms_norm(&x, Some(&weight), 1e-5)?;
    for row in y.to_vec()?.chunks(4) {
        println!("{row:.4?}");
    }
    Ok(())
}
