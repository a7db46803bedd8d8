//! What definitions say of themselves beside their fields, where the embedded data does not.

use serde_json::{Map, Value, json};

/// The kinds that every group's version knows, in all versions that upstream has ever served.
pub(super) fn everywhere(definition: &str) -> Option<&str> {
    let kind = definition.strip_prefix("apimachinery.pkg.apis.meta.v1.")?;
    matches!(kind, "DeleteOptions" | "WatchEvent").then_some(kind)
}

/// Groups with their versions.
const GROUP_VERSIONS: [(&str, &[&str]); 24] = [
    ("", &["v1"]),
    ("admission.k8s.io", &["v1", "v1beta1"]),
    ("admissionregistration.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("apiextensions.k8s.io", &["v1", "v1beta1"]),
    ("apiregistration.k8s.io", &["v1", "v1beta1"]),
    ("apps", &["v1", "v1beta1", "v1beta2"]),
    ("authentication.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("authorization.k8s.io", &["v1", "v1beta1"]),
    ("autoscaling", &["v1", "v2"]),
    ("batch", &["v1", "v1beta1"]),
    ("certificates.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
    ("discovery.k8s.io", &["v1", "v1beta1"]),
    ("events.k8s.io", &["v1", "v1beta1"]),
    ("extensions", &["v1beta1"]),
    ("flowcontrol.apiserver.k8s.io", &["v1", "v1beta1", "v1beta2", "v1beta3"]),
    ("imagepolicy.k8s.io", &["v1alpha1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1", "v1beta1"]),
    ("node.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("policy", &["v1", "v1beta1"]),
    ("rbac.authorization.k8s.io", &["v1", "v1alpha1", "v1beta1"]),
    ("resource.k8s.io", &["v1", "v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1", "v1alpha2", "v1beta1"]),
];
const STORAGE_GROUP_VERSIONS: [(&str, &[&str]); 2] =
    [("storage.k8s.io", &["v1", "v1alpha1", "v1beta1"]), ("storagemigration.k8s.io", &["v1beta1"])];

pub(super) fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    let all = GROUP_VERSIONS.iter().chain(&STORAGE_GROUP_VERSIONS);
    all.flat_map(|(group, versions)| versions.iter().map(|version| (*group, *version)))
}

/// Definition, the field that tells which of the others is set (if one does), and the others
/// with the value that stands for each.
type Union = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const UNIONS: [Union; 6] = [
    ("api.core.v1.AppArmorProfile", "type", &[("localhostProfile", "LocalhostProfile")]),
    ("api.core.v1.PodSchedulingGroup", "", &[("podGroupName", "PodGroupName")]),
    ("api.core.v1.SeccompProfile", "type", &[("localhostProfile", "LocalhostProfile")]),
    ("api.flowcontrol.v1.LimitResponse", "type", &[("queuing", "Queuing")]),
    (
        "api.flowcontrol.v1.PriorityLevelConfigurationSpec",
        "type",
        &[("exempt", "Exempt"), ("limited", "Limited")],
    ),
    (
        "api.flowcontrol.v1.Subject",
        "kind",
        &[("group", "Group"), ("serviceAccount", "ServiceAccount"), ("user", "User")],
    ),
];

/// `x-kubernetes-unions`
pub(super) fn unions(definition: &str) -> Option<Value> {
    let (_, by, fields) = UNIONS.iter().find(|(name, ..)| *name == definition)?;
    let fields: Map<String, Value> =
        fields.iter().map(|(field, value)| ((*field).to_owned(), json!(value))).collect();
    let mut out = Map::new();
    if !by.is_empty() {
        out.insert("discriminator".into(), json!(by));
    }
    out.insert("fields-to-discriminateBy".into(), Value::Object(fields));
    Some(json!([out]))
}

/// How the bytes of a field are merged, where upstream says it of bytes.
pub(super) fn list_type(definition: &str, field: &str) -> Option<&'static str> {
    let known = "kube-aggregator.pkg.apis.apiregistration.v1.APIServiceSpec";
    (definition == known && field == "caBundle").then_some("atomic")
}

/// What the kinds of values are that have no words in the embedded data.
pub(super) fn words(definition: &str) -> Option<&'static str> {
    match definition {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => Some(
            "A quantity: a decimal number with a sign, and a suffix that multiplies it: n, u, m, k, M, G, T, P or E for powers of 1000, Ki, Mi, Gi, Ti, Pi or Ei for powers of 1024, or an exponent like e3. At most three decimals and 2^63-1; it is written back in the shortest form that says the same.",
        ),
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => {
            Some("A whole number or a string, written as what it is.")
        }
        _ => None,
    }
}
