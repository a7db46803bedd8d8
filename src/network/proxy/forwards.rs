//! Ports of the node that lead to pods which no API server knows: those of callers of the
//! container runtime's socket.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::plan::{Fate, Front, Layer, Target};

/// A port of the node and where it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forward {
    /// IP protocol number.
    pub protocol: u8,
    /// None is every address of the node.
    pub address: Option<Ipv4Addr>,
    pub port: u16,
    pub to: u16,
}

type Listener = Box<dyn Fn(&str) + Send + Sync>;

/// Cheap to clone; clones are the same set.
#[derive(Clone, Default)]
pub struct Forwards(Arc<Inner>);

#[derive(Default)]
struct Inner {
    held: Mutex<BTreeMap<String, (Ipv4Addr, Vec<Forward>)>>,
    listener: Mutex<Option<Listener>>,
}

impl Forwards {
    /// Who hears the ids of sandboxes whose ports change, and now of those that have some.
    pub fn on_change(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        // Whoever changes something meanwhile waits for the listener.
        let mut place = self.0.listener.lock();
        for sandbox in self.0.held.lock().keys() {
            listener(sandbox);
        }
        *place = Some(Box::new(listener));
    }

    /// Replaces what a sandbox has; none takes it away.
    pub fn set(&self, sandbox: &str, backend: Ipv4Addr, forwards: Vec<Forward>) {
        let mut held = self.0.held.lock();
        let changed = if forwards.is_empty() {
            held.remove(sandbox).is_some()
        } else {
            held.insert(sandbox.to_owned(), (backend, forwards));
            true
        };
        drop(held);
        if changed && let Some(listener) = &*self.0.listener.lock() {
            listener(sandbox);
        }
    }

    pub fn forget(&self, sandbox: &str) {
        self.set(sandbox, Ipv4Addr::UNSPECIFIED, Vec::new());
    }

    pub fn fronts(&self, sandbox: &str) -> Vec<(Front, Target)> {
        let held = self.0.held.lock();
        let Some((backend, forwards)) = held.get(sandbox) else { return Vec::new() };
        let label = format!("sandbox {}", &sandbox[..sandbox.len().min(13)]);
        forwards
            .iter()
            .map(|it| {
                let (layer, address) = match it.address {
                    None => (Layer::NodePorts, Ipv4Addr::UNSPECIFIED),
                    Some(address) => (Layer::HostPorts, address),
                };
                let fate = Fate::Balance(vec![(*backend, it.to)]);
                let target = Target { label: label.clone(), affinity_seconds: None, fate };
                (Front { layer, address, protocol: it.protocol, port: it.port }, target)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_hears_of_what_is_there_and_of_what_changes() {
        let forwards = Forwards::default();
        let port = Forward { protocol: 6, address: None, port: 12_000, to: 80 };
        let backend = Ipv4Addr::new(10, 42, 0, 5);
        forwards.set("early", backend, vec![port]);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let into = heard.clone();
        forwards.on_change(move |sandbox| into.lock().push(sandbox.to_owned()));
        let own = Forward { address: Some(Ipv4Addr::LOCALHOST), ..port };
        forwards.set("late", backend, vec![port, own]);
        let layers = |sandbox: &str| -> Vec<Layer> {
            forwards.fronts(sandbox).iter().map(|(front, _)| front.layer).collect()
        };
        assert_eq!(layers("late"), [Layer::NodePorts, Layer::HostPorts]);
        assert_eq!(forwards.fronts("early")[0].1.backends(), [(backend, 80)]);
        forwards.forget("late");
        forwards.forget("late");
        assert!(forwards.fronts("late").is_empty());
        assert_eq!(*heard.lock(), ["early", "late", "late"]);
    }
}
