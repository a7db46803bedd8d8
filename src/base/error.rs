//! Prints an error and its causes as one line, where the error stops.

use std::error::Error;
use std::fmt;

/// Displays `error: cause: cause`, leaving out a cause that its parent already says.
pub struct Chain<'a>(&'a (dyn Error + 'static));

/// Wraps an error for logging: `warn!(error = %chain(&err), "...")`.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> Chain<'a> {
    Chain(error)
}

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("open the store")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_their_error_once() {
        let err = Outer(std::io::Error::other("disk is full"));
        assert_eq!(chain(&err).to_string(), "open the store: disk is full");
    }
}
