//! What a server knows of itself when it is asked: stored objects, watchers, requests under
//! way, its build and its features.

use std::fmt::Error;
use std::sync::Weak;

use base::metrics::build;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::inflight;
use crate::features;
use crate::serve::{Server, Shared};

/// Of a revision the last 15 digits are shown, which a floating-point number holds.
const REVISION_SHOWN: u64 = 1_000_000_000_000_000;

struct State(Weak<Server>);

impl std::fmt::Debug for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("State")
    }
}

/// Lets the process' metrics tell of `server`, as long as it is there.
pub fn watch(server: &Shared) {
    base::metrics::register_collector(Box::new(State(std::sync::Arc::downgrade(server))));
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    values: impl Iterator<Item = (Labels<'a>, i64)>,
) -> Result<(), Error> {
    let first = ConstGauge::new(0i64);
    let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Of the watch cache: what happened to each resource since it is cached.
fn watch_cache(
    encoder: &mut DescriptorEncoder<'_>,
    stored: &[(String, String, String, crate::cache::Weight)],
) -> Result<(), Error> {
    type Of = fn(&crate::cache::Counts) -> u64;
    let families: [(&str, &str, Of); 5] = [
        ("apiserver_watch_cache_initializations", "How often the watch cache was filled", |_| 1),
        (
            "apiserver_watch_cache_events_received",
            "Changes that reached the watch cache",
            |counts| counts.changes,
        ),
        (
            "apiserver_watch_cache_events_dispatched",
            "Changes that the watch cache handed on",
            |counts| counts.changes,
        ),
        (
            "apiserver_init_events",
            "Events of before their beginning that watches were given",
            |counts| counts.initial,
        ),
        (
            "apiserver_terminated_watchers",
            "Watchers that did not keep up and were ended",
            |counts| counts.ended,
        ),
    ];
    for (name, help, of) in families {
        let first = ConstCounter::new(0u64);
        let mut family = encoder.encode_descriptor(name, help, None, first.metric_type())?;
        for (group, resource, _, weight) in stored {
            let labels = [("group", group.as_str()), ("resource", resource.as_str())];
            ConstCounter::new(of(&weight.counts)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Some(server) = self.0.upgrade() else { return Ok(()) };
        let encoder = &mut encoder;
        let catalog = server.registry.catalog();
        let stored: Vec<(String, String, String, crate::cache::Weight)> = catalog
            .resources()
            .filter_map(|resource| {
                let weight = server.registry.cache.weigh(resource.prefix.as_ref()?);
                let (group, plural) = (resource.group.clone(), resource.plural.clone());
                Some((group, plural, resource.qualified(), weight))
            })
            .collect();
        gauges(
            encoder,
            ("apiserver_storage_objects", "Stored objects by resource"),
            stored.iter().map(|(_, _, name, weight)| {
                (vec![("resource", name.as_str())], count(weight.objects))
            }),
        )?;
        let by_resource = |of: fn(&crate::cache::Weight) -> usize| {
            stored.iter().map(move |(group, resource, _, weight)| {
                let labels = vec![("group", group.as_str()), ("resource", resource.as_str())];
                (labels, count(of(weight)))
            })
        };
        gauges(
            encoder,
            ("apiserver_resource_objects", "Stored objects by group and resource"),
            by_resource(|weight| weight.objects),
        )?;
        gauges(
            encoder,
            ("watch_cache_capacity", "Changes that the watch cache can remember"),
            by_resource(|_| crate::cache::RING_EVENTS_MAX),
        )?;
        gauges(
            encoder,
            ("apiserver_watch_cache_resource_version", "What the watch cache has seen"),
            by_resource(|_| 0).map(|(labels, _)| {
                (labels, (server.registry.cache.revision() % REVISION_SHOWN) as i64)
            }),
        )?;
        gauges(
            encoder,
            ("apiserver_resource_size_estimate_bytes", "Size of stored objects by resource"),
            by_resource(|weight| weight.bytes),
        )?;
        watch_cache(encoder, &stored)?;
        gauges(
            encoder,
            ("apiserver_registered_watchers", "Watchers by group and resource"),
            by_resource(|weight| weight.watchers),
        )?;
        gauges(
            encoder,
            (
                "apiserver_current_inflight_requests",
                "Most requests under way at once in the last second",
            ),
            inflight::read().into_iter().map(|(kind, most)| {
                (vec![("request_kind", kind)], i64::try_from(most).unwrap_or(i64::MAX))
            }),
        )?;
        let features = features::known()
            .map(|(name, stage, on)| (name, stage, server.flags.features.shown(name, on)));
        build::encode(encoder, &server.version, features)
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
