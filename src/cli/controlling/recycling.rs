//! Flags of the recycling of volumes, by kube-controller-manager's names.

use std::path::PathBuf;

use clap::Args;
use controllers::Recycling;
use k8s_openapi::api::core::v1::Pod;

use super::{read, usage};
use crate::Result;

/// How volumes with the reclaim policy Recycle are emptied.
#[derive(Debug, Default, Args)]
pub struct RecyclingFlags {
    /// Pod that empties an NFS volume, as YAML or JSON (default: one of Debian that runs find)
    #[arg(long, value_name = "FILE")]
    pub pv_recycler_pod_template_filepath_nfs: Option<PathBuf>,
    /// How many seconds it may take at least (default: 300)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_minimum_timeout_nfs: Option<u32>,
    /// And for each GiB of the volume (default: 30)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_increment_timeout_nfs: Option<u32>,
    /// Pod that empties a host path, as YAML or JSON (default: one of Debian that runs find)
    #[arg(long, value_name = "FILE")]
    pub pv_recycler_pod_template_filepath_hostpath: Option<PathBuf>,
    /// How many seconds it may take at least (default: 60)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_minimum_timeout_hostpath: Option<u32>,
    /// And for each GiB of the volume (default: 30)
    #[arg(long, value_name = "SECONDS")]
    pub pv_recycler_timeout_increment_hostpath: Option<u32>,
}

impl RecyclingFlags {
    pub fn apply(&self, recycling: &mut Recycling) -> Result<()> {
        for (recycler, template, least, each) in [
            (
                &mut recycling.nfs,
                &self.pv_recycler_pod_template_filepath_nfs,
                self.pv_recycler_minimum_timeout_nfs,
                self.pv_recycler_increment_timeout_nfs,
            ),
            (
                &mut recycling.host_path,
                &self.pv_recycler_pod_template_filepath_hostpath,
                self.pv_recycler_minimum_timeout_hostpath,
                self.pv_recycler_timeout_increment_hostpath,
            ),
        ] {
            recycler.seconds_min = least.map_or(recycler.seconds_min, i64::from);
            recycler.seconds_per_gib = each.map_or(recycler.seconds_per_gib, i64::from);
            let Some(path) = template else { continue };
            let pod: Pod = codec::yaml::read::typed(&read(path)?)
                .map_err(|err| usage(format!("{} is no pod: {err}", path.display())))?;
            if pod.spec.as_ref().is_none_or(|it| it.volumes.iter().flatten().next().is_none()) {
                let path = path.display();
                return Err(usage(format!("pod of {path} does not contain any volume(s)")));
            }
            recycler.template = pod;
        }
        Ok(())
    }
}
