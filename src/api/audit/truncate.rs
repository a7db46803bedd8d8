//! Events cut down to what their backend takes: the objects go first, then the event itself;
//! and batches that are split (flags `--audit-{log,webhook}-truncate-*`).

use serde_json::Value;

use super::policy::Level;

/// Marks an event whose objects are gone.
const MARK: &str = "audit.k8s.io/truncated";

/// What a backend takes, in bytes of JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub batch_bytes: usize,
    pub event_bytes: usize,
}

impl Default for Bounds {
    /// Upstream's.
    fn default() -> Self {
        Self { batch_bytes: 10 << 20, event_bytes: 100 << 10 }
    }
}

impl Bounds {
    /// The event as the backend takes it; None if it cannot be made small enough.
    pub fn fit(&self, mut event: Value, level: Level) -> Option<Value> {
        if self.takes(&event) {
            return Some(event);
        }
        if level < Level::Request {
            return None;
        }
        let fields = event.as_object_mut()?;
        fields.shift_remove("requestObject");
        fields.shift_remove("responseObject");
        event["annotations"][MARK] = "true".into();
        self.takes(&event).then_some(event)
    }

    fn takes(&self, event: &Value) -> bool {
        event.to_string().len() <= self.event_bytes
    }

    /// The events in as few batches as the backend takes, in order.
    pub fn batches(&self, events: Vec<Value>) -> Vec<Vec<Value>> {
        let mut out: Vec<Vec<Value>> = Vec::new();
        let mut bytes = 0;
        for event in events {
            let length = event.to_string().len();
            bytes += length;
            match out.last_mut().filter(|_| bytes <= self.batch_bytes) {
                Some(batch) => batch.push(event),
                None => {
                    bytes = length;
                    out.push(vec![event]);
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_go_before_events_do() {
        let bounds = Bounds { batch_bytes: 400, event_bytes: 200 };
        let small = json!({"verb": "get", "requestObject": {"a": 1}});
        assert_eq!(bounds.fit(small.clone(), Level::Request), Some(small));
        let long = "x".repeat(300);
        let large = json!({"verb": "get", "requestObject": {"a": long}, "annotations": {"b": "c"}});
        assert_eq!(
            bounds.fit(large.clone(), Level::RequestResponse),
            Some(json!({"verb": "get", "annotations": {"b": "c", MARK: "true"}}))
        );
        assert_eq!(bounds.fit(large, Level::Metadata), None);
        assert_eq!(bounds.fit(json!({"requestURI": long}), Level::Request), None);
    }

    #[test]
    fn batches_are_split_in_order() {
        let bounds = Bounds { batch_bytes: 10, event_bytes: 200 };
        let events: Vec<Value> = ["ab", "cd", "ef", "0123456789", "gh"].map(Value::from).into();
        let split = bounds.batches(events);
        assert_eq!(json!(split), json!([["ab", "cd"], ["ef"], ["0123456789"], ["gh"]]));
        assert!(bounds.batches(Vec::new()).is_empty());
    }
}
