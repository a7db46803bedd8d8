//! Static pods from a URL: asked for at intervals, for nothing says that it has changed.
//!
//! What cannot be had or read changes nothing: the pods of before go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base::error::chain;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{MANIFEST_BYTES_MAX, Origin, complete};
use crate::node::Node;
use crate::pod;

/// Upstream's, of one request.
const PATIENCE: Duration = Duration::from_secs(10);
const REDIRECTS_MAX: usize = 10;
/// Failures in a row that are told of at once; later ones only where they differ.
const TOLD_MAX: usize = 3;

/// Where manifests are asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Remote {
    /// `http` or `https`
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub period: Duration,
}

impl Remote {
    /// # Errors
    /// A URL or a header that is none.
    pub fn new(
        url: &str,
        headers: Vec<(String, String)>,
        period: Duration,
    ) -> Result<Self, String> {
        let uri: http::Uri =
            url.parse().map_err(|error| format!("staticPodURL {url:?}: {error}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
            return Err(format!("staticPodURL {url:?} is not an http or https URL"));
        }
        for (name, value) in &headers {
            let is_good = http::HeaderName::try_from(name).is_ok()
                && http::HeaderValue::try_from(value).is_ok();
            if !is_good {
                return Err(format!("staticPodURLHeader {name:?} is no header"));
            }
        }
        if period.is_zero() {
            return Err("httpCheckFrequency must be more than zero".into());
        }
        Ok(Self { url: url.to_owned(), headers, period })
    }
}

/// The pods of the URL by uid; None until they were had once.
pub type Known = Option<Arc<BTreeMap<String, Pod>>>;

/// Tells of the pods whenever they change, for as long as anybody listens.
pub async fn follow(node: &Node, remote: &Remote, tell: watch::Sender<Known>) {
    let (mut failures, mut last) = (0, String::new());
    loop {
        let read = match fetch(remote).await {
            Ok(text) => parse(&text, &remote.url, &node.config.node_name),
            Err(error) => Err(error),
        };
        match read {
            Ok(pods) => {
                if failures > 0 {
                    info!(url = remote.url, failures, "static pods are read again");
                    failures = 0;
                }
                tell.send_if_modified(|known| {
                    let is_same = known.as_ref().is_some_and(|known| known.keys().eq(pods.keys()));
                    if !is_same {
                        *known = Some(Arc::new(pods));
                    }
                    !is_same
                });
            }
            Err(error) => {
                failures += 1;
                if failures <= TOLD_MAX || error != last {
                    warn!(url = remote.url, error, "static pods not read");
                }
                last = error;
            }
        }
        tokio::select! {
            () = tell.closed() => return,
            () = tokio::time::sleep(remote.period) => {}
        }
    }
}

async fn fetch(remote: &Remote) -> Result<String, String> {
    let whole = async {
        let mut url: http::Uri = remote.url.parse().map_err(|_| "the URL is malformed")?;
        for _ in 0..=REDIRECTS_MAX {
            let response = get(remote, &url).await?;
            let status = response.status();
            let location = response.headers().get(http::header::LOCATION);
            if status.is_redirection()
                && let Some(location) = location.and_then(|it| it.to_str().ok())
            {
                url = next(&url, location)
                    .ok_or_else(|| format!("{}: redirects to {location:?}", remote.url))?;
                continue;
            }
            if status != http::StatusCode::OK {
                return Err(format!("{}: {status}", remote.url));
            }
            let bytes_max = usize::try_from(MANIFEST_BYTES_MAX).unwrap_or(usize::MAX);
            let body = Limited::new(response.into_body(), bytes_max).collect().await;
            let body = body.map_err(|error| format!("{}: {error}", remote.url))?.to_bytes();
            return String::from_utf8(body.to_vec())
                .map_err(|_| format!("{}: its answer is no text", remote.url));
        }
        Err(format!("{}: stopped after {REDIRECTS_MAX} redirects", remote.url))
    };
    let late = |_| format!("{}: context deadline exceeded", remote.url);
    tokio::time::timeout(PATIENCE, whole).await.map_err(late)?
}

async fn get(
    remote: &Remote,
    url: &http::Uri,
) -> Result<http::Response<hyper::body::Incoming>, String> {
    let scheme = url.scheme_str().unwrap_or("http");
    let authority = url.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = http::Request::get(path)
        .header(http::header::HOST, authority)
        .header("user-agent", "kubelet");
    // They may hold a password, which is for the configured server alone.
    if remote.url.parse::<http::Uri>().is_ok_and(|own| own.authority() == url.authority()) {
        for (name, value) in &remote.headers {
            request = request.header(name, value);
        }
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|error| error.to_string())?;
    let proxies = runtime::images::Proxies::of_environment();
    runtime::images::exchange(scheme, authority, request, None, (&proxies, PATIENCE))
        .await
        .map_err(|error| format!("Get {:?}: {error}", remote.url))
}

fn next(from: &http::Uri, location: &str) -> Option<http::Uri> {
    let to: http::Uri = location.parse().ok()?;
    if matches!(to.scheme_str(), Some("http" | "https")) && to.authority().is_some() {
        return Some(to);
    }
    let mut parts = from.clone().into_parts();
    parts.path_and_query = location.starts_with('/').then(|| location.parse().ok()).flatten();
    parts.path_and_query.as_ref()?;
    http::Uri::from_parts(parts).ok()
}

/// One pod, or a list of some; nothing at all is a mistake rather than no pods.
fn parse(text: &str, url: &str, node_name: &str) -> Result<BTreeMap<String, Pod>, String> {
    if text.trim().is_empty() {
        return Err(format!("zero-length data received from {url}"));
    }
    let value: serde_json::Value = codec::yaml::read::typed(text)?;
    let items = match value["kind"].as_str() {
        Some("PodList" | "List") => value["items"].as_array().cloned().unwrap_or_default(),
        Some("Pod") => vec![value],
        other => return Err(format!("{url}: received {other:?}, not a Pod or a PodList")),
    };
    let mut out = BTreeMap::new();
    for item in items {
        let source = item.to_string();
        let pod: Pod = client::api::typed(&item).map_err(|error| chain(&error).to_string())?;
        let pod = complete(pod, Origin::Http, &[node_name, url, &source], node_name)?;
        out.insert(pod::uid(&pod).to_owned(), pod);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_and_a_list_are_read_and_nothing_else() {
        let pod = "{apiVersion: v1, kind: Pod, metadata: {name: NAME}, \
                   spec: {containers: [{name: a, image: x}]}}";
        let one = pod.replace("NAME", "one");
        let list = format!(
            "apiVersion: v1\nkind: PodList\nitems: [{one}, {}]\n",
            pod.replace("NAME", "two")
        );
        let names = |text: &str| -> Vec<String> {
            let pods = parse(text, "http://x/", "n1").unwrap();
            let mut names: Vec<String> = pods.values().map(|it| pod::name(it).to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&one), ["one-n1"]);
        assert_eq!(names(&list), ["one-n1", "two-n1"]);
        let read = parse(&one, "http://x/", "n1").unwrap();
        let made = read.values().next().unwrap();
        assert_eq!(pod::annotation(made, crate::pod::CONFIG_SOURCE), Some("http"));
        assert!(pod::is_static(made));
        for (bad, wanted) in [
            ("", "zero-length data"),
            ("kind: Service", "not a Pod"),
            ("{kind: Pod, metadata: {name: x}, spec: {}}", ""),
            ("<html>", ""),
        ] {
            let got = parse(bad, "http://x/", "n1").unwrap_err();
            assert!(got.contains(wanted), "{got}");
        }
    }

    #[test]
    fn what_is_no_place_to_ask_is_refused() {
        let period = Duration::from_secs(20);
        for url in ["ftp://x/", "/etc/pods", "http://", "x"] {
            assert!(Remote::new(url, Vec::new(), period).is_err(), "{url}");
        }
        let bad = vec![("a b".to_owned(), "c".to_owned())];
        assert!(Remote::new("http://x/", bad, period).is_err());
        assert!(Remote::new("http://x/", Vec::new(), Duration::ZERO).is_err());
        let from: http::Uri = "http://x:1/a?b".parse().unwrap();
        for (location, wanted) in
            [("/c?d", Some("http://x:1/c?d")), ("https://y/z", Some("https://y/z")), ("c", None)]
        {
            let got = next(&from, location).map(|it| it.to_string());
            assert_eq!(got.as_deref(), wanted);
        }
    }
}
