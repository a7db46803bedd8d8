//! Lists: which objects, at which revision, in which pages.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use store::RangeRequest;

use super::select::Selector;
use super::{Registry, Target};
use crate::cache::Object;
use crate::error::{ApiError, Cause, Result};
use crate::metrics::{count_list, count_storage_list, reads};

/// Objects read from the store at once while a page is filled.
const STORE_PAGE: usize = 500;

/// The query of a list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub selector: Selector,
    /// 0 is all.
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    /// `Exact`, `NotOlderThan` or empty.
    pub version_match: String,
}

/// One page of objects in their stored form.
pub struct Page {
    pub items: Vec<Arc<Object>>,
    pub revision: u64,
    /// Empty on the last page.
    pub continue_token: String,
    pub remaining: Option<u64>,
}

/// Where a list goes on: a revision and the last key it has shown. A revision of 0 goes
/// on in whatever there is now.
#[derive(Debug, PartialEq, Eq)]
struct Token {
    revision: u64,
    after: String,
}

impl Token {
    fn encode(&self, start: &str) -> String {
        let rest = self.after.strip_prefix(start).unwrap_or(&self.after);
        // 0 would be no revision at all.
        let revision = if self.revision == 0 { -1 } else { self.revision as i64 };
        let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": format!("{rest}\u{0}")});
        URL_SAFE_NO_PAD.encode(token.to_string())
    }

    fn decode(text: &str, start: &str) -> Result<Self> {
        let bad = |why: &str| {
            ApiError::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|err| bad(&format!("illegal base64 data at input byte {}", offset(&err))))?;
        let token: Value = serde_json::from_slice(&bytes).map_err(|err| {
            bad(&codec::go_json::mistake(&bytes).unwrap_or_else(|| err.to_string()))
        })?;
        if token["v"] != "meta.k8s.io/v1" {
            let version = token["v"].as_str().unwrap_or("");
            return Err(bad(&format!("server does not recognize this encoded version {version}")));
        }
        let revision = token["rv"].as_i64().unwrap_or(0);
        if revision == 0 {
            return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        let key = token["start"].as_str().unwrap_or("");
        let rest = key.trim_end_matches('\u{0}');
        if rest.is_empty() {
            return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
        }
        // A key may not lead out of what the list is about.
        let path = rest.strip_prefix('/').unwrap_or(rest);
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad(key));
        }
        Ok(Self { revision: revision.max(0) as u64, after: format!("{start}{path}") })
    }
}

/// Whether a continue token can be read, in a list of what lies under `start`.
///
/// # Errors
/// 400 in upstream's words.
pub fn check_token(token: &str, start: &str) -> Result<()> {
    let token = Token::decode(token, start)?;
    debug_assert!(token.after.starts_with(start), "a token leads out of its list");
    Ok(())
}

/// Where text stops being base64.
fn offset(error: &base64::DecodeError) -> usize {
    match error {
        base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => {
            *at
        }
        base64::DecodeError::InvalidLength(length) => length.saturating_sub(1) / 4 * 4,
        base64::DecodeError::InvalidPadding => 0,
    }
}

impl ListOptions {
    /// # Errors
    /// 400 for a combination that upstream refuses, in its words.
    pub fn check(&self) -> Result<()> {
        let field = "resourceVersionMatch";
        let refuse = |cause| Err(ApiError::invalid_options("ListOptions", &[cause]));
        match self.version_match.as_str() {
            "" => {}
            "Exact" if self.resource_version == "0" => {
                return refuse(Cause::forbidden(
                    field,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            "Exact" | "NotOlderThan" => {
                if self.resource_version.is_empty() {
                    return refuse(Cause::forbidden(
                        field,
                        "resourceVersionMatch is forbidden unless resourceVersion is provided",
                    ));
                }
                if !self.continue_token.is_empty() {
                    return refuse(Cause::forbidden(
                        field,
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
            }
            other => {
                return refuse(Cause::not_supported(field, other, &["Exact", "NotOlderThan", ""]));
            }
        }
        if !self.continue_token.is_empty()
            && !self.resource_version.is_empty()
            && self.resource_version != "0"
        {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(())
    }

    fn asked_revision(&self) -> Result<u64> {
        parse_version(&self.resource_version)
    }
}

/// A resourceVersion of a request; empty is 0.
pub fn parse_version(text: &str) -> Result<u64> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

impl Registry {
    pub async fn list(&self, target: &Target, options: &ListOptions) -> Result<Page> {
        options.check()?;
        let start = target.start()?;
        if !options.continue_token.is_empty() {
            let token = Token::decode(&options.continue_token, &start)?;
            if token.revision > 0 {
                return self.page_of_old(target, options, &start, token).await;
            }
            self.cache.fresh().await?;
            return self.page_of_now(target, options, &start, Some(&token.after)).await;
        }
        let asked = options.asked_revision()?;
        match options.version_match.as_str() {
            "Exact" => return self.exact(target, options, &start, asked).await,
            // With a limit, an unmatched old version means exactly that version.
            "" if asked > 0 && options.limit > 0 => {
                return self.exact(target, options, &start, asked).await;
            }
            _ if options.resource_version.is_empty() => {
                let begun = Instant::now();
                let fresh = self.cache.fresh().await;
                reads::consistent(&target.resource, begun.elapsed(), fresh.is_ok());
                fresh?
            }
            _ if asked == 0 => self.cache.revision(),
            _ => self.cache.wait_for(asked).await?,
        };
        self.page_of_now(target, options, &start, None).await
    }

    async fn exact(
        &self,
        target: &Target,
        options: &ListOptions,
        start: &str,
        revision: u64,
    ) -> Result<Page> {
        if revision == self.cache.fresh().await? {
            let page = self.page_of_now(target, options, start, None).await?;
            if page.revision == revision {
                return Ok(page);
            }
        }
        let token = Token { revision, after: String::new() };
        self.page_of_old(target, options, start, token).await
    }

    async fn page_of_now(
        &self,
        target: &Target,
        options: &ListOptions,
        start: &str,
        after: Option<&str>,
    ) -> Result<Page> {
        let narrow = options.selector.start(target)?;
        let (mut items, revision) = self.cache.list(target.prefix()?, &narrow, after);
        let fetched = items.len();
        if !options.selector.is_empty() {
            items = self.show_all(target, items).await?;
            items.retain(|object| options.selector.matches(object));
        }
        let mut page = cut(items, revision, options, start, None);
        // What is not sent need not be converted.
        page.items = self.show_all(target, page.items).await?;
        let resource = &target.resource;
        count_list(&resource.group, &resource.plural, fetched, page.items.len());
        Ok(page)
    }

    async fn show_all(
        &self,
        target: &Target,
        objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>> {
        crate::crd::convert::show(&self.cache, &target.resource, &target.version, objects).await
    }

    async fn page_of_old(
        &self,
        target: &Target,
        options: &ListOptions,
        start: &str,
        token: Token,
    ) -> Result<Page> {
        target.prefix()?;
        let revision = token.revision;
        let mut after = Some(token.after).filter(|after| !after.is_empty());
        let mut items: Vec<Arc<Object>> = Vec::new();
        let mut fetched = 0;
        loop {
            let request = RangeRequest {
                prefix: start.to_string(),
                after: after.take(),
                limit: STORE_PAGE,
                revision: Some(revision),
            };
            let range = self.store().range(request).await.map_err(|err| match err {
                store::Error::Compacted { .. } => too_old(&options.continue_token, start),
                other => other.into(),
            })?;
            after = range.items.last().map(|kv| kv.key.clone());
            fetched += range.items.len();
            let stored = range.items.into_iter();
            let stored = stored
                .map(|kv| Arc::new(Object::stored(&kv.key, &kv.value, kv.mod_revision)))
                .collect();
            let mut shown = self.show_all(target, stored).await?;
            shown.retain(|object| options.selector.matches(object));
            items.extend(shown);
            let full = options.limit > 0 && items.len() > options.limit;
            if full || !range.more {
                // How many remain is only known when the rest has been read.
                let known = !range.more;
                let page = cut(items, revision, options, start, Some(known));
                let (group, plural) = (&target.resource.group, &target.resource.plural);
                count_storage_list(group, plural, fetched, page.items.len());
                return Ok(page);
            }
        }
    }
}

/// 410 with a token that goes on from the same key in the newest state.
fn too_old(token: &str, start: &str) -> ApiError {
    let mut error = ApiError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    match Token::decode(token, start) {
        Ok(old) => {
            let next = Token { revision: 0, after: old.after }.encode(start);
            error.continue_token = Some(next.into());
        }
        Err(_) => {
            error.message = "The resourceVersion for the provided list is too old.".into();
        }
    }
    error
}

fn cut(
    mut items: Vec<Arc<Object>>,
    revision: u64,
    options: &ListOptions,
    start: &str,
    known: Option<bool>,
) -> Page {
    if options.limit == 0 || items.len() <= options.limit {
        return Page { items, revision, continue_token: String::new(), remaining: None };
    }
    let remaining = (items.len() - options.limit) as u64;
    items.truncate(options.limit);
    let after = items.last().map(|object| object.key.to_string()).unwrap_or_default();
    let continue_token = Token { revision, after }.encode(start);
    let countable = options.selector.is_empty() && known.unwrap_or(true);
    Page { items, revision, continue_token, remaining: countable.then_some(remaining) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_holds_a_revision_and_a_key() {
        let token = Token { revision: 7, after: "/registry/pods/a/b".into() };
        let text = token.encode("/registry/pods/");
        assert_eq!(Token::decode(&text, "/registry/pods/").unwrap(), token);
        for junk in ["", "x", "e30", "!!!"] {
            assert_eq!(Token::decode(junk, "/registry/pods/").unwrap_err().code, 400, "{junk}");
        }
    }
}
