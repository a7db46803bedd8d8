//! The storage drivers of this node: who is registered, and what the cluster says of them.
//!
//! Mounts nothing; `volumes/csi.rs` does.

pub mod driver;
pub mod limits;
pub mod messages;
mod nodeinfo;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use client::{Cache, Client};
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::{info, warn};

use driver::Driver;

/// The type by which a driver registers.
pub const PLUGIN_TYPE: &str = "CSIPlugin";

/// Drivers that may be registered at a time; the next is refused.
const DRIVERS_MAX: usize = 128;

pub struct Drivers {
    client: Client,
    node: String,
    held: Mutex<BTreeMap<String, Arc<Driver>>>,
    /// What the cluster says of drivers.
    pub objects: Cache<CSIDriver>,
    /// This very node, as the cluster sees it.
    pub own_node: Cache<NodeObject>,
    /// CSINode is read and written by one at a time.
    writing: tokio::sync::Mutex<()>,
    /// A driver came, or is described otherwise.
    changed: Arc<Notify>,
}

impl Drivers {
    pub fn new(
        client: Client,
        node: &str,
        objects: Cache<CSIDriver>,
        own_node: Cache<NodeObject>,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let told = changed.clone();
        objects.on_change(move |_, _| told.notify_one());
        Self {
            client,
            node: node.to_owned(),
            held: Mutex::default(),
            objects,
            own_node,
            writing: tokio::sync::Mutex::default(),
            changed,
        }
    }

    /// The node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// # Errors
    /// When no driver of that name is registered.
    pub fn get(&self, name: &str) -> Result<Arc<Driver>, String> {
        let found = self.held.lock().get(name).cloned();
        found.ok_or_else(|| {
            format!("driver name {name} not found in the list of registered CSI drivers")
        })
    }

    /// What the cluster says of a driver; None where nobody described it.
    pub async fn described(&self, name: &str) -> Option<CSIDriverSpec> {
        self.objects.synced().await;
        self.objects.get("", name).map(|object| object.spec.clone())
    }

    /// Whether the driver's volumes are attached, as far as is known; one that nobody described
    /// has them attached.
    pub fn attaches(&self, name: &str) -> bool {
        let described = self.objects.get("", name);
        described.is_none_or(|object| object.spec.attach_required != Some(false))
    }

    /// Makes the CSINode where there is none.
    ///
    /// # Errors
    /// When the server cannot be reached.
    pub async fn announce(&self) -> Result<(), String> {
        let _writing = self.writing.lock().await;
        nodeinfo::ensure(&self.client, &self.node).await
    }

    /// Takes a driver in: asks it, tells the cluster, and then uses it.
    ///
    /// # Errors
    /// Why it is not used; the driver is told.
    pub async fn register(
        &self,
        name: &str,
        endpoint: &Path,
        versions: &[String],
    ) -> Result<(), String> {
        check(name, versions)?;
        {
            let held = self.held.lock();
            if held.len() >= DRIVERS_MAX && !held.contains_key(name) {
                return Err(format!("{DRIVERS_MAX} CSI drivers are registered already"));
            }
        }
        let endpoint = PathBuf::from(endpoint);
        let told = Driver::meet(name, endpoint).await.map_err(|error| error.to_string());
        let _writing = self.writing.lock().await;
        let done = match told {
            Ok((driver, info)) => nodeinfo::install(&self.client, &self.node, name, &info)
                .await
                .map(|()| driver)
                .map_err(|error| {
                    format!("error updating CSINode object with CSI driver node info: {error}")
                }),
            Err(error) => Err(error),
        };
        match done {
            Ok(driver) => {
                info!(driver = name, "CSI driver registered");
                self.held.lock().insert(name.to_owned(), Arc::new(driver));
                self.changed.notify_one();
                Ok(())
            }
            Err(error) => {
                self.held.lock().remove(name);
                Err(format!("failed to register CSI driver {name}: {error}"))
            }
        }
    }

    /// The driver's socket is gone.
    pub async fn deregister(&self, name: &str) {
        if self.held.lock().remove(name).is_none() {
            return;
        }
        info!(driver = name, "CSI driver gone");
        let _writing = self.writing.lock().await;
        if let Err(error) = nodeinfo::uninstall(&self.client, &self.node, name).await {
            warn!(driver = name, error, "CSINode still names a driver that is gone");
        }
    }
}

/// # Errors
/// When the driver speaks no version of ours, or its name is none.
fn check(name: &str, versions: &[String]) -> Result<(), String> {
    let is_name = !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    if !is_name {
        return Err(format!("invalid CSI driver name {name:?}"));
    }
    let major = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    if versions.is_empty() {
        return Err(format!(
            "kubernetes.io/csi: RegisterPlugin error on CSI driver {name}: no versions reported"
        ));
    }
    if !versions.iter().any(major) {
        return Err(format!(
            "kubernetes.io/csi: RegisterPlugin error on CSI driver {name}: none of the CSI \
             versions reported by this driver are supported"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_drivers_with_a_name_and_a_version_of_ours_are_taken() {
        let versions = |list: &[&str]| list.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        assert!(check("d.example", &versions(&["0.3.0", "1.0.0"])).is_ok());
        assert!(check("d.example", &versions(&["v1.9.0"])).is_ok());
        assert!(check("d.example", &versions(&["10.0.0"])).is_err());
        assert!(check("d.example", &versions(&[])).is_err());
        for name in ["", "../up", "a/b", "a b", &"x".repeat(64)] {
            assert!(check(name, &versions(&["1.0.0"])).is_err(), "{name}");
        }
    }
}
