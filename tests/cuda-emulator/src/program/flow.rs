//! The order of a function's blocks.
//!
//! A warp whose lanes are at different places always runs those that are furthest behind, and lanes that arrive at
//! the same place go on together. For them to meet as early as they can, code must be in an order in which every
//! block comes before those it leads to, but for the way back in a loop, and in which nothing that follows a loop
//! comes before the loop's end. Compilers mostly write it so; [`arrange`] makes it certain.

use super::{Instruction, Operation};
use crate::counts::Class;

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
    Instruction { guard: None, line: 0, class: Class::Control, operation }
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

/// An estimate of the 32-bit registers that a thread needs.
pub fn registers(_instructions: &[Instruction]) -> u32 {
    32
}
