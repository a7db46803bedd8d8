//! Of several processes one acts, and another takes over when it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{cluster, until};
use base::drain::{self, Trigger};
use client::Client;
use client::api::ListParams;
use client::election::{self, Lead};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Event;

struct Process {
    task: tokio::task::JoinHandle<bool>,
    trigger: Trigger,
}

/// Counts who acts.
struct Acts(Arc<AtomicUsize>);

impl Acts {
    fn new(acting: Arc<AtomicUsize>) -> Self {
        acting.fetch_add(1, Ordering::SeqCst);
        Self(acting)
    }
}

impl Drop for Acts {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn quick(name: &str, identity: &str) -> Lead {
    Lead {
        lease: Duration::from_secs(1),
        deadline: Duration::from_millis(700),
        renew: Duration::from_millis(100),
        retry: Duration::from_millis(100),
        ..Lead::new(name, identity)
    }
}

/// A process that counts itself in while it acts.
fn start(client: &Client, identity: &str, acting: &Arc<AtomicUsize>) -> Process {
    let (trigger, drain) = drain::channel();
    let lead = quick("suite", identity);
    let (client, acting) = (client.clone(), acting.clone());
    let task = tokio::spawn(async move {
        let (ends, acting) = (drain.clone(), acting.clone());
        election::lead(&client, &lead, &drain, || async move {
            let _acts = Acts::new(acting);
            ends.until(std::future::pending::<()>()).await;
        })
        .await
    });
    Process { task, trigger }
}

async fn held_by(client: &Client, name: &str, want: &str) -> Lease {
    let leases = client.api::<Lease>(Some("kube-system"));
    until(&format!("{want} leads"), || async {
        let lease = leases.get_opt(name).await.unwrap()?;
        (lease.spec.as_ref()?.holder_identity.as_deref() == Some(want)).then_some(lease)
    })
    .await
}

/// By force.
async fn take(client: &Client, name: &str) {
    let leases = client.api::<Lease>(Some("kube-system"));
    until("the lease is taken", || {
        let leases = &leases;
        async move {
            let mut live = leases.get(name).await.unwrap();
            live.spec.as_mut()?.holder_identity = Some("thief".into());
            leases.replace(name, &live).await.ok()
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_acts_and_another_takes_over() {
    let cluster = cluster().await;
    let acting = Arc::new(AtomicUsize::new(0));
    let first = start(&cluster.client, "first", &acting);
    held_by(&cluster.client, "suite", "first").await;
    let says = |line: &str| {
        let text = base::metrics::render(base::metrics::Format::Prometheus);
        text.lines().any(|it| it == line)
    };
    until("the metrics say who leads", async || {
        says("leader_election_master_status{name=\"suite\"} 1").then_some(())
    })
    .await;
    let second = start(&cluster.client, "second", &acting);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(acting.load(Ordering::SeqCst), 1, "the lease is renewed and kept");
    // It ends without a word: its time must pass first.
    first.task.abort();
    let lease = held_by(&cluster.client, "suite", "second").await;
    assert_eq!(lease.spec.unwrap().lease_transitions, Some(1));
    until("the second acts", async || (acting.load(Ordering::SeqCst) == 1).then_some(())).await;
    // One that is told to end gives the lease back.
    second.trigger.drain();
    assert!(second.task.await.unwrap());
    held_by(&cluster.client, "suite", "").await;
    assert!(says("leader_election_master_status{name=\"suite\"} 0"));
    let events = cluster.client.api::<Event>(Some("kube-system"));
    until("it was told who leads", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let said = |text: &str| {
            events.iter().any(|it| {
                it.reason.as_deref() == Some("LeaderElection")
                    && it.message.as_deref() == Some(text)
            })
        };
        (said("first became leader") && said("second became leader")).then_some(())
    })
    .await;
    // And one whose lease is taken stops.
    let third = start(&cluster.client, "third", &acting);
    held_by(&cluster.client, "suite", "third").await;
    take(&cluster.client, "suite").await;
    assert!(!third.task.await.unwrap());
    assert_eq!(acting.load(Ordering::SeqCst), 0);
    drop(first.trigger);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lost_its_lease_begins_again_when_it_is_free() {
    let cluster = cluster().await;
    let (trigger, drain) = drain::channel();
    let (acting, begun): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
    let counts = (acting.clone(), begun.clone());
    let task = tokio::spawn(election::lead_again(
        cluster.client.clone(),
        quick("again", "steady"),
        drain,
        move |mut term| {
            let (acting, begun) = counts.clone();
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                let _acts = Acts::new(acting);
                term.begun().await;
            }
        },
    ));
    held_by(&cluster.client, "again", "steady").await;
    take(&cluster.client, "again").await;
    until("it stops", async || (acting.load(Ordering::SeqCst) == 0).then_some(())).await;
    // The thief does not renew.
    held_by(&cluster.client, "again", "steady").await;
    until("it acts", async || (acting.load(Ordering::SeqCst) == 1).then_some(())).await;
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    trigger.drain();
    task.await.unwrap();
    assert_eq!(acting.load(Ordering::SeqCst), 0);
    held_by(&cluster.client, "again", "").await;
}
