//! Typed requests for one resource.

use std::future::ready;
use std::marker::PhantomData;
use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::Method;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{Error, Result, Status};
use crate::requests::{ACCEPT_JSON, ACCEPT_META, Query, Requests, build};
use crate::transport::Client;

/// What caches and loops need of an object.
pub trait Object: Serialize + DeserializeOwned + Send + Sync + 'static {
    fn meta(&self) -> &ObjectMeta;
}

impl<K> Object for K
where
    K: k8s_openapi::Metadata<Ty = ObjectMeta>
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }
}

/// An object of any kind, its metadata typed and the rest as it came.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dynamic {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
    #[serde(flatten)]
    pub rest: serde_json::Map<String, Value>,
}

impl Object for Dynamic {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Only the metadata of an object of any kind; asked for as `PartialObjectMetadata`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetaOnly {
    #[serde(default)]
    pub api_version: String,
    #[serde(default)]
    pub kind: String,
    #[serde(default)]
    pub metadata: ObjectMeta,
}

impl Object for MetaOnly {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
}

/// Names a resource of any kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceRef {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub kind: String,
    pub namespaced: bool,
}

impl ResourceRef {
    pub fn of<K: k8s_openapi::Resource>() -> Self
    where
        K::Scope: ScopeOf,
    {
        Self {
            group: K::GROUP.into(),
            version: K::VERSION.into(),
            plural: K::URL_PATH_SEGMENT.into(),
            kind: K::KIND.into(),
            namespaced: K::Scope::NAMESPACED,
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `/api/v1/namespaces/NS/pods` or `/apis/apps/v1/deployments`.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let Self { group, version, plural, .. } = self;
        let root = if group.is_empty() {
            format!("/api/{version}")
        } else {
            format!("/apis/{group}/{version}")
        };
        match namespace {
            Some(ns) if self.namespaced => format!("{root}/namespaces/{ns}/{plural}"),
            _ => format!("{root}/{plural}"),
        }
    }
}

/// Whether a scope of k8s-openapi has namespaces.
pub trait ScopeOf {
    const NAMESPACED: bool;
}
impl ScopeOf for k8s_openapi::NamespaceResourceScope {
    const NAMESPACED: bool = true;
}
impl ScopeOf for k8s_openapi::ClusterResourceScope {
    const NAMESPACED: bool = false;
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ListParams {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub resource_version: Option<String>,
    pub limit: Option<u64>,
    pub continue_token: Option<String>,
    /// Of lists of custom metrics: which series of a metric.
    pub metric_selector: Option<String>,
}

impl ListParams {
    pub fn labels(selector: impl Into<String>) -> Self {
        Self { label_selector: Some(selector.into()), ..Self::default() }
    }

    pub fn fields(selector: impl Into<String>) -> Self {
        Self { field_selector: Some(selector.into()), ..Self::default() }
    }

    pub(crate) fn query(&self) -> Query {
        let mut query = Query::default();
        query.set("labelSelector", self.label_selector.as_deref());
        query.set("fieldSelector", self.field_selector.as_deref());
        query.set("resourceVersion", self.resource_version.as_deref());
        query.set("metricLabelSelector", self.metric_selector.as_deref());
        query.set("limit", self.limit.map(|n| n.to_string()).as_deref());
        query.set("continue", self.continue_token.as_deref());
        query
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Debug, Clone, Default)]
pub struct DeleteParams {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
}

impl DeleteParams {
    pub fn uid(uid: impl Into<String>) -> Self {
        Self { uid: Some(uid.into()), ..Self::default() }
    }

    pub fn grace(mut self, seconds: i64) -> Self {
        self.grace_period_seconds = Some(seconds);
        self
    }

    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = Some(propagation);
        self
    }

    pub(crate) fn body(&self) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(seconds) = self.grace_period_seconds {
            body["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(uid) = &self.uid {
            body["preconditions"]["uid"] = uid.as_str().into();
        }
        if let Some(version) = &self.resource_version {
            body["preconditions"]["resourceVersion"] = version.as_str().into();
        }
        if let Some(propagation) = self.propagation {
            body["propagationPolicy"] = format!("{propagation:?}").into();
        }
        body
    }
}

/// A change to an object.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 7386.
    Merge(Value),
    /// RFC 6902.
    Json(Value),
    Strategic(Value),
    /// Server-side apply under a field manager.
    Apply {
        object: Value,
        manager: String,
        force: bool,
    },
}

/// A page of objects, without their managed fields: nobody here looks at them, and they are
/// half of what there is to read and to keep.
#[derive(Debug, Clone)]
pub struct ObjectList<K> {
    pub metadata: ListMeta,
    pub items: Vec<K>,
}

#[derive(Debug)]
pub enum WatchEvent<K> {
    Added(K),
    Modified(K),
    Deleted(K),
    /// Everything up to this resourceVersion has been sent.
    Bookmark(String),
}

/// Requests for the objects of one resource, in one namespace or in all.
pub struct Api<K> {
    pub(crate) requests: Requests,
    kind: PhantomData<fn() -> K>,
}

impl<K> Clone for Api<K> {
    fn clone(&self) -> Self {
        Self { requests: self.requests.clone(), kind: PhantomData }
    }
}

impl Client {
    /// The objects of a kind in one namespace; None means the cluster's own objects,
    /// or those of all namespaces.
    pub fn api<K>(&self, namespace: Option<&str>) -> Api<K>
    where
        K: k8s_openapi::Resource,
        K::Scope: ScopeOf,
    {
        self.api_of(ResourceRef::of::<K>(), namespace)
    }

    /// The objects of a kind everywhere.
    pub fn all<K>(&self) -> Api<K>
    where
        K: k8s_openapi::Resource,
        K::Scope: ScopeOf,
    {
        self.api(None)
    }

    /// The objects of a resource that is known at run time only.
    pub fn dynamic(&self, resource: ResourceRef, namespace: Option<&str>) -> Api<Dynamic> {
        self.api_of(resource, namespace)
    }

    /// The same, metadata only.
    pub fn metadata_only(&self, resource: ResourceRef, namespace: Option<&str>) -> Api<MetaOnly> {
        let mut api = self.api_of(resource, namespace);
        api.requests.accept = ACCEPT_META;
        api
    }

    fn api_of<K>(&self, resource: ResourceRef, namespace: Option<&str>) -> Api<K> {
        let requests = Requests {
            client: self.clone(),
            resource,
            namespace: namespace.map(str::to_string),
            accept: ACCEPT_JSON,
        };
        Api { requests, kind: PhantomData }
    }

    /// GET of any path, for what is not a resource (`/version`, `/healthz`).
    pub async fn get_raw(&self, path: &str) -> Result<Bytes> {
        self.request(build(Method::GET, path, "*/*", None, Bytes::new())?).await
    }

    /// POST of a JSON body to any path; virtual kinds (reviews, bindings, tokens) and
    /// subresources are created so.
    pub async fn post_raw(&self, path: &str, body: &Value) -> Result<Value> {
        let body = serde_json::to_vec(body).map_err(Error::Encode)?;
        let request = build(Method::POST, path, ACCEPT_JSON, Some(ACCEPT_JSON), body.into())?;
        serde_json::from_slice(&self.request(request).await?).map_err(Error::Decode)
    }
}

impl<K: Serialize + DeserializeOwned + 'static> Api<K> {
    pub fn resource(&self) -> &ResourceRef {
        &self.requests.resource
    }

    pub async fn get(&self, name: &str) -> Result<K> {
        decode(&self.requests.send(Method::GET, &[name], None).await?)
    }

    /// None where the object does not exist.
    pub async fn get_opt(&self, name: &str) -> Result<Option<K>> {
        match self.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(err) if err.is_not_found() => Ok(None),
            Err(err) => Err(err),
        }
    }

    pub async fn list(&self, params: &ListParams) -> Result<ObjectList<K>> {
        decode_list(&self.requests.list(params).await?)
    }

    pub async fn create(&self, object: &K) -> Result<K> {
        decode(&self.requests.send(Method::POST, &[], Some(encode(object)?)).await?)
    }

    pub async fn replace(&self, name: &str, object: &K) -> Result<K> {
        decode(&self.requests.send(Method::PUT, &[name], Some(encode(object)?)).await?)
    }

    pub async fn replace_status(&self, name: &str, object: &K) -> Result<K> {
        self.replace_subresource(name, "status", object).await
    }

    /// Reads a subresource of an object that is of another kind (`scale`).
    pub async fn get_subresource<T>(&self, name: &str, subresource: &str) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        decode(&self.requests.send(Method::GET, &[name, subresource], None).await?)
    }

    /// Replaces a subresource of an object (`finalize`, `scale`).
    pub async fn replace_subresource<T>(
        &self,
        name: &str,
        subresource: &str,
        object: &T,
    ) -> Result<T>
    where
        T: Serialize + DeserializeOwned,
    {
        let tail = [name, subresource];
        decode(&self.requests.send(Method::PUT, &tail, Some(encode(object)?)).await?)
    }

    pub async fn patch(&self, name: &str, patch: &Patch) -> Result<K> {
        decode(&self.requests.patch(&[name], patch).await?)
    }

    pub async fn patch_status(&self, name: &str, patch: &Patch) -> Result<K> {
        decode(&self.requests.patch(&[name, "status"], patch).await?)
    }

    /// Merges `patch` (RFC 7386) into the live object by reading and replacing it, for
    /// components whose role lets them update but not patch. `subresource` may be empty.
    ///
    /// # Errors
    /// Conflict, if others keep being faster.
    pub async fn merge(&self, name: &str, subresource: &str, patch: &Value) -> Result<K> {
        decode(&self.requests.merge(name, subresource, patch).await?)
    }

    pub async fn delete(&self, name: &str, params: &DeleteParams) -> Result<()> {
        self.requests.delete(&[name], params, &ListParams::default()).await
    }

    pub async fn delete_collection(&self, params: &DeleteParams, list: &ListParams) -> Result<()> {
        self.requests.delete(&[], params, list).await
    }

    /// Creates a subresource of an object (`token`, `binding`, `eviction`).
    pub async fn create_subresource(
        &self,
        name: &str,
        subresource: &str,
        body: &Value,
    ) -> Result<Value> {
        let Requests { client, .. } = &self.requests;
        client.post_raw(&self.requests.path(&[name, subresource], Query::default()), body).await
    }

    /// Watches from `resource_version` on; objects come without their managed fields, as in
    /// lists. The stream ends when the server ends it; an
    /// `Err` is its last item.
    pub async fn watch(
        &self,
        params: &ListParams,
        resource_version: &str,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<WatchEvent<K>>> + Send>>>
    where
        K: Send + 'static,
    {
        let lines = self.requests.watch(params, resource_version).await?;
        let events = lines.scan(false, |has_failed, line| {
            if *has_failed {
                return ready(None);
            }
            let event = line.and_then(|line| decode_event(&line));
            *has_failed = event.is_err();
            ready(Some(event))
        });
        Ok(Box::pin(events))
    }
}

fn encode<T: Serialize>(object: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(object).map_err(Error::Encode)
}

/// The one decoder of a kind. It is large: it is called, and not made part of its callers.
#[inline(never)]
fn decode<K: DeserializeOwned>(object: &[u8]) -> Result<K> {
    serde_json::from_slice(object).map_err(Error::Decode)
}

/// An object of a known kind from a value. By way of bytes, so that a kind has one decoder:
/// a second one would be as large as the first.
///
/// # Errors
/// What of the value is not of the kind.
pub fn typed<K: DeserializeOwned>(value: &Value) -> Result<K> {
    decode(&encode(value)?)
}

/// The value of an object of a known kind, by way of bytes for the same reason.
///
/// # Errors
/// None for what came from an API server.
pub fn value_of<K: Serialize>(object: &K) -> Result<Value> {
    decode(&encode(object)?)
}

#[derive(Deserialize)]
struct RawEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a serde_json::value::RawValue,
}

/// An object without its managed fields, which are often half of its text.
fn decode_lean<K: DeserializeOwned + 'static>(object: &[u8]) -> Result<K> {
    let lean = codec::fields::remove(object, &["metadata", "managedFields"]);
    decode(lean.as_deref().unwrap_or(object))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawList<'a> {
    #[serde(default)]
    metadata: ListMeta,
    /// Servers written in Go say null where there is nothing.
    #[serde(borrow, default)]
    items: Option<Vec<&'a serde_json::value::RawValue>>,
}

pub(crate) fn decode_list<K: DeserializeOwned + 'static>(text: &[u8]) -> Result<ObjectList<K>> {
    let raw: RawList<'_> = serde_json::from_slice(text).map_err(Error::Decode)?;
    let items = raw.items.into_iter().flatten();
    let items = items.map(|item| decode_lean(item.get().as_bytes())).collect::<Result<_>>()?;
    Ok(ObjectList { metadata: raw.metadata, items })
}

pub(crate) fn decode_event<K: DeserializeOwned + 'static>(line: &[u8]) -> Result<WatchEvent<K>> {
    let raw: RawEvent<'_> = serde_json::from_slice(line).map_err(Error::Decode)?;
    // As bytes, as everywhere: each kind is decoded by one piece of code.
    let object = raw.object.get().as_bytes();
    let decode = || decode_lean(object);
    match raw.kind {
        "ADDED" => Ok(WatchEvent::Added(decode()?)),
        "MODIFIED" => Ok(WatchEvent::Modified(decode()?)),
        "DELETED" => Ok(WatchEvent::Deleted(decode()?)),
        "BOOKMARK" => {
            let object: MetaOnly = serde_json::from_slice(object).map_err(Error::Decode)?;
            Ok(WatchEvent::Bookmark(object.metadata.resource_version.unwrap_or_default()))
        }
        _ => {
            let status: Status = serde_json::from_slice(object).map_err(Error::Decode)?;
            Err(Error::Api(Box::new(status)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_nothing_may_be_null() {
        for (text, count) in [("{}", 0), (r#"{"items": null}"#, 0), (r#"{"items": [1]}"#, 1)] {
            let list: ObjectList<i64> = decode_list(text.as_bytes()).unwrap();
            assert_eq!(list.items.len(), count, "{text}");
        }
    }

    #[test]
    fn lists_and_watches_leave_managed_fields_out() {
        let object = r#"{"metadata":{"name":"a","managedFields":[{"manager":"m"}]}}"#;
        let text = format!(r#"{{"metadata":{{"resourceVersion":"5"}},"items":[{object}]}}"#);
        let list: ObjectList<MetaOnly> = decode_list(text.as_bytes()).unwrap();
        assert_eq!(list.metadata.resource_version.as_deref(), Some("5"));
        let event = format!(r#"{{"type":"ADDED","object":{object}}}"#);
        let Ok(WatchEvent::Added(one)) = decode_event::<MetaOnly>(event.as_bytes()) else {
            panic!("added")
        };
        for found in [&list.items[0], &one] {
            assert_eq!(found.metadata.name.as_deref(), Some("a"));
            assert_eq!(found.metadata.managed_fields, None);
        }
    }
}
