//! What came with sm_90 and is not in files of its own: groups, fences, registers.

use super::block::Resize;
use super::clocks::{Agent, Proxied};
use super::execute::{Execution, Next, Outcome, lanes};
use super::warp::Stop;
use super::warpgroup::WARPS;
use crate::error::{FaultKind, Problem};
use crate::program::{Operation, Touched, WARP};

impl Execution<'_, '_> {
    /// What came with sm_90: mbarriers, bulk copies, matrix products of warpgroups.
    pub fn hopper(&mut self, operation: &Operation, active: u32) -> Outcome<Next> {
        match operation {
            Operation::MbarrierInit { memory, address, count } => {
                self.mbarrier_init(*memory, address, *count, active)?;
            }
            Operation::MbarrierInvalidate { memory, address } => self.mbarrier_invalidate(*memory, address, active)?,
            Operation::MbarrierArrive(arrival) => self.mbarrier_arrive(arrival, active)?,
            Operation::MbarrierWait(wait) => match self.mbarrier_wait(wait, active)? {
                None => {}
                Some(Stop::Turn) => return Ok(Next::Stop(Stop::Turn)),
                Some(stop) => return Ok(Next::Again(stop)),
            },
            Operation::MbarrierPending { destination, state } => self.mbarrier_pending(*destination, *state, active),
            Operation::BulkCopy(copy) => self.bulk_copy(copy, active)?,
            Operation::BulkCommit => {
                for lane in lanes(active) {
                    self.warp.bulk_groups[lane] += 1;
                }
                self.warp.bulk_open &= !active;
            }
            Operation::BulkWait { groups, read } => self.bulk_wait(*groups, *read, active),
            Operation::ProxyFence { shared, global } => {
                self.block.counts.waits.fences += 1;
                self.warp.seen = self.warp.knowledge();
                if *shared {
                    self.warp.seen.fence_proxy(Proxied::Shared);
                }
                if *global {
                    self.warp.seen.fence_proxy(Proxied::Global);
                }
            }
            Operation::WarpgroupFence => {
                self.whole_warp(active, "wgmma.fence")?;
                self.warp.product_fences += 1;
            }
            Operation::WarpgroupCommit => {
                self.whole_warp(active, "wgmma.commit_group")?;
                self.warp.product_groups += 1;
                self.warp.product_open = false;
            }
            Operation::WarpgroupWait(groups) => {
                self.whole_warp(active, "wgmma.wait_group")?;
                self.block.counts.waits.products += 1;
                let done = self.warp.product_groups.saturating_sub(*groups);
                self.warp.products_done = self.warp.products_done.max(done);
                let agent = Agent::products(self.warp.index / WARPS);
                self.warp.seen.learn(agent, self.warp.products_done);
            }
            Operation::WarpgroupMatrix(_) => {
                self.whole_warp(active, "wgmma.mma_async")?;
                let all = self.context.warps_per_block();
                if (self.warp.index / WARPS + 1) * WARPS > all {
                    let detail = format!("wgmma.mma_async needs four warps, but the block has {all}");
                    return Err(Problem::new(FaultKind::MemberMask, detail).lane(0));
                }
                return Ok(Next::Stop(Stop::Warpgroup));
            }
            Operation::SetRegisters { count, increase } => return self.set_registers(*count, *increase, active),
            _ => unreachable!("`step` and `rare` handle the rest"),
        }
        Ok(Next::Advance)
    }

    /// Fails if a product that is under way uses these registers; otherwise notes that they were touched.
    pub fn check_products(&mut self, touched: &Touched, active: u32) -> Outcome<()> {
        let (fences, done) = (self.warp.product_fences, self.warp.products_done);
        let all = touched.reads.iter().map(|register| (register, false));
        for (register, writes) in all.chain(touched.writes.iter().map(|register| (register, true))) {
            let Some(used) = self.warp.register_uses.get_mut(self.registers + register.0 as usize) else { continue };
            if used.written > done || writes && used.read > done {
                let what = if writes { "writes" } else { "reads" };
                let role = if used.written > done { "a result" } else { "an operand" };
                let detail =
                    format!("it {what} a register that is {role} of the wgmma.mma_async of line {}", used.line);
                let lane = active.trailing_zeros() as usize;
                return Err(Problem::new(FaultKind::AsyncProduct, detail).lane(lane));
            }
            used.touched = fences;
        }
        Ok(())
    }

    /// Takes registers from those that are free, or gives some back.
    fn set_registers(&mut self, count: u32, increase: bool, active: u32) -> Outcome<Next> {
        self.whole_warp(active, "setmaxnreg")?;
        let (group, ordinal, line) = (self.warp.index / WARPS, self.warp.resizes, self.warp.line);
        let warp = 1 << (self.warp.index % WARPS);
        let known = self.block.resizes.iter_mut().find(|resize| resize.group == group && resize.ordinal == ordinal);
        match known {
            Some(resize) if resize.line == line => resize.warps |= warp,
            Some(resize) => {
                let detail =
                    format!("setmaxnreg, but another warp of the warpgroup is at that of line {}", resize.line);
                return Err(Problem::new(FaultKind::MemberMask, detail).lane(0));
            }
            None => self.block.resizes.push(Resize { group, ordinal, line, warps: warp }),
        }
        let now = self.warp.register_count;
        if if increase { count < now } else { count > now } {
            let name = if increase { "inc" } else { "dec" };
            let detail = format!("setmaxnreg.{name} to {count} registers from {now}");
            return Err(Problem::new(FaultKind::Operand, detail).lane(0));
        }
        if increase {
            let wanted = WARP as u32 * (count - now);
            if wanted > self.block.free_registers {
                return Ok(Next::Again(Stop::Registers));
            }
            self.block.free_registers -= wanted;
        } else {
            self.block.free_registers += WARP as u32 * (now - count);
            self.block.progressed = true;
        }
        self.warp.register_count = count;
        self.warp.resizes += 1;
        Ok(Next::Advance)
    }
}
