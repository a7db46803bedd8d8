//! What every backend promises, as one test suite.
//!
//! Panics on the first promise that is broken; call it from a backend's tests.

use bytes::Bytes;

use crate::{Backend, Durability, Error, Event, Outcome, RangeRequest, Write};

fn create(key: &str, value: &str) -> Write {
    Write::Create { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()) }
}

fn update(key: &str, value: &str, expected: u64) -> Write {
    Write::Update { key: key.into(), value: Bytes::copy_from_slice(value.as_bytes()), expected }
}

async fn done(store: &dyn Backend, write: Write, durability: Durability) -> u64 {
    match store.write(write.clone(), durability).await {
        Ok(Outcome::Done(revision)) => revision,
        other => panic!("{write:?} should be done, got {other:?}"),
    }
}

async fn keys(store: &dyn Backend, prefix: &str, revision: Option<u64>) -> Vec<String> {
    let request = RangeRequest { prefix: prefix.into(), revision, ..RangeRequest::default() };
    let range = store.range(request).await.expect("the range is readable");
    range.items.into_iter().map(|item| item.key).collect()
}

/// Checks an empty store. Leaves keys below `/contract/` behind.
pub async fn check(store: &dyn Backend) {
    writes_compare_and_swap(store).await;
    ranges_see_their_revision(store).await;
    watches_replay_and_follow(store).await;
    relaxed_writes_are_seen_at_once(store).await;
    compaction_keeps_the_newest(store).await;
    many_writers_share_one_order(store).await;
}

async fn writes_compare_and_swap(store: &dyn Backend) {
    let durable = Durability::Durable;
    let start = store.revision();
    let first = done(store, create("/contract/cas", "1"), durable).await;
    assert_eq!(first, start + 1, "every write has a revision of its own");
    let again = store.write(create("/contract/cas", "x"), durable).await.expect("answers");
    let Outcome::Conflict(Some(there)) = again else { panic!("created twice: {again:?}") };
    assert_eq!((there.value.as_ref(), there.mod_revision), (b"1".as_slice(), first));
    let second = done(store, update("/contract/cas", "2", first), durable).await;
    let stale = store.write(update("/contract/cas", "3", first), durable).await.expect("answers");
    assert!(matches!(stale, Outcome::Conflict(Some(kv)) if kv.mod_revision == second));
    let found = store.get("/contract/cas").await.expect("answers").expect("is there");
    assert_eq!((found.create_revision, found.mod_revision), (first, second));
    let delete = |expected| Write::Delete { key: "/contract/cas".into(), expected };
    assert!(matches!(store.write(delete(first), durable).await, Ok(Outcome::Conflict(Some(_)))));
    done(store, delete(second), durable).await;
    assert!(matches!(store.write(delete(second), durable).await, Ok(Outcome::Conflict(None))));
    assert_eq!(store.get("/contract/cas").await.expect("answers"), None);
}

async fn ranges_see_their_revision(store: &dyn Backend) {
    let durable = Durability::Durable;
    let mut last = 0;
    for name in ["a", "b", "c", "d"] {
        last = done(store, create(&format!("/contract/range/{name}"), name), durable).await;
    }
    done(store, create("/contract/range0", "a neighbour"), durable).await;
    let d = store.get("/contract/range/d").await.expect("answers").expect("is there");
    let gone = Write::Delete { key: d.key, expected: d.mod_revision };
    done(store, gone, durable).await;
    let all = ["a", "b", "c", "d"].map(|name| format!("/contract/range/{name}"));
    assert_eq!(keys(store, "/contract/range/", None).await, all[..3]);
    assert_eq!(keys(store, "/contract/range/", Some(last)).await, all);
    let page = RangeRequest {
        prefix: "/contract/range/".into(),
        after: Some(all[0].clone()),
        limit: 2,
        revision: Some(last),
    };
    let page = store.range(page).await.expect("answers");
    assert_eq!(page.items.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), all[1..3]);
    assert!(page.more);
    let future = RangeRequest { revision: Some(store.revision() + 1), ..RangeRequest::default() };
    assert!(matches!(store.range(future).await, Err(Error::Future { .. })));
}

async fn watches_replay_and_follow(store: &dyn Backend) {
    let start = store.revision();
    let first = done(store, create("/contract/watch", "1"), Durability::Durable).await;
    let mut watch = store.watch(start).await.expect("watches");
    let second = done(store, update("/contract/watch", "2", first), Durability::Relaxed).await;
    let gone = Write::Delete { key: "/contract/watch".into(), expected: second };
    let third = done(store, gone, Durability::Durable).await;
    let mut seen: Vec<Event> = Vec::new();
    while seen.len() < 3 {
        seen.extend(watch.batches.recv().await.expect("the watch goes on"));
    }
    let revisions: Vec<u64> = seen.iter().map(Event::revision).collect();
    assert_eq!(revisions, [first, second, third]);
    assert!(matches!(&seen[1], Event::Put(kv) if kv.value.as_ref() == b"2"));
    assert!(matches!(&seen[2], Event::Delete { .. }));
}

async fn relaxed_writes_are_seen_at_once(store: &dyn Backend) {
    let relaxed = Durability::Relaxed;
    let first = done(store, create("/contract/relaxed", "1"), relaxed).await;
    assert_eq!(store.revision(), first);
    assert_eq!(keys(store, "/contract/relaxed", None).await, ["/contract/relaxed"]);
    let second = done(store, update("/contract/relaxed", "2", first), relaxed).await;
    let old = RangeRequest {
        prefix: "/contract/relaxed".into(),
        revision: Some(first),
        ..RangeRequest::default()
    };
    let old = store.range(old).await.expect("answers");
    assert_eq!(old.items[0].value.as_ref(), b"1");
    store.flush().await.expect("flushes");
    let now = store.get("/contract/relaxed").await.expect("answers").expect("is there");
    assert_eq!(now.mod_revision, second);
}

async fn compaction_keeps_the_newest(store: &dyn Backend) {
    let durable = Durability::Durable;
    let mut revision = done(store, create("/contract/compact", "0"), durable).await;
    let first = revision;
    for n in 1..50 {
        revision =
            done(store, update("/contract/compact", &n.to_string(), revision), durable).await;
    }
    let gone = store.compact(revision).await.expect("compacts");
    assert!(gone >= 49, "{gone} rows went");
    let kept = store.get("/contract/compact").await.expect("answers").expect("is there");
    assert_eq!((kept.value.as_ref(), kept.create_revision), (b"49".as_slice(), first));
    let old = RangeRequest { revision: Some(first), ..RangeRequest::default() };
    assert!(matches!(store.range(old).await, Err(Error::Compacted { .. })));
    assert!(matches!(store.watch(first).await, Err(Error::Compacted { .. })));
}

async fn many_writers_share_one_order(store: &dyn Backend) {
    let start = store.revision();
    let mut watch = store.watch(start).await.expect("watches");
    let names: Vec<String> = (0..200).map(|n| format!("/contract/many/{n}")).collect();
    let mut writes = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let durability = if n % 3 == 0 { Durability::Relaxed } else { Durability::Durable };
        writes.push(store.write(create(name, "x"), durability));
    }
    // All are under way at once, so that they meet in groups.
    let mut revisions = Vec::new();
    for write in join_all(writes).await {
        let Ok(Outcome::Done(revision)) = write else { panic!("{write:?}") };
        revisions.push(revision);
    }
    revisions.sort_unstable();
    let expected: Vec<u64> = (start + 1..=start + 200).collect();
    assert_eq!(revisions, expected);
    let mut seen = Vec::new();
    while seen.len() < 200 {
        let batch = watch.batches.recv().await.expect("the watch goes on");
        seen.extend(batch.iter().map(Event::revision));
    }
    assert_eq!(seen, expected, "in order and without a gap");
}

/// Runs futures side by side on this task; the room needs nothing more of `futures`.
async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.into_iter().map(Box::pin).collect();
    let mut out: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|cx| {
        for (slot, future) in out.iter_mut().zip(&mut waiting) {
            if slot.is_none()
                && let std::task::Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *slot = Some(value);
            }
        }
        if out.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    out.into_iter().flatten().collect()
}
