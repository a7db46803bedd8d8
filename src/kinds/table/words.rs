//! Where the descriptions of columns come from: mostly fields of the API, whose own
//! descriptions are kept elsewhere; some columns sum up several and have words of their own.

/// The source of a column's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// A field of a definition, such as `api.core.v1.PodSpec` and `nodeName`.
    Field(&'static str, &'static str),
    Own(&'static str),
}

const METADATA: &str = "apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// What a column of a kind's table means, if anything is known of it.
pub fn words(group: &str, kind: &str, column: &str) -> Option<Words> {
    let own = of_kind(group, kind).iter().find(|(name, _)| *name == column);
    own.map(|(_, words)| *words).or(match column {
        "Name" => Some(Words::Field(METADATA, "name")),
        "Age" | "Created At" => Some(Words::Field(METADATA, "creationTimestamp")),
        _ => None,
    })
}

fn of_kind(group: &str, kind: &str) -> &'static [(&'static str, Words)] {
    match (group, kind) {
        ("", "ConfigMap") => &[("Data", Words::Field("api.core.v1.ConfigMap", "data"))],
        ("", "Endpoints") => &[("Endpoints", Words::Field("api.core.v1.Endpoints", "subsets"))],
        ("", "Event") => &[
            ("Last Seen", Words::Field("api.core.v1.Event", "lastTimestamp")),
            ("Type", Words::Field("api.core.v1.Event", "type")),
            ("Reason", Words::Field("api.core.v1.Event", "reason")),
            ("Object", Words::Field("api.core.v1.Event", "involvedObject")),
            ("Subobject", Words::Field("api.core.v1.ObjectReference", "fieldPath")),
            ("Source", Words::Field("api.core.v1.Event", "source")),
            ("Message", Words::Field("api.core.v1.Event", "message")),
            ("First Seen", Words::Field("api.core.v1.Event", "firstTimestamp")),
            ("Count", Words::Field("api.core.v1.Event", "count")),
        ],
        ("", "Namespace") => &[("Status", Words::Own("The status of the namespace"))],
        ("", "Node") => &[
            ("Status", Words::Own("The status of the node")),
            ("Roles", Words::Own("The roles of the node")),
            ("Version", Words::Field("api.core.v1.NodeSystemInfo", "kubeletVersion")),
            ("Internal-IP", Words::Field("api.core.v1.NodeStatus", "addresses")),
            ("External-IP", Words::Field("api.core.v1.NodeStatus", "addresses")),
            ("OS-Image", Words::Field("api.core.v1.NodeSystemInfo", "osImage")),
            ("Kernel-Version", Words::Field("api.core.v1.NodeSystemInfo", "kernelVersion")),
            (
                "Container-Runtime",
                Words::Field("api.core.v1.NodeSystemInfo", "containerRuntimeVersion"),
            ),
        ],
        ("", "PersistentVolume") => &[
            ("Capacity", Words::Field("api.core.v1.PersistentVolumeSpec", "capacity")),
            ("Access Modes", Words::Field("api.core.v1.PersistentVolumeSpec", "accessModes")),
            (
                "Reclaim Policy",
                Words::Field("api.core.v1.PersistentVolumeSpec", "persistentVolumeReclaimPolicy"),
            ),
            ("Status", Words::Field("api.core.v1.PersistentVolumeStatus", "phase")),
            ("Claim", Words::Field("api.core.v1.PersistentVolumeSpec", "claimRef")),
            ("StorageClass", Words::Own("StorageClass of the pv")),
            ("VolumeAttributesClass", Words::Own("VolumeAttributesClass of the pv")),
            ("Reason", Words::Field("api.core.v1.PersistentVolumeStatus", "reason")),
            ("VolumeMode", Words::Field("api.core.v1.PersistentVolumeSpec", "volumeMode")),
        ],
        ("", "PersistentVolumeClaim") => &[
            ("Status", Words::Field("api.core.v1.PersistentVolumeClaimStatus", "phase")),
            ("Volume", Words::Field("api.core.v1.PersistentVolumeClaimSpec", "volumeName")),
            ("Capacity", Words::Field("api.core.v1.PersistentVolumeClaimStatus", "capacity")),
            (
                "Access Modes",
                Words::Field("api.core.v1.PersistentVolumeClaimStatus", "accessModes"),
            ),
            ("StorageClass", Words::Own("StorageClass of the pvc")),
            ("VolumeAttributesClass", Words::Own("VolumeAttributesClass of the pvc")),
            ("VolumeMode", Words::Field("api.core.v1.PersistentVolumeClaimSpec", "volumeMode")),
        ],
        ("", "Pod") => &[
            (
                "Ready",
                Words::Own("The aggregate readiness state of this pod for accepting traffic."),
            ),
            ("Status", Words::Own("The aggregate status of the containers in this pod.")),
            (
                "Restarts",
                Words::Own(
                    "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
                ),
            ),
            ("IP", Words::Field("api.core.v1.PodStatus", "podIP")),
            ("Node", Words::Field("api.core.v1.PodSpec", "nodeName")),
            ("Nominated Node", Words::Field("api.core.v1.PodStatus", "nominatedNodeName")),
            ("Readiness Gates", Words::Field("api.core.v1.PodSpec", "readinessGates")),
        ],
        ("", "PodTemplate") => &[
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
            ("Pod Labels", Words::Own("The labels for the pod template.")),
        ],
        ("", "ReplicationController") => &[
            ("Desired", Words::Field("api.core.v1.ReplicationControllerSpec", "replicas")),
            ("Current", Words::Field("api.core.v1.ReplicationControllerStatus", "replicas")),
            ("Ready", Words::Field("api.core.v1.ReplicationControllerStatus", "readyReplicas")),
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
            ("Selector", Words::Field("api.core.v1.ReplicationControllerSpec", "selector")),
        ],
        ("", "Secret") => &[
            ("Type", Words::Field("api.core.v1.Secret", "type")),
            ("Data", Words::Field("api.core.v1.Secret", "data")),
        ],
        ("", "Service") => &[
            ("Type", Words::Field("api.core.v1.ServiceSpec", "type")),
            ("Cluster-IP", Words::Field("api.core.v1.ServiceSpec", "clusterIP")),
            ("External-IP", Words::Field("api.core.v1.ServiceSpec", "externalIPs")),
            ("Port(s)", Words::Field("api.core.v1.ServiceSpec", "ports")),
            ("Selector", Words::Field("api.core.v1.ServiceSpec", "selector")),
        ],
        ("admissionregistration.k8s.io", "MutatingAdmissionPolicyBinding") => &[
            (
                "PolicyName",
                Words::Own(
                    "PolicyName indicates the policy definition which the policy binding binded to",
                ),
            ),
            (
                "ParamRef",
                Words::Own(
                    "ParamRef indicates the param resource which sets the configuration param",
                ),
            ),
        ],
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration") => &[(
            "Webhooks",
            Words::Own(
                "Webhooks indicates the number of webhooks registered in this configuration",
            ),
        )],
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding") => &[
            (
                "PolicyName",
                Words::Own(
                    "PolicyName indicates the policy definition which the policy binding binded to",
                ),
            ),
            (
                "ParamRef",
                Words::Own(
                    "ParamRef indicates the param resource which sets the configuration param",
                ),
            ),
        ],
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration") => &[(
            "Webhooks",
            Words::Own(
                "Webhooks indicates the number of webhooks registered in this configuration",
            ),
        )],
        ("apps", "ControllerRevision") => &[
            ("Controller", Words::Own("Controller of the object")),
            ("Revision", Words::Field("api.apps.v1.ControllerRevision", "revision")),
        ],
        ("apps", "DaemonSet") => &[
            ("Desired", Words::Field("api.apps.v1.DaemonSetStatus", "desiredNumberScheduled")),
            ("Current", Words::Field("api.apps.v1.DaemonSetStatus", "currentNumberScheduled")),
            ("Ready", Words::Field("api.apps.v1.DaemonSetStatus", "numberReady")),
            ("Up-to-date", Words::Field("api.apps.v1.DaemonSetStatus", "updatedNumberScheduled")),
            ("Available", Words::Field("api.apps.v1.DaemonSetStatus", "numberAvailable")),
            ("Node Selector", Words::Field("api.core.v1.PodSpec", "nodeSelector")),
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
            ("Selector", Words::Field("api.apps.v1.DaemonSetSpec", "selector")),
        ],
        ("apps", "Deployment") => &[
            ("Ready", Words::Own("Number of the pod with ready state")),
            ("Up-to-date", Words::Field("api.apps.v1.DeploymentStatus", "updatedReplicas")),
            ("Available", Words::Field("api.apps.v1.DeploymentStatus", "availableReplicas")),
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
            ("Selector", Words::Field("api.apps.v1.DeploymentSpec", "selector")),
        ],
        ("apps", "ReplicaSet") => &[
            ("Desired", Words::Field("api.apps.v1.ReplicaSetSpec", "replicas")),
            ("Current", Words::Field("api.apps.v1.ReplicaSetStatus", "replicas")),
            ("Ready", Words::Field("api.apps.v1.ReplicaSetStatus", "readyReplicas")),
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
            ("Selector", Words::Field("api.apps.v1.ReplicaSetSpec", "selector")),
        ],
        ("apps", "StatefulSet") => &[
            ("Ready", Words::Own("Number of the pod with ready state")),
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
        ],
        ("autoscaling", "HorizontalPodAutoscaler") => &[
            (
                "Reference",
                Words::Field("api.autoscaling.v2.HorizontalPodAutoscalerSpec", "scaleTargetRef"),
            ),
            ("Targets", Words::Field("api.autoscaling.v2.HorizontalPodAutoscalerSpec", "metrics")),
            (
                "MinPods",
                Words::Field("api.autoscaling.v1.HorizontalPodAutoscalerSpec", "minReplicas"),
            ),
            (
                "MaxPods",
                Words::Field("api.autoscaling.v2.HorizontalPodAutoscalerSpec", "maxReplicas"),
            ),
            (
                "Replicas",
                Words::Field("api.autoscaling.v2.HorizontalPodAutoscalerStatus", "currentReplicas"),
            ),
        ],
        ("autoscaling", "Scale") => &[
            ("Desired", Words::Field("api.autoscaling.v1.ScaleSpec", "replicas")),
            ("Available", Words::Field("api.autoscaling.v1.ScaleStatus", "replicas")),
        ],
        ("batch", "CronJob") => &[
            ("Schedule", Words::Field("api.batch.v1.CronJobSpec", "schedule")),
            ("Timezone", Words::Field("api.batch.v1.CronJobSpec", "timeZone")),
            ("Suspend", Words::Field("api.batch.v1.CronJobSpec", "suspend")),
            ("Active", Words::Field("api.batch.v1.CronJobStatus", "active")),
            ("Last Schedule", Words::Field("api.batch.v1.CronJobStatus", "lastScheduleTime")),
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
            ("Selector", Words::Field("api.batch.v1.JobSpec", "selector")),
        ],
        ("batch", "Job") => &[
            ("Status", Words::Own("Status of the job.")),
            ("Completions", Words::Field("api.batch.v1.JobStatus", "succeeded")),
            ("Duration", Words::Own("Time required to complete the job.")),
            ("Containers", Words::Own("Names of each container in the template.")),
            ("Images", Words::Own("Images referenced by each container in the template.")),
            ("Selector", Words::Field("api.batch.v1.JobSpec", "selector")),
        ],
        ("certificates.k8s.io", "CertificateSigningRequest") => &[
            (
                "SignerName",
                Words::Own(
                    "Requested signer for the request. It is a qualified name in the form: `scope-hostname.io/name`. If empty, it will be defaulted:\n 1. If it's a kubelet client certificate, it is assigned\n    \"kubernetes.io/kube-apiserver-client-kubelet\".\n 2. If it's a kubelet serving certificate, it is assigned\n    \"kubernetes.io/kubelet-serving\".\n 3. Otherwise, it is assigned \"kubernetes.io/legacy-unknown\".\nDistribution of trust for signers happens out of band. You can select on this field using `spec.signerName`.",
                ),
            ),
            ("Requestor", Words::Own("Base64-encoded PKCS#10 CSR data")),
            (
                "RequestedDuration",
                Words::Field(
                    "api.certificates.v1.CertificateSigningRequestSpec",
                    "expirationSeconds",
                ),
            ),
            (
                "Condition",
                Words::Own("Conditions applied to the request, such as approval or denial."),
            ),
        ],
        ("certificates.k8s.io", "ClusterTrustBundle") => &[(
            "SignerName",
            Words::Field("api.certificates.v1beta1.ClusterTrustBundleSpec", "signerName"),
        )],
        ("certificates.k8s.io", "PodCertificateRequest") => {
            const {
                const SPEC: &str = "api.certificates.v1beta1.PodCertificateRequestSpec";
                &[
                    ("PodName", Words::Field(SPEC, "podName")),
                    ("ServiceAccountName", Words::Field(SPEC, "serviceAccountName")),
                    ("NodeName", Words::Field(SPEC, "nodeName")),
                    ("SignerName", Words::Field(SPEC, "signerName")),
                    ("State", Words::Own("Is the request Pending, Issued, Denied, or Failed?")),
                ]
            }
        }
        ("coordination.k8s.io", "Lease") => {
            &[("Holder", Words::Field("api.coordination.v1.LeaseSpec", "holderIdentity"))]
        }
        ("discovery.k8s.io", "EndpointSlice") => &[
            ("AddressType", Words::Field("api.discovery.v1.EndpointSlice", "addressType")),
            ("Ports", Words::Field("api.discovery.v1.EndpointSlice", "ports")),
            ("Endpoints", Words::Field("api.discovery.v1.EndpointSlice", "endpoints")),
        ],
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => &[
            ("Type", Words::Field("api.flowcontrol.v1.PriorityLevelConfigurationSpec", "type")),
            (
                "NominalConcurrencyShares",
                Words::Field(
                    "api.flowcontrol.v1.LimitedPriorityLevelConfiguration",
                    "nominalConcurrencyShares",
                ),
            ),
            ("Queues", Words::Field("api.flowcontrol.v1.QueuingConfiguration", "queues")),
            ("HandSize", Words::Field("api.flowcontrol.v1.QueuingConfiguration", "handSize")),
            (
                "QueueLengthLimit",
                Words::Field("api.flowcontrol.v1.QueuingConfiguration", "queueLengthLimit"),
            ),
        ],
        ("networking.k8s.io", "IPAddress") => {
            &[("ParentRef", Words::Field("api.networking.v1.IPAddressSpec", "parentRef"))]
        }
        ("networking.k8s.io", "Ingress") => &[
            (
                "Class",
                Words::Own(
                    "The name of the IngressClass resource that should be used for additional configuration",
                ),
            ),
            (
                "Hosts",
                Words::Own(
                    "Hosts that incoming requests are matched against before the ingress rule",
                ),
            ),
            (
                "Address",
                Words::Own("Address is a list containing ingress points for the load-balancer"),
            ),
            ("Ports", Words::Own("Ports of TLS configurations that open")),
        ],
        ("networking.k8s.io", "IngressClass") => &[
            ("Controller", Words::Field("api.networking.v1.IngressClassSpec", "controller")),
            ("Parameters", Words::Field("api.networking.v1.IngressClassSpec", "parameters")),
        ],
        ("networking.k8s.io", "NetworkPolicy") => {
            &[("Pod-Selector", Words::Field("api.networking.v1.NetworkPolicySpec", "podSelector"))]
        }
        ("networking.k8s.io", "ServiceCIDR") => {
            &[("CIDRs", Words::Field("api.networking.v1.ServiceCIDRSpec", "cidrs"))]
        }
        ("node.k8s.io", "RuntimeClass") => &[("Handler", Words::Own(""))],
        ("policy", "PodDisruptionBudget") => &[
            ("Min Available", Words::Own("The minimum number of pods that must be available.")),
            ("Max Unavailable", Words::Own("The maximum number of pods that may be unavailable.")),
            (
                "Allowed Disruptions",
                Words::Own("Calculated number of pods that may be disrupted at this time."),
            ),
        ],
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => &[
            (
                "Role",
                Words::Own(
                    "RoleRef can only reference a ClusterRole in the global namespace. If the RoleRef cannot be resolved, the Authorizer must return an error.",
                ),
            ),
            ("Users", Words::Own("Users in the clusterRoleBinding")),
            ("Groups", Words::Own("Groups in the clusterRoleBinding")),
            ("ServiceAccounts", Words::Own("ServiceAccounts in the clusterRoleBinding")),
        ],
        ("rbac.authorization.k8s.io", "RoleBinding") => &[
            ("Role", Words::Field("api.rbac.v1.RoleBinding", "roleRef")),
            ("Users", Words::Own("Users in the roleBinding")),
            ("Groups", Words::Own("Groups in the roleBinding")),
            ("ServiceAccounts", Words::Own("ServiceAccounts in the roleBinding")),
        ],
        ("resource.k8s.io", "ResourceSlice") => &[
            ("Node", Words::Field("api.resource.v1.ResourceSliceSpec", "nodeName")),
            ("Driver", Words::Field("api.resource.v1.ResourceSliceSpec", "driver")),
            ("Pool", Words::Field("api.resource.v1.ResourcePool", "name")),
        ],
        ("scheduling.k8s.io", "PriorityClass") => &[
            ("Value", Words::Field("api.scheduling.v1.PriorityClass", "value")),
            ("Global-Default", Words::Field("api.scheduling.v1.PriorityClass", "globalDefault")),
            (
                "PreemptionPolicy",
                Words::Field("api.scheduling.v1.PriorityClass", "preemptionPolicy"),
            ),
        ],
        ("storage.k8s.io", "CSIDriver") => &[
            ("AttachRequired", Words::Field("api.storage.v1.CSIDriverSpec", "attachRequired")),
            ("PodInfoOnMount", Words::Field("api.storage.v1.CSIDriverSpec", "podInfoOnMount")),
            ("StorageCapacity", Words::Field("api.storage.v1.CSIDriverSpec", "storageCapacity")),
            ("TokenRequests", Words::Field("api.storage.v1.CSIDriverSpec", "tokenRequests")),
            (
                "RequiresRepublish",
                Words::Field("api.storage.v1.CSIDriverSpec", "requiresRepublish"),
            ),
            ("Modes", Words::Field("api.storage.v1.CSIDriverSpec", "volumeLifecycleModes")),
        ],
        ("storage.k8s.io", "CSINode") => {
            &[("Drivers", Words::Field("api.storage.v1.CSINodeSpec", "drivers"))]
        }
        ("storage.k8s.io", "StorageClass") => &[
            ("Provisioner", Words::Field("api.storage.v1.StorageClass", "provisioner")),
            ("ReclaimPolicy", Words::Field("api.storage.v1.StorageClass", "reclaimPolicy")),
            ("VolumeBindingMode", Words::Field("api.storage.v1.StorageClass", "volumeBindingMode")),
            (
                "AllowVolumeExpansion",
                Words::Field("api.storage.v1.StorageClass", "allowVolumeExpansion"),
            ),
        ],
        ("storage.k8s.io", "VolumeAttachment") => &[
            ("Attacher", Words::Field("api.storage.v1.VolumeAttachmentSpec", "attacher")),
            ("PV", Words::Field("api.storage.v1.VolumeAttachmentSource", "persistentVolumeName")),
            ("Node", Words::Field("api.storage.v1.VolumeAttachmentSpec", "nodeName")),
            ("Attached", Words::Field("api.storage.v1.VolumeAttachmentStatus", "attached")),
        ],
        ("storage.k8s.io", "VolumeAttributesClass") => {
            &[("DriverName", Words::Field("api.storage.v1.VolumeAttributesClass", "driverName"))]
        }
        _ => &[],
    }
}
