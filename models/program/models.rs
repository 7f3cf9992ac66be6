//! `smalti models`.

use smalti_models::weights::{embedded, names_tell};
use smalti_models::zoo::{Runs, SYSTEMS, System};

use super::args::Models;

/// Prints a line per system.
pub fn run(options: &Models) {
    if options.json {
        let systems: Vec<_> = SYSTEMS
            .iter()
            .map(|system| {
                serde_json::json!({
                    "name": system.name, "paper": system.paper, "parts": system.parts,
                    "condition": system.condition, "runs": system.runs.name(), "also": system.also(),
                    "weights": weights(system), "passes": system.passes,
                })
            })
            .collect();
        println!("{}", serde_json::json!(systems));
        return;
    }
    let line = |cells: [&str; 8]| {
        let [name, paper, runs, condition, also, weights, passes, parts] = cells;
        println!("{name:<14} {paper:<17} {runs:<9} {condition:<26} {also:<35} {weights:<15} {passes:<27} {parts}");
    };
    line(["system", "paper", "draws", "asked with", "also", "weights", "passes per picture", "parts"]);
    for system in SYSTEMS {
        let (runs, weights) = (system.runs.name(), weights(system));
        let System { name, paper, condition, passes, parts, .. } = system;
        line([name, paper, runs, condition, system.also(), weights, passes, parts]);
    }
}

/// Which weights it loads.
fn weights(system: &System) -> &'static str {
    match names_tell(system.name) {
        _ if embedded(system.name).is_some() => "in the program",
        _ if system.runs == Runs::Conform => "of dumps",
        _ if system.runs == Runs::Decoder => "its network's",
        Some(true) => "official names",
        Some(false) => "with --model",
        None => "names are ours",
    }
}
