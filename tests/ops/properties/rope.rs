//! Rotary positions.

use proptest::prelude::*;
use smalti::rope::{self, Pairing, Table};
use smalti::{Device, Float, Tensor, bf16, f16};

use super::{Place, config, placed, places};
use crate::common::{assert_close, devices, moved, widened};

fn rope_agrees<T: Float>(shape: [usize; 4], pairs: usize, place: Place, own: bool) {
    let [batch, _, seq, dim] = shape;
    let pairs = pairs.min(dim / 2);
    for device in devices() {
        let table = Table::from_angles(device, batch * seq + 1, pairs, |p, j| (p * (j + 2)) as f64 / 3.0).unwrap();
        let of_each =
            |table: &Tensor<f32>| table.narrow(0, 1, batch * seq).unwrap().reshape(&[batch, seq, pairs]).unwrap();
        let (table, start) = match own {
            true => (Table { cos: of_each(&table.cos), sin: of_each(&table.sin) }, 0),
            false => (table, 1),
        };
        let at_home =
            Table { cos: moved(&table.cos, &Device::reference()), sin: moved(&table.sin, &Device::reference()) };
        for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
            let what = format!("rope {} {device} {shape:?} {pairs} {place:?} {own} {pairing:?}", T::DTYPE);
            let mut x = placed::<T>(device, &shape, place, 4);
            let expected = rope::rope(&widened(&x), &at_home, start, pairing).unwrap();
            assert_close(&what, &rope::rope(&x, &table, start, pairing).unwrap(), &expected, 0.0);
            // Rows of a half type that share a word cannot be written on wgpu one by one.
            if T::DTYPE.bytes() == 4 || dim.is_multiple_of(2) && place.gap.is_multiple_of(2) {
                rope::rope_in_place(&mut x, &table, start, pairing).unwrap();
                assert_close(&format!("{what} in place"), &x, &expected, 0.0);
            }
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn rope_agrees_anywhere(
        shape in [1usize..3, 1usize..4, 0usize..20, 1usize..40],
        pairs in 0usize..20,
        place in places(),
        own in any::<bool>(),
    ) {
        rope_agrees::<f32>(shape, pairs, place, own);
        rope_agrees::<f16>(shape, pairs, place, own);
        rope_agrees::<bf16>(shape, pairs, place, own);
    }
}
