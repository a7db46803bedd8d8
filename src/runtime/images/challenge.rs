//! What a registry demands of who asks it: the challenges of `WWW-Authenticate` (RFC 9110,
//! section 11.6.1), of which one answer may hold several.

/// One challenge: its scheme in small letters, and its parameters.
#[derive(Debug, PartialEq, Eq)]
pub struct Challenge {
    pub scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// All challenges of a header's value, in order.
pub fn challenges(text: &str) -> Vec<Challenge> {
    let mut out: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let value = after.trim_start().strip_prefix('=').filter(|_| !out.is_empty());
        rest = match (value, out.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = quoted_or_token(value.trim_start());
                challenge.parameters.push((word.to_owned(), value));
                after
            }
            _ => {
                let scheme = word.to_lowercase();
                out.push(Challenge { scheme, parameters: Vec::new() });
                after.trim_start_matches('=')
            }
        };
        rest = rest.trim_start_matches([' ', ',']);
    }
    out.retain(|challenge| !challenge.scheme.is_empty());
    out
}

/// A value, and what follows it.
fn quoted_or_token(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let (mut value, mut escaped) = (String::new(), false);
    for (at, letter) in quoted.char_indices() {
        match letter {
            _ if escaped => {
                value.push(letter);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[at + 1..]),
            _ => value.push(letter),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_told_apart() {
        let found = challenges(
            "Negotiate, Basic realm=\"a, b\", BEARER realm=\"https://h/t?x=1,2\" , Service=s,\
             scope=\"repository:a/b:pull,push\"",
        );
        let schemes: Vec<&str> = found.iter().map(|it| it.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(found[1].parameter("realm"), Some("a, b"));
        assert_eq!(found[2].parameter("realm"), Some("https://h/t?x=1,2"));
        assert_eq!(found[2].parameter("service"), Some("s"));
        assert_eq!(found[2].parameter("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(challenges("Digest r=\"say \\\"it\\\"\"")[0].parameter("r"), Some("say \"it\""));
        for odd in ["", ",,", "=", "Bearer realm=\"open", "= = =", "Bearer =x", "\"", "a=b=c"] {
            assert!(challenges(odd).len() <= 3, "{odd:?}");
        }
    }
}
