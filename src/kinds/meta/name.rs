//! Names, label keys and values: each check gives upstream's sentences, none if all is well.

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
    characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
    'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric \
    characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  \
    or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS \
    subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with \
    an alphanumeric character (e.g. '*.example.com', regex used for validation is \
    '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const DNS1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or \
    '-', start with an alphabetic character, and end with an alphanumeric character (e.g. \
    'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start \
    and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex \
    used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric \
    characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
    'MyValue',  or 'my_value',  or '12345', regex used for validation is \
    '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or \
    '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
    '[-._a-zA-Z0-9]+')";
const INVALID_PATH: &str =
    "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";

/// The longest DNS-1123 subdomain and object name, in bytes.
pub const SUBDOMAIN_BYTES_MAX: usize = 253;
/// The longest DNS label, label key's name part and label value, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;

fn is_label(text: &str) -> bool {
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(&first), Some(&last)) => {
            lower(first) && lower(last) && bytes.iter().all(|&b| lower(b) || b == b'-')
        }
        _ => false,
    }
}

fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        }
        _ => false,
    }
}

pub fn is_dns1123_subdomain(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > SUBDOMAIN_BYTES_MAX {
        out.push(format!("must be no more than {SUBDOMAIN_BYTES_MAX} characters"));
    }
    if !name.split('.').all(is_label) {
        out.push(SUBDOMAIN.to_owned());
    }
    out
}

/// `*.example.com`.
pub fn is_wildcard_subdomain(name: &str) -> Vec<String> {
    let rest = name.strip_prefix("*.").unwrap_or_default();
    let mut out = Vec::new();
    if name.len() > SUBDOMAIN_BYTES_MAX {
        out.push(format!("must be no more than {SUBDOMAIN_BYTES_MAX} characters"));
    }
    if !rest.split('.').all(is_label) {
        out.push(WILDCARD.to_owned());
    }
    out
}

pub fn is_dns1123_label(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > LABEL_BYTES_MAX {
        out.push(format!("must be no more than {LABEL_BYTES_MAX} characters"));
    }
    if !is_label(name) {
        let dots = !name.is_empty() && name.split('.').all(is_label);
        out.push(if dots { "must not contain dots".to_owned() } else { LABEL.to_owned() });
    }
    out
}

pub fn is_dns1035_label(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > LABEL_BYTES_MAX {
        out.push(format!("must be no more than {LABEL_BYTES_MAX} characters"));
    }
    if !is_label(name) || !name.as_bytes()[0].is_ascii_lowercase() {
        out.push(DNS1035.to_owned());
    }
    out
}

/// Names of rbac objects: anything that can stand in a path.
pub fn is_path_segment(name: &str) -> Vec<String> {
    if matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"]
        .iter()
        .filter(|part| name.contains(**part))
        .map(|part| format!("may not contain '{part}'"))
        .collect()
}

/// Names of environment variables (upstream's relaxed rule).
pub fn is_variable(name: &str) -> Vec<String> {
    match name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        true => Vec::new(),
        false => vec![
            "a valid environment variable name must consist only of printable ASCII characters \
             other than '='"
                .to_owned(),
        ],
    }
}

/// `example.com/path`, as condition types of status and keys of a user's extra are.
pub fn is_domain_prefixed_path(text: &str) -> Vec<String> {
    let Some((domain, path)) =
        text.split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
    else {
        return vec!["must be a domain-prefixed path (such as \"acme.io/foo\")".to_owned()];
    };
    let mut out = is_dns1123_subdomain(domain);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&b);
    if !path.bytes().all(allowed) {
        out.push(INVALID_PATH.to_owned());
    }
    out
}

/// Whether a resource is of somebody's own domain: `example.com/gpu` (documentation, "Extended
/// resources"). Names of quotas, which begin with `requests.`, are not.
pub fn is_extended_resource(resource: &str) -> bool {
    resource.contains('/')
        && !resource.contains("kubernetes.io/")
        && !resource.starts_with("requests.")
}

/// Labels of Kubernetes' own that a node may give itself, because they tell what it is.
const LABELS_OF_NODES: [&str; 11] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Whether a node may give itself the label: somebody's own, or of Kubernetes' own those that are
/// meant for that (documentation, "Admission Control in Kubernetes", NodeRestriction).
pub fn is_label_of_node(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let is_below = |root: &&str| {
        domain.strip_suffix(*root).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    !["kubernetes.io", "k8s.io"].iter().any(is_below)
        || LABELS_OF_NODES.contains(&key)
        || ["kubelet.kubernetes.io", "node.kubernetes.io"].iter().any(is_below)
}

/// Label keys, finalizers, taint keys: `prefix/name`.
pub fn is_qualified(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    let parts: Vec<&str> = name.split('/').collect();
    let name = match parts.as_slice() {
        [name] => name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(
                    is_dns1123_subdomain(prefix).into_iter().map(|m| format!("prefix part {m}")),
                );
            }
            name
        }
        _ => {
            return vec![format!(
                "a valid label key {NAME_PART} with an optional DNS subdomain prefix and '/' \
                 (e.g. 'example.com/MyName')"
            )];
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_BYTES_MAX {
        out.push(format!("name part must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !is_name_part(name) {
        out.push(format!("name part {NAME_PART}"));
    }
    out
}

pub fn is_label_value(value: &str) -> Vec<String> {
    let mut out = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        out.push(format!("must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !value.is_empty() && !is_name_part(value) {
        out.push(LABEL_VALUE.to_owned());
    }
    out
}

/// Keys of config maps and secrets.
pub fn is_config_key(key: &str) -> Vec<String> {
    let mut out = Vec::new();
    if key.len() > SUBDOMAIN_BYTES_MAX {
        out.push(format!("must be no more than {SUBDOMAIN_BYTES_MAX} characters"));
    }
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-._".contains(b);
    if key.is_empty() || !key.as_bytes().iter().all(plain) {
        out.push(CONFIG_KEY.to_owned());
    }
    match key {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        key if key.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

/// Names of ports: at most 15 bytes, lower case, with a letter, no doubled hyphens.
pub fn is_port_name(name: &str) -> Vec<String> {
    let mut out = Vec::new();
    if name.len() > 15 {
        out.push("must be no more than 15 characters".to_owned());
    }
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if name.is_empty() || !name.bytes().all(plain) {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

pub fn is_port_number(port: i64) -> Vec<String> {
    match port {
        1..=65535 => Vec::new(),
        _ => vec!["must be between 1 and 65535, inclusive".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(is_dns1123_subdomain("a.b-c.1").is_empty());
        assert_eq!(is_dns1123_subdomain("a_b").len(), 1);
        assert_eq!(is_dns1123_subdomain("a-").len(), 1);
        assert_eq!(is_dns1123_label("a.b"), ["must not contain dots"]);
        assert!(is_dns1035_label("a1").is_empty() && !is_dns1035_label("1a").is_empty());
        assert!(is_qualified("example.com/MyName").is_empty());
        assert_eq!(is_qualified("").len(), 2);
        assert!(is_label_value("").is_empty() && !is_label_value("-").is_empty());
        assert_eq!(is_path_segment("a/b"), ["may not contain '/'"]);
        assert_eq!(is_port_name("1"), ["must contain at least one letter (a-z)"]);
    }
}
