//! Renders the kernel templates of `kernels-*/` for every variant their tables list, and embeds the text.
//!
//! A family's folder holds its templates and one `kernels.toml`. Each entry of that table names a template, the
//! bindings or parameters in the order the kernel takes them, and the axes whose cartesian product is the list of variants.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, Value};

/// What a wing may hold: beyond this, a parameter belongs in the kernel's run-time parameters.
const MAX_VARIANTS: usize = 300;

#[derive(serde::Deserialize)]
struct Table {
    kernel: Vec<Entry>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    /// WGSL: the operands in binding order.
    #[serde(default)]
    bindings: Vec<String>,
    /// PTX: the parameters in launch order.
    #[serde(default)]
    parameters: Vec<String>,
    #[serde(default)]
    needs: Vec<String>,
    #[serde(default)]
    axes: Vec<Axis>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Axis {
    name: String,
    /// Written before the value in the entry point's name: `w` makes `rms_norm_f32_w64`.
    #[serde(default)]
    prefix: String,
    values: Vec<toml::Value>,
}

fn main() {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=build.rs");
    for (wing, extension) in [("wgsl", "wgsl"), ("cuda", "ptx")] {
        let folder = format!("kernels-{wing}");
        println!("cargo:rerun-if-changed={folder}");
        let rust = render_wing(&root.join(folder), extension);
        fs::write(out.join(format!("kernels_{wing}.rs")), rust).expect("OUT_DIR is writable");
    }
}

/// Renders one wing to the Rust text of a `&[Kernel]`.
fn render_wing(wing: &Path, extension: &str) -> String {
    let environment = environment(wing);
    let mut families: Vec<_> = fs::read_dir(wing)
        .unwrap_or_else(|e| panic!("{}: {e}", wing.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.join("kernels.toml").is_file())
        .collect();
    families.sort();

    let mut count = 0;
    let mut rust = String::from("&[\n");
    for folder in families {
        let family = folder.file_name().and_then(|n| n.to_str()).expect("a UTF-8 folder name");
        let table = folder.join("kernels.toml");
        let text = fs::read_to_string(&table).unwrap_or_else(|e| panic!("{}: {e}", table.display()));
        let table: Table = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", table.display()));
        for entry in table.kernel {
            let template = format!("{family}/{}.{extension}", entry.name);
            for variant in variants(&entry.axes) {
                count += 1;
                render_variant(&environment, &mut rust, family, &template, &entry, &variant);
            }
        }
    }
    rust.push(']');
    assert!(count <= MAX_VARIANTS, "{}: {count} variants, at most {MAX_VARIANTS}", wing.display());
    rust
}

/// Delimiters that leave PTX (`{%f1, %f2}`) and WGSL readable; an undefined name fails the build.
fn environment(wing: &Path) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_loader(minijinja::path_loader(wing));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    let syntax = SyntaxConfig::builder()
        .variable_delimiters("${", "}")
        .block_delimiters("/*%", "%*/")
        .comment_delimiters("/*#", "#*/")
        .line_statement_prefix("//%")
        .line_comment_prefix("//#")
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()
        .expect("distinct delimiters");
    environment.set_syntax(syntax);
    environment
}

fn minijinja_value(value: &toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::from(text.as_str()),
        toml::Value::Integer(number) => Value::from(*number),
        toml::Value::Boolean(truth) => Value::from(*truth),
        other => panic!("kernels.toml: an axis takes strings, integers and booleans, not {other}"),
    }
}

/// The cartesian product of the axes: for each variant, (axis, label in the entry point's name, value).
fn variants(axes: &[Axis]) -> Vec<Vec<(String, String, toml::Value)>> {
    axes.iter().fold(vec![Vec::new()], |products, axis| {
        let extend = |product: &Vec<_>| {
            let product = product.clone();
            axis.values.iter().map(move |value| {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let mut longer: Vec<_> = product.clone();
                longer.push((axis.name.clone(), format!("{}{text}", axis.prefix), value.clone()));
                longer
            })
        };
        products.iter().flat_map(extend).collect()
    })
}

fn render_variant(
    environment: &Environment,
    rust: &mut String,
    family: &str,
    template: &str,
    entry: &Entry,
    variant: &[(String, String, toml::Value)],
) {
    let entry_point = std::iter::once(entry.name.as_str())
        .chain(variant.iter().map(|(_, label, _)| label.as_str()))
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("_");
    let mut context: Vec<(String, Value)> =
        variant.iter().map(|(axis, _, value)| (axis.clone(), minijinja_value(value))).collect();
    context.push(("entry".to_owned(), Value::from(&entry_point)));
    let source = environment
        .get_template(template)
        .and_then(|t| t.render(Value::from_pairs(context)))
        .unwrap_or_else(|e| panic!("{template}, variant {entry_point}: {e:#}"));
    let axes: Vec<(String, String)> = variant
        .iter()
        .map(|(axis, _, value)| (axis.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    writeln!(
        rust,
        "Kernel {{ entry: {entry_point:?}, op: {:?}, family: {family:?}, variant: &{axes:?}, bindings: &{:?}, \
         parameters: &{:?}, needs: &{:?}, source: {source:?} }},",
        entry.name, entry.bindings, entry.parameters, entry.needs,
    )
    .expect("writing to a string");
}
