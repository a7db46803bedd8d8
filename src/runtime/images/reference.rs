//! Image references: `nginx`, `docker.io/library/nginx:latest`, `host:5000/a/b@sha256:...`.

use crate::cri::{Error, ErrorKind, Result};

const DEFAULT_DOMAIN: &str = "docker.io";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub domain: String,
    pub path: String,
    pub tag: Option<String>,
    pub digest: Option<String>,
}

impl Reference {
    /// Normalised: the default domain, `library/` and, without a digest, `latest`.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |why: &str| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("couldn't parse image name \"{text}\": invalid reference format{why}"),
            )
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_string())),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_string())),
            _ => (rest, None),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains('.') || first.contains(':') || first == "localhost" =>
            {
                (first.to_string(), path.to_string())
            }
            _ => (DEFAULT_DOMAIN.to_string(), name.to_string()),
        };
        let domain = if domain == "index.docker.io" { DEFAULT_DOMAIN.into() } else { domain };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("library/{path}")
        } else {
            path
        };
        let part_is_good = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| {
                    b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
                })
                && part.as_bytes()[0].is_ascii_alphanumeric()
        };
        let tag_is_good = |tag: &String| {
            !tag.is_empty()
                && tag.len() <= 128
                && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        };
        let domain_is_good = domain.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && domain.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b));
        if !domain_is_good
            || path.len() > 255
            || !path.split('/').all(part_is_good)
            || !tag.iter().all(tag_is_good)
            || !digest.iter().all(|d| digest_hex(d).is_some())
        {
            let name = path.split(':').next().unwrap_or_default();
            return Err(if name.bytes().any(|b| b.is_ascii_uppercase()) {
                refuse(&format!(": repository name ({name}) must be lowercase"))
            } else {
                refuse("")
            });
        }
        let tag = tag.or_else(|| digest.is_none().then(|| "latest".into()));
        Ok(Self { domain, path, tag, digest })
    }

    /// `docker.io/library/nginx`
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// `docker.io/library/nginx:latest`, for a reference with a tag.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.repository()))
    }
}

/// The digits of a `sha256:` digest.
pub fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let good = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    good.then_some(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_normalised() {
        for (text, repository, tag) in [
            ("nginx", "docker.io/library/nginx", Some("latest")),
            ("nginx:1.27", "docker.io/library/nginx", Some("1.27")),
            ("a/b", "docker.io/a/b", Some("latest")),
            ("localhost/x", "localhost/x", Some("latest")),
            ("127.0.0.1:5000/a/b:c", "127.0.0.1:5000/a/b", Some("c")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.repository(), repository);
            assert_eq!(reference.tag.as_deref(), tag, "{text}");
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let by_digest = Reference::parse(&format!("nginx@{digest}")).unwrap();
        assert_eq!((by_digest.tag, by_digest.digest), (None, Some(digest)));
        for bad in ["", "UPPER", "a b", "a:", "a@sha256:12", "../etc", "a//b", "x:y z"] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
        let told = Reference::parse("UPPER:case:wrong").unwrap_err().message;
        assert_eq!(
            told,
            "couldn't parse image name \"UPPER:case:wrong\": invalid reference format: \
             repository name (library/UPPER) must be lowercase"
        );
    }
}
