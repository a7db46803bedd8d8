//! Which controllers there are, and which of them run.

use std::collections::BTreeSet;
use std::sync::Arc;

use base::drain::Drain;
use client::{Client, Recorder, Shared};
use tokio::task::JoinSet;

use crate::config::Config;
use crate::harness::Context;

/// Those that run where nobody says otherwise, by upstream's name and by the one that it had
/// before v1.28, where it had one.
///
/// Those of a cloud are not among them but for the one that gives services their addresses, nor
/// those that upstream has off with what they serve: the garbage collector of storage versions
/// (StorageVersionAPI) and their migrator (StorageVersionMigrator), those of pod groups and of
/// the status of resource pools, and warnings about labels of SELinux. What admission policies
/// say in their status is found by the API server.
pub const NAMES: [(&str, &str); 44] = [
    ("serviceaccount-token-controller", "serviceaccount-token"),
    ("endpoints-controller", "endpoint"),
    ("endpointslice-controller", "endpointslice"),
    ("endpointslice-mirroring-controller", "endpointslicemirroring"),
    ("replicationcontroller-controller", "replicationcontroller"),
    ("pod-garbage-collector-controller", "podgc"),
    ("resourcequota-controller", "resourcequota"),
    ("namespace-controller", "namespace"),
    ("serviceaccount-controller", "serviceaccount"),
    ("garbage-collector-controller", "garbagecollector"),
    ("daemonset-controller", "daemonset"),
    ("job-controller", "job"),
    ("deployment-controller", "deployment"),
    ("replicaset-controller", "replicaset"),
    ("horizontal-pod-autoscaler-controller", "horizontalpodautoscaling"),
    ("disruption-controller", "disruption"),
    ("statefulset-controller", "statefulset"),
    ("cronjob-controller", "cronjob"),
    (CSR_SIGNING, "csrsigning"),
    (CSR_APPROVING, "csrapproving"),
    (CSR_CLEANER, "csrcleaner"),
    ("podcertificaterequest-cleaner-controller", ""),
    ("ttl-controller", "ttl"),
    ("bootstrap-signer-controller", "bootstrapsigner"),
    ("token-cleaner-controller", "tokencleaner"),
    ("node-ipam-controller", "nodeipam"),
    ("node-lifecycle-controller", "nodelifecycle"),
    ("taint-eviction-controller", ""),
    ("service-lb-controller", "service"),
    ("persistentvolume-binder-controller", "persistentvolume-binder"),
    ("persistentvolume-attach-detach-controller", "attachdetach"),
    ("persistentvolume-expander-controller", "persistentvolume-expander"),
    ("clusterrole-aggregation-controller", "clusterrole-aggregation"),
    ("persistentvolumeclaim-protection-controller", "pvc-protection"),
    ("persistentvolume-protection-controller", "pv-protection"),
    ("volumeattributesclass-protection-controller", ""),
    ("ttl-after-finished-controller", "ttl-after-finished"),
    ("root-ca-certificate-publisher-controller", "root-ca-cert-publisher"),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", ""),
    ("ephemeral-volume-controller", "ephemeral-volume"),
    ("resourceclaim-controller", "resource-claim-controller"),
    ("device-taint-eviction-controller", ""),
    ("legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner"),
    ("service-cidr-controller", ""),
];

pub const GARBAGE_COLLECTOR: &str = "garbage-collector-controller";
pub const CSR_SIGNING: &str = "certificatesigningrequest-signing-controller";
pub const CSR_APPROVING: &str = "certificatesigningrequest-approving-controller";
pub const CSR_CLEANER: &str = "certificatesigningrequest-cleaner-controller";

/// The controllers that somebody chose, as `--controllers` does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Nothing but those that are named.
    only_named: bool,
    named: BTreeSet<&'static str>,
    left_out: BTreeSet<&'static str>,
}

impl Chosen {
    /// `*` are all that run where nobody says otherwise, `NAME` is one more, and `-NAME` one less.
    /// Of a name and its opposite the first counts.
    ///
    /// # Errors
    /// A name that no controller has, in upstream's words.
    pub fn parse<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut out = Self { only_named: true, ..Self::default() };
        for word in words {
            if word == "*" {
                out.only_named = false;
                continue;
            }
            let (bare, is_out) = word.strip_prefix('-').map_or((word, false), |bare| (bare, true));
            let known = NAMES.iter().find(|(name, old)| *name == bare || *old == bare);
            let Some((name, _)) = known.filter(|_| !bare.is_empty()) else {
                return Err(format!("{bare:?} is not in the list of known controllers"));
            };
            let (to, other) = match is_out {
                true => (&mut out.left_out, &out.named),
                false => (&mut out.named, &out.left_out),
            };
            if !other.contains(name) {
                to.insert(name);
            }
        }
        Ok(out)
    }

    pub fn leave_out(&mut self, name: &'static str) {
        self.named.remove(name);
        self.left_out.insert(name);
    }

    pub fn has(&self, name: &str) -> bool {
        self.named.contains(name) || !self.only_named && !self.left_out.contains(name)
    }

    /// All that run.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().map(|(name, _)| *name).filter(|name| self.has(name))
    }
}

/// The running controllers.
pub struct Controllers(JoinSet<()>);

impl Controllers {
    /// Starts those that the configuration chose. `shared` reads (list and watch of everything), `make_client`
    /// gives the client that writes in the name of a service account of `kube-system`,
    /// such as `deployment-controller`.
    pub fn start(
        shared: &Shared,
        make_client: impl Fn(&str) -> Client,
        config: Config,
        drain: &Drain,
    ) -> Self {
        let config = Arc::new(config);
        let context = |controller: &'static str, name: &'static str| {
            let client = make_client(name);
            Context {
                shared: shared.clone(),
                recorder: Recorder::new(client.clone(), name, "", drain.clone()),
                client,
                config: config.clone(),
                drain: drain.clone(),
                name,
                controller,
            }
        };
        let mut all = Starting { context, config: &config, tasks: JoinSet::new() };
        all.run("daemonset-controller", "daemon-set-controller", daemonset::run);
        all.run("deployment-controller", "deployment-controller", deployment::run);
        all.run("replicaset-controller", "replicaset-controller", replicaset::run_replica_sets);
        all.run(
            "replicationcontroller-controller",
            "replication-controller",
            replicaset::run_replication_controllers,
        );
        all.run("statefulset-controller", "statefulset-controller", statefulset::run);
        all.run("job-controller", "job-controller", job::run);
        // One reads the requests for all three.
        if let Some(one) = [CSR_APPROVING, CSR_SIGNING, CSR_CLEANER]
            .into_iter()
            .find(|name| config.chosen.has(name))
        {
            all.run(one, "certificate-controller", certificates::run);
        }
        all.run("cronjob-controller", "cronjob-controller", cronjob::run);
        all.run("ttl-after-finished-controller", "ttl-after-finished-controller", job::run_ttl);
        all.run("disruption-controller", "disruption-controller", disruption::run);
        all.run("horizontal-pod-autoscaler-controller", "horizontal-pod-autoscaler", hpa::run);
        let members = endpoints::Members::new(shared);
        let (of_slices, of_endpoints) = (members.clone(), members);
        all.run("endpointslice-controller", "endpointslice-controller", |context| {
            endpoints::run_slices(context, of_slices)
        });
        all.run(
            "endpointslice-mirroring-controller",
            "endpointslicemirroring-controller",
            endpoints::run_mirroring,
        );
        all.run("endpoints-controller", "endpoint-controller", |context| {
            endpoints::run_endpoints(context, of_endpoints)
        });
        all.run("serviceaccount-controller", "service-account-controller", service_account::run);
        // As upstream, with the rights of all controllers: it has no account of its own.
        let own = shared.client().clone();
        all.run("serviceaccount-token-controller", "tokens-controller", |context| {
            token_secret::run(Context { client: own, ..context })
        });
        all.run("token-cleaner-controller", "token-cleaner", token_cleaner::run);
        all.run(
            "legacy-serviceaccount-token-cleaner-controller",
            "legacy-service-account-token-cleaner",
            legacy_token::run,
        );
        all.run("bootstrap-signer-controller", "bootstrap-signer", bootstrap_signer::run);
        all.run("root-ca-certificate-publisher-controller", "root-ca-cert-publisher", root_ca::run);
        all.run("namespace-controller", "namespace-controller", namespace::run);
        all.run("node-lifecycle-controller", "node-controller", node::run_lifecycle);
        // As upstream: it has no account of its own.
        all.run("taint-eviction-controller", "node-controller", node::run_eviction);
        all.run("ttl-controller", "ttl-controller", node::run_ttl);
        all.run("node-ipam-controller", "node-controller", node::run_ipam);
        all.run(GARBAGE_COLLECTOR, "generic-garbage-collector", garbage::run);
        all.run("resourcequota-controller", "resourcequota-controller", quota::run);
        all.run("pod-garbage-collector-controller", "pod-garbage-collector", pod_collector::run);
        all.run(
            "clusterrole-aggregation-controller",
            "clusterrole-aggregation-controller",
            aggregation::run,
        );
        all.run(
            "persistentvolume-binder-controller",
            "persistent-volume-binder",
            volume::run_binder,
        );
        all.run(
            "persistentvolumeclaim-protection-controller",
            "pvc-protection-controller",
            volume::run_claim_protection,
        );
        all.run(
            "persistentvolume-protection-controller",
            "pv-protection-controller",
            volume::run_volume_protection,
        );
        let name = "volumeattributesclass-protection-controller";
        all.run(name, name, volume::run_attributes_protection);
        let name = "ephemeral-volume-controller";
        all.run(name, name, volume::run_ephemeral);
        all.run("persistentvolume-expander-controller", "expand-controller", volume::run_expand);
        all.run("resourceclaim-controller", "resource-claim-controller", resource_claim::run);
        let name = "device-taint-eviction-controller";
        all.run(name, name, device_taint::run);
        all.run(
            "persistentvolume-attach-detach-controller",
            "attachdetach-controller",
            attach::run,
        );
        all.run("service-cidr-controller", "service-cidrs-controller", service_cidr::run);
        if config.trust_bundles {
            all.run(
                "kube-apiserver-serving-clustertrustbundle-publisher-controller",
                "kube-apiserver-serving-clustertrustbundle-publisher",
                trust_bundle::run,
            );
        }
        if config.pod_certificates {
            all.run(
                "podcertificaterequest-cleaner-controller",
                "podcertificaterequestcleaner",
                pod_certificate::run,
            );
        }
        if config.service_lb {
            all.run("service-lb-controller", "service-controller", service_lb::run);
        }
        Self(all.tasks)
    }

    /// Returns when all have ended, which they do when the drain begins. Falls with the first
    /// that panics outside of the work on a key.
    pub async fn join(mut self) {
        while let Some(ended) = self.0.join_next().await {
            if let Err(err) = ended
                && let Ok(panic) = err.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

struct Starting<'a, M> {
    context: M,
    config: &'a Config,
    tasks: JoinSet<()>,
}

impl<M: Fn(&'static str, &'static str) -> Context> Starting<'_, M> {
    /// Starts a controller, if it is chosen. `account` is whose rights it has.
    fn run<F>(&mut self, name: &'static str, account: &'static str, run: impl FnOnce(Context) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        debug_assert!(NAMES.iter().any(|(known, _)| *known == name), "{name} can be chosen");
        if self.config.chosen.has(name) {
            self.tasks.spawn(base::task::boxed(run((self.context)(name, account))));
        }
    }
}

use crate::{
    aggregation, attach, bootstrap_signer, certificates, cronjob, daemonset, deployment,
    device_taint, disruption, endpoints, garbage, hpa, job, legacy_token, namespace, node,
    pod_certificate, pod_collector, quota, replicaset, resource_claim, root_ca, service_account,
    service_cidr, service_lb, statefulset, token_cleaner, token_secret, trust_bundle, volume,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_is_chosen_as_upstream_does() {
        for (words, runs, does_not) in [
            ("*", &["job-controller", "ttl-controller"][..], &[][..]),
            ("*,-job", &["ttl-controller"], &["job-controller"]),
            ("*,-job-controller,-ttl", &["cronjob-controller"], &["job-controller"]),
            (
                "job,cronjob-controller",
                &["job-controller", "cronjob-controller"],
                &["ttl-controller"],
            ),
            ("job,-job", &["job-controller"], &["ttl-controller"]),
            ("-job,job,*", &["ttl-controller"], &["job-controller"]),
        ] {
            let chosen = Chosen::parse(words.split(',')).unwrap();
            assert!(runs.iter().all(|name| chosen.has(name)), "{words}");
            assert!(!does_not.iter().any(|name| chosen.has(name)), "{words}");
        }
        for wrong in ["jobs", "-", "", "*,cloud-node-lifecycle-controller"] {
            let why = Chosen::parse(wrong.split(',')).unwrap_err();
            assert!(why.ends_with("is not in the list of known controllers"), "{why}");
        }
        assert_eq!(Chosen::default().names().count(), NAMES.len());
    }
}
