//! Files that environment variables are taken from (documentation, "Define Environment Variable
//! Values Using An Init Container", "Env file syntax"): what the file says is what a shell would
//! make of it, and what the shell would have to work out is refused.
//!
//! Pure: the file is read beforehand.

const BLANKS: [char; 2] = [' ', '\t'];

/// The value of the first variable of that name; None where there is none.
///
/// # Errors
/// The first line, up to that variable, that is not `NAME='VALUE'`, blank or a comment.
pub fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let invalid =
            |why| Err(format!("invalid environment variable format at line {number}: {why}"));
        let Some((name, rest)) = line.split_once('=') else { return invalid("missing '='") };
        if name.trim_end_matches(BLANKS).is_empty() {
            return invalid("empty variable name");
        }
        if name.ends_with(BLANKS) {
            return invalid("whitespace before '=' is not allowed");
        }
        let value = if rest.starts_with(BLANKS) {
            // A shell takes what comes then for a command.
            String::new()
        } else if let Some(quoted) = rest.strip_prefix('\'') {
            let Some((value, after)) = to_the_quote(quoted, lines.by_ref().map(|(line, _)| line))
            else {
                return invalid("unclosed single quote");
            };
            let after = after.trim_start_matches(BLANKS);
            if !after.is_empty() && !after.starts_with('#') {
                return invalid("unexpected content after closing quote");
            }
            value
        } else {
            return invalid("value must be enclosed in single quotes");
        };
        if name == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// What comes before the next quote, over as many lines as it takes, and what comes after it
/// on its line.
fn to_the_quote<'a>(
    first: &'a str,
    mut more: impl Iterator<Item = &'a str>,
) -> Option<(String, &'a str)> {
    let mut value = String::new();
    let mut line = first;
    loop {
        if let Some((last, after)) = line.split_once('\'') {
            value.push_str(last);
            return Some((value, after));
        }
        value.push_str(line);
        value.push('\n');
        line = more.next()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_are_quoted() {
        let text = "# a comment\n\n  ADDRESS='db # $HOME \\n'\t# told\nLINES='one\ntwo'\nNONE=''\n\
                    BLANK= 'x'\nTWICE='a'\nTWICE='b'\n";
        for (key, wanted) in [
            ("ADDRESS", Some("db # $HOME \\n")),
            ("LINES", Some("one\ntwo")),
            ("NONE", Some("")),
            ("BLANK", Some("")),
            ("TWICE", Some("a")),
            ("two'", None),
            ("OTHER", None),
        ] {
            assert_eq!(value(text, key).unwrap().as_deref(), wanted, "{key}");
        }
    }

    #[test]
    fn what_a_shell_would_have_to_work_out_is_refused() {
        for (text, wanted) in [
            ("A=1", "line 1: value must be enclosed in single quotes"),
            ("\nA=\"1\"", "line 2: value must be enclosed in single quotes"),
            ("A='1''2'", "line 1: unexpected content after closing quote"),
            ("A='1'$B", "line 1: unexpected content after closing quote"),
            ("A = '1'", "line 1: whitespace before '=' is not allowed"),
            ("='1'", "line 1: empty variable name"),
            ("export", "line 1: missing '='"),
            ("B='\n1'\nA='2\n", "line 3: unclosed single quote"),
        ] {
            let said = value(text, "A").unwrap_err();
            assert_eq!(said, format!("invalid environment variable format at {wanted}"), "{text}");
        }
        // What comes after the variable is not looked at.
        assert_eq!(value("A='1'\nB=2\n", "A"), Ok(Some("1".into())));
    }
}
