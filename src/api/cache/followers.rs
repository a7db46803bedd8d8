//! Who is told of which change. What a change costs grows with those who hear of it, not with
//! those who watch: a thousand nodes that follow their own pods are not asked one by one.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::{Event, Object};

/// The field by whose value followers are found: what nodes select by.
pub const FIELD: &str = "spec.nodeName";

/// Finds the selectable fields of an object.
pub type Extract = fn(&Value) -> Vec<(&'static str, String)>;

/// What a watcher may hear of: as little as can be told without its selectors.
#[derive(Debug, Clone)]
pub enum Scope {
    /// Objects whose keys begin so.
    Below(String),
    /// One object, by its key.
    One(String),
    /// Objects whose keys begin so and whose [`FIELD`] has this value, or had it before.
    Valued { start: String, extract: Extract, value: String },
}

impl From<&str> for Scope {
    fn from(start: &str) -> Self {
        Self::Below(start.into())
    }
}

impl Scope {
    /// Where the keys of all its objects begin.
    pub fn start(&self) -> &str {
        match self {
            Self::Below(start) | Self::One(start) | Self::Valued { start, .. } => start,
        }
    }

    pub fn covers(&self, event: &Event) -> bool {
        let key = &*event.object.key;
        match self {
            Self::Below(start) => key.starts_with(start.as_str()),
            Self::One(own) => key == own,
            Self::Valued { start, extract, value } => {
                let has = |object: &Object| value_of(object, *extract) == value;
                key.starts_with(start.as_str())
                    && (has(&event.object) || event.previous.as_deref().is_some_and(has))
            }
        }
    }
}

fn value_of(object: &Object, extract: Extract) -> &str {
    let fields = object.fields(extract);
    fields.iter().find(|(name, _)| *name == FIELD).map_or("", |(_, value)| value)
}

/// One that is told of objects whose keys begin with `start`.
#[derive(Debug)]
struct Follower {
    start: Box<str>,
    sender: mpsc::Sender<Arc<Event>>,
}

impl Follower {
    fn is_gone(&self) -> bool {
        self.sender.is_closed()
    }
}

/// By what followers are found without being asked.
type Places = HashMap<Box<str>, Vec<Follower>>;

/// Those who follow one resource.
#[derive(Debug, Default)]
pub struct Followers {
    below: Vec<Follower>,
    by_key: Places,
    by_value: Places,
    /// The same for all objects of a resource.
    extract: Option<Extract>,
    /// How many there are in both; those who went unheard included.
    placed: usize,
    /// So many let the places be looked through for those who have gone.
    sweep_at: usize,
}

/// Fewer are not worth looking through.
const SWEEP_MIN: usize = 64;

impl Followers {
    /// Adds one who is ended when more than `backlog` events wait for it.
    pub fn add(&mut self, scope: &Scope, backlog: usize) -> mpsc::Receiver<Arc<Event>> {
        let (sender, live) = mpsc::channel(backlog);
        let follower = Follower { start: scope.start().into(), sender };
        match scope {
            Scope::Below(_) => {
                // Those that hear of no change are only seen to have gone here.
                self.below.retain(|one| !one.is_gone());
                self.below.push(follower);
                return live;
            }
            Scope::One(key) => self.by_key.entry(key.as_str().into()).or_default().push(follower),
            Scope::Valued { extract, value, .. } => {
                self.extract = Some(*extract);
                self.by_value.entry(value.as_str().into()).or_default().push(follower);
            }
        }
        self.placed += 1;
        if self.placed > self.sweep_at {
            self.sweep();
        }
        live
    }

    /// Forgets those who have gone; the next time when there are twice as many as are left.
    fn sweep(&mut self) {
        self.placed = 0;
        for places in [&mut self.by_key, &mut self.by_value] {
            places.retain(|_, here| {
                here.retain(|one| !one.is_gone());
                self.placed += here.len();
                !here.is_empty()
            });
        }
        self.sweep_at = (self.placed * 2).max(SWEEP_MIN);
    }

    /// Tells everybody whom it concerns. Who does not keep up, or has gone, is told nothing
    /// more. Returns how many did not keep up.
    pub fn tell(&mut self, event: &Arc<Event>) -> u64 {
        let mut ended = 0;
        let Self { below, by_key, by_value, extract, placed, .. } = self;
        tell_those(below, event, &mut ended);
        let key = &*event.object.key;
        *placed -= tell_place(by_key, key, event, &mut ended);
        if let Some(extract) = extract
            && !by_value.is_empty()
        {
            let is = value_of(&event.object, *extract);
            *placed -= tell_place(by_value, is, event, &mut ended);
            let was = event.previous.as_deref().map(|previous| value_of(previous, *extract));
            if let Some(was) = was.filter(|was| *was != is) {
                *placed -= tell_place(by_value, was, event, &mut ended);
            }
        }
        ended
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.below.len() + self.placed
    }

    /// How many a change of the object under `key` is told: those who follow it, or all
    /// around it. One more may follow objects with the value it has.
    pub fn concerned(&self, key: &str) -> usize {
        let around = self.below.iter().filter(|one| key.starts_with(&*one.start)).count();
        around + self.by_key.get(key).map_or(0, Vec::len) + usize::from(!self.by_value.is_empty())
    }

    /// Ends all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Returns how many are told nothing more.
fn tell_place(places: &mut Places, place: &str, event: &Arc<Event>, ended: &mut u64) -> usize {
    let Some(here) = places.get_mut(place) else { return 0 };
    let before = here.len();
    tell_those(here, event, ended);
    let gone = before - here.len();
    if here.is_empty() {
        places.remove(place);
    }
    gone
}

fn tell_those(those: &mut Vec<Follower>, event: &Arc<Event>, ended: &mut u64) {
    those.retain(|one| {
        if !event.object.key.starts_with(&*one.start) {
            return true;
        }
        let sent = one.sender.try_send(event.clone());
        *ended += u64::from(matches!(sent, Err(TrySendError::Full(_))));
        sent.is_ok()
    });
}

#[cfg(test)]
mod tests {
    use super::super::Change;
    use super::*;

    fn extract(value: &Value) -> Vec<(&'static str, String)> {
        vec![(FIELD, value["spec"]["nodeName"].as_str().unwrap_or("").into())]
    }

    fn pod(name: &str, node: &str) -> Arc<Object> {
        let text = format!(r#"{{"kind":"Pod","metadata":{{}},"spec":{{"nodeName":"{node}"}}}}"#);
        Arc::new(Object::stored(&format!("/registry/pods/d/{name}"), text.as_bytes(), 1))
    }

    fn event(object: Arc<Object>, previous: Option<Arc<Object>>) -> Arc<Event> {
        Arc::new(Event {
            change: if previous.is_some() { Change::Modified } else { Change::Added },
            revision: 1,
            object,
            previous,
            frame: Default::default(),
            message: Default::default(),
        })
    }

    fn valued(start: &str, value: &str) -> Scope {
        Scope::Valued { start: start.into(), extract, value: value.into() }
    }

    #[test]
    fn everybody_hears_what_is_in_their_scope_and_once() {
        let scopes = [
            Scope::from("/registry/pods/"),
            Scope::from("/registry/pods/e/"),
            Scope::One("/registry/pods/d/web".into()),
            // A name is no beginning of others.
            Scope::One("/registry/pods/d/we".into()),
            valued("/registry/pods/", "n1"),
            valued("/registry/pods/", "n2"),
            valued("/registry/pods/", "n3"),
            valued("/registry/pods/", ""),
            valued("/registry/pods/e/", "n1"),
        ];
        for (object, previous, told) in [
            (pod("web", "n1"), None, vec![0, 2, 4]),
            (pod("web", "n1"), Some(pod("web", "")), vec![0, 2, 4, 7]),
            (pod("web", "n2"), Some(pod("web", "n2")), vec![0, 2, 5]),
            (pod("web", "n2"), Some(pod("web", "n1")), vec![0, 2, 4, 5]),
            (pod("web-1", "n9"), None, vec![0]),
        ] {
            let mut followers = Followers::default();
            let mut live: Vec<_> = scopes.iter().map(|scope| followers.add(scope, 8)).collect();
            let event = event(object, previous);
            assert_eq!(followers.tell(&event), 0);
            let heard = |live: &mut mpsc::Receiver<_>| -> usize {
                std::iter::from_fn(|| live.try_recv().ok()).count()
            };
            let counts: Vec<usize> = live.iter_mut().map(heard).collect();
            for (at, scope) in scopes.iter().enumerate() {
                assert_eq!(counts[at], usize::from(told.contains(&at)), "{scope:?}");
                // Who resumes is told the same as who was there.
                assert_eq!(scope.covers(&event), told.contains(&at), "{scope:?}");
            }
            assert_eq!(followers.count(), scopes.len());
        }
    }

    #[test]
    fn who_does_not_keep_up_is_ended_and_who_has_gone_is_forgotten() {
        let mut followers = Followers::default();
        let scope = valued("/registry/pods/", "n1");
        let _slow = followers.add(&scope, 1);
        drop(followers.add(&scope, 1));
        let event = event(pod("web", "n1"), None);
        assert_eq!(followers.tell(&event), 0, "one has gone by itself");
        assert_eq!(followers.count(), 1);
        assert_eq!(followers.tell(&event), 1);
        assert_eq!(followers.count(), 0);
        assert!(followers.by_value.is_empty());
    }

    #[test]
    fn those_who_went_unheard_do_not_pile_up() {
        let mut followers = Followers::default();
        let stays = followers.add(&Scope::One("/registry/secrets/d/stays".into()), 1);
        for number in 0..10_000 {
            drop(followers.add(&Scope::One(format!("/registry/secrets/d/{number}")), 1));
            assert!(followers.count() <= 2 * SWEEP_MIN);
        }
        assert!(!stays.is_closed());
        assert_eq!(followers.concerned("/registry/secrets/d/stays"), 1);
    }
}
