//! Attention over keys and values in pages, and the cache of such pages.

#[cfg(feature = "cpu")]
use super::cpu;
#[cfg(feature = "wgpu")]
use super::wgpu;
use super::{Align, Attention, Compiled, Lengths, MAX_HEAD_DIM, Mask, Options, Scoring, dense_rows, reference};
use crate::device::Handle;
use crate::rope::{Pairing, Table};
use crate::{Device, Error, Float, Result, Tensor, copy, rope};

const OP: &str = "attention_paged";

/// The smallest page.
const LEAST_PAGE: usize = 16;

/// Where the keys of each batch entry lie: key `j` is slot `j mod page_size` of page `pages[j / page_size]`.
#[derive(Debug, Clone, Default)]
pub struct PageTable {
    /// The pages of each batch entry, in the order of its keys.
    pub pages: Vec<Vec<u32>>,
    /// How many keys each batch entry has.
    pub lengths: Vec<usize>,
}

/// [`attention`](super::attention) over keys and values in pages.
///
/// | operand   | shape                                       | element        | layout                                 |
/// |-----------|---------------------------------------------|----------------|----------------------------------------|
/// | `q`       | `[batch, heads, q_len, head_dim]`           | f32, f16, bf16 | any; no copy if the last axis is dense |
/// | `k`, `v`  | `[pages, page_size, kv_heads, head_dim]`    | as `q`         | likewise                               |
/// | `y`       | as `q`                                      | as `q`         | contiguous                             |
/// | `lse`     | `[batch, heads, q_len]`                     | f32            | contiguous                             |
///
/// The mask is [`Mask::Full`] or [`Mask::Causal`] with [`Align::BottomRight`], each with the length of the batch entry:
/// query `i` sees all its keys, or those up to `i + length - q_len`. GPUs read keys and values where they lie; on the host
/// the pages in use are gathered first.
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit, or the table has not an entry per batch entry; [`Error::Value`] if a page does
/// not exist or is missing, a page has fewer than 16 slots, the mask is another, or there is a bias or there are
/// value weights; as [`attention`](super::attention) otherwise.
///
/// # Source
/// Kwon et al. 2023, arXiv:2309.06180, section 4.1.
pub fn paged<T: Float>(
    q: &Tensor<T>,
    k: &Tensor<T>,
    v: &Tensor<T>,
    table: &PageTable,
    options: &Options,
) -> Result<Attention<T>> {
    let device = q.device();
    let &[batch, heads, q_len, head_dim] = q.shape() else {
        return Err(Error::shape(OP, "q", q.shape(), "[batch, heads, q_len, head_dim]"));
    };
    let &[pages, page_size, kv_heads, width] = k.shape() else {
        return Err(Error::shape(OP, "k", k.shape(), "[pages, page_size, kv_heads, head_dim]"));
    };
    device.check_same(OP, "k", k.device())?;
    device.check_same(OP, "v", v.device())?;
    if width != head_dim || page_size < LEAST_PAGE || !(1..=MAX_HEAD_DIM).contains(&head_dim) {
        let expected = format!("[pages, at least {LEAST_PAGE}, kv_heads, {head_dim}], at most {MAX_HEAD_DIM}");
        return Err(Error::shape(OP, "k", k.shape(), expected));
    }
    if v.shape() != k.shape() {
        return Err(Error::shape(OP, "v", v.shape(), format!("{:?}, as k has", k.shape())));
    }
    if heads > 0 && (kv_heads == 0 || !heads.is_multiple_of(kv_heads)) {
        return Err(Error::shape(OP, "k", k.shape(), format!("a number of heads that divides the {heads} of q")));
    }
    let causal = match options.mask {
        Mask::Full => false,
        Mask::Causal { align: Align::BottomRight } => true,
        _ => return Err(Error::value(OP, "mask", "another", "Full, or Causal with BottomRight")),
    };
    if options.bias.is_some() {
        return Err(Error::value(OP, "bias", "present", "no bias"));
    }
    if options.value_weights.is_some() {
        return Err(Error::value(OP, "value_weights", "present", "none"));
    }
    let scoring = Scoring::checked(OP, options)?;
    table.check(batch, pages, page_size)?;

    let most = table.lengths.iter().copied().max().unwrap_or(0);
    let end =
        |length: usize, i: usize| if causal { (i + length + 1).saturating_sub(q_len).min(length) } else { length };
    let ranges = table.lengths.iter().flat_map(|length| (0..q_len).map(|i| end(*length, i)));
    let ranges: Option<Vec<_>> = ranges.map(|end| Some([0, u32::try_from(end).ok()?])).collect();
    let ranges = ranges.ok_or_else(|| Error::value(OP, "length", most, "fewer than 2^32 keys"))?;
    let mask = Compiled { ranges, batches: batch, tiles: None, given: None };
    let lengths = Lengths { batch, q_len, k_len: most };

    let (q, k, v) = (dense_rows(q)?, dense_rows(k)?, dense_rows(v)?);
    let mut y = Tensor::empty(device, q.shape())?;
    let mut lse = Tensor::empty(device, &[batch, heads, q_len])?;
    match device.handle() {
        Handle::Reference => {
            let (k, v) = (table.gathered(&k, most)?, table.gathered(&v, most)?);
            let sees = |batch, i, j| j < mask.range(lengths, batch, i)[1];
            reference::attention(q.host(), k.host(), v.host(), scoring, None, sees, y.host_mut(), lse.host_mut());
        }
        #[cfg(feature = "cpu")]
        Handle::Cpu(cpu) => {
            let (k, v) = (table.gathered(&k, most)?, table.gathered(&v, most)?);
            cpu::attention(cpu, q.host(), k.host(), v.host(), scoring, None, &mask, y.host_mut(), lse.host_mut());
        }
        #[cfg(feature = "cuda")]
        Handle::Cuda(gpu) => {
            let words = mask.words();
            let words = Tensor::from_vec(device, &[words.len()], words)?;
            let pages = table.on(device)?;
            let visible = mask.visible(Some(words.cuda_operand()));
            let (k, v) = (k.permute(&[0, 2, 1, 3])?, v.permute(&[0, 2, 1, 3])?);
            let (pages, lse) = (Some(pages.cuda_operand()), options.lse.then_some(&lse));
            super::on_cuda(gpu, [&q, &k, &v], most, pages, scoring, None, visible, None, &y, lse)?;
        }
        #[cfg(feature = "wgpu")]
        Handle::Wgpu(_) => {
            let words = mask.words();
            let words = Tensor::from_vec(device, &[words.len()], words)?;
            let pages = table.on(device)?;
            let visible = mask.visible(Some(words.operand()));
            let (k, v) = (k.permute(&[0, 2, 1, 3])?, v.permute(&[0, 2, 1, 3])?);
            let beside = wgpu::Beside::Pages(pages.operand());
            y = super::on_wgpu(&q, &k, &v, most, scoring, beside, visible, None, &lse)?;
        }
    }
    Ok(Attention { y, lse: options.lse.then_some(lse) })
}

impl PageTable {
    fn check(&self, batch: usize, pages: usize, page_size: usize) -> Result<()> {
        if [self.pages.len(), self.lengths.len()] != [batch; 2] {
            let expected = format!("[{batch}, {batch}]: pages and a length for each batch entry");
            return Err(Error::shape(OP, "table", &[self.pages.len(), self.lengths.len()], expected));
        }
        for (own, length) in self.pages.iter().zip(&self.lengths) {
            let needed = length.div_ceil(page_size);
            if own.len() < needed {
                let expected = format!("at least {needed} pages of {page_size} for {length} keys");
                return Err(Error::value(OP, "table", own.len(), expected));
            }
            if let Some(page) = own[..needed].iter().find(|page| **page as usize >= pages) {
                return Err(Error::value(OP, "page", page, format!("one of the {pages} pages")));
            }
        }
        Ok(())
    }

    /// `[batch, kv_heads, most, head_dim]` in host memory: what the host's implementations read.
    fn gathered<T: Float>(&self, x: &Tensor<T>, most: usize) -> Result<Tensor<T>> {
        let &[_, page_size, kv_heads, head_dim] = x.shape() else { unreachable!("the op checked it") };
        let view = x.host();
        let mut dense = vec![T::zeroed(); self.lengths.len() * kv_heads * most * head_dim];
        for (entry, (pages, length)) in self.pages.iter().zip(&self.lengths).enumerate() {
            for head in 0..kv_heads {
                for key in 0..*length {
                    let from = view.layout.index(&[pages[key / page_size] as usize, key % page_size, head, 0]);
                    let to = ((entry * kv_heads + head) * most + key) * head_dim;
                    dense[to..to + head_dim].copy_from_slice(&view.data[from..from + head_dim]);
                }
            }
        }
        Tensor::from_vec(x.device(), &[self.lengths.len(), kv_heads, most, head_dim], dense)
    }

    /// `[batch, most pages]` on a GPU.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    fn on(&self, device: &Device) -> Result<Tensor<u32>> {
        let most = self.pages.iter().map(Vec::len).max().unwrap_or(0);
        let rows = self.pages.iter().flat_map(|own| own.iter().copied().chain(std::iter::repeat(0)).take(most));
        Tensor::from_vec(device, &[self.pages.len(), most], rows.collect())
    }
}

/// Keys and values of many sequences in shared pages.
///
/// A sequence that is forked shares its pages with the fork; the first append of either to a page that is not full
/// copies that page alone. Truncation gives back the pages that it empties. A clone of the whole cache shares the memory
/// of the pages until either is appended to, which then copies all of them.
#[derive(Debug, Clone)]
pub struct PagedKvCache<T: Float> {
    k: Tensor<T>,
    v: Tensor<T>,
    /// How many sequences use each page.
    users: Vec<u32>,
    free: Vec<u32>,
    sequences: Vec<Option<Sequence>>,
}

#[derive(Debug, Clone, Default)]
struct Sequence {
    pages: Vec<u32>,
    len: usize,
}

impl<T: Float> PagedKvCache<T> {
    /// A cache of `pages` pages with `page_size` slots each.
    ///
    /// # Errors
    /// [`Error::Value`] if a page has fewer than 16 slots, or the pages are 2^32 or more; [`Error::Device`] if the
    /// device has no room; [`Error::Dtype`] if it does not hold `T`.
    pub fn new(device: &Device, pages: usize, page_size: usize, kv_heads: usize, head_dim: usize) -> Result<Self> {
        const OP: &str = "PagedKvCache::new";
        if page_size < LEAST_PAGE {
            return Err(Error::value(OP, "page_size", page_size, format!("at least {LEAST_PAGE}")));
        }
        let count = u32::try_from(pages).map_err(|_| Error::value(OP, "pages", pages, "fewer than 2^32"))?;
        let shape = [pages, page_size, kv_heads, head_dim];
        Ok(Self {
            k: Tensor::zeros(device, &shape)?,
            v: Tensor::zeros(device, &shape)?,
            users: vec![0; pages],
            free: (0..count).rev().collect(),
            sequences: Vec::new(),
        })
    }

    /// A new sequence without keys; its number is what the other functions take.
    pub fn add(&mut self) -> usize {
        self.insert(Sequence::default())
    }

    fn insert(&mut self, sequence: Sequence) -> usize {
        match self.sequences.iter().position(Option::is_none) {
            Some(number) => {
                self.sequences[number] = Some(sequence);
                number
            }
            None => {
                self.sequences.push(Some(sequence));
                self.sequences.len() - 1
            }
        }
    }

    /// Another sequence with the same keys. Nothing is copied until one of the two is appended to.
    ///
    /// # Errors
    /// [`Error::Value`] if there is no such sequence.
    pub fn fork(&mut self, sequence: usize) -> Result<usize> {
        let copy = self.sequence("PagedKvCache::fork", sequence)?.clone();
        copy.pages.iter().for_each(|page| self.users[*page as usize] += 1);
        Ok(self.insert(copy))
    }

    /// Forgets all but the first `len` keys of a sequence, as after rejected drafts.
    ///
    /// # Errors
    /// [`Error::Value`] if there is no such sequence.
    pub fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        const OP: &str = "PagedKvCache::truncate";
        let page_size = self.page_size();
        self.sequence(OP, sequence)?;
        if let Some(kept) = &mut self.sequences[sequence] {
            kept.len = kept.len.min(len);
            for page in kept.pages.drain(kept.len.div_ceil(page_size)..) {
                release(&mut self.users, &mut self.free, page);
            }
        }
        Ok(())
    }

    /// Forgets a sequence; its number may be given out again.
    ///
    /// # Errors
    /// [`Error::Value`] if there is no such sequence.
    pub fn remove(&mut self, sequence: usize) -> Result<()> {
        self.truncate(sequence, 0)?;
        self.sequences[sequence] = None;
        Ok(())
    }

    /// How many keys a sequence has.
    ///
    /// # Errors
    /// [`Error::Value`] if there is no such sequence.
    pub fn len(&self, sequence: usize) -> Result<usize> {
        Ok(self.sequence("PagedKvCache::len", sequence)?.len)
    }

    /// How many pages nobody uses.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Slots of a page.
    #[must_use]
    pub fn page_size(&self) -> usize {
        self.k.shape()[1]
    }

    /// Adds keys and values to sequences, `[sequences, kv_heads, positions, head_dim]` in the order of `sequences`.
    ///
    /// # Errors
    /// [`Error::Shape`] if shapes do not fit; [`Error::Value`] if there is no such sequence or not enough free pages:
    /// then nothing has changed; as [`copy::copy_into`].
    pub fn append(&mut self, sequences: &[usize], k: &Tensor<T>, v: &Tensor<T>) -> Result<()> {
        self.append_turned(sequences, k, v, None)
    }

    /// [`PagedKvCache::append`], with the keys turned on their way by the rows of the table from `starts` on, one for each
    /// sequence: as a rule how many keys it has.
    ///
    /// # Errors
    /// As [`PagedKvCache::append`]; [`Error::Value`] if there is not one start per sequence, and [`Error::Shape`] if the
    /// table has batch entries, more pairs than the keys, or not the rows that are asked for: then nothing has changed.
    pub fn append_rope(
        &mut self,
        sequences: &[usize],
        k: &Tensor<T>,
        v: &Tensor<T>,
        table: &Table,
        starts: &[usize],
        pairing: Pairing,
    ) -> Result<()> {
        const OP: &str = "PagedKvCache::append_rope";
        if starts.len() != sequences.len() {
            return Err(Error::value(OP, "starts", starts.len(), format!("{}, one per sequence", sequences.len())));
        }
        let &[rows, pairs] = table.cos.shape() else {
            return Err(Error::shape(OP, "table", table.cos.shape(), "[positions, pairs]"));
        };
        let end = starts.iter().max().map_or(0, |start| start.saturating_add(k.shape().get(2).copied().unwrap_or(0)));
        if end > rows || 2 * pairs > self.k.shape()[3] {
            let expected = format!("at least {end} positions and at most {} pairs", self.k.shape()[3] / 2);
            return Err(Error::shape(OP, "table", table.cos.shape(), expected));
        }
        self.k.device().check_same(OP, "table", table.cos.device())?;
        self.append_turned(sequences, k, v, Some((table, starts, pairing)))
    }

    fn append_turned(
        &mut self,
        sequences: &[usize],
        k: &Tensor<T>,
        v: &Tensor<T>,
        turn: Option<(&Table, &[usize], Pairing)>,
    ) -> Result<()> {
        const OP: &str = "PagedKvCache::append";
        let &[_, page_size, kv_heads, head_dim] = self.k.shape() else { unreachable!("made with four axes") };
        let positions = k.shape().get(2).copied().unwrap_or(0);
        let expected = [sequences.len(), kv_heads, positions, head_dim];
        for (operand, tensor) in [("k", k), ("v", v)] {
            self.k.device().check_same(OP, operand, tensor.device())?;
            if tensor.shape() != expected {
                return Err(Error::shape(OP, operand, tensor.shape(), format!("{expected:?}")));
            }
        }
        let mut needed = 0;
        for (at, number) in sequences.iter().enumerate() {
            let sequence = self.sequence(OP, *number)?;
            if sequences[..at].contains(number) {
                return Err(Error::value(OP, "sequence", number, "each sequence once"));
            }
            needed += (sequence.len + positions).div_ceil(page_size) - sequence.pages.len();
            needed += usize::from(positions > 0 && self.shared_last(sequence).is_some());
        }
        if needed > self.free.len() {
            let expected = format!("at most {} free pages", self.free.len());
            return Err(Error::value(OP, "pages needed", needed, expected));
        }
        if positions == 0 {
            return Ok(());
        }
        for pages in [&mut self.k, &mut self.v] {
            pages.unshare(0, pages.shape()[0])?;
        }
        for (entry, number) in sequences.iter().enumerate() {
            self.own_last(*number)?;
            let mut sequence = self.sequences[*number].take().expect("looked up above");
            let end = sequence.len + positions;
            while sequence.pages.len() * page_size < end {
                sequence.pages.push(self.take());
            }
            let first = sequence.len;
            let mut written = Ok(());
            while sequence.len < end && written.is_ok() {
                let (page, slot) = (sequence.pages[sequence.len / page_size], sequence.len % page_size);
                let count = (page_size - slot).min(end - sequence.len);
                let from = sequence.len - first;
                let turn = turn.map(|(table, starts, pairing)| (table, starts[entry] + from, pairing));
                written = write(&mut self.k, page, slot, k, entry, from, count, turn)
                    .and_then(|()| write(&mut self.v, page, slot, v, entry, from, count, None));
                sequence.len += count;
            }
            if written.is_err() {
                sequence.len = first;
            }
            self.sequences[*number] = Some(sequence);
            written?;
        }
        Ok(())
    }

    /// [`paged`] over the keys of these sequences, one per batch entry of `q`.
    ///
    /// # Errors
    /// As [`paged`]; [`Error::Value`] if there is no such sequence.
    pub fn attention(&self, sequences: &[usize], q: &Tensor<T>, options: &Options) -> Result<Attention<T>> {
        let mut table = PageTable::default();
        for number in sequences {
            let sequence = self.sequence("PagedKvCache::attention", *number)?;
            table.pages.push(sequence.pages.clone());
            table.lengths.push(sequence.len);
        }
        paged(q, &self.k, &self.v, &table, options)
    }

    fn sequence(&self, op: &'static str, number: usize) -> Result<&Sequence> {
        let found = self.sequences.get(number).and_then(Option::as_ref);
        found.ok_or_else(|| Error::value(op, "sequence", number, "one that was added and not removed"))
    }

    /// The page that the next key goes to, if another sequence uses it too.
    fn shared_last(&self, sequence: &Sequence) -> Option<u32> {
        let partial = !sequence.len.is_multiple_of(self.page_size());
        sequence.pages.last().copied().filter(|page| partial && self.users[*page as usize] > 1)
    }

    /// Gives a sequence a copy of the page that its next key goes to, if another sequence uses it too.
    fn own_last(&mut self, number: usize) -> Result<()> {
        let Some(shared) = self.sequences[number].as_ref().and_then(|sequence| self.shared_last(sequence)) else {
            return Ok(());
        };
        let own = self.take();
        for pages in [&mut self.k, &mut self.v] {
            // Through memory of its own: a GPU does not copy within a buffer.
            let source = pages.narrow(0, shared as usize, 1)?;
            let mut between = Tensor::empty(source.device(), source.shape())?;
            copy::copy_into(&source, &mut between)?;
            drop(source);
            copy::copy_into_slice(&between, pages, 0, own as usize)?;
        }
        release(&mut self.users, &mut self.free, shared);
        if let Some(last) = self.sequences[number].as_mut().and_then(|sequence| sequence.pages.last_mut()) {
            *last = own;
        }
        Ok(())
    }

    /// A page that nobody uses; the callers have counted them.
    fn take(&mut self) -> u32 {
        let page = self.free.pop().expect("as many as were counted are free");
        self.users[page as usize] = 1;
        page
    }
}

fn release(users: &mut [u32], free: &mut Vec<u32>, page: u32) {
    users[page as usize] -= 1;
    if users[page as usize] == 0 {
        free.push(page);
    }
}

/// Copies `count` positions of one batch entry into neighbouring slots of a page, turned by the rows of a table from one
/// on, if there is one.
fn write<T: Float>(
    pages: &mut Tensor<T>,
    page: u32,
    slot: usize,
    x: &Tensor<T>,
    entry: usize,
    from: usize,
    count: usize,
    turn: Option<(&Table, usize, Pairing)>,
) -> Result<()> {
    let x = x.narrow(0, entry, 1)?.narrow(2, from, count)?;
    let part = pages.layout().narrow(0, page as usize, 1).and_then(|page| page.narrow(1, slot, count));
    let part = part.and_then(|part| part.permute(&[0, 2, 1, 3])).expect("a page of the cache, and slots inside it");
    pages.with_part(part, |part| match turn {
        None => copy::copy_into(&x, part),
        Some((table, start, pairing)) => rope::rope_into(&x, table, start, pairing, part),
    })
}
