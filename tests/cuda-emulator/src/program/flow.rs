//! The order of a function's blocks.
//!
//! A warp whose lanes are at different places always runs those that are furthest behind, and lanes that arrive at
//! the same place go on together. For them to meet as early as they can, code must be in an order in which every
//! block comes before those it leads to, but for the way back in a loop, and in which nothing that follows a loop
//! comes before the loop's end. Compilers mostly write it so; [`arrange`] makes it certain.

use super::operands::Use;
use super::{Instruction, Operation, Register};
use crate::counts::Class;
use std::collections::HashMap;

/// Brings blocks into that order.
pub fn arrange(mut instructions: Vec<Instruction>) -> Vec<Instruction> {
    let end = instructions.len();
    if end == 0 {
        return instructions;
    }
    let mut starts = vec![false; end + 1];
    starts[0] = true;
    for (at, instruction) in instructions.iter().enumerate() {
        for target in targets(&instruction.operation) {
            starts[target as usize] = true;
        }
        if ends_block(&instruction.operation) {
            starts[at + 1] = true;
        }
    }
    // The place behind the last instruction is a block of its own: running into it returns.
    starts[end] = true;
    let firsts: Vec<usize> = (0..=end).filter(|at| starts[*at]).collect();
    let mut block_of = vec![0; end + 1];
    for (block, first) in firsts.iter().enumerate() {
        let next = firsts.get(block + 1).copied().unwrap_or(end + 1);
        block_of[*first..next].fill(block);
    }
    let successors: Vec<Vec<usize>> = (0..firsts.len())
        .map(|block| {
            let Some(next) = firsts.get(block + 1) else { return Vec::new() };
            let last = &instructions[next - 1];
            let mut to: Vec<usize> = targets(&last.operation).map(|target| block_of[target as usize]).collect();
            if last.guard.is_some() || !leaves(&last.operation) {
                to.push(block + 1);
            }
            to
        })
        .collect();
    let mut order = Vec::with_capacity(firsts.len());
    order_blocks(&successors, (0..firsts.len()).collect(), &mut order);
    if order.iter().copied().eq(0..firsts.len()) {
        return instructions;
    }

    // Copy the blocks in order, with a jump where the next block is no longer next.
    let mut moved = Vec::with_capacity(end + 8);
    let mut new_first = vec![0u32; firsts.len()];
    for (place, block) in order.iter().enumerate() {
        new_first[*block] = moved.len() as u32;
        let Some(next) = firsts.get(block + 1) else {
            // The end of the function, which is no longer the end of the code.
            if place + 1 < order.len() {
                moved.push(unconditional(Operation::Return));
            }
            continue;
        };
        moved.extend(instructions[firsts[*block]..*next].iter_mut().map(|instruction| {
            let nothing = unconditional(Operation::Nothing);
            std::mem::replace(instruction, nothing)
        }));
        let falls_through = successors[*block].contains(&(block + 1));
        if falls_through && order.get(place + 1) != Some(&(block + 1)) {
            moved.push(unconditional(Operation::Jump { target: firsts[block + 1] as u32 }));
        }
    }
    for instruction in &mut moved {
        let renew = |target: &mut u32| *target = new_first[block_of[*target as usize]];
        match &mut instruction.operation {
            Operation::Branch { target } | Operation::Jump { target } => renew(target),
            Operation::BranchTable { targets, .. } => targets.iter_mut().for_each(renew),
            _ => {}
        }
    }
    moved
}

fn unconditional(operation: Operation) -> Instruction {
    Instruction { guard: None, line: 0, class: Class::Control, operation, touched: None }
}

fn targets(operation: &Operation) -> impl Iterator<Item = u32> + '_ {
    let (one, many): (Option<u32>, &[u32]) = match operation {
        Operation::Branch { target } | Operation::Jump { target } => (Some(*target), &[]),
        Operation::BranchTable { targets, .. } => (None, targets),
        _ => (None, &[]),
    };
    one.into_iter().chain(many.iter().copied())
}

fn ends_block(operation: &Operation) -> bool {
    leaves(operation)
}

/// Whether nothing runs on to the next instruction, if unguarded.
fn leaves(operation: &Operation) -> bool {
    matches!(
        operation,
        Operation::Branch { .. }
            | Operation::Jump { .. }
            | Operation::BranchTable { .. }
            | Operation::Return
            | Operation::Exit
            | Operation::Trap
    )
}

/// Appends `blocks`, of which the first is where control enters, in topological order of their loops; each loop's
/// blocks, again in such an order once its way back to its first block is cut, stay together.
fn order_blocks(successors: &[Vec<usize>], blocks: Vec<usize>, order: &mut Vec<usize>) {
    for mut component in components(successors, &blocks) {
        if component.len() == 1 {
            order.push(component[0]);
            continue;
        }
        // The block that the text has first is where a loop is entered; cutting it breaks the loop.
        component.sort_unstable();
        let header = component.remove(0);
        order.push(header);
        order_blocks(successors, component, order);
    }
}

/// Strongly connected components of the graph restricted to `blocks`, in topological order (Tarjan's algorithm,
/// with its own stack). Among blocks that could go either way the one that the text has first goes first.
fn components(successors: &[Vec<usize>], blocks: &[usize]) -> Vec<Vec<usize>> {
    const UNSEEN: usize = usize::MAX;
    let mut index = vec![UNSEEN; successors.len()];
    let mut low = vec![0; successors.len()];
    let mut inside = vec![false; successors.len()];
    let mut on_stack = vec![false; successors.len()];
    for block in blocks {
        inside[*block] = true;
    }
    let mut found = Vec::new();
    let mut stack = Vec::new();
    let mut count = 0;
    // Later blocks first: what is found last comes first in topological order.
    for root in blocks.iter().rev() {
        if index[*root] != UNSEEN {
            continue;
        }
        let mut visiting = vec![(*root, sorted(successors, *root))];
        index[*root] = count;
        low[*root] = count;
        count += 1;
        stack.push(*root);
        on_stack[*root] = true;
        while let Some((block, left)) = visiting.last_mut() {
            let block = *block;
            if let Some(next) = left.pop() {
                if !inside[next] {
                    continue;
                }
                if index[next] == UNSEEN {
                    index[next] = count;
                    low[next] = count;
                    count += 1;
                    stack.push(next);
                    on_stack[next] = true;
                    visiting.push((next, sorted(successors, next)));
                } else if on_stack[next] {
                    low[block] = low[block].min(index[next]);
                }
                continue;
            }
            visiting.pop();
            if let Some((parent, _)) = visiting.last() {
                low[*parent] = low[*parent].min(low[block]);
            }
            if low[block] == index[block] {
                let mut component = Vec::new();
                while let Some(member) = stack.pop() {
                    on_stack[member] = false;
                    component.push(member);
                    if member == block {
                        break;
                    }
                }
                found.push(component);
            }
        }
    }
    found.reverse();
    found
}

/// Successors in the order in which `pop` takes the last of the text first.
fn sorted(successors: &[Vec<usize>], block: usize) -> Vec<usize> {
    let mut all = successors[block].clone();
    all.sort_unstable();
    all
}

/// An estimate of the 32-bit registers that a thread needs: those whose values are needed later, where they are most.
/// `widths` are the registers' sizes in bits.
pub fn registers(instructions: &[Instruction], widths: &[u32]) -> u32 {
    let words = widths.len().div_ceil(64);
    // What is live before each instruction that something jumps to, found backwards until nothing changes.
    let mut live_before: HashMap<u32, Vec<u64>> = HashMap::new();
    for instruction in instructions {
        for target in targets(&instruction.operation) {
            live_before.insert(target, vec![0; words]);
        }
    }
    loop {
        let mut changed = false;
        let mut most = 0;
        let mut live = Live { bits: vec![0; words], registers: 0, widths };
        for (at, instruction) in instructions.iter().enumerate().rev() {
            if leaves(&instruction.operation) && instruction.guard.is_none() {
                live.clear();
            }
            for target in targets(&instruction.operation) {
                if let Some(bits) = live_before.get(&target) {
                    live.join(bits);
                }
            }
            // What is written takes a register, even if no one reads it.
            let mut reads = Vec::new();
            instruction.operation.registers(&mut |register| match register {
                Use::Write(register) => {
                    live.set(register, true);
                    reads.push((register, false));
                }
                Use::Read(register) => reads.push((register, true)),
            });
            most = most.max(live.registers);
            for (register, read) in reads {
                if read || instruction.guard.is_none() {
                    live.set(register, read);
                }
            }
            most = most.max(live.registers);
            if let Some(known) = live_before.get_mut(&(at as u32))
                && *known != live.bits
            {
                known.clone_from(&live.bits);
                changed = true;
            }
        }
        if !changed {
            // Addresses of parameters, the stack and the like take some more.
            return most + 4;
        }
    }
}

/// Registers whose values are needed.
struct Live<'a> {
    bits: Vec<u64>,
    /// How many registers of 32 bits they take.
    registers: u32,
    widths: &'a [u32],
}

impl Live<'_> {
    fn set(&mut self, register: Register, live: bool) {
        let (word, bit) = (register.0 as usize / 64, 1 << (register.0 % 64));
        if (self.bits[word] & bit != 0) == live {
            return;
        }
        self.bits[word] ^= bit;
        let registers = self.widths[register.0 as usize].div_ceil(32);
        self.registers = if live { self.registers + registers } else { self.registers - registers };
    }

    fn clear(&mut self) {
        self.bits.fill(0);
        self.registers = 0;
    }

    fn join(&mut self, other: &[u64]) {
        for (word, bits) in other.iter().enumerate() {
            let mut new = bits & !self.bits[word];
            while new != 0 {
                self.set(Register(64 * word as u32 + new.trailing_zeros()), true);
                new &= new - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Module;

    fn registers(body: &str) -> u32 {
        let text = format!(
            ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {{
            .reg .b64 a, b; .reg .b32 r<20>; .reg .pred more;
            {body}
            }}"
        );
        Module::parse(&text).unwrap_or_else(|error| panic!("{error}")).function("k").map_or(0, |k| k.registers())
    }

    #[test]
    fn registers_are_counted_where_most_are_needed() {
        let least = registers("ret;");
        // Two at once, however many there are.
        let chain = "mov.u32 r0, 1; add.u32 r1, r0, 1; add.u32 r2, r1, 1; add.u32 r3, r2, 1;";
        assert_eq!(registers(chain) - least, 1);
        // Eight loaded before the first is used, and their address of two registers.
        let loads: String = (0..8).map(|at| format!("ld.global.u32 r{at}, [a+{}];", 4 * at)).collect();
        let stores: String = (0..8).map(|at| format!("st.global.u32 [a+{}], r{at};", 4 * at)).collect();
        assert_eq!(registers(&format!("ld.param.u64 a, [p]; {loads} {stores}")) - least, 10);
        // What a loop needs again stays for the whole loop.
        let held = "mov.u32 r0, 5; mov.u32 r1, 0; NEXT: add.u32 r1, r1, r0; mov.u32 r2, 1; add.u32 r3, r2, r2;
            setp.lt.u32 more, r1, 100; @more bra NEXT;";
        assert_eq!(registers(held) - least, 3);
    }
}
