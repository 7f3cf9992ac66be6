//! How fast plain loops run on one core, with all checks on: `cargo run --release -p cuda-emulator --example speed`.

use cuda_emulator::{Architecture, Launch, Machine, Module};

/// Name, iterations, and the instructions of an iteration.
const LOOPS: [(&str, u32, &str); 6] = [
    (
        "fma.rn.f32",
        100_000,
        "fma.rn.f32 f0, f0, factor, step; fma.rn.f32 f1, f1, factor, step; fma.rn.f32 f2, f2, factor, step;
         fma.rn.f32 f3, f3, factor, step; fma.rn.f32 f4, f4, factor, step; fma.rn.f32 f5, f5, factor, step;",
    ),
    (
        "fma.rn.f16x2",
        20_000,
        "fma.rn.f16x2 r0, r0, r0, r0; fma.rn.f16x2 r1, r1, r1, r1; fma.rn.f16x2 r2, r2, r2, r2;",
    ),
    (
        "ld.global and st.global",
        20_000,
        "ld.global.f32 f0, [address]; ld.global.f32 f1, [address+1024]; st.global.f32 [address], f0;
         st.global.f32 [address+1024], f1;",
    ),
    (
        "ld.global.v4",
        20_000,
        "ld.global.v4.f32 {f0, f1, f2, f3}, [wide]; ld.global.v4.f32 {f0, f1, f2, f3}, [wide+4096];",
    ),
    (
        "ld.shared and st.shared",
        20_000,
        "st.shared.f32 [row], f0; ld.shared.f32 f0, [row]; st.shared.f32 [row+4096], f0; ld.shared.f32 f0, [row+4096];",
    ),
    (
        "ldmatrix and mma.sync.m16n8k16",
        5_000,
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {r0, r1, r2, r3}, [row_of_16];
         mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {f0, f1, f2, f3}, {r0, r1, r2, r3}, {r0, r1}, {f0, f1, f2, f3};
         mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {f4, f5, f6, f7}, {r0, r1, r2, r3}, {r2, r3}, {f4, f5, f6, f7};",
    ),
];

/// Nanoseconds that this thread has had a core to itself, where Linux says so: others may be using the machine.
fn time_on_core() -> Option<u64> {
    std::fs::read_to_string("/proc/thread-self/schedstat").ok()?.split_whitespace().next()?.parse().ok()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (name, iterations, body) in LOOPS {
        let text = format!(
            ".version 7.0
            .target sm_80
            .address_size 64
            .visible .entry loop(.param .u64 buffer)
            {{
                .reg .f32 f<8>, factor, step;
                .reg .b32 r<8>, row, row_of_16, done, thread;
                .reg .b64 address, wide, offset;
                .reg .pred again;
                .shared .align 16 .b8 place[8192];
                ld.param.u64    address, [buffer];
                mov.u32         thread, %tid.x;
                mul.wide.u32    offset, thread, 16;
                add.u64         wide, address, offset;
                mul.wide.u32    offset, thread, 4;
                add.u64         address, address, offset;
                mov.u32         row, place;
                mad.lo.u32      row_of_16, thread, 16, row;
                mad.lo.u32      row, thread, 4, row;
                mov.f32         factor, 0.5;
                mov.f32         step, 1.0;
                cvt.rn.f32.u32  f0, thread;
                st.shared.v4.u32 [row_of_16], {{thread, thread, thread, thread}};
                st.shared.v4.u32 [row_of_16+4096], {{thread, thread, thread, thread}};
                bar.sync        0;
                mov.u32         done, 0;
            next:
                {body}
                add.u32         done, done, 1;
                setp.lt.u32     again, done, {iterations};
                @again bra      next;
                ret;
            }}"
        );
        let module = Module::parse(&text)?;
        let machine = Machine::new(Architecture::parse("sm_80").ok_or("sm_80 is an architecture")?);
        machine.set_workers(1);
        let buffer = machine.allocate(8192)?;
        machine.fill(buffer, 0, 8192)?;
        let kernel = module.function("loop").ok_or("the text defines it")?;
        let parameters = &buffer.to_le_bytes();
        let launch = Launch { grid: [1; 3], block: [256, 1, 1], shared_bytes: 0, parameters };
        let (start, started) = (std::time::Instant::now(), time_on_core());
        let counts = machine.launch(&module, kernel, launch)?;
        let seconds = match (started, time_on_core()) {
            (Some(started), Some(now)) => (now - started) as f64 / 1e9,
            _ => start.elapsed().as_secs_f64(),
        };
        let done = counts.thread_instructions.total() as f64;
        println!("{name:32} {:6.0} million thread-instructions per second", done / seconds / 1e6);
    }
    Ok(())
}
