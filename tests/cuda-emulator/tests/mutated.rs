//! PTX with a word changed, left out or doubled is refused with its line, or decoded; then its kernels run or end with a
//! fault: never a panic, never much memory.

use cuda_emulator::{Architecture, FaultKind, Launch, Machine, Module};
use std::path::{Path, PathBuf};

/// Splits text where PTX's words and marks end; blanks stay with what they follow.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = 0;
    let kind = |c: char| match c {
        c if c.is_alphanumeric() || matches!(c, '_' | '%' | '$') => 0,
        c if c.is_whitespace() => 1,
        _ => 2,
    };
    let mut before = None;
    for (at, c) in text.char_indices() {
        if before.is_some_and(|before| before == 2 || before != kind(c)) {
            words.push(&text[start..at]);
            start = at;
        }
        before = Some(kind(c));
    }
    words.push(&text[start..]);
    words
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

/// What numbers, registers and marks become.
const OTHERS: [&str; 30] = [
    "0",
    "1",
    "31",
    "64",
    "255",
    "65535",
    "131073",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "0x",
    "0f00000000",
    "18446744073709551615",
    "-1",
    "%r0",
    "%p1",
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    ",",
    ";",
    ".v4",
    ".b128",
    ".pred",
    ".f16x2",
    "<99999999>",
    "_",
];

fn mutate(text: &[&str], random: &mut Random) -> String {
    let mut text: Vec<&str> = text.to_vec();
    for _ in 0..1 + random.below(3) {
        let (at, other) = (random.below(text.len()), random.below(text.len()));
        match random.below(6) {
            0 => text[at] = OTHERS[random.below(OTHERS.len())],
            1 => text[at] = text[other],
            2 => text.swap(at, other),
            3 => text[at] = "",
            4 => text.insert(at, text[other]),
            // A number, which is rarer than other words.
            _ => {
                let number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
                if let Some(number) = text[at..].iter().position(number) {
                    text[at + number] = OTHERS[random.below(15)];
                }
            }
        }
    }
    text.concat()
}

/// Runs each kernel of a module for a while, its parameters full of an address.
fn run(module: &Module) {
    let machine = Machine::new(Architecture::parse(module.target()).unwrap_or(Architecture::parse("sm_90a").unwrap()));
    machine.set_output(std::io::sink());
    machine.set_workers(1);
    machine.set_step_budget(2000);
    let address = machine.allocate(1 << 16).expect("room").to_le_bytes();
    machine.fill(u64::from_le_bytes(address), 0, 1 << 16).expect("as much as there is");
    for kernel in module.functions() {
        let parameters: Vec<u8> = address.into_iter().cycle().take(kernel.parameter_bytes() as usize).collect();
        for block in [[256, 1, 1], [128, 1, 1], [384, 1, 1], [32, 8, 1], [64, 1, 1], [32, 1, 1], [16, 16, 1]] {
            let launch = Launch { grid: [1; 3], block, shared_bytes: 1 << 14, parameters: &parameters };
            match machine.launch(module, kernel, launch) {
                Err(fault) if fault.kind == FaultKind::Launch => {}
                _ => break,
            }
        }
    }
}

/// PTX of nvcc, or what lies in the folder `MUTATED_FOLDER`; as many changes of each as `MUTATED_COUNT` says.
#[test]
fn changed_text_is_refused_or_run() {
    let folder = std::env::var_os("MUTATED_FOLDER")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("strangers"), PathBuf::from);
    let count = std::env::var("MUTATED_COUNT").map_or(40, |count| count.parse().expect("a number"));
    let mut paths: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ptx"))
        .collect();
    paths.sort();
    let mut refused = 0;
    for path in &paths {
        let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        // Long files are tables for a debugger, mostly.
        if text.len() > 60_000 {
            continue;
        }
        let words = words(&text);
        for seed in 1..=count {
            let changed = mutate(&words, &mut Random(0x9e37_79b9_7f4a_7c15u64.wrapping_mul(seed) | 1));
            match std::panic::catch_unwind(|| Module::parse(&changed).map(|module| run(&module))) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    refused += 1;
                    let lines = changed.lines().count() as u32 + 1;
                    assert!((1..=lines).contains(&error.line), "{} {seed}: {error}", path.display());
                }
                Err(_) => panic!("{} with seed {seed}:\n{changed}", path.display()),
            }
        }
    }
    assert!(paths.len() >= 10 && refused > 0, "{} files, {refused} refused", paths.len());
}

#[test]
fn absurd_counts_and_depths_are_refused_with_their_line() {
    let module = |outside: &str, parameter: &str, inside: &str| {
        let text = format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n{outside}\n.visible .entry kernel({parameter})\n{{\n{inside}\nret;\n}}\n"
        );
        Module::parse(&text).map(|_| ())
    };
    module(".global .b8 table[16];", ".param .b8 values[64]", ".reg .b32 r<9>; .local .b8 own[64];").unwrap();
    let nested = |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    for (line, outside, parameter, inside) in [
        (7, "", "", ".reg .b32 r<4294967295>;"),
        (7, "", "", ".reg .pred p<100000>, q<100000>;"),
        (7, "", "", ".reg .b32 a<131072>, b;"),
        (7, "", "", ".local .b8 own[524289];"),
        (8, "", "", ".local .b8 own[524288];\n.local .b8 more[1];"),
        (7, "", "", ".local .align 9223372036854775808 .b8 own[1];"),
        (7, "", "", ".local .v4 .b64 own[4611686018427387904];"),
        (7, "", "", ".local .b8 own[4294967296][4294967296];"),
        (7, "", "", ".shared .b8 place[4294967295];"),
        (7, "", "", ".param .b32 argument[18446744073709551615];"),
        (4, ".shared .b8 place[1099511627776];", "", ""),
        (4, ".global .b64 table[2305843009213693952];", "", ""),
        (4, ".global .b8 table[1073741824], more[1];", "", ""),
        (4, ".const .b8 table[65537];", "", ""),
        (5, "", ".param .b8 values[32765]", ""),
        (5, "", ".param .b8 values[32764], .param .b8 more", ""),
        (5, "", ".param .u64 .ptr .align 3 values[9999999]", ""),
        (7, "", "", &nested("{", "}")),
        (7, "", "", &format!("mov.u32 r, {};", nested("(", ")"))),
        (7, "", "", &format!("mov.u32 r, {};", nested("-", ""))),
        (7, "", "", &format!("mov.u32 r, {};", nested("{", "}"))),
        (7, "", "", &format!("@p mov.pred p, {};", nested("!", ""))),
        (4, &format!(".global .b8 table[] = {};", nested("{", "}")), "", ""),
    ] {
        let error = module(outside, parameter, inside).expect_err("absurd");
        let shown = |text: &str| text.chars().take(60).collect::<String>();
        assert_eq!(error.line, line, "{error}: {} {} {}", shown(outside), shown(parameter), shown(inside));
    }
}

#[test]
fn absurd_extents_are_no_panic() {
    for directive in [
        ".maxntid 65536, 65536, 65536",
        ".reqntid 4294967295, 4294967295",
        ".maxntid 4294967295 .minnctapersm 4294967295",
    ] {
        let text = format!(
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry kernel()\n{directive}\n{{\nsetmaxnreg.inc.sync.aligned.u32 240;\nret;\n}}\n"
        );
        let module = Module::parse(&text).unwrap();
        assert!(module.functions()[0].max_threads() <= 1024, "{directive}");
    }
}
