//! How fast a plain loop of FMAs runs on one core, with all checks on: `cargo run --release --example fma_speed`.

use cuda_emulator::{Architecture, Launch, Machine, Module};

const ITERATIONS: u32 = 500_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let body: String = (0..8).map(|index| format!("fma.rn.f32 sum{index}, sum{index}, factor, step;\n")).collect();
    let text = format!(
        ".version 7.0
        .target sm_80
        .address_size 64
        .visible .entry fma(.param .u64 out, .param .u32 iterations)
        {{
            .reg .f32 sum<8>, factor, step;
            .reg .b32 count, done, thread;
            .reg .b64 address, offset;
            .reg .pred again;
            ld.param.u64    address, [out];
            ld.param.u32    count, [iterations];
            mov.u32         thread, %tid.x;
            mov.f32         factor, 0.5;
            mov.f32         step, 1.0;
            cvt.rn.f32.u32  sum0, thread;
            mov.f32         sum1, sum0;
            mov.f32         sum2, sum0;
            mov.f32         sum3, sum0;
            mov.f32         sum4, sum0;
            mov.f32         sum5, sum0;
            mov.f32         sum6, sum0;
            mov.f32         sum7, sum0;
            mov.u32         done, 0;
        next:
            {body}
            add.u32         done, done, 1;
            setp.lt.u32     again, done, count;
            @again bra      next;
            mul.wide.u32    offset, thread, 4;
            add.u64         address, address, offset;
            st.global.f32   [address], sum7;
            ret;
        }}"
    );
    let module = Module::parse(&text)?;
    let machine = Machine::new(Architecture::parse("sm_80").ok_or("sm_80 is an architecture")?);
    machine.set_workers(1);
    let out = machine.allocate(1024)?;
    let mut parameters = out.to_le_bytes().to_vec();
    parameters.extend(ITERATIONS.to_le_bytes());
    let kernel = module.function("fma").ok_or("the text defines fma")?;
    let launch = Launch { grid: [1; 3], block: [256, 1, 1], shared_bytes: 0, parameters: &parameters };
    let start = std::time::Instant::now();
    let counts = machine.launch(&module, kernel, launch)?;
    let seconds = start.elapsed().as_secs_f64();
    let done = counts.thread_instructions.total() as f64;
    println!("{:.0} million thread-instructions per second", done / seconds / 1e6);
    Ok(())
}
