//! What a claim asks for: its requests, and their alternatives.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceRequest, DeviceSelector, DeviceToleration,
};
use kinds::meta::quantity::Quantity;

use crate::devices::capacity::{self, Consumed};

/// A request, or one alternative of it.
pub struct Choice<'a> {
    pub request: &'a str,
    pub alternative: Option<&'a str>,
    pub class: &'a DeviceClass,
    pub tolerations: &'a [DeviceToleration],
    pub is_admin: Option<bool>,
    pub(super) selectors: &'a [DeviceSelector],
    /// None: all that there are.
    pub(super) count: Option<usize>,
    /// What a device must have to give.
    pub(super) capacity: Vec<(&'a str, Quantity)>,
    /// All that there are, by index.
    pub(super) all: Vec<usize>,
    /// What is taken of candidates, by index; None of those that do not suit.
    pub(super) suits: HashMap<usize, Option<Rc<Consumed>>>,
}

impl Choice<'_> {
    /// As allocations name it.
    pub fn name(&self) -> String {
        match self.alternative {
            Some(alternative) => format!("{}/{alternative}", self.request),
            None => self.request.to_owned(),
        }
    }

    pub fn has_admin(&self) -> bool {
        self.is_admin == Some(true)
    }

    pub fn wanted(&self) -> usize {
        self.count.unwrap_or(self.all.len())
    }
}

/// The choices of a request; their classes were looked up before.
pub fn all_of<'a>(
    classes: &'a HashMap<String, Arc<DeviceClass>>,
    request: &'a DeviceRequest,
) -> Vec<Choice<'a>> {
    let mut out = Vec::new();
    if let Some(it) = &request.exactly
        && let Some(class) = classes.get(&it.device_class_name)
    {
        out.push(Choice {
            request: &request.name,
            alternative: None,
            class,
            tolerations: it.tolerations.as_deref().unwrap_or_default(),
            is_admin: it.admin_access,
            selectors: it.selectors.as_deref().unwrap_or_default(),
            count: count(it.allocation_mode.as_deref(), it.count),
            capacity: asked(it.capacity.as_ref()),
            all: Vec::new(),
            suits: HashMap::new(),
        });
    }
    for it in request.first_available.iter().flatten() {
        let Some(class) = classes.get(&it.device_class_name) else { continue };
        out.push(Choice {
            request: &request.name,
            alternative: Some(&it.name),
            class,
            tolerations: it.tolerations.as_deref().unwrap_or_default(),
            is_admin: None,
            selectors: it.selectors.as_deref().unwrap_or_default(),
            count: count(it.allocation_mode.as_deref(), it.count),
            capacity: asked(it.capacity.as_ref()),
            all: Vec::new(),
            suits: HashMap::new(),
        });
    }
    out
}

fn count(mode: Option<&str>, count: Option<i64>) -> Option<usize> {
    let exact = usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX / 2);
    (mode != Some("All")).then_some(exact)
}

fn asked(capacity: Option<&CapacityRequirements>) -> Vec<(&str, Quantity)> {
    let asked = capacity.iter().flat_map(|it| it.requests.iter().flatten());
    asked.map(|(name, value)| (name.as_str(), capacity::read(value))).collect()
}
