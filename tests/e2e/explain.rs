//! What `kubectl explain` says, in every version of kubectl that users have: it reads our
//! OpenAPI documents and nothing else.

use crate::cluster::{Cluster, kubectls};
use crate::machine::Machine;

const LAMPS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: lamps.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: lamps, kind: Lamp, singular: lamp}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        description: A lamp.
        properties:
          spec:
            type: object
            description: What it should be.
            required: [bulbs]
            properties:
              bulbs: {type: integer, description: How many bulbs.}
              colour: {type: string, enum: [red, green]}
  - name: v2
    served: true
    storage: false
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, properties: {watts: {type: integer}}}
";

/// Words of `kubectl explain`, and pieces of what it says.
const SAID: [(&str, &[&str]); 10] = [
    (
        "pod.spec.containers.imagePullPolicy",
        &[
            "KIND:       Pod\nVERSION:    v1\n\nFIELD: imagePullPolicy <string>",
            "ENUM:\n    Always\n    IfNotPresent\n    Never\n",
            "Image pull policy. One of Always, Never, IfNotPresent.",
        ],
    ),
    ("pods.spec.containers.resources.limits", &["FIELD: limits <map[string]Quantity>"]),
    (
        "deployment.spec.strategy",
        &[
            "GROUP:      apps\n",
            "  rollingUpdate\t<RollingUpdateDeployment>\n",
            "  type\t<string>\n  enum: Recreate, RollingUpdate\n",
        ],
    ),
    ("service.spec.ports", &["  port\t<integer> -required-\n", "  targetPort\t<IntOrString>\n"]),
    (
        "horizontalpodautoscaler.spec --api-version=autoscaling/v1",
        &["targetCPUUtilizationPercentage"],
    ),
    ("horizontalpodautoscaler.spec --api-version=autoscaling/v2", &["  metrics\t<[]MetricSpec>\n"]),
    (
        "cronjob.spec.jobTemplate --recursive",
        &["  metadata\t<ObjectMeta>\n", "    backoffLimit\t<integer>\n", "      spec\t<PodSpec>\n"],
    ),
    (
        "lamp.spec --api-version=example.com/v1",
        &[
            "What it should be.",
            "  bulbs\t<integer> -required-\n    How many bulbs.\n",
            "  colour\t<string>\n  enum: red, green\n",
        ],
    ),
    ("lamp --api-version=example.com/v1", &["A lamp.", "  metadata\t<ObjectMeta>\n"]),
    (
        "lamps --recursive --api-version=example.com/v2",
        &["  spec\t<Object>\n    watts\t<integer>\n"],
    ),
];

#[test]
fn every_kubectl_explains_kinds_and_custom_ones() {
    let mut cluster = Cluster::with(Machine::new(), &["--disable-agent"]);
    cluster.apply(LAMPS);
    cluster.until("explain lamp", 20, |text| text.contains("KIND:       Lamp"));
    for kubectl in kubectls() {
        cluster.kubectl = kubectl;
        for (words, pieces) in SAID {
            let said = cluster.k(&format!("explain {words}"));
            for piece in pieces {
                assert!(said.contains(piece), "{words}: no {piece:?} in\n{said}");
            }
        }
        let refused = cluster.refused(&["explain", "pod.spec.nosuch"]);
        assert!(refused.contains("field \"nosuch\" does not exist"), "{refused}");
        // As many fields as upstream has, and in its order.
        let all = cluster.k("explain pod --recursive");
        let fields: Vec<&str> = all.lines().filter(|line| line.contains('\t')).collect();
        assert_eq!(fields.len(), 1_361, "{all}");
        assert!(fields[0].starts_with("  apiVersion\t") && fields[1].starts_with("  kind\t"));
    }
    cluster.reset();
}
