//! Tensor maps: how bulk copies see a tensor in device memory.

use thiserror::Error;

/// What a tensor map begins with here. The rest of its 128 bytes is the emulator's own format too: on a device they are
/// as opaque.
const MAGIC: [u8; 4] = *b"TMAP";

/// How a box's 16-byte pieces are permuted in shared memory, so that columns meet no bank conflicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Swizzle {
    /// They are not.
    #[default]
    None,
    /// Within 32 bytes.
    Bytes32,
    /// Within 64 bytes.
    Bytes64,
    /// Within 128 bytes.
    Bytes128,
}

impl Swizzle {
    /// Bytes within which pieces are permuted.
    pub fn span(self) -> u64 {
        match self {
            Self::None => 16,
            Self::Bytes32 => 32,
            Self::Bytes64 => 64,
            Self::Bytes128 => 128,
        }
    }

    /// Where what would lie at an address of shared memory does lie: bits 4 to 6 (or 5, or 4) change with bits 7 to 9
    /// (or 8, or 7). `base` is taken from bits 7 to 9 before.
    pub(crate) fn apply(self, address: u64, base: u64) -> u64 {
        let row = (address >> 7).wrapping_sub(base) & (self.span() / 16 - 1);
        address ^ row << 4
    }
}

/// A tensor in device memory and the box that a bulk copy moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Where the tensor starts.
    pub address: u64,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Elements along each axis, the fastest first.
    pub extents: Vec<u64>,
    /// Bytes from one element to the next along each axis but the fastest.
    pub strides: Vec<u64>,
    /// Elements of the box along each axis.
    pub box_extents: Vec<u32>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
}

/// Why a tensor map cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[allow(missing_docs)]
pub enum TensorMapError {
    #[error("a tensor of {0} axes: 1 to 5 are possible")]
    Rank(usize),
    #[error("elements of {0} bytes: 1, 2, 4 or 8 are possible")]
    Element(u32),
    #[error("the tensor's address {0:#x} is not a multiple of 16")]
    Address(u64),
    #[error("{extent} elements along axis {axis}: 1 to 2^32 are possible")]
    Extent { axis: usize, extent: u64 },
    #[error("{stride} bytes along axis {axis}: a multiple of 16 below 2^40 is needed")]
    Stride { axis: usize, stride: u64 },
    #[error("a box of {extent} along axis {axis}: 1 to 256 are possible")]
    Box { axis: usize, extent: u32 },
    #[error("rows of {0} bytes in the box: a multiple of 16 is needed")]
    BoxRow(u64),
    #[error("rows of {bytes} bytes in the box: at most {span} can be swizzled so")]
    Swizzle { bytes: u64, span: u64 },
}

impl TensorMap {
    /// Bytes of an encoded tensor map.
    pub const BYTES: usize = 128;
    /// What its address must be a multiple of.
    pub const ALIGN: u64 = 64;

    /// The map as kernels get it.
    ///
    /// # Errors
    /// What the driver refuses, too.
    pub fn encode(&self) -> Result<[u8; Self::BYTES], TensorMapError> {
        let rank = self.extents.len();
        if !(1..=5).contains(&rank) || self.box_extents.len() != rank || self.strides.len() + 1 != rank {
            return Err(TensorMapError::Rank(rank));
        }
        if !matches!(self.element_bytes, 1 | 2 | 4 | 8) {
            return Err(TensorMapError::Element(self.element_bytes));
        }
        if !self.address.is_multiple_of(16) {
            return Err(TensorMapError::Address(self.address));
        }
        for (axis, extent) in self.extents.iter().enumerate() {
            if *extent == 0 || *extent > 1 << 32 {
                return Err(TensorMapError::Extent { axis, extent: *extent });
            }
        }
        for (axis, stride) in self.strides.iter().enumerate() {
            if !stride.is_multiple_of(16) || *stride >= 1 << 40 {
                return Err(TensorMapError::Stride { axis: axis + 1, stride: *stride });
            }
        }
        for (axis, extent) in self.box_extents.iter().enumerate() {
            if !(1..=256).contains(extent) {
                return Err(TensorMapError::Box { axis, extent: *extent });
            }
        }
        let bytes = self.row_bytes();
        if !bytes.is_multiple_of(16) {
            return Err(TensorMapError::BoxRow(bytes));
        }
        if self.swizzle != Swizzle::None && bytes > self.swizzle.span() {
            return Err(TensorMapError::Swizzle { bytes, span: self.swizzle.span() });
        }
        let mut out = Vec::with_capacity(Self::BYTES);
        out.extend(MAGIC);
        out.extend([rank as u8, self.element_bytes as u8, self.swizzle.span() as u8, 0]);
        out.extend(self.address.to_le_bytes());
        // One less, so that 2^32 fits.
        out.extend(self.extents.iter().flat_map(|extent| ((extent - 1) as u32).to_le_bytes()));
        out.extend(self.strides.iter().flat_map(|stride| stride.to_le_bytes()));
        out.extend(self.box_extents.iter().flat_map(|extent| (*extent as u16).to_le_bytes()));
        out.resize(Self::BYTES, 0);
        Ok(out.try_into().expect("at most 78 bytes, filled up to 128"))
    }

    /// The map of these bytes, if they are one.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, mut rest) = bytes.split_at_checked(8)?;
        if head[..4] != MAGIC {
            return None;
        }
        let rank = usize::from(head[4]);
        let mut number = |bytes: usize| {
            let (number, left) = rest.split_at_checked(bytes)?;
            rest = left;
            Some(number.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte)))
        };
        Some(Self {
            element_bytes: u32::from(head[5]),
            swizzle: match head[6] {
                128 => Swizzle::Bytes128,
                64 => Swizzle::Bytes64,
                32 => Swizzle::Bytes32,
                _ => Swizzle::None,
            },
            address: number(8)?,
            extents: (0..rank).map(|_| number(4).map(|extent| extent + 1)).collect::<Option<_>>()?,
            strides: (1..rank).map(|_| number(8)).collect::<Option<_>>()?,
            box_extents: (0..rank).map(|_| number(2).map(|extent| extent as u32)).collect::<Option<_>>()?,
        })
    }

    /// Bytes of a row of the box.
    pub(crate) fn row_bytes(&self) -> u64 {
        u64::from(self.box_extents.first().copied().unwrap_or(0)) * u64::from(self.element_bytes)
    }

    /// Rows of the box.
    pub(crate) fn rows(&self) -> u64 {
        self.box_extents.iter().skip(1).map(|extent| u64::from(*extent)).product()
    }

    /// Of a row of the box that starts at `start`: where in device memory its part inside the tensor begins, how many
    /// bytes of the row come before it, and how many it has.
    pub(crate) fn row(&self, start: &[i64], row: u64) -> (u64, u64, u64) {
        let mut left = row;
        let mut address = self.address;
        let mut inside = true;
        let outer = self.extents.iter().zip(&self.box_extents).zip(start).skip(1);
        for (((extent, box_extent), start), stride) in outer.zip(&self.strides) {
            let at = start + (left % u64::from(*box_extent)) as i64;
            left /= u64::from(*box_extent);
            inside &= (0..*extent as i64).contains(&at);
            address = address.wrapping_add((at as u64).wrapping_mul(*stride));
        }
        let element = u64::from(self.element_bytes);
        let before = (-start[0]).clamp(0, i64::from(self.box_extents[0]));
        let end = (self.extents[0] as i64 - start[0]).clamp(before, i64::from(self.box_extents[0]));
        if !inside || before == end {
            return (address, 0, 0);
        }
        let first = (start[0] + before) as u64;
        (address.wrapping_add(first * element), before as u64 * element, (end - before) as u64 * element)
    }
}
