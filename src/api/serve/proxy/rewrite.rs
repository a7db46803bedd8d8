//! Links of what is seen through a proxy: they lead through the proxy as well.
//!
//! Only what leads to the same host by an absolute path is changed; everything else works
//! as it is, or leads elsewhere on purpose.

/// The proxy through which something is seen.
pub struct Rewriter {
    /// The path before the one that the backend knows: `/api/v1/.../proxy`.
    pub prepend: String,
    /// The backend's address, and the host that the client asked.
    pub backend: String,
    pub asked: String,
}

/// The attributes of elements that hold links (HTML, "Attributes").
const LINKS: [(&str, &[&str]); 25] = [
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is no markup.
const RAW: [&str; 4] = ["script", "style", "textarea", "title"];

impl Rewriter {
    /// A link as it leads through the proxy.
    pub fn url(&self, url: &str) -> String {
        let (origin, rest) = match url.split_once("://") {
            Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                (Some((scheme, &rest[..end])), &rest[end..])
            }
            _ => match url.strip_prefix("//") {
                Some(rest) => {
                    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                    (Some(("", &rest[..end])), &rest[end..])
                }
                None => (None, url),
            },
        };
        let host = origin.map_or("", |(_, host)| host);
        let elsewhere = !host.is_empty() && host != self.backend && host != self.asked;
        if elsewhere || !rest.starts_with('/') {
            return url.to_string();
        }
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let (path, tail) = rest.split_at(end);
        // The client's own host may stay; the backend's means nothing to it.
        let origin = match origin {
            Some(("", host)) if host == self.asked => format!("//{host}"),
            Some((scheme, host)) if host == self.asked => format!("{scheme}://{host}"),
            _ => String::new(),
        };
        if path.starts_with(&self.prepend) {
            return format!("{origin}{path}{tail}");
        }
        format!("{origin}{}{path}{tail}", self.prepend)
    }

    /// A document with its links rewritten; everything else stays byte for byte.
    pub fn html(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + text.len() / 8);
        let mut rest = text;
        while let Some(at) = rest.find('<') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            let taken = match rest.as_bytes().get(1) {
                Some(b'!') if rest.starts_with("<!--") => {
                    rest.find("-->").map_or(rest.len(), |end| end + 3)
                }
                Some(byte) if byte.is_ascii_alphabetic() => {
                    let (tag, name) = tag(rest);
                    let links = LINKS.iter().find(|(element, _)| *element == name);
                    match links {
                        Some((_, attributes)) => self.element(&rest[..tag], attributes, &mut out),
                        None => out.push_str(&rest[..tag]),
                    }
                    rest = &rest[tag..];
                    if !RAW.contains(&name.as_str()) {
                        continue;
                    }
                    closing(rest, &name)
                }
                _ => rest.find('>').map_or(rest.len(), |end| end + 1),
            };
            out.push_str(&rest[..taken]);
            rest = &rest[taken..];
        }
        out.push_str(rest);
        out
    }

    /// Writes a start tag with its links rewritten.
    fn element(&self, tag: &str, links: &[&str], out: &mut String) {
        let mut rest = tag;
        while let Some((before, name, value, quote)) = attribute(rest) {
            out.push_str(&rest[..before]);
            let link = links.iter().any(|link| name.eq_ignore_ascii_case(link));
            if link {
                let decoded = value.replace("&amp;", "&");
                let new = self.url(&decoded);
                if new == decoded {
                    out.push_str(value);
                } else if quote == '\'' {
                    out.push_str(&new.replace('&', "&amp;").replace('\'', "&#39;"));
                } else {
                    out.push_str(&new.replace('&', "&amp;").replace('"', "&#34;"));
                }
            } else {
                out.push_str(value);
            }
            rest = &rest[before + value.len()..];
        }
        out.push_str(rest);
    }
}

/// Length of a start tag and its element's name.
fn tag(text: &str) -> (usize, String) {
    let mut quote = None;
    let mut end = text.len();
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (None, b'>') => {
                end = at + 1;
                break;
            }
            (None, b'"' | b'\'') => quote = Some(byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    let name = text[1..].split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or("");
    (end, name.to_ascii_lowercase())
}

/// Where the content of a raw element ends.
fn closing(text: &str, name: &str) -> usize {
    let bytes = text.as_bytes();
    let is_end = |at: usize| {
        let rest = &bytes[at + 2..];
        rest.len() >= name.len() && rest[..name.len()].eq_ignore_ascii_case(name.as_bytes())
    };
    let mut from = 0;
    while let Some(at) = text[from..].find("</") {
        if is_end(from + at) {
            return from + at;
        }
        from += at + 2;
    }
    text.len()
}

/// The next attribute with a value: where the value begins, the name, the value, its quote.
fn attribute(text: &str) -> Option<(usize, &str, &str, char)> {
    let equals = text.find('=')?;
    let name = text[..equals].trim_end();
    let start = name.rfind(|c: char| c.is_whitespace() || c == '/' || c == '"' || c == '\'');
    let name = &name[start.map_or(0, |at| at + 1)..];
    let after = &text[equals + 1..];
    let value = after.trim_start();
    let mut begin = equals + 1 + (after.len() - value.len());
    let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
    let (value, quote) = match quote {
        Some(quote) => {
            begin += 1;
            let inner = &value[1..];
            (&inner[..inner.find(quote).unwrap_or(inner.len())], quote)
        }
        None => {
            let end = value.find(|c: char| c.is_whitespace() || c == '>').unwrap_or(value.len());
            (&value[..end], ' ')
        }
    };
    Some((begin, name, value, quote))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewriter() -> Rewriter {
        Rewriter {
            prepend: "/api/v1/namespaces/n/pods/p/proxy".into(),
            backend: "10.0.0.1:80".into(),
            asked: "localhost:6443".into(),
        }
    }

    #[test]
    fn absolute_paths_of_the_same_host_lead_through_the_proxy() {
        let through = "/api/v1/namespaces/n/pods/p/proxy";
        for (url, expected) in [
            ("/a/b?c=/d#e", format!("{through}/a/b?c=/d#e")),
            ("/", format!("{through}/")),
            ("http://10.0.0.1:80/a", format!("{through}/a")),
            ("//10.0.0.1:80/a/", format!("{through}/a/")),
            ("https://localhost:6443/a", format!("https://localhost:6443{through}/a")),
            ("http://example.com/a", "http://example.com/a".into()),
            ("a/b", "a/b".into()),
            ("#top", "#top".into()),
            ("", String::new()),
            ("mailto:x@example.com", "mailto:x@example.com".into()),
            (&format!("{through}/a"), format!("{through}/a")),
        ] {
            assert_eq!(rewriter().url(url), expected, "{url}");
        }
    }

    #[test]
    fn only_links_of_a_document_change() {
        let p = "/api/v1/namespaces/n/pods/p/proxy";
        for (html, expected) in [
            (r#"<a href="/x">/x</a>"#, format!(r#"<a href="{p}/x">/x</a>"#)),
            (r#"<A class=b HREF='/x' >"#, format!(r#"<A class=b HREF='{p}/x' >"#)),
            ("<img alt=/y src=/x>", format!("<img alt=/y src={p}/x>")),
            (r#"<a href="/x?a=1&amp;b=2">"#, format!(r#"<a href="{p}/x?a=1&amp;b=2">"#)),
            (r#"<p title="<a href='/x'>">"#, r#"<p title="<a href='/x'>">"#.into()),
            (
                r#"<script src="/s.js">if (a < b) { x = "<a href='/x'>" }</script><a href="/z">"#,
                format!(
                    r#"<script src="{p}/s.js">if (a < b) {{ x = "<a href='/x'>" }}</script><a href="{p}/z">"#
                ),
            ),
            (r#"<!-- <a href="/x"> --><br/>"#, r#"<!-- <a href="/x"> --><br/>"#.into()),
            ("a < b <", "a < b <".into()),
            (r#"<a href="/unended"#, format!(r#"<a href="{p}/unended"#)),
            ("<a href=", "<a href=".into()),
        ] {
            assert_eq!(rewriter().html(html), expected, "{html}");
        }
    }
}
