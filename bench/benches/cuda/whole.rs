//! Whole generators with random weights and guidance, launches by the host among it.

use smalti::bf16;
use smalti_bench::Task;
use smalti_bench::cuda::{Bench, Case, Output};
use smalti_bench::generators::{LLAMAGEN_B, Shape, VAR_D16};

/// What is tried without being measured.
const fn small(shape: Shape, sides: &'static [usize]) -> Shape {
    Shape { dim: 128, heads: 2, layers: 1, hidden: 256, vocabulary: 256, sides, ..shape }
}

/// LlamaGen-B's 256 tokens one by one, and VAR-d16's transformer over ten scales.
pub fn all(bench: &mut Bench) {
    bench.family("generators");
    for shapes in [[LLAMAGEN_B, small(LLAMAGEN_B, &[2])], [VAR_D16, small(VAR_D16, &[1, 2])]] {
        let shape = shapes[bench.size(0, 1)];
        let [bytes, operations] = shape.floor::<bf16>();
        let name =
            format!("bf16 {}, {} tokens, {}M parameters", shape.name, shape.tokens(), shape.parameters() / 1_000_000);
        let task = Task { name, bytes, operations, place: None };
        bench.compare::<bf16>(task, 1, &[], |bench| {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join(shape.system);
            shape.save::<bf16>(&path)?;
            let mut run = shape.prepare::<bf16>(&path, bench.device())?;
            let mut peer = shape.task(&path);
            peer["random"] = true.into();
            let ours = move |_| {
                // The peer reads the file too.
                let _ = &folder;
                run()?;
                Ok(Output::Nothing)
            };
            Ok(Case { ours: Box::new(ours), rivals: Vec::new(), peer: Some(peer) })
        });
    }
}
