//! Elements whose places, or whose number, 32 bits cannot hold.

use smalti::attention::{self, Options};
use smalti::{Device, Layout, Tensor, copy};

use crate::common::devices;

/// More than 2^30 bytes; the system gives memory to what is touched alone.
const ROW: usize = (1 << 30) + 3;

#[test]
fn on_the_cpu_elements_beyond_32_bits_are_where_they_are() {
    for device in [Device::reference(), Device::cpu()] {
        // The ends of the first row and of the last one, which is beyond 2^32.
        let layout = |columns: usize| Layout::strided(&[2, columns], &[4 * ROW, 1], ROW - columns).unwrap();
        let mut ends = Tensor::<u8>::zeros(&device, &[5, ROW]).unwrap().view_as(layout(5)).unwrap();
        let x = Tensor::from_slice(&device, &[2, 5], &[1u8, 2, 3, 4, 5, 6, 7, 8, 9, 10]).unwrap();
        copy::copy_into(&x, &mut ends).unwrap();
        let got = ends.view_as(layout(7)).unwrap().to_vec().unwrap();
        assert_eq!(got, [0, 0, 1, 2, 3, 4, 5, 0, 0, 6, 7, 8, 9, 10], "{device}");
        // What 32 bits would make of the places of the last row.
        let wrapped = Layout::strided(&[5], &[1], (5 * ROW - 5) % (1 << 32)).unwrap();
        assert_eq!(ends.view_as(wrapped).unwrap().to_vec().unwrap(), [0; 5], "{device}");
    }
}

#[test]
fn more_elements_than_can_be_counted_are_named() {
    let one = Tensor::from_slice(&Device::cpu(), &[1, 1], &[1.0f32]).unwrap();
    let huge = [1 << 40, 1 << 40];
    for error in [
        one.broadcast(&huge).unwrap_err(),
        one.reshape(&huge).unwrap_err(),
        Tensor::<f32>::zeros(&Device::cpu(), &huge).unwrap_err(),
        Tensor::<f32>::zeros(&Device::cpu(), &[0]).unwrap().reshape(&[1 << 40, 1 << 40, 0]).unwrap_err(),
        Layout::strided(&huge, &[0, 0], 0).unwrap_err(),
        Layout::strided(&[2, 2], &[usize::MAX / 2, 1], 0).unwrap_err(),
    ] {
        assert!(error.to_string().contains("fits memory"), "{error}");
    }
}

#[test]
fn keys_beyond_32_bits_are_named_on_every_device() {
    for device in devices() {
        let one = Tensor::from_slice(device, &[1, 1, 1, 8], &[1.0f32; 8]).unwrap();
        let many = one.broadcast(&[1, 1, 1 << 32, 8]).unwrap();
        let error = attention::attention(&one, &many, &many, &Options::new(1.0)).unwrap_err().to_string();
        assert!(error.contains("2^32"), "{device}: {error}");
    }
}
