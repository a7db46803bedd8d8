//! Text to tokens: CEL's lexical grammar (language definition, "Syntax").
//!
//! Decodes string and bytes literals; numbers are left as text for the parser's errors.

use std::sync::Arc;

use crate::source::{CompileError, Source};

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Ident(Arc<str>),
    Int(String),
    Uint(String),
    Double(String),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    Symbol(&'static str),
    End,
}

#[derive(Clone, Debug)]
pub(crate) struct Spanned {
    pub(crate) token: Token,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

const SYMBOLS: [&str; 28] = [
    "==", "!=", "<=", ">=", "&&", "||", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%", "<", ">", "=", "&", "|", ";",
];
/// Symbols only in the list to be told apart from the longer ones.
const NOT_TOKENS: [&str; 4] = ["=", "&", "|", ";"];

/// The tokens, the last of which is `End`.
pub(crate) fn tokens(source: &Source) -> Result<Vec<Spanned>, CompileError> {
    let mut lexer = Lexer { source, text: &source.text, at: 0 };
    let mut out = Vec::new();
    loop {
        let token = lexer.next()?;
        let done = token.token == Token::End;
        out.push(token);
        if done {
            return Ok(out);
        }
    }
}

struct Lexer<'s> {
    source: &'s Source,
    text: &'s [char],
    at: usize,
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn next(&mut self) -> Result<Spanned, CompileError> {
        self.skip_space();
        let start = self.at;
        let token = self.token()?;
        Ok(Spanned { token, start, end: self.at })
    }

    fn skip_space(&mut self) {
        while let Some(c) = self.peek(0) {
            match c {
                ' ' | '\t' | '\n' | '\r' | '\x0c' => self.at += 1,
                '/' if self.peek(1) == Some('/') => {
                    while self.peek(0).is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    fn token(&mut self) -> Result<Token, CompileError> {
        let Some(c) = self.peek(0) else { return Ok(Token::End) };
        if let Some((raw, bytes, prefix)) = self.string_prefix() {
            self.at += prefix;
            return self.string(raw, bytes);
        }
        if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|d| d.is_ascii_digit())) {
            return Ok(self.number());
        }
        if c == '_' || c.is_ascii_alphabetic() {
            let start = self.at;
            while self.peek(0).is_some_and(|c| c == '_' || c.is_ascii_alphanumeric()) {
                self.at += 1;
            }
            let text: String = self.text[start..self.at].iter().collect();
            return Ok(Token::Ident(text.into()));
        }
        for symbol in SYMBOLS {
            if symbol.chars().enumerate().all(|(i, s)| self.peek(i) == Some(s)) {
                if NOT_TOKENS.contains(&symbol) {
                    break;
                }
                self.at += symbol.len();
                return Ok(Token::Symbol(symbol));
            }
        }
        Err(self.unrecognized(self.at, self.at + 1))
    }

    fn unrecognized(&self, start: usize, end: usize) -> CompileError {
        let text: String = self.text[start..end.min(self.text.len())].iter().collect();
        let message = format!("Syntax error: token recognition error at: '{text}'");
        self.source.error(start, message)
    }

    /// Whether a literal begins here: raw, bytes, and the length of the prefix.
    fn string_prefix(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes) = (false, false);
        for ahead in 0..3 {
            match self.peek(ahead)? {
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes && !raw => bytes = true,
                '"' | '\'' => return Some((raw, bytes, ahead)),
                _ => return None,
            }
        }
        None
    }

    fn string(&mut self, raw: bool, bytes: bool) -> Result<Token, CompileError> {
        let start = self.at;
        let quote = self.peek(0).unwrap_or('"');
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if triple { 3 } else { 1 };
        let mut out = Literal { bytes: Vec::new(), is_bytes: bytes };
        loop {
            let Some(c) = self.peek(0) else {
                return Err(self.unrecognized(start, self.at));
            };
            if c == quote
                && (!triple || (self.peek(1) == Some(quote) && self.peek(2) == Some(quote)))
            {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if !triple && (c == '\n' || c == '\r') {
                return Err(self.unrecognized(start, self.at));
            }
            self.at += 1;
            if c == '\\' && !raw {
                self.escape(&mut out, start)?;
            } else if c == '\r' && self.peek(0) == Some('\n') {
                // A line break in a literal is one character, however the file ends lines.
            } else {
                out.push_char(c);
            }
        }
        if bytes {
            return Ok(Token::Bytes(out.bytes.into()));
        }
        match String::from_utf8(out.bytes) {
            Ok(text) => Ok(Token::String(text.into())),
            Err(_) => Err(self.unrecognized(start, self.at)),
        }
    }

    fn escape(&mut self, out: &mut Literal, start: usize) -> Result<(), CompileError> {
        let Some(c) = self.peek(0) else { return Err(self.unrecognized(start, self.at)) };
        self.at += 1;
        let plain = match c {
            'a' => Some('\x07'),
            'b' => Some('\x08'),
            'f' => Some('\x0c'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\x0b'),
            '\\' | '?' | '\'' | '"' | '`' => Some(c),
            _ => None,
        };
        if let Some(plain) = plain {
            out.push_char(plain);
            return Ok(());
        }
        let (digits, radix) = match c {
            'x' | 'X' => (2, 16),
            'u' if !out.is_bytes => (4, 16),
            'U' if !out.is_bytes => (8, 16),
            '0'..='3' => {
                self.at -= 1;
                (3, 8)
            }
            _ => return Err(self.unrecognized(start, self.at)),
        };
        let mut value: u32 = 0;
        for _ in 0..digits {
            let digit = self.peek(0).and_then(|c| c.to_digit(radix));
            let Some(digit) = digit else { return Err(self.unrecognized(start, self.at)) };
            value = value.wrapping_mul(radix).wrapping_add(digit);
            self.at += 1;
        }
        if out.is_bytes {
            out.bytes.push(u8::try_from(value).unwrap_or(u8::MAX));
            return Ok(());
        }
        match char::from_u32(value) {
            Some(c) => {
                out.push_char(c);
                Ok(())
            }
            None => Err(self.unrecognized(start, self.at)),
        }
    }

    fn number(&mut self) -> Token {
        let start = self.at;
        if self.peek(0) == Some('0')
            && matches!(self.peek(1), Some('x' | 'X'))
            && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit())
        {
            self.at += 2;
            while self.peek(0).is_some_and(|c| c.is_ascii_hexdigit()) {
                self.at += 1;
            }
            return self.integer(start);
        }
        self.digits();
        let mut double = false;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            double = true;
            self.at += 1;
            self.digits();
        }
        if matches!(self.peek(0), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                double = true;
                self.at += 1 + sign;
                self.digits();
            }
        }
        if double {
            return Token::Double(self.text[start..self.at].iter().collect());
        }
        self.integer(start)
    }

    fn digits(&mut self) {
        while self.peek(0).is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn integer(&mut self, start: usize) -> Token {
        let text = self.text[start..self.at].iter().collect();
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Token::Uint(text);
        }
        Token::Int(text)
    }
}

struct Literal {
    bytes: Vec<u8>,
    is_bytes: bool,
}

impl Literal {
    fn push_char(&mut self, c: char) {
        let mut buffer = [0; 4];
        self.bytes.extend_from_slice(c.encode_utf8(&mut buffer).as_bytes());
    }
}
