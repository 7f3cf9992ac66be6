//! The kernel texts themselves: valid, and as their tables say.

use std::io::Write as _;
use std::process::{Command, Stdio};

use naga::valid::{Capabilities, ValidationFlags, Validator};

#[test]
fn every_wgsl_variant_is_valid_and_binds_what_its_table_says() {
    for kernel in smalti::kernels::wgsl() {
        let module = naga::front::wgsl::parse_str(kernel.source)
            .unwrap_or_else(|error| panic!("{}:\n{}", kernel.entry, error.emit_to_string(kernel.source)));
        // unpack2x16float, which is part of every WebGPU.
        let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        for need in kernel.needs {
            capabilities |= match *need {
                "shader_f16" => Capabilities::SHADER_FLOAT16,
                "subgroup" => Capabilities::SUBGROUP,
                other => panic!("{}: unknown need {other}", kernel.entry),
            };
        }
        Validator::new(ValidationFlags::all(), capabilities)
            .validate(&module)
            .unwrap_or_else(|error| panic!("{}:\n{}", kernel.entry, error.emit_to_string(kernel.source)));
        assert!(module.entry_points.iter().any(|point| point.name == kernel.entry), "{}: entry point", kernel.entry);

        let mut bound: Vec<_> = module
            .global_variables
            .iter()
            .filter_map(|(_, variable)| {
                let binding = variable.binding?;
                Some((binding.group, binding.binding, variable.name.clone().unwrap_or_default()))
            })
            .collect();
        bound.sort();
        let expected: Vec<_> =
            kernel.bindings.iter().zip(0..).map(|(name, binding)| (0, binding, (*name).to_owned())).collect();
        assert_eq!(bound, expected, "{}: bindings", kernel.entry);
    }
}

#[test]
fn every_wgsl_variant_fits_a_browsers_default_limits() {
    for kernel in smalti::kernels::wgsl().iter().filter(|kernel| kernel.needs.is_empty()) {
        let module = naga::front::wgsl::parse_str(kernel.source).expect("validated by another test");
        let point = module.entry_points.iter().find(|point| point.name == kernel.entry).expect("likewise");
        assert!(point.workgroup_size.iter().product::<u32>() <= 256, "{}: invocations", kernel.entry);
        assert!(kernel.bindings.len() <= 1 + 8, "{}: storage buffers", kernel.entry);
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).expect("a valid module");
        let workgroup_bytes: u32 = module
            .global_variables
            .iter()
            .filter(|(_, variable)| variable.space == naga::AddressSpace::WorkGroup)
            .map(|(_, variable)| layouter[variable.ty].size)
            .sum();
        assert!(workgroup_bytes <= 16 << 10, "{}: {workgroup_bytes} bytes of workgroup memory", kernel.entry);
    }
}

#[test]
fn every_ptx_variant_is_one_entry_with_the_parameters_and_the_target_of_its_table() {
    for kernel in smalti::kernels::cuda() {
        let entries: Vec<_> = kernel.source.matches(".entry").collect();
        assert_eq!(entries.len(), 1, "{}: entry points", kernel.entry);
        let (_, rest) = kernel.source.split_once(".visible .entry ").expect("a visible entry point");
        let (name, rest) = rest.split_once('(').expect("parameters");
        assert_eq!(name, kernel.entry);
        let (list, _) = rest.split_once(')').expect("the end of the parameters");
        let names: Vec<_> = list
            .split(',')
            .map(|parameter| parameter.split_whitespace().last().expect("a name"))
            .map(|name| name.split('[').next().expect("a name"))
            .collect();
        assert_eq!(names, kernel.parameters, "{}: parameters", kernel.entry);
        let target = kernel.source.lines().find_map(|line| line.strip_prefix(".target ")).expect("a target");
        assert_eq!([target.trim()], kernel.needs, "{}: needs", kernel.entry);
        assert!(kernel.bindings.is_empty(), "{}: PTX has parameters, no bindings", kernel.entry);
        let limits = [".reqntid", ".maxntid"].iter().any(|limit| kernel.source.contains(limit));
        assert!(limits, "{}: states its block, .reqntid or .maxntid", kernel.entry);
    }
}

#[test]
fn kernel_texts_are_ascii() {
    for kernel in smalti::kernels::wgsl().iter().chain(smalti::kernels::cuda()) {
        assert!(kernel.source.is_ascii(), "{}", kernel.entry);
    }
}

/// Tint refuses what naga lets by, above all barriers in control flow that is not uniform. It runs in Node; where Node
/// or the package is absent, the test says so and passes, unless `SMALTI_REQUIRE` names `tint`.
#[test]
fn tint_accepts_every_wgsl_variant() {
    let kernels: Vec<_> = smalti::kernels::wgsl()
        .iter()
        .map(|kernel| serde_json::json!({ "entry": kernel.entry, "needs": kernel.needs, "source": kernel.source }))
        .collect();
    match tint(&kernels) {
        Ok(errors) => assert!(errors.is_empty(), "{}", errors.join("\n")),
        Err(reason) => {
            let required = std::env::var("SMALTI_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|name| name == "tint"), "SMALTI_REQUIRE names tint: {reason}");
            println!("SKIPPED on tint: {reason}");
            return;
        }
    }
    let source = "@compute @workgroup_size(4) fn broken(@builtin(local_invocation_index) i: u32) {
        if i < 2u { workgroupBarrier(); }
    }";
    let broken = serde_json::json!({ "entry": "broken", "needs": [], "source": source });
    let errors = tint(&[broken]).expect("it just ran");
    assert!(errors.iter().any(|error| error.contains("uniform")), "a barrier that some skip was let by: {errors:?}");
}

fn tint(kernels: &[serde_json::Value]) -> Result<Vec<String>, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tint/check.mjs");
    let mut node = Command::new("node")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("node: {error}"))?;
    let input = serde_json::to_vec(kernels).expect("strings are JSON");
    let mut stdin = node.stdin.take().expect("piped");
    // A script that stops early closes its input; what it then says is the better message.
    let written = stdin.write_all(&input);
    drop(stdin);
    let output = node.wait_with_output().map_err(|error| format!("node: {error}"))?;
    if output.status.code() == Some(3) {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    assert!(output.status.success(), "{script}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    written.expect("the script read all of it");
    Ok(serde_json::from_slice(&output.stdout).expect("a list of errors"))
}
