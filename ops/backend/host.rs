//! Buffers in host memory. Those that the CPU's ops fill are used again, since fresh memory costs as much as an op that
//! streams through it: the system clears every page first.

#[cfg(feature = "cpu")]
use std::any::Any;
use std::ops::Deref;
#[cfg(feature = "cpu")]
use std::sync::{Arc, Mutex};

use crate::Element;
#[cfg(feature = "cpu")]
use crate::backend::cpu::Cpu;

/// Elements in host memory.
pub(crate) struct Host<T: Element> {
    data: Vec<T>,
    /// Where the memory goes in the end, if an op asked for it.
    #[cfg(feature = "cpu")]
    home: Option<Arc<Cpu>>,
}

impl<T: Element> Host<T> {
    /// What a caller gave.
    pub(crate) fn given(data: Vec<T>) -> Self {
        Self {
            data,
            #[cfg(feature = "cpu")]
            home: None,
        }
    }

    /// For an op to fill: this many elements, of any values.
    #[cfg(feature = "cpu")]
    pub(crate) fn for_output(cpu: &Arc<Cpu>, len: usize) -> Self {
        Self { data: cpu.kept.take(len).unwrap_or_else(|| vec![T::zeroed(); len]), home: Some(Arc::clone(cpu)) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        &mut self.data
    }
}

impl<T: Element> Deref for Host<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.data
    }
}

impl<T: Element> Clone for Host<T> {
    fn clone(&self) -> Self {
        Self::given(self.data.clone())
    }
}

#[cfg(feature = "cpu")]
impl<T: Element> Drop for Host<T> {
    fn drop(&mut self) {
        if let Some(cpu) = &self.home {
            cpu.kept.give(std::mem::take(&mut self.data));
        }
    }
}

/// Buffers that wait for an op that needs as much.
#[cfg(feature = "cpu")]
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Waiting>);

#[cfg(feature = "cpu")]
#[derive(Debug, Default)]
struct Waiting {
    bytes: usize,
    /// The oldest first: each with its bytes, a `Vec` of its elements.
    buffers: Vec<(usize, Box<dyn Any + Send>)>,
}

#[cfg(feature = "cpu")]
impl Kept {
    /// Bytes below which the allocator has memory at hand.
    const LEAST: usize = 1 << 16;
    /// Bytes that may wait.
    pub(crate) const MOST: usize = 64 << 20;

    /// A buffer of exactly this length.
    fn take<T: Element>(&self, len: usize) -> Option<Vec<T>> {
        let bytes = len * size_of::<T>();
        if bytes < Self::LEAST {
            return None;
        }
        let mut waiting = self.0.lock().ok()?;
        let fits = |(size, buffer): &(usize, Box<dyn Any + Send>)| *size == bytes && buffer.is::<Vec<T>>();
        let index = waiting.buffers.iter().rposition(fits)?;
        let (_, buffer) = waiting.buffers.remove(index);
        waiting.bytes -= bytes;
        buffer.downcast().ok().map(|buffer| *buffer)
    }

    /// Lets a buffer wait, and the oldest go where there are too many.
    fn give<T: Element>(&self, mut buffer: Vec<T>) {
        let bytes = size_of_val(buffer.as_slice());
        if !(Self::LEAST..=Self::MOST).contains(&bytes) {
            return;
        }
        if cfg!(debug_assertions) {
            // So that an op that leaves some of its output as it was is seen.
            bytemuck::cast_slice_mut(&mut buffer).fill(0xa5u8);
        }
        let Ok(mut waiting) = self.0.lock() else { return };
        waiting.bytes += bytes;
        waiting.buffers.push((bytes, Box::new(buffer)));
        let mut let_go = 0;
        while waiting.bytes > Self::MOST {
            waiting.bytes -= waiting.buffers[let_go].0;
            let_go += 1;
        }
        let old: Vec<_> = waiting.buffers.drain(..let_go).collect();
        drop(waiting);
        drop(old);
    }
}

#[cfg(all(test, feature = "cpu"))]
mod tests {
    use super::{Host, Kept};
    use crate::backend::cpu::Cpu;
    use std::sync::Arc;

    #[test]
    fn outputs_are_used_again_and_what_waits_is_bounded() {
        let cpu = Arc::new(Cpu::with_threads(1).expect("a thread"));
        let waiting = || cpu.kept.0.lock().expect("no panic while it was held").bytes;
        let at = |host: &Host<f32>| host.as_ptr() as usize;
        let first = Host::<f32>::for_output(&cpu, 1 << 20);
        let place = at(&first);
        drop(first);
        assert_eq!(waiting(), 4 << 20);
        // Another type or length is not served by it, nor what a caller gave kept.
        drop(Host::<u32>::given(vec![0; 1 << 20]));
        let other = [Host::<f32>::for_output(&cpu, (1 << 20) - 1), Host::for_output(&cpu, 1000)];
        assert!(other.iter().all(|host| at(host) != place));
        assert_eq!(waiting(), 4 << 20);
        assert_eq!(at(&Host::for_output(&cpu, 1 << 20)), place);
        drop(other);
        // A copy that a write made belongs to nobody, and too much is let go.
        drop(Host::<f32>::for_output(&cpu, 1 << 20).clone());
        let many: Vec<_> = (0..20).map(|_| Host::<f32>::for_output(&cpu, 1 << 20)).collect();
        drop(many);
        assert_eq!(waiting(), Kept::MOST);
        drop(Host::<f32>::for_output(&cpu, (Kept::MOST >> 2) + 1));
        assert_eq!(waiting(), Kept::MOST);
    }
}
