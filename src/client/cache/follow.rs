//! Keeps a cache in step with the server. Of all kinds the same: what is generated for each is
//! how its objects are decoded and held.

use std::time::Duration;

use base::backoff::Backoff;
use base::drain::Drain;
use base::error::chain;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use tracing::{debug, warn};

use super::{Cache, key_of};
use crate::api::{ListParams, Object, WatchEvent, decode_event, decode_list};
use crate::error::Error;
use crate::requests::Requests;

/// Objects per page of a list.
pub const LIST_PAGE: u64 = 500;

/// What lists and watches go into.
pub trait Fed: Send + Sync {
    fn list(&self) -> Box<dyn Listed>;

    /// Takes an event of a watch; tells the version that it brings, if it has one.
    ///
    /// # Errors
    /// When it is none, and when it is the error that ends the watch.
    fn event(&self, line: &[u8]) -> Result<Option<String>, Error>;
}

/// A list as it comes in.
pub trait Listed: Send {
    /// Takes a page.
    ///
    /// # Errors
    /// When it is none.
    fn page(&mut self, text: &[u8]) -> Result<ListMeta, Error>;

    /// From now on there is what was listed, and nothing else.
    fn end(self: Box<Self>);
}

struct Pages<K> {
    to: Cache<K>,
    objects: Vec<K>,
}

impl<K: Object> Listed for Pages<K> {
    fn page(&mut self, text: &[u8]) -> Result<ListMeta, Error> {
        let mut page = decode_list::<K>(text)?;
        // Now, so that no more than one page lies there untrimmed.
        page.items.iter_mut().for_each(self.to.0.trim);
        self.objects.append(&mut page.items);
        Ok(page.metadata)
    }

    fn end(self: Box<Self>) {
        self.to.reset(self.objects);
    }
}

impl<K: Object> Fed for Cache<K> {
    fn list(&self) -> Box<dyn Listed> {
        Box::new(Pages { to: self.clone(), objects: Vec::new() })
    }

    fn event(&self, line: &[u8]) -> Result<Option<String>, Error> {
        match decode_event::<K>(line)? {
            WatchEvent::Added(mut object) | WatchEvent::Modified(mut object) => {
                let version = object.meta().resource_version.clone();
                (self.0.trim)(&mut object);
                self.put(object);
                Ok(version)
            }
            WatchEvent::Deleted(object) => {
                self.remove(&key_of(&object));
                Ok(object.meta().resource_version.clone())
            }
            WatchEvent::Bookmark(seen) => Ok(Some(seen)),
        }
    }
}

/// Where a list goes on.
pub enum Next {
    /// With the page of this token.
    Page(String),
    /// Nowhere: it is complete, as of this version.
    End(String),
}

pub fn next_page(page: ListMeta) -> Next {
    match page.continue_ {
        Some(token) if !token.is_empty() => Next::Page(token),
        _ => Next::End(page.resource_version.unwrap_or_default()),
    }
}

/// Lists and watches until the drain begins.
pub async fn follow(fed: Box<dyn Fed>, requests: Requests, params: ListParams, drain: Drain) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(15));
    let mut version: Option<String> = None;
    loop {
        let round = round(&*fed, &requests, &params, &mut version, &mut backoff);
        let Some(result) = drain.until(round).await else { return };
        let plural = &requests.resource.plural;
        match result {
            Ok(()) => backoff.reset(),
            Err(err) if err.is_expired() => {
                debug!(resource = %plural, "watch expired, listing again");
                version = None;
            }
            Err(err) => {
                if backoff.failures() == 3 {
                    warn!(resource = %plural, error = %chain(&err), "watch fails, retrying");
                }
                if err.code() != 0 {
                    version = None;
                }
                let delay = backoff.next_delay();
                if drain.until(tokio::time::sleep(delay)).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// One list (unless a version is known) and one watch to its end.
async fn round(
    fed: &dyn Fed,
    requests: &Requests,
    params: &ListParams,
    version: &mut Option<String>,
    backoff: &mut Backoff,
) -> Result<(), Error> {
    let start = match version {
        Some(version) => version.clone(),
        None => {
            let listed = list(fed, requests, params).await?;
            *version = Some(listed.clone());
            listed
        }
    };
    let mut lines = requests.watch(params, &start).await?;
    while let Some(line) = lines.next().await {
        *version = fed.event(&line?)?;
        backoff.reset();
    }
    Ok(())
}

/// Lists in pages over one snapshot, and gives its version.
async fn list(fed: &dyn Fed, requests: &Requests, params: &ListParams) -> Result<String, Error> {
    let mut params = ListParams { limit: Some(LIST_PAGE), ..params.clone() };
    let mut listed = fed.list();
    loop {
        match next_page(listed.page(&requests.list(&params).await?)?) {
            Next::Page(token) => params.continue_token = Some(token),
            Next::End(version) => {
                listed.end();
                return Ok(version);
            }
        }
    }
}
