//! Splits PTX text into tokens.

use crate::LoadError;

/// One token of PTX.
#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// A name, an opcode's first part or a register: `mov`, `%r1`, `$L__BB0_1`.
    Word(String),
    /// A part with its dot, which is not kept: `.global`, `.L2::cache_hint`, `.x`.
    Dot(String),
    /// An integer, in any of the bases.
    Integer(u64),
    /// `0f3F800000`: the bits of an f32.
    F32(u32),
    /// `0d3FF0000000000000`, or a decimal: the bits of an f64.
    F64(u64),
    /// `"text"`, without the quotes.
    Text(String),
    /// Any other character.
    Mark(char),
}

/// A token and the line it stands on, from 1.
#[derive(Clone, Debug)]
pub struct Spanned {
    /// The token.
    pub token: Token,
    /// Its line, from 1.
    pub line: u32,
}

/// Splits `text` into tokens.
pub fn lex(text: &str) -> Result<Vec<Spanned>, LoadError> {
    Lexer { bytes: text.as_bytes(), at: 0, line: 1 }.run()
}

struct Lexer<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u32,
}

impl Lexer<'_> {
    fn run(mut self) -> Result<Vec<Spanned>, LoadError> {
        let mut tokens = Vec::new();
        loop {
            self.skip_blank()?;
            let Some(byte) = self.peek(0) else { return Ok(tokens) };
            let line = self.line;
            let token = match byte {
                b'"' => self.text()?,
                b'0'..=b'9' => self.number()?,
                b'.' if self.peek(1).is_some_and(|next| next.is_ascii_alphanumeric() || next == b'_') => {
                    self.at += 1;
                    Token::Dot(self.name(|byte| byte.is_ascii_alphanumeric() || byte == b'_', true))
                }
                b'%' | b'$' | b'_' | b'a'..=b'z' | b'A'..=b'Z' => Token::Word(
                    self.name(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%'), false),
                ),
                byte if byte.is_ascii() => {
                    self.at += 1;
                    Token::Mark(byte as char)
                }
                _ => return Err(self.error("a character outside ASCII")),
            };
            tokens.push(Spanned { token, line });
        }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn error(&self, message: impl Into<String>) -> LoadError {
        LoadError::new(self.line, message)
    }

    fn skip_blank(&mut self) -> Result<(), LoadError> {
        while let Some(byte) = self.peek(0) {
            match (byte, self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b'/', Some(b'/')) => {
                    while self.peek(0).is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                (b'/', Some(b'*')) => {
                    let opened = self.line;
                    self.at += 2;
                    loop {
                        match (self.peek(0), self.peek(1)) {
                            (Some(b'*'), Some(b'/')) => break,
                            (Some(b'\n'), _) => self.line += 1,
                            (None, _) => return Err(LoadError::new(opened, "a comment that never ends")),
                            _ => {}
                        }
                        self.at += 1;
                    }
                    self.at += 2;
                }
                // A driver's text ends with a zero byte that some callers count in.
                (byte, _) if byte.is_ascii_whitespace() || byte == 0 => self.at += 1,
                _ => break,
            }
        }
        Ok(())
    }

    /// `colons`: `::` is part of the name, as in `.shared::cta`.
    fn name(&mut self, part: impl Fn(u8) -> bool, colons: bool) -> String {
        let start = self.at;
        while let Some(byte) = self.peek(0) {
            if part(byte) {
                self.at += 1;
            } else if colons && byte == b':' && self.peek(1) == Some(b':') {
                self.at += 2;
            } else {
                break;
            }
        }
        String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()
    }

    fn text(&mut self) -> Result<Token, LoadError> {
        self.at += 1;
        let start = self.at;
        while let Some(byte) = self.peek(0) {
            match byte {
                b'"' => {
                    let text = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
                    self.at += 1;
                    return Ok(Token::Text(text));
                }
                b'\\' => self.at += 2,
                b'\n' => break,
                _ => self.at += 1,
            }
        }
        Err(self.error("a string that never ends"))
    }

    fn number(&mut self) -> Result<Token, LoadError> {
        let start = self.at;
        while self.peek(0).is_some_and(|byte| byte.is_ascii_alphanumeric()) {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
        let line = self.line;
        let bad = |word: &str| LoadError::new(line, format!("'{word}' is not a number"));
        let prefix = word.get(..2).unwrap_or("").to_ascii_lowercase();
        let digits = word.get(2..).unwrap_or("");
        match prefix.as_str() {
            "0f" if digits.len() == 8 => {
                return u32::from_str_radix(digits, 16).map(Token::F32).map_err(|_| bad(&word));
            }
            "0d" if digits.len() == 16 => {
                return u64::from_str_radix(digits, 16).map(Token::F64).map_err(|_| bad(&word));
            }
            _ => {}
        }
        if self.peek(0) == Some(b'.') && self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
            while self.peek(0).is_some_and(|byte| byte.is_ascii_alphanumeric()) {
                let exponent = matches!(self.peek(0), Some(b'e' | b'E'));
                self.at += 1;
                if exponent && matches!(self.peek(0), Some(b'+' | b'-')) {
                    self.at += 1;
                }
            }
            let word = String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned();
            return word.parse::<f64>().map(|value| Token::F64(value.to_bits())).map_err(|_| bad(&word));
        }
        let plain = word.strip_suffix(['u', 'U']).unwrap_or(&word);
        let value = match prefix.as_str() {
            "0x" => u64::from_str_radix(&plain[2..], 16),
            "0b" => u64::from_str_radix(&plain[2..], 2),
            _ if plain.len() > 1 && plain.starts_with('0') => u64::from_str_radix(plain, 8),
            _ => plain.parse(),
        };
        value.map(Token::Integer).map_err(|_| bad(&word))
    }
}
