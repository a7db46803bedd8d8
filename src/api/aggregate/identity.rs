//! Who a request is from, told to another server in headers (`X-Remote-...`), which it
//! believes because of our certificate.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::authn::User;

/// Replaces what headers say of a user.
///
/// # Errors
/// When a name has characters that no header can hold.
pub fn tell(headers: &mut HeaderMap, user: &User) -> Result<(), String> {
    let said: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in said {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| {
        let wrong = || format!("{value:?} cannot be told in a header");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| wrong())?;
        headers.append(name, value);
        Ok::<(), String>(())
    };
    add("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", escape(key));
        for value in values {
            add(&name, value)?;
        }
    }
    Ok(())
}

/// Percent-encodes what a header's name cannot hold, and the percent itself.
fn escape(key: &str) -> String {
    let mut out = String::new();
    for byte in key.bytes() {
        let token = byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
        if token {
            out.push(char::from(byte.to_ascii_lowercase()));
        } else {
            out.push_str(&format!("%{byte:02x}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_of_itself_is_replaced() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", HeaderValue::from_static("root"));
        headers.insert("x-remote-extra-scopes", HeaderValue::from_static("all"));
        headers.insert("accept", HeaderValue::from_static("*/*"));
        let mut user = User::new("jane", &["dev", "ops"]);
        user.uid = "7".into();
        user.extra.insert("example.com/a b".into(), vec!["1".into(), "2".into()]);
        tell(&mut headers, &user).unwrap();
        let mut all: Vec<(String, String)> = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_string()))
            .collect();
        all.sort();
        let expected = [
            ("accept", "*/*"),
            ("x-remote-extra-example.com%2fa%20b", "1"),
            ("x-remote-extra-example.com%2fa%20b", "2"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "ops"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-uid", "7"),
            ("x-remote-user", "jane"),
        ];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        assert_eq!(all, expected);
        assert!(tell(&mut headers, &User::new("a\nb", &[])).is_err());
    }
}
