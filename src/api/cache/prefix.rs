//! Under which keys objects lie that several plugins and authorizers look for.

pub const CLAIMS: &str = "/registry/persistentvolumeclaims/";
pub const NAMESPACES: &str = "/registry/namespaces/";
pub const NODES: &str = "/registry/minions/";
pub const PODS: &str = "/registry/pods/";
pub const SECRETS: &str = "/registry/secrets/";
pub const SERVICES: &str = "/registry/services/specs/";
pub const VOLUMES: &str = "/registry/persistentvolumes/";
