//! The environment, command and arguments of a container: literals, references,
//! `$(NAME)` expansion and the variables that name services.
//!
//! Pure: the objects referred to are read beforehand.

mod file;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret, Service,
};

use crate::pod;
use crate::quantity::{self, ResourceList};
use crate::resources;

/// Objects a pod refers to by name, as they were read; None where there is no such object.
#[derive(Debug, Clone, Default)]
pub struct Referred {
    pub config_maps: HashMap<String, Option<Arc<ConfigMap>>>,
    pub secrets: HashMap<String, Option<Arc<Secret>>>,
    /// By volume and path.
    pub files: HashMap<(String, String), Option<String>>,
}

/// What is known of the pod beyond its object.
#[derive(Debug, Clone, Default)]
pub struct Facts<'a> {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    pub allocatable: Option<&'a ResourceList>,
}

/// Variables in order; a later one of the same name has replaced the earlier.
#[derive(Debug, Default)]
pub struct Variables {
    list: Vec<(String, String)>,
    at: HashMap<String, usize>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.at.get(name) {
            Some(index) => self.list[*index].1 = value,
            None => {
                self.at.insert(name.to_owned(), self.list.len());
                self.list.push((name.to_owned(), value));
            }
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.at.get(name).map(|index| self.list[*index].1.as_str())
    }

    pub fn list(&self) -> &[(String, String)] {
        &self.list
    }

    pub fn into_list(self) -> Vec<(String, String)> {
        self.list
    }
}

/// The whole environment of `container`; the error is what CreateContainerConfigError says.
pub fn environment(
    pod: &Pod,
    container: &Container,
    referred: &Referred,
    services: &[(String, String)],
    facts: &Facts<'_>,
) -> Result<Variables, String> {
    let mut out = Variables::default();
    from_whole_objects(pod, container, referred, &mut out)?;
    let service: HashMap<&str, &str> =
        services.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => match from_source(pod, container, source, referred, facts)? {
                Some(value) => value,
                None => continue,
            },
            None => expand(variable.value.as_deref().unwrap_or_default(), |name| {
                out.get(name).or_else(|| service.get(name).copied()).map(str::to_owned)
            }),
        };
        out.set(&variable.name, value);
    }
    for (name, value) in services {
        if out.get(name).is_none() {
            out.set(name, value.clone());
        }
    }
    Ok(out)
}

fn from_whole_objects(
    pod: &Pod,
    container: &Container,
    referred: &Referred,
    out: &mut Variables,
) -> Result<(), String> {
    let namespace = pod::namespace(pod);
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(wanted) = &source.config_map_ref {
            match referred.config_maps.get(&wanted.name).and_then(Option::as_ref) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        out.set(&format!("{prefix}{key}"), value.clone());
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(missing("configmap", &wanted.name)),
            }
        }
        if let Some(wanted) = &source.secret_ref {
            match referred.secrets.get(&wanted.name).and_then(Option::as_ref) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        let value = text(&value.0, "Secret", namespace, &wanted.name, key)?;
                        out.set(&format!("{prefix}{key}"), value);
                    }
                }
                None if wanted.optional == Some(true) => {}
                None => return Err(missing("secret", &wanted.name)),
            }
        }
    }
    Ok(())
}

fn missing(kind: &str, name: &str) -> String {
    format!("{kind} \"{name}\" not found")
}

fn text(
    bytes: &[u8],
    kind: &str,
    namespace: &str,
    name: &str,
    key: &str,
) -> Result<String, String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.contains('\0') {
        return Err(format!("key {key} in {kind} {namespace}/{name} contains a NUL byte"));
    }
    Ok(text)
}

fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    referred: &Referred,
    facts: &Facts<'_>,
) -> Result<Option<String>, String> {
    let namespace = pod::namespace(pod);
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, facts).map(Some);
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_value(pod, Some(container), field, facts.allocatable).map(Some);
    }
    if let Some(wanted) = &source.config_map_key_ref {
        let optional = wanted.optional == Some(true);
        return match referred.config_maps.get(&wanted.name).and_then(Option::as_ref) {
            None if optional => Ok(None),
            None => Err(missing("configmap", &wanted.name)),
            Some(map) => match map.data.as_ref().and_then(|data| data.get(&wanted.key)) {
                Some(value) => Ok(Some(value.clone())),
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in ConfigMap {namespace}/{}",
                    wanted.key, wanted.name
                )),
            },
        };
    }
    if let Some(wanted) = &source.secret_key_ref {
        let optional = wanted.optional == Some(true);
        return match referred.secrets.get(&wanted.name).and_then(Option::as_ref) {
            None if optional => Ok(None),
            None => Err(missing("secret", &wanted.name)),
            Some(secret) => match secret.data.as_ref().and_then(|data| data.get(&wanted.key)) {
                Some(value) => {
                    text(&value.0, "Secret", namespace, &wanted.name, &wanted.key).map(Some)
                }
                None if optional => Ok(None),
                None => Err(format!(
                    "couldn't find key {} in Secret {namespace}/{}",
                    wanted.key, wanted.name
                )),
            },
        };
    }
    if let Some(wanted) = &source.file_key_ref {
        let optional = wanted.optional == Some(true);
        let place = (wanted.volume_name.clone(), wanted.path.clone());
        let Some(text) = referred.files.get(&place).and_then(Option::as_ref) else {
            let missing = format!("couldn't parse env file: there is no file {:?}", wanted.path);
            return if optional { Ok(None) } else { Err(missing) };
        };
        let value = file::value(text, &wanted.key)
            .map_err(|why| format!("couldn't parse env file: {why}"))?;
        return match value {
            None if !optional => Err(format!(
                "environment variable key {:?} not found in file {:?}",
                wanted.key, wanted.path
            )),
            value => Ok(value),
        };
    }
    Ok(Some(String::new()))
}

/// The downward API's fields (core/v1 ObjectFieldSelector).
pub fn field_value(pod: &Pod, path: &str, facts: &Facts<'_>) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod::spec(pod);
    let all = |map: &Option<BTreeMap<String, String>>| {
        let lines: Vec<String> =
            map.iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
        lines.join("\n")
    };
    let one = |map: &Option<BTreeMap<String, String>>, key: &str| {
        map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default()
    };
    if let Some((base, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        return match base {
            "metadata.labels" => Ok(one(&meta.labels, key)),
            "metadata.annotations" => Ok(one(&meta.annotations, key)),
            _ => Err(format!("unsupported fieldPath: {path}")),
        };
    }
    Ok(match path {
        "metadata.name" => pod::name(pod).to_owned(),
        "metadata.namespace" => pod::namespace(pod).to_owned(),
        "metadata.uid" => pod::uid(pod).to_owned(),
        "metadata.labels" => all(&meta.labels),
        "metadata.annotations" => all(&meta.annotations),
        "spec.nodeName" => spec.node_name.clone().unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// As Go's `%q` writes labels and annotations into a downward file.
fn quoted(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A limit or request in units of the divisor, rounded up; a limit that is not set is that of
/// the pod, or what the node has.
pub fn resource_value(
    pod: &Pod,
    container: Option<&Container>,
    field: &ResourceFieldSelector,
    allocatable: Option<&ResourceList>,
) -> Result<String, String> {
    let named = field.container_name.as_deref().filter(|name| !name.is_empty());
    let named = match named {
        Some(name) => {
            Some(pod::container(pod, name).ok_or_else(|| format!("container {name} not found"))?.1)
        }
        None => None,
    };
    let container = named.as_ref().or(container).ok_or("containerName is required")?;
    let (list, name) = field
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", field.resource))?;
    let resources = container.resources.as_ref();
    let milli = match list {
        "limits" => match resources::limit_milli(pod, container, name) {
            0 => quantity::milli_of(allocatable, name),
            limit => limit,
        },
        "requests" => {
            quantity::milli_of(resources.and_then(|resources| resources.requests.as_ref()), name)
        }
        _ => return Err(format!("unsupported container resource : {}", field.resource)),
    };
    let divisor = field
        .divisor
        .as_ref()
        .and_then(quantity::milli)
        .filter(|divisor| *divisor > 0)
        .unwrap_or(1000);
    Ok(((milli + divisor - 1) / divisor).to_string())
}

/// Replaces `$(NAME)`; `$$` is a dollar sign and an unknown name stays as it is.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) =
            rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Expands command or arguments with the container's own environment.
pub fn expand_all(list: Option<&Vec<String>>, variables: &Variables) -> Vec<String> {
    list.into_iter()
        .flatten()
        .map(|text| expand(text, |name| variables.get(name).map(str::to_owned)))
        .collect()
}

/// A sub-path that must name only known variables.
pub fn expand_strict(text: &str, variables: &[(String, String)]) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let out = expand(text, |name| {
        let found = variables.iter().find(|(known, _)| known == name);
        if found.is_none() {
            *missing.borrow_mut() = Some(name.to_owned());
        }
        found.map(|(_, value)| value.clone())
    });
    match missing.into_inner() {
        Some(name) => Err(format!("missing value for \"{name}\"")),
        None => Ok(out),
    }
}

/// `NAME_SERVICE_HOST`, `NAME_PORT` and so on of the services a pod sees: those of its
/// namespace if it wants them, and always the API server's.
pub fn service_variables(
    services: &[Arc<Service>],
    namespace: &str,
    enable_links: bool,
) -> Vec<(String, String)> {
    let name_of = |service: &Service| service.metadata.name.clone().unwrap_or_default();
    let mut seen: BTreeMap<String, &Arc<Service>> = BTreeMap::new();
    for service in services {
        let master = service.metadata.namespace.as_deref() == Some("default")
            && name_of(service) == "kubernetes";
        let own = enable_links && service.metadata.namespace.as_deref() == Some(namespace);
        if own || (master && !seen.contains_key("kubernetes")) {
            seen.insert(name_of(service), service);
        }
    }
    let mut out = Vec::new();
    for (name, service) in seen {
        let Some(spec) = &service.spec else { continue };
        let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")
        else {
            continue;
        };
        let Some(first) = spec.ports.iter().flatten().next() else { continue };
        let prefix = name.to_uppercase().replace('-', "_");
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        out.push((format!("{prefix}_SERVICE_HOST"), ip.to_owned()));
        out.push((format!("{prefix}_SERVICE_PORT"), first.port.to_string()));
        for port in spec.ports.iter().flatten() {
            if let Some(name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let name = name.to_uppercase().replace('-', "_");
                out.push((format!("{prefix}_SERVICE_PORT_{name}"), port.port.to_string()));
            }
        }
        for (index, port) in spec.ports.iter().flatten().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
            let url = format!("{protocol}://{host}:{}", port.port);
            if index == 0 {
                out.push((format!("{prefix}_PORT"), url.clone()));
            }
            let stem = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
            out.push((stem.clone(), url));
            out.push((format!("{stem}_PROTO"), protocol));
            out.push((format!("{stem}_PORT"), port.port.to_string()));
            out.push((format!("{stem}_ADDR"), ip.to_owned()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::samples::pod;
    use serde_json::json;

    #[test]
    fn references_expand_and_dollars_escape() {
        let cases = [
            ("$(A)-$(B)", "1-$(B)"),
            ("$$(A)", "$(A)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("x$(A)$(A)", "x11"),
        ];
        for (text, want) in cases {
            assert_eq!(expand(text, |name| (name == "A").then(|| "1".to_owned())), want);
        }
        assert!(expand_strict("$(A)", &[]).is_err());
    }

    #[test]
    fn variables_come_from_everywhere_and_later_ones_win() {
        let pod = pod(json!({"nodeName": "n1", "containers": [{
            "name": "a",
            "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": "P_"},
                        {"secretRef": {"name": "gone", "optional": true}}],
            "env": [
                {"name": "P_x", "value": "over"},
                {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "FILE", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "a/b", "key": "K"}}},
                {"name": "LESS", "valueFrom": {"fileKeyRef":
                    {"volumeName": "v", "path": "a/b", "key": "L", "optional": true}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                {"name": "BOTH", "value": "$(ME)/$(KUBERNETES_SERVICE_HOST)/$(LATER)"},
                {"name": "LATER", "value": "no"}],
            "resources": {"limits": {"cpu": "250m"}}}]}));
        let cm: ConfigMap =
            serde_json::from_value(json!({"metadata": {}, "data": {"x": "1", "y": "2"}})).unwrap();
        let secret: Secret =
            serde_json::from_value(json!({"metadata": {}, "data": {"k": "c2VjcmV0"}})).unwrap();
        let referred = Referred {
            config_maps: [("cm".to_owned(), Some(Arc::new(cm)))].into(),
            secrets: [("s".to_owned(), Some(Arc::new(secret)))].into(),
            files: [(("v".to_owned(), "a/b".to_owned()), Some("K='in file'".to_owned()))].into(),
        };
        let services = [("KUBERNETES_SERVICE_HOST".to_owned(), "10.43.0.1".to_owned())];
        let container = &pod::spec(&pod).containers[0];
        let got = environment(&pod, container, &referred, &services, &Facts::default()).unwrap();
        let want = [
            ("P_x", "over"),
            ("P_y", "2"),
            ("ME", "web"),
            ("NODE", "n1"),
            ("KEY", "secret"),
            ("FILE", "in file"),
            ("CPU", "250"),
            ("BOTH", "web/10.43.0.1/$(LATER)"),
            ("LATER", "no"),
            ("KUBERNETES_SERVICE_HOST", "10.43.0.1"),
        ];
        let want: Vec<(String, String)> =
            want.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(got.into_list(), want);
        let err = environment(&pod, container, &Referred::default(), &[], &Facts::default());
        assert_eq!(err.unwrap_err(), "configmap \"cm\" not found");
    }

    #[test]
    fn a_limit_is_the_containers_or_the_pods_or_what_the_node_has() {
        let node: ResourceList = [("cpu", "8"), ("memory", "1Gi")]
            .map(|(name, amount)| (name.to_owned(), serde_json::from_value(json!(amount)).unwrap()))
            .into();
        let of = |own: serde_json::Value, whole: serde_json::Value, resource: &str| {
            let it =
                pod(json!({"resources": whole, "containers": [{"name": "a", "resources": own}]}));
            let field = ResourceFieldSelector { resource: resource.into(), ..Default::default() };
            resource_value(&it, pod::spec(&it).containers.first(), &field, Some(&node)).unwrap()
        };
        let limits = |cpu: &str| json!({"limits": {"cpu": cpu}});
        assert_eq!(of(limits("2"), limits("4"), "limits.cpu"), "2");
        assert_eq!(of(json!({}), limits("4"), "limits.cpu"), "4");
        assert_eq!(of(json!({}), limits("4"), "limits.memory"), (1u64 << 30).to_string());
        assert_eq!(of(json!({}), json!(null), "limits.cpu"), "8");
        assert_eq!(of(json!({}), limits("4"), "requests.cpu"), "0");
    }

    #[test]
    fn services_become_variables() {
        let service = |ns: &str, name: &str, ip: &str| -> Arc<Service> {
            Arc::new(
                serde_json::from_value(json!({
                "metadata": {"namespace": ns, "name": name},
                "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80}]}}))
                .unwrap(),
            )
        };
        let all = [
            service("default", "kubernetes", "10.43.0.1"),
            service("app", "my-db", "10.43.0.9"),
            service("app", "headless", "None"),
        ];
        let linked = service_variables(&all, "app", true);
        let get = |list: &[(String, String)], name: &str| {
            list.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        assert_eq!(get(&linked, "MY_DB_PORT_80_TCP_ADDR").as_deref(), Some("10.43.0.9"));
        assert_eq!(get(&linked, "MY_DB_SERVICE_PORT_HTTP").as_deref(), Some("80"));
        assert_eq!(get(&linked, "KUBERNETES_PORT").as_deref(), Some("tcp://10.43.0.1:80"));
        assert!(get(&linked, "HEADLESS_SERVICE_HOST").is_none());
        let unlinked = service_variables(&all, "app", false);
        assert!(unlinked.iter().all(|(name, _)| name.starts_with("KUBERNETES_")));
    }
}
