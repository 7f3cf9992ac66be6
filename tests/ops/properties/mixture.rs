//! Gaussian mixtures.

use proptest::prelude::*;
use smalti::Device;
use smalti::mixture::{self, Mixtures};

use super::{Place, config, placed, placed_below, places};
use crate::common::{assert_close, devices, moved, widened};

/// Half of what WGSL allows `exp` to be off by, as a share of it.
fn rounding_of_exp(of: f64) -> f64 {
    f64::from(f32::EPSILON) * (1.5 + of.abs())
}

fn mixtures_agree([rows, candidates, components, values]: [usize; 4], one: bool, temperature: f32, place: Place) {
    for device in devices() {
        let what = format!("{device} [{rows}, {candidates}, {components}, {values}] {one} {temperature} {place:?}");
        let parameters = placed::<f32>(device, &[rows, (2 * values + 1) * components], place, 1);
        let normals = placed::<f32>(device, &[rows, candidates, components, values], place, 2);
        // Some are beyond the last.
        let chosen = placed_below(device, &[rows, candidates], components + 1, place, 3);
        let kept = one.then(|| placed_below(device, &[rows], candidates + 1, place, 4));
        let of = Mixtures { parameters: &parameters, components };
        let got = mixture::draw(of, &chosen, &normals, kept.as_ref(), temperature).unwrap();
        let home = Device::reference();
        let (at_home, kept) = (moved(&parameters, &home), kept.map(|kept| moved(&kept, &home)));
        let of_home = Mixtures { parameters: &at_home, components };
        let (chosen, normals) = (moved(&chosen, &home), moved(&normals, &home));
        let expected = mixture::draw(of_home, &chosen, &normals, kept.as_ref(), temperature).unwrap();
        // Parameters and normal numbers are below 2: a sum near 0 is of parts that are not.
        let moves = 2.0 * 1f64.exp() * f64::from(temperature);
        let naive = 2.0 * f64::from(f32::EPSILON) + moves * rounding_of_exp(1.0);
        assert_close(&format!("draw {what}"), &got, &widened(&expected), naive);

        let x = placed::<f32>(device, &[rows, candidates, values], place, 5);
        let got = mixture::log_density(of, &x).unwrap();
        let x = moved(&x, &home);
        let expected = mixture::log_density(of_home, &x).unwrap();
        let naive =
            largest_rounding(&at_home.to_vec().unwrap(), &x.to_vec().unwrap(), [candidates, components, values]);
        assert_close(&format!("log_density {what}"), &got, &widened(&expected), naive);
    }
}

/// What the rounding of its terms may do to a density at most.
fn largest_rounding(parameters: &[f32], x: &[f32], [candidates, components, values]: [usize; 3]) -> f64 {
    let mut largest = 0.0f64;
    for (row, parameters) in parameters.chunks((2 * values + 1) * components).enumerate() {
        let parameter = |at: usize| f64::from(parameters[at]);
        for x in x[row * candidates * values..][..candidates * values].chunks(values) {
            for component in 0..components {
                let logit = parameter(2 * components * values + component);
                let terms = x.iter().enumerate().map(|(value, x)| {
                    let at = component * values + value;
                    let (mean, log_variance) = (parameter(at), parameter(components * values + at));
                    let distance = (f64::from(*x) - mean).powi(2) / log_variance.exp();
                    let rest = log_variance.abs() + std::f64::consts::TAU.ln();
                    distance * rounding_of_exp(log_variance) + rest * f64::from(f32::EPSILON)
                });
                largest = largest.max(logit.abs() * f64::from(f32::EPSILON) + terms.sum::<f64>() / 2.0);
            }
        }
    }
    largest
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn mixtures_agree_anywhere(
        shape in [0usize..5, 0usize..70, 1usize..6, 1usize..9],
        one in any::<bool>(),
        temperature in 0.0f32..2.0,
        place in places(),
    ) {
        mixtures_agree(shape, one, temperature, place);
    }
}
