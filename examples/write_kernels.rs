//! Writes the text of every kernel into a folder, to read or to load elsewhere.
//!
//! `cargo run --example write_kernels -- /tmp/kernels`

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "kernels".to_owned()));
    std::fs::create_dir_all(&folder)?;
    for (kernels, extension) in [(smalti::kernels::wgsl(), "wgsl"), (smalti::kernels::cuda(), "ptx")] {
        for kernel in kernels {
            std::fs::write(folder.join(format!("{}.{extension}", kernel.entry)), kernel.source)?;
        }
        println!("{} .{extension} in {}", kernels.len(), folder.display());
    }
    Ok(())
}
