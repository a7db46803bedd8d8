//! Tokens to a tree, macros included: CEL's grammar, with positions of cel-go.
//!
//! A text longer than `EXPRESSION_CHARS_MAX` or nested deeper than `DEPTH_MAX` is refused.

use std::collections::HashMap;
use std::sync::Arc;

use crate::ast::{Element, Entry, Expr, Field, Id, Kind, Literal, Select};
use crate::lexer::{self, Spanned, Token};
use crate::source::{CompileError, Source};

/// The longest expression, in characters.
pub const EXPRESSION_CHARS_MAX: usize = 100_000;
/// The deepest nesting of an expression.
pub const DEPTH_MAX: usize = 250;

const RESERVED: [&str; 21] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "package",
    "namespace",
    "null",
    "return",
    "true",
    "var",
    "void",
    "while",
];
const OPERAND: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, \
    NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

/// A parsed expression: the tree, and where each node stands.
pub(crate) struct Parsed {
    pub(crate) root: Expr,
    pub(crate) positions: Vec<usize>,
}

/// `binds`: whether `cel.bind` is a macro.
pub(crate) fn parse(source: &Source, binds: bool) -> Parse<Parsed> {
    if source.text.len() > EXPRESSION_CHARS_MAX {
        let size = source.text.len();
        return Err(Box::new(Source::whole(format!(
            "expression code point size exceeds limit: size: {size}, limit {EXPRESSION_CHARS_MAX}"
        ))));
    }
    let tokens = lexer::tokens(source)?;
    let (positions, depths) = (Vec::new(), HashMap::new());
    let mut parser = Parser { source, tokens, at: 0, depth: 0, positions, depths, binds };
    let root = parser.expression()?;
    if parser.peek() != &Token::End {
        let what = parser.shown();
        let last = parser.tokens.get(parser.at + 1).is_none_or(|t| t.token == Token::End);
        let problem = if last { "extraneous" } else { "mismatched" };
        return Err(parser.syntax(format!("{problem} input '{what}' expecting <EOF>")));
    }
    Ok(Parsed { root, positions: parser.positions })
}

pub(crate) struct Parser<'s> {
    source: &'s Source,
    tokens: Vec<Spanned>,
    at: usize,
    /// How deep this recursion is.
    depth: usize,
    positions: Vec<usize>,
    /// How deep the tree below a node is, for chains, which are parsed without recursion.
    depths: HashMap<Id, usize>,
    pub(crate) binds: bool,
}

/// Errors are boxed to keep the frames of the recursion small.
type Parse<T> = Result<T, Box<CompileError>>;

impl Parser<'_> {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].token
    }

    fn start(&self) -> usize {
        self.tokens[self.at].start
    }

    fn is(&self, symbol: &str) -> bool {
        matches!(self.peek(), Token::Symbol(s) if *s == symbol)
    }

    fn is_in(&self) -> bool {
        matches!(self.peek(), Token::Ident(name) if &**name == "in")
    }

    /// Steps over the token; its position.
    fn advance(&mut self) -> usize {
        let start = self.start();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        start
    }

    fn accept(&mut self, symbol: &str) -> Option<usize> {
        self.is(symbol).then(|| self.advance())
    }

    fn expect(&mut self, symbol: &str) -> Parse<usize> {
        match self.accept(symbol) {
            Some(at) => Ok(at),
            None if symbol == ")" || symbol == "]" || symbol == "}" => {
                let what = self.shown();
                Err(self.syntax(format!("mismatched input '{what}' expecting '{symbol}'")))
            }
            None => {
                let what = self.shown();
                Err(self.syntax(format!("missing '{symbol}' at '{what}'")))
            }
        }
    }

    fn shown(&self) -> String {
        let token = &self.tokens[self.at];
        if token.token == Token::End {
            return "<EOF>".to_owned();
        }
        self.source.text[token.start..token.end].iter().collect()
    }

    fn syntax(&self, message: String) -> Box<CompileError> {
        Box::new(self.source.error(self.start(), format!("Syntax error: {message}")))
    }

    fn here(&self, message: &str) -> Box<CompileError> {
        Box::new(self.source.error(self.start(), message))
    }

    fn unexpected(&self) -> Box<CompileError> {
        let what = self.shown();
        self.syntax(format!("mismatched input '{what}' expecting {OPERAND}"))
    }

    pub(crate) fn error(&self, id: Id, message: impl Into<String>) -> Box<CompileError> {
        Box::new(self.source.error(self.positions[id], message))
    }

    fn id(&mut self, position: usize) -> Id {
        self.positions.push(position);
        self.positions.len() - 1
    }

    fn leaf(&mut self, position: usize, kind: Kind) -> Expr {
        Expr { id: self.id(position), kind }
    }

    fn depth_of(&self, expr: &Expr) -> usize {
        self.depths.get(&expr.id).copied().unwrap_or(1)
    }

    fn too_deep(&self) -> Box<CompileError> {
        Box::new(Source::whole(format!("expression recursion limit exceeded: {DEPTH_MAX}")))
    }

    /// Makes a node above others, unless the tree gets too deep.
    fn node(&mut self, position: usize, below: usize, kind: Kind) -> Parse<Expr> {
        if below + 1 > DEPTH_MAX {
            return Err(self.too_deep());
        }
        let id = self.id(position);
        self.depths.insert(id, below + 1);
        Ok(Expr { id, kind })
    }

    fn call(&mut self, position: usize, name: &str, args: Vec<Expr>) -> Parse<Expr> {
        let below = args.iter().map(|arg| self.depth_of(arg)).max().unwrap_or(0);
        self.node(position, below, Kind::Call { name: name.into(), target: None, args })
    }

    fn expression(&mut self) -> Parse<Expr> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(self.too_deep());
        }
        let mut result = self.binary(0)?;
        if let Some(position) = self.accept("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.expression()?;
            result = self.call(position, "_?_:_", vec![result, yes, no])?;
        }
        self.depth -= 1;
        Ok(result)
    }

    /// The operator that stands here, and how tightly it binds.
    fn operator(&self) -> Option<(usize, &'static str)> {
        Some(match self.peek() {
            Token::Symbol("||") => (1, "_||_"),
            Token::Symbol("&&") => (2, "_&&_"),
            Token::Symbol("<") => (3, "_<_"),
            Token::Symbol("<=") => (3, "_<=_"),
            Token::Symbol(">") => (3, "_>_"),
            Token::Symbol(">=") => (3, "_>=_"),
            Token::Symbol("==") => (3, "_==_"),
            Token::Symbol("!=") => (3, "_!=_"),
            Token::Symbol("+") => (4, "_+_"),
            Token::Symbol("-") => (4, "_-_"),
            Token::Symbol("*") => (5, "_*_"),
            Token::Symbol("/") => (5, "_/_"),
            Token::Symbol("%") => (5, "_%_"),
            _ if self.is_in() => (3, "@in"),
            _ => return None,
        })
    }

    /// Operators that bind tighter than a bound, by climbing: one level of recursion for all.
    fn binary(&mut self, bound: usize) -> Parse<Expr> {
        let mut left = self.unary()?;
        while let Some((strength, name)) = self.operator().filter(|(s, _)| *s > bound) {
            if strength <= 2 {
                left = self.logical(left, strength, name)?;
                continue;
            }
            let position = self.advance();
            let right = self.binary(strength)?;
            left = self.call(position, name, vec![left, right])?;
        }
        Ok(left)
    }

    fn logical(&mut self, first: Expr, strength: usize, name: &'static str) -> Parse<Expr> {
        let mut terms = vec![first];
        let mut positions = Vec::new();
        while self.operator() == Some((strength, name)) {
            positions.push(self.advance());
            terms.push(self.binary(strength)?);
        }
        self.balance(name, terms, &positions)
    }

    /// A chain of one logical operator becomes a flat tree, so that long chains stay shallow.
    fn balance(&mut self, name: &str, mut terms: Vec<Expr>, positions: &[usize]) -> Parse<Expr> {
        if terms.len() == 1 {
            return Ok(terms.remove(0));
        }
        let middle = terms.len().div_ceil(2);
        let right = terms.split_off(middle);
        let left = self.balance(name, terms, &positions[..middle - 1])?;
        let right = self.balance(name, right, &positions[middle..])?;
        self.call(positions[middle - 1], name, vec![left, right])
    }

    fn unary(&mut self) -> Parse<Expr> {
        for (symbol, name) in [("!", "!_"), ("-", "-_")] {
            if !self.is(symbol) {
                continue;
            }
            let position = self.start();
            let mut count = 0;
            while self.is(symbol) {
                // The last minus before a number belongs to the number.
                if symbol == "-"
                    && matches!(self.tokens[self.at + 1].token, Token::Int(_) | Token::Double(_))
                {
                    break;
                }
                self.advance();
                count += 1;
            }
            let operand = self.member()?;
            if count % 2 == 0 {
                return Ok(operand);
            }
            return self.call(position, name, vec![operand]);
        }
        self.member()
    }

    fn member(&mut self) -> Parse<Expr> {
        let mut left = self.primary()?;
        loop {
            if self.accept(".").is_some() {
                let position = self.tokens[self.at - 1].start;
                let optional = self.accept("?").is_some();
                let name = self.field_name()?;
                if !optional && self.is("(") {
                    let open = self.advance();
                    let args = self.arguments(")")?;
                    left = self.member_call(open, left, name, args)?;
                    continue;
                }
                let how = if optional { Select::Optional } else { Select::Value };
                let below = self.depth_of(&left);
                let kind = Kind::Select { operand: Box::new(left), field: name, how };
                left = self.node(position, below, kind)?;
            } else if let Some(position) = self.accept("[") {
                let name = if self.accept("?").is_some() { "_[?_]" } else { "_[_]" };
                let index = self.expression()?;
                self.expect("]")?;
                left = self.call(position, name, vec![left, index])?;
            } else if self.is("{") && type_name(&left).is_some() {
                let name = type_name(&left).unwrap_or_default();
                let position = self.advance();
                left = self.structure(position, name)?;
            } else {
                return Ok(left);
            }
        }
    }

    fn field_name(&mut self) -> Parse<Arc<str>> {
        match self.peek() {
            Token::Ident(name) if !matches!(&**name, "true" | "false" | "null" | "in") => {
                let name = name.clone();
                self.advance();
                Ok(name)
            }
            _ => {
                let what = if *self.peek() == Token::End { String::new() } else { self.shown() };
                Err(self.syntax(format!("no viable alternative at input '.{what}'")))
            }
        }
    }

    fn arguments(&mut self, close: &str) -> Parse<Vec<Expr>> {
        let mut args = Vec::new();
        if self.accept(close).is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if self.accept(",").is_none() {
                self.expect(close)?;
                return Ok(args);
            }
        }
    }

    fn member_call(
        &mut self,
        position: usize,
        target: Expr,
        name: Arc<str>,
        args: Vec<Expr>,
    ) -> Parse<Expr> {
        let id = self.id(position);
        let below = args.iter().chain([&target]).map(|e| self.depth_of(e)).max().unwrap_or(0);
        if below + 1 > DEPTH_MAX {
            return Err(self.too_deep());
        }
        self.depths.insert(id, below + 1);
        let kind = crate::macros::expand_member(self, id, target, name, args)?;
        Ok(Expr { id, kind })
    }

    fn structure(&mut self, position: usize, name: Arc<str>) -> Parse<Expr> {
        let mut fields = Vec::new();
        let mut below = 0;
        while self.accept("}").is_none() {
            let optional = self.accept("?").is_some();
            let name = self.field_name()?;
            let colon = self.expect(":")?;
            let value = self.expression()?;
            below = below.max(self.depth_of(&value));
            let id = self.id(colon);
            fields.push(Field { id, name, value, optional });
            if self.accept(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        self.node(position, below, Kind::Struct { name, fields })
    }

    fn primary(&mut self) -> Parse<Expr> {
        let position = self.start();
        let negative = self.is("-");
        if negative {
            self.advance();
        }
        let literal = match self.peek().clone() {
            Token::Int(text) => self.integer(&text, negative)?,
            Token::Uint(text) if !negative => self.unsigned(&text)?,
            Token::Double(text) => self.double(&text, negative)?,
            _ if negative => return Err(self.unexpected()),
            Token::String(text) => Literal::String(text),
            Token::Bytes(bytes) => Literal::Bytes(bytes),
            Token::Ident(name) => match &*name {
                "true" => Literal::Bool(true),
                "false" => Literal::Bool(false),
                "null" => Literal::Null,
                _ => return self.identifier(position, name, ""),
            },
            Token::Symbol("(") => {
                self.advance();
                let inner = self.expression()?;
                self.expect(")")?;
                return Ok(inner);
            }
            Token::Symbol("[") => return self.list(),
            Token::Symbol("{") => return self.map(),
            Token::Symbol(".") => {
                self.advance();
                // A leading dot passes by the variables of macros.
                match self.peek().clone() {
                    Token::Ident(name) => return self.identifier(position, name, "."),
                    _ => return Err(self.unexpected()),
                }
            }
            _ => return Err(self.unexpected()),
        };
        self.advance();
        Ok(self.leaf(position, Kind::Literal(literal)))
    }

    fn integer(&self, text: &str, negative: bool) -> Parse<Literal> {
        let (digits, radix) = radix(text);
        let sign = if negative { "-" } else { "" };
        i64::from_str_radix(&format!("{sign}{digits}"), radix)
            .map(Literal::Int)
            .map_err(|_| self.here("invalid int literal"))
    }

    fn unsigned(&self, text: &str) -> Parse<Literal> {
        let (digits, radix) = radix(text);
        u64::from_str_radix(digits, radix)
            .map(Literal::Uint)
            .map_err(|_| self.here("invalid uint literal"))
    }

    fn double(&self, text: &str, negative: bool) -> Parse<Literal> {
        match text.parse::<f64>() {
            Ok(value) if value.is_finite() => {
                Ok(Literal::Double(if negative { -value } else { value }))
            }
            _ => Err(self.here("invalid double literal")),
        }
    }

    fn identifier(&mut self, position: usize, name: Arc<str>, dot: &str) -> Parse<Expr> {
        if &*name == "in" || matches!(&*name, "true" | "false" | "null") {
            return Err(self.unexpected());
        }
        if RESERVED.contains(&&*name) {
            return Err(self.here(&format!("reserved identifier: {name}")));
        }
        self.advance();
        if !self.is("(") {
            let name = if dot.is_empty() { name } else { format!("{dot}{name}").into() };
            return Ok(self.leaf(position, Kind::Ident(name)));
        }
        let open = self.advance();
        let args = self.arguments(")")?;
        if &*name == "has" && args.len() == 1 {
            return self.has(open, args);
        }
        self.call(open, &name, args)
    }

    fn has(&mut self, position: usize, args: Vec<Expr>) -> Parse<Expr> {
        let mut args = args;
        match args.pop().map(|arg| (arg.id, arg.kind)) {
            Some((id, Kind::Select { operand, field, how: Select::Value })) => {
                let below = self.depths.get(&id).copied().unwrap_or(1);
                let kind = Kind::Select { operand, field, how: Select::Test };
                self.node(position, below - 1, kind)
            }
            Some((id, _)) => Err(self.error(id, "invalid argument to has() macro")),
            None => Err(self.here("invalid argument to has() macro")),
        }
    }

    fn list(&mut self) -> Parse<Expr> {
        let position = self.advance();
        let mut elements = Vec::new();
        let mut below = 0;
        while self.accept("]").is_none() {
            let optional = self.accept("?").is_some();
            let value = self.expression()?;
            below = below.max(self.depth_of(&value));
            elements.push(Element { value, optional });
            if self.accept(",").is_none() {
                self.expect("]")?;
                break;
            }
        }
        self.node(position, below, Kind::List(elements))
    }

    fn map(&mut self) -> Parse<Expr> {
        let position = self.advance();
        let mut entries = Vec::new();
        let mut below = 0;
        while self.accept("}").is_none() {
            let optional = self.accept("?").is_some();
            let key = self.expression()?;
            self.expect(":")?;
            let value = self.expression()?;
            below = below.max(self.depth_of(&key)).max(self.depth_of(&value));
            entries.push(Entry { key, value, optional });
            if self.accept(",").is_none() {
                self.expect("}")?;
                break;
            }
        }
        self.node(position, below, Kind::Map(entries))
    }
}

fn radix(text: &str) -> (&str, u32) {
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    }
}

/// The dotted name an expression spells, which may be a message's before `{`.
pub(crate) fn type_name(expr: &Expr) -> Option<Arc<str>> {
    match &expr.kind {
        Kind::Ident(name) => Some(name.clone()),
        Kind::Select { operand, field, how: Select::Value } => {
            Some(format!("{}.{field}", type_name(operand)?).into())
        }
        _ => None,
    }
}
