//! The Pod Security Standards, `baseline` and `restricted`, as pure judgements of a pod's
//! spec. Words are those of upstream's checks.

use kinds::core::SAFE_SYSCTLS;
use serde_json::Value;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "privileged" => Self::Privileged,
            "baseline" => Self::Baseline,
            "restricted" => Self::Restricted,
            _ => return None,
        })
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// One thing that the level does not allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

impl Violation {
    fn new(reason: &str, detail: impl Into<String>) -> Option<Self> {
        Some(Self { reason: reason.into(), detail: detail.into() })
    }
}

/// `reason (detail), reason (detail)`.
pub fn sentence(violations: &[Violation]) -> String {
    let said: Vec<String> = violations
        .iter()
        .map(|violation| match violation.detail.as_str() {
            "" => violation.reason.clone(),
            detail => format!("{} ({detail})", violation.reason),
        })
        .collect();
    said.join(", ")
}

type Check = fn(&Value, &Value) -> Option<Violation>;

/// In the order in which upstream tells what they find.
const BASELINE: [Check; 12] = [
    app_armor,
    default_capabilities,
    host_namespaces,
    host_path_volumes,
    host_ports,
    host_of_probes,
    privileged,
    proc_mount,
    seccomp_confined,
    se_linux,
    sysctls,
    host_process,
];
const RESTRICTED: [Check; 15] = [
    escalation,
    app_armor,
    restricted_capabilities,
    host_namespaces,
    host_ports,
    host_of_probes,
    privileged,
    proc_mount,
    volume_types,
    non_root,
    root_user,
    seccomp_set,
    se_linux,
    sysctls,
    host_process,
];

/// What of the pod the level does not allow.
pub fn judge(level: Level, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let checks: &[Check] = match level {
        Level::Privileged => &[],
        Level::Baseline => &BASELINE,
        Level::Restricted => &RESTRICTED,
    };
    checks.iter().filter_map(|check| check(metadata, spec)).collect()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .flat_map(|key| list(spec, key))
}

fn is_windows(spec: &Value) -> bool {
    spec["os"]["name"] == "windows"
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("{word:?}")).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn named(word: &str, names: &[&str]) -> String {
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{word}{plural} {}", quoted(names))
}

/// The containers of which something holds.
fn those(spec: &Value, test: impl Fn(&Value) -> bool) -> Vec<&str> {
    containers(spec).filter(|one| test(one)).map(|one| text(one, "name")).collect()
}

fn unique<'v>(words: impl Iterator<Item = &'v str>) -> Vec<&'v str> {
    let mut out: Vec<&str> = words.collect();
    out.sort_unstable();
    out.dedup();
    out
}

fn host_namespaces(_: &Value, spec: &Value) -> Option<Violation> {
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|key| spec[*key] == true)
        .map(|key| format!("{key}=true"))
        .collect();
    if shared.is_empty() {
        return None;
    }
    Violation::new("host namespaces", shared.join(", "))
}

fn host_ports(_: &Value, spec: &Value) -> Option<Violation> {
    let used = |one: &Value| -> Vec<u64> {
        list(one, "ports")
            .iter()
            .filter_map(|port| port["hostPort"].as_u64())
            .filter(|port| *port != 0)
            .collect()
    };
    let bad = those(spec, |one| !used(one).is_empty());
    if bad.is_empty() {
        return None;
    }
    let mut ports: Vec<u64> = containers(spec).flat_map(used).collect();
    ports.sort_unstable();
    ports.dedup();
    let word = if ports.len() == 1 { "hostPort" } else { "hostPorts" };
    let verb = if bad.len() == 1 { "uses" } else { "use" };
    let shown: Vec<String> = ports.iter().map(u64::to_string).collect();
    Violation::new(word, format!("{} {verb} {word} {}", named("container", &bad), shown.join(", ")))
}

fn host_of_probes(_: &Value, spec: &Value) -> Option<Violation> {
    let has_host = |handler: &Value| {
        ["httpGet", "tcpSocket"].iter().any(|kind| !text(&handler[*kind], "host").is_empty())
    };
    let bad = those(spec, |one| {
        ["livenessProbe", "readinessProbe", "startupProbe"].iter().any(|key| has_host(&one[*key]))
            || ["postStart", "preStop"].iter().any(|key| has_host(&one["lifecycle"][*key]))
    });
    if bad.is_empty() {
        return None;
    }
    let detail =
        format!("{} must not set hosts of probes or lifecycle hooks", named("container", &bad));
    Violation::new("probe or lifecycle host", detail)
}

fn host_path_volumes(_: &Value, spec: &Value) -> Option<Violation> {
    let bad: Vec<&str> = list(spec, "volumes")
        .iter()
        .filter(|volume| volume["hostPath"].is_object())
        .map(|volume| text(volume, "name"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    Violation::new("hostPath volumes", named("volume", &bad))
}

fn privileged(_: &Value, spec: &Value) -> Option<Violation> {
    let bad = those(spec, |one| one["securityContext"]["privileged"] == true);
    if bad.is_empty() {
        return None;
    }
    let who = named("container", &bad);
    Violation::new("privileged", format!("{who} must not set securityContext.privileged=true"))
}

fn proc_mount(_: &Value, spec: &Value) -> Option<Violation> {
    let of = |one: &Value| one["securityContext"]["procMount"].as_str().map(str::to_owned);
    let bad = those(spec, |one| of(one).is_some_and(|mount| mount != "Default"));
    if bad.is_empty() {
        return None;
    }
    let all: Vec<String> = containers(spec).filter_map(of).filter(|it| it != "Default").collect();
    let values = quoted(&unique(all.iter().map(String::as_str)));
    let who = named("container", &bad);
    Violation::new("procMount", format!("{who} must not set securityContext.procMount to {values}"))
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn added<'v>(one: &'v Value, allowed: &'v [&str]) -> impl Iterator<Item = &'v str> {
    list(&one["securityContext"]["capabilities"], "add")
        .iter()
        .filter_map(Value::as_str)
        .filter(|capability| !allowed.contains(capability))
}

fn forbidden_capabilities(spec: &Value, allowed: &[&str]) -> Option<String> {
    let bad = those(spec, |one| added(one, allowed).next().is_some());
    if bad.is_empty() {
        return None;
    }
    let which = quoted(&unique(containers(spec).flat_map(|one| added(one, allowed))));
    let who = named("container", &bad);
    Some(format!("{who} must not include {which} in securityContext.capabilities.add"))
}

fn default_capabilities(_: &Value, spec: &Value) -> Option<Violation> {
    Violation::new("non-default capabilities", forbidden_capabilities(spec, &DEFAULT_CAPABILITIES)?)
}

fn restricted_capabilities(_: &Value, spec: &Value) -> Option<Violation> {
    if is_windows(spec) {
        return None;
    }
    let keeps = those(spec, |one| {
        !list(&one["securityContext"]["capabilities"], "drop").iter().any(|it| it == "ALL")
    });
    let mut details = Vec::new();
    if !keeps.is_empty() {
        let who = named("container", &keeps);
        details.push(format!("{who} must set securityContext.capabilities.drop=[\"ALL\"]"));
    }
    details.extend(forbidden_capabilities(spec, &["NET_BIND_SERVICE"]));
    if details.is_empty() {
        return None;
    }
    Violation::new("unrestricted capabilities", details.join("; "))
}

fn escalation(_: &Value, spec: &Value) -> Option<Violation> {
    if is_windows(spec) {
        return None;
    }
    let bad = those(spec, |one| one["securityContext"]["allowPrivilegeEscalation"] != false);
    if bad.is_empty() {
        return None;
    }
    let who = named("container", &bad);
    Violation::new(
        "allowPrivilegeEscalation != false",
        format!("{who} must set securityContext.allowPrivilegeEscalation=false"),
    )
}

const VOLUME_TYPES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn volume_types(_: &Value, spec: &Value) -> Option<Violation> {
    let kind = |volume: &'_ Value| -> Option<String> {
        let map = volume.as_object()?;
        let key = map.iter().find(|(key, value)| *key != "name" && value.is_object())?.0;
        (!VOLUME_TYPES.contains(&key.as_str())).then(|| key.clone())
    };
    let bad: Vec<&Value> = list(spec, "volumes").iter().filter(|one| kind(one).is_some()).collect();
    if bad.is_empty() {
        return None;
    }
    let names: Vec<&str> = bad.iter().map(|volume| text(volume, "name")).collect();
    let kinds: Vec<String> = bad.iter().filter_map(|volume| kind(volume)).collect();
    let kinds = unique(kinds.iter().map(String::as_str));
    let verb = if names.len() == 1 { "uses" } else { "use" };
    let which = named("restricted volume type", &kinds);
    Violation::new("restricted volume types", format!("{} {verb} {which}", named("volume", &names)))
}

fn non_root(_: &Value, spec: &Value) -> Option<Violation> {
    let of = |one: &Value| one["securityContext"]["runAsNonRoot"].as_bool();
    let pod = of(spec);
    let explicit = those(spec, |one| of(one) == Some(false));
    let silent = those(spec, |one| of(one).is_none());
    let mut who: Vec<String> = Vec::new();
    if pod == Some(false) {
        who.push("pod".into());
    }
    if !explicit.is_empty() {
        who.push(named("container", &explicit));
    }
    if !who.is_empty() && (pod == Some(false) || !explicit.is_empty()) {
        // A pod that says no is overruled by containers that all say yes.
        let overruled = explicit.is_empty() && silent.is_empty();
        if !overruled {
            let detail =
                format!("{} must not set securityContext.runAsNonRoot=false", who.join(" and "));
            return Violation::new("runAsNonRoot != true", detail);
        }
    }
    if pod != Some(true) && !silent.is_empty() {
        let detail = format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            named("container", &silent)
        );
        return Violation::new("runAsNonRoot != true", detail);
    }
    None
}

fn root_user(_: &Value, spec: &Value) -> Option<Violation> {
    let is_root = |one: &Value| one["securityContext"]["runAsUser"].as_i64() == Some(0);
    let mut who: Vec<String> = Vec::new();
    if is_root(spec) {
        who.push("pod".into());
    }
    let bad = those(spec, is_root);
    if !bad.is_empty() {
        who.push(named("container", &bad));
    }
    if who.is_empty() {
        return None;
    }
    Violation::new("runAsUser=0", format!("{} must not set runAsUser=0", who.join(" and ")))
}

fn profile<'v>(one: &'v Value, key: &str) -> Option<&'v str> {
    one["securityContext"][key]["type"].as_str()
}

/// Who asks for a profile of another type than these.
fn unconfined(spec: &Value, key: &str, good: &[&str]) -> Option<(String, String)> {
    let bad_type = |one: &Value| profile(one, key).is_some_and(|word| !good.contains(&word));
    let mut who: Vec<String> = Vec::new();
    if bad_type(spec) {
        who.push("pod".into());
    }
    let bad = those(spec, bad_type);
    if !bad.is_empty() {
        who.push(named("container", &bad));
    }
    if who.is_empty() {
        return None;
    }
    let all = std::iter::once(spec).chain(containers(spec));
    let types = all.filter_map(|one| profile(one, key)).filter(|word| !good.contains(word));
    Some((who.join(" and "), quoted(&unique(types))))
}

const CONFINED: [&str; 2] = ["RuntimeDefault", "Localhost"];

fn seccomp_confined(_: &Value, spec: &Value) -> Option<Violation> {
    let (who, types) = unconfined(spec, "seccompProfile", &CONFINED)?;
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {types}");
    Violation::new("seccompProfile", detail)
}

fn seccomp_set(metadata: &Value, spec: &Value) -> Option<Violation> {
    if let Some(found) = seccomp_confined(metadata, spec) {
        return Some(found);
    }
    if is_windows(spec) || profile(spec, "seccompProfile").is_some() {
        return None;
    }
    let silent = those(spec, |one| profile(one, "seccompProfile").is_none());
    if silent.is_empty() {
        return None;
    }
    let detail = format!(
        "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
        named("container", &silent)
    );
    Violation::new("seccompProfile", detail)
}

fn app_armor(metadata: &Value, spec: &Value) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut details: Vec<String> = Vec::new();
    if let Some((who, types)) = unconfined(spec, "appArmorProfile", &CONFINED) {
        details.push(format!("{who} must not set AppArmor profile type to {types}"));
    }
    let mut annotations: Vec<String> = metadata["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| {
            let value = value.as_str().unwrap_or_default();
            let good = matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
            key.starts_with(PREFIX) && !good
        })
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    annotations.sort_unstable();
    if !annotations.is_empty() {
        let plural = if annotations.len() == 1 { "" } else { "s" };
        details.push(format!("annotation{plural} {}", annotations.join(", ")));
    }
    if details.is_empty() {
        return None;
    }
    let word = if details.len() + annotations.len() > 2 { "profiles" } else { "profile" };
    Violation::new(&format!("forbidden AppArmor {word}"), details.join("; "))
}

const SE_LINUX_TYPES: [&str; 5] =
    ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

fn se_linux(_: &Value, spec: &Value) -> Option<Violation> {
    let options = |one: &Value| one["securityContext"]["seLinuxOptions"].clone();
    let is_bad = |one: &Value| {
        let own = options(one);
        !SE_LINUX_TYPES.contains(&text(&own, "type"))
            || !text(&own, "user").is_empty()
            || !text(&own, "role").is_empty()
    };
    let mut who: Vec<String> = Vec::new();
    if is_bad(spec) {
        who.push("pod".into());
    }
    let bad = those(spec, is_bad);
    if !bad.is_empty() {
        who.push(named("container", &bad));
    }
    if who.is_empty() {
        return None;
    }
    let all: Vec<Value> = std::iter::once(spec).chain(containers(spec)).map(options).collect();
    let types =
        unique(all.iter().map(|own| text(own, "type")).filter(|it| !SE_LINUX_TYPES.contains(it)));
    let mut what: Vec<String> = Vec::new();
    if !types.is_empty() {
        what.push(named("type", &types));
    }
    for key in ["user", "role"] {
        if all.iter().any(|own| !text(own, key).is_empty()) {
            what.push(format!("{key} may not be set"));
        }
    }
    let detail = format!(
        "{} set forbidden securityContext.seLinuxOptions: {}",
        who.join(" and "),
        what.join("; ")
    );
    Violation::new("seLinuxOptions", detail)
}

fn sysctls(_: &Value, spec: &Value) -> Option<Violation> {
    let bad: Vec<&str> = list(&spec["securityContext"], "sysctls")
        .iter()
        .map(|sysctl| text(sysctl, "name"))
        .filter(|own| !SAFE_SYSCTLS.contains(own))
        .collect();
    if bad.is_empty() {
        return None;
    }
    Violation::new("forbidden sysctls", bad.join(", "))
}

fn host_process(_: &Value, spec: &Value) -> Option<Violation> {
    let is_host = |one: &Value| one["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let mut who: Vec<String> = Vec::new();
    if is_host(spec) {
        who.push("pod".into());
    }
    let bad = those(spec, is_host);
    if !bad.is_empty() {
        who.push(named("container", &bad));
    }
    if who.is_empty() {
        return None;
    }
    let detail = format!(
        "{} must not set securityContext.windowsOptions.hostProcess=true",
        who.join(" and ")
    );
    Violation::new("hostProcess", detail)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(level: Level, spec: Value) -> String {
        sentence(&judge(level, &Value::Null, &spec))
    }

    #[test]
    fn baseline_forbids_what_reaches_the_host() {
        let plain = json!({"containers": [{"name": "c"}]});
        assert_eq!(said(Level::Baseline, plain.clone()), "");
        assert_eq!(said(Level::Privileged, json!({"hostPID": true})), "");
        for (spec, words) in [
            (
                json!({"hostPID": true, "hostIPC": true}),
                "host namespaces (hostPID=true, hostIPC=true)",
            ),
            (
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 2}, {"hostPort": 1}]}]}),
                "hostPorts (container \"a\" uses hostPorts 1, 2)",
            ),
            (
                json!({"volumes": [{"name": "a", "hostPath": {}}, {"name": "b", "hostPath": {}}]}),
                "hostPath volumes (volumes \"a\", \"b\")",
            ),
            (
                json!({"securityContext": {"seLinuxOptions": {"user": "u", "type": "spc_t"}}}),
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
            ),
            (
                json!({"initContainers": [{"name": "i", "securityContext": {"procMount": "Unmasked"}}]}),
                "procMount (container \"i\" must not set securityContext.procMount to \"Unmasked\")",
            ),
        ] {
            assert_eq!(said(Level::Baseline, spec), words);
        }
    }

    #[test]
    fn restricted_wants_to_be_told() {
        let own = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                         "runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
        let good = json!({"containers": [{"name": "c", "securityContext": own}]});
        assert_eq!(said(Level::Restricted, good.clone()), "");
        // The pod's word counts for containers that have none, and not against those that do.
        let mut overruled = good.clone();
        overruled["securityContext"] = json!({"runAsNonRoot": false});
        assert_eq!(said(Level::Restricted, overruled), "");
        let mut explicit = good.clone();
        explicit["containers"][0]["securityContext"]["runAsNonRoot"] = json!(false);
        assert_eq!(
            said(Level::Restricted, explicit),
            "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)"
        );
        let mut several = good;
        several["volumes"] = json!([{"name": "a", "hostPath": {}}, {"name": "b", "nfs": {}}]);
        assert_eq!(
            said(Level::Restricted, several),
            "restricted volume types (volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\")"
        );
    }
}
