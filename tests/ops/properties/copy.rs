//! Copies and conversions.

use proptest::prelude::*;
use smalti::{Backend, Device, Element, Float, Tensor, bf16, copy, f16};

use super::{Place, config, lying, places};
use crate::common::devices;

/// Equal, or both no numbers.
fn same<T: Element>(what: &str, got: &[T], expected: &[T]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let none = |x: &T| x.partial_cmp(x).is_none();
    let different = |(got, expected): (&T, &T)| got != expected && !(none(got) && none(expected));
    if let Some(at) = got.iter().zip(expected).position(different) {
        panic!("{what}: element {at} is {:?}, expected {:?}", got[at], expected[at]);
    }
}

/// A part of a larger tensor takes what is given in any order of its axes; the rest stays.
fn slices_are_copied<T: Element>(
    shape: [usize; 3],
    order: &[usize],
    (axis, before, after): (usize, usize, usize),
    place: Place,
    of: impl Fn(f64) -> T,
) {
    let packed = Place { offset: 0, gap: 0, swapped: false };
    for device in devices() {
        let what = format!("copy {} {device} {shape:?} {order:?} {axis} {before} {after} {place:?}", T::DTYPE);
        let operands = |device: &Device| {
            let x = lying(device, &shape, place, 1, &of).permute(order).unwrap();
            let mut whole = x.shape().to_vec();
            whole[axis] += before + after;
            let y = lying(device, &whole, packed, 2, &of);
            (x, y)
        };
        let ((x, mut y), (home, mut home_y)) = (operands(device), operands(&Device::reference()));
        same(&what, &x.to_vec().unwrap(), &home.to_vec().unwrap());
        copy::copy_into_slice(&home, &mut home_y, axis, before).unwrap();
        if let Err(error) = copy::copy_into_slice(&x, &mut y, axis, before) {
            // wgpu writes whole words.
            let words = |len: usize| (len * T::DTYPE.bytes()).is_multiple_of(4);
            let whole = words(x.shape()[2]) && words(y.shape()[2]) && words(before);
            assert!(device.backend() == Backend::Wgpu && !whole, "{what}: {error}");
            continue;
        }
        same(&format!("{what} into a part"), &y.to_vec().unwrap(), &home_y.to_vec().unwrap());
    }
}

/// Any value of `T`, to any type.
fn conversions_are_the_same<T: Float>(shape: [usize; 2], place: Place, seed: u64, of: impl Fn(u32) -> T + Copy) {
    fn to<T: Float, U: Float>(device: &Device, x: &Tensor<T>, home: &Tensor<T>) {
        let got = copy::convert::<T, U>(x).unwrap().to_vec().unwrap();
        let expected = copy::convert::<T, U>(home).unwrap().to_vec().unwrap();
        same(&format!("{} to {} {device} of {:?}", T::DTYPE, U::DTYPE, home.to_vec().unwrap()), &got, &expected);
    }
    for device in devices() {
        let on = |device: &Device| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "any 32 bits")]
            lying(device, &shape, place, seed, |x| of(((x + 1.0) * f64::from(1u32 << 31)) as u32))
        };
        let (x, home) = (on(device), on(&Device::reference()));
        to::<T, f32>(device, &x, &home);
        to::<T, f16>(device, &x, &home);
        to::<T, bf16>(device, &x, &home);
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn slices_are_copied_anywhere(
        shape in [0usize..5, 1usize..5, 1usize..20],
        order in Just(vec![0usize, 1, 2]).prop_shuffle(),
        part in (0usize..3, 0usize..5, 0usize..5),
        place in places(),
    ) {
        slices_are_copied(shape, &order, part, place, |x| x as f32);
        slices_are_copied(shape, &order, part, place, f16::from_f64);
        slices_are_copied(shape, &order, part, place, bf16::from_f64);
        slices_are_copied(shape, &order, part, place, |x| (x.abs() * 4e9) as u32);
        slices_are_copied(shape, &order, part, place, |x| (x * 2e9) as i32);
        slices_are_copied(shape, &order, part, place, |x| (x.abs() * 255.0) as u8);
        slices_are_copied(shape, &order, part, place, |x| (x * 127.0) as i8);
    }

    #[test]
    fn conversions_are_the_same_anywhere(shape in [0usize..4, 1usize..70], place in places(), seed in any::<u64>()) {
        // Some of them near ties of a half type.
        let near = |bits: u32, below: u32| bits & !(2 * below - 1) | (below - 4 + bits / 3 % 8);
        conversions_are_the_same(shape, place, seed, |bits| f32::from_bits(match bits % 3 {
            0 => bits,
            1 => near(bits, 1 << 12),
            _ => near(bits, 1 << 15),
        }));
        conversions_are_the_same(shape, place, seed, |bits| f16::from_bits((bits >> 16) as u16));
        conversions_are_the_same(shape, place, seed, |bits| bf16::from_bits((bits >> 16) as u16));
    }
}
