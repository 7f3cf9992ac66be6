//! `printf` and `assert` of kernels.

use super::execute::{Execution, Outcome, lanes, space_of};
use crate::error::{FaultKind, Problem};
use crate::program::Memory;

impl Execution<'_, '_> {
    /// `vprintf(format, arguments)`, a lane after the other.
    pub fn print(&mut self, arguments: &[(u64, u64)], results: &[(u64, u64)], active: u32) -> Outcome<()> {
        let [(format, _), (values, _)] = arguments else {
            return Err(Problem::new(FaultKind::Operand, "vprintf takes two arguments"));
        };
        for lane in lanes(active) {
            let format = self.text(lane, self.argument(lane, *format)?)?;
            let mut at = self.argument(lane, *values)?;
            let mut pieces = format.as_str();
            let mut text = String::new();
            let mut count = 0u32;
            while let Some(start) = pieces.find('%') {
                text.push_str(&pieces[..start]);
                pieces = &pieces[start + 1..];
                let Some(end) = pieces
                    .find(|letter: char| letter.is_ascii_alphabetic() && !"hlLqjzt".contains(letter) || letter == '%')
                else {
                    break;
                };
                let (specification, letter) = (&pieces[..end], pieces.as_bytes()[end] as char);
                pieces = &pieces[end + 1..];
                if letter == '%' {
                    text.push('%');
                    continue;
                }
                let wide = "eEfFgGaAsp".contains(letter) || specification.contains('l') || specification.contains('z');
                let bytes = if wide { 8 } else { 4 };
                at = at.next_multiple_of(bytes);
                let value = self.peek(lane, at, bytes as u32)?;
                at += bytes;
                count += 1;
                let value = if letter == 's' {
                    Value::Text(self.text(lane, value)?)
                } else if "eEfFgGaA".contains(letter) {
                    Value::Float(f64::from_bits(value))
                } else if matches!(letter, 'd' | 'i') {
                    Value::Signed(if wide { value as i64 } else { i64::from(value as i32) })
                } else {
                    Value::Unsigned(value)
                };
                text.push_str(&value.format(specification, letter));
            }
            text.push_str(pieces);
            self.block.output.push_str(&text);
            if let Some((result, _)) = results.first() {
                let at = (self.warp.frames.last().map_or(0, |frame| frame.local) + result) as usize;
                let local = &mut self.warp.locals[lane];
                local.data[at..at + 4].copy_from_slice(&count.to_le_bytes());
                local.valid[at..at + 4].fill(true);
            }
        }
        Ok(())
    }

    /// The fault of `__assertfail(message, file, line, function, size)`.
    pub fn assertion(&mut self, arguments: &[(u64, u64)], active: u32) -> Problem {
        let lane = active.trailing_zeros() as usize;
        let text = |at: usize| {
            arguments.get(at).and_then(|(offset, _)| self.text(lane, self.argument(lane, *offset).ok()?).ok())
        };
        let message = text(0).unwrap_or_default();
        let file = text(1).unwrap_or_default();
        Problem::new(FaultKind::Trap, format!("assertion failed: {message} ({file})")).lane(lane)
    }

    /// An argument of 64 bits in the caller's frame.
    fn argument(&self, lane: usize, offset: u64) -> Outcome<u64> {
        let local = self.warp.frames.last().map_or(0, |frame| frame.local);
        let at = (local + offset) as usize;
        let bytes = self.warp.locals[lane].data.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_le_bytes).ok_or_else(|| Problem::new(FaultKind::Operand, "an argument without 8 bytes"))
    }

    /// Bytes at a generic address, for the host's own reading.
    fn peek(&self, lane: usize, address: u64, bytes: u32) -> Outcome<u64> {
        let fail =
            || Problem::new(FaultKind::OutOfBounds, "printf reads past its arguments").lane(lane).address(address);
        let (memory, at) = space_of(address);
        let slice = match memory {
            Memory::Local => &self.warp.locals[lane].data,
            Memory::Shared => &self.block.shared,
            Memory::Parameters => self.context.parameters,
            _ => {
                let allocation = self.context.memory.range(address, bytes.into()).map_err(|_| fail())?;
                let mut value = [0; 8];
                allocation.read(address - allocation.address, &mut value[..bytes as usize]);
                return Ok(u64::from_le_bytes(value));
            }
        };
        let found = slice.get(at as usize..at as usize + bytes as usize).ok_or_else(fail)?;
        Ok(found.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn text(&self, lane: usize, address: u64) -> Outcome<String> {
        let mut bytes = Vec::new();
        loop {
            match self.peek(lane, address + bytes.len() as u64, 1)? {
                0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
                byte => bytes.push(byte as u8),
            }
        }
    }
}

enum Value {
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
}

impl Value {
    /// As C's `printf` writes it, for the flags `-`, `0`, `+`, a width and a precision.
    fn format(&self, specification: &str, letter: char) -> String {
        let specification = specification.trim_end_matches(['h', 'l', 'L', 'q', 'j', 'z', 't']);
        let flags: String = specification.chars().take_while(|flag| "-0+ #".contains(*flag)).collect();
        let (width, precision) = match specification[flags.len()..].split_once('.') {
            Some((width, precision)) => (width, Some(precision.parse().unwrap_or(0usize))),
            None => (&specification[flags.len()..], None),
        };
        let width = width.parse().unwrap_or(0usize);
        let body = match (self, letter) {
            (Self::Text(text), _) => text.chars().take(precision.unwrap_or(usize::MAX)).collect(),
            (Self::Signed(value), _) => value.to_string(),
            (Self::Unsigned(value), 'x') => format!("{value:x}"),
            (Self::Unsigned(value), 'X') => format!("{value:X}"),
            (Self::Unsigned(value), 'o') => format!("{value:o}"),
            (Self::Unsigned(value), 'p') => format!("{value:#x}"),
            (Self::Unsigned(value), 'c') => char::from(*value as u8).to_string(),
            (Self::Unsigned(value), _) => value.to_string(),
            (Self::Float(value), 'e' | 'E') => exponential(*value, precision.unwrap_or(6)),
            (Self::Float(value), 'g' | 'G') => shortest(*value, precision.unwrap_or(6)),
            (Self::Float(value), _) if value.is_finite() => format!("{value:.*}", precision.unwrap_or(6)),
            (Self::Float(value), _) => value.to_string().to_lowercase(),
        };
        let signed = matches!(self, Self::Signed(_) | Self::Float(_));
        let body = if flags.contains('+') && signed && !body.starts_with('-') { format!("+{body}") } else { body };
        if flags.contains('-') {
            format!("{body:<width$}")
        } else if flags.contains('0') && !matches!(self, Self::Text(_)) {
            let (sign, digits) = body.split_at(usize::from(body.starts_with(['-', '+'])));
            format!("{sign}{digits:0>fill$}", fill = width.saturating_sub(sign.len()))
        } else {
            format!("{body:>width$}")
        }
    }
}

/// `%e`: C writes at least two digits of exponent.
fn exponential(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let (sign, digits) = match exponent.strip_prefix('-') {
                Some(digits) => ('-', digits),
                None => ('+', exponent),
            };
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text.to_lowercase(),
    }
}

/// `%g`
fn shortest(value: f64, precision: usize) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}").to_lowercase();
    }
    let precision = precision.max(1);
    let scientific = exponential(value, precision - 1);
    let exponent: i32 = scientific.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
    let trim = |text: &str| {
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text.to_owned() }
    };
    if exponent < -4 || exponent >= precision as i32 {
        let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "+00"));
        return format!("{}e{exponent}", trim(mantissa));
    }
    trim(&format!("{value:.*}", (precision as i32 - 1 - exponent).max(0) as usize))
}
