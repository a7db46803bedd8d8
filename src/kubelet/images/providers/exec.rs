//! One run of a credential provider plugin: the question on its standard input, the answer
//! from its standard output, all within a minute.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use runtime::cri::AuthConfig;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::file::Provider;

/// Upstream's.
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// Of what it complains that is passed on.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

pub struct Request<'a> {
    pub api_version: &'a str,
    /// Without tag and digest.
    pub image: &'a str,
    pub token: &'a str,
    pub annotations: &'a BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum CacheKey {
    Image,
    Registry,
    Global,
}

#[derive(Debug)]
pub struct Answer {
    pub key: CacheKey,
    /// None leaves it to the configuration.
    pub duration: Option<Duration>,
    pub auths: BTreeMap<String, AuthConfig>,
}

/// # Errors
/// In one line, and without anything of an answer: that may hold credentials.
pub async fn run(provider: &Provider, request: &Request<'_>) -> Result<Answer, String> {
    let about = format!(
        "error execing credential provider plugin {} for image {}",
        provider.name, request.image
    );
    let mut question = json!({
        "kind": "CredentialProviderRequest",
        "apiVersion": request.api_version,
        "image": request.image,
    });
    if !request.token.is_empty() {
        question["serviceAccountToken"] = json!(request.token);
    }
    if !request.annotations.is_empty() {
        question["serviceAccountAnnotations"] = json!(request.annotations);
    }
    let mut child = Command::new(&provider.executable)
        .args(&provider.args)
        .envs(provider.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Past the deadline it is killed.
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{about}: {error}"))?;
    let (input, output, complaints) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async {
        if let Some(mut input) = input {
            // One that does not read what it is asked may still know the answer.
            let _ = input.write_all(question.to_string().as_bytes()).await;
        }
    };
    let whole = async {
        let ((), output, complaints) = futures::join!(
            tell,
            bounded(output, ANSWER_BYTES_MAX),
            bounded(complaints, COMPLAINT_BYTES_MAX)
        );
        (child.wait().await, output, complaints)
    };
    let (status, output, complaints) = tokio::time::timeout(PATIENCE, whole)
        .await
        .map_err(|_| format!("{about}: context deadline exceeded"))?;
    let status = status.map_err(|error| format!("{about}: {error}"))?;
    if !status.success() {
        let words = String::from_utf8_lossy(&complaints).trim().to_owned();
        return Err(format!("{about}: {status}: {words}"));
    }
    if output.len() as u64 >= ANSWER_BYTES_MAX {
        return Err(format!("{about}: its answer is longer than {ANSWER_BYTES_MAX} bytes"));
    }
    read(&output, request.api_version)
}

/// The beginning of a stream; the rest is read and dropped, so that its writer can end.
async fn bounded(stream: Option<impl AsyncRead + Unpin>, bytes_max: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What came before an error is judged like any other answer.
        let _ = (&mut stream).take(bytes_max).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    bytes
}

fn read(output: &[u8], api_version: &str) -> Result<Answer, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        #[serde(default)]
        api_version: String,
        #[serde(default)]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Pair {
        #[serde(default)]
        username: String,
        #[serde(default)]
        password: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Response {
        cache_key_type: Option<String>,
        cache_duration: Option<String>,
        #[serde(default)]
        auth: Option<BTreeMap<String, Pair>>,
    }
    let malformed = || "error decoding credential provider plugin response from stdout".to_owned();
    let head: Head =
        serde_json::from_slice(output).map_err(|_| "error reading GVK from response".to_owned())?;
    if head.api_version != api_version {
        return Err(format!(
            "apiVersion from credential plugin response did not match expected \
             apiVersion:{api_version}, actual apiVersion:{}",
            head.api_version
        ));
    }
    if head.kind != "CredentialProviderResponse" {
        return Err(malformed());
    }
    let response: Response = serde_json::from_slice(output).map_err(|_| malformed())?;
    let key = match response.cache_key_type.as_deref().unwrap_or_default() {
        "Image" => CacheKey::Image,
        "Registry" => CacheKey::Registry,
        "Global" => CacheKey::Global,
        other => {
            return Err(format!(
                "credential provider plugin did not return a valid cacheKeyType: {other:?}"
            ));
        }
    };
    let duration = response
        .cache_duration
        .map(|text| base::time::parse_duration(&text).ok_or_else(malformed))
        .transpose()?;
    let auth = |pair: Pair| AuthConfig {
        username: pair.username,
        password: pair.password,
        ..AuthConfig::default()
    };
    let auths = response.auth.unwrap_or_default();
    let auths = auths.into_iter().map(|(place, pair)| (place, auth(pair))).collect();
    Ok(Answer { key, duration, auths })
}
