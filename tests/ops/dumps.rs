//! Dumps of PyTorch: what each op must give, from their own inputs. `SMALTI_DUMPS` names a folder with more of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use smalti::{Device, Float, Tensor, bf16, f16};

/// One dump: a case of one op.
pub struct Dump {
    pub name: String,
    pub op: String,
    pub params: serde_json::Value,
    bytes: Vec<u8>,
}

/// The dumps of one family, `FAMILY.CASE.safetensors`.
pub fn of_family(family: &str) -> Vec<Dump> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dumps/ops");
    let more = std::env::var_os("SMALTI_DUMPS").map(PathBuf::from);
    let mut paths: Vec<PathBuf> = [Some(own), more]
        .into_iter()
        .flatten()
        .flat_map(|folder| std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{family}."))))
        .collect();
    paths.sort();
    paths.iter().map(|path| Dump::read(path)).collect()
}

impl Dump {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let metadata: &HashMap<String, String> = header.metadata().as_ref().expect("a dump has metadata");
        Self {
            name: path.file_stem().expect("a file").to_string_lossy().into_owned(),
            op: metadata["op"].clone(),
            params: serde_json::from_str(&metadata["params"]).expect("params are JSON"),
            bytes,
        }
    }

    /// A tensor's shape and values, if it is there.
    pub fn values(&self, name: &str) -> Option<(Vec<usize>, Vec<f64>)> {
        let file = SafeTensors::deserialize(&self.bytes).expect("read before");
        let tensor = file.tensor(name).ok()?;
        let data = tensor.data();
        let values = match tensor.dtype() {
            Dtype::F32 => data.chunks(4).map(|x| f64::from(f32::from_le_bytes([x[0], x[1], x[2], x[3]]))).collect(),
            Dtype::I32 => data.chunks(4).map(|x| f64::from(i32::from_le_bytes([x[0], x[1], x[2], x[3]]))).collect(),
            Dtype::F16 => data.chunks(2).map(|x| f16::from_le_bytes([x[0], x[1]]).to_f64()).collect(),
            Dtype::BF16 => data.chunks(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f64()).collect(),
            Dtype::U8 => data.iter().map(|x| f64::from(*x)).collect(),
            other => panic!("{}: {name} is {other:?}", self.name),
        };
        Some((tensor.shape().to_vec(), values))
    }

    /// A tensor on a device, if it is there.
    pub fn tensor<T: Float>(&self, name: &str, device: &Device) -> Option<Tensor<T>> {
        let (shape, values) = self.values(name)?;
        Some(crate::common::tensor(device, &shape, &values))
    }

    pub fn dtype(&self) -> &str {
        self.params["dtype"].as_str().expect("every case has a dtype")
    }

    pub fn usize(&self, param: &str) -> Option<usize> {
        self.params[param].as_u64().map(|value| value as usize)
    }

    #[expect(clippy::cast_possible_truncation, reason = "options are f32")]
    pub fn f32(&self, param: &str) -> Option<f32> {
        self.params[param].as_f64().map(|value| value as f32)
    }

    /// The largest error of the naive result, the bound of a half type's output.
    pub fn naive_error(&self, output: &str) -> f64 {
        self.params["naive_max_abs_error"][output].as_f64().unwrap_or(0.0)
    }
}
