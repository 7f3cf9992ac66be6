//! A copy of a row per id.

use crate::backend::cpu::Cpu;
use crate::{Float, View, ViewMut, Weight};

/// [`super::embedding`] over contiguous operands, with ids that are all in the table.
///
/// # Panics
/// If an id is not in the table, or the table is on a GPU.
pub fn embedding<T: Float>(cpu: &Cpu, table: &Weight, ids: View<'_, u32>, mut y: ViewMut<'_, T>) {
    let channels = table.shape()[1];
    let ids = ids.as_slice().expect("contiguous");
    let y = y.as_mut_slice().expect("contiguous");
    let gather = Gather { cpu, ids, channels };
    match table {
        Weight::F32(table) => gather.rows(table.host(), y, |_, from, to| to.copy_from_slice(from)),
        Weight::F16(table) => gather.rows(table.host(), y, |_, from, to| Float::widen(from, to)),
        Weight::Bf16(table) => gather.rows(table.host(), y, |_, from, to| Float::widen(from, to)),
        Weight::Int8 { values, scale } => {
            let scale = scale.host().as_slice().expect("contiguous");
            gather.rows(values.host(), y, |id, from: &[i8], to| {
                from.iter().zip(to).for_each(|(from, to)| *to = f32::from(*from) * scale[id]);
            });
        }
    }
}

struct Gather<'a> {
    cpu: &'a Cpu,
    ids: &'a [u32],
    channels: usize,
}

impl Gather<'_> {
    fn rows<W: crate::Element, T: Float>(
        &self,
        table: View<'_, W>,
        y: &mut [T],
        widen: impl Fn(usize, &[W], &mut [f32]) + Send + Sync,
    ) {
        let table = table.as_slice().expect("contiguous");
        self.cpu.rows(y, self.channels, |row, y| {
            let id = self.ids[row] as usize;
            let from = &table[id * self.channels..][..self.channels];
            if let Some(y) = T::as_f32_mut(y) {
                return widen(id, from, y);
            }
            let mut wide = vec![0.0; self.channels];
            widen(id, from, &mut wide);
            T::narrow(&wide, y);
        });
    }
}
