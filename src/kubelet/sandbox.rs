//! The configuration of a pod's sandbox: host name, resolver, namespaces, limits.
//!
//! Pure, except that the host's resolv.conf is handed in as text.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, SeccompProfile};
use runtime::cri::{self, DnsConfig, NamespaceMode, PodSandboxConfig, PodSandboxMetadata};

use crate::config::KubeletConfig;
use crate::observed::{LABEL_POD_NAME, LABEL_POD_NAMESPACE, LABEL_POD_UID};
use crate::{container_config, pod, resources};

/// Limits of resolv.conf that upstream keeps.
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARACTERS_MAX: usize = 2048;
const HOSTNAME_CHARACTERS_MAX: usize = 63;
/// What the kernel keeps of a host name.
const KERNEL_HOSTNAME_MAX: usize = 64;

pub fn config(
    pod: &Pod,
    attempt: u32,
    config: &KubeletConfig,
    host_resolver: &DnsConfig,
    runtime_handler: &str,
    host: resources::Host,
) -> Result<PodSandboxConfig, String> {
    let spec = pod::spec(pod);
    let context = spec.security_context.as_ref();
    let mut labels = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(LABEL_POD_NAME.into(), pod::name(pod).into());
    labels.insert(LABEL_POD_NAMESPACE.into(), pod::namespace(pod).into());
    labels.insert(LABEL_POD_UID.into(), pod::uid(pod).into());
    let node_or = |node: bool, otherwise| if node { NamespaceMode::Node } else { otherwise };
    let sysctls: BTreeMap<String, String> = context
        .and_then(|context| context.sysctls.as_ref())
        .into_iter()
        .flatten()
        .map(|sysctl| (sysctl.name.replace('/', "."), sysctl.value.clone()))
        .collect();
    let shared_pids = spec.share_process_namespace == Some(true);
    Ok(PodSandboxConfig {
        metadata: PodSandboxMetadata {
            name: pod::name(pod).into(),
            namespace: pod::namespace(pod).into(),
            uid: pod::uid(pod).into(),
            attempt,
        },
        hostname: if pod::is_host_network(pod) && spec.hostname_override.is_none() {
            String::new()
        } else {
            hostname(pod, &config.cluster_domain)?
        },
        log_directory: config.log_dir(pod::namespace(pod), pod::name(pod), pod::uid(pod)),
        dns: dns(pod, config, host_resolver).0,
        labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        network: node_or(pod::is_host_network(pod), NamespaceMode::Pod),
        pid: node_or(
            spec.host_pid == Some(true),
            if shared_pids { NamespaceMode::Pod } else { NamespaceMode::Container },
        ),
        ipc: node_or(spec.host_ipc == Some(true), NamespaceMode::Pod),
        sysctls,
        cgroup_parent: resources::cgroup_parent(pod, &config.cgroup_root),
        resources: resources::pod_resources(pod, config.pod_pids_limit, host),
        privileged: pod::containers(pod).iter().any(|(_, container)| {
            let own = container.security_context.as_ref();
            own.is_some_and(|own| own.privileged == Some(true))
        }),
        seccomp: seccomp(context.and_then(|context| context.seccomp_profile.as_ref()), config),
        selinux: container_config::selinux_options(context, None),
        runtime_handler: runtime_handler.to_owned(),
        users: None,
        host_ports: Vec::new(),
    })
}

/// Upstream confines nothing that does not ask for it, unless `seccompDefault` is set.
pub fn seccomp(profile: Option<&SeccompProfile>, config: &KubeletConfig) -> cri::SeccompProfile {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => cri::SeccompProfile::RuntimeDefault,
        Some(("Localhost", Some(path))) => {
            cri::SeccompProfile::Localhost(config.root_dir.join("seccomp").join(path))
        }
        None if config.seccomp_default => cri::SeccompProfile::RuntimeDefault,
        _ => cri::SeccompProfile::Unconfined,
    }
}

/// The pod's short host name.
pub fn short_hostname(pod: &Pod) -> String {
    let spec = pod::spec(pod);
    if let Some(name) = override_of(pod) {
        return name.to_owned();
    }
    let wanted = spec.hostname.as_deref().filter(|name| !name.is_empty());
    let mut name = wanted.unwrap_or(pod::name(pod)).to_owned();
    name.truncate(HOSTNAME_CHARACTERS_MAX);
    name.trim_end_matches(['-', '.']).to_owned()
}

fn override_of(pod: &Pod) -> Option<&str> {
    pod::spec(pod).hostname_override.as_deref().filter(|name| !name.is_empty())
}

/// `HOSTNAME.SUBDOMAIN.NAMESPACE.svc.DOMAIN`, for pods with a subdomain.
pub fn fqdn(pod: &Pod, cluster_domain: &str) -> Option<String> {
    if override_of(pod).is_some() {
        return None;
    }
    let subdomain = pod::spec(pod).subdomain.as_deref().filter(|name| !name.is_empty())?;
    let namespace = pod::namespace(pod);
    Some(format!("{}.{subdomain}.{namespace}.svc.{cluster_domain}", short_hostname(pod)))
}

fn hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let whole = fqdn(pod, cluster_domain);
    match whole.filter(|_| pod::spec(pod).set_hostname_as_fqdn == Some(true)) {
        Some(fqdn) if fqdn.len() > KERNEL_HOSTNAME_MAX => Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too \
             long ({KERNEL_HOSTNAME_MAX} characters is the max, {} characters requested)",
            fqdn.len()
        )),
        Some(fqdn) => Ok(fqdn),
        None => Ok(short_hostname(pod)),
    }
}

/// Reads resolv.conf(5).
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut out = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => out.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                out.searches = words
                    .map(|name| if name == "." { name } else { name.trim_end_matches('.') })
                    .map(str::to_owned)
                    .collect();
            }
            Some("options") => out.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    out
}

/// The pod's resolver, and what has to be told about it: reason and message of events.
pub fn dns(
    pod: &Pod,
    config: &KubeletConfig,
    host: &DnsConfig,
) -> (DnsConfig, Vec<(&'static str, String)>) {
    let mut said = Vec::new();
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod::is_host_network(pod),
        _ => false,
    };
    let mut out = match policy {
        "None" => DnsConfig::default(),
        _ if cluster && !config.cluster_dns.is_empty() => {
            let domain = &config.cluster_domain;
            let namespace = pod::namespace(pod);
            let mut searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
            add_new(&mut searches, &host.searches);
            DnsConfig {
                servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        _ => host.clone(),
    };
    if cluster && config.cluster_dns.is_empty() {
        said.push((
            "MissingClusterDNS",
            format!(
                "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod \
                 using \"ClusterFirst\" policy. Falling back to \"Default\" policy.",
                pod::display(pod)
            ),
        ));
    }
    if let Some(own) = &spec.dns_config {
        add_new(&mut out.servers, own.nameservers.as_deref().unwrap_or_default());
        add_new(&mut out.searches, own.searches.as_deref().unwrap_or_default());
        for option in own.options.iter().flatten() {
            let Some(name) = option.name.as_deref() else { continue };
            out.options.retain(|known| known.split(':').next() != Some(name));
            out.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    if out.servers.len() > NAMESERVERS_MAX {
        out.servers.truncate(NAMESERVERS_MAX);
        said.push((
            "DNSConfigForming",
            format!(
                "Nameserver limits were exceeded, some nameservers have been omitted, the \
                 applied nameserver line is: {}",
                out.servers.join(" ")
            ),
        ));
    }
    let asked = out.searches.len();
    out.searches.truncate(SEARCHES_MAX);
    let mut characters = 0;
    out.searches.retain(|name| {
        characters += name.len() + 1;
        characters <= SEARCH_CHARACTERS_MAX + 1
    });
    if out.searches.len() < asked {
        said.push((
            "DNSConfigForming",
            format!(
                "Search Line limits were exceeded, some search paths have been omitted, the \
                 applied search line is: {}",
                out.searches.join(" ")
            ),
        ));
    }
    (out, said)
}

fn add_new(list: &mut Vec<String>, more: &[String]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

/// The pod's `/etc/hosts`.
pub fn hosts_file(pod: &Pod, pod_ips: &[String], host_file: &str, cluster_domain: &str) -> String {
    let mut out = String::new();
    if pod::is_host_network(pod) {
        out.push_str("# Kubernetes-managed hosts file (host network).\n");
        out.push_str(host_file);
    } else {
        out.push_str(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let short = short_hostname(pod);
        for ip in pod_ips {
            match fqdn(pod, cluster_domain) {
                Some(fqdn) => out.push_str(&format!("{ip}\t{fqdn}\t{short}\n")),
                None => out.push_str(&format!("{ip}\t{short}\n")),
            }
        }
    }
    let aliases = pod::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            out.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod samples {
    use super::*;
    use std::sync::Arc;

    #[derive(Debug)]
    struct NoCertificate;

    impl rustls::server::ResolvesServerCert for NoCertificate {
        fn resolve(
            &self,
            _: rustls::server::ClientHello<'_>,
        ) -> Option<Arc<rustls::sign::CertifiedKey>> {
            None
        }
    }

    pub fn config() -> KubeletConfig {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoCertificate));
        let mut config =
            KubeletConfig::new("n1", vec!["192.0.2.1".parse().unwrap()], Arc::new(tls));
        config.cluster_dns = vec!["10.43.0.10".parse().unwrap()];
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    #[test]
    fn the_resolver_follows_the_policy() {
        let host = parse_resolv_conf(
            "# c\nsearch lan.example. home\nnameserver 192.0.2.53\noptions timeout:1\n",
        );
        assert_eq!(host.searches, ["lan.example", "home"]);
        let config = samples::config();
        let servers = |spec| {
            let (out, said) = dns(&pod(spec), &config, &host);
            assert_eq!(said, []);
            format!(
                "{} {} {}",
                out.servers.join(","),
                out.searches.join(","),
                out.options.join(",")
            )
        };
        let cluster = "default.svc.cluster.local,svc.cluster.local,cluster.local,lan.example,home";
        let cases = [
            (json!({"containers": []}), format!("10.43.0.10 {cluster} ndots:5")),
            (
                json!({"containers": [], "hostNetwork": true}),
                "192.0.2.53 lan.example,home timeout:1".to_owned(),
            ),
            (
                json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                    "nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]}}),
                "1.1.1.1 x ndots:2".to_owned(),
            ),
            (
                json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
                format!("10.43.0.10 {cluster} ndots:1"),
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(servers(spec), want);
        }
    }

    #[test]
    fn what_the_resolver_leaves_out_is_told() {
        let host = parse_resolv_conf("nameserver 192.0.2.53\n");
        let mut config = samples::config();
        let many = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"],
            "searches": (0..33).map(|n| format!("s{n}")).collect::<Vec<_>>()}});
        let (out, said) = dns(&pod(many), &config, &host);
        assert_eq!((out.servers.len(), out.searches.len()), (3, 32));
        let reasons: Vec<&str> = said.iter().map(|(reason, _)| *reason).collect();
        assert_eq!(reasons, ["DNSConfigForming", "DNSConfigForming"]);
        assert!(said[0].1.ends_with("nameserver line is: 1.1.1.1 1.1.1.2 1.1.1.3"), "{said:?}");
        config.cluster_dns.clear();
        let (out, said) = dns(&pod(json!({"containers": []})), &config, &host);
        assert_eq!((out.servers, said[0].0), (host.servers.clone(), "MissingClusterDNS"));
    }

    #[test]
    fn a_host_name_is_short_whole_or_what_was_said() {
        let of = |spec: serde_json::Value| {
            let host = resources::Host::default();
            config(&pod(spec), 0, &samples::config(), &DnsConfig::default(), "", host)
                .map(|it| it.hostname)
        };
        let fqdn = |name: &str| json!({"containers": [], "hostname": name, "subdomain": "sub", "setHostnameAsFQDN": true});
        assert_eq!(of(fqdn("h")), Ok("h.sub.default.svc.cluster.local".into()));
        let long = of(fqdn(&"h".repeat(40))).unwrap_err();
        assert!(
            long.ends_with("is too long (64 characters is the max, 70 characters requested)"),
            "{long}"
        );
        let overridden = json!({"containers": [], "hostnameOverride": "a.b.c", "subdomain": "sub"});
        assert_eq!(of(overridden.clone()), Ok("a.b.c".into()));
        let text = hosts_file(&pod(overridden), &["10.0.0.5".into()], "", "cluster.local");
        assert!(text.contains("10.0.0.5\ta.b.c\n"), "{text}");
        let cut =
            json!({"containers": [], "hostname": format!("{}-{}", "h".repeat(62), "x".repeat(9))});
        assert_eq!(of(cut), Ok("h".repeat(62)));
    }

    #[test]
    fn the_hosts_file_names_the_pod_and_its_aliases() {
        let pod = pod(json!({"containers": [], "hostname": "h", "subdomain": "sub",
            "hostAliases": [{"ip": "192.0.2.9", "hostnames": ["a", "b"]}]}));
        let text = hosts_file(&pod, &["10.0.0.5".into()], "", "cluster.local");
        assert!(text.contains("10.0.0.5\th.sub.default.svc.cluster.local\th\n"), "{text}");
        assert!(text.ends_with("# Entries added by HostAliases.\n192.0.2.9\ta\tb\n"), "{text}");
    }

    #[test]
    fn namespaces_follow_the_spec() {
        let host = DnsConfig::default();
        let of = |spec| {
            let machine = resources::Host::default();
            config(&pod(spec), 0, &samples::config(), &host, "", machine).unwrap()
        };
        let plain = of(json!({"containers": []}));
        assert_eq!(
            (plain.network, plain.pid, plain.ipc, plain.hostname.as_str()),
            (NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Pod, "web")
        );
        let host =
            of(json!({"containers": [], "hostNetwork": true, "hostPID": true, "hostIPC": true}));
        assert_eq!(
            (host.network, host.pid, host.ipc),
            (NamespaceMode::Node, NamespaceMode::Node, NamespaceMode::Node)
        );
        assert_eq!(host.hostname, "");
        assert_eq!(
            of(json!({"containers": [], "shareProcessNamespace": true})).pid,
            NamespaceMode::Pod
        );
    }
}
