//! The machines that can be emulated.

/// A GPU's compute capability and the limits that come with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// Major and minor compute capability.
    pub capability: (u32, u32),
    /// Whether code for this architecture alone (`sm_90a`) runs.
    pub specific: bool,
    /// Shared memory that a block may ask for, in bytes.
    pub max_shared_bytes: u64,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_bytes_per_multiprocessor: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Threads that a multiprocessor holds.
    pub threads_per_multiprocessor: u32,
}

impl Architecture {
    /// Shared memory that a block gets without asking for more, in bytes.
    pub const DEFAULT_SHARED_BYTES: u64 = 48 << 10;
    /// Threads of a block.
    pub const MAX_THREADS: u32 = 1024;
    /// Threads of a block, per axis.
    pub const MAX_BLOCK: [u32; 3] = [1024, 1024, 64];
    /// Blocks of a grid, per axis.
    pub const MAX_GRID: [u32; 3] = [i32::MAX as u32, 65535, 65535];
    /// 32-bit registers of a block.
    pub const MAX_REGISTERS: u32 = 65536;
    /// Bytes of parameters of a launch.
    pub const MAX_PARAMETER_BYTES: u64 = 4096;

    /// The architecture that `name`, as `sm_80` or `sm_90a`, stands for.
    pub fn parse(name: &str) -> Option<Self> {
        let digits = name.strip_prefix("sm_")?;
        let (digits, specific) = match digits.strip_suffix(['a', 'f']) {
            Some(digits) => (digits, true),
            None => (digits, false),
        };
        // Shared memory of a block and of a multiprocessor in KiB, multiprocessors, threads of each.
        let (block, whole, multiprocessors, threads) = match digits {
            // Older than asynchronous copies: to see what a program says of it.
            "75" => (64, 64, 40, 1024),
            "80" => (163, 164, 108, 2048),
            "86" => (99, 100, 84, 1536),
            "89" => (99, 100, 128, 1536),
            "90" => (227, 228, 132, 2048),
            "100" => (227, 228, 148, 2048),
            "120" => (99, 100, 170, 1536),
            _ => return None,
        };
        let number: u32 = digits.parse().ok()?;
        Some(Self {
            capability: (number / 10, number % 10),
            specific,
            max_shared_bytes: block << 10,
            shared_bytes_per_multiprocessor: whole << 10,
            multiprocessors,
            threads_per_multiprocessor: threads,
        })
    }

    /// Where a block's own shared memory begins: on newer machines, the system keeps what is before.
    pub fn shared_start(&self) -> u64 {
        if self.capability.0 >= 9 { 1024 } else { 0 }
    }

    /// Whether code with this `.target` runs here.
    pub fn runs(&self, target: &str) -> bool {
        let Some(name) = target.strip_prefix("sm_") else { return false };
        let exact = name.ends_with('a');
        let Ok(number) = name.trim_end_matches(['a', 'f']).parse::<u32>() else { return false };
        let own = self.capability.0 * 10 + self.capability.1;
        if exact { self.specific && number == own } else { number <= own }
    }
}

impl std::fmt::Display for Architecture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let suffix = if self.specific { "a" } else { "" };
        write!(formatter, "sm_{}{}{suffix}", self.capability.0, self.capability.1)
    }
}
