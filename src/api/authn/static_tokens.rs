//! The static token file: `token,user,uid,"group1,group2"` per line, read once.

use std::collections::HashMap;
use std::path::Path;

use super::User;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read the token file {0}")]
    Read(String, #[source] std::io::Error),
    #[error("the token file {0}, line {1}: expected token,user,uid[,\"group1,group2\"]")]
    Line(String, usize),
}

/// The users of a file by their tokens.
pub fn read(path: &Path) -> Result<HashMap<String, User>, Error> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|err| Error::Read(shown.clone(), err))?;
    let mut tokens = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut parts = line.splitn(4, ',').map(str::trim);
        let (Some(token), Some(name), Some(uid)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Error::Line(shown, number + 1));
        };
        let groups: Vec<&str> = parts
            .next()
            .unwrap_or("")
            .trim_matches('"')
            .split(',')
            .map(str::trim)
            .filter(|group| !group.is_empty())
            .collect();
        let user = User { uid: uid.into(), ..User::new(name, &groups) };
        tokens.insert(token.into(), user);
    }
    Ok(tokens)
}
