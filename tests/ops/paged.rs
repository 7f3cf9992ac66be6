//! Attention over parts of the keys and over pages, and the cache of pages.

use smalti::attention::{self, Align, KvCache, Mask, Options, PageTable, PagedKvCache};
use smalti::rope::{Pairing, Table};
use smalti::{Device, Error, Float, Tensor, bf16, copy, f16, rope};

use crate::common::{assert_close, devices, tensor, uniform, widened};
use crate::dumps::{self, Dump};

fn spread(seed: u64, count: usize) -> Vec<f64> {
    uniform(seed, count).iter().map(|x| 3.0 * x).collect()
}

fn merge_agrees<T: Float>() {
    for device in devices() {
        // One part, widths that end inside a word, no part at all, rows that some or all parts do not see.
        for [parts, batch, heads, q_len, head_dim] in
            [[1, 1, 1, 1, 1], [3, 2, 3, 5, 33], [4, 1, 2, 17, 64], [0, 1, 1, 2, 8]]
        {
            let rows = batch * heads * q_len;
            let shape = [parts, batch, heads, q_len, head_dim];
            let o = tensor::<T>(device, &shape, &uniform(1, parts * rows * head_dim));
            let mut lse = spread(2, parts * rows);
            for (at, lse) in lse.iter_mut().enumerate() {
                if at % rows == 1 || at % 4 == 3 {
                    *lse = f64::NEG_INFINITY;
                }
            }
            let lse = tensor::<f32>(device, &shape[..4], &lse);
            let got = attention::merge(&o, &lse).unwrap();
            let at_home = Tensor::from_vec(&Device::reference(), &shape[..4], lse.to_vec().unwrap()).unwrap();
            let expected = attention::merge(&widened(&o), &at_home).unwrap();
            let what = format!("merge {} {device} {shape:?}", T::DTYPE);
            assert_close(&what, &got.y, &expected.y, 0.0);
            assert_close(&format!("{what} lse"), &got.lse.unwrap(), &widened(&expected.lse.unwrap()), 0.0);
        }
    }
}

#[test]
fn merge_agrees_with_reference() {
    merge_agrees::<f32>();
    merge_agrees::<f16>();
    merge_agrees::<bf16>();
}

#[test]
fn merge_of_parts_is_attention_over_all_keys() {
    for device in devices() {
        let [heads, q_len, k_len, head_dim] = [2, 5, 90, 16];
        let q = tensor::<f32>(device, &[1, heads, q_len, head_dim], &spread(1, heads * q_len * head_dim));
        let k = tensor::<f32>(device, &[1, heads, k_len, head_dim], &spread(2, heads * k_len * head_dim));
        let options = Options::new(0.25).lse();
        let whole = attention::attention(&q, &k, &k, &options).unwrap();
        let mut o = Tensor::zeros(device, &[3, 1, heads, q_len, head_dim]).unwrap();
        let mut lse = Tensor::zeros(device, &[3, 1, heads, q_len]).unwrap();
        for (part, [start, count]) in [[0, 40], [40, 0], [40, 50]].into_iter().enumerate() {
            let keys = k.narrow(2, start, count).unwrap();
            let got = attention::attention(&q, &keys, &keys, &options).unwrap();
            let one = |shape: &[usize]| [&[1], shape].concat();
            copy::copy_into_slice(&got.y.reshape(&one(got.y.shape())).unwrap(), &mut o, 0, part).unwrap();
            let part_lse = got.lse.unwrap();
            copy::copy_into_slice(&part_lse.reshape(&one(part_lse.shape())).unwrap(), &mut lse, 0, part).unwrap();
        }
        let merged = attention::merge(&o, &lse).unwrap();
        assert_close(&format!("{device}"), &merged.y, &widened(&whole.y), 0.0);
        assert_close(&format!("{device} lse"), &merged.lse.unwrap(), &widened(&whole.lse.unwrap()), 0.0);
    }
}

fn paged_agrees<T: Float>() {
    for device in devices() {
        // Lengths around a page and a tile, 0, and more than a segment; a prime page size.
        for (page_size, lengths, q_len) in [(16, vec![1, 0, 16, 17], 1), (17, vec![64, 130], 7), (32, vec![1100, 3], 2)]
        {
            let [heads, kv_heads, head_dim] = [4, 2, 24];
            let batch = lengths.len();
            let each = lengths.iter().fold(0usize, |most, length| most.max(*length)).div_ceil(page_size);
            let pages: usize = each * batch + 1;
            let shape = [pages, page_size, kv_heads, head_dim];
            let k = tensor::<T>(device, &shape, &spread(1, shape.iter().product()));
            let v = tensor::<T>(device, &shape, &uniform(2, shape.iter().product()));
            let q = tensor::<T>(device, &[batch, heads, q_len, head_dim], &spread(3, batch * heads * q_len * head_dim));
            // Pages in no order, the last batch entry's first.
            let own =
                |entry: usize| (0..each).map(|n| ((each * (batch - 1 - entry) + n * 5 % each) + 1) as u32).collect();
            let table = PageTable { pages: (0..batch).map(own).collect(), lengths: lengths.clone() };
            for mask in [Mask::Full, Mask::Causal { align: Align::BottomRight }] {
                let options = Options::new(0.2).mask(mask.clone()).lse();
                let got = attention::paged(&q, &k, &v, &table, &options).unwrap();
                let expected = attention::paged(&widened(&q), &widened(&k), &widened(&v), &table, &options).unwrap();
                let what = format!("paged {} {device} {lengths:?} {mask:?}", T::DTYPE);
                assert_close(&what, &got.y, &expected.y, 0.0);
                assert_close(&format!("{what} lse"), &got.lse.unwrap(), &widened(&expected.lse.unwrap()), 0.0);
            }
        }
    }
}

#[test]
fn paged_agrees_with_reference() {
    paged_agrees::<f32>();
    paged_agrees::<f16>();
    paged_agrees::<bf16>();
}

/// Keys in pages and in one piece: the same bits, whatever page a key is in.
fn pages_give_the_bits_of_one_piece<T: Float>() {
    // Heads, heads of the keys, queries, keys, channels, slots. One key, a page and one more, pages that tiles and rows of a
    // copier do not end with, a page for all; few queries over keys in segments; rows that are not whole pieces of 16 bytes;
    // several slices of channels, and with enough heads blocks of 64 queries.
    for [heads, kv_heads, q_len, k_len, head_dim, page_size] in [
        [2usize, 1, 1, 1, 8, 16],
        [4, 2, 1, 17, 16, 16],
        [4, 1, 1, 641, 24, 16],
        [6, 3, 2, 530, 20, 23],
        [2, 2, 3, 300, 72, 37],
        [2, 1, 9, 150, 65, 16],
        [2, 2, 20, 100, 136, 33],
        [3, 1, 4, 290, 200, 64],
        [1, 1, 2, 70, 32, 1000],
        [120, 2, 17, 90, 16, 18],
    ] {
        for device in devices() {
            let most = k_len.div_ceil(page_size) as u32;
            // Keys and values in one tensor, so that neither is dense.
            let shape = [most as usize + 2, page_size, kv_heads, 2 * head_dim];
            let both = tensor::<T>(device, &shape, &spread(1, shape.iter().product()));
            let [k, v] = [0, head_dim].map(|start| both.narrow(3, start, head_dim).unwrap());
            // A sequence, and a fork that shares all pages with it but the last.
            let own: Vec<_> = (1..=most).rev().collect();
            let fork = [&own[..own.len() - 1], &[most + 1]].concat();
            let table = PageTable { pages: vec![own, fork], lengths: vec![k_len, k_len - k_len / 3] };
            let q = tensor::<T>(device, &[2, heads, q_len, head_dim], &spread(3, 2 * heads * q_len * head_dim));
            for mask in [Mask::Full, Mask::Causal { align: Align::BottomRight }] {
                let options = Options::new(0.2).mask(mask.clone()).lse();
                let got = attention::paged(&q, &k, &v, &table, &options).unwrap();
                let got = (got.y, got.lse.unwrap());
                for (entry, (pages, length)) in table.pages.iter().zip(&table.lengths).enumerate() {
                    let [k, v] = [&k, &v].map(|x| in_one_piece(x, pages).narrow(2, 0, *length).unwrap());
                    let q = q.narrow(0, entry, 1).unwrap();
                    let expected = attention::attention(&q, &k, &v, &options).unwrap();
                    let shape = [heads, q_len, *length, head_dim];
                    let what = format!("{} {device} {shape:?} of {page_size}, {mask:?}, {entry}", T::DTYPE);
                    assert!(bits(&got.0.narrow(0, entry, 1).unwrap()) == bits(&expected.y), "{what}");
                    assert!(bits(&got.1.narrow(0, entry, 1).unwrap()) == bits(&expected.lse.unwrap()), "{what}: lse");
                }
            }
        }
    }
}

/// `[1, kv_heads, all slots, head_dim]`
fn in_one_piece<T: Float>(x: &Tensor<T>, pages: &[u32]) -> Tensor<T> {
    let &[_, page_size, kv_heads, head_dim] = x.shape() else { panic!("pages have four axes") };
    let mut piece = Tensor::zeros(x.device(), &[1, kv_heads, pages.len() * page_size, head_dim]).unwrap();
    for (n, page) in pages.iter().enumerate() {
        let page = x.narrow(0, *page as usize, 1).unwrap().permute(&[0, 2, 1, 3]).unwrap();
        copy::copy_into_slice(&page, &mut piece, 2, n * page_size).unwrap();
    }
    piece
}

fn bits<T: Float>(x: &Tensor<T>) -> Vec<u64> {
    x.to_vec().unwrap().iter().map(|x| x.to_f64().to_bits()).collect()
}

#[test]
fn paged_gives_the_bits_of_keys_in_one_piece() {
    pages_give_the_bits_of_one_piece::<f32>();
    pages_give_the_bits_of_one_piece::<f16>();
    pages_give_the_bits_of_one_piece::<bf16>();
}

/// Keys and values of one sequence: `[1, kv_heads, positions, head_dim]`.
fn keys(device: &Device, seed: u64, positions: usize) -> Tensor<f32> {
    tensor(device, &[1, 2, positions, 8], &spread(seed, 2 * positions * 8))
}

/// What attention gives over these keys, joined.
fn expected(device: &Device, q: &Tensor<f32>, parts: &[(u64, usize, usize)]) -> Vec<f32> {
    let total = parts.iter().map(|(_, _, kept)| kept).sum();
    let mut joined = Tensor::zeros(device, &[1, 2, total, 8]).unwrap();
    let mut at = 0;
    for (seed, positions, kept) in parts {
        let part = keys(device, *seed, *positions).narrow(2, 0, *kept).unwrap();
        copy::copy_into_slice(&part, &mut joined, 2, at).unwrap();
        at += kept;
    }
    let options = Options::new(0.3).mask(Mask::Causal { align: Align::BottomRight });
    attention::attention(q, &joined, &joined, &options).unwrap().y.to_vec().unwrap()
}

#[test]
fn paged_cache_forks_share_pages_and_part_on_append() {
    for device in devices() {
        let q = keys(device, 9, 2);
        let options = Options::new(0.3).mask(Mask::Causal { align: Align::BottomRight });
        let mut cache = PagedKvCache::<f32>::new(device, 5, 16, 2, 8).unwrap();
        let append = |cache: &mut PagedKvCache<f32>, sequence, seed, positions| {
            let k = keys(device, seed, positions);
            cache.append(&[sequence], &k, &k)
        };
        let seen = |cache: &PagedKvCache<f32>, sequence| {
            cache.attention(&[sequence], &q, &options).unwrap().y.to_vec().unwrap()
        };
        let first = cache.add();
        append(&mut cache, first, 1, 20).unwrap();
        assert_eq!(cache.free_pages(), 3);
        let second = cache.fork(first).unwrap();
        assert_eq!(cache.free_pages(), 3, "a fork takes no page");
        append(&mut cache, second, 2, 3).unwrap();
        assert_eq!(cache.free_pages(), 2, "the page that is not full is copied");
        append(&mut cache, first, 3, 15).unwrap();
        assert_eq!(cache.free_pages(), 1, "nobody else uses it by now");
        assert_eq!(seen(&cache, first), expected(device, &q, &[(1, 20, 20), (3, 15, 15)]), "{device}");
        assert_eq!(seen(&cache, second), expected(device, &q, &[(1, 20, 20), (2, 3, 3)]), "{device}");

        // A rejected draft: the third page goes back, and the rest of the second is written anew.
        cache.truncate(first, 21).unwrap();
        assert_eq!(cache.free_pages(), 2);
        append(&mut cache, first, 4, 5).unwrap();
        assert_eq!(seen(&cache, first), expected(device, &q, &[(1, 20, 20), (3, 15, 1), (4, 5, 5)]), "{device}");

        let error = append(&mut cache, second, 5, 80).unwrap_err();
        assert!(matches!(error, Error::Value { operand: "pages needed", .. }), "{error}");
        assert_eq!((cache.len(second).unwrap(), cache.free_pages()), (23, 2), "as before");
        cache.remove(second).unwrap();
        cache.remove(first).unwrap();
        assert_eq!(cache.free_pages(), 5);
        assert!(cache.len(first).is_err());
    }
}

#[test]
fn paged_cache_clones_part_on_append() {
    for device in devices() {
        let q = keys(device, 9, 2);
        let options = Options::new(0.3).mask(Mask::Causal { align: Align::BottomRight });
        let mut cache = PagedKvCache::<f32>::new(device, 2, 16, 2, 8).unwrap();
        let sequence = cache.add();
        let append = |cache: &mut PagedKvCache<f32>, seed, positions| {
            let k = keys(device, seed, positions);
            cache.append(&[sequence], &k, &k).unwrap();
        };
        append(&mut cache, 1, 5);
        let mut clone = cache.clone();
        append(&mut cache, 2, 3);
        append(&mut clone, 3, 3);
        for (cache, seed) in [(&cache, 2), (&clone, 3)] {
            let seen = cache.attention(&[sequence], &q, &options).unwrap().y.to_vec().unwrap();
            assert_eq!(seen, expected(device, &q, &[(1, 5, 5), (seed, 3, 3)]), "{device}");
        }
    }
}

#[test]
fn paged_names_what_does_not_fit() {
    let device = Device::reference();
    let pages = Tensor::<f32>::zeros(&device, &[3, 16, 1, 8]).unwrap();
    let q = Tensor::<f32>::zeros(&device, &[1, 1, 1, 8]).unwrap();
    let fails = |own: &[u32], length, options: &Options| {
        let table = PageTable { pages: vec![own.to_vec()], lengths: vec![length] };
        attention::paged(&q, &pages, &pages, &table, options).unwrap_err().to_string()
    };
    let options = Options::new(1.0);
    assert_eq!(fails(&[3], 1, &options), "attention_paged: page is 3, expected one of the 3 pages");
    assert!(fails(&[0], 17, &options).contains("at least 2 pages"));
    assert!(fails(&[0], 1, &options.mask(Mask::Or(Vec::new()))).contains("mask"));
    assert!(PagedKvCache::<f32>::new(&device, 1, 15, 1, 8).is_err());
}

fn agrees_with_dump<T: Float>(dump: &Dump, device: &Device) {
    let input = |name: &str| dump.tensor::<T>(name, device).expect("every case has it");
    let got = if dump.op == "attention_merge" {
        attention::merge(&input("in.o"), &dump.tensor("in.lse", device).unwrap())
    } else {
        let lengths: Vec<usize> = dump.values("in.lengths").unwrap().1.iter().map(|length| *length as usize).collect();
        let (shape, pages) = dump.values("in.page_table").unwrap();
        let used = |row: &[f64]| row.iter().filter(|page| **page >= 0.0).map(|page| *page as u32).collect();
        let table = PageTable { pages: pages.chunks(shape[1]).map(used).collect(), lengths };
        let options = Options::new(dump.f32("scale").unwrap()).mask(Mask::Causal { align: Align::BottomRight }).lse();
        attention::paged(&input("in.q"), &input("in.k_pages"), &input("in.v_pages"), &table, &options)
    };
    let (got, what, reference) = (got.unwrap(), format!("{} {device}", dump.name), Device::reference());
    let naive = if T::EPSILON < 1e-6 { 0.0 } else { dump.naive_error("y") };
    assert_close(&what, &got.y, &dump.tensor("out.y", &reference).unwrap(), naive);
    assert_close(&format!("{what} lse"), &got.lse.unwrap(), &dump.tensor("out.lse", &reference).unwrap(), 0.0);
}

#[test]
fn merge_and_paged_agree_with_dumps() {
    let dumps = dumps::of_family("attention");
    let dumps = || dumps.iter().filter(|dump| matches!(dump.op.as_str(), "attention_merge" | "attention_paged"));
    assert!(dumps().count() >= 2);
    for dump in dumps() {
        for device in devices().iter().chain([&Device::reference()]) {
            match dump.dtype() {
                "f32" => agrees_with_dump::<f32>(dump, device),
                "f16" => agrees_with_dump::<f16>(dump, device),
                _ => agrees_with_dump::<bf16>(dump, device),
            }
        }
    }
}

fn turned_on_the_way_to_pages<T: Float>() {
    let [kv_heads, head_dim, page_size] = [2, 12, 16];
    for device in devices() {
        let table = Table::from_angles(device, 60, 4, |p, j| 0.3 * p as f64 + 0.1 * j as f64).unwrap();
        for pairing in [Pairing::Interleaved, Pairing::HalfSplit] {
            let mut cache = PagedKvCache::<T>::new(device, 12, page_size, kv_heads, head_dim).unwrap();
            let sequences = [cache.add(), cache.add()];
            let mut whole: [Vec<Tensor<T>>; 2] = [Vec::new(), Vec::new()];
            // Within a page, over the end of one and over two; the second sequence begins later in the table.
            for (round, positions) in [5, 20, 17].into_iter().enumerate() {
                let shape = [2, kv_heads, positions, head_dim];
                let count = shape.iter().product();
                let [k, v] = [10, 20].map(|seed| tensor::<T>(device, &shape, &uniform(seed + round as u64, count)));
                let len = cache.len(sequences[0]).unwrap();
                let starts = [len, len + 9];
                cache.append_rope(&sequences, &k, &v, &table, &starts, pairing).unwrap();
                for (entry, parts) in whole.iter_mut().enumerate() {
                    let k = k.narrow(0, entry, 1).unwrap();
                    parts.push(rope::rope(&k, &table, starts[entry], pairing).unwrap());
                    parts.push(v.narrow(0, entry, 1).unwrap());
                }
            }
            for (entry, sequence) in sequences.into_iter().enumerate() {
                let mut plain = KvCache::<T>::new(device, 1, kv_heads, 42, head_dim).unwrap();
                whole[entry].chunks(2).for_each(|part| plain.append(&part[0], &part[1]).unwrap());
                let q = tensor::<T>(device, &[1, 4, 3, head_dim], &spread(3, 12 * head_dim));
                let got = cache.attention(&[sequence], &q, &Options::new(0.3)).unwrap();
                let expected = attention::attention(&q, &plain.k(), &plain.v(), &Options::new(0.3)).unwrap();
                assert!(bits(&got.y) == bits(&expected.y), "{} {device} {pairing:?} {entry}", T::DTYPE);
            }
        }
    }
}

#[test]
fn keys_are_turned_on_the_way_to_pages() {
    turned_on_the_way_to_pages::<f32>();
    turned_on_the_way_to_pages::<f16>();
    turned_on_the_way_to_pages::<bf16>();
}

#[test]
fn a_table_that_does_not_fit_leaves_the_pages_as_they_were() {
    let device = Device::reference();
    let mut cache = PagedKvCache::<f32>::new(&device, 2, 16, 1, 4).unwrap();
    let sequence = cache.add();
    let x = Tensor::zeros(&device, &[1, 1, 3, 4]).unwrap();
    let table = |positions, pairs| Table::from_angles(&device, positions, pairs, |p, _| p as f64).unwrap();
    for (table, starts) in
        [(table(4, 2), &[2][..]), (table(9, 3), &[0]), (table(9, 2), &[0, 1]), (table(9, 2), &[usize::MAX])]
    {
        let error = cache.append_rope(&[sequence], &x, &x, &table, starts, Pairing::Interleaved).unwrap_err();
        let named = matches!(error, Error::Shape { operand: "table", .. } | Error::Value { operand: "starts", .. });
        assert!(named, "{error}");
        assert_eq!((cache.len(sequence).unwrap(), cache.free_pages()), (0, 2));
    }
}
