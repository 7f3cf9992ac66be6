//! Gaussian mixtures.

use smalti::mixture::{self, Mixtures};
use smalti::{Device, Tensor};

use crate::common::{assert_close, devices, moved, tensor, uniform, widened};

/// Rows, candidates, components, values: one of each, a prime of each, more than a workgroup, ARINAR's, and none.
const SIZES: [[usize; 4]; 6] =
    [[1, 1, 1, 1], [3, 7, 5, 2], [2, 129, 2, 1], [1, 1000, 4, 1], [17, 1, 3, 11], [0, 5, 2, 1]];

/// On the reference: parameters, components that were chosen, normal numbers, kept candidates.
fn operands(
    [rows, candidates, components, values]: [usize; 4],
) -> (Tensor<f32>, Tensor<u32>, Tensor<f32>, Tensor<u32>) {
    let home = Device::reference();
    let numbers = |seed: u64, shape: &[usize]| {
        let values: Vec<_> = uniform(seed, shape.iter().product()).iter().map(|value| 3.0 * value).collect();
        tensor::<f32>(&home, shape, &values)
    };
    // Some are beyond the last.
    let up_to = |shape: &[usize], end: usize| {
        let whole: usize = shape.iter().product();
        Tensor::from_vec(&home, shape, (0..whole).map(|at| (at * 7 % (end + 2)) as u32).collect()).expect("room")
    };
    (
        numbers(300, &[rows, (2 * values + 1) * components]),
        up_to(&[rows, candidates], components),
        numbers(301, &[rows, candidates, components, values]),
        up_to(&[rows], candidates),
    )
}

fn of(parameters: &Tensor<f32>, components: usize) -> Mixtures<'_> {
    Mixtures { parameters, components }
}

#[test]
fn draws_and_densities_agree_with_the_reference() {
    for sizes @ [_, _, components, _] in SIZES {
        let (parameters, chosen, normals, kept) = operands(sizes);
        let expected = mixture::draw(of(&parameters, components), &chosen, &normals, None, 0.9).unwrap();
        let one = mixture::draw(of(&parameters, components), &chosen, &normals, Some(&kept), 0.9).unwrap();
        let densities = mixture::log_density(of(&parameters, components), &expected).unwrap();
        for device in devices() {
            let (parameters, normals) = (moved(&parameters, device), moved(&normals, device));
            let (chosen, kept) = (moved(&chosen, device), moved(&kept, device));
            let what = |op: &str| format!("{op} {device} {sizes:?}");
            let got = mixture::draw(of(&parameters, components), &chosen, &normals, None, 0.9).unwrap();
            assert_close(&what("draw"), &got, &widened(&expected), 0.0);
            let got = mixture::draw(of(&parameters, components), &chosen, &normals, Some(&kept), 0.9).unwrap();
            assert_close(&what("draw one"), &got, &widened(&one), 0.0);
            let got = mixture::log_density(of(&parameters, components), &moved(&expected, device)).unwrap();
            assert_close(&what("log_density"), &got, &widened(&densities), 0.0);
        }
    }
}

#[test]
fn parts_of_tensors_are_read_where_they_are() {
    for device in devices() {
        let sizes = [3, 7, 5, 2];
        let (parameters, chosen, normals, _) = operands(sizes);
        let (parameters, chosen) = (moved(&parameters, device), moved(&chosen, device));
        let normals = moved(&normals, device);
        let whole = Mixtures { parameters: &parameters, components: 5 };
        let x = mixture::draw(whole, &chosen, &normals, None, 1.0).unwrap();
        let densities = mixture::log_density(whole, &x).unwrap().to_vec().unwrap();
        let rows = parameters.narrow(0, 1, 2).unwrap();
        let part = Mixtures { parameters: &rows, components: 5 };
        let (chosen, normals) = (chosen.narrow(0, 1, 2).unwrap(), normals.narrow(0, 1, 2).unwrap());
        let drawn = mixture::draw(part, &chosen, &normals, None, 1.0).unwrap();
        assert_eq!(drawn.to_vec().unwrap(), x.to_vec().unwrap()[7 * 2..], "{device}");
        assert_eq!(mixture::log_density(part, &drawn).unwrap().to_vec().unwrap(), densities[7..], "{device}");
    }
}

#[test]
fn a_density_adds_up_to_one() {
    let home = Device::reference();
    let (parameters, ..) = operands([1, 1, 3, 1]);
    let step = 0.01;
    let line: Vec<_> = (0..8000).map(|at| f64::from(at) * step - 40.0).collect();
    let x = tensor::<f32>(&home, &[1, line.len(), 1], &line);
    let density = mixture::log_density(Mixtures { parameters: &parameters, components: 3 }, &x).unwrap();
    let sum: f64 = density.to_vec().unwrap().iter().map(|log| f64::from(*log).exp() * step).sum();
    assert!((sum - 1.0).abs() < 1e-3, "{sum}");
}

#[test]
fn operands_that_do_not_fit_are_named() {
    let (parameters, chosen, normals, kept) = operands([3, 7, 5, 2]);
    let mixtures = Mixtures { parameters: &parameters, components: 5 };
    for components in [0, 4, 25, 26] {
        let error = mixture::log_density(Mixtures { components, ..mixtures }, &normals).unwrap_err().to_string();
        assert!(error.contains("log_density: parameters has shape [3, 25]"), "{error}");
    }
    let error = mixture::draw(mixtures, &chosen, &normals.narrow(3, 0, 1).unwrap(), None, 1.0).unwrap_err().to_string();
    assert!(error.contains("draw: normals has shape [3, 7, 5, 1], expected [3, 7, 5, 2]"), "{error}");
    let error = mixture::draw(mixtures, &chosen, &normals, Some(&kept.narrow(0, 0, 2).unwrap()), 1.0);
    assert!(error.unwrap_err().to_string().contains("kept has shape [2]"));
    let error = mixture::draw(mixtures, &chosen.narrow(0, 0, 2).unwrap(), &normals, None, 1.0);
    assert!(error.unwrap_err().to_string().contains("chosen has shape [2, 7]"));
    assert!(mixture::log_density(mixtures, &Tensor::zeros(&Device::reference(), &[3, 7, 3]).unwrap()).is_err());
}
