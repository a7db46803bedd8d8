//! Which events are told, and as what: many that differ in their words alone become one, and an
//! object that has very much to tell is heard less often (client-go, `tools/record`,
//! EventCorrelator).
//!
//! Pure. Sends nothing, and counts nothing that is the same.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::Instant;

/// Of so many different texts about one object for one reason the last ones become one event.
const TEXTS_MAX: usize = 10;
/// Texts are held together for as long as they come no later than this after each other.
const TOGETHER: Duration = Duration::from_secs(600);
/// Events that an object has at once.
const BURST_MAX: f64 = 25.0;
/// And one more after so long.
const REFILL: Duration = Duration::from_secs(300);
/// What such an event says begins so.
const COMBINED: &str = "(combined from similar events): ";

/// An object, as events know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct About {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

impl About {
    fn of(about: &ObjectReference) -> Self {
        Self {
            kind: about.kind.clone(),
            namespace: about.namespace.clone(),
            name: about.name.clone(),
            uid: about.uid.clone(),
        }
    }
}

/// What makes two events the same: they are counted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    about: About,
    field: Option<String>,
    kind: &'static str,
    reason: String,
    /// None where several texts have become one event.
    text: Option<String>,
}

/// What becomes of an event.
#[derive(Debug, PartialEq)]
pub struct Verdict {
    pub identity: Identity,
    pub text: String,
    /// The object has told too much.
    pub skipped: bool,
}

struct Texts {
    different: BTreeSet<String>,
    last: Instant,
}

/// How many more events an object may have, and since when.
struct Bucket {
    left: f64,
    at: Instant,
}

/// A map that forgets what came into it first.
pub struct Remembered<K, V> {
    held: HashMap<K, V>,
    order: VecDeque<K>,
    most: usize,
}

impl<K: Clone + Eq + Hash, V> Remembered<K, V> {
    pub fn new(most: usize) -> Self {
        Self { held: HashMap::new(), order: VecDeque::new(), most }
    }

    pub fn get(&mut self, key: &K) -> Option<&mut V> {
        self.held.get_mut(key)
    }

    pub fn put(&mut self, key: K, value: V) {
        if self.held.insert(key.clone(), value).is_some() {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.held.remove(&oldest);
        }
    }
}

/// Bound: `most` groups of texts, and as many objects.
pub struct Similar {
    texts: Remembered<(About, &'static str, String), Texts>,
    buckets: Remembered<About, Bucket>,
}

impl Similar {
    pub fn new(most: usize) -> Self {
        Self { texts: Remembered::new(most), buckets: Remembered::new(most) }
    }

    /// `kind` is Normal or Warning.
    pub fn judge(
        &mut self,
        about: &ObjectReference,
        kind: &'static str,
        reason: &str,
        text: &str,
        now: Instant,
    ) -> Verdict {
        let field = about.field_path.clone();
        let about = About::of(about);
        let is_one_of_many = self.is_one_of_many(&about, kind, reason, text, now);
        let identity = Identity {
            about: about.clone(),
            // Of several containers one event may tell.
            field: field.filter(|_| !is_one_of_many),
            kind,
            reason: reason.to_owned(),
            text: (!is_one_of_many).then(|| text.to_owned()),
        };
        let text = if is_one_of_many { format!("{COMBINED}{text}") } else { text.to_owned() };
        Verdict { identity, text, skipped: !self.may_tell(about, now) }
    }

    fn is_one_of_many(
        &mut self,
        about: &About,
        kind: &'static str,
        reason: &str,
        text: &str,
        now: Instant,
    ) -> bool {
        let group = (about.clone(), kind, reason.to_owned());
        let Some(texts) = self.texts.get(&group) else {
            let different = BTreeSet::from([text.to_owned()]);
            self.texts.put(group, Texts { different, last: now });
            return false;
        };
        if now.duration_since(texts.last) > TOGETHER {
            texts.different.clear();
        }
        texts.last = now;
        texts.different.insert(text.to_owned());
        if texts.different.len() < TEXTS_MAX {
            return false;
        }
        texts.different.pop_first();
        true
    }

    fn may_tell(&mut self, about: About, now: Instant) -> bool {
        let Some(bucket) = self.buckets.get(&about) else {
            self.buckets.put(about, Bucket { left: BURST_MAX - 1.0, at: now });
            return true;
        };
        let rested = now.duration_since(bucket.at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.left = (bucket.left + rested).min(BURST_MAX);
        bucket.at = now;
        let may = bucket.left >= 1.0;
        if may {
            bucket.left -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(name: &str) -> ObjectReference {
        ObjectReference { name: Some(name.into()), ..ObjectReference::default() }
    }

    #[test]
    fn texts_that_differ_become_one_event() {
        let (mut similar, now) = (Similar::new(8), Instant::now());
        let mut judge = |object: &str, text: &str, at| {
            similar.judge(&about(object), "Normal", "SuccessfulCreate", text, at)
        };
        let told: Vec<Verdict> =
            (0..12).map(|number| judge("web", &format!("Created pod: {number}"), now)).collect();
        assert!(told[..9].iter().all(|it| it.text.starts_with("Created pod: ")));
        assert_eq!(told[9].text, "(combined from similar events): Created pod: 9");
        assert_eq!(told[9].identity, told[11].identity);
        assert_ne!(told[0].identity, told[1].identity);
        // Others are not meant, and after a while nobody is.
        assert_eq!(judge("other", "Created pod: 13", now).text, "Created pod: 13");
        let later = now + TOGETHER + Duration::from_secs(1);
        assert_eq!(judge("web", "Created pod: 14", later).text, "Created pod: 14");
    }

    #[test]
    fn who_tells_too_much_is_heard_less_often() {
        let (mut similar, now) = (Similar::new(8), Instant::now());
        let mut told = |object: &str, count: usize, at: Instant| {
            let judge = |_| similar.judge(&about(object), "Warning", "BackOff", "again", at);
            (0..count).map(judge).filter(|it| !it.skipped).count()
        };
        assert_eq!(told("loops", 100, now), 25);
        assert_eq!(told("other", 1, now), 1);
        assert_eq!(told("loops", 100, now + REFILL), 1);
        assert_eq!(told("loops", 100, now + REFILL * 100), 25);
    }

    #[test]
    fn what_came_first_is_forgotten_first() {
        let mut held = Remembered::new(2);
        for key in [1, 2, 1, 3] {
            held.put(key, key);
        }
        assert_eq!([1, 2, 3].map(|key| held.get(&key).is_some()), [false, true, true]);
    }
}
