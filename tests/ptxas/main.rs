//! NVIDIA's own assembler takes every PTX kernel for every GPU it is meant for, and needs what `kernels.txt` says.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use smalti::kernels::{self, Kernel};

/// The GPUs that a kernel of the lowest target is assembled for.
const TARGETS: [&str; 6] = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"];

/// What the assembler says of a kernel on one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Needs {
    registers: u32,
    shared_bytes: u32,
    barriers: u32,
}

/// The assembler: named by `SMALTI_PTXAS`, or where `tests/run --setup` puts it.
fn assembler() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SMALTI_PTXAS") {
        return Some(named.into());
    }
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda-tools/nvidia");
    let folders = std::fs::read_dir(tools).ok()?;
    folders.filter_map(|folder| Some(folder.ok()?.path().join("bin/ptxas"))).find(|path| path.is_file())
}

/// Which of [`TARGETS`] a kernel runs on: the one it needs and later ones, or the only one.
fn targets(kernel: &Kernel) -> Vec<&'static str> {
    let [need] = kernel.needs else { panic!("{}: needs {:?}, expected one target", kernel.entry, kernel.needs) };
    if need.ends_with('a') {
        return vec![need];
    }
    let number = |target: &str| target["sm_".len()..].parse::<u32>().expect("a target");
    TARGETS.into_iter().filter(|target| number(target) >= number(need)).collect()
}

fn number_before(text: &str, words: &str) -> u32 {
    let before = text.split_once(words).map_or("", |(before, _)| before);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn assemble(assembler: &Path, folder: &Path, kernel: &Kernel, target: &str) -> Result<Needs, String> {
    let run = Command::new(assembler)
        .args(["-v", "-arch", target, "-o"])
        .arg(folder.join(format!("{}.{target}", kernel.entry)))
        .arg(folder.join(format!("{}.ptx", kernel.entry)))
        .output()
        .map_err(|error| format!("{}: {error}", assembler.display()))?;
    let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    if !run.status.success() {
        return Err(said);
    }
    let spilled = number_before(&said, " bytes spill stores") + number_before(&said, " bytes spill loads");
    // C7508: setmaxnreg was dropped without an error.
    if spilled > 0 || said.contains("C7508") || said.contains("warning") {
        return Err(said);
    }
    Ok(Needs {
        registers: number_before(&said, " registers"),
        shared_bytes: number_before(&said, " bytes smem"),
        barriers: number_before(&said, " barriers"),
    })
}

/// One line per kernel: shared memory and barriers, which all targets share, then registers per target.
fn table(all: &BTreeMap<&str, Vec<(&str, Needs)>>) -> String {
    let mut table = String::from(
        "# What ptxas says of each kernel. Spills are 0 everywhere. Changed by `tests/run --bless` alone.\n\
         # kernel                                shared  barriers  registers per target\n",
    );
    for (entry, needs) in all {
        let (_, first) = needs[0];
        let registers: Vec<_> =
            needs.iter().map(|(target, needs)| format!("{target} {:<3}", needs.registers)).collect();
        let line = format!("{entry:<40} {:<7} {:<9} {}", first.shared_bytes, first.barriers, registers.join("  "));
        writeln!(table, "{}", line.trim_end()).expect("writing to a string");
    }
    table
}

#[test]
fn every_kernel_assembles_without_spills_and_needs_what_the_table_says() {
    let Some(assembler) = assembler() else {
        let required = std::env::var("SMALTI_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|required| required == "ptxas"), "no ptxas: run tests/run --setup");
        println!("SKIPPED: no ptxas; tests/run --setup fetches it");
        return;
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ptxas");
    std::fs::create_dir_all(&folder).expect("a folder for the test's files");
    for kernel in kernels::cuda() {
        std::fs::write(folder.join(format!("{}.ptx", kernel.entry)), kernel.source).expect("room for a kernel's text");
    }

    let work: Vec<_> = kernels::cuda()
        .iter()
        .flat_map(|kernel| targets(kernel).into_iter().map(move |target| (kernel, target)))
        .collect();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((kernel, target)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let needs = assemble(&assembler, &folder, kernel, target);
                    results.lock().expect("no panic while held").push((kernel.entry, *target, needs));
                }
            });
        }
    });

    let mut all: BTreeMap<&str, Vec<(&str, Needs)>> = BTreeMap::new();
    let mut failures = String::new();
    let mut results = results.into_inner().expect("no panic while held");
    // In the order of the targets, whichever thread was first.
    results.sort_by_key(|(_, target, _)| TARGETS.iter().position(|one| one == target));
    for (entry, target, needs) in results {
        match needs {
            Ok(needs) => all.entry(entry).or_default().push((target, needs)),
            Err(said) => failures += &format!("{entry} for {target}:\n{said}\n"),
        }
    }
    assert!(failures.is_empty(), "{failures}");
    for (entry, needs) in &all {
        let same = |(_, one): &(&str, Needs)| {
            (one.shared_bytes, one.barriers) == (needs[0].1.shared_bytes, needs[0].1.barriers)
        };
        assert!(needs.iter().all(same), "{entry}: shared memory and barriers differ between targets: {needs:?}");
    }

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ptxas/kernels.txt");
    let found = table(&all);
    if std::env::var_os("SMALTI_BLESS").is_some() {
        std::fs::write(&path, found).expect("a writable table");
        return;
    }
    let expected = std::fs::read_to_string(&path).expect("tests/ptxas/kernels.txt");
    let differences: Vec<_> = found
        .lines()
        .filter(|line| !expected.lines().any(|other| other == *line))
        .map(|line| format!("+ {line}"))
        .chain(
            expected.lines().filter(|line| !found.lines().any(|other| other == *line)).map(|line| format!("- {line}")),
        )
        .collect();
    assert!(
        differences.is_empty(),
        "ptxas says otherwise than tests/ptxas/kernels.txt; if that is meant, tests/run --bless\n{}",
        differences.join("\n")
    );
}
