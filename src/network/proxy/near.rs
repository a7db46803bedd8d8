//! Endpoints near this node: where every endpoint says for whom it is meant, packets go to
//! those that are meant for this node, else for its zone, else to all. Pure.

use k8s_openapi::api::discovery::v1::Endpoint;

/// Where this node stands.
#[derive(Debug, Clone, Copy, Default)]
pub struct Place<'a> {
    pub node: &'a str,
    /// Of the node's label `topology.kubernetes.io/zone`.
    pub zone: Option<&'a str>,
}

fn nodes(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_nodes.as_ref());
    hints.into_iter().flatten().map(|node| node.name.as_str())
}

fn zones(endpoint: &Endpoint) -> impl Iterator<Item = &str> {
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    hints.into_iter().flatten().map(|zone| zone.name.as_str())
}

impl<'p> Place<'p> {
    /// Which of the endpoints to use, all of which can be: one that says nothing is meant
    /// for everybody, and then all are.
    pub fn choose(self, endpoints: &[&Endpoint]) -> Box<dyn Fn(&Endpoint) -> bool + 'p> {
        let all = |some: fn(&Endpoint) -> bool| endpoints.iter().all(|endpoint| some(endpoint));
        let any = |is: &dyn Fn(&Endpoint) -> bool| endpoints.iter().any(|endpoint| is(endpoint));
        let here = move |endpoint: &Endpoint| nodes(endpoint).any(|node| node == self.node);
        let in_zone =
            move |endpoint: &Endpoint| zones(endpoint).any(|zone| Some(zone) == self.zone);
        if all(|endpoint| nodes(endpoint).next().is_some()) && any(&here) {
            return Box::new(here);
        }
        if all(|endpoint| zones(endpoint).next().is_some()) && any(&in_zone) {
            return Box::new(in_zone);
        }
        Box::new(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// An endpoint by its hints: `n1 za` is for node n1 and zone za.
    fn endpoint(hints: &str) -> Endpoint {
        let with = |start: char| -> Vec<_> {
            let words = hints.split(' ').filter(|word| word.starts_with(start));
            words.map(|word| json!({"name": word})).collect()
        };
        let hints = json!({"forNodes": with('n'), "forZones": with('z')});
        serde_json::from_value(json!({"addresses": [], "hints": hints})).unwrap()
    }

    #[test]
    fn the_nearest_that_all_endpoints_know_of_are_used() {
        let place = Place { node: "n1", zone: Some("za") };
        for (endpoints, used) in [
            (vec!["n1 za", "n2 za", "n3 zb"], "100"),
            (vec!["n2 za", "n3 zb"], "10"),
            (vec!["n2 zb", "n3 zc"], "11"),
            (vec!["za", "zb"], "10"),
            (vec!["za", ""], "11"),
            // Not all know of nodes.
            (vec!["n1 za", "za", "zb"], "110"),
            (vec![], ""),
        ] {
            let all: Vec<Endpoint> = endpoints.iter().map(|hints| endpoint(hints)).collect();
            let all: Vec<&Endpoint> = all.iter().collect();
            let choice = place.choose(&all);
            let is: String = all.iter().map(|e| if choice(e) { '1' } else { '0' }).collect();
            assert_eq!(is, used, "{endpoints:?}");
        }
        let nowhere = Place { node: "n9", zone: None };
        let all = [endpoint("za"), endpoint("zb")];
        assert!(nowhere.choose(&[&all[0], &all[1]])(&all[0]));
    }
}
