//! The report as one page that needs nothing else: plots as SVG, the tables below.

use std::fmt::Write as _;

use serde_json::Value;

use crate::report::KERNELS;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
/// Room for the axes' numbers.
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 8] = ["#1668a8", "#c8452b", "#2c8c4a", "#8a4fb0", "#b8860b", "#20848c", "#a02c6a", "#555555"];

/// The page of all families.
pub(crate) fn page(families: &[Value]) -> String {
    let mut body = String::new();
    let mut devices: Vec<_> = families.iter().map(|family| text(&family["device"])).collect();
    devices.sort();
    devices.dedup();
    for device in devices {
        let here: Vec<_> = families.iter().filter(|family| text(&family["device"]) == device).collect();
        for (title, points) in [
            ("GFLOP/s against operations per byte", roofline(&here)),
            ("milliseconds against length", curve(&here, "length", |_| true)),
            (
                "milliseconds against the share that is seen, 4096 tokens",
                curve(&here, "density", |length| length == 4096.0),
            ),
        ] {
            if points.iter().any(|series| !series.points.is_empty()) {
                let _ = write!(body, "<h2>{device}: {title}</h2>\n{}", plot(&points));
            }
        }
    }
    for family in families {
        let name = text(&family["family"]);
        let _ = write!(body, "<h2>{name}: times the speed of each peer</h2>\n{}", bars(family));
    }
    for (title, table) in KERNELS {
        let _ = write!(body, "<details><summary>{title}</summary>\n<pre>{table}</pre></details>\n");
    }
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>smalti: benches</title>\n<style>body {{ font: 15px sans-serif; \
         margin: 2em auto; max-width: 60em }} svg {{ font: 12px sans-serif }}</style>\n<h1>smalti: benches</h1>\n{body}"
    )
}

fn text(value: &Value) -> String {
    let text = value.as_str().unwrap_or_default();
    text.replace('&', "&amp;").replace('<', "&lt;")
}

fn rows(family: &Value) -> impl Iterator<Item = &Value> {
    family["rows"].as_array().into_iter().flatten()
}

/// Points in order, joined by a line or not.
struct Series {
    name: String,
    joined: bool,
    points: Vec<[f64; 2]>,
}

/// Each row, and what bandwidth and products allow.
fn roofline(families: &[&Value]) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for family in families {
        let points = rows(family).filter_map(|row| {
            let (bytes, operations) = (row["bytes"].as_f64()?, row["operations"].as_f64()?);
            (operations > 0.0).then_some([operations / bytes, row["gigaflops"].as_f64()?])
        });
        series.push(Series { name: text(&family["family"]), joined: false, points: points.collect() });
    }
    let Some(ceilings) = families.first().map(|family| &family["ceilings"]) else { return series };
    for dtype in ["f32", "bf16"] {
        let most = ceilings[format!("{dtype}_gigaflops")].as_f64();
        // A device may not have been measured.
        if let (Some(read), Some(most)) = (ceilings["read_gigabytes"].as_f64(), most) {
            let points = vec![[0.1, 0.1 * read], [most / read, most], [10_000.0, most]];
            series.push(Series { name: format!("ceiling {dtype}"), joined: true, points });
        }
    }
    series
}

/// Times of the rows that have a place in such a plot.
fn curve(families: &[&Value], axis: &str, wanted: impl Fn(f64) -> bool) -> Vec<Series> {
    let mut series: Vec<Series> = Vec::new();
    for row in families.iter().flat_map(|family| rows(family)) {
        let place = &row["place"];
        let (Some(x), Some(length), Some(seconds)) =
            (place[axis].as_f64(), place["length"].as_f64(), row["seconds"].as_f64())
        else {
            continue;
        };
        if !wanted(length) {
            continue;
        }
        let name = text(&place[if axis == "density" { "across" } else { "series" }]);
        let point = [x, seconds * 1e3];
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, joined: true, points: vec![point] }),
        }
    }
    for series in &mut series {
        series.points.sort_by(|a, b| a[0].total_cmp(&b[0]));
        if let Some(exponent) = exponent(&series.points) {
            let _ = write!(series.name, ", ~ x^{exponent:.2}");
        }
    }
    series
}

/// The power of x that y grows with: the slope of the straight line through the logarithms, of three points or more.
fn exponent(points: &[[f64; 2]]) -> Option<f64> {
    let logs: Vec<_> = points.iter().map(|point| point.map(f64::ln)).collect();
    let mean = |axis: usize| logs.iter().map(|log| log[axis]).sum::<f64>() / logs.len() as f64;
    let means = [mean(0), mean(1)];
    let along = |axis: usize| logs.iter().map(|log| (log[0] - means[0]) * (log[axis] - means[axis])).sum::<f64>();
    (points.len() >= 3).then(|| along(1) / along(0)).filter(|slope| slope.is_finite())
}

/// Both axes logarithmic, with a line at each power of ten.
fn plot(all: &[Series]) -> String {
    let points = || all.iter().flat_map(|series| &series.points).filter(|point| point.iter().all(|x| *x > 0.0));
    let range = |axis: usize| {
        let logs = || points().map(move |point| point[axis].log10());
        [logs().fold(f64::INFINITY, f64::min).floor(), logs().fold(f64::NEG_INFINITY, f64::max).ceil()]
    };
    let ranges = [range(0), range(1)];
    let share = |axis: usize, log: f64| (log - ranges[axis][0]) / (ranges[axis][1] - ranges[axis][0]).max(1.0);
    let x = |log: f64| MARGIN + share(0, log) * (WIDTH - 2.0 * MARGIN);
    let y = |log: f64| HEIGHT - MARGIN + share(1, log) * (2.0 * MARGIN - HEIGHT);
    let mut out = open(HEIGHT + 18.0 * all.len().div_ceil(3) as f64);
    for (axis, [first, last]) in ranges.into_iter().enumerate() {
        let mut log = first;
        while log <= last {
            let label = 10f64.powf(log);
            let _ = if axis == 0 {
                let (at, top, bottom) = (x(log), MARGIN, HEIGHT - MARGIN);
                write!(
                    out,
                    "<path d='M{at} {top}V{bottom}' stroke='#ddd'/><text x='{at}' y='{}'>{label}</text>",
                    bottom + 16.0
                )
            } else {
                let (at, left, right) = (y(log), MARGIN, WIDTH - MARGIN);
                write!(out, "<path d='M{left} {at}H{right}' stroke='#ddd'/><text x='4' y='{}'>{label}</text>", at + 4.0)
            };
            log += 1.0;
        }
    }
    for (index, series) in all.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let places: Vec<_> = series.points.iter().map(|point| [x(point[0].log10()), y(point[1].log10())]).collect();
        if series.joined {
            let line: Vec<_> = places.iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
            let _ = write!(out, "<polyline points='{}' fill='none' stroke='{colour}'/>", line.join(" "));
        }
        for [x, y] in places {
            let _ = write!(out, "<circle cx='{x:.1}' cy='{y:.1}' r='3' fill='{colour}'/>");
        }
        let (left, top) = (MARGIN + (index % 3) as f64 * 190.0, HEIGHT + (index / 3) as f64 * 18.0);
        let _ = write!(out, "<text x='{left}' y='{top}' fill='{colour}'>{}</text>", series.name);
    }
    out + "</svg>\n"
}

/// A bar per row and peer, to the right of 1 where ours is faster; the scale is logarithmic.
fn bars(family: &Value) -> String {
    let mut lines = Vec::new();
    for row in rows(family) {
        for peer in row["peers"].as_array().into_iter().flatten() {
            let ratio = peer["ratio"].as_f64().unwrap_or(1.0);
            lines.push((format!("{}, {}", text(&row["name"]), text(&peer["name"])), ratio));
        }
    }
    let mut out = open(20.0 * lines.len() as f64 + 10.0);
    let one = WIDTH * 0.65;
    for (index, (name, ratio)) in lines.iter().enumerate() {
        let (top, length) = (20.0 * index as f64, (ratio.log10() * 110.0).clamp(-60.0, WIDTH - one - 50.0));
        let (left, colour) = (one + length.min(0.0), if *ratio >= 1.0 { COLOURS[2] } else { COLOURS[1] });
        let _ = write!(
            out,
            "<text x='0' y='{}'>{name}</text><rect x='{left:.1}' y='{}' width='{:.1}' height='12' fill='{colour}'/>\
             <text x='{:.1}' y='{}'>{ratio:.2}</text>",
            top + 14.0,
            top + 4.0,
            length.abs().max(1.0),
            one + length.max(0.0) + 4.0,
            top + 14.0,
        );
    }
    out + "</svg>\n"
}

fn open(height: f64) -> String {
    format!("<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}' viewBox='0 0 {WIDTH} {height}'>")
}

#[cfg(test)]
mod tests {
    use super::exponent;

    #[test]
    fn a_square_has_the_exponent_2() {
        let points = [256.0, 1024.0, 4096.0].map(|length: f64| [length, 3e-6 * length.powi(2)]);
        assert!((exponent(&points).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(exponent(&points[..2]), None);
        assert_eq!(exponent(&[[1.0, 1.0]; 3]), None);
    }
}
