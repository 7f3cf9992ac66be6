//! `smalti models`.

use smalti_models::zoo::SYSTEMS;

use super::args::Models;

/// Prints a line per system.
pub fn run(options: &Models) {
    if options.json {
        let systems: Vec<_> = SYSTEMS
            .iter()
            .map(|system| {
                serde_json::json!({
                    "name": system.name, "paper": system.paper, "parts": system.parts,
                    "condition": system.condition, "runs": system.runs.name(), "passes": system.passes,
                })
            })
            .collect();
        println!("{}", serde_json::json!(systems));
        return;
    }
    println!("{:<14} {:<17} {:<9} {:<26} {:<27} parts", "system", "paper", "draws", "asked with", "passes per picture");
    for system in SYSTEMS {
        println!(
            "{:<14} {:<17} {:<9} {:<26} {:<27} {}",
            system.name,
            system.paper,
            system.runs.name(),
            system.condition,
            system.passes,
            system.parts
        );
    }
}
