//! The kernel texts themselves: valid, and as their tables say.

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
fn kernel_texts_are_ascii() {
    for kernel in smalti::kernels::wgsl() {
        assert!(kernel.source.is_ascii(), "{}", kernel.entry);
    }
}
