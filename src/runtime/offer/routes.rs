//! Which method does what.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use rpc::{Answers, Code, Routes, Status};

use super::streams::Wanted;
use super::{Answer, MESSAGE_BYTES_MAX, Offer, metrics, required, told};
use crate::cri::{self, ContainerState, ErrorKind, SandboxState};
use crate::streaming::Wants;
use crate::translate::{containers, images};
use crate::wire::containers::*;
use crate::wire::images::*;
use crate::wire::node::*;
use crate::wire::sandboxes::*;
use crate::wire::stats::*;
use crate::wire::{CgroupDriver, Empty, IMAGES, RUNTIME};

/// Items of one message of a streamed list.
const ITEMS_MAX: usize = 100;

/// One more method.
trait Route {
    fn on<Q, A, F, R>(self, offer: &Offer, name: &str, handler: F) -> Self
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + 'static,
        F: Fn(Arc<Offer>, Q) -> R + Send + Sync + 'static,
        R: Future<Output = Answer<A>> + Send + 'static;
}

impl Route for Routes {
    fn on<Q, A, F, R>(self, offer: &Offer, name: &str, handler: F) -> Self
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + 'static,
        F: Fn(Arc<Offer>, Q) -> R + Send + Sync + 'static,
        R: Future<Output = Answer<A>> + Send + 'static,
    {
        let offer = Arc::new(offer.clone());
        self.unary(name, move |request, _| handler(offer.clone(), request))
    }
}

fn runtime(name: &str) -> String {
    format!("{RUNTIME}{name}")
}

fn image(name: &str) -> String {
    format!("{IMAGES}{name}")
}

pub fn all(offer: Offer) -> Routes {
    let routes = Routes::default().with_message_bytes_max(MESSAGE_BYTES_MAX);
    let routes = of_sandboxes(of_the_runtime(routes, &offer), &offer);
    let routes = of_streams(of_containers(routes, &offer), &offer);
    let routes = of_images(of_stats(routes, &offer), &offer);
    in_pieces(routes, &offer)
}

fn of_the_runtime(routes: Routes, it: &Offer) -> Routes {
    let events = it.clone();
    routes
        .on(it, &runtime("Version"), |it, _: VersionRequest| async move { Ok(it.version()) })
        .on(it, &runtime("Status"), |it, asked| async move { it.status(asked).await })
        // The pods' addresses are the cluster's to give; there is nothing else to set.
        .on(it, &runtime("UpdateRuntimeConfig"), |_, _: UpdateRuntimeConfigRequest| async {
            Ok(Empty {})
        })
        .on(it, &runtime("RuntimeConfig"), |_, _: Empty| async {
            let linux = LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs.into() };
            Ok(RuntimeConfigResponse { linux: Some(linux) })
        })
        .on(it, &runtime("CheckpointContainer"), |_, _: Empty| async {
            Err::<Empty, _>(Status::new(Code::Unimplemented, crate::cri::NO_CHECKPOINTS))
        })
        .streaming(&runtime("GetContainerEvents"), move |_: Empty, _| {
            let answers = events.clone().events();
            async move { Ok(answers) }
        })
}

fn of_sandboxes(routes: Routes, it: &Offer) -> Routes {
    routes
        .on(it, &runtime("RunPodSandbox"), |it, asked| async move { it.run_sandbox(asked).await })
        .on(it, &runtime("StopPodSandbox"), |it, asked: PodSandboxId| async move {
            let Some(id) = gone_is_none(it.sandbox(&asked.pod_sandbox_id).await)? else {
                return Ok(Empty {});
            };
            told(it.runtime.stop_pod_sandbox(&id.id).await).map(|()| Empty {})
        })
        .on(it, &runtime("RemovePodSandbox"), |it, asked: PodSandboxId| async move {
            let Some(id) = gone_is_none(it.sandbox(&asked.pod_sandbox_id).await)? else {
                return Ok(Empty {});
            };
            told(it.runtime.remove_pod_sandbox(&id.id).await).map(|()| Empty {})
        })
        .on(
            it,
            &runtime("PodSandboxStatus"),
            |it, asked| async move { it.sandbox_status(asked).await },
        )
        .on(it, &runtime("ListPodSandbox"), |it, asked: ListPodSandboxRequest| async move {
            Ok(ListPodSandboxResponse { items: it.sandboxes(asked.filter).await? })
        })
        // The pod's group is its kubelet's, which has changed it already.
        .on(
            it,
            &runtime("UpdatePodSandboxResources"),
            |it, asked: UpdatePodSandboxResourcesRequest| async move {
                it.sandbox(&asked.pod_sandbox_id).await.map(|_| Empty {})
            },
        )
}

/// What is not there need not be taken away.
fn gone_is_none<T>(found: Answer<T>) -> Answer<Option<T>> {
    match found {
        Err(status) if status.code == Code::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn of_containers(routes: Routes, it: &Offer) -> Routes {
    routes
        .on(
            it,
            &runtime("CreateContainer"),
            |it, asked| async move { it.create_container(asked).await },
        )
        .on(it, &runtime("StartContainer"), |it, asked: ContainerId| async move {
            let id = it.container(&asked.container_id).await?.id;
            told(it.runtime.start_container(&id).await).map(|()| Empty {})
        })
        .on(it, &runtime("StopContainer"), |it, asked: StopContainerRequest| async move {
            let Some(found) = gone_is_none(it.container(&asked.container_id).await)? else {
                return Ok(Empty {});
            };
            let seconds = u64::try_from(asked.timeout).unwrap_or(0);
            told(it.runtime.stop_container(&found.id, seconds).await).map(|()| Empty {})
        })
        .on(it, &runtime("RemoveContainer"), |it, asked: ContainerId| async move {
            let Some(found) = gone_is_none(it.container(&asked.container_id).await)? else {
                return Ok(Empty {});
            };
            told(it.runtime.remove_container(&found.id).await).map(|()| Empty {})
        })
        .on(it, &runtime("ListContainers"), |it, asked: ListContainersRequest| async move {
            Ok(ListContainersResponse { containers: it.containers(asked.filter).await? })
        })
        .on(
            it,
            &runtime("ContainerStatus"),
            |it, asked| async move { it.container_status(asked).await },
        )
        .on(
            it,
            &runtime("UpdateContainerResources"),
            |it, asked: UpdateContainerResourcesRequest| async move {
                let id = it.container(&asked.container_id).await?.id;
                let wanted = containers::resources_from(required(asked.linux, "linux")?)?;
                told(it.runtime.update_container_resources(&id, wanted).await).map(|()| Empty {})
            },
        )
        .on(it, &runtime("ReopenContainerLog"), |it, asked: ContainerId| async move {
            let id = it.running(&asked.container_id).await?;
            told(it.runtime.reopen_container_log(&id).await).map(|()| Empty {})
        })
        .on(it, &runtime("ExecSync"), |it, asked| async move { it.exec_sync(asked).await })
}

impl Offer {
    async fn running(&self, id: &str) -> Answer<String> {
        let found = self.container(id).await?;
        if found.state != ContainerState::Running {
            let said = format!("container \"{}\" is not running", found.id);
            return Err(Status::new(Code::FailedPrecondition, said));
        }
        Ok(found.id)
    }
}

fn of_streams(routes: Routes, it: &Offer) -> Routes {
    routes
        .on(it, &runtime("Exec"), |it, asked: ExecRequest| async move {
            let (stdin, stdout, stderr, tty) = (asked.stdin, asked.stdout, asked.stderr, asked.tty);
            let wants = checked(Wants { stdin, stdout, stderr, tty })?;
            if asked.cmd.is_empty() {
                return Err(Status::new(Code::InvalidArgument, "cmd is required"));
            }
            let container_id = it.running(&asked.container_id).await?;
            let wanted = Wanted::Exec { container_id, command: asked.cmd, wants };
            Ok(StreamUrl { url: it.streams.url(wanted).await? })
        })
        .on(it, &runtime("Attach"), |it, asked: AttachRequest| async move {
            let (stdin, stdout, stderr, tty) = (asked.stdin, asked.stdout, asked.stderr, asked.tty);
            let wants = checked(Wants { stdin, stdout, stderr, tty })?;
            let container_id = it.running(&asked.container_id).await?;
            Ok(StreamUrl { url: it.streams.url(Wanted::Attach { container_id, wants }).await? })
        })
        .on(it, &runtime("PortForward"), |it, asked: PortForwardRequest| async move {
            let sandbox = it.sandbox(&asked.pod_sandbox_id).await?;
            if sandbox.state != SandboxState::Ready {
                let said = format!("sandbox \"{}\" is not running", sandbox.id);
                return Err(Status::new(Code::FailedPrecondition, said));
            }
            let ports = asked.port.iter().map(|port| {
                u16::try_from(*port).ok().filter(|port| *port > 0).ok_or_else(|| {
                    Status::new(Code::InvalidArgument, format!("invalid port {port}"))
                })
            });
            let wanted = Wanted::Forward {
                ports: ports.collect::<Answer<_>>()?,
                pod_uid: sandbox.metadata.uid,
                sandbox_id: sandbox.id,
            };
            Ok(StreamUrl { url: it.streams.url(wanted).await? })
        })
}

fn checked(wants: Wants) -> Answer<Wants> {
    let refused = |why: &str| Err(Status::new(Code::InvalidArgument, why));
    if !(wants.stdin || wants.stdout || wants.stderr) {
        return refused("one of stdin, stdout, or stderr must be set");
    }
    if wants.tty && wants.stderr {
        return refused("tty and stderr cannot both be true");
    }
    Ok(wants)
}

fn of_stats(routes: Routes, it: &Offer) -> Routes {
    routes
        .on(it, &runtime("ContainerStats"), |it, asked: ContainerId| async move {
            let id = it.container(&asked.container_id).await?.id;
            let filter = ContainerStatsFilter { id: id.clone(), ..Default::default() };
            let found = it.container_stats(Some(filter)).await?.into_iter().next();
            let stats = found.ok_or_else(|| {
                Status::new(Code::NotFound, format!("container \"{id}\" is not running"))
            })?;
            Ok(ContainerStatsResponse { stats: Some(stats) })
        })
        .on(it, &runtime("ListContainerStats"), |it, asked: ListContainerStatsRequest| async move {
            Ok(ListContainerStatsResponse { stats: it.container_stats(asked.filter).await? })
        })
        .on(it, &runtime("PodSandboxStats"), |it, asked: PodSandboxId| async move {
            let sandbox = it.sandbox(&asked.pod_sandbox_id).await?;
            let all = it.all_stats(Some(&sandbox.metadata.uid)).await?;
            let is_it = |stats: &PodSandboxStats| {
                stats.attributes.as_ref().is_some_and(|about| about.id == sandbox.id)
            };
            let stats = all.into_iter().find(is_it).ok_or_else(|| {
                Status::new(Code::NotFound, format!("sandbox \"{}\" is not running", sandbox.id))
            })?;
            Ok(PodSandboxStatsResponse { stats: Some(stats) })
        })
        .on(
            it,
            &runtime("ListPodSandboxStats"),
            |it, asked: ListPodSandboxStatsRequest| async move {
                Ok(ListPodSandboxStatsResponse { stats: it.sandbox_stats(asked.filter).await? })
            },
        )
        .on(it, &runtime("ListMetricDescriptors"), |_, _: Empty| async {
            Ok(ListMetricDescriptorsResponse { descriptors: metrics::descriptors() })
        })
        .on(it, &runtime("ListPodSandboxMetrics"), |it, _: Empty| async move {
            Ok(ListPodSandboxMetricsResponse { pod_metrics: it.metrics().await? })
        })
}

fn of_images(routes: Routes, it: &Offer) -> Routes {
    routes
        .on(it, &image("ListImages"), |it, asked: ListImagesRequest| async move {
            Ok(ListImagesResponse { images: it.images(asked.filter).await? })
        })
        .on(it, &image("ImageStatus"), |it, asked: ImageStatusRequest| async move {
            let name = named(asked.image)?;
            let found = told(it.images.image_status(&name).await)?;
            Ok(ImageStatusResponse {
                image: found.as_ref().map(images::image_to),
                info: Default::default(),
            })
        })
        .on(it, &image("PullImage"), |it, asked: PullImageRequest| async move {
            let name = named(asked.image)?;
            let auth: Vec<_> = asked.auth.into_iter().map(images::auth_from).collect();
            let image_ref = told(it.images.pull_image(&name, &auth).await)?;
            Ok(PullImageResponse { image_ref })
        })
        .on(it, &image("RemoveImage"), |it, asked: ImageRequest| async move {
            match it.images.remove_image(&named(asked.image)?).await {
                Err(error) if is_gone(&error) => Ok(Empty {}),
                removed => told(removed).map(|()| Empty {}),
            }
        })
        .on(it, &image("ImageFsInfo"), |it, _: Empty| async move { it.image_fs().await })
}

fn is_gone(error: &cri::Error) -> bool {
    matches!(error.kind, ErrorKind::NotFound | ErrorKind::ImageNotPresent)
}

fn named(image: Option<ImageSpec>) -> Answer<String> {
    match image.map(|it| it.image).filter(|name| !name.is_empty()) {
        Some(name) => Ok(name),
        None => Err(Status::new(Code::InvalidArgument, "image is required")),
    }
}

/// The lists again, in messages that stay small.
fn in_pieces(routes: Routes, it: &Offer) -> Routes {
    let (sandboxes, inside, numbers) = (it.clone(), it.clone(), it.clone());
    let (of_pods, metrics, images) = (it.clone(), it.clone(), it.clone());
    routes
        .streaming(&runtime("StreamPodSandboxes"), move |asked: ListPodSandboxRequest, _| {
            let it = sandboxes.clone();
            async move {
                let all = it.sandboxes(asked.filter).await?;
                Ok(pieces(all, |items| ListPodSandboxResponse { items }))
            }
        })
        .streaming(&runtime("StreamContainers"), move |asked: ListContainersRequest, _| {
            let it = inside.clone();
            async move {
                let all = it.containers(asked.filter).await?;
                Ok(pieces(all, |containers| ListContainersResponse { containers }))
            }
        })
        .streaming(&runtime("StreamContainerStats"), move |asked: ListContainerStatsRequest, _| {
            let it = numbers.clone();
            async move {
                let all = it.container_stats(asked.filter).await?;
                Ok(pieces(all, |stats| ListContainerStatsResponse { stats }))
            }
        })
        .streaming(
            &runtime("StreamPodSandboxStats"),
            move |asked: ListPodSandboxStatsRequest, _| {
                let it = of_pods.clone();
                async move {
                    let all = it.sandbox_stats(asked.filter).await?;
                    Ok(pieces(all, |stats| ListPodSandboxStatsResponse { stats }))
                }
            },
        )
        .streaming(&runtime("StreamPodSandboxMetrics"), move |_: Empty, _| {
            let it = metrics.clone();
            async move {
                let all = it.metrics().await?;
                Ok(pieces(all, |pod_metrics| ListPodSandboxMetricsResponse { pod_metrics }))
            }
        })
        .streaming(&image("StreamImages"), move |asked: ListImagesRequest, _| {
            let it = images.clone();
            async move {
                let all = it.images(asked.filter).await?;
                Ok(pieces(all, |images| ListImagesResponse { images }))
            }
        })
}

fn pieces<T: Send + 'static, A: Send + 'static>(
    mut all: Vec<T>,
    message: impl Fn(Vec<T>) -> A + Send + 'static,
) -> Answers<A> {
    let next = move || {
        if all.is_empty() {
            return None;
        }
        let rest = all.split_off(all.len().min(ITEMS_MAX));
        Some(Ok(message(std::mem::replace(&mut all, rest))))
    };
    stream::iter(std::iter::from_fn(next)).boxed()
}
