//! Bootstrap tokens: `ID.SECRET`, kept in secrets of `kube-system`, with which a new node
//! asks for its first certificate (documentation, "Authenticating with Bootstrap Tokens").

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::User;
use crate::cache::Cache;
use crate::cache::prefix::SECRETS;

const KIND: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers";
const ID_CHARS: usize = 6;
const SECRET_CHARS: usize = 16;
/// What may follow the prefix of a further group.
const GROUP_CHARS_MAX: usize = 256;

/// Id and secret of what has the form of a bootstrap token.
fn parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let good = |text: &str, chars: usize| {
        text.len() == chars && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    (good(id, ID_CHARS) && good(secret, SECRET_CHARS)).then_some((id, secret))
}

pub fn is_one(token: &str) -> bool {
    parts(token).is_some()
}

/// The user behind a token, while its secret exists, lets it authenticate, and is not over.
pub fn authenticate(cache: &Cache, token: &str) -> Option<User> {
    let (id, secret) = parts(token)?;
    let key = format!("{SECRETS}kube-system/bootstrap-token-{id}");
    let found = cache.get(SECRETS, &key)?.value();
    judge(&found, id, secret, base::time::now().as_second())
}

fn judge(object: &Value, id: &str, secret: &str, now: i64) -> Option<User> {
    let entry = |name: &str| -> Option<String> {
        let bytes = STANDARD.decode(object["data"][name].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    if object["type"] != KIND || !object["metadata"]["deletionTimestamp"].is_null() {
        return None;
    }
    let kept = entry("token-secret")?;
    // In a time that tells nothing of the secret.
    let differing = kept.bytes().zip(secret.bytes()).fold(0, |sum, (a, b)| sum | (a ^ b));
    if kept.len() != secret.len() || differing != 0 || entry("token-id").as_deref() != Some(id) {
        return None;
    }
    if let Some(until) = entry("expiration").filter(|until| !until.is_empty())
        && base::time::parse(&until)?.as_second() < now
    {
        return None;
    }
    if entry("usage-bootstrap-authentication").as_deref() != Some("true") {
        return None;
    }
    let mut user = User::new(&format!("system:bootstrap:{id}"), &[GROUP]);
    let further = entry("auth-extra-groups").unwrap_or_default();
    for group in further.split(',').filter(|group| !group.is_empty()) {
        is_further_group(group).then_some(())?;
        if !user.is_in(group) {
            user.groups.insert(user.groups.len() - 1, group.to_owned());
        }
    }
    Some(user)
}

/// `system:bootstrappers:` and a word; the groups of others cannot be given.
fn is_further_group(group: &str) -> bool {
    let word = group.strip_prefix(GROUP).and_then(|rest| rest.strip_prefix(':'));
    word.is_some_and(|word| {
        let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        word.len() <= GROUP_CHARS_MAX
            && word.bytes().all(|b| lower(b) || b == b':' || b == b'-')
            && word.bytes().last().is_some_and(lower)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(change: &[(&str, &str)]) -> Value {
        let mut data = json!({});
        let usual = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("expiration", "2030-01-01T00:00:00Z"),
            ("usage-bootstrap-authentication", "true"),
        ];
        for (name, value) in usual.iter().chain(change) {
            data[*name] = STANDARD.encode(value).into();
        }
        json!({"type": KIND, "metadata": {}, "data": data})
    }

    #[test]
    fn a_token_is_good_while_its_secret_says_so() {
        let now = base::time::parse("2029-01-01T00:00:00Z").unwrap().as_second();
        let at = |object: &Value, secret: &str, now: i64| judge(object, "abcdef", secret, now);
        let user = at(
            &secret(&[("auth-extra-groups", "system:bootstrappers:kubeadm:a")]),
            "0123456789abcdef",
            now,
        )
        .unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        let groups = [GROUP, "system:bootstrappers:kubeadm:a", super::super::AUTHENTICATED];
        assert_eq!(user.groups, groups);
        assert_eq!(at(&secret(&[]), "0123456789abcdeg", now), None);
        assert_eq!(at(&secret(&[]), "0123456789abcdef", now + 400 * 86_400), None);
        for change in [
            ("token-id", "abcdeg"),
            ("usage-bootstrap-authentication", "false"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:A"),
            ("expiration", "tomorrow"),
        ] {
            assert_eq!(at(&secret(&[change]), "0123456789abcdef", now), None, "{change:?}");
        }
        let mut other = secret(&[]);
        other["type"] = "Opaque".into();
        assert_eq!(at(&other, "0123456789abcdef", now), None);
    }

    #[test]
    fn only_what_has_its_form_is_looked_up() {
        assert_eq!(parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for odd in ["", "abcdef", "abcdef.", "ABCDEF.0123456789abcdef", "../../.0123456789abcdef"] {
            assert_eq!(parts(odd), None);
        }
    }
}
