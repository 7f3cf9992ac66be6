//! The two kinds of files: their headers are read at once, their tensors' bytes when asked for.
//!
//! PyTorch's files are read by the crate `pytorch-reader`. It interprets the few calls that make up a state dict and
//! keeps the name of every other; nothing is imported and nothing runs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use pytorch_reader::{PickleValue, PytorchReader};
use safetensors::tensor::Metadata;
use smalti::Dtype;

use super::Stored;

/// What a file holds, or why it cannot be read.
type Contents = Result<(BTreeMap<String, Stored>, BTreeMap<String, String>), String>;

/// Where a tensor's bytes are.
#[derive(Debug, Clone)]
pub(super) enum Bytes {
    Memory(Arc<Cow<'static, [u8]>>, Range<usize>),
    File(Arc<Mutex<File>>, Range<u64>),
    Pytorch(pytorch_reader::Tensor),
}

/// The longest header of a safetensors file, as the format's own library has it.
const LONGEST_HEADER: u64 = 100_000_000;

/// What besides tensors may stand in a PyTorch file: plain values that training scripts save beside the weights.
const HARMLESS: [&str; 9] = [
    "argparse.Namespace",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
];

impl Bytes {
    pub(super) fn read(&self) -> io::Result<Cow<'_, [u8]>> {
        match self {
            Self::Memory(bytes, range) => Ok(Cow::Borrowed(&bytes[range.clone()])),
            Self::File(file, range) => {
                let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
                let mut bytes = vec![0; length];
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(range.start))?;
                file.read_exact(&mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
            Self::Pytorch(tensor) => tensor.read().map(Cow::Owned),
        }
    }
}

/// Reads the header of a file of either kind.
pub(super) fn open(path: &Path) -> Contents {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    let mut start = Vec::new();
    (&mut file).take(9).read_to_end(&mut start).map_err(|error| error.to_string())?;
    let header_length = start.first_chunk::<8>().map_or(u64::MAX, |first| u64::from_le_bytes(*first));
    if header_length > LONGEST_HEADER || start.get(8) != Some(&b'{') {
        // A zip archive, or a pickle that tells its protocol.
        return match start.as_slice() {
            [b'P', b'K', 3, 4, ..] | [0x80, 0..=5, ..] => pytorch(path),
            _ if length < 9 => Err(format!("not a whole safetensors file: {length} bytes")),
            _ => Err("neither a safetensors file nor one of PyTorch".to_owned()),
        };
    }
    if header_length > length - 8 {
        return Err(format!("not a whole safetensors file: a header of {header_length} bytes in {length} bytes"));
    }
    file.seek(SeekFrom::Start(8)).map_err(|error| error.to_string())?;
    let mut header = Vec::new();
    (&mut file).take(header_length).read_to_end(&mut header).map_err(|error| error.to_string())?;
    let file = Arc::new(Mutex::new(file));
    safetensors(&header, length, |range| Bytes::File(Arc::clone(&file), range))
}

/// Reads the header of a safetensors file in memory.
pub(super) fn from_memory(bytes: &Arc<Cow<'static, [u8]>>) -> Contents {
    let length = bytes.len() as u64;
    let header_length = bytes.first_chunk::<8>().map(|first| u64::from_le_bytes(*first));
    let header = header_length.and_then(|length| bytes.get(8..usize::try_from(length).ok()?.checked_add(8)?));
    let header = header.ok_or("not a whole safetensors file")?;
    safetensors(header, length, |range| {
        let within = |place: u64| usize::try_from(place).expect("the tensor lies within the bytes");
        Bytes::Memory(Arc::clone(bytes), within(range.start)..within(range.end))
    })
}

/// The tensors of a safetensors header in a file of `length` bytes.
fn safetensors(header: &[u8], length: u64, place: impl Fn(Range<u64>) -> Bytes) -> Contents {
    // This checks that offsets follow on each other and fit shapes and types.
    let header_length = header.len() as u64;
    let metadata: Metadata =
        serde_json::from_slice(header).map_err(|error| format!("not a whole safetensors file: {error}"))?;
    let start = header_length + 8;
    let mut tensors = BTreeMap::new();
    for (tensor, info) in metadata.tensors() {
        let (from, to) = info.data_offsets;
        let end = start.checked_add(to as u64).filter(|end| *end <= length).ok_or_else(|| {
            format!(
                "not a whole safetensors file: tensor \"{tensor}\" claims bytes {from}..{to} after the header, the \
                 file holds {}: download cut short?",
                length - start
            )
        })?;
        let dtype = match info.dtype {
            safetensors::Dtype::F64 => Ok(Dtype::F64),
            safetensors::Dtype::F32 => Ok(Dtype::F32),
            safetensors::Dtype::F16 => Ok(Dtype::F16),
            safetensors::Dtype::BF16 => Ok(Dtype::Bf16),
            safetensors::Dtype::I32 => Ok(Dtype::I32),
            safetensors::Dtype::U32 => Ok(Dtype::U32),
            safetensors::Dtype::I8 => Ok(Dtype::I8),
            safetensors::Dtype::U8 | safetensors::Dtype::BOOL => Ok(Dtype::U8),
            other => Err(format!("{other:?}").to_lowercase()),
        };
        let bytes = place(start + from as u64..end);
        tensors.insert(tensor.clone(), Stored { dtype, shape: info.shape.clone(), bytes });
    }
    Ok((tensors, metadata.metadata().clone().unwrap_or_default().into_iter().collect()))
}

/// The tensors of a PyTorch file under their dotted paths through its dictionaries.
fn pytorch(path: &Path) -> Contents {
    let wrong = |error: pytorch_reader::PytorchError| format!("not a whole PyTorch file: {error}");
    let value = PytorchReader::read_pickle_data(path, None).map_err(wrong)?;
    let mut calls = Vec::new();
    foreign(&value, &mut calls);
    if let Some(call) = calls.first() {
        return Err(format!("its pickle asks for {call}, which no weights need: refused, and nothing was run"));
    }
    let tensors = PytorchReader::new(path).map_err(wrong)?.into_tensors().into_iter().map(|(name, tensor)| {
        use pytorch_reader::DType;
        let dtype = match tensor.dtype() {
            DType::F64 => Ok(Dtype::F64),
            DType::F32 => Ok(Dtype::F32),
            DType::F16 => Ok(Dtype::F16),
            DType::BF16 => Ok(Dtype::Bf16),
            DType::I32 => Ok(Dtype::I32),
            DType::U32 => Ok(Dtype::U32),
            DType::I8 => Ok(Dtype::I8),
            DType::U8 | DType::Bool => Ok(Dtype::U8),
            other => Err(format!("{other:?}").to_lowercase()),
        };
        (name, Stored { dtype, shape: tensor.shape().to_vec(), bytes: Bytes::Pytorch(tensor) })
    });
    Ok((tensors.collect(), BTreeMap::new()))
}

/// Notes every Python type or function in a pickle's value that is neither a tensor's nor harmless.
fn foreign(value: &PickleValue, found: &mut Vec<String>) {
    match value {
        PickleValue::List(items) => items.iter().for_each(|item| foreign(item, found)),
        PickleValue::Dict(items) => items.values().for_each(|item| foreign(item, found)),
        PickleValue::Unsupported(name) => {
            // Types of the language itself have no module in their name.
            let known = name.rsplit_once('.').is_none_or(|(module, _)| module == "torch");
            if !known && !HARMLESS.contains(&name.as_str()) {
                found.push(name.clone());
            }
        }
        _ => {}
    }
}
