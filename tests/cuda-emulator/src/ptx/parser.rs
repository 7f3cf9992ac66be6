//! Builds [`syntax`](super::syntax) from tokens.

use super::lexer::{Spanned, Token, lex};
use super::syntax::{Function, Initial, Instruction, Module, Operand, Statement, Variable};
use super::types::{Space, Type};
use crate::LoadError;

type Result<T> = std::result::Result<T, LoadError>;

/// How deep blocks, lists and expressions may stand in each other.
const MAX_DEPTH: u32 = 128;
/// What an address may have to be a multiple of.
const MAX_ALIGN: u64 = 1 << 16;

/// The largest variable of a space: for device memory a bound that no host has trouble with, else what devices have.
fn most_bytes(space: Space) -> u64 {
    match space {
        Space::Constant => 64 << 10,
        Space::Shared => 228 << 10,
        Space::Local | Space::Param => 512 << 10,
        _ => 1 << 30,
    }
}

/// Parses a module's text.
pub fn parse(text: &str) -> Result<Module> {
    let tokens = lex(text)?;
    let mut parser = Parser { tokens, at: 0, depth: 0 };
    let mut module = Module::default();
    while parser.at < parser.tokens.len() {
        parser.item(&mut module)?;
    }
    if module.version == (0, 0) {
        return Err(LoadError::new(1, "no .version: is this PTX?"));
    }
    if module.target.is_empty() {
        return Err(LoadError::new(1, "no .target"));
    }
    Ok(module)
}

/// Words that may stand before a declaration.
#[derive(Default)]
struct Linkage {
    external: bool,
}

struct Parser {
    tokens: Vec<Spanned>,
    at: usize,
    depth: u32,
}

impl Parser {
    /// Parses what may stand in something of its own kind.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(self.error(format!("more than {MAX_DEPTH} brackets or signs in each other")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|spanned| &spanned.token)
    }

    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |spanned| spanned.line)
    }

    fn next(&mut self) -> Result<Token> {
        let token = self.peek().cloned().ok_or_else(|| self.error("the text ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    fn error(&self, message: impl Into<String>) -> LoadError {
        LoadError::new(self.line(), message)
    }

    fn is_mark(&self, mark: char) -> bool {
        self.peek() == Some(&Token::Mark(mark))
    }

    fn is_dot(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Dot(dot)) if dot == name)
    }

    fn accept(&mut self, mark: char) -> bool {
        let found = self.is_mark(mark);
        self.at += usize::from(found);
        found
    }

    fn accept_dot(&mut self, name: &str) -> bool {
        let found = self.is_dot(name);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: char) -> Result<()> {
        if self.accept(mark) {
            return Ok(());
        }
        Err(self.error(format!("expected '{mark}', got {}", self.shown())))
    }

    fn shown(&self) -> String {
        match self.peek() {
            None => "the end of the text".into(),
            Some(Token::Word(word)) => format!("'{word}'"),
            Some(Token::Dot(dot)) => format!("'.{dot}'"),
            Some(Token::Mark(mark)) => format!("'{mark}'"),
            Some(Token::Integer(value)) => format!("'{value}'"),
            Some(Token::Text(text)) => format!("\"{text}\""),
            Some(Token::F32(_) | Token::F64(_)) => "a float".into(),
        }
    }

    fn word(&mut self) -> Result<String> {
        match self.peek() {
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.error(format!("expected a name, got {}", self.shown()))),
        }
    }

    fn number(&mut self) -> Result<u32> {
        let value = self.expression()?;
        u32::try_from(value).map_err(|_| self.error(format!("{value} is not a count of 32 bits")))
    }

    // A module's items ------------------------------------------------------------------------------------------

    fn item(&mut self, module: &mut Module) -> Result<()> {
        let line = self.line();
        let mut linkage = Linkage::default();
        loop {
            match self.next()? {
                Token::Dot(dot) => match dot.as_str() {
                    "version" => {
                        let Token::F64(bits) = self.next()? else { return Err(self.error("expected a version")) };
                        let version = f64::from_bits(bits);
                        // One decimal: 7.0, 9.5.
                        let tenths = (version * 10.0).round() as u32;
                        module.version = (tenths / 10, tenths % 10);
                        return Ok(());
                    }
                    "target" => {
                        module.target = self.word()?;
                        while self.accept(',') {
                            module.debug |= self.word()? == "debug";
                        }
                        return Ok(());
                    }
                    "address_size" => {
                        if self.number()? != 64 {
                            return Err(LoadError::new(line, "only .address_size 64 is supported"));
                        }
                        return Ok(());
                    }
                    "visible" | "weak" | "common" => {}
                    "extern" => linkage.external = true,
                    "entry" | "func" => {
                        let function = self.function(dot == "entry")?;
                        module.functions.push(function);
                        return Ok(());
                    }
                    "global" | "const" | "shared" => {
                        let space = Space::parse(&dot).expect("the three names above are spaces");
                        module.variables.extend(self.variables(space, linkage.external)?);
                        return Ok(());
                    }
                    "file" | "loc" => return self.skip_line(line),
                    "section" => return self.skip_section(),
                    "pragma" | "alias" => return self.skip_to_semicolon(),
                    other => return Err(LoadError::new(line, format!("unknown directive .{other}"))),
                },
                Token::Mark(';') => return Ok(()),
                _ => {
                    self.at -= 1;
                    return Err(self.error(format!("expected a directive, got {}", self.shown())));
                }
            }
        }
    }

    /// Debug directives end with their line.
    fn skip_line(&mut self, line: u32) -> Result<()> {
        while self.tokens.get(self.at).is_some_and(|spanned| spanned.line == line) {
            self.at += 1;
        }
        Ok(())
    }

    fn skip_to_semicolon(&mut self) -> Result<()> {
        while self.next()? != Token::Mark(';') {}
        Ok(())
    }

    fn skip_section(&mut self) -> Result<()> {
        while self.next()? != Token::Mark('{') {}
        while self.next()? != Token::Mark('}') {}
        Ok(())
    }

    /// After the space: `.align 4 .b8 name[4] = {..}, other;`
    fn variables(&mut self, space: Space, external: bool) -> Result<Vec<Variable>> {
        let kind = self.variable_kind()?;
        let mut variables = vec![self.declarator(space, external, kind)?];
        while self.accept(',') {
            variables.push(self.declarator(space, external, kind)?);
        }
        self.expect(';')?;
        Ok(variables)
    }

    /// The type of a variable's elements, how many of them a vector has, and the alignment.
    fn variable_kind(&mut self) -> Result<(Type, u64, u64)> {
        let mut align = None;
        let mut lanes = 1;
        loop {
            let line = self.line();
            match self.next()? {
                Token::Dot(dot) => match dot.as_str() {
                    "align" => align = Some(self.expression()?),
                    "v2" => lanes = 2,
                    "v4" => lanes = 4,
                    // `.param .u64 .ptr .global .align 16 name`
                    "ptr" => {
                        while let Some(Token::Dot(dot)) = self.peek() {
                            if dot == "align" {
                                self.at += 1;
                                self.expression()?;
                            } else {
                                self.at += 1;
                            }
                        }
                        return Err(LoadError::new(line, ".ptr before the type"));
                    }
                    name => {
                        let element = Type::parse(name)
                            .ok_or_else(|| LoadError::new(line, format!("unknown type .{name} of a variable")))?;
                        if self.accept_dot("ptr") {
                            while let Some(Token::Dot(dot)) = self.peek() {
                                let aligned = dot == "align";
                                self.at += 1;
                                if aligned {
                                    self.expression()?;
                                }
                            }
                        }
                        let align = align.unwrap_or(u64::from(element.bytes()) * lanes);
                        if !align.is_power_of_two() || align > MAX_ALIGN {
                            let message = format!("alignment {align} is not a power of two up to {MAX_ALIGN}");
                            return Err(LoadError::new(line, message));
                        }
                        return Ok((element, lanes, align));
                    }
                },
                _ => {
                    self.at -= 1;
                    return Err(self.error(format!("expected a type, got {}", self.shown())));
                }
            }
        }
    }

    fn declarator(
        &mut self,
        space: Space,
        external: bool,
        (element, lanes, align): (Type, u64, u64),
    ) -> Result<Variable> {
        let line = self.line();
        let name = self.word()?;
        let mut count: u64 = 1;
        while self.accept('[') {
            if self.accept(']') {
                count = 0;
                continue;
            }
            let extent = self.expression()?;
            count = count.checked_mul(extent).ok_or_else(|| LoadError::new(line, "a variable without bounds"))?;
            self.expect(']')?;
        }
        let mut initial = Vec::new();
        if self.accept('=') {
            self.initial(&mut initial)?;
        }
        if count == 0 && !external {
            count = initial.len() as u64;
        }
        if initial.len() as u64 > count {
            return Err(LoadError::new(line, format!("{name} has more values than elements")));
        }
        let most = most_bytes(space);
        count =
            count.checked_mul(lanes).filter(|count| *count <= most / u64::from(element.bytes()).max(1)).ok_or_else(
                || LoadError::new(line, format!("{name} has more than {most} bytes, the most that is supported")),
            )?;
        Ok(Variable { space, name, element, count, align, external, initial, line })
    }

    fn initial(&mut self, values: &mut Vec<Initial>) -> Result<()> {
        if self.accept('{') {
            while !self.accept('}') {
                self.nested(|parser| parser.initial(values))?;
                if !self.is_mark('}') {
                    self.expect(',')?;
                }
            }
            return Ok(());
        }
        let value = match self.peek() {
            Some(Token::F32(bits)) => Initial::Bits(u64::from(*bits)),
            Some(Token::F64(bits)) => Initial::Bits(*bits),
            Some(Token::Word(word)) => {
                let word = word.clone();
                self.at += 1;
                let generic = word == "generic" && self.accept('(');
                let name = if generic { self.word()? } else { word };
                if generic {
                    self.expect(')')?;
                }
                let offset = self.offset()?;
                values.push(Initial::Address { name, offset });
                return Ok(());
            }
            _ => {
                values.push(Initial::Bits(self.expression()?));
                return Ok(());
            }
        };
        self.at += 1;
        values.push(value);
        Ok(())
    }

    fn offset(&mut self) -> Result<i64> {
        if self.accept('+') {
            return Ok(self.expression()? as i64);
        }
        if self.is_mark('-') {
            return Ok(self.expression()? as i64);
        }
        Ok(0)
    }

    // Functions --------------------------------------------------------------------------------------------------

    fn function(&mut self, entry: bool) -> Result<Function> {
        let mut returns = Vec::new();
        if self.is_mark('(') {
            returns = self.parameters()?;
        }
        let line = self.line();
        let name = self.word()?;
        let parameters = if self.is_mark('(') { self.parameters()? } else { Vec::new() };
        let mut function = Function {
            name,
            entry,
            returns,
            parameters,
            body: None,
            max_threads: None,
            required_threads: None,
            max_registers: None,
            min_blocks: None,
            line,
        };
        loop {
            let line = self.line();
            match self.next()? {
                Token::Dot(dot) => match dot.as_str() {
                    "maxntid" => function.max_threads = Some(self.extents()?),
                    "reqntid" => function.required_threads = Some(self.extents()?),
                    "maxnreg" => function.max_registers = Some(self.number()?),
                    "minnctapersm" => function.min_blocks = Some(self.number()?),
                    "maxnctapersm" => {
                        self.number()?;
                    }
                    "noreturn" => {}
                    "pragma" => self.skip_to_semicolon()?,
                    "attribute" => {
                        self.expect('(')?;
                        while self.next()? != Token::Mark(')') {}
                    }
                    other => return Err(LoadError::new(line, format!("unknown directive .{other} of a function"))),
                },
                Token::Mark(';') => return Ok(function),
                Token::Mark('{') => {
                    function.body = Some(self.statements()?);
                    return Ok(function);
                }
                _ => {
                    self.at -= 1;
                    return Err(self.error(format!("expected a body, got {}", self.shown())));
                }
            }
        }
    }

    fn extents(&mut self) -> Result<[u32; 3]> {
        let mut extents = [1; 3];
        extents[0] = self.number()?;
        for extent in &mut extents[1..] {
            if self.accept(',') {
                *extent = self.number()?;
            }
        }
        Ok(extents)
    }

    fn parameters(&mut self) -> Result<Vec<Variable>> {
        self.expect('(')?;
        let mut parameters = Vec::new();
        while !self.accept(')') {
            let line = self.line();
            match self.next()? {
                Token::Dot(dot) if dot == "param" => {}
                Token::Dot(dot) if dot == "reg" => {
                    return Err(LoadError::new(line, "parameters in registers are not supported"));
                }
                _ => return Err(LoadError::new(line, "expected .param")),
            }
            let kind = self.variable_kind()?;
            parameters.push(self.declarator(Space::Param, false, kind)?);
            if !self.is_mark(')') {
                self.expect(',')?;
            }
        }
        Ok(parameters)
    }

    fn statements(&mut self) -> Result<Vec<Statement>> {
        let mut statements = Vec::new();
        loop {
            let line = self.line();
            match self.peek() {
                None => return Err(self.error("a body that never ends")),
                Some(Token::Mark('}')) => {
                    self.at += 1;
                    return Ok(statements);
                }
                Some(Token::Mark('{')) => {
                    self.at += 1;
                    statements.push(Statement::Block(self.nested(Self::statements)?));
                }
                Some(Token::Mark(';')) => self.at += 1,
                Some(Token::Dot(dot)) => {
                    let dot = dot.clone();
                    self.at += 1;
                    self.directive(&dot, line, &mut statements)?;
                }
                Some(Token::Word(word))
                    if self.tokens.get(self.at + 1).map(|next| &next.token) == Some(&Token::Mark(':')) =>
                {
                    let label = word.clone();
                    self.at += 2;
                    if self.accept_dot("branchtargets") {
                        let mut targets = vec![self.word()?];
                        while self.accept(',') {
                            targets.push(self.word()?);
                        }
                        self.expect(';')?;
                        statements.push(Statement::Targets(label, targets));
                    } else if self.accept_dot("callprototype") {
                        self.skip_to_semicolon()?;
                    } else {
                        statements.push(Statement::Label(label, line));
                    }
                }
                Some(Token::Word(_) | Token::Mark('@')) => {
                    let instruction = self.instruction()?;
                    statements.push(Statement::Instruction(instruction));
                }
                _ => return Err(self.error(format!("expected a statement, got {}", self.shown()))),
            }
        }
    }

    fn directive(&mut self, dot: &str, line: u32, statements: &mut Vec<Statement>) -> Result<()> {
        match dot {
            "reg" => {
                let Token::Dot(name) = self.next()? else { return Err(self.error("expected the registers' type")) };
                let element = Type::parse(&name)
                    .ok_or_else(|| LoadError::new(line, format!("unknown type .{name} of registers")))?;
                let mut names = Vec::new();
                loop {
                    let name = self.word()?;
                    let mut count = None;
                    if self.accept('<') {
                        count = Some(self.number()?);
                        self.expect('>')?;
                    }
                    names.push((name, count));
                    if !self.accept(',') {
                        break;
                    }
                }
                self.expect(';')?;
                statements.push(Statement::Registers { element, names, line });
            }
            "shared" | "local" | "param" | "global" | "const" => {
                let space = Space::parse(dot).expect("the five names above are spaces");
                let variables = self.variables(space, false)?;
                statements.extend(variables.into_iter().map(Statement::Variable));
            }
            "loc" | "file" => self.skip_line(line)?,
            "pragma" => self.skip_to_semicolon()?,
            other => return Err(LoadError::new(line, format!("unknown directive .{other}"))),
        }
        Ok(())
    }

    // Instructions -------------------------------------------------------------------------------------------------

    fn instruction(&mut self) -> Result<Instruction> {
        let mut guard = None;
        if self.accept('@') {
            let negated = self.accept('!');
            guard = Some((self.word()?, negated));
        }
        let line = self.line();
        let name = self.word()?;
        let mut parts = Vec::new();
        while let Some(Token::Dot(dot)) = self.peek() {
            parts.push(dot.clone());
            self.at += 1;
        }
        let mut operands = Vec::new();
        while !self.accept(';') {
            operands.push(self.operand()?);
            if !self.is_mark(';') {
                self.expect(',')?;
            }
        }
        Ok(Instruction { guard, name, parts, operands, line })
    }

    fn operand(&mut self) -> Result<Operand> {
        let operand = self.simple_operand()?;
        if self.accept('|') {
            let second = self.simple_operand()?;
            return Ok(Operand::Pair(Box::new(operand), Box::new(second)));
        }
        Ok(operand)
    }

    fn simple_operand(&mut self) -> Result<Operand> {
        self.nested(Self::any_operand)
    }

    fn any_operand(&mut self) -> Result<Operand> {
        match self.peek() {
            Some(Token::F32(bits)) => {
                let bits = *bits;
                self.at += 1;
                Ok(Operand::F32(bits))
            }
            Some(Token::F64(bits)) => {
                let bits = *bits;
                self.at += 1;
                Ok(Operand::F64(bits))
            }
            Some(Token::Word(word)) if word == "_" => {
                self.at += 1;
                Ok(Operand::Sink)
            }
            Some(Token::Word(_)) => {
                let name = self.name()?;
                if self.is_mark('+') || self.is_mark('-') {
                    let offset = self.offset()?;
                    return Ok(Operand::Offset(name, offset));
                }
                Ok(Operand::Name(name))
            }
            Some(Token::Mark('!')) => {
                self.at += 1;
                Ok(Operand::Not(Box::new(self.simple_operand()?)))
            }
            Some(Token::Mark('-')) if self.negative_is_not_integer() => {
                self.at += 1;
                Ok(match self.simple_operand()? {
                    Operand::F32(bits) => Operand::F32(bits ^ 1 << 31),
                    Operand::F64(bits) => Operand::F64(bits ^ 1 << 63),
                    other => Operand::Negated(Box::new(other)),
                })
            }
            Some(Token::Mark('[')) => {
                self.at += 1;
                let operand = self.address()?;
                if self.accept(',') {
                    let coordinates = self.simple_operand()?;
                    self.expect(']')?;
                    return Ok(Operand::Tensor(Box::new(operand), Box::new(coordinates)));
                }
                self.expect(']')?;
                Ok(operand)
            }
            Some(Token::Mark('{')) => {
                self.at += 1;
                Ok(Operand::Vector(self.list('}')?))
            }
            // A group of a call, unless it opens a constant expression.
            Some(Token::Mark('('))
                if !matches!(self.tokens.get(self.at + 1).map(|next| &next.token), Some(Token::Integer(_))) =>
            {
                self.at += 1;
                Ok(Operand::Group(self.list(')')?))
            }
            _ => Ok(Operand::Integer(self.expression()?)),
        }
    }

    fn negative_is_not_integer(&self) -> bool {
        !matches!(
            self.tokens.get(self.at + 1).map(|next| &next.token),
            Some(Token::Integer(_) | Token::Mark('(' | '-'))
        )
    }

    fn list(&mut self, close: char) -> Result<Vec<Operand>> {
        let mut list = Vec::new();
        while !self.accept(close) {
            list.push(self.simple_operand()?);
            if !self.is_mark(close) {
                self.expect(',')?;
            }
        }
        Ok(list)
    }

    /// A name and its component: `%tid.x`.
    fn name(&mut self) -> Result<String> {
        let mut name = self.word()?;
        if let Some(Token::Dot(dot)) = self.peek() {
            name = format!("{name}.{dot}");
            self.at += 1;
        }
        Ok(name)
    }

    fn address(&mut self) -> Result<Operand> {
        if let Some(Token::Word(_)) = self.peek() {
            let name = self.name()?;
            // `name[4]`, an old way to write an offset, is not accepted.
            return Ok(Operand::Address(Some(name), self.offset()?));
        }
        Ok(Operand::Address(None, self.expression()? as i64))
    }

    // Constant expressions, in 64 bits and wrapping -----------------------------------------------------------------

    fn expression(&mut self) -> Result<u64> {
        self.binary(0)
    }

    fn binary(&mut self, level: usize) -> Result<u64> {
        const LEVELS: [&[&str]; 6] = [&["|"], &["^"], &["&"], &["<<", ">>"], &["+", "-"], &["*", "/", "%"]];
        let Some(operators) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.binary(level + 1)?;
        'next: loop {
            for operator in *operators {
                if self.accept_operator(operator) {
                    let right = self.binary(level + 1)?;
                    left = match *operator {
                        "|" => left | right,
                        "^" => left ^ right,
                        "&" => left & right,
                        "<<" => left.checked_shl(right as u32).unwrap_or(0),
                        ">>" => left.checked_shr(right as u32).unwrap_or(0),
                        "+" => left.wrapping_add(right),
                        "-" => left.wrapping_sub(right),
                        "*" => left.wrapping_mul(right),
                        _ if right == 0 => return Err(self.error("division by zero in a constant")),
                        "/" => left / right,
                        _ => left % right,
                    };
                    continue 'next;
                }
            }
            return Ok(left);
        }
    }

    fn accept_operator(&mut self, operator: &str) -> bool {
        let found = operator.chars().enumerate().all(|(ahead, mark)| {
            self.tokens.get(self.at + ahead).map(|spanned| &spanned.token) == Some(&Token::Mark(mark))
        });
        self.at += if found { operator.len() } else { 0 };
        found
    }

    fn unary(&mut self) -> Result<u64> {
        if self.accept('-') {
            return Ok(self.nested(Self::unary)?.wrapping_neg());
        }
        if self.accept('~') {
            return Ok(!self.nested(Self::unary)?);
        }
        if self.accept('(') {
            let value = self.nested(Self::expression)?;
            self.expect(')')?;
            return Ok(value);
        }
        match self.peek() {
            Some(Token::Integer(value)) => {
                let value = *value;
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.error(format!("expected a number, got {}", self.shown()))),
        }
    }
}
