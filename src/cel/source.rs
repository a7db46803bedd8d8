//! The text of an expression, and how a mistake in it is shown.
//!
//! Positions are offsets in characters, as columns are counted in them.

use std::fmt;

/// One mistake in an expression, with where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileError {
    pub message: String,
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    line_text: Option<String>,
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERROR: <input>:{}:{}: {}", self.line, self.column, self.message)?;
        if let Some(line) = &self.line_text {
            write!(f, "\n | {line}\n | {}^", ".".repeat(self.column.saturating_sub(1)))?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileError {}

/// All mistakes of an expression, in the order of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileErrors(pub Vec<CompileError>);

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileErrors {}

pub(crate) struct Source {
    pub(crate) text: Vec<char>,
}

impl Source {
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.chars().collect() }
    }

    /// The mistake at an offset, with its line.
    pub(crate) fn error(&self, offset: usize, message: impl Into<String>) -> CompileError {
        let offset = offset.min(self.text.len());
        let before = &self.text[..offset];
        let start = before.iter().rposition(|&c| c == '\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|&&c| c == '\n').count() + 1;
        let end = self.text[start..].iter().position(|&c| c == '\n');
        let end = end.map_or(self.text.len(), |length| start + length);
        let shown = self.text[start..end].iter();
        let line_text = shown.map(|&c| if c == '\t' { ' ' } else { c }).collect();
        CompileError {
            message: message.into(),
            line,
            column: offset - start + 1,
            line_text: Some(line_text),
        }
    }

    /// A mistake of the whole text, which is not shown.
    pub(crate) fn whole(message: impl Into<String>) -> CompileError {
        CompileError { message: message.into(), line: 1, column: 1, line_text: None }
    }
}
