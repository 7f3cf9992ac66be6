//! The report: a file per bench, and all that are there together as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::{Ceilings, Place, Rated, Task, page};

/// What the PTX kernels take whatever the machine: tables that tests hold them to.
pub(crate) const KERNELS: [(&str, &str); 2] = [
    ("Inner loops of PTX kernels, counted in the emulator", include_str!("../tests/ops/inner_loops.txt")),
    ("PTX kernels, assembled by ptxas", include_str!("../tests/ptxas/kernels.txt")),
];

/// Memory of a process, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// The most that it held.
    pub peak: u64,
    /// What it cannot do without: weights and caches.
    pub needed: u64,
}

/// One line of the report.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was run.
    pub task: Task,
    /// Seconds that ours took.
    pub seconds: f64,
    /// The distance between the quartiles of these, over their median.
    pub spread: f64,
    /// Those who took turns with it.
    pub peers: Vec<Rated>,
    /// Operations of the product ceiling in a second.
    pub product_ceiling: f64,
    /// How far the results are from those of the first peer, where they were compared.
    pub error: Option<f64>,
    /// Where it was measured.
    pub memory: Option<Memory>,
}

impl Row {
    /// Seconds below which this machine cannot come: the longer of moving the bytes and doing the operations.
    #[must_use]
    pub fn floor(&self, ceilings: &Ceilings) -> f64 {
        (self.task.bytes / ceilings.read).max(self.task.operations / self.product_ceiling)
    }

    fn json(&self, ceilings: &Ceilings) -> Value {
        let Self { task, seconds, .. } = self;
        let peer = |peer: &Rated| json!({"name": peer.name, "seconds": peer.seconds, "ratio": peer.ratio});
        let place = |place: &Place| {
            let Place { series, across, length, density } = place;
            json!({"series": series, "across": across, "length": length, "density": density})
        };
        let memory = |memory: Memory| json!({"peak": memory.peak, "needed": memory.needed});
        json!({
            "name": task.name,
            "seconds": seconds,
            "spread": self.spread,
            "place": task.place.as_ref().map(place),
            "bytes": task.bytes,
            "operations": task.operations,
            "gigabytes_per_second": task.bytes / seconds / 1e9,
            "gigaflops": task.operations / seconds / 1e9,
            "floor_seconds": self.floor(ceilings),
            "share_of_floor": self.floor(ceilings) / seconds,
            "peers": self.peers.iter().map(peer).collect::<Vec<_>>(),
            "error": self.error,
            "memory": self.memory.map(memory),
        })
    }
}

/// Writes `target/report/FAMILY.json`, then `report.json`, `report.md` and `index.html` of all families there; prints
/// this one.
///
/// # Errors
/// If the folder cannot be written.
pub fn write(family: &str, device: &str, peers: &[String], ceilings: &Ceilings, rows: &[Row]) -> std::io::Result<()> {
    let own = save(family, device, peers, ceilings, rows)?;
    println!("{}", table(&own));
    Ok(())
}

/// As [`write`], without printing.
///
/// # Errors
/// If the folder cannot be written.
pub(crate) fn save(
    family: &str,
    device: &str,
    peers: &[String],
    ceilings: &Ceilings,
    rows: &[Row],
) -> std::io::Result<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/report");
    std::fs::create_dir_all(&folder)?;
    let own = json!({
        "family": family,
        "device": device,
        "peers": peers,
        "ceilings": {
            "read_gigabytes": ceilings.read / 1e9,
            "copy_gigabytes": ceilings.copy / 1e9,
            "f32_gigaflops": ceilings.f32 / 1e9,
            "bf16_gigaflops": ceilings.bf16 / 1e9,
        },
        "rows": rows.iter().map(|row| row.json(ceilings)).collect::<Vec<_>>(),
    });
    std::fs::write(folder.join(format!("{family}.json")), format!("{own:#}\n"))?;
    let mut families = Vec::new();
    let mut paths: Vec<_> = std::fs::read_dir(&folder)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let is_family = path.extension().is_some_and(|kind| kind == "json") && !path.ends_with("report.json");
        if is_family && let Ok(family) = serde_json::from_slice::<Value>(&std::fs::read(&path)?) {
            families.push(family);
        }
    }
    let tables: Vec<_> = families.iter().map(table).collect();
    let kernels = KERNELS.map(|(title, table)| format!("\n## {title}\n\n```\n{table}```\n"));
    std::fs::write(folder.join("report.md"), format!("# Benches\n\n{}{}", tables.join("\n"), kernels.concat()))?;
    std::fs::write(folder.join("index.html"), page::page(&families))?;
    std::fs::write(folder.join("report.json"), format!("{:#}\n", Value::from(families)))?;
    Ok(own)
}

/// Compares two reports row by row: the lines to print, and whether any row became slower by more than 5% and the spread
/// of both.
#[must_use]
pub fn compare(before: &Value, after: &Value) -> (Vec<String>, bool) {
    let rows = |report: &Value| -> BTreeMap<String, [f64; 2]> {
        let families = report.as_array().cloned().unwrap_or_default();
        let rows = families.iter().flat_map(|family| {
            let rows = family["rows"].as_array().cloned().unwrap_or_default();
            let name = family["family"].as_str().unwrap_or_default().to_owned();
            rows.into_iter().filter_map(move |row| {
                let numbers = [row["seconds"].as_f64()?, row["spread"].as_f64().unwrap_or(0.0)];
                Some((format!("{name}: {}", row["name"].as_str()?), numbers))
            })
        });
        rows.collect()
    };
    let (before, after) = (rows(before), rows(after));
    let mut slower = false;
    let mut lines = Vec::new();
    for (name, [seconds, spread]) in &after {
        let Some([seconds_before, spread_before]) = before.get(name) else {
            lines.push(format!("new      {name}: {:.3} ms", seconds * 1e3));
            continue;
        };
        let (ratio, noise) = (seconds / seconds_before, 0.05 + spread + spread_before);
        let verdict = match ratio {
            _ if ratio > 1.0 + noise => "SLOWER ",
            _ if ratio < 1.0 / (1.0 + noise) => "faster ",
            _ => "same   ",
        };
        slower |= ratio > 1.0 + noise;
        let [from, to] = [seconds_before, seconds].map(|seconds| seconds * 1e3);
        lines.push(format!("{verdict}  {name}: {from:.3} to {to:.3} ms, times {ratio:.2}, noise {noise:.2}"));
    }
    lines.extend(before.keys().filter(|name| !after.contains_key(*name)).map(|name| format!("gone     {name}")));
    (lines, slower)
}

fn table(family: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value, digits: usize| match value.as_f64() {
        Some(number) => format!("{number:.digits$}"),
        None => "-".to_owned(),
    };
    let scaled = |value: &Value, factor: f64, digits: usize| match value.as_f64() {
        Some(number) => format!("{:.digits$}", number * factor),
        None => "-".to_owned(),
    };
    let list = |value: &Value| value.as_array().into_iter().flatten().cloned().collect::<Vec<_>>();
    let peers: Vec<_> = list(&family["peers"]).iter().map(text).collect();
    let ceilings = &family["ceilings"];
    let mut out = format!(
        "## {}\n\nOn {}; peers: {}. Ceilings: read {} GB/s, copy {} GB/s, f32 {} GFLOP/s, bf16 {} GFLOP/s.\n\n",
        text(&family["family"]),
        text(&family["device"]),
        peers.join("; "),
        number(&ceilings["read_gigabytes"], 1),
        number(&ceilings["copy_gigabytes"], 1),
        number(&ceilings["f32_gigaflops"], 0),
        number(&ceilings["bf16_gigaflops"], 0),
    );
    out.push_str("| what | ms | floor ms | of floor | GB/s | GFLOP/s | times a peer's speed | peak MB (needed) |\n");
    out.push_str("|------|---:|---------:|---------:|-----:|--------:|----------------------|-----------------:|\n");
    for row in list(&family["rows"]) {
        let peer = |peer: &Value| {
            let (name, ms, ratio) = (text(&peer["name"]), scaled(&peer["seconds"], 1e3, 3), number(&peer["ratio"], 2));
            format!("{ratio} {name} ({ms} ms)")
        };
        let peers: Vec<_> = list(&row["peers"]).iter().map(peer).collect();
        let memory = &row["memory"];
        // Writing to a String does not fail.
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} | {} | {} ({}) |",
            text(&row["name"]),
            scaled(&row["seconds"], 1e3, 3),
            scaled(&row["floor_seconds"], 1e3, 3),
            number(&row["share_of_floor"], 2),
            number(&row["gigabytes_per_second"], 1),
            number(&row["gigaflops"], 0),
            peers.join(", "),
            scaled(&memory["peak"], 1e-6, 0),
            scaled(&memory["needed"], 1e-6, 0),
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compare_tells_a_slower_row_from_noise() {
        let report = |seconds: f64, spread: f64| json!([{"family": "f", "rows": [{"name": "r", "seconds": seconds, "spread": spread}]}]);
        assert!(compare(&report(1.0, 0.01), &report(1.2, 0.01)).1);
        assert!(!compare(&report(1.0, 0.1), &report(1.2, 0.1)).1);
        assert!(!compare(&report(1.2, 0.01), &report(1.0, 0.01)).1);
        let (lines, slower) = compare(&json!([]), &report(1.0, 0.0));
        assert!(lines[0].starts_with("new") && !slower);
    }
}
