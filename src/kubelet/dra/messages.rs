//! What kubelet and drivers of dynamic resources say to each other: `dra/v1/api.proto`, whose
//! messages are those of v1beta1 as well.

use std::collections::HashMap;

use prost::Message;

/// Services that a driver may register with, and where each is called; the best first.
pub const SERVICES: [(&str, &str); 2] = [
    ("v1.DRAPlugin", "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"),
    ("v1beta1.DRAPlugin", "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin"),
];
pub const PREPARE: &str = "NodePrepareResources";
pub const UNPREPARE: &str = "NodeUnprepareResources";

#[derive(Clone, PartialEq, Message)]
pub struct Claims {
    #[prost(message, repeated, tag = "1")]
    pub claims: Vec<Claim>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Claim {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub name: String,
}

/// By the claims' uids.
#[derive(Clone, PartialEq, Message)]
pub struct PrepareResponse {
    #[prost(map = "string, message", tag = "1")]
    pub claims: HashMap<String, Prepared>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Prepared {
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
    #[prost(string, tag = "2")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Device {
    /// Of the claim; none is all of them.
    #[prost(string, repeated, tag = "1")]
    pub request_names: Vec<String>,
    #[prost(string, tag = "2")]
    pub pool_name: String,
    #[prost(string, tag = "3")]
    pub device_name: String,
    #[prost(string, repeated, tag = "4")]
    pub cdi_device_ids: Vec<String>,
    #[prost(string, optional, tag = "5")]
    pub share_id: Option<String>,
}

/// By the claims' uids.
#[derive(Clone, PartialEq, Message)]
pub struct UnprepareResponse {
    #[prost(map = "string, message", tag = "1")]
    pub claims: HashMap<String, Unprepared>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Unprepared {
    #[prost(string, tag = "1")]
    pub error: String,
}

/// How devices are, without an end: `dra-health/v1alpha1/api.proto`.
pub const WATCH_HEALTH: &str = "/v1alpha1.DRAResourceHealth/NodeWatchResources";
/// The words for a device's `health`.
pub const HEALTH_STATUS: [&str; 3] = ["Unknown", "Healthy", "Unhealthy"];

#[derive(Clone, PartialEq, Message)]
pub struct HealthRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct HealthList {
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<DeviceHealth>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DeviceHealth {
    #[prost(message, optional, tag = "1")]
    pub device: Option<DeviceIdentifier>,
    /// An index of [`HEALTH_STATUS`].
    #[prost(int32, tag = "2")]
    pub health: i32,
    /// Seconds since the Unix epoch.
    #[prost(int64, tag = "3")]
    pub last_updated_time: i64,
    /// How long it holds; 0 is the kubelet's to say.
    #[prost(int64, tag = "4")]
    pub timeout_seconds: i64,
    #[prost(string, tag = "5")]
    pub message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct DeviceIdentifier {
    #[prost(string, tag = "1")]
    pub pool_name: String,
    #[prost(string, tag = "2")]
    pub device_name: String,
}
